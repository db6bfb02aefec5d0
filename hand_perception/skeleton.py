"""The 21 joints of a hand: names, parents, angles, and every dataset's joint order.

The order everywhere inside is wrist, then thumb, index, middle, ring, little, each base to tip
(OpenPose, MediaPipe, FreiHAND, DexYCB). Parameters of the hand model (`hand_pose`) keep MANO's
order: wrist, then index, middle, little, ring, thumb, three joints each.
A map is used as `new = old[..., MAP, :]`.
"""

from __future__ import annotations

FINGERS = ("thumb", "index", "middle", "ring", "little")

JOINT_NAMES = (
    "wrist",
    "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip",
    "index_mcp", "index_pip", "index_dip", "index_tip",
    "middle_mcp", "middle_pip", "middle_dip", "middle_tip",
    "ring_mcp", "ring_pip", "ring_dip", "ring_tip",
    "little_mcp", "little_pip", "little_dip", "little_tip",
)  # fmt: skip
"""Names of the 21 joints, in order."""

PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
"""Parent of each of the 21 joints; the wrist has none."""

BONES = tuple((parent, joint) for joint, parent in enumerate(PARENTS) if parent >= 0)
"""The 20 (parent, child) pairs."""

TIPS = (4, 8, 12, 16, 20)
"""Fingertips, thumb to little finger."""

MANO_FINGERS = ("index", "middle", "little", "ring", "thumb")
MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parents of the 16 joints of a MANO-interface hand model."""

MANO16_TO_OPENPOSE = (0, 13, 14, 15, 1, 2, 3, 4, 5, 6, 10, 11, 12, 7, 8, 9)
"""For each of `NON_TIPS`, its index among the model's 16 joints."""
NON_TIPS = tuple(joint for joint in range(21) if joint not in TIPS)

KNUCKLE_SHARE = {1: 0.23, 5: 0.28, 9: 0.18, 13: 0.25, 17: 0.31}
"""Where pictures are annotated: the base of each finger lies this share of its first bone further
on than the joint's centre, near the web. MediaPipe's landmarks are so, and most data sets. The
shares make MediaPipe's bones (median over two videos) proportional to the free hand model's."""

# Gather maps between the 21-joint orders (new = old[map]).
HO3D_TO_OPENPOSE = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
OPENPOSE_TO_HO3D = (0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20)
INTERHAND_TO_OPENPOSE = (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16)
OPENPOSE_TO_INTERHAND = (4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17, 0)
RHD_TO_OPENPOSE = (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17)

# Anatomical angles: (name, MANO joint 1-15, axis) with axis 0 flexion, 1 abduction, 2 rotation.
_FINGER_JOINTS = {"index": 1, "middle": 4, "ring": 10, "little": 7}
ANGLES: tuple[tuple[str, int, int], ...] = (
    ("thumb_cmc_flexion", 13, 0),
    ("thumb_cmc_abduction", 13, 1),
    ("thumb_cmc_rotation", 13, 2),
    ("thumb_mcp_flexion", 14, 0),
    ("thumb_mcp_abduction", 14, 1),
    ("thumb_ip_flexion", 15, 0),
) + tuple(
    (f"{finger}_{name}", first + offset, axis)
    for finger, first in _FINGER_JOINTS.items()
    for name, offset, axis in (
        ("mcp_flexion", 0, 0),
        ("mcp_abduction", 0, 1),
        ("pip_flexion", 1, 0),
        ("dip_flexion", 2, 0),
    )
)
"""The 22 joint angles of a hand: name, joint of the hand model, axis of that joint."""

ANGLE_NAMES = tuple(name for name, _, _ in ANGLES)
