"""Installs hand_perception, with colcon or pip alike; metadata and dependencies: setup.cfg."""

from pathlib import Path

from setuptools import setup

PACKAGE = "hand_perception"


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """Every file under a folder of the checkout, for share/hand_perception."""
    parents: dict[str, list[str]] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            parents.setdefault(f"share/{PACKAGE}/{path.parent.as_posix()}", []).append(str(path))
    return list(parents.items())


setup(
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml", "LICENSE", "NOTICE"]),
        *tree("launch"),
        *tree("config"),
        *tree("models"),
    ],
)
