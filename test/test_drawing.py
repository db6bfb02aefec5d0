"""Pictures of scenes: what is drawn, where, in which colour, and what is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from standin_scene import CORNERS, FACES, standin_hand

from hand_perception.drawing import OBJECT_COLOR, SIDE_COLORS, contact_sheet, draw_scene
from hand_perception.types import SIDES, Camera, HandPerceptionError, ObjectPose, Scene, Side

CAMERA = Camera(320, 240, 300.0, 300.0, 160.0, 120.0)
GREY = np.full((240, 320, 3), 90, np.uint8)
BOTH: dict[Side, np.ndarray] = {"left": FACES, "right": FACES}


def changed(picture: np.ndarray) -> np.ndarray:
    return np.any(picture != GREY, axis=-1)


def test_the_standin_mesh_faces_outwards() -> None:
    corners = CORNERS[FACES]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("fk,fk->f", normals, corners.mean(1)) > 0).all()


def test_an_empty_scene_is_a_copy() -> None:
    picture = draw_scene(GREY, Scene(0.0), BOTH, CAMERA)
    np.testing.assert_array_equal(picture, GREY)
    assert picture is not GREY


def test_the_mesh_covers_the_hand_in_its_sides_colour_and_nothing_else() -> None:
    for side, strong, weak in zip(SIDES, (2, 0), (0, 2)):
        hand = standin_hand(side, (0.0, 0.0, 0.5), CAMERA)
        # The skeleton lies elsewhere, so that the mesh is alone in the middle.
        hand = replace(hand, joints_2d=np.full((21, 2), -500.0))
        picture = draw_scene(GREY, Scene(0.0, [hand]), BOTH, CAMERA, mesh_alpha=1.0)
        center = picture[118:122, 158:162].reshape(-1, 3).mean(0)
        assert center[strong] > center[weak] + 30
        # 4 cm at 0.46 m or more: at most 27 pixels from the middle.
        rows, columns = np.nonzero(changed(picture)[25:])
        assert np.abs(rows + 25 - 120).max() <= 28
        assert np.abs(columns - 160).max() <= 28


def test_opacity_blends() -> None:
    hand = standin_hand("right", (0.0, 0.0, 0.5), CAMERA)
    hand = replace(hand, joints_2d=np.full((21, 2), -500.0))
    opaque, half, none = (
        draw_scene(GREY, Scene(0.0, [hand]), BOTH, CAMERA, mesh_alpha=a)[120, 160].astype(float)
        for a in (1.0, 0.5, 0.0)
    )
    np.testing.assert_allclose(half, (opaque + 90) / 2, atol=1)
    np.testing.assert_array_equal(none, 90)


def test_the_nearer_hand_covers_the_farther_one() -> None:
    near = standin_hand("left", (0.0, 0.0, 0.4), CAMERA)
    far = standin_hand("right", (0.0, 0.0, 0.8), CAMERA)
    hidden = np.full((21, 2), -500.0)
    hands = [replace(near, joints_2d=hidden), replace(far, joints_2d=hidden)]
    for order in (hands, hands[::-1]):
        pixel = draw_scene(GREY, Scene(0.0, order), BOTH, CAMERA, mesh_alpha=1.0)[120, 160]
        assert pixel[2] > pixel[0]


def test_surer_bones_are_thicker() -> None:
    hand = standin_hand("left", (0.0, 0.05, 0.5), CAMERA)
    counts = [
        changed(
            draw_scene(
                GREY, Scene(0.0, [replace(hand, joint_confidence=np.full(21, c))]), {}, CAMERA
            )
        ).sum()
        for c in (0.1, 1.0)
    ]
    assert counts[1] > 1.3 * counts[0]


def test_a_hand_outside_or_behind_the_picture_is_no_error() -> None:
    for center in ((5.0, 0.0, 0.5), (0.0, 0.0, -0.5), (0.0, 0.0, 0.0)):
        hand = standin_hand("left", (0.0, 0.0, 0.5), CAMERA)
        moved = hand.vertices - (0, 0, 0.5) + center
        hand = replace(hand, vertices=moved, joints_2d=np.full((21, 2), 1e9))
        picture = draw_scene(GREY, Scene(0.0, [hand]), BOTH, CAMERA)
        assert not changed(picture)[60:180, 100:220].any()


def test_an_object_shows_the_edges_of_its_box() -> None:
    T = np.eye(4)
    T[:3, 3] = (0.0, 0.0, 1.0)
    item = ObjectPose("mug", 0.5, T, np.array([0.2, 0.2, 1e-9]))
    picture = draw_scene(GREY, Scene(0.0, [], [item]), {}, CAMERA)
    # 0.1 m at 1 m is 30 pixels: edges there, nothing in the middle.
    np.testing.assert_allclose(picture[130, 190], OBJECT_COLOR, atol=2)
    np.testing.assert_allclose(picture[150, 150], OBJECT_COLOR, atol=2)
    np.testing.assert_array_equal(picture[140, 160], 90)


def test_sides_differ_in_colour() -> None:
    left, right = (np.array(SIDE_COLORS[side], float) for side in ("left", "right"))
    assert np.linalg.norm(left - right) > 150


def test_bad_pictures_are_refused() -> None:
    with pytest.raises(HandPerceptionError, match="uint8 RGB"):
        draw_scene(GREY.astype(float), Scene(0.0), {}, CAMERA)
    with pytest.raises(HandPerceptionError, match="uint8 RGB"):
        draw_scene(GREY[..., 0], Scene(0.0), {}, CAMERA)
    with pytest.raises(HandPerceptionError, match="mesh_alpha is 1.5"):
        draw_scene(GREY, Scene(0.0), {}, CAMERA, mesh_alpha=1.5)


def test_a_contact_sheet_lays_images_in_rows() -> None:
    images = [np.full((60, 80, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = contact_sheet(images, 3, cell_width=40)
    assert sheet.shape == (60, 120, 3)
    centers = [sheet[15 + 30 * (i // 3), 20 + 40 * (i % 3), 0] for i in range(5)]
    assert centers == [40, 80, 120, 160, 200]
    assert sheet[45, 100, 0] == 24


def test_a_contact_sheet_keeps_the_shape_of_its_images() -> None:
    tall = np.full((80, 20, 3), 200, np.uint8)
    sheet = contact_sheet([np.zeros((40, 40, 3), np.uint8), tall], 2, cell_width=40)
    assert (sheet[:, 55:65] == 200).all()
    assert (sheet[:, 40:54] == 24).all()
    with pytest.raises(HandPerceptionError, match="a contact sheet of 0 images"):
        contact_sheet([], 3)
