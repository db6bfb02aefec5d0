"""Clips rendered for demonstrations: one hand, then two, where no real pictures are at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.pipeline import HandPerception
from hand_perception.synthesis.scenes import SceneOptions, Sequence, sample_sequence
from hand_perception.synthesis.windows import camera_picture
from hand_perception.types import HandPerceptionError

WIDTH, HEIGHT = 640, 480
RATE_HZ = 30.0
_MARGIN = 20
"""Pixels between the joints and the edge of the picture."""
_MOST_TRIED = 1000
_LEAST_EXTENT = 0.2
"""Extent of a hand, relative to the height of the picture."""


def render_clip(path: str | Path, frames: int, seed: int = 1) -> None:
    """Write a video (640x480, 30 Hz) of `frames` pictures: the first half shows one hand.

    Of the sequences of the seed, the first are taken whose hands stay in the picture and are found
    by the pipeline, as one would choose real clips. Each is played to its end and back.
    """
    if frames < 4:
        raise HandPerceptionError(f"a clip of {frames} frames is too short; 4 is the least")
    perception = HandPerception.load()
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, RATE_HZ, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise HandPerceptionError(f"{path} can't be written as a video; give a path ending in .mp4")
    for hands, length in ((1, frames // 2), (2, frames - frames // 2)):
        rendered = (length + 1) // 2
        sequence = _choose(perception, hands, rendered, seed)
        forth = [camera_picture(sequence, frame)["image"] for frame in range(rendered)]
        for image in (forth + forth[::-1])[:length]:
            writer.write(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8))
    writer.release()


def _choose(perception: HandPerception, hands: int, frames: int, seed: int) -> Sequence:
    options = SceneOptions(
        frames=frames,
        two_hands=float(hands - 1),
        interacting=0.0,
        held_object=0.0,
        loose_object=0.0,
        occluder=0.0,
        fast=0.0,
    )
    for index in range(_MOST_TRIED):
        sequence = sample_sequence(seed, index, options)
        camera = sequence.camera
        if (camera.width, camera.height) != (WIDTH, HEIGHT) or len(sequence.hands) != hands:
            continue
        # Even steps of time, as a camera at 30 Hz has them.
        end = min(float(sequence.stamps[-1]), (frames - 1) / RATE_HZ)
        sequence = replace(sequence, stamps=np.linspace(0.0, end, frames))
        probes = [camera_picture(sequence, frame) for frame in (0, frames // 2, frames - 1)]
        if not all(_inside(hand["joints_2d"]) for probe in probes for hand in probe["hands"]):
            continue
        if all(_found(perception, sequence, probe["image"]) == hands for probe in probes):
            return sequence
    raise HandPerceptionError(
        f"none of {_MOST_TRIED} scenes shows {hands} hands that are found; take another seed"
    )


def _inside(joints_2d: NDArray[np.floating]) -> bool:
    low, high = joints_2d.min(0), joints_2d.max(0)
    fits = (low >= _MARGIN).all() and (high <= (WIDTH - _MARGIN, HEIGHT - _MARGIN)).all()
    return bool(fits and (high - low).max() >= _LEAST_EXTENT * HEIGHT)


def _found(perception: HandPerception, sequence: Sequence, image: NDArray[np.uint8]) -> int:
    perception.reset()
    return len(perception.process(image, sequence.camera, 0.0).hands)
