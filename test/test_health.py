"""What diagnostics say for given counts and times, and what waits for the worker."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from hand_perception.ros.health import ERROR, OK, WARN, Health, Report
from hand_perception.ros.inbox import Inbox, Received

MS = 1_000_000


def feed(health: Health, lost: set[int], *, count: int = 60, announce: bool = True) -> Report:
    """Two seconds of a 30 Hz camera whose images with the given numbers are lost on the way."""
    for i in range(count):
        now, stamp = i / 30, 33 * MS * i
        if announce:
            health.camera_info_received(now, stamp)
        if i not in lost:
            health.image_received(now, stamp)
            health.frame_processed(now + 0.02, latency_s=0.02, input_age_s=0.005, tracks=2)
    return health.report(count / 30, {"method": "m"})


LOST = "lost on the way, last 5 s (estimate)"


def test_a_healthy_stream():
    report = feed(Health(), set())
    assert (report.level, report.message) == (OK, "running")
    values = report.values
    assert values["input rate (Hz)"] == values["output rate (Hz)"] == "30.0"
    assert values["latency p50 (ms)"] == values["latency p95 (ms)"] == "20.0"
    assert values["input age (ms)"] == "5.0"
    assert (values["frames in"], values["frames processed"], values["tracks"]) == ("60", "60", "2")
    assert values[LOST] == "0 of 60"
    assert values["method"] == "m"
    assert float(values["memory (MiB)"]) > 1


@pytest.mark.parametrize("announce", [True, False])
def test_lost_images_are_seen_by_camera_info_or_by_gaps(announce):
    report = feed(Health(), lost=set(range(10, 50, 4)), announce=announce)
    assert report.values[LOST] == "10 of 60"
    assert report.level == WARN
    assert "config/fastdds_large_images.xml" in report.message
    assert feed(Health(), lost={7}, announce=announce).level == OK


def test_nearly_all_images_lost():
    report = feed(Health(), lost=set(range(60)) - {0, 30})
    assert report.values[LOST] == "57 of 59"
    assert report.level == WARN


def test_camera_info_out_of_step_says_nothing():
    health = Health()
    for i in range(30):
        health.camera_info_received(i / 30, 33 * MS * i + 7)
        health.image_received(i / 30, 33 * MS * i)
    assert health.report(1.0, {}).values[LOST] == "0 of 30"


def test_silence_and_faults():
    health = Health()
    assert health.report(0.0, {}).message == "no image received yet"
    feed(health, set())
    report = health.report(4.0, {})
    assert (report.level, report.message) == (WARN, "no image for 2.0 s")
    health.frame_failed("unusable image", "the image is empty")
    report = health.report(4.1, {})
    assert (report.level, report.message) == (ERROR, "the image is empty")
    assert report.values["dropped: unusable image"] == report.values["frames dropped"] == "1"
    health.image_received(4.2, 0)
    health.frame_processed(4.2, latency_s=0.01, input_age_s=0.0, tracks=0)
    assert health.report(4.3, {}).level == OK


def test_drops_are_counted_by_reason():
    health = Health()
    for reason in ("b", "a", "b"):
        health.frame_dropped(reason)
    values = health.report(0.0, {}).values
    assert (values["dropped: a"], values["dropped: b"], values["frames dropped"]) == ("1", "2", "3")


def test_the_newest_image_wins():
    inbox = Inbox()
    assert not inbox.put(Received("first", 0.0))
    assert inbox.put(Received("second", 0.1))
    assert inbox.take() == Received("second", 0.1)
    assert not inbox.put(Received("third", 0.2))


def test_closing_wakes_the_worker():
    inbox = Inbox()
    taken = []
    worker = threading.Thread(target=lambda: taken.append(inbox.take()))
    worker.start()
    inbox.close()
    worker.join(timeout=10)
    assert taken == [None]
    inbox.put(Received("late", 0.0))
    assert inbox.take() is None


def depth_at(milliseconds: int) -> SimpleNamespace:
    stamp = SimpleNamespace(sec=0, nanosec=milliseconds * MS)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp))


def test_depth_is_matched_by_stamp():
    inbox = Inbox()
    early, near, late = depth_at(100), depth_at(133), depth_at(166)
    for message in (early, near, late):
        inbox.put_depth(message)
    assert inbox.depth_near(130 * MS, 0.005) is near
    assert inbox.depth_near(160 * MS, 0.1) is late
    assert inbox.depth_near(120 * MS, 0.005) is None


def test_depth_that_comes_a_little_later_is_waited_for():
    inbox = Inbox()
    late = depth_at(100)
    timer = threading.Timer(0.02, inbox.put_depth, [late])
    timer.start()
    assert inbox.depth_near(100 * MS, 10.0) is late
    timer.join()
