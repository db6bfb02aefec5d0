"""Metrics against cases computed by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from hand_perception.evaluation import metrics
from hand_perception.types import HandPerceptionError


@pytest.fixture
def hand() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.05, (21, 3))


def pose(rotation: np.ndarray, translation: tuple[float, float, float]) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation, translation
    return T


def test_mpjpe_is_the_mean_distance_in_millimetres() -> None:
    truth = np.zeros((2, 3))
    predicted = np.array([[0.003, 0.004, 0.0], [0.0, 0.0, 0.001]])
    assert metrics.mpjpe_mm(predicted, truth) == pytest.approx(3.0)
    assert metrics.mpjpe_mm(predicted, truth, np.array([True, False])) == pytest.approx(5.0)
    assert np.isnan(metrics.mpjpe_mm(predicted, truth, np.array([False, False])))
    assert metrics.mpvpe_mm(predicted, truth) == pytest.approx(3.0)


def test_root_relative_error_forgets_a_shift_but_not_a_bend(hand: np.ndarray) -> None:
    shifted = hand + (1.0, -2.0, 3.0)
    assert metrics.root_relative_mpjpe_mm(shifted, hand) == pytest.approx(0, abs=1e-9)
    shifted[8] += (0.021, 0, 0)
    assert metrics.root_relative_mpjpe_mm(shifted, hand) == pytest.approx(1.0)


def test_scale_translation_sets_wrist_and_bone_but_not_rotation(hand: np.ndarray) -> None:
    aligned = metrics.align_scale_translation(2.5 * hand + 1.0, hand)
    np.testing.assert_allclose(aligned, hand, atol=1e-12)
    turned = hand @ Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix().T
    aligned = metrics.align_scale_translation(turned, hand)
    np.testing.assert_allclose(aligned[0], hand[0], atol=1e-12)
    length = np.linalg.norm(hand[9] - hand[0])
    assert np.linalg.norm(aligned[9] - aligned[0]) == pytest.approx(length)
    assert np.abs(aligned[9] - hand[9]).max() > 0.01


def test_procrustes_undoes_a_similarity_and_agrees_with_scipy(hand: np.ndarray) -> None:
    R = Rotation.from_rotvec([0.4, -1.2, 0.3]).as_matrix()
    assert metrics.pa_mpjpe_mm(0.3 * hand @ R.T + 5.0, hand) == pytest.approx(0, abs=1e-9)

    noisy = hand + np.random.default_rng(4).normal(0, 0.01, hand.shape)
    aligned = metrics.align_procrustes(noisy, hand)
    # SciPy scales both to unit size and fits the second argument to the first.
    target, fitted, _ = scipy_procrustes(hand, noisy)
    size = np.linalg.norm(hand - hand.mean(0))
    np.testing.assert_allclose((aligned - hand.mean(0)) / size, fitted, atol=1e-9)
    np.testing.assert_allclose((hand - hand.mean(0)) / size, target, atol=1e-12)


def test_only_the_reflecting_procrustes_mirrors_a_hand(hand: np.ndarray) -> None:
    mirrored = hand * (-1, 1, 1)
    assert metrics.pa_mpjpe_mm(mirrored, hand, allow_reflection=True) == pytest.approx(0, abs=1e-9)
    assert metrics.pa_mpjpe_mm(mirrored, hand) > 10


def test_procrustes_works_on_batches(hand: np.ndarray) -> None:
    batch = np.stack([hand, 2 * hand + 1, hand[::-1]])
    aligned = metrics.align_procrustes(batch, np.stack([hand] * 3))
    for one, many in zip(batch, aligned, strict=True):
        np.testing.assert_allclose(metrics.align_procrustes(one, hand), many, atol=1e-12)


def test_pck_and_its_area_on_a_line() -> None:
    errors = np.array([0.0, 10.0, 20.0, 30.0])
    assert metrics.pck(errors, 10.0) == 0.5
    assert metrics.pck(errors, 10.0, np.array([True, True, False, False])) == 1.0
    assert metrics.pck(np.array([np.nan, 1.0]), 2.0) == 0.5
    # A single error of 10 in [0, 20]: 0 below, 1 above; three points make (0 + .5)/2 ... 0.75.
    assert metrics.pck_auc(np.array([10.0]), 0, 20, steps=3) == pytest.approx(0.75)
    spread = np.linspace(0, 50, 5001)
    assert metrics.pck_auc(spread, 0, 50) == pytest.approx(0.5, abs=1e-3)


def test_2d_errors_are_fractions_of_the_box() -> None:
    truth = np.zeros((1, 2, 2))
    predicted = np.array([[[3.0, 4.0], [0.0, 30.0]]])
    errors = metrics.normalized_errors_2d(predicted, truth, np.array([100.0]))
    np.testing.assert_allclose(errors, [[0.05, 0.3]])
    assert metrics.pck(errors, 0.2) == 0.5


def test_f_score_of_two_clouds() -> None:
    truth = np.array([[0.0, 0, 0], [0.1, 0, 0]])
    predicted = np.array([[0.001, 0, 0], [0.0, 0.004, 0], [0.5, 0, 0]])
    # Precision 2/3; recall 1/2, since nothing is near the second point.
    assert metrics.f_score(predicted, truth, 5) == pytest.approx(2 * (2 / 3 * 0.5) / (2 / 3 + 0.5))
    assert metrics.f_score(predicted + 9, truth, 5) == 0.0
    # Strictly nearer.
    assert metrics.f_score(np.array([[0.25, 0, 0]]), np.zeros((1, 3)), 250.0) == 0.0


def test_mrrpe_is_of_the_left_wrist_seen_from_the_right() -> None:
    left, right = np.array([[0.2, 0, 0]]), np.array([[0.0, 0, 0]])
    assert metrics.mrrpe_mm(left + 7, right + 7, left, right) == pytest.approx(0, abs=1e-9)
    assert metrics.mrrpe_mm(left + (0, 0.03, 0), right, left, right) == pytest.approx(30)


def test_handedness_accuracy() -> None:
    assert metrics.handedness_accuracy(["left", "right"], ["left", "left"]) == 0.5
    assert np.isnan(metrics.handedness_accuracy([], []))
    with pytest.raises(HandPerceptionError, match="1 predicted sides meet 0"):
        metrics.handedness_accuracy(["left"], [])


def test_acceleration_of_a_parabola() -> None:
    time = np.arange(10) / 30
    points = np.zeros((10, 1, 3))
    points[:, 0, 1] = 0.5 * 9.81 * time**2
    still = np.zeros_like(points)
    assert metrics.acceleration_error_m_s2(points, still, 30) == pytest.approx(9.81)


def test_jitter_sees_fingers_alone_and_skips_gaps() -> None:
    joints = np.zeros((5, 21, 3))
    joints += np.random.default_rng(0).normal(size=(5, 1, 3))  # The whole hand shakes.
    assert metrics.jitter_m_s2(joints, 30) == pytest.approx(0, abs=1e-9)
    joints[2, 8, 0] += 0.001
    # One joint of 20: second differences 1, -2, 1 mm in three frames.
    assert metrics.jitter_m_s2(joints, 30) == pytest.approx(0.004 * 900 / (3 * 20))
    joints[4] = np.nan
    assert metrics.jitter_m_s2(joints, 30) == pytest.approx(0.003 * 900 / (2 * 20))
    joints[2] = np.nan
    assert np.isnan(metrics.jitter_m_s2(joints, 30))


def test_object_errors_of_a_shift() -> None:
    points = np.random.default_rng(5).uniform(-0.05, 0.05, (200, 3))
    truth = pose(Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix(), (0.1, 0.0, 0.5))
    moved = truth.copy()
    moved[:3, 3] += (0.0, 0.012, 0.005)
    assert metrics.add_mm(points, moved, truth) == pytest.approx(13)
    assert metrics.mssd_mm(points, moved, truth) == pytest.approx(13)
    assert metrics.corner_error_mm(np.ones(3), moved, truth) == pytest.approx(13)
    a = points @ moved[:3, :3].T + moved[:3, 3]
    b = points @ truth[:3, :3].T + truth[:3, 3]
    assert metrics.add_s_mm(points, moved, truth) == pytest.approx(1000 * cdist(b, a).min(1).mean())


def test_symmetry_forgives_a_half_turn() -> None:
    half_turn = pose(np.diag([-1.0, -1.0, 1.0]), (0, 0, 0))
    points = np.array([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0], [0.0, 0.0, 0.2]])
    truth = pose(np.eye(3), (0, 0, 1))
    assert metrics.mssd_mm(points, truth @ half_turn, truth) == pytest.approx(200)
    forgiven = metrics.mssd_mm(points, truth @ half_turn, truth, [half_turn])
    assert forgiven == pytest.approx(0, abs=1e-9)
    assert metrics.add_s_mm(points, truth @ half_turn, truth) == pytest.approx(0, abs=1e-9)
    assert metrics.add_mm(points, truth @ half_turn, truth) == pytest.approx(400 / 3)


def test_corner_error_of_a_turned_box() -> None:
    quarter = pose(Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix(), (0, 0, 0))
    # Corners lie 0.05 sqrt(2) from the axis; a quarter turn moves each by 0.1.
    assert metrics.corner_error_mm(np.full(3, 0.1), quarter, np.eye(4)) == pytest.approx(100)


def test_shapes_must_agree(hand: np.ndarray) -> None:
    with pytest.raises(HandPerceptionError, match=r"shape \(21, 3\), truth \(20, 3\)"):
        metrics.mpjpe_mm(hand, hand[:20])
