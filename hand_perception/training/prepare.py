"""Make stores of synthetic windows for training, in as many processes as there are cores.

    python -m hand_perception.training.prepare --config config/methods/deformer.yaml \\
        --out DIR --sequences 8000 [--frames 7] [--seed 0] [--processes 2] [--images]

Each process writes its own store DIR/<part>; pass all of them to training. Sequences are those of
`synthesis.scenes.sample_sequence(seed, index)`, the same however many processes make them. With a
frozen backbone its features are stored, unless --images asks for the pictures.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.synthesis.scenes import SceneOptions, sample_sequence
from hand_perception.synthesis.windows import window
from hand_perception.training.data import write_store
from hand_perception.training.train import read_config


def prepare(
    config: Mapping[str, Any],
    out: Path | str,
    *,
    sequences: int,
    frames: int = 7,
    seed: int = 0,
    processes: int = 1,
    images: bool = False,
) -> list[Path]:
    """Write `sequences` synthetic sequences of `frames` frames as one store a process."""
    paths = [Path(out) / f"{part:03d}" for part in range(processes)]
    jobs = [
        (dict(config), path, part, processes, sequences, frames, seed, images)
        for part, path in enumerate(paths)
    ]
    if processes == 1:
        _write_part(*jobs[0])
        return paths
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_write_part, jobs, chunksize=1)
    return paths


def _write_part(
    config: Mapping[str, Any],
    path: Path,
    part: int,
    processes: int,
    sequences: int,
    frames: int,
    seed: int,
    images: bool,
) -> None:
    if processes > 1:
        torch.set_num_threads(1)
    network_config = DeformerConfig.from_dict(config["network"])
    cached = network_config.backbone == "landmark" and not images
    network = Deformer.build(network_config).eval() if cached else None
    options = SceneOptions(size=network_config.image_size, frames=frames)
    indices = range(part, sequences, processes)
    samples = (window(sample_sequence(seed, index, options)) for index in indices)
    write_store(path, samples, len(indices) * frames, network)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Make stores of synthetic windows.")
    parser.add_argument("--config", required=True, help="config/methods/<method>.yaml")
    parser.add_argument("--out", required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--frames", type=int, default=7, help="frames of a sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--images", action="store_true", help="store pictures, not features")
    arguments = parser.parse_args()
    prepare(
        read_config(arguments.config),
        arguments.out,
        sequences=arguments.sequences,
        frames=arguments.frames,
        seed=arguments.seed,
        processes=arguments.processes,
        images=arguments.images,
    )


if __name__ == "__main__":
    main()
