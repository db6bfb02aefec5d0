"""Synthetic scenes: determinism, labels that agree with each other and the picture, shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hand_perception.crops import crop_around
from hand_perception.hand_model import HandModel, angles_to_rotations
from hand_perception.synthesis import grasps, motion, scenes
from hand_perception.synthesis.cameras import crop_camera, tracker_box
from hand_perception.synthesis.hands import hand_template
from hand_perception.synthesis.motion import RigidMotion
from hand_perception.synthesis.objects import generated_objects, load_objects
from hand_perception.synthesis.renderer import Mesh, Renderer
from hand_perception.synthesis.report import benchmark, draw_labels
from hand_perception.synthesis.scenes import SceneOptions, ThingActor, sample_sequence
from hand_perception.synthesis.shading import NUM_ATTRIBUTES, NUM_MATERIAL
from hand_perception.synthesis.shards import WindowStream, read_shards, write_shards
from hand_perception.synthesis.windows import camera_picture, window, window_vertices
from hand_perception.types import Box, Camera, HandPerceptionError

SMALL = SceneOptions(size=96, frames=2)
LONE = SceneOptions(
    size=128, frames=1, two_hands=0, held_object=0, loose_object=0, occluder=0, fast=0
)
YCB = Path(__file__).resolve().parents[2] / "shared/data/ycb"


@pytest.fixture(scope="module")
def samples():
    return [window(sample_sequence(5, k, SMALL)) for k in range(16)]


def in_picture(sequence):
    """The hand of interest and its crop lie within the camera's picture."""
    joints = sequence.hand_points(sequence.hands[0], 0.0)[1]
    camera = sequence.camera
    pixels = joints[:, :2] / joints[:, 2:] * camera.fx + [camera.cx, camera.cy]
    reach = np.ptp(pixels, axis=0).max()
    return (pixels > reach).all() and (
        pixels < np.array([camera.width, camera.height]) - reach
    ).all()


def lone_sequences(count):
    found = (s for s in (sample_sequence(9, k, LONE) for k in range(200)) if in_picture(s))
    return [next(found) for _ in range(count)]


def test_the_fast_hand_equals_the_hand_model():
    rng = np.random.default_rng(0)
    template, model = hand_template(), HandModel.load()
    for _ in range(4):
        betas, angles = rng.normal(0, 1, 10), motion.sample_pose(rng)
        wrist, transl = motion.random_rotation(rng), rng.normal(0, 0.3, 3)
        shape, fingers = template.shaped(betas), template.rotations(angles)
        G, P = template.transforms(shape, wrist, fingers, transl)
        expected = angles_to_rotations(model, torch.tensor(angles).float())
        np.testing.assert_allclose(fingers, expected.numpy(), atol=1e-5)
        rotations = torch.cat([torch.tensor(wrist).float()[None], expected])
        posed = model.with_shape(torch.tensor(betas).float()).with_rotations(
            rotations, torch.tensor(transl).float()
        )
        np.testing.assert_allclose(template.skin(shape, G, P), posed.mesh().numpy(), atol=1e-5)
        np.testing.assert_allclose(template.joints_21(shape, G, P), posed.joints.numpy(), atol=1e-5)


def test_a_seed_decides_everything_and_another_one_differs():
    first, again = (window(sample_sequence(3, 4, SMALL)) for _ in range(2))
    assert first.keys() == again.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)
    other = window(sample_sequence(4, 4, SMALL))
    assert not np.array_equal(first["image"], other["image"])


