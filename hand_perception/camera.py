"""Pinhole cameras: projection, viewing rays, and placing a root-relative hand in front of one."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from hand_perception.types import Camera, FloatArray, HandPerceptionError

MIN_DEPTH = 0.05
"""No joint is ever placed nearer to the camera than this, metres."""

PALM = (0, 1, 5, 9, 13, 17)
"""Joints that move together: where a depth image is read."""


def project(points: FloatArray, camera: Camera) -> FloatArray:
    """Image pixels (N, 2) of points (N, 3) in the camera frame, metres, distortion included."""
    points = np.asarray(points, np.float64).reshape(-1, 1, 3)
    zero = np.zeros(3)
    pixels, _ = cv2.projectPoints(
        points, zero, zero, camera.intrinsics, np.asarray(camera.distortion, np.float64)
    )
    return np.asarray(pixels, np.float64).reshape(-1, 2)


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


def hand_size(joints: Tensor) -> Tensor:
    """Length (...) from the wrist to the middle finger's MCP of joints (..., 21, 3), metres."""
    return (joints[..., 9, :] - joints[..., 0, :]).norm(dim=-1)


def scale_to_hand_size(joints_rel: Tensor, hand_size_m: Tensor | float) -> Tensor:
    """Root-relative joints (..., 21, 3) scaled to a hand size (...), metres."""
    size = torch.as_tensor(hand_size_m, dtype=joints_rel.dtype, device=joints_rel.device)
    if not bool(((size > 0.02) & (size < 0.3)).all()):
        raise HandPerceptionError(
            f"hand_size_m is {hand_size_m}; wrist to middle MCP must lie between 0.02 and 0.3 m"
        )
    scale = size / hand_size(joints_rel).clamp_min(1e-6)
    return joints_rel * scale[..., None, None]


