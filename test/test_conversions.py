"""Messages to arrays and back: hand-computed pixels, intrinsics, covariances; and bad input."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is needed: neither a distribution nor the wheels")

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, RegionOfInterest
from standin_node import standin_hand
from std_msgs.msg import Header

from hand_perception.ros import conversions, decoding
from hand_perception.ros.health import ERROR, Report
from hand_perception.types import Camera, HandPerceptionError

CAMERA = Camera(640, 480, 600.0, 610.0, 320.0, 240.0, (0.1, -0.2, 0.001, 0.002, 0.05))
HEADER = Header(stamp=Time(sec=1_700_000_000, nanosec=123_456_789), frame_id="optical")
COLOR = (200, 100, 50)
"""RGB of uniform test pictures."""


@pytest.fixture(autouse=True)
def _check_fields(monkeypatch):
    monkeypatch.setenv("ROS_PYTHON_CHECK_FIELDS", "1")


def image(encoding: str, pixels: np.ndarray, pad: int = 0, /, **fields) -> Image:
    """A message of pixels (H, W[, C]) with `pad` bytes after each row."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.hstack([rows, np.full((height, pad), 77, np.uint8)])
    message = Image(
        header=HEADER,
        encoding=encoding,
        height=height,
        width=width,
        step=rows.shape[1],
        data=conversions.bytes_to_array(rows.tobytes()),
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def some_rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


# Images


@pytest.mark.parametrize("pad", [0, 5])
def test_packed_colours_come_back_exactly(pad):
    rgb = some_rgb()
    alpha = np.full((6, 8, 1), 9, np.uint8)
    stored = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.dstack([rgb, alpha]),
        "bgra8": np.dstack([rgb[..., ::-1], alpha]),
        "rgb16": rgb.astype(np.uint16) * 257,
        "bgr16": rgb[..., ::-1].astype(np.uint16) * 257,
    }
    for encoding, pixels in stored.items():
        decoded = decoding.image_to_rgb(image(encoding, pixels, pad))
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, rgb, err_msg=encoding)


def test_grey_becomes_three_equal_channels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    decoded = decoding.image_to_rgb(image("mono8", grey))
    np.testing.assert_array_equal(decoded, np.dstack([grey] * 3))


@pytest.mark.parametrize("big", [0, 1])
def test_16_bit_grey_in_either_byte_order(big):
    values = np.array([[0, 257, 65535, 25700]], np.uint16)
    stored = values.astype(">u2" if big else "<u2")
    decoded = decoding.image_to_rgb(image("mono16", stored, 3, is_bigendian=big))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 255, 100])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_names_the_first_two_rows(pattern, bits):
    mosaic = np.zeros((8, 8), np.uint8)
    for i, channel in enumerate(pattern):
        mosaic[i // 2 :: 2, i % 2 :: 2] = COLOR["rgb".index(channel)]
    pixels = mosaic if bits == 8 else mosaic.astype(np.uint16) * 257
    decoded = decoding.image_to_rgb(image(f"bayer_{pattern}{bits}", pixels))
    np.testing.assert_array_equal(decoded[2:-2, 2:-2], np.broadcast_to(COLOR, (4, 4, 3)))


# Y, U, V of COLOR in BT.601 video range, as cameras send it.
Y, U, V = 123, 91, 176


@pytest.mark.parametrize(
    ("encodings", "pair"),
    [(("yuv422", "uyvy"), (U, Y, V, Y)), (("yuv422_yuy2", "yuyv"), (Y, U, Y, V))],
)
def test_yuv422_in_both_orders(encodings, pair):
    pixels = np.tile(np.array(pair, np.uint8), (4, 3)).reshape(4, 6, 2)
    for encoding in encodings:
        decoded = decoding.image_to_rgb(image(encoding, pixels, 2))
        assert decoded.shape == (4, 6, 3)
        np.testing.assert_allclose(decoded.reshape(-1, 3), [COLOR] * 24, atol=4)


@pytest.mark.parametrize(("encoding", "pair"), [("nv12", (U, V)), ("nv21", (V, U))])
def test_two_planes(encoding, pair):
    planes = np.vstack([np.full((4, 6), Y), np.tile(pair, (2, 3))]).astype(np.uint8)
    decoded = decoding.image_to_rgb(image(encoding, planes, 4, height=4))
    np.testing.assert_allclose(decoded.reshape(-1, 3), [COLOR] * 24, atol=4)


def test_an_image_goes_there_and_back():
    rgb = some_rgb()
    message = deserialize_message(serialize_message(conversions.rgb_to_image(rgb, HEADER)), Image)
    np.testing.assert_array_equal(decoding.image_to_rgb(message), rgb)
    assert message.header == HEADER


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"encoding": "8UC7"}, "'8UC7' is not supported; allowed are rgb8, bgr8"),
        ({"encoding": ""}, "'' is not supported"),
        ({"step": 23}, "step of 23 bytes, but 8 pixels of rgb8 need at least 24"),
        ({"height": 7}, "144 bytes of data, but 7 rows with a step of 24 need 168"),
        ({"width": 0}, "0x6; width and height must be positive"),
        ({"height": 0}, "8x0; width and height must be positive"),
        ({"encoding": "yuyv", "width": 7}, "7x6; subsampled sizes must be even"),
    ],
)
def test_bad_images_are_refused_with_a_sentence(fields, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    with pytest.raises(HandPerceptionError, match=sentence.replace("(", r"\(")):
        decoding.image_to_rgb(image("rgb8", some_rgb(), **fields))


# Compressed images


def compressed(data: bytes, name: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=name, data=conversions.bytes_to_array(data))


def smooth_rgb() -> np.ndarray:
    x, y = np.meshgrid(np.arange(160), np.arange(120))
    return np.dstack([x, y * 2, 255 - x]).astype(np.uint8)


def test_jpeg_and_png():
    rgb = smooth_rgb()
    jpeg = conversions.rgb_to_compressed(rgb, HEADER, 95)
    assert np.abs(decoding.compressed_to_rgb(jpeg).astype(int) - rgb).mean() < 2
    padded = compressed(bytes(jpeg.data) + b"\0" * 40)
    np.testing.assert_array_equal(
        decoding.compressed_to_rgb(padded), decoding.compressed_to_rgb(jpeg)
    )
    png = cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decoding.compressed_to_rgb(compressed(png, "png")), rgb)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_picture_is_refused(suffix, share):
    data = cv2.imencode(suffix, smooth_rgb())[1].tobytes()
    with pytest.raises(HandPerceptionError, match="truncated"):
        decoding.compressed_to_rgb(compressed(data[: int(len(data) * share)]))


