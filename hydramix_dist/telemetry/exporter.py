"""The one process of a node that shows Prometheus the metrics of all trainings there.

`python -m hydramix_dist.telemetry.exporter` is started by the first process that sends (`starting.py`); it ends when
nobody has been connected for a while. Trainings come and go and are killed, on ports that nobody has to hand out; the
exporter is the one that Prometheus knows.
"""

import argparse
import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hydramix_dist.errors import UserError
from hydramix_dist.telemetry.exposition import served
from hydramix_dist.telemetry.recorder import Value
from hydramix_dist.telemetry.series import Series, Shown
from hydramix_dist.telemetry.table import METRICS
from hydramix_dist.telemetry.targets import TargetsFile, host_name, joined, open_file, reachable
from hydramix_dist.telemetry.wire import RECEIVE_BYTES, Hello, is_own, parse, place

_log = logging.getLogger("hydramix")

_TURN_SECONDS = 5.0


class ExporterThereError(UserError):
    """This user has an exporter for that port already."""


def serve(port: int, host: str, targets: Path, expire: float, stay: bool, ready: Callable[[Hello], None]) -> None:
    """Show metrics on `port` or the next free one until SIGTERM or Ctrl-C, or `expire` idle seconds without `stay`.

    `ready` is called once, when Prometheus can read. For the main thread of a process. Raises UserError where no port
    can be had, ExporterThereError where there is an exporter for `port`.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # `nohup hydramix exporter &` outlives its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as ending:
        meeting = ending.enter_context(_meeting_place(port))
        exporter = _Exporter(meeting, Series(expire))
        ending.callback(exporter.close)
        found = ending.enter_context(served(host, port, exporter.shown))
        address = joined(reachable(host), found)
        file = TargetsFile(targets, address, found)
        ending.callback(file.remove)
        exporter.hello = Hello(address, found != port, file.listed, host, expire)
        _log.info("metrics at %s", exporter.hello.url)
        ready(exporter.hello)
        while stay or exporter.idle_seconds < expire:
            exporter.turn(min(_TURN_SECONDS, expire / 4))
            file.keep()
            exporter.hello = replace(exporter.hello, targets=file.listed)


class _Exporter:
    """Takes what senders say, one message at a time."""

    hello: Hello

    def __init__(self, meeting: socket.socket, series: Series) -> None:
        self._series, self._lock = series, threading.Lock()  # HTTP requests are answered by threads of their own
        self._sources: dict[str, socket.socket] = {}  # the connection over which each source speaks now
        self._said: dict[socket.socket, str] = {}  # and who speaks over each
        self._selector = selectors.DefaultSelector()
        self._selector.register(meeting, selectors.EVENT_READ, self._accept)
        self._used_at = self._expired_at = time.monotonic()
        self._understands = True

    @property
    def idle_seconds(self) -> float:
        """How long nobody has been connected."""
        return time.monotonic() - self._used_at

    def turn(self, seconds: float) -> None:
        """Wait at most so long for senders, and do what they say."""
        for key, _ in self._selector.select(seconds):
            key.data(key.fileobj)
        now = time.monotonic()
        if len(self._selector.get_map()) > 1:  # the meeting place is one
            self._used_at = now
        if now - self._expired_at >= seconds:
            self._expired_at = now
            with self._lock:
                self._series.expire(now)

    def shown(self) -> list[Shown]:
        """Return what is to be shown now, the exporter's own metrics included."""
        with self._lock:
            shown, sources, dropped = self._series.shown(), self._series.sources, self._series.dropped
        own: dict[str, Value] = {
            "exporter_sources": sources,
            "exporter_clock_timestamp_seconds": time.time(),
            "exporter_cpu_seconds_total": time.process_time(),
            "exporter_dropped_series_total": dropped,
        }
        for name, value in own.items():
            shown.append((METRICS[name], [((), value)]))
        return shown

    def close(self) -> None:
        """Leave all senders; they look for another exporter."""
        for key in [*self._selector.get_map().values()]:
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _accept(self, meeting: socket.socket) -> None:
        try:
            connection, _ = meeting.accept()
        except OSError as error:  # gone again; or no more open files, of which there is no end by asking at once
            _log.info("a sender was not taken: %s", error)
            time.sleep(0.1)
            return
        connection.setblocking(False)
        try:
            if not is_own(connection):
                raise PermissionError(errno.EPERM, "a sender of another user")
            connection.send(self.hello.message())
        except OSError:
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ, self._read)

    def _read(self, connection: socket.socket) -> None:
        try:
            message = connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._leave(connection)
            return
        try:
            with self._lock:
                self._take(connection, message)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:  # of another version
            if self._understands:
                _log.warning("a message was not understood, others may follow: %r", error)
            self._understands = False

    def _take(self, connection: socket.socket, message: bytes) -> None:
        tree = parse(message)
        if "source" in tree:
            source = str(tree["source"])
            self._series.connect(source, tree.get("labels"))
            self._said[connection], self._sources[source] = source, connection
        elif "bye" in tree:
            source = self._said.pop(connection)
            if self._sources.pop(source, None) is not None:
                self._series.goodbye(source, time.monotonic())
        else:
            self._series.update(self._said[connection], tree["set"])

    def _leave(self, connection: socket.socket) -> None:
        """End a connection; its source is lost, unless it said goodbye or speaks over another one by now."""
        self._selector.unregister(connection)
        connection.close()
        source = self._said.pop(connection, None)
        if source is not None and self._sources.get(source) is connection:
            del self._sources[source]
            with self._lock:
                self._series.lost(source, time.monotonic())


