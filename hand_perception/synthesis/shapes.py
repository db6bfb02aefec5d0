"""Closed meshes of everyday shapes: solids of revolution, prisms, tubes and what they make up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hand_perception.synthesis.arrays import I32
from hand_perception.types import FloatArray

Parts = list[tuple[FloatArray, I32]]
"""Closed pieces of an object: vertices (N, 3) metres and faces (F, 3); they may overlap."""


def lathe(profile: list[tuple[float, float]], sections: int = 20) -> tuple[FloatArray, I32]:
    """A solid of revolution about y: a profile of (radius, y) from axis to axis."""
    inner = np.array([p for p in profile if p[0] > 0])
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    ring = np.stack([np.cos(angle), np.zeros(sections), np.sin(angle)], 1)
    rings = [r * ring + [0, y, 0] for r, y in inner]
    vertices = np.concatenate([*rings, [[0, profile[0][1], 0]], [[0, profile[-1][1], 0]]])
    k = np.arange(sections)
    after = np.roll(k, -1)
    faces = []
    for level in range(len(inner) - 1):
        a, b = level * sections, (level + 1) * sections
        faces += [
            np.stack([a + k, b + k, a + after], 1),
            np.stack([a + after, b + k, b + after], 1),
        ]
    bottom, top = len(vertices) - 2, len(vertices) - 1
    last = (len(inner) - 1) * sections
    faces.append(np.stack([np.full(sections, bottom), k, after], 1))
    faces.append(np.stack([np.full(sections, top), last + after, last + k], 1))
    return vertices, np.concatenate(faces).astype(np.int32)


def prism(outline: FloatArray, height: float, bevel: float = 0.0) -> tuple[FloatArray, I32]:
    """A convex outline (N, 2) in the xz plane swept along y, its ends drawn in by a bevel."""
    shrink = 1 - bevel / np.abs(outline).max()
    levels = [(1.0, -height / 2), (1.0, height / 2)]
    if bevel > 0:
        levels = [
            (shrink, -height / 2), (1.0, -height / 2 + bevel),
            (1.0, height / 2 - bevel), (shrink, height / 2),
        ]  # fmt: skip
    n = len(outline)
    rings = [np.stack([outline[:, 0] * s, np.full(n, y), outline[:, 1] * s], 1) for s, y in levels]
    vertices = np.concatenate([*rings, [[0, -height / 2, 0]], [[0, height / 2, 0]]])
    k = np.arange(n)
    after = np.roll(k, -1)
    faces = []
    for level in range(len(levels) - 1):
        a, b = level * n, (level + 1) * n
        faces += [
            np.stack([a + k, b + k, a + after], 1),
            np.stack([a + after, b + k, b + after], 1),
        ]
    last = (len(levels) - 1) * n
    faces.append(np.stack([np.full(n, len(vertices) - 2), k, after], 1))
    faces.append(np.stack([np.full(n, len(vertices) - 1), last + after, last + k], 1))
    return vertices, np.concatenate(faces).astype(np.int32)


def tube(path: FloatArray, radii: FloatArray, sections: int = 12) -> tuple[FloatArray, I32]:
    """Circles of radii (N,) along a path (N, 3), closed at both ends."""
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], [0.31, 0.17, 0.93])
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    rings = []
    for center, tangent, radius in zip(path, tangents, radii, strict=True):
        side = side - (side @ tangent) * tangent
        side /= np.linalg.norm(side)
        other = np.cross(tangent, side)
        circle = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other
        rings.append(center + radius * circle)
    n = sections
    vertices = np.concatenate([*rings, path[:1], path[-1:]])
    k = np.arange(n)
    after = np.roll(k, -1)
    faces = []
    for level in range(len(path) - 1):
        a, b = level * n, (level + 1) * n
        faces += [
            np.stack([a + k, a + after, b + k], 1),
            np.stack([a + after, b + after, b + k], 1),
        ]
    last = (len(path) - 1) * n
    faces.append(np.stack([np.full(n, len(vertices) - 2), after, k], 1))
    faces.append(np.stack([np.full(n, len(vertices) - 1), last + k, last + after], 1))
    return vertices, np.concatenate(faces).astype(np.int32)


def _box(x: float, y: float, z: float, bevel: float = 0.0) -> tuple[FloatArray, I32]:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [x / 2, z / 2]
    if bevel > 0:
        c = np.sign(corners)
        corners = np.concatenate(
            [
                [p - [s[0] * bevel, 0], p - [0, s[1] * bevel]]
                if s[0] * s[1] < 0
                else [p - [0, s[1] * bevel], p - [s[0] * bevel, 0]]
                for p, s in zip(corners, c, strict=True)
            ]
        )
    return prism(corners, y, bevel)


def _mm(profile: str, sections: int = 20) -> tuple[FloatArray, I32]:
    """A solid of revolution from a profile "radius,y radius,y ..." in millimetres."""
    points = [tuple(float(v) / 1000 for v in pair.split(",")) for pair in profile.split()]
    return lathe([(radius, y) for radius, y in points], sections)


def _polygon(sides: int, radius: float) -> FloatArray:
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def ball(x: float, y: float, z: float) -> tuple[FloatArray, I32]:
    """An ellipsoid of radii x, y, z."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 15)
    profile = [(0.0 if abs(np.cos(a)) < 1e-9 else np.cos(a), np.sin(a)) for a in angle]
    vertices, faces = lathe([(float(r), float(h)) for r, h in profile], 22)
    return vertices * [x, y, z], faces


