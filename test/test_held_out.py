"""Held-out errors by hand, by occlusion level, and the command on a small store."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hand_perception.evaluation import held_out
from hand_perception.evaluation.held_out import (
    Hands,
    by_level,
    evaluate,
    evaluate_network,
    sample_errors,
    samples_by_level,
)
from hand_perception.hand_model import HandModel
from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.training.data import write_store
from hand_perception.types import HandPerceptionError

COMPACT = {"width": 64, "feedforward": 64, "hidden": (64,), "spatial_layers": 1}
CLIPS, FRAMES = 3, 4


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = DeformerConfig.from_dict(COMPACT | {"temporal_layers": 1, "heads": 4})
    return Deformer.build(config).eval()


def clips(rng):
    """Hands at rest that turn a little, in pictures of noise."""
    model = HandModel.load()
    intrinsics = np.array([[400.0, 0, 112], [0, 400, 112], [0, 0, 1]])
    for clip in range(CLIPS):
        orient = torch.tensor([[1.2, -1.2, 1.2 + 0.05 * t] for t in range(FRAMES)])
        pose = torch.full((FRAMES, 15, 3), 0.1)
        joints = model.with_shape().with_pose(orient, pose).joints
        joints = (joints - joints.mean(1, keepdim=True)).numpy() + [0, 0, 0.5]
        pixels = joints @ intrinsics.T
        yield {
            "image": rng.integers(0, 255, (FRAMES, 224, 224, 3), np.uint8),
            "intrinsics": np.broadcast_to(intrinsics, (FRAMES, 3, 3)),
            "R_camera_crop": np.broadcast_to(np.eye(3), (FRAMES, 3, 3)),
            "time_s": np.arange(FRAMES) / 15,
            "joints_2d": pixels[..., :2] / pixels[..., 2:],
            "global_orient": orient.numpy(),
            "hand_pose": pose.numpy(),
            "betas": np.zeros(10),
            "occlusion": np.array([0.1, 0.3, 0.8, 1.0]),
            # The last clip has no 3D labels: it must not count.
            "weight_3d": np.full(FRAMES, 0.0 if clip == CLIPS - 1 else 1.0),
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("held") / "store"
    write_store(path, clips(np.random.default_rng(0)), CLIPS * FRAMES, network)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = network.state_dict().items()
    trained = {n: t.contiguous() for n, t in state if not n.startswith("backbone.")}
    save_file(trained, path, network.metadata())
    return path


def hands(rng, count=5, vertices=8):
    return Hands(
        rng.normal(0, 0.05, (count, 21, 3)),
        rng.uniform(0, 224, (count, 21, 2)),
        rng.normal(0, 0.05, (count, vertices, 3)),
    )


def test_the_truth_has_no_error():
    truth = hands(np.random.default_rng(0))
    for name, values in sample_errors(truth, truth).items():
        assert values.shape == (5,)
        np.testing.assert_allclose(values, 0, atol=1e-9, err_msg=name)


def test_errors_by_hand():
    truth = hands(np.random.default_rng(1), count=1)
    joints, joints_2d = truth.joints.copy(), truth.joints_2d.copy()
    joints[:, 8] += [0, 0.021, 0]  # One fingertip is 21 mm off.
    extent = (truth.joints_2d[0].max(0) - truth.joints_2d[0].min(0)).max()
    joints_2d[:, 3] += [extent, 0]
    joints_2d[:, 4] += [0, 50 * extent]  # Not marked: must not count.
    marked = np.ones((1, 21))
    marked[:, 4] = 0
    # The wrist is what the meshes have in common, so moving a whole hand is no error.
    moved = Hands(joints + 0.3, joints_2d, truth.vertices + [0.3, 0.3, 0.304])
    errors = sample_errors(moved, truth, marked)
    assert errors["mpjpe_mm"] == pytest.approx([1.0])
    assert errors["fingertips_mm"] == pytest.approx([21 / 5])
    assert errors["mpvpe_mm"] == pytest.approx([4.0])
    assert errors["error_2d_percent"] == pytest.approx([100 / 20])


def test_procrustes_forgives_turn_and_size():
    truth = hands(np.random.default_rng(2))
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    errors = sample_errors(Hands(1.3 * truth.joints @ turn.T, truth.joints_2d), truth)
    np.testing.assert_allclose(errors["pa_mpjpe_mm"], 0, atol=1e-9)
    assert errors["mpjpe_mm"].min() > 5
    assert "mpvpe_mm" not in errors


def test_levels_of_occlusion():
    occlusion = np.array([0.0, 0.2499, 0.25, 0.5, 0.75, 0.9, 1.0])
    assert samples_by_level(occlusion) == {
        "all": 7, "0-25": 2, "25-50": 1, "50-75": 1, "75-100": 3
    }  # fmt: skip
    means = by_level(np.array([1.0, 3, 5, math.nan, 7, 8, 9]), occlusion)
    assert means == {"all": 33 / 6, "0-25": 2.0, "25-50": 5.0, "50-75": None, "75-100": 8.0}


def test_a_network_that_knows_the_truth(network, store, monkeypatch):
    """With the labels put in for the network's poses and 2D joints, its errors vanish."""
    answer_of = held_out._forward

    def knows(network, batch):
        output = answer_of(network, batch)
        rows, target = torch.arange(len(batch["target"])), batch["target"]
        pose = torch.cat([batch["global_orient"][:, :, None], batch["hand_pose"]], 2)
        own = held_out.axis_angle_to_matrix(pose)[..., :2].mT.flatten(-2)
        values = vars(output) | {
            "carried": own[rows, target][:, None].expand_as(own),
            "betas": batch["betas"][rows, target],
            "joints_2d": batch["joints_2d"][rows, target],
        }
        return type(output)(**values)

    monkeypatch.setattr(held_out, "_forward", knows)
    answer = evaluate_network(network, [store])
    for mode in ("dynamic", "average", "centre"):
        for metric, cells in answer["methods"][mode].items():
            value = cells if metric == "acceleration_error_m_s2" else cells["all"]
            assert value == pytest.approx(0, abs=2e-2), (mode, metric)
    assert answer["methods"]["monocular"]["mpjpe_mm"]["all"] > 5


