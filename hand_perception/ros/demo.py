"""The demo: a publisher process and the estimator process over DDS, their outputs recorded.

    python -m hand_perception.ros.demo --out out/demo

Writes summary.json, overlay.mp4, contact_sheet.png, bag/ (mcap) and the logs of both processes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import ExternalShutdownException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from hand_perception.drawing import contact_sheet
from hand_perception.resources import config_dir
from hand_perception.ros.bag import BagWriter, read_frames
from hand_perception.ros.recorder import Recorder
from hand_perception.types import SIDES, HandPerceptionError

NAMESPACE = "/demo"
QUIET_S = 2.0
"""After so long without a message, everything that was sent has come out."""

_CLIPS = ("one_hand_static_621f.mp4", "two_hands_interacting_500f.mp4")
_CLIPS_DIR = Path("../shared/data/videos")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Summary:
    """What the demo measured; latency is from the image's stamp to the arrival of its markers."""

    frames_in: int
    frames_out: int
    frames_lost: int
    latency_ms_p50: float
    latency_ms_p95: float
    hands_per_frame: float


def choose_sources(out: Path, frames: int) -> list[str]:
    """Real clips if they are there (one hand, then two), else a webcam, else a rendered clip."""
    clips = [_CLIPS_DIR / name for name in _CLIPS]
    if all(clip.is_file() for clip in clips):
        return [str(clip) for clip in clips]
    capture = cv2.VideoCapture(0) if Path("/dev/video0").exists() else None
    if capture is not None:
        works = capture.read()[0]
        capture.release()
        if works:
            return ["camera:0"]
    # Imported here: it brings the renderer along, which real pictures do without.
    from hand_perception.synthesis.clips import render_clip

    clip = out / "rendered.mp4"
    render_clip(clip, frames)
    return [str(clip)]


