"""Where the data lie: `models/` and `config/`, in a checkout or beside an installed package.

One rule: walking up from this file, the first folder that is a checkout (it has a package.xml)
gives its own `models/` and `config/`; the first that holds `share/hand_perception` gives those in
there. That covers a checkout, `pip install` with and without -e, and `colcon build` with and
without --symlink-install. The environment variable HAND_PERCEPTION_MODELS overrides the models.
"""

from __future__ import annotations

import os
from pathlib import Path

from hand_perception.types import HandPerceptionError

MODELS_VARIABLE = "HAND_PERCEPTION_MODELS"


def models_dir() -> Path:
    """The folder with the weights; HandPerceptionError where there is none."""
    override = os.environ.get(MODELS_VARIABLE)
    if not override:
        return _data_dir("models")
    folder = Path(override).expanduser()
    if not folder.is_dir():
        raise HandPerceptionError(
            f"{MODELS_VARIABLE} names {folder}, which is not a folder; it must be one with the "
            "content of the project's models/, or be unset"
        )
    return folder


def model_file(name: str) -> Path:
    """The file `name` (relative, such as "hand/free_hand_right.safetensors") in the models folder.

    HandPerceptionError where it is missing.
    """
    folder = models_dir()
    path = folder / name
    if not path.is_file():
        raise HandPerceptionError(
            f"weights {name} are missing from {folder}; restore the project's models/ folder or "
            f"let {MODELS_VARIABLE} name a folder that holds them"
        )
    return path


def config_dir() -> Path:
    """The folder with the parameter files; HandPerceptionError where there is none."""
    return _data_dir("config")


def _data_dir(name: str) -> Path:
    start = Path(__file__).resolve()
    for parent in start.parents:
        root = parent if (parent / "package.xml").is_file() else parent / "share/hand_perception"
        if (root / name).is_dir():
            return root / name
    raise HandPerceptionError(
        f"no {name}/ folder belongs to the hand_perception in {start.parent}; run from a checkout, "
        "or install with colcon or pip, which put it under share/hand_perception"
    )
