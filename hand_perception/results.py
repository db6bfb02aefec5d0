"""What an estimation leaves on disk: JSON a frame, arrays of all hands, pictures, meshes.

frames/000000.json    everything about one frame but the mesh; see `scene_to_dict`
hands.npz             the same for all hands of all frames, one row a hand
overlay.png | overlay.mp4 | overlay/000000.jpg      for an image, a stream, a folder
meshes/000000_left.ply                              on request; camera frame, metres
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.drawing import draw_scene
from hand_perception.sources import Frame, Kind, Source
from hand_perception.types import Camera, HandPerceptionError, Scene, Side

HAND_ARRAYS = (
    "joints_3d",
    "joints_2d",
    "joint_confidence",
    "global_orient",
    "hand_pose",
    "betas",
    "transl",
    "T_camera_wrist",
    "joint_angles",
)
"""The fields of HandPose that are kept; units and shapes are said in `types.HandPose`."""


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    """The scene as plain numbers and lists, meshes left out; metres, radians, pixels."""
    return {
        "stamp_s": scene.stamp_s,
        "hands": [
            {"side": hand.side, "score": float(hand.score), "track_id": int(hand.track_id)}
            | {name: np.asarray(getattr(hand, name)).tolist() for name in HAND_ARRAYS}
            for hand in scene.hands
        ],
        "objects": [
            {
                "name": item.name,
                "score": float(item.score),
                "T_camera_object": np.asarray(item.T_camera_object).tolist(),
                "extents": np.asarray(item.extents).tolist(),
            }
            for item in scene.objects
        ],
    }


class ResultWriter:
    """Writes results frame by frame; use it in a `with`, whose end completes the files."""

    def __init__(
        self,
        out: Path,
        source: Source,
        faces: Mapping[Side, NDArray[np.integer]],
        *,
        overlay: bool = True,
        meshes: bool = False,
    ) -> None:
        """Makes the folder and removes what an earlier run left in it."""
        self._out = out
        self._kind: Kind = source.kind
        self._fps = source.fps
        self._faces = faces
        self._overlay = overlay
        self._meshes = meshes
        self._rows: dict[str, list[Any]] = {
            name: [] for name in ("frame", "stamp_s", "side", "score", "track_id", *HAND_ARRAYS)
        }
        self._video: cv2.VideoWriter | None = None
        self._video_size = (0, 0)
        self.frames = 0
        self.hands = 0
        if out.exists() and not out.is_dir():
            raise HandPerceptionError(f"{out} is a file; results go into a folder")
        (out / "frames").mkdir(parents=True, exist_ok=True)
        for pattern in ("frames/[0-9]*.json", "overlay/[0-9]*.jpg", "meshes/[0-9]*.ply"):
            for old in out.glob(pattern):
                old.unlink()

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._video is not None:
            self._video.release()
        arrays: dict[str, Any] = {name: np.array(rows) for name, rows in self._rows.items()}
        np.savez_compressed(self._out / "hands.npz", **arrays)

    def add(self, frame: Frame, camera: Camera, scene: Scene, **extra: Any) -> None:
        """Write one frame; `extra` goes into its JSON beside name, camera and scene."""
        head = {"name": frame.name, "camera": asdict(camera)} | extra
        text = json.dumps(head | scene_to_dict(scene))
        (self._out / "frames" / f"{self.frames:06d}.json").write_text(text)
        for hand in scene.hands:
            row = {"frame": self.frames, "stamp_s": scene.stamp_s}
            for name, values in self._rows.items():
                values.append(row[name] if name in row else getattr(hand, name))
        if self._meshes:
            self._write_meshes(scene)
        if self._overlay:
            self._write_overlay(draw_scene(frame.image_rgb, scene, self._faces, camera))
        self.frames += 1
        self.hands += len(scene.hands)

    def _write_meshes(self, scene: Scene) -> None:
        # Imported here: only meshes need it.
        import trimesh

        folder = self._out / "meshes"
        folder.mkdir(exist_ok=True)
        for hand in scene.hands:
            mesh = trimesh.Trimesh(hand.vertices, self._faces[hand.side], process=False)
            mesh.export(folder / f"{self.frames:06d}_{hand.side}.ply")

    def _write_overlay(self, picture: NDArray[np.uint8]) -> None:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if self._kind == "image":
            _write_image(self._out / "overlay.png", bgr)
        elif self._kind == "directory":
            (self._out / "overlay").mkdir(exist_ok=True)
            _write_image(self._out / "overlay" / f"{self.frames:06d}.jpg", bgr)
        else:
            if self._video is None:
                self._video_size = (bgr.shape[1], bgr.shape[0])
                self._video = cv2.VideoWriter(
                    str(self._out / "overlay.mp4"),
                    cv2.VideoWriter.fourcc(*"mp4v"),
                    self._fps,
                    self._video_size,
                )
                if not self._video.isOpened():
                    raise HandPerceptionError(
                        f"{self._out / 'overlay.mp4'} cannot be written; "
                        "is the folder writable and OpenCV built with MPEG-4"
                    )
            # A video keeps the size of its first frame.
            if (bgr.shape[1], bgr.shape[0]) != self._video_size:
                bgr = cv2.resize(bgr, self._video_size, interpolation=cv2.INTER_AREA)
            self._video.write(bgr)


def _write_image(path: Path, bgr: NDArray[Any]) -> None:
    if not cv2.imwrite(str(path), bgr):
        raise HandPerceptionError(f"{path} cannot be written; is the folder writable")
