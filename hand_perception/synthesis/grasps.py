"""Grasps: an object is put to the palm or between the fingertips and the fingers close on it.

Each finger closes until its skin meets the object: the joints before the link that touched stop,
those after it go on (the automatic grasp of GraspIt!, Miller and Allen, IEEE RAM 2004).
Everything is in the frame of the right wrist at rest, metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from hand_perception.synthesis import motion
from hand_perception.synthesis.hands import (
    CHAINS,
    HandShape,
    HandTemplate,
    _forward_kinematics,
    _joint_rotations,
    hand_template,
)
from hand_perception.synthesis.objects import RigidObject, sample_grid
from hand_perception.types import FloatArray

STEPS = 40
SKIN_GAP = 0.0008
"""A finger stops where its skin would come nearer than this, metres."""
TOUCH = 0.004
"""Metres from the skin of a fingertip to the object that count as touching."""
_ANGLE_SLOT = np.array(motion._FINGERS)


@dataclass(frozen=True)
class Grasp:
    """A held object: finger angles (22,) and the object's pose in the wrist frame."""

    pose: FloatArray
    rotation: FloatArray
    """(3, 3) R_wrist_object."""
    position: FloatArray
    """(3,)."""
    tips_touching: int
    penetration: float
    """Metres that the skin lies in the object at worst."""


def sample_grasp(
    rng: np.random.Generator, shape: HandShape, thing: RigidObject, tries: int = 6
) -> Grasp | None:
    """The best of some grasps of an object, or None when no two fingertips reach it."""
    best = None
    thickness = np.sort(thing.extents)
    for _ in range(tries):
        wide = thickness[1] > 0.016 and thickness[0] < 0.09
        grasp = (
            _power(rng, shape, thing)
            if wide and rng.random() < 0.6
            else _precision(rng, shape, thing)
        )
        if grasp.penetration > 0.008 or grasp.tips_touching < 2:
            continue
        if best is None or _quality(grasp) > _quality(best):
            best = grasp
        if best.tips_touching >= 3 and best.penetration < 0.004:
            break
    return best


def _quality(grasp: Grasp) -> float:
    return grasp.tips_touching - grasp.penetration / 0.002


def _power(rng: np.random.Generator, shape: HandShape, thing: RigidObject) -> Grasp:
    """The object lies against the palm, its long axis across the fingers."""
    template = hand_template()
    spread = rng.uniform(-0.1, 0.5)
    start = np.radians(
        np.concatenate(
            [
                [2, rng.uniform(22, 40), rng.uniform(0, 25), -8, 0, -5],
                motion.finger_angles(np.full(4, 0.08), np.zeros(4), spread),
            ]
        )
    )
    close = np.radians(
        np.concatenate(
            [
                [50, rng.uniform(5, 25), 20, 55, 0, 65],
                motion.finger_angles(np.full(4, 1.0), np.full(4, rng.uniform(-0.1, 0.05)), 0.0),
            ]
        )
    )
    # The object's axes sorted: long across the palm (z), thin away from the palm (y).
    order = np.argsort(thing.extents)
    across = np.zeros((3, 3))
    thin_up = rng.random() < 0.7
    across[1 if thin_up else 0, order[0]] = 1
    across[0 if thin_up else 1, order[1]] = 1
    across[2, order[2]] = 1
    across *= rng.choice([-1, 1], 3)[:, None]
    if np.linalg.det(across) < 0:
        across[0] *= -1
    tilt = motion.rotation_matrix(rng.normal(0, 1, 3) * np.radians([10, 22, 12]))
    rotation = tilt @ across
    middle = shape.joints[[1, 4, 7, 10]].mean(0)
    x = middle[0] * rng.uniform(0.82, 1.02)
    slide = rng.normal(0, 0.12) * thing.extents.max() if thing.extents.max() > 0.1 else 0.0
    position = np.array([x, -0.2, middle[2] + rng.normal(0, 0.006) + slide])
    G, P = template.transforms(shape, np.eye(3), template.rotations(start), np.zeros(3))
    skin = template.skin(shape, G, P).astype(np.float64)
    palm = skin[(template.parts == 0) & (template.palmar > 0.4)]
    # Rise to the palm: no step can be longer than the free distance.
    for _ in range(25):
        gap = float(thing.distance.at((palm - position) @ rotation).min())
        position[1] += gap - 0.001
        if abs(gap - 0.001) < 5e-4 or position[1] > 0.05:
            break
    return _closed(rng, shape, thing, start, close, rotation, position)


