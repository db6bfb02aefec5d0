"""The records that every room exchanges: units, frames and shapes are said once, here.

Metres, radians, seconds, pixels. `T_a_b` and `R_a_b` map points in frame b into frame a.
The camera frame is the ROS optical frame: x right, y down, z forward.
Image pixels follow OpenCV and ROS: the centre of the first pixel is (0, 0).
Crop pixels are continuous: the crop spans [0, S], the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")

FloatArray = NDArray[np.floating]


class HandPerceptionError(ValueError):
    """Bad input or configuration; the message says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with plumb_bob distortion (k1, k2, p1, p2[, k3[, k4, k5, k6]])."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise HandPerceptionError(
                f"camera size is {self.width}x{self.height}; width and height must be positive"
            )
        values = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.all(np.isfinite(values)):
            raise HandPerceptionError(
                f"camera intrinsics or distortion are not finite: {values}; all must be finite"
            )
        if self.fx <= 0 or self.fy <= 0:
            raise HandPerceptionError(
                f"camera is not calibrated: fx={self.fx}, fy={self.fy}; both must be positive"
            )
        if len(self.distortion) not in (0, 4, 5, 8):
            raise HandPerceptionError(
                f"distortion has {len(self.distortion)} coefficients; plumb_bob takes 0, 4, 5 or 8"
            )

    @property
    def intrinsics(self) -> FloatArray:
        """The camera matrix K, (3, 3)."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Box:
    """A square around one hand, turned so that the hand points up in its crop."""

    center: tuple[float, float]
    """Image pixels."""
    size: float
    """Side length, image pixels."""
    angle: float = 0.0
    """Clockwise turn of the square in the image, radians; 0 when the fingers point up."""
    side: Side | None = None
    """Which hand, or None when that is not known yet."""
    score: float = 1.0
    track_id: int = -1
    """Identity of the track that the box belongs to, -1 for a fresh detection."""


@dataclass(frozen=True)
class Crop:
    """A virtual pinhole camera that looks straight at one hand, and the picture it sees.

    A left hand is mirrored, so that every network sees right hands. Points in the crop frame
    are `X_camera = R_camera_crop @ diag(-1 if mirrored else 1, 1, 1) @ X_crop`: same centre of
    projection, no translation.
    """

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    intrinsics: FloatArray
    """(3, 3), in crop pixels; the same for a mirrored crop, whose principal point is central."""
    R_camera_crop: FloatArray
    """(3, 3), a proper rotation."""
    mirrored: bool
    box: Box

    @property
    def M_camera_crop(self) -> FloatArray:
        """The (3, 3) map from the (perhaps mirrored) crop frame into the camera frame."""
        return self.R_camera_crop @ np.diag([-1.0 if self.mirrored else 1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Prediction:
    """What a network says of B crops, every hand as a right hand in its crop frame.

    What a method cannot give is None; the pipeline solves for it (root depth always, pose and
    mesh by a fit of the hand model).
    """

    joints_2d: torch.Tensor
    """(B, 21, 2) crop pixels."""
    joints_3d: torch.Tensor
    """(B, 21, 3) metres, relative to the wrist."""
    joint_confidence: torch.Tensor
    """(B, 21) in [0, 1]."""
    presence: torch.Tensor
    """(B,) probability that the crop holds a hand."""
    right_score: torch.Tensor
    """(B,) probability that the crop, as the network saw it, shows a right hand."""
    global_orient: torch.Tensor | None = None
    """(B, 3) axis-angle of the wrist."""
    hand_pose: torch.Tensor | None = None
    """(B, 15, 3) axis-angle of the finger joints, MANO order."""
    betas: torch.Tensor | None = None
    """(B, 10) shape."""
    latent: torch.Tensor | None = None
    """(B, D) what a temporal method keeps of a frame."""

    def __getitem__(self, rows: slice | list[int]) -> Prediction:
        """The same of some crops."""
        columns = [getattr(self, f.name) for f in fields(self)]
        picked: list[Any] = [None if column is None else column[rows] for column in columns]
        return Prediction(*picked)

    @staticmethod
    def cat(predictions: Sequence[Prediction]) -> Prediction:
        """One batch of several; a field that any of them lacks is None."""
        columns = [[getattr(p, f.name) for p in predictions] for f in fields(Prediction)]
        joined: list[Any] = [None if any(v is None for v in c) else torch.cat(c) for c in columns]
        return Prediction(*joined)


@dataclass(frozen=True)
class HandPose:
    """One hand of one frame, in the camera frame."""

    side: Side
    score: float
    """Probability that this is a hand, [0, 1]."""
    joints_3d: FloatArray
    """(21, 3) metres."""
    joints_2d: FloatArray
    """(21, 2) image pixels."""
    joint_confidence: FloatArray
    """(21,) in [0, 1]."""
    vertices: FloatArray
    """(V, 3) metres; the faces are the hand model's."""
    global_orient: FloatArray
    """(3,) axis-angle: the model frame in the camera frame."""
    hand_pose: FloatArray
    """(15, 3) axis-angle, MANO joint order."""
    betas: FloatArray
    """(10,) shape coefficients."""
    transl: FloatArray
    """(3,) metres; the model's translation, MANO convention."""
    T_camera_wrist: FloatArray
    """(4, 4): origin in the wrist joint, axes of the hand model."""
    joint_angles: FloatArray
    """(22,) anatomical angles, radians, named by `skeleton.ANGLE_NAMES`."""
    track_id: int = -1


@dataclass(frozen=True)
class ObjectPose:
    """One rigid object of one frame, in the camera frame."""

    name: str
    score: float
    T_camera_object: FloatArray
    """(4, 4)."""
    extents: FloatArray
    """(3,) size of the box around the object in its own frame, metres."""


@dataclass(frozen=True)
class Scene:
    """Everything found in one image; `stamp_s` is the stamp of that image, seconds."""

    stamp_s: float
    hands: list[HandPose] = field(default_factory=list)
    objects: list[ObjectPose] = field(default_factory=list)
