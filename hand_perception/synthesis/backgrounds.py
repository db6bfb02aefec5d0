"""Procedural backgrounds: textured surfaces, clutter, rendered things and people, out of focus.

A background is an sRGB picture, as a photo would be; nothing in it comes from a data set.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from hand_perception.synthesis import motion
from hand_perception.synthesis.appearance import (
    GAMMA,
    paint_object,
    random_color,
    sample_lighting,
    sample_skin,
)
from hand_perception.synthesis.arrays import F32, I32, U8
from hand_perception.synthesis.objects import generated_objects
from hand_perception.synthesis.renderer import Mesh, Renderer
from hand_perception.synthesis.shading import (
    ALBEDO,
    CLOTH,
    NUM_ATTRIBUTES,
    NUM_MATERIAL,
    REST,
    SKIN,
)
from hand_perception.synthesis.shapes import ball, tube
from hand_perception.types import FloatArray, HandPerceptionError

_ROOM = 336
"""Side of the square in which things are rendered; it is stretched to the picture."""


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
    color = np.clip(random_color(rng) ** (1 / GAMMA) * 255, 0, 255)
    if rng.random() < 0.55:  # rooms are mostly grey, beige and brown
        color = (
            color.mean() + 0.3 * (color - color.mean()) + rng.uniform(0, 14) * np.array([1, 0, -1])
        )
        color = np.clip(color, 0, 255)
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
        w = int(rng.integers(width // 16, width // 2))
        h = int(rng.integers(height // 16, height // 2))
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
            step = max(3, w // int(rng.integers(3, 12)))
            base: FloatArray = np.array(color)
            for k in range(w // step):
                shade = np.array(_rgb(rng)) if rng.random() < 0.5 else base * rng.uniform(0.6, 1.2)
                low = (int(x) + k * step, int(y) + int(rng.integers(0, 1 + h // 6)))
                high = (int(x) + (k + 1) * step - 1, int(y + h))
                cv2.rectangle(picture, low, high, np.clip(shade, 0, 255).tolist(), -1)
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


def _person(rng: np.random.Generator) -> list[tuple[FloatArray, I32, F32, F32]]:
    """Vertices, faces, attributes and materials of a bust about the origin: decoys in skin."""
    skin, _ = sample_skin(rng)
    cloth, hair = random_color(rng), random_color(rng) * 0.25
    neck = tube(np.linspace([0, 0.08, 0.0], [0, 0.2, 0.01], 4), np.full(4, 0.05))
    arm = np.array([[0.18, 0.22, 0], [0.24, 0.4, -0.05], [rng.uniform(0, 0.4), 0.55, -0.2]])
    arm[2, 1] -= rng.uniform(0, 0.5)
    arms = []
    for side in (-1, 1):
        path = arm * [side, 1, 1]
        bare = rng.random() < 0.5
        smooth = np.stack(
            [np.interp(np.linspace(0, 2, 7), range(3), path[:, k]) for k in range(3)], 1
        )
        arms.append((tube(smooth, np.linspace(0.05, 0.032, 7)), skin if bare else cloth, SKIN))
    pieces = [
        (ball(0.078, 0.115, 0.09), skin, SKIN),
        (_shift(ball(0.084, 0.1, 0.095), 0, -0.035, 0.025), hair, CLOTH),
        (_shift(ball(0.013, 0.02, 0.018), 0, 0.02, -0.092), skin * 0.9, SKIN),
        (_shift(ball(0.03, 0.007, 0.01), 0, 0.062, -0.078), skin * [0.8, 0.4, 0.4], SKIN),
        (_shift(ball(0.013, 0.007, 0.01), -0.03, -0.012, -0.08), skin * 0.1, SKIN),
        (_shift(ball(0.013, 0.007, 0.01), 0.03, -0.012, -0.08), skin * 0.1, SKIN),
        (neck, skin, SKIN),
        (_shift(ball(0.22, 0.3, 0.12), 0, 0.46, 0.03), cloth, CLOTH),
        *arms,
    ]
    out = []
    for (vertices, faces), color, kind in pieces:
        attributes = np.zeros((len(vertices), NUM_ATTRIBUTES), np.float32)
        attributes[:, ALBEDO : ALBEDO + 3] = color
        attributes[:, REST : REST + 3] = vertices
        material = np.zeros(NUM_MATERIAL, np.float32)
        material[:8] = [kind, 15, 0.3, 0.1, 0.05, 120, 0, 0]
        out.append((vertices, faces, attributes, material))
    return out


def _shift(part: tuple[FloatArray, I32], x: float, y: float, z: float) -> tuple[FloatArray, I32]:
    return part[0] + np.array([x, y, z]), part[1]


@lru_cache(maxsize=1)
def _room_renderer() -> Renderer:
    return Renderer(_ROOM, shadow_size=256)


def _furnish(rng: np.random.Generator, picture: U8) -> U8:
    """The picture with lit things and people standing in it, casting shadows."""
    height, width = picture.shape[:2]
    pieces: list[tuple[FloatArray, I32, F32, F32]] = []
    focal = rng.uniform(0.6, 1.3)
    things = generated_objects()
    for _ in range(rng.integers(1, 12)):
        thing = things[rng.integers(len(things))]
        depth = rng.uniform(0.5, 2.5)
        size = float(np.exp(rng.uniform(np.log(0.06), np.log(0.7)))) * depth / focal
        turn = motion.rotation_matrix(rng.normal(0, [0.25, 1.5, 0.25]))
        if rng.random() < 0.3:
            turn = motion.random_rotation(rng)
        spot = np.array([*(rng.uniform(-0.6, 0.6, 2) / focal * depth), depth])
        points = thing.vertices * (size / thing.extents.max()) @ turn.T + spot
        pieces.append((points, thing.faces, *paint_object(rng, thing)))
    if rng.random() < 0.45:
        for _ in range(rng.integers(1, 3)):
            depth = rng.uniform(0.4, 2.0)
            turn = motion.rotation_matrix(rng.normal(0, [0.2, 0.6, 0.2]))
            spot = np.array([*(rng.uniform(-0.45, 0.35, 2) / focal * depth), depth])
            for vertices, faces, attributes, material in _person(rng):
                pieces.append((vertices @ turn.T + spot, faces, attributes, material))
    offsets = np.cumsum([0] + [len(p[0]) for p in pieces])
    mesh = Mesh(
        np.concatenate([p[1] + o for p, o in zip(pieces, offsets, strict=False)]).astype(np.int32),
        np.concatenate([np.full(len(p[1]), k + 1, np.uint8) for k, p in enumerate(pieces)]),
        np.concatenate([p[2] for p in pieces]),
        np.zeros(offsets[-1], np.uint8),
        np.stack([np.zeros(NUM_MATERIAL, np.float32)] + [p[3] for p in pieces]),
        np.zeros(len(pieces) + 1, np.int8),
    )
    vertices = np.concatenate([p[0] for p in pieces]).astype(np.float32)
    plane = np.array([0, 0.25, 0.97, rng.uniform(1.0, 3.0)], np.float32)
    lighting, _ = sample_lighting(rng, plane, np.array([0.0, -1.0, 0.0]))
    f = focal * _ROOM
    K = np.array([[f * height / width, 0, _ROOM / 2], [0, f, _ROOM / 2], [0, 0, 1]], np.float32)
    renderer = _room_renderer()
    square = cv2.resize(picture, (_ROOM, _ROOM), interpolation=cv2.INTER_AREA)
    renderer.rasterise(mesh, vertices, K, range(1, len(pieces) + 1))
    light = renderer.shade(mesh, vertices, K, lighting, square, vertices)
    shown = (np.clip(light, 0, 1) ** (1 / GAMMA) * 255).astype(np.uint8)
    return cv2.resize(shown, (width, height), interpolation=cv2.INTER_LINEAR)


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
    if rng.random() < 0.7:
        picture = _furnish(rng, picture)
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
    picture = cv2.imread(str(files[rng.integers(len(files))]), cv2.IMREAD_COLOR)
    if picture is None:
        raise HandPerceptionError(f"a picture in {folder} cannot be read")
    picture = picture[..., ::-1]
    h, w = picture.shape[:2]
    scale = rng.uniform(0.4, 1.0) * min(w / width, h / height)
    cut_w, cut_h = max(2, int(width * scale)), max(2, int(height * scale))
    x, y = rng.integers(0, max(1, w - cut_w + 1)), rng.integers(0, max(1, h - cut_h + 1))
    cut = picture[y : y + cut_h, x : x + cut_w]
    return cv2.resize(np.ascontiguousarray(cut), (width, height), interpolation=cv2.INTER_AREA)
