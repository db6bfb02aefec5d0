"""Sequences of hands and objects in front of a camera, and the training windows cut from them.

`sample_sequence(seed, index)` decides everything about a sequence; `window` renders its crops with
labels as a tracker would have cut them. A sequence is made so that the hand of interest is a right
hand; half of the sequences stand for their mirror image (`mirrored`), in which it is the left one,
and a crop of a left hand is mirrored back (types.Crop): so crops are rendered in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hand_perception.synthesis import appearance, backgrounds, cameras, motion
from hand_perception.synthesis.arrays import F32
from hand_perception.synthesis.grasps import Grasp, sample_grasp
from hand_perception.synthesis.hands import (
    ARM_RINGS,
    SLEEVE_RINGS,
    HandShape,
    extrude_arm,
    hand_template,
    tube_faces,
)
from hand_perception.synthesis.motion import FingerMotion, RigidMotion
from hand_perception.synthesis.objects import RigidObject, generated_objects, load_objects
from hand_perception.synthesis.renderer import Lighting, Mesh
from hand_perception.synthesis.shading import NUM_MATERIAL
from hand_perception.types import Camera, FloatArray, HandPerceptionError

Sample = dict[str, Any]
"""Arrays by name; what `windows.window` returns."""

MIRROR = np.diag([-1.0, 1.0, 1.0])
# Bodies in the order in which they are drawn.
HAND, ARM, SLEEVE, OTHER_HAND, OTHER_ARM, OTHER_SLEEVE, OBJECT, OCCLUDER = range(1, 9)
NUM_BODIES = 8


@dataclass(frozen=True)
class SceneOptions:
    """What the scenes hold; probabilities are per sequence."""

    size: int = 224
    """Side of a crop, pixels."""
    frames: int = 7
    """Frames of a window."""
    two_hands: float = 0.35
    interacting: float = 0.6
    """Of the sequences with two hands."""
    held_object: float = 0.3
    loose_object: float = 0.12
    occluder: float = 0.2
    fast: float = 0.3
    """Share with quick wrist motion, up to 1.5 m/s."""
    objects: str | None = None
    """Folder with meshes of the user's (YCB); None holds generated shapes only."""
    photos: str | None = None
    """Folder with background pictures of the user's; None uses procedural ones only."""

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 4 or self.frames < 1:
            raise HandPerceptionError(
                f"size {self.size} and frames {self.frames} are not allowed; the size must be a "
                "multiple of 4 from 32 on, and there must be at least one frame"
            )
        for name in ("two_hands", "interacting", "held_object", "loose_object", "occluder", "fast"):
            if not 0 <= getattr(self, name) <= 1:
                raise HandPerceptionError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")


DEFAULTS = SceneOptions()


