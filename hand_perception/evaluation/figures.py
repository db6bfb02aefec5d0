"""Figures of methods, and of MediaPipe Hands beside them, on real videos and annotated images.

Videos: detection rate, jitter, left/right switches and speed. Annotated images: 2D PCK@0.2 and,
where there is 3D, PA-MPJPE. The photos' cameras are unknown and taken to see 60 degrees.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.optimize import linear_sum_assignment

from hand_perception.evaluation import metrics
from hand_perception.evaluation.fixtures import (
    FIXTURES,
    AnnotatedHand,
    AnnotatedImage,
    read_fixture,
)
from hand_perception.skeleton import JOINT_NAMES, KNUCKLE_SHARE
from hand_perception.sources import Source, camera_of_hfov, open_source, read_image
from hand_perception.types import Camera, FloatArray, HandPerceptionError, Scene, Side

VIDEOS = {
    "one_hand_static_621f.mp4": 1,
    "two_hands_interacting_500f.mp4": 2,
    "one_hand_wave_selfie_58f.mp4": 1,
    "hand_object_bulb_20f": 1,
}
"""Videos and folders of frames under videos/, and how many hands are to be seen in them."""

SEQUENCE_FPS = 12.5
PCK_THRESHOLD = 0.2
MATCH_DISTANCE = 1.0
"""A found hand may be an annotated one when their middles are at most one box side apart."""
FORGET_FRAMES = 15
"""A hand that was away for longer starts a new trajectory."""
MEDIAPIPE = "mediapipe"
_MIDDLE_MCP = JOINT_NAMES.index("middle_mcp")


class Perception(Protocol):
    """What is measured: the part of `pipeline.HandPerception` that is used here."""

    def process(self, image: NDArray[np.uint8], camera: Camera, stamp_s: float) -> Scene: ...

    def reset(self) -> None: ...


@dataclass(frozen=True)
class FoundHand:
    """One hand that a method has found."""

    side: Side
    joints_2d: FloatArray
    """(21, 2) image pixels."""
    joints_3d: FloatArray
    """(21, 3) metres; only relative positions are used."""

    @property
    def center(self) -> FloatArray:
        """(2,) middle of the box around the joints."""
        return (self.joints_2d.min(0) + self.joints_2d.max(0)) / 2

    @property
    def box_size(self) -> float:
        """Longer side of that box, pixels."""
        return float((self.joints_2d.max(0) - self.joints_2d.min(0)).max())


@dataclass(frozen=True)
class Run:
    """What a method said of each frame, and how long the call alone took."""

    frames: list[list[FoundHand]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run_figures(
    data: Path,
    out: Path,
    *,
    methods: Sequence[str],
    load: Callable[[str], Perception],
    mediapipe_python: Path | None = None,
    max_frames: int | None = None,
) -> dict[str, Any]:
    """Measure methods on the videos and sets under `data`; write figures.json and figures.md.

    `load` makes the pipeline of a method. MediaPipe is measured when `mediapipe_python` names
    an interpreter that has it, or this one does. Raises HandPerceptionError without any data.
    """
    videos = {name: n for name, n in VIDEOS.items() if (data / "videos" / name).exists()}
    sets = {
        name: read_fixture(name, data / "fixtures" / name)
        for name in FIXTURES
        if (data / "fixtures" / name).is_dir()
    }
    if not videos and not sets:
        raise HandPerceptionError(
            f"{data} holds nothing to measure on; it needs videos/ with some of {sorted(VIDEOS)} "
            f"or fixtures/ with some of {sorted(FIXTURES)}"
        )
    if mediapipe_python is None and importlib.util.find_spec("mediapipe"):
        mediapipe_python = Path(sys.executable)

    result: dict[str, Any] = {"environment": _environment(max_frames), "videos": {}, "images": {}}
    # All are loaded first: a missing one should not show after minutes.
    loaded: dict[str, Perception | None] = {method: load(method) for method in methods}
    if mediapipe_python is not None:
        loaded[MEDIAPIPE] = None
    for method, perception in loaded.items():
        for name, expected in videos.items():
            source = open_source(data / "videos" / name, directory_fps=SEQUENCE_FPS)
            if perception is not None:
                run = run_video(perception, source, max_frames, f"{method}: {name}")
            else:
                assert mediapipe_python is not None
                run = run_peer(mediapipe_python, data / "videos" / name, source, max_frames)
            figures = video_figures(run, expected, source.fps)
            result["videos"].setdefault(name, {})[method] = figures
        for name, images in sets.items():
            if perception is not None:
                run = run_photos(perception, images, f"{method}: {name}")
            else:
                assert mediapipe_python is not None
                run = _peer(mediapipe_python, "photos", [image.path for image in images], None)
            result["images"].setdefault(name, {})[method] = image_figures(run, images)

    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(_without_nan(result), indent=1) + "\n")
    (out / "figures.md").write_text(to_markdown(result))
    return result


def run_video(
    perception: Perception, source: Source, max_frames: int | None, label: str = ""
) -> Run:
    """The pipeline on a stream, from a fresh start."""
    run = Run()
    perception.reset()
    total = source.count if max_frames is None else min(max_frames, source.count or max_frames)
    for frame in _track(islice(source, max_frames), total, label):
        camera = camera_of_hfov(frame.image_rgb.shape[1], frame.image_rgb.shape[0])
        _process(perception, frame.image_rgb, camera, frame.stamp_s, run)
    return run


def run_photos(perception: Perception, images: Sequence[AnnotatedImage], label: str = "") -> Run:
    """The pipeline on each image alone."""
    run = Run()
    for image in _track(images, len(images), label):
        pixels = read_image(image.path)
        perception.reset()
        camera = image.camera or camera_of_hfov(pixels.shape[1], pixels.shape[0])
        _process(perception, pixels, camera, 0.0, run)
    return run


def run_peer(python: Path, path: Path, source: Source, max_frames: int | None) -> Run:
    """MediaPipe on a video or a folder of frames, tracking."""
    if source.kind == "video":
        return _peer(python, "video", [path], max_frames)
    return _peer(python, "sequence", sorted(path.glob("*.jpg")), max_frames)


def video_figures(run: Run, expected_hands: int, fps: float) -> dict[str, float]:
    """Figures of one clip that shows a number of hands throughout (or nearly so).

    Switches count frames in which a hand has another side than when it was last seen.
    """
    chains, switches = _chains(run.frames)
    gap = np.full((1, 21, 3), np.nan)
    joints = np.concatenate([part for chain in chains for part in (chain, gap)] or [gap])
    counts = np.array([len(hands) for hands in run.frames])
    lengths = np.linalg.norm(metrics.root_relative(joints)[:, _MIDDLE_MCP], axis=-1)
    seen = lengths[np.isfinite(lengths)]
    return {
        "frames": len(run.frames),
        "detection_rate": float((counts == expected_hands).mean()),
        "too_many_rate": float((counts > expected_hands).mean()),
        "jitter_m_s2": metrics.jitter_m_s2(joints, fps),
        "hand_size_m": float(np.median(seen)) if seen.size else float("nan"),
        "side_switches": switches,
        "latency_ms_p50": 1000 * float(np.median(run.seconds)),
        "fps": len(run.seconds) / sum(run.seconds),
    }


def image_figures(run: Run, images: Sequence[AnnotatedImage]) -> dict[str, float]:
    """Figures of annotated images; the normaliser is the longer side of the joints' tight box.

    `_all` takes the joints of a hand that was not found as wrong, `_found` leaves them out.
    """
    errors_all, errors_found, pa_mm = [], [], []
    sides: list[str] = []
    true_sides: list[str] = []
    hands = 0
    for found, image in zip(run.frames, images):
        pairs = match_hands(found, image.hands)
        hands += len(image.hands)
        for row, truth in enumerate(image.hands):
            if row not in pairs:
                errors_all.append(np.full(int(truth.valid.sum()), np.inf))
                continue
            hand = found[pairs[row]]
            errors = metrics.normalized_errors_2d(hand.joints_2d, truth.joints_2d, truth.box_size)
            errors_all.append(errors[truth.valid])
            errors_found.append(errors[truth.valid])
            if truth.side is not None:
                sides.append(hand.side)
                true_sides.append(truth.side)
            if truth.joints_3d is not None:
                pa_mm.append(metrics.pa_mpjpe_mm(hand.joints_3d, truth.joints_3d))
    with_3d = sum(hand.joints_3d is not None for image in images for hand in image.hands)
    return {
        "images": len(images),
        "hands": hands,
        "found": len(errors_found),
        "pck_all": metrics.pck(np.concatenate(errors_all), PCK_THRESHOLD),
        "pck_found": metrics.pck(np.concatenate(errors_found or [np.zeros(0)]), PCK_THRESHOLD),
        "side_accuracy": metrics.handedness_accuracy(sides, true_sides),
        "pa_mpjpe_mm": float(np.mean(pa_mm)) if pa_mm else float("nan"),
        "hands_with_3d": with_3d,
        "found_with_3d": len(pa_mm),
    }


def match_hands(found: Sequence[FoundHand], truth: Sequence[AnnotatedHand]) -> dict[int, int]:
    """For each annotated hand that was found, its index among the found ones.

    One to one, with the least mean distance of joints in boxes; sides play no part.
    """
    far = 1e6
    cost = np.full((len(truth), len(found)), far)
    for row, hand in enumerate(truth):
        for column, other in enumerate(found):
            if np.linalg.norm(hand.center - other.center) <= MATCH_DISTANCE * hand.box_size:
                errors = metrics.normalized_errors_2d(
                    other.joints_2d, hand.joints_2d, hand.box_size
                )
                cost[row, column] = errors[hand.valid].mean()
    rows, columns = linear_sum_assignment(cost)
    return {int(r): int(c) for r, c in zip(rows, columns) if cost[r, c] < far}


def _chains(frames: Sequence[Sequence[FoundHand]]) -> tuple[list[FloatArray], int]:
    """Each hand's joints (T, 21, 3) over time, NaN where it is away, and the changes of side."""
    chains: list[list[FloatArray]] = []
    last: list[tuple[int, FoundHand]] = []
    away = np.full((21, 3), np.nan)
    switches = 0
    for time, hands in enumerate(frames):
        live = [c for c, (seen, _) in enumerate(last) if time - seen <= FORGET_FRAMES]
        cost = np.array(
            [
                [np.linalg.norm(last[c][1].center - h.center) / h.box_size for h in hands]
                for c in live
            ]
        ).reshape(len(live), len(hands))
        rows, columns = linear_sum_assignment(cost)
        taken = {
            int(column): live[row] for row, column in zip(rows, columns) if cost[row, column] < 1
        }
        for index, hand in enumerate(hands):
            if index not in taken:
                taken[index] = len(chains)
                chains.append([])
                last.append((time, hand))
            chain = taken[index]
            switches += last[chain][1].side != hand.side
            chains[chain] += [away] * (time - last[chain][0] - 1) + [hand.joints_3d]
            last[chain] = (time, hand)
    return [np.stack(chain) for chain in chains], switches