def run(
    sources: Sequence[str],
    out: Path,
    *,
    frames: int = 150,
    rate_hz: float = 30.0,
    method: str = "landmark_fit",
    device: str = "auto",
    estimator: Sequence[str] = ("-m", "hand_perception.ros.estimator_node"),
    start_timeout_s: float = 90.0,
    console: Console | None = None,
) -> Summary:
    """Play at most `frames` images of each source through the estimator, and write the results.

    `estimator` is what python runs as the node. Raises HandPerceptionError if nothing comes out.
    """
    console = console or Console()
    bag = out / "bag"
    shutil.rmtree(bag, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    publisher_command = [
        *("-m", "hand_perception.ros.video_publisher", *sources, "--rate", str(rate_hz)),
        *("--frames", str(frames), "--wait", str(start_timeout_s), "--listeners", "2"),
        *("--ros-args", "-r", f"__ns:={NAMESPACE}"),
    ]
    estimator_command = [
        *(*estimator, "--ros-args", "-r", f"__ns:={NAMESPACE}"),
        *("-p", f"method:={method}", "-p", f"device:={device}"),
    ]
    with BagWriter(bag) as writer:
        recorder = Recorder(writer, NAMESPACE)
        for topic, kind in _output_topics().items():
            recorder.record(topic, kind)
        try:
            with (
                _child(estimator_command, out / "estimator.log") as node,
                _child(publisher_command, out / "publisher.log") as publisher,
            ):
                _record(recorder, node, publisher, frames * len(sources), out, console)
        finally:
            recorder.destroy_node()
    summary = summarise(recorder.arrivals, _images_sent(out / "publisher.log"))
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    if summary.frames_out == 0:
        raise HandPerceptionError(
            f"{summary.frames_in} images went in and nothing came out of the estimator; it said: "
            + _last_line(out / "estimator.log")
        )
    _write_pictures(bag, out, rate_hz, console)
    return summary


def summarise(arrivals: dict[str, dict[int, int]], sent: int) -> Summary:
    """The figures, from the number of images sent and when each stamp (ns) came (ns) by topic.

    Markers come once for each image, hands or not.
    """
    came_out = arrivals.get("markers", {})
    latency = [(at - stamp) / 1e6 for stamp, at in came_out.items()]
    p50, p95 = np.percentile(latency, (50, 95)).tolist() if latency else (float("nan"),) * 2
    hands = sum(len(arrivals.get(f"{side}/joints", {})) for side in SIDES)
    return Summary(
        frames_in=sent,
        frames_out=len(came_out),
        frames_lost=sent - len(came_out),
        latency_ms_p50=round(p50, 1),
        latency_ms_p95=round(p95, 1),
        hands_per_frame=round(hands / max(1, len(came_out)), 3),
    )


def _output_topics() -> dict[str, type]:
    topics: dict[str, type] = {
        "markers": MarkerArray,
        "overlay/compressed": CompressedImage,
        "/tf": TFMessage,
        "/diagnostics": DiagnosticArray,
    }
    for side in SIDES:
        topics |= {
            f"{side}/joints": PointCloud2,
            f"{side}/joint_states": JointState,
            f"{side}/wrist_pose": PoseWithCovarianceStamped,
            f"{side}/mesh": Marker,
        }
    return topics


def _record(
    recorder: Recorder,
    node: subprocess.Popen[bytes],
    publisher: subprocess.Popen[bytes],
    total: int,
    out: Path,
    console: Console,
) -> None:
    """Spin until the publisher is done and all is quiet.

    Raises HandPerceptionError if one of the processes fails, or the node can't start.
    """
    statuses: list[DiagnosticStatus] = []
    recorder.create_subscription(
        DiagnosticArray, "/diagnostics", lambda array: statuses.extend(array.status), 5
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("loading the networks", total=total)
        last_change, seen, started = time.monotonic(), 0, False
        while publisher.poll() is None or time.monotonic() - last_change < QUIET_S:
            rclpy.spin_once(recorder, timeout_sec=0.1)
            if node.poll() is not None:
                raise HandPerceptionError(
                    f"the estimator ended early, with status {node.returncode}; it said: "
                    + _last_line(out / "estimator.log")
                )
            if statuses and not seen and statuses[-1].level == DiagnosticStatus.ERROR:
                raise HandPerceptionError(f"the estimator says: {statuses[-1].message}")
            if not started and recorder.is_connected():
                # The publisher waits for this second listener, so nothing goes unrecorded.
                recorder.record("camera_info", CameraInfo)
                started = True
            count = len(recorder.arrivals["markers"])
            if count > seen:
                last_change, seen = time.monotonic(), count
                progress.update(task, completed=count, description="frames through the estimator")
    if publisher.returncode != 0:
        raise HandPerceptionError(
            f"the publisher ended with status {publisher.returncode}; it said: "
            + _last_line(out / "publisher.log")
        )


def _write_pictures(bag: Path, out: Path, rate_hz: float, console: Console) -> None:
    """overlay.mp4 and contact_sheet.png from the recorded overlay."""
    writer = None
    sheet = []
    frames = read_frames(bag, topic=f"{NAMESPACE}/overlay/compressed")
    pictures = 0
    with console.status("writing the overlay video"):
        for _, image, _ in frames:
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            if writer is None:
                size = (bgr.shape[1], bgr.shape[0])
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(out / "overlay.mp4"), codec, rate_hz, size)
            writer.write(bgr)
            if pictures % 10 == 0:
                sheet.append(cv2.resize(image, (320, round(320 * size[1] / size[0]))))
            pictures += 1
    if writer is None:
        raise HandPerceptionError("no overlay came out of the estimator; see estimator.log")
    writer.release()
    picked = [sheet[i] for i in np.unique(np.linspace(0, len(sheet) - 1, 16).round().astype(int))]
    grid = contact_sheet(picked, columns=4)
    cv2.imwrite(str(out / "contact_sheet.png"), cv2.cvtColor(grid, cv2.COLOR_RGB2BGR))


@contextmanager
def _child(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A python process in a group of its own that never outlives this block, nor this process."""
    libc = ctypes.CDLL(None)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Should this process be killed, the kernel ends the child (Linux).
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        try:
            yield process
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number, patience_s in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience_s)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _images_sent(log: Path) -> int:
    return int(_last_line(log).split()[1])  # "sent 300 images"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def _prepare_environment() -> None:
    """DDS on this machine alone, with shared memory that is large enough for images."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randrange(1, 100)))
    profile = str(config_dir() / "fastdds_large_images.xml")
    # Fast DDS 2, which Humble and Jazzy have, knows the variable by its old name.
    old = os.environ.get("ROS_DISTRO") in ("humble", "jazzy")
    os.environ.setdefault(f"{'FASTRTPS' if old else 'FASTDDS'}_DEFAULT_PROFILES_FILE", profile)


def main(args: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status, with a sentence if it failed."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("sources", nargs="*", help="video, folder or camera:0; default: see README")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--frames", type=int, default=150, help="at most so many of each source")
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second")
    parser.add_argument("--method", default="landmark_fit")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(args)
    console = Console()
    _prepare_environment()
    rclpy.init()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        sources = options.sources or choose_sources(options.out, options.frames)
        console.print(f"playing {', '.join(sources)} at {options.rate:g} Hz")
        summary = run(
            sources,
            options.out,
            frames=options.frames,
            rate_hz=options.rate,
            method=options.method,
            device=options.device,
            console=console,
        )
    except HandPerceptionError as error:
        console.print(f"the demo failed: {error}", style="red", markup=False)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        console.print("stopped")
        return 130
    finally:
        rclpy.try_shutdown()
    console.print_json(json.dumps(asdict(summary)))
    console.print(f"results are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
