"""Joint-limited hand poses and smooth motion: gestures, pinches, wrist paths.

Poses are the 22 anatomical angles of `skeleton.ANGLE_NAMES`, radians. Every motion is a function
of time, so that a frame's exposure can be sampled between frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from scipy.spatial.transform import Rotation

from hand_perception.hand_model import ANGLE_LIMITS
from hand_perception.synthesis.hands import HandShape, HandTemplate, hand_template
from hand_perception.types import FloatArray

LIMITS: FloatArray = ANGLE_LIMITS.numpy().astype(np.float64)
"""(22, 2) least and greatest angle."""
# Where each finger's four angles start, index to little finger.
_FINGERS = (6, 10, 14, 18)
_SPREAD = np.array([1.0, 0.15, -0.45, -1.0])

_THUMBS = {
    "neutral": (0, 0, 0, 5, 0, 5),
    "out": (-22, 0, -5, -5, 0, -8),
    "up": (-24, -18, -8, -8, 0, -18),
    "beside": (6, -28, 0, 8, -6, 5),
    "across": (42, -7, 18, 38, 0, 35),
    "over": (38, 8, 26, 34, 0, 45),
    "opposed": (14, 26, 24, 12, 0, 15),
    "hook": (20, 5, 10, 30, 0, 50),
}

# Curl of index to little finger, spread, thumb.
GESTURES: dict[str, tuple[tuple[float, float, float, float], float, str]] = {
    "open": ((0.02, 0.02, 0.02, 0.02), 0.5, "neutral"),
    "spread": ((-0.05, -0.05, -0.05, -0.05), 1.3, "out"),
    "flat": ((0.0, 0.0, 0.0, 0.0), -0.2, "beside"),
    "relaxed": ((0.2, 0.25, 0.3, 0.33), 0.25, "neutral"),
    "cup": ((0.4, 0.4, 0.42, 0.42), 0.2, "opposed"),
    "fist": ((1.0, 1.0, 1.0, 1.0), 0.0, "over"),
    "fist_thumb_beside": ((1.0, 1.0, 1.0, 1.0), 0.0, "beside"),
    "thumb_up": ((1.0, 1.0, 1.0, 1.0), 0.0, "up"),
    "point": ((0.0, 1.0, 1.0, 1.0), 0.0, "over"),
    "gun": ((0.0, 1.0, 1.0, 1.0), 0.0, "up"),
    "victory": ((0.0, 0.0, 1.0, 1.0), 1.0, "over"),
    "two_together": ((0.0, 0.02, 1.0, 1.0), -0.2, "over"),
    "three": ((0.0, 0.0, 0.0, 1.0), 0.7, "across"),
    "three_thumb": ((0.0, 0.0, 1.0, 1.0), 0.8, "out"),
    "four": ((0.0, 0.0, 0.0, 0.0), 0.7, "across"),
    "rock": ((0.0, 1.0, 1.0, 0.0), 0.3, "over"),
    "love": ((0.0, 1.0, 1.0, 0.0), 0.4, "out"),
    "call": ((1.0, 1.0, 1.0, 0.0), 0.6, "out"),
    "little": ((1.0, 1.0, 1.0, 0.0), 0.0, "over"),
    "middle": ((1.0, 0.0, 1.0, 1.0), 0.0, "over"),
    "claw": ((0.5, 0.5, 0.5, 0.5), 0.8, "hook"),
    "hook": ((0.75, 0.75, 0.75, 0.75), 0.0, "beside"),
    "duck": ((0.35, 0.35, 0.38, 0.4), -0.2, "opposed"),
}


def clip_to_limits(angles: FloatArray) -> FloatArray:
    """Angles (..., 22) moved into the joints' limits."""
    return np.clip(angles, LIMITS[:, 0], LIMITS[:, 1])


