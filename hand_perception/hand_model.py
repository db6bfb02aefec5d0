"""A parametric hand with MANO's interface: load -> with_shape -> with_pose -> mesh.

Every stage is immutable, differentiable and batched over any leading dimensions "...".
Model frame of the right hand, metres: the wrist near the origin, the fingers along -x, the back
of the hand +y, the thumb's side +z. The left hand is the mirror image of the right one (x -> -x).
Joint order inside the model is MANO's 16 (wrist, then index, middle, little, ring, thumb); the 21
joints handed out are in the order of `skeleton.JOINT_NAMES`, their tips being points of the skin.

A joint turns by R = A^T Rx(flexion) Ry(abduction) Rz(rotation) A, where the rows of A are the
joint's own axes in the rest pose (the order of the ISB: Wu et al., "ISB recommendation on
definitions of joint coordinate systems", J. Biomechanics 38, 2005, part II).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hand_perception.geometry import axis_angle_to_matrix, rigid_transform
from hand_perception.mano import find_model_file, mano_arrays, read_arrays, side_of_file
from hand_perception.resources import model_file
from hand_perception.skeleton import ANGLES, HO3D_TO_OPENPOSE
from hand_perception.types import SIDES, HandPerceptionError, Side

FREE_MODEL = "hand/free_hand_right.safetensors"
"""The hand that comes with the package, derived from CC0 data by tools/build_hand_model.py."""

NUM_BETAS = 10
_NO_EXTRAS: Mapping[str, Tensor] = MappingProxyType({})
# The base joints of the five chains; each chain's other joints follow its base.
_CHAINS = 5
_LINKS = 3


@dataclass(frozen=True, eq=False)
class HandModel:
    """A hand of any shape, in its rest pose; V vertices, F faces."""

    side: Side
    v_template: Tensor
    """(V, 3) mean hand, metres."""
    shapedirs: Tensor
    """(V, 3, 10) metres per unit of beta."""
    J_template: Tensor
    """(16, 3) joints of the mean hand."""
    J_shapedirs: Tensor
    """(16, 3, 10): the joints are linear in the betas."""
    weights: Tensor
    """(V, 16) skinning weights, each row sums to one."""
    faces: Tensor
    """(F, 3) int64, counter-clockwise seen from outside."""
    tips: Tensor
    """(5,) int64: the vertex at each fingertip, thumb to little finger."""
    axes: Tensor
    """(16, 3, 3) rows: flexion, abduction and rotation axis of each joint, rest frame."""
    posedirs: Tensor | None = None
    """(V, 3, 135) pose blend shapes, which MANO has and the free model has not."""
    hands_mean: Tensor | None = None
    """(15, 3) axis-angle that `with_pose` adds to hand_pose; None when that is zero."""
    extras: Mapping[str, Tensor] = field(default_factory=lambda: _NO_EXTRAS)
    """What only a renderer needs. The free model gives nail (V,) and palm (V,) in [0, 1],
    uv (V, 2), wrist_loop (L,) vertices around the open wrist, and J_mano (16, 3), its joints
    where MANO would put them."""

    @staticmethod
    def load(
        path: str | Path | None = None,
        side: Side = "right",
        *,
        flat_hand_mean: bool = True,
        tips: str = "manopth",
    ) -> HandModel:
        """The free hand (path None), or the hand in a MANO file or folder, as a hand of that side.

        A file of the other side is mirrored. The last two options concern MANO alone: with
        flat_hand_mean False hand_pose counts from MANO's mean pose instead of the flat hand, and
        `tips` names the convention of the fingertip vertices (`mano.TIP_VERTICES`).
        Raises HandPerceptionError for a side, a path or a file that cannot be used.
        """
        if side not in SIDES:
            raise HandPerceptionError(f"side is {side!r}; allowed are 'left' and 'right'")
        file = find_model_file(model_file(FREE_MODEL) if path is None else Path(path), side)
        arrays = read_arrays(file)
        if "J_template" not in arrays:
            arrays = mano_arrays(file, arrays, tips)
            if flat_hand_mean:
                del arrays["hands_mean"]
        missing = [name for name in _REQUIRED if name not in arrays]
        if missing:
            raise HandPerceptionError(f"{file} is no hand model: it lacks {', '.join(missing)}")
        tensors = {name: _tensor(array) for name, array in arrays.items()}
        fields: dict[str, Any] = {n: tensors.pop(n) for n in _TENSORS if n in tensors}
        model = HandModel(side_of_file(file), **fields, extras=MappingProxyType(tensors))
        return model if model.side == side else model.mirrored()

    @property
    def num_vertices(self) -> int:
        return self.v_template.shape[0]

    @cached_property
    def part_labels(self) -> Tensor:
        """(V,) int64: the joint of the model, 0-15, that moves each vertex most."""
        return self.weights.argmax(-1)

    @cached_property
    def _points(self) -> tuple[Tensor, Tensor]:
        # Joints and tips together, so that neither needs the mesh: (21, 3), (21, 3, 10).
        return (
            torch.cat([self.J_template, self.v_template[self.tips]]),
            torch.cat([self.J_shapedirs, self.shapedirs[self.tips]]),
        )

    @cached_property
    def _tip_weights(self) -> Tensor:
        return self.weights[self.tips]

    @cached_property
    def _tip_posedirs(self) -> Tensor | None:
        return None if self.posedirs is None else self.posedirs[self.tips]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HandModel:
        """The same model on a device, its floating-point arrays in a dtype."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        tensors: dict[str, Any] = {
            name: move(value)
            for name, value in vars(self).items()
            if name in _TENSORS and value is not None
        }
        extras = MappingProxyType({name: move(value) for name, value in self.extras.items()})
        return replace(self, **tensors, extras=extras)

    def mirrored(self) -> HandModel:
        """The other hand: x -> -x, faces turned so that their normals still point outwards.

        An angle keeps its sign: a turn about axis (x, y, z) is seen in the mirror as the same
        turn about (x, -y, -z).
        """
        point = self.v_template.new_tensor([-1.0, 1.0, 1.0])
        axis = -point
        extras = dict(self.extras)
        if "J_mano" in extras:
            extras["J_mano"] = extras["J_mano"] * point
        posedirs = self.posedirs
        if posedirs is not None:
            # An off-diagonal entry of a rotation changes sign when one of its two axes is x.
            entry = (point[:, None] * point).reshape(9).repeat(15)
            posedirs = posedirs * point[:, None] * entry
        return replace(
            self,
            side="left" if self.side == "right" else "right",
            v_template=self.v_template * point,
            shapedirs=self.shapedirs * point[:, None],
            J_template=self.J_template * point,
            J_shapedirs=self.J_shapedirs * point[:, None],
            faces=self.faces.flip(-1),
            axes=self.axes * axis,
            posedirs=posedirs,
            hands_mean=None if self.hands_mean is None else self.hands_mean * axis,
            extras=MappingProxyType(extras),
        )

    def with_shape(self, betas: Tensor | None = None) -> ShapedHand:
        """The hand of shape betas (..., 10); the mean hand when None."""
        if betas is None:
            betas = self.v_template.new_zeros(NUM_BETAS)
        if betas.shape[-1:] != (NUM_BETAS,):
            raise HandPerceptionError(
                f"betas have shape {tuple(betas.shape)}; allowed is (..., {NUM_BETAS})"
            )
        template, directions = self._points
        points = template + _blend(betas, directions)
        return ShapedHand(self, betas, points[..., :16, :], points[..., 16:, :])


