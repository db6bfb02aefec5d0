"""The estimator node over a deterministic stand-in for the pipeline, for tests.

    python test/standin_node.py --ros-args -p method:=standin

The hand is a fixed set of points that moves along x with the stamp. The picture steers it: a black
image holds no hand, a white one makes the pipeline raise, any other holds a left and a right hand.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np

from hand_perception import camera as cameras
from hand_perception.types import SIDES, Camera, HandPerceptionError, HandPose, ObjectPose, Scene

FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
"""A tetrahedron."""


def standin_joints(side: str, stamp_s: float) -> np.ndarray:
    """(21, 3) metres: a grid half a metre away, left of the axis for the left hand."""
    index = np.arange(21)
    grid = np.stack([0.02 * (index % 5), 0.02 * (index // 5), 0.001 * index], 1)
    x = (-0.1 if side == "left" else 0.1) + 0.01 * (stamp_s % 1.0)
    return grid + (x, 0.0, 0.5)


def standin_hand(side: str, stamp_s: float, camera: Camera) -> HandPose:
    """A hand whose wrist frame is turned by 90 degrees about z."""
    joints = standin_joints(side, stamp_s)
    T_camera_wrist = np.eye(4)
    T_camera_wrist[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T_camera_wrist[:3, 3] = joints[0]
    return HandPose(
        side=side,
        score=0.9 if side == "left" else 0.6,
        joints_3d=joints,
        joints_2d=cameras.project(joints, camera),
        joint_confidence=np.linspace(0.0, 1.0, 21),
        vertices=joints[0] + 0.05 * np.vstack([np.zeros(3), np.eye(3)]),
        global_orient=np.array([0.0, 0.0, np.pi / 2]),
        hand_pose=np.zeros((15, 3)),
        betas=np.zeros(10),
        transl=joints[0],
        T_camera_wrist=T_camera_wrist,
        joint_angles=np.arange(22) * 0.05,
        track_id=SIDES.index(side),
    )


class StandIn:
    """The interface of `HandPerception`."""

    @staticmethod
    def load(method: str, device: str = "auto", **options: float) -> StandIn:
        if method != "standin":
            raise HandPerceptionError(f"method is {method!r}; allowed is standin")
        return StandIn()

    def process(self, image, camera, stamp_s, boxes=None, depth=None) -> Scene:
        if image.min() == 255:
            raise RuntimeError("a white image")
        if image.max() == 0:
            return Scene(stamp_s)
        T_camera_object = np.eye(4)
        T_camera_object[2, 3] = 0.7 if depth is None else float(np.nanmedian(depth))
        can = ObjectPose("002_can", 0.95, T_camera_object, np.array([0.07, 0.07, 0.1]))
        return Scene(stamp_s, [standin_hand(side, stamp_s, camera) for side in SIDES], [can])

    def reset(self) -> None:
        pass

    def hand_model(self, side: str) -> SimpleNamespace:
        return SimpleNamespace(faces=FACES)


if __name__ == "__main__":
    from hand_perception.ros.estimator_node import main

    sys.exit(main(load=StandIn.load))
