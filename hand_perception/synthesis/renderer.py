"""A z-buffer renderer in numba: 2x2 visibility samples, shading once per surface and pixel.

Every frame: bodies are rasterised into a depth and triangle buffer at twice the picture's size
(visibility only), a shadow map is rasterised from the main light, ambient occlusion comes from the
depth at half size, and then each pixel shades one point of every surface among its four samples
(as multisampling hardware does), so edges are smooth at the cost of one shade per pixel.

Colours are linear light until `shading.develop` turns them into an sRGB picture with sensor noise.
The frame is a crop camera's: x right, y down, z forward, pixels continuous from 0 to S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from hand_perception.synthesis.arrays import F32, I32, U8
from hand_perception.synthesis.shading import (
    corner_weights,
    noise_tile,
    shade_samples,
    srgb_to_linear_table,
)

NEAR = 0.03
"""Metres; triangles that reach nearer are not drawn."""


@dataclass(frozen=True)
class Mesh:
    """All bodies of a scene in one set of arrays; vertices move from frame to frame."""

    faces: I32
    """(F, 3)."""
    face_body: U8
    """(F,) which body each face belongs to, 1 and up; bodies are contiguous runs of faces."""
    attributes: F32
    """(V, 10) linear albedo 3, gloss, nail, axial, palmar, rest position 3."""
    parts: U8
    """(V,) segmentation label of each vertex."""
    materials: F32
    """(bodies + 1, 11), row 0 unused."""
    cull: NDArray[np.int8]
    """(bodies + 1,) -1 skips the faces of a closed body that look away, 1 does so for a body that
    is a mirror image, 0 draws both sides."""


@dataclass(frozen=True)
class Lighting:
    """Directional lights and a sky, in the frame of the picture, linear light."""

    lights: F32
    """(L, 6) unit direction towards the light, RGB; the first one casts shadows."""
    ambient: F32
    """(2, 3) RGB from above and from below."""
    up: F32
    """(3,) unit vector."""
    shadow: float
    """How much of the first light its shadow takes, 0 to 1."""
    plane: F32
    """(4,) n, d of a plane n.x = d behind the hands that receives the shadow; zeros for none."""


class Renderer:
    """Buffers for pictures of one size; not for use by two threads at once."""

    def __init__(self, size: int, shadow_size: int = 192) -> None:
        self.size = size
        self.nearness = np.zeros((2 * size, 2 * size), np.float32)
        self.triangle = np.zeros((2 * size, 2 * size), np.int32)
        self._shadow_near = np.zeros((shadow_size, shadow_size), np.float32)
        self._shadow_triangle = np.zeros((shadow_size, shadow_size), np.int32)
        self._color = np.zeros((size, size, 3), np.float32)

    def rasterise(
        self, mesh: Mesh, vertices: F32, K: F32, bodies: range, clear: bool = True
    ) -> None:
        """Draw bodies into the depth buffer; K (3, 3) in pixels of the picture."""
        if clear:
            self.nearness[:] = 0
            self.triangle[:] = -1
        screen = _project(vertices, np.float32(2) * np.asarray(K, np.float32))
        for body in bodies:
            first, last = np.searchsorted(mesh.face_body, [body, body + 1])
            _raster(
                screen, mesh.faces, first, last, int(mesh.cull[body]), self.nearness, self.triangle
            )

    def body_map(self, mesh: Mesh, step: int = 2) -> U8:
        """(S/step, S/step) the body seen, 0 for the background."""
        seen = self.triangle[step :: 2 * step, step :: 2 * step]
        return np.where(seen >= 0, mesh.face_body[np.maximum(seen, 0)], 0).astype(np.uint8)

    def part_map(self, mesh: Mesh, vertices: F32, K: F32, step: int = 2) -> U8:
        """(S/step, S/step) segmentation label; `step` picture pixels to one of the map."""
        return _part_map(
            self.triangle,
            mesh.faces,
            mesh.parts,
            vertices,
            np.asarray(K, np.float32) * np.float32(2),
            2 * step,
        )

    def shade(
        self,
        mesh: Mesh,
        vertices: F32,
        K: F32,
        lighting: Lighting,
        background: U8,
        focus: F32,
        background_gain: float = 1.0,
    ) -> F32:
        """Linear RGB (S, S, 3) of what was rasterised, over a background (S, S, 3) sRGB.

        focus (N, 3): the points around which the shadow map is spread.
        The array is overwritten by the next call.
        """
        normals = _vertex_normals(vertices, mesh.faces)
        table = srgb_to_linear_table() * np.float32(background_gain)
        to_map, has_map = self._shadow_map(mesh, vertices, lighting, focus)
        occlusion = self._ambient_occlusion()
        shade_samples(
            self.nearness, self.triangle, vertices, normals, mesh.faces, mesh.face_body,
            mesh.attributes, mesh.materials, np.asarray(K, np.float32) * np.float32(2),
            lighting.lights, lighting.ambient, lighting.up, lighting.plane,
            self._shadow_near, to_map, np.float32(lighting.shadow if has_map else 0.0),
            occlusion, background, table, noise_tile(), self._color,
        )  # fmt: skip
        return self._color

    def _shadow_map(
        self, mesh: Mesh, vertices: F32, lighting: Lighting, focus: F32
    ) -> tuple[F32, bool]:
        """Rows (3, 4) from a point to map column, map row and nearness to the light."""
        if lighting.shadow <= 0:
            return np.zeros((3, 4), np.float32), False
        toward = lighting.lights[0, :3].astype(np.float64)
        x = np.cross([0.2, 1.0, 0.3], toward)
        x /= np.linalg.norm(x)
        axes = np.stack([x, np.cross(toward, x), toward])
        seen = focus.astype(np.float64) @ axes.T
        low, high = seen.min(0), seen.max(0)
        size = len(self._shadow_near)
        scale = size / (1.25 * max(high[0] - low[0], high[1] - low[1]) + 0.02)
        to_map = np.zeros((3, 4))
        to_map[:2, :3] = axes[:2] * scale
        to_map[:2, 3] = size / 2 - (low + high)[:2] / 2 * scale
        to_map[2, :3] = axes[2]
        to_map[2, 3] = 4.0 - high[2]  # positive for everything within 4 m behind the hand
        to_map = to_map.astype(np.float32)
        self._shadow_near[:] = 0
        self._shadow_triangle[:] = -1
        screen = (vertices @ to_map[:, :3].T + to_map[:, 3]).astype(np.float32)
        _raster(screen, mesh.faces, 0, len(mesh.faces), 0, self._shadow_near, self._shadow_triangle)
        return to_map, True

    def _ambient_occlusion(self) -> F32:
        """(S/2, S/2) factor: darker where the surroundings are nearer than the point."""
        near = self.nearness[1::4, 1::4]
        mask = near > 0
        depth = np.divide(1.0, near, out=np.zeros_like(near), where=mask)
        depth[~mask] = depth.max() if mask.any() else 1.0
        side = len(depth)
        result = np.ones_like(depth)
        for radius, scale in ((side // 28 * 2 + 1, 0.012), (side // 12 * 2 + 1, 0.025)):
            crease = (depth - cv2.blur(depth, (radius, radius))) / np.float32(scale)
            result -= np.float32(0.33) * np.clip(crease, 0, 1)
        return cv2.blur(result, (3, 3))


@njit(cache=True, fastmath=True, nogil=True)
def _project(vertices: Any, K: Any) -> Any:
    """Column, row and 1 / z of each vertex; 1 / z is -1 where it is too near."""
    out = np.empty((vertices.shape[0], 3), np.float32)
    for n in range(vertices.shape[0]):
        z = vertices[n, 2]
        if z < NEAR:
            out[n, 2] = -1.0
            continue
        q = np.float32(1.0) / z
        out[n, 0] = K[0, 0] * vertices[n, 0] * q + K[0, 2]
        out[n, 1] = K[1, 1] * vertices[n, 1] * q + K[1, 2]
        out[n, 2] = q
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _raster(
    screen: Any, faces: Any, first: Any, last: Any, cull: Any, nearness: Any, triangle: Any
) -> Any:
    """Keep the nearest triangle of each sample; cull the faces whose area has the sign of cull."""
    height, width = nearness.shape
    half = np.float32(0.5)
    for t in range(first, last):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        qa, qb, qc = screen[a, 2], screen[b, 2], screen[c, 2]
        if qa <= 0 or qb <= 0 or qc <= 0:
            continue
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or area * cull < 0:
            continue
        low_x, high_x = min(ax, min(bx, cx)), max(ax, max(bx, cx))
        low_y, high_y = min(ay, min(by, cy)), max(ay, max(by, cy))
        if high_x < 0 or high_y < 0 or low_x > width or low_y > height:
            continue
        x0 = max(0, int(np.ceil(low_x - half)))
        x1 = min(width - 1, int(np.floor(high_x - half)))
        y0 = max(0, int(np.ceil(low_y - half)))
        y1 = min(height - 1, int(np.floor(high_y - half)))
        if x1 < x0 or y1 < y0:
            continue
        scale = np.float32(1.0) / area
        # Weights of b and c, and the nearness, are linear on the screen.
        b_dx, b_dy = (cy - ay) * scale, -(cx - ax) * scale
        c_dx, c_dy = -(by - ay) * scale, (bx - ax) * scale
        q_dx = b_dx * (qb - qa) + c_dx * (qc - qa)
        for y in range(y0, y1 + 1):
            dx, dy = x0 + half - ax, y + half - ay
            wb = b_dx * dx + b_dy * dy
            wc = c_dx * dx + c_dy * dy
            q = qa + wb * (qb - qa) + wc * (qc - qa)
            for x in range(x0, x1 + 1):
                if wb >= 0 and wc >= 0 and wb + wc <= 1 and q > nearness[y, x]:
                    nearness[y, x] = q
                    triangle[y, x] = t
                wb += b_dx
                wc += c_dx
                q += q_dx


@njit(cache=True, fastmath=True, nogil=True)
def _vertex_normals(vertices: Any, faces: Any) -> Any:
    normals = np.zeros_like(vertices)
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            normals[k, 0] += nx
            normals[k, 1] += ny
            normals[k, 2] += nz
    return normals


@njit(cache=True, fastmath=True, nogil=True)
def _part_map(triangle: Any, faces: Any, parts: Any, vertices: Any, K: Any, step: Any) -> Any:
    side = triangle.shape[0] // step
    out = np.zeros((side, side), np.uint8)
    for y in range(side):
        for x in range(side):
            sy, sx = y * step + step // 2, x * step + step // 2
            t = triangle[sy, sx]
            if t < 0:
                continue
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            wb, wc = corner_weights(vertices, a, b, c, sx + 0.5, sy + 0.5, K)
            wa = 1 - wb - wc
            nearest = a if wa >= wb and wa >= wc else (b if wb >= wc else c)
            out[y, x] = parts[nearest]
    return out
