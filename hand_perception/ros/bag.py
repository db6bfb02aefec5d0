"""Bags without ROS: read images, and write what came over the wire, as mcap; no rclpy in here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from hand_perception.ros.decoding import (
    camera_info_to_camera,
    message_to_rgb,
    stamp_to_s,
)
from hand_perception.types import Camera, HandPerceptionError

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_TYPES = Stores.ROS2_JAZZY
"""Message definitions; the standard ones are the same in all supported distributions."""


def read_frames(
    path: str | Path, *, topic: str | None = None
) -> Iterator[tuple[float, NDArray[np.uint8], Camera | None]]:
    """Stamp (s), image (H, W, 3) RGB and camera of each image message of a bag (mcap or sqlite3).

    topic: which images, needed if the bag holds several image topics. The camera comes from the
    `camera_info` beside the image topic, latest message first; None before there is one. Raises
    HandPerceptionError for what is no bag, has no such topic, or can't be decoded.
    """
    try:
        with AnyReader([Path(path)], default_typestore=get_typestore(_TYPES)) as reader:
            images = _image_connection(reader, topic)
            infos = [c for c in reader.connections if c.topic == _camera_info_topic(images.topic)]
            info = None
            for connection, _, data in reader.messages([images, *infos]):
                message: Any = reader.deserialize(data, connection.msgtype)
                if connection.topic != images.topic:
                    info = message
                    continue
                rgb = message_to_rgb(message)
                camera = info and camera_info_to_camera(
                    info, width=rgb.shape[1], height=rgb.shape[0]
                )
                yield stamp_to_s(message.header.stamp), rgb, camera
    except (AnyReaderError, OSError) as error:
        raise HandPerceptionError(
            f"{path} can't be read as a bag ({error}); give a rosbag2 folder or an .mcap file"
        ) from error


class BagWriter:
    """Writes serialized messages into a new bag folder, storage mcap; a context manager."""

    def __init__(self, folder: str | Path) -> None:
        """Raises HandPerceptionError if the folder is there already."""
        if Path(folder).exists():
            raise HandPerceptionError(f"{folder} exists; give a bag folder that is not there yet")
        self._types = get_typestore(_TYPES)
        self._writer = Writer(Path(folder), version=9, storage_plugin=StoragePlugin.MCAP)
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add_topic(self, topic: str, msgtype: str) -> None:
        """Declare a topic; msgtype such as `sensor_msgs/msg/Image`."""
        self._connections[topic] = self._writer.add_connection(
            topic, msgtype, typestore=self._types
        )

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Store one CDR message of a declared topic, received at a time."""
        self._writer.write(self._connections[topic], time_ns, data)


def _image_connection(reader: AnyReader, topic: str | None) -> Connection:
    found = [c for c in reader.connections if c.msgtype in IMAGE_TYPES]
    names = sorted({c.topic for c in found})
    if topic is not None:
        found = [c for c in found if c.topic == topic]
        if not found:
            there = ", ".join(names) or "no topic"
            raise HandPerceptionError(f"the bag has no images on {topic}; it has them on: {there}")
    elif len(names) != 1:
        raise HandPerceptionError(
            f"the bag has images on {', '.join(names)}; name one of these topics"
            if names
            else "the bag has no images; a topic of sensor_msgs Image or CompressedImage is needed"
        )
    return found[0]


def _camera_info_topic(image_topic: str) -> str:
    """`/camera/camera_info` for `/camera/image_raw` and `/camera/image_raw/compressed` alike."""
    return image_topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
