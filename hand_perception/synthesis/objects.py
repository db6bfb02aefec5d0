"""Rigid objects to hold: generated shapes with names, and meshes from a folder (YCB).

An object's frame has its origin in the middle of its box. Every object carries a signed distance
grid, so that fingers can close on its surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

from hand_perception.synthesis.arrays import F32, I32
from hand_perception.synthesis.shapes import BUILDERS, Parts
from hand_perception.types import FloatArray, HandPerceptionError

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
        _assemble(name, k + 1, build(), None) for k, (name, build) in enumerate(BUILDERS.items())
    )


@lru_cache(maxsize=4)
def load_objects(folder: str | Path, first_class: int = 1) -> tuple[RigidObject, ...]:
    """Objects `<folder>/<name>/*.obj` (YCB, BOP), textures and palettes turned to vertex colours.

    Raises HandPerceptionError when the folder holds no mesh.
    """
    import trimesh

    objects: list[RigidObject] = []
    for directory in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        files = sorted(directory.glob("*.obj")) + sorted(directory.glob("*.ply"))
        if not files:
            continue
        mesh: Any = trimesh.load(files[0], force="mesh", process=False)
        vertices = np.asarray(mesh.vertices, np.float64)
        rgb = _vertex_colors(mesh.visual, len(vertices))
        part = (vertices, np.asarray(mesh.faces, np.int32))
        objects.append(_assemble(directory.name, first_class + len(objects), [part], rgb**2.2))
    if not objects:
        raise HandPerceptionError(
            f"{folder} holds no objects; expected are folders <name>/ with an .obj or .ply mesh"
        )
    return tuple(objects)


def _vertex_colors(visual: Any, count: int) -> FloatArray:
    """sRGB (N, 3) in [0, 1] of a trimesh visual: texture, vertex colours or the material's."""
    if visual.kind == "texture":
        material = visual.material
        image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if image is None:
            return np.tile(np.asarray(material.main_color)[:3] / 255.0, (count, 1))
        visual = visual.to_color()
    return np.asarray(visual.vertex_colors)[:, :3] / 255.0


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
    out: list[FloatArray] = []
    result = np.empty_like(faces)
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
def sample_grid(values: Any, origin: Any, spacing: Any, points: Any) -> Any:
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
