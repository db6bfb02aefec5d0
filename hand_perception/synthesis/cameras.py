"""Cameras, viewpoints, timing, sensors and the tracker that cuts crops around a moving hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.synthesis.arrays import F32
from hand_perception.synthesis.motion import rotation_matrix
from hand_perception.synthesis.shading import develop
from hand_perception.types import Camera, FloatArray

# The right hand upright with its palm to the camera: model axes in the camera frame.
_PALM_TO_CAMERA = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class Viewpoint:
    """A camera, and where the wrist is in front of it."""

    camera: Camera
    wrist: FloatArray
    """(3,) camera frame, metres."""
    orientation: FloatArray
    """(3, 3) of the model in the camera frame."""
    moving: bool
    """The camera itself moves: the background drifts."""


def sample_viewpoint(rng: np.random.Generator) -> Viewpoint:
    """A webcam before a person, a headset above the hands, or a camera on a robot."""
    kind = rng.random()
    width, height = [(640, 480), (1280, 720), (640, 360), (1920, 1080), (320, 240)][
        rng.choice(5, p=[0.4, 0.3, 0.1, 0.12, 0.08])
    ]
    uniform = rng.random() < 0.25
    if kind < 0.5:  # webcam: palms and gestures, the person upright
        view, distance = (
            np.radians(rng.uniform(50, 80)),
            np.exp(rng.uniform(np.log(0.3), np.log(1.1))),
        )
        yaw = rng.normal(0, 0.7) if rng.random() < 0.6 else rng.normal(np.pi, 0.8)
        pitch, roll = rng.normal(0, 0.45), rng.normal(0, 0.6)
    elif kind < 0.8:  # headset: backs of the hands from above, fingers away from the eyes
        view, distance = np.radians(rng.uniform(65, 110)), rng.uniform(0.22, 0.65)
        yaw, pitch = rng.normal(np.pi, 0.8), rng.normal(-0.55, 0.45)
        roll = rng.normal(0.5, 0.7)
    else:
        view, distance = (
            np.radians(rng.uniform(45, 90)),
            np.exp(rng.uniform(np.log(0.3), np.log(1.4))),
        )
        yaw, pitch, roll = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.6), rng.uniform(0, 2 * np.pi)
    if uniform:
        yaw, roll = rng.uniform(0, 2 * np.pi, 2)
        pitch = np.arcsin(rng.uniform(-0.97, 0.97))
    focal = width / 2 / np.tan(view / 2)
    camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    # A hand is about 0.19 m long: not fewer than 70 pixels, and as a rule within the picture.
    distance = min(distance, 0.19 * focal / 70)
    distance = max(distance, 0.19 * focal / (height * rng.uniform(0.35, 0.9)))
    edge = 0.42 if rng.random() < 0.12 else 0.27
    place = np.clip(rng.normal(0, 0.17, 2), -edge, edge) * [width, height]
    center = distance * np.array([place[0] / focal, place[1] / focal, 1.0])
    orientation = _turn(yaw, pitch, roll)
    # Nobody looks along a forearm that starts at the camera.
    while orientation[:, 0] @ center < -0.72 * np.linalg.norm(center):
        yaw, pitch = yaw + rng.normal(0, 0.5), 0.7 * pitch + rng.normal(0, 0.3)
        orientation = _turn(yaw, pitch, roll)
    wrist = center - orientation @ np.array([-0.08, 0.0, 0.0])
    return Viewpoint(camera, wrist, orientation, kind >= 0.5)


def _turn(yaw: float, pitch: float, roll: float) -> FloatArray:
    return (
        rotation_matrix(np.array([0, 0, roll]))
        @ rotation_matrix(np.array([pitch, 0, 0]))
        @ rotation_matrix(np.array([0, yaw, 0]))
        @ _PALM_TO_CAMERA
    )


def sample_stamps(rng: np.random.Generator, count: int) -> FloatArray:
    """Stamps (count,) from 0 on: 10 to 60 frames a second with jitter and lost frames."""
    period = 1 / rng.choice([10, 12.5, 15, 20, 24, 30, 30, 30, 60])
    steps = np.full(count, period)
    if rng.random() < 0.3:
        steps *= 1 + rng.poisson(0.3, count)
    steps *= np.clip(1 + rng.normal(0, rng.choice([0, 0.02, 0.1]), count), 0.5, 1.5)
    return np.cumsum(steps) - steps[0]


@dataclass(frozen=True)
class Sensor:
    """What the camera adds to the light: white balance, noise, blur, tone curve, compression."""

    gains: NDArray[np.float32]
    curve: NDArray[np.uint8]
    """(1024,) over the square root of linear light."""
    read_noise: float
    shot_noise: float
    blur: float
    """Standard deviation, camera pixels."""
    sharpen: float
    quality: int
    """JPEG quality, 0 for none."""
    gray: bool
    seed: int


def sample_sensor(rng: np.random.Generator, cast: FloatArray) -> Sensor:
    """A sensor; cast (3,) is the white balance's error."""
    exposure = 2 ** np.clip(rng.normal(-0.2, 0.45), -1.6, 0.55)
    light = np.linspace(0, 1, 1024) ** 2
    tone = light ** (1 / rng.uniform(1.9, 2.5))
    contrast = rng.uniform(-0.15, 0.45)
    smooth = tone * tone * (3 - 2 * tone)
    tone = tone + contrast * (smooth - tone)
    lift = rng.uniform(0, 0.06)
    curve = np.clip((lift + (1 - lift) * tone) * 255, 0, 255).astype(np.uint8)
    dark = rng.random() < 0.25
    noise = rng.uniform(0.003, 0.02) if dark else rng.uniform(0, 0.005)
    return Sensor(
        (cast * exposure).astype(np.float32),
        curve,
        float(noise),
        float(noise * rng.uniform(1, 3)),
        float(rng.uniform(0.3, 0.9) if rng.random() < 0.8 else rng.uniform(0.9, 2.2)),
        float(rng.uniform(0.2, 0.9)) if rng.random() < 0.25 else 0.0,
        int(rng.integers(40, 96)) if rng.random() < 0.7 else 0,
        bool(rng.random() < 0.04),
        int(rng.integers(2**31)),
    )


