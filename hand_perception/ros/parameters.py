"""The parameters of the estimator node: one table with defaults, allowed values and descriptions.

config/estimator.yaml lists the same parameters for people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter

RELIABILITIES = ("best_effort", "reliable")
TRANSPORTS = ("raw", "compressed")
INTRINSICS_COUNTS = (4, 8, 9, 12)
"""fx, fy, cx, cy and 0, 4, 5 or 8 numbers of distortion."""


@dataclass(frozen=True)
class Setting:
    """One parameter; `low` and `high` are inclusive, `choices` are all that is allowed."""

    default: Any
    description: str
    when: str = "running"
    """When it may be changed: `start` (read only), `unconfigured`, or `running` (next frame)."""
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        descriptor = ParameterDescriptor(
            description=self.description, read_only=self.when == "start"
        )
        if self.choices:
            descriptor.additional_constraints = "one of " + ", ".join(self.choices)
        if self.when == "unconfigured":
            descriptor.additional_constraints += " (only while the node is unconfigured)"
        if math.isfinite(self.high) and isinstance(self.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
            ]
        elif math.isfinite(self.high):
            descriptor.integer_range = [
                IntegerRange(from_value=int(self.low), to_value=int(self.high))
            ]
        return descriptor


SETTINGS: dict[str, Setting] = {
    "autostart": Setting(
        True, "configure and activate by itself, without a lifecycle manager", "start"
    ),
    "method": Setting(
        "landmark_fit", "the method that estimates the hands, see the README", "unconfigured"
    ),
    "device": Setting("auto", "where networks run: auto, cpu, cuda or cuda:N", "unconfigured"),
    "lag": Setting(
        0,
        "temporal methods answer this many frames late, which is steadier; 0: at once",
        "unconfigured",
        low=0,
        high=30,
    ),
    "image_transport": Setting(
        "raw",
        "listen to 'image' (raw) or to 'image/compressed' (compressed)",
        "unconfigured",
        TRANSPORTS,
    ),
    "image_reliability": Setting(
        "best_effort",
        "QoS of the image subscription; best_effort takes every publisher, reliable waits for"
        " lost pieces",
        "unconfigured",
        RELIABILITIES,
    ),
    "image_depth": Setting(
        1,
        "QoS history of the image subscription; 1 means that the newest frame wins",
        "unconfigured",
        low=1,
        high=100,
    ),
    "output_reliability": Setting(
        "reliable", "QoS of everything published", "unconfigured", RELIABILITIES
    ),
    "output_depth": Setting(
        5, "QoS history of everything published", "unconfigured", low=1, high=100
    ),
    "use_depth": Setting(
        False,
        "also listen to 'depth/image' (16UC1 mm or 32FC1 m, registered to the colour image),"
        " which then sets the distance of the hands",
        "unconfigured",
    ),
    "depth_tolerance_s": Setting(
        0.02,
        "a depth image belongs to a colour image if their stamps differ by at most this (s); the"
        " node waits as long for it",
        low=0.0,
        high=0.5,
    ),
    "intrinsics": Setting(
        [0.0, 0.0, 0.0, 0.0],
        "fx, fy, cx, cy [, distortion k1, k2, p1, p2 [, k3 [, k4, k5, k6]]] in pixels of the image;"
        " replaces camera_info; all zero: use camera_info",
    ),
    "rectified": Setting(
        False, "the images are rectified: use P of camera_info and no distortion instead of K and D"
    ),
    "hand_size_m": Setting(
        0.0,
        "the user's hand: distance from the wrist to the knuckle of the middle finger (m);"
        " 0: estimated",
        "unconfigured",
        low=0.0,
        high=0.2,
    ),
    "min_score": Setting(
        0.0, "publish only hands and objects with at least this score", low=0.0, high=1.0
    ),
    "publish_mesh": Setting(True, "publish left/mesh and right/mesh while someone subscribes"),
    "publish_markers": Setting(True, "publish markers"),
    "publish_tf": Setting(True, "broadcast hand_left, hand_right and object_<name>"),
    "overlay_quality": Setting(80, "JPEG quality of overlay/compressed", low=1, high=100),
}


def declare(node: LifecycleNode) -> None:
    """Declare all settings; a value from the command line or a file is checked like any other."""

    def check(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            reason = refusal(parameter.name, parameter.value, node.is_configured)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)
    for name, setting in SETTINGS.items():
        node.declare_parameter(name, setting.default, setting.descriptor())


def values(node: LifecycleNode) -> dict[str, Any]:
    """The value of each setting now."""
    return {name: node.get_parameter(name).value for name in SETTINGS}


def refusal(name: str, value: Any, configured: bool) -> str:
    """Why a value can't be taken, in a sentence that says what is allowed; empty if it can."""
    setting = SETTINGS.get(name)
    if setting is None:  # not ours: use_sim_time and what rclpy declares
        return ""
    if configured and setting.when == "unconfigured":
        return (
            f"parameter '{name}' can only be changed while the node is unconfigured;"
            " deactivate and clean up first"
        )
    if setting.choices and value not in setting.choices:
        return f"parameter '{name}' is {value!r}; allowed are {', '.join(setting.choices)}"
    if isinstance(value, (int, float)) and not setting.low <= value <= setting.high:
        return f"parameter '{name}' is {value}; allowed is {setting.low:g} to {setting.high:g}"
    if name == "intrinsics":
        return _intrinsics_refusal(list(value))
    return ""


def _intrinsics_refusal(numbers: list[float]) -> str:
    allowed = "allowed are fx, fy > 0, cx, cy and 0, 4, 5 or 8 of distortion, or four zeros"
    if len(numbers) not in INTRINSICS_COUNTS:
        return f"parameter 'intrinsics' has {len(numbers)} numbers; {allowed}"
    if not all(math.isfinite(number) for number in numbers):
        return f"parameter 'intrinsics' is {numbers}, which is not finite; {allowed}"
    if any(numbers) and min(numbers[:2]) <= 0:
        return f"parameter 'intrinsics' has fx={numbers[0]}, fy={numbers[1]}; {allowed}"
    return ""
