"""Image -> one box a hand: palm detection, boxes from landmarks, and tracks between frames.

The rules that turn palms and landmarks into boxes are MediaPipe's (hand_landmark module of
mediapipe 0.10.14: palm_detection_detection_to_roi and hand_landmark_landmarks_to_roi).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from hand_perception.networks.layers import PALM_SIZE, PalmNetwork
from hand_perception.types import Box, FloatArray, HandPerceptionError, Side

PALM_JOINTS = (0, 5, 9, 13, 17, 1, 2)
"""The 7 points of a palm among the 21 joints."""
RIGID_JOINTS = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
"""The joints that a box is fitted to: fingertips would make it jump."""


class Palms(NamedTuple):
    """N palms, best first."""

    scores: FloatArray
    """(N,) probabilities."""
    boxes: FloatArray
    """(N, 4) left, top, right, bottom."""
    points: FloatArray
    """(N, 7, 2) in the order of `PALM_JOINTS`."""


def anchor_centers() -> FloatArray:
    """Centres (2016, 2) of the palm network's anchors, pixels of its 192 px input.

    2 anchors a cell of the 24x24 map, then 6 a cell of the 12x12 map, row by row.
    """
    centers = []
    for stride, repeats in ((8, 2), (16, 6)):
        side = PALM_SIZE // stride
        rows, columns = np.mgrid[:side, :side]
        cells = np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5
        centers.append(np.repeat(cells * stride, repeats, axis=0))
    return np.concatenate(centers)


def decode_palms(
    logits: FloatArray, geometry: FloatArray, anchors: FloatArray, min_score: float
) -> Palms:
    """Palms above a score, not yet suppressed, from the network's answer for one picture.

    logits (2016,), geometry (2016, 18) as of `PalmNetwork.forward`; pixels of its input.
    """
    scores = 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -100.0, 100.0)))
    keep = np.flatnonzero(scores >= min_score)
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    raw = geometry[keep].astype(np.float64)
    centers = raw[:, :2] + anchors[keep]
    half = raw[:, 2:4] / 2
    boxes = np.concatenate([centers - half, centers + half], axis=1)
    points = raw[:, 4:].reshape(-1, 7, 2) + anchors[keep][:, None]
    return Palms(scores[keep], boxes, points)


def suppress(palms: Palms, max_overlap: float = 0.3) -> Palms:
    """Weighted non-maximum suppression: each palm becomes the score-weighted mean of those that
    overlap it by more than an intersection over union; it keeps its own score."""
    left = np.arange(len(palms.scores))
    merged: list[tuple[float, FloatArray, FloatArray]] = []
    while len(left):
        best = left[0]
        same = overlap(palms.boxes[best], palms.boxes[left]) > max_overlap
        same[0] = True
        members = left[same]
        weights = palms.scores[members] / palms.scores[members].sum()
        box = weights @ palms.boxes[members]
        points = np.tensordot(weights, palms.points[members], axes=1)
        merged.append((float(palms.scores[best]), box, points))
        left = left[~same]
    return Palms(
        np.array([score for score, _, _ in merged]),
        np.array([box for _, box, _ in merged]).reshape(-1, 4),
        np.array([points for _, _, points in merged]).reshape(-1, 7, 2),
    )


def overlap(box: FloatArray, others: FloatArray) -> FloatArray:
    """Intersection over union (N,) of a box (4,) with others (N, 4): left, top, right, bottom."""
    top_left = np.maximum(box[:2], others[:, :2])
    bottom_right = np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=1)
    areas = np.prod(np.maximum(others[:, 2:] - others[:, :2], 0.0), axis=1)
    area = np.prod(np.maximum(box[2:] - box[:2], 0.0))
    return shared / np.maximum(area + areas - shared, 1e-9)


def _upright_angle(wrist: FloatArray, knuckle: FloatArray) -> float:
    """Clockwise turn in the image, (-pi, pi], of the direction wrist -> knuckle from upwards."""
    x, y = knuckle - wrist
    return float(np.arctan2(x, -y))


def box_from_palm(box: FloatArray, points: FloatArray, score: float = 1.0) -> Box:
    """The box around the hand of a palm: box (4,), points (7, 2), image pixels.

    Turned by wrist -> middle knuckle, moved half a palm towards the fingers, 2.6 times the palm.
    """
    angle = _upright_angle(points[0], points[2])
    width, height = box[2:] - box[:2]
    center = (box[:2] + box[2:]) / 2 + 0.5 * height * np.array([np.sin(angle), -np.cos(angle)])
    size = 2.6 * float(max(width, height))
    return Box((float(center[0]), float(center[1])), size, angle, score=score)


def box_from_landmarks(landmarks: FloatArray) -> Box:
    """The box around 21 landmarks (21, 2), image pixels.

    Turned by wrist -> mean knuckle (middle counts half, index and ring a quarter each), twice
    the extent of `RIGID_JOINTS` in that turn, moved a tenth of its height towards the fingers.
    """
    index, middle, ring = landmarks[5], landmarks[9], landmarks[13]
    angle = _upright_angle(landmarks[0], (index + ring) / 4 + middle / 2)
    right = np.array([np.cos(angle), np.sin(angle)])
    down = np.array([-np.sin(angle), np.cos(angle)])
    upright = landmarks[list(RIGID_JOINTS)] @ np.stack([right, down], axis=1)
    low, high = upright.min(axis=0), upright.max(axis=0)
    width, height = high - low
    x, y = (low + high) / 2 - (0.0, 0.1 * height)
    center = x * right + y * down
    return Box((float(center[0]), float(center[1])), float(2.0 * max(width, height)), angle)


class PalmDetector:
    """Finds hands in a whole image by their palms; the sides stay unknown."""

    def __init__(self, network: PalmNetwork, min_score: float = 0.5) -> None:
        self._network = network
        self._min_score = min_score
        self._anchors = anchor_centers()

    @classmethod
    def load(
        cls, path: Path | str | None = None, device: str = "cpu", min_score: float = 0.5
    ) -> PalmDetector:
        """A detector with weights from a file; None takes the shipped ones."""
        return cls(PalmNetwork.load(path).to(device), min_score)

    def palms(self, image: NDArray[np.uint8]) -> Palms:
        """Palms of an image (H, W, 3) uint8 RGB, in image pixels."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise HandPerceptionError(
                f"image is {image.dtype} of shape {image.shape}; uint8 RGB (height, width, 3) "
                "is needed"
            )
        picture, scale, offset = letterbox(image)
        device = next(self._network.parameters()).device
        tensor = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 255.0
        with torch.inference_mode():
            logits, geometry = self._network(tensor)
        palms = suppress(
            decode_palms(
                logits[0].cpu().numpy(), geometry[0].cpu().numpy(), self._anchors, self._min_score
            )
        )
        boxes = (palms.boxes.reshape(-1, 2, 2) - offset) / scale - 0.5
        return Palms(palms.scores, boxes.reshape(-1, 4), (palms.points - offset) / scale - 0.5)

    def detect(self, image: NDArray[np.uint8]) -> list[Box]:
        """Boxes of the hands in an image (H, W, 3) uint8 RGB, best first, side None."""
        return [
            box_from_palm(box, points, float(score))
            for score, box, points in zip(*self.palms(image), strict=True)
        ]