def _process(
    perception: Perception, image: NDArray[np.uint8], camera: Camera, stamp_s: float, run: Run
) -> None:
    started = perf_counter()
    scene = perception.process(image, camera, stamp_s)
    run.seconds.append(perf_counter() - started)
    run.frames.append(
        [
            FoundHand(hand.side, to_knuckles(hand.joints_2d), to_knuckles(hand.joints_3d))
            for hand in scene.hands
        ]
    )


def to_knuckles(joints: FloatArray) -> FloatArray:
    """Joints (21, C) with the fingers' bases where data sets and MediaPipe have them."""
    moved = joints.copy()
    for base, share in KNUCKLE_SHARE.items():
        moved[base] = (1 - share) * joints[base] + share * joints[base + 1]
    return moved


def _peer(python: Path, kind: str, files: Sequence[Path], max_frames: int | None) -> Run:
    script = Path(__file__).with_name("mediapipe_peer.py")
    with TemporaryDirectory() as folder:
        landmarks = Path(folder) / "landmarks.npz"
        command = [python, script, landmarks, max_frames or 0, kind, *files]
        # The peer is another environment; what this one sets would only confuse it.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "_ROS"))}
        try:
            process = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, env=environment
            )
        except OSError as error:
            raise HandPerceptionError(
                f"{python} cannot be run ({error.strerror}); give an interpreter with mediapipe"
            ) from error
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise HandPerceptionError(f"MediaPipe under {python} failed: {last}")
        with np.load(landmarks) as content:
            arrays = dict(content)
    run = Run([[] for _ in arrays["seconds"]], arrays["seconds"].tolist())
    for row, index in enumerate(arrays["frame"]):
        side: Side = "right" if arrays["right"][row] else "left"
        hand = FoundHand(side, arrays["joints_2d"][row], arrays["world"][row])
        run.frames[int(index)].append(hand)
    return run