def _arc(radius: float, start: float, stop: float, count: int = 12) -> FloatArray:
    angle = np.linspace(np.radians(start), np.radians(stop), count)
    return radius * np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], 1)


def _line(a: tuple[float, float, float], b: tuple[float, float, float], n: int = 6) -> FloatArray:
    return np.linspace(a, b, n)


def _cup(radius: float, height: float, wall: float, foot: float = 1.0) -> tuple[FloatArray, I32]:
    low, high, r = -height / 2, height / 2, radius
    return lathe(
        [(0, low), (r * foot, low), (r * (1 + foot) / 2, 0), (r, high), (r - wall, high),
         (r * (1 + foot) / 2 - wall, 0), (r * foot - wall, low + wall), (0, low + wall)]
    )  # fmt: skip


def _moved(part: tuple[FloatArray, I32], x: float, y: float, z: float) -> tuple[FloatArray, I32]:
    return part[0] + np.array([x, y, z]), part[1]


def _mug() -> Parts:
    handle = _arc(0.026, -75, 75) * [1, 1.1, 1] + [0.034, 0, 0]
    return [_cup(0.038, 0.092, 0.004), tube(handle, np.full(len(handle), 0.0055), 10)]


def _banana() -> Parts:
    path = _arc(0.11, -48, 48, 14)
    taper = np.sin(np.linspace(0.16, np.pi - 0.16, 14)) ** 0.45
    return [tube(path, 0.0185 * taper, 8)]


def _hammer() -> Parts:
    handle = tube(_line((0, -0.13, 0), (0, 0.11, 0)), np.array([15, 16, 14, 12, 11, 11]) / 1000)
    head = tube(_line((-0.05, 0.11, 0), (0.055, 0.11, 0)), np.array([8, 12, 15, 14, 14, 17]) / 1000)
    return [handle, head]


def _scissors() -> Parts:
    parts = []
    for sign in (-1, 1):
        ring = _arc(0.02, 0, 330) + [sign * 0.024, -0.06, sign * 0.002]
        blade = _line((sign * 0.01, -0.04, sign * 0.002), (-sign * 0.004, 0.09, sign * 0.002))
        parts += [tube(ring, np.full(12, 0.005), 8), tube(blade, np.linspace(0.006, 0.0025, 6), 6)]
    return parts