def letterbox(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], FloatArray, FloatArray]:
    """An image in the middle of a black square of the palm network's size, proportions kept.

    Returns the picture, and scale (2,) and offset (2,) with
    `picture = (image + 0.5) * scale + offset` (the picture's first pixel is centred at 0.5).
    """
    height, width = image.shape[:2]
    factor = PALM_SIZE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    left, top = (PALM_SIZE - size[0]) // 2, (PALM_SIZE - size[1]) // 2
    picture = np.zeros((PALM_SIZE, PALM_SIZE, 3), np.uint8)
    picture[top : top + size[1], left : left + size[0]] = cv2.resize(
        image, size, interpolation=interpolation
    )
    return picture, np.array(size) / (width, height), np.array([left, top], np.float64)


class Detector(Protocol):
    """What `HandTracker` needs of a detector."""

    def detect(self, image: NDArray[np.uint8]) -> list[Box]:
        """Boxes of the hands in an image, best first."""


@dataclass(frozen=True)
class Track:
    """One hand followed over time, as of its last update."""

    track_id: int
    side: Side
    """Settled by all frames so far; `box.side` is what its crop assumed, None in a first frame."""
    row: int
    """Which row of the last update's arrays it took."""
    box: Box
    """The box that its landmarks came from."""
    landmarks: FloatArray
    """(21, 2) image pixels."""
    presence: float
    velocity: FloatArray
    """(2,) of the hand's centre, pixels per second."""
    evidence: float
    """Sum of log odds for a right hand, bounded."""

    @property
    def center(self) -> FloatArray:
        """Mean of the rigid joints (2,), image pixels."""
        return self.landmarks[list(RIGID_JOINTS)].mean(axis=0)

    @property
    def bounds(self) -> FloatArray:
        """Left, top, right, bottom (4,) of the landmarks, image pixels."""
        return np.concatenate([self.landmarks.min(axis=0), self.landmarks.max(axis=0)])

    @property
    def extent(self) -> float:
        """Longer side of the landmarks' bounds, image pixels."""
        return float(max(np.ptp(self.landmarks, axis=0).max(), 1.0))


