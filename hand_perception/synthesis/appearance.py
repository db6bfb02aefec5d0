"""How scenes look: skin, nails, sleeves, objects, lights and procedural backgrounds.

Albedo is linear light; backgrounds are sRGB pictures, as a photo would be.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.synthesis.hands import HandTemplate
from hand_perception.synthesis.objects import RigidObject
from hand_perception.synthesis.renderer import (
    ALBEDO,
    AXIAL,
    CLOTH,
    GLOSS,
    NAIL,
    NUM_ATTRIBUTES,
    NUM_MATERIAL,
    PALMAR,
    REST,
    SKIN,
    SOLID,
    Lighting,
)
from hand_perception.types import FloatArray, HandPerceptionError

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# sRGB anchors from very light to very dark skin; the back of the hand.
_SKIN = np.array(
    [
        [0.96, 0.83, 0.76], [0.92, 0.76, 0.66], [0.87, 0.68, 0.55], [0.78, 0.58, 0.44],
        [0.66, 0.47, 0.34], [0.52, 0.35, 0.25], [0.38, 0.25, 0.18], [0.25, 0.17, 0.13],
    ]
)  # fmt: skip
_GAMMA = 2.2


def sample_skin(rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Linear albedo (3,) and darkness from 0 (very light) to 1 (very dark)."""
    darkness = rng.random()
    place = darkness * (len(_SKIN) - 1)
    k = min(int(place), len(_SKIN) - 2)
    srgb = _SKIN[k] + (place - k) * (_SKIN[k + 1] - _SKIN[k])
    srgb = srgb * (1 + rng.normal(0, 0.025, 3)) * rng.uniform(0.93, 1.04)
    if rng.random() < 0.25:  # ruddy or sallow
        srgb = srgb * (1 + rng.normal(0, 0.05) * np.array([1.0, -0.4, -0.6]))
    return np.clip(srgb, 0.02, 1) ** _GAMMA, float(darkness)


def random_color(rng: np.random.Generator) -> FloatArray:
    """Linear albedo (3,): many greys and muted colours, some strong ones, as things are."""
    kind = rng.random()
    value = rng.uniform(0.05, 0.95)
    saturation = rng.beta(1.2, 2.5) if kind < 0.7 else rng.beta(3, 1.5)
    if kind < 0.2:
        saturation *= 0.15
    hue = rng.random() * 6 + np.array([0.0, 4.0, 2.0])
    pure = np.clip(np.abs(hue % 6 - 3) - 1, 0, 1)
    return np.clip(value * (1 - saturation * (1 - pure)), 0.01, 1) ** _GAMMA


def _smooth_noise(rng: np.random.Generator, points: F32, wavelength: float) -> F32:
    """(N,) a few waves through space, about unit variance."""
    waves = rng.normal(0, 2 * np.pi / wavelength, (5, 3))
    return np.sin(points @ waves.T + rng.uniform(0, 6.3, 5)).sum(1).astype(np.float32) / 1.6


