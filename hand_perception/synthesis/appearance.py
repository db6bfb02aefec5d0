"""How hands and things look: skin, nails, sleeves, materials and lights, in linear light."""

from __future__ import annotations

import numpy as np

from hand_perception.synthesis.arrays import F32
from hand_perception.synthesis.hands import HandTemplate
from hand_perception.synthesis.objects import RigidObject
from hand_perception.synthesis.renderer import Lighting
from hand_perception.synthesis.shading import (
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
)
from hand_perception.types import FloatArray

# sRGB anchors from very light to very dark skin; the back of the hand.
_SKIN = np.array(
    [
        [0.96, 0.83, 0.76], [0.92, 0.76, 0.66], [0.87, 0.68, 0.55], [0.78, 0.58, 0.44],
        [0.66, 0.47, 0.34], [0.52, 0.35, 0.25], [0.38, 0.25, 0.18], [0.25, 0.17, 0.13],
    ]
)  # fmt: skip
GAMMA = 2.2


def sample_skin(rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Linear albedo (3,) and darkness from 0 (very light) to 1 (very dark)."""
    darkness = rng.random()
    place = darkness * (len(_SKIN) - 1)
    k = min(int(place), len(_SKIN) - 2)
    srgb = _SKIN[k] + (place - k) * (_SKIN[k + 1] - _SKIN[k])
    srgb = srgb * (1 + rng.normal(0, 0.025, 3)) * rng.uniform(0.93, 1.04)
    if rng.random() < 0.25:  # ruddy or sallow
        srgb = srgb * (1 + rng.normal(0, 0.05) * np.array([1.0, -0.4, -0.6]))
    return np.clip(srgb, 0.02, 1) ** GAMMA, float(darkness)


def random_color(rng: np.random.Generator) -> FloatArray:
    """Linear albedo (3,): many greys and muted colours, some strong ones, as things are."""
    kind = rng.random()
    value = rng.uniform(0.05, 0.95)
    saturation = rng.beta(1.2, 2.5) if kind < 0.7 else rng.beta(3, 1.5)
    if kind < 0.2:
        saturation *= 0.15
    hue = rng.random() * 6 + np.array([0.0, 4.0, 2.0])
    pure = np.clip(np.abs(hue % 6 - 3) - 1, 0, 1)
    return np.clip(value * (1 - saturation * (1 - pure)), 0.01, 1) ** GAMMA


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
        SKIN, rng.uniform(9, 30), rng.uniform(0.2, 0.45), rng.uniform(0.03, 0.1),
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
    # A white surface that faces the first light gets about 1, however many lights there are.
    total = 0.75 * lights[:, 3:].mean(1).sum() + 0.5 * (sky.mean() + ground.mean())
    lights[:, 3:] /= total
    sky, ground = sky / total, ground / total
    lighting = Lighting(
        lights,
        np.stack([sky, ground]).astype(np.float32),
        up.astype(np.float32),
        float(rng.uniform(0.4, 0.95)) if rng.random() < 0.85 else 0.0,
        plane,
    )
    cast = 1 + rng.normal(0, 0.06, 3)
    return lighting, cast
