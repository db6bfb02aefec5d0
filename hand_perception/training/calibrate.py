"""Calibrate a Deformer's per-joint confidence on held-out windows.

    python -m hand_perception.training.calibrate --weights IN --stores DIR... --out OUT \\
        [--plot PNG] [--limit FRAMES] [--seed 0]

`networks.deformer.joint_confidence` is the probability that a joint's 2D error is below 10 % of
the hand's size. One temperature, which scales every predicted variance, is set to make that event
most likely (temperature scaling, Guo et al., "On Calibration of Modern Neural Networks", ICML
2017, carried over from logits to variances). Nothing else in the weight file changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import Tensor

from hand_perception.networks.deformer import Deformer, joint_confidence
from hand_perception.training.data import FrameStore, network_input
from hand_perception.types import FloatArray, HandPerceptionError

REACH = 0.1
"""Share of the hand's size within which a joint counts as right, as in `joint_confidence`."""
RANGE = (1e-3, 1e3)
"""Temperatures that are looked at."""
BINS = 10
WINDOW = 7
BATCH = 32


@dataclass(frozen=True)
class Residuals:
    """What N hands' 2D joints are predicted to be, and whether they are."""

    joints: Tensor
    """(N, 21, 2) predicted, in parts of the crop's side."""
    log_var: Tensor
    """(N, 21) log of the variance per axis, square parts of the crop's side."""
    right: Tensor
    """(N, 21) bool: the error is below REACH of the predicted hand's size."""
    marked: Tensor
    """(N, 21) bool: the label counts."""

    @classmethod
    def of(cls, joints: Tensor, log_var: Tensor, truth: Tensor, marked: Tensor) -> Residuals:
        """From predicted and true joints (N, 21, 2), parts of the crop's side."""
        size = (joints.amax(-2) - joints.amin(-2)).amax(-1, keepdim=True)
        return cls(joints, log_var, (joints - truth).norm(dim=-1) < REACH * size, marked)

    def confidence(self, temperature: float) -> tuple[FloatArray, FloatArray]:
        """Confidence at a temperature and 1 or 0 for right or wrong, of the marked joints, (M,)."""
        scale = torch.tensor(temperature, dtype=torch.float64)
        said = joint_confidence(self.joints.double(), self.log_var.double(), scale)
        return said[self.marked].numpy(), self.right[self.marked].double().numpy()


@dataclass(frozen=True)
class Reliability:
    """How far confidence keeps its word, in BINS equal steps of confidence."""

    said: FloatArray
    """(BINS,) mean confidence; NaN in an empty bin."""
    right: FloatArray
    """(BINS,) fraction of right joints."""
    count: FloatArray
    """(BINS,) joints."""

    @classmethod
    def of(cls, said: FloatArray, right: FloatArray) -> Reliability:
        """From confidences (M,) in [0, 1] and what came true (M,), 0 or 1."""
        place = np.minimum((said * BINS).astype(int), BINS - 1)
        count = np.bincount(place, minlength=BINS).astype(float)
        some = np.where(count > 0, count, np.nan)
        return cls(
            np.bincount(place, said, BINS) / some, np.bincount(place, right, BINS) / some, count
        )

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance between the two, each bin by its joints."""
        gaps = np.where(self.count > 0, np.abs(self.said - self.right), 0.0)
        return float((gaps * self.count).sum() / self.count.sum())


def negative_log_likelihood(said: FloatArray, right: FloatArray) -> float:
    """Mean of -log of the probability given to what came true."""
    said = np.clip(said, 1e-6, 1 - 1e-6)
    return float(-(right * np.log(said) + (1 - right) * np.log(1 - said)).mean())


def best_temperature(residuals: Residuals) -> float:
    """The temperature at which what happened was most likely.

    Raises HandPerceptionError where no joint is marked or one of the numbers is not finite.
    """
    said, _ = residuals.confidence(1.0)
    if not said.size or not np.isfinite(said).all():
        raise HandPerceptionError(
            f"{said.size} labelled joints, {int((~np.isfinite(said)).sum())} of them with "
            "confidences that are not finite: at least one is needed, and all finite"
        )

    def cost(log_temperature: float) -> float:
        return negative_log_likelihood(*residuals.confidence(float(np.exp(log_temperature))))

    # A coarse look first: far off, where all probabilities saturate, the cost is flat.
    grid = np.log(np.geomspace(*RANGE, 57))
    at = int(np.argmin([cost(x) for x in grid]))
    around = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    found = minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


@torch.inference_mode()
def residuals_of(
    network: Deformer,
    stores: Sequence[Path | str],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Residuals:
    """The network's 2D joints on causal windows of all frames, or `limit` drawn ones, of stores."""
    opened = [FrameStore(path) for path in stores]
    frames = [(store, frame) for store in opened for frame in range(len(store))]
    if limit is not None and limit < len(frames):
        chosen = np.random.default_rng(seed).choice(len(frames), max(limit, 0), replace=False)
        frames = [frames[i] for i in sorted(chosen.tolist())]
    if not frames:
        raise HandPerceptionError("no frame to calibrate on; give stores with held-out windows")
    size, gap_s = network.config.image_size, network.config.gap_s
    nothing = np.zeros(WINDOW, bool)
    parts = []
    for first in range(0, len(frames), BATCH):
        windows = [
            store.window(frame, frames=WINDOW, gap_s=gap_s, lookahead=False, drop=nothing)
            for store, frame in frames[first : first + BATCH]
        ]
        names = set.intersection(*(set(window) for window in windows))
        batch = {n: torch.from_numpy(np.stack([w[n] for w in windows])) for n in names}
        rows, target = torch.arange(len(windows)), batch["target"]
        output = network(
            network_input(batch),
            batch["intrinsics"],
            offsets_s=batch["offsets_s"],
            crop_rotation=batch["crop_rotation"],
            valid=batch["valid"],
            target=target,
        )
        parts.append(
            Residuals.of(
                output.joints_2d / size,
                output.joints_log_var,
                batch["joints_2d"][rows, target] / size,
                batch["weight_2d"][rows, target] > 0,
            )
        )
    return Residuals(
        torch.cat([p.joints for p in parts]),
        torch.cat([p.log_var for p in parts]),
        torch.cat([p.right for p in parts]),
        torch.cat([p.marked for p in parts]),
    )