def paint_hand(
    rng: np.random.Generator, template: HandTemplate, skin: FloatArray, darkness: float
) -> tuple[F32, F32]:
    """Attributes (V, 10) and material (11,) of a hand."""
    out = np.zeros((template.num_vertices, NUM_ATTRIBUTES), np.float32)
    rest = template.v_template
    mottled = 1 + rng.uniform(0.02, 0.07) * _smooth_noise(rng, rest, 0.03)[:, None]
    color = skin * mottled
    # The palm is lighter and pinker, the more so the darker the skin.
    palm_color = np.array([0.80, 0.55, 0.45]) ** 1.3
    palm = template.palmar[:, None] * (0.12 + 0.5 * darkness**1.3) * rng.uniform(0.6, 1.1)
    color = color * (1 - palm) + palm_color * (0.45 * skin.sum() + 0.4) * palm
    # Blood in the fingertips and over the knuckles; darker knuckles on dark skin.
    knuckle = np.exp(-((template.axial - np.round(template.axial)) ** 2) / 0.02)
    knuckle = knuckle * (template.axial > 0.6) * (1 - template.palmar)
    tip = np.clip(template.axial - 2.3, 0, 0.7) / 0.7
    red = (0.5 * knuckle + tip)[:, None] * rng.uniform(0, 0.3) * (1 - 0.6 * darkness)
    color = color * (1 - red * np.array([0.05, 0.55, 0.5]))
    color = color * (1 - (knuckle * rng.uniform(0, 0.35) * darkness)[:, None])
    nail = np.clip(skin * 1.1 + np.array([0.06, 0.01, 0.01]), 0, 0.9)
    if rng.random() < 0.12:
        nail = random_color(rng)
    gloss = rng.uniform(0.01, 0.09) * (1.6 if rng.random() < 0.12 else 1)
    if rng.random() < 0.1:  # a ring
        low = rng.uniform(0.25, 0.45)
        finger = rng.choice([1, 4, 7, 10, 10, 10])
        band = (template.parts == finger) & (np.abs(template.axial - low) < 0.09)
        metal = np.array([[0.83, 0.62, 0.25], [0.7, 0.7, 0.72]][rng.integers(2)])
        color = np.where(band[:, None], metal, color)
    if rng.random() < 0.025:  # a glove
        color = random_color(rng) * mottled
        nail = color.mean(0)
    out[:, ALBEDO : ALBEDO + 3] = np.clip(color, 0.005, 1)
    out[:, GLOSS] = gloss
    out[:, NAIL] = template.nail
    out[:, AXIAL] = template.axial
    out[:, PALMAR] = template.palmar
    out[:, REST : REST + 3] = rest
    material = np.zeros(NUM_MATERIAL, np.float32)
    material[:8] = [
        SKIN, rng.uniform(9, 30), rng.uniform(0.2, 0.45), rng.uniform(0.04, 0.16),
        rng.uniform(0.02, 0.16), rng.uniform(450, 1100), 0, 0,
    ]  # fmt: skip
    material[8:] = nail
    return out, material


def paint_arm(
    rng: np.random.Generator, skin: FloatArray, rings: FloatArray, watch: bool
) -> tuple[F32, F32]:
    """Attributes and material of the bare forearm with rest rings (R, L, 3)."""
    points = rings.reshape(-1, 3).astype(np.float32)
    out = np.zeros((len(points), NUM_ATTRIBUTES), np.float32)
    out[:, ALBEDO : ALBEDO + 3] = skin * (1 + 0.05 * _smooth_noise(rng, points, 0.05)[:, None])
    out[:, GLOSS] = rng.uniform(0.01, 0.05)
    out[:, REST : REST + 3] = points
    if watch:
        band = slice(2 * rings.shape[1], 4 * rings.shape[1])
        out[band, ALBEDO : ALBEDO + 3] = random_color(rng)
        out[band, GLOSS] = rng.uniform(0, 0.5)
    material = np.zeros(NUM_MATERIAL, np.float32)
    material[:8] = [SKIN, 14, 0.3, 0.1, 0.05, 600, 0, 0]
    return out, material


def paint_sleeve(rng: np.random.Generator, rings: FloatArray) -> tuple[F32, F32]:
    """Attributes and material of a sleeve with rest rings (R, L, 3)."""
    points = rings.reshape(-1, 3).astype(np.float32)
    out = np.zeros((len(points), NUM_ATTRIBUTES), np.float32)
    out[:, ALBEDO : ALBEDO + 3] = random_color(rng)
    out[:, REST : REST + 3] = points[:, [1, 0, 2]]  # stripes run around the arm
    material = np.zeros(NUM_MATERIAL, np.float32)
    pattern = rng.choice([0, 0, 0, 1, 2])
    material[:8] = [
        CLOTH, 8, 0.1, rng.uniform(0.05, 0.3), rng.uniform(0.1, 0.45), rng.uniform(150, 600),
        pattern, rng.uniform(200, 700),
    ]  # fmt: skip
    material[8:] = random_color(rng)
    return out, material


