"""The estimator node: images and camera_info in; joints, angles, poses, meshes and TF out.

    python -m hand_perception.ros.estimator_node --ros-args -r image:=/camera/image_raw

A lifecycle node: weights load and warm up in configure, activate subscribes, cleanup frees all.
The executor's thread only stores the newest image; a worker thread converts, infers, converts.
"""

from __future__ import annotations

import dataclasses
import gc
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from hand_perception.networks import resolve_device
from hand_perception.pipeline import HandPerception
from hand_perception.ros import conversions, decoding, parameters
from hand_perception.ros.health import ERROR, OK, Health, Report
from hand_perception.ros.inbox import Inbox, Received
from hand_perception.ros.outputs import Outputs
from hand_perception.types import SIDES, Camera, HandPerceptionError, Scene, Side

NODE_NAME = "hand_perception_estimator"
CAMERA_INFO_GRACE_S = 1.0
"""Images may come this much before the first camera_info without a complaint."""


class Perception(Protocol):
    """What the node needs of `hand_perception.pipeline.HandPerception`."""

    def process(
        self,
        image: NDArray[np.uint8],
        camera: Camera,
        stamp_s: float,
        boxes: dict[Side, tuple[float, float, float, float]] | None = None,
        depth: NDArray[np.float32] | None = None,
    ) -> Scene: ...

    def reset(self) -> None: ...

    def hand_model(self, side: Side) -> Any: ...


class _Frame(NamedTuple):
    """An image that may still wait for its result."""

    stamp_s: float
    header: Header
    rgb: NDArray[np.uint8]
    camera: Camera


