"""The pictures that the converted networks are compared on (tools/convert_mediapipe.py)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

PHOTOS = {
    "rock": (
        "images/gestures_hagrid/rock_026fd791-8f64-4fae-8cb0-0e01dc4362ce.jpg",
        (40, 106, 117),
    ),
    "four": (
        "images/gestures_hagrid/four_105f8f8e-ccd6-45a0-b22a-e314930bc13e.jpg",
        (184, 79, 112),
    ),
}
"""Name -> file below the shared data, and the square (left, top, side) around its hand."""


def reference_picture(name: str, size: int, data: Path) -> np.ndarray:
    """The picture (size, size, 3) uint8 RGB of a name: "generated", or one of `PHOTOS`."""
    if name == "generated":
        return generated_picture(size)
    file, (left, top, side) = PHOTOS[name]
    image = cv2.cvtColor(cv2.imread(str(data / file)), cv2.COLOR_BGR2RGB)
    part = image[top : top + side, left : left + side]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)


def generated_picture(size: int) -> np.ndarray:
    """Something like an open hand: a skin-coloured palm and five fingers before a pattern."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    wave = 0.5 + 0.25 * np.sin(19 * x + 7 * y) + 0.25 * np.cos(11 * y - 5 * x * y)
    picture = wave[..., None] * np.array([0.35, 0.45, 0.4])
    hand = ((x - 0.5) / 0.16) ** 2 + ((y - 0.66) / 0.18) ** 2 < 1
    tips = ((0.22, 0.5), (0.37, 0.22), (0.49, 0.16), (0.61, 0.21), (0.72, 0.31))
    for tip_x, tip_y in tips:
        along = np.array([tip_x - 0.5, tip_y - 0.68])
        t = ((x - 0.5) * along[0] + (y - 0.68) * along[1]) / (along @ along)
        t = np.clip(t, 0, 1)
        hand |= np.hypot(x - 0.5 - t * along[0], y - 0.68 - t * along[1]) < 0.034
    light = 0.75 + 0.25 * np.cos(6 * (x - 0.4)) * np.cos(5 * (y - 0.5))
    skin = light[..., None] * np.array([0.85, 0.62, 0.5])
    return np.round(255 * np.where(hand[..., None], skin, picture)).astype(np.uint8)
