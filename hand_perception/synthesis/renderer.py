"""A z-buffer renderer in numba: 2x2 visibility samples, shading once per surface and pixel.

Every frame: bodies are rasterised into a depth and triangle buffer at twice the picture's size
(visibility only), a shadow map is rasterised from the main light, ambient occlusion comes from the
depth at half size, and then each pixel shades one point of every surface among its four samples
(as multisampling hardware does), so edges are smooth at the cost of one shade per pixel.

Colours are linear light until `develop` turns them into an sRGB picture with sensor noise.
The frame is a crop camera's: x right, y down, z forward, pixels continuous from 0 to S.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

# Columns of the attributes of a vertex.
ALBEDO, GLOSS, NAIL, AXIAL, PALMAR, REST = 0, 3, 4, 5, 6, 7
NUM_ATTRIBUTES = 10
# Columns of the material of a body.
KIND, SHININESS, WRAP, GRAIN, BUMP, GRAIN_SIZE, PATTERN, PATTERN_SIZE, TINT = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
)
NUM_MATERIAL = 11
SKIN, CLOTH, SOLID = 0.0, 1.0, 2.0

NEAR = 0.03
"""Metres; triangles that reach nearer are not drawn."""
_TILE = 32


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
        to_map, has_map = self._shadow_map(mesh, vertices, lighting, focus)
        occlusion = self._ambient_occlusion()
        _shade(
            self.nearness, self.triangle, vertices, normals, mesh.faces, mesh.face_body,
            mesh.attributes, mesh.materials, np.asarray(K, np.float32) * np.float32(2),
            lighting.lights, lighting.ambient, lighting.up, lighting.plane,
            self._shadow_near, to_map, np.float32(lighting.shadow if has_map else 0.0),
            occlusion, background, srgb_to_linear_table() * np.float32(background_gain), noise_tile(), self._color,
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


@lru_cache(maxsize=1)
def noise_tile() -> F32:
    """(32, 32, 32, 4) seamless smooth noise in [-1, 1]: one value and a bump direction."""
    rng = np.random.default_rng(20240)
    tile = np.zeros((_TILE, _TILE, _TILE, 4))
    spectrum = np.fft.fftfreq(_TILE) * _TILE
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(spectrum, spectrum, spectrum, indexing="ij")))
    for channel in range(4):
        white = np.fft.fftn(rng.normal(size=(_TILE,) * 3))
        band = np.where((radius > 1.5) & (radius < 12), 1 / np.maximum(radius, 1) ** 0.9, 0)
        value = np.fft.ifftn(white * band).real
        tile[..., channel] = value / (2.5 * value.std())
    return tile.clip(-1, 1).astype(np.float32)


@lru_cache(maxsize=1)
def srgb_to_linear_table() -> F32:
    """(256,) linear light of an 8 bit value."""
    return (np.linspace(0, 1, 256) ** 2.2).astype(np.float32)


@njit(cache=True, fastmath=True, nogil=True)
def _project(vertices, K):
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
def _raster(screen, faces, first, last, cull, nearness, triangle):
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
def _vertex_normals(vertices, faces):
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


@njit(cache=True, fastmath=True, inline="always")
def _weights(vertices, a, b, c, x, y, K):
    """Perspective-correct weights of the corners b and c at sample (x, y)."""
    rx, ry = (x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]
    # The ray meets the triangle where the ratios of these three volumes say (scalar triples).
    ax, ay, az = vertices[a, 0], vertices[a, 1], vertices[a, 2]
    bx, by, bz = vertices[b, 0], vertices[b, 1], vertices[b, 2]
    cx, cy, cz = vertices[c, 0], vertices[c, 1], vertices[c, 2]
    wa = rx * (by * cz - bz * cy) + ry * (bz * cx - bx * cz) + (bx * cy - by * cx)
    wb = rx * (cy * az - cz * ay) + ry * (cz * ax - cx * az) + (cx * ay - cy * ax)
    wc = rx * (ay * bz - az * by) + ry * (az * bx - ax * bz) + (ax * by - ay * bx)
    total = wa + wb + wc
    if total == 0:
        return np.float32(0.33), np.float32(0.33)
    return wb / total, wc / total


@njit(cache=True, fastmath=True, nogil=True)
def _part_map(triangle, faces, parts, vertices, K, step):
    side = triangle.shape[0] // step
    out = np.zeros((side, side), np.uint8)
    for y in range(side):
        for x in range(side):
            sy, sx = y * step + step // 2, x * step + step // 2
            t = triangle[sy, sx]
            if t < 0:
                continue
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            wb, wc = _weights(vertices, a, b, c, sx + 0.5, sy + 0.5, K)
            wa = 1 - wb - wc
            nearest = a if wa >= wb and wa >= wc else (b if wb >= wc else c)
            out[y, x] = parts[nearest]
    return out


@njit(cache=True, fastmath=True, inline="always")
def _lit(near, to_map, px, py, pz, bias):
    """Share of the first light that reaches a point: 3x3 samples of the shadow map."""
    size = near.shape[0]
    u = to_map[0, 0] * px + to_map[0, 1] * py + to_map[0, 2] * pz + to_map[0, 3]
    v = to_map[1, 0] * px + to_map[1, 1] * py + to_map[1, 2] * pz + to_map[1, 3]
    q = to_map[2, 0] * px + to_map[2, 1] * py + to_map[2, 2] * pz + to_map[2, 3] + bias
    column, row = int(np.floor(u)), int(np.floor(v))
    if column < 1 or row < 1 or column >= size - 1 or row >= size - 1:
        return np.float32(1.0)
    blocked = np.float32(0.0)
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            if near[row + dy, column + dx] > q:
                blocked += np.float32(1.0)
    return np.float32(1.0) - blocked / np.float32(9.0)


@njit(cache=True, fastmath=True, inline="always")
def _noise(tile, x, y, z, channel):
    """Trilinear value of the tile at a point in voxels."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    tx, ty, tz = np.float32(x - fx), np.float32(y - fy), np.float32(z - fz)
    i, j, k = int(fx) & 31, int(fy) & 31, int(fz) & 31
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    a = tile[i, j, k, channel] * (1 - tx) + tile[i1, j, k, channel] * tx
    b = tile[i, j1, k, channel] * (1 - tx) + tile[i1, j1, k, channel] * tx
    c = tile[i, j, k1, channel] * (1 - tx) + tile[i1, j, k1, channel] * tx
    d = tile[i, j1, k1, channel] * (1 - tx) + tile[i1, j1, k1, channel] * tx
    return (a * (1 - ty) + b * ty) * (1 - tz) + (c * (1 - ty) + d * ty) * tz