def calibrate(
    weights: Path | str,
    stores: Sequence[Path | str],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> float:
    """The temperature that suits a weight file on held-out stores; see `residuals_of`."""
    network = Deformer.load(weights)
    return best_temperature(residuals_of(network, stores, limit=limit, seed=seed))


def write_temperature(weights: Path | str, temperature: float, out: Path | str) -> None:
    """A copy of a weight file with another temperature; metadata and the rest stay as they are."""
    if not np.isfinite(temperature) or temperature <= 0:
        raise HandPerceptionError(f"temperature is {temperature}; it must be finite and positive")
    tensors = load_file(weights)
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    kind = tensors["temperature"].dtype if "temperature" in tensors else torch.float16
    tensors["temperature"] = torch.tensor(temperature, dtype=kind)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata)


def plot_reliability(before: Reliability, after: Reliability, path: Path | str) -> None:
    """A reliability diagram with the joints of every bin below it, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], "--", color="0.6", label="kept word")
    edges = (np.arange(BINS) + 0.5) / BINS
    for name, curve, colour, side in (
        ("before", before, "tab:orange", -1),
        ("after", after, "tab:blue", 1),
    ):
        error = 100 * curve.expected_calibration_error
        label = f"{name}, expected error {error:.1f} %"
        top.plot(curve.said, curve.right, "o-", color=colour, label=label)
        share = curve.count / curve.count.sum()
        bottom.bar(edges + side * 0.2 / BINS, share, 0.4 / BINS, color=colour)
    top.set(ylabel="joints within 10 % of the hand's size", xlim=(0, 1), ylim=(0, 1))
    bottom.set(xlabel="joint confidence", ylabel="share of joints")
    top.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def main() -> None:
    """Command line of this module: one JSON line with the figures."""
    parser = argparse.ArgumentParser(description="Calibrate a Deformer's joint confidence.")
    parser.add_argument("--weights", required=True, help="safetensors file of a Deformer")
    parser.add_argument("--stores", nargs="+", required=True, help="folders of training.data")
    parser.add_argument("--out", required=True, help="the same weights with the temperature")
    parser.add_argument("--plot", help="reliability diagram, PNG")
    parser.add_argument("--limit", type=int, help="so many frames, drawn by seed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = Deformer.load(arguments.weights)
    residuals = residuals_of(network, arguments.stores, limit=arguments.limit, seed=arguments.seed)
    temperature = best_temperature(residuals)
    write_temperature(arguments.weights, temperature, arguments.out)
    given = residuals.confidence(float(network.temperature))
    made = residuals.confidence(temperature)
    before, after = Reliability.of(*given), Reliability.of(*made)
    if arguments.plot:
        plot_reliability(before, after, arguments.plot)
    figures = {
        "joints": len(given[0]),
        "temperature_before": float(network.temperature),
        "temperature": temperature,
        "expected_calibration_error_before": before.expected_calibration_error,
        "expected_calibration_error": after.expected_calibration_error,
        "negative_log_likelihood_before": negative_log_likelihood(*given),
        "negative_log_likelihood": negative_log_likelihood(*made),
        "brier_before": float(np.square(given[0] - given[1]).mean()),
        "brier": float(np.square(made[0] - made[1]).mean()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