def test_shapes_and_types(samples):
    sample = samples[0]
    expected = {
        "image": ((2, 96, 96, 3), np.uint8), "parts": ((2, 48, 48), np.uint8),
        "object_mask": ((2, 48, 48), np.bool_), "joints_2d": ((2, 21, 2), np.float32),
        "joints_3d": ((2, 21, 3), np.float32), "hand_pose": ((2, 15, 3), np.float32),
        "betas": ((2, 10), np.float32), "visibility": ((2, 21), np.bool_),
        "object_pose": ((2, 4, 4), np.float32), "time_s": ((2,), np.float64),
    }  # fmt: skip
    for name, (shape, dtype) in expected.items():
        assert sample[name].shape == shape and sample[name].dtype == dtype, name
    assert max(s["parts"].max() for s in samples) <= 32
    assert any(s["other_present"][0] for s in samples)
    assert any(s["object_class"][0] for s in samples)
    assert {bool(s["mirrored"][0]) for s in samples} == {True, False}


def test_projected_joints_are_the_2d_joints(samples):
    for sample in samples:
        for points, pixels in (("joints_3d", "joints_2d"), ("other_joints_3d", "other_joints_2d")):
            if points.startswith("other") and not sample["other_present"][0]:
                continue
            seen = np.einsum("tij,tnj->tni", sample["intrinsics"].astype(float), sample[points])
            near = seen[..., 2] > 0.05
            flat = seen[..., :2] / seen[..., 2:]
            np.testing.assert_allclose(flat[near], sample[pixels][near], atol=1e-3, rtol=1e-5)


def test_the_model_reproduces_both_hands(samples):
    models = {side: HandModel.load(side=side) for side in ("right", "left")}
    for sample in samples:
        tensors = {k: torch.tensor(v) for k, v in sample.items() if v.dtype == np.float32}
        posed = (
            models["right"]
            .with_shape(tensors["betas"])
            .with_pose(tensors["global_orient"], tensors["hand_pose"], tensors["transl"])
        )
        np.testing.assert_allclose(posed.joints, sample["joints_3d"], atol=1e-5)
        np.testing.assert_allclose(posed.mesh(), window_vertices(sample), atol=1e-5)
        if sample["other_present"][0]:
            other = (
                models["left"]
                .with_shape(tensors["betas"])
                .with_pose(
                    tensors["other_global_orient"],
                    tensors["other_hand_pose"],
                    tensors["other_transl"],
                )
            )
            np.testing.assert_allclose(other.joints, sample["other_joints_3d"], atol=1e-5)


def test_crops_turn_about_the_camera_into_one_smooth_motion():
    sequence = next(s for s in lone_sequences(6) if s.mirrored)
    sample = window(sequence)
    direct = sequence.hand_points(sequence.hands[0], float(sequence.stamps[0]))[1]
    # A left hand: out of the mirrored crop into the camera frame of the unmirrored picture.
    in_camera = (sample["joints_3d"][0] * [-1, 1, 1]) @ sample["R_camera_crop"][0].T
    np.testing.assert_allclose(in_camera, direct * [-1, 1, 1], atol=1e-5)
    assert np.linalg.det(sample["R_camera_crop"][0]) == pytest.approx(1, abs=1e-5)


