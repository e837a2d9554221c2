"""The sink that brings a process's values to its node's exporter, and never keeps a training waiting."""

import errno
import itertools
import logging
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hydramix_dist.telemetry.recorder import Value
from hydramix_dist.telemetry.starting import meet
from hydramix_dist.telemetry.table import METRICS, SECTIONS, Metric
from hydramix_dist.telemetry.wire import BYE, Key, clean, numbers, parts_of, set_messages, source_message

if TYPE_CHECKING:  # the exporter does without what settings are made of
    from hydramix_dist.config.metrics import MetricsSettings

_log = logging.getLogger("hydramix")

BEAT_SECONDS = 2.0
SEND_SECONDS = 0.2  # between two messages: at 20 records a second of 4 processes the exporter took 1.3 % of a core
CLOSE_SECONDS = 2.0  # a sweep closes thousands; an exporter that hangs is not to cost more than a beat
_RECONNECT_SECONDS = 5.0

Told = tuple[Mapping[str, Value], Mapping[str, str]]  # values, and the labels that they carry beside the sender's own


class Sender:
    """A `Sink` that keeps the newest value of each series and sends what has changed.

    A thread connects, starts an exporter where there is none, asks `probe` at each beat, and sends again what did not
    get through. For several threads. Not for a forked child: it has no such thread, and its parent's socket, by which
    the exporter takes it for its parent.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        sections: Sequence[str],
        settings: "MetricsSettings",
        probe: Callable[[], Iterable[Told]] | None = None,
    ) -> None:
        """Begin to send to the exporter that `settings` name; they have to have a port.

        All counters and histograms of `sections` of the table begin at 0, so that their first change is an increase:
        those whose labels are in `labels` or have known values. `probe` is called in another thread, at the beginning,
        every BEAT_SECONDS and at the end. Raises KeyError for a section that is not in the table.
        """
        self._labels, self._probe = dict(labels), probe
        self._settings, self._source = settings, uuid.uuid4().hex
        self._state: dict[Key, list[float]] = {}
        self._unsent: dict[Key, None] = {}  # in the order of their changes
        self._connection: socket.socket | None = None
        self._tried_at = -_RECONNECT_SECONDS
        self._sent_at = -SEND_SECONDS
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._probe_works = True
        for metric in itertools.chain.from_iterable(SECTIONS[name] for name in sections):
            if metric.kind != "gauge":
                self._state |= dict.fromkeys(_covered(metric, labels), [0.0] * parts_of(metric))
        self._thread = threading.Thread(target=self._run, name="hydramix metrics", daemon=True)
        self._thread.start()

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int = 0) -> None:
        """Take values; their metrics' labels have to be among `labels`.

        They are sent at once if that can be done and the last message is long enough ago, else with the next beat.
        """
        with self._lock:
            for name, value in values.items():
                metric, parts = METRICS[name], numbers(value)
                if not math.isfinite(parts[0]):
                    if metric.kind != "gauge":
                        continue  # no total
                    parts = [math.nan]
                key = (name, tuple(clean(labels[label]) for label in metric.labels))
                if self._state.get(key) != parts:
                    self._state[key] = parts
                    self._unsent[key] = None
            now = time.monotonic()
            if now - self._sent_at >= SEND_SECONDS:
                self._sent_at = now
                self._flush()

    def close(self) -> None:
        """Send what there is and say goodbye; waits CLOSE_SECONDS at most.

        What takes longer, such as the start of an exporter, goes on in the thread while the process lives.
        """
        self._ending.set()
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()  # in order after an error too: a process that can say so has not been lost

    def _run(self) -> None:
        """Keep a connection, send values of the probe and what is left over, until the end."""
        while True:
            ends = self._ending.is_set()
            self._ask_probe()
            self._connect()
            with self._lock:
                if ends:
                    self._finish()
                    return
                self._flush()
            self._ending.wait(BEAT_SECONDS)

    def _finish(self) -> None:
        """Send what is left and say goodbye, which waits for a busy exporter: who does not say it counts as lost."""
        if self._connection is not None:
            self._connection.settimeout(CLOSE_SECONDS)
        self._flush()
        self._send(BYE)
        self._disconnect()

    def _ask_probe(self) -> None:
        if self._probe is None:
            return
        try:
            for values, labels in self._probe():
                self.write(values, {**self._labels, **labels})
        except Exception:  # of whatever it asks: disks, devices; a training does not end by it
            if self._probe_works:
                _log.warning("some metrics could not be taken", exc_info=True)
            self._probe_works = False

    def _connect(self) -> None:
        """Find out whether the exporter is still there; look for one where it is not, and send everything."""
        with self._lock:
            if self._connection is not None and _has_ended(self._connection):
                self._disconnect()
            if self._connection is not None:
                return
        if time.monotonic() - self._tried_at < _RECONNECT_SECONDS:
            return
        self._tried_at = time.monotonic()
        found = meet(self._settings)
        if found is None:
            return
        with self._lock:
            self._connection, _ = found
            self._connection.setblocking(False)
            self._unsent = dict.fromkeys(self._state)
            if not self._send(source_message(self._source, self._labels)):
                self._disconnect()  # nobody would know whose the rest is

    def _flush(self) -> None:
        """Send what has changed as far as it can be done at once; the rest stays for the next time."""
        if self._connection is None or not self._unsent:
            return
        for message, items in set_messages([(key, self._state[key]) for key in self._unsent]):
            if not self._send(message):
                return
            for key, _ in items:
                del self._unsent[key]

    def _send(self, message: bytes) -> bool:
        """Return whether the exporter has a message."""
        if self._connection is None:
            return False
        try:
            self._connection.send(message)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):  # else it is busy, or the machine is
                self._disconnect()
            return False
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _has_ended(connection: socket.socket) -> bool:
    """Return whether the other end is gone; an exporter says nothing after its hello."""
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _covered(metric: Metric, labels: Mapping[str, str]) -> Iterator[Key]:
    """Yield the series of a metric whose labels' values are all known beforehand."""
    choices = [(labels[label],) if label in labels else metric.known.get(label, ()) for label in metric.labels]
    for values in itertools.product(*choices):
        yield metric.name, tuple(map(clean, values))
