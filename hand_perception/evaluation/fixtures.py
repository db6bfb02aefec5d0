"""Small annotated sets in their own formats, read into one record.

Each reader takes the folder of its set and yields `AnnotatedImage`s; FIXTURES names them.
Joints come out in the package's order, whatever order the files have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hand_perception.skeleton import INTERHAND_TO_OPENPOSE, RHD_TO_OPENPOSE
from hand_perception.types import Camera, FloatArray, HandPerceptionError, Side


@dataclass(frozen=True)
class AnnotatedHand:
    """One hand that a person, or a rig of cameras, has marked."""

    joints_2d: FloatArray
    """(21, 2) image pixels; what is not `valid` is meaningless."""
    valid: NDArray[np.bool_]
    """(21,)."""
    side: Side | None = None
    joints_3d: FloatArray | None = None
    """(21, 3) metres, camera frame; only complete ones."""

    @property
    def box_size(self) -> float:
        """Longer side of the tight box around the valid joints, pixels."""
        marked = self.joints_2d[self.valid]
        return float((marked.max(0) - marked.min(0)).max())

    @property
    def center(self) -> FloatArray:
        """(2,) middle of that box."""
        marked = self.joints_2d[self.valid]
        return (marked.max(0) + marked.min(0)) / 2


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with some or all of its hands marked."""

    path: Path
    hands: list[AnnotatedHand]
    camera: Camera | None = None


def read_fixture(name: str, folder: Path) -> list[AnnotatedImage]:
    """The images of a set; those without a hand of at least three joints are left out.

    Raises HandPerceptionError for an unknown set and for a missing or broken annotation.
    """
    if name not in FIXTURES:
        raise HandPerceptionError(f"annotated set {name!r} is unknown; known: {sorted(FIXTURES)}")
    try:
        images = list(FIXTURES[name](folder))
    except OSError as error:
        raise HandPerceptionError(
            f"the set {name} lacks {error.filename}: {error.strerror}"
        ) from error
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise HandPerceptionError(
            f"the annotations of {name} in {folder} are damaged ({error!r})"
        ) from error
    usable = []
    for image in images:
        hands = [hand for hand in image.hands if hand.valid.sum() >= 3]
        if hands:
            usable.append(AnnotatedImage(image.path, hands, image.camera))
    return usable


def _load(path: Path) -> Any:
    return json.loads(path.read_text())


def _marked(
    triples: Any, side: Side | None = None, joints_3d: FloatArray | None = None
) -> AnnotatedHand:
    """A hand of 21 x (x, y, visibility); visibility 0 means not marked."""
    points = np.asarray(triples, np.float64).reshape(21, 3)
    return AnnotatedHand(points[:, :2], points[:, 2] > 0, side, joints_3d)


def _coco(folder: Path, annotation: str) -> Iterator[AnnotatedImage]:
    """One hand a box, key points flat, the package's joint order."""
    content = _load(folder / annotation)
    for image in content["images"]:
        hands = [
            _marked(item["keypoints"])
            for item in content["annotations"]
            if item["image_id"] == image["id"]
        ]
        yield AnnotatedImage(folder / image["file_name"], hands)


def _onehand10k(folder: Path) -> Iterator[AnnotatedImage]:
    return _coco(folder, "test_onehand10k.json")


def _panoptic(folder: Path) -> Iterator[AnnotatedImage]:
    return _coco(folder, "test_panoptic.json")


def _freihand(folder: Path) -> Iterator[AnnotatedImage]:
    """Every FreiHAND hand is a right hand."""
    for image in _coco(folder, "test_freihand.json"):
        hands = [AnnotatedHand(hand.joints_2d, hand.valid, "right") for hand in image.hands]
        yield AnnotatedImage(image.path, hands)


