"""The command line: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from standin_scene import StandinPerception
from typer.testing import CliRunner

from hand_perception import cli
from hand_perception.sources import Frame, camera_of_hfov, read_image
from hand_perception.types import Camera, HandPerceptionError

CALIBRATION = """
image_width: 64
image_height: 48
camera_name: test
camera_matrix: {rows: 3, cols: 3, data: [50, 0, 31, 0, 51, 24, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0.1, -0.2, 0.001, 0.002, 0]}
"""


@pytest.fixture
def perception(monkeypatch: pytest.MonkeyPatch) -> StandinPerception:
    standin = StandinPerception()
    monkeypatch.setattr(cli, "load_perception", lambda *_: standin)
    return standin


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "hand.png"
    assert cv2.imwrite(str(path), np.full((48, 64, 3), 90, np.uint8))
    return path


def run(*args: object) -> str:
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: object
) -> str:
    """The one line that a failing command leaves on stderr."""
    monkeypatch.setattr(sys, "argv", ["hand-perception", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("hand-perception: ")
    return lines[0]


def test_an_image_becomes_overlay_json_arrays_and_mesh(
    perception: StandinPerception, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = run("estimate", picture, "--out", out, "--intrinsics", "50,51,31,24", "--meshes")
    assert said.startswith("1 frames, 1 hands")

    content = json.loads((out / "frames/000000.json").read_text())
    assert content["name"] == "hand"
    assert content["intrinsics_assumed"] is False
    camera = content["camera"]
    assert (camera["fx"], camera["fy"], camera["cx"], camera["cy"]) == (50, 51, 31, 24)
    (hand,) = content["hands"]
    assert (hand["side"], hand["score"]) == ("right", 0.75)
    np.testing.assert_allclose(hand["joints_3d"][1], [-0.03, -0.02, 0.5])
    np.testing.assert_allclose(hand["joints_2d"][0], [31, 24])
    assert np.shape(hand["joint_angles"]) == (22,)

    arrays = np.load(out / "hands.npz")
    assert arrays["side"].tolist() == ["right"]
    assert arrays["frame"].tolist() == [0]
    np.testing.assert_allclose(arrays["joints_3d"][0], hand["joints_3d"])

    mesh = trimesh.load_mesh(out / "meshes/000000_right.ply")
    assert (len(mesh.vertices), len(mesh.faces)) == (4, 4)
    assert mesh.centroid[2] == pytest.approx(0.5, abs=1e-6)

    overlay = read_image(out / "overlay.png")
    assert overlay.shape == (48, 64, 3)
    assert (overlay != 90).any()


def test_without_intrinsics_an_assumption_is_made_and_said(
    perception: StandinPerception, picture: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli.app, ["estimate", str(picture), "--out", str(tmp_path / "o")])
    assert "assuming a 60 degree horizontal field of view" in result.stderr
    assert json.loads((tmp_path / "o/frames/000000.json").read_text())["intrinsics_assumed"] is True
    assert perception.cameras == [camera_of_hfov(64, 48, 60)]


def test_a_folder_gives_one_of_each_and_leaves_out_the_broken(
    perception: StandinPerception, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((48, 64, 3), 90, np.uint8))
    (folder / "1.png").write_bytes(b"broken")
    said = run("estimate", folder, "--out", out, "--hfov", 90, "--independent")
    assert said.startswith("2 frames, 1 left out, 2 hands")
    assert sorted(p.name for p in out.glob("frames/*")) == ["000000.json", "000001.json"]
    assert sorted(p.name for p in out.glob("overlay/*")) == ["000000.jpg", "000001.jpg"]
    assert perception.resets == 2
    assert perception.stamps == pytest.approx([0, 2 / 30])

    # A shorter run leaves nothing of the longer one.
    run("estimate", folder, "--out", out, "--hfov", 90, "--max-frames", 1, "--no-overlay")
    assert [p.name for p in out.glob("frames/*")] == ["000000.json"]
    assert not list(out.glob("overlay/*"))
    assert np.load(out / "hands.npz")["frame"].tolist() == [0]


def test_a_video_becomes_a_video(perception: StandinPerception, tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(5):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    run("estimate", clip, "--out", out, "--hfov", 60)
    assert np.load(out / "hands.npz")["stamp_s"] == pytest.approx(np.arange(5) / 10, abs=1e-3)
    overlay = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert overlay.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert overlay.get(cv2.CAP_PROP_FPS) == 10


def test_a_folder_of_broken_images_fails(
    perception: StandinPerception,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.png").write_bytes(b"broken")
    monkeypatch.setattr(sys, "argv", f"x estimate {tmp_path}/in --out {tmp_path}/o".split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "gave no frame that could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--intrinsics", "1,2,3"], "--intrinsics has 3 numbers; it takes four: fx,fy,cx,cy"),
        (["--intrinsics", "a,b,c,d"], "takes numbers with commas between"),
        (["--intrinsics", "nan,50,31,24"], "finite"),
        (["--intrinsics", "0,0,31,24"], "not calibrated"),
        (["--hfov", "200"], "--hfov is 200.0; it must lie between 0 and 180"),
        (["--hfov", "60", "--intrinsics", "50,50,31,24"], "give only one of"),
        (["--distortion", "0,0,0,0"], "--distortion belongs to --intrinsics"),
        (["--intrinsics", "50,50,31,24", "--distortion", "1,2"], "plumb_bob takes 0, 4, 5 or 8"),
        (["--camera-yaml", "nowhere.yaml"], "nowhere.yaml cannot be read: No such file"),
    ],
)
def test_bad_options_fail_with_one_sentence(
    perception: StandinPerception,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    out = tmp_path / "out"
    assert sentence in fails(capsys, monkeypatch, "estimate", picture, "--out", out, *options)
    assert not out.exists()


def test_bad_sources_methods_and_folders_fail_with_one_sentence(
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(*args: object) -> str:
        return fails(capsys, monkeypatch, "estimate", *args)

    out = tmp_path / "out"
    assert "is not there" in said(tmp_path / "missing.mp4", "--out", out)
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "empty.jpg is empty" in said(tmp_path / "empty.jpg", "--out", out)
    assert "'magic' is unknown" in said(picture, "--out", out, "--method", "magic")
    assert "'tpu' is unknown" in said(picture, "--out", out, "--device", "tpu")
    monkeypatch.setattr(cli, "load_perception", lambda *_: StandinPerception())
    assert "is a file; results go into a folder" in said(picture, "--out", picture, "--hfov", 60)


def test_a_calibration_file_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(CALIBRATION)
    expected = Camera(64, 48, 50.0, 51.0, 31.0, 24.0, (0.1, -0.2, 0.001, 0.002, 0.0))
    assert cli.read_camera_yaml(path) == expected
    path.write_text(CALIBRATION.replace("plumb_bob", "equidistant"))
    with pytest.raises(HandPerceptionError, match="distortion model 'equidistant'"):
        cli.read_camera_yaml(path)
    for broken in ("just text", "{", "image_width: 3", ""):
        path.write_text(broken)
        with pytest.raises(HandPerceptionError, match="is no camera calibration"):
            cli.read_camera_yaml(path)


def test_a_bags_camera_is_used_unless_another_is_given() -> None:
    camera = Camera(64, 48, 50.0, 50.0, 31.0, 24.0)
    frame = Frame(np.zeros((48, 64, 3), np.uint8), 0.0, "0", camera)
    assert cli.camera_rule(None, None, None, None)(frame) == (camera, False)
    assert cli.camera_rule(None, 90.0, None, None)(frame) == (camera_of_hfov(64, 48, 90), False)
    given, assumed = cli.camera_rule("60,60,30,20", None, None, "1,2,3,4")(frame)
    assert given == Camera(64, 48, 60.0, 60.0, 30.0, 20.0, (1.0, 2.0, 3.0, 4.0))
    assert not assumed


def test_benchmark_prints_json(perception: StandinPerception, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), np.zeros((48, 64, 3), np.uint8))
    result = json.loads(run("benchmark", folder, "--warm-up", 2, "--max-frames", 3))
    assert (result["frames"], result["hands_per_frame"]) == (3, 1.0)
    assert 0 < result["latency_ms_p50"] <= result["latency_ms_p95"]
    assert len(perception.stamps) == 5
    with pytest.raises(HandPerceptionError, match="lower --warm-up"):
        run("benchmark", folder, "--warm-up", 6)


def test_help_names_the_commands() -> None:
    said = run("--help")
    for command in ("estimate", "train", "evaluate", "benchmark", "demo"):
        assert command in said


def test_estimate_with_the_real_pipeline(tmp_path: Path, shared_data: Path) -> None:
    photo = shared_data / "fixtures/onehand10k/9.jpg"
    run("estimate", photo, "--out", tmp_path, "--device", "cpu", "--hfov", 60, "--meshes")
    content = json.loads((tmp_path / "frames/000000.json").read_text())
    assert len(content["hands"]) == 1
    assert len(list(tmp_path.glob("meshes/*.ply"))) == 1
