"""Palm decoding, boxes, and tracks; a stand-in detector plays the scenes."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from hand_perception.detection import (
    HandTracker,
    PalmDetector,
    Palms,
    TrackingOptions,
    anchor_centers,
    box_from_landmarks,
    box_from_palm,
    decode_palms,
    letterbox,
    overlap,
    suppress,
)
from hand_perception.types import Box, HandPerceptionError

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
IMAGE = np.zeros((480, 640, 3), np.uint8)
FPS = 30.0

# An open right hand, fingers up, as seen from its back: wrist at (0, 0), 1 unit to the middle tip.
HAND = np.array(
    [
        [0.0, 0.0],
        [-0.15, -0.08], [-0.26, -0.2], [-0.33, -0.3], [-0.39, -0.39],
        [-0.13, -0.47], [-0.16, -0.66], [-0.17, -0.78], [-0.18, -0.88],
        [0.0, -0.5], [0.0, -0.72], [0.0, -0.87], [0.0, -1.0],
        [0.12, -0.46], [0.14, -0.67], [0.15, -0.8], [0.16, -0.91],
        [0.22, -0.4], [0.27, -0.54], [0.3, -0.63], [0.32, -0.72],
    ]
)  # fmt: skip


def hand_at(x, y, size=120.0, angle=0.0, mirror=False):
    """Landmarks (21, 2) of a hand whose middle is at (x, y), turned clockwise."""
    points = (HAND - (0.0, -0.4)) * size * ((-1.0, 1.0) if mirror else (1.0, 1.0))
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def test_anchors():
    anchors = anchor_centers()
    assert anchors.shape == (2016, 2)
    assert anchors[0].tolist() == anchors[1].tolist() == [4.0, 4.0]
    assert anchors[2].tolist() == [12.0, 4.0]
    assert anchors[48].tolist() == [4.0, 12.0]
    assert anchors[1152].tolist() == anchors[1157].tolist() == [8.0, 8.0]
    assert anchors[1158].tolist() == [24.0, 8.0]
    assert anchors[2015].tolist() == [184.0, 184.0]


def test_decoding_by_hand():
    logits = np.full(2016, -5.0)
    geometry = np.zeros((2016, 18))
    logits[2], logits[1152] = 0.5, 2.0
    geometry[2, :6] = (3.0, -1.0, 20.0, 10.0, 7.0, 8.0)
    palms = decode_palms(logits, geometry, anchor_centers(), 0.5)
    assert palms.scores == pytest.approx([1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-0.5))])
    # Anchor 2 is centred at (12, 4): the box at (15, 3), 20 wide, 10 high.
    assert palms.boxes[1].tolist() == [5.0, -2.0, 25.0, 8.0]
    assert palms.points[1, 0].tolist() == [19.0, 12.0]
    assert palms.points[1, 1].tolist() == [12.0, 4.0]


def test_overlap():
    others = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    assert overlap(np.array([0.0, 0, 10, 10]), others) == pytest.approx([1.0, 50 / 150, 0.0])


def test_suppression_averages_by_score():
    boxes = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
    points = np.repeat(boxes[:, None, :2], 7, axis=1)
    palms = suppress(Palms(np.array([0.9, 0.6, 0.7]), boxes, points))
    assert palms.scores.tolist() == [0.9, 0.7]
    assert palms.boxes[0] == pytest.approx([0.8, 0.0, 10.8, 10.0])  # 2 * 0.6 / 1.5
    assert palms.points[0, 3] == pytest.approx([0.8, 0.0])
    assert palms.boxes[1].tolist() == [50, 50, 60, 60]


def test_suppression_of_nothing():
    palms = suppress(Palms(np.zeros(0), np.zeros((0, 4)), np.zeros((0, 7, 2))))
    assert palms.boxes.shape == (0, 4) and palms.points.shape == (0, 7, 2)


def test_letterbox_maps_pixels():
    image = np.zeros((360, 640, 3), np.uint8)
    image[100:110, 300:310] = 255
    picture, scale, offset = letterbox(image)
    assert picture.shape == (192, 192, 3) and offset.tolist() == [0, 42]
    weight = picture[:, :, 0].astype(float)
    rows, columns = np.mgrid[:192, :192] + 0.5
    centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    assert centre == pytest.approx((np.array([304.5, 104.5]) + 0.5) * scale + offset, abs=0.02)


def test_box_from_palm():
    points = np.zeros((7, 2))
    points[0], points[2] = (100.0, 150.0), (100.0, 100.0)
    box = box_from_palm(np.array([80.0, 100.0, 120.0, 140.0]), points)
    assert box.angle == 0 and box.size == pytest.approx(104.0)
    assert box.center == pytest.approx((100.0, 100.0))
    points[2] = (150.0, 150.0)  # fingers to the right: a quarter turn clockwise
    box = box_from_palm(np.array([80.0, 100.0, 120.0, 140.0]), points)
    assert box.angle == pytest.approx(np.pi / 2)
    assert box.center == pytest.approx((120.0, 120.0))


def test_box_from_landmarks_by_hand():
    """Knuckles are on average 0.0025 right of the wrist: almost no turn; the thumb's IP joint and
    the little PIP bound the width 0.6, wrist and middle PIP the height 0.72."""
    box = box_from_landmarks(HAND * 100)
    assert box.angle == pytest.approx(-0.25 / 48.25, abs=1e-4)
    assert box.size == pytest.approx(2 * 72, rel=0.01)
    assert box.center == pytest.approx((-3.0, -36.0 - 7.2), abs=0.4)


@pytest.mark.parametrize("angle", [0.5, -2.0, 3.0])
def test_box_turns_with_the_hand(angle):
    plain, turned = (box_from_landmarks(hand_at(300, 200, angle=a)) for a in (0.0, angle))
    assert np.angle(np.exp(1j * (turned.angle - plain.angle - angle))) == pytest.approx(0, abs=1e-9)
    assert turned.size == pytest.approx(plain.size)


class StandIn:
    """A detector and network that see the hands of a script: stamp -> [(landmarks, P(right))]."""

    def __init__(self, script):
        self.script = script
        self.stamp_s = 0.0
        self.searches = []

    def detect(self, image):
        self.searches.append(self.stamp_s)
        return [
            Box(b.center, b.size, b.angle, score=0.9)
            for b in (box_from_landmarks(points) for points, _ in self.script(self.stamp_s))
        ]

    def see(self, boxes):
        """What a network would see: the hand nearest to the middle of each box, if any is near."""
        hands = self.script(self.stamp_s)
        landmarks = np.zeros((len(boxes), 21, 2))
        presence, right = np.zeros(len(boxes)), np.full(len(boxes), 0.5)
        for row, box in enumerate(boxes):
            centers = [box_from_landmarks(points).center for points, _ in hands]
            distances = [np.hypot(*np.subtract(c, box.center)) for c in centers]
            if distances and min(distances) < 0.4 * box.size:
                points, score = hands[int(np.argmin(distances))]
                landmarks[row], presence[row] = points, 0.95
                right[row] = 1 - score if box.side == "left" else score
        return landmarks, presence, right


def play(script, stamps, **options):
    """The tracks of every frame, and the stand-in."""
    scene = StandIn(script)
    tracker = HandTracker(scene, TrackingOptions(**options))
    history = []
    for stamp in stamps:
        scene.stamp_s = stamp
        boxes = tracker.boxes(IMAGE, stamp)
        history.append(tracker.update(boxes, *scene.see(boxes), stamp))
    return history, scene


def frames(seconds, start=0.0):
    return start + np.arange(round(seconds * FPS)) / FPS


def test_two_hands_are_followed_without_duplicates():
    def script(t):
        return [(hand_at(200 + 40 * t, 240), 0.95), (hand_at(440, 240 - 30 * t, mirror=True), 0.05)]

    history, _ = play(script, frames(2.0))
    assert all(len(tracks) == 2 for tracks in history)
    assert {tuple((t.track_id, t.side) for t in tracks) for tracks in history} == {
        ((0, "right"), (1, "left"))
    }


def test_double_detections_of_a_hand_are_one_track():
    class Twice(StandIn):
        def detect(self, image):
            return [
                Box((box.center[0] + dx, box.center[1]), box.size, box.angle)
                for box in super().detect(image)
                for dx in (0.0, 40.0)
            ]

    scene = Twice(lambda t: [(hand_at(300, 240), 0.9)])
    tracker = HandTracker(scene)
    for stamp in frames(0.5):
        scene.stamp_s = stamp
        boxes = tracker.boxes(IMAGE, stamp)
        tracks = tracker.update(boxes, *scene.see(boxes), stamp)
        assert [t.track_id for t in tracks] == [0]


def test_side_does_not_flicker_with_noisy_scores():
    """A third of the frames says the wrong side, with confidence."""
    rng = np.random.default_rng(0)
    wrong = rng.random(300) < 1 / 3
    wrong[:3] = False

    def script(t):
        return [(hand_at(300, 240), 0.05 if wrong[round(t * FPS)] else 0.95)]

    history, _ = play(script, frames(10.0))
    assert {tracks[0].side for tracks in history} == {"right"}


def test_a_wrong_first_guess_is_corrected():
    history, _ = play(lambda t: [(hand_at(300, 240), 0.9 if t < 0.05 else 0.1)], frames(1.0))
    sides = [tracks[0].side for tracks in history]
    assert sides[0] == "right" and sides[-1] == "left"
    assert sum(a != b for a, b in itertools.pairwise(sides)) == 1


def test_two_tracks_never_share_a_side():
    history, _ = play(lambda t: [(hand_at(180, 240), 0.9), (hand_at(460, 240), 0.8)], frames(1.0))
    assert all({t.side for t in tracks} == {"left", "right"} for tracks in history)


def test_crossing_hands_keep_their_identity():
    """They pass each other a third of a hand apart."""

    def script(t):
        right = hand_at(140 + 180 * t, 260)
        left = hand_at(500 - 180 * t, 215, mirror=True)
        return [(right, 0.9), (left, 0.1)]

    history, _ = play(script, frames(2.0))
    first, last = history[0], history[-1]
    assert [(t.track_id, t.side) for t in first] == [(t.track_id, t.side) for t in last]
    assert [t.side for t in last] == ["right", "left"]
    assert last[0].center[0] > 450 and last[1].center[0] < 190


def test_identity_survives_boxes_that_slip_onto_the_other_hand():
    """Both networks saw the other track's hand: sides and places say so."""
    scene = StandIn(lambda t: [(hand_at(260, 240), 0.95), (hand_at(380, 240, mirror=True), 0.05)])
    tracker = HandTracker(scene)
    for stamp in frames(0.5):
        boxes = tracker.boxes(IMAGE, stamp)
        landmarks, presence, right = scene.see(boxes)
        tracker.update(boxes, landmarks, presence, right, stamp)
    boxes = tracker.boxes(IMAGE, 0.5)
    landmarks, presence, _ = scene.see(boxes)
    # Row 0 (right, plain crop) holds the left hand; row 1 (left, mirrored crop) the right one.
    tracks = tracker.update(boxes, landmarks[::-1], presence, np.array([0.05, 0.05]), 0.5)
    assert [(t.track_id, t.row, t.side) for t in tracks] == [(0, 1, "right"), (1, 0, "left")]


