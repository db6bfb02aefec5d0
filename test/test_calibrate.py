"""Calibration of joint confidence: a known variance ratio is found, files change in one number."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.training import calibrate
from hand_perception.training.calibrate import (
    Reliability,
    Residuals,
    best_temperature,
    write_temperature,
)
from hand_perception.training.data import write_store
from hand_perception.types import HandPerceptionError


def synthetic(ratio, count=1500, seed=0):
    """Errors whose true variance is `ratio` times the predicted one."""
    g = torch.Generator().manual_seed(seed)
    joints = torch.rand(count, 21, 2, generator=g) * 0.6 + 0.2
    log_var = torch.rand(count, 21, generator=g) * 4 - 8.5
    spread = (0.5 * log_var).exp()[..., None] * ratio**0.5
    truth = joints + spread * torch.randn(count, 21, 2, generator=g)
    return Residuals.of(joints, log_var, truth, torch.ones(count, 21, dtype=torch.bool))


@pytest.mark.parametrize("ratio", [0.25, 1.0, 6.0])
def test_finds_a_known_ratio_of_variances(ratio):
    residuals = synthetic(ratio)
    found = best_temperature(residuals)
    assert found == pytest.approx(ratio, rel=0.1)
    after = Reliability.of(*residuals.confidence(found)).expected_calibration_error
    assert after < 0.01
    if ratio != 1.0:
        before = Reliability.of(*residuals.confidence(1.0)).expected_calibration_error
        assert before > 3 * after


def test_joints_without_a_label_do_not_count():
    residuals = synthetic(2.0, count=800)
    wrong = torch.zeros_like(residuals.marked)
    wrong[:, :10] = True
    masked = Residuals(
        residuals.joints, residuals.log_var, residuals.right & ~wrong, residuals.marked & ~wrong
    )
    assert best_temperature(masked) == pytest.approx(2.0, rel=0.15)


def test_right_means_within_a_tenth_of_the_hand():
    joints = torch.zeros(1, 21, 2)
    joints[0, 1] = torch.tensor([0.5, 0.1])  # The hand's box is 0.5 wide: 0.05 is the border.
    truth = joints.clone()
    truth[0, 2, 0], truth[0, 3, 1] = 0.049, 0.051
    log_var = torch.full((1, 21), -6.0)
    right = Residuals.of(joints, log_var, truth, torch.ones(1, 21, dtype=torch.bool)).right[0]
    assert right[2] and not right[3] and right.sum() == 20


def test_expected_calibration_error_by_hand():
    said = np.array([0.15, 0.15, 0.95, 0.95, 1.0, 1.0])
    right = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    curve = Reliability.of(said, right)
    assert curve.count.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 4]
    assert curve.right[[1, 9]] == pytest.approx([0.5, 0.75])
    expected = (2 * 0.35 + 4 * 0.225) / 6
    assert curve.expected_calibration_error == pytest.approx(expected)


def test_refuses_what_cannot_be_calibrated():
    residuals = synthetic(1.0, count=2)
    nothing = Residuals(
        residuals.joints, residuals.log_var, residuals.right, torch.zeros(2, 21, dtype=torch.bool)
    )
    with pytest.raises(HandPerceptionError, match="0 labelled joints"):
        best_temperature(nothing)
    broken = Residuals(
        residuals.joints, residuals.log_var * np.nan, residuals.right, residuals.marked
    )
    with pytest.raises(HandPerceptionError, match="not finite"):
        best_temperature(broken)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small untrained network's half-precision file and a store of what it saw of noise."""
    torch.manual_seed(0)
    sizes = {"width": 64, "feedforward": 64, "hidden": (64,), "heads": 4}
    layers = {"spatial_layers": 1, "temporal_layers": 1}
    network = Deformer.build(DeformerConfig.from_dict(sizes | layers)).eval()
    folder = tmp_path_factory.mktemp("tiny")
    state = network.state_dict().items()
    half = {n: t.half().contiguous() for n, t in state if not n.startswith("backbone.")}
    save_file(half, folder / "tiny.safetensors", network.metadata())
    rng, frames = np.random.default_rng(0), 6
    sequence = {
        "image": rng.integers(0, 255, (frames, 224, 224, 3), np.uint8),
        "intrinsics": np.broadcast_to([[400.0, 0, 112], [0, 400, 112], [0, 0, 1]], (frames, 3, 3)),
        "R_camera_crop": np.broadcast_to(np.eye(3), (frames, 3, 3)),
        "time_s": np.arange(frames) / 15,
        "joints_2d": rng.uniform(60, 164, (frames, 21, 2)),
        "global_orient": np.zeros((frames, 3)),
        "hand_pose": np.zeros((frames, 15, 3)),
        "betas": np.zeros(10),
    }
    write_store(folder / "store", [sequence], frames, network)
    return folder / "tiny.safetensors", folder / "store"


def test_command_changes_the_temperature_alone(tiny, tmp_path, monkeypatch, capsys):
    weights, store = tiny
    out, plot = tmp_path / "new/calibrated.safetensors", tmp_path / "plots/reliability.png"
    arguments = ["--weights", weights, "--stores", store, "--out", out, "--plot", plot]
    monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, arguments)])
    calibrate.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["joints"] == 6 * 21 and figures["temperature_before"] == 1.0
    assert figures["negative_log_likelihood"] <= figures["negative_log_likelihood_before"]
    assert figures["temperature"] == pytest.approx(calibrate.calibrate(weights, [store]))
    network = Deformer.load(out)
    assert float(network.temperature) == pytest.approx(figures["temperature"], rel=1e-3)
    before, after = load_file(weights), load_file(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.float16 == tensor.dtype
        assert torch.equal(after[name], tensor) == (name != "temperature")
    with safe_open(weights, "pt") as old, safe_open(out, "pt") as new:
        assert old.metadata() == new.metadata()
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_bad_input(tiny, tmp_path):
    weights, store = tiny
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(HandPerceptionError, match="finite and positive"):
            write_temperature(weights, temperature, tmp_path / "out.safetensors")
    with pytest.raises(HandPerceptionError, match="no frame"):
        calibrate.calibrate(weights, [])
    with pytest.raises(HandPerceptionError, match="do not exist"):
        calibrate.calibrate(tmp_path / "absent.safetensors", [store])