def paint_object(rng: np.random.Generator, thing: RigidObject) -> tuple[F32, F32]:
    """Attributes and material of an object: its own colours, or random ones and a pattern."""
    out = np.zeros((len(thing.vertices), NUM_ATTRIBUTES), np.float32)
    out[:, REST : REST + 3] = thing.vertices
    out[:, GLOSS] = rng.choice([0.0, 0.03, 0.1, 0.35]) * rng.uniform(0.5, 1.2)
    material = np.zeros(NUM_MATERIAL, np.float32)
    material[:8] = [
        SOLID, rng.choice([10, 25, 60, 120]), 0.05, rng.uniform(0, 0.25),
        rng.choice([0.0, 0.0, 0.08, 0.2]), rng.uniform(100, 600), 0, 0,
    ]  # fmt: skip
    if thing.colors is not None:
        out[:, ALBEDO : ALBEDO + 3] = thing.colors * rng.uniform(0.7, 1.15)
        return out, material
    if rng.random() < 0.15:
        out[:, ALBEDO : ALBEDO + 3] = sample_skin(rng)[0]
    else:
        out[:, ALBEDO : ALBEDO + 3] = random_color(rng)
    material[6] = rng.choice([0, 0, 1, 2, 3, 4, 4])
    material[7] = rng.uniform(40, 400)
    material[8:] = random_color(rng)
    return out, material


def sample_lighting(
    rng: np.random.Generator, plane: F32, up: FloatArray
) -> tuple[Lighting, FloatArray]:
    """Lights in the camera frame, and the colour (3,) of the white balance that is left over."""
    count = int(rng.choice([1, 1, 2, 2, 3]))
    lights = np.zeros((count, 6), np.float32)
    hard = rng.random()
    for k in range(count):
        direction = rng.normal(size=3) + 1.1 * up + [0, 0, -0.8 if rng.random() < 0.75 else 0.6]
        lights[k, :3] = direction / np.linalg.norm(direction)
        warm = rng.normal(0, 0.16)
        tint = np.array([1 + warm, 1, 1 - 1.2 * warm])
        lights[k, 3:] = tint * (0.35 + 0.9 * hard) * rng.uniform(0.5, 1.3) / (1 + 1.3 * k)
    cool = rng.normal(0, 0.1)
    sky = np.array([1 - cool, 1, 1 + cool]) * (0.75 - 0.5 * hard) * rng.uniform(0.8, 1.2)
    ground = sky[::-1] * rng.uniform(0.25, 0.8)
    lighting = Lighting(
        lights,
        np.stack([sky, ground]).astype(np.float32),
        up.astype(np.float32),
        float(rng.uniform(0.4, 0.95)) if rng.random() < 0.85 else 0.0,
        plane,
    )
    cast = 1 + rng.normal(0, 0.06, 3)
    return lighting, cast


# ---- Backgrounds -----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _noise_bank() -> F32:
    """(8, 256, 256) fractal noise in [0, 1] of different roughness."""
    rng = np.random.default_rng(11)
    f = np.fft.fftfreq(256)
    radius = np.hypot(f[:, None], f[None]) + 1 / 256
    out = []
    for slope in np.linspace(0.9, 2.2, 8):
        value = np.fft.ifft2(np.fft.fft2(rng.normal(size=(256, 256))) / radius**slope).real
        out.append((value - value.min()) / np.ptp(value))
    return np.array(out, np.float32)


def _rgb(rng: np.random.Generator) -> tuple[float, float, float]:
    color = np.clip(random_color(rng) ** (1 / _GAMMA) * 255, 0, 255)
    return float(color[0]), float(color[1]), float(color[2])


