"""Errors on held-out synthetic windows: fusion modes, single frames and the landmark network.

    python -m hand_perception.evaluation.held_out --weights models/deformer/deformer.safetensors \\
        --stores DIR... --out DIR [--centred] [--limit FRAMES] [--seed 0]

Stores are those of `training.data`, never trained on. Every method answers for the same target
frames, in the target's crop frame, and is compared with the wrists in one place:

    landmarks     the landmark network's own 3D and 2D joints, knuckles brought to our joints
    landmark_fit  the hand model fitted to them, frame by frame
    monocular     the Deformer's answer from each frame alone
    dynamic, average, centre   the Deformer over windows, by the way in which it fuses poses
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hand_perception.evaluation import metrics
from hand_perception.fitting import HandFitter
from hand_perception.fusion import FusionMode, fuse_poses, fusion_weights
from hand_perception.geometry import (
    axis_angle_to_matrix,
    rotation_6d_to_matrix,
)
from hand_perception.hand_model import HandModel
from hand_perception.networks.deformer import Deformer, DeformerOutput
from hand_perception.networks.landmark_fit import joint_confidence, to_joint_centers
from hand_perception.skeleton import TIPS
from hand_perception.training.data import FrameStore, network_input
from hand_perception.types import FloatArray, HandPerceptionError, Prediction

LEVELS = {"0-25": (0.0, 0.25), "25-50": (0.25, 0.5), "50-75": (0.5, 0.75), "75-100": (0.75, 1.0)}
"""Occlusion levels: the hidden share of a hand's pixels, percent; a border belongs to the upper."""
MODES: tuple[FusionMode, ...] = ("dynamic", "average", "centre")
WINDOW = 7
BATCH = 32
UNEVEN = 1.5
"""A step of time this many times the median one breaks the even rate that accelerations need."""


@dataclass(frozen=True)
class Hands:
    """What a method says of N crops, crop frame."""

    joints: FloatArray
    """(N, 21, 3) metres."""
    joints_2d: FloatArray
    """(N, 21, 2) crop pixels."""
    vertices: FloatArray | None = None
    """(N, V, 3) metres."""


def sample_errors(
    predicted: Hands, truth: Hands, marked: FloatArray | None = None
) -> dict[str, FloatArray]:
    """Errors (N,) of each hand: `mpjpe_mm`, `pa_mpjpe_mm`, `fingertips_mm`, `mpvpe_mm` where both
    have meshes (wrists in one place, but for pa_mpjpe_mm), and `error_2d_percent` of the longer
    side of the true 2D joints' box, over joints where marked (N, 21) is not zero."""
    joints = metrics.root_relative(predicted.joints)
    known = metrics.root_relative(truth.joints)
    distances = metrics.point_errors_mm(joints, known)
    aligned = metrics.point_errors_mm(metrics.align_procrustes(joints, known), known)
    size = (truth.joints_2d.max(-2) - truth.joints_2d.min(-2)).max(-1)
    flat = 100 * metrics.normalized_errors_2d(predicted.joints_2d, truth.joints_2d, size)
    counted = np.ones(flat.shape, bool) if marked is None else np.asarray(marked) > 0
    total = np.where(counted, flat, 0.0).sum(-1)
    errors = {
        "mpjpe_mm": distances.mean(-1),
        "pa_mpjpe_mm": aligned.mean(-1),
        "fingertips_mm": distances[..., list(TIPS)].mean(-1),
        "error_2d_percent": np.where(
            counted.any(-1), total / np.maximum(counted.sum(-1), 1), np.nan
        ),
    }
    if predicted.vertices is not None and truth.vertices is not None:
        mesh = predicted.vertices - predicted.joints[:, :1]
        errors["mpvpe_mm"] = metrics.point_errors_mm(
            mesh, truth.vertices - truth.joints[:, :1]
        ).mean(-1)
    return errors


