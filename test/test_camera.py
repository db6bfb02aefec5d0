import numpy as np
import pytest
import torch

from hand_perception.camera import (
    MIN_DEPTH,
    depth_scale,
    hand_size,
    project,
    project_points,
    rays,
    reprojection_rms,
    scale_to_hand_size,
    solve_translation,
)
from hand_perception.types import Camera, HandPerceptionError

K = torch.tensor([[900.0, 0, 300], [0, 850, 320], [0, 0, 1]], dtype=torch.float64)


def scenes(count: int = 500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    joints = 0.05 * torch.randn(count, 21, 3, generator=generator, dtype=torch.float64)
    joints[:, 0] = 0
    t = torch.rand(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.2, 1])
    t = t + torch.tensor([-0.1, -0.1, 0.3])
    return project_points(joints + t[:, None], K), joints, t


def noise(like: torch.Tensor, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


@pytest.mark.parametrize(
    "distortion",
    [
        (),
        (-0.2, 0.05, 0.001, -0.002),
        (-0.2, 0.05, 0.001, -0.002, 0.01),
        (0.3, -0.1, 0.001, 0.0005, 0.02, 0.35, -0.08, 0.01),
    ],
)
def test_rays_undo_projection(distortion: tuple[float, ...]) -> None:
    camera = Camera(640, 480, 500, 510, 320, 240, distortion)
    xy = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 9), np.linspace(-0.4, 0.4, 7)), -1)
    points = np.concatenate([xy.reshape(-1, 2), np.ones((63, 1))], 1)
    pixels = project(points * 0.7, camera)
    assert np.allclose(rays(pixels, camera), points, atol=1e-6)
    if distortion:
        plain = project(points, Camera(640, 480, 500, 510, 320, 240))
        assert np.abs(pixels - plain).max() > 1


def test_projection_by_hand() -> None:
    camera = Camera(640, 480, 500, 400, 320, 240, (0.1, 0.0, 0.0, 0.0))
    # r^2 = 0.25, factor 1.025: x = 0.5125.
    assert np.allclose(project(np.array([[1.0, 0.0, 2.0]]), camera), [[576.25, 240.0]])


def test_translation_exact_without_noise() -> None:
    pixels, joints, t = scenes()
    found = solve_translation(pixels, joints, K.expand(len(t), 3, 3))
    assert ((found - t).norm(dim=-1) / t.norm(dim=-1)).max() < 1e-6
    assert reprojection_rms(pixels, joints, found, K.expand(len(t), 3, 3)).max() < 1e-6


def test_translation_error_bounded_under_noise() -> None:
    pixels, joints, t = scenes()
    found = solve_translation(pixels + 2 * noise(pixels), joints, K.expand(len(t), 3, 3))
    depth_error = (found - t)[:, 2] / t[:, 2]
    assert depth_error.square().mean().sqrt() < 0.01
    assert depth_error.mean().abs() < 0.002
    rms = reprojection_rms(pixels + 2 * noise(pixels), joints, found, K.expand(len(t), 3, 3))
    assert 2.2 < rms.mean() < 3.2


def test_translation_survives_three_outliers() -> None:
    pixels, joints, t = scenes()
    wrong = pixels.clone()
    wrong[:, [4, 8, 17]] += 80 * noise(wrong[:, [4, 8, 17]])
    found = solve_translation(wrong + noise(wrong, 2), joints, K.expand(len(t), 3, 3))
    error = ((found - t)[:, 2] / t[:, 2]).abs()
    assert error.square().mean().sqrt() < 0.01
    assert error.quantile(0.99) < 0.03


def test_translation_respects_weights() -> None:
    pixels, joints, t = scenes(50)
    wrong = pixels.clone()
    weights = torch.ones(50, 21, dtype=torch.float64)
    weights[:, 5:17] = 0
    wrong[:, 5:17] += 50
    found = solve_translation(wrong, joints, K.expand(50, 3, 3), weights)
    assert (found - t).norm(dim=-1).max() < 1e-4
    uniform = solve_translation(pixels, joints, K.expand(50, 3, 3), weights * 0)
    assert (uniform - t).norm(dim=-1).max() < 1e-6


def test_hand_never_behind_the_camera() -> None:
    pixels, joints, _ = scenes(50)
    mirrored = 600 - pixels  # a picture turned by half asks for negative depth
    found = solve_translation(mirrored, joints, K.expand(50, 3, 3))
    assert found.isfinite().all()
    assert (joints + found[:, None])[..., 2].min() >= MIN_DEPTH - 1e-9
    assert reprojection_rms(mirrored, joints, found, K.expand(50, 3, 3)).min() > 20


def test_hand_size_scales() -> None:
    _, joints, _ = scenes(5)
    assert torch.allclose(hand_size(scale_to_hand_size(joints, 0.09)), torch.tensor(0.09).double())
    with pytest.raises(HandPerceptionError, match="hand_size_m"):
        scale_to_hand_size(joints, 1.5)


def test_depth_image_gives_scale() -> None:
    camera = Camera(640, 480, 500, 500, 320, 240)
    joints = np.zeros((21, 3))
    joints[:, 0] = np.linspace(-0.05, 0.05, 21)
    joints[:, 2] = 0.5
    depth = np.full((480, 640), 0.59, np.float32)  # skin 1 cm before joints at 0.6
    assert depth_scale(depth, joints, camera) == pytest.approx(1.2, abs=1e-4)
    holes = depth.copy()
    holes[::2] = 0
    holes[1::4] = np.nan
    assert depth_scale(holes, joints, camera) == pytest.approx(1.2, abs=1e-4)
    behind = depth.copy()
    behind[:, :290] = 2.0  # two palm joints see the wall
    assert depth_scale(behind, joints, camera) == pytest.approx(1.2, abs=1e-4)
    assert depth_scale(depth * 0, joints, camera) is None
    assert depth_scale(depth, joints + (5, 0, 0), camera) is None
    with pytest.raises(HandPerceptionError, match="registered"):
        depth_scale(depth[:100], joints, camera)
