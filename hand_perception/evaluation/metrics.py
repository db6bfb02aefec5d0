"""Accuracy and steadiness as pure functions of NumPy arrays, units in their names.

Points are (..., N, 3) metres (or (..., N, 2) pixels where it says so), prediction first, truth
second. `valid` (..., N) leaves points out. `*_mm` answers in millimetres, per item or as a mean,
as the docstring says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hand_perception.types import FloatArray, HandPerceptionError

MM = 1000.0
WRIST = 0
MIDDLE_MCP = 9


def point_errors_mm(predicted: FloatArray, truth: FloatArray) -> FloatArray:
    """Distances (..., N) of corresponding points, absolute."""
    _check(predicted, truth)
    return MM * np.linalg.norm(predicted - truth, axis=-1)


def mpjpe_mm(
    predicted: FloatArray, truth: FloatArray, valid: NDArray[np.bool_] | None = None
) -> float:
    """Mean per-joint position error, absolute; NaN without a valid joint."""
    return _mean(point_errors_mm(predicted, truth), valid)


def root_relative(points: FloatArray, root: int = WRIST) -> FloatArray:
    """The points (..., N, K) with the root at the origin."""
    return points - points[..., root : root + 1, :]


def root_relative_mpjpe_mm(
    predicted: FloatArray,
    truth: FloatArray,
    valid: NDArray[np.bool_] | None = None,
    root: int = WRIST,
) -> float:
    """MPJPE after both hands are moved to have the root at the origin."""
    return mpjpe_mm(root_relative(predicted, root), root_relative(truth, root), valid)


def align_scale_translation(predicted: FloatArray, truth: FloatArray) -> FloatArray:
    """Predicted joints (..., 21, 3) with the true wrist and the true wrist-middle-MCP length.

    The alignment of the HO-3D challenge (`eval.py`): rotation stays wrong.
    """
    bone = np.linalg.norm(root_relative(predicted)[..., MIDDLE_MCP, :], axis=-1)
    true_bone = np.linalg.norm(root_relative(truth)[..., MIDDLE_MCP, :], axis=-1)
    scale = (true_bone / bone)[..., None, None]
    return root_relative(predicted) * scale + truth[..., WRIST : WRIST + 1, :]


def align_procrustes(
    predicted: FloatArray, truth: FloatArray, *, allow_reflection: bool = False
) -> FloatArray:
    """Predicted points (..., N, 3) after the similarity that maps them best onto the truth.

    Umeyama (1991), rotations proper. `allow_reflection` gives the orthogonal Procrustes of
    FreiHAND's and HO-3D's scripts, which may mirror the hand; for comparing with those only.
    """
    _check(predicted, truth)
    center, true_center = predicted.mean(-2, keepdims=True), truth.mean(-2, keepdims=True)
    a, b = predicted - center, truth - true_center
    u, singular, vh = np.linalg.svd(np.swapaxes(b, -1, -2) @ a)
    signs = np.ones_like(singular)
    if not allow_reflection:
        signs[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vh))
    rotation = (u * signs[..., None, :]) @ vh
    spread = np.maximum((a * a).sum((-2, -1)), 1e-30)
    scale = ((singular * signs).sum(-1) / spread)[..., None, None]
    return scale * a @ np.swapaxes(rotation, -1, -2) + true_center


def pa_mpjpe_mm(
    predicted: FloatArray, truth: FloatArray, *, allow_reflection: bool = False
) -> float:
    """MPJPE after `align_procrustes`."""
    return mpjpe_mm(align_procrustes(predicted, truth, allow_reflection=allow_reflection), truth)


def mpvpe_mm(predicted: FloatArray, truth: FloatArray) -> float:
    """Mean per-vertex position error of meshes (..., V, 3) of one topology, absolute."""
    return mpjpe_mm(predicted, truth)


def pck(errors: FloatArray, threshold: float, valid: NDArray[np.bool_] | None = None) -> float:
    """Fraction of errors at most the threshold, both in one unit; NaN counts as wrong."""
    return _mean((errors <= threshold).astype(float), valid)


def normalized_errors_2d(
    predicted: FloatArray, truth: FloatArray, box_size: FloatArray | float
) -> FloatArray:
    """Pixel distances (..., N) over the longer side of the hand's box, as mmpose's hand PCK.

    PCK@0.2 is `pck(normalized_errors_2d(...), 0.2)`.
    """
    distances = np.linalg.norm(predicted - truth, axis=-1)
    return distances / np.asarray(box_size, float)[..., None]


def pck_auc(
    errors: FloatArray,
    lowest: float,
    highest: float,
    steps: int = 100,
    valid: NDArray[np.bool_] | None = None,
) -> float:
    """Area under the PCK curve between two thresholds, [0, 1]: trapezoids over `steps` points.

    FreiHAND, HO-3D and DexYCB use 0 to 50 mm in 100 steps.
    """
    thresholds = np.linspace(lowest, highest, steps)
    curve = np.array([pck(errors, float(t), valid) for t in thresholds])
    areas = (curve[1:] + curve[:-1]) / 2 * np.diff(thresholds)
    return float(areas.sum() / (highest - lowest))


def f_score(predicted: FloatArray, truth: FloatArray, threshold_mm: float) -> float:
    """Harmonic mean of precision and recall of point clouds (N, 3), (M, 3) at a distance.

    A point counts when its nearest neighbour in the other cloud is nearer (strictly) than the
    threshold (Knapitsch et al., "Tanks and Temples", 2017); HO-3D uses 5 and 15 mm.
    """
    to_truth, _ = cKDTree(truth).query(predicted)
    to_predicted, _ = cKDTree(predicted).query(truth)
    precision = float((MM * to_truth < threshold_mm).mean())
    recall = float((MM * to_predicted < threshold_mm).mean())
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def mrrpe_mm(
    predicted_left_root: FloatArray,
    predicted_right_root: FloatArray,
    left_root: FloatArray,
    right_root: FloatArray,
) -> float:
    """Mean relative-root position error: the left wrist as seen from the right, (..., 3)."""
    predicted, truth = predicted_left_root - predicted_right_root, left_root - right_root
    return float(MM * np.linalg.norm(predicted - truth, axis=-1).mean())


def handedness_accuracy(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Fraction of hands whose side is right; NaN without hands."""
    if len(predicted) != len(truth):
        raise HandPerceptionError(
            f"{len(predicted)} predicted sides meet {len(truth)} true ones; they must correspond"
        )
    if not truth:
        return float("nan")
    return sum(p == t for p, t in zip(predicted, truth)) / len(truth)


