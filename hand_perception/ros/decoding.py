"""Incoming messages as arrays and records: pure functions, no node and no message package.

They read attributes only, so they take messages of rclpy and of rosbags alike. Whatever is wrong
with a message is a `HandPerceptionError` that says what is allowed.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hand_perception.types import Camera, HandPerceptionError

NANOSECONDS = 1_000_000_000


class _Layout(NamedTuple):
    """How an encoding stores one pixel, and the OpenCV code that makes it RGB."""

    dtype: type[np.unsignedinteger]
    channels: int
    to_rgb: int | None


# OpenCV names a Bayer pattern by the second row and column, ROS by the first: RGGB is OpenCV's BG.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}
_LAYOUTS: dict[str, _Layout] = {
    "rgb8": _Layout(np.uint8, 3, None),
    "bgr8": _Layout(np.uint8, 3, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout(np.uint8, 4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout(np.uint8, 4, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout(np.uint8, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": _Layout(np.uint16, 3, None),
    "bgr16": _Layout(np.uint16, 3, cv2.COLOR_BGR2RGB),
    "mono16": _Layout(np.uint16, 1, cv2.COLOR_GRAY2RGB),
    **{f"bayer_{name}8": _Layout(np.uint8, 1, code) for name, code in _BAYER.items()},
    **{f"bayer_{name}16": _Layout(np.uint16, 1, code) for name, code in _BAYER.items()},
    "yuv422": _Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_YUY2),
}
_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}

ENCODINGS = (*_LAYOUTS, *_PLANAR)
"""Colour encodings of sensor_msgs/Image that are decoded here."""


def stamp_to_ns(stamp: Any) -> int:
    """Nanoseconds, exact, of a builtin_interfaces/Time."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def stamp_to_s(stamp: Any) -> float:
    """Seconds of a builtin_interfaces/Time; a double keeps about 0.2 microseconds of today's."""
    return stamp.sec + stamp.nanosec / NANOSECONDS


