"""From sequences to training samples: crops with labels, and whole pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.synthesis import cameras
from hand_perception.synthesis.arrays import F32, U8
from hand_perception.synthesis.hands import hand_template
from hand_perception.synthesis.motion import axis_angle
from hand_perception.synthesis.renderer import Lighting, Mesh, Renderer
from hand_perception.synthesis.scenes import (
    HAND,
    MIRROR,
    NUM_BODIES,
    OBJECT,
    HandActor,
    Sample,
    Sequence,
)
from hand_perception.types import Camera, FloatArray

NUM_PARTS = 33
"""0 background, 1-16 the joints of the (as it appears) right hand, 17-32 of the left hand."""
MAX_SUBFRAMES = 4
_VISIBLE_DEPTH = np.full(21, 0.016)
_VISIBLE_DEPTH[[0, 1]] = 0.045
_VISIBLE_DEPTH[[2, 5, 9, 13, 17]] = 0.024


def window(sequence: Sequence) -> Sample:
    """The T crops of a sequence's hand of interest, with labels.

    Arrays with a leading T, in each frame's own crop frame (x right, y down, z forward, metres),
    every hand of interest a right hand:
    image (T, S, S, 3) uint8, intrinsics (T, 3, 3), R_camera_crop (T, 3, 3), time_s (T,),
    joints_2d (T, 21, 2) crop pixels, joints_3d (T, 21, 3), global_orient (T, 3),
    hand_pose (T, 15, 3), betas (T, 10), transl (T, 3), visibility (T, 21) bool, occlusion (T,) the
    hidden share of the hand's pixels, parts (T, S/2, S/2) uint8 of 33 classes, object_mask
    (T, S/2, S/2) bool, object_class (T,), object_pose (T, 4, 4) crop <- object, mirrored (T,)
    bool; and of the other, left, hand: other_present (T,) bool, other_joints_2d, other_joints_3d,
    other_global_orient, other_hand_pose, other_transl (parameters of the left model).
    """
    frames = []
    for k, time in enumerate(sequence.stamps):
        earlier = sequence.stamps[k - 1] if k else time - 1 / 30
        frames.append(_frame(sequence, float(time), float(earlier), k))
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def window_vertices(sample: Sample) -> F32:
    """(T, V, 3) vertices of the hand of interest in the crop frames, metres, from its labels."""
    template = hand_template()
    shape = template.shaped(sample["betas"][0])
    out = []
    for k in range(len(sample["betas"])):
        turn = [cv2.Rodrigues(v.astype(np.float64))[0] for v in sample["hand_pose"][k]]
        wrist = cv2.Rodrigues(sample["global_orient"][k].astype(np.float64))[0]
        G, P = template.transforms(shape, wrist, np.stack(turn), sample["transl"][k])
        out.append(template.skin(shape, G, P))
    return np.stack(out)


def _box(
    sequence: Sequence, time: float, earlier: float, k: int
) -> tuple[FloatArray, float, float]:
    """The tracker's box in a frame: centre, size, turn."""
    tracker, hand = sequence.tracker, sequence.hands[0]

    def measured(at: float) -> tuple[FloatArray, float, float]:
        joints = sequence.hand_points(hand, at)[1]
        return cameras.tracker_box(_project(joints, sequence.camera.intrinsics))

    now = measured(time)
    center, size, angle = measured(earlier) if tracker.lagging else now
    if np.linalg.norm(center - now[0]) > 0.2 * size:
        center, size, angle = now  # lost and found again
    rng = np.random.default_rng([tracker.seed, k])
    error = tracker.offset + rng.normal(0, tracker.jitter, 2)
    size = max(size * tracker.scale * np.exp(rng.normal(0, tracker.jitter)), 16.0)
    return center + error * size, size, angle + tracker.turn + rng.normal(0, tracker.jitter)


def _project(points: FloatArray, K: FloatArray) -> FloatArray:
    return points[:, :2] / points[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2]


