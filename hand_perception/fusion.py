"""Fusion over time: which frames form a window, how their poses become one, and the frame buffer.

Dynamic fusion is the Deformer's (Fu et al., "Deformer: Dynamic Fusion Transformer for Robust Hand
Pose Estimation", ICCV 2023, eqs. 1-3). Rotations are 6D: two columns, so that a rotation of the
frame acts on each half by plain multiplication, on motions as well as on poses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hand_perception.types import Crop, FloatArray, HandPerceptionError, Prediction

if TYPE_CHECKING:
    from hand_perception.networks.deformer import Deformer

FusionMode = Literal["dynamic", "average", "centre"]


def rotate_6d(rotation: Tensor, rotation_6d: Tensor) -> Tensor:
    """6D (..., 6) of `rotation @ R`, or of a difference of rotations; rotation (..., 3, 3)."""
    columns = rotation_6d.unflatten(-1, (2, 3))
    return (columns @ rotation.mT).flatten(-2)


def carry_poses(
    pose: Tensor,
    forward: Tensor,
    backward: Tensor,
    *,
    offsets_s: Tensor,
    crop_rotation: Tensor,
    valid: Tensor,
    target: Tensor,
    gap_s: float,
) -> Tensor:
    """Every frame's pose carried to the target frame (eq. 2), (B, T, J, 6).

    pose, forward, backward (B, T, J, 6): 6D poses and motions of each frame, joint 0 in the
    frame's own crop frame; a motion is the change until the next (or previous) frame when that is
    gap_s away, and is scaled by the real distance in time. offsets_s (B, T) seconds, rising,
    relative to the target's; crop_rotation (B, T, 3, 3) R_target_frame; valid (B, T); target (B,).
    A frame that is not valid is stepped over: its neighbour's motion spans the whole distance.
    """
    turn = crop_rotation[:, :, None]

    def into_target(value: Tensor) -> Tensor:
        value = torch.where(valid[:, :, None, None], value, torch.zeros_like(value))
        return torch.cat([rotate_6d(turn, value[:, :, :1]), value[:, :, 1:]], 2)

    pose, forward, backward = into_target(pose), into_target(forward), into_target(backward)
    index = torch.arange(pose.shape[1], device=pose.device)
    before, after = index < target[:, None], index > target[:, None]
    infinity = torch.full_like(offsets_s, torch.inf)
    following = torch.where(valid, offsets_s, infinity).flip(1).cummin(1).values.flip(1)
    preceding = torch.where(valid, offsets_s, -infinity).cummax(1).values
    nothing = torch.zeros_like(offsets_s[:, :1])
    ahead = torch.cat([following.diff(dim=1), nothing], 1) / gap_s
    behind = torch.cat([nothing, preceding.diff(dim=1)], 1) / gap_s
    forward = forward * torch.where(before, ahead, torch.zeros_like(ahead))[..., None, None]
    backward = backward * torch.where(after, behind, torch.zeros_like(behind))[..., None, None]
    # Sums from each frame up to the target: frames beyond the target add nothing.
    return pose + forward.flip(1).cumsum(1).flip(1) + backward.cumsum(1)


def fusion_weights(
    confidence: Tensor, valid: Tensor, target: Tensor, mode: FusionMode = "dynamic"
) -> Tensor:
    """Weight (B, T) of each frame's proposal, summing to one over the valid frames.

    "dynamic" is softmax of confidence (B, T) (eq. 3); "average" treats frames alike; "centre"
    takes the target frame alone. The last two exist to be measured against.
    """
    if mode not in get_args(FusionMode):
        raise HandPerceptionError(
            f"fusion mode is {mode!r}; allowed are {', '.join(get_args(FusionMode))}"
        )
    if mode == "centre":
        index = torch.arange(confidence.shape[1], device=confidence.device)
        return (index == target[:, None]).to(confidence.dtype)
    logits = confidence if mode == "dynamic" else torch.zeros_like(confidence)
    return logits.masked_fill(~valid, -torch.inf).softmax(1)


def fuse_poses(carried: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum (B, J, 6) of carried poses (B, T, J, 6) (eq. 3), not orthonormal."""
    return (carried * weights[..., None, None]).sum(1)


