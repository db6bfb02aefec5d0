"""Losses by hand, stores and windows, and the loop: learning, resuming, stopping, exporting."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hand_perception.geometry import axis_angle_to_matrix, matrix_to_6d, matrix_to_axis_angle
from hand_perception.hand_model import HandModel
from hand_perception.networks.deformer import BackboneFeatures, Deformer, DeformerConfig
from hand_perception.training import losses
from hand_perception.training.data import FrameStore, WindowSampler, network_input, write_store
from hand_perception.training.discriminator import MotionDiscriminator
from hand_perception.training.objectives import DeformerObjective
from hand_perception.training.train import (
    TrainConfig,
    Trainer,
    export_weights,
    read_config,
    train,
)
from hand_perception.types import HandPerceptionError

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
CONFIG = {
    "method": "deformer_resnet50",
    "network": {
        "backbone": "resnet50_fpn",
        "image_size": SIZE,
        "grid": 8,
        "width": 64,
        "heads": 4,
        "feedforward": 64,
        "spatial_layers": 1,
        "temporal_layers": 1,
        "hidden": [128],
        "dropout": 0.1,
        "resnet_blocks": [1, 1, 1, 1],
        "resnet_width": 8,
        "pyramid_channels": 32,
        "gap_s": 0.1,
    },
    "training": {
        "steps": 6,
        "batch_size": 4,
        "frames": 3,
        "gap_s": [0.1, 0.1],
        "warmup_steps": 5,
        "checkpoint_every": 2,
        "log_every": 2,
        "device": "cpu",
        "validate_batches": 1,
    },
    "losses": {
        "joints": 1e4,
        "vertices": 0.0,
        "pose": 10.0,
        "shape": 0.1,
        "joints_2d": 100.0,
        "joints_nll": 0.1,
        "adversarial": 0.1,
    },
    "adversary": {"width": 16, "layers": 1},
}


def stand_in(sequences, frames=5, size=SIZE, seed=0):
    """Windows of moving hands whose joints are drawn as coloured blobs."""
    rng, model = np.random.default_rng(seed), HandModel.load()
    intrinsics = np.array([[2.0 * size, 0, size / 2], [0, 2.0 * size, size / 2], [0, 0, 1]])
    colours = (np.random.default_rng(99).random((21, 3)) * 200 + 55).tolist()
    for _ in range(sequences):
        first, last = rng.normal(0, 0.25, (2, 15, 3))
        turn = rng.normal(0, 0.3, 3)
        upright = axis_angle_to_matrix(torch.tensor([0.0, 0.0, -math.pi / 2])).float()
        upright = upright @ axis_angle_to_matrix(torch.tensor([math.pi / 2, 0.0, 0.0]))
        mix = np.linspace(0, 1, frames)[:, None, None]
        pose = torch.tensor(first * (1 - mix) + last * mix).float()
        wobble = torch.tensor(turn * np.linspace(-1, 1, frames)[:, None]).float()
        orient = axis_angle_to_matrix(wobble) @ upright
        orient = matrix_to_axis_angle(orient)
        betas = torch.tensor(rng.normal(0, 0.5, 10)).float()
        joints = model.with_shape(betas).with_pose(orient, pose).joints
        joints = joints - joints.mean(1, keepdim=True) + torch.tensor([0.0, 0.0, 0.5])
        pixels = (joints / joints[..., 2:]).numpy() @ intrinsics.T
        images = np.zeros((frames, size, size, 3), np.uint8)
        for image, points in zip(images, pixels, strict=True):
            for point, colour in zip(points, colours, strict=True):
                centre = (int(point[0]), int(point[1]))
                cv2.circle(image, centre, max(1, size // 32), colour, -1)
        yield {
            "image": images,
            "intrinsics": np.broadcast_to(intrinsics, (frames, 3, 3)),
            "R_camera_crop": np.broadcast_to(np.eye(3), (frames, 3, 3)),
            "time_s": np.arange(frames) * 0.1,
            "joints_2d": pixels[..., :2],
            "global_orient": orient.numpy(),
            "hand_pose": pose.numpy(),
            "betas": betas.numpy(),
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "store"
    assert write_store(path, stand_in(16), capacity=200) == 80
    return path


def make_trainer(store, out, seed=0, **changes):
    torch.manual_seed(seed)
    training = TrainConfig.from_dict(CONFIG["training"] | changes)
    sampler = WindowSampler(
        [FrameStore(store)], batch_size=4, frames=3, gap_s=(0.1, 0.1), lookahead=0.5, drop=0.2
    )
    return Trainer(DeformerObjective(CONFIG), training, sampler, out, method_config=CONFIG)


# Losses


def test_max_mse_by_hand():
    points = torch.zeros(2, 3)
    truth = torch.tensor([[3.0, 0, 0], [0, 4.0, 0]])
    assert losses.max_mse(points, truth).item() == pytest.approx((81 + 256) / (9 + 16))
    assert losses.max_mse(points, points).item() == 0


def test_masked_mean_ignores_and_survives_nan():
    values = torch.tensor([[1.0, math.nan], [2.0, 4.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    loss = losses.masked_mean(values, weight)
    assert loss.item() == pytest.approx((1 + (6 + 4) / 4) / 2)
    loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.5, 0.0], [0.375, 0.125]]))
    assert losses.masked_mean(torch.ones(1, 2), torch.zeros(1, 2)).item() == 0


def test_2d_losses_by_hand():
    joints, truth = torch.tensor([[30.0, 40.0]]), torch.tensor([[0.0, 0.0]])
    assert losses.joints_2d_loss(joints, truth, 100.0).item() == pytest.approx(0.25)
    log_var = torch.tensor([math.log(0.5)])
    expected = 0.5 * 0.25 / 0.5 + math.log(0.5)
    assert losses.joints_nll(joints, log_var, truth, 100.0).item() == pytest.approx(expected)
    inside = losses.inside_crop(torch.tensor([[0.0, 64.0], [-1.0, 3.0], [3.0, 65.0]]), 64)
    assert inside.tolist() == [True, False, False]


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.5, -0.5])
    assert losses.generator_loss(fake).item() == pytest.approx((0.25 + 2.25) / 2)
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(0.25 + 0.5)


def test_perfect_motion_reaches_the_neighbours():
    torch.manual_seed(0)
    world = axis_angle_to_matrix(torch.randn(1, 3, 16, 3).double())
    turns = axis_angle_to_matrix(torch.tensor([[[0, 0, 0.3], [0, 0, -1.0], [0, 0, 0.0]]]).double())
    own = world.clone()
    own[:, :, 0] = turns @ world[:, :, 0]  # the target, frame 2, has R_target_frame = identity
    crop_rotation = turns.mT
    offsets, gap = torch.tensor([[-0.5, -0.2, 0.0]]).double(), 0.1
    pose = matrix_to_6d(own)

    def in_crop_of(frame, k):
        # Frame k's pose as it looks in another frame's crop frame.
        wrist = turns[:, frame] @ world[:, k, 0]
        return matrix_to_6d(torch.cat([wrist[:, None], world[:, k, 1:]], 1))

    forward, backward = torch.zeros_like(pose), torch.zeros_like(pose)
    for k in (0, 1):
        steps = (offsets[0, k + 1] - offsets[0, k]) / gap
        forward[:, k] = (in_crop_of(k, k + 1) - pose[:, k]) / steps
        backward[:, k + 1] = (in_crop_of(k + 1, k) - pose[:, k + 1]) / steps
    moved = losses.motion_targets(pose, forward, offsets, crop_rotation, gap, 1)
    torch.testing.assert_close(moved, pose[:, 1:])
    moved = losses.motion_targets(pose, backward, offsets, crop_rotation, gap, -1)
    torch.testing.assert_close(moved, pose[:, :-1])


def test_smoothness_by_hand():
    pose = torch.zeros(1, 3, 16, 6)
    pose[:, 1], pose[:, 2] = 1.0, 4.0
    valid = torch.ones(1, 3, dtype=torch.bool)
    turn = torch.eye(3).expand(1, 3, 3, 3)
    # First differences 1 and 3, second 2.
    assert losses.smoothness(pose, turn, valid).item() == pytest.approx((1 + 9) / 2 + 4)
    valid[:, 2] = False
    assert losses.smoothness(pose, turn, valid).item() == pytest.approx(1)


def test_truth_as_prediction_costs_nothing(store):
    objective = DeformerObjective(CONFIG)
    sampler = WindowSampler([FrameStore(store)], batch_size=2, frames=3, gap_s=(0.1, 0.1))
    batch = sampler.batch(0)
    truth = losses.WindowTruth.of(batch)
    output = objective._output(batch)
    rows, target = torch.arange(2), batch["target"]
    known = replace(
        output,
        pose=matrix_to_6d(truth.rotations),
        frame_pose=matrix_to_6d(truth.rotations),
        frame_betas=truth.betas,
        betas=truth.betas[:, 0],
        rotations=truth.rotations[rows, target],
        frame_joints_2d=truth.joints_2d,
    )
    weights = CONFIG["losses"] | {"motion": 0.0, "vertices": 1.0, "joints_nll": 0.0}
    model = objective.network.hand_model
    terms = losses.deformer_losses(known, truth, batch, model, weights, size=SIZE, gap_s=0.1)
    assert {"temporal_vertices", "fused_joints", "frame_pose", "joints_2d"} <= set(terms)
    assert max(term.item() for term in terms.values()) < 1e-6
    wrong = replace(known, betas=known.betas + 1)
    terms = losses.deformer_losses(wrong, truth, batch, model, weights, size=SIZE, gap_s=0.1)
    assert terms["shape"].item() == pytest.approx(0.1, rel=1e-4)
    assert terms["fused_joints"] > 1e-3


def test_discriminator_ignores_masked_frames():
    torch.manual_seed(0)
    network = MotionDiscriminator(width=8, layers=1).eval()
    motion, valid = torch.randn(2, 4, 46), torch.tensor([[True, True, True, False]] * 2)
    score = network(motion, valid)
    motion[:, 3] = 1e9
    assert score.shape == (2,) and torch.equal(network(motion, valid), score)
    motion[:, 1] += 1
    assert not torch.equal(network(motion, valid), score)


# Data


def test_store_and_windows(store):
    frames = FrameStore(store)
    assert len(frames) == 80 and frames.sequences[1] == (5, 10)
    nothing = np.zeros(3, bool)
    window = frames.window(7, frames=3, gap_s=0.1, lookahead=True, drop=nothing)
    original = list(stand_in(2))[1]
    assert window["target"] == 1 and window["valid"].all()
    np.testing.assert_allclose(window["offsets_s"], [-0.1, 0, 0.1], atol=1e-6)
    np.testing.assert_allclose(window["joints_2d"], original["joints_2d"][1:4], rtol=1e-5)
    np.testing.assert_array_equal(window["image"], original["image"][1:4])
    # A causal window, and one at a sequence's start, which never reaches into another sequence.
    window = frames.window(7, frames=3, gap_s=0.1, lookahead=False, drop=nothing)
    assert window["target"] == 2 and window["offsets_s"].max() == 0
    window = frames.window(5, frames=3, gap_s=0.1, lookahead=False, drop=nothing)
    assert window["valid"].tolist() == [False, False, True]
    window = frames.window(7, frames=3, gap_s=0.1, lookahead=False, drop=np.ones(3, bool))
    assert window["valid"].tolist() == [False, False, True]


def test_crop_rotation_leads_into_the_target_crop(tmp_path):
    sequence = next(stand_in(1, frames=2))
    angles = torch.tensor([[0.0, 0.0, 0.4], [0.0, 0.3, 0.0]])
    sequence["R_camera_crop"] = axis_angle_to_matrix(angles).numpy()
    write_store(tmp_path / "s", [sequence], 2)
    window = FrameStore(tmp_path / "s").window(
        1, frames=2, gap_s=0.1, lookahead=False, drop=np.zeros(2, bool)
    )
    expected = sequence["R_camera_crop"][1].T @ sequence["R_camera_crop"][0]
    np.testing.assert_allclose(window["crop_rotation"], [expected, np.eye(3)], atol=1e-6)


def test_batches_repeat_mix_and_share(store, tmp_path):
    write_store(tmp_path / "other", stand_in(1, seed=5), 5)
    stores = [FrameStore(store), FrameStore(tmp_path / "other")]
    options = {"batch_size": 4, "frames": 3, "gap_s": (0.1, 0.1), "seed": 3}
    whole = WindowSampler(stores, **options)
    assert torch.equal(whole.batch(5)["image"], whole.batch(5)["image"])
    assert not torch.equal(whole.batch(5)["betas"], whole.batch(6)["betas"])
    shares = [WindowSampler(stores, **options, rank=r, world=2).batch(5) for r in (0, 1)]
    joined = torch.stack([shares[0]["betas"], shares[1]["betas"]], 1).flatten(0, 1)
    assert torch.equal(joined, whole.batch(5)["betas"])
    only = WindowSampler(stores, **options, weights=[0.0, 1.0]).batch(0)
    assert len(only["betas"].flatten(0, 1).unique(dim=0)) == 1
    for bad in ({"weights": [1.0]}, {"weights": [0.0, 0.0]}, {"batch_size": 0}, {"world": 3}):
        with pytest.raises(HandPerceptionError):
            WindowSampler(stores, **(options | bad))


def test_cached_features_train_like_images(tmp_path):
    network = Deformer.build(
        DeformerConfig(width=32, heads=4, feedforward=32, spatial_layers=1, hidden=(16,))
    ).eval()
    sequences = list(stand_in(1, frames=3, size=224))
    write_store(tmp_path / "images", sequences, 3)
    write_store(tmp_path / "cached", sequences, 3, network)
    outputs = []
    for name in ("images", "cached"):
        sampler = WindowSampler(
            [FrameStore(tmp_path / name)], batch_size=2, frames=2, gap_s=(0.1, 0.1), drop=0.0
        )
        batch = sampler.batch(0)
        given = network_input(batch)
        assert isinstance(given, BackboneFeatures) == (name == "cached")
        names = ("offsets_s", "crop_rotation", "valid", "target")
        with torch.no_grad():
            outputs.append(network(given, batch["intrinsics"], **{n: batch[n] for n in names}))
    torch.testing.assert_close(
        outputs[0].frame_joints_2d, outputs[1].frame_joints_2d, atol=0.05, rtol=0
    )
    torch.testing.assert_close(outputs[0].joints_3d, outputs[1].joints_3d, atol=1e-4, rtol=0)


def test_bad_stores_are_refused(store, tmp_path):
    sequence = next(stand_in(1))
    with pytest.raises(HandPerceptionError, match="already"):
        write_store(store, [sequence], 5)
    with pytest.raises(HandPerceptionError, match="hand_pose"):
        write_store(tmp_path / "a", [{k: v for k, v in sequence.items() if k != "hand_pose"}], 5)
    with pytest.raises(HandPerceptionError, match="rise"):
        write_store(tmp_path / "b", [sequence | {"time_s": np.zeros(5)}], 5)
    with pytest.raises(HandPerceptionError, match="fits"):
        write_store(tmp_path / "c", [sequence], 3)
    with pytest.raises(HandPerceptionError, match="no finished store"):
        FrameStore(tmp_path)


# The loop


def test_overfits_sixteen_windows(tmp_path):
    size = 32
    write_store(tmp_path / "store", stand_in(16, frames=2, size=size), 32)
    store = FrameStore(tmp_path / "store")
    torch.manual_seed(0)
    config = CONFIG | {"adversary": None}
    config["network"] = CONFIG["network"] | {"dropout": 0.0, "image_size": size}
    objective = DeformerObjective(config)
    options = {"frames": 2, "gap_s": 0.1, "lookahead": False, "drop": np.zeros(2, bool)}
    windows = [store.window(2 * i + 1, **options) for i in range(16)]
    batch = {n: torch.from_numpy(np.stack([w[n] for w in windows])) for n in windows[0]}
    training = TrainConfig.from_dict(
        {"learning_rate": 2e-3, "warmup_steps": 10, "clip_norm": 50.0, "device": "cpu"}
    )
    trainer = Trainer(objective, training, WindowSampler([store], batch_size=16), tmp_path / "out")
    objective.network.train()
    before = objective.measure(batch)
    for _ in range(250):
        trainer.train_step(batch)
    after = objective.measure(batch)
    assert after["mpjpe_mm"] < 8 < 0.1 * before["mpjpe_mm"]
    assert after["joints_2d_px"] < 1.0 < 0.3 * before["joints_2d_px"]


def state(trainer):
    return {n: trainer.objective.network.state_dict()[n] for n in trainer.saved}


def test_resuming_after_a_kill_changes_nothing(store, tmp_path):
    straight = make_trainer(store, tmp_path / "straight")
    straight.run()
    # The other run is killed while it works, in a process of its own, after its 4th step.
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code = (
        "import sys, os, signal, json; from pathlib import Path\n"
        "sys.path.insert(0, str(Path(sys.argv[1]) / 'test'))\n"
        "import torch; torch.set_num_threads(int(sys.argv[4]))\n"
        "from test_training import make_trainer\n"
        "t = make_trainer(sys.argv[2], sys.argv[3]); step = t.train_step\n"
        "def dying(batch):\n"
        "    if t.step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(batch)\n"
        "t.train_step = dying; t.run()\n"
    )
    killed = tmp_path / "killed"
    arguments = [str(ROOT), str(store), str(killed), str(torch.get_num_threads())]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed = make_trainer(store, killed, seed=77)
    resumed.restore()
    assert resumed.step == 4
    resumed.run()
    assert resumed.step == straight.step == 6
    expected = state(straight)
    for name, tensor in state(resumed).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6, msg=name)
    for name, tensor in resumed.average.items():
        torch.testing.assert_close(tensor, straight.average[name], atol=1e-6, rtol=1e-6)


def test_another_configuration_does_not_resume(store, tmp_path):
    trainer = make_trainer(store, tmp_path)
    trainer.save()
    other = CONFIG | {"network": CONFIG["network"] | {"feedforward": 32}}
    torch.manual_seed(0)
    trainer.objective = DeformerObjective(other)
    with pytest.raises(HandPerceptionError, match="trained with network"):
        trainer.restore()


def test_nan_stops_and_keeps_the_batch(store, tmp_path):
    trainer = make_trainer(store, tmp_path)
    batch = trainer.sampler.batch(0)
    batch["joints_2d"][0, int(batch["target"][0])] = math.nan
    before = {n: t.clone() for n, t in trainer.trainable.items()}
    with pytest.raises(HandPerceptionError, match=r"not finite at step 0.*nan_batch_0"):
        trainer.train_step(batch)
    kept = load_file(tmp_path / "nan_batch_0_0.safetensors")
    assert torch.equal(kept["offsets_s"], batch["offsets_s"])
    assert all(torch.equal(before[n], t) for n, t in trainer.trainable.items())


def test_averaged_weights_are_lent(store, tmp_path):
    trainer = make_trainer(store, tmp_path)
    trainer.train_step(trainer.sampler.batch(0))
    trainer.train_step(trainer.sampler.batch(1))
    own = trainer.trainable["query"].detach().clone()
    with trainer.averaged():
        assert torch.equal(trainer.trainable["query"], trainer.average["query"])
        assert not trainer.objective.network.training
    assert torch.equal(trainer.trainable["query"], own)
    assert not torch.equal(own, trainer.average["query"])


def test_learning_rate_by_hand():
    config = TrainConfig(warmup_steps=10)
    assert config.rate(0, 100) == pytest.approx(0.1)
    assert config.rate(50, 100) == pytest.approx(0.01 + 0.99 * 0.5)
    assert config.rate(100, 100) == pytest.approx(0.01)
    stepped = TrainConfig(schedule="step", step_every=10, step_factor=0.7, warmup_steps=1)
    assert stepped.rate(25, 100) == pytest.approx(0.49)


def test_trains_exports_and_loads(store, tmp_path):
    checkpoint = train(CONFIG, [store], tmp_path / "out", validate=[store])
    path = tmp_path / "weights.safetensors"
    export_weights(checkpoint, path)
    weights, saved = load_file(path), load_file(checkpoint)
    assert weights["query"].dtype == torch.float16
    torch.testing.assert_close(weights["query"].float(), saved["average.query"], atol=1e-3, rtol=0)
    network = Deformer.load(path)
    assert network.config.width == 64
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))
    with pytest.raises(HandPerceptionError, match="does not exist"):
        export_weights(tmp_path / "absent", path)


def test_time_budget_ends_a_run(store, tmp_path):
    trainer = make_trainer(store, tmp_path, minutes=1e-6, steps=1000)
    trainer.run()
    assert trainer.step <= 1 and trainer.checkpoint.exists()


@pytest.mark.parametrize("method", ["deformer", "deformer_resnet50"])
def test_shipped_configurations_are_valid(method):
    config = read_config(ROOT / "config" / "methods" / f"{method}.yaml")
    assert config["method"] == method
    network = DeformerConfig.from_dict(config["network"])
    TrainConfig.from_dict(config["training"])
    assert network.gap_s == pytest.approx(config["streaming"]["gap_s"])
    if method == "deformer_resnet50":
        assert (network.width, network.grid, network.feedforward) == (256, 32, 256)


def test_bad_settings_are_refused(tmp_path):
    for values in ({"stepz": 1}, {"schedule": "linear"}, {"steps": 0}, {"ema": 1.0}):
        with pytest.raises(HandPerceptionError):
            TrainConfig.from_dict(values)
    with pytest.raises(HandPerceptionError, match="no configuration"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"method": "magic"}))
    with pytest.raises(HandPerceptionError, match="deformer"):
        read_config(tmp_path / "other.yaml")
