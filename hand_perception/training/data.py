"""Windows for training: frames on disk (or their cached features), windows drawn from them by time.

A store is a folder of arrays, one row per frame, that are memory-mapped: `frames.npz` says which
rows form a sequence. Frames come from anywhere (the synthetic stream, annotated videos) as
sequences: dicts of arrays with T rows, as `synthesis` makes them:

    image (T, S, S, 3) uint8 crops of right hands (left ones mirrored) · intrinsics (T, 3, 3) of the
    crop · M_camera_crop (T, 3, 3) or R_camera_crop · time_s (T,) rising · joints_2d (T, 21, 2) crop
    pixels · global_orient (T, 3) in the crop frame · hand_pose (T, 15, 3) · betas (10,) or (T, 10)
    and, where known, weight_2d (T, 21) and weight_3d (T,): how much the labels count (default 1),
    visibility (T, 21), occlusion (T,).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from hand_perception.fusion import window_slots
from hand_perception.networks.deformer import BackboneFeatures, Deformer
from hand_perception.types import HandPerceptionError

Sequence_ = Mapping[str, NDArray[Any]]
LABELS: dict[str, tuple[int, ...]] = {
    "intrinsics": (3, 3),
    "M_camera_crop": (3, 3),
    "joints_2d": (21, 2),
    "global_orient": (3,),
    "hand_pose": (15, 3),
    "betas": (10,),
    "weight_2d": (21,),
    "weight_3d": (),
    "occlusion": (),
    "visibility": (21,),
}
"""What is stored of each frame besides `time_s` and its image or features, float32."""
FEATURES = BackboneFeatures._fields


def write_store(
    path: Path | str,
    sequences: Iterable[Sequence_],
    capacity: int,
    network: Deformer | None = None,
    batch_size: int = 32,
) -> int:
    """Write up to `capacity` frames of sequences into a new store; returns the number of frames.

    With a network whose backbone stays frozen its features are stored in half precision, in place
    of the images. A sequence that does not fit whole any more ends the writing.
    """
    path = Path(path)
    if (path / "frames.npz").exists():
        raise HandPerceptionError(f"{path} holds a store already; name a new folder")
    path.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.memmap] = {}
    lengths: list[int] = []
    stamps: list[NDArray[np.float64]] = []
    used = 0
    for sequence in sequences:
        rows = _rows(sequence, network, batch_size)
        count = len(rows["time_s"])
        if used + count > capacity:
            break
        stamps.append(rows.pop("time_s").astype(np.float64))
        for name, values in rows.items():
            if name not in arrays:
                shape = (capacity, *values.shape[1:])
                arrays[name] = open_memmap(path / f"{name}.npy", "w+", values.dtype, shape)
            arrays[name][used : used + count] = values
        lengths.append(count)
        used += count
    if not lengths:
        raise HandPerceptionError(f"no sequence fits a store of {capacity} frames")
    for array in arrays.values():
        array.flush()
    # Written last: a store without it is unfinished.
    np.savez(path / "frames.npz", lengths=np.array(lengths), time_s=np.concatenate(stamps))
    (path / "store.json").write_text(json.dumps({"frames": used, "arrays": sorted(arrays)}))
    return used


def _rows(
    sequence: Sequence_, network: Deformer | None, batch_size: int
) -> dict[str, NDArray[Any]]:
    # The arrays of one sequence as the store keeps them.
    needed = ("image", "intrinsics", "time_s", "joints_2d", "global_orient", "hand_pose", "betas")
    if missing := [name for name in needed if name not in sequence]:
        raise HandPerceptionError(f"a sequence lacks {missing}; it needs {list(needed)}")
    given = dict(sequence)
    if "M_camera_crop" not in given and "R_camera_crop" in given:
        given["M_camera_crop"] = given["R_camera_crop"]
    count = len(given["time_s"])
    if count < 1 or np.any(np.diff(given["time_s"]) <= 0):
        raise HandPerceptionError("stamps of a sequence must rise from frame to frame")
    rows: dict[str, NDArray[Any]] = {"time_s": np.asarray(given["time_s"])}
    for name, shape in LABELS.items():
        value = given.get(name)
        if value is None:
            if name == "M_camera_crop":
                raise HandPerceptionError("a sequence lacks M_camera_crop or R_camera_crop")
            default = 0.0 if name == "occlusion" else 1.0
            value = np.full((count, *shape), default)
        rows[name] = np.broadcast_to(np.asarray(value, np.float32), (count, *shape))
    if network is None:
        rows["image"] = np.asarray(given["image"], np.uint8)
        return rows
    parts: list[BackboneFeatures] = []
    device = next(network.parameters()).device
    with torch.inference_mode():
        for start in range(0, count, batch_size):
            images = torch.from_numpy(np.ascontiguousarray(given["image"][start:][:batch_size]))
            parts.append(network.backbone(images.to(device).permute(0, 3, 1, 2).float() / 255))
    for name in FEATURES:
        values = [getattr(part, name) for part in parts]
        if values[0] is not None:
            dtype = torch.float32 if name in ("screen", "world") else torch.float16
            rows[name] = torch.cat(values).to(dtype).cpu().numpy()
    return rows


class FrameStore:
    """A store that `write_store` made, opened for reading."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "frames.npz").is_file():
            raise HandPerceptionError(f"{path} holds no finished store (frames.npz is not there)")
        with np.load(self.path / "frames.npz") as index:
            lengths, self.time_s = index["lengths"], index["time_s"]
        ends = np.cumsum(lengths)
        self.sequences: list[tuple[int, int]] = list(
            zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        )
        self.owner = np.repeat(np.arange(len(lengths)), lengths)
        self.arrays = {
            file.stem: np.load(file, mmap_mode="r") for file in sorted(self.path.glob("*.npy"))
        }

    def __len__(self) -> int:
        return len(self.time_s)

    def window(
        self, frame: int, *, frames: int, gap_s: float, lookahead: bool, drop: NDArray[np.bool_]
    ) -> dict[str, NDArray[Any]]:
        """The window of T = `frames` around a frame, causal or (lookahead) as centred as it can be.

        drop (T,) hides slots other than the target's. Rows of hidden slots repeat the target's.
        """
        start, end = self.sequences[self.owner[frame]]
        stamps = self.time_s[start:end]
        slots, place = window_slots(
            stamps,
            frame - start,
            frames=frames,
            gap_s=gap_s,
            tolerance_s=gap_s / 2,
            end=len(stamps) if lookahead else None,
        )
        valid = np.array([slot is not None for slot in slots]) & ~drop
        valid[place] = True
        rows = np.array(
            [start + s if s is not None and v else frame for s, v in zip(slots, valid, strict=True)]
        )
        crop = np.asarray(self.arrays["M_camera_crop"][rows], np.float64)
        out = {n: np.asarray(a[rows]) for n, a in self.arrays.items() if n != "M_camera_crop"}
        out["crop_rotation"] = (crop[place].T @ crop).astype(np.float32)
        out["offsets_s"] = (self.time_s[rows] - self.time_s[frame]).astype(np.float32)
        out["valid"], out["target"] = valid, np.array(place)
        return out