@pytest.mark.parametrize(
    ("data", "name", "sentence"),
    [
        (b"", "jpeg", "empty"),
        (b"this is no picture", "jpeg", "can't be decoded"),
        (b"\xff\xd8" + b"\x12" * 300 + b"\xff\xd9", "jpeg", "can't be decoded"),
        (b"\0" * 30, "16UC1; compressedDepth png", "which is depth"),
    ],
)
def test_what_is_no_picture_is_refused(data, name, sentence):
    with pytest.raises(HandPerceptionError, match=sentence):
        decoding.compressed_to_rgb(compressed(data, name))


# Depth and time


def test_depth_in_metres_with_nan_where_unknown():
    millimetres = np.array([[0, 1500], [65535, 1]], np.uint16)
    depth = decoding.depth_to_metres(image("16UC1", millimetres, 2))
    np.testing.assert_allclose(depth, [[np.nan, 1.5], [65.535, 0.001]], rtol=1e-6)
    metres = np.array([[np.nan, 0.5], [np.inf, -1.0]], np.float32)
    depth = decoding.depth_to_metres(image("32FC1", metres, 4))
    np.testing.assert_array_equal(depth, [[np.nan, 0.5], [np.nan, np.nan]])
    assert depth.dtype == np.float32
    with pytest.raises(HandPerceptionError, match="16UC1"):
        decoding.depth_to_metres(image("rgb8", some_rgb()))


def test_stamps():
    assert decoding.stamp_to_ns(HEADER.stamp) == 1_700_000_000_123_456_789
    assert decoding.stamp_to_s(Time(sec=3, nanosec=500_000_000)) == 3.5


# Calibration


def info(**fields) -> CameraInfo:
    message = conversions.camera_to_info(CAMERA, HEADER)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def test_a_camera_goes_there_and_back():
    assert decoding.camera_info_to_camera(info(), width=640, height=480) == CAMERA
    plain = Camera(640, 480, 600.0, 610.0, 320.0, 240.0)
    message = conversions.camera_to_info(plain, HEADER)
    assert decoding.camera_info_to_camera(message, width=640, height=480) == plain
    rational = Camera(640, 480, 600.0, 610.0, 320.0, 240.0, tuple(np.arange(1.0, 9.0) / 100))
    message = conversions.camera_to_info(rational, HEADER)
    assert message.distortion_model == "rational_polynomial"
    assert decoding.camera_info_to_camera(message, width=640, height=480) == rational


def test_region_and_binning_as_image_geometry_applies_them():
    message = info(
        roi=RegionOfInterest(x_offset=100, y_offset=40, width=400, height=320),
        binning_x=2,
        binning_y=4,
    )
    camera = decoding.camera_info_to_camera(message, width=200, height=80)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (300.0, 152.5, 110.0, 50.0)
    with pytest.raises(HandPerceptionError, match="640x480, but camera_info describes 200x80"):
        decoding.camera_info_to_camera(message, width=640, height=480)