_NOISE = np.random.default_rng(5).normal(size=(256, 256, 3)).astype(np.float32)


def expose(linear: F32, sensor: Sensor, magnification: float, frame: int) -> NDArray[np.uint8]:
    """The sRGB crop (S, S, 3) of linear light (S, S, 3) after the camera.

    magnification: crop pixels per camera pixel. A crop larger than its source is made at the
    source's size first, so that noise, blur and compression have the size they have in life.
    """
    size = len(linear)
    native = size if magnification <= 1 else max(32, round(size / magnification))
    picture: F32 = linear
    if native < size:
        picture = cv2.resize(linear, (native, native), interpolation=cv2.INTER_AREA)
    scale = min(1.0, magnification)
    if sensor.blur * scale > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sensor.blur * scale)
    rng = np.random.default_rng([sensor.seed, frame])
    offset = rng.integers(0, 256, 2)
    image = develop(
        picture, sensor.gains, sensor.curve, _NOISE, np.float32(sensor.read_noise * scale),
        np.float32(sensor.shot_noise * scale), offset,
    )  # fmt: skip
    if sensor.sharpen:
        soft = cv2.GaussianBlur(image, (0, 0), 1.2)
        image = cv2.addWeighted(image, 1 + sensor.sharpen, soft, -sensor.sharpen, 0)
    if sensor.gray:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if sensor.quality:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, sensor.quality])
        decoded: Any = cv2.imdecode(code, cv2.IMREAD_COLOR)
        image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    if native < size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


# ---- Tracker ---------------------------------------------------------------------------------

# MediaPipe's landmark tracking (hand_landmarks_to_rect_calculator.cc and the hand_landmark_tracking
# graph): the palm, the thumb and the first joints of the fingers span the box, doubled and moved.
_BOX_JOINTS = [0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18]
_BOX_SCALE = 2.0
_BOX_SHIFT = -0.1


@dataclass(frozen=True)
class Tracker:
    """How the crop follows the hand."""

    lagging: bool
    """The box comes from the joints of the frame before."""
    offset: FloatArray
    """(2,) steady error, shares of the box."""
    scale: float
    turn: float
    jitter: float
    """Standard deviation of the error from frame to frame, shares of the box."""
    seed: int


def sample_tracker(rng: np.random.Generator) -> Tracker:
    rough = rng.random() < 0.25
    return Tracker(
        bool(rng.random() < 0.5),
        rng.normal(0, 0.06 if rough else 0.025, 2),
        float(np.exp(rng.normal(0, 0.16 if rough else 0.07))),
        float(rng.normal(0, 0.35 if rough else 0.12)),
        float(rng.choice([0.003, 0.01, 0.02])),
        int(rng.integers(2**31)),
    )


def tracker_box(joints_2d: FloatArray) -> tuple[FloatArray, float, float]:
    """Centre (2,), size and clockwise turn of MediaPipe's box around joints (21, 2), pixels."""
    wrist = joints_2d[0]
    toward = 0.25 * (joints_2d[5] + joints_2d[13]) + 0.5 * joints_2d[9] - wrist
    angle = float(np.arctan2(toward[0], -toward[1]))
    cos, sin = np.cos(angle), np.sin(angle)
    back = np.array([[cos, sin], [-sin, cos]])  # image -> box axes
    points = joints_2d[_BOX_JOINTS] @ back.T
    low, high = points.min(0), points.max(0)
    center = (low + high) / 2 + [0, _BOX_SHIFT * (high - low)[1]]
    return center @ back, float(_BOX_SCALE * (high - low).max()), angle


def crop_camera(
    center: FloatArray, size: float, angle: float, camera: Camera, side: int
) -> tuple[FloatArray, FloatArray]:
    """R_camera_crop (3, 3) and intrinsics (3, 3) of the crop of a box, by the rule of crops.py."""

    def ray(at: FloatArray) -> FloatArray:
        flat = (at - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
        return np.concatenate([flat, np.ones((len(flat), 1))], 1)

    axis = ray(center[None])[0]
    x, y, z = axis / np.linalg.norm(axis)
    k = 1.0 / (1.0 + z)
    tilt = np.array([[1 - k * x * x, -k * x * y, x], [-k * x * y, 1 - k * y * y, y], [-x, -y, z]])
    rotation = tilt @ rotation_matrix(np.array([0.0, 0.0, angle]))
    steps = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)
    seen = ray(center + steps) @ rotation
    tangent = np.linalg.norm(seen[:, :2] / seen[:, 2:], axis=1).mean()
    focal = side / (size * tangent)
    return rotation, np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1.0]])