class WindowSampler:
    """Batches of windows from several stores, mixed by weight; batch n depends on (seed, n) alone.

    A resumed run therefore sees the batches it would have seen. In a distributed run each of
    `world` processes takes its share of the same batch.
    """

    def __init__(
        self,
        stores: Sequence[FrameStore],
        *,
        batch_size: int,
        frames: int = 7,
        gap_s: tuple[float, float] = (1 / 15, 1 / 15),
        lookahead: float = 0.5,
        drop: float = 0.1,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """gap_s: range from which each window's gap is drawn; lookahead: share of windows that see
        later frames; drop: share of the slots that are hidden, as dropped frames would be."""
        if not stores or batch_size < 1 or batch_size % world:
            raise HandPerceptionError(
                f"{len(stores)} stores, batch of {batch_size} on {world} processes: at least one "
                "store and a positive batch that the processes share evenly are needed"
            )
        weights = [1.0] * len(stores) if weights is None else list(weights)
        if len(weights) != len(stores) or min(weights) < 0 or sum(weights) <= 0:
            raise HandPerceptionError(
                f"weights {weights} of {len(stores)} stores: one that is not negative for each, "
                "not all zero"
            )
        self.stores = list(stores)
        self.batch_size, self.frames, self.gap_s = batch_size, frames, gap_s
        self.lookahead, self.drop = lookahead, drop
        self.share = np.array(weights) / sum(weights)
        self.seed, self.rank, self.world = seed, rank, world

    def batch(self, number: int) -> dict[str, Tensor]:
        """Batch `number`: every array of `FrameStore.window`, stacked: (B, T, ...), target (B,)."""
        rng = np.random.default_rng((self.seed, number))
        windows = []
        for row in range(self.batch_size):
            store = self.stores[rng.choice(len(self.stores), p=self.share)]
            frame, gap = int(rng.integers(len(store))), float(rng.uniform(*self.gap_s))
            lookahead, drop = rng.random() < self.lookahead, rng.random(self.frames) < self.drop
            if row % self.world == self.rank:
                windows.append(
                    store.window(
                        frame, frames=self.frames, gap_s=gap, lookahead=lookahead, drop=drop
                    )
                )
        names = set.intersection(*(set(window) for window in windows))
        return {
            name: torch.from_numpy(np.stack([window[name] for window in windows]))
            for name in sorted(names)
        }


def network_input(batch: Mapping[str, Tensor]) -> Tensor | BackboneFeatures:
    """What `Deformer.forward` takes for its images: the batch's cached features, else its images.

    Images (B, T, S, S, 3) uint8 become (B, T, 3, S, S) in [0, 1], features become float32.
    """
    if "coarse" in batch:
        return BackboneFeatures._make(
            batch[name].float() if name in batch else None for name in FEATURES
        )
    if "image" not in batch:
        raise HandPerceptionError("a batch needs images or cached features of one kind")
    return batch["image"].movedim(-1, -3).float() / 255
