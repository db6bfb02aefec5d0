"""Losses: pure functions of predictions and truth, and the Deformer's weighted sum of them.

Fu et al., ICCV 2023, section 3.2. Metres, radians; 2D in parts of the crop's side. Every loss is
a mean over the batch of windows, so that equal shares of a batch on several machines average to
the whole batch's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hand_perception.fusion import rotate_6d
from hand_perception.geometry import (
    axis_angle_to_matrix,
    matrix_to_6d,
    matrix_to_axis_angle,
    rotation_6d_to_matrix,
)
from hand_perception.hand_model import HandModel
from hand_perception.networks.deformer import DeformerOutput


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of each window's weighted mean; values and weight (B, ...).

    A window whose weights are all zero counts as zero.
    """
    batch = len(values)
    weight = weight.to(values.dtype).expand_as(values).reshape(batch, -1)
    # A value nobody asked for may be NaN; zero times NaN would still be NaN.
    values = torch.where(weight > 0, values.reshape(batch, -1), values.new_zeros(()))
    total = weight.sum(1)
    return ((values * weight).sum(1) / total.clamp_min(1e-6)).mean()


def max_mse(points: Tensor, truth: Tensor) -> Tensor:
    """Sum of e^4 over sum of e^2 of the distances e between points (..., N, 3) (eq. 5), (...)."""
    squared = (points - truth).square().sum(-1)
    return squared.square().sum(-1) / squared.sum(-1).clamp_min(1e-12)


def joints_2d_loss(joints: Tensor, truth: Tensor, size: float) -> Tensor:
    """Squared distance (eq. 10), in parts of the crop's side, of joints (..., 21, 2); (..., 21)."""
    return ((joints - truth) / size).square().sum(-1)


def inside_crop(joints: Tensor, size: float) -> Tensor:
    """Which joints (..., 2), crop pixels, lie inside of the crop; (...) bool."""
    return ((joints >= 0) & (joints <= size)).all(-1)


def joints_nll(joints: Tensor, log_var: Tensor, truth: Tensor, size: float) -> Tensor:
    """Negative log likelihood (..., 21) of an isotropic 2D Gaussian, up to a constant."""
    return 0.5 * joints_2d_loss(joints, truth, size) * torch.exp(-log_var) + log_var


def motion_targets(
    pose: Tensor, motion: Tensor, offsets_s: Tensor, crop_rotation: Tensor, gap_s: float, step: int
) -> Tensor:
    """Each frame's pose moved one step to its neighbour, in the neighbour's crop frame.

    pose, motion (B, T, 16, 6) own; step +1 takes forward motion to the next frame, -1 backward to
    the previous one. Returns (B, T - 1, 16, 6): the poses of frames 1..T-1, or 0..T-2.
    """
    interval = offsets_s.diff(dim=1) / gap_s
    source, goal = (slice(None, -1), slice(1, None))
    if step < 0:
        source, goal = goal, source
    moved = pose[:, source] + motion[:, source] * interval[..., None, None]
    turn = crop_rotation[:, goal].mT @ crop_rotation[:, source]
    return torch.cat([rotate_6d(turn[:, :, None], moved[:, :, :1]), moved[:, :, 1:]], 2)


def smoothness(pose: Tensor, crop_rotation: Tensor, valid: Tensor) -> Tensor:
    """First and second differences (eq. 9, smooth) of poses (B, T, 16, 6) own; a scalar."""
    turned = torch.cat([rotate_6d(crop_rotation[:, :, None], pose[:, :, :1]), pose[:, :, 1:]], 2)
    first = turned.diff(dim=1)
    both = (valid[:, 1:] & valid[:, :-1])[..., None, None]
    loss = masked_mean(first.square(), both)
    if pose.shape[1] < 3:
        return loss
    return loss + masked_mean(first.diff(dim=1).square(), both[:, 1:] & both[:, :-1])


def generator_loss(fake: Tensor) -> Tensor:
    """Least squares: predicted motions should score one (eq. 7); scores (B,)."""
    return (fake - 1).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least squares: true motions one, predicted ones zero (eq. 8); scores (B,)."""
    return fake.square().mean() + (real - 1).square().mean()


@dataclass(frozen=True)
class WindowTruth:
    """What is known of B windows of T frames; see `training.data` for the batch it is made of."""

    rotations: Tensor
    """(B, T, 16, 3, 3), wrist in each frame's own crop frame."""
    betas: Tensor
    """(B, T, 10)."""
    joints_2d: Tensor
    """(B, T, 21, 2) crop pixels."""
    weight_2d: Tensor
    """(B, T, 21) of the 2D labels, 0 where there is none."""
    weight_3d: Tensor
    """(B, T) of the pose and shape labels, 0 where there are none or the frame is not valid."""

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> WindowTruth:
        """The truth in a batch of `training.data`."""
        pose = torch.cat([batch["global_orient"][:, :, None], batch["hand_pose"]], 2)
        valid = batch["valid"].to(pose.dtype)
        return cls(
            rotations=axis_angle_to_matrix(pose),
            betas=batch["betas"],
            joints_2d=batch["joints_2d"],
            weight_2d=batch["weight_2d"] * valid[..., None],
            weight_3d=batch["weight_3d"] * valid,
        )


