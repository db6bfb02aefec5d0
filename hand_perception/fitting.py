"""Fit of the hand model to predicted joints: a small, batched Levenberg-Marquardt.

Unknowns of a hand: wrist rotation, wrist position and the 22 anatomical angles. Residuals:
 - bones: each bone of the model against the predicted bone's direction, at the model's length
   (a landmark network knows directions better than sizes, and errors don't add up along fingers);
 - picture: projected joints against 2D joints in crop pixels;
 - limits of the angles (soft; clamped in the end), a weak rest pose, and the previous frame.
Bones and 2D joints carry Cauchy weights, so that a wrong joint loses its say. The Jacobian is
geometric: a bone turns about an angle's axis by axis x bone, a joint by the sum over its bones.

One camera cannot see size. The scale of a hand is `hand_size_m` where the caller knows it (a
user's hand, or a depth image), else the network's metric joints, averaged over the first second
and a half of a track; the shape is solved for from these bone lengths and then frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hand_perception.camera import hand_size, project_points, solve_translation
from hand_perception.geometry import axis_angle_to_matrix, matrix_to_axis_angle, procrustes
from hand_perception.hand_model import ANGLE_LIMITS, HandModel, angles_to_rotations
from hand_perception.skeleton import ANGLES, BONES
from hand_perception.types import HandPerceptionError, Prediction

# Fingers here run thumb to little; the model's chains run index, middle, little, ring, thumb.
_FIRST_JOINT = (13, 1, 4, 10, 7)
_FINGER_OF_JOINT = {first + k: f for f, first in enumerate(_FIRST_JOINT) for k in range(3)}


@dataclass(frozen=True)
class FitOptions:
    """Weights of a fit, as the standard deviation of each residual."""

    iterations: int = 4
    bone_m: float = 0.008
    palm_m: float = 0.012
    pixel_px: float = 3.0
    robust: float = 3.0
    """Cauchy scale, in standard deviations."""
    limit_rad: float = 0.03
    rest_rad: float = 6.0
    angle_rate: float = 2.0
    """Random walk of an angle from frame to frame, radians per sqrt(second)."""
    settle_s: float = 1.5
    shape_sigma: float = 0.03
    """Standard deviation of a bone length, as a share of the hand's size."""


@dataclass(frozen=True)
class FitState:
    """What a track carries from frame to frame, for B tracks."""

    angles: Tensor
    """(B, 22) radians."""
    bone_lengths: Tensor
    """(B, 20) running robust mean of the observed lengths, metres."""
    seen_s: Tensor
    """(B,) seconds over which the shape was observed; negative for a fresh track."""
    betas: Tensor
    """(B, 10)."""

    @staticmethod
    def gather(states: Sequence[FitState | None]) -> FitState | None:
        """One batch of single-track states (B = 1 each), None for a fresh track."""
        known = [state for state in states if state is not None]
        if not known:
            return None
        zero = FitState(*(torch.zeros_like(getattr(known[0], f.name)) for f in fields(FitState)))
        fresh = FitState(zero.angles, zero.bone_lengths, zero.seen_s - 1, zero.betas)
        full = [fresh if state is None else state for state in states]
        return FitState(
            *(torch.cat([getattr(state, f.name) for state in full]) for f in fields(FitState))
        )

    def split(self) -> list[FitState]:
        """One state for each track."""
        parts = zip(*(getattr(self, f.name).split(1) for f in fields(FitState)), strict=True)
        return [FitState(*part) for part in parts]


@dataclass(frozen=True)
class FitResult:
    """The fitted right hands, in their crop frames."""

    global_orient: Tensor
    """(B, 3) axis-angle."""
    hand_pose: Tensor
    """(B, 15, 3) axis-angle, MANO order."""
    betas: Tensor
    """(B, 10)."""
    transl: Tensor
    """(B, 3) metres, MANO convention: the wrist is at transl + J(betas)[0]."""
    joint_angles: Tensor
    """(B, 22) radians, within `ANGLE_LIMITS`."""
    joints: Tensor
    """(B, 21, 3) metres."""
    residual_px: Tensor
    """(B, 21) distance between the projected and the predicted 2D joint."""
    joint_confidence: Tensor
    """(B, 21): predicted confidence x exp(-residual / 10 % of the hand's picture)."""
    valid: Tensor
    """(B,) bool; False where the input was not finite: such a hand is at rest, confidence 0."""
    state: FitState