@dataclass(frozen=True)
class TrackingOptions:
    """How `HandTracker` follows hands; durations go by image stamps."""

    num_hands: int = 2
    min_presence: float = 0.5
    """A track below is lost, a detection below is no hand."""
    search_interval_s: float = 0.1
    """The detector looks for further hands this often while one is followed."""
    refresh_interval_s: float = 1.0
    """It also checks this often when all hands are followed."""
    max_gap_s: float = 1.0
    """After a longer silence the tracks mean nothing."""
    max_motion: float = 0.3
    """A prediction moves a box by at most this part of its size."""
    same_hand: float = 0.2
    """Two palms are one hand when their joints are this close, in hand extents."""
    same_place: float = 0.3
    """A newcomer is no other hand when its bounds overlap a followed hand's by more (IoU)."""
    switch_evidence: float = 3.0
    """Log odds against its side at which a track changes sides."""


MAX_EVIDENCE = 8.0
"""Log odds at which more frames add nothing: how long it takes to change a mind."""
FRAME_EVIDENCE = 2.0
"""Log odds that one frame adds at most."""
NEAR_BOX = 0.15
"""A detection within this part of a followed hand's box from its centre is that hand."""
REJOIN_S = 1.0
REJOIN_DISTANCE = 2.0
"""A newcomer within this time, and this many hand extents, of a lost hand is that hand again."""
MAX_JUMP = 1.0
"""Farther than this, in hand extents, from the predicted place it is another hand."""