@dataclass(frozen=True, eq=False)
class ShapedHand:
    """One person's hand, in its rest pose."""

    model: HandModel
    betas: Tensor
    """(..., 10)."""
    joints: Tensor
    """(..., 16, 3) rest joints, metres, model order."""
    tips: Tensor
    """(..., 5, 3) rest fingertips, thumb to little finger."""

    @cached_property
    def vertices(self) -> Tensor:
        """(..., V, 3) rest vertices."""
        return self.model.v_template + _blend(self.betas, self.model.shapedirs)

    def with_pose(
        self, global_orient: Tensor, hand_pose: Tensor, transl: Tensor | None = None
    ) -> PosedHand:
        """The hand posed by axis-angle (..., 3) of the wrist and (..., 15, 3) of the fingers."""
        if global_orient.shape[-1:] != (3,) or hand_pose.shape[-2:] != (15, 3):
            raise HandPerceptionError(
                f"global_orient {tuple(global_orient.shape)} and hand_pose "
                f"{tuple(hand_pose.shape)} are not allowed; they must be (..., 3) and (..., 15, 3)"
            )
        if self.model.hands_mean is not None:
            hand_pose = hand_pose + self.model.hands_mean
        lead = torch.broadcast_shapes(global_orient.shape[:-1], hand_pose.shape[:-2])
        wrist = global_orient[..., None, :].expand(*lead, 1, 3)
        pose = torch.cat([wrist, hand_pose.expand(*lead, 15, 3)], -2)
        return self.with_rotations(axis_angle_to_matrix(pose), transl)

    def with_rotations(self, rotations: Tensor, transl: Tensor | None = None) -> PosedHand:
        """The hand posed by rotations (..., 16, 3, 3), each relative to its parent, wrist first.

        transl (..., 3) moves the whole hand; the wrist turns about its own joint (MANO).
        """
        if rotations.shape[-3:] != (16, 3, 3):
            raise HandPerceptionError(
                f"rotations have shape {tuple(rotations.shape)}; allowed is (..., 16, 3, 3)"
            )
        lead = torch.broadcast_shapes(rotations.shape[:-3], self.joints.shape[:-2])
        if transl is not None:
            lead = torch.broadcast_shapes(lead, transl.shape[:-1])
        rotations = rotations.expand(*lead, 16, 3, 3)
        joints = self.joints.expand(*lead, 16, 3)
        # All five chains at once, link by link: (..., 5, 3, 3).
        wrist = rotations[..., 0, :, :]
        local = rotations[..., 1:, :, :].unflatten(-3, (_CHAINS, _LINKS))
        first = wrist[..., None, :, :] @ local[..., 0, :, :]
        second = first @ local[..., 1, :, :]
        third = second @ local[..., 2, :, :]
        parents = torch.stack([wrist[..., None, :, :].expand_as(first), first, second], -3)
        turned = torch.stack([first, second, third], -3)
        rest = joints[..., 1:, :].unflatten(-2, (_CHAINS, _LINKS))
        root = joints[..., :1, :] if transl is None else joints[..., :1, :] + transl[..., None, :]
        base = joints[..., None, :1, :].expand(*lead, _CHAINS, 1, 3)
        bones = rest - torch.cat([base, rest[..., :-1, :]], -2)
        offsets = (parents @ bones[..., None]).squeeze(-1).cumsum(-2)
        positions = torch.cat([root, root + offsets.flatten(-3, -2)], -2)
        orientations = torch.cat([wrist[..., None, :, :], turned.flatten(-4, -3)], -3)
        return PosedHand(self, rotations, orientations, positions)