def test_parts_lie_where_the_joints_are():
    template = hand_template()
    for sequence in lone_sequences(4):
        sample = window(sequence)
        parts = sample["parts"][0]
        seen = np.flatnonzero(sample["visibility"][0])
        assert len(seen) >= 8
        hits = 0
        for x, y in sample["joints_2d"][0][seen] / 2:
            patch = parts[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
            hits += bool((patch > 0).any())
        assert hits >= len(seen) - 1
        assert set(np.unique(parts)) <= set(range(17))
        # The area of the mask is that of the projected mesh, up to its outline.
        vertices = window_vertices(sample)[0]
        flat = vertices[:, :2] / vertices[:, 2:] * sample["intrinsics"][0, 0, 0] + 64
        corners = flat[template.faces]
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        signed = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        front = -signed[signed < 0].sum() / 2 / 4
        assert (parts > 0).sum() <= front * 1.1 + 5


def test_nothing_hides_a_lone_hand_and_a_box_before_it_hides_it_all():
    for sequence in lone_sequences(3):
        assert window(sequence)["occlusion"][0] < 0.03
        joints = sequence.hand_points(sequence.hands[0], 0.0)[1]
        carton = next(o for o in generated_objects() if o.name == "carton")
        place = joints.mean(0) * 0.5
        size = 1.2 * np.abs(joints - joints.mean(0)).max() / carton.extents[2] * 2
        still = RigidMotion(place, np.eye(3), np.zeros((1, 8)))
        box = ThingActor(carton, float(min(size, 1.4 * place[2] / carton.extents[1])), still, False)
        hands = list(sequence.hands)
        mesh = scenes._mesh(np.random.default_rng(0), hands, None, box)
        covered = window(replace(sequence, occluder=box, mesh=mesh))
        assert covered["occlusion"][0] > 0.97
        assert covered["visibility"][0].sum() <= 1
        assert (covered["parts"][0] > 0).sum() <= 0.03 * 64 * 64


def test_a_joint_behind_the_hand_is_hidden_and_one_in_front_is_seen():
    """A fist with the thumb over the fingers, seen from the palm: the knuckles lie behind."""
    sequence = lone_sequences(1)[0]
    curls, spread, thumb = motion.GESTURES["fist"]
    fingers = motion.finger_angles(np.array(curls), np.zeros(4), spread)
    pose = motion.clip_to_limits(np.radians(np.concatenate([motion._THUMBS[thumb], fingers])))
    palm_to_camera = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    still = motion.FingerMotion.constant(pose, np.zeros((22, 3)))
    at = RigidMotion(np.array([0.0, 0.05, 0.5]), palm_to_camera, np.zeros((1, 8)))
    hand = replace(sequence.hands[0], fingers=still, wrist=at)
    seen = window(replace(sequence, hands=(hand,)))["visibility"][0]
    assert seen[[2, 3, 4]].all()  # the thumb
    assert not seen[[9, 13]].any()  # middle and ring knuckle
    away = RigidMotion(at.position, palm_to_camera @ np.diag([1.0, -1, -1]), np.zeros((1, 8)))
    behind = window(replace(sequence, hands=(replace(hand, wrist=away),)))["visibility"][0]
    assert behind[[5, 9, 13, 17]].all()
    assert not behind[[4, 12, 16]].any()


def test_motion_stays_within_the_limits_and_is_smooth():
    rng = np.random.default_rng(1)
    shape = hand_template().shaped(np.zeros(10))
    depths = []
    for _ in range(10):
        moving = motion.FingerMotion.sample(rng, 0.8, shape)
        track = np.stack([moving.angles(t) for t in np.linspace(0, 0.8, 200)])
        assert (track >= motion.LIMITS[:, 0] - 1e-9).all()
        assert (track <= motion.LIMITS[:, 1] + 1e-9).all()
        assert np.abs(np.diff(track, axis=0)).max() < 0.3
        depths += [motion.self_penetration(shape, pose) for pose in track[::40]]
    assert np.mean(np.array(depths) < 0.004) > 0.9


def test_capsule_distances():
    start = np.array([[0.0, 0, 0], [0.0, 0.03, 0], [0.05, 0, -0.1]])
    end = np.array([[0.1, 0, 0], [0.1, 0.03, 0], [0.05, 0, -0.02]])
    radii = np.array([0.01, 0.005, 0.002])
    assert motion._least_gap(start, end, radii, np.array([[0, 1]])) == pytest.approx(0.015)
    assert motion._least_gap(start, end, radii, np.array([[0, 2]])) == pytest.approx(0.008)


def test_pinches_bring_thumb_and_finger_together():
    template = hand_template()
    shape, pads = template.shaped(np.zeros(10)), motion.pads(template)
    poses = motion.pinch_poses()
    assert len(poses) >= 8
    for pose in poses:
        G, P = template.transforms(shape, np.eye(3), template.rotations(pose), np.zeros(3))
        skin = template.skin(shape, G, P)
        assert np.linalg.norm(skin[pads[1:]] - skin[pads[0]], axis=1).min() < 0.003


def test_most_grasps_touch_with_two_fingertips_and_hardly_enter():
    rng = np.random.default_rng(2)
    shape = hand_template().shaped(np.zeros(10))
    template = hand_template()
    things = {thing.name: thing for thing in generated_objects()}
    found = 0
    for name in ("ball", "soda_can", "box", "marker", "banana", "cup", "cube", "bottle"):
        grasp = grasps.sample_grasp(rng, shape, things[name])
        if grasp is None:
            continue
        G, P = template.transforms(shape, np.eye(3), template.rotations(grasp.pose), np.zeros(3))
        skin = template.skin(shape, G, P)
        distance = things[name].distance.at((skin - grasp.position) @ grasp.rotation)
        touching = sum(distance[template.parts == c].min() < 0.004 for c in (15, 3, 6, 12, 9))
        assert distance.min() > -0.009
        found += touching >= 2
    assert found >= 7


def test_distance_to_a_ball_is_signed():
    ball = next(o for o in generated_objects() if o.name == "ball")
    points = np.array([[0, 0, 0.02], [0.034, 0, 0], [0, 0.044, 0], [0.2, 0, 0]])
    np.testing.assert_allclose(ball.distance.at(points), [-0.014, 0, 0.01, 0.166], atol=0.002)


def test_generated_objects_are_closed_and_face_outwards():
    for thing in generated_objects():
        for vertices, faces in thing.parts:
            a, b, c = (vertices[faces[:, k]].astype(float) for k in range(3))
            assert (a * np.cross(b, c)).sum() > 0, thing.name
            directed = {(int(f[i]), int(f[(i + 1) % 3])) for f in faces for i in range(3)}
            assert all((b, a) in directed for a, b in directed), thing.name
    names = [thing.name for thing in generated_objects()]
    assert len(set(names)) == len(names) >= 40


def test_ycb_folder():
    if not YCB.is_dir():
        pytest.skip("the shared YCB meshes are not there")
    things = load_objects(str(YCB), 50)
    assert [t.name for t in things][:2] == ["003_cracker_box", "004_sugar_box"]
    assert things[0].class_id == 50
    np.testing.assert_allclose(things[0].extents * 1e3, [72, 164, 213], atol=1.5)
    assert things[0].colors.std() > 0.02  # painted from its texture


def test_an_empty_folder_of_objects_is_an_error(tmp_path):
    with pytest.raises(HandPerceptionError, match="holds no objects"):
        load_objects(str(tmp_path))
    with pytest.raises(HandPerceptionError, match="no pictures"):
        for k in range(20):
            sample_sequence(0, k, replace(LONE, photos=str(tmp_path)))


def test_backgrounds_from_a_folder_of_photos(tmp_path):
    red = np.full((300, 400, 3), (10, 20, 200), np.uint8)  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)
    options = replace(LONE, photos=str(tmp_path))
    colors = [sample_sequence(0, k, options).background.mean((0, 1)) for k in range(8)]
    assert sum(np.allclose(color, [200, 20, 10], atol=1) for color in colors) >= 2


