"""What each method is trained for: its network, losses, adversary, measures and picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hand_perception.geometry import align, rotation_6d_to_matrix
from hand_perception.networks.deformer import Deformer, DeformerConfig, DeformerOutput
from hand_perception.skeleton import BONES
from hand_perception.training.data import network_input
from hand_perception.training.discriminator import MotionDiscriminator
from hand_perception.training.losses import (
    WindowTruth,
    deformer_losses,
    discriminator_loss,
    generator_loss,
    motion_sequence,
)


class Objective(Protocol):
    """What `train.Trainer` asks of a method."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def adversary(self) -> nn.Module | None:
        """What is trained against it, if anything."""

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Weighted terms by name, whose sum is minimised, and what `adversary_loss` needs."""

    def adversary_loss(self, batch: Mapping[str, Tensor], output: Any) -> Tensor:
        """What the adversary minimises; `output` is detached from the network's graph by it."""

    def measure(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors of the network on a batch, by name and unit."""

    def picture(self, batch: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Truth and prediction of some of a batch, (H, W, 3) RGB."""

    def metadata(self) -> dict[str, str]:
        """What a weight file must say for the network's `load`."""


class DeformerObjective:
    """The Deformer's losses (eq. 4); `config` is a method's yaml: network, losses, adversary."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.network = Deformer.build(DeformerConfig.from_dict(config["network"]))
        self.weights: dict[str, float] = dict(config["losses"])
        adversary = config.get("adversary")
        self.adversary = MotionDiscriminator(**adversary) if adversary else None

    def _output(self, batch: Mapping[str, Tensor]) -> DeformerOutput:
        return self.network(
            network_input(batch),
            batch["intrinsics"],
            offsets_s=batch["offsets_s"],
            crop_rotation=batch["crop_rotation"],
            valid=batch["valid"],
            target=batch["target"],
        )

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], DeformerOutput]:
        """See `Objective`."""
        output = self._output(batch)
        config = self.network.config
        terms = deformer_losses(
            output,
            WindowTruth.of(batch),
            batch,
            self.network.hand_model,
            self.weights,
            size=config.image_size,
            gap_s=config.gap_s,
        )
        weight = self.weights.get("adversarial", 0.0)
        if self.adversary is not None and weight > 0:
            motion = motion_sequence(rotation_6d_to_matrix(output.pose))
            terms["adversarial"] = weight * generator_loss(self.adversary(motion, batch["valid"]))
        return terms, output

    def adversary_loss(self, batch: Mapping[str, Tensor], output: DeformerOutput) -> Tensor:
        """See `Objective`; true motions are the batch's own."""
        assert self.adversary is not None
        fake = motion_sequence(rotation_6d_to_matrix(output.pose.detach()))
        real = motion_sequence(WindowTruth.of(batch).rotations)
        valid = batch["valid"]
        return discriminator_loss(self.adversary(real, valid), self.adversary(fake, valid))

    @torch.no_grad()
    def measure(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the target frames: MPJPE after moving the wrist (mpjpe_mm) and after Procrustes
        (pa_mpjpe_mm), 2D error (px), and MPJPE of the target's own, unfused pose (centre_mm)."""
        output = self._output(batch)
        rows, target = torch.arange(len(batch["target"])), batch["target"]
        truth = WindowTruth.of(batch)
        model = self.network.hand_model
        hand = model.with_shape(truth.betas[rows, target])
        known = hand.with_rotations(truth.rotations[rows, target]).joints
        known = known - known[:, :1]
        single = rotation_6d_to_matrix(output.pose[rows, target])
        centre = model.with_shape(output.betas).with_rotations(single).joints
        centre = centre - centre[:, :1]

        def mean_mm(points: Tensor) -> float:
            return 1000 * float((points - known).norm(dim=-1).mean())

        joints_2d = (output.joints_2d - batch["joints_2d"][rows, target]).norm(dim=-1)
        return {
            "mpjpe_mm": mean_mm(output.joints_3d),
            "pa_mpjpe_mm": mean_mm(align(output.joints_3d, known)),
            "centre_mpjpe_mm": mean_mm(centre),
            "joints_2d_px": float(joints_2d.mean()),
        }

    @torch.no_grad()
    def picture(self, batch: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Skeletons of up to eight target frames: truth green, prediction red."""
        output = self._output(batch)
        size = self.network.config.image_size
        tiles = []
        for row in range(min(8, len(batch["target"]))):
            at = int(batch["target"][row])
            blank = torch.zeros(size, size, 3, dtype=torch.uint8)
            image = batch["image"][row, at] if "image" in batch else blank
            tile = np.ascontiguousarray(image.cpu().numpy())
            for joints, colour in (
                (batch["joints_2d"][row, at], (0, 255, 0)),
                (output.joints_2d[row], (255, 0, 0)),
            ):
                points = np.clip(joints.cpu().numpy(), -1e4, 1e4).round().astype(int).tolist()
                for parent, child in BONES:
                    cv2.line(tile, points[parent], points[child], colour, 1)
            tiles.append(tile)
        return np.concatenate(tiles, axis=1)

    def metadata(self) -> dict[str, str]:
        """See `Objective`."""
        return self.network.metadata()


OBJECTIVES: dict[str, Callable[[Mapping[str, Any]], Objective]] = {
    "deformer": DeformerObjective,
    "deformer_resnet50": DeformerObjective,
}
"""Method -> its objective, made from the method's yaml."""
