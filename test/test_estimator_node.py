"""The real node, over real DDS, around a stand-in hand (see standin_node.py)."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is needed: neither a distribution nor the wheels")
pytest.importorskip("tf2_ros", reason="tf2_ros is needed: a distribution or the overlay")

import rclpy
import ros_client
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from ros_client import FRAME, Client, Estimator, picture
from sensor_msgs.msg import CompressedImage, Image
from standin_node import FACES, standin_joints
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker

from hand_perception.ros import conversions, decoding
from hand_perception.skeleton import ANGLE_NAMES

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"


@pytest.fixture(scope="module")
def ros() -> Iterator[None]:
    ros_client.isolate()
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope="module")
def client(ros: None) -> Iterator[Client]:
    client = Client("/cell")
    yield client
    client.close()


@pytest.fixture(scope="module")
def estimator(client: Client) -> Iterator[Estimator]:
    """A node that started by itself, on raw images, and knows the camera."""
    estimator = Estimator(client.namespace, method="standin", device="cpu")
    client.wait_connected(client.image)
    client.send_info()
    yield estimator
    status, log = estimator.end(signal.SIGTERM)
    assert status == 0, log
    assert "Traceback" not in log


def cloud_to_array(cloud) -> np.ndarray:
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "confidence"]
    return np.frombuffer(cloud.data, "<f4").reshape(cloud.height, cloud.width, 4)


def seconds(message) -> float:
    return decoding.stamp_to_s(ros_client.header_of(message).stamp)


def test_every_output_has_the_values_and_the_header_of_its_image(client, estimator):
    tf = client.listen(TFMessage, "/tf")
    per_hand = ("joints", "joint_states", "wrist_pose", "mesh")
    topics = [f"{side}/{name}" for side in ("left", "right") for name in per_hand]
    answers = client.answers(picture(), ["markers", "/tf", "objects/can/pose", *topics])
    markers = answers["markers"]
    header = markers.markers[0].header
    assert header.frame_id == FRAME
    assert markers.markers[0].action == Marker.DELETEALL
    assert [(m.ns, m.id) for m in markers.markers[1:]] == [
        ("left/bones", 0),
        ("left/joints", 0),
        ("right/bones", 0),
        ("right/joints", 0),
        ("objects/002_can", 0),
    ]
    for side in ("left", "right"):
        expected = standin_joints(side, decoding.stamp_to_s(header.stamp))
        cloud = answers[f"{side}/joints"]
        points = cloud_to_array(cloud)
        assert points.shape == (1, 21, 4)
        np.testing.assert_allclose(points[0, :, :3], expected, atol=1e-6)
        np.testing.assert_allclose(points[0, :, 3], np.linspace(0, 1, 21), atol=1e-6)
        assert cloud.header.frame_id == FRAME

        angles = answers[f"{side}/joint_states"]
        assert list(angles.name) == [f"{side}_{name}" for name in ANGLE_NAMES]
        np.testing.assert_allclose(angles.position, np.arange(22) * 0.05)

        pose = answers[f"{side}/wrist_pose"].pose.pose
        position = [pose.position.x, pose.position.y, pose.position.z]
        np.testing.assert_allclose(position, expected[0], atol=1e-9)
        orientation = [pose.orientation.w, pose.orientation.z]
        np.testing.assert_allclose(orientation, np.sqrt([0.5, 0.5]), atol=1e-9)

        mesh = answers[f"{side}/mesh"]
        assert (mesh.type, mesh.action, mesh.ns) == (
            Marker.TRIANGLE_LIST,
            Marker.ADD,
            f"{side}/mesh",
        )
        assert len(mesh.points) == 3 * len(FACES)
        corner = mesh.points[1]
        np.testing.assert_allclose([corner.x, corner.y], expected[0, :2] + [0.05, 0], atol=1e-9)

        transforms = answers["/tf"].transforms
        moved = next(t for t in transforms if t.child_frame_id == f"hand_{side}")
        assert moved.header.frame_id == FRAME
        shift, turn = moved.transform.translation, moved.transform.rotation
        assert [shift.x, shift.y, shift.z] == position
        assert turn == pose.orientation
    assert answers["objects/can/pose"].pose.pose.position.z == 0.7
    client.node.destroy_subscription(tf)


def test_overlay_comes_while_somebody_looks(client, estimator):
    raw = client.listen(Image, "overlay")
    compressed = client.listen(CompressedImage, "overlay/compressed")
    client.wait(lambda: client.node.count_publishers("/cell/overlay"), "the overlay")
    client.spin_for(0.5)
    image = client.exchange(picture(), topic="overlay")
    drawn = decoding.image_to_rgb(image)
    assert drawn.shape == (48, 64, 3)
    assert np.any(drawn != 90), "nothing was drawn"
    jpeg = client.answer("overlay/compressed", image.header.stamp)
    assert decoding.compressed_to_rgb(jpeg).shape == (48, 64, 3)
    client.node.destroy_subscription(raw)
    client.node.destroy_subscription(compressed)


def test_hands_that_leave_are_taken_out_of_rviz(client, estimator):
    client.answers(picture(), ["left/mesh", "right/mesh"])
    markers = client.exchange(picture(0))
    assert [m.action for m in markers.markers] == [Marker.DELETEALL]
    stamp = markers.markers[0].header.stamp
    for side in ("left", "right"):
        mesh = client.answer(f"{side}/mesh", stamp)
        assert (mesh.action, mesh.ns) == (Marker.DELETE, f"{side}/mesh")
    joints = client.received["left/joints"]
    assert stamp not in [message.header.stamp for message in joints]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ({"encoding": "jpeg2000"}, "image encoding 'jpeg2000' is not supported"),
        ({"step": 5}, "step of 5 bytes"),
        ({"height": 480}, "480 rows"),
        ({"width": 32, "step": 96}, "camera_info describes 64x48"),
    ],
)
def test_bad_images_are_told_and_the_next_good_one_recovers(client, estimator, spoil, sentence):
    image = conversions.rgb_to_image(picture(), client.header())
    for name, value in spoil.items():
        setattr(image, name, value)
    client.image.publish(image)
    client.diagnosis(ERROR, sentence)
    client.exchange(picture())
    assert client.status().level != ERROR


def test_a_method_that_raises_does_not_end_the_node(client, estimator):
    client.image.publish(conversions.rgb_to_image(picture(255), client.header()))
    values = client.diagnosis(ERROR, "RuntimeError: a white image")
    assert int(values["dropped: processing failed"]) >= 1
    client.exchange(picture())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"k": np.zeros(9)}, "the camera is not calibrated"),
        ({"k": np.full(9, np.nan)}, "non-finite numbers in K"),
        ({"distortion_model": "equidistant", "d": [0.1] * 4}, "distortion model 'equidistant'"),
    ],
)
def test_no_calibration_no_metric_output(client, estimator, fields, sentence):
    client.send_info(**fields)
    client.spin_for(0.3)
    header = client.header()
    client.image.publish(conversions.rgb_to_image(picture(), header))
    values = client.diagnosis(ERROR, sentence)
    assert values["calibration"] == "unusable"
    stamps = [ros_client.header_of(m).stamp for m in client.received["markers"]]
    assert header.stamp not in stamps
    # Intrinsics by parameter replace camera_info, at once.
    assert client.set_parameter("intrinsics", [60.0, 61.0, 32.0, 24.0]) == ""
    client.exchange(picture())
    assert client.set_parameter("intrinsics", [0.0, 0.0, 0.0, 0.0]) == ""
    client.send_info()
    client.exchange(picture())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("overlay_quality", 0, "Min: 1, Max: 100"),
        ("min_score", 1.5, "Min: 0.0, Max: 1.0"),
        ("method", "deformer", "only be changed while the node is unconfigured"),
        ("intrinsics", [600.0, 600.0], "has 2 numbers; allowed are"),
        ("intrinsics", [-1.0, 600.0, 1.0, 1.0], "fx=-1.0"),
        ("intrinsics", [float("nan"), 600.0, 1.0, 1.0], "not finite"),
    ],
)
def test_refused_parameters_say_what_is_allowed(client, estimator, name, value, reason):
    assert reason in client.set_parameter(name, value)


def test_autostart_is_read_only(client, estimator):
    assert "read-only" in client.set_parameter("autostart", False)


def test_min_score_and_switches_take_effect_while_running(client, estimator):
    assert client.set_parameter("min_score", 0.7) == ""
    assert client.set_parameter("publish_mesh", False) == ""
    markers = client.exchange(picture())
    assert {m.ns.split("/")[0] for m in markers.markers[1:]} == {"left", "objects"}
    stamp = markers.markers[0].header.stamp
    client.answer("left/joints", stamp)
    client.spin_for(0.3)
    assert stamp not in [m.header.stamp for m in client.received["left/mesh"] if m.points]
    assert client.set_parameter("min_score", 0.0) == ""
    assert client.set_parameter("publish_mesh", True) == ""
    client.exchange(picture(), topic="right/mesh")


def test_time_that_jumps_back_starts_anew(client, estimator):
    early = 1_600_000_000_000_000_000
    markers = client.exchange(picture(), stamp_ns=early)
    assert seconds(markers) == 1_600_000_000.0
    client.exchange(picture())


def test_diagnostics_tell_the_state(client, estimator):
    client.exchange(picture())
    status = client.status()
    assert status.hardware_id == FRAME
    values = {item.key: item.value for item in status.values}
    assert values["method"] == "standin"
    assert values["device"] == "cpu"
    assert values["calibration"] == "camera_info"
    assert float(values["latency p50 (ms)"]) > 0
    assert int(values["frames in"]) >= int(values["frames processed"]) >= 1
    assert float(values["memory (MiB)"]) > 50


def test_lifecycle_compressed_and_depth(ros):
    """One node through all transitions; it listens to JPEG and depth."""
    client = Client("/other")
    node = client.estimator
    estimator = Estimator(
        client.namespace,
        autostart="false",
        method="nonsense",
        image_transport="compressed",
        use_depth="true",
        depth_tolerance_s="0.5",
    )

    def state() -> int:
        return client.call(GetState, f"{node}/get_state", GetState.Request()).current_state.id

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return client.call(ChangeState, f"{node}/change_state", request).success

    try:
        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        assert not change(Transition.TRANSITION_CONFIGURE)
        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        client.diagnosis(ERROR, "method is 'nonsense'; allowed is standin")
        assert client.set_parameter("method", "standin") == ""
        assert change(Transition.TRANSITION_CONFIGURE)
        assert client.compressed.get_subscription_count() == 0
        for _ in range(2):  # a second life is like the first
            assert change(Transition.TRANSITION_ACTIVATE)
            assert state() == State.PRIMARY_STATE_ACTIVE
            client.wait_connected(client.compressed)
            client.send_info()
            _check_depth_and_jpeg(client)
            assert change(Transition.TRANSITION_DEACTIVATE)
            client.wait(lambda: client.compressed.get_subscription_count() == 0, "unsubscribing")
            assert change(Transition.TRANSITION_CLEANUP)
            client.wait(lambda: client.node.count_publishers("/other/markers") == 0, "cleanup")
            client.diagnosis(OK, "not active")
            assert change(Transition.TRANSITION_CONFIGURE)
        assert change(Transition.TRANSITION_INACTIVE_SHUTDOWN)
        assert state() == State.PRIMARY_STATE_FINALIZED
    finally:
        status, log = estimator.end(signal.SIGINT)
        client.close()
    assert status == 0, log
    assert "Traceback" not in log


def _check_depth_and_jpeg(client: Client) -> None:
    def send(header, cut: int | None = None) -> None:
        client.depth.publish(
            Image(
                header=header,
                width=64,
                height=48,
                encoding="16UC1",
                step=128,
                data=conversions.bytes_to_array(np.full((48, 64), 1234, "<u2").tobytes()),
            )
        )
        jpeg = conversions.rgb_to_compressed(picture(), header)
        jpeg.data = jpeg.data[:cut]
        client.compressed.publish(jpeg)

    pose = client.exchange(picture(), topic="objects/can/pose", send=send)
    assert pose.pose.pose.position.z == pytest.approx(1.234, abs=1e-6)
    send(client.header(), cut=300)
    client.diagnosis(ERROR, "truncated JPEG")
    client.exchange(picture(), send=send)
