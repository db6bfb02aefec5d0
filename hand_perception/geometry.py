"""Rotations, rigid transforms and alignment, batched over leading dimensions, in torch.

Axis-angle is (..., 3) radians, 6D is (..., 6): the first two columns of the matrix, stacked
(Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", CVPR 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3): skew(a) @ b == a x b."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape[:-1], 3, 3)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of axis-angle (..., 3); smooth at zero (Rodrigues)."""
    angle_sq = (axis_angle * axis_angle).sum(-1)[..., None, None]
    small = angle_sq < 1e-8
    safe = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = safe.sqrt()
    sin_over = torch.where(small, 1 - angle_sq / 6, angle.sin() / angle)
    cos_over = torch.where(small, 0.5 - angle_sq / 24, (1 - angle.cos()) / safe)
    k = skew(axis_angle)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + sin_over * k + cos_over * (k @ k)


def matrix_to_quaternion_wxyz(matrix: Tensor) -> Tensor:
    """Unit quaternions (..., 4), w first and not negative, of rotations (..., 3, 3)."""
    m = matrix
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    x, y, z = diagonal.unbind(-1)
    # Four candidates, one for each component taken as the pivot; the largest pivot is exact.
    squares = torch.stack([1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z], -1)
    pivot = squares.argmax(-1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = torch.stack(
        [
            torch.stack([squares[..., 0], a, b, c], -1),
            torch.stack([a, squares[..., 1], d, e], -1),
            torch.stack([b, d, squares[..., 2], f], -1),
            torch.stack([c, e, f, squares[..., 3]], -1),
        ],
        -2,
    )
    index = pivot[..., None, None].expand(*pivot.shape, 1, 4)
    quaternion = F.normalize(rows.gather(-2, index).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Axis-angle (..., 3), angle in [0, pi], of rotation matrices (..., 3, 3)."""
    quaternion = matrix_to_quaternion_wxyz(matrix)
    w, xyz = quaternion[..., :1], quaternion[..., 1:]
    sine_sq = (xyz * xyz).sum(-1, keepdim=True)
    small = sine_sq < 1e-12
    sine = torch.where(small, torch.ones_like(sine_sq), sine_sq).sqrt()
    scale = torch.where(small, 2.0 / w.clamp_min(1e-6), 2.0 * torch.atan2(sine, w) / sine)
    return scale * xyz


def matrix_to_6d(matrix: Tensor) -> Tensor:
    """6D (..., 6) of rotation matrices (..., 3, 3): first column, then second column."""
    return torch.cat([matrix[..., :, 0], matrix[..., :, 1]], -1)


def rotation_6d_to_matrix(rotation_6d: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of any 6D (..., 6), by Gram-Schmidt."""
    x = F.normalize(rotation_6d[..., :3], dim=-1)
    b = rotation_6d[..., 3:]
    y = F.normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], -1)


def mirror_axis_angle(axis_angle: Tensor) -> Tensor:
    """Axis-angle (..., 3) of the same turn seen in a mirror across x = 0: (x, -y, -z)."""
    return axis_angle * axis_angle.new_tensor([1.0, -1.0, -1.0])


def rigid_transform(rotation: Tensor, translation: Tensor) -> Tensor:
    """Homogeneous transforms (..., 4, 4) of rotations (..., 3, 3) and translations (..., 3)."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def procrustes(source: Tensor, target: Tensor, scale: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity (s, R, t) that best maps source (..., N, 3) onto target, rotations proper only.

    Returns s (...,), R (..., 3, 3), t (..., 3) with target ~ s R source + t (Umeyama, 1991);
    s is 1 when `scale` is False.
    """
    mean_s, mean_t = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    a, b = source - mean_s, target - mean_t
    u, singular, vh = torch.linalg.svd(b.mT @ a)
    sign = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    flip = torch.ones_like(singular)
    flip[..., 2] = sign
    rotation = (u * flip[..., None, :]) @ vh
    s = (singular * flip).sum(-1) / (a * a).sum((-2, -1)) if scale else torch.ones_like(sign)
    translation = mean_t.squeeze(-2) - s[..., None] * (rotation @ mean_s.mT).squeeze(-1)
    return s, rotation, translation


def align(source: Tensor, target: Tensor, scale: bool = True) -> Tensor:
    """The source points (..., N, 3) after their best similarity onto the target."""
    s, rotation, translation = procrustes(source, target, scale)
    return s[..., None, None] * source @ rotation.mT + translation[..., None, :]