def test_a_hand_that_returns_is_found_within_200_ms():
    """While another hand is followed, so that the detector does not run on each frame."""

    def script(t):
        steady = [(hand_at(160, 240), 0.95)]
        away = 1.0 <= t < 2.01
        return steady if away else [*steady, (hand_at(460, 240, mirror=True), 0.05)]

    stamps = frames(3.0)
    history, scene = play(script, stamps)
    found = np.array([len(tracks) for tracks in history])
    assert (found[stamps < 0.99] == 2).all()
    assert (found[(stamps > 1.01) & (stamps < 2.0)] == 1).all()
    assert stamps[(stamps > 2.01) & (found == 2)].min() - 2.01 < 0.2
    assert history[-1][1].side == "left"
    # Seen by the detector: the first frame, then rarely while both are followed.
    assert sum(s < 0.99 for s in scene.searches) <= 2
    while_free = sum(1.05 < s < 2.0 for s in scene.searches)
    assert 8 <= while_free <= 11


def test_the_detector_runs_on_every_frame_without_hands_and_right_after_a_loss():
    history, scene = play(lambda t: [], frames(0.5))
    assert len(scene.searches) == 15 and not any(history)
    stamps = frames(0.4)
    jump = stamps[6]
    _, scene = play(lambda t: [(hand_at(150 if t < jump else 500, 240), 0.9)], stamps)
    assert stamps[7] in scene.searches