def test_rectified_images_obey_p():
    p = np.array([500.0, 0, 300, 0, 0, 501, 200, 0, 0, 0, 1, 0])
    camera = decoding.camera_info_to_camera(info(p=p), width=640, height=480, rectified=True)
    assert camera == Camera(640, 480, 500.0, 501.0, 300.0, 200.0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"k": np.zeros(9)}, "not calibrated"),
        ({"k": np.full(9, np.nan)}, "non-finite numbers in K"),
        ({"d": [np.nan] * 5}, "not finite"),
        ({"d": [0.1] * 3}, "3 coefficients"),
        ({"distortion_model": "equidistant"}, "'equidistant'; allowed are plumb_bob"),
        ({"width": 1280}, "the image is 640x480, but camera_info describes 1280x480"),
        ({"width": 0, "height": 0}, "camera_info describes 0x0"),
        ({"k": np.array([-600.0, 0, 320, 0, 600, 240, 0, 0, 1])}, "must be positive"),
    ],
)
def test_bad_calibration_is_refused_with_a_sentence(fields, sentence):
    with pytest.raises(HandPerceptionError, match=sentence):
        decoding.camera_info_to_camera(info(**fields), width=640, height=480)


def test_intrinsics_by_numbers():
    camera = decoding.numbers_to_camera([1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3, 0.4], 10, 20)
    assert camera == Camera(10, 20, 1.0, 2.0, 3.0, 4.0, (0.1, 0.2, 0.3, 0.4))


# Results


def test_joints_as_a_cloud_over_the_wire():
    hand = standin_hand("left", 0.25, CAMERA)
    sent = conversions.joints_to_cloud(hand, HEADER)
    cloud = deserialize_message(serialize_message(sent), PointCloud2)
    assert (cloud.width, cloud.height, cloud.point_step, cloud.row_step) == (21, 1, 16, 336)
    names = [(field.name, field.offset, field.datatype) for field in cloud.fields]
    assert names == [("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("confidence", 12, 7)]
    points = np.frombuffer(cloud.data, "<f4").reshape(21, 4)
    np.testing.assert_allclose(points[:, :3], hand.joints_3d, atol=1e-6)
    np.testing.assert_allclose(points[:, 3], hand.joint_confidence, atol=1e-6)


def test_a_pose_turns_as_its_matrix_does():
    T = np.eye(4)
    T[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # 120 degrees about (1, 1, 1)
    T[:3, 3] = 1, 2, 3
    pose = conversions.transform_to_pose(T)
    q = pose.orientation
    np.testing.assert_allclose([q.x, q.y, q.z, q.w], [0.5] * 4, atol=1e-12)
    tf = conversions.pose_to_transform(pose, HEADER, "hand_left")
    assert (tf.header, tf.child_frame_id) == (HEADER, "hand_left")
    t = tf.transform.translation
    assert (t.x, t.y, t.z) == (1.0, 2.0, 3.0)


def on_axis_hand(error_px: float = 0.0, confidence: float = 1.0) -> SimpleNamespace:
    """A flat hand across the optical axis at 1 m, wrist on the axis, pixels off by `error_px`."""
    angle = np.arange(21) * 2 * np.pi / 21
    joints = np.column_stack([0.1 * np.cos(angle), 0.1 * np.sin(angle), np.ones(21)])
    T_camera_wrist = np.eye(4)
    T_camera_wrist[2, 3] = 1.0
    pixels = 500 * joints[:, :2] + (320, 240) + (error_px, 0)
    return SimpleNamespace(
        joints_3d=joints,
        joints_2d=pixels,
        joint_confidence=np.full(21, confidence),
        T_camera_wrist=T_camera_wrist,
    )


def test_covariance_by_hand():
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
    # 5 px of error at f = 500 and 1 m are 10 mm across; joints spread over 50 px: 10 % in depth.
    covariance = conversions.wrist_covariance(on_axis_hand(5.0), camera)
    expected = [0.01**2, 0.01**2, 0.1**2 + 0.05**2, 4 * 0.1**2, 4 * 0.1**2, 0.1**2]
    np.testing.assert_allclose(covariance, np.diag(expected), atol=1e-9)
    # Never surer than a pixel; half the confidence is twice the error.
    best = conversions.wrist_covariance(on_axis_hand(), camera)
    assert best[0, 0] == pytest.approx((1 / 500) ** 2)
    doubtful = conversions.wrist_covariance(on_axis_hand(confidence=0.5), camera)
    assert doubtful[0, 0] == pytest.approx((2 / 500) ** 2)


def test_diagnostics_of_a_report():
    array = conversions.report_to_diagnostics(
        Report(ERROR, "no", {"a": "1"}), HEADER, name="node: hands", hardware_id="optical"
    )
    status = array.status[0]
    assert (status.level, status.message, status.name) == (b"\x02", "no", "node: hands")
    assert [(item.key, item.value) for item in status.values] == [("a", "1")]
