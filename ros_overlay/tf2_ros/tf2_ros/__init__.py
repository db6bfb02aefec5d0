"""The transform broadcasters of tf2_ros, for machines without a ROS distribution.

Same names, arguments, topics and QoS as upstream, in pure Python over rclpy and tf2_msgs. Where a
distribution is sourced this package is not on the path and the real one is used.
"""

from tf2_ros.static_transform_broadcaster import StaticTransformBroadcaster
from tf2_ros.transform_broadcaster import TransformBroadcaster

__all__ = ["StaticTransformBroadcaster", "TransformBroadcaster"]
