"""Training sequences from real pictures that nobody annotated.

    python -m hand_perception.training.pseudo_labels DIR [DIR ...] --out DIR \\
        --config config/methods/deformer.yaml

The teacher is the landmark network, made steadier than a single look: each hand is seen in several
crops that are shifted, scaled, turned and mirrored, and the answers are averaged in the camera
frame. A hand is kept where the looks agree with each other and a fit of the hand model agrees with
them; the student then gets a crop of its own, as a tracker would cut it.
Lee, "Pseudo-Label", ICML workshop 2013; averaging over transformations: Radosavovic et al., "Data
Distillation", CVPR 2018.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from hand_perception.crops import crop_around, crop_to_image, image_to_crop
from hand_perception.detection import PalmDetector, box_from_landmarks
from hand_perception.fitting import HandFitter
from hand_perception.hand_model import HandModel
from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.networks.landmark_fit import LandmarkFit
from hand_perception.sources import camera_of_hfov, open_source
from hand_perception.training.data import write_store
from hand_perception.training.train import read_config
from hand_perception.types import SIDES, Box, Camera, Crop, FloatArray, Prediction, Side

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class TeacherOptions:
    """When a hand is good enough to learn from."""

    looks: int = 8
    """Crops that are averaged; every other one is mirrored."""
    min_presence: float = 0.9
    max_spread: float = 0.035
    """Mean distance of the looks' 2D joints from their mean, in parts of the hand's extent."""
    max_residual: float = 0.05
    """Mean distance of the fitted hand's picture from the 2D joints, likewise."""
    copies: int = 2
    """Student crops of each hand."""


class Teacher:
    """Turns pictures into sequences of one frame, as `training.data` stores them."""

    def __init__(self, options: TeacherOptions | None = None, seed: int = 0) -> None:
        self.options = options or TeacherOptions()
        self._detector = PalmDetector.load()
        self._network = LandmarkFit.load()
        self._model = HandModel.load()
        self._fitter = HandFitter(self._model)
        self._rng = np.random.default_rng(seed)

    def sequences(self, pictures: Iterable[tuple[Image, Camera]]) -> Iterator[dict[str, Any]]:
        """The hands of pictures (H, W, 3) uint8 RGB that can be trusted, `copies` times each."""
        for image, camera in pictures:
            for box in self._detector.detect(image):
                yield from self._hand(image, camera, box)

    @torch.inference_mode()
    def _hand(self, image: Image, camera: Camera, box: Box) -> Iterator[dict[str, Any]]:
        options = self.options
        first, crops = self._look(image, camera, [box])
        if float(first.presence[0]) < options.min_presence:
            return
        side: Side = "right" if float(first.right_score[0]) > 0.5 else "left"
        points = crop_to_image(first.joints_2d[0].double().numpy(), crops[0], camera)
        upright = replace(box_from_landmarks(points), side=side)
        looks = [
            self._shaken(replace(upright, side=s))
            for s in list(SIDES * options.looks)[: options.looks]
        ]
        seen, crops = self._look(image, camera, looks)
        if float(seen.presence.mean()) < options.min_presence:
            return
        flat = np.stack(
            [
                crop_to_image(p, c, camera)
                for p, c in zip(seen.joints_2d.double().numpy(), crops, strict=True)
            ]
        )
        solid = np.stack(
            [
                p @ c.M_camera_crop.T
                for p, c in zip(seen.joints_3d.double().numpy(), crops, strict=True)
            ]
        )
        joints_2d, joints_3d = np.median(flat, axis=0), np.median(solid, axis=0)
        extent = float(np.ptp(joints_2d, axis=0).max())
        spread = np.linalg.norm(flat - joints_2d, axis=-1).mean(axis=0) / extent
        if spread.mean() > options.max_spread:
            return
        for _ in range(options.copies):
            student = self._shaken(replace(box_from_landmarks(joints_2d), side=side), gentle=True)
            crop = crop_around(image, student, camera)
            sequence = self._labels(crop, camera, joints_2d, joints_3d, spread)
            if sequence is not None:
                yield sequence

    def _labels(
        self,
        crop: Crop,
        camera: Camera,
        joints_2d: FloatArray,
        joints_3d: FloatArray,
        spread: FloatArray,
    ) -> dict[str, Any] | None:
        points = image_to_crop(joints_2d, crop, camera)
        confidence = np.exp(-spread / 0.03)
        prediction = Prediction(
            joints_2d=_batch(points),
            joints_3d=_batch((joints_3d - joints_3d[0]) @ crop.M_camera_crop),
            joint_confidence=_batch(confidence),
            presence=torch.ones(1),
            right_score=torch.ones(1),
        )
        fit = self._fitter.fit(prediction, _batch(crop.intrinsics))
        extent = float(np.ptp(points, axis=0).max())
        agrees = float(fit.residual_px.mean()) <= self.options.max_residual * extent
        if not bool(fit.valid[0]) or not agrees:
            return None
        return {
            "image": crop.image[None],
            "intrinsics": crop.intrinsics[None],
            "M_camera_crop": crop.M_camera_crop[None],
            "time_s": np.zeros(1),
            "joints_2d": points[None],
            "global_orient": fit.global_orient.numpy(),
            "hand_pose": fit.hand_pose.numpy(),
            "betas": fit.betas.numpy(),
            "weight_2d": confidence[None],
            "weight_3d": np.full(1, 0.5),
        }

    def _look(
        self, image: Image, camera: Camera, boxes: list[Box]
    ) -> tuple[Prediction, list[Crop]]:
        crops = [crop_around(image, box, camera) for box in boxes]
        pixels = torch.from_numpy(np.stack([crop.image for crop in crops]))
        intrinsics = torch.from_numpy(np.stack([crop.intrinsics for crop in crops])).float()
        return self._network(pixels.permute(0, 3, 1, 2).float() / 255, intrinsics), crops

    def _shaken(self, box: Box, gentle: bool = False) -> Box:
        """The box moved, scaled and turned, as much as the network bears (gentle: as a tracker)."""
        rng, k = self._rng, 0.5 if gentle else 1.0
        shift = rng.normal(0, 0.04 * k, 2) * box.size
        return replace(
            box,
            center=(float(box.center[0] + shift[0]), float(box.center[1] + shift[1])),
            size=float(box.size * np.exp(rng.normal(0, 0.1 * k))),
            angle=float(box.angle + rng.normal(0, 0.2 * k)),
        )


def _batch(values: FloatArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()[None]


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Make a store of trusted hands of real pictures.")
    parser.add_argument("sources", nargs="+", help="folders of pictures, pictures or videos")
    parser.add_argument("--out", required=True, help="new folder for the store")
    parser.add_argument("--config", required=True, help="config/methods/<method>.yaml")
    parser.add_argument("--frames", type=int, default=20_000, help="crops at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = read_config(arguments.config)["network"]
    network = Deformer.build(DeformerConfig.from_dict(settings)).eval()
    teacher = Teacher(seed=arguments.seed)
    used = write_store(
        arguments.out, teacher.sequences(_pictures(arguments.sources)), arguments.frames, network
    )
    print(f"{used} crops in {arguments.out}")


def _pictures(sources: Iterable[str]) -> Iterator[tuple[Image, Camera]]:
    for name in sources:
        source = open_source(name)
        for frame in track(source, description=source.name, total=source.count):
            height, width = frame.image_rgb.shape[:2]
            yield frame.image_rgb, frame.camera or camera_of_hfov(width, height)


if __name__ == "__main__":
    main()
