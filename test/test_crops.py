"""Crops: the virtual camera, its sampling, and the way back to image pixels."""

import numpy as np
import pytest

from hand_perception.camera import project
from hand_perception.crops import crop_around, crop_to_image, image_to_crop
from hand_perception.types import Box, Camera, HandPerceptionError

PLAIN = Camera(640, 480, 520.0, 525.0, 318.3, 243.7)
BENT = Camera(640, 480, 520.0, 525.0, 318.3, 243.7, (-0.25, 0.08, 0.001, -0.002, 0.01))
CAMERAS = pytest.mark.parametrize("camera", [PLAIN, BENT], ids=["plain", "distorted"])
MIRRORED = pytest.mark.parametrize("mirrored", [False, True])


def blob_image(pixel, camera=PLAIN, sigma=3.0):
    rows, columns = np.mgrid[: camera.height, : camera.width]
    squared = (columns - pixel[0]) ** 2 + (rows - pixel[1]) ** 2
    value = 255 * np.exp(-squared / (2 * sigma**2))
    return np.repeat(np.round(value).astype(np.uint8)[:, :, None], 3, axis=2)


def blob_centre(picture):
    """Centre of mass in crop pixels: an index's centre is index + 0.5."""
    weight = picture[:, :, 0].astype(np.float64)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum() + 0.5


def blank(camera=PLAIN):
    return np.zeros((camera.height, camera.width, 3), np.uint8)


@CAMERAS
@MIRRORED
@pytest.mark.parametrize("angle", [0.0, 0.7, -2.5])
def test_round_trip(camera, mirrored, angle):
    crop = crop_around(blank(), Box((420.0, 150.0), 180.0, angle), camera, mirrored=mirrored)
    points = np.random.default_rng(0).uniform(0, 224, (200, 2))
    there = crop_to_image(points, crop, camera)
    assert np.abs(image_to_crop(there, crop, camera) - points).max() < 1e-3


@CAMERAS
@MIRRORED
@pytest.mark.parametrize(("size", "angle"), [(150.0, 0.0), (150.0, 1.1), (420.0, -0.6)])
def test_a_point_in_space_lands_where_the_crop_camera_projects_it(camera, mirrored, size, angle):
    point = np.array([[0.06, -0.05, 0.5]])
    pixel = project(point, camera)[0]
    box = Box((pixel[0] + 14.0, pixel[1] - 9.0), size, angle)
    crop = crop_around(blob_image(pixel), box, camera, mirrored=mirrored)
    x, y, z = (point @ crop.M_camera_crop)[0]
    expected = np.array([x / z, y / z]) * crop.intrinsics[0, 0] + 112.0
    assert np.abs(blob_centre(crop.image) - expected).max() < 0.05
    assert np.abs(image_to_crop(pixel[None], crop, camera)[0] - expected).max() < 1e-3


def test_box_in_the_middle_of_a_plain_camera_is_a_plain_cutout():
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
    image = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    crop = crop_around(image, Box((319.5, 239.5), 224.0), camera)
    assert crop.intrinsics[0, 0] == pytest.approx(500.0, rel=1e-5)
    assert np.allclose(crop.R_camera_crop, np.eye(3))
    # The 224 pixels around the centre 319.5 are columns 208 to 431.
    difference = crop.image.astype(int) - image[128:352, 208:432]
    assert np.abs(difference).max() <= 1


def test_mirrored_crop_is_the_flipped_crop():
    image = np.random.default_rng(2).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    box = Box((300.0, 200.0), 224.0)
    plain = crop_around(image, box, PLAIN)
    left = crop_around(image, Box(box.center, box.size, side="left"), PLAIN)
    assert left.mirrored and not plain.mirrored
    assert np.array_equal(left.intrinsics, plain.intrinsics)
    difference = np.abs(left.image[:, ::-1].astype(int) - plain.image)
    assert np.mean(difference) < 1.0


def test_angle_turns_clockwise_in_the_image():
    """A hand whose fingers point right (a quarter turn clockwise) points up in its crop."""
    fingers = np.array([[400.0, 240.0]])
    crop = crop_around(blank(), Box((320.0, 240.0), 224.0, np.pi / 2), PLAIN)
    x, y = image_to_crop(fingers, crop, PLAIN)[0]
    assert x == pytest.approx(112.0, abs=1.0)
    assert y == pytest.approx(112.0 - 80.0, abs=1.0)


@CAMERAS
def test_rotation_is_proper_and_looks_at_the_box(camera):
    box = Box((80.0, 400.0), 200.0, 0.4)
    crop = crop_around(blank(), box, camera)
    assert np.allclose(crop.R_camera_crop @ crop.R_camera_crop.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(crop.R_camera_crop) == pytest.approx(1.0)
    centre = image_to_crop(np.array([box.center]), crop, camera)
    assert np.abs(centre - 112.0).max() < 1e-6


@CAMERAS
def test_black_outside_of_the_image(camera):
    white = np.full((480, 640, 3), 255, np.uint8)
    crop = crop_around(white, Box((0.0, 240.0), 100.0), camera)
    assert crop.image[:, :105].max() == 0
    assert crop.image[:, 119:].min() == 255


def test_nothing_is_seen_behind_the_camera():
    camera = Camera(640, 480, 100.0, 100.0, 319.5, 239.5)
    white = np.full((480, 640, 3), 255, np.uint8)
    crop = crop_around(white, Box((620.0, 240.0), 620.0), camera)
    # The ray through the right border of the crop is more than 90 degrees off the camera's axis.
    assert ((np.array([112.0 / crop.intrinsics[0, 0], 0, 1])) @ crop.M_camera_crop.T)[2] < 0
    assert crop.image[112, -1].max() == 0
    assert crop.image[112, 112].min() == 255


def test_large_boxes_do_not_alias():
    """One-pixel stripes become grey; bilinear sampling alone would show moire."""
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[:, ::2] = 255
    camera = Camera(1920, 1080, 1500.0, 1500.0, 959.5, 539.5)
    crop = crop_around(image, Box((960.0, 540.0), 900.0), camera)
    assert crop.image.std() < 3.0
    assert crop.image.mean() == pytest.approx(127.5, abs=2.0)


@pytest.mark.parametrize(
    ("image", "box", "message"),
    [
        (np.zeros((480, 640), np.uint8), Box((320, 240), 100), "uint8 RGB"),
        (np.zeros((480, 640, 3), np.float32), Box((320, 240), 100), "uint8 RGB"),
        (np.zeros((481, 640, 3), np.uint8), Box((320, 240), 100), "camera says"),
        (np.zeros((480, 640, 3), np.uint8), Box((np.nan, 240), 100), "finite"),
        (np.zeros((480, 640, 3), np.uint8), Box((320, 240), 0.0), "positive"),
        (np.zeros((480, 640, 3), np.uint8), Box((320, 240), 1e6), "wider"),
    ],
)
def test_bad_input(image, box, message):
    with pytest.raises(HandPerceptionError, match=message):
        crop_around(image, box, PLAIN)


def test_bad_crop_size():
    with pytest.raises(HandPerceptionError, match="crop size"):
        crop_around(blank(), Box((320.0, 240.0), 100.0), PLAIN, size=0)
