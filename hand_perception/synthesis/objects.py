"""Rigid objects to hold: generated shapes with names, and meshes from a folder (YCB).

An object's frame has its origin in the middle of its box. Every object carries a signed distance
grid, so that fingers can close on its surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hand_perception.types import FloatArray, HandPerceptionError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Parts = list[tuple[FloatArray, I32]]

GRID = 32
"""Cells of the distance grid along its longest side."""
MARGIN = 0.03
"""Metres of the grid around the object; beyond it distances grow with the distance to the grid."""


@dataclass(frozen=True)
class DistanceGrid:
    """Signed distance (X, Y, Z) metres, negative inside; sample (0, 0, 0) lies at `origin`."""

    values: F32
    origin: F32
    spacing: float

    def at(self, points: FloatArray) -> F32:
        """Signed distance (N,) at points (N, 3), trilinear."""
        return sample_grid(
            self.values, self.origin, self.spacing, np.ascontiguousarray(points, np.float32)
        )


@dataclass(frozen=True)
class RigidObject:
    """A named mesh in metres; faces look outwards, sharp edges have vertices of their own."""

    name: str
    class_id: int
    """From 1; 0 is no object."""
    vertices: F32
    faces: I32
    colors: F32 | None
    """(N, 3) linear RGB of a scanned object, None for a generated one, painted anew each time."""
    parts: tuple[tuple[F32, I32], ...]
    """The closed pieces that make up the object, for distances."""

    @cached_property
    def extents(self) -> FloatArray:
        """(3,) size of the box around the object, metres."""
        return np.ptp(self.vertices, axis=0).astype(np.float64)

    @cached_property
    def distance(self) -> DistanceGrid:
        return _distance_grid(self.parts)


@lru_cache(maxsize=1)
def generated_objects() -> tuple[RigidObject, ...]:
    """The library of generated shapes, always in the same order."""
    return tuple(
        _assemble(name, k + 1, build(), None) for k, (name, build) in enumerate(_BUILDERS.items())
    )


@lru_cache(maxsize=4)
def load_objects(folder: str | Path, first_class: int = 1) -> tuple[RigidObject, ...]:
    """Objects `<folder>/<name>/*.obj` (YCB, BOP), textures and palettes turned to vertex colours.

    Raises HandPerceptionError when the folder holds no mesh.
    """
    import trimesh

    objects = []
    for directory in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        files = sorted(directory.glob("*.obj")) + sorted(directory.glob("*.ply"))
        if not files:
            continue
        mesh = trimesh.load(files[0], force="mesh", process=False)
        visual = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual
        rgb = np.asarray(visual.vertex_colors)[:, :3] / 255.0
        vertices = np.asarray(mesh.vertices, np.float64)
        part = (vertices, np.asarray(mesh.faces, np.int32))
        objects.append(_assemble(directory.name, first_class + len(objects), [part], rgb**2.2))
    if not objects:
        raise HandPerceptionError(
            f"{folder} holds no objects; expected are folders <name>/ with an .obj or .ply mesh"
        )
    return tuple(objects)


def _assemble(name: str, class_id: int, parts: Parts, colors: FloatArray | None) -> RigidObject:
    points = np.concatenate([v for v, _ in parts])
    middle = (points.min(0) + points.max(0)) / 2 if colors is None else np.zeros(3)
    parts = [(_oriented(v - middle, f)) for v, f in parts]
    vertices, faces, offset = [], [], 0
    for v, f in parts:
        if colors is None:
            v, f = split_sharp_edges(v, f, np.radians(38))
        vertices.append(v)
        faces.append(f + offset)
        offset += len(v)
    return RigidObject(
        name,
        class_id,
        np.concatenate(vertices).astype(np.float32),
        np.concatenate(faces).astype(np.int32),
        None if colors is None else colors.astype(np.float32),
        tuple((v.astype(np.float32), f.astype(np.int32)) for v, f in parts),
    )


def _oriented(vertices: FloatArray, faces: I32) -> tuple[FloatArray, I32]:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = (a * np.cross(b, c)).sum()
    return vertices, (faces if volume > 0 else faces[:, ::-1].copy())


def split_sharp_edges(vertices: FloatArray, faces: I32, angle: float) -> tuple[FloatArray, I32]:
    """The same mesh in which faces that meet at more than an angle share no vertex."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-20
    around: list[list[tuple[int, int]]] = [[] for _ in vertices]
    for face, corners in enumerate(faces):
        for k in range(3):
            around[corners[k]].append((face, k))
    out, result = [], np.empty_like(faces)
    for vertex, corners_here in enumerate(around):
        clusters: list[tuple[FloatArray, int]] = []
        for face, k in corners_here:
            for normal, index in clusters:
                if normal @ normals[face] > np.cos(angle):
                    result[face, k] = index
                    break
            else:
                clusters.append((normals[face], len(out)))
                result[face, k] = len(out)
                out.append(vertices[vertex])
    return np.array(out), result


