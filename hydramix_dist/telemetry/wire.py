"""Where the sending processes of a node meet its exporter, and what they say to each other.

The place is a Unix socket in the abstract namespace: it leaves no file, ends with the process that holds it, and a
second one cannot be bound. It keeps message borders, so that each message is one JSON object: a sender says
`{"source": ID, "labels": {...}}`, then `{"set": [[name, [label, ...], [number, ...]], ...]}` as often as it likes and
`{"bye": true}` last; the exporter says `Hello`. Numbers are a gauge's value, a counter's total, or a histogram's sum
and counts.
"""

import functools
import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hydramix_dist.telemetry.recorder import Histogram, Value
from hydramix_dist.telemetry.table import Metric

Key = tuple[str, tuple[str, ...]]  # a series: the metric's name, the values of its labels in the table's order

MESSAGE_BYTES = 60_000  # a socket takes about 200,000 by default, and less where it is told to
RECEIVE_BYTES = 65_536
LABEL_CHARACTERS = 120
# A lone surrogate cannot be written as UTF-8: one such label would end every scrape with an error.
_UNCLEAN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Hello:
    """What an exporter says of itself: `address` is HOST:PORT as others reach it, `targets` its file for Prometheus.

    `taken` says that the wanted port was in use and the address has another one. `targets` is "" while the file cannot
    be written. `host` is what it listens on, `expire` how many seconds ended series stay: an exporter has what the
    first process wanted, and later ones may want something else.
    """

    address: str
    taken: bool
    targets: str
    host: str
    expire: float

    @property
    def url(self) -> str:
        """Where Prometheus or a browser reads the metrics."""
        return f"http://{self.address}/metrics"

    def message(self) -> bytes:
        """Return the hello as one message."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def parse(message: bytes) -> "Hello":
        """Return the hello in a message. Raises ValueError or TypeError where it is none."""
        return Hello(**json.loads(message))


def place(port: int) -> str:
    """Return the name of the socket of this user's exporter for a wanted port; the leading zero makes it abstract."""
    return f"\0hydramix-metrics-{os.getuid()}-{port}"


def is_own(connection: socket.socket) -> bool:
    """Return whether the other end belongs to this user: names in the abstract namespace are free to everybody."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.getuid())


@functools.lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Return a label's value without control characters and surrogates, and at most LABEL_CHARACTERS long."""
    return _UNCLEAN.sub("\N{REPLACEMENT CHARACTER}", text[:LABEL_CHARACTERS])


def numbers(value: Value) -> list[float]:
    """Return a value as numbers: of a histogram its sum, then its counts."""
    return [value.sum, *value.counts] if isinstance(value, Histogram) else [float(value)]


def value_of(metric: Metric, parts: Sequence[float]) -> Value:
    """Return the value of a metric that such numbers stand for."""
    if metric.kind == "histogram":
        return Histogram(metric.bounds, [int(count) for count in parts[1:]], parts[0])
    return parts[0]


def parts_of(metric: Metric) -> int:
    """Return how many numbers a value of a metric has."""
    return len(metric.bounds) + 2 if metric.kind == "histogram" else 1


def set_messages(items: Sequence[tuple[Key, list[float]]]) -> Iterator[tuple[bytes, Sequence[tuple[Key, list[float]]]]]:
    """Yield series and their numbers as messages of at most MESSAGE_BYTES, each with what it holds."""
    message = json.dumps({"set": [(*key, parts) for key, parts in items]}, separators=(",", ":")).encode()
    if len(message) <= MESSAGE_BYTES or len(items) == 1:
        yield message, items
    else:
        middle = len(items) // 2
        yield from set_messages(items[:middle])
        yield from set_messages(items[middle:])


def source_message(source: str, labels: Mapping[str, str]) -> bytes:
    """Return a sender's first message: who it is, also when it comes again, and whose part it is."""
    return json.dumps({"source": source, "labels": {name: clean(value) for name, value in labels.items()}}).encode()


BYE = json.dumps({"bye": True}).encode()


def parse(message: bytes) -> dict[str, Any]:
    """Return a sender's message. Raises ValueError where it is no JSON object."""
    tree = json.loads(message)
    if not isinstance(tree, dict):
        raise ValueError("no object")
    return tree
