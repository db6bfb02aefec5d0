"""The Deformer: shapes, masks, causality, building blocks against references, files."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from hand_perception.fusion import FrameFeatures
from hand_perception.geometry import axis_angle_to_matrix, matrix_to_6d
from hand_perception.networks.attention import Attention, grid_encoding, sine_encoding, soft_argmax
from hand_perception.networks.deformer import (
    BackboneFeatures,
    Deformer,
    DeformerConfig,
    joint_confidence,
)
from hand_perception.networks.layers import LandmarkNetwork
from hand_perception.networks.resnet_fpn import ResNetFPN, roi_align
from hand_perception.types import HandPerceptionError

COMPACT = {"width": 64, "feedforward": 64, "hidden": (64,), "spatial_layers": 1}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Deformer.build(DeformerConfig.from_dict(COMPACT)).eval()
    with torch.no_grad():
        for head in (network.pose_head, network.joint_head, network.frame_head):
            head.out.weight.normal_(std=0.2)
    return network


def intrinsics(*lead):
    matrix = torch.tensor([[300.0, 0, 112], [0, 300, 112], [0, 0, 1]])
    return matrix.expand(*lead, 3, 3)


def window(batch, frames, target):
    return {
        "offsets_s": ((torch.arange(frames) - target) / 15.0).expand(batch, frames),
        "crop_rotation": torch.eye(3).expand(batch, frames, 3, 3),
        "valid": torch.ones(batch, frames, dtype=torch.bool),
        "target": torch.full((batch,), target),
    }


def seen(batch, frames, seed=0):
    g = torch.Generator().manual_seed(seed)
    return FrameFeatures(
        torch.randn(batch, frames, 64, generator=g),
        torch.rand(batch, frames, 21, 2, generator=g) * 224,
        intrinsics(batch, frames),
        torch.rand(batch, frames, generator=g),
        torch.rand(batch, frames, generator=g),
    )


def test_forward_shapes_and_wrist(network):
    torch.manual_seed(1)
    images = torch.rand(2, 3, 3, 224, 224)
    with torch.inference_mode():
        output = network(images, intrinsics(2, 3), **window(2, 3, 2))
    hand = output.prediction()
    shapes = {
        "joints_2d": (2, 21, 2),
        "joints_3d": (2, 21, 3),
        "joint_confidence": (2, 21),
        "presence": (2,),
        "right_score": (2,),
        "global_orient": (2, 3),
        "hand_pose": (2, 15, 3),
        "betas": (2, 10),
        "latent": (2, 64),
    }
    for name, shape in shapes.items():
        assert getattr(hand, name).shape == shape, name
        assert torch.isfinite(getattr(hand, name)).all(), name
    assert output.frame_pose.shape == (2, 3, 16, 6) and output.frame_betas.shape == (2, 3, 10)
    assert hand.joints_3d[:, 0].abs().max() == 0
    posed = network.hand_model.with_shape(hand.betas)
    joints = posed.with_pose(hand.global_orient, hand.hand_pose).joints
    torch.testing.assert_close(hand.joints_3d, joints - joints[:, :1], atol=1e-5, rtol=0)


def test_starts_from_the_landmark_networks_joints():
    network = Deformer.build(DeformerConfig.from_dict(COMPACT)).eval()
    torch.manual_seed(2)
    joints = 40 + 144 * torch.rand(1, 21, 3)
    given = BackboneFeatures(
        torch.rand(1, 192, 7, 7),
        torch.rand(1, 112, 14, 14),
        torch.rand(1, 1152),
        joints,
        torch.rand(1, 21, 3),
        torch.tensor([0.8]),
        torch.tensor([0.3]),
    )
    with torch.no_grad():
        frame = network.spatial(given, intrinsics(1))
    assert (frame.joints_2d - joints[..., :2]).abs().max() < 3
    assert frame.presence.item() == pytest.approx(0.8)
    assert frame.right_score.item() == pytest.approx(0.3)


def test_cached_features_give_the_same_as_images(network):
    torch.manual_seed(3)
    images = torch.rand(1, 2, 3, 224, 224)
    with torch.inference_mode():
        direct = network(images, intrinsics(1, 2), **window(1, 2, 1))
        features = network.backbone(images[0])
        cached = BackboneFeatures(*(x[None] for x in features))
        again = network(cached, intrinsics(1, 2), **window(1, 2, 1))
        reference = LandmarkNetwork.load()(images[0])
    torch.testing.assert_close(direct.joints_3d, again.joints_3d)
    torch.testing.assert_close(features.screen, reference.screen, atol=1e-2, rtol=0)


def test_masked_frames_have_no_influence(network):
    frames, given = seen(2, 5), window(2, 5, 3)
    given["valid"] = torch.tensor([[False, True, True, True, False]]).expand(2, 5)
    with torch.no_grad():
        plain = network.temporal(frames, **given)
        poisoned = FrameFeatures(*(x.clone() for x in vars(frames).values()))
        poisoned.latent[:, [0, 4]] = math.nan
        poisoned.joints_2d[:, [0, 4]] = 1e6
        given["offsets_s"] = given["offsets_s"] + torch.tensor([-3.0, 0, 0, 0, 5.0])
        given["crop_rotation"] = given["crop_rotation"].clone()
        given["crop_rotation"][:, 0] = axis_angle_to_matrix(torch.tensor([0.0, 0.0, 2.0]))
        other = network.temporal(poisoned, **given)
    for name in ("joints_3d", "joints_2d", "betas", "rotations", "joint_confidence"):
        torch.testing.assert_close(getattr(plain, name), getattr(other, name))


def test_visible_frames_and_times_do_have_influence(network):
    frames, given = seen(1, 3), window(1, 3, 2)
    with torch.no_grad():
        plain = network.temporal(frames, **given).joints_3d
        changed = FrameFeatures(*(x.clone() for x in vars(frames).values()))
        changed.latent[:, 0] *= -1
        assert (network.temporal(changed, **given).joints_3d - plain).abs().max() > 1e-4
        later = given | {"offsets_s": given["offsets_s"] * 2}
        assert (network.temporal(frames, **later).joints_3d - plain).abs().max() > 1e-4


def test_windows_of_a_batch_are_independent(network):
    frames, given = seen(2, 4), window(2, 4, 3)
    with torch.no_grad():
        both = network.temporal(frames, **given).joints_3d
        one = network.temporal(frames[1:], **window(1, 4, 3)).joints_3d
    torch.testing.assert_close(both[1:], one, atol=1e-6, rtol=1e-5)


def test_fusion_of_one_frame_is_that_frame(network):
    with torch.no_grad():
        output = network.temporal(seen(2, 1), **window(2, 1, 0))
        centre = network.temporal(seen(2, 4), **window(2, 4, 3), mode="centre")
    columns = matrix_to_6d(output.rotations)
    direction = output.pose[:, 0, :, :3]
    torch.testing.assert_close(columns[..., :3], torch.nn.functional.normalize(direction, dim=-1))
    direction = torch.nn.functional.normalize(centre.pose[:, 3, :, :3], dim=-1)
    torch.testing.assert_close(matrix_to_6d(centre.rotations)[..., :3], direction)


def test_attention_matches_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    linears = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([x.weight for x in linears]))
        theirs.in_proj_bias.copy_(torch.cat([x.bias for x in linears]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    valid = torch.tensor([[True, True, False, True, True], [True] * 5])
    expected, _ = theirs(query, key, key, key_padding_mask=~valid)
    torch.testing.assert_close(ours(query, key, key, valid), expected)


def test_soft_argmax_and_encodings_by_hand():
    logits = torch.full((1, 1, 4, 4), -100.0)
    logits[0, 0, 1, 2] = logits[0, 0, 1, 3] = 0.0
    place, probability = soft_argmax(logits)
    torch.testing.assert_close(place, torch.tensor([[[0.75, 0.375]]]))
    assert probability.sum().item() == pytest.approx(1)
    encoding = sine_encoding(torch.tensor([0.0, math.pi / 2]), 4)
    expected = torch.tensor([[0.0, 0, 1, 1], [1.0, math.sin(math.pi / 200), 0, 1]])
    torch.testing.assert_close(encoding, expected, atol=2e-4, rtol=0)
    grid = grid_encoding(3, 8)
    assert torch.equal(grid[0, :4], grid[2, :4]) and not torch.equal(grid[0, 4:], grid[2, 4:])
    assert torch.equal(grid[1, 4:], grid[7, 4:])


def test_confidence_is_the_rayleigh_distribution():
    joints = torch.zeros(1, 21, 2)
    joints[0, 1] = torch.tensor([0.5, 0.2])  # extent 0.5: radius 0.05
    log_var = torch.full((1, 21), 2 * math.log(0.05))
    got = joint_confidence(joints, log_var, torch.tensor(1.0))
    torch.testing.assert_close(got, torch.full((1, 21), 1 - math.exp(-0.5)))
    assert (joint_confidence(joints, log_var, torch.tensor(4.0)) < got).all()


def test_roi_align_by_hand():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # value = column; cell centre at column + 0.5
    whole = roi_align(ramp, torch.tensor([[0.0, 0.0, 32.0, 32.0]]), 4, 0.25)
    torch.testing.assert_close(whole[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    part = roi_align(ramp, torch.tensor([[8.0, 4.0, 16.0, 12.0]]), 2, 0.25)
    torch.testing.assert_close(part[0, 0, 1], torch.tensor([2.0, 3.0]))


def test_resnet50_pyramid():
    network = ResNetFPN().eval()
    backbone = [n for n, _ in network.named_parameters() if not n.startswith(("lateral", "smooth"))]
    sizes = dict(network.named_parameters())
    # torchvision's resnet50 without its classifier has 23,508,032 parameters.
    assert sum(sizes[n].numel() for n in backbone) == 23_508_032
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 256, 16, 24)
    with pytest.raises(HandPerceptionError, match="four"):
        ResNetFPN((1, 2))


def test_full_resnet50_configuration_runs():
    network = Deformer.build(
        DeformerConfig(
            backbone="resnet50_fpn", image_size=128, grid=32, width=256, feedforward=256,
            spatial_layers=3, hidden=(1024, 512), dropout=0.1,
        )
    ).eval()  # fmt: skip
    with torch.inference_mode():
        output = network(torch.rand(1, 2, 3, 128, 128), intrinsics(1, 2), **window(1, 2, 1))
    assert output.frame_joints_2d.shape == (1, 2, 21, 2)
    assert torch.isfinite(output.joints_3d).all()


def test_files_round_trip_and_name_what_does_not_fit(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    own = {n: t for n, t in network.state_dict().items() if not n.startswith("backbone.")}
    save_file(own, path, network.metadata())
    loaded = Deformer.load(path)
    given, frames = window(1, 3, 2), seen(1, 3)
    with torch.no_grad():
        expected = network.temporal(frames, **given).joints_3d
        torch.testing.assert_close(loaded.temporal(frames, **given).joints_3d, expected)
    weights = load_file(path)
    short = {n: t for n, t in weights.items() if n != "query"}
    save_file(short, path, network.metadata())
    with pytest.raises(HandPerceptionError, match=r"missing.*query"):
        Deformer.load(path)
    other = json.loads(network.metadata()["network"]) | {"width": 32}
    save_file(weights, path, {"network": json.dumps(other)})
    with pytest.raises(HandPerceptionError, match="instead of"):
        Deformer.load(path)
    save_file(weights, path)
    with pytest.raises(HandPerceptionError, match="no network configuration"):
        Deformer.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(HandPerceptionError, match="no safetensors"):
        Deformer.load(path)
    with pytest.raises(HandPerceptionError, match="do not exist"):
        Deformer.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"witdh": 3}, "witdh"),
        ({"backbone": "vgg"}, "landmark"),
        ({"grid": 14}, "grid 7"),
        ({"width": 36}, "multiple"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    with pytest.raises(HandPerceptionError, match=message):
        DeformerConfig.from_dict(values)
