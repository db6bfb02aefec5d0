"""A ROS node for tests: plays the camera for an estimator process and keeps what comes back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from hand_perception.ros import conversions
from hand_perception.types import Camera

FRAME = "test_optical_frame"
CAMERA = Camera(64, 48, 60.0, 61.0, 32.0, 24.0)
PATIENCE_S = 30.0


def isolate() -> None:
    """A domain of our own on this machine alone, for this process and its children."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(random.randrange(1, 100))
    os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"


def picture(value: int = 90) -> np.ndarray:
    """A grey image (48, 64, 3) of the size of `CAMERA`."""
    return np.full((CAMERA.height, CAMERA.width, 3), value, np.uint8)


class Estimator:
    """The stand-in node in a process of its own."""

    def __init__(self, namespace: str, **settings: str) -> None:
        script = Path(__file__).with_name("standin_node.py")
        command = [sys.executable, str(script), "--ros-args", "-r", f"__ns:={namespace}"]
        for name, value in settings.items():
            command += ["-p", f"{name}:={value}"]
        self.process = subprocess.Popen(
            command,
            cwd=script.parents[1],
            env={**os.environ, "PYTHONPATH": python_path(script.parents[1])},
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; exit status and what it logged."""
        self.process.send_signal(number)
        try:
            _, log = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, log = self.process.communicate()
        return self.process.returncode, log


class Client:
    """Publishes images and camera_info to the estimator, and collects messages by topic."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.estimator = f"{namespace}/hand_perception_estimator"
        self.node = rclpy.create_node("test_client", namespace=namespace)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self.image = self.node.create_publisher(Image, "image", 5)
        self.compressed = self.node.create_publisher(CompressedImage, "image/compressed", 5)
        self.depth = self.node.create_publisher(Image, "depth/image", 5)
        self.info = self.node.create_publisher(CameraInfo, "camera_info", 5)
        for side in ("left", "right"):
            self.listen(PointCloud2, f"{side}/joints")
            self.listen(JointState, f"{side}/joint_states")
            self.listen(PoseWithCovarianceStamped, f"{side}/wrist_pose")
            self.listen(Marker, f"{side}/mesh")
        self.listen(PoseWithCovarianceStamped, "objects/can/pose")
        self.listen(MarkerArray, "markers")
        self.listen(DiagnosticArray, "/diagnostics")
        self._stamp_ns = 1_700_000_000_000_000_000

    def listen(self, kind: type, topic: str) -> Any:
        """Keep every message of a topic in `received[topic]`."""
        return self.node.create_subscription(
            kind, topic, self.received[topic].append, QoSProfile(depth=100)
        )

    def close(self) -> None:
        self.node.destroy_node()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Spin until the condition holds, and return its value."""
        end = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
            rclpy.spin_once(self.node, timeout_sec=0.05)
        return value

    def spin_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def wait_connected(self, publisher: Any) -> None:
        """Until the estimator hears us and we hear it."""
        self.wait(lambda: publisher.get_subscription_count(), f"the estimator on {publisher.topic}")
        self.wait(lambda: self.node.count_publishers(f"{self.namespace}/markers"), "its publishers")
        self.wait(lambda: self.info.get_subscription_count(), "the estimator on camera_info")
        self.spin_for(0.3)

    def header(self, stamp_ns: int | None = None) -> Header:
        """The header of the next frame, 1/30 s after the one before, or of a given stamp."""
        self._stamp_ns = stamp_ns or self._stamp_ns + 33_333_333
        seconds, nanoseconds = divmod(self._stamp_ns, 1_000_000_000)
        return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=FRAME)

    def send_info(self, **fields: Any) -> None:
        """A camera_info of `CAMERA`, with some fields replaced."""
        info = conversions.camera_to_info(CAMERA, self.header())
        for name, value in fields.items():
            setattr(info, name, value)
        self.info.publish(info)
        self.spin_for(0.2)

    def exchange(
        self,
        rgb: np.ndarray,
        topic: str = "markers",
        send: Callable[[Header], None] | None = None,
        stamp_ns: int | None = None,
    ) -> Any:
        """Send an image until the answer for its stamp comes on a topic; the answer.

        A best-effort image may be lost on a busy machine, so it is sent again with a later stamp.
        """
        for _ in range(10):
            header = self.header(stamp_ns)
            if send is None:
                self.image.publish(conversions.rgb_to_image(rgb, header))
            else:
                send(header)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                rclpy.spin_once(self.node, timeout_sec=0.05)
                for message in self.received[topic]:
                    if header_of(message).stamp == header.stamp:
                        return message
        raise AssertionError(f"no answer on {topic}")

    def answers(self, rgb: np.ndarray, topics: list[str]) -> dict[str, Any]:
        """Send images until one of them is answered on every topic; the answers.

        The first message of a publisher that was just found may be lost.
        """
        for topic in topics:
            self.exchange(rgb, topic)
        header = header_of(self.exchange(rgb, topics[0]))
        return {topic: self.answer(topic, header.stamp) for topic in topics}

    def answer(self, topic: str, stamp: Time) -> Any:
        """The message of a topic with this stamp."""
        return self.wait(
            lambda: next((m for m in self.received[topic] if header_of(m).stamp == stamp), None),
            f"{topic} at {stamp}",
        )

    def diagnosis(self, level: bytes, text: str) -> dict[str, str]:
        """Wait until the estimator reports a level and a text; the values of that report."""
        last: list[Any] = []

        def find() -> Any:
            last[:] = [self.status()]
            return last[0].level == level and text in last[0].message

        try:
            self.wait(find, f"diagnostics {level!r} {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last was {last}") from None
        return {item.key: item.value for item in last[0].values}

    def status(self) -> DiagnosticStatus:
        """The next status that the estimator reports."""
        name = f"{self.estimator.lstrip('/')}: hands"
        self.received["/diagnostics"].clear()
        return self.wait(
            lambda: next(
                (s for a in self.received["/diagnostics"] for s in a.status if s.name == name), None
            ),
            "diagnostics",
        )

    def set_parameter(self, name: str, value: Any) -> str:
        """Set a parameter of the estimator; the reason of a refusal, or an empty string."""
        service = f"{self.estimator}/set_parameters"
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        result = self.call(SetParameters, service, request).results[0]
        return "" if result.successful else result.reason

    def call(self, kind: type, service: str, request: Any) -> Any:
        """Call a service and wait for its answer."""
        client = self.node.create_client(kind, service)
        try:
            self.wait(client.service_is_ready, service)
            future = client.call_async(request)
            self.wait(future.done, f"an answer of {service}")
            return future.result()
        finally:
            self.node.destroy_client(client)


def header_of(message: Any) -> Header:
    """The header of a message, or of the first element of an array."""
    if isinstance(message, MarkerArray):
        return message.markers[0].header
    return message.header if hasattr(message, "header") else message.transforms[0].header


def python_path(root: Path | str) -> str:
    """PYTHONPATH for a child: this checkout before what is set."""
    return os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
