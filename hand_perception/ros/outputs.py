"""Everything that the estimator publishes: topics, TF, and what goes out for one scene."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, JointState, PointCloud2
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster
from visualization_msgs.msg import Marker, MarkerArray

from hand_perception.drawing import draw_scene
from hand_perception.ros import conversions
from hand_perception.ros.markers import MeshMarkers, scene_to_markers
from hand_perception.types import SIDES, Camera, HandPose, ObjectPose, Scene, Side


def topic_token(name: str) -> str:
    """An object's name as part of a topic and a frame: `003_cracker_box` becomes `cracker_box`."""
    token = re.sub(r"[^A-Za-z0-9]+", "_", name).lstrip("_0123456789").rstrip("_")
    return token or "unnamed"


class _HandOutputs:
    """The four topics of one hand."""

    def __init__(self, node: Node, side: Side, faces: NDArray[np.integer], qos: QoSProfile) -> None:
        self.joints = node.create_publisher(PointCloud2, f"{side}/joints", qos)
        self.joint_states = node.create_publisher(JointState, f"{side}/joint_states", qos)
        self.wrist_pose = node.create_publisher(
            PoseWithCovarianceStamped, f"{side}/wrist_pose", qos
        )
        self.mesh = node.create_publisher(Marker, f"{side}/mesh", qos)
        self.mesh_markers = MeshMarkers(side, faces)
        self.mesh_shown = False

    def publishers(self) -> list[Publisher]:
        return [self.joints, self.joint_states, self.wrist_pose, self.mesh]


class Outputs:
    """The publishers; made in configure, used by the worker while active, destroyed in cleanup."""

    def __init__(self, node: Node, faces: dict[Side, NDArray[np.integer]], qos: QoSProfile) -> None:
        self._node = node
        self._qos = qos
        self._faces = faces
        self._hands = {side: _HandOutputs(node, side, faces[side], qos) for side in SIDES}
        self._markers = node.create_publisher(MarkerArray, "markers", qos)
        self._overlay = node.create_publisher(Image, "overlay", qos)
        self._overlay_compressed = node.create_publisher(CompressedImage, "overlay/compressed", qos)
        self._objects: dict[str, Publisher] = {}
        self._tf = TransformBroadcaster(node)

    def publish(
        self, scene: Scene, camera: Camera, header: Header, settings: dict[str, Any]
    ) -> None:
        """Send the numbers of one scene; a hand that left takes its mesh with it."""
        transforms = []
        for hand in scene.hands:
            pose = self._publish_hand(hand, camera, header, settings)
            transforms.append(
                conversions.pose_to_transform(pose.pose.pose, header, f"hand_{hand.side}")
            )
        for item in scene.objects:
            pose = self._publish_object(item, header)
            child = f"object_{topic_token(item.name)}"
            transforms.append(conversions.pose_to_transform(pose.pose.pose, header, child))
        if settings["publish_tf"] and transforms:
            self._tf.sendTransform(transforms)
        if settings["publish_markers"]:
            self._markers.publish(scene_to_markers(scene, header))
        present = {hand.side for hand in scene.hands} if settings["publish_mesh"] else set()
        self._remove_meshes(header, keep=present)

    def publish_overlay(
        self,
        rgb: NDArray[np.uint8],
        scene: Scene,
        camera: Camera,
        header: Header,
        settings: dict[str, Any],
    ) -> None:
        """Draw the scene into its image, only while someone looks."""
        raw = self._overlay.get_subscription_count() > 0
        compressed = self._overlay_compressed.get_subscription_count() > 0
        if not raw and not compressed:
            return
        picture = draw_scene(rgb, scene, self._faces, camera)
        if raw:
            self._overlay.publish(conversions.rgb_to_image(picture, header))
        if compressed:
            self._overlay_compressed.publish(
                conversions.rgb_to_compressed(picture, header, settings["overlay_quality"])
            )

    def clear(self, header: Header) -> None:
        """Take everything drawn out of RViz."""
        self._markers.publish(scene_to_markers(Scene(0.0), header))
        self._remove_meshes(header, keep=set())

    def destroy(self) -> None:
        """Free every publisher."""
        publishers = [self._markers, self._overlay, self._overlay_compressed, self._tf.pub_tf]
        publishers += [*self._objects.values()]
        for outputs in self._hands.values():
            publishers += outputs.publishers()
        for publisher in publishers:
            self._node.destroy_publisher(publisher)

    def _publish_hand(
        self, hand: HandPose, camera: Camera, header: Header, settings: dict[str, Any]
    ) -> PoseWithCovarianceStamped:
        outputs = self._hands[hand.side]
        pose = conversions.wrist_to_pose(hand, camera, header)
        outputs.joints.publish(conversions.joints_to_cloud(hand, header))
        outputs.joint_states.publish(conversions.angles_to_joint_state(hand, header))
        outputs.wrist_pose.publish(pose)
        if settings["publish_mesh"] and outputs.mesh.get_subscription_count() > 0:
            outputs.mesh.publish(outputs.mesh_markers.draw(hand, header))
            outputs.mesh_shown = True
        return pose

    def _publish_object(self, item: ObjectPose, header: Header) -> PoseWithCovarianceStamped:
        token = topic_token(item.name)
        if token not in self._objects:
            self._objects[token] = self._node.create_publisher(
                PoseWithCovarianceStamped, f"objects/{token}/pose", self._qos
            )
        pose = conversions.object_to_pose(item, header)
        self._objects[token].publish(pose)
        return pose

    def _remove_meshes(self, header: Header, keep: set[Side]) -> None:
        for side, outputs in self._hands.items():
            if outputs.mesh_shown and side not in keep:
                outputs.mesh.publish(outputs.mesh_markers.remove(header))
                outputs.mesh_shown = False
