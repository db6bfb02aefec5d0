"""The demo end to end: two processes, DDS, a bag, pictures; around the stand-in hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is needed: neither a distribution nor the wheels")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is needed: a distribution or the set-up script")

import rclpy
import ros_client
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from hand_perception.ros import demo, video_publisher
from hand_perception.ros.bag import BagWriter, read_frames
from hand_perception.types import Camera, HandPerceptionError

STANDIN = (str(Path(__file__).with_name("standin_node.py")),)
FRAMES = 30


@pytest.fixture(scope="module")
def ros() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    root = str(Path(__file__).resolve().parents[1])
    patch.setenv("PYTHONPATH", ros_client.python_path(root))
    ros_client.isolate()
    rclpy.init()
    yield
    rclpy.try_shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A small grey video that gets brighter."""
    path = tmp_path_factory.mktemp("clip") / "grey.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (160, 120))
    for i in range(FRAMES + 10):
        writer.write(np.full((120, 160, 3), 60 + 2 * i, np.uint8))
    writer.release()
    return str(path)


def children() -> str:
    return Path("/proc/thread-self/children").read_text()


def test_the_demo_writes_figures_pictures_and_a_bag(ros, clip, tmp_path):
    before = children()
    summary = demo.run(
        [clip], tmp_path, frames=FRAMES, rate_hz=15, method="standin", estimator=STANDIN
    )
    assert children() == before, "a process stayed behind"
    assert summary.frames_in == FRAMES
    assert summary.frames_out + summary.frames_lost == FRAMES
    assert summary.frames_out >= FRAMES / 2
    assert summary.hands_per_frame == pytest.approx(2.0, abs=0.2)
    assert 0 < summary.latency_ms_p50 <= summary.latency_ms_p95
    assert json.loads((tmp_path / "summary.json").read_text()) == vars(summary)

    video = cv2.VideoCapture(str(tmp_path / "overlay.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) >= FRAMES / 2
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet is not None and sheet.shape[1] >= 320

    with AnyReader(
        [tmp_path / "bag"], default_typestore=get_typestore(Stores.ROS2_JAZZY)
    ) as reader:
        counts = {c.topic: (c.msgtype, c.msgcount) for c in reader.connections}
        assert counts["/demo/camera_info"] == ("sensor_msgs/msg/CameraInfo", FRAMES)
        assert counts["/demo/markers"] == ("visualization_msgs/msg/MarkerArray", summary.frames_out)
        assert counts["/tf"][1] >= FRAMES / 2
        connections = [c for c in reader.connections if c.topic == "/demo/left/joints"]
        connection, _, data = next(reader.messages(connections))
        cloud = reader.deserialize(data, connection.msgtype)
        assert (cloud.width, cloud.header.frame_id) == (21, "camera_optical_frame")
    stamp, image, camera = next(read_frames(tmp_path / "bag"))
    assert image.shape == (120, 160, 3)
    assert camera == video_publisher.camera_from_fov(160, 120, 60.0)
    assert stamp > 1.7e9


@pytest.mark.parametrize(
    ("source", "method", "sentence"),
    [
        ("nowhere.mp4", "standin", "publisher ended with status 1; it said: .*nowhere.mp4"),
        (None, "nonsense", "method is 'nonsense'; allowed is standin"),
    ],
)
def test_what_fails_says_why_and_leaves_nothing_running(
    ros, clip, tmp_path, source, method, sentence
):
    before = children()
    with pytest.raises(HandPerceptionError, match=sentence):
        demo.run([source or clip], tmp_path, method=method, estimator=STANDIN)
    assert children() == before


def test_summary_counts_each_stamp_once():
    ms = 1_000_000
    arrivals = {
        "markers": {0: 10 * ms, 100 * ms: 130 * ms, 300 * ms: 320 * ms},
        "left/joints": {0: 9 * ms, 100 * ms: 9 * ms},
        "right/joints": {0: 9 * ms},
    }
    assert demo.summarise(arrivals, sent=4) == demo.Summary(4, 3, 1, 20.0, 29.0, 1.0)
    assert demo.summarise({}, sent=0).frames_out == 0
    assert math.isnan(demo.summarise({}, sent=0).latency_ms_p50)


def test_cameras_of_the_publisher(tmp_path):
    camera = video_publisher.camera_from_fov(640, 480, 90.0)
    assert camera.fx == pytest.approx(320.0)
    assert (camera.cx, camera.cy) == (319.5, 239.5)
    half = video_publisher.scale_camera(camera, 320, 240)
    assert half == Camera(320, 240, camera.fx / 2, camera.fx / 2, 159.5, 119.5)
    with pytest.raises(HandPerceptionError, match="allowed is 1 to 170"):
        video_publisher.camera_from_fov(640, 480, 180.0)
    file = tmp_path / "camera.yaml"
    file.write_text(
        "image_width: 640\nimage_height: 480\n"
        "camera_matrix: {rows: 3, cols: 3, data: [600, 0, 320, 0, 610, 240, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0.2, 0, 0, 0]}\n"
    )
    expected = Camera(640, 480, 600.0, 610.0, 320.0, 240.0, (0.1, 0.2, 0.0, 0.0, 0.0))
    assert video_publisher.camera_from_yaml(file) == expected
    for text in ("", "image_width: 3", "camera_matrix: {data: [1]}\n", "[:"):
        file.write_text(text)
        with pytest.raises(HandPerceptionError, match="is no camera calibration"):
            video_publisher.camera_from_yaml(file)


def test_bags_that_are_none_are_refused(tmp_path):
    garbage = tmp_path / "garbage.mcap"
    garbage.write_bytes(b"garbage")
    for path in (garbage, tmp_path, tmp_path / "nowhere.mcap"):
        with pytest.raises(HandPerceptionError, match="can't be read as a bag"):
            next(read_frames(path))
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic("/camera_info", "sensor_msgs/msg/CameraInfo")
    with pytest.raises(HandPerceptionError, match="the bag has no images"):
        next(read_frames(tmp_path / "bag"))
    with pytest.raises(HandPerceptionError, match=r"has no images on /image; .* no topic"):
        next(read_frames(tmp_path / "bag", topic="/image"))
    with pytest.raises(HandPerceptionError, match="not there yet"):
        BagWriter(tmp_path / "bag")