def to_markdown(result: dict[str, Any]) -> str:
    """The figures as two tables with a sentence on what each column means."""
    lines = [
        "# Figures",
        "",
        "; ".join(f"{key} {value}" for key, value in result["environment"].items()) + ".",
        "",
        "## Videos",
        "",
        "Detection: frames with exactly the hands that the clip shows. Jitter: mean |second",
        "difference| x fps² of the joints relative to the wrist, motion included. Size: median",
        "wrist to middle knuckle. Latency: median of the call alone. The selfie's hand leaves the",
        "picture, so that 100 % is out of reach there.",
        "",
        "| clip | method | detection | too many | jitter m/s² | size mm | L/R switches "
        "| latency ms | frames/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_method in result["videos"].items():
        for method, f in by_method.items():
            lines.append(
                f"| {name} | {method} | {_percent(f['detection_rate'])} "
                f"| {_percent(f['too_many_rate'])} | {_number(f['jitter_m_s2'], 2)} "
                f"| {_number(1000 * f['hand_size_m'], 0)} | {f['side_switches']} "
                f"| {_number(f['latency_ms_p50'], 1)} | {_number(f['fps'], 1)} |"
            )
    lines += [
        "",
        "## Annotated images",
        "",
        f"PCK@{PCK_THRESHOLD}: joints nearer than {PCK_THRESHOLD} of the longer side of the tight",
        "box around the marked joints; all: hands that were not found count as wrong; found: they",
        "are left out. Side: of the found hands whose side is known. PA-MPJPE: after a similarity",
        "with a proper rotation, of the found hands that have 3D. Our joints are compared where",
        "pictures are annotated: finger bases moved towards the web (`skeleton.KNUCKLE_SHARE`).",
        "",
        "| set | method | hands | found | PCK all | PCK found | side | PA-MPJPE mm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by_method in result["images"].items():
        for method, f in by_method.items():
            pa = _number(f["pa_mpjpe_mm"], 1)
            of = f" ({f['found_with_3d']}/{f['hands_with_3d']})" if f["hands_with_3d"] else ""
            lines.append(
                f"| {name} | {method} | {f['hands']} | {f['found']} | {_percent(f['pck_all'])} "
                f"| {_percent(f['pck_found'])} | {_percent(f['side_accuracy'])} | {pa}{of} |"
            )
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _environment(max_frames: int | None) -> dict[str, Any]:
    import torch

    known: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CPU cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
    }
    return known if max_frames is None else known | {"frames of a video at most": max_frames}


def _track(items: Iterable[Any], total: int | None, label: str) -> Iterable[Any]:
    return track(items, label, total, console=Console(stderr=True), transient=True)
