"""Annotated sets, matching, and figures of runs whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from standin_scene import StandinPerception, standin_hand

from hand_perception.camera import project
from hand_perception.evaluation import figures
from hand_perception.evaluation.figures import FoundHand, Run
from hand_perception.evaluation.fixtures import (
    FIXTURES,
    AnnotatedHand,
    AnnotatedImage,
    read_fixture,
)
from hand_perception.sources import camera_of_hfov
from hand_perception.types import Camera, HandPerceptionError, Side

CAMERA = Camera(320, 240, 300.0, 300.0, 160.0, 120.0)


def found(side: Side, x: float = 0.0, shift_px: float = 0.0) -> FoundHand:
    hand = standin_hand(side, (x, 0.0, 0.5), CAMERA)
    return FoundHand(side, hand.joints_2d + shift_px, hand.joints_3d)


def truth(side: Side | None = "right", x: float = 0.0, with_3d: bool = False) -> AnnotatedHand:
    hand = standin_hand("right", (x, 0.0, 0.5), CAMERA)
    joints_3d = hand.joints_3d if with_3d else None
    return AnnotatedHand(hand.joints_2d, np.ones(21, bool), side, joints_3d)


def image(*hands: AnnotatedHand) -> AnnotatedImage:
    return AnnotatedImage(Path("x.jpg"), list(hands))


COUNTS = {
    "onehand10k": 4,
    "panoptic": 4,
    "coco_wholebody": 4,
    "freihand": 8,
    "rhd": 3,
    "interhand26m": 4,
    "cmu_hand_manual": 3,
}


@pytest.mark.parametrize("name", FIXTURES)
def test_annotations_lie_in_their_images(shared_data: Path, name: str) -> None:
    images = read_fixture(name, shared_data / "fixtures" / name)
    assert len(images) == COUNTS[name]
    for one in images:
        pixels = cv2.imread(str(one.path))
        assert pixels is not None
        for hand in one.hands:
            marked = hand.joints_2d[hand.valid]
            assert (marked > -20).all()
            assert (marked < np.array(pixels.shape[1::-1]) + 20).all()
            if hand.joints_3d is not None:
                assert one.camera is not None
                reprojected = project(hand.joints_3d, one.camera)
                np.testing.assert_allclose(reprojected, hand.joints_2d, atol=0.1)
                length = np.linalg.norm(hand.joints_3d[9] - hand.joints_3d[0])
                assert 0.07 < length < 0.11


def test_interhand_sides_and_orders(shared_data: Path) -> None:
    images = read_fixture("interhand26m", shared_data / "fixtures/interhand26m")
    assert sorted(len(one.hands) for one in images) == [1, 1, 2, 2]
    by_name = {one.path.parts[-3]: one for one in images}
    (thumb_up,) = by_name["0007_thumbup_normal"].hands
    assert thumb_up.side == "right"
    # The thumb points up in the image, its tip highest.
    assert int(thumb_up.joints_2d[:, 1].argmin()) == 4


def test_missing_and_damaged_annotations_say_so(tmp_path: Path) -> None:
    with pytest.raises(HandPerceptionError, match="test_rhd.json: No such file"):
        read_fixture("rhd", tmp_path)
    (tmp_path / "test_rhd.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(HandPerceptionError, match="annotations of rhd in .* are damaged"):
        read_fixture("rhd", tmp_path)
    (tmp_path / "test_rhd.json").write_text('{"images"')
    with pytest.raises(HandPerceptionError, match="are damaged"):
        read_fixture("rhd", tmp_path)
    with pytest.raises(HandPerceptionError, match="'mnist' is unknown"):
        read_fixture("mnist", tmp_path)


def test_matching_is_one_to_one_and_near() -> None:
    left, right = truth("left", -0.15), truth("right", 0.15)
    answers = [found("right", 0.15, 2.0), found("left", -0.15, 3.0), found("left", 0.16)]
    assert figures.match_hands(answers, [left, right]) == {0: 1, 1: 0}
    assert figures.match_hands([found("left", 0.6)], [left, right]) == {}
    assert figures.match_hands([], [left]) == {}
    # Sides play no part: a hand under the wrong name is found all the same.
    assert figures.match_hands([found("right", -0.15)], [left]) == {0: 0}


def test_image_figures_count_misses_as_wrong() -> None:
    images = [image(truth("right", with_3d=True)), image(truth("left", -0.2), truth(None, 0.2))]
    run = Run([[found("right")], [found("right", -0.2)]], [0.1, 0.1])
    result = figures.image_figures(run, images)
    assert (result["images"], result["hands"], result["found"]) == (2, 3, 2)
    assert result["pck_found"] == 1.0
    assert result["pck_all"] == pytest.approx(2 / 3)
    assert result["side_accuracy"] == 0.5
    assert result["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-6)
    assert (result["found_with_3d"], result["hands_with_3d"]) == (1, 1)


def test_pck_takes_a_fifth_of_the_joints_box() -> None:
    hand = truth()
    assert hand.box_size == pytest.approx(48)  # 0.08 m at 0.5 m, focal length 300.
    for shift, expected in ((6.5, 1.0), (7.0, 0.0)):  # Along the diagonal; the limit is 9.6.
        run = Run([[found("right", 0.0, shift)]], [0.1])
        assert figures.image_figures(run, [image(hand)])["pck_all"] == expected


def test_a_set_without_any_hand_found_has_no_figures_of_found_hands() -> None:
    result = figures.image_figures(Run([[]], [0.1]), [image(truth())])
    assert result["pck_all"] == 0.0
    assert np.isnan(result["pck_found"]) and np.isnan(result["side_accuracy"])


def test_video_figures_of_a_still_hand() -> None:
    frames = [[found("right")]] * 6 + [[]] * 2 + [[found("right"), found("left", 0.3)]] * 2
    result = figures.video_figures(Run(frames, [0.02] * 10), 1, 30.0)
    assert result["frames"] == 10
    assert result["detection_rate"] == pytest.approx(0.6)
    assert result["too_many_rate"] == pytest.approx(0.2)
    assert result["jitter_m_s2"] == pytest.approx(0, abs=1e-9)
    assert result["side_switches"] == 0
    assert result["latency_ms_p50"] == pytest.approx(20)
    assert result["fps"] == pytest.approx(50)
    # The middle knuckle is 2 cm along from the wrist.
    assert result["hand_size_m"] == pytest.approx(0.02)


def test_switches_of_side_are_counted_on_each_hand_alone() -> None:
    steady, other = found("right", -0.15), found("left", 0.15)
    flipped = replace(other, side="right")
    frames = [[steady, other], [other, steady], [steady, flipped], [], [flipped, steady], [other]]
    assert figures.video_figures(Run(frames, [0.1] * 6), 2, 30.0)["side_switches"] == 2


def test_jitter_of_a_shaking_fingertip() -> None:
    hands = []
    for index in range(5):
        hand = found("right")
        joints = hand.joints_3d.copy()
        joints[8, 0] += 0.001 * (index == 2)
        hands.append([replace(hand, joints_3d=joints)])
    result = figures.video_figures(Run(hands, [0.1] * 5), 1, 30.0)
    assert result["jitter_m_s2"] == pytest.approx(0.004 * 900 / (3 * 20))


def test_a_clip_without_hands_has_no_jitter() -> None:
    result = figures.video_figures(Run([[]] * 4, [0.1] * 4), 1, 30.0)
    assert result["detection_rate"] == 0.0
    assert np.isnan(result["jitter_m_s2"]) and np.isnan(result["hand_size_m"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A clip folder and a set of one photo, laid out as the shared data."""
    camera = camera_of_hfov(64, 48)
    hand = standin_hand("right", (0.0, 0.0, 0.5), camera)
    clip, photos = tmp_path / "data/videos/hand_object_bulb_20f", tmp_path / "data/fixtures/rhd"
    for folder in (clip, photos):
        folder.mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(str(folder / f"{index}.jpg"), np.zeros((48, 64, 3), np.uint8))
    order = figures_order()
    annotation = {
        "images": [
            {
                "id": 0,
                "file_name": "0.jpg",
                "width": 64,
                "height": 48,
                "cam_param": {"focal": [camera.fx, camera.fy], "princpt": [camera.cx, camera.cy]},
            }
        ],
        "annotations": [
            {
                "image_id": 0,
                "hand_type": "right",
                "keypoints": np.c_[figures.to_knuckles(hand.joints_2d), np.ones(21)][
                    order
                ].tolist(),
                "joint_cam": (1000 * figures.to_knuckles(hand.joints_3d)[order]).tolist(),
            }
        ],
    }
    (photos / "test_rhd.json").write_text(json.dumps(annotation))
    return tmp_path / "data"


