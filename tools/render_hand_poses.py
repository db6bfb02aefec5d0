"""Draw the gestures of the free hand on one sheet: both sides, from palm, back and thumb's side.

python tools/render_hand_poses.py --out docs/images/hand_poses.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from hand_perception.geometry import axis_angle_to_matrix
from hand_perception.hand_model import GESTURES, HandModel, angles_to_rotations
from hand_perception.types import SIDES, Side

# Turns of the model frame of the right hand into a picture with x right, y down, z away:
# the fingers point up, and the palm, the back or the thumb's side looks at the viewer.
VIEWS = {
    "palm": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "back": [[0, 0, -1], [1, 0, 0], [0, -1, 0]],
    "thumb": [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
}
SKIN = np.array([200.0, 160.0, 140.0])
NAIL = np.array([235.0, 200.0, 190.0])
LIGHT = np.array([-0.35, -0.5, -0.79])


def draw(vertices: np.ndarray, faces: np.ndarray, color: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: an orthographic z-buffer of vertices (V, 3), 250 mm across."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shade = color * (0.35 + 0.75 * np.clip(normals @ LIGHT, 0, 1))[:, None]
    points = vertices * [size / 0.25, size / 0.25, 1] + [size / 2, size / 2, 0]
    image = np.full((size, size, 3), 40.0)
    depth = np.full((size, size), np.inf)
    for face in faces:
        p = points[face]
        low = np.maximum(np.floor(p[:, :2].min(0)).astype(int), 0)
        high = np.minimum(np.ceil(p[:, :2].max(0)).astype(int) + 1, size)
        if (low >= high).any():
            continue
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
        u, v = p[1, :2] - p[0, :2], p[2, :2] - p[0, :2]
        area = u[0] * v[1] - u[1] * v[0]
        if abs(area) < 1e-9:
            continue
        s = ((x - p[0, 0]) * v[1] - (y - p[0, 1]) * v[0]) / area
        t = (u[0] * (y - p[0, 1]) - u[1] * (x - p[0, 0])) / area
        weights = np.stack([1 - s - t, s, t], -1)
        z = weights @ p[:, 2]
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        seen = (weights >= 0).all(-1) & (z < depth[window])
        depth[window][seen] = z[seen]
        image[window][seen] = (weights @ shade[face])[seen]
    return image.clip(0, 255).astype(np.uint8)


def picture(side: Side, gesture: str, view: str, size: int) -> np.ndarray:
    """One gesture of one hand from one side, (size, size, 3) RGB."""
    model = HandModel.load(side=side)
    wrist = axis_angle_to_matrix(torch.zeros(1, 3))
    rotations = torch.cat([wrist, angles_to_rotations(model, GESTURES[gesture])])
    vertices = model.with_shape().with_rotations(rotations).mesh().numpy()
    turn = np.array(VIEWS[view], dtype=float)
    if side == "left":
        turn = np.diag([-1.0, 1, 1]) @ turn @ np.diag([-1.0, 1, 1])
    placed = (vertices - model.v_template.mean(0).numpy()) @ turn.T
    nail = model.extras["nail"].numpy()[:, None]
    image = draw(placed, model.faces.numpy(), SKIN + nail * (NAIL - SKIN), 2 * size)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    label = f"{side} {gesture}, {view}"
    cv2.putText(image, label, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=170, help="pixels of one picture")
    options = parser.parse_args()
    rows = [
        np.hstack([picture(side, name, view, options.size) for side in SIDES for view in VIEWS])
        for name in GESTURES
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.out), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
