"""Results as ROS messages: pure functions `x_to_y`, no node.

Every message carries the header of the image that the result is for. Quaternions leave here in
ROS order (x, y, z, w); covariances are 6x6 over (x, y, z, turn about x, y, z), in the frame of
the header.
"""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseWithCovarianceStamped,
    Quaternion,
    TransformStamped,
    Vector3,
)
from numpy.typing import NDArray
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    JointState,
    PointCloud2,
    PointField,
)
from std_msgs.msg import Header

from hand_perception import camera as cameras
from hand_perception.geometry import matrix_to_quaternion_wxyz
from hand_perception.ros.health import Report
from hand_perception.skeleton import ANGLE_NAMES, JOINT_NAMES
from hand_perception.types import Camera, FloatArray, HandPerceptionError, HandPose, ObjectPose

_CLOUD_FIELDS = [
    PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
    for i, name in enumerate(("x", "y", "z", "confidence"))
]

HAND_SIZE_SIGMA = 0.05
"""Relative uncertainty of a hand's size, hence of its distance from a single camera: the spread
of adult hand length within one sex (about 5 %, ANSUR II)."""


def bytes_to_array(data: bytes | memoryview) -> array[int]:
    """Bytes in the type that a message field takes over without a slow element-wise check."""
    out = array("B")
    out.frombytes(data)
    return out


def joints_to_cloud(hand: HandPose, header: Header) -> PointCloud2:
    """21x1 points in `skeleton.JOINT_NAMES` order: x, y, z (metres) and confidence, float32."""
    points = np.column_stack([hand.joints_3d, hand.joint_confidence]).astype("<f4")
    count = len(JOINT_NAMES)
    return PointCloud2(
        header=header,
        height=1,
        width=count,
        fields=_CLOUD_FIELDS,
        is_bigendian=False,
        point_step=16,
        row_step=16 * count,
        data=bytes_to_array(points.tobytes()),
        is_dense=True,
    )


def angles_to_joint_state(hand: HandPose, header: Header) -> JointState:
    """The 22 anatomical angles, radians, named `left_index_mcp_flexion` and so on."""
    return JointState(
        header=header,
        name=[f"{hand.side}_{name}" for name in ANGLE_NAMES],
        position=array("d", np.asarray(hand.joint_angles, np.float64).tolist()),
    )


def transform_to_pose(T: FloatArray) -> Pose:
    """The pose of a (4, 4) rigid transform."""
    w, x, y, z = _quaternion_wxyz(T)
    return Pose(
        position=Point(x=float(T[0, 3]), y=float(T[1, 3]), z=float(T[2, 3])),
        orientation=Quaternion(w=w, x=x, y=y, z=z),
    )


def wrist_to_pose(hand: HandPose, camera: Camera, header: Header) -> PoseWithCovarianceStamped:
    """The wrist in the camera frame, with `wrist_covariance`."""
    message = PoseWithCovarianceStamped(header=header)
    message.pose.pose = transform_to_pose(hand.T_camera_wrist)
    message.pose.covariance = wrist_covariance(hand, camera).reshape(-1)
    return message


def object_to_pose(item: ObjectPose, header: Header) -> PoseWithCovarianceStamped:
    """An object in the camera frame; no covariance is estimated, so all of it is 0 (unknown)."""
    message = PoseWithCovarianceStamped(header=header)
    message.pose.pose = transform_to_pose(item.T_camera_object)
    return message


def pose_to_transform(pose: Pose, header: Header, child_frame: str) -> TransformStamped:
    """TF from the header's frame to `child_frame`."""
    message = TransformStamped(header=header, child_frame_id=child_frame)
    p = pose.position
    message.transform.translation = Vector3(x=p.x, y=p.y, z=p.z)
    message.transform.rotation = pose.orientation
    return message


def wrist_covariance(hand: HandPose, camera: Camera) -> FloatArray:
    """(6, 6) covariance of the wrist pose, first order, from what one image says of itself.

    Let e be the pixel error of the joints: root mean square distance between joints_2d and the
    projected joints_3d, at least 1 px, divided by the mean confidence; s their root mean square
    spread (px), f the focal length, z the distance along the wrist's ray. Then
    across the ray: z e / f; along the ray: z times (e / s and the hand's size, `HAND_SIZE_SIGMA`,
    in quadrature), since distance is read off apparent size; rotation: e / s about the ray, twice
    that about the other axes, which foreshortening alone tells. Systematic errors of the network
    that 2D and 3D share are not seen by it.
    """
    confidence = np.clip(np.asarray(hand.joint_confidence, np.float64), 1e-3, 1.0)
    weights = confidence / confidence.sum()
    residual = cameras.project(hand.joints_3d, camera) - hand.joints_2d
    error = max(1.0, float(np.sqrt(weights @ (residual**2).sum(1)))) / confidence.mean()
    centred = hand.joints_2d - weights @ hand.joints_2d
    spread = max(1.0, float(np.sqrt(weights @ (centred**2).sum(1))))
    wrist = np.asarray(hand.T_camera_wrist, np.float64)[:3, 3]
    distance = float(np.linalg.norm(wrist))
    ray = np.outer(wrist, wrist) / distance**2
    across = np.eye(3) - ray
    focal = np.sqrt(camera.fx * camera.fy)
    relative = error / spread
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = distance**2 * (
        (error / focal) ** 2 * across + (relative**2 + HAND_SIZE_SIGMA**2) * ray
    )
    covariance[3:, 3:] = relative**2 * (ray + 4 * across)
    return covariance


def rgb_to_image(rgb: NDArray[np.uint8], header: Header) -> Image:
    """An rgb8 image of (H, W, 3)."""
    height, width = rgb.shape[:2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding="rgb8",
        step=3 * width,
        data=bytes_to_array(np.ascontiguousarray(rgb).data.cast("B")),
    )


def rgb_to_compressed(rgb: NDArray[np.uint8], header: Header, quality: int = 80) -> CompressedImage:
    """A JPEG of (H, W, 3), quality 1 to 100."""
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise HandPerceptionError(f"an image of shape {rgb.shape} can't be stored as JPEG")
    return CompressedImage(
        header=header, format="rgb8; jpeg compressed bgr8", data=bytes_to_array(data.tobytes())
    )


def camera_to_info(camera: Camera, header: Header) -> CameraInfo:
    """The calibration message of a camera: K and D, R the identity, P = [K | 0]."""
    distortion = [float(value) for value in camera.distortion]
    k = camera.intrinsics
    return CameraInfo(
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model="rational_polynomial" if len(distortion) == 8 else "plumb_bob",
        d=distortion or [0.0] * 5,
        k=k.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.hstack([k, np.zeros((3, 1))]).reshape(-1),
    )


def report_to_diagnostics(
    report: Report, header: Header, *, name: str, hardware_id: str
) -> DiagnosticArray:
    """A /diagnostics message with one status."""
    status = DiagnosticStatus(
        level=bytes([report.level]),
        name=name,
        message=report.message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
    )
    return DiagnosticArray(header=header, status=[status])


def _quaternion_wxyz(T: FloatArray) -> list[float]:
    rotation = torch.from_numpy(np.ascontiguousarray(T[:3, :3], np.float64))
    return matrix_to_quaternion_wxyz(rotation).tolist()
