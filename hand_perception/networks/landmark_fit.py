"""landmark_fit: MediaPipe's landmark network as a method; the pipeline fits the hand model.

The baseline of all later methods (Zhang et al., MediaPipe Hands, 2020).
Weights: `models/landmarks`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hand_perception.camera import project_points, solve_translation
from hand_perception.networks.layers import LandmarkNetwork
from hand_perception.skeleton import KNUCKLE_SHARE
from hand_perception.types import Prediction

AGREEMENT = 0.06
"""Distance between the 2D and 3D answer, in hand extents, at which a joint's confidence is 0.6."""
RIM = 8.0
"""Crop pixels beyond its border over which the confidence of a joint fades out."""


class LandmarkFit(nn.Module):
    """2D joints, root-relative 3D joints, presence and side from one crop; no pose, no mesh."""

    def __init__(self, network: LandmarkNetwork | None = None) -> None:
        super().__init__()
        self.network = network or LandmarkNetwork()

    def forward(self, images: Tensor, intrinsics: Tensor) -> Prediction:
        """Joints of crops.

        images (B, 3, 224, 224) RGB in [0, 1]; intrinsics (B, 3, 3), crop pixels. The network's
        3D is metric for a mean hand and has the axes of the crop; its handedness score is already
        the probability of a right hand in a picture that nobody has mirrored (right hands of
        FreiHAND photos score 0.99, mirrored 0.01; MediaPipe's labels assume selfies).
        """
        landmarks = self.network(images)
        joints_2d = to_joint_centers(landmarks.screen[..., :2])
        joints_3d = to_joint_centers(landmarks.world - landmarks.world[:, :1])
        return Prediction(
            joints_2d=joints_2d,
            joints_3d=joints_3d,
            joint_confidence=joint_confidence(joints_2d, joints_3d, landmarks.presence, intrinsics),
            presence=landmarks.presence,
            right_score=landmarks.handedness,
        )

    @classmethod
    def load(cls, models_dir: Path | None = None) -> LandmarkFit:
        """The pretrained method in eval mode; None takes the shipped weights."""
        path = models_dir and models_dir / "landmarks/hand_landmark.safetensors"
        return cls(LandmarkNetwork.load(path)).eval()


def to_joint_centers(landmarks: Tensor) -> Tensor:
    """The network's landmarks (..., 21, C) with the fingers' bases moved to the joints' centres.

    Linear, hence the same rule in 3D and in a picture.
    """
    bases = list(KNUCKLE_SHARE)
    share = landmarks.new_tensor(list(KNUCKLE_SHARE.values()))[:, None]
    joints = landmarks.clone()
    following = landmarks[..., [base + 1 for base in bases], :]
    joints[..., bases, :] = (landmarks[..., bases, :] - share * following) / (1 - share)
    return joints


def joint_confidence(
    joints_2d: Tensor, joints_3d: Tensor, presence: Tensor, intrinsics: Tensor
) -> Tensor:
    """Confidence (B, 21) in [0, 1]: presence x agreement x being inside of the crop.

    The network gives none for single joints. Its 2D and 3D come from separate heads, so where
    they disagree (hidden, blurred, unusual) at least one of them is wrong: the 3D joints are moved
    to where they project best onto the 2D ones, and the distance r that stays, in parts of the
    hand's extent in the crop, counts `exp(-(r / AGREEMENT)^2 / 2)`. A proxy, no calibrated
    probability.
    joints_2d (B, 21, 2) and intrinsics (B, 3, 3) crop pixels, joints_3d (B, 21, 3), presence (B,).
    """
    size = 2 * intrinsics[:, :2, 2]
    t = solve_translation(joints_2d, joints_3d, intrinsics, rounds=0)
    projected = project_points(joints_3d + t[:, None], intrinsics)
    distance = (projected - joints_2d).norm(dim=-1)
    extent = (joints_2d.amax(dim=1) - joints_2d.amin(dim=1)).amax(dim=1, keepdim=True)
    agreement = torch.exp(-0.5 * (distance / (AGREEMENT * extent)).square())
    outside = torch.maximum(-joints_2d, joints_2d - size[:, None]).amax(dim=-1).clamp(min=0.0)
    inside = (1.0 - outside / RIM).clamp(min=0.0)
    return presence[:, None] * agreement * inside
