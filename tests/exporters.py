"""What tests of exported metrics share: an exporter of one's own, how to read its page, how to end it."""

import contextlib
import os
import signal
import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from hydramix_dist.config.metrics import MetricsSettings
from hydramix_dist.telemetry.starting import ensure_exporter
from hydramix_dist.telemetry.wire import Hello, place

Page = dict[tuple[str, frozenset[tuple[str, str]]], float]
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Node:
    """Settings that nobody else has, and the exporter that comes by them."""

    settings: MetricsSettings

    @property
    def port(self) -> int:
        assert self.settings.port is not None
        return self.settings.port

    def ensure(self) -> Hello:
        hello = ensure_exporter(self.settings)
        assert hello is not None
        return hello

    def text(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return bytes(answer.read()).decode()

    def page(self) -> Page:
        """Return the value of each line by name and labels, the metrics' prefix left away."""
        return {
            (sample.name.removeprefix("hydramix_"), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Return a line's value, None where it is not there."""
        return self.page().get((name, frozenset(labels.items())))

    def pid(self) -> int | None:
        """Return who holds the exporter's place, None where nobody does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.connect(place(self.port))
            except OSError:
                return None
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the exporter by a signal and wait until it is gone; it need not run."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, number)
            until(lambda: self.pid() != pid)


def until(holds: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds; what cannot be read yet does not."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def own_node(folder: Path, expire: float = 60.0) -> Iterator[Node]:
    """Yield settings of one's own, with which no exporter runs yet; one that was started ends with the block."""
    settings = MetricsSettings(port=free_port(), targets=str(folder / "targets"), expire=expire)
    node = Node(settings)
    try:
        yield node
    finally:
        node.end(signal.SIGKILL)