class EstimatorNode(LifecycleNode):
    """See the module; `load(method=..., device=..., **options)` makes the pipeline."""

    def __init__(self, load: Callable[..., Perception]) -> None:
        super().__init__(NODE_NAME)
        self._load = load
        self._perception: Perception | None = None
        self._outputs: Outputs | None = None
        self._inbox = Inbox()
        self._worker: threading.Thread | None = None
        self._subscriptions_made: list[Subscription] = []
        self._info: CameraInfo | None = None
        self._camera: Camera | None = None
        self._active_since = 0.0
        self._last_stamp_ns: int | None = None
        self._failure: str | None = None
        self._calibration = "none yet"
        self._camera_frame = ""
        self._device = ""
        self._frames: deque[_Frame] = deque()
        self._last_out_s = -np.inf
        self._health = Health()
        parameters.declare(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Health is reported in real time, also while a simulation stands still.
        self._timer = self.create_timer(
            1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    @property
    def is_configured(self) -> bool:
        """Whether the pipeline is loaded."""
        return self._perception is not None

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights, run them once, and create the publishers."""
        settings = parameters.values(self)
        # Zero stands for a method's own choice, which is not to name the option.
        options = {name: settings[name] for name in ("hand_size_m", "lag") if settings[name]}
        start = time.monotonic()
        try:
            self._device = str(resolve_device(settings["device"]))
            perception = self._load(method=settings["method"], device=settings["device"], **options)
            _warm_up(perception)
            faces = {side: _to_numpy(perception.hand_model(side).faces) for side in SIDES}
            self._outputs = Outputs(self, faces, _qos(settings, "output"))
        except Exception as error:  # whatever a method raises, the node stays and tells
            self._failure = _sentence(error)
            self.get_logger().error(f"can't configure: {self._failure}")
            return TransitionCallbackReturn.FAILURE
        self._perception = perception
        self._failure = None
        self.get_logger().info(
            f"{settings['method']} on {self._device} is ready"
            f" after {time.monotonic() - start:.1f} s"
        )
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker, with empty buffers."""
        assert self._perception is not None
        settings = parameters.values(self)
        self._perception.reset()
        self._inbox = Inbox()
        self._info = self._camera = self._last_stamp_ns = None
        self._frames = deque(maxlen=settings["lag"] + 1)
        self._last_out_s = -np.inf
        self._active_since = time.monotonic()
        self._worker = threading.Thread(target=self._work, args=(self._inbox,), name="estimator")
        self._worker.start()
        self._subscribe(settings)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, let the frame in progress end, and clear what RViz shows."""
        self.stop()
        if self._outputs is not None:
            self._outputs.clear(
                Header(stamp=self.get_clock().now().to_msg(), frame_id=self._camera_frame)
            )
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the publishers, the networks and their memory."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate and clean up."""
        self.stop()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured with nothing held."""
        self.stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def start(self) -> None:
        """Configure and activate, as a lifecycle manager would."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def stop(self) -> None:
        """Unsubscribe and wait for the worker to end."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made = []
        self._inbox.close()
        if self._worker is not None:
            self._worker.join()
            self._worker = None

    def _release(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        self._outputs = None
        self._perception = None
        gc.collect()
        torch.cuda.empty_cache()

    # Inputs: the executor's thread stores, nothing more

    def _subscribe(self, settings: dict[str, Any]) -> None:
        # Derived from `image`, so that one remapping moves both, as image_transport does it.
        image_topic = self.resolve_topic_name("image")
        image_type = Image
        if settings["image_transport"] == "compressed":
            image_topic, image_type = f"{image_topic}/compressed", CompressedImage
        qos = _qos(settings, "image")
        # Small messages: kept in a longer queue, they tell how many images were lost.
        info_qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscriptions_made = [
            self.create_subscription(CameraInfo, "camera_info", self._on_info, info_qos),
            self.create_subscription(image_type, image_topic, self._on_image, qos),
        ]
        if settings["use_depth"]:
            self._subscriptions_made.append(
                self.create_subscription(Image, "depth/image", self._inbox.put_depth, qos)
            )

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message
        self._health.camera_info_received(
            time.monotonic(), decoding.stamp_to_ns(message.header.stamp)
        )

    def _on_image(self, message: Image | CompressedImage) -> None:
        now = time.monotonic()
        self._health.image_received(now, decoding.stamp_to_ns(message.header.stamp))
        if self._inbox.put(Received(message, now)):
            self._health.frame_dropped("replaced by a newer image")

    # The worker thread

    def _work(self, inbox: Inbox) -> None:
        while (image := inbox.take()) is not None:
            try:
                self._handle(image)
            except Exception:
                if not self.context.ok():  # shut down while publishing
                    return
                raise

    def _handle(self, image: Received) -> None:
        """Convert, infer, convert: one image."""
        assert self._perception is not None and self._outputs is not None
        message, header = image.message, image.message.header
        stamp_ns = decoding.stamp_to_ns(header.stamp)
        waited_s = time.monotonic() - image.time
        age_s = (self.get_clock().now().nanoseconds - stamp_ns) / decoding.NANOSECONDS - waited_s
        settings = parameters.values(self)
        if not self._in_order(stamp_ns):
            return
        try:
            rgb = decoding.message_to_rgb(message)
        except HandPerceptionError as error:
            return self._fail("unusable image", _sentence(error))
        if self._info is None and not any(settings["intrinsics"]) and self._is_early():
            return self._health.frame_dropped("before the first camera_info")
        try:
            camera = self._camera_for(rgb, settings)
        except HandPerceptionError as error:
            self._calibration = "unusable"
            return self._fail("no calibration", _sentence(error))
        if self._camera and (self._camera.width, self._camera.height) != rgb.shape[1::-1]:
            self._perception.reset()
        self._camera = camera
        self._camera_frame = header.frame_id
        stamp_s = decoding.stamp_to_s(header.stamp)
        self._frames.append(_Frame(stamp_s, header, rgb, camera))
        try:
            depth = self._depth_for(stamp_ns, rgb, settings)
            scene = self._perception.process(rgb, camera, stamp_s, depth=depth)
            scene = _select(scene, settings["min_score"])
        except Exception as error:  # one bad frame must not end the stream
            self._perception.reset()
            return self._fail("processing failed", _sentence(error))
        self._publish(scene, settings)
        now = time.monotonic()
        self._health.frame_processed(
            now, latency_s=now - image.time, input_age_s=age_s, tracks=len(scene.hands)
        )

    def _publish(self, scene: Scene, settings: dict[str, Any]) -> None:
        """Send a scene under the header of the image that it is for, which may be an earlier one.

        A method that answers late gives nothing for the first images, and stamps never go back.
        """
        assert self._outputs is not None
        frame = next((f for f in self._frames if f.stamp_s == scene.stamp_s), None)
        if frame is None or scene.stamp_s <= self._last_out_s:
            return
        self._last_out_s = scene.stamp_s
        self._outputs.publish(scene, frame.camera, frame.header, settings)
        self._outputs.publish_overlay(frame.rgb, scene, frame.camera, frame.header, settings)

    def _in_order(self, stamp_ns: int) -> bool:
        """Whether to process this stamp; a backward jump clears the buffers first."""
        last, self._last_stamp_ns = self._last_stamp_ns, stamp_ns
        if last is None or stamp_ns > last:
            return True
        if stamp_ns == last:
            self._health.frame_dropped("repeated stamp")
            return False
        assert self._perception is not None
        self.get_logger().warning(
            f"time jumped back by {(last - stamp_ns) / decoding.NANOSECONDS:.3f} s:"
            " tracks and buffers are cleared"
        )
        self._perception.reset()
        self._health.restarted()
        self._frames.clear()
        self._last_out_s = -np.inf
        return True

    def _is_early(self) -> bool:
        return time.monotonic() - self._active_since < CAMERA_INFO_GRACE_S

    def _camera_for(self, rgb: NDArray[np.uint8], settings: dict[str, Any]) -> Camera:
        height, width = rgb.shape[:2]
        if any(settings["intrinsics"]):
            self._calibration = "parameter intrinsics"
            return decoding.numbers_to_camera(list(settings["intrinsics"]), width, height)
        if self._info is None:
            raise HandPerceptionError(
                f"no camera_info on '{self.resolve_topic_name('camera_info')}';"
                " publish it or set the parameter 'intrinsics'"
            )
        camera = decoding.camera_info_to_camera(
            self._info, width=width, height=height, rectified=settings["rectified"]
        )
        self._calibration = "camera_info"
        return camera

    def _depth_for(
        self, stamp_ns: int, rgb: NDArray[np.uint8], settings: dict[str, Any]
    ) -> NDArray[np.float32] | None:
        if not settings["use_depth"]:
            return None
        message = self._inbox.depth_near(stamp_ns, settings["depth_tolerance_s"])
        if message is None:
            self._health.frame_without_depth("no depth image at that stamp")
            return None
        depth = decoding.depth_to_metres(message)
        if depth.shape != rgb.shape[:2]:
            raise HandPerceptionError(
                f"the depth image is {depth.shape[1]}x{depth.shape[0]}, the colour image"
                f" {rgb.shape[1]}x{rgb.shape[0]}; depth must be registered to colour"
            )
        return depth

    def _fail(self, reason: str, fault: str) -> None:
        self._health.frame_failed(reason, fault)
        self.get_logger().error(f"{reason}: {fault}", throttle_duration_sec=5.0)

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        settings = parameters.values(self)
        state = {
            "method": settings["method"],
            "device": self._device or settings["device"],
            "calibration": self._calibration,
            "image topic": self.resolve_topic_name("image"),
            "image transport": settings["image_transport"],
        }
        if self._worker is None:
            level = OK if self._failure is None else ERROR
            report = Report(level, self._failure or "not active", state)
        else:
            report = self._health.report(time.monotonic(), state)
        self._diagnostics.publish(
            conversions.report_to_diagnostics(
                report,
                Header(stamp=self.get_clock().now().to_msg()),
                name=f"{self.get_fully_qualified_name().lstrip('/')}: hands",
                hardware_id=self._camera_frame or "no camera yet",
            )
        )


def _qos(settings: dict[str, Any], which: str) -> QoSProfile:
    reliability = {
        "best_effort": ReliabilityPolicy.BEST_EFFORT,
        "reliable": ReliabilityPolicy.RELIABLE,
    }[settings[f"{which}_reliability"]]
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=settings[f"{which}_depth"], reliability=reliability
    )


def _warm_up(perception: Perception) -> None:
    """Run every network once, so that the first real frame is as fast as any."""
    image = np.zeros((480, 640, 3), np.uint8)
    box = (220.0, 140.0, 200.0, 200.0)
    camera = Camera(640, 480, 600.0, 600.0, 320.0, 240.0)
    perception.process(image, camera, 0.0)
    perception.process(image, camera, 0.1, boxes=dict.fromkeys(SIDES, box))
    perception.reset()


def _to_numpy(faces: Any) -> NDArray[np.integer]:
    """The faces (F, 3) of a hand model on whatever device."""
    return faces.cpu().numpy() if isinstance(faces, torch.Tensor) else np.asarray(faces)


def _select(scene: Scene, min_score: float) -> Scene:
    """The hands and objects that are sure enough; numbers that are not finite are an error."""
    for hand in scene.hands:
        numbers = (hand.joints_3d, hand.vertices, hand.T_camera_wrist, hand.joint_angles)
        if not all(np.isfinite(value).all() for value in numbers):
            raise HandPerceptionError(
                f"the {hand.side} hand's result has numbers that are not finite"
            )
    return dataclasses.replace(
        scene,
        hands=[hand for hand in scene.hands if hand.score >= min_score],
        objects=[item for item in scene.objects if item.score >= min_score],
    )


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, HandPerceptionError) else f"{type(error).__name__}: {text}"


def main(
    args: list[str] | None = None, load: Callable[..., Perception] = HandPerception.load
) -> int:
    """Run the node until a signal ends it; returns the exit status."""
    rclpy.init(args=args)
    node = None
    try:
        node = EstimatorNode(load)
        if node.get_parameter("autostart").value:
            node.start()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except InvalidParameterValueException as error:
        print(f"{NODE_NAME}: {error}", file=sys.stderr)
        return 2
    finally:
        # Ctrl-C reaches the node twice, from the terminal and from launch: once is enough.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.stop()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
