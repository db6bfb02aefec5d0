"""Both hands from a plain RGB camera: joints, angles, mesh and pose.

from hand_perception import Camera, HandPerception

perception = HandPerception.load(method="landmark_fit", device="auto")
scene = perception.process(image_rgb, Camera(1280, 720, fx, fy, cx, cy), stamp_s)
"""

import os

# On a busy machine OpenMP's threads spin for the cores that others need, and a frame takes up to
# fifty times as long. It is read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

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
