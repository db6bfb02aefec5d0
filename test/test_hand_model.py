"""The hand model: the shipped hand, its kinematics and angles, and reading MANO files."""

from __future__ import annotations

import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from hand_perception.geometry import axis_angle_to_matrix, mirror_axis_angle
from hand_perception.hand_model import (
    ANGLE_LIMITS,
    GESTURES,
    HandModel,
    angles_to_rotations,
    clamp_angles,
    rotations_to_angles,
)
from hand_perception.mano import TIP_VERTICES, skeleton_axes
from hand_perception.skeleton import ANGLE_NAMES, JOINT_NAMES, MANO_PARENTS, TIPS
from hand_perception.types import SIDES, HandPerceptionError

MIRROR = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.load()


def random_pose(*lead: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((10,), (3,), (15, 3), (3,))
    scales = (1.0, 1.0, 0.4, 0.5)
    return [
        s * torch.randn(*lead, *shape, generator=rng, dtype=dtype)
        for s, shape in zip(scales, shapes)
    ]


def gesture(model: HandModel, name: str):
    rotations = torch.cat([torch.eye(3)[None], angles_to_rotations(model, GESTURES[name])])
    return model.with_shape().with_rotations(rotations)


def angles_of(**degrees: float) -> torch.Tensor:
    angles = torch.zeros(22)
    for name, value in degrees.items():
        angles[ANGLE_NAMES.index(name)] = np.deg2rad(value)
    return angles


def posed_by(model: HandModel, **degrees: float) -> torch.Tensor:
    """(21, 3) joints of the mean hand with these angles."""
    local = angles_to_rotations(model, angles_of(**degrees))
    return model.with_shape().with_rotations(torch.cat([torch.eye(3)[None], local])).joints


# --- the shipped model ---------------------------------------------------------------------------


def test_is_a_right_hand_of_adult_size(model):
    assert model.side == "right"
    joints = model.with_shape().with_pose(torch.zeros(3), torch.zeros(15, 3)).joints
    named = dict(zip(JOINT_NAMES, joints))
    assert torch.equal(named["wrist"], torch.zeros(3))
    assert all(named[f"{finger}_tip"][0] < -0.12 for finger in ("index", "middle", "ring"))
    assert named["index_mcp"][2] > named["little_mcp"][2]
    # With the fingers along -x and the thumb towards +z, +y is the back of a right hand: the palm
    # mask and the nails say which side that is.
    normals = vertex_normals(model)
    assert normals[model.extras["palm"] > 0.8, 1].max() < 0
    fingers = (model.extras["nail"] > 0.8) & (model.part_labels < 13)
    assert normals[fingers, 1].mean() > 0.8
    assert 0.085 < named["middle_mcp"].norm() < 0.100
    assert named["middle_tip"].norm() == pytest.approx(0.187, abs=0.001)


def vertex_normals(model: HandModel) -> torch.Tensor:
    a, b, c = model.v_template[model.faces].unbind(1)
    face = torch.linalg.cross(b - a, c - a)
    normals = torch.zeros_like(model.v_template)
    for corner in range(3):
        normals.index_add_(0, model.faces[:, corner], face)
    return torch.nn.functional.normalize(normals, dim=-1)


@pytest.mark.parametrize("side", SIDES)
def test_faces_look_outwards(side):
    hand = HandModel.load(side=side)
    a, b, c = hand.v_template[hand.faces].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert 150e-6 < volume < 500e-6  # cubic metres; negative when the winding is inside out


def test_weights_sum_to_one_and_wrist_stays_at_origin(model):
    assert model.weights.min() >= 0
    torch.testing.assert_close(model.weights.sum(1), torch.ones(model.num_vertices))
    assert model.J_template[0].abs().max() == 0 and model.J_shapedirs[0].abs().max() == 0
    assert set(model.part_labels.tolist()) == set(range(16))


def test_tips_are_the_extremes_of_the_distal_bones(model):
    for tip, distal in zip(model.tips.tolist(), (15, 3, 6, 12, 9)):
        assert model.part_labels[tip] == distal
        bone = model.J_template[distal] - model.J_template[distal - 1]
        own = model.weights[:, distal] > 0.6
        along = model.v_template @ bone
        # The thumb's tip is chosen before its last joint is straightened.
        assert along[tip] >= along[own].max() - 0.004 * bone.norm()


def test_axes_are_proper_frames_square_to_straight_bones(model):
    eye = torch.eye(3).expand(16, 3, 3)
    torch.testing.assert_close(model.axes @ model.axes.mT, eye, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(model.axes), torch.ones(16))
    bone = model.J_template[2] - model.J_template[1]
    assert (model.axes[1, 0] @ bone).abs() < 1e-6


def test_larger_first_beta_is_a_hand_of_another_size(model):
    lengths = [
        model.with_shape(torch.tensor([b] + [0.0] * 9)).joints[4].norm().item() for b in (-2, 0, 2)
    ]
    assert sorted(lengths) in (lengths, lengths[::-1])
    assert abs(lengths[2] - lengths[0]) > 0.02


# --- kinematics ----------------------------------------------------------------------------------


def test_rest_pose_is_the_template(model):
    posed = model.with_shape().with_pose(torch.zeros(3), torch.zeros(15, 3))
    torch.testing.assert_close(posed.mesh(), model.v_template, atol=1e-6, rtol=0)
    torch.testing.assert_close(posed.joints[list(TIPS)], model.v_template[model.tips])
    torch.testing.assert_close(posed.joints[5:8], model.J_template[1:4])
    torch.testing.assert_close(posed.transforms[:, :3, 3], model.J_template)


def test_index_pip_at_90_degrees_by_hand(model):
    rest = posed_by(model)
    bent = posed_by(model, index_pip_flexion=90)
    pip, dip = rest[6], rest[7]
    hinge = model.axes[2, 0]
    bone = dip - pip
    # Square to its hinge, the bone after a right angle is hinge x bone.
    expected = pip + torch.linalg.cross(hinge, bone) + hinge * (hinge @ bone)
    torch.testing.assert_close(bent[7], expected, atol=1e-6, rtol=0)
    assert (bent[7] - pip).norm() == pytest.approx(bone.norm().item(), abs=1e-6)
    assert bent[7, 1] < pip[1] - 0.9 * bone.norm()  # into the palm
    torch.testing.assert_close(bent[:7], rest[:7])
    torch.testing.assert_close(bent[9:], rest[9:])


def test_chain_of_three_turns_by_hand(model):
    rest = posed_by(model)
    bent = posed_by(model, middle_mcp_flexion=30, middle_pip_flexion=40, middle_dip_flexion=20)
    rotations = angles_to_rotations(
        model, angles_of(middle_mcp_flexion=30, middle_pip_flexion=40, middle_dip_flexion=20)
    )[3:6]
    point, turn = rest[9], torch.eye(3)
    for joint, rotation in zip((10, 11, 12), rotations):
        turn = turn @ rotation
        point = point + turn @ (rest[joint] - rest[joint - 1])
        torch.testing.assert_close(bent[joint], point, atol=2e-5, rtol=0)


def test_moves_rigidly_with_the_wrist(model):
    betas, orient, pose, transl = random_pose()
    shaped = model.with_shape(betas)
    still = shaped.with_pose(torch.zeros(3), pose)
    moved = shaped.with_pose(orient, pose, transl)
    turn, wrist = axis_angle_to_matrix(orient), shaped.joints[0]
    for a, b in ((still.joints, moved.joints), (still.mesh(), moved.mesh())):
        torch.testing.assert_close((a - wrist) @ turn.T + wrist + transl, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
def test_batches_equal_single_hands(model, lead):
    betas, orient, pose, transl = random_pose(*lead)
    posed = model.with_shape(betas).with_pose(orient, pose, transl)
    assert posed.joints.shape == (*lead, 21, 3)
    assert posed.transforms.shape == (*lead, 16, 4, 4)
    assert posed.mesh().shape == (*lead, model.num_vertices, 3)
    last = tuple(n - 1 for n in lead)
    one = model.with_shape(betas[last]).with_pose(orient[last], pose[last], transl[last])
    torch.testing.assert_close(posed.joints[last], one.joints, atol=1e-6, rtol=0)
    torch.testing.assert_close(posed.mesh()[last], one.mesh(), atol=1e-6, rtol=0)


def test_one_shape_serves_many_poses(model):
    betas, orient, pose, _ = random_pose(4)
    posed = model.with_shape(betas[0]).with_pose(orient, pose)
    assert posed.joints.shape == (4, 21, 3) and posed.mesh().shape[0] == 4


def test_tips_lie_on_the_mesh(model):
    betas, orient, pose, transl = random_pose(2)
    posed = model.with_shape(betas).with_pose(orient, pose, transl)
    tips = posed.joints[:, list(TIPS)]
    torch.testing.assert_close(tips, posed.mesh()[:, model.tips], atol=1e-6, rtol=0)


def test_left_is_the_exact_mirror(model):
    left = HandModel.load(side="left")
    assert left.side == "left"
    betas, orient, pose, transl = random_pose(3)
    a = model.with_shape(betas).with_pose(orient, pose, transl)
    b = left.with_shape(betas).with_pose(
        mirror_axis_angle(orient), mirror_axis_angle(pose), transl * MIRROR
    )
    torch.testing.assert_close(a.joints * MIRROR, b.joints, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.mesh() * MIRROR, b.mesh(), atol=1e-6, rtol=0)
    for name in GESTURES:
        torch.testing.assert_close(
            gesture(model, name).joints * MIRROR, gesture(left, name).joints, atol=1e-6, rtol=0
        )
    again = left.mirrored()
    torch.testing.assert_close(again.v_template, model.v_template)
    assert torch.equal(again.faces, model.faces)


def test_gradients_reach_pose_and_shape(model):
    double = model.to(dtype=torch.float64)
    inputs = random_pose(2, dtype=torch.float64)
    inputs[2][0] = 0.0  # the flat hand must not be singular

    def joints(betas, orient, pose, transl):
        return double.with_shape(betas).with_pose(orient, pose, transl).joints

    assert torch.autograd.gradcheck(joints, [x.requires_grad_() for x in inputs], atol=1e-6)


def test_to_casts_every_float_and_keeps_indices(model):
    double = model.to("cpu", torch.float64)
    assert double.weights.dtype == double.extras["J_mano"].dtype == torch.float64
    assert double.faces.dtype == double.extras["wrist_loop"].dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.with_shape(torch.zeros(9)), r"\(9,\).*10"),
        (lambda m: m.with_shape().with_pose(torch.zeros(3), torch.zeros(45)), r"\(45,\).*15, 3"),
        (lambda m: m.with_shape().with_rotations(torch.zeros(15, 3, 3)), "16, 3, 3"),
        (lambda m: angles_to_rotations(m, torch.zeros(21)), "22"),
        (lambda m: rotations_to_angles(m, torch.zeros(16, 3, 3)), "15, 3, 3"),
        (lambda m: HandModel.load(side="both"), "left"),
        (lambda m: HandModel.load("no/such/file.pkl"), "no/such/file.pkl"),
    ],
)
def test_bad_input_is_refused(model, call, words):
    with pytest.raises(HandPerceptionError, match=words):
        call(model)