@dataclass(frozen=True, eq=False)
class PosedHand:
    """One person's hand in one pose and place."""

    shaped: ShapedHand
    rotations: Tensor
    """(..., 16, 3, 3) of each joint relative to its parent."""
    orientations: Tensor
    """(..., 16, 3, 3) of each joint in the model frame."""
    positions: Tensor
    """(..., 16, 3) joints, metres, model order."""

    @cached_property
    def _skin_transforms(self) -> Tensor:
        # (..., 16, 12): rotation and translation that carry a rest point along with each joint.
        shift = self.positions - (self.orientations @ self.shaped.joints[..., None]).squeeze(-1)
        return torch.cat([self.orientations.flatten(-2), shift], -1)

    def _skin(self, points: Tensor, weights: Tensor, posedirs: Tensor | None) -> Tensor:
        # Linear blend skinning of rest points (..., N, 3) by weights (N, 16).
        if posedirs is not None:
            eye = torch.eye(3, dtype=points.dtype, device=points.device)
            feature = (self.rotations[..., 1:, :, :] - eye).flatten(-3)
            points = points + _blend(feature, posedirs)
        blended = weights @ self._skin_transforms
        rotation = blended[..., :9].unflatten(-1, (3, 3))
        return (rotation * points[..., None, :]).sum(-1) + blended[..., 9:]

    @cached_property
    def joints(self) -> Tensor:
        """(..., 21, 3) joints in the order of `skeleton.JOINT_NAMES`, metres."""
        model = self.shaped.model
        tips = self._skin(self.shaped.tips, model._tip_weights, model._tip_posedirs)
        # MANO's 16 joints followed by the tips are HO-3D's order.
        return torch.cat([self.positions, tips], -2)[..., list(HO3D_TO_OPENPOSE), :]

    @cached_property
    def transforms(self) -> Tensor:
        """(..., 16, 4, 4): pose of each joint's frame, which at rest has the model's axes."""
        return rigid_transform(self.orientations, self.positions)

    def mesh(self) -> Tensor:
        """(..., V, 3) vertices of the skin, metres; linear blend skinning."""
        model = self.shaped.model
        return self._skin(self.shaped.vertices, model.weights, model.posedirs)