class HandTracker:
    """Follows up to `num_hands` hands: boxes for a frame, then what the network saw in them.

        boxes = tracker.boxes(image, stamp_s)
        ... landmarks of the crops of these boxes ...
        tracks = tracker.update(boxes, landmarks, presence, right_score, stamp_s)

    A box follows its hand's last landmarks at constant velocity. The detector runs on each frame
    while no hand is followed, on the frame after a loss, every `search_interval_s` while a slot
    is free, and every `refresh_interval_s` otherwise.
    """

    def __init__(self, detector: Detector, options: TrackingOptions | None = None) -> None:
        self._detector = detector
        self._options = options or TrackingOptions()
        _check_options(self._options)
        self.reset()

    def reset(self) -> None:
        """Forget all hands."""
        self._tracks: list[Track] = []
        self._lost: dict[int, tuple[float, Track]] = {}
        self._stamp_s: float | None = None
        self._searched_s: float | None = None
        self._next_id = 0

    @property
    def tracks(self) -> list[Track]:
        """The hands as of the last update, in the order in which they were found."""
        return list(self._tracks)

    def boxes(self, image: NDArray[np.uint8], stamp_s: float) -> list[Box]:
        """Where to look for hands in an image (H, W, 3) uint8 RGB of a stamp, seconds."""
        self._advance(stamp_s)
        height, width = image.shape[:2]
        boxes = [self._predict(track, stamp_s, width, height) for track in self._tracks]
        if self._should_search(stamp_s):
            self._searched_s = stamp_s
            boxes = self._merge(boxes, self._detector.detect(image))
        return boxes

    def update(
        self,
        boxes: list[Box],
        landmarks: FloatArray,
        presence: FloatArray,
        right_score: FloatArray,
        stamp_s: float,
    ) -> list[Track]:
        """The hands that these n boxes showed; lost and doubled ones are dropped.

        landmarks (n, 21, 2) image pixels, presence (n,), right_score (n,) as the network saw the
        crop: for a box of side "left", whose crop is mirrored, it is turned round here.
        """
        landmarks = np.asarray(landmarks, np.float64)
        presence = np.asarray(presence, np.float64)
        scores = np.asarray(right_score, np.float64)
        if landmarks.shape != (len(boxes), 21, 2) or not (
            presence.shape == scores.shape == (len(boxes),)
        ):
            raise HandPerceptionError(
                f"{len(boxes)} boxes need landmarks ({len(boxes)}, 21, 2), presence and "
                f"right_score ({len(boxes)},); got {landmarks.shape}, {presence.shape}, "
                f"{scores.shape}"
            )
        right = np.array(
            [1 - s if box.side == "left" else s for box, s in zip(boxes, scores, strict=True)]
        )
        finite = np.isfinite(landmarks).all(axis=(1, 2)) & np.isfinite(presence + right)
        seen = [
            _observe(int(row), boxes[row], landmarks[row], float(presence[row]), float(right[row]))
            for row in np.flatnonzero(finite & (presence >= self._options.min_presence))
        ]
        dt = stamp_s - self._stamp_s if self._stamp_s is not None else 0.0
        before = {track.track_id for track in self._tracks}
        self._lost = {k: v for k, v in self._lost.items() if stamp_s - v[0] <= REJOIN_S}
        first_new = self._next_id
        tracks = self._associate(self._distinct(seen), dt)
        # A newcomer displaces a followed hand only if it is clearly more of a hand.
        tracks.sort(key=lambda t: -t.presence - (0.3 if t.track_id in before else 0.0))
        tracks = sorted(tracks[: self._options.num_hands], key=lambda t: t.track_id)  # oldest first
        gone = before - {track.track_id for track in tracks}
        self._lost |= {t.track_id: (stamp_s, t) for t in self._tracks if t.track_id in gone}
        self._tracks = self._with_sides(tracks, first_new)
        if gone:
            self._searched_s = None
        self._stamp_s = stamp_s
        return self.tracks

    def _advance(self, stamp_s: float) -> None:
        """Start anew when time runs backwards or nothing came for long."""
        if not np.isfinite(stamp_s):
            raise HandPerceptionError(f"stamp is {stamp_s}; it must be a finite time in seconds")
        times = [t for t in (self._stamp_s, self._searched_s) if t is not None]
        if times and not 0 <= stamp_s - max(times) <= self._options.max_gap_s:
            self.reset()

    def _should_search(self, stamp_s: float) -> bool:
        if not self._tracks or self._searched_s is None:
            return True
        full = len(self._tracks) >= self._options.num_hands
        options = self._options
        interval = options.refresh_interval_s if full else options.search_interval_s
        return stamp_s - self._searched_s >= interval - 1e-3

    def _motion(self, track: Track, dt: float) -> FloatArray:
        """How far (2,) a hand has probably moved, bounded."""
        motion = track.velocity * dt
        limit = self._options.max_motion * track.box.size
        return motion * min(1.0, limit / max(float(np.linalg.norm(motion)), 1e-9))

    def _predict(self, track: Track, stamp_s: float, width: int, height: int) -> Box:
        dt = stamp_s - self._stamp_s if self._stamp_s is not None else 0.0
        box = box_from_landmarks(track.landmarks)
        x, y = np.clip(box.center + self._motion(track, dt), 0.0, (width - 1.0, height - 1.0))
        return replace(
            box,
            center=(float(x), float(y)),
            side=track.side,
            score=track.presence,
            track_id=track.track_id,
        )

    def _merge(self, followed: list[Box], found: list[Box]) -> list[Box]:
        """Boxes of followed hands, then detections of others: one of them even without a slot."""
        fresh = [
            box
            for box in found
            if all(
                np.hypot(*np.subtract(box.center, other.center)) > NEAR_BOX * other.size
                for other in followed
            )
        ]
        slots = self._options.num_hands - len(followed)
        return followed + fresh[: max(slots, 1)]

    def _distinct(self, seen: list[Track]) -> list[Track]:
        """One observation a hand: of two on the same palm the one with more presence stays."""
        kept: list[Track] = []
        palm = list(PALM_JOINTS)
        for track in sorted(seen, key=lambda t: (t.box.track_id < 0, -t.presence)):
            limits = [self._options.same_hand * max(track.extent, k.extent) for k in kept]
            distances = [
                np.linalg.norm(track.landmarks[palm] - k.landmarks[palm], axis=1).mean()
                for k in kept
            ]
            apart = all(d > limit for d, limit in zip(distances, limits, strict=True))
            # A blurred hand is easily found a second time, turned: most of its place is taken.
            shares = [0.0] + [float(overlap(track.bounds, k.bounds[None])[0]) for k in kept]
            fresh = track.box.track_id < 0
            if apart and not (fresh and max(shares) > self._options.same_place):
                kept.append(track)
        return kept

    def _associate(self, seen: list[Track], dt: float) -> list[Track]:
        """Observations as continuations of the tracks that they fit best, or as new tracks.

        By distance from the predicted place, in hand extents, and by side: hands that pass each
        other keep their identity even where their boxes have slipped onto the other hand.
        """
        cost = np.zeros((len(self._tracks), len(seen)))
        for i, track in enumerate(self._tracks):
            place = track.center + self._motion(track, dt)
            for j, new in enumerate(seen):
                distance = np.linalg.norm(new.center - place) / track.extent
                wrong_side = max(0.0, -track.evidence * new.evidence)
                cost[i, j] = distance + 0.5 * wrong_side / (MAX_EVIDENCE * FRAME_EVIDENCE)
        assigned: dict[int, Track] = {}
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            if cost[i, j] < MAX_JUMP:
                assigned[j] = _continue(self._tracks[i], seen[j], dt)
        tracks = []
        for j, new in enumerate(seen):
            tracks.append(assigned.get(j) or self._rejoined(new) or self._started(new))
        return tracks

    def _rejoined(self, new: Track) -> Track | None:
        """A newcomer as the hand that was lost near its place a moment ago, by blur say."""
        near = {
            key: float(np.linalg.norm(new.center - track.center)) / track.extent
            for key, (_, track) in self._lost.items()
        }
        if not near or min(near.values()) > REJOIN_DISTANCE:
            return None
        _, track = self._lost.pop(min(near, key=lambda key: near[key]))
        return replace(_continue(track, new, 0.0), velocity=np.zeros(2))

    def _started(self, new: Track) -> Track:
        self._next_id += 1
        return replace(new, track_id=self._next_id - 1)

    def _with_sides(self, tracks: list[Track], first_new: int) -> list[Track]:
        """Settle sides: never two of a side, and none changes without strong evidence.

        Tracks with an identity below first_new have a side already.
        """
        if not tracks:
            return []
        # One number decides: log odds that the first track is the right hand and any other not.
        odds = tracks[0].evidence - sum(track.evidence for track in tracks[1:])
        if tracks[0].track_id < first_new:
            odds += self._options.switch_evidence * (1.0 if tracks[0].side == "right" else -1.0)
        first: Side = "right" if odds > 0 else "left"
        sides = (first, _other(first))
        return [replace(track, side=side) for track, side in zip(tracks, sides, strict=False)]


