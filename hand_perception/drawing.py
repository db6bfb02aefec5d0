"""Pictures of a scene: shaded hands over the image, skeletons, object boxes, contact sheets.

Colours are RGB. Left hands are blue, right hands orange; each finger has its own colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.camera import project
from hand_perception.skeleton import BONES, FINGERS
from hand_perception.types import (
    Camera,
    FloatArray,
    HandPerceptionError,
    HandPose,
    ObjectPose,
    Scene,
    Side,
)

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

SIDE_COLORS: dict[Side, Color] = {"left": (70, 140, 255), "right": (255, 140, 40)}
FINGER_COLORS: dict[str, Color] = {
    "thumb": (255, 70, 70),
    "index": (255, 210, 60),
    "middle": (90, 220, 90),
    "ring": (70, 210, 230),
    "little": (210, 110, 255),
}
OBJECT_COLOR: Color = (250, 250, 120)

NEAR_M = 0.01
"""What is nearer to the image plane than this is not drawn."""
_LIGHT = np.array([0.35, 0.5, 0.79])  # Travels right, down and into the scene; unit length.
_AMBIENT = 0.35


def draw_scene(
    image_rgb: Image,
    scene: Scene,
    faces: Mapping[Side, NDArray[np.integer]],
    camera: Camera,
    mesh_alpha: float = 0.5,
) -> Image:
    """A copy of the image (H, W, 3) with everything in the scene drawn over it.

    `faces` holds, for each side, the triangles (F, 3) of `HandPose.vertices`, outside seen
    counter-clockwise; a side without faces is drawn as a skeleton alone. `mesh_alpha` is the
    opacity of the mesh in [0, 1]. Raises HandPerceptionError for any other opacity or image.
    """
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise HandPerceptionError(
            f"cannot draw on a {image_rgb.dtype} image of shape {image_rgb.shape}; "
            "it must be uint8 RGB of shape (height, width, 3)"
        )
    if not 0 <= mesh_alpha <= 1:
        raise HandPerceptionError(f"mesh_alpha is {mesh_alpha}; it must lie in [0, 1]")
    picture = np.ascontiguousarray(image_rgb).copy()
    far_first = sorted(scene.hands, key=lambda hand: -hand.joints_3d[:, 2].mean())
    if mesh_alpha > 0:
        for hand in far_first:
            if hand.side in faces:
                color = SIDE_COLORS[hand.side]
                _draw_mesh(picture, hand.vertices, faces[hand.side], camera, color, mesh_alpha)
    for hand in far_first:
        _draw_skeleton(picture, hand)
    for item in scene.objects:
        _draw_object(picture, item, camera)
    for hand in far_first:
        _draw_label(picture, hand)
    return picture


def _draw_mesh(
    picture: Image,
    vertices: FloatArray,
    faces: NDArray[np.integer],
    camera: Camera,
    color: Color,
    alpha: float,
) -> None:
    """Blend a shaded mesh (V, 3), camera frame, over the part of the picture that it covers."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    front = np.einsum("fk,fk->f", normals, corners[:, 0]) < 0
    visible = front & (corners[:, :, 2].min(1) > NEAR_M)
    if not visible.any():
        return
    pixels = project(vertices, camera)[faces[visible]]

    height, width = picture.shape[:2]
    flat = pixels.reshape(-1, 2)
    left, top = np.clip(np.floor(flat.min(0)).astype(int) - 1, 0, (width, height))
    right, bottom = np.clip(np.ceil(flat.max(0)).astype(int) + 2, 0, (width, height))
    if left >= right or top >= bottom:
        return
    region = picture[top:bottom, left:right]
    layer = region.copy()

    normals = normals[visible]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    shade = _AMBIENT + (1 - _AMBIENT) * np.clip(-normals @ _LIGHT, 0, 1)
    shades = (shade[:, None] * np.array(color)).tolist()
    # OpenCV takes fixed-point corners: 4 fractional bits, within what 32 bits hold.
    fixed = (np.clip(pixels - (left, top), -1e6, 1e6) * 16).round().astype(np.int32)
    depth = corners[visible, :, 2].mean(1)
    for index in np.argsort(-depth).tolist():
        cv2.fillConvexPoly(layer, fixed[index], shades[index], cv2.LINE_8, 4)
    cv2.addWeighted(layer, alpha, region, 1 - alpha, 0, dst=region)