@njit(cache=True, fastmath=True, nogil=True)
def _shade(
    nearness, triangle, vertices, normals, faces, face_body, attributes, materials, K,
    lights, ambient, up, plane, shadow_near, to_map, shadow, occlusion, background, table, tile, out,
):  # fmt: skip
    size = out.shape[0]
    ids = np.empty(4, np.int32)
    depths = np.empty(4, np.float32)
    groups = np.empty(4, np.int32)
    value = np.empty(NUM_ATTRIBUTES, np.float32)
    has_plane = plane[0] * plane[0] + plane[1] * plane[1] + plane[2] * plane[2] > 0
    for y in range(size):
        for x in range(size):
            for s in range(4):
                t = triangle[2 * y + s // 2, 2 * x + s % 2]
                ids[s] = t
                groups[s] = face_body[t] if t >= 0 else 0
                depths[s] = (
                    np.float32(1.0) / nearness[2 * y + s // 2, 2 * x + s % 2]
                    if t >= 0
                    else np.float32(0.0)
                )
            red, green, blue = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for s in range(4):
                if groups[s] < 0:
                    continue
                body = groups[s]
                weight = np.float32(0.25)
                for other in range(s + 1, 4):
                    if groups[other] == body and abs(depths[other] - depths[s]) < 0.008:
                        weight += np.float32(0.25)
                        groups[other] = -1
                if body == 0:
                    dim = np.float32(1.0)
                    if has_plane and shadow > 0:
                        rx = (2 * x + 1 - K[0, 2]) / K[0, 0]
                        ry = (2 * y + 1 - K[1, 2]) / K[1, 1]
                        slope = plane[0] * rx + plane[1] * ry + plane[2]
                        if slope > 0.02:
                            z = plane[3] / slope
                            if z > 0.1 and z < 3:
                                lit = _lit(shadow_near, to_map, rx * z, ry * z, z, np.float32(0.01))
                                dim = np.float32(1.0) - np.float32(0.65) * shadow * (1 - lit)
                    red += weight * dim * table[background[y, x, 0]]
                    green += weight * dim * table[background[y, x, 1]]
                    blue += weight * dim * table[background[y, x, 2]]
                    continue
                t = ids[s]
                a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
                sx, sy = np.float32(2 * x + s % 2 + 0.5), np.float32(2 * y + s // 2 + 0.5)
                wb, wc = _weights(vertices, a, b, c, sx, sy, K)
                wa = 1 - wb - wc
                pz = depths[s]
                px, py = (sx - K[0, 2]) / K[0, 0] * pz, (sy - K[1, 2]) / K[1, 1] * pz
                nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
                ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
                nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
                for k in range(NUM_ATTRIBUTES):
                    value[k] = wa * attributes[a, k] + wb * attributes[b, k] + wc * attributes[c, k]
                length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-20)
                nx, ny, nz = nx / length, ny / length, nz / length
                length = np.sqrt(px * px + py * py + pz * pz)
                vx, vy, vz = -px / length, -py / length, -pz / length
                facing = nx * vx + ny * vy + nz * vz
                if facing < 0:
                    nx, ny, nz, facing = -nx, -ny, -nz, -facing
                m = materials[body]
                kind = m[KIND]
                # Grain of the surface: colour and bumps that stick to the body.
                g = m[GRAIN_SIZE]
                gx, gy, gz = value[REST] * g, value[REST + 1] * g, value[REST + 2] * g
                grain = _noise(tile, gx, gy, gz, 0)
                bx = m[BUMP] * _noise(tile, gx, gy, gz, 1)
                by = m[BUMP] * _noise(tile, gx, gy, gz, 2)
                bz = m[BUMP] * (bx + by - grain)
                cr, cg, cb = value[ALBEDO], value[ALBEDO + 1], value[ALBEDO + 2]
                gloss = value[GLOSS]
                shiny = m[SHININESS]
                tone = 1 + m[GRAIN] * grain
                if kind == SKIN:
                    nail = min(np.float32(1.0), max(np.float32(0.0), (value[NAIL] - 0.3) * 3))
                    place = value[AXIAL]
                    if place > 0.5:
                        # Creases across the joints of a finger: lines inside, folds outside.
                        away = place - np.round(min(np.float32(2.0), place))
                        inside = value[PALMAR]
                        fold = np.exp(-(away * away) / np.float32(0.012)) * (1 - inside)
                        line = np.exp(-(away * away) / np.float32(0.0012)) * inside
                        wave = np.sin(away * 55 + 2 * grain)
                        tone *= 1 - np.float32(0.30) * line - np.float32(0.10) * fold * (1 + wave)
                        bx += np.float32(0.12) * fold * wave * (1 - nail)
                        bz += np.float32(0.12) * fold * wave * (1 - nail)
                    cr = cr * (1 - nail) + nail * m[TINT]
                    cg = cg * (1 - nail) + nail * m[TINT + 1]
                    cb = cb * (1 - nail) + nail * m[TINT + 2]
                    gloss += nail * np.float32(0.35)
                    shiny += nail * 40
                    tone = tone * (1 - nail) + nail
                    # Blood under thin skin varies less in red than in green and blue.
                    cr *= np.float32(1.0) + (tone - 1) * np.float32(0.7)
                    cg *= tone
                    cb *= tone
                else:
                    mix = np.float32(0.0)
                    size_p = m[PATTERN_SIZE]
                    if m[PATTERN] == 1:
                        mix = np.float32(1.0) if np.sin(value[REST + 1] * size_p) > 0 else mix
                    elif m[PATTERN] == 2:
                        wave = np.sin(value[REST] * size_p) * np.sin(value[REST + 1] * size_p)
                        mix = (
                            np.float32(1.0) if wave * np.cos(value[REST + 2] * size_p) > 0 else mix
                        )
                    elif m[PATTERN] == 3:
                        n = _noise(
                            tile,
                            value[REST] * size_p * 0.4,
                            value[REST + 1] * size_p * 0.4,
                            value[REST + 2] * size_p * 0.4,
                            3,
                        )
                        mix = min(np.float32(1.0), max(np.float32(0.0), n * 4))
                    elif m[PATTERN] == 4:
                        mix = np.float32(1.0) if abs(value[REST + 1] * size_p) < 1.2 else mix
                    cr = (cr * (1 - mix) + mix * m[TINT]) * tone
                    cg = (cg * (1 - mix) + mix * m[TINT + 1]) * tone
                    cb = (cb * (1 - mix) + mix * m[TINT + 2]) * tone
                nx, ny, nz = nx + bx, ny + by, nz + bz
                length = np.sqrt(nx * nx + ny * ny + nz * nz)
                nx, ny, nz = nx / length, ny / length, nz / length
                facing = max(np.float32(0.02), nx * vx + ny * vy + nz * vz)
                fresnel = (1 - facing) ** 5
                lit = np.float32(1.0)
                if shadow > 0:
                    lit = 1 - shadow * (
                        1 - _lit(shadow_near, to_map, px, py, pz, np.float32(0.006))
                    )
                er, eg, eb = np.float32(0.0), np.float32(0.0), np.float32(0.0)
                hr, hg, hb = np.float32(0.0), np.float32(0.0), np.float32(0.0)
                wrap = m[WRAP]
                for k in range(lights.shape[0]):
                    lx, ly, lz = lights[k, 0], lights[k, 1], lights[k, 2]
                    reach = lit if k == 0 else np.float32(1.0)
                    d = nx * lx + ny * ly + nz * lz
                    # Light that enters skin leaves it further on, red the furthest.
                    wr, wg, wb_ = wrap, wrap * np.float32(0.55), wrap * np.float32(0.4)
                    er += reach * lights[k, 3] * max(np.float32(0.0), (d + wr) / (1 + wr))
                    eg += reach * lights[k, 4] * max(np.float32(0.0), (d + wg) / (1 + wg))
                    eb += reach * lights[k, 5] * max(np.float32(0.0), (d + wb_) / (1 + wb_))
                    hx, hy, hz = lx + vx, ly + vy, lz + vz
                    length = np.sqrt(hx * hx + hy * hy + hz * hz) + np.float32(1e-6)
                    h = (nx * hx + ny * hy + nz * hz) / length
                    if d > 0 and h > 0.6:
                        spec = reach * (gloss + fresnel * np.float32(0.2)) * h**shiny
                        hr += spec * lights[k, 3]
                        hg += spec * lights[k, 4]
                        hb += spec * lights[k, 5]
                sky = np.float32(0.5) + np.float32(0.5) * (nx * up[0] + ny * up[1] + nz * up[2])
                # The sky in the mirror of the surface.
                tx = 2 * facing * nx - vx
                ty = 2 * facing * ny - vy
                tz = 2 * facing * nz - vz
                mirror = min(
                    np.float32(1.0),
                    max(np.float32(0.0), 0.5 + 2 * (tx * up[0] + ty * up[1] + tz * up[2])),
                )
                dark = occlusion[
                    min(y // 2, occlusion.shape[0] - 1), min(x // 2, occlusion.shape[1] - 1)
                ]
                sheen = (gloss * np.float32(0.35) + fresnel * np.float32(0.12)) * dark
                direct = np.float32(0.35) + np.float32(0.65) * dark
                ar = ambient[1, 0] + (ambient[0, 0] - ambient[1, 0]) * sky
                ag = ambient[1, 1] + (ambient[0, 1] - ambient[1, 1]) * sky
                ab = ambient[1, 2] + (ambient[0, 2] - ambient[1, 2]) * sky
                # Between skin and skin light bounces and turns red.
                bounce = np.float32(0.25) * (1 - dark) if kind == SKIN else np.float32(0.0)
                red += weight * (
                    cr * (er * direct + ar * (dark + bounce))
                    + hr * direct
                    + sheen * (ambient[1, 0] + (ambient[0, 0] - ambient[1, 0]) * mirror)
                )
                green += weight * (
                    cg * (eg * direct + ag * dark)
                    + hg * direct
                    + sheen * (ambient[1, 1] + (ambient[0, 1] - ambient[1, 1]) * mirror)
                )
                blue += weight * (
                    cb * (eb * direct + ab * dark)
                    + hb * direct
                    + sheen * (ambient[1, 2] + (ambient[0, 2] - ambient[1, 2]) * mirror)
                )
            out[y, x, 0] = red
            out[y, x, 1] = green
            out[y, x, 2] = blue


@njit(cache=True, fastmath=True, nogil=True)
def develop(linear, gains, curve, noise, read_noise, shot_noise, offset):
    """sRGB uint8 (H, W, 3) of linear light: white balance, sensor noise, tone curve.

    gains (3,); curve (1024,) uint8 over linear light [0, 1] spaced by square root;
    noise (N, N, 3) standard normal, read from an offset (2,).
    """
    height, width = linear.shape[0], linear.shape[1]
    out = np.empty((height, width, 3), np.uint8)
    side = noise.shape[0]
    for y in range(height):
        for x in range(width):
            for c in range(3):
                value = max(np.float32(0.0), linear[y, x, c] * gains[c])
                sigma = read_noise + shot_noise * np.sqrt(value)
                value += sigma * noise[(y + offset[0]) % side, (x + offset[1]) % side, c]
                value = min(np.float32(1.0), max(np.float32(0.0), value))
                out[y, x, c] = curve[int(np.sqrt(value) * np.float32(1023.0) + np.float32(0.5))]
    return out
