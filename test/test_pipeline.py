"""The pipeline from image to Scene: frames, sides, boxes, resets and refusals."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hand_perception import Camera, HandPerception, HandPerceptionError
from hand_perception.camera import project
from hand_perception.geometry import axis_angle_to_matrix
from hand_perception.types import SIDES


def camera_of(image: np.ndarray) -> Camera:
    height, width = image.shape[:2]
    focal = width / 2 / np.tan(np.radians(30))
    return Camera(width, height, focal, focal, width / 2 - 0.5, height / 2 - 0.5)


@pytest.fixture(scope="module")
def perception() -> HandPerception:
    return HandPerception.load(method="landmark_fit", device="cpu")


@pytest.fixture
def photo(shared_data: Path) -> np.ndarray:
    """Two open hands beside a face."""
    video = cv2.VideoCapture(str(shared_data / "videos/two_hands_interacting_500f.mp4"))
    video.set(cv2.CAP_PROP_POS_FRAMES, 90)
    return np.ascontiguousarray(video.read()[1][..., ::-1])


def test_an_empty_image_has_no_hands(perception: HandPerception) -> None:
    perception.reset()
    image = np.zeros((120, 160, 3), np.uint8)
    scene = perception.process(image, camera_of(image), 3.5)
    assert scene.stamp_s == 3.5
    assert scene.hands == []


def test_both_hands_of_a_photo_agree_with_themselves(
    perception: HandPerception, photo: np.ndarray
) -> None:
    perception.reset()
    camera = camera_of(photo)
    scene = perception.process(photo, camera, 0.0)
    assert [hand.side for hand in scene.hands] == list(SIDES)
    for hand in scene.hands:
        assert hand.score > 0.9
        # The model, posed in the camera frame with the parameters given, is the hand given.
        model = perception.hand_model(hand.side)
        parameters = (hand.betas, hand.global_orient, hand.hand_pose, hand.transl)
        betas, orient, pose, transl = (torch.from_numpy(x).float() for x in parameters)
        posed = model.with_shape(betas).with_pose(orient, pose, transl)
        np.testing.assert_allclose(posed.joints.numpy(), hand.joints_3d, atol=1e-5)
        np.testing.assert_allclose(posed.mesh().numpy(), hand.vertices, atol=1e-5)
        np.testing.assert_allclose(hand.T_camera_wrist[:3, 3], hand.joints_3d[0], atol=1e-9)
        rotation = axis_angle_to_matrix(torch.from_numpy(hand.global_orient)).numpy()
        np.testing.assert_allclose(hand.T_camera_wrist[:3, :3], rotation, atol=1e-6)
        # It lies where it is seen: within 8 % of its own extent in the mean.
        extent = np.ptp(hand.joints_2d, axis=0).max()
        error = np.linalg.norm(project(hand.joints_3d, camera) - hand.joints_2d, axis=1)
        assert error.mean() < 0.08 * extent
    left, right = scene.hands
    # The person faces the camera: the left hand is on the right of the image.
    assert left.joints_2d[:, 0].mean() > right.joints_2d[:, 0].mean() + 100
    # Open hands: no finger is bent by more than half a right angle at its middle joint.
    for hand in scene.hands:
        middle = hand.joint_angles[[8, 12, 16, 20]]
        assert np.abs(middle).max() < np.radians(45)


def test_a_mirrored_photo_gives_the_mirrored_hands(
    perception: HandPerception, photo: np.ndarray
) -> None:
    camera = camera_of(photo)
    perception.reset()
    hands = perception.process(photo, camera, 0.0).hands
    perception.reset()
    mirrored = perception.process(np.ascontiguousarray(photo[:, ::-1]), camera, 0.0).hands
    assert [hand.side for hand in mirrored] == list(SIDES)
    for hand, other in zip(hands, reversed(mirrored), strict=True):
        reflected = other.joints_3d * (-1, 1, 1)
        # The detector's own answer is not exactly symmetric; the depth carries most of that.
        relative = (hand.joints_3d - hand.joints_3d[0]) - (reflected - reflected[0])
        assert np.linalg.norm(relative, axis=1).mean() < 0.012
        # A turn of the thumb about its own axis hardly shows, so the mean counts.
        assert np.abs(hand.joint_angles - other.joint_angles).mean() < 0.15


def test_given_boxes_skip_detection(perception: HandPerception, photo: np.ndarray) -> None:
    camera = camera_of(photo)
    perception.reset()
    found = perception.process(photo, camera, 0.0).hands
    boxes = {
        hand.side: (*hand.joints_2d.min(axis=0), *np.ptp(hand.joints_2d, axis=0)) for hand in found
    }
    perception.reset()
    only_left = perception.process(photo, camera, 0.0, boxes={"left": boxes["left"]}).hands
    assert [hand.side for hand in only_left] == ["left"]
    extent = np.ptp(found[0].joints_2d, axis=0).max()
    distance = np.linalg.norm(only_left[0].joints_2d - found[0].joints_2d, axis=1).mean()
    assert distance < 0.05 * extent


def test_depth_moves_a_hand_along_its_rays(perception: HandPerception, photo: np.ndarray) -> None:
    camera = camera_of(photo)
    perception.reset()
    without = perception.process(photo, camera, 0.0).hands[0]
    perception.reset()
    depth = np.full(photo.shape[:2], 1.25, np.float32)
    with_depth = perception.process(photo, camera, 0.0, depth=depth).hands[0]
    palm = with_depth.joints_3d[[0, 5, 9, 13, 17], 2].mean()
    assert palm == pytest.approx(1.26, abs=0.03)
    ratio = with_depth.joints_3d / without.joints_3d
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-6)


def test_tracks_are_steady_and_a_backward_stamp_starts_anew(
    perception: HandPerception, photo: np.ndarray
) -> None:
    camera = camera_of(photo)
    perception.reset()
    first = [perception.process(photo, camera, k / 30).hands for k in range(5)]
    identities = {tuple((h.side, h.track_id) for h in hands) for hands in first[1:]}
    assert len(identities) == 1
    again = perception.process(photo, camera, 0.0)
    fresh = HandPerception.load(method="landmark_fit", device="cpu").process(photo, camera, 0.0)
    for hand, expected in zip(again.hands, fresh.hands, strict=True):
        np.testing.assert_allclose(hand.joints_3d, expected.joints_3d, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((10, 20), np.uint8), "uint8 RGB"),
        (np.zeros((10, 20, 3), np.float32), "uint8 RGB"),
        (np.zeros((20, 10, 3), np.uint8), "both must agree"),
        (None, "uint8 RGB"),
    ],
)
def test_bad_images_are_refused(perception: HandPerception, image: object, words: str) -> None:
    with pytest.raises(HandPerceptionError, match=words):
        perception.process(image, Camera(20, 10, 30, 30, 10, 5), 0.0)  # type: ignore[arg-type]


def test_bad_stamps_boxes_and_options_are_refused(perception: HandPerception) -> None:
    image, camera = np.zeros((10, 20, 3), np.uint8), Camera(20, 10, 30, 30, 10, 5)
    with pytest.raises(HandPerceptionError, match="finite time"):
        perception.process(image, camera, float("nan"))
    with pytest.raises(HandPerceptionError, match="with a size"):
        perception.process(image, camera, 0.0, boxes={"left": (1, 1, 0, 4)})
    with pytest.raises(HandPerceptionError, match="left and right"):
        perception.process(image, camera, 0.0, boxes={"both": (1, 1, 4, 4)})  # type: ignore[dict-item]
    with pytest.raises(HandPerceptionError, match="known are"):
        HandPerception.load(method="magic")
    with pytest.raises(HandPerceptionError, match="single frames"):
        HandPerception.load(method="landmark_fit", device="cpu", lag=2)