def window_slots(
    stamps_s: Sequence[float] | FloatArray,
    target: int,
    *,
    frames: int,
    gap_s: float,
    tolerance_s: float,
    end: int | None = None,
) -> tuple[list[int | None], int]:
    """Which of the frames with rising stamps form the window around frame `target`.

    Slots lie gap_s apart in time, one of them on the target; as many follow the target, up to
    half the window, as fit before frame `end` (exclusive; None: the target is the last known).
    A slot takes the nearest frame within tolerance_s that no other slot took, else it is None.
    Returns the T = `frames` slots and the slot of the target.
    """
    end = target + 1 if end is None else end
    moment = stamps_s[target]
    room = float(stamps_s[end - 1] - moment)
    after = min((frames - 1) // 2, int((room + tolerance_s) / gap_s + 1e-6)) if room > 0 else 0
    place = frames - 1 - after
    slots: list[int | None] = [None] * frames
    slots[place] = target
    for direction in (-1, 1):
        taken = target
        count = place if direction < 0 else after
        for step in range(1, count + 1):
            wanted = moment + direction * step * gap_s
            right = bisect_left(stamps_s, wanted, 0, end)
            near = [i for i in (right - 1, right) if 0 <= i < end]
            best = min(near, key=lambda i: abs(stamps_s[i] - wanted))
            fresh = (best - taken) * direction > 0
            if fresh and abs(stamps_s[best] - wanted) <= tolerance_s + 1e-9:
                slots[place + direction * step] = taken = best
    return slots, place


@dataclass(frozen=True)
class FrameFeatures:
    """What is kept of each frame; leading dimensions "..." are (B,) or (B, T)."""

    latent: Tensor
    """(..., D), the spatial transformer's one vector for the hand."""
    joints_2d: Tensor
    """(..., 21, 2) crop pixels, from the heatmaps."""
    intrinsics: Tensor
    """(..., 3, 3) of the crop camera, crop pixels."""
    presence: Tensor
    """(...,) probability that the crop holds a hand."""
    right_score: Tensor
    """(...,) probability that the crop shows a right hand."""

    def __getitem__(self, index: object) -> FrameFeatures:
        return FrameFeatures(*(getattr(self, f.name)[index] for f in fields(self)))

    def reshape(self, *lead: int) -> FrameFeatures:
        """The same with its first dimension viewed as the given ones."""
        values = (getattr(self, f.name) for f in fields(self))
        return FrameFeatures(*(value.reshape(*lead, *value.shape[1:]) for value in values))

    @staticmethod
    def cat(batches: Sequence[FrameFeatures]) -> FrameFeatures:
        """One batch of several."""
        return FrameFeatures(
            *(torch.cat([getattr(x, f.name) for x in batches]) for f in fields(FrameFeatures))
        )

    @staticmethod
    def stack(frames: Sequence[FrameFeatures]) -> FrameFeatures:
        """A new first dimension over equal records."""
        return FrameFeatures(
            *(torch.stack([getattr(x, f.name) for x in frames]) for f in fields(FrameFeatures))
        )


@dataclass(frozen=True)
class Frame:
    """One hand in one frame, as the buffer keeps it."""

    stamp_s: float
    features: FrameFeatures
    crop: Crop


@dataclass(frozen=True)
class Fused:
    """The result for one frame of one track; the hand lies in the frame of `crop`."""

    track_id: int
    stamp_s: float
    crop: Crop
    prediction: Prediction
    """Batch of one."""


class FrameBuffer:
    """The frames of one track, oldest first, no older than `history_s` before the newest."""

    def __init__(self, history_s: float) -> None:
        self.history_s = history_s
        self.frames: list[Frame] = []

    @property
    def stamps_s(self) -> list[float]:
        return [frame.stamp_s for frame in self.frames]

    def push(self, frame: Frame) -> None:
        """Append a frame newer than all others; forget those that are too old."""
        if self.frames and frame.stamp_s <= self.frames[-1].stamp_s:
            raise HandPerceptionError(
                f"stamp {frame.stamp_s} s is not after {self.frames[-1].stamp_s} s; "
                "frames of a track must come in order"
            )
        oldest = frame.stamp_s - self.history_s
        self.frames = [f for f in self.frames if f.stamp_s >= oldest]
        self.frames.append(frame)


class StreamingFusion:
    """Runs the temporal part of a Deformer over the latest frames of every track.

    Each frame is encoded once, outside; its features wait here. A window has `window` frames
    `gap_s` apart, chosen by stamp (nearest within `tolerance_s`, by default half a gap; missing
    ones are masked), so any frame rate and dropped frames work. `lag` 0 answers for the newest
    frame at once; n answers for the frame n frames back, having seen later ones. A stamp that
    does not rise, or more than `max_gap_s` without a frame, starts a track anew.
    """

    def __init__(
        self,
        network: Deformer,
        *,
        window: int = 7,
        gap_s: float = 1 / 15,
        lag: int = 0,
        max_gap_s: float = 0.5,
        tolerance_s: float | None = None,
        mode: FusionMode = "dynamic",
    ) -> None:
        if window < 1 or lag < 0 or gap_s <= 0 or max_gap_s <= 0:
            raise HandPerceptionError(
                f"window {window}, lag {lag}, gap_s {gap_s}, max_gap_s {max_gap_s}: the window is "
                "at least 1, the lag at least 0, both times are positive"
            )
        self.network = network
        self.window = window
        self.gap_s = gap_s
        self.lag = lag
        self.max_gap_s = max_gap_s
        self.tolerance_s = gap_s / 2 if tolerance_s is None else tolerance_s
        self.mode: FusionMode = mode
        self.tracks: dict[int, FrameBuffer] = {}
        self.latest_s = -np.inf

    def reset(self) -> None:
        """Forget every frame."""
        self.tracks.clear()
        self.latest_s = -np.inf

    def update(
        self,
        stamp_s: float,
        track_ids: Sequence[int],
        features: FrameFeatures | None,
        crops: Sequence[Crop],
    ) -> list[Fused]:
        """Take the hands of one image, features (N, ...), and answer for every track that can.

        A track whose lag is not filled yet gives nothing. Tracks not seen for max_gap_s go.
        """
        if len(track_ids) != len(crops) or len(set(track_ids)) != len(track_ids):
            raise HandPerceptionError(
                f"tracks {list(track_ids)} with {len(crops)} crops: one crop for each of "
                "different tracks is needed"
            )
        if not np.isfinite(stamp_s):
            raise HandPerceptionError(f"stamp is {stamp_s}; it must be a finite number of seconds")
        if stamp_s <= self.latest_s:
            self.reset()
        self.latest_s = stamp_s
        self.tracks = {
            track: buffer
            for track, buffer in self.tracks.items()
            if stamp_s - buffer.frames[-1].stamp_s <= self.max_gap_s
        }
        windows = []
        for row, (track, crop) in enumerate(zip(track_ids, crops, strict=True)):
            assert features is not None
            # Windows reach back over all slots from a target that lies `lag` frames back.
            history = self.window * self.gap_s + self.tolerance_s + self.lag * self.max_gap_s
            buffer = self.tracks.setdefault(track, FrameBuffer(history))
            buffer.push(Frame(stamp_s, features[row], crop))
            if len(buffer.frames) > self.lag:
                windows.append((track, buffer))
        return self._answer(windows) if windows else []

    def _answer(self, windows: Sequence[tuple[int, FrameBuffer]]) -> list[Fused]:
        rows, targets, moments, masks, turns, places = [], [], [], [], [], []
        for _, buffer in windows:
            at = len(buffer.frames) - 1 - self.lag
            slots, place = window_slots(
                buffer.stamps_s,
                at,
                frames=self.window,
                gap_s=self.gap_s,
                tolerance_s=self.tolerance_s,
                end=len(buffer.frames),
            )
            target = buffer.frames[at]
            chosen = [buffer.frames[at if slot is None else slot] for slot in slots]
            rows.append(FrameFeatures.stack([frame.features for frame in chosen]))
            targets.append(target)
            places.append(place)
            masks.append([slot is not None for slot in slots])
            moments.append([frame.stamp_s - target.stamp_s for frame in chosen])
            to_target = target.crop.M_camera_crop.T
            turns.append([to_target @ frame.crop.M_camera_crop for frame in chosen])
        features = FrameFeatures.stack(rows)
        device, dtype = features.latent.device, features.latent.dtype
        with torch.inference_mode():
            output = self.network.temporal(
                features,
                offsets_s=torch.tensor(moments, dtype=dtype, device=device),
                crop_rotation=torch.tensor(np.array(turns), dtype=dtype, device=device),
                valid=torch.tensor(masks, device=device),
                target=torch.tensor(places, device=device),
                mode=self.mode,
            )
            prediction = output.prediction()
        return [
            Fused(track, target.stamp_s, target.crop, prediction[row : row + 1])
            for row, ((track, _), target) in enumerate(zip(windows, targets, strict=True))
        ]
