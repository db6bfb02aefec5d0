"""Fusion of windows against hand-computed values, and streaming against the batch."""

import math

import numpy as np
import pytest
import torch

from hand_perception.fusion import (
    FrameFeatures,
    StreamingFusion,
    carry_poses,
    fuse_poses,
    fusion_weights,
    rotate_6d,
    window_slots,
)
from hand_perception.geometry import axis_angle_to_matrix, matrix_to_6d
from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.types import Box, Crop, HandPerceptionError

SMALL = {
    "backbone": "resnet50_fpn",
    "image_size": 64,
    "grid": 4,
    "width": 32,
    "heads": 4,
    "feedforward": 32,
    "spatial_layers": 1,
    "temporal_layers": 1,
    "hidden": (32,),
    "resnet_blocks": (1, 1, 1, 1),
    "resnet_width": 8,
    "gap_s": 0.1,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Deformer.build(DeformerConfig.from_dict(SMALL)).eval()
    with torch.no_grad():
        # Heads far from their flat start, so that differences show.
        for head in (network.pose_head, network.joint_head):
            head.out.weight.normal_(std=0.3)
    return network


def in_plane(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def crop(degrees=0.0, mirrored=False):
    intrinsics = np.array([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]])
    image = np.zeros((1, 1, 3), np.uint8)
    return Crop(image, intrinsics, in_plane(degrees), mirrored, Box((0, 0), 1))


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return FrameFeatures(
        latent=torch.randn(count, 32, generator=generator),
        joints_2d=torch.rand(count, 21, 2, generator=generator) * 64,
        intrinsics=torch.tensor(crop().intrinsics).float().expand(count, 3, 3),
        presence=torch.rand(count, generator=generator),
        right_score=torch.rand(count, generator=generator),
    )


def carry(pose, forward, backward, offsets, valid=None, target=0, rotation=None, gap=1.0):
    frames = pose.shape[1]
    return carry_poses(
        pose,
        forward,
        backward,
        offsets_s=torch.tensor([offsets], dtype=pose.dtype),
        crop_rotation=torch.eye(3, dtype=pose.dtype).expand(1, frames, 3, 3)
        if rotation is None
        else rotation,
        valid=torch.ones(1, frames, dtype=torch.bool) if valid is None else valid,
        target=torch.tensor([target]),
        gap_s=gap,
    )


def constant(values):
    # (1, T, 2, 6) whose numbers all equal the frame's value.
    return torch.tensor(values, dtype=torch.float64)[None, :, None, None].expand(1, -1, 2, 6)


def test_motions_add_up_to_the_target_by_hand():
    pose, forward = constant([1.0, 2.0, 3.0, 4.0]), constant([10.0, 20.0, 30.0, 40.0])
    backward = constant([0.1, 0.2, 0.3, 0.4])
    carried = carry(pose, forward, backward, [-1.0, 0.0, 1.0, 2.0], target=1)
    # 0 -> 1: 1 + fw0; 1: itself; 2 -> 1: 3 + bw2; 3 -> 1: 4 + bw2 + bw3.
    expected = constant([11.0, 2.0, 3.3, 4.7])
    torch.testing.assert_close(carried, expected)
    carried = carry(pose, forward, backward, [-3.0, -2.0, -1.0, 0.0], target=3)
    torch.testing.assert_close(carried, constant([61.0, 52.0, 33.0, 4.0]))


def test_motions_scale_with_time_and_step_over_missing_frames():
    pose, forward = constant([1.0, 2.0, 3.0, 4.0]), constant([10.0, 20.0, 30.0, 40.0])
    backward = constant([0.1, 0.2, 0.3, 0.4])
    valid = torch.tensor([[True, False, True, True]])
    carried = carry(pose, forward, backward, [-4.0, -9.0, 0.0, 3.0], valid, target=2, gap=2.0)
    # Frame 0 reaches frame 2 in 4 s = 2 gaps of its own motion; frame 3 goes back 1.5 gaps.
    assert carried[0, 0, 0, 0] == pytest.approx(1 + 2 * 10)
    assert carried[0, 3, 0, 0] == pytest.approx(4 + 1.5 * 0.4)
    for target in (0, 3):
        edge = torch.tensor([[target == 0, False, False, target == 3]])
        moved = carry(pose, forward, backward, [0.0, 1.0, 2.0, 3.0], edge, target=target)
        assert moved[0, target, 0, 0] == pose[0, target, 0, 0]
        assert torch.isfinite(moved).all()


def test_wrist_turns_into_the_target_crop_fingers_do_not():
    generator = torch.Generator().manual_seed(3)
    frames, target = 3, 1
    world = axis_angle_to_matrix(torch.randn(1, frames, 2, 3, generator=generator).double())
    crops = torch.tensor(np.stack([in_plane(a) for a in (20.0, -50.0, 110.0)]))[None]
    own = world.clone()
    own[:, :, 0] = crops.mT @ world[:, :, 0]
    motion = torch.randn(1, frames, 2, 6, generator=generator).double()
    own_motion = motion.clone()
    own_motion[:, :, 0] = rotate_6d(crops.mT, motion[:, :, 0])
    rotation = crops[:, target : target + 1].mT @ crops
    offsets = [-1.0, 0.0, 1.0]
    turned = carry(
        matrix_to_6d(own), own_motion, own_motion, offsets, target=target, rotation=rotation
    )
    plain = carry(matrix_to_6d(world), motion, motion, offsets, target=target)
    torch.testing.assert_close(rotate_6d(crops[:, target], turned[:, :, 0]), plain[:, :, 0])
    torch.testing.assert_close(turned[:, :, 1:], plain[:, :, 1:])
    # Turning every crop by the same rotation turns the fused wrist by its inverse, nothing else.
    again = crops @ torch.tensor(in_plane(33.0))
    own[:, :, 0] = again.mT @ world[:, :, 0]
    own_motion[:, :, 0] = rotate_6d(again.mT, motion[:, :, 0])
    rotation = again[:, target : target + 1].mT @ again
    moved = carry(
        matrix_to_6d(own), own_motion, own_motion, offsets, target=target, rotation=rotation
    )
    turn = torch.tensor(in_plane(-33.0))
    torch.testing.assert_close(moved[:, :, 0], rotate_6d(turn, turned[:, :, 0]))


def test_weights_by_hand():
    confidence = torch.tensor([[0.0, math.log(3.0), 5.0]])
    valid, target = torch.tensor([[True, True, False]]), torch.tensor([1])
    expected = {
        "dynamic": [0.25, 0.75, 0.0],
        "average": [0.5, 0.5, 0.0],
        "centre": [0.0, 1.0, 0.0],
    }
    for mode, weights in expected.items():
        got = fusion_weights(confidence, valid, target, mode)
        torch.testing.assert_close(got, torch.tensor([weights]))
    carried = constant([1.0, 5.0, 100.0]).float()
    fused = fuse_poses(carried, torch.tensor([expected["dynamic"]]))
    torch.testing.assert_close(fused, torch.full((1, 2, 6), 4.0))
    with pytest.raises(HandPerceptionError, match="dynamic"):
        fusion_weights(confidence, valid, target, "median")


def test_window_slots_by_time():
    stamps = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    options = {"frames": 4, "gap_s": 0.2, "tolerance_s": 0.05}
    assert window_slots(stamps, 5, **options) == ([None, 1, 3, 5], 3)
    # Later frames: one more slot fits into 0.2 s after frame 2.
    assert window_slots(stamps, 2, end=5, **options) == ([None, 0, 2, 4], 2)
    # Slower than the gap: no frame is used twice.
    slots, _ = window_slots([0.0, 0.15, 0.3], 2, frames=4, gap_s=0.1, tolerance_s=0.05)
    assert slots == [0, None, 1, 2]
    assert window_slots([3.0], 0, frames=1, gap_s=0.1, tolerance_s=0.05) == ([0], 0)


STAMPS = [0.0, 0.1, 0.22, 0.3, 0.51, 0.6, 0.7]


@pytest.mark.parametrize("lag", [0, 2])
def test_streaming_equals_batch(network, lag):
    frames, angles = features(7), [10.0, -20.0, 30.0, 5.0, 60.0, -15.0, 40.0]
    other = features(7, seed=1)
    stream = StreamingFusion(network, window=5, gap_s=0.1, lag=lag)
    results = []
    for i, stamp in enumerate(STAMPS):
        both = FrameFeatures.stack([frames[i], other[i]])
        results.append(stream.update(stamp, [7, 8], both, [crop(angles[i]), crop(0, True)]))
    assert [len(r) for r in results] == [0] * lag + [2] * (7 - lag)
    last = results[-1][0]
    assert last.track_id == 7 and last.stamp_s == STAMPS[-1 - lag]
    at = 6 - lag
    slots, place = window_slots(STAMPS, at, frames=5, gap_s=0.1, tolerance_s=0.05, end=7)
    rows = [at if s is None else s for s in slots]
    assert None in slots
    turns = np.stack([in_plane(angles[at]).T @ in_plane(angles[r]) for r in rows])
    batch = network.temporal(
        frames[rows].reshape(1, 5),
        offsets_s=torch.tensor([[STAMPS[r] - STAMPS[at] for r in rows]]),
        crop_rotation=torch.tensor(turns[None]).float(),
        valid=torch.tensor([[s is not None for s in slots]]),
        target=torch.tensor([place]),
    ).prediction()
    for name in ("joints_3d", "joints_2d", "global_orient", "hand_pose", "betas"):
        torch.testing.assert_close(
            getattr(last.prediction, name), getattr(batch, name), atol=1e-5, rtol=1e-5
        )
    assert last.prediction.presence[0] == frames.presence[at]


def test_later_frames_change_nothing_without_lag(network):
    frames = features(3)
    stream = StreamingFusion(network, window=3, gap_s=0.1)
    early = [stream.update(0.1 * i, [0], frames[i : i + 1], [crop()]) for i in range(2)]
    fresh = StreamingFusion(network, window=3, gap_s=0.1)
    fresh.update(0.0, [0], frames[:1], [crop()])
    (late,) = fresh.update(0.1, [0], frames[1:2], [crop()])
    fresh.update(0.2, [0], frames[2:], [crop()])
    assert torch.equal(early[1][0].prediction.joints_3d, late.prediction.joints_3d)


def test_history_counts_until_a_reset(network):
    frames = features(3)

    def second(stamps, tracks=(0, 0)):
        stream = StreamingFusion(network, window=3, gap_s=0.1, max_gap_s=0.5)
        stream.update(stamps[0], [tracks[0]], frames[:1], [crop()])
        return stream.update(stamps[1], [tracks[1]], frames[1:2], [crop()])[0].prediction.joints_3d

    alone = StreamingFusion(network, window=3, gap_s=0.1).update(0.0, [0], frames[1:2], [crop()])
    alone = alone[0].prediction.joints_3d
    assert not torch.allclose(second((0.0, 0.1)), alone, atol=1e-4)
    torch.testing.assert_close(second((0.0, 0.7)), alone)  # a long gap
    torch.testing.assert_close(second((5.0, 4.9)), alone)  # time ran backwards
    torch.testing.assert_close(second((0.0, 0.1), tracks=(0, 1)), alone)  # another hand


def test_bad_input_is_refused(network):
    for options in ({"window": 0}, {"lag": -1}, {"gap_s": 0.0}, {"max_gap_s": -1.0}):
        with pytest.raises(HandPerceptionError, match="positive"):
            StreamingFusion(network, **options)
    stream = StreamingFusion(network)
    with pytest.raises(HandPerceptionError, match="finite"):
        stream.update(math.nan, [0], features(1), [crop()])
    with pytest.raises(HandPerceptionError, match="different tracks"):
        stream.update(0.0, [0, 0], features(2), [crop(), crop()])
    assert stream.update(1.0, [], None, []) == []
