"""Where pictures come from: an image, a video, a folder of images, a rosbag or a camera.

`open_source` says what is wrong with a source before anything is read from it; a source is an
iterable of `Frame`, with `count` where the number of frames is known beforehand.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hand_perception.types import Camera, HandPerceptionError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")
BAG_SUFFIXES = (".mcap", ".db3")

ASSUMED_HFOV_DEG = 60.0
"""What a picture of an unknown camera is taken to see across its width."""

Kind = Literal["image", "video", "directory", "bag", "camera"]


@dataclass(frozen=True)
class Frame:
    """One picture of a source."""

    image_rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    stamp_s: float
    """Seconds, increasing; from the start of a video or directory, else since the epoch."""
    name: str
    """The file's name without its ending, or the number of the frame."""
    camera: Camera | None = None
    """Only a bag knows its camera."""


@dataclass(frozen=True)
class Source:
    """An iterable of frames; each iteration starts anew (a camera goes on)."""

    kind: Kind
    name: str
    frames: Callable[[], Iterator[Frame]]
    count: int | None = None
    """Number of frames, where it is known; a video's is what its header says."""
    fps: float = 30.0
    """Frames a second, nominal."""

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()


def open_source(
    source: str | Path,
    *,
    directory_fps: float = 30.0,
    topic: str | None = None,
    skip: Callable[[HandPerceptionError], None] | None = None,
) -> Source:
    """The frames of a file, a folder, a rosbag or a camera ("0", "camera:0").

    `directory_fps` gives the images of a folder their stamps, `topic` picks the images of a bag.
    An image of a folder that cannot be read raises, or is handed to `skip` and left out.
    Raises HandPerceptionError, with a sentence, for what is missing, unreadable or unknown.
    """
    text = str(source)
    if (index := re.fullmatch(r"(?:camera:)?(\d+)", text)) and not Path(text).exists():
        return _camera(int(index.group(1)))
    path = Path(text)
    if not path.exists():
        raise HandPerceptionError(
            f"{text} is not there; give an image, a video, a folder of images, a rosbag, "
            "or a camera such as camera:0"
        )
    suffix = path.suffix.lower()
    if suffix in BAG_SUFFIXES or (path.is_dir() and _is_bag(path)):
        return _bag(path, topic)
    if path.is_dir():
        return _directory(path, directory_fps, skip)
    if suffix in IMAGE_SUFFIXES:
        frame = Frame(read_image(path), 0.0, path.stem)
        return Source("image", path.name, lambda: iter((frame,)), 1)
    if suffix in VIDEO_SUFFIXES:
        return _video(path)
    raise HandPerceptionError(
        f"{text} is of an unknown kind; known are images ({' '.join(IMAGE_SUFFIXES)}), "
        f"videos ({' '.join(VIDEO_SUFFIXES)}) and rosbags ({' '.join(BAG_SUFFIXES)})"
    )


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """The image file as RGB (H, W, 3), upright as its EXIF data says.

    Raises HandPerceptionError when it is missing, empty, truncated or no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise HandPerceptionError(f"{path} cannot be read: {error.strerror}") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str = "image") -> NDArray[np.uint8]:
    """JPEG, PNG and the like as RGB (H, W, 3); `name` is for the error.

    OpenCV fills the rest of a truncated JPEG with grey and says nothing, Pillow refuses it.
    """
    if not data:
        raise HandPerceptionError(
            f"{name} is empty; an encoded image such as JPEG or PNG is needed"
        )
    try:
        with Image.open(BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                raise HandPerceptionError(
                    f"{name} has pixels of kind {upright.mode}, as depth images have; "
                    "8-bit colour or grey is needed"
                )
            return np.array(upright.convert("RGB"))
    except HandPerceptionError:
        raise
    # What Pillow raises for broken data depends on the format.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise HandPerceptionError(
            f"{name} is truncated or no image that can be read ({str(error).split(' <')[0]}); "
            "JPEG, PNG, BMP, WebP and TIFF can be read"
        ) from error


def camera_of_hfov(width: int, height: int, hfov_deg: float = ASSUMED_HFOV_DEG) -> Camera:
    """A pinhole camera with square pixels, looking along the middle of its image."""
    focal = width / 2 / math.tan(math.radians(hfov_deg) / 2)
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _directory(
    path: Path, fps: float, skip: Callable[[HandPerceptionError], None] | None
) -> Source:
    if not fps > 0:
        raise HandPerceptionError(f"a folder's rate is {fps}; it must be positive frames a second")
    files = sorted(
        (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES),
        key=lambda file: natural_key(file.name),
    )
    if not files:
        raise HandPerceptionError(
            f"{path} holds no images and is no rosbag; images end in {' '.join(IMAGE_SUFFIXES)}"
        )

    def frames() -> Iterator[Frame]:
        for index, file in enumerate(files):
            try:
                image = read_image(file)
            except HandPerceptionError as error:
                if skip is None:
                    raise
                skip(error)
                continue
            yield Frame(image, index / fps, file.stem)

    return Source("directory", path.name, frames, len(files), fps)


def _video(path: Path) -> Source:
    capture = _open_capture(str(path), f"{path} is empty, damaged or in an unknown video format")
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    fps = capture.get(cv2.CAP_PROP_FPS)
    readable = capture.grab()
    capture.release()
    if not readable:
        raise HandPerceptionError(f"{path} holds no frame that can be decoded")
    fps = fps if 0 < fps < 1000 else 30.0

    def frames() -> Iterator[Frame]:
        capture = _open_capture(str(path), f"{path} can no longer be opened")
        stamp_s = -1.0 / fps
        try:
            while True:
                good, bgr = capture.read()
                if not good:
                    return
                # Some containers have no time stamps, or repeat them.
                read_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                stamp_s = read_s if read_s > stamp_s else stamp_s + 1.0 / fps
                index = max(int(capture.get(cv2.CAP_PROP_POS_FRAMES)) - 1, 0)
                yield Frame(_bgr_to_rgb(bgr), stamp_s, f"{index:06d}")
        finally:
            capture.release()

    return Source("video", path.name, frames, count if count > 0 else None, fps)


def _camera(index: int) -> Source:
    capture = _open_capture(
        index,
        f"camera {index} cannot be opened; is it plugged in, free, and this user in group video",
    )
    fps = capture.get(cv2.CAP_PROP_FPS)

    def frames() -> Iterator[Frame]:
        number = 0
        try:
            while True:
                good, bgr = capture.read()
                if not good:
                    raise HandPerceptionError(
                        f"camera {index} stopped giving pictures after {number} frames"
                    )
                yield Frame(_bgr_to_rgb(bgr), time.time(), f"{number:06d}")
                number += 1
        finally:
            capture.release()

    return Source("camera", f"camera_{index}", frames, None, fps if 0 < fps < 1000 else 30.0)


def _open_capture(source: str | int, complaint: str) -> cv2.VideoCapture:
    try:
        capture = cv2.VideoCapture(source)
    except cv2.error as error:
        raise HandPerceptionError(complaint) from error
    if not capture.isOpened():
        raise HandPerceptionError(complaint)
    return capture


def _bgr_to_rgb(bgr: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _is_bag(path: Path) -> bool:
    return (path / "metadata.yaml").exists() or any(
        file.suffix in BAG_SUFFIXES for file in path.iterdir()
    )


def _bag(path: Path, topic: str | None) -> Source:
    # Imported here: only a bag needs the bag library.
    from hand_perception.ros.bag import read_frames

    def frames() -> Iterator[Frame]:
        for index, (stamp_s, image, camera) in enumerate(read_frames(path, topic=topic)):
            yield Frame(image, stamp_s, f"{index:06d}", camera)

    return Source("bag", path.name, frames)