def test_boxes_lead_a_moving_hand():
    scene = StandIn(lambda t: [(hand_at(100 + 300 * t, 240), 0.9)])
    tracker = HandTracker(scene)
    for stamp in frames(0.5):
        scene.stamp_s = stamp
        boxes = tracker.boxes(IMAGE, stamp)
        tracker.update(boxes, *scene.see(boxes), stamp)
    now = box_from_landmarks(hand_at(100 + 300 * 0.5, 240)).center
    (box,) = [b for b in tracker.boxes(IMAGE, 0.5) if b.track_id == 0]
    assert box.center == pytest.approx(now, abs=1e-6) and box.side == "right"


@pytest.mark.parametrize("stamp", [0.2, 5.0], ids=["backward", "gap"])
def test_time_jumps_reset(stamp):
    scene = StandIn(lambda t: [(hand_at(300, 240), 0.9)])
    tracker = HandTracker(scene)
    for now in frames(0.5):
        boxes = tracker.boxes(IMAGE, now)
        tracker.update(boxes, *scene.see(boxes), now)
    searches = len(scene.searches)
    boxes = tracker.boxes(IMAGE, stamp)
    assert len(scene.searches) == searches + 1
    assert [box.track_id for box in boxes] == [-1] and boxes[0].side is None


def test_low_presence_drops_a_track_and_nan_does_too():
    for bad in ("presence", "nan"):
        scene = StandIn(lambda t: [(hand_at(300, 240), 0.9)])
        tracker = HandTracker(scene)
        boxes = tracker.boxes(IMAGE, 0.0)
        tracker.update(boxes, *scene.see(boxes), 0.0)
        boxes = tracker.boxes(IMAGE, 0.03)
        landmarks, presence, right = scene.see(boxes)
        if bad == "presence":
            presence[:] = 0.3
        else:
            landmarks[0, 3, 0] = np.nan
        assert tracker.update(boxes, landmarks, presence, right, 0.03) == []