def _other(side: Side) -> Side:
    return "left" if side == "right" else "right"


def _observe(row: int, box: Box, landmarks: FloatArray, presence: float, right: float) -> Track:
    """What one box showed, as a track of a single frame; right is P(a right hand)."""
    odds = np.log(np.clip(right, 1e-3, 1 - 1e-3) / (1 - np.clip(right, 1e-3, 1 - 1e-3)))
    evidence = float(np.clip(odds, -FRAME_EVIDENCE, FRAME_EVIDENCE))
    side: Side = "right" if right > 0.5 else "left"
    return Track(-1, side, row, box, landmarks, presence, np.zeros(2), evidence)


def _continue(track: Track, new: Track, dt: float) -> Track:
    """A track with its next observation."""
    velocity = (new.center - track.center) / dt if dt > 1e-6 else track.velocity
    evidence = float(np.clip(track.evidence + new.evidence, -MAX_EVIDENCE, MAX_EVIDENCE))
    return replace(
        new, track_id=track.track_id, side=track.side, velocity=velocity, evidence=evidence
    )


def _check_options(options: TrackingOptions) -> None:
    if options.num_hands not in (1, 2):
        raise HandPerceptionError(f"num_hands is {options.num_hands}; it must be 1 or 2")
    if not 0 <= options.min_presence <= 1:
        raise HandPerceptionError(f"min_presence is {options.min_presence}; allowed is [0, 1]")
    for name in ("search_interval_s", "refresh_interval_s", "max_gap_s", "max_motion"):
        value = getattr(options, name)
        if not (np.isfinite(value) and value >= 0):
            raise HandPerceptionError(f"{name} is {value}; it must be finite and not negative")
