"""A hand made of a few lines and a pipeline that always sees it: for tests of what comes after."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from hand_perception.camera import project
from hand_perception.types import Camera, HandPose, Scene, Side

# A tetrahedron, outside seen counter-clockwise.
FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
CORNERS = np.array([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])


def standin_hand(side: Side, center: tuple[float, float, float], camera: Camera) -> HandPose:
    """Joints in five rows around a point, metres, and a tetrahedron of 8 cm for a mesh."""
    joints = np.zeros((21, 3))
    for joint in range(1, 21):
        finger, bone = divmod(joint - 1, 4)
        joints[joint] = (0.015 * (finger - 2), -0.02 * (bone + 1), 0.0)
    joints += center
    T = np.eye(4)
    T[:3, 3] = joints[0]
    return HandPose(
        side=side,
        score=0.75,
        joints_3d=joints,
        joints_2d=project(joints, camera),
        joint_confidence=np.linspace(0, 1, 21),
        vertices=0.04 * CORNERS + center,
        global_orient=np.zeros(3),
        hand_pose=np.zeros((15, 3)),
        betas=np.zeros(10),
        transl=np.array(center),
        T_camera_wrist=T,
        joint_angles=np.zeros(22),
    )


class StandinPerception:
    """Sees one right hand half a metre ahead, and remembers how it was called."""

    def __init__(self) -> None:
        self.cameras: list[Camera] = []
        self.stamps: list[float] = []
        self.resets = 0

    def process(self, image: np.ndarray, camera: Camera, stamp_s: float) -> Scene:
        assert image.shape == (camera.height, camera.width, 3)
        self.cameras.append(camera)
        self.stamps.append(stamp_s)
        return Scene(stamp_s, [standin_hand("right", (0.0, 0.0, 0.5), camera)])

    def reset(self) -> None:
        self.resets += 1

    def hand_model(self, side: Side) -> SimpleNamespace:
        return SimpleNamespace(faces=torch.from_numpy(FACES))
