"""Pinhole cameras: projection, viewing rays, and placing a root-relative hand in front of one."""

from __future__ import annotations

import cv2
import numpy as np

from hand_perception.types import Camera, FloatArray


def project(points: FloatArray, camera: Camera) -> FloatArray:
    """Image pixels (N, 2) of points (N, 3) in the camera frame, metres, distortion included."""
    points = np.asarray(points, np.float64).reshape(-1, 1, 3)
    zero = np.zeros(3)
    pixels, _ = cv2.projectPoints(
        points, zero, zero, camera.intrinsics, np.asarray(camera.distortion, np.float64)
    )
    return pixels.reshape(-1, 2)


def rays(pixels: FloatArray, camera: Camera) -> FloatArray:
    """Viewing rays (N, 3), scaled to z = 1, of image pixels (N, 2), distortion removed."""
    pixels = np.asarray(pixels, np.float64).reshape(-1, 1, 2)
    if camera.distortion:
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-10)
        flat = cv2.undistortPoints(
            pixels, camera.intrinsics, np.asarray(camera.distortion, np.float64), criteria=criteria
        ).reshape(-1, 2)
    else:
        flat = (pixels.reshape(-1, 2) - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