# --- angles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_angles_round_trip(side):
    hand = HandModel.load(side=side)
    low, high = ANGLE_LIMITS.unbind(-1)
    angles = low + (high - low) * torch.rand(2, 50, 22, generator=torch.Generator().manual_seed(1))
    angles[0, 0] = angles_of(index_pip_flexion=100, little_pip_flexion=110, ring_mcp_flexion=90)
    rotations = angles_to_rotations(hand, angles)
    assert rotations.shape == (2, 50, 15, 3, 3)
    torch.testing.assert_close(rotations_to_angles(hand, rotations), angles, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", SIDES)
def test_positive_flexion_closes_every_finger(side):
    hand = HandModel.load(side=side)
    rest = posed_by(hand)
    palm = rest[[0, 5, 17]].mean(0) - torch.tensor([0.0, 0.03, 0.0])
    for finger, tip in (("index", 8), ("middle", 12), ("ring", 16), ("little", 20)):
        for joint in ("mcp", "pip", "dip"):
            bent = posed_by(hand, **{f"{finger}_{joint}_flexion": 40})
            assert (bent[tip] - palm).norm() < (rest[tip] - palm).norm() - 0.002
            assert bent[tip, 1] < rest[tip, 1]
    for joint in ("cmc", "mcp", "ip"):
        bent = posed_by(hand, **{f"thumb_{joint}_flexion": 30})
        assert (bent[4] - bent[17]).norm() < (rest[4] - rest[17]).norm() - 0.002


@pytest.mark.parametrize("side", SIDES)
def test_positive_abduction_spreads(side):
    hand = HandModel.load(side=side)
    rest = posed_by(hand)
    for finger, tip in (("index", 8), ("ring", 16), ("little", 20)):
        spread = posed_by(hand, **{f"{finger}_mcp_abduction": 15})
        assert (spread[tip] - rest[12]).norm() > (rest[tip] - rest[12]).norm() + 0.005
    middle = posed_by(hand, middle_mcp_abduction=15)
    assert middle[12, 2] > rest[12, 2] + 0.01  # towards the thumb
    thumb = posed_by(hand, thumb_cmc_abduction=20)
    assert thumb[4, 1] < rest[4, 1] - 0.01  # away from the palm


def test_limits_are_sane_and_clamp():
    assert ANGLE_LIMITS.shape == (22, 2)
    assert (ANGLE_LIMITS[:, 0] < 0).all() and (ANGLE_LIMITS[:, 1] > 0).all()
    assert ANGLE_LIMITS.abs().max() <= np.deg2rad(110) + 1e-6
    pip = ANGLE_NAMES.index("ring_pip_flexion")
    assert clamp_angles(torch.full((3, 22), 9.0))[1, pip] == ANGLE_LIMITS[pip, 1]
    for angles in GESTURES.values():
        torch.testing.assert_close(clamp_angles(angles), angles)


# --- gestures ------------------------------------------------------------------------------------


def test_fist_brings_the_tips_to_the_palm_and_the_thumb_over_the_fingers(model):
    posed = gesture(model, "fist")
    joints, mesh = posed.joints, posed.mesh()
    palm_skin = mesh[(model.part_labels == 0) & (model.extras["palm"] > 0.5)]
    for tip in (8, 12, 16, 20):
        assert torch.cdist(joints[None, tip], palm_skin).min() < 0.020
    middles = [(joints[k] + joints[k + 1]) / 2 for k in (6, 10)]
    assert min((joints[4] - m).norm() for m in middles) < 0.025
    # Outside of the curled fingers, not under them.
    assert joints[4, 1] < min(m[1] for m in middles) - 0.008


def test_pinch_brings_thumb_and_index_together(model):
    joints = gesture(model, "pinch").joints
    assert (joints[4] - joints[8]).norm() < 0.015


def test_gestures_keep_the_skin_in_one_piece(model):
    edges = torch.cat([model.faces[:, [0, 1]], model.faces[:, [1, 2]], model.faces[:, [2, 0]]])
    rest = (model.v_template[edges[:, 0]] - model.v_template[edges[:, 1]]).norm(dim=-1)
    for name in GESTURES:
        mesh = gesture(model, name).mesh()
        length = (mesh[edges[:, 0]] - mesh[edges[:, 1]]).norm(dim=-1)
        assert (length - rest).max() < 0.012


# --- MANO files ----------------------------------------------------------------------------------


def mano_content(seed: int = 0) -> dict:
    """What a MANO file holds, with numbers of our own: the free hand's skeleton, random skin."""
    rng = np.random.default_rng(seed)
    free = HandModel.load()
    joints = free.J_template.double().numpy() + [0.09, 0.006, 0.006]
    owner = np.arange(778) % 16
    template = joints[owner] + rng.normal(0, 0.003, (778, 3))
    tips = free.v_template[free.tips].double().numpy() + [0.09, 0.006, 0.006]
    for side in SIDES:
        template[list(TIP_VERTICES["manopth"][side])] = tips
    regressor = np.zeros((16, 778))
    regressor[owner, np.arange(778)] = 1.0
    regressor /= regressor.sum(1, keepdims=True)
    weights = rng.random((778, 16)) ** 8
    parents = np.array([[4294967295, *MANO_PARENTS[1:]], range(16)])
    return {
        "v_template": template,
        "shapedirs": rng.normal(0, 0.001, (778, 3, 10)),
        "posedirs": rng.normal(0, 0.001, (778, 3, 135)),
        "J_regressor": regressor,
        "weights": weights / weights.sum(1, keepdims=True),
        "f": rng.integers(0, 778, (1538, 3)).astype(np.uint32),
        "hands_mean": rng.normal(0, 0.2, 45),
        "kintree_table": parents,
        "bs_style": "lbs",
    }


def write_mano(path: Path, content: dict) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.fixture
def chumpy_file(tmp_path, monkeypatch) -> tuple[Path, dict]:
    """A MANO-like pickle of chumpy and scipy objects, as the published file has them."""
    chumpy, ch = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    ch.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    content = mano_content()
    wrapped = ch.Ch()
    wrapped.x = content["shapedirs"]
    pickled = content | {
        "shapedirs": wrapped,
        "J_regressor": sparse.csc_matrix(content["J_regressor"]),
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "chumpy", chumpy)
        patch.setitem(sys.modules, "chumpy.ch", ch)
        path = write_mano(tmp_path / "MANO_RIGHT.pkl", pickled)
    assert "chumpy" not in sys.modules
    return path, content


def test_mano_pickle_of_chumpy_and_scipy_objects(chumpy_file):
    path, content = chumpy_file
    hand = HandModel.load(path)
    assert hand.side == "right" and hand.num_vertices == 778 and hand.hands_mean is None
    expected = {
        "v_template": content["v_template"],
        "shapedirs": content["shapedirs"],
        "J_template": content["J_regressor"] @ content["v_template"],
        "J_shapedirs": np.einsum("jv,vcb->jcb", content["J_regressor"], content["shapedirs"]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(hand, name), value, atol=1e-6)
    assert hand.tips.tolist() == [745, 317, 444, 556, 673]


def test_mano_skinning_matches_the_definition(tmp_path):
    content = mano_content()
    hand = HandModel.load(write_mano(tmp_path / "MANO_RIGHT.pkl", content)).to(dtype=torch.float64)
    betas, orient, pose, transl = random_pose(seed=3, dtype=torch.float64)
    posed = hand.with_shape(betas).with_pose(orient, pose, transl)

    # Eq. 1-4 of SMPL (Loper et al., 2015), joint by joint.
    rotations = axis_angle_to_matrix(torch.cat([orient[None], pose])).numpy()
    shaped = content["v_template"] + content["shapedirs"] @ betas.numpy()
    rest = content["J_regressor"] @ shaped
    shaped = shaped + content["posedirs"] @ (rotations[1:] - np.eye(3)).ravel()
    transforms = []
    for k, parent in enumerate(MANO_PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[k]
        local[:3, 3] = rest[k] - (rest[parent] if parent >= 0 else 0)
        transforms.append(transforms[parent] @ local if parent >= 0 else local)
    relative = np.stack(transforms)
    relative[:, :3, 3] -= np.einsum("kij,kj->ki", relative[:, :3, :3], rest)
    blended = np.einsum("vk,kij->vij", content["weights"], relative)
    expected = np.einsum("vij,vj->vi", blended[:, :3, :3], shaped) + blended[:, :3, 3]
    expected = expected + transl.numpy()
    np.testing.assert_allclose(posed.mesh(), expected, atol=2e-6)
    np.testing.assert_allclose(posed.joints[list(TIPS)], expected[hand.tips], atol=2e-6)

    other = hand.mirrored().with_shape(betas)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    mirrored = other.with_pose(mirror_axis_angle(orient), mirror_axis_angle(pose), transl * mirror)
    torch.testing.assert_close(mirrored.mesh(), posed.mesh() * mirror, atol=1e-6, rtol=0)


def test_mano_mean_pose(tmp_path):
    content = mano_content()
    path = write_mano(tmp_path / "MANO_RIGHT.pkl", content)
    flat, curled = HandModel.load(path), HandModel.load(path, flat_hand_mean=False)
    mean = torch.tensor(content["hands_mean"], dtype=torch.float32).reshape(15, 3)
    a = flat.with_shape().with_pose(torch.zeros(3), mean).joints
    b = curled.with_shape().with_pose(torch.zeros(3), torch.zeros(15, 3)).joints
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_mano_folder_sides_and_the_left_shape_bug(tmp_path):
    right, left = mano_content(), mano_content()
    for name in ("v_template", "shapedirs"):
        mirror = np.array([-1.0, 1, 1])
        left[name] = left[name] * (mirror if name == "v_template" else mirror[:, None])
    left["f"] = left["f"][:, ::-1].copy()
    write_mano(tmp_path / "MANO_RIGHT.pkl", right)
    by_mirror = HandModel.load(tmp_path, side="left")
    for shapedirs in (left["shapedirs"], right["shapedirs"]):  # correct, and as published
        write_mano(tmp_path / "MANO_LEFT.pkl", left | {"shapedirs": shapedirs})
        from_file = HandModel.load(tmp_path, side="left")
        assert from_file.side == "left"
        for name in ("v_template", "shapedirs", "J_template", "faces", "axes"):
            torch.testing.assert_close(getattr(from_file, name), getattr(by_mirror, name))


def test_mano_npz_and_tip_conventions(tmp_path):
    content = {k: v for k, v in mano_content().items() if isinstance(v, np.ndarray)}
    np.savez(tmp_path / "MANO_RIGHT.npz", **content)
    hand = HandModel.load(tmp_path, tips="deformer")
    assert hand.tips.tolist() == [728, 353, 442, 576, 694]
    with pytest.raises(HandPerceptionError, match="manopth"):
        HandModel.load(tmp_path, tips="other")


def test_axes_from_the_skeleton_agree_with_the_free_model(model):
    axes = skeleton_axes(model.J_template.numpy(), model.v_template[model.tips].numpy())
    cosine = (torch.tensor(axes, dtype=torch.float32) * model.axes).sum(-1)[1:]
    assert cosine.min() > np.cos(np.deg2rad(25))


class Shell:
    def __reduce__(self):
        return os.system, ("touch owned",)


class Evaluated:
    def __reduce__(self):
        return eval, ("open('owned', 'w')",)


@pytest.mark.parametrize(("hostile", "name"), [(Shell(), "system"), (Evaluated(), "eval")])
def test_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, hostile, name):
    monkeypatch.chdir(tmp_path)
    path = write_mano(tmp_path / "MANO_RIGHT.pkl", mano_content() | {"bs_type": hostile})
    with pytest.raises(HandPerceptionError, match=name):
        HandModel.load(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("module", ["chumpy.os", "scipy.sparse.os"])
def test_attributes_of_foreign_modules_are_never_reached(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(f"c{module}\nsystem\n(S'touch owned'\ntR.".encode())
    with pytest.raises(HandPerceptionError, match="dictionary"):
        HandModel.load(path)
    assert not (tmp_path / "owned").exists()


def test_truncated_file_is_refused(tmp_path):
    whole = pickle.dumps(mano_content(), protocol=2)
    path = tmp_path / "MANO_RIGHT.pkl"
    for length in (0, 1, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(HandPerceptionError, match="damaged"):
            HandModel.load(path)
    for suffix in (".npz", ".safetensors"):
        broken = tmp_path / f"hand_right{suffix}"
        broken.write_bytes(whole[:500])
        with pytest.raises(HandPerceptionError, match="damaged"):
            HandModel.load(broken)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapedirs": np.zeros((778, 3, 9))}, "shapedirs has shape"),
        ({"weights": np.full((778, 16), np.nan)}, "weights must hold finite"),
        ({"f": np.full((10, 3), 778)}, "f must hold"),
        ({"kintree_table": np.zeros((2, 16), int)}, "parents"),
        ({"posedirs": "none"}, "lacks posedirs"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, change, words):
    path = write_mano(tmp_path / "MANO_RIGHT.pkl", mano_content() | change)
    with pytest.raises(HandPerceptionError, match=words):
        HandModel.load(path)


def test_folder_without_mano_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(HandPerceptionError, match=r"MANO_RIGHT\.pkl"):
        HandModel.load(tmp_path)
    other = tmp_path / "hand.txt"
    other.write_text("no hand")
    with pytest.raises(HandPerceptionError, match=r"allowed are \.pkl"):
        HandModel.load(other)
