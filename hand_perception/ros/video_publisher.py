"""Plays videos, folders of images or a webcam as a camera: `image` (or compressed), `camera_info`.

    python -m hand_perception.ros.video_publisher clip.mp4 --rate 30 --hfov 60

Each frame is stamped when it is sent, as a camera driver does it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
import yaml
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from hand_perception.ros import conversions
from hand_perception.sources import open_source
from hand_perception.types import Camera, HandPerceptionError


def camera_from_fov(width: int, height: int, hfov_deg: float) -> Camera:
    """A camera without distortion that sees so many degrees from the left to the right edge."""
    if not 1 <= hfov_deg <= 170:
        raise HandPerceptionError(f"hfov is {hfov_deg} degrees; allowed is 1 to 170")
    focal = width / 2 / math.tan(math.radians(hfov_deg) / 2)
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def camera_from_yaml(path: str | Path) -> Camera:
    """The camera of a calibration file as camera_calibration writes it."""
    try:
        content: dict[str, Any] = yaml.safe_load(Path(path).read_text())
        k = content["camera_matrix"]["data"]
        d = content.get("distortion_coefficients", {}).get("data", [])
        width, height = int(content["image_width"]), int(content["image_height"])
        fx, fy, cx, cy = (float(value) for value in (k[0], k[4], k[2], k[5]))
        distortion = tuple(float(value) for value in d) if any(d) else ()
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as error:
        raise HandPerceptionError(
            f"{path} is no camera calibration ({type(error).__name__}: {error}); image_width,"
            " image_height, camera_matrix and distortion_coefficients are needed"
        ) from error
    return Camera(width, height, fx, fy, cx, cy, distortion)


def scale_camera(camera: Camera, width: int, height: int) -> Camera:
    """The camera of the picture resized to another size; pixel centres stay pixel centres."""
    x, y = width / camera.width, height / camera.height
    return Camera(
        width,
        height,
        camera.fx * x,
        camera.fy * y,
        (camera.cx + 0.5) * x - 0.5,
        (camera.cy + 0.5) * y - 0.5,
        camera.distortion,
    )


class VideoPublisher(Node):
    """Publishes frames; `play` returns when they are all sent."""

    def __init__(
        self,
        *,
        compressed: bool,
        frame_id: str,
        hfov_deg: float,
        calibration: Camera | None,
    ) -> None:
        super().__init__("video_publisher")
        self._compressed = compressed
        self._frame_id = frame_id
        self._hfov_deg = hfov_deg
        self._calibration = calibration
        # Reliable is offered, so that both kinds of subscribers are served.
        qos = QoSProfile(depth=5)
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self._image = self.create_publisher(kind, topic, qos)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos)

    def wait_for_listeners(self, count: int, timeout_s: float) -> None:
        """Until someone listens to the images, and `count` to camera_info.

        Raises HandPerceptionError after the timeout.
        """
        end = time.monotonic() + timeout_s
        while rclpy.ok() and (
            self._image.get_subscription_count() == 0 or self._info.get_subscription_count() < count
        ):
            if time.monotonic() > end:
                raise HandPerceptionError(
                    f"{self._image.get_subscription_count()} listen to {self._image.topic_name} and"
                    f" {self._info.get_subscription_count()} to {self._info.topic_name} after"
                    f" {timeout_s:g} s; 1 and {count} are waited for"
                )
            rclpy.spin_once(self, timeout_sec=0.1)
        time.sleep(1.0)  # discovery is not done on both sides at the same time

    def play(self, images: Iterator[NDArray[np.uint8]], rate_hz: float) -> int:
        """Send images at a rate; the number sent."""
        sent = 0
        due = time.monotonic()
        for image in images:
            due += 1 / rate_hz
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic() - 1 / rate_hz)  # late: go on from here, no burst
            if not rclpy.ok():
                break
            self.send(image)
            rclpy.spin_once(self, timeout_sec=0.0)
            sent += 1
        return sent

    def send(self, image: NDArray[np.uint8]) -> None:
        """Publish one frame with its camera_info, stamped now."""
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        height, width = image.shape[:2]
        if self._calibration is None:
            camera = camera_from_fov(width, height, self._hfov_deg)
        else:
            camera = scale_camera(self._calibration, width, height)
        self._info.publish(conversions.camera_to_info(camera, header))
        if self._compressed:
            self._image.publish(conversions.rgb_to_compressed(image, header, 90))
        else:
            self._image.publish(conversions.rgb_to_image(image, header))


def read_images(
    sources: Sequence[str], *, frames: int | None, width: int | None, loop: bool
) -> Iterator[NDArray[np.uint8]]:
    """The images of each source in turn, at most `frames` of each, resized to `width` if given."""
    opened = [open_source(source) for source in sources]
    rounds = itertools.count() if loop else range(1)
    for _ in rounds:
        for source in opened:
            for frame in itertools.islice(source, frames):
                image = frame.image_rgb
                if width is not None and width != image.shape[1]:
                    height = round(image.shape[0] * width / image.shape[1])
                    image = np.asarray(cv2.resize(image, (width, height)), np.uint8)
                yield image


def main(args: list[str] | None = None) -> int:
    """Play until the end or a signal; returns the exit status."""
    parser = argparse.ArgumentParser(prog="video_publisher", description=__doc__)
    parser.add_argument("sources", nargs="+", help="video, folder of images, image or camera:0")
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second")
    parser.add_argument("--frames", type=int, help="at most so many of each source")
    parser.add_argument("--width", type=int, help="resize to this width")
    parser.add_argument("--loop", action="store_true", help="start again at the end")
    parser.add_argument("--compressed", action="store_true", help="send JPEG")
    parser.add_argument("--hfov", type=float, default=60.0, help="horizontal view, degrees")
    parser.add_argument("--calibration", type=Path, help="camera_calibration yaml, instead of hfov")
    parser.add_argument("--frame-id", default="camera_optical_frame")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for listeners")
    parser.add_argument("--listeners", type=int, default=1, help="wait for so many to camera_info")
    argv = sys.argv if args is None else ["video_publisher", *args]
    options = parser.parse_args(remove_ros_args(argv)[1:])
    if not 0 < options.rate <= 1000:
        parser.error(f"--rate is {options.rate}; allowed is more than 0, at most 1000")
    rclpy.init(args=argv)
    try:
        node = VideoPublisher(
            compressed=options.compressed,
            frame_id=options.frame_id,
            hfov_deg=options.hfov,
            calibration=camera_from_yaml(options.calibration) if options.calibration else None,
        )
        if options.wait > 0:
            node.wait_for_listeners(options.listeners, options.wait)
        images = read_images(
            options.sources, frames=options.frames, width=options.width, loop=options.loop
        )
        sent = node.play(images, options.rate)
        if rclpy.ok():
            time.sleep(0.5)  # let the last image leave before the publisher goes
        print(f"sent {sent} images", flush=True)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except HandPerceptionError as error:
        print(f"video_publisher: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
