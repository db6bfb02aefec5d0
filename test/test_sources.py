"""Frames from files, folders, videos and bags, and what is said of those that give none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hand_perception import sources
from hand_perception.sources import camera_of_hfov, decode_image, open_source, read_image
from hand_perception.types import Camera, HandPerceptionError


@pytest.fixture
def picture() -> np.ndarray:
    """RGB, red on the left, with some texture."""
    image = np.random.default_rng(0).integers(0, 60, (48, 64, 3), np.uint8)
    image[:, :32, 0] = 230
    return image


def write(path: Path, rgb: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def write_video(path: Path, count: int, fps: float = 20.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (64, 48))
    for index in range(count):
        writer.write(np.full((48, 64, 3), (0, 0, 20 * index), np.uint8))
    writer.release()
    return path


def test_an_image_is_one_rgb_frame(tmp_path: Path, picture: np.ndarray) -> None:
    source = open_source(write(tmp_path / "hand.png", picture))
    assert (source.kind, source.count) == ("image", 1)
    (frame,) = source
    np.testing.assert_array_equal(frame.image_rgb, picture)
    assert (frame.name, frame.stamp_s, frame.camera) == ("hand", 0.0, None)
    assert len(list(source)) == 1


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        write(tmp_path / f"f{number}.png", np.full((8, 8, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path, directory_fps=10)
    frames = list(source)
    assert source.count == 3
    assert [frame.name for frame in frames] == ["f9", "f10", "f100"]
    assert [frame.image_rgb[0, 0, 0] for frame in frames] == [9, 10, 100]
    assert [frame.stamp_s for frame in frames] == pytest.approx([0, 0.1, 0.2])


def test_a_broken_image_of_a_folder_raises_or_is_handed_over(
    tmp_path: Path, picture: np.ndarray
) -> None:
    write(tmp_path / "a.png", picture)
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(HandPerceptionError, match=r"b\.jpg is empty"):
        list(open_source(tmp_path))
    errors: list[HandPerceptionError] = []
    assert [frame.name for frame in open_source(tmp_path, skip=errors.append)] == ["a"]
    assert len(errors) == 1


def test_a_video_gives_frames_stamps_and_rate(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", 8))
    frames = list(source)
    assert (source.kind, source.count, source.fps) == ("video", 8, 20.0)
    assert [frame.stamp_s for frame in frames] == pytest.approx(np.arange(8) / 20, abs=1e-3)
    reds = [float(frame.image_rgb[..., 0].mean()) for frame in frames]
    assert reds == pytest.approx(20.0 * np.arange(8), abs=6)
    assert [frame.name for frame in frames[:2]] == ["000000", "000001"]
    assert len(list(source)) == 8


def test_a_bag_is_read_by_the_bag_reader(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hand_perception.ros import bag

    camera = Camera(64, 48, 50.0, 50.0, 31.5, 23.5)
    asked: list[tuple[Path, str | None]] = []

    def read_frames(path: Path, *, topic: str | None = None):  # type: ignore[no-untyped-def]
        asked.append((path, topic))
        yield 17.5, picture, camera

    monkeypatch.setattr(bag, "read_frames", read_frames)
    (tmp_path / "metadata.yaml").write_text("")
    (frame,) = open_source(tmp_path, topic="/cam/image")
    assert asked == [(tmp_path, "/cam/image")]
    assert (frame.stamp_s, frame.camera) == (17.5, camera)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".webp"])
def test_a_truncated_image_is_refused(tmp_path: Path, picture: np.ndarray, ending: str) -> None:
    data = cv2.imencode(ending, picture)[1].tobytes()
    assert decode_image(data).shape == picture.shape
    for end in (len(data) * 2 // 3, len(data) // 3, 12):
        path = tmp_path / f"cut{ending}"
        path.write_bytes(data[:end])
        with pytest.raises(HandPerceptionError, match=f"cut{ending} is truncated or no image"):
            open_source(path)


def test_images_are_turned_upright_and_made_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6  # Turn clockwise to see it upright.
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture, -1))
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(grey, np.repeat(picture[..., :1], 3, -1))


def test_a_depth_image_is_refused() -> None:
    data = cv2.imencode(".png", np.full((4, 4), 40000, np.uint16))[1].tobytes()
    with pytest.raises(HandPerceptionError, match="as depth images have"):
        decode_image(data, "depth.png")


def test_sources_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    def refused(name: str, content: bytes | None = None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(HandPerceptionError) as error:
            open_source(path)
        return str(error.value)

    assert "is not there; give an image" in refused("missing.jpg")
    assert "is empty" in refused("empty.jpg", b"")
    assert "no image that can be read" in refused("text.png", b"hello")
    assert "unknown kind" in refused("notes.txt", b"hello")
    assert "video" in refused("broken.mp4", b"not a video at all")
    (tmp_path / "folder").mkdir()
    assert "holds no images" in refused("folder")
    with pytest.raises(HandPerceptionError, match="camera 97 cannot be opened"):
        open_source("camera:97")


def test_a_rate_must_be_positive(tmp_path: Path, picture: np.ndarray) -> None:
    write(tmp_path / "a.png", picture)
    with pytest.raises(HandPerceptionError, match="rate is 0"):
        open_source(tmp_path, directory_fps=0)


def test_a_numbered_file_is_no_camera(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "3").mkdir()
    write(tmp_path / "3" / "a.png", picture)
    monkeypatch.chdir(tmp_path)
    assert open_source("3").kind == "directory"


def test_a_camera_is_read_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    class Capture:
        def __init__(self, source: int) -> None:
            assert source == 2
            self.left = 3

        def isOpened(self) -> bool:
            return True

        def get(self, key: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, np.ndarray]:
            self.left -= 1
            return self.left >= 0, np.full((4, 4, 3), (0, 0, 200), np.uint8)

        def release(self) -> None:
            pass

    monkeypatch.setattr(sources.cv2, "VideoCapture", Capture)
    source = open_source("camera:2")
    assert (source.kind, source.count, source.fps) == ("camera", None, 30.0)
    frames = iter(source)
    got = [next(frames) for _ in range(3)]
    assert got[0].image_rgb[0, 0].tolist() == [200, 0, 0]
    with pytest.raises(HandPerceptionError, match="stopped giving pictures after 3 frames"):
        next(frames)


def test_a_field_of_view_makes_a_camera() -> None:
    camera = camera_of_hfov(640, 480, 90)
    assert (camera.fx, camera.fy) == pytest.approx((320, 320))
    assert (camera.cx, camera.cy) == (319.5, 239.5)