def test_all_methods_meet_the_same_frames(weights, store):
    answer = evaluate(weights, [store], causal=False)
    assert answer["weights"] == "tiny.safetensors"
    assert answer["sequences"] == CLIPS - 1 and not answer["causal"]
    assert answer["samples"] == {"all": 8, "0-25": 2, "25-50": 2, "50-75": 0, "75-100": 4}
    assert list(answer["methods"]) == [
        "landmarks", "landmark_fit", "monocular", "dynamic", "average", "centre"
    ]  # fmt: skip
    for name, errors in answer["methods"].items():
        assert ("mpvpe_mm" in errors) == (name != "landmarks")
        assert errors["mpjpe_mm"]["50-75"] is None
        cells = [errors["mpjpe_mm"][level] for level in ("0-25", "25-50", "75-100")]
        assert np.average(cells, weights=[2, 2, 4]) == pytest.approx(errors["mpjpe_mm"]["all"])
        assert errors["acceleration_error_m_s2"] > 0
    # Untrained confidences differ, and a causal window sees other frames.
    mean = {name: errors["mpjpe_mm"]["all"] for name, errors in answer["methods"].items()}
    assert mean["average"] != mean["centre"]
    causal = evaluate(weights, [store], modes=("average",))["methods"]
    assert list(causal) == ["landmarks", "landmark_fit", "monocular", "average"]
    assert causal["monocular"]["mpjpe_mm"]["all"] == pytest.approx(mean["monocular"])
    assert causal["average"]["mpjpe_mm"]["all"] != mean["average"]


def test_limit_draws_whole_sequences_by_seed(network, store):
    few = evaluate_network(network, [store], limit=3, seed=1)
    assert few["samples"]["all"] == FRAMES and few["sequences"] == 1
    assert few == evaluate_network(network, [store], limit=3, seed=1)


def test_command_writes_json_and_table(weights, store, tmp_path, monkeypatch, capsys):
    arguments = ["--weights", weights, "--stores", store, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["held_out", *map(str, arguments), "--limit", "4"])
    held_out.main()
    answer = json.loads((tmp_path / "out/held_out.json").read_text())
    value = answer["methods"]["dynamic"]["pa_mpjpe_mm"]["all"]
    table = (tmp_path / "out/held_out.md").read_text()
    assert f"| dynamic | {value:.2f} |" in table
    assert table in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stores": []}, "at least one"),
        ({"modes": ("median",)}, "median"),
        ({"limit": 0}, "at least one frame"),
    ],
)
def test_refuses(network, store, changes, says):
    arguments = {"stores": [store]} | changes
    with pytest.raises(HandPerceptionError, match=says):
        evaluate_network(network, **arguments)


def test_refuses_stores_without_labels(network, tmp_path):
    unlabelled = [clip | {"weight_3d": np.zeros(FRAMES)} for clip in clips(np.random.default_rng())]
    write_store(tmp_path / "bare", unlabelled[:1], FRAMES, network)
    with pytest.raises(HandPerceptionError, match="no frame with a 3D label"):
        evaluate_network(network, [tmp_path / "bare"])
    with pytest.raises(HandPerceptionError, match="no finished store"):
        evaluate_network(network, [tmp_path / "absent"])
