"""What a pixel looks like: materials, skin, shadows and the way from light to a picture."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from hand_perception.synthesis.arrays import F32

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

_TILE = 32


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


@njit(cache=True, fastmath=True, inline="always")
def corner_weights(vertices: Any, a: Any, b: Any, c: Any, x: Any, y: Any, K: Any) -> Any:
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


@njit(cache=True, fastmath=True, inline="always")
def _lit(near: Any, to_map: Any, px: Any, py: Any, pz: Any, bias: Any) -> Any:
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
def _noise(tile: Any, x: Any, y: Any, z: Any, channel: Any) -> Any:
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
def shade_samples(
    nearness: Any, triangle: Any, vertices: Any, normals: Any, faces: Any, face_body: Any,
    attributes: Any, materials: Any, K: Any, lights: Any, ambient: Any, up: Any, plane: Any,
    shadow_near: Any, to_map: Any, shadow: Any, occlusion: Any, background: Any, table: Any,
    tile: Any, out: Any,
) -> None:  # fmt: skip
    """Fill out (S, S, 3) with linear light from the (2S, 2S) buffers; see renderer.Renderer.shade.

    Skin scatters light (the diffuse terms wrap around, red the furthest), has creases across the
    finger joints and nails; other bodies have a pattern. Highlights are Blinn-Phong with Schlick's
    Fresnel term, the sky is mirrored as a horizon.
    """
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
                wb, wc = corner_weights(vertices, a, b, c, sx, sy, K)
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
def develop(
    linear: Any, gains: Any, curve: Any, noise: Any, read_noise: Any, shot_noise: Any, offset: Any
) -> Any:
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
