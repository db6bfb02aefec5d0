"""Windows on disk and as a stream: shards written by several processes, read back, or made live.

A shard is one .npz file of n windows (no pickled objects): images as JPEG or PNG code, label maps
as PNG code, everything else as plain arrays with leading (n, T).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from hand_perception.synthesis.scenes import DEFAULTS, Sample, SceneOptions, sample_sequence
from hand_perception.synthesis.windows import window
from hand_perception.types import HandPerceptionError

_IMAGES = ("image", "parts", "object_mask")
FORMAT = 1


@dataclass(frozen=True)
class WindowStream(IterableDataset):
    """An iterable of windows for a torch DataLoader; its workers share the indices out.

    Yields `windows.window` samples of the indices start, start + 1, ... (count of them, or
    without end when count is None). The same seed gives the same windows whatever the number of
    workers; only their order may differ.
    """

    seed: int
    options: SceneOptions = DEFAULTS
    start: int = 0
    count: int | None = None

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        k = first
        while self.count is None or k < self.count:
            yield window(sample_sequence(self.seed, self.start + k, self.options))
            k += step


def write_shards(
    out_dir: str | Path,
    count: int,
    seed: int,
    options: SceneOptions = DEFAULTS,
    *,
    workers: int = 1,
    per_shard: int = 64,
    lossless: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` windows as shards into a folder and return their paths.

    A shard that is there already, whole and of the same seed and options, is kept, so a run that
    was stopped goes on where it was; each shard appears at once (written aside, then renamed).
    Images are JPEG of quality 95, or PNG when `lossless`. `progress(done, total)` counts shards.
    Raises HandPerceptionError when the folder holds shards of other options.
    """
    if count < 1 or workers < 1 or per_shard < 1:
        raise HandPerceptionError(
            f"count {count}, workers {workers}, per_shard {per_shard}: all must be at least 1"
        )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _check_recipe(folder, {"format": FORMAT, "seed": seed, "lossless": lossless, **asdict(options)})
    jobs, paths = [], []
    for k, start in enumerate(range(0, count, per_shard)):
        path = folder / f"windows_{k:06d}.npz"
        paths.append(path)
        stop = min(start + per_shard, count)
        if not _is_whole(path, stop - start):
            jobs.append((path, seed, start, stop, options, lossless))
    done = len(paths) - len(jobs)
    if workers == 1:
        results: Any = map(_write_shard, jobs)
        for _ in results:
            done += 1
            if progress:
                progress(done, len(paths))
        return paths
    # Forked numba and torch threads are not safe; a spawned worker loads its cached kernels.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(_write_shard, jobs):
            done += 1
            if progress:
                progress(done, len(paths))
    return paths


def read_shards(source: str | Path) -> Iterator[Sample]:
    """The windows of a shard file, or of all shards in a folder in order.

    Raises HandPerceptionError when there is none or when a file is damaged.
    """
    source = Path(source)
    paths = sorted(source.glob("windows_*.npz")) if source.is_dir() else [source]
    if not paths or not paths[0].exists():
        raise HandPerceptionError(f"there are no shards (windows_*.npz) at {source}")
    for path in paths:
        yield from _read_shard(path)


def _check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    file = folder / "recipe.json"
    if not file.exists():
        file.write_text(json.dumps(recipe, indent=1))
    elif json.loads(file.read_text()) != recipe:
        raise HandPerceptionError(
            f"{folder} holds shards of another seed or other options; take an empty folder"
        )


def _is_whole(path: Path, count: int) -> bool:
    try:
        with np.load(path) as arrays:
            return len(arrays["time_s"]) == count
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


def _write_shard(job: tuple[Path, int, int, int, SceneOptions, bool]) -> None:
    path, seed, start, stop, options, lossless = job
    cv2.setNumThreads(1)
    samples = [window(sample_sequence(seed, index, options)) for index in range(start, stop)]
    arrays: dict[str, NDArray[Any]] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in _IMAGES:
            jpeg = name == "image" and not lossless
            codes = [_encode(picture, jpeg) for value in values for picture in value]
            arrays[name + "_code"] = np.concatenate(codes)
            arrays[name + "_length"] = np.array([len(code) for code in codes])
        else:
            arrays[name] = np.stack(values)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(aside, **arrays)  # type: ignore[arg-type]
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _encode(picture: NDArray[Any], jpeg: bool) -> NDArray[np.uint8]:
    picture = picture.astype(np.uint8)
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    if jpeg:
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()
    return cv2.imencode(".png", picture)[1].ravel()


def _read_shard(path: Path) -> Iterator[Sample]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        count, frames = arrays["time_s"].shape
        pictures = {}
        for name in _IMAGES:
            ends = np.cumsum(arrays.pop(name + "_length"))[:-1]
            pictures[name] = np.split(arrays.pop(name + "_code"), ends)
            if len(pictures[name]) != count * frames:
                raise ValueError(f"{len(pictures[name])} pictures for {count} x {frames} frames")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise HandPerceptionError(
            f"shard {path} is damaged or not a shard ({error}); delete it and write it again"
        ) from error
    for k in range(count):
        sample = {name: value[k] for name, value in arrays.items()}
        for name, codes in pictures.items():
            flag = cv2.IMREAD_COLOR if name == "image" else cv2.IMREAD_GRAYSCALE
            decoded: list[Any] = [
                cv2.imdecode(c, flag) for c in codes[k * frames : (k + 1) * frames]
            ]
            if any(picture is None for picture in decoded):
                raise HandPerceptionError(
                    f"shard {path} is damaged: a picture of window {k} cannot be decoded; delete "
                    "it and write it again"
                )
            value = np.stack(decoded)
            if name == "image":
                value = np.ascontiguousarray(value[..., ::-1])  # OpenCV decodes to BGR
            sample[name] = value > 0 if name == "object_mask" else value
        yield sample