def _scale(picture: Image) -> float:
    """How much thicker than at 640 pixels lines and letters are."""
    return max(0.6, max(picture.shape[:2]) / 640)


def _to_pixel(point: FloatArray) -> tuple[int, int]:
    x, y = np.clip(point, -30000, 30000).round().astype(int).tolist()
    return x, y


def _draw_skeleton(picture: Image, hand: HandPose) -> None:
    """Bones coloured by finger; the surer the joint, the thicker its bone."""
    scale = _scale(picture)
    points = [_to_pixel(joint) for joint in hand.joints_2d]
    thickness = np.maximum(1, np.round(scale * 3 * np.clip(hand.joint_confidence, 0, 1))).astype(
        int
    )
    for parent, joint in BONES:
        color = FINGER_COLORS[FINGERS[(joint - 1) // 4]]
        cv2.line(picture, points[parent], points[joint], color, int(thickness[joint]), cv2.LINE_AA)
    for point, size in zip(points, thickness, strict=True):
        cv2.circle(picture, point, int(size), (255, 255, 255), cv2.FILLED, cv2.LINE_AA)


def _draw_label(picture: Image, hand: HandPose) -> None:
    """Side and score above the hand, kept inside the picture."""
    text = f"{hand.side} {hand.score:.2f}"
    size = 0.5 * _scale(picture)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), below = cv2.getTextSize(text, font, size, 1)
    x, y = _to_pixel(hand.joints_2d.min(0))
    x = min(max(x, 0), max(picture.shape[1] - width, 0))
    y = min(max(y - height, height), max(picture.shape[0] - below, 0))
    cv2.rectangle(picture, (x, y - height), (x + width, y + below), (0, 0, 0), cv2.FILLED)
    cv2.putText(picture, text, (x, y), font, size, SIDE_COLORS[hand.side], 1, cv2.LINE_AA)


def _draw_object(picture: Image, item: ObjectPose, camera: Camera) -> None:
    """The 12 edges of the box around an object, with its name."""
    signs = np.array(list(product((-0.5, 0.5), repeat=3)))
    corners = (signs * item.extents) @ item.T_camera_object[:3, :3].T + item.T_camera_object[:3, 3]
    if corners[:, 2].min() <= NEAR_M:
        return
    points = [_to_pixel(corner) for corner in project(corners, camera)]
    scale = _scale(picture)
    edges = [(a, b) for a in range(8) for b in range(a) if (signs[a] != signs[b]).sum() == 1]
    for a, b in edges:
        cv2.line(picture, points[a], points[b], OBJECT_COLOR, max(1, round(scale)), cv2.LINE_AA)
    text = f"{item.name} {item.score:.2f}"
    cv2.putText(
        picture,
        text,
        points[0],
        cv2.FONT_HERSHEY_SIMPLEX,
        0.5 * scale,
        OBJECT_COLOR,
        1,
        cv2.LINE_AA,
    )


def contact_sheet(images: Sequence[Image], columns: int, cell_width: int = 320) -> Image:
    """The images (H, W, 3), in rows of `columns`, each fitted into a cell, as one picture.

    A cell has the shape of the first image, `cell_width` pixels wide; what remains is dark.
    """
    if not images or columns < 1:
        raise HandPerceptionError(
            f"a contact sheet of {len(images)} images in {columns} columns is empty; "
            "it takes at least one of each"
        )
    columns = min(columns, len(images))
    cell_height = max(1, round(cell_width * images[0].shape[0] / images[0].shape[1]))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * cell_height, columns * cell_width, 3), 24, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        scale = min(cell_height / image.shape[0], cell_width / image.shape[1])
        width = max(1, round(image.shape[1] * scale))
        height = max(1, round(image.shape[0] * scale))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        y = row * cell_height + (cell_height - height) // 2
        x = column * cell_width + (cell_width - width) // 2
        sheet[y : y + height, x : x + width] = small
    return sheet
