"""MediaPipe Hands over pictures, landmarks into an .npz; run by an interpreter that has mediapipe.

    python mediapipe_peer.py OUT.npz MAX_FRAMES {video FILE | sequence FILE... | photos FILE...}

It imports nothing of this package: both may need different versions of the same library.
One row a hand: frame (index), right (really a right hand), score, joints_2d (21, 2) pixels,
world (21, 3) metres; and per frame seconds (of the call alone). A video and a sequence are
tracked, photos are not. MAX_FRAMES 0 is all. MediaPipe names sides as seen in a mirror; they
are swapped here.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import cv2
import numpy as np


def frames(kind: str, files: Sequence[str]) -> Iterator[Any]:
    """BGR images, one after the other."""
    if kind != "video":
        for file in files:
            yield cv2.imread(file)
        return
    capture = cv2.VideoCapture(files[0])
    while True:
        good, image = capture.read()
        if not good:
            return
        yield image


def main(out: str, max_frames: int, kind: str, files: Sequence[str]) -> None:
    """Run MediaPipe and write what it finds."""
    mp: Any = import_module("mediapipe")
    rows: dict[str, list[Any]] = {
        name: [] for name in ("frame", "right", "score", "joints_2d", "world")
    }
    seconds = []
    hands = mp.solutions.hands.Hands(
        static_image_mode=kind == "photos", max_num_hands=2, model_complexity=1
    )
    for index, image in enumerate(frames(kind, files)):
        if max_frames and index >= max_frames:
            break
        height, width = image.shape[:2]
        rgb = np.ascontiguousarray(image[..., ::-1])
        started = time.perf_counter()
        result = hands.process(rgb)
        seconds.append(time.perf_counter() - started)
        for landmarks, world, side in zip(
            result.multi_hand_landmarks or (),
            result.multi_hand_world_landmarks or (),
            result.multi_handedness or (),
        ):
            label = side.classification[0]
            rows["frame"].append(index)
            rows["right"].append(label.label == "Left")
            rows["score"].append(label.score)
            rows["joints_2d"].append([(p.x * width, p.y * height) for p in landmarks.landmark])
            rows["world"].append([(p.x, p.y, p.z) for p in world.landmark])
    hands.close()
    arrays: dict[str, Any] = {name: np.array(values) for name, values in rows.items()}
    arrays["joints_2d"] = arrays["joints_2d"].reshape(-1, 21, 2)
    arrays["world"] = arrays["world"].reshape(-1, 21, 3)
    np.savez(out, seconds=np.array(seconds), version=np.array(mp.__version__), **arrays)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
