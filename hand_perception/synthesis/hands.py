"""The hand model as plain float arrays with compiled skinning, and the forearm behind it.

Same numbers as `hand_model.HandModel` (a test compares them), without torch: the renderer's
workers start fast and skin a hand in a fraction of a millisecond. Everything here is a right
hand in the model frame; a left hand is its mirror image (x -> -x).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hand_perception.hand_model import HandModel
from hand_perception.skeleton import ANGLES, HO3D_TO_OPENPOSE
from hand_perception.synthesis.arrays import F32, I32
from hand_perception.types import FloatArray, HandPerceptionError

_SLOTS = np.array([3 * (joint - 1) + axis for _, joint, axis in ANGLES])
_ORDER = np.array(HO3D_TO_OPENPOSE)
# Chains of the model's joints, thumb to little finger.
CHAINS = ((13, 14, 15), (1, 2, 3), (4, 5, 6), (10, 11, 12), (7, 8, 9))

ARM_RINGS = 10
SLEEVE_RINGS = 8


@dataclass(frozen=True)
class HandShape:
    """One person's hand at rest: vertices (V, 3) and joints (16, 3), metres."""

    betas: F32
    vertices: F32
    joints: F32


@dataclass(frozen=True)
class HandTemplate:
    """The arrays of a right hand model that skinning, grasping and painting need."""

    v_template: F32
    shapedirs: F32
    J_template: F32
    J_shapedirs: F32
    weights: F32
    """(V, 16)."""
    faces: I32
    tips: I32
    axes: F32
    """(16, 3, 3) rows: flexion, abduction, rotation axis."""
    parts: NDArray[np.uint8]
    """(V,) the joint, 0-15, that moves each vertex most."""
    nail: F32
    """(V,) 1 on a nail."""
    palmar: F32
    """(V,) 1 on the palm's side, 0 on the back."""
    axial: F32
    """(V,) place along a finger: 0 at its base joint, 1 and 2 at the next two, 3 at the tip."""
    wrist_loop: I32
    """(L,) vertices around the open wrist, in order."""

    @property
    def num_vertices(self) -> int:
        return len(self.v_template)

    def shaped(self, betas: FloatArray) -> HandShape:
        """The hand of shape betas (10,)."""
        betas = np.asarray(betas, np.float32)
        if betas.shape != (10,):
            raise HandPerceptionError(f"betas have shape {betas.shape}; allowed is (10,)")
        return HandShape(
            betas,
            self.v_template + self.shapedirs @ betas,
            self.J_template + self.J_shapedirs @ betas,
        )

    def rotations(self, angles: FloatArray) -> FloatArray:
        """Rotations (15, 3, 3) of the finger joints for the 22 angles (22,), radians."""
        slots = np.zeros(45)
        slots[_SLOTS] = angles
        return _joint_rotations(slots.reshape(15, 3), self.axes[1:].astype(np.float64))

    def transforms(
        self, shape: HandShape, orientation: FloatArray, fingers: FloatArray, transl: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Orientations (16, 3, 3) and positions (16, 3) of the joints, wrist turned and moved."""
        return _forward_kinematics(
            shape.joints.astype(np.float64),
            np.asarray(orientation, np.float64),
            np.asarray(fingers, np.float64),
            np.asarray(transl, np.float64),
        )

    def skin(self, shape: HandShape, orientations: FloatArray, positions: FloatArray) -> F32:
        """Vertices (V, 3) of a posed hand."""
        return _skin(
            shape.vertices, self.weights, shape.joints, _f32(orientations), _f32(positions)
        )

    def joints_21(
        self, shape: HandShape, orientations: FloatArray, positions: FloatArray
    ) -> FloatArray:
        """The 21 joints (21, 3) in OpenPose order."""
        moved = positions - np.einsum("kij,kj->ki", orientations, shape.joints)
        w = self.weights[self.tips]
        rotation = np.einsum("nk,kij->nij", w, orientations)
        tips = np.einsum("nij,nj->ni", rotation, shape.vertices[self.tips]) + w @ moved
        return np.concatenate([positions, tips])[_ORDER]


def _f32(value: FloatArray) -> F32:
    return np.ascontiguousarray(value, np.float32)


@lru_cache(maxsize=1)
def hand_template() -> HandTemplate:
    """The shipped free right hand."""
    model = HandModel.load(side="right")
    arrays = {
        name: getattr(model, name).numpy().astype(np.float32)
        for name in ("v_template", "shapedirs", "J_template", "J_shapedirs", "weights", "axes")
    }
    vertices, joints, axes = arrays["v_template"], arrays["J_template"], arrays["axes"]
    faces = model.faces.numpy().astype(np.int32)
    tips = model.tips.numpy().astype(np.int32)
    parts = arrays["weights"].argmax(1).astype(np.uint8)
    normals = np.zeros_like(vertices)
    corners = vertices[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for k in range(3):
        np.add.at(normals, faces[:, k], flat)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    dorsal = np.where(parts[:, None] > 0, axes[np.maximum(parts, 1), 1], [0.0, 1.0, 0.0])
    palmar = np.clip(0.5 - 0.9 * (normals * dorsal).sum(1), 0, 1)
    axial = np.zeros(len(vertices))
    for chain, tip in zip(CHAINS, tips, strict=True):
        points = np.concatenate([joints[list(chain)], vertices[tip][None]])
        along = np.zeros(len(vertices))
        for a, b in pairwise(points):
            along += np.clip((vertices - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        mine = np.isin(parts, chain)
        axial[mine] = along[mine]
    extras = model.extras
    return HandTemplate(
        **arrays,
        faces=faces,
        tips=tips,
        parts=parts,
        nail=extras["nail"].numpy().astype(np.float32),
        palmar=palmar.astype(np.float32),
        axial=axial.astype(np.float32),
        wrist_loop=_outward_loop(extras["wrist_loop"].numpy().astype(np.int32), faces),
    )


def _outward_loop(loop: I32, faces: I32) -> I32:
    """The loop in the order in which `tube_faces` makes faces that look outwards."""
    edges = {(int(f[i]), int(f[(i + 1) % 3])) for f in faces for i in range(3)}
    # A neighbouring face has to run along the shared edge the other way.
    return loop if (int(loop[1]), int(loop[0])) in edges else loop[::-1].copy()


def tube_faces(first: I32, start: int, rings: int, capped: bool) -> I32:
    """Faces of a tube of rings: `first` (L,) vertices, then rings of L vertices from `start`."""
    n = len(first)
    ring = [first] + [start + k * n + np.arange(n, dtype=np.int32) for k in range(rings)]
    faces = []
    for a, b in pairwise(ring):
        a_next, b_next = np.roll(a, -1), np.roll(b, -1)
        faces += [np.stack([a, a_next, b], 1), np.stack([a_next, b_next, b], 1)]
    if capped:
        last = ring[-1]
        faces.append(np.stack([np.full(n - 2, last[0]), last[1:-1], last[2:]], 1))
    return np.concatenate(faces).astype(np.int32)


@njit(cache=True)
def _joint_rotations(angles: Any, axes: Any) -> Any:
    out = np.empty((15, 3, 3))
    for k in range(15):
        cf, sf = np.cos(angles[k, 0]), np.sin(angles[k, 0])
        ca, sa = np.cos(angles[k, 1]), np.sin(angles[k, 1])
        cr, sr = np.cos(angles[k, 2]), np.sin(angles[k, 2])
        local = np.array(
            [
                [ca * cr, -ca * sr, sa],
                [cf * sr + sf * sa * cr, cf * cr - sf * sa * sr, -sf * ca],
                [sf * sr - cf * sa * cr, sf * cr + cf * sa * sr, cf * ca],
            ]
        )
        out[k] = axes[k].T @ local @ axes[k]
    return out


@njit(cache=True)
def _forward_kinematics(rest: Any, wrist: Any, fingers: Any, transl: Any) -> Any:
    orientations = np.empty((16, 3, 3))
    positions = np.empty((16, 3))
    orientations[0] = wrist
    positions[0] = rest[0] + transl
    for k in range(1, 16):
        parent = 0 if k % 3 == 1 else k - 1
        turn = np.ascontiguousarray(orientations[parent])
        orientations[k] = turn @ np.ascontiguousarray(fingers[k - 1])
        positions[k] = positions[parent] + turn @ (rest[k] - rest[parent])
    return orientations, positions


@njit(cache=True, fastmath=True)
def _skin(vertices: Any, weights: Any, rest: Any, orientations: Any, positions: Any) -> Any:
    shift = np.empty((16, 3), np.float32)
    for k in range(16):
        for i in range(3):
            shift[k, i] = positions[k, i] - (
                orientations[k, i, 0] * rest[k, 0]
                + orientations[k, i, 1] * rest[k, 1]
                + orientations[k, i, 2] * rest[k, 2]
            )
    out = np.zeros_like(vertices)
    for n in range(vertices.shape[0]):
        x, y, z = vertices[n, 0], vertices[n, 1], vertices[n, 2]
        for k in range(16):
            w = weights[n, k]
            if w > 0:
                for i in range(3):
                    out[n, i] += w * (
                        orientations[k, i, 0] * x
                        + orientations[k, i, 1] * y
                        + orientations[k, i, 2] * z
                        + shift[k, i]
                    )
    return out


@njit(cache=True)
def extrude_arm(loop: Any, direction: Any, bend: Any, lengths: Any, scales: Any) -> Any:
    """Rings (R, L, 3) of a tube that continues a loop (L, 3) along a direction, then bends.

    bend (3, 3) turns the direction over the first quarter of the rings; lengths (R,) are the
    distances from the loop, scales (R,) the rings' sizes relative to the loop.
    """
    count = len(lengths)
    rings = np.empty((count, loop.shape[0], 3))
    center = np.zeros(3)
    for n in range(loop.shape[0]):
        center += loop[n] / loop.shape[0]
    start = center.copy()
    previous = 0.0
    for s in range(count):
        blend = min(1.0, (s + 1) / 3.0)
        turn = np.eye(3) * (1 - blend) + bend * blend
        # Gram-Schmidt: enough for the small bend of a wrist.
        x = turn[:, 0] / np.sqrt((turn[:, 0] ** 2).sum())
        y = turn[:, 1] - (turn[:, 1] * x).sum() * x
        y /= np.sqrt((y**2).sum())
        z = np.array(
            [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]]
        )
        ahead = x * direction[0] + y * direction[1] + z * direction[2]
        center = center + ahead * (lengths[s] - previous)
        previous = lengths[s]
        for n in range(loop.shape[0]):
            p = (loop[n] - start) * scales[s]
            rings[s, n] = center + x * p[0] + y * p[1] + z * p[2]
    return rings
