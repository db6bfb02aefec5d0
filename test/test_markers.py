"""Markers: what RViz draws."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is needed: neither a distribution nor the wheels")

from standin_node import FACES, standin_hand
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from hand_perception.ros import markers
from hand_perception.skeleton import BONES
from hand_perception.types import Camera, ObjectPose, Scene

CAMERA = Camera(640, 480, 600.0, 600.0, 320.0, 240.0)
HEADER = Header(frame_id="optical")


@pytest.fixture(autouse=True)
def _check_fields(monkeypatch):
    monkeypatch.setenv("ROS_PYTHON_CHECK_FIELDS", "1")


def xyz(point) -> list[float]:
    return [point.x, point.y, point.z]


@pytest.mark.parametrize(
    ("confidence", "rgb"),
    [(0.0, (1, 0)), (0.25, (1, 0.5)), (0.5, (1, 1)), (1.0, (0, 1)), (-3.0, (1, 0)), (7.0, (0, 1))],
)
def test_colour_runs_from_red_to_green(confidence, rgb):
    color = markers.confidence_to_color(confidence)
    assert (color.r, color.g, color.a) == pytest.approx((*rgb, 1.0))


def test_an_empty_scene_only_deletes():
    array = markers.scene_to_markers(Scene(1.0), HEADER)
    assert [marker.action for marker in array.markers] == [Marker.DELETEALL]
    assert array.markers[0].header.frame_id == "optical"


def test_bones_join_parent_and_child_in_their_colours():
    hand = standin_hand("left", 0.0, CAMERA)
    marker = markers.bones_marker(hand, HEADER)
    assert marker.type == Marker.LINE_LIST
    assert len(marker.points) == len(marker.colors) == 40
    for i, (parent, child) in enumerate(BONES):
        assert xyz(marker.points[2 * i]) == hand.joints_3d[parent].tolist()
        assert xyz(marker.points[2 * i + 1]) == hand.joints_3d[child].tolist()
        expected = markers.confidence_to_color(hand.joint_confidence[child])
        assert marker.colors[2 * i + 1] == expected


def test_joints_are_spheres_of_a_size():
    hand = standin_hand("right", 0.0, CAMERA)
    marker = markers.joints_marker(hand, HEADER)
    assert marker.type == Marker.SPHERE_LIST
    assert [xyz(point) for point in marker.points] == hand.joints_3d.tolist()
    assert xyz(marker.scale) == [0.008] * 3
    assert (marker.pose.orientation.w, marker.id, marker.ns) == (1.0, 0, "right/joints")


def test_a_box_stands_for_an_object():
    T = np.eye(4)
    T[:3, 3] = 0.1, 0.2, 0.3
    marker = markers.object_marker(ObjectPose("mug", 1.0, T, np.array([0.1, 0.2, 0.4])), HEADER)
    assert marker.type == Marker.CUBE
    assert xyz(marker.pose.position) == [0.1, 0.2, 0.3]
    assert xyz(marker.scale) == [0.1, 0.2, 0.4]


def test_the_mesh_follows_the_hand_and_keeps_its_points():
    mesh = markers.MeshMarkers("left", FACES)
    for stamp in (0.0, 0.5):
        hand = standin_hand("left", stamp, CAMERA)
        marker = mesh.draw(hand, HEADER)
        corners = hand.vertices[FACES.reshape(-1)]
        assert [xyz(point) for point in marker.points] == corners.tolist()
        assert marker.type == Marker.TRIANGLE_LIST
    assert len(marker.points) == 12
    assert len({id(point) for point in marker.points}) == 4


def test_removing_a_mesh_names_the_same_marker():
    mesh = markers.MeshMarkers("right", FACES)
    drawn = mesh.draw(standin_hand("right", 0.0, CAMERA), HEADER)
    removed = mesh.remove(HEADER)
    assert (removed.ns, removed.id, removed.action) == (drawn.ns, drawn.id, Marker.DELETE)
