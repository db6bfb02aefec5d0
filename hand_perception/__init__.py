"""Hands and the object they hold, from a plain RGB camera: joints, angles, mesh and 6D pose.

from hand_perception import Camera, HandPerception

perception = HandPerception.load(method="landmark_fit", device="auto")
scene = perception.process(image_rgb, Camera(1280, 720, fx, fy, cx, cy), stamp_s)
"""

from hand_perception.pipeline import HandPerception
from hand_perception.types import Box, Camera, HandPerceptionError, HandPose, ObjectPose, Scene

__all__ = [
    "Box",
    "Camera",
    "HandPerception",
    "HandPerceptionError",
    "HandPose",
    "ObjectPose",
    "Scene",
]