def finger_angles(curls: FloatArray, balance: FloatArray, spread: float) -> FloatArray:
    """Angles (16,) in degrees of index to little finger.

    curls (4,) 0 straight to 1 in the fist; balance (4,) more of the curl at the base (+) or at
    the outer joints (-); spread 0 side by side, 1 apart.
    """
    base = np.clip(curls + balance, -0.3, 1.1)
    outer = np.clip(curls - 0.8 * balance, -0.05, 1.1)
    mcp, pip = 84 * base, 106 * outer
    dip = 0.62 * pip
    abduction = 14 * _SPREAD * spread * (1 - 0.85 * np.clip(curls, 0, 1))
    return np.stack([mcp, abduction, pip, dip], 1).ravel()


def sample_pose(rng: np.random.Generator) -> FloatArray:
    """One hand pose (22,): a gesture, a curl of the hand, a pinch or free fingers."""
    kind = rng.random()
    if kind < 0.18:
        bank = pinch_poses()
        pose = np.degrees(bank[rng.integers(len(bank))])
        return clip_to_limits(np.radians(pose + rng.normal(0, 1.5, 22)))
    if kind < 0.58:
        curls, spread, thumb_name = GESTURES[list(GESTURES)[rng.integers(len(GESTURES))]]
        curl = np.array(curls) + rng.normal(0, 0.05, 4)
        spread = spread + rng.normal(0, 0.3)
        balance = rng.normal(0, 0.06, 4) + rng.normal(0, 0.06)
        thumb = np.array(_THUMBS[thumb_name]) + rng.normal(0, 5, 6)
        if thumb_name == "over" and rng.random() < 0.3:
            thumb = np.array(_THUMBS["across"]) + rng.normal(0, 5, 6)
    else:
        if kind < 0.82:
            # Neighbouring fingers move together, the little finger curls most.
            curl = (
                rng.beta(1.1, 1.1) + rng.normal(0, 0.12, 4) + rng.normal(0.03, 0.1) * np.arange(4)
            )
            curl = np.convolve(np.pad(curl, 1, "edge"), [0.2, 0.6, 0.2], "valid")
        else:
            curl = rng.beta(0.7, 0.7, 4)
        curl = np.clip(curl, -0.05, 1.02)
        spread = rng.normal(0.35, 0.55)
        middle = np.clip(4 * curl * (1 - curl), 0.1, 1)
        balance = (rng.normal(0, 0.22) + rng.normal(0, 0.08, 4)) * middle
        names = list(_THUMBS)
        pair = rng.choice(len(names), 2)
        mix = rng.random()
        thumb = mix * np.array(_THUMBS[names[pair[0]]]) + (1 - mix) * np.array(
            _THUMBS[names[pair[1]]]
        )
        thumb = thumb + rng.normal(0, 6, 6)
    fingers = finger_angles(curl, balance, spread)
    fingers = fingers + rng.normal(0, 1, 16) * np.tile([4, 2, 4, 4], 4)
    return clip_to_limits(np.radians(np.concatenate([thumb, fingers])))


def sample_poses(rng: np.random.Generator, count: int, shape: HandShape) -> FloatArray:
    """Poses (count, 22) in which, and half-way between which, no finger is inside another part."""
    poses: list[FloatArray] = []
    for _ in range(count):
        best, least = None, np.inf
        for _ in range(8):
            pose = sample_pose(rng)
            if poses and rng.random() < 0.3:
                pose = 0.6 * poses[-1] + 0.4 * pose
            depth = self_penetration(shape, pose)
            if poses:
                depth = max(depth, 0.7 * self_penetration(shape, (pose + poses[-1]) / 2))
            if depth < least:
                best, least = pose, depth
            if least < 0.003:
                break
        assert best is not None
        poses.append(best)
    return np.stack(poses)


# ---- Contact between parts of hands, each a capsule ------------------------------------------

_RADII = np.array(
    [11.0, 9.5, 8.0, 9.5, 8.2, 7.2, 9.5, 8.2, 7.2, 9.2, 7.8, 6.9, 8.4, 7.0, 6.2]
    + [12.0, 12.0, 12.0, 12.0]
) / 1000  # fmt: skip
"""(19,) radii in metres: three bones of the thumb to the little finger, then four of the palm."""