def motion_sequence(rotations: Tensor) -> Tensor:
    """What the discriminator reads of rotations (B, T, 16, 3, 3): (B, T, 46), side and pose.

    The side is always right (1): every network sees right hands.
    """
    fingers = matrix_to_axis_angle(rotations[:, :, 1:]).flatten(2)
    return torch.cat([torch.ones_like(fingers[..., :1]), fingers], -1)


def deformer_losses(
    output: DeformerOutput,
    truth: WindowTruth,
    batch: Mapping[str, Tensor],
    hand_model: HandModel,
    weights: Mapping[str, float],
    *,
    size: float,
    gap_s: float,
) -> dict[str, Tensor]:
    """The weighted terms of eq. 4 except the adversarial one, by name; their sum is the loss.

    `weights` holds joints, vertices, pose, shape (of every pose prediction: monocular, temporal,
    moved one step, fused), joints_2d (heatmaps), joints_nll (refined joints), smooth, and
    optionally frame, motion and fused, which scale those groups (default 1). Terms of weight zero
    are not computed.
    """
    rows = torch.arange(len(batch["target"]), device=batch["target"].device)
    target = batch["target"]
    truth_6d = matrix_to_6d(truth.rotations)
    with torch.no_grad():
        true_hand = hand_model.with_shape(truth.betas).with_rotations(truth.rotations)
        true_joints = true_hand.joints - true_hand.joints[..., :1, :]
    want_mesh = weights.get("vertices", 0.0) > 0
    terms: dict[str, Tensor] = {}

    def pose_terms(
        name: str, rotations: Tensor, betas: Tensor, weight: Tensor, at: tuple, scale: float
    ) -> None:
        # One prediction against the truth at index `at` of the (B, T) arrays.
        if scale == 0:
            return
        hand = hand_model.with_shape(betas).with_rotations(rotations)
        joints = hand.joints - hand.joints[..., :1, :]
        loss = masked_mean(max_mse(joints, true_joints[at]), weight)
        terms[f"{name}_joints"] = scale * weights["joints"] * loss
        if want_mesh:
            wrist = hand.joints[..., :1, :]
            with torch.no_grad():
                known = hand_model.with_shape(truth.betas[at]).with_rotations(truth.rotations[at])
                true_mesh = known.mesh() - known.joints[..., :1, :]
            loss = masked_mean(max_mse(hand.mesh() - wrist, true_mesh), weight)
            terms[f"{name}_vertices"] = scale * weights["vertices"] * loss
        error = (rotations - truth.rotations[at]).square().mean((-3, -2, -1))
        terms[f"{name}_pose"] = scale * weights["pose"] * masked_mean(error, weight)

    every, weight = (slice(None), slice(None)), truth.weight_3d
    shape = output.betas[:, None].expand_as(truth.betas)
    own = rotation_6d_to_matrix(output.pose)
    frame_scale = weights.get("frame", 1.0)
    pose_terms("temporal", own, shape, weight, every, frame_scale)
    if output.frame_pose is not None and output.frame_betas is not None:
        alone = rotation_6d_to_matrix(output.frame_pose)
        pose_terms("frame", alone, output.frame_betas, weight, every, frame_scale)
        error = (output.frame_betas - truth.betas).square().mean(-1)
        terms["frame_shape"] = frame_scale * weights["shape"] * masked_mean(error, weight)
    error = (shape - truth.betas).square().mean(-1)
    terms["shape"] = weights["shape"] * masked_mean(error, weight)

    motion_scale = weights.get("motion", 1.0)
    if motion_scale > 0 and weight.shape[1] > 1:
        both = weight[:, 1:] * weight[:, :-1]
        for name, motion, step in (
            ("forward", output.forward_motion, 1),
            ("backward", output.backward_motion, -1),
        ):
            moved = motion_targets(
                output.pose, motion, batch["offsets_s"], batch["crop_rotation"], gap_s, step
            )
            at = (slice(None), slice(1, None) if step > 0 else slice(None, -1))
            moved = rotation_6d_to_matrix(moved)
            pose_terms(name, moved, shape[:, 1:], both, at, motion_scale)

    pose_terms(
        "fused",
        output.rotations,
        output.betas,
        weight[rows, target],
        (rows, target),
        weights.get("fused", 1.0),
    )
    inside = inside_crop(truth.joints_2d, size)
    heat = joints_2d_loss(output.frame_joints_2d, truth.joints_2d, size)
    terms["joints_2d"] = weights["joints_2d"] * masked_mean(heat, truth.weight_2d * inside)
    nll = joints_nll(output.joints_2d, output.joints_log_var, truth.joints_2d[rows, target], size)
    terms["joints_nll"] = weights["joints_nll"] * masked_mean(nll, truth.weight_2d[rows, target])
    if weights.get("smooth", 0.0) > 0:
        loss = smoothness(output.pose, batch["crop_rotation"], batch["valid"])
        terms["smooth"] = weights["smooth"] * loss
    if weights.get("carried", 0.0) > 0:
        # Every frame's proposal for the target, not only their mixture.
        goal = truth_6d[rows, target][:, None]
        error = (output.carried - goal).square().mean((-2, -1))
        both = weight * weight[rows, target][:, None]
        terms["carried"] = weights["carried"] * masked_mean(error, both)
    return terms