@lru_cache(maxsize=4)
def _renderer(size: int) -> Renderer:
    return Renderer(size)


def _frame(sequence: Sequence, time: float, earlier: float, k: int) -> Sample:
    side = sequence.options.size
    center, size, angle = _box(sequence, time, earlier, k)
    R_camera_crop, K = cameras.crop_camera(center, size, angle, sequence.camera, side)
    frame = _render(sequence, time, R_camera_crop, K, side, k, side / size)
    frame["R_camera_crop"] = (
        MIRROR @ R_camera_crop @ MIRROR if sequence.mirrored else R_camera_crop
    ).astype(np.float32)
    return frame


def _render(
    sequence: Sequence,
    time: float,
    R_camera_view: FloatArray,
    K: FloatArray,
    side: int,
    k: int,
    magnification: float,
) -> Sample:
    """Picture and labels of a view that turns with R_camera_view about the camera's centre."""
    mesh, renderer = sequence.mesh, _renderer(side)
    vertices, joints = sequence.geometry(time)
    to_view = R_camera_view.astype(np.float32)
    seen = vertices @ to_view
    joints = [points @ R_camera_view for points in joints]
    renderer.rasterise(mesh, seen, K, range(HAND, HAND + 1))
    alone = _hand_samples(renderer)
    renderer.rasterise(mesh, seen, K, range(HAND + 1, NUM_BODIES + 1), clear=False)
    inside = _inside_camera(sequence.camera, R_camera_view, K, side)
    left_over = _hand_samples(renderer)
    if inside is not None:
        left_over &= inside > 0
    total = int(alone.sum())
    occlusion = 1 - left_over.sum() / total if total else 1.0

    bodies = renderer.body_map(mesh)
    sample = _pose_labels(sequence, time, R_camera_view, K, joints)
    sample["parts"] = renderer.part_map(mesh, seen, K)
    sample["object_mask"] = bodies == OBJECT
    if inside is not None:
        half = inside[1::2, 1::2] > 0
        sample["parts"] = sample["parts"] * half
        sample["object_mask"] &= half
    sample["occlusion"] = np.float32(occlusion)
    sample["visibility"] = _visible(renderer, mesh, sample, inside, side)
    sample["intrinsics"] = K.astype(np.float32)
    sample["time_s"] = np.float64(time)
    sample["mirrored"] = np.bool_(sequence.mirrored)

    linear = _expose_motion(sequence, renderer, time, R_camera_view, K, side, joints[0])
    if inside is not None:
        linear *= (inside > 0)[..., None]
    sample["image"] = cameras.expose(linear, sequence.sensor, magnification, k)
    if inside is not None:
        sample["image"][inside == 0] = 0
    return sample


def _hand_samples(renderer: Renderer) -> NDArray[np.bool_]:
    """(S, S) where the hand of interest, the first body, is seen."""
    seen = renderer.triangle[1::2, 1::2]
    return (seen >= 0) & (seen < len(hand_template().faces))


def _inside_camera(
    camera: Camera, R_camera_view: FloatArray, K: FloatArray, side: int
) -> NDArray[np.uint8] | None:
    """(S, S) 1 where the camera has a pixel, or None when it has one everywhere."""
    to_camera = camera.intrinsics @ R_camera_view @ np.linalg.inv(K)
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1.0]]) @ to_camera.T
    pixels = corners[:, :2] / corners[:, 2:]
    limit = [camera.width - 0.5, camera.height - 0.5]
    if (corners[:, 2] > 0.02).all() and (pixels >= -0.5).all() and (pixels <= limit).all():
        return None
    index = np.arange(side) + 0.5
    x, y = np.meshgrid(index, index)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ to_camera.T
    z = np.maximum(rays[..., 2], 1e-6)
    u, v = rays[..., 0] / z, rays[..., 1] / z
    good = (rays[..., 2] > 0.02) & (u >= -0.5) & (v >= -0.5) & (u <= limit[0]) & (v <= limit[1])
    return good.astype(np.uint8)