def project_points(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (..., N, 2) of points (..., N, 3) through intrinsics (..., 3, 3), no distortion.

    For crop cameras, which have none; depth is held at 1 mm and more.
    """
    focal, center = _focal_center(intrinsics)
    flat = points[..., :2] / points[..., 2:].clamp_min(1e-3)
    return flat * focal[..., None, :] + center[..., None, :]


def solve_translation(
    joints_2d: Tensor,
    joints_rel: Tensor,
    intrinsics: Tensor,
    weights: Tensor | None = None,
    rounds: int = 5,
) -> Tensor:
    """Wrist position (..., 3), metres, whose hand projects onto the 2D joints.

    joints_2d (..., 21, 2) pixels of a pinhole camera (a crop's, or an image's whose distortion
    is removed), joints_rel (..., 21, 3) metres relative to the wrist, intrinsics (..., 3, 3),
    weights (..., 21) not negative (all ones when None; all zeros count as all ones).

    A closed-form linear least-squares solution, two rows a joint, is refined by Gauss-Newton
    rounds on the reprojection error under Geman-McClure weights, whose scale follows the median
    error, so that a few joints may be anywhere. No joint ends up behind `MIN_DEPTH`; the error
    that is left (`reprojection_rms`) tells whether the answer deserves trust.
    """
    focal, center = _focal_center(intrinsics)
    pixels_per_unit = focal[..., None, :]
    seen = (joints_2d - center[..., None, :]) / pixels_per_unit
    depth_min = MIN_DEPTH - joints_rel[..., 2].amin(-1)
    w = torch.ones_like(joints_2d[..., 0]) if weights is None else weights
    # The tiny floor turns all-zero weights into equal ones.
    w = (w + 1e-9 * (1 + w.amax(-1, keepdim=True)))[..., None]

    # X + tx = u (Z + tz), scaled to pixels but for the unknown depth, which is nearly constant.
    right = seen * joints_rel[..., 2:] - joints_rel[..., :2]
    t = _solve_xyz(seen, right, w * pixels_per_unit**2)
    t = _in_front(t, depth_min)
    for _ in range(rounds):
        points = joints_rel + t[..., None, :]
        depth = points[..., 2:].clamp_min(MIN_DEPTH)
        flat = points[..., :2] / depth
        error = seen - flat
        squared = (error * pixels_per_unit).square().sum(-1, keepdim=True)
        # Three times the median error, at least 2 px: what lies beyond hardly counts.
        scale = 9 * squared.median(-2, keepdim=True).values.clamp_min(0.5)
        robust = w * (scale / (scale + squared)).square()
        # d flat = (dxy - flat dz) / depth: the same linear system, about the present estimate.
        step = _solve_xyz(flat, error * depth, robust * (pixels_per_unit / depth) ** 2)
        t = _in_front(t + step, depth_min)
    return t


def reprojection_rms(
    joints_2d: Tensor,
    joints_rel: Tensor,
    translation: Tensor,
    intrinsics: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Root mean square distance (...), pixels, between 2D joints and the placed hand.

    The measure of a placement's quality, not robust on purpose; shapes as `solve_translation`.
    """
    flat = project_points(joints_rel + translation[..., None, :], intrinsics)
    squared = (flat - joints_2d).square().sum(-1)
    if weights is None:
        return squared.mean(-1).sqrt()
    return ((squared * weights).sum(-1) / weights.sum(-1).clamp_min(1e-9)).sqrt()


def depth_scale(
    depth: FloatArray,
    joints_3d: FloatArray,
    camera: Camera,
    *,
    skin_m: float = 0.01,
    window_m: float = 0.008,
) -> float | None:
    """Factor by which a depth image says that a placed hand is farther (and larger).

    depth (H, W) metres, registered with the camera; what is not finite and positive is unknown.
    joints_3d (21, 3) in the camera frame. Scaling joints and wrist translation by the factor
    moves the hand along its ray and leaves its picture as it is: a hand seen by one camera has
    exactly this freedom. The median of a window of +-window_m is read at each palm joint, which
    lies skin_m behind the skin. None when fewer than three joints agree on a depth.
    """
    depth = np.asarray(depth)
    if depth.shape != (camera.height, camera.width):
        raise HandPerceptionError(
            f"depth image has shape {depth.shape}; the camera needs "
            f"({camera.height}, {camera.width}), registered with the image"
        )
    joints = np.asarray(joints_3d, np.float64)[list(PALM)]
    if not np.isfinite(joints).all() or joints[:, 2].min() <= 0:
        return None
    ratios = []
    for pixel, z in zip(np.rint(project(joints, camera)).astype(int), joints[:, 2], strict=True):
        half = max(1, round(camera.fx * window_m / z))
        x, y = (max(0, value) for value in pixel - half)
        window = depth[y : max(0, pixel[1] + half + 1), x : max(0, pixel[0] + half + 1)]
        window = window[np.isfinite(window) & (window > 0)]
        if window.size:
            ratios.append((float(np.median(window)) + skin_m) / z)
    if len(ratios) < 3:
        return None
    values = np.array(ratios)
    center = np.median(values)
    # A palm is about 4 cm deep around its middle; beyond that it is background or an object.
    inliers = values[np.abs(values - center) * joints[:, 2].mean() < 0.04]
    return float(inliers.mean()) if len(inliers) >= 3 else None


def _focal_center(intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    return intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2], intrinsics[..., :2, 2]


def _solve_xyz(flat: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    # Weighted least squares of txy - flat tz = right (..., N, 2); txy is eliminated by hand.
    total = weight.sum(-2)
    mean_flat = (weight * flat).sum(-2) / total
    mean_right = (weight * right).sum(-2) / total
    spread = flat - mean_flat[..., None, :]
    weighted = weight * spread
    normal = (weighted * spread).sum((-2, -1)).clamp_min(1e-12)
    tz = -(weighted * (right - mean_right[..., None, :])).sum((-2, -1)) / normal
    return torch.cat([mean_right + mean_flat * tz[..., None], tz[..., None]], -1)


def _in_front(t: Tensor, depth_min: Tensor) -> Tensor:
    # Too near or behind: pushed out along its own ray, so that the picture moves least.
    push = (depth_min / t[..., 2].abs().clamp_min(1e-6)).clamp(max=10.0)
    pushed = torch.cat([t[..., :2] * push[..., None], depth_min[..., None]], -1)
    return torch.where((t[..., 2] < depth_min)[..., None], pushed, t)
