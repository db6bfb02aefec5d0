"""The streaming benchmark: what it answers, who takes turns, and what it refuses; no speeds."""

import os
import stat
import sys
import textwrap

import numpy as np
import pytest
import torch

from hand_perception.evaluation import streaming
from hand_perception.evaluation.streaming import (
    CHUNK,
    MediaPipeClock,
    benchmark_streaming,
    time_pipeline,
    time_windows,
)
from hand_perception.networks.deformer import Deformer, DeformerConfig
from hand_perception.sources import Frame
from hand_perception.types import HandPerceptionError

COMPACT = {"width": 64, "feedforward": 64, "hidden": (64,), "spatial_layers": 1, "heads": 4}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take minutes on a machine whose cores are all busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Deformer.build(DeformerConfig.from_dict(COMPACT | {"temporal_layers": 1})).eval()


@pytest.fixture
def fake_python(tmp_path):
    """An interpreter whose mediapipe sleeps and counts; it stands in for the real one."""
    package = tmp_path / "fake"
    package.mkdir()
    (package / "mediapipe.py").write_text(
        textwrap.dedent("""
        import time
        class Hands:
            def __init__(self, static_image_mode, max_num_hands, model_complexity):
                assert (static_image_mode, max_num_hands, model_complexity) == (False, 2, 1)
            def process(self, image):
                assert image.shape == (8, 8, 3)
                time.sleep(0.001)
                if image[0, 0, 0] == 99:
                    raise SystemError("frame 99 is too much")
            def close(self):
                pass
        class solutions:
            class hands:
                Hands = Hands
        """)
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={package} exec {sys.executable} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def tiny_clip(count):
    images = np.zeros((count, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images, [t / 30 for t in range(count)]


class Recorder:
    """A pipeline that notes the frames it gets."""

    def __init__(self):
        self.seen = []

    def process(self, image, camera, stamp_s):
        assert (camera.width, camera.height) == (8, 8)
        self.seen.append((int(image[0, 0, 0]), stamp_s))


def test_windows_are_timed_on_noise(network):
    answer = time_windows(network, *streaming._noise(20))
    assert answer.keys() == {"ratio_t7_t1", "ms_t7", "ms_t1"}
    assert all(value > 0 for value in answer.values())


def test_a_clip_too_short_for_a_window_is_refused(network):
    crops, stamps = streaming._noise(14)
    with pytest.raises(HandPerceptionError, match="0.47 s are needed"):
        time_windows(network, crops, stamps)


def test_weights_are_named(monkeypatch):
    monkeypatch.setattr(streaming, "time_windows", lambda *arguments: {"ratio_t7_t1": 1.0})
    monkeypatch.setattr(
        streaming, "_deformer", lambda *arguments: (torch.nn.Identity(), "untrained")
    )
    monkeypatch.setattr(streaming, "HandPerception", lambda *arguments, **options: None)
    monkeypatch.setattr(torch.nn.Identity, "config", DeformerConfig(), raising=False)
    answer = benchmark_streaming(frames=30)
    assert answer == {
        "method": "deformer",
        "frames": 30,
        "weights": "untrained",
        "ratio_t7_t1": 1.0,
    }


def test_pipeline_runs_every_frame_once_in_order():
    images, stamps = tiny_clip(3 * CHUNK + 4)
    recorder = Recorder()
    answer = time_pipeline(recorder, images, stamps)
    assert answer.keys() == {"frames_per_s"} and answer["frames_per_s"] > 0
    # A last chunk that is not full is left out.
    assert recorder.seen == list(zip(range(3 * CHUNK), stamps, strict=False))


def test_pipeline_beside_the_peer(fake_python):
    images, stamps = tiny_clip(3 * CHUNK)
    recorder = Recorder()
    answer = time_pipeline(recorder, images, stamps, mediapipe_python=fake_python)
    assert answer.keys() == {"frames_per_s", "mediapipe_frames_per_s", "ratio_to_mediapipe"}
    assert len(recorder.seen) == 3 * CHUNK
    # The peer sleeps at least a millisecond a frame; this side does nothing.
    assert 0 < answer["mediapipe_frames_per_s"] < 1000
    assert answer["ratio_to_mediapipe"] > 1


def test_a_peer_that_fails_says_why(fake_python, tmp_path):
    images, _ = tiny_clip(101)
    with MediaPipeClock(fake_python, images) as peer:
        assert peer.run(0, 5) >= 0.005
        with pytest.raises(HandPerceptionError, match="frame 99 is too much"):
            peer.run(95, 101)
    with pytest.raises(HandPerceptionError, match="cannot be run"):
        MediaPipeClock(tmp_path / "absent", images)
    assert not os.path.exists(peer._folder.name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"frames": 2 * CHUNK - 1}, "at least 30"),
        ({"mediapipe_python": "python"}, "needs a source"),
        ({"method": "landmark_fit", "weights": "some.safetensors"}, "takes no weights"),
        ({"weights": "absent.safetensors"}, "do not exist"),
        ({"method": "crystal_ball"}, "unknown"),
    ],
)
def test_refuses(arguments, says):
    with pytest.raises(HandPerceptionError, match=says):
        benchmark_streaming(**arguments)


def test_refuses_clips_that_are_none():
    image = np.zeros((64, 64, 3), np.uint8)
    frames = [Frame(image, t / 30, str(t)) for t in range(30)]
    with pytest.raises(HandPerceptionError, match="has 29 frames"):
        benchmark_streaming(frames[:29])
    with pytest.raises(HandPerceptionError, match="differ in size"):
        benchmark_streaming([*frames[:29], Frame(image[:32], 1.0, "30")])
    with pytest.raises(HandPerceptionError, match="no hand is found"):
        streaming._crops_of(np.stack([image] * 2), [0.0, 1 / 30])
