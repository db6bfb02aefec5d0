from dataclasses import replace

import pytest
import torch

from hand_perception.camera import hand_size, project_points
from hand_perception.fitting import FitOptions, FitState, HandFitter
from hand_perception.geometry import axis_angle_to_matrix, mirror_axis_angle
from hand_perception.hand_model import ANGLE_LIMITS, HandModel, PosedHand, angles_to_rotations
from hand_perception.types import HandPerceptionError, Prediction

K = torch.tensor([[450.0, 0, 112], [0, 450, 112], [0, 0, 1]])


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.load()


def pose(model: HandModel, angles: torch.Tensor, orient: torch.Tensor, betas=None) -> PosedHand:
    rotations = torch.cat(
        [axis_angle_to_matrix(orient)[:, None], angles_to_rotations(model, angles)], 1
    )
    return model.with_shape(betas).with_rotations(rotations, torch.tensor([0.01, -0.02, 0.5]))


def random_pose(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low, high = ANGLE_LIMITS.unbind(-1)
    angles = low + torch.rand(count, 22, generator=generator) * (high - low)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return angles, axis * 3.1 * torch.rand(count, 1, generator=generator)


def predict(joints: torch.Tensor, noise_px: float = 0, noise_m: float = 0, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    n = len(joints)
    flat = project_points(joints, K)
    flat = flat + noise_px * torch.randn(flat.shape, generator=generator)
    solid = joints + noise_m * torch.randn(joints.shape, generator=generator)
    return Prediction(flat, solid - solid[:, :1], torch.ones(n, 21), torch.ones(n), torch.ones(n))


def relative_error_mm(joints: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return 1e3 * ((joints - joints[:, :1]) - (truth - truth[:, :1])).norm(dim=-1)


def test_recovers_random_poses_from_cold(model: HandModel) -> None:
    angles, orient = random_pose(200)
    truth = pose(model, angles, orient).joints
    result = HandFitter(model, FitOptions(iterations=10)).fit(predict(truth), K.expand(200, 3, 3))
    error = relative_error_mm(result.joints, truth)
    assert (error.amax(-1) < 1).float().mean() > 0.95
    assert error.mean() < 0.3
    assert (result.joint_angles >= ANGLE_LIMITS[:, 0] - 1e-6).all()
    assert (result.joint_angles <= ANGLE_LIMITS[:, 1] + 1e-6).all()
    assert result.valid.all()
    assert result.joint_confidence.mean() > 0.98


def test_result_is_the_hand_model(model: HandModel) -> None:
    angles, orient = random_pose(8)
    betas = 0.5 * torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    truth = pose(model, angles, orient, betas).joints
    result = HandFitter(model).fit(predict(truth), K.expand(8, 3, 3))
    posed = model.with_shape(result.betas).with_pose(
        result.global_orient, result.hand_pose, result.transl
    )
    assert torch.allclose(posed.joints, result.joints, atol=1e-5)
    assert torch.allclose(hand_size(result.joints), hand_size(truth), rtol=0.01)


def test_error_bounded_under_noise(model: HandModel) -> None:
    angles, orient = random_pose(100)
    truth = pose(model, angles, orient).joints
    noisy = predict(truth, 2.0, 0.004)
    result = HandFitter(model).fit(noisy, K.expand(100, 3, 3))
    error = relative_error_mm(result.joints, truth).mean()
    assert error < 8
    assert error < 0.85 * relative_error_mm(noisy.joints_3d, truth).mean()
    assert result.residual_px.mean() < 4


def test_one_wrong_joint_loses_its_say(model: HandModel) -> None:
    angles, orient = random_pose(50)
    truth = pose(model, angles, orient).joints
    good = predict(truth)
    wrong = good.joints_2d.clone()
    wrong[:, 8] += 60
    fitted = HandFitter(model).fit(replace(good, joints_2d=wrong), K.expand(50, 3, 3))
    assert relative_error_mm(fitted.joints, truth).median() < 1.5
    assert fitted.joint_confidence[:, 8].median() < 0.2
    assert fitted.joint_confidence[:, 12].median() > 0.7


def test_previous_frame_reduces_jitter_with_little_lag(model: HandModel) -> None:
    frames, dt = 90, 1 / 30
    time = torch.arange(frames) * dt
    low, high = ANGLE_LIMITS.unbind(-1)
    middle = (low + high) / 2
    swing = 0.3 * (high - low) * torch.sin(2 * torch.pi * 0.5 * time)[:, None]
    truth = pose(model, middle + swing, torch.zeros(frames, 3)).joints
    prediction = predict(truth, 1.5, 0.004)

    def run(use_state: bool) -> torch.Tensor:
        fitter, state, out = HandFitter(model), None, []
        for i in range(frames):
            frame = Prediction(
                *(getattr(prediction, f)[i : i + 1] for f in
                  ("joints_2d", "joints_3d", "joint_confidence", "presence", "right_score"))
            )  # fmt: skip
            result = fitter.fit(frame, K[None], state, dt)
            state = result.state if use_state else None
            out.append(result.joint_angles[0])
        return torch.stack(out)

    steady, alone = run(True), run(False)
    jitter = [x.diff(n=2, dim=0)[10:].norm(dim=-1).mean() for x in (steady, alone)]
    assert jitter[0] < 0.8 * jitter[1]
    error = [(x - middle - swing)[10:].abs().mean() for x in (steady, alone)]
    assert error[0] < error[1]


def test_shape_settles_and_stays(model: HandModel) -> None:
    angles, orient = random_pose(1)
    truth = pose(model, angles, orient).joints
    fitter, state, betas = HandFitter(model), None, []
    for i in range(60):
        scaled = predict(truth * (1 + 0.05 * (-1) ** i), 0, 0.002, seed=i)
        result = fitter.fit(scaled, K[None], state, 1 / 20)
        state = result.state
        betas.append(result.betas[0])
    assert torch.equal(betas[-1], betas[-20])
    assert not torch.equal(betas[0], betas[5])
    assert hand_size(result.joints).item() == pytest.approx(hand_size(truth).item(), rel=0.03)


def test_known_hand_size_wins(model: HandModel) -> None:
    angles, orient = random_pose(3)
    truth = pose(model, angles, orient).joints
    result = HandFitter(model).fit(predict(truth), K.expand(3, 3, 3), hand_size_m=0.080)
    assert torch.allclose(hand_size(result.joints), torch.tensor(0.080), rtol=0.01)


def test_left_hand_through_the_mirror(model: HandModel) -> None:
    angles, orient = random_pose(5)
    truth = pose(model, angles, orient).joints
    result = HandFitter(model).fit(predict(truth), K.expand(5, 3, 3))
    left = (
        model.mirrored()
        .with_shape(result.betas)
        .with_pose(
            mirror_axis_angle(result.global_orient),
            mirror_axis_angle(result.hand_pose),
            result.transl * torch.tensor([-1.0, 1, 1]),
        )
    )
    mirrored = result.joints * torch.tensor([-1.0, 1, 1])
    assert torch.allclose(left.joints, mirrored, atol=1e-5)


def test_batch_equals_single_and_states_split(model: HandModel) -> None:
    angles, orient = random_pose(3)
    prediction = predict(pose(model, angles, orient).joints, 1.0, 0.002)
    fitter = HandFitter(model)
    together = fitter.fit(prediction, K.expand(3, 3, 3))
    first = Prediction(
        prediction.joints_2d[:1], prediction.joints_3d[:1], torch.ones(1, 21),
        torch.ones(1), torch.ones(1),
    )  # fmt: skip
    alone = fitter.fit(first, K[None])
    assert torch.allclose(alone.joints, together.joints[:1], atol=1e-4)
    states = together.state.split()
    gathered = FitState.gather([states[0], None, states[2]])
    assert gathered is not None
    assert torch.equal(gathered.angles[2], together.state.angles[2])
    assert gathered.seen_s[1] < 0
    assert FitState.gather([None, None]) is None
    again = fitter.fit(prediction, K.expand(3, 3, 3), gathered, 1 / 30)
    assert torch.allclose(again.joints[1], together.joints[1], atol=1e-4)


def test_bad_input(model: HandModel) -> None:
    angles, orient = random_pose(2)
    prediction = predict(pose(model, angles, orient).joints)
    broken = prediction.joints_3d.clone()
    broken[0, 7, 1] = float("nan")
    fitter = HandFitter(model)
    result = fitter.fit(replace(prediction, joints_3d=broken), K.expand(2, 3, 3))
    assert result.valid.tolist() == [False, True]
    for value in (result.joints, result.global_orient, result.betas, result.joint_angles):
        assert value.isfinite().all()
    assert result.joint_confidence[0].max() == 0
    assert result.state.seen_s[0] < 0
    with pytest.raises(HandPerceptionError, match="must be"):
        fitter.fit(prediction, K[None])
    with pytest.raises(HandPerceptionError, match="tracks"):
        fitter.fit(
            prediction, K.expand(2, 3, 3), FitState(*(x[:1] for x in vars(result.state).values()))
        )
    with pytest.raises(HandPerceptionError, match="right"):
        HandFitter(model.mirrored())


def test_confidence_counts_the_methods_own_once_and_the_misfit(model: HandModel) -> None:
    angles, orient = random_pose(3, seed=5)
    prediction = predict(pose(model, 0.3 * angles, orient).joints, noise_px=2)
    prediction = replace(
        prediction, joint_confidence=torch.full((3, 21), 0.8), presence=torch.full((3,), 0.5)
    )
    result = HandFitter(model).fit(prediction, K.expand(3, 3, 3))
    flat = project_points(result.joints, K.expand(3, 3, 3))
    span = (flat[:, 9] - flat[:, 0]).norm(dim=-1)
    half_box = (flat.amax(1) - flat.amin(1)).amax(-1) / 2
    share = result.residual_px / (0.1 * torch.maximum(span, half_box))[:, None]
    torch.testing.assert_close(result.joint_confidence, 0.8 * torch.exp(-share))
