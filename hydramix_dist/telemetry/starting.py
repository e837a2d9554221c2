"""How a process comes to this node's exporter: the one that runs, or one that it starts."""

import contextlib
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hydramix_dist.telemetry.wire import RECEIVE_BYTES, Hello, is_own, place

if TYPE_CHECKING:  # the exporter does without what settings are made of
    from hydramix_dist.config.metrics import MetricsSettings

_log = logging.getLogger("hydramix")

WAIT_SECONDS = 10.0  # a start takes half a second, and several of them on a busy machine
_ASK_AGAIN_SECONDS = 60.0  # after a failure: the trainings of a sweep are not to wait for one each
_LOOK_SECONDS = 0.05

_lock = threading.Lock()
_failed_at: dict[int, float] = {}  # by port


def ensure_exporter(settings: "MetricsSettings") -> Hello | None:
    """Return what this node's exporter says of itself, after starting one where there is none.

    None where there is no having one, which is logged once a process. Waits up to about WAIT_SECONDS.
    """
    found = meet(settings)
    if found is None:
        return None
    connection, hello = found
    connection.close()
    return hello


def meet(settings: "MetricsSettings") -> tuple[socket.socket, Hello] | None:
    """Return a connection to the exporter, to be closed by the caller, and its hello; else like `ensure_exporter`."""
    port = settings.port
    if port is None:
        raise ValueError("without a port there are no metrics")
    with _lock:  # the trainings of one process start one exporter, and hear of one failure
        failed = time.monotonic() - _failed_at.get(port, -math.inf) < _ASK_AGAIN_SECONDS
        end = time.monotonic() + (0.0 if failed else WAIT_SECONDS)
        try:
            found = _dial(port, end)
            if found is None and not failed:
                found = _started(settings, port, end)
        except OSError as error:
            if not _failed_at:
                _log.warning("metrics are not exported: %s; training goes on", error)
            if not failed:
                _failed_at[port] = time.monotonic()
            return None
        return found


def _dial(port: int, end: float) -> tuple[socket.socket, Hello] | None:
    """Return a connection and the hello, None where nobody is there; OSError where somebody is and does not answer."""
    with contextlib.ExitStack() as unless_found:
        connection = unless_found.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.settimeout(max(0.5, end - time.monotonic()))
        try:
            connection.connect(place(port))
            if not is_own(connection):
                raise PermissionError(f"a process of another user holds the place for port {port}; use another port")
            message = connection.recv(RECEIVE_BYTES)
        except (ConnectionRefusedError, ConnectionResetError):
            return None
        except TimeoutError as error:
            raise TimeoutError(f"the exporter for port {port} does not answer") from error
        if not message:  # it has just ended
            return None
        try:
            hello = Hello.parse(message)
        except (ValueError, TypeError) as error:
            raise ConnectionError(f"the exporter for port {port} is of another version; end it") from error
        unless_found.pop_all()
        return connection, hello


def _started(settings: "MetricsSettings", port: int, end: float) -> tuple[socket.socket, Hello]:
    """Return a connection to an exporter after starting one, or to the one that came first. Raises OSError if not."""
    while time.monotonic() < end:
        _start(settings, port, end)  # again where it gave way to one that was about to end
        found = _dial(port, end)
        if found is not None:
            return found
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(f"an exporter was started and nobody answers; its log lies in {settings.targets}")


def _start(settings: "MetricsSettings", port: int, end: float) -> None:
    """Start an exporter and wait until it serves, or another one does. Raises OSError with what it says if not."""
    module = "hydramix_dist.telemetry.exporter"
    targets = Path(settings.targets).expanduser().absolute()
    options = {"--port": port, "--host": settings.host, "--targets": targets, "--expire": settings.expire}
    # -P: a module that happens to lie in the working directory is not to be taken for one of Python's.
    command = [
        sys.executable,
        "-P",
        "-m",
        module,
        "--detach",
        *(str(part) for pair in options.items() for part in pair),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=max(0.1, end - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"its start took more than {WAIT_SECONDS:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        raise OSError(lines[-1])