BUILDERS: dict[str, Callable[[], Parts]] = {
    "ball": lambda: [ball(0.034, 0.034, 0.034)],
    "small_ball": lambda: [ball(0.02, 0.02, 0.02)],
    "big_ball": lambda: [ball(0.055, 0.055, 0.055)],
    "egg": lambda: [ball(0.022, 0.029, 0.022)],
    "potato": lambda: [ball(0.032, 0.048, 0.027)],
    "cube": lambda: [_box(0.057, 0.057, 0.057, 0.002)],
    "block": lambda: [_box(0.03, 0.06, 0.03, 0.001)],
    "box": lambda: [_box(0.06, 0.12, 0.04)],
    "carton": lambda: [_box(0.07, 0.17, 0.05)],
    "matchbox": lambda: [_box(0.036, 0.054, 0.015)],
    "phone": lambda: [_box(0.071, 0.148, 0.0085, 0.003)],
    "remote": lambda: [_box(0.045, 0.17, 0.02, 0.004)],
    "book": lambda: [_box(0.13, 0.2, 0.022)],
    "card": lambda: [_box(0.054, 0.086, 0.0025)],
    "soda_can": lambda: [
        _mm("0,-61  26,-61  33,-53  33,50  27,61  0,61")
    ],
    "soup_can": lambda: [_mm("0,-51  34,-51  34,51  0,51", 24)],
    "spray_can": lambda: [
        _mm("0,-90  26,-90  26,60  18,70  16,90  0,90")
    ],
    "bottle": lambda: [
        _mm("0,-110  31,-110  33,-100  33,30  26,55  13,80  13,95  16,96  16,110  0,110")
    ],
    "jar": lambda: [
        _mm("0,-50  37,-50  40,-45  40,25  34,34  36,35  36,50  0,50")
    ],
    "glass": lambda: [_cup(0.035, 0.12, 0.003, 0.82)],
    "cup": lambda: [_cup(0.04, 0.085, 0.004, 0.7)],
    "mug": _mug,
    "bowl": lambda: [_cup(0.065, 0.05, 0.005, 0.5)],
    "plate": lambda: [_mm("0,-6  50,-6  90,8  88,11  50,0  0,0", 28)],
    "wine_glass": lambda: [
        _mm("0,-90  32,-89  5,-82  4,-10  22,10  34,40  30,90  28,90  31,40  18,13  0,10")
    ],
    "vase": lambda: [
        _mm("0,-90  25,-90  42,-40  38,0  20,50  26,90  0,90")
    ],
    "apple": lambda: [
        _mm("0,-27  12,-33  27,-25  37,4  34,22  20,33  8,31  0,24"),
        tube(_line((0, 0.022, 0), (0.004, 0.045, 0)), np.full(6, 0.0018), 6),
    ],
    "pear": lambda: [
        _mm("0,-45  20,-43  36,-20  32,5  20,25  16,40  8,48  0,48")
    ],
    "banana": _banana,
    "cone": lambda: [_mm("0,-60  35,-60  4,60  0,60")],
    "pen": lambda: [_mm("0,-70  1.5,-69  4.5,-58  4.5,68  3,70  0,70", 10)],
    "marker": lambda: [_mm("0,-65  3,-65  8,-50  9,20  9.5,65  0,65", 14)],
    "pencil": lambda: [prism(_polygon(6, 0.004), 0.17)],
    "torch": lambda: [_mm("0,-90  14,-90  14,30  22,55  22,85  0,85")],
    "screwdriver": lambda: [
        _mm("0,-100  12,-100  16,-85  13,-40  15,-5  6,0  3.5,4  3.5,100  0,102", 12)
    ],
    "brush": lambda: [
        tube(_line((0, -0.09, 0), (0, 0.05, 0)), np.array([7, 9, 8, 6, 6, 7]) / 1000),
        _moved(_box(0.03, 0.05, 0.014), 0, 0.075, 0),
    ],
    "hammer": _hammer,
    "spoon": lambda: [
        tube(_line((0, -0.09, 0), (0, 0.045, 0)), np.array([5, 4, 3.5, 3, 3, 3]) / 1000, 8),
        _moved(ball(0.02, 0.029, 0.005), 0, 0.07, 0),
    ],
    "scissors": _scissors,
    "ring": lambda: [tube(_arc(0.045, 0, 352, 22), np.full(22, 0.009), 10)],
    "hoop_handle": lambda: [
        tube(_arc(0.05, 0, 180, 14), np.full(14, 0.009), 10),
        _moved(_box(0.13, 0.03, 0.06, 0.004), 0, -0.012, 0)
    ],
    "dumbbell": lambda: [
        tube(_line((0, -0.07, 0), (0, 0.07, 0)), np.full(6, 0.013), 12),
        _moved(_mm("0,-20  38,-20  38,20  0,20"), 0, 0.075, 0),
        _moved(_mm("0,-20  38,-20  38,20  0,20"), 0, -0.075, 0),
    ],
    "bulb": lambda: [
        _mm("0,-55  10,-54  13.5,-45  13.5,-22  26,5  30,25  22,45  8,55  0,55")
    ],
    "mouse": lambda: [ball(0.031, 0.055, 0.019)],
    "disc": lambda: [_mm("0,-4  40,-4  40,4  0,4", 26)],
    "hexagon": lambda: [prism(_polygon(6, 0.03), 0.035, 0.002)],
    "wedge": lambda: [prism(np.array([[-0.04, -0.03], [0.05, -0.03], [-0.04, 0.04]]), 0.05)],
    "pyramid": lambda: [_mm("0,-35  45,-35  1,35  0,35", 4)],
    "stick": lambda: [tube(_line((0, -0.15, 0), (0, 0.15, 0)), np.full(6, 0.012), 12)],
}  # fmt: skip
