import math

import pytest
import torch

from hand_perception.geometry import (
    align,
    axis_angle_to_matrix,
    matrix_to_6d,
    matrix_to_axis_angle,
    matrix_to_quaternion_wxyz,
    mirror_axis_angle,
    procrustes,
    rigid_transform,
    rotation_6d_to_matrix,
    skew,
)

BATCHES = [(), (5,), (2, 3)]


def random_axis_angle(*batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(*batch, 3, generator=generator, dtype=torch.float64)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    return axis * (3.1 * torch.rand(*batch, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("batch", BATCHES)
def test_rotations_form_a_group(batch: tuple[int, ...]) -> None:
    v = random_axis_angle(*batch)
    a, b, c = (axis_angle_to_matrix(random_axis_angle(*batch, seed=s)) for s in (1, 2, 3))
    eye = torch.eye(3, dtype=torch.float64).expand(*batch, 3, 3)
    assert torch.allclose(a @ a.mT, eye)
    assert torch.allclose(torch.linalg.det(a @ b), torch.ones(batch, dtype=torch.float64))
    assert torch.allclose((a @ b) @ c, a @ (b @ c))
    assert torch.allclose(axis_angle_to_matrix(v) @ axis_angle_to_matrix(-v), eye)
    assert torch.allclose(axis_angle_to_matrix(torch.zeros_like(v)), eye)


@pytest.mark.parametrize("batch", BATCHES)
def test_round_trips(batch: tuple[int, ...]) -> None:
    v = random_axis_angle(*batch)
    matrix = axis_angle_to_matrix(v)
    assert torch.allclose(matrix_to_axis_angle(matrix), v, atol=1e-7)
    assert torch.allclose(rotation_6d_to_matrix(matrix_to_6d(matrix)), matrix)
    quaternion = matrix_to_quaternion_wxyz(matrix)
    angle = v.norm(dim=-1, keepdim=True)
    expected = torch.cat([(angle / 2).cos(), (angle / 2).sin() * v / angle], -1)
    assert torch.allclose(quaternion, expected, atol=1e-7)


def test_known_rotations() -> None:
    quarter = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(quarter, expected, atol=1e-12)
    half = torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))
    assert torch.allclose(
        matrix_to_axis_angle(half).abs(), torch.tensor([0, math.pi, 0], dtype=torch.float64)
    )
    a, b = torch.tensor([1.0, 2, 3]), torch.tensor([-2.0, 0.5, 1])
    assert torch.allclose(skew(a) @ b, torch.linalg.cross(a, b))


def test_mirror_is_conjugation() -> None:
    v = random_axis_angle(7)
    flip = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    mirrored = axis_angle_to_matrix(mirror_axis_angle(v))
    assert torch.allclose(mirrored, flip @ axis_angle_to_matrix(v) @ flip)


def test_rigid_transform_moves_points() -> None:
    rotation, translation = axis_angle_to_matrix(random_axis_angle(4)), random_axis_angle(4, seed=5)
    point = random_axis_angle(4, seed=6)
    homogeneous = torch.cat([point, torch.ones(4, 1, dtype=torch.float64)], -1)[..., None]
    moved = (rigid_transform(rotation, translation) @ homogeneous).squeeze(-1)
    assert torch.allclose(moved[:, :3], (rotation @ point[..., None]).squeeze(-1) + translation)
    assert torch.equal(moved[:, 3], torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("batch", BATCHES)
def test_procrustes_finds_the_similarity(batch: tuple[int, ...]) -> None:
    source = random_axis_angle(*batch, 10)
    rotation = axis_angle_to_matrix(random_axis_angle(*batch, seed=7))
    shift = random_axis_angle(*batch, seed=8)
    target = 2.5 * source @ rotation.mT + shift[..., None, :]
    s, r, t = procrustes(source, target)
    assert torch.allclose(s, torch.full(batch, 2.5, dtype=torch.float64))
    assert torch.allclose(r, rotation)
    assert torch.allclose(t, shift)
    assert torch.allclose(align(source, target), target)
    rigid_s, rigid_r, _ = procrustes(source, target, scale=False)
    assert torch.equal(rigid_s, torch.ones(batch, dtype=torch.float64))
    assert torch.allclose(rigid_r, rotation)


def test_procrustes_refuses_a_reflection() -> None:
    source = random_axis_angle(10)
    target = source * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    _, rotation, _ = procrustes(source, target)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    assert (align(source, target) - target).norm() > 0.1


def test_gradients_are_finite_at_zero() -> None:
    v = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    axis_angle_to_matrix(v)[..., 2, 1].sum().backward()
    assert v.grad is not None
    # d R[2, 1] / d x = 1 at the identity.
    assert torch.allclose(v.grad, torch.tensor([[1.0, 0, 0]] * 2, dtype=torch.float64))
    matrix = torch.eye(3, dtype=torch.float64, requires_grad=True)
    matrix_to_axis_angle(matrix).sum().backward()
    assert matrix.grad is not None and matrix.grad.isfinite().all()
