"""MediaPipe Hands against the clock; run by an interpreter that has mediapipe.

    python mediapipe_clock.py FRAMES.npy

FRAMES.npy holds RGB frames (N, H, W, 3) uint8. Each line on stdin, "START END", asks for these
frames to be tracked, following on those before; the answer is a line with the seconds that the
calls alone took. It imports nothing of this package: both may need different versions of a library.
"""

import sys
import time
from importlib import import_module
from typing import Any

import numpy as np


def main(path: str) -> None:
    """Answer until stdin ends."""
    mp: Any = import_module("mediapipe")
    frames = np.load(path, mmap_mode="r")
    hands = mp.solutions.hands.Hands(static_image_mode=False, max_num_hands=2, model_complexity=1)
    for line in sys.stdin:
        start, end = map(int, line.split())
        images = np.array(frames[start:end])
        began = time.perf_counter()
        for image in images:
            hands.process(image)
        print(time.perf_counter() - began, flush=True)
    hands.close()


if __name__ == "__main__":
    main(sys.argv[1])
