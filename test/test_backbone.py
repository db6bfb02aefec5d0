"""The converted networks answer as the originals do, and bad weight files are refused."""

import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hand_perception.evaluation.figures import to_knuckles
from hand_perception.networks import METHODS, load_network
from hand_perception.networks.landmark_fit import LandmarkFit, joint_confidence, to_joint_centers
from hand_perception.networks.layers import (
    CROP_SIZE,
    PALM_SIZE,
    LandmarkNetwork,
    LandmarkTrunk,
    PalmNetwork,
    SameConv2d,
    load_weights,
)
from hand_perception.types import HandPerceptionError

HERE = Path(__file__).parent
from reference_pictures import PHOTOS, reference_picture

SHARED_DATA = HERE.parents[1] / "shared" / "data"


@pytest.fixture(scope="module")
def landmark_network():
    return LandmarkNetwork.load()


def picture_and_reference(name):
    """The pictures for both networks, as tensors, and the original's answers."""
    if name in PHOTOS and not (SHARED_DATA / PHOTOS[name][0]).is_file():
        pytest.skip(f"the photo {PHOTOS[name][0]} is not in ../shared/data")
    pictures = [reference_picture(name, size, SHARED_DATA) for size in (PALM_SIZE, CROP_SIZE)]
    reference = np.load(HERE / "data" / f"mediapipe_{name}.npz")
    if [zlib.crc32(p.tobytes()) for p in pictures] != reference["checksums"].tolist():
        if name in PHOTOS:
            pytest.skip("this machine decodes the photo into other pixels")
        pytest.fail("the generated picture is not the one that the reference was made for")
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in pictures]
    return *tensors, reference


@pytest.mark.parametrize("name", ["generated", *PHOTOS])
def test_palm_network_equals_the_original(name):
    """To 1e-3 pixels of the 192 px input and 1e-3 in the logit."""
    picture, _, reference = picture_and_reference(name)
    with torch.inference_mode():
        logits, geometry = PalmNetwork.load()(picture)
    assert logits.shape == (1, 2016) and geometry.shape == (1, 2016, 18)
    assert np.abs(logits[0, ::5].numpy() - reference["logits"]).max() < 1e-3
    assert np.abs(geometry[0, ::5].numpy() - reference["geometry"]).max() < 1e-3


@pytest.mark.parametrize("name", ["generated", *PHOTOS])
def test_landmark_network_equals_the_original(name, landmark_network):
    """To 1e-3 crop pixels, 1e-3 in the probabilities, and a micrometre in the world joints."""
    _, picture, reference = picture_and_reference(name)
    with torch.inference_mode():
        landmarks = landmark_network(picture)
    assert np.abs(landmarks.screen[0].numpy() - reference["screen"]).max() < 1e-3
    assert abs(landmarks.presence.item() - reference["presence"]) < 1e-3
    assert abs(landmarks.handedness.item() - reference["handedness"]) < 1e-3
    assert np.abs(landmarks.world[0].numpy() - reference["world"]).max() < 1e-6


def test_trunk_maps(landmark_network):
    with torch.inference_mode():
        maps = landmark_network.trunk(torch.rand(2, 3, 224, 224))
        shapes = [tuple(m.shape[1:]) for m in maps]
        landmarks = landmark_network.heads(maps)
    assert shapes == [(24, 56, 56), (40, 28, 28), (112, 14, 14), (192, 7, 7), (1152, 7, 7)]
    assert landmarks.screen.shape == landmarks.world.shape == (2, 21, 3)
    assert landmarks.presence.shape == landmarks.handedness.shape == (2,)


def test_trunk_can_be_trained():
    trunk = LandmarkTrunk().train()
    trunk(torch.rand(1, 3, 224, 224)).top.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trunk.parameters())


def test_a_batch_gives_what_its_members_give(landmark_network):
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = landmark_network(images).screen
        alone = torch.cat([landmark_network(image[None]).screen for image in images])
    assert (together - alone).abs().max() < 1e-3


@pytest.mark.parametrize(("kernel", "before", "after"), [(3, 0, 1), (5, 1, 2)])
def test_same_padding_at_stride_2(kernel, before, after):
    """TensorFlow: total = kernel - stride for even sizes, the smaller half first."""
    conv = SameConv2d(1, 1, kernel, stride=2, bias=False)
    image = torch.rand(1, 1, 8, 8)
    padded = torch.zeros(1, 1, 8 + before + after, 8 + before + after)
    padded[:, :, before : before + 8, before : before + 8] = image
    expected = F.conv2d(padded, conv.weight, stride=2)
    assert torch.equal(conv(image), expected)
    assert expected.shape[-2:] == (4, 4)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)


def good_weights():
    return {"linear.weight": torch.ones(2, 3).half(), "linear.bias": torch.zeros(2).half()}


def test_weights_load_as_float32(tmp_path):
    save_file(good_weights(), tmp_path / "good.safetensors")
    module = Tiny()
    load_weights(module, tmp_path / "good.safetensors")
    assert module.linear.weight.dtype == torch.float32
    assert torch.equal(module.linear.weight, torch.ones(2, 3))