def capsules(joints: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ends (19, 3), (19, 3) and radii (19,) of the bones of a hand with joints (21, 3)."""
    start = np.concatenate(
        [joints[[1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]], np.tile(joints[0], (4, 1))]
    )
    end = joints[[2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20, 5, 9, 13, 17]].copy()
    size = np.linalg.norm(joints[9] - joints[0]) / 0.0934
    # The tip lies on the skin: the capsule ends before it.
    tips = np.arange(2, 15, 3)
    bone = end[tips] - start[tips]
    end[tips] -= bone / np.linalg.norm(bone, axis=1, keepdims=True) * _RADII[tips, None] * size
    return start, end, _RADII * size


def self_penetration(shape: HandShape, pose: FloatArray) -> float:
    """Metres by which bones' capsules of a hand lie in each other at worst (0: they do not)."""
    template = hand_template()
    G, P = template.transforms(shape, np.eye(3), template.rotations(pose), np.zeros(3))
    return max(0.0, -_least_gap(*capsules(template.joints_21(shape, G, P)), _SELF_PAIRS))


def hands_gap(joints_a: FloatArray, joints_b: FloatArray) -> float:
    """Metres between two hands' capsules, negative when they overlap."""
    start_a, end_a, radii_a = capsules(joints_a)
    start_b, end_b, radii_b = capsules(joints_b)
    return _least_gap(
        np.concatenate([start_a, start_b]),
        np.concatenate([end_a, end_b]),
        np.concatenate([radii_a, radii_b]),
        _HAND_PAIRS,
    )


def _self_pairs() -> list[tuple[int, int]]:
    pairs = []
    for a in range(15):
        for b in range(a + 1, 15):
            # The first bones of two fingers share the palm's flesh.
            if a // 3 != b // 3 and not (a % 3 == 0 and b % 3 == 0):
                pairs.append((a, b))
    # Outer bones against the palm; the thumb's middle bone lies beside it.
    return pairs + [(a, p) for a in range(15) if a % 3 == 2 for p in range(15, 19)]


_SELF_PAIRS = np.array(_self_pairs())
_HAND_PAIRS = np.array([(a, b + 19) for a in range(19) for b in range(19)])


@njit(cache=True)
def _least_gap(start: Any, end: Any, radii: Any, pairs: Any) -> Any:
    """Least distance between the surfaces of pairs of capsules (Ericson, 2005, section 5.1.9)."""
    least = np.inf
    for i in range(pairs.shape[0]):
        p, q = pairs[i, 0], pairs[i, 1]
        d1, d2 = end[p] - start[p], end[q] - start[q]
        r = start[p] - start[q]
        a, e, f = (d1 * d1).sum(), (d2 * d2).sum(), (d2 * r).sum()
        c, b = (d1 * r).sum(), (d1 * d2).sum()
        denominator = a * e - b * b
        s = 0.0
        if denominator > 1e-12:
            s = min(1.0, max(0.0, (b * f - c * e) / denominator))
        t = (b * s + f) / e
        if t < 0:
            t, s = 0.0, min(1.0, max(0.0, -c / a))
        elif t > 1:
            t, s = 1.0, min(1.0, max(0.0, (b - c) / a))
        apart = r + d1 * s - d2 * t
        gap = np.sqrt((apart * apart).sum()) - radii[p] - radii[q]
        if gap < least:
            least = gap
    return least


# ---- Pinches: the thumb meets a fingertip ----------------------------------------------------


def pads(template: HandTemplate) -> FloatArray:
    """(5,) vertices in the middle of the finger pads, thumb to little finger."""
    last = np.array([15, 3, 6, 12, 9])
    cost = np.abs(template.axial - 2.62) + 2 * (1 - template.palmar)
    return np.array([np.where(template.parts == k, cost, np.inf).argmin() for k in last])


@lru_cache(maxsize=1)
def pinch_poses() -> FloatArray:
    """Poses (N, 22) of the mean hand in which the thumb's pad touches another finger's."""
    rng = np.random.default_rng(7)
    template = hand_template()
    shape = template.shaped(np.zeros(10))
    pad = pads(template)
    poses = []
    for finger in (0, 0, 0, 0, 1, 1, 2, 3):
        for _ in range(7):
            curl = np.clip(rng.normal(0.3, 0.25, 4), 0, 0.9)
            if rng.random() < 0.5:
                curl[:] = rng.choice([0.05, 0.5, 0.9])
            curl[finger] = rng.uniform(0.35, 0.55)
            fingers = finger_angles(curl, rng.normal(0, 0.1, 4), rng.uniform(0, 0.6))
            start = np.radians(np.concatenate([_THUMBS["opposed"], fingers]))
            pose = _touch(template, shape, start, int(pad[0]), int(pad[finger + 1]), finger)
            if pose is not None and self_penetration(shape, pose) < 0.006:
                poses.append(pose)
    return np.stack(poses)


def _touch(
    template: HandTemplate, shape: HandShape, pose: FloatArray, a: int, b: int, finger: int
) -> FloatArray | None:
    """Damped Gauss-Newton from a pose (22,) until vertices a and b meet; None when they do not."""
    first = _FINGERS[finger]
    free = [0, 1, 2, 3, 5, first, first + 2]
    w = template.weights[[a, b]].astype(np.float64)
    points = shape.vertices[[a, b]].astype(np.float64)

    def apart(angles: FloatArray) -> FloatArray:
        G, P = template.transforms(shape, np.eye(3), template.rotations(angles), np.zeros(3))
        moved = P - np.einsum("kij,kj->ki", G, shape.joints)
        skin = np.einsum("nk,kij,nj->ni", w, G, points) + w @ moved
        return skin[0] - skin[1]

    rest = pose.copy()
    for _ in range(25):
        error = apart(pose)
        if np.linalg.norm(error) < 0.0015:
            return pose
        jacobian = np.empty((3, len(free)))
        for i, k in enumerate(free):
            step = pose.copy()
            step[k] += 1e-4
            if k == first + 2:
                step[k + 1] += 0.62e-4
            jacobian[:, i] = (apart(step) - error) / 1e-4
        damped = jacobian.T @ jacobian + 1e-5 * np.eye(len(free))
        change = np.linalg.solve(damped, -jacobian.T @ error - 1e-6 * (pose - rest)[free])
        pose = pose.copy()
        pose[free] += np.clip(change, -0.3, 0.3)
        pose[first + 3] = 0.62 * pose[first + 2]
        pose = clip_to_limits(pose)
    return None


# ---- Motion ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FingerMotion:
    """Poses (n, 22) at times (n,) joined by minimum-jerk moves, with a slight tremor."""

    times: FloatArray
    poses: FloatArray
    tremor: FloatArray
    """(22, 3) amplitude in radians, angular frequency, phase."""

    def angles(self, time: float) -> FloatArray:
        """(22,) within the limits."""
        k = int(np.clip(np.searchsorted(self.times, time) - 1, 0, len(self.times) - 2))
        s = (time - self.times[k]) / (self.times[k + 1] - self.times[k])
        s = min(1.0, max(0.0, s))
        ease = s * s * s * (10 - 15 * s + 6 * s * s)
        pose = self.poses[k] * (1 - ease) + self.poses[k + 1] * ease
        amplitude, frequency, phase = self.tremor.T
        return clip_to_limits(pose + amplitude * np.sin(frequency * time + phase))

    @staticmethod
    def sample(
        rng: np.random.Generator, duration: float, shape: HandShape, still: bool = False
    ) -> FingerMotion:
        """Keyframes over [0, duration] at a pace of their own: held poses to quick gestures."""
        pace = float(np.exp(rng.uniform(np.log(0.18), np.log(1.5))))
        start = -rng.uniform(0, pace)
        times = [start]
        while times[-1] < duration or len(times) < 2:
            times.append(times[-1] + pace * rng.uniform(0.6, 1.6))
        poses = sample_poses(rng, 1 if still else len(times), shape)
        if still:
            poses = np.repeat(poses, len(times), 0)
        elif rng.random() < 0.3:
            # Hold some poses.
            for k in range(1, len(poses)):
                if rng.random() < 0.4:
                    poses[k] = poses[k - 1]
        return FingerMotion(np.array(times), poses, tremor(rng, np.radians(rng.uniform(0, 1.5))))

    @staticmethod
    def constant(pose: FloatArray, shake: FloatArray) -> FingerMotion:
        """One pose (22,) with tremor (22, 3)."""
        return FingerMotion(np.array([0.0, 1.0]), np.stack([pose, pose]), shake)


def tremor(rng: np.random.Generator, amplitude: float) -> FloatArray:
    """Amplitude, angular frequency and phase (22, 3) of small involuntary motion."""
    return np.stack(
        [
            amplitude * rng.random(22),
            2 * np.pi * rng.uniform(0.5, 3, 22),
            rng.uniform(0, 2 * np.pi, 22),
        ],
        1,
    )


@dataclass(frozen=True)
class RigidMotion:
    """A pose that sways: sums of sines about a centre, smooth at every time."""

    position: FloatArray
    """(3,) metres."""
    rotation: FloatArray
    """(3, 3)."""
    sway: FloatArray
    """(W, 8): position amplitude 3, rotation amplitude 3 (radians), angular frequency, phase."""

    def at(self, time: float) -> tuple[FloatArray, FloatArray]:
        """Rotation (3, 3) and position (3,)."""
        wave = np.sin(self.sway[:, 6] * time + self.sway[:, 7])
        return (
            rotation_matrix(wave @ self.sway[:, 3:6]) @ self.rotation,
            self.position + wave @ self.sway[:, :3],
        )

    @staticmethod
    def sample(
        rng: np.random.Generator,
        position: FloatArray,
        rotation: FloatArray,
        speed: float,
        reach: float,
        turn_speed: float,
    ) -> RigidMotion:
        """Sway with about the given root-mean-square speeds, m/s and rad/s, within a reach."""
        waves = 3
        frequency = 2 * np.pi * np.exp(rng.uniform(np.log(0.25), np.log(2.5), waves))
        direction = rng.normal(size=(waves, 3)) * [1, 1, 0.6]
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        share = rng.dirichlet(np.ones(waves))
        # The slow waves carry the far moves: amplitude = speed / frequency, cut at the reach.
        size = np.minimum(1.4 * speed * np.sqrt(share) / frequency, reach / waves)
        axis = rng.normal(size=(waves, 3))
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        turn = np.minimum(1.4 * turn_speed * np.sqrt(share) / frequency, 0.7)
        sway = np.concatenate(
            [
                direction * size[:, None],
                axis * turn[:, None],
                frequency[:, None],
                rng.uniform(0, 2 * np.pi, (waves, 1)),
            ],
            1,
        )
        return RigidMotion(np.asarray(position, np.float64), rotation, sway)


def rotation_matrix(axis_angle: FloatArray) -> FloatArray:
    """(3, 3) of axis-angle (3,)."""
    angle = float(np.linalg.norm(axis_angle))
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = axis_angle / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def axis_angle(rotation: FloatArray) -> FloatArray:
    """Axis-angle (..., 3) of rotations (..., 3, 3)."""
    flat = np.asarray(rotation, np.float64).reshape(-1, 3, 3)
    return Rotation.from_matrix(flat).as_rotvec().reshape(*rotation.shape[:-2], 3)


def random_rotation(rng: np.random.Generator) -> FloatArray:
    """A uniformly random rotation (3, 3)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