def _visible(
    renderer: Renderer, mesh: Mesh, sample: Sample, inside: NDArray[np.uint8] | None, side: int
) -> NDArray[np.bool_]:
    """(21,) the joint's own skin is the first thing on its ray."""
    out = np.zeros(21, bool)
    for j, (x, y) in enumerate(sample["joints_2d"]):
        column, row = int(np.floor(x)), int(np.floor(y))
        if not (0 <= column < side and 0 <= row < side):
            continue
        if inside is not None and not inside[row, column]:
            continue
        u, v = min(2 * side - 1, int(2 * x)), min(2 * side - 1, int(2 * y))
        near, triangle = renderer.nearness[v, u], renderer.triangle[v, u]
        if triangle < 0:
            out[j] = True  # the tip of a finger may lie a hair outside of its skin
            continue
        body = mesh.face_body[triangle]
        depth = sample["joints_3d"][j, 2] - 1 / near
        own = body == HAND or (j == 0 and body == HAND + 1)
        out[j] = own and depth < _VISIBLE_DEPTH[j]
    return out


def _pose_labels(
    sequence: Sequence,
    time: float,
    R_camera_view: FloatArray,
    K: FloatArray,
    joints: list[FloatArray],
) -> Sample:
    hand = sequence.hands[0]
    orient, pose, transl = _parameters(hand, time, R_camera_view)
    other = sequence.hands[1] if len(sequence.hands) > 1 else None
    zeros = np.zeros((21, 3), np.float32)
    other_labels: tuple[FloatArray, FloatArray, FloatArray] = (
        np.zeros(3),
        np.zeros((15, 3)),
        np.zeros(3),
    )
    if other is not None:
        other_labels = _parameters(other, time, R_camera_view)
    thing_pose: FloatArray = np.eye(4)
    if sequence.thing is not None:
        thing_pose = sequence.thing_pose(sequence.thing, time)
        thing_pose[:3] = R_camera_view.T @ thing_pose[:3]
    return {
        "joints_2d": _project(joints[0], K).astype(np.float32),
        "joints_3d": joints[0].astype(np.float32),
        "global_orient": orient.astype(np.float32),
        "hand_pose": pose.astype(np.float32),
        "betas": hand.shape.betas,
        "transl": transl.astype(np.float32),
        "object_class": np.int64(0 if sequence.thing is None else sequence.thing.thing.class_id),
        "object_pose": thing_pose.astype(np.float32),
        "other_present": np.bool_(other is not None),
        "other_joints_3d": zeros if other is None else joints[1].astype(np.float32),
        "other_joints_2d": zeros[:, :2]
        if other is None
        else _project(joints[1], K).astype(np.float32),
        "other_global_orient": other_labels[0].astype(np.float32),
        "other_hand_pose": other_labels[1].astype(np.float32),
        "other_transl": other_labels[2].astype(np.float32),
    }