def _precision(rng: np.random.Generator, shape: HandShape, thing: RigidObject) -> Grasp:
    """The object between the pads of the thumb and one or more fingers."""
    template = hand_template()
    bank = motion.pinch_poses()
    pinch = bank[rng.integers(len(bank) // 2)].copy()
    order = np.argsort(thing.extents)
    width = thing.extents[order[0]]
    opening = np.radians(np.clip(10 + width / 0.0016, 12, 42))
    others = rng.random() < 0.6
    if others:
        # Further fingers beside the index finger.
        for k, slot in enumerate(_ANGLE_SLOT[1:]):
            pinch[slot + np.array([0, 2, 3])] = pinch[6 + np.array([0, 2, 3])] + rng.normal(
                0.04 * k, 0.04, 3
            )
    start, close = pinch.copy(), pinch.copy()
    moving = np.concatenate([_ANGLE_SLOT, _ANGLE_SLOT + 2, _ANGLE_SLOT + 3])
    start[moving] -= np.tile(opening * np.array([1.0, 0.6, 0.35])[:, None], (1, 4)).ravel()
    close[moving] += np.radians(16)
    start[[0, 3, 5]] -= opening * np.array([0.8, 0.5, 0.3])
    start[1] += 0.2 * opening
    close[[0, 3, 5]] += np.radians(14)
    start, close = motion.clip_to_limits(start), motion.clip_to_limits(close)
    G, P = template.transforms(shape, np.eye(3), template.rotations(start), np.zeros(3))
    skin = template.skin(shape, G, P).astype(np.float64)
    pad = motion.pads(template)
    thumb, finger = skin[pad[0]], skin[pad[1]]
    toward = (finger - thumb) / np.linalg.norm(finger - thumb)
    # The long axis runs out of the hand, or across it.
    along = np.array([-0.3, -0.9, 0.2]) if rng.random() < 0.5 else np.array([0.0, 0.1, 1.0])
    along = along + rng.normal(0, 0.3, 3)
    along -= (along @ toward) * toward
    along /= np.linalg.norm(along)
    basis = np.zeros((3, 3))
    basis[:, order[0]] = toward * rng.choice([-1, 1])
    basis[:, order[2]] = along * rng.choice([-1, 1])
    a, b = (order[1] + 1) % 3, (order[1] + 2) % 3
    basis[:, order[1]] = np.cross(basis[:, a], basis[:, b])
    # A long thing is held off its middle.
    offset = rng.uniform(-0.35, 0.35) * max(0.0, thing.extents[order[2]] - 0.05)
    position = (thumb + finger) / 2 + along * offset
    return _closed(rng, shape, thing, start, close, basis, position)


def _closed(
    rng: np.random.Generator,
    shape: HandShape,
    thing: RigidObject,
    start: FloatArray,
    close: FloatArray,
    rotation: FloatArray,
    position: FloatArray,
) -> Grasp:
    template = hand_template()
    points, weights, link = _contact_points()
    grid = thing.distance
    rest = np.concatenate([shape.vertices[points]]).astype(np.float32)
    close = close.copy()
    # Fingers that meet nothing come to rest part of the way.
    pose = _close_fingers(
        start,
        close,
        shape.joints.astype(np.float64),
        template.axes[1:].astype(np.float64),
        rest,
        weights,
        link,
        grid.values,
        grid.origin,
        grid.spacing,
        rotation,
        position,
        rng.uniform(0.35, 0.8, 5),
    )
    pose = motion.clip_to_limits(pose)
    G, P = template.transforms(shape, np.eye(3), template.rotations(pose), np.zeros(3))
    skin = template.skin(shape, G, P).astype(np.float64)
    distance = grid.at((skin - position) @ rotation)
    tips = sum(int(distance[template.parts == chain[2]].min() < TOUCH) for chain in CHAINS)
    return Grasp(pose, rotation, position, tips, float(max(0.0, -distance.min())))


@lru_cache(maxsize=1)
def _contact_points() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Vertices (N,) of the fingers that can touch, their weights (N, 16), their links (N,)."""
    template: HandTemplate = hand_template()
    rng = np.random.default_rng(3)
    chosen = []
    for joint in range(1, 16):
        mine = np.flatnonzero((template.parts == joint) & (template.palmar > 0.15))
        chosen.append(rng.permutation(mine)[:26])
    points = np.concatenate(chosen)
    return points, template.weights[points].astype(np.float64), template.parts[points].astype(int)


@njit(cache=True)
def _close_fingers(
    start: Any, close: Any, rest_joints: Any, axes: Any, points: Any, weights: Any, link: Any,
    values: Any, origin: Any, spacing: Any, rotation: Any, position: Any, idle: Any,
) -> Any:  # fmt: skip
    """Angles (22,) of fingers closed until they touch."""
    slots = np.array([[0, 3, 5], [6, 8, 9], [10, 12, 13], [14, 16, 17], [18, 20, 21]])
    first = np.array([13, 1, 4, 10, 7])
    pose = start.copy()
    share = np.zeros((5, 3))
    frozen = np.zeros((5, 3), np.bool_)
    touched = np.zeros(5, np.bool_)
    for step in range(2 * STEPS):
        trial = share.copy()
        for f in range(5):
            for k in range(3):
                # The thumb closes at half the fingers' pace.
                if not frozen[f, k] and (f > 0 or step % 2 == 1):
                    trial[f, k] = min(1.0, share[f, k] + 1.0 / STEPS)
        # Undo what enters the object; each round may free only the outer links.
        for _ in range(4):
            for f in range(5):
                for k in range(3):
                    a = slots[f, k]
                    pose[a] = start[a] + (close[a] - start[a]) * trial[f, k]
            # Abduction and rotation follow the base joint.
            for f in range(5):
                base = slots[f, 0]
                extra = 2 if f == 0 else 1
                for e in range(1, extra + 1):
                    pose[base + e] = (
                        start[base + e] + (close[base + e] - start[base + e]) * trial[f, 0]
                    )
            angles = np.zeros((15, 3))
            for f in range(5):
                j = first[f] - 1
                base = slots[f, 0]
                angles[j, 0], angles[j, 1] = pose[base], pose[base + 1]
                if f == 0:
                    angles[j, 2] = pose[2]
                    angles[j + 1, 0], angles[j + 1, 1] = pose[3], pose[4]
                    angles[j + 2, 0] = pose[5]
                else:
                    angles[j + 1, 0], angles[j + 2, 0] = pose[base + 2], pose[base + 3]
            G, P = _forward_kinematics(
                rest_joints, np.eye(3), _joint_rotations(angles, axes), np.zeros(3)
            )
            local = np.empty((points.shape[0], 3), np.float32)
            for n in range(points.shape[0]):
                p = np.zeros(3)
                for k in range(16):
                    w = weights[n, k]
                    if w > 0:
                        for i in range(3):
                            p[i] += w * (
                                G[k, i, 0] * (points[n, 0] - rest_joints[k, 0])
                                + G[k, i, 1] * (points[n, 1] - rest_joints[k, 1])
                                + G[k, i, 2] * (points[n, 2] - rest_joints[k, 2])
                                + P[k, i]
                            )
                for i in range(3):
                    local[n, i] = (
                        rotation[0, i] * (p[0] - position[0])
                        + rotation[1, i] * (p[1] - position[1])
                        + rotation[2, i] * (p[2] - position[2])
                    )
            distance = sample_grid(values, origin, spacing, local)
            bad = False
            for f in range(5):
                for k in range(2, -1, -1):
                    worst = 1.0
                    for n in range(points.shape[0]):
                        if link[n] == first[f] + k and distance[n] < worst:
                            worst = distance[n]
                    if worst < SKIN_GAP:
                        touched[f] = True
                        for i in range(k + 1):
                            if not frozen[f, i]:
                                frozen[f, i] = True
                                bad = True
                            trial[f, i] = share[f, i]
            if not bad:
                break
        for f in range(5):
            for k in range(3):
                if not touched[f] and trial[f, k] >= idle[f] + 0.2:
                    continue
                share[f, k] = trial[f, k]
    for f in range(5):
        limit = 1.0
        if not touched[f]:
            limit = idle[f]
        for k in range(3):
            a = slots[f, k]
            amount = min(share[f, k], limit) if not touched[f] else share[f, k]
            pose[a] = start[a] + (close[a] - start[a]) * amount
    return pose
