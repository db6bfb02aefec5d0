"""The launch file, the parameter file and the RViz file agree with the node."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch" / "estimator.launch.py"
ARGUMENTS = {
    "image_topic",
    "camera_info_topic",
    "image_transport",
    "method",
    "device",
    "params_file",
    "namespace",
    "use_sim_time",
    "rviz",
    "autostart",
}


def yaml_parameters() -> dict:
    content = yaml.safe_load((ROOT / "config" / "estimator.yaml").read_text())
    return content["/**"]["ros__parameters"]


def declared_arguments() -> dict[str, dict[str, ast.expr]]:
    """The keywords of each DeclareLaunchArgument, by the argument's name."""
    return {
        ast.literal_eval(call.args[0]): {word.arg or "": word.value for word in call.keywords}
        for call in ast.walk(ast.parse(LAUNCH.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "DeclareLaunchArgument"
    }


def test_arguments_have_a_default_and_a_description():
    arguments = declared_arguments()
    assert set(arguments) == ARGUMENTS
    for name, keywords in arguments.items():
        assert "default_value" in keywords, name
        assert len(ast.literal_eval(keywords["description"])) > 10, name


def test_defaults_of_arguments_are_those_of_the_parameter_file():
    parameters = yaml_parameters()
    arguments = declared_arguments()
    for name in ("method", "device", "image_transport", "autostart"):
        default = yaml.safe_load(ast.literal_eval(arguments[name]["default_value"]))
        assert default == parameters[name], name


def test_every_argument_is_used():
    used = re.findall(r'LaunchConfiguration\("(\w+)"\)', LAUNCH.read_text())
    assert set(used) == ARGUMENTS


def test_the_executable_is_installed():
    scripts = (ROOT / "setup.cfg").read_text()
    executables = re.findall(r'package="hand_perception",\s+executable="(\w+)"', LAUNCH.read_text())
    assert executables
    for executable in executables:
        assert re.search(rf"^\s*{executable} = hand_perception", scripts, re.MULTILINE)


def test_the_parameter_file_lists_every_parameter_with_its_default():
    pytest.importorskip("rclpy", reason="ROS 2 is needed")
    from hand_perception.ros.parameters import SETTINGS, refusal

    parameters = yaml_parameters()
    assert parameters == {name: setting.default for name, setting in SETTINGS.items()}
    for name, value in parameters.items():
        assert type(value) is type(SETTINGS[name].default), name
        assert refusal(name, value, configured=False) == "", name


def test_rviz_shows_what_the_node_publishes():
    config = yaml.safe_load((ROOT / "config" / "hand_perception.rviz").read_text())
    displays = config["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    published = (ROOT / "docs" / "ros_interface.md").read_text()
    assert {"overlay", "markers", "left/mesh", "right/mesh"} <= shown
    for topic in shown:
        assert f"`{topic}`" in published, topic
    assert any(display["Class"].endswith("/TF") for display in displays)


def test_the_launch_description_with_the_real_launch():
    pytest.importorskip("launch.actions", reason="launch comes with a ROS distribution")
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution")
    from launch.actions import DeclareLaunchArgument

    spec = importlib.util.spec_from_file_location("estimator_launch", LAUNCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    names = {e.name for e in description.entities if isinstance(e, DeclareLaunchArgument)}
    assert names == ARGUMENTS
    assert len(description.entities) == len(ARGUMENTS) + 2