def test_one_hand_only():
    script = [(hand_at(180, 240), 0.9), (hand_at(460, 240, mirror=True), 0.1)]
    history, _ = play(lambda t: script, frames(1.5), num_hands=1)
    assert {tuple(t.track_id for t in tracks) for tracks in history} == {(0,)}


def test_bad_input():
    tracker = HandTracker(StandIn(lambda t: []))
    with pytest.raises(HandPerceptionError, match="finite time"):
        tracker.boxes(IMAGE, np.nan)
    with pytest.raises(HandPerceptionError, match="1 boxes need"):
        tracker.update([Box((1, 1), 2)], np.zeros((2, 21, 2)), np.zeros(1), np.zeros(1), 0.0)
    for options in ({"num_hands": 3}, {"min_presence": 2.0}, {"search_interval_s": -1.0}):
        with pytest.raises(HandPerceptionError, match=next(iter(options))):
            HandTracker(StandIn(lambda t: []), TrackingOptions(**options))


@pytest.fixture(scope="module")
def detector():
    return PalmDetector.load()


def test_detector_refuses_other_images(detector):
    for image in (np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3)), np.zeros((0, 4, 3), "u1")):
        with pytest.raises(HandPerceptionError, match="uint8 RGB"):
            detector.detect(image)


def test_nothing_in_an_empty_image(detector):
    assert detector.detect(IMAGE) == []


@pytest.mark.parametrize(
    ("photo", "square"),
    [
        ("call_0413d5c5-f5ba-476f-a921-ea5e967692a9.jpg", (294, 104, 383, 194)),
        ("four_105f8f8e-ccd6-45a0-b22a-e314930bc13e.jpg", (172, 83, 295, 205)),
        ("none_00b85ea4-8c5d-4302-b847-0a5de1d7dab2.jpg", (7, 97, 119, 209)),
        ("rock_026fd791-8f64-4fae-8cb0-0e01dc4362ce.jpg", (26, 113, 140, 227)),
    ],
)
def test_photos(detector, photo, square):
    """The hand that mediapipe 0.10.14 finds (box_from_landmarks of its answer, turn ignored)."""
    path = SHARED_DATA / "images" / "gestures_hagrid" / photo
    if not path.is_file():
        pytest.skip("the photos are not in ../shared/data")
    (box,) = detector.detect(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))
    half = box.size / 2
    found = np.array([*np.subtract(box.center, half), *np.add(box.center, half)])
    assert overlap(found, np.array([square], float))[0] > 0.6
    assert box.score > 0.6 and box.side is None


def test_a_hand_that_blur_hides_for_a_moment_comes_back_as_itself():
    """Same identity and same side, even if the first look after the gap takes it for the other."""
    tracker = HandTracker(StandIn(lambda _: []))
    points = hand_at(200.0, 200.0)

    def see(stamp, right, presence=0.99):
        tracker.boxes(IMAGE, stamp)
        unknown = box_from_landmarks(points)
        return tracker.update([unknown], points[None], [presence], [right], stamp)

    first = [see(k / 30, 0.99) for k in range(6)][-1][0]
    assert first.side == "right"
    assert see(6 / 30, 0.99, presence=0.1) == []
    back = see(12 / 30, 0.2)[0]
    assert (back.track_id, back.side) == (first.track_id, "right")
    assert see(13 / 30, 0.99, presence=0.1) == []
    # After more than a second it is a new hand, judged by what is seen of it now.
    for k in range(14, 50):
        see(k / 30, 0.5, presence=0.1)
    late = see(50 / 30, 0.2)[0]
    assert late.track_id != first.track_id
    assert late.side == "left"