def changed(**changes):
    return {**good_weights(), **{k.replace("_", "."): v for k, v in changes.items()}}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"linear.weight": torch.ones(2, 3)}, "missing"),
        (changed(other_weight=torch.ones(1)), "unknown"),
        (changed(linear_bias=torch.ones(3)), r"shape \(3,\)"),
        (changed(linear_bias=torch.tensor([0.0, np.nan])), "finite"),
        (changed(linear_bias=torch.tensor([0.0, np.inf])), "finite"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, weights, message):
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(HandPerceptionError, match=message):
        load_weights(Tiny(), tmp_path / "bad.safetensors")


class Trap:
    fired = False

    def __reduce__(self):
        return (setattr, (Trap, "fired", True))


def test_broken_files_are_refused_and_nothing_runs(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(HandPerceptionError, match="do not exist"):
        load_weights(Tiny(), path)
    save_file(good_weights(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(HandPerceptionError, match="complete safetensors"):
        load_weights(Tiny(), path)
    for content in (b"", pickle.dumps(Trap())):
        path.write_bytes(content)
        with pytest.raises(HandPerceptionError, match="complete safetensors"):
            load_weights(Tiny(), path)
    assert not Trap.fired


def test_shipped_weights_are_half_precision():
    models = HERE.parent / "models"
    for file in ("palm/palm_detection.safetensors", "landmarks/hand_landmark.safetensors"):
        assert {t.dtype for t in load_file(models / file).values()} == {torch.float16}


def test_landmark_fit_prediction():
    network = load_network("landmark_fit", "cpu")
    assert isinstance(network, LandmarkFit) and not network.training
    K = torch.tensor([[400.0, 0, 112], [0, 400, 112], [0, 0, 1]]).expand(2, 3, 3)
    with torch.inference_mode():
        prediction = network(torch.rand(2, 3, 224, 224), K)
    assert prediction.joints_2d.shape == (2, 21, 2)
    assert torch.equal(prediction.joints_3d[:, 0], torch.zeros(2, 3))
    assert prediction.joint_confidence.min() >= 0 and prediction.joint_confidence.max() <= 1
    assert prediction.hand_pose is None and prediction.global_orient is None


def test_joint_confidence():
    """2D that the 3D explains is trusted as much as presence says; an outlier is not, nor is
    a joint outside of the crop."""
    joints_3d = torch.rand(1, 21, 3, generator=torch.Generator().manual_seed(1)) * 0.1
    placed = joints_3d + torch.tensor([-0.05, -0.05, 0.4])
    K = torch.tensor([[[400.0, 0, 112], [0, 400, 112], [0, 0, 1]]])
    joints_2d = placed[..., :2] / placed[..., 2:] * 400 + 112
    presence = torch.tensor([0.9])
    confidence = joint_confidence(joints_2d, joints_3d, presence, K)
    assert torch.allclose(confidence, torch.full((1, 21), 0.9), atol=1e-3)
    moved = joints_2d.clone()
    moved[0, 7, 0] += 25.0
    confidence = joint_confidence(moved, joints_3d, presence, K)
    assert confidence[0, 7] < 0.3 and confidence[0].argmin() == 7
    shifted = joints_2d + torch.tensor([130.0, 0.0])
    outside = shifted[0, :, 0] > 224 + 8
    confidence = joint_confidence(shifted, joints_3d, presence, K)
    assert outside.any() and (confidence[0, outside] == 0).all()


def test_unknown_method_and_device():
    with pytest.raises(HandPerceptionError, match="known are .*landmark_fit"):
        load_network("magic")
    for device in ("tpu", "cuda:", "cuda:x", "cpu;"):
        with pytest.raises(HandPerceptionError, match="allowed are auto, cpu, cuda"):
            load_network("landmark_fit", device)
    with pytest.raises(HandPerceptionError, match="do not exist"):
        load_network("landmark_fit", "cpu", "nowhere")
    assert "landmark_fit" in METHODS


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there():
    with pytest.raises(HandPerceptionError, match="not there"):
        load_network("landmark_fit", "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")
def test_cuda_equals_cpu():
    images = torch.rand(2, 3, 224, 224)
    K = torch.tensor([[400.0, 0, 112], [0, 400, 112], [0, 0, 1]]).expand(2, 3, 3)
    with torch.inference_mode():
        here = load_network("landmark_fit", "cpu")(images, K).joints_2d
        there = load_network("landmark_fit", "cuda")(images.cuda(), K.cuda()).joints_2d.cpu()
    assert (here - there).abs().max() < 0.5


def test_knuckles_move_to_the_joint_centres_and_back() -> None:
    landmarks = torch.zeros(1, 21, 2)
    landmarks[0, 5], landmarks[0, 6] = torch.tensor([10.0, 0.0]), torch.tensor([10.0, -72.0])
    joints = to_joint_centers(landmarks)
    # The knuckle lies 28 % along a bone of 100: its centre is 28 further back.
    torch.testing.assert_close(joints[0, 5], torch.tensor([10.0, 28.0]))
    torch.testing.assert_close(joints[0, 6], landmarks[0, 6])
    torch.testing.assert_close(joints[0, [0, 4, 8]], landmarks[0, [0, 4, 8]])
    back = to_knuckles(joints[0].numpy())
    np.testing.assert_allclose(back, landmarks[0].numpy(), atol=1e-5)