def accelerations_m_s2(points: FloatArray, fps: float) -> FloatArray:
    """Second differences (T - 2, N, 3) of points (T, N, 3) at a steady rate, times fps squared."""
    return (points[2:] - 2 * points[1:-1] + points[:-2]) * fps**2


def acceleration_error_m_s2(predicted: FloatArray, truth: FloatArray, fps: float) -> float:
    """Mean length of the difference between predicted and true accelerations, (T, N, 3)."""
    _check(predicted, truth)
    difference = accelerations_m_s2(predicted, fps) - accelerations_m_s2(truth, fps)
    return float(np.linalg.norm(difference, axis=-1).mean())


def jitter_m_s2(joints: FloatArray, fps: float, root: int = WRIST) -> float:
    """Mean |second difference| x fps^2 of root-relative joints (T, 21, 3), root left out.

    A frame without the hand is NaN, and each second difference that touches it is left out.
    Motion counts too: it compares methods on one clip. NaN when no three frames follow on.
    """
    moved = np.delete(root_relative(joints, root), root, axis=-2)
    sizes = np.linalg.norm(accelerations_m_s2(moved, fps), axis=-1)
    return _mean(sizes, np.isfinite(sizes))


def add_mm(points: FloatArray, T_predicted: FloatArray, T_true: FloatArray) -> float:
    """ADD: mean distance of an object's points (V, 3) under two poses (Hinterstoisser 2012)."""
    return mpjpe_mm(_moved(points, T_predicted), _moved(points, T_true))


def add_s_mm(points: FloatArray, T_predicted: FloatArray, T_true: FloatArray) -> float:
    """ADD-S: the average distance to the nearest point, for symmetric objects."""
    distances, _ = cKDTree(_moved(points, T_predicted)).query(_moved(points, T_true))
    return float(MM * distances.mean())


def mssd_mm(
    points: FloatArray,
    T_predicted: FloatArray,
    T_true: FloatArray,
    symmetries: Sequence[FloatArray] = (),
) -> float:
    """Maximum symmetry-aware surface distance (BOP, Hodan et al., 2020).

    `symmetries` are the (4, 4) transforms of the object onto itself; the identity is implied.
    """
    predicted = _moved(points, T_predicted)
    return min(
        float(point_errors_mm(predicted, _moved(points, T_true @ symmetry)).max())
        for symmetry in (np.eye(4), *symmetries)
    )


def corner_error_mm(extents: FloatArray, T_predicted: FloatArray, T_true: FloatArray) -> float:
    """Mean distance of the 8 corners of a box (3,) centred in the object's frame."""
    signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), -1).reshape(8, 3)
    return add_mm(signs * extents, T_predicted, T_true)


def _moved(points: FloatArray, transform: FloatArray) -> FloatArray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def _mean(values: FloatArray, valid: NDArray[np.bool_] | None) -> float:
    kept = values.reshape(-1) if valid is None else values[np.broadcast_to(valid, values.shape)]
    return float(kept.mean()) if kept.size else float("nan")


def _check(predicted: FloatArray, truth: FloatArray) -> None:
    if predicted.shape != truth.shape:
        raise HandPerceptionError(
            f"prediction has shape {predicted.shape}, truth {truth.shape}; they must agree"
        )
