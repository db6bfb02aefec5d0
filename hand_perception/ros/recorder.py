"""Records topics as they come over the wire, undecoded, into a bag, and when each came."""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile

from hand_perception.ros.bag import BagWriter
from hand_perception.ros.decoding import NANOSECONDS

_CDR_HEADER = 4
_SEQUENCE_LENGTH = 4


def stamp_of(data: bytes, *, in_array: bool) -> int:
    """Nanoseconds of the first header in a CDR message that begins with it, or with an array of it.

    CDR (little endian, as all of our machines write it): 4 bytes of encapsulation, then the
    fields; a sequence begins with its length.
    """
    offset = _CDR_HEADER + (_SEQUENCE_LENGTH if in_array else 0)
    seconds, nanoseconds = struct.unpack_from("<iI", data, offset)
    return seconds * NANOSECONDS + nanoseconds


class Recorder(Node):
    """`arrivals[topic]` maps the stamp of each message to when it came, both in nanoseconds."""

    def __init__(self, bag: BagWriter, namespace: str) -> None:
        super().__init__("recorder", namespace=namespace)
        self._bag = bag
        self._topics: list[str] = []
        self.arrivals: dict[str, dict[int, int]] = defaultdict(dict)

    def record(self, topic: str, kind: type[Any]) -> None:
        """Record a topic, relative or absolute, from now on."""
        full = self.resolve_topic_name(topic)
        package = kind.__module__.partition(".")[0]
        self._bag.add_topic(full, f"{package}/msg/{kind.__name__}")
        in_array = not hasattr(kind, "header")
        self.create_subscription(
            kind,
            topic,
            partial(self._record, topic, full, in_array),
            QoSProfile(depth=100),
            raw=True,
        )
        self._topics.append(full)

    def is_connected(self) -> bool:
        """Whether every topic has a publisher that is known here."""
        return all(self.count_publishers(topic) > 0 for topic in self._topics)

    def _record(self, topic: str, full: str, in_array: bool, data: bytes) -> None:
        now = time.time_ns()
        self._bag.write(full, now, data)
        self.arrivals[topic].setdefault(stamp_of(data, in_array=in_array), now)