_FINGER_LIMITS = (
    # Flexion up to 90, 110 and 90 degrees and abduction of 15: Lin, Wu and Huang. Extension: AAOS
    # has 45 at the MCP, of which few people use more than 30, and none at the PIP and DIP joints;
    # 10 there leaves room for what a relaxed straight finger measures.
    (-30.0, 90.0),
    (-15.0, 15.0),
    (-10.0, 110.0),
    (-10.0, 90.0),
)
_LIMITS_DEGREES = (
    # The thumb's angles count from the rest pose, in which it stands away from the palm. Cooney et
    # al. measured 53, 42 and 17 degrees in all at the CMC joint; the ranges here are wider, because
    # this joint also stands for the small motions of the carpus and of MANO's softer thumb.
    (-20.0, 50.0),
    (-30.0, 30.0),
    (-25.0, 25.0),
    # AAOS: 50 degrees of flexion at the MCP, 80 and 20 of hyperextension at the IP joint.
    (-10.0, 50.0),
    (-15.0, 15.0),
    (-20.0, 80.0),
    *(_FINGER_LIMITS * 4),
)
ANGLE_LIMITS = torch.deg2rad(torch.tensor(_LIMITS_DEGREES))
"""(22, 2) lowest and highest value of each of `skeleton.ANGLE_NAMES`, radians.

American Academy of Orthopaedic Surgeons, "Joint Motion: Method of Measuring and Recording", 1965;
Lin, Wu and Huang, "Modeling the Constraints of Human Hand Motion", 2000; Cooney et al., "The
kinesiology of the thumb trapeziometacarpal joint", J. Bone and Joint Surgery 63-A, 1981.
"""