def _coco_wholebody(folder: Path) -> Iterator[AnnotatedImage]:
    """Both hands of each person, where the set says that its key points hold."""
    content = _load(folder / "test_coco_wholebody.json")
    sides: tuple[Side, Side] = ("left", "right")
    for image in content["images"]:
        hands = [
            _marked(item[f"{side}hand_kpts"], side)
            for item in content["annotations"]
            for side in sides
            if item["image_id"] == image["id"] and item[f"{side}hand_valid"]
        ]
        yield AnnotatedImage(folder / image["file_name"], hands)


def _rhd(folder: Path) -> Iterator[AnnotatedImage]:
    """Rendered hands; 3D in millimetres, fingers tip to base."""
    content = _load(folder / "test_rhd.json")
    order = list(RHD_TO_OPENPOSE)
    for image in content["images"]:
        (fx, fy), (cx, cy) = image["cam_param"]["focal"], image["cam_param"]["princpt"]
        camera = Camera(image["width"], image["height"], fx, fy, cx, cy)
        hands = [
            _marked(
                np.asarray(item["keypoints"])[order],
                item["hand_type"],
                np.asarray(item["joint_cam"], np.float64)[order] / 1000,
            )
            for item in content["annotations"]
            if item["image_id"] == image["id"]
        ]
        yield AnnotatedImage(folder / image["file_name"], hands, camera)


def _interhand26m(folder: Path) -> Iterator[AnnotatedImage]:
    """World millimetres to camera metres, `R (X - campos)`; right hand first, tips to wrist."""
    annotations = folder / "annotations" / "test"
    data = _load(annotations / "InterHand2.6M_test_data.json")
    cameras = _load(annotations / "InterHand2.6M_test_camera.json")
    joints = _load(annotations / "InterHand2.6M_test_joint_3d.json")
    order = np.array(INTERHAND_TO_OPENPOSE)
    images = {image["id"]: image for image in data["images"]}
    for item in data["annotations"]:
        image = images[item["image_id"]]
        rig, serial = cameras[str(image["capture"])], str(image["camera"])
        (fx, fy), (cx, cy) = rig["focal"][serial], rig["princpt"][serial]
        camera = Camera(image["width"], image["height"], fx, fy, cx, cy)
        truth = joints[str(image["capture"])][str(image["frame_idx"])]
        R = np.asarray(rig["camrot"][serial], np.float64)
        world = np.asarray(truth["world_coord"], np.float64)
        points = (world - np.asarray(rig["campos"][serial])) @ R.T / 1000
        # A joint that is not triangulated has no 3D, and its 2D here is its projection.
        triangulated = np.asarray(truth["joint_valid"], bool).reshape(42)
        valid = triangulated & np.asarray(item["joint_valid"], bool).reshape(42)
        hands = []
        for side, first in _INTERHAND_FIRST.items():
            mine = order + first
            if not valid[mine].any():
                continue
            depth = np.where(valid[mine], points[mine, 2], 1.0)
            pixels = points[mine, :2] / depth[:, None] * (fx, fy) + (cx, cy)
            complete = points[mine] if valid[mine].all() else None
            hands.append(AnnotatedHand(pixels, valid[mine], side, complete))
        yield AnnotatedImage(folder / "images" / "test" / image["file_name"], hands, camera)


_INTERHAND_FIRST: dict[Side, int] = {"right": 0, "left": 21}


def _cmu_hand_manual(folder: Path) -> Iterator[AnnotatedImage]:
    """A file a photo: one of its hands, marked by hand."""
    for path in sorted(folder.glob("*.json")):
        item = _load(path)
        side: Side = "left" if item["is_left"] else "right"
        yield AnnotatedImage(path.with_suffix(".jpg"), [_marked(item["hand_pts"], side)])


FIXTURES: dict[str, Callable[[Path], Iterator[AnnotatedImage]]] = {
    "onehand10k": _onehand10k,
    "panoptic": _panoptic,
    "coco_wholebody": _coco_wholebody,
    "freihand": _freihand,
    "rhd": _rhd,
    "interhand26m": _interhand26m,
    "cmu_hand_manual": _cmu_hand_manual,
}
"""Name of a set, which is also its folder -> its reader."""