def _parameters(
    hand: HandActor, time: float, R_camera_view: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """global_orient, hand_pose, transl of the model of the hand's side, in the view."""
    orientation, rotations, transl = hand.place(time)
    root = hand.shape.joints[0].astype(np.float64)
    if hand.left:
        orientation, rotations = MIRROR @ orientation @ MIRROR, MIRROR @ rotations @ MIRROR
        root, transl = MIRROR @ root, MIRROR @ transl
    wrist = R_camera_view.T @ (root + transl)
    return axis_angle(R_camera_view.T @ orientation), axis_angle(rotations), wrist - root


def _expose_motion(
    sequence: Sequence,
    renderer: Renderer,
    time: float,
    R_camera_view: FloatArray,
    K: FloatArray,
    side: int,
    joints: FloatArray,
) -> F32:
    """Linear light (S, S, 3) gathered while the shutter is open."""
    half = sequence.exposure / 2
    ends = []
    for at in (time - half, time + half):
        moved = sequence.hand_points(sequence.hands[0], at)[1] @ R_camera_view
        ends.append(_project(moved, K))
    flow = ends[1] - ends[0]
    travel = float(np.linalg.norm(flow, axis=1).max())
    count = 1 if travel < 3 else min(MAX_SUBFRAMES, 1 + int(travel / 5))
    background = _background(sequence, time, R_camera_view, K, side)
    total = None
    for i in range(count):
        if count > 1:
            at = time + sequence.exposure * ((i + 0.5) / count - 0.5)
            vertices = sequence.geometry(at)[0] @ R_camera_view.astype(np.float32)
            renderer.rasterise(sequence.mesh, vertices, K, range(1, NUM_BODIES + 1))
        else:
            vertices = sequence.geometry(time)[0] @ R_camera_view.astype(np.float32)
        light = renderer.shade(
            sequence.mesh, vertices, K, _turned(sequence, R_camera_view), background,
            vertices[: hand_template().num_vertices], sequence.background_gain,
        )  # fmt: skip
        total = light.copy() if total is None else total + light
    assert total is not None
    if count > 1:
        total *= np.float32(1 / count)
        step = flow.mean(0) / count
        if np.linalg.norm(step) > 1.5:
            total = _smear(total, step)
    return total


def _smear(picture: F32, step: FloatArray) -> F32:
    """Blur along a step (2,) in pixels: fills the gaps between sub-frames."""
    reach = int(np.ceil(np.abs(step).max() / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for s in np.linspace(-0.5, 0.5, 4 * reach + 3):
        kernel[round(reach + s * step[1]), round(reach + s * step[0])] += 1
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _turned(sequence: Sequence, R_camera_view: FloatArray) -> Lighting:
    """The lights in the frame of a view."""
    turn = R_camera_view.astype(np.float32)
    lighting = sequence.lighting
    lights, plane = lighting.lights.copy(), lighting.plane.copy()
    lights[:, :3] = lights[:, :3] @ turn
    plane[:3] = plane[:3] @ turn
    return replace(lighting, lights=lights, plane=plane, up=lighting.up @ turn)


def _background(
    sequence: Sequence, time: float, R_camera_view: FloatArray, K: FloatArray, side: int
) -> U8:
    picture, camera = sequence.background, sequence.camera
    height, width = picture.shape[:2]
    fit = np.diag([width / camera.width, height / camera.height, 1.0])
    fit[:2, 2] = sequence.drift * time * width
    pixel = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # index -> continuous crop pixel
    to_picture = fit @ camera.intrinsics @ R_camera_view @ np.linalg.inv(K) @ pixel
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(
        picture, to_picture, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )


def camera_picture(sequence: Sequence, frame: int) -> dict[str, Any]:
    """The whole picture of the camera at one frame, as a camera driver would deliver it.

    image (H, W, 3) uint8 RGB, time_s, and hands: a list of dicts with side, joints_2d (21, 2)
    image pixels and joints_3d (21, 3) metres in the camera frame.
    """
    camera, time = sequence.camera, float(sequence.stamps[frame])
    side = -(-max(camera.width, camera.height) // 4) * 4
    K = camera.intrinsics + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    image = _render(sequence, time, np.eye(3), K, side, frame, 1.0)["image"]
    image = image[: camera.height, : camera.width]
    hands = []
    for hand in sequence.hands:
        points = sequence.hand_points(hand, time)[1]
        if sequence.mirrored:
            points = points @ MIRROR
        pixels = _project(points, camera.intrinsics)
        left = hand.left != sequence.mirrored
        hands.append(
            {"side": "left" if left else "right", "joints_2d": pixels, "joints_3d": points}
        )
    image = np.ascontiguousarray(image[:, ::-1] if sequence.mirrored else image)
    return {"image": image, "time_s": time, "hands": hands}