def by_level(values: FloatArray, occlusion: FloatArray) -> dict[str, float | None]:
    """Mean of values (N,) over all and over each level of occlusion (N,) in [0, 1]; NaN is left
    out, and a level without values is None."""
    answer: dict[str, float | None] = {}
    for name, inside in _cells(occlusion).items():
        kept = values[inside & np.isfinite(values)]
        answer[name] = float(kept.mean()) if kept.size else None
    return answer


def samples_by_level(occlusion: FloatArray) -> dict[str, int]:
    """How many hands there are in all and at each level of occlusion (N,) in [0, 1]."""
    return {name: int(inside.sum()) for name, inside in _cells(occlusion).items()}


def evaluate(
    weights: Path | str,
    stores: Sequence[Path | str],
    *,
    modes: Sequence[FusionMode] = MODES,
    causal: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`evaluate_network` of a weight file, which is named in the answer."""
    answer = evaluate_network(
        Deformer.load(weights), stores, modes=modes, causal=causal, limit=limit, seed=seed
    )
    return {"weights": Path(weights).name} | answer


@torch.inference_mode()
def evaluate_network(
    network: Deformer,
    stores: Sequence[Path | str],
    *,
    modes: Sequence[FusionMode] = MODES,
    causal: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Errors of all methods on the labelled frames of stores.

    Windows have 7 frames, the network's gap_s apart; `causal` ones end with their target, others
    see later frames too. `limit` stops drawing whole sequences (by seed) at so many frames.
    Returns {"causal", "stores", "sequences", "samples": {level: count}, "methods": {name:
    {metric: {"all" or level: mean or None}, "acceleration_error_m_s2": mean or None}}}. Methods
    that read the landmark network are there where the stores hold its cached answer.
    Raises HandPerceptionError for no store, an unknown mode, a limit below 1, no labelled frame.
    """
    if not stores:
        raise HandPerceptionError("no store is given; at least one is needed")
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise HandPerceptionError(f"fusion modes {unknown} are unknown; allowed are {list(MODES)}")
    if limit is not None and limit < 1:
        raise HandPerceptionError(f"limit is {limit}; at least one frame is needed")
    opened = [FrameStore(path) for path in stores]
    clips = _draw(opened, limit, seed)
    judge = _Judge(network, modes)
    for which, frames in clips:
        judge.add_clip(opened[which], frames, causal)
    return {
        "causal": causal,
        "stores": [Path(path).name for path in stores],
        "sequences": len(clips),
        "samples": samples_by_level(judge.occlusion),
        "methods": judge.table(),
    }


def markdown(answer: Mapping[str, Any]) -> str:
    """The answer of `evaluate` as tables, one a metric, one row a method."""
    lines = [
        f"{answer['samples']['all']} frames of {answer['sequences']} held-out sequences, "
        f"{'causal' if answer['causal'] else 'centred'} windows; columns: share of the hand that "
        "is hidden, percent.",
        "",
    ]
    levels = list(answer["samples"])
    head = "| | " + " | ".join(levels) + " |"
    rule = "|---|" + "---:|" * len(levels)
    titles = {
        "mpjpe_mm": "MPJPE, mm",
        "pa_mpjpe_mm": "PA-MPJPE, mm",
        "mpvpe_mm": "MPVPE, mm",
        "fingertips_mm": "Fingertips, mm",
        "error_2d_percent": "2D error, % of the hand's extent",
    }
    for metric, title in titles.items():
        lines += [f"**{title}**", "", head, rule]
        for name, errors in answer["methods"].items():
            if metric in errors:
                cells = " | ".join(_shown(errors[metric][level]) for level in levels)
                lines.append(f"| {name} | {cells} |")
        counts = " | ".join(str(count) for count in answer["samples"].values())
        lines += [f"| frames | {counts} |", ""]
    lines += ["**Acceleration error, m/s²**", "", "| | all |", "|---|---:|"]
    for name, errors in answer["methods"].items():
        lines.append(f"| {name} | {_shown(errors['acceleration_error_m_s2'])} |")
    return "\n".join(lines) + "\n"


class _Judge:
    # Runs the methods on clips and keeps the errors of every frame.

    def __init__(self, network: Deformer, modes: Sequence[FusionMode]) -> None:
        self.network, self.model, self.modes = network, network.hand_model, modes
        self.fitter = HandFitter(self.model)
        self.errors: dict[str, dict[str, list[FloatArray]]] = defaultdict(lambda: defaultdict(list))
        self.accelerations: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.occlusions: list[FloatArray] = []

    @property
    def occlusion(self) -> FloatArray:
        return np.concatenate(self.occlusions)

    def add_clip(self, store: FrameStore, frames: list[int], causal: bool) -> None:
        nothing = np.zeros(WINDOW, bool)
        gap_s = self.network.config.gap_s
        windows = [
            store.window(frame, frames=WINDOW, gap_s=gap_s, lookahead=not causal, drop=nothing)
            for frame in frames
        ]
        batch = {
            name: torch.from_numpy(np.stack([window[name] for window in windows]))
            for name in windows[0]
        }
        known = _truth(batch, self.model)
        marked = _of_target(batch, "weight_2d").numpy()
        self.occlusions.append(_of_target(batch, "occlusion").numpy())
        crops = np.asarray(store.arrays["M_camera_crop"][frames], np.float64)
        fps = _even_rate(store.time_s[frames])
        for name, hands in self._answers(batch).items():
            for metric, values in sample_errors(hands, known, marked).items():
                self.errors[name][metric].append(values)
            if fps is not None:
                moved, true = (_in_camera(h.joints, crops) for h in (hands, known))
                error = metrics.acceleration_error_m_s2(moved, true, fps)
                self.accelerations[name].append((error, len(frames) - 2))

    def _answers(self, batch: Mapping[str, Tensor]) -> dict[str, Hands]:
        rows, target = torch.arange(len(batch["target"])), batch["target"]
        output = _forward(self.network, batch)
        answers = self._landmarks(batch) if "world" in batch else {}
        assert output.frame_pose is not None and output.frame_betas is not None
        alone = rotation_6d_to_matrix(output.frame_pose[rows, target])
        answers["monocular"] = self._posed(
            alone, output.frame_betas[rows, target], output.frame_joints_2d[rows, target]
        )
        for mode in self.modes:
            share = fusion_weights(output.confidence, batch["valid"], target, mode)
            fused = rotation_6d_to_matrix(fuse_poses(output.carried, share))
            answers[mode] = self._posed(fused, output.betas, output.joints_2d)
        return answers

    def _landmarks(self, batch: Mapping[str, Tensor]) -> dict[str, Hands]:
        intrinsics, presence = _of_target(batch, "intrinsics"), _of_target(batch, "presence")
        joints_2d = to_joint_centers(_of_target(batch, "screen")[..., :2])
        world = _of_target(batch, "world")
        joints = to_joint_centers(world - world[:, :1])
        presence = presence.to(joints.dtype)
        prediction = Prediction(
            joints_2d=joints_2d,
            joints_3d=joints,
            joint_confidence=joint_confidence(joints_2d, joints, presence, intrinsics),
            presence=presence,
            right_score=_of_target(batch, "right_score").to(joints.dtype),
        )
        fit = self.fitter.fit(prediction, intrinsics)
        pose = torch.cat([fit.global_orient[:, None], fit.hand_pose], 1)
        return {
            "landmarks": Hands(_array(joints), _array(joints_2d)),
            "landmark_fit": self._posed(axis_angle_to_matrix(pose), fit.betas, joints_2d),
        }

    def _posed(self, rotations: Tensor, betas: Tensor, joints_2d: Tensor) -> Hands:
        return _hands(self.model, rotations, betas, joints_2d)

    def table(self) -> dict[str, dict[str, Any]]:
        answer: dict[str, dict[str, Any]] = {}
        for name, errors in self.errors.items():
            answer[name] = {
                metric: by_level(np.concatenate(parts), self.occlusion)
                for metric, parts in errors.items()
            }
            runs = self.accelerations[name]
            frames = sum(count for _, count in runs)
            mean = sum(error * count for error, count in runs) / frames if frames else None
            answer[name]["acceleration_error_m_s2"] = mean
        return answer


def _draw(
    stores: Sequence[FrameStore], limit: int | None, seed: int
) -> list[tuple[int, list[int]]]:
    # Labelled frames of whole sequences, cut to at most BATCH frames: (store, frames).
    clips = []
    for which, store in enumerate(stores):
        labelled = np.asarray(store.arrays["weight_3d"][: len(store)]) > 0
        for start, end in store.sequences:
            for first in range(start, end, BATCH):
                frames = [f for f in range(first, min(first + BATCH, end)) if labelled[f]]
                if frames:
                    clips.append((which, frames))
    if not clips:
        raise HandPerceptionError("the stores hold no frame with a 3D label; nothing to measure")
    if limit is None:
        return clips
    order = np.random.default_rng(seed).permutation(len(clips))
    counts = np.cumsum([len(clips[i][1]) for i in order])
    enough = int(np.searchsorted(counts, limit)) + 1
    return [clips[i] for i in sorted(order[:enough].tolist())]


def _forward(network: Deformer, batch: Mapping[str, Tensor]) -> DeformerOutput:
    return network(
        network_input(batch),
        batch["intrinsics"],
        offsets_s=batch["offsets_s"],
        crop_rotation=batch["crop_rotation"],
        valid=batch["valid"],
        target=batch["target"],
    )


def _of_target(batch: Mapping[str, Tensor], name: str) -> Tensor:
    return batch[name][torch.arange(len(batch["target"])), batch["target"]]


def _truth(batch: Mapping[str, Tensor], model: HandModel) -> Hands:
    pose = torch.cat(
        [_of_target(batch, "global_orient")[:, None], _of_target(batch, "hand_pose")], 1
    )
    return _hands(
        model,
        axis_angle_to_matrix(pose),
        _of_target(batch, "betas"),
        _of_target(batch, "joints_2d"),
    )


def _hands(model: HandModel, rotations: Tensor, betas: Tensor, joints_2d: Tensor) -> Hands:
    posed = model.with_shape(betas).with_rotations(rotations)
    return Hands(_array(posed.joints), _array(joints_2d), _array(posed.mesh()))


def _in_camera(joints: FloatArray, M_camera_crop: FloatArray) -> FloatArray:
    return metrics.root_relative(joints) @ np.swapaxes(M_camera_crop, -1, -2)


def _even_rate(time_s: FloatArray) -> float | None:
    # Frames a second, or None where there are too few or some are missing.
    steps = np.diff(time_s)
    if len(steps) < 2 or steps.max() > UNEVEN * np.median(steps):
        return None
    return float(1 / np.median(steps))


def _cells(occlusion: FloatArray) -> dict[str, Any]:
    cells = {"all": np.ones(len(occlusion), bool)}
    for name, (low, high) in LEVELS.items():
        top = math.inf if high == 1.0 else high
        cells[name] = (occlusion >= low) & (occlusion < top)
    return cells


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().cpu().double().numpy()


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Errors on held-out synthetic windows.")
    parser.add_argument("--weights", required=True, help="safetensors file of a Deformer")
    parser.add_argument("--stores", nargs="+", required=True, help="folders of training.data")
    parser.add_argument("--out", type=Path, required=True, help="for held_out.json and .md")
    parser.add_argument("--centred", action="store_true", help="windows see later frames too")
    parser.add_argument("--limit", type=int, help="about so many frames")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    answer = evaluate(
        arguments.weights,
        arguments.stores,
        causal=not arguments.centred,
        limit=arguments.limit,
        seed=arguments.seed,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "held_out.json").write_text(json.dumps(answer, indent=1) + "\n")
    table = markdown(answer)
    (arguments.out / "held_out.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
