"""What waits for the worker thread: the newest image alone, and the depth images around it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple

from hand_perception.ros.decoding import stamp_to_ns


class Received(NamedTuple):
    """An image message and when it arrived (monotonic seconds)."""

    message: Any
    time: float


class Inbox:
    """Holds one image: a newer one replaces it, so nothing queues up behind the network."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._image: Received | None = None
        self._depths: deque[Any] = deque(maxlen=16)
        self._closed = False

    def put(self, image: Received) -> bool:
        """Store an image; True if it replaced one that nobody had taken."""
        with self._condition:
            replaced = self._image is not None
            self._image = image
            self._condition.notify_all()
        return replaced

    def put_depth(self, message: Any) -> None:
        """Store a depth image; the oldest of 16 goes."""
        with self._condition:
            self._depths.append(message)
            self._condition.notify_all()

    def take(self) -> Received | None:
        """Wait for an image and take it; None once the inbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._image is not None)
            image, self._image = self._image, None
            return None if self._closed else image

    def depth_near(self, stamp_ns: int, tolerance_s: float) -> Any | None:
        """The depth image nearest to a stamp, within the tolerance; waits as long for it."""
        tolerance = tolerance_s * 1e9

        def nearest() -> Any | None:
            near = min(
                self._depths,
                key=lambda m: abs(stamp_to_ns(m.header.stamp) - stamp_ns),
                default=None,
            )
            if near is None or abs(stamp_to_ns(near.header.stamp) - stamp_ns) > tolerance:
                return None
            return near

        with self._condition:
            self._condition.wait_for(
                lambda: self._closed or nearest() is not None, timeout=tolerance_s
            )
            return nearest()

    def close(self) -> None:
        """Let `take` return None at once, and forget what is stored."""
        with self._condition:
            self._closed = True
            self._image = None
            self._depths.clear()
            self._condition.notify_all()