def _meeting_place(port: int) -> socket.socket:
    """Return the socket that senders come to; there is one of that name or none, so that it is the lock as well."""
    meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        meeting.bind(place(port))
    except OSError as error:
        meeting.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise ExporterThereError(
            f"an exporter for port {port} runs already under this user; use it, end it, or take another port"
        ) from error
    meeting.listen(1024)
    meeting.setblocking(False)
    return meeting


def main() -> None:
    """Run from the command line; exit code 1 and a sentence where there can be no exporter, 0 where there is one."""
    command = argparse.ArgumentParser(description="Show Prometheus the metrics of this node's trainings.")
    command.add_argument("--port", type=int, required=True, help="of the endpoint; the next free one where it is taken")
    command.add_argument("--host", required=True, help="address to listen on")
    command.add_argument("--targets", type=Path, required=True, help="folder for the file that Prometheus reads")
    command.add_argument("--expire", type=float, required=True, help="seconds for which ended series and idleness last")
    command.add_argument("--stay", action="store_true", help="do not end when idle")
    command.add_argument("--detach", action="store_true", help="outlive the process that starts this one")
    arguments = command.parse_args()

    targets = arguments.targets.expanduser().absolute()  # before the working directory is another one
    tell = _detach() if arguments.detach else lambda said: print(said, file=sys.stderr, end="")
    _log_to(targets / f"{host_name()}-{arguments.port}.log" if arguments.detach else None)
    settings = arguments.port, arguments.host, targets, arguments.expire, arguments.stay
    try:
        serve(*settings, ready=lambda hello: tell(""))
    except ExporterThereError:
        tell("")  # the one that came first serves
    except Exception as error:
        _log.exception("the exporter ends")
        tell(f"{error}\n")
        sys.exit(1)


def _detach() -> Callable[[str], None]:
    """Go on in a process that is nobody's child, in a session of its own: Ray ends the children of its workers.

    The process that was started ends when the returned function is called: with exit code 0, or with 1 after writing
    what it is told to standard error.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            said = pipe.read()
        sys.stderr.write(said)
        sys.stderr.flush()
        os._exit(1 if said else 0)
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)

    def tell(said: str) -> None:
        os.write(writing, said.encode())
        os.close(writing)

    return tell


def _log_to(path: Path | None) -> None:
    """Log to standard error, or append to a file; where that cannot be, nobody hears."""
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            number = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            handler = logging.StreamHandler(os.fdopen(number, "a"))
        except OSError:
            handler = logging.NullHandler()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s", handlers=[handler])


if __name__ == "__main__":
    main()
