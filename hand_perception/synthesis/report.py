"""Looking at scenes and timing them: contact sheets, label overlays, images per CPU second."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np

from hand_perception.skeleton import BONES
from hand_perception.synthesis.arrays import U8
from hand_perception.synthesis.scenes import Sample, SceneOptions, sample_sequence
from hand_perception.synthesis.windows import NUM_PARTS, window


def benchmark(
    size: int = 224, windows: int = 30, seed: int = 0, options: SceneOptions | None = None
) -> dict[str, Any]:
    """Images made per second of one CPU core, windows and labels included, as plain JSON values.

    The first windows, which compile and load, are made before the clock starts.
    """
    options = options or SceneOptions(size=size)
    for index in range(3):
        window(sample_sequence(seed + 1, index, options))
    sampling, rendering, samples = [], [], []
    for index in range(windows):
        start = time.process_time()
        sequence = sample_sequence(seed, index, options)
        middle = time.process_time()
        samples.append(window(sequence))
        sampling.append(middle - start)
        rendering.append(time.process_time() - middle)
    images = windows * options.frames
    return {
        "size_px": options.size,
        "images": images,
        "images_per_cpu_second": round(images / (sum(sampling) + sum(rendering)), 1),
        "sampling_ms_per_window": round(1e3 * float(np.median(sampling)), 2),
        "rendering_ms_per_image": round(1e3 * float(np.median(rendering)) / options.frames, 2),
        "two_hands": float(np.mean([s["other_present"][0] for s in samples])),
        "object": float(np.mean([s["object_class"][0] > 0 for s in samples])),
    }


def contact_sheet(seed: int = 0, count: int = 48, columns: int = 8, size: int = 224) -> U8:
    """`count` single crops, RGB."""
    options = SceneOptions(size=size, frames=1)
    tiles = [window(sample_sequence(seed, k, options))["image"][0] for k in range(count)]
    return _grid(tiles, columns)


def window_sheet(seed: int = 0, count: int = 8, size: int = 224, frames: int = 7) -> U8:
    """`count` windows, one a row, RGB."""
    options = SceneOptions(size=size, frames=frames)
    tiles = [t for k in range(count) for t in window(sample_sequence(seed, k, options))["image"]]
    return _grid(tiles, frames)


def label_sheet(seed: int = 0, count: int = 48, columns: int = 8, size: int = 224) -> U8:
    """The crops of `contact_sheet` under their labels, RGB."""
    options = SceneOptions(size=size, frames=1)
    tiles = [draw_labels(window(sample_sequence(seed, k, options))) for k in range(count)]
    return _grid(tiles, columns)


def draw_labels(sample: Sample, frame: int = 0) -> U8:
    """A crop (S, S, 3) with its parts, object, skeleton (red joints are hidden) and occlusion."""
    picture = sample["image"][frame].copy()
    size = len(picture)
    parts, mask = (
        cv2.resize(
            sample[name][frame].astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST
        )
        for name in ("parts", "object_mask")
    )
    colors = np.random.default_rng(0).integers(0, 256, (NUM_PARTS + 1, 3))
    label = np.where(mask > 0, NUM_PARTS, parts)
    picture = np.where(label[..., None] > 0, picture // 2 + colors[label] // 2, picture)
    picture = picture.astype(np.uint8)
    joints = np.round(sample["joints_2d"][frame]).astype(int)
    for a, b in BONES:
        cv2.line(picture, joints[a].tolist(), joints[b].tolist(), (255, 255, 255), 1, cv2.LINE_AA)
    for joint, visible in zip(joints, sample["visibility"][frame], strict=True):
        color = (0, 255, 0) if visible else (255, 0, 0)
        cv2.circle(picture, joint.tolist(), 2, color, -1)
    text = f"{sample['occlusion'][frame]:.2f} object {sample['object_class'][frame]}"
    cv2.putText(picture, text, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 0), 1)
    return picture


def _grid(tiles: list[U8], columns: int) -> U8:
    blank = np.zeros_like(tiles[0])
    tiles = tiles + [blank] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles), columns)])