class HandFitter:
    """Fits a right hand model to batches of predictions."""

    def __init__(self, model: HandModel, options: FitOptions | None = None) -> None:
        if model.side != "right":
            raise HandPerceptionError(
                f"the fit works on right hands (left ones are mirrored); the model is {model.side}"
            )
        self.model = model
        self.options = options or FitOptions()
        device = model.v_template.device
        first = torch.tensor(_FIRST_JOINT, device=device)
        joints = (first[:, None] + torch.arange(3, device=device)).flatten()
        self._joints = joints
        self._axes = model.axes[joints].reshape(5, 3, 3, 3)
        fingers = [_FINGER_OF_JOINT[joint] for _, joint, _ in ANGLES]
        links = [joint - _FIRST_JOINT[f] for (_, joint, _), f in zip(ANGLES, fingers, strict=True)]
        axes = [axis for _, _, axis in ANGLES]
        self._slots = torch.tensor(
            [9 * f + 3 * k + a for f, k, a in zip(fingers, links, axes, strict=True)], device=device
        )
        # An angle of link k moves the bones after it; the wrist's three angles move all.
        moved = torch.ones(25, 5, 4, device=device, dtype=model.v_template.dtype)
        for row, (finger, link) in enumerate(zip(fingers, links, strict=True), start=3):
            moved[row] = 0
            moved[row, finger, link + 1 :] = 1
        self._moved = moved[..., None]
        self._limits = ANGLE_LIMITS.to(moved)
        self._rest = self._limits.mean(-1).clamp(-0.3, 0.3)
        sigma = moved.new_full((5, 4), self.options.bone_m)
        sigma[:, 0] = self.options.palm_m
        # The base of the thumb lies differently in every landmark convention.
        sigma[0, 0] *= 2
        self._bone_weight = sigma.pow(-2)
        self._parents = torch.tensor([p for p, _ in BONES], device=device)
        # Rest points are linear in the betas: model joints and tips, finger by finger.
        tips = model.tips
        self._points = torch.cat(
            [model.J_template[joints].reshape(5, 3, 3), model.v_template[tips][:, None]], 1
        )
        self._directions = torch.cat(
            [model.J_shapedirs[joints].reshape(5, 3, 3, 10), model.shapedirs[tips][:, None]], 1
        )

    @torch.no_grad()
    def fit(
        self,
        prediction: Prediction,
        intrinsics: Tensor,
        state: FitState | None = None,
        dt: Tensor | float | None = None,
        hand_size_m: Tensor | float | None = None,
    ) -> FitResult:
        """The hand model at its best match with a prediction of B hands.

        intrinsics (B, 3, 3) of the crops; state of the previous frame, dt (B,) seconds since;
        hand_size_m (B,) wrist to middle MCP, known sizes only. Raises HandPerceptionError for
        shapes that don't belong together; a hand with non-finite input is flagged invalid.
        """
        batch = prediction.joints_2d.shape[0]
        if prediction.joints_3d.shape != (batch, 21, 3) or intrinsics.shape != (batch, 3, 3):
            raise HandPerceptionError(
                f"joints_3d {tuple(prediction.joints_3d.shape)} and intrinsics "
                f"{tuple(intrinsics.shape)} must be ({batch}, 21, 3) and ({batch}, 3, 3)"
            )
        if state is not None and state.angles.shape[0] != batch:
            raise HandPerceptionError(
                f"state holds {state.angles.shape[0]} tracks; the prediction has {batch} hands"
            )
        inputs = (prediction.joints_2d, prediction.joints_3d, prediction.joint_confidence)
        valid = torch.stack([x.flatten(1).isfinite().all(1) for x in (*inputs, intrinsics)]).all(0)
        rest = self.model.with_shape().with_rotations(torch.eye(3).to(intrinsics).expand(16, 3, 3))
        joints_2d, confidence = (x.nan_to_num(0.0, 0.0, 0.0) for x in (inputs[0], inputs[2]))
        joints_3d = torch.where(valid[:, None, None], inputs[1], rest.joints)
        eye = torch.eye(3).to(intrinsics)
        intrinsics = torch.where(valid[:, None, None], intrinsics, eye)
        confidence = confidence.clamp(0, 1) * valid[:, None]
        step = self._steps(dt, joints_3d)

        tracked = torch.zeros_like(valid) if state is None else state.seen_s > 0
        state = self._observe_shape(joints_3d, confidence, valid, state, step, hand_size_m)
        points = self._points + (self._directions @ state.betas[:, None, None, :, None]).squeeze(-1)
        wrist = self.model.J_template[0] + state.betas @ self.model.J_shapedirs[0].mT
        bones = points.diff(dim=2, prepend=wrist[:, None, None, :].expand(-1, 5, 1, -1))

        targets = self._bone_targets(joints_3d, bones)
        weight = confidence.clamp_min(0.02)
        rotation, angles = self._initial(bones, targets)
        pull = 1 / (self.options.angle_rate**2 * step.clamp_min(1e-3))
        prior = torch.where(tracked & (step > 0), pull, 0.0)[:, None]
        old = torch.where(prior > 0, state.angles, angles)
        placed = self._joints_of(self._forward(rotation, angles, bones)[0])
        transl = solve_translation(joints_2d, placed, intrinsics, weight, rounds=3)
        rotation, transl, angles = self._solve(
            rotation, transl, angles, bones, targets, joints_2d, intrinsics, weight, old, prior
        )
        angles = angles.clamp(self._limits[:, 0], self._limits[:, 1])
        angles = torch.where(valid[:, None], angles, self._rest)
        return self._result(intrinsics, rotation, transl, angles, wrist, valid, state,
                            bones, joints_2d, confidence)  # fmt: skip

    def _steps(self, dt: Tensor | float | None, like: Tensor) -> Tensor:
        value = torch.as_tensor(0.0 if dt is None else dt, dtype=like.dtype, device=like.device)
        return value.expand(like.shape[0]).nan_to_num(0.0).clamp(0.0, 1.0)

    def _result(
        self, intrinsics: Tensor, rotation: Tensor, transl: Tensor,
        angles: Tensor, wrist: Tensor, valid: Tensor, state: FitState, bones: Tensor,
        joints_2d: Tensor, confidence: Tensor,
    ) -> FitResult:  # fmt: skip
        joints = self._joints_of(self._forward(rotation, angles, bones)[0]) + transl[:, None]
        flat = project_points(joints, intrinsics)
        residual = (flat - joints_2d).norm(dim=-1)
        span = (flat[:, 9] - flat[:, 0]).norm(dim=-1)
        extent = torch.maximum(span, (flat.amax(1) - flat.amin(1)).amax(-1) / 2).clamp_min(1.0)
        trust = (-residual / (0.1 * extent[:, None])).exp()
        hand_pose = matrix_to_axis_angle(angles_to_rotations(self.model, angles))
        if self.model.hands_mean is not None:
            hand_pose = hand_pose - self.model.hands_mean
        return FitResult(
            global_orient=matrix_to_axis_angle(rotation),
            hand_pose=hand_pose,
            betas=state.betas,
            transl=transl - wrist,
            joint_angles=angles,
            joints=joints,
            residual_px=residual,
            joint_confidence=confidence * trust,
            valid=valid,
            state=FitState(angles, state.bone_lengths, state.seen_s, state.betas),
        )

    def _observe_shape(
        self, joints: Tensor, confidence: Tensor, valid: Tensor, state: FitState | None,
        step: Tensor, hand_size_m: Tensor | float | None,
    ) -> FitState:  # fmt: skip
        """The state with this frame's bone lengths averaged in and its shape solved for."""
        observed = self._lengths(joints)
        if hand_size_m is not None:
            size = torch.as_tensor(hand_size_m, dtype=joints.dtype, device=joints.device)
            observed = observed * (size / hand_size(joints).clamp_min(1e-4)).expand(
                joints.shape[0]
            ).unsqueeze(-1)
        if state is None:
            zeros = joints.new_zeros(joints.shape[0])
            angles = joints.new_zeros(joints.shape[0], len(ANGLES))
            state = FitState(angles, observed, zeros - 1, joints.new_zeros(joints.shape[0], 10))
        fresh = state.seen_s < 0
        # A long or unknown gap counts as one frame of video.
        seen = torch.where(fresh, 0.0, state.seen_s)
        gain = step.clamp(1e-3, 0.05) / (seen + step.clamp(1e-3, 0.05))
        old = torch.where(fresh[:, None], observed, state.bone_lengths)
        change = (observed - old).clamp(-0.15 * old, 0.15 * old)
        settled = (seen >= self.options.settle_s) & (hand_size_m is None)
        gain = torch.where(settled | ~valid, 0.0, gain)[:, None] * confidence[:, 1:]
        lengths = old + gain * change
        if bool(settled.all()):
            betas = state.betas
        else:
            known = settled | (~valid & ~fresh)
            betas = torch.where(known[:, None], state.betas, self._solve_shape(lengths))
        seen = seen + torch.where(valid, step.clamp(1e-3, 0.05), 0.0)
        return FitState(state.angles, lengths, torch.where(valid | ~fresh, seen, -1.0), betas)

    def _solve_shape(self, lengths: Tensor) -> Tensor:
        """Betas (B, 10) of bone lengths (B, 20): ridge regression, two Gauss-Newton rounds."""
        wrist_dirs = self.model.J_shapedirs[0].expand(5, 1, 3, 10)
        directions = self._directions.diff(dim=1, prepend=wrist_dirs).flatten(0, 1)
        wrist = self.model.J_template[0].expand(5, 1, 3)
        rest = self._points.diff(dim=1, prepend=wrist).flatten(0, 1)
        betas = lengths.new_zeros(lengths.shape[0], 10)
        sigma = self.options.shape_sigma * lengths[:, 8:9].clamp_min(0.01)
        eye = torch.eye(10).to(lengths)
        # Size (beta 0) is nearly free, proportions are held near the mean.
        ridge = eye * torch.where(torch.arange(10, device=lengths.device) == 0, 0.05, 1.0)
        # Palm bones tell the size; where a thumb begins is convention.
        trust = lengths.new_ones(20)
        trust[8] = 4.0
        trust[0] = 0.3
        for _ in range(3):
            bones = rest + (directions @ betas[:, None, :, None]).squeeze(-1)
            norms = bones.norm(dim=-1)
            rows = (bones[..., None] * directions).sum(-2) / norms[..., None]
            rows = rows * (trust / sigma)[..., None]
            error = (lengths - norms) * trust / sigma
            normal = rows.mT @ rows + ridge
            gradient = (rows.mT @ error[..., None]).squeeze(-1) - betas @ ridge
            betas = betas + torch.linalg.solve(normal, gradient)
            betas = betas.clamp(-4.0, 4.0)
        return betas

    def _lengths(self, joints: Tensor) -> Tensor:
        return (joints[:, 1:] - joints[:, self._parents]).norm(dim=-1)

    def _bone_targets(self, joints: Tensor, bones: Tensor) -> Tensor:
        """Predicted bones (B, 5, 4, 3) at the model's lengths."""
        seen = (joints[:, 1:] - joints[:, self._parents]).reshape(-1, 5, 4, 3)
        length = bones.norm(dim=-1, keepdim=True)
        return seen * (length / seen.norm(dim=-1, keepdim=True).clamp_min(1e-6))

    @staticmethod
    def _joints_of(bones: Tensor) -> Tensor:
        """Root-relative joints (B, 21, 3) of bones (B, 5, 4, 3)."""
        joints = bones.cumsum(2).flatten(1, 2)
        return torch.cat([torch.zeros_like(joints[:, :1]), joints], 1)

    def _initial(self, bones: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Wrist rotation from the palm, then each angle from its bone's direction, base first."""
        zero = bones.new_zeros(bones.shape[0], 1, 3)
        palm = torch.cat([zero, bones[:, 1:, 0]], 1)
        seen = torch.cat([zero, targets[:, 1:, 0]], 1)
        _, rotation, _ = procrustes(palm, seen, scale=False)
        angles = bones.new_zeros(bones.shape[0], 45)
        allowed = torch.zeros(45, device=bones.device, dtype=torch.bool)
        allowed[self._slots] = True
        low, high = bones.new_zeros(45), bones.new_zeros(45)
        low[self._slots], high[self._slots] = self._limits.unbind(-1)
        angles = angles.view(-1, 5, 3, 3)
        low, high, allowed = (x.view(5, 3, 3) for x in (low, high, allowed))
        parent = rotation[:, None].expand(-1, 5, 3, 3)
        for link in range(3):
            frame = parent @ self._axes[:, link].mT
            there = (frame.mT @ targets[:, :, link + 1, :, None]).squeeze(-1)
            here = (self._axes[:, link] @ bones[:, :, link + 1, :, None]).squeeze(-1)
            flexion = _flexion(there) - _flexion(here)
            flexion = torch.atan2(flexion.sin(), flexion.cos())
            abduction = _abduction(there) - _abduction(here)
            guess = torch.stack([flexion, abduction, torch.zeros_like(flexion)], -1)
            guess = guess.clamp(low[:, link], high[:, link]) * allowed[:, link]
            angles[:, :, link] = guess
            parent = frame @ _euler(guess)[0] @ self._axes[:, link]
        return rotation, angles.flatten(1)[:, self._slots]

    def _forward(self, rotation: Tensor, angles: Tensor, bones: Tensor) -> tuple[Tensor, Tensor]:
        """Bones (B, 5, 4, 3) and axes of the 22 angles (B, 22, 3) in the crop frame."""
        slots = angles.new_zeros(angles.shape[0], 45)
        slots[:, self._slots] = angles
        local, turned = _euler(slots.view(-1, 5, 3, 3))
        parent = rotation[:, None]
        frames, links = [], [(parent @ bones[:, :, 0, :, None])]
        for link in range(3):
            frame = parent @ self._axes[:, link].mT
            frames.append(frame)
            parent = frame @ local[:, :, link] @ self._axes[:, link]
            links.append(parent @ bones[:, :, link + 1, :, None])
        axes = (torch.stack(frames, 2) @ turned).mT
        return torch.stack(links, 2).squeeze(-1), axes.flatten(1, 3)[:, self._slots]

    def _solve(
        self, rotation: Tensor, transl: Tensor, angles: Tensor, bones: Tensor, targets: Tensor,
        joints_2d: Tensor, intrinsics: Tensor, weight: Tensor, old: Tensor, prior: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        options = self.options
        batch = rotation.shape[0]
        focal = intrinsics.diagonal(dim1=-2, dim2=-1)[:, None, :2]
        center = intrinsics[:, None, :2, 2]
        bone_weight = weight[:, 1:].view(-1, 5, 4) * self._bone_weight
        # Landmark conventions differ most at the wrist and where the thumb begins.
        pixel_weight = weight / options.pixel_px**2
        pixel_weight = torch.cat(
            [0.3 * pixel_weight[:, :1], 0.1 * pixel_weight[:, 1:2], pixel_weight[:, 2:]], 1
        )
        low, high = self._limits.unbind(-1)
        eye = torch.eye(3).to(rotation).expand(batch, 3, 3)
        best = (rotation, transl, angles)
        best_cost = rotation.new_full((batch,), torch.inf)
        normal = rotation.new_zeros(batch, 28, 28)
        gradient = rotation.new_zeros(batch, 28)
        damping = rotation.new_full((batch,), 1e-3)
        robust = options.robust**2
        for iteration in range(options.iterations + 1):
            posed, axes = self._forward(rotation, angles, bones)
            bone_error = targets - posed
            bone_sq = bone_error.square().sum(-1) * bone_weight
            points = self._joints_of(posed) + transl[:, None]
            depth = points[..., 2:].clamp_min(0.02)
            flat = points[..., :2] / depth
            pixel_error = joints_2d - (flat * focal + center)
            pixel_sq = pixel_error.square().sum(-1) * pixel_weight
            over = angles - angles.clamp(low, high)
            drift = angles - old
            # Large motion is real: the pull to the previous frame fades (Cauchy).
            drift_sq = drift.square() * prior
            limit_weight = (over != 0) / options.limit_rad**2
            rest = angles - self._rest
            cost = (
                robust
                * ((bone_sq / robust).log1p().sum((1, 2)) + (pixel_sq / robust).log1p().sum(1))
                + robust * (drift_sq / robust).log1p().sum(1)
                + (over / options.limit_rad).square().sum(1)
                + (rest / options.rest_rad).square().sum(1)
            )
            better = cost < best_cost
            best_cost = torch.where(better, cost, best_cost)
            keep = better[:, None]
            best = (
                torch.where(keep[..., None], rotation, best[0]),
                torch.where(keep, transl, best[1]),
                torch.where(keep, angles, best[2]),
            )
            if iteration == options.iterations:
                break
            damping = torch.where(better, damping * 0.2, damping * 20).clamp(1e-6, 1e3)

            # Rows: 60 of the bones, 42 of the picture. Columns: wrist 3, angles 22, position 3.
            spin = torch.cat([eye, axes], 1)
            turn = (
                torch.linalg.cross(spin[:, :, None, None], posed[:, None], dim=-1) * self._moved
            )  # (B, 25, 5, 4, 3)
            move = turn.cumsum(3).flatten(2, 3)
            scale = (bone_weight / (1 + bone_sq / robust)).sqrt()
            bone_rows = (turn * scale[:, None, ..., None]).flatten(2)
            bone_side = (bone_error * scale[..., None]).flatten(1)
            scale = (pixel_weight / (1 + pixel_sq / robust)).sqrt()[..., None]
            lens = focal / depth * scale
            picture = move[..., :2] - flat[:, None, 1:] * move[..., 2:]
            picture = torch.cat([torch.zeros_like(picture[:, :, :1]), picture], 2) * lens[:, None]
            shift = torch.zeros(batch, 3, 21, 2).to(lens)
            shift[:, 0, :, 0] = lens[..., 0]
            shift[:, 1, :, 1] = lens[..., 1]
            shift[:, 2] = -flat * lens
            rows = torch.cat([bone_rows, picture.flatten(2)], 2)
            still = torch.zeros(batch, 3, 60).to(lens)
            rows = torch.cat([rows, torch.cat([still, shift.flatten(2)], 2)], 1)
            side = torch.cat([bone_side, (pixel_error * scale).flatten(1)], 1)
            diagonal = prior / (1 + drift_sq / robust)
            pull = diagonal * drift + limit_weight * over + rest / options.rest_rad**2
            new_gradient = (rows @ side[..., None]).squeeze(-1)
            new_gradient[:, 3:25] -= pull
            new_normal = rows @ rows.mT
            new_normal.diagonal(dim1=1, dim2=2)[:, 3:25] += (
                diagonal + limit_weight + 1 / options.rest_rad**2
            )
            normal = torch.where(keep[..., None], new_normal, normal)
            gradient = torch.where(keep, new_gradient, gradient)

            damped = normal + torch.diag_embed(
                damping[:, None] * normal.diagonal(dim1=1, dim2=2) + 1e-6
            )
            step = torch.linalg.solve_ex(damped, gradient)[0]
            step = step.nan_to_num(0.0, 0.0, 0.0)
            rotation = axis_angle_to_matrix(step[:, :3]) @ best[0]
            angles = best[2] + step[:, 3:25].clamp(-0.8, 0.8)
            transl = best[1] + step[:, 25:]
        return best


def _euler(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rx(f) Ry(a) Rz(r) of angles (..., 3), and its three axes as columns, each (..., 3, 3)."""
    sf, sa, sr = angles.sin().unbind(-1)
    cf, ca, cr = angles.cos().unbind(-1)
    one, zero = torch.ones_like(sf), torch.zeros_like(sf)
    b, c = sf * sa, cf * sa
    matrix = torch.stack(
        [
            *(ca * cr, -ca * sr, sa),
            *(cf * sr + b * cr, cf * cr - b * sr, -sf * ca),
            *(sf * sr - c * cr, sf * cr + c * sr, cf * ca),
        ],
        -1,
    ).unflatten(-1, (3, 3))
    axes = torch.stack([one, zero, sa, zero, cf, -sf * ca, zero, sf, cf * ca], -1).unflatten(
        -1, (3, 3)
    )
    return matrix, axes


def _flexion(bone: Tensor) -> Tensor:
    return torch.atan2(-bone[..., 1], bone[..., 2])


def _abduction(bone: Tensor) -> Tensor:
    return torch.atan2(bone[..., 0], bone[..., 1:].norm(dim=-1))