@pytest.mark.parametrize("bad", [{"size": 30}, {"size": 97}, {"frames": 0}, {"two_hands": 1.5}])
def test_bad_options(bad):
    with pytest.raises(HandPerceptionError):
        SceneOptions(**bad)


def test_tracker_box_of_an_upright_hand():
    joints = np.zeros((21, 2))
    joints[:, 0] = 100
    joints[[5, 9, 13], 1] = -40  # fingers point up
    joints[17] = [120, -40]
    center, size, angle = tracker_box(joints)
    assert angle == pytest.approx(0)
    assert size == pytest.approx(80)
    np.testing.assert_allclose(center, [110, -24])
    turned = tracker_box(joints @ np.array([[0.0, 1], [-1, 0]]))
    assert turned[2] == pytest.approx(np.pi / 2)


def test_crop_camera_agrees_with_crops():
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
    blank = np.zeros((480, 640, 3), np.uint8)
    crop = crop_around(blank, Box((500.0, 100.0), 150.0, 0.4), camera, 224)
    rotation, K = crop_camera(np.array([500.0, 100.0]), 150.0, 0.4, camera, 224)
    np.testing.assert_allclose(rotation, crop.R_camera_crop, atol=1e-9)
    np.testing.assert_allclose(K, crop.intrinsics, rtol=1e-9)