_CURLED = (80.0, 0.0, 100.0, 65.0)
_GESTURES_DEGREES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "flat": (0.0,) * 22,
        "fist": (23.0, 7.0, -7.0, 0.0, 4.0, 74.0, *_CURLED * 4),
        "pinch": (33.0, -4.0, 11.0, -5.0, 0.0, -16.0, 32.0, 0.0, 49.0, 54.0)
        + (20.0, 0.0, 25.0, 10.0, 15.0, 0.0, 20.0, 10.0, 12.0, 0.0, 20.0, 10.0),
        "point": (37.0, 3.0, 3.0, -4.0, 7.0, 74.0, 0.0, 0.0, 3.0, 2.0, *_CURLED * 3),
    }
)
GESTURES: Mapping[str, Tensor] = MappingProxyType(
    {name: torch.deg2rad(torch.tensor(angles)) for name, angles in _GESTURES_DEGREES.items()}
)
"""The angles (22,) of a few plain gestures, radians, in the order of `skeleton.ANGLE_NAMES`. The
thumb's were found by a search for contact without penetration on the free model."""


def clamp_angles(angles: Tensor) -> Tensor:
    """The angles (..., 22), radians, each brought into its `ANGLE_LIMITS`."""
    low, high = ANGLE_LIMITS.to(angles).unbind(-1)
    return torch.clamp(angles, low, high)


def angles_to_rotations(model: HandModel, angles: Tensor) -> Tensor:
    """Rotations (..., 15, 3, 3) of the finger joints for the 22 angles (..., 22), radians."""
    if angles.shape[-1:] != (len(ANGLES),):
        raise HandPerceptionError(
            f"angles have shape {tuple(angles.shape)}; allowed is (..., {len(ANGLES)})"
        )
    slots = angles.new_zeros(*angles.shape[:-1], 45)
    slots = slots.index_copy(-1, _angle_slots(angles.device), angles)
    sin, cos = slots.sin(), slots.cos()
    sf, sa, sr = sin.unflatten(-1, (15, 3)).unbind(-1)
    cf, ca, cr = cos.unflatten(-1, (15, 3)).unbind(-1)
    local = torch.stack(
        [
            *(ca * cr, -ca * sr, sa),
            *(cf * sr + sf * sa * cr, cf * cr - sf * sa * sr, -sf * ca),
            *(sf * sr - cf * sa * cr, sf * cr + cf * sa * sr, cf * ca),
        ],
        -1,
    ).unflatten(-1, (3, 3))
    axes = model.axes[1:]
    return axes.mT @ local @ axes


def rotations_to_angles(model: HandModel, rotations: Tensor) -> Tensor:
    """The 22 angles (..., 22), radians, of rotations (..., 15, 3, 3) of the finger joints.

    A hinge keeps its flexion only; what else its rotation holds is dropped.
    """
    if rotations.shape[-3:] != (15, 3, 3):
        raise HandPerceptionError(
            f"rotations have shape {tuple(rotations.shape)}; allowed is (..., 15, 3, 3)"
        )
    axes = model.axes[1:]
    m = axes @ rotations @ axes.mT
    flexion = torch.atan2(-m[..., 1, 2], m[..., 2, 2])
    abduction = torch.atan2(m[..., 0, 2], torch.hypot(m[..., 1, 2], m[..., 2, 2]))
    rotation = torch.atan2(-m[..., 0, 1], m[..., 0, 0])
    slots = torch.stack([flexion, abduction, rotation], -1).flatten(-2)
    return slots.index_select(-1, _angle_slots(rotations.device))


def _angle_slots(device: torch.device) -> Tensor:
    # Where each named angle lies among the 15 x 3 angles of all finger joints.
    return torch.tensor([3 * (joint - 1) + axis for _, joint, axis in ANGLES], device=device)


def _blend(coefficients: Tensor, directions: Tensor) -> Tensor:
    # Offsets (..., N, 3) of coefficients (..., C) times directions (N, 3, C).
    return (coefficients @ directions.flatten(0, 1).mT).unflatten(-1, (-1, 3))


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


_REQUIRED = (
    "v_template", "shapedirs", "J_template", "J_shapedirs", "weights", "faces", "tips", "axes",
)  # fmt: skip
_TENSORS = (*_REQUIRED, "posedirs", "hands_mean")