@dataclass(frozen=True)
class HandActor:
    """A hand that moves; everything as a right hand, mirrored when `left`."""

    left: bool
    shape: HandShape
    fingers: FingerMotion
    wrist: RigidMotion
    follows: RigidMotion | None
    """The motion, in the camera frame, that carries this hand along."""
    arm_bend: FloatArray
    """(3, 3)."""
    sleeve_lengths: FloatArray
    sleeve_scales: FloatArray
    """(R,); empty without a sleeve."""

    def place(self, time: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Wrist orientation (3, 3), finger rotations (15, 3, 3), transl (3,), as a right hand."""
        orientation, position = self.wrist.at(time)
        if self.follows is not None:
            position = position + MIRROR @ self.follows.at(time)[1]
        rotations = hand_template().rotations(self.fingers.angles(time))
        return orientation, rotations, position - self.shape.joints[0]


@dataclass(frozen=True)
class ThingActor:
    """An object that moves in the camera frame or in the frame of the first hand's wrist."""

    thing: RigidObject
    scale: float
    motion: RigidMotion
    held: bool


@dataclass(frozen=True)
class Sequence:
    """Everything about one sequence, fixed; time runs in seconds."""

    options: SceneOptions
    camera: Camera
    mirrored: bool
    """The hand of interest is a left hand: camera pictures are mirrored before use."""
    stamps: FloatArray
    """(T,) seconds."""
    exposure: float
    hands: tuple[HandActor, ...]
    """One or two; the first is the hand of interest."""
    thing: ThingActor | None
    occluder: ThingActor | None
    mesh: Mesh
    lighting: Lighting
    background: NDArray[np.uint8]
    background_gain: float
    drift: FloatArray
    """(2,) motion of the background, shares of its width per second."""
    sensor: cameras.Sensor
    tracker: cameras.Tracker

    def hand_points(self, hand: HandActor, time: float) -> tuple[F32, FloatArray]:
        """Vertices of hand, arm and sleeve, and joints (21, 3), in the camera frame."""
        template = hand_template()
        orientation, rotations, transl = hand.place(time)
        G, P = template.transforms(hand.shape, orientation, rotations, transl)
        skin = template.skin(hand.shape, G, P)
        joints = template.joints_21(hand.shape, G, P)
        bend = orientation @ hand.arm_bend @ orientation.T
        loop = skin[template.wrist_loop].astype(np.float64)
        arm = extrude_arm(loop, orientation[:, 0].copy(), bend, _ARM_LENGTHS, _ARM_SCALES)
        points = [skin, arm.reshape(-1, 3)]
        if len(hand.sleeve_lengths):
            sleeve = extrude_arm(
                loop, orientation[:, 0].copy(), bend, hand.sleeve_lengths, hand.sleeve_scales
            )
            points.append(sleeve.reshape(-1, 3))
        vertices = np.concatenate(points)
        if hand.left:
            vertices, joints = vertices @ MIRROR, joints @ MIRROR
        return vertices, joints

    def thing_pose(self, actor: ThingActor, time: float) -> FloatArray:
        """T_camera_object (4, 4)."""
        pose = np.eye(4)
        rotation, position = actor.motion.at(time)
        if actor.held:
            hand = self.hands[0]
            wrist, _, transl = hand.place(time)
            root = hand.shape.joints[0]
            rotation, position = wrist @ rotation, wrist @ (position - root) + root + transl
        pose[:3, :3], pose[:3, 3] = rotation, position
        return pose

    def geometry(self, time: float) -> tuple[F32, list[FloatArray]]:
        """All vertices (V, 3) and the joints (21, 3) of every hand, in the camera frame."""
        parts, joints = [], []
        for hand in self.hands:
            vertices, points = self.hand_points(hand, time)
            parts.append(vertices)
            joints.append(points)
        for actor in (self.thing, self.occluder):
            if actor is not None:
                pose = self.thing_pose(actor, time)
                parts.append(actor.scale * actor.thing.vertices @ pose[:3, :3].T + pose[:3, 3])
        return np.concatenate(parts).astype(np.float32), joints


_ARM_LENGTHS = np.array([0.006, 0.014, 0.026, 0.042, 0.062, 0.09, 0.13, 0.18, 0.26, 0.5])
_ARM_SCALES = np.array([1.0, 1.0, 1.0, 1.01, 1.04, 1.1, 1.2, 1.32, 1.45, 1.55])
assert len(_ARM_LENGTHS) == ARM_RINGS


def sample_sequence(seed: int, index: int, options: SceneOptions = DEFAULTS) -> Sequence:
    """The sequence of a seed and an index; the same for the same arguments."""
    rng = np.random.default_rng([seed, index])
    template = hand_template()
    viewpoint = cameras.sample_viewpoint(rng)
    stamps = cameras.sample_stamps(rng, options.frames)
    betas = np.clip(rng.normal(0, 0.8, 10), -2.2, 2.2)
    betas[0] = np.clip(rng.normal(0, 0.6), -1.3, 1.3)
    shape = template.shaped(betas)
    duration = float(stamps[-1]) + 0.1
    wrist = _wrist_motion(rng, viewpoint, options)
    has_other = rng.random() < options.two_hands
    thing, fingers = None, None
    kind = rng.random()
    if kind < options.held_object:
        chosen = _choose(rng, options)
        grasp = sample_grasp(rng, shape, chosen)
        if grasp is not None:
            thing, fingers = _held(rng, chosen, grasp)
    elif kind < options.held_object + options.loose_object:
        chosen = _choose(rng, options)
        place = wrist.position + rng.normal(0, 0.05, 3) + [0, 0, rng.choice([-0.06, 0.07])]
        motion_ = RigidMotion.sample(
            rng, place, motion.random_rotation(rng), rng.uniform(0, 0.3), 0.1, rng.uniform(0, 2)
        )
        thing = ThingActor(chosen, float(rng.uniform(0.8, 1.2)), motion_, False)
    if fingers is None:
        fingers = FingerMotion.sample(rng, duration, shape, still=rng.random() < 0.12)
    sleeved = rng.random() < 0.5
    first = _hand_actor(rng, False, shape, fingers, wrist, None, sleeved)
    hands = [first]
    if has_other:
        hands.append(_other_hand(rng, first, duration, options, sleeved, thing is not None, stamps))
    occluder = _occluder(rng, wrist, options) if rng.random() < options.occluder else None
    up = motion.rotation_matrix(rng.normal(0, 0.25, 3)) @ np.array([0.0, -1.0, 0.0])
    plane = np.zeros(4, np.float32)
    if rng.random() < 0.4:
        normal = np.array([rng.normal(0, 0.3), rng.normal(0.2, 0.4), 1.0])
        normal /= np.linalg.norm(normal)
        plane[:3] = normal
        plane[3] = normal @ wrist.position + rng.uniform(0.05, 0.35)
    lighting, cast = appearance.sample_lighting(rng, plane, up)
    background = backgrounds.sample_background(
        rng, 448, 336, None if options.photos is None else Path(options.photos)
    )
    drift = rng.normal(0, 0.08, 2) if viewpoint.moving else np.zeros(2)
    exposure = float(np.exp(rng.uniform(np.log(1 / 500), np.log(1 / 22))))
    return Sequence(
        options,
        viewpoint.camera,
        bool(rng.random() < 0.5),
        stamps,
        exposure,
        tuple(hands),
        thing,
        occluder,
        _mesh(rng, hands, thing, occluder),
        lighting,
        background,
        float(np.exp(rng.normal(0, 0.4))),
        drift,
        cameras.sample_sensor(rng, cast),
        cameras.sample_tracker(rng),
    )


def _wrist_motion(
    rng: np.random.Generator, viewpoint: cameras.Viewpoint, options: SceneOptions
) -> RigidMotion:
    pace = rng.random()
    if pace < 0.2:
        speed, turn = rng.uniform(0, 0.03), rng.uniform(0, 0.15)
    elif pace < 1 - options.fast:
        speed, turn = rng.uniform(0.03, 0.35), rng.uniform(0.1, 1.5)
    else:
        speed, turn = rng.uniform(0.35, 1.5), rng.uniform(0.3, 5.0)
    reach = 0.3 * viewpoint.wrist[2] * viewpoint.camera.width / viewpoint.camera.fx
    return RigidMotion.sample(rng, viewpoint.wrist, viewpoint.orientation, speed, reach, turn)


def _hand_actor(
    rng: np.random.Generator,
    left: bool,
    shape: HandShape,
    fingers: FingerMotion,
    wrist: RigidMotion,
    follows: RigidMotion | None,
    sleeved: bool,
) -> HandActor:
    bend = motion.rotation_matrix(np.array([rng.normal(0, 0.15), rng.normal(0, 0.16), 0.0]))
    bend = bend @ motion.rotation_matrix(np.array([0.0, 0.0, rng.normal(-0.05, 0.38)]))
    lengths = scales = np.zeros(0)
    if sleeved:
        lengths = np.linspace(rng.uniform(0.004, 0.1), 0.28, SLEEVE_RINGS)
        lengths[-1] = 0.52
        wide = rng.uniform(1.12, 1.6) + 0.3 * np.minimum(lengths, 0.28) / 0.28
        scales = wide * (1 + rng.normal(0, 0.025, SLEEVE_RINGS))
        if rng.random() < 0.4:
            scales[0] *= 0.92  # a cuff
    return HandActor(left, shape, fingers, wrist, follows, bend, lengths, scales)


def _other_hand(
    rng: np.random.Generator,
    first: HandActor,
    duration: float,
    options: SceneOptions,
    sleeved: bool,
    holding: bool,
    stamps: FloatArray,
) -> HandActor:
    """A left hand beside, or in contact with, the first one."""
    template = hand_template()
    fingers = FingerMotion.sample(rng, duration, first.shape, still=rng.random() < 0.3)
    orientation: FloatArray = first.wrist.rotation
    kind = rng.random()
    if kind < 0.35:
        # Palm to palm: the mirror image in the plane of the palm, then turned about its normal.
        normal = orientation[:, 1]
        reflected = orientation - 2 * np.outer(normal, normal @ orientation)
        turn = motion.rotation_matrix(normal * rng.normal(0, 0.8))
        tilt = motion.rotation_matrix(rng.normal(0, 0.3, 3))
        other: FloatArray = MIRROR @ tilt @ turn @ reflected
    elif kind < 0.7:
        # The hands of one person side by side: mirror images across the middle of the body.
        other = motion.rotation_matrix(rng.normal(0, 0.5, 3)) @ orientation
    else:
        other = motion.random_rotation(rng)
    interacting = rng.random() < options.interacting
    side: FloatArray = rng.normal(0, 1, 3) * [1.0, 0.8, 0.7]
    if kind < 0.35:
        side = -orientation[:, 1] + rng.normal(0, 0.35, 3)
    side /= np.linalg.norm(side)
    size = float(np.linalg.norm(first.shape.joints[4] - first.shape.joints[0]))
    sway_speed = rng.uniform(0, 0.08) if interacting else rng.uniform(0, 0.4)
    distance = rng.uniform(1.7, 3.5) * size

    def actor(offset: FloatArray) -> HandActor:
        wrist = RigidMotion(MIRROR @ offset, other, base.sway)
        return HandActor(
            True, first.shape, fingers, wrist, first.wrist, arm.arm_bend, arm.sleeve_lengths,
            arm.sleeve_scales,
        )  # fmt: skip

    base = RigidMotion.sample(rng, np.zeros(3), other, sway_speed, 0.03, rng.uniform(0, 0.5))
    arm = _hand_actor(rng, True, first.shape, fingers, base, first.wrist, sleeved)
    # Middle to middle, not wrist to wrist.
    middle = 0.8 * first.shape.joints[4].astype(np.float64)
    shift = orientation @ middle - MIRROR @ other @ middle
    if not interacting:
        return actor(shift + distance * side)
    # Come nearer by the free distance until the hands touch at some time.
    probes = [float(stamps[k]) for k in sorted({0, len(stamps) // 2, len(stamps) - 1})]
    allowed = rng.uniform(-0.003, 0.012) + (0.02 if holding else 0.0)
    reach = 0.4
    still = [_joints(template, first, t) for t in probes]
    for _ in range(12):
        candidate = actor(shift + reach * side)
        gap = min(
            motion.hands_gap(a, _joints(template, candidate, t))
            for a, t in zip(still, probes, strict=True)
        )
        if gap - allowed < 0.002 or reach <= 0:
            break
        reach = max(0.0, reach - (gap - allowed))
    return actor(shift + reach * side)


def _joints(template: Any, hand: HandActor, time: float) -> FloatArray:
    orientation, rotations, transl = hand.place(time)
    G, P = template.transforms(hand.shape, orientation, rotations, transl)
    joints = template.joints_21(hand.shape, G, P)
    return joints @ MIRROR if hand.left else joints


def _choose(rng: np.random.Generator, options: SceneOptions) -> RigidObject:
    generated = generated_objects()
    if options.objects is not None and rng.random() < 0.5:
        own = load_objects(options.objects, len(generated) + 1)
        return own[rng.integers(len(own))]
    return generated[rng.integers(len(generated))]


def _held(
    rng: np.random.Generator, thing: RigidObject, grasp: Grasp
) -> tuple[ThingActor, FingerMotion]:
    """The object in the hand, with a little play."""
    play = RigidMotion.sample(rng, grasp.position, grasp.rotation, 0.002, 0.001, 0.03)
    shake = motion.tremor(rng, np.radians(0.4))
    return ThingActor(thing, 1.0, play, True), FingerMotion.constant(grasp.pose, shake)


def _occluder(
    rng: np.random.Generator, wrist: RigidMotion, options: SceneOptions
) -> ThingActor | None:
    """Something that passes between the camera and the hand."""
    things = generated_objects()
    thing = things[rng.integers(len(things))]
    share = rng.uniform(0.4, 0.88)
    width = rng.uniform(0.04, 0.16) * share
    scale = float(width / np.sort(thing.extents)[1])
    place = wrist.position * share + rng.normal(0, 0.075, 3) * [1, 1, 0] * share
    nearest = place[2] - scale * np.linalg.norm(thing.extents) / 2
    if nearest < 0.06:
        return None
    sway = RigidMotion.sample(
        rng,
        place,
        motion.random_rotation(rng),
        rng.uniform(0, 0.5),
        0.15 * share,
        rng.uniform(0, 2),
    )
    return ThingActor(thing, scale, sway, False)


def _mesh(
    rng: np.random.Generator,
    hands: list[HandActor],
    thing: ThingActor | None,
    occluder: ThingActor | None,
) -> Mesh:
    template = hand_template()
    faces, bodies, attributes, parts = [], [], [], []
    materials = np.zeros((NUM_BODIES + 1, NUM_MATERIAL), np.float32)
    cull = np.full(NUM_BODIES + 1, -1, np.int8)
    count = 0

    def add(body: int, body_faces: Any, painted: tuple[F32, F32], labels: Any) -> None:
        nonlocal count
        faces.append(body_faces)
        bodies.append(np.full(len(body_faces), body, np.uint8))
        attributes.append(painted[0])
        materials[body] = painted[1]
        parts.append(np.asarray(labels, np.uint8))
        count += len(painted[0])

    skin, darkness = appearance.sample_skin(rng)
    state = rng.bit_generator.state
    for hand in hands:
        # Two hands of one person look alike: paint both from the same random numbers.
        rng.bit_generator.state = state
        other = hand.left
        start = count
        rest = template.v_template[template.wrist_loop].astype(np.float64)
        add(
            OTHER_HAND if other else HAND,
            template.faces + start,
            appearance.paint_hand(rng, template, skin, darkness),
            template.parts + (17 if other else 1),
        )
        arm = extrude_arm(rest, np.array([1.0, 0, 0]), np.eye(3), _ARM_LENGTHS, _ARM_SCALES)
        first = template.wrist_loop + start
        add(
            OTHER_ARM if other else ARM,
            tube_faces(first, count, ARM_RINGS, capped=True),
            appearance.paint_arm(rng, skin, arm, watch=bool(rng.random() < 0.12) and not other),
            np.zeros(arm.size // 3),
        )
        cull[OTHER_HAND : OTHER_ARM + 1] = 1
        if len(hand.sleeve_lengths):
            sleeve = extrude_arm(
                rest, np.array([1.0, 0, 0]), np.eye(3), hand.sleeve_lengths, hand.sleeve_scales
            )
            ring = np.arange(count, count + sleeve.shape[1], dtype=np.int32)
            body = OTHER_SLEEVE if other else SLEEVE
            add(
                body,
                tube_faces(ring, count + sleeve.shape[1], SLEEVE_RINGS - 1, capped=False),
                appearance.paint_sleeve(rng, sleeve),
                np.zeros(sleeve.size // 3),
            )
            cull[body] = 0
    for body, actor in ((OBJECT, thing), (OCCLUDER, occluder)):
        if actor is not None:
            painted = appearance.paint_object(rng, actor.thing)
            add(body, actor.thing.faces + count, painted, np.zeros(len(actor.thing.vertices)))
            cull[body] = -1 if actor.thing.colors is None else 0
    return Mesh(
        np.concatenate(faces).astype(np.int32),
        np.concatenate(bodies),
        np.concatenate(attributes),
        np.concatenate(parts),
        materials,
        cull,
    )