def _skin_rgb(rng: np.random.Generator) -> tuple[float, float, float]:
    color = np.clip(sample_skin(rng)[0] ** (1 / _GAMMA) * 255 * rng.uniform(0.6, 1.1), 0, 255)
    return float(color[0]), float(color[1]), float(color[2])


def _texture(rng: np.random.Generator, side: int) -> U8:
    """A surface (side, side, 3): plain, cloudy, wood, stripes, tiles, cloth or leaves."""
    a, b = np.array(_rgb(rng), np.float32), np.array(_rgb(rng), np.float32)
    if rng.random() < 0.6:
        b = np.clip(a * rng.uniform(0.6, 1.3), 0, 255)  # most things have one colour
    kind = rng.choice(8, p=[0.24, 0.16, 0.14, 0.1, 0.1, 0.12, 0.08, 0.06])
    noise = _noise_bank()[rng.integers(8)]
    top, left = rng.integers(0, 128, 2)
    window = rng.integers(48, 128)
    cloud = cv2.resize(noise[top : top + window, left : left + window], (side, side))
    if kind == 0:  # a wall, unevenly lit
        mix = 0.3 * cloud + np.linspace(0, rng.uniform(-0.5, 0.5), side, dtype=np.float32)
        mix = mix if rng.random() < 0.5 else mix.T
    elif kind == 1:
        mix = np.clip((cloud - 0.5) * rng.uniform(1, 5) + 0.5, 0, 1)
    elif kind == 2:  # wood: rings drawn out along the grain
        grain = cv2.resize(noise[top : top + 128, left : left + 12], (side, side))
        grain = grain.T if rng.random() < 0.7 else grain
        mix = 0.5 + 0.5 * np.sin(grain * rng.uniform(10, 45))
        mix = mix * 0.6 + 0.4 * grain
    elif kind in (3, 4):
        wave = np.arange(side, dtype=np.float32) * rng.uniform(0.05, 0.6)
        phase = rng.uniform(0, 6)
        if kind == 3:
            mix = np.tile(
                (np.sin(wave + phase) > rng.uniform(-0.8, 0.8)).astype(np.float32), (side, 1)
            )
            mix = mix if rng.random() < 0.5 else mix.T
        else:
            lines = (np.sin(wave) > rng.uniform(0.3, 0.97)).astype(np.float32)
            mix = np.maximum(lines[None], lines[:, None])
        mix = np.ascontiguousarray(mix) * 0.9 + 0.15 * cloud
    elif kind == 5:  # cloth
        weave = rng.random((side // 2, side // 2), np.float32)
        mix = 0.6 * cloud + 0.4 * cv2.resize(weave, (side, side))
    elif kind == 6:  # leaves
        picture = np.empty((side, side, 3), np.uint8)
        picture[:] = (b * 0.4).astype(np.uint8)
        green = np.array([a[0] * 0.6, max(a), a[2] * 0.4]) if rng.random() < 0.7 else a
        for _ in range(90):
            shade = green * rng.uniform(0.3, 1.1)
            center = tuple(int(v) for v in rng.integers(0, side, 2))
            size = tuple(int(v) for v in rng.integers(2, max(4, side // 14), 2))
            cv2.ellipse(
                picture, center, size, float(rng.uniform(0, 180)), 0, 360,
                tuple(float(v) for v in np.clip(shade, 0, 255)), -1, cv2.LINE_AA,
            )  # fmt: skip
        return picture
    else:  # speckled stone
        mix = (rng.random((side, side), np.float32) > rng.uniform(0.5, 0.95)).astype(np.float32)
        mix = 0.7 * cv2.GaussianBlur(mix, (3, 3), 0) + 0.3 * cloud
    mix = mix[..., None]
    return np.clip(a + (b - a) * mix, 0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, picture: U8) -> None:
    """Things in the room, drawn onto the picture: furniture, screens, books, cables, papers."""
    height, width = picture.shape[:2]
    for _ in range(rng.integers(0, 9)):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(width // 16, width // 2), rng.integers(height // 16, height // 2)
        kind = rng.integers(6)
        color = _rgb(rng)
        if kind == 0:  # a textured panel
            angle, box = rng.normal(0, 12), (int(w), int(h))
            corners = cv2.boxPoints(((float(x), float(y)), box, float(angle))).astype(np.float32)
            texture = _texture(rng, 96)
            source = np.array([[0, 96], [0, 0], [96, 0], [96, 96]], np.float32)
            warp = cv2.getPerspectiveTransform(source, corners)
            cv2.warpPerspective(
                texture, warp, (width, height), picture, borderMode=cv2.BORDER_TRANSPARENT
            )
        elif kind == 1:  # a row of books, blinds or keys
            step = max(3, int(w) // rng.integers(3, 12))
            base = np.array(color)
            for k in range(int(w) // step):
                shade = np.array(_rgb(rng)) if rng.random() < 0.5 else base * rng.uniform(0.6, 1.2)
                low = (int(x) + k * step, int(y) + int(rng.integers(0, 1 + h // 6)))
                high = (int(x) + (k + 1) * step - 1, int(y + h))
                cv2.rectangle(picture, low, high, tuple(map(float, np.clip(shade, 0, 255))), -1)
        elif kind == 2:  # a bright window or screen
            bright = tuple(float(v) for v in np.clip(np.array(color) * 0.3 + 180, 0, 255))
            cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), bright, -1)
            cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), color, 3)
        elif kind == 3:
            axes = (int(w) // 2 + 1, int(h) // 2 + 1)
            cv2.ellipse(
                picture, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, color, -1,
                cv2.LINE_AA,
            )  # fmt: skip
        elif kind == 4:  # cables, edges, poles
            points = rng.integers(0, width, (rng.integers(2, 5), 1, 2)).astype(np.int32)
            thickness = int(rng.choice([1, 2, 4, 9, 20]))
            cv2.polylines(picture, [points], False, color, thickness, cv2.LINE_AA)
        else:  # writing
            text = "".join(chr(c) for c in rng.integers(48, 122, rng.integers(3, 14)))
            size = float(rng.uniform(0.3, 1.6))
            cv2.putText(
                picture, text, (int(x) - 40, int(y)), int(rng.integers(0, 7)), size, color, 2
            )


def _people(rng: np.random.Generator, picture: U8) -> None:
    """Blurred persons: heads with hair and eyes, shoulders, bare arms; decoys for skin colour."""
    height, width = picture.shape[:2]
    for _ in range(rng.integers(1, 3)):
        skin = _skin_rgb(rng)
        dark = tuple(0.75 * v for v in skin)
        size = int(rng.uniform(0.08, 0.3) * height)
        x, y = int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.1, 0.8) * height)
        cloth, hair = _rgb(rng), tuple(v * 0.4 for v in _rgb(rng))
        cv2.ellipse(
            picture,
            (x, y + int(2.9 * size)),
            (int(1.9 * size), int(1.8 * size)),
            0,
            0,
            360,
            cloth,
            -1,
            cv2.LINE_AA,
        )
        cv2.rectangle(
            picture, (x - size // 3, y + size // 2), (x + size // 3, y + int(1.5 * size)), dark, -1
        )
        cv2.ellipse(
            picture,
            (x, y - size // 5),
            (int(0.86 * size), int(1.1 * size)),
            0,
            0,
            360,
            hair,
            -1,
            cv2.LINE_AA,
        )
        cv2.ellipse(picture, (x, y), (int(0.74 * size), size), 0, 0, 360, skin, -1, cv2.LINE_AA)
        for sign in (-1, 1):
            eye = (x + int(sign * 0.3 * size), y - size // 8)
            cv2.ellipse(
                picture,
                eye,
                (max(1, size // 8), max(1, size // 16)),
                0,
                0,
                360,
                (40, 30, 30),
                -1,
                cv2.LINE_AA,
            )
        cv2.ellipse(
            picture,
            (x, y + size // 2),
            (size // 4, max(1, size // 14)),
            0,
            0,
            360,
            (150, 70, 70),
            -1,
            cv2.LINE_AA,
        )
        cv2.ellipse(
            picture,
            (x, y + size // 6),
            (max(1, size // 9), size // 5),
            0,
            0,
            360,
            dark,
            -1,
            cv2.LINE_AA,
        )
        if rng.random() < 0.6:
            ends = rng.integers(0, width, (2, 2))
            thick = max(4, int(0.55 * size))
            cv2.line(
                picture,
                tuple(map(int, ends[0])),
                tuple(map(int, ends[1])),
                skin,
                thick,
                cv2.LINE_AA,
            )


def sample_background(
    rng: np.random.Generator, width: int, height: int, photos: Path | None = None
) -> U8:
    """A background (height, width, 3) sRGB: a room, a table, outdoors-like noise, or a photo."""
    if photos is not None and rng.random() < 0.6:
        return _photo(rng, width, height, photos)
    side = 256
    picture = cv2.resize(_texture(rng, side), (width, height), interpolation=cv2.INTER_LINEAR)
    layout = rng.random()
    if layout < 0.4:  # a wall and a floor or a table in perspective
        horizon = int(height * rng.uniform(0.15, 0.8))
        source = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
        reach = width * rng.uniform(0.1, 1.5)
        target = np.array(
            [[0, horizon], [width, horizon + rng.normal(0, 25)], [width + reach, height * 1.4],
             [-reach, height * 1.4]], np.float32,
        )  # fmt: skip
        warp = cv2.getPerspectiveTransform(source, target)
        cv2.warpPerspective(
            _texture(rng, side), warp, (width, height), picture, borderMode=cv2.BORDER_TRANSPARENT
        )
    elif layout < 0.55:  # two surfaces that meet at a slant
        mask = np.zeros((height, width), np.uint8)
        points = rng.integers(0, width, (4, 2)).astype(np.int32)
        cv2.fillConvexPoly(mask, cv2.convexHull(points), 255, cv2.LINE_AA)
        other = cv2.resize(_texture(rng, side), (width, height))
        picture[mask > 127] = other[mask > 127]
    _clutter(rng, picture)
    if rng.random() < 0.3:
        _people(rng, picture)
    if rng.random() < 0.4:
        _clutter(rng, picture)
    if rng.random() < 0.7:  # out of focus
        picture = cv2.GaussianBlur(picture, (0, 0), float(np.exp(rng.uniform(-0.7, 2.0))))
    # Uneven light over the whole room.
    coarse = _noise_bank()[7][rng.integers(0, 200) :, rng.integers(0, 200) :][:50, :50]
    light = cv2.resize(coarse, (width, height))[..., None]
    light = 1 + rng.uniform(0, 0.9) * (light - 0.5)
    return np.clip(picture * light, 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _photo_files(folder: Path) -> tuple[Path, ...]:
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    files = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes))
    if not files:
        raise HandPerceptionError(f"{folder} holds no pictures (.jpg, .jpeg, .png, .webp)")
    return files


def _photo(rng: np.random.Generator, width: int, height: int, folder: Path) -> U8:
    files = _photo_files(folder)
    picture = cv2.imread(str(files[rng.integers(len(files))]), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise HandPerceptionError(f"a picture in {folder} cannot be read")
    h, w = picture.shape[:2]
    scale = rng.uniform(0.4, 1.0) * min(w / width, h / height)
    cut_w, cut_h = max(2, int(width * scale)), max(2, int(height * scale))
    x, y = rng.integers(0, max(1, w - cut_w + 1)), rng.integers(0, max(1, h - cut_h + 1))
    cut = picture[y : y + cut_h, x : x + cut_w]
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
