"""Publishes fixed transforms on /tf_static, latched."""

from __future__ import annotations

from collections.abc import Sequence

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from tf2_msgs.msg import TFMessage


class StaticTransformBroadcaster:
    """Sends transforms that hold for ever; whoever subscribes later still gets all of them."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        """Publish from `node`; `qos` is by default reliable, transient local, with a depth of 1."""
        if qos is None:
            qos = QoSProfile(
                depth=1,
                durability=DurabilityPolicy.TRANSIENT_LOCAL,
                history=HistoryPolicy.KEEP_LAST,
            )
        self.pub_tf = node.create_publisher(TFMessage, "/tf_static", qos)
        self._by_child: dict[str, TransformStamped] = {}

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:
        """Add or replace transforms by their child frame, and publish all sent so far."""
        transforms = [transform] if isinstance(transform, TransformStamped) else list(transform)
        self._by_child |= {one.child_frame_id: one for one in transforms}
        # The topic keeps one message, so that one has to carry every transform.
        self.pub_tf.publish(TFMessage(transforms=list(self._by_child.values())))