def test_the_rasteriser_covers_a_square_exactly():
    mesh = Mesh(
        np.array([[0, 1, 2], [0, 2, 3]], np.int32), np.array([1, 1], np.uint8),
        np.zeros((4, NUM_ATTRIBUTES), np.float32), np.full(4, 7, np.uint8),
        np.zeros((2, NUM_MATERIAL), np.float32), np.zeros(2, np.int8),
    )  # fmt: skip
    # 8 x 8 pixels about the middle of 32 x 32, at 1 m: x, y in [-0.125, 0.125] with f = 32.
    square = np.array([[-1, -1, 8], [1, -1, 8], [1, 1, 8], [-1, 1, 8]], np.float32) / 8
    K = np.array([[32, 0, 16], [0, 32, 16], [0, 0, 1]], np.float32)
    renderer = Renderer(32)
    renderer.rasterise(mesh, square, K, range(1, 2))
    rows, columns = np.nonzero(renderer.triangle >= 0)
    assert len(rows) == 16 * 16
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 39, 24, 39)
    np.testing.assert_allclose(renderer.nearness[30, 30], 1.0, rtol=1e-6)
    assert (renderer.part_map(mesh, square, K) == 7).sum() == 16


def test_whole_pictures_show_the_hands_where_their_joints_are():
    sequence = next(
        s
        for s in (sample_sequence(2, k, replace(SMALL, two_hands=1)) for k in range(50))
        if s.mirrored and s.camera.width == 640
    )
    picture = camera_picture(sequence, 0)
    assert picture["image"].shape == (sequence.camera.height, sequence.camera.width, 3)
    assert [hand["side"] for hand in picture["hands"]] == ["left", "right"]
    for hand in picture["hands"]:
        K = sequence.camera.intrinsics
        seen = hand["joints_3d"] @ K.T
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], hand["joints_2d"], atol=1e-6)


def test_shards_round_trip_resume_and_refuse(tmp_path):
    paths = write_shards(tmp_path, 5, 8, SMALL, per_shard=2, lossless=True)
    assert [p.name for p in paths] == [f"windows_{k:06d}.npz" for k in range(3)]
    back = list(read_shards(tmp_path))
    assert len(back) == 5
    expected = list(WindowStream(8, SMALL, count=5))
    for a, b in zip(back, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    # A shard cut short is written again, whole ones are left alone.
    stamp = paths[0].stat().st_mtime_ns
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    with pytest.raises(HandPerceptionError, match=r"windows_000001\.npz is damaged"):
        list(read_shards(tmp_path))
    write_shards(tmp_path, 5, 8, SMALL, per_shard=2, lossless=True)
    assert len(list(read_shards(tmp_path))) == 5
    assert paths[0].stat().st_mtime_ns == stamp
    with pytest.raises(HandPerceptionError, match="another seed"):
        write_shards(tmp_path, 5, 9, SMALL, per_shard=2, lossless=True)
    with pytest.raises(HandPerceptionError, match="no shards"):
        list(read_shards(tmp_path / "missing"))


def test_reports(samples):
    figures = benchmark(size=64, windows=1, options=replace(SMALL, size=64))
    assert figures["images"] == 2 and figures["images_per_cpu_second"] > 0
    drawn = draw_labels(samples[0])
    assert drawn.shape == (96, 96, 3) and not np.array_equal(drawn, samples[0]["image"][0])