def figures_order() -> list[int]:
    """From the package's joint order to RHD's: each finger from its tip."""
    return [0] + [4 * finger + bone for finger in range(5) for bone in (4, 3, 2, 1)]


def test_figures_are_written_as_json_and_tables(data: Path, tmp_path: Path) -> None:
    standin = StandinPerception()
    figures.run_figures(data, tmp_path / "out", methods=["standin"], load=lambda _: standin)
    result = json.loads((tmp_path / "out/figures.json").read_text())
    clip = result["videos"]["hand_object_bulb_20f"]["standin"]
    assert (clip["frames"], clip["detection_rate"]) == (3, 1.0)
    assert standin.stamps[:3] == pytest.approx([0, 0.08, 0.16])
    photos = result["images"]["rhd"]["standin"]
    assert (photos["hands"], photos["pck_all"]) == (1, 1.0)
    assert photos["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-6)
    tables = (tmp_path / "out/figures.md").read_text()
    assert "| hand_object_bulb_20f | standin | 100.0 % |" in tables
    assert "| rhd | standin | 1 | 1 | 100.0 % | 100.0 % | 100.0 % | 0.0 (1/1) |" in tables


def test_the_peer_is_called_and_its_landmarks_are_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program in the peer's place, which writes the file that it writes."""
    peer = tmp_path / "python"
    peer.write_text(
        "#!/usr/bin/env bash\n"
        f'[ "$4" = sequence ] && cp {tmp_path}/clip.npz "$2" || cp {tmp_path}/photo.npz "$2"\n'
    )
    peer.chmod(0o755)
    hand = standin_hand("right", (0.0, 0.0, 0.5), camera_of_hfov(64, 48))
    joints: dict[str, Any] = {"joints_2d": hand.joints_2d[None], "world": hand.joints_3d[None]}
    np.savez(tmp_path / "clip.npz", seconds=[0.1] * 3, frame=[1], right=[False], **joints)
    np.savez(tmp_path / "photo.npz", seconds=[0.1], frame=[0], right=[True], **joints)
    result = figures.run_figures(
        data,
        tmp_path / "out",
        methods=[],
        load=lambda _: StandinPerception(),
        mediapipe_python=peer,
    )
    clip = result["videos"]["hand_object_bulb_20f"]["mediapipe"]
    assert clip["detection_rate"] == pytest.approx(1 / 3)
    photos = result["images"]["rhd"]["mediapipe"]
    assert (photos["found"], photos["side_accuracy"]) == (1, 1.0)


def test_knuckles_move_along_their_bones() -> None:
    joints = standin_hand("right", (0.0, 0.0, 0.5), CAMERA).joints_3d
    moved = figures.to_knuckles(joints)
    np.testing.assert_allclose(moved[5], joints[5] + 0.28 * (joints[6] - joints[5]))
    same = [joint for joint in range(21) if joint not in (1, 5, 9, 13, 17)]
    np.testing.assert_array_equal(moved[same], joints[same])


def test_what_cannot_be_measured_is_said(data: Path, tmp_path: Path) -> None:
    def run(folder: Path, python: Path | None = None) -> None:
        figures.run_figures(
            folder,
            tmp_path / "out",
            methods=[],
            load=lambda _: StandinPerception(),
            mediapipe_python=python,
        )

    with pytest.raises(HandPerceptionError, match="holds nothing to measure on"):
        run(tmp_path)
    with pytest.raises(HandPerceptionError, match="cannot be run"):
        run(data, tmp_path / "no-python")
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho ModuleNotFoundError: mediapipe >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(HandPerceptionError, match="failed: ModuleNotFoundError: mediapipe"):
        run(data, failing)