# ---- Distances -------------------------------------------------------------------------------


def _distance_grid(parts: tuple[tuple[F32, I32], ...]) -> DistanceGrid:
    points = np.concatenate([v for v, _ in parts])
    low, high = points.min(0) - MARGIN, points.max(0) + MARGIN
    spacing = float((high - low).max() / (GRID - 1))
    counts = np.ceil((high - low) / spacing).astype(int) + 1
    axes = [low[k] + spacing * np.arange(counts[k]) for k in range(3)]
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    values = np.full(len(cells), np.inf)
    for vertices, faces in parts:
        values = np.minimum(values, _signed_distance(cells, vertices, faces))
    return DistanceGrid(values.reshape(counts).astype(np.float32), low.astype(np.float32), spacing)


def _signed_distance(points: FloatArray, vertices: F32, faces: I32) -> FloatArray:
    """Distance (N,) to the nearest of many samples of the surface, negative inside."""
    corners = vertices[faces].astype(np.float64)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(flat, axis=1)
    rng = np.random.default_rng(0)
    face = rng.choice(len(faces), 9000, p=area / area.sum())
    u, v = rng.random((2, len(face), 1))
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u), np.where(fold, 1 - v, v)
    samples = corners[face, 0] * (1 - u - v) + corners[face, 1] * u + corners[face, 2] * v
    normals = flat[face] / area[face, None]
    distance, index = cKDTree(samples).query(points, k=2)
    away = points[:, None] - samples[index]
    height = (away * normals[index]).sum(-1)
    # Close by, the plane of the nearest sample is a better surface than the sample itself.
    sign = np.where(height.mean(1) < 0, -1.0, 1.0)
    near = np.where(distance[:, 0] < 0.004, np.abs(height[:, 0]), distance[:, 0])
    return sign * near


@njit(cache=True, fastmath=True)
def sample_grid(values, origin, spacing, points):
    """Trilinear values (N,) of a grid at points (N, 3); outside, plus the distance to the grid."""
    out = np.empty(len(points), np.float32)
    for n in range(len(points)):
        beyond = 0.0
        low = np.empty(3, np.int64)
        part = np.empty(3)
        for k in range(3):
            at = (points[n, k] - origin[k]) / spacing
            inside = min(max(at, 0.0), values.shape[k] - 1.0)
            beyond += (at - inside) ** 2
            low[k] = min(int(inside), values.shape[k] - 2)
            part[k] = inside - low[k]
        total = 0.0
        for i in range(2):
            for j in range(2):
                for k in range(2):
                    weight = (
                        (part[0] if i else 1 - part[0])
                        * (part[1] if j else 1 - part[1])
                        * (part[2] if k else 1 - part[2])
                    )
                    total += weight * values[low[0] + i, low[1] + j, low[2] + k]
        out[n] = total + np.sqrt(beyond) * spacing
    return out


# ---- Shapes ----------------------------------------------------------------------------------


def lathe(profile: list[tuple[float, float]], sections: int = 20) -> tuple[FloatArray, I32]:
    """A solid of revolution about y: profile of (radius, y), from one end of the axis to the other."""
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


