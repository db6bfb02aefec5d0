"""The package as a whole: which room may import which, what is installed, and where it is found."""

import ast
import configparser
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools

from hand_perception import resources
from hand_perception.types import HandPerceptionError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hand_perception"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Data flows one way: a room imports from its own level or one to the left of it.
LEVELS: tuple[set[str], ...] = (
    {"types"},
    {"camera", "geometry", "resources", "skeleton"},
    {"crops", "detection", "drawing", "fitting", "fusion", "hand_model", "mano", "networks"},
    {"pipeline"},
    {"cli", "datasets", "evaluation", "results", "ros", "sources", "synthesis", "training"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ROS_PACKAGES = {
    "ament_index_python",
    "cv_bridge",
    "launch",
    "launch_ros",
    "message_filters",
    "rclpy",
    "tf2_ros",
}


def imports(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """The dotted names that a module of `package` imports, wherever in it, as absolute names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield module
            if module == "hand_perception":
                yield from (f"{module}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The room that a dotted name lies in, None outside the package and for the package itself."""
    parts = name.split(".")
    inside = parts[0] == "hand_perception" and len(parts) > 1
    # Records and the entry point, which the package offers at its top.
    return parts[1] if inside and parts[1][0].islower() else None


def is_ros(name: str) -> bool:
    top = name.split(".")[0]
    return top in ROS_PACKAGES or top.endswith(("_msgs", "_srvs", "_interfaces"))


def test_every_room_has_its_level():
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py"}
    rooms |= {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.py")}
    assert rooms - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    names = set(imports(path.read_text(), path.relative_to(ROOT).parts[:-1]))
    if own != "ros":
        assert not {name for name in names if is_ros(name)}, "only ros/ may import ROS"
    if own != "__init__":
        rooms = {room(name) for name in names} - {None}
        assert not {r for r in rooms if LEVEL[r] > LEVEL[own]}, f"{own} must not import these"


def test_the_import_rules_see_what_they_forbid():
    source = "def f():\n from std_msgs.msg import Header\n from .. import pipeline\n import rclpy"
    names = list(imports(source, ("hand_perception", "networks")))
    assert names == ["std_msgs.msg", "hand_perception", "hand_perception.pipeline", "rclpy"]
    assert [is_ros(name) for name in names] == [True, False, False, True]
    assert [room(name) for name in names] == [None, None, "pipeline", None]
    assert room("hand_perception.HandPerception") is None


def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


def test_everything_that_is_needed_is_installed(monkeypatch):
    installed = {
        f"{folder}/{Path(file).name}": file
        for folder, files in setup_arguments(monkeypatch)["data_files"]
        for file in files
    }
    share = "share/hand_perception"
    assert all((ROOT / file).is_file() for file in installed.values())
    assert "share/ament_index/resource_index/packages/hand_perception" in installed
    assert f"{share}/package.xml" in installed
    for folder in ("config", "launch", "models"):
        wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        got = {name.removeprefix(f"{share}/") for name in installed}
        assert {name for name in wanted if "__pycache__" not in name} <= got


def test_versions_and_licences_agree():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for name in ("name", "version", "license"):
        assert package.findtext(name) == config["metadata"][name]
    assert package.findtext("export/build_type") == "ament_python"


def colcon(*arguments: str, cwd: Path) -> str:
    program = Path(sys.executable).with_name("colcon")
    found = str(program) if program.is_file() else shutil.which("colcon")
    if found is None:
        pytest.skip("colcon is not installed; `make setup` brings it")
    run = subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_colcon_knows_it_as_a_ros_package(tmp_path):
    listed = colcon("--log-base", str(tmp_path), "list", "--base-paths", str(ROOT), cwd=tmp_path)
    assert listed.splitlines() == [f"hand_perception\t{ROOT}\t(ros.ament_python)"]


@pytest.mark.parametrize("layout", [[], ["--symlink-install"]], ids=["copied", "linked"])
def test_colcon_build_installs_package_programs_and_data(tmp_path, layout):
    source = tmp_path / "src" / "hand_perception"
    ignored = shutil.ignore_patterns(
        ".*", "build", "install", "log", "out", "data", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    colcon("build", *layout, cwd=tmp_path)
    prefix = tmp_path / "install" / "hand_perception"
    for program in ("hand-perception", "estimator_node"):
        assert os.access(prefix / "lib" / "hand_perception" / program, os.X_OK)
    index = prefix / "share/ament_index/resource_index/packages/hand_perception"
    assert index.exists()
    assert (prefix / "share/hand_perception/package.xml").exists()
    script = (
        "from hand_perception import resources as r;"
        "print(r.__file__, r.model_file('hand/free_hand_right.safetensors'), r.config_dir())"
    )
    command = f'source install/local_setup.sh && {sys.executable} -c "{script}"'
    run = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    code, weights, config = (Path(path) for path in run.stdout.split())
    assert code.is_relative_to(tmp_path) and weights.is_relative_to(tmp_path)
    assert (config / "fastdds_large_images.xml").is_file()


def test_models_are_found_in_the_checkout():
    assert resources.models_dir() == ROOT / "models"
    assert resources.config_dir() == ROOT / "config"


def test_models_may_lie_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HAND_PERCEPTION_MODELS", str(tmp_path))
    assert resources.models_dir() == tmp_path
    with pytest.raises(HandPerceptionError, match=r"hand/a\.safetensors are missing from"):
        resources.model_file("hand/a.safetensors")
    monkeypatch.setenv("HAND_PERCEPTION_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(HandPerceptionError, match=r"HAND_PERCEPTION_MODELS names .* not a folder"):
        resources.models_dir()


def test_a_package_without_data_says_so(tmp_path):
    copy = tmp_path / "lib/python3/site-packages/hand_perception/resources.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(PACKAGE / "resources.py", copy)
    spec = importlib.util.spec_from_file_location("lost_resources", copy)
    lost = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lost)
    with pytest.raises(HandPerceptionError, match="no models/ folder belongs to"):
        lost.models_dir()
    (tmp_path / "share/hand_perception/models").mkdir(parents=True)
    assert lost.models_dir() == tmp_path / "share/hand_perception/models"
