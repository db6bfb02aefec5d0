"""What the node knows of its own health: counts and times in, one report out; no ROS in here."""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

OK, WARN, ERROR = 0, 1, 2
"""Levels of diagnostic_msgs/DiagnosticStatus."""

SILENT_AFTER_S = 1.0
"""Without a new image for so long, the input counts as gone."""
WINDOW_S = 5.0
"""Rates and times are of this long a past."""
LOST_SHARE = 0.1
"""From this share of missing images on, the report warns."""
MIN_FRAMES = 10
"""So many frames must be due before a share means anything."""

LARGE_IMAGES = (
    "images go missing between the camera and this node: give the camera driver the Fast DDS"
    " profile config/fastdds_large_images.xml, or use compressed or reliable transport"
)


@dataclass(frozen=True)
class Report:
    """One moment's health."""

    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)


class Health:
    """Counts frames, times and faults; every method may be called from any thread.

    `now` is a monotonic clock in seconds; stamps are nanoseconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: deque[tuple[float, int]] = deque()
        self._announced: deque[tuple[float, int]] = deque()
        self._finished: deque[tuple[float, float]] = deque()
        self.frames_in = 0
        self.frames_processed = 0
        self._dropped: Counter[str] = Counter()
        self._without_depth: Counter[str] = Counter()
        self._fault: str | None = None
        self._last_image: float | None = None
        self._input_age = float("nan")
        self._tracks = 0

    def image_received(self, now: float, stamp_ns: int) -> None:
        """An image arrived."""
        with self._lock:
            self.frames_in += 1
            self._last_image = now
            self._received.append((now, stamp_ns))

    def camera_info_received(self, now: float, stamp_ns: int) -> None:
        """A camera_info arrived: it is small and gets through, so it tells of lost images."""
        with self._lock:
            self._announced.append((now, stamp_ns))

    def frame_dropped(self, reason: str) -> None:
        """An image was not processed."""
        with self._lock:
            self._dropped[reason] += 1

    def frame_without_depth(self, reason: str) -> None:
        """An image was processed without a depth image."""
        with self._lock:
            self._without_depth[reason] += 1

    def frame_failed(self, reason: str, fault: str) -> None:
        """An image could not be processed; the fault stays until the next good frame."""
        with self._lock:
            self._dropped[reason] += 1
            self._fault = fault

    def frame_processed(
        self, now: float, *, latency_s: float, input_age_s: float, tracks: int
    ) -> None:
        """An image's results are out, `latency_s` after it arrived here."""
        with self._lock:
            self.frames_processed += 1
            self._finished.append((now, latency_s))
            self._input_age = input_age_s
            self._tracks = tracks
            self._fault = None

    def restarted(self) -> None:
        """Time jumped back: what was known of stamps holds no more."""
        with self._lock:
            self._received.clear()
            self._announced.clear()

    def report(self, now: float, state: dict[str, str]) -> Report:
        """Health now; `state` are the keys that the node itself knows (method, device, ...)."""
        with self._lock:
            for window in (self._received, self._announced, self._finished):
                while window and window[0][0] < now - WINDOW_S:
                    window.popleft()
            lost, due = self._lost()
            latencies = np.array([latency for _, latency in self._finished]) * 1000
            p50, p95 = np.percentile(latencies, (50, 95)) if len(latencies) else (np.nan, np.nan)
            values = {
                "input rate (Hz)": f"{_rate([t for t, _ in self._received]):.1f}",
                "output rate (Hz)": f"{_rate([t for t, _ in self._finished]):.1f}",
                "input age (ms)": f"{self._input_age * 1000:.1f}",
                "latency p50 (ms)": f"{p50:.1f}",
                "latency p95 (ms)": f"{p95:.1f}",
                "frames in": str(self.frames_in),
                "frames processed": str(self.frames_processed),
                "frames dropped": str(sum(self._dropped.values())),
                **{f"dropped: {reason}": str(n) for reason, n in sorted(self._dropped.items())},
                **{f"without depth: {r}": str(n) for r, n in sorted(self._without_depth.items())},
                f"lost on the way, last {WINDOW_S:.0f} s (estimate)": f"{lost} of {due}",
                "tracks": str(self._tracks),
                **state,
                "memory (MiB)": f"{resident_bytes() / 2**20:.0f}",
            }
            level, message = self._verdict(now, lost, due)
        return Report(level, message, values)

    def _verdict(self, now: float, lost: int, due: int) -> tuple[int, str]:
        if self._fault is not None:
            return ERROR, self._fault
        if due >= MIN_FRAMES and lost > LOST_SHARE * due:
            return WARN, f"{lost} of {due} {LARGE_IMAGES}"
        if self._last_image is None:
            return WARN, "no image received yet"
        if now - self._last_image > SILENT_AFTER_S:
            return WARN, f"no image for {now - self._last_image:.1f} s"
        return OK, "running"

    def _lost(self) -> tuple[int, int]:
        """Images lost on the way and images due, by unmatched camera_info or by gaps in stamps.

        With camera_info in step the count is exact; gaps are measured in units of a short (10th
        percentile) interval, so that they are blind when nearly all is lost.
        """
        stamps = np.unique([stamp for _, stamp in self._received])
        announced = np.unique([stamp for _, stamp in self._announced])
        # The image that belongs to the newest camera_info may still be on its way. Some drivers
        # stamp camera_info on its own: then nothing matches, and nothing can be said from it.
        in_step = len(stamps) == 0 or np.isin(announced, stamps).any()
        missing = len(np.setdiff1d(announced[:-1], stamps)) if in_step else 0
        if len(stamps) >= MIN_FRAMES:
            gaps = np.diff(stamps)
            period = np.percentile(gaps, 10)
            missing = max(missing, int(np.maximum(np.rint(gaps / period) - 1, 0).sum()))
        return missing, missing + len(stamps)


def resident_bytes() -> int:
    """Memory of this process, bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _rate(times: list[float]) -> float:
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    return (len(times) - 1) / span if span > 0 else 0.0
