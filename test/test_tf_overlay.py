"""TF over DDS between two processes, with whichever tf2_ros the environment has."""

import subprocess
import sys
import time

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is needed: run `make test`")
pytest.importorskip("tf2_ros", reason="tf2_ros is needed: run `make test`")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

PUBLISHER = """
import time
import rclpy
from geometry_msgs.msg import TransformStamped
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

def transform(child, x):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = "camera"
    message.header.stamp.sec = 12
    message.transform.translation.x = x
    return message

rclpy.init()
node = rclpy.create_node("tf_publisher")
static, moving = StaticTransformBroadcaster(node), TransformBroadcaster(node)
static.sendTransform(transform("base", 1.0))
static.sendTransform([transform("lens", 2.0), transform("base", 3.0)])
end = time.monotonic() + 20
while time.monotonic() < end:
    moving.sendTransform(transform("hand_left", 0.25))
    moving.sendTransform([transform("hand_left", 0.5), transform("hand_right", 0.75)])
    time.sleep(0.05)
"""


@pytest.fixture
def publisher():
    process = subprocess.Popen([sys.executable, "-c", PUBLISHER])
    yield process
    process.kill()
    process.wait()


def test_transforms_reach_another_process(publisher):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("tf_listener", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    moving, static = [], []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(TFMessage, "/tf", moving.append, 10)
    # This one arrives late: the transforms were sent before its first discovery.
    node.create_subscription(TFMessage, "/tf_static", static.append, latched)
    end = time.monotonic() + 15
    while not (len(moving) >= 4 and static) and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown(context=context)

    assert publisher.poll() is None
    sent = [[(t.child_frame_id, t.transform.translation.x) for t in m.transforms] for m in moving]
    assert [("hand_left", 0.25)] in sent
    assert [("hand_left", 0.5), ("hand_right", 0.75)] in sent
    header = moving[0].transforms[0].header
    assert (header.frame_id, header.stamp.sec) == ("camera", 12)
    latest = {t.child_frame_id: t.transform.translation.x for t in static[-1].transforms}
    assert latest == {"base": 3.0, "lens": 2.0}