_BUILDERS: dict[str, Callable[[], Parts]] = {
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
        lathe([(0, -0.061), (0.026, -0.061), (0.033, -0.053), (0.033, 0.05), (0.027, 0.061), (0, 0.061)])
    ],
    "soup_can": lambda: [lathe([(0, -0.051), (0.034, -0.051), (0.034, 0.051), (0, 0.051)], 24)],
    "spray_can": lambda: [
        lathe([(0, -0.09), (0.026, -0.09), (0.026, 0.06), (0.018, 0.07), (0.016, 0.09), (0, 0.09)])
    ],
    "bottle": lambda: [
        lathe(
            [(0, -0.11), (0.031, -0.11), (0.033, -0.1), (0.033, 0.03), (0.026, 0.055), (0.013, 0.08),
             (0.013, 0.095), (0.016, 0.096), (0.016, 0.11), (0, 0.11)]
        )
    ],
    "jar": lambda: [
        lathe([(0, -0.05), (0.037, -0.05), (0.04, -0.045), (0.04, 0.025), (0.034, 0.034), (0.036, 0.035), (0.036, 0.05), (0, 0.05)])
    ],
    "glass": lambda: [_cup(0.035, 0.12, 0.003, 0.82)],
    "cup": lambda: [_cup(0.04, 0.085, 0.004, 0.7)],
    "mug": _mug,
    "bowl": lambda: [_cup(0.065, 0.05, 0.005, 0.5)],
    "plate": lambda: [lathe([(0, -0.006), (0.05, -0.006), (0.09, 0.008), (0.088, 0.011), (0.05, 0), (0, 0)], 28)],
    "wine_glass": lambda: [
        lathe(
            [(0, -0.09), (0.032, -0.089), (0.005, -0.082), (0.004, -0.01), (0.022, 0.01), (0.034, 0.04),
             (0.03, 0.09), (0.028, 0.09), (0.031, 0.04), (0.018, 0.013), (0, 0.01)]
        )
    ],
    "vase": lambda: [
        lathe([(0, -0.09), (0.025, -0.09), (0.042, -0.04), (0.038, 0), (0.02, 0.05), (0.026, 0.09), (0, 0.09)])
    ],
    "apple": lambda: [
        lathe([(0, -0.027), (0.012, -0.033), (0.027, -0.025), (0.037, 0.004), (0.034, 0.022), (0.02, 0.033), (0.008, 0.031), (0, 0.024)]),
        tube(_line((0, 0.022, 0), (0.004, 0.045, 0)), np.full(6, 0.0018), 6),
    ],
    "pear": lambda: [
        lathe([(0, -0.045), (0.02, -0.043), (0.036, -0.02), (0.032, 0.005), (0.02, 0.025), (0.016, 0.04), (0.008, 0.048), (0, 0.048)])
    ],
    "banana": _banana,
    "cone": lambda: [lathe([(0, -0.06), (0.035, -0.06), (0.004, 0.06), (0, 0.06)])],
    "pen": lambda: [lathe([(0, -0.07), (0.0015, -0.069), (0.0045, -0.058), (0.0045, 0.068), (0.003, 0.07), (0, 0.07)], 10)],
    "marker": lambda: [lathe([(0, -0.065), (0.003, -0.065), (0.008, -0.05), (0.009, 0.02), (0.0095, 0.065), (0, 0.065)], 14)],
    "pencil": lambda: [prism(_polygon(6, 0.004), 0.17)],
    "torch": lambda: [lathe([(0, -0.09), (0.014, -0.09), (0.014, 0.03), (0.022, 0.055), (0.022, 0.085), (0, 0.085)])],
    "screwdriver": lambda: [
        lathe([(0, -0.1), (0.012, -0.1), (0.016, -0.085), (0.013, -0.04), (0.015, -0.005), (0.006, 0.0),
               (0.0035, 0.004), (0.0035, 0.1), (0, 0.102)], 12)
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
        tube(_arc(0.05, 0, 180, 14), np.full(14, 0.009), 10), _moved(_box(0.13, 0.03, 0.06, 0.004), 0, -0.012, 0)
    ],
    "dumbbell": lambda: [
        tube(_line((0, -0.07, 0), (0, 0.07, 0)), np.full(6, 0.013), 12),
        _moved(lathe([(0, -0.02), (0.038, -0.02), (0.038, 0.02), (0, 0.02)]), 0, 0.075, 0),
        _moved(lathe([(0, -0.02), (0.038, -0.02), (0.038, 0.02), (0, 0.02)]), 0, -0.075, 0),
    ],
    "bulb": lambda: [
        lathe([(0, -0.055), (0.01, -0.054), (0.0135, -0.045), (0.0135, -0.022), (0.026, 0.005), (0.03, 0.025), (0.022, 0.045), (0.008, 0.055), (0, 0.055)])
    ],
    "mouse": lambda: [ball(0.031, 0.055, 0.019)],
    "disc": lambda: [lathe([(0, -0.004), (0.04, -0.004), (0.04, 0.004), (0, 0.004)], 26)],
    "hexagon": lambda: [prism(_polygon(6, 0.03), 0.035, 0.002)],
    "wedge": lambda: [prism(np.array([[-0.04, -0.03], [0.05, -0.03], [-0.04, 0.04]]), 0.05)],
    "pyramid": lambda: [lathe([(0, -0.035), (0.045, -0.035), (0.001, 0.035), (0, 0.035)], 4)],
    "stick": lambda: [tube(_line((0, -0.15, 0), (0, 0.15, 0)), np.full(6, 0.012), 12)],
}  # fmt: skip
