"""What streaming costs: a window of seven frames against one, and the pipeline against MediaPipe.

Everything that is compared runs in alternation within one run, so that a busy machine slows both
sides down alike; medians are reported.
"""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hand_perception.crops import crop_around
from hand_perception.detection import HandTracker, PalmDetector
from hand_perception.fusion import StreamingFusion
from hand_perception.hand_model import HandModel
from hand_perception.networks import resolve_device
from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.pipeline import HandPerception
from hand_perception.resources import models_dir
from hand_perception.sources import Frame, camera_of_hfov
from hand_perception.types import Box, Camera, Crop, HandPerceptionError

WINDOW = 7
CHUNK = 15
"""Frames that one side takes before it is the other's turn."""
NOISE_SIZE = (480, 640)


def benchmark_streaming(
    source: Iterable[Frame] | None = None,
    *,
    frames: int = 120,
    method: str = "deformer",
    weights: Path | str | None = None,
    mediapipe_python: Path | str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Costs on `frames` frames of a source, or of generated noise when None.

    For a Deformer (weights None: the shipped ones, else untrained ones, which cost the same):
    ms_t7 and ms_t1, the milliseconds to encode and fuse one hand of a frame with windows of seven
    frames and of one, and ratio_t7_t1, the median over frames of their ratio. With a source:
    frames_per_s of the whole pipeline; with mediapipe_python too, an interpreter that has
    mediapipe: mediapipe_frames_per_s in tracking mode and ratio_to_mediapipe, ours over theirs,
    the median over chunks of 15 frames. Raises HandPerceptionError for fewer than two chunks,
    mediapipe without a source, a source without hands, and a peer that fails.
    """
    if frames < 2 * CHUNK:
        raise HandPerceptionError(f"frames is {frames}; at least {2 * CHUNK} are needed")
    if mediapipe_python is not None and source is None:
        raise HandPerceptionError(
            "a comparison with MediaPipe needs a source with hands, say a clip"
        )
    if weights is not None and not method.startswith("deformer"):
        raise HandPerceptionError(f"method {method!r} takes no weights; only a deformer does")
    clip = None if source is None else _load_clip(source, frames)
    answer: dict[str, Any] = {"method": method, "frames": frames if clip is None else len(clip[0])}
    target = resolve_device(device)
    if not method.startswith("deformer"):
        perception = HandPerception.load(method, device)
    else:
        network, answer["weights"] = _deformer(method, weights)
        network = network.to(target)
        crops, stamps = _noise(frames) if clip is None else _crops_of(*clip)
        answer |= time_windows(network, crops, stamps)
        perception = HandPerception(
            network,
            HandTracker(PalmDetector.load(device=str(target))),
            HandModel.load(),
            device=target,
            fusion=StreamingFusion(network, gap_s=network.config.gap_s),
        )
    if clip is not None:
        answer |= time_pipeline(perception, *clip, mediapipe_python=mediapipe_python)
    return answer


@torch.inference_mode()
def time_windows(
    network: Deformer, crops: Sequence[Crop], stamps_s: Sequence[float]
) -> dict[str, float]:
    """Milliseconds per frame of encoding and fusion over windows of seven frames and of one.

    Both sides encode every crop themselves, and take turns in going first. Frames count once the
    longer window is full.
    """
    gap_s = network.config.gap_s
    sides = [StreamingFusion(network, window=w, gap_s=gap_s) for w in (WINDOW, 1)]
    parameter = next(network.parameters())
    full_s = stamps_s[0] + WINDOW * gap_s
    if stamps_s[-1] <= full_s:
        raise HandPerceptionError(
            f"the hand is seen for {stamps_s[-1] - stamps_s[0]:.2f} s; "
            f"more than {WINDOW * gap_s:.2f} s are needed to fill a window"
        )
    times: list[tuple[float, float]] = []
    for index, (crop, stamp_s) in enumerate(zip(crops, stamps_s, strict=True)):
        pixels = torch.from_numpy(crop.image).to(parameter)
        images = pixels.permute(2, 0, 1)[None] / 255
        intrinsics = torch.from_numpy(crop.intrinsics).to(parameter)[None]
        spent = [0.0, 0.0]
        for side in (0, 1) if index % 2 else (1, 0):
            began = perf_counter()
            features = network.encode(images, intrinsics)
            fused = sides[side].update(stamp_s, [0], features, [crop])
            # Reading a number back waits for a device that works on its own.
            _ = float(fused[0].prediction.joints_3d[0, 0, 0])
            spent[side] = perf_counter() - began
        if stamp_s > full_s:
            times.append((spent[0], spent[1]))
    long, short = 1000 * np.array(times).T
    return {
        "ratio_t7_t1": float(np.median(long / short)),
        "ms_t7": float(np.median(long)),
        "ms_t1": float(np.median(short)),
    }


def time_pipeline(
    perception: HandPerception,
    images: NDArray[np.uint8],
    stamps_s: Sequence[float],
    *,
    mediapipe_python: Path | str | None = None,
) -> dict[str, float]:
    """Frames a second of the whole pipeline on RGB frames (N, H, W, 3), and MediaPipe's beside it.

    The first chunk warms up and is not counted.
    """
    camera = _camera(images[0])
    chunks = [(at, at + CHUNK) for at in range(0, len(images) - CHUNK + 1, CHUNK)]

    def run(start: int, end: int) -> float:
        began = perf_counter()
        for image, stamp_s in zip(images[start:end], stamps_s[start:end], strict=True):
            perception.process(image, camera, stamp_s)
        return perf_counter() - began

    if mediapipe_python is None:
        seconds = [run(*chunk) for chunk in chunks][1:]
        return {"frames_per_s": CHUNK / float(np.median(seconds))}
    pairs = []
    with MediaPipeClock(mediapipe_python, images) as peer:
        for index, chunk in enumerate(chunks):
            if index % 2:
                ours, theirs = run(*chunk), peer.run(*chunk)
            else:
                theirs, ours = peer.run(*chunk), run(*chunk)
            pairs.append((ours, theirs))
    ours_s, theirs_s = np.array(pairs[1:]).T
    return {
        "frames_per_s": CHUNK / float(np.median(ours_s)),
        "mediapipe_frames_per_s": CHUNK / float(np.median(theirs_s)),
        "ratio_to_mediapipe": float(np.median(theirs_s / ours_s)),
    }


class MediaPipeClock:
    """MediaPipe in a process of its own that tracks chunks of frames when it is told to."""

    def __init__(self, python: Path | str, images: NDArray[np.uint8]) -> None:
        """python: an interpreter that has mediapipe; images (N, H, W, 3) uint8 RGB."""
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "frames.npy"
        np.save(path, images)
        self._errors = tempfile.TemporaryFile("w+")
        script = Path(__file__).with_name("mediapipe_clock.py")
        # The peer is another environment; what this one sets would only confuse it.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        try:
            self._process = subprocess.Popen(
                [str(python), str(script), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
        except OSError as error:
            self._forget()
            raise HandPerceptionError(
                f"{python} cannot be run: {error.strerror}; an interpreter with mediapipe is needed"
            ) from error

    def run(self, start: int, end: int) -> float:
        """Seconds that MediaPipe takes for frames start to end (exclusive)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{start} {end}\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["nothing"]
            raise HandPerceptionError(
                f"MediaPipe's process ended early; its last words: {said[-1]}"
            ) from error

    def __enter__(self) -> MediaPipeClock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdout is not None
        try:
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()
        self._forget()

    def _forget(self) -> None:
        self._errors.close()
        self._folder.cleanup()


def _deformer(method: str, weights: Path | str | None) -> tuple[Deformer, str]:
    # The network and what its weights are called.
    path = models_dir() / method / f"{method}.safetensors" if weights is None else Path(weights)
    if weights is not None or path.is_file():
        return Deformer.load(path), path.name
    if method != "deformer":
        raise HandPerceptionError(f"weights {path.name} of {method!r} are missing; give a file")
    return Deformer.build(DeformerConfig()).eval(), "untrained"


def _load_clip(source: Iterable[Frame], frames: int) -> tuple[NDArray[np.uint8], list[float]]:
    clip = list(islice(source, frames))
    if len(clip) < 2 * CHUNK:
        raise HandPerceptionError(
            f"the source has {len(clip)} frames; at least {2 * CHUNK} are needed"
        )
    if len({frame.image_rgb.shape for frame in clip}) > 1:
        raise HandPerceptionError("the frames of the source differ in size; a clip is needed")
    return np.stack([frame.image_rgb for frame in clip]), [frame.stamp_s for frame in clip]


def _crops_of(
    images: NDArray[np.uint8], stamps_s: Sequence[float]
) -> tuple[list[Crop], list[float]]:
    # The surest hand of each frame that shows one.
    detector, camera = PalmDetector.load(), _camera(images[0])
    crops, stamps = [], []
    for image, stamp_s in zip(images, stamps_s, strict=True):
        boxes = detector.detect(image)
        if boxes:
            surest = max(boxes, key=lambda box: box.score)
            crops.append(crop_around(image, surest, camera))
            stamps.append(stamp_s)
    if not crops:
        raise HandPerceptionError("no hand is found in the source; a clip with hands is needed")
    return crops, stamps


def _noise(frames: int) -> tuple[list[Crop], list[float]]:
    # Crops along a circle in noise, 30 frames a second.
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*NOISE_SIZE, 3), dtype=np.uint8)
    camera = _camera(image)
    crops = [
        crop_around(
            image, Box((320 + 60 * math.cos(t / 9), 240 + 60 * math.sin(t / 9)), 160), camera
        )
        for t in range(frames)
    ]
    return crops, [t / 30 for t in range(frames)]


def _camera(image: NDArray[np.uint8]) -> Camera:
    return camera_of_hfov(image.shape[1], image.shape[0])
