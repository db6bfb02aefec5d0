"""Image + box + camera -> the crop that a network sees, and its own pinhole camera.

A crop is what a virtual camera in the same place sees: it looks along the ray through the box
centre (distortion removed), is turned by the least rotation from the real camera and then by the
box's angle about its axis, and has the focal length at which the box spans the crop. So a crop
shows the hand without the perspective and lens distortion of its place in the image, and 3D in
the crop frame is a rotation away from the camera frame.

Image pixels: the first pixel's centre is (0, 0). Crop pixels: it is (0.5, 0.5).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.camera import project, rays
from hand_perception.types import Box, Camera, Crop, FloatArray, HandPerceptionError

MAX_TANGENT = 20.0
"""A box may span this many focal lengths (168 degrees)."""
MIN_DEPTH = 0.02
"""Smallest z of the rays, scaled to z = 1 in the crop frame, that the real camera can see."""


def crop_around(
    image: NDArray[np.uint8],
    box: Box,
    camera: Camera,
    size: int = 224,
    mirrored: bool | None = None,
) -> Crop:
    """The crop of a box in an image (H, W, 3) uint8 RGB; black outside of the image.

    The focal length is `f = S / (b t)`: S the crop's side and b the box's side in pixels, t the
    tangent that one image pixel at the box centre spans about the optical axis of the crop
    (mean of the four directions). A box much larger than the crop is sampled from a smaller
    copy of the image against aliasing. `mirrored` None mirrors left hands.
    Raises HandPerceptionError for an image that is not RGB or not of the camera's size, and for
    a box without a size or too wide to be seen by a pinhole camera.
    """
    _check(image, box, camera, size)
    if mirrored is None:
        mirrored = box.side == "left"
    R_camera_crop, focal = _virtual_camera(box, camera, size)
    intrinsics = np.array([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    crop = Crop(np.empty(0, np.uint8), intrinsics, R_camera_crop, mirrored, box)
    return Crop(_sample(image, crop, camera, size), intrinsics, R_camera_crop, mirrored, box)


def crop_to_image(points: FloatArray, crop: Crop, camera: Camera) -> FloatArray:
    """Image pixels (N, 2) of crop pixels (N, 2)."""
    directions = _crop_rays(np.asarray(points, np.float64), crop) @ crop.M_camera_crop.T
    return project(directions, camera)


def image_to_crop(points: FloatArray, crop: Crop, camera: Camera) -> FloatArray:
    """Crop pixels (N, 2) of image pixels (N, 2)."""
    directions = rays(points, camera) @ crop.M_camera_crop
    return directions[:, :2] / directions[:, 2:] * crop.intrinsics[0, 0] + crop.intrinsics[:2, 2]


def _check(image: NDArray[np.uint8], box: Box, camera: Camera, size: int) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise HandPerceptionError(
            f"image is {image.dtype} of shape {image.shape}; uint8 RGB (height, width, 3) is needed"
        )
    if image.shape[:2] != (camera.height, camera.width):
        raise HandPerceptionError(
            f"image is {image.shape[1]}x{image.shape[0]}, its camera says "
            f"{camera.width}x{camera.height}; both must agree"
        )
    if size <= 0:
        raise HandPerceptionError(f"crop size is {size}; it must be positive")
    values = (*box.center, box.size, box.angle)
    if not np.all(np.isfinite(values)) or box.size <= 0:
        raise HandPerceptionError(
            f"box has centre {box.center}, size {box.size}, angle {box.angle}; all must be finite "
            "and the size positive"
        )


def _virtual_camera(box: Box, camera: Camera, size: int) -> tuple[FloatArray, float]:
    """Rotation (3, 3) crop -> camera, unmirrored, and focal length of the crop of a box."""
    steps = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)
    directions = rays(np.array(box.center) + steps, camera)
    axis = directions[0] / np.linalg.norm(directions[0])
    # The least rotation that takes z to the axis, in closed form (the axis has z > 0).
    x, y, z = axis
    k = 1.0 / (1.0 + z)
    R_axis = np.array([[1 - k * x * x, -k * x * y, x], [-k * x * y, 1 - k * y * y, y], [-x, -y, z]])
    cos, sin = np.cos(box.angle), np.sin(box.angle)
    R_camera_crop = R_axis @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    seen = directions[1:] @ R_camera_crop
    tangent_per_pixel = np.linalg.norm(seen[:, :2] / seen[:, 2:], axis=1).mean()
    if not 0 < tangent_per_pixel * box.size < MAX_TANGENT:
        raise HandPerceptionError(
            f"box at {box.center} of size {box.size} is wider than a pinhole camera can see; "
            f"allowed is a side of less than {MAX_TANGENT} focal lengths"
        )
    return R_camera_crop, float(size / (box.size * tangent_per_pixel))


def _sample(image: NDArray[np.uint8], crop: Crop, camera: Camera, size: int) -> NDArray[np.uint8]:
    """The picture (size, size, 3) that a crop's camera sees."""
    image, K_image = _shrunk(image, crop.box, camera, size)
    K_index = crop.intrinsics - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    M = crop.M_camera_crop
    if camera.distortion:
        distortion = np.asarray(camera.distortion, np.float64)
        maps = cv2.initUndistortRectifyMap(
            K_image, distortion, M.T, K_index, (size, size), cv2.CV_32FC1
        )
        picture = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    else:
        homography = K_image @ M @ np.linalg.inv(K_index)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        picture = cv2.warpPerspective(image, homography, (size, size), flags=flags)
    # What lies behind the real camera has no pixel, yet projects somewhere.
    z_of_index = M[2] @ np.linalg.inv(K_index)
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]])
    if np.min(corners @ z_of_index) < MIN_DEPTH:
        index = np.arange(size)
        z = z_of_index[0] * index[None] + z_of_index[1] * index[:, None] + z_of_index[2]
        picture[z < MIN_DEPTH] = 0
    return np.asarray(picture, np.uint8)


def _shrunk(
    image: NDArray[np.uint8], box: Box, camera: Camera, size: int
) -> tuple[NDArray[np.uint8], FloatArray]:
    """The image, or its part around a large box reduced by a whole factor, and its intrinsics."""
    factor = max(1, round(box.size / size))
    intrinsics = camera.intrinsics
    if factor == 1:
        return image, intrinsics
    # The box turned by any angle, and a rim for perspective and the last pixels.
    reach = 0.75 * box.size + 2 * factor
    left, top = (max(0, int(c - reach)) for c in box.center)
    right, bottom = (int(np.ceil(c + reach)) for c in box.center)
    part = image[top : max(top, bottom), left : max(left, right)]
    columns, rows = part.shape[1] // factor, part.shape[0] // factor
    if columns == 0 or rows == 0:
        return image, intrinsics
    part = part[: rows * factor, : columns * factor]
    small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
    # A small pixel's centre is the centre of the factor x factor pixels that it averages.
    intrinsics[:2, 2] -= (left + (factor - 1) / 2, top + (factor - 1) / 2)
    intrinsics[:2] /= factor
    return np.asarray(small, np.uint8), intrinsics


def _crop_rays(points: FloatArray, crop: Crop) -> FloatArray:
    """Rays (N, 3), z = 1, in the crop frame, of crop pixels (N, 2)."""
    flat = (points - crop.intrinsics[:2, 2]) / crop.intrinsics[0, 0]
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