def message_to_rgb(message: Any) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a sensor_msgs/Image or CompressedImage."""
    return image_to_rgb(message) if hasattr(message, "encoding") else compressed_to_rgb(message)


def image_to_rgb(message: Any) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a sensor_msgs/Image; 16-bit values are divided by 257, so white stays white.

    Without padding an rgb8 image is a view of the message. Encodings that are not in `ENCODINGS`
    go to cv_bridge where it can be imported, else they are refused by name.
    """
    encoding = message.encoding.lower()
    if encoding in _PLANAR:
        planes = _rows(message, np.uint8, 1, rows=message.height * 3 // 2)
        _require_even(message, message.width, message.height)
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(planes), _PLANAR[encoding]), np.uint8)
    if encoding not in _LAYOUTS:
        return _by_cv_bridge(message)
    layout = _LAYOUTS[encoding]
    pixels = _rows(message, layout.dtype, layout.channels)
    if layout.channels == 2:
        _require_even(message, message.width)
    if layout.to_rgb is not None:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), layout.to_rgb)
    if layout.dtype is np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def compressed_to_rgb(message: Any) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a sensor_msgs/CompressedImage, JPEG or PNG or whatever OpenCV reads.

    EXIF rotation is ignored: intrinsics belong to the pixels as the sensor read them.
    """
    data = bytes(memoryview(message.data))
    if not data:
        raise HandPerceptionError("the compressed image is empty; send a whole JPEG or PNG")
    if "compressedDepth" in message.format:
        raise HandPerceptionError(
            f"compressed image has format {message.format!r}, which is depth; send JPEG or PNG"
        )
    # OpenCV fills what a cut JPEG or PNG lacks with grey and only prints a warning.
    end = data[-64:].rstrip(b"\0")
    if data.startswith(b"\xff\xd8") and not end.endswith(b"\xff\xd9"):
        raise HandPerceptionError(
            f"the compressed image is a truncated JPEG ({len(data)} bytes, no end marker);"
            " send it whole"
        )
    if data.startswith(b"\x89PNG") and b"IEND" not in end:
        raise HandPerceptionError(
            f"the compressed image is a truncated PNG ({len(data)} bytes, no end); send it whole"
        )
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        image = None
    if image is None:
        raise HandPerceptionError(
            f"the compressed image (format {message.format!r}, {len(data)} bytes) can't be decoded;"
            " send a whole JPEG or PNG"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def depth_to_metres(message: Any) -> NDArray[np.float32]:
    """(H, W) metres, NaN where unknown, of a depth image: 16UC1 millimetres or 32FC1 (REP 118)."""
    if message.encoding in ("16UC1", "mono16"):
        depth = _rows(message, np.uint16, 1).astype(np.float32) / np.float32(1000)
    elif message.encoding == "32FC1":
        depth = np.array(_rows(message, np.float32, 1), np.float32)
    else:
        raise HandPerceptionError(
            f"depth image has encoding {message.encoding!r};"
            " allowed are 16UC1 (millimetres) and 32FC1 (metres)"
        )
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def camera_info_to_camera(info: Any, *, width: int, height: int, rectified: bool = False) -> Camera:
    """The camera of an image of `width` x `height` pixels, from its sensor_msgs/CameraInfo.

    Raw images obey K and D. Rectified ones (`rectified`) obey P and have no distortion. Binning
    and region of interest are applied as image_geometry does: c' = (c - offset) / binning,
    f' = f / binning. The result must have the image's size; nothing is rescaled by guess.
    """
    k = np.asarray(info.p if rectified else info.k, np.float64).reshape(3, -1)
    name = "P" if rectified else "K"
    if not np.isfinite(k).all():
        raise HandPerceptionError(
            f"camera_info has non-finite numbers in {name}; publish a valid calibration"
            " or set the parameter 'intrinsics'"
        )
    if k[0, 0] == 0 or k[1, 1] == 0:
        raise HandPerceptionError(
            f"the camera is not calibrated (focal length 0 in {name} of camera_info); calibrate it"
            " or set the parameter 'intrinsics'"
        )
    roi = info.roi
    sensor_width, sensor_height = roi.width or info.width, roi.height or info.height
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    expected = (sensor_width // bin_x, sensor_height // bin_y)
    if expected != (width, height):
        raise HandPerceptionError(
            f"the image is {width}x{height}, but camera_info describes {expected[0]}x{expected[1]};"
            " publish the calibration of this resolution or set the parameter 'intrinsics'"
        )
    return Camera(
        width,
        height,
        float(k[0, 0]) / bin_x,
        float(k[1, 1]) / bin_y,
        (float(k[0, 2]) - roi.x_offset) / bin_x,
        (float(k[1, 2]) - roi.y_offset) / bin_y,
        () if rectified else _distortion(info.distortion_model, info.d),
    )


def numbers_to_camera(numbers: list[float], width: int, height: int) -> Camera:
    """A camera from the parameter `intrinsics`: fx, fy, cx, cy, then 0, 4, 5 or 8 of distortion."""
    fx, fy, cx, cy, *distortion = numbers
    return Camera(width, height, fx, fy, cx, cy, tuple(distortion))


def _distortion(model: str, coefficients: Any) -> tuple[float, ...]:
    d = np.asarray(coefficients, np.float64)
    if model not in ("plumb_bob", "rational_polynomial", ""):
        raise HandPerceptionError(
            f"camera_info has distortion model {model!r}; allowed are plumb_bob and"
            " rational_polynomial: rectify the image first and set the parameter 'rectified'"
        )
    if not np.any(d):
        return ()
    if len(d) > 8 and not np.any(d[8:]):
        d = d[:8]
    return tuple(float(value) for value in d)


def _rows(
    message: Any, dtype: type[np.generic], channels: int, rows: int | None = None
) -> NDArray[Any]:
    """The pixels (rows, W[, channels]) of an image message, padding cut, byte order native."""
    rows = message.height if rows is None else rows
    used = message.width * channels * np.dtype(dtype).itemsize
    if message.width <= 0 or message.height <= 0:
        raise HandPerceptionError(
            f"the image is {message.width}x{message.height}; width and height must be positive"
        )
    if message.step < used:
        raise HandPerceptionError(
            f"the image has a step of {message.step} bytes, but {message.width} pixels of"
            f" {message.encoding} need at least {used}"
        )
    data = np.frombuffer(memoryview(message.data), np.uint8)
    if len(data) < rows * message.step:
        raise HandPerceptionError(
            f"the image has {len(data)} bytes of data, but {rows} rows with a step of"
            f" {message.step} need {rows * message.step}"
        )
    cut = data[: rows * message.step].reshape(rows, message.step)[:, :used]
    if np.dtype(dtype).itemsize > 1:
        cut = np.ascontiguousarray(cut).view(dtype)
        if bool(message.is_bigendian) != (sys.byteorder == "big"):
            cut = cut.byteswap()
    return cut if channels == 1 else cut.reshape(rows, message.width, channels)


def _require_even(message: Any, *sizes: int) -> None:
    if any(size % 2 for size in sizes):
        raise HandPerceptionError(
            f"a {message.encoding} image can't be {message.width}x{message.height};"
            " subsampled sizes must be even"
        )


def _by_cv_bridge(message: Any) -> NDArray[np.uint8]:
    refusal = HandPerceptionError(
        f"the image encoding {message.encoding!r} is not supported; allowed are"
        f" {', '.join(ENCODINGS)}"
    )
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise refusal from None
    try:
        return CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")
    except Exception as error:  # its own errors vary with the version, all mean the same here
        raise refusal from error
