"""The methods, by name: a plain dict. A new method is one file here and one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hand_perception import resources
from hand_perception.networks.deformer import Deformer
from hand_perception.networks.landmark_fit import LandmarkFit
from hand_perception.types import HandPerceptionError


def _deformer(name: str) -> Callable[[Path | None], nn.Module]:
    return lambda folder: Deformer.load(
        (folder or resources.models_dir()) / f"{name}/{name}.safetensors"
    )


METHODS: dict[str, Callable[[Path | None], nn.Module]] = {
    "landmark_fit": LandmarkFit.load,
    "deformer": _deformer("deformer"),
    "deformer_resnet50": _deformer("deformer_resnet50"),
}
"""Name -> how to load it: takes the folder of the weights (None: the shipped one)."""


def load_network(
    method: str, device: str = "auto", models_dir: Path | str | None = None
) -> nn.Module:
    """A pretrained method in eval mode on a device: "auto", "cpu", "cuda" or "cuda:<n>".

    "auto" takes CUDA where there is some. Raises HandPerceptionError for an unknown method or
    device, for CUDA that is not there, and for weights that are missing or broken.
    """
    if method not in METHODS:
        raise HandPerceptionError(f"method {method!r} is unknown; known are {sorted(METHODS)}")
    target = resolve_device(device)
    return METHODS[method](Path(models_dir) if models_dir else None).eval().to(target)


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; see `load_network`."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, index = device.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdigit()) or device.endswith(":"):
        raise HandPerceptionError(
            f"device {device!r} is unknown; allowed are auto, cpu, cuda and cuda:<number>"
        )
    if name == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise HandPerceptionError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use auto or cpu"
        )
    return torch.device(device)
