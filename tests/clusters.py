"""A real Ray head with a dashboard that asks for a token, and a line to it that can be cut."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tiny
from servers import free_port


@dataclass(frozen=True)
class Head:
    """A running head: where its dashboard is, and what a process of the user needs to be let in."""

    dashboard: str
    environment: Mapping[str, str]
    folder: Path  # of Ray's session
    pid: int


@contextlib.contextmanager
def token_head(cpus: int = 2, **variables: str) -> Iterator[Head]:
    """Yield a head with the environment that it was started in, `variables` in it: those of the cluster's own nodes."""
    with tempfile.TemporaryDirectory(prefix="hx-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # jobs say `python`
        environment = os.environ | access | variables | {"PATH": programs, "RAY_TMPDIR": folder}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
        dashboard = f"http://127.0.0.1:{free_port()}"
        options = [f"--port={free_port()}", f"--temp-dir={folder}/ray", f"--num-cpus={cpus}"]
        options += ["--object-store-memory=104857600", f"--dashboard-port={dashboard.rpartition(':')[2]}"]
        options += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=true"]
        log = Path(folder) / "log.txt"
        with log.open("wb") as file:
            head = subprocess.Popen([*ray, *options], env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            question = urllib.request.Request(
                f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token.read_text()}"}
            )
            end = time.monotonic() + 90
            while True:
                assert head.poll() is None and time.monotonic() < end, log.read_text()
                with contextlib.suppress(OSError), urllib.request.urlopen(question, timeout=5):
                    break
                time.sleep(0.2)
            yield Head(dashboard, access, Path(folder) / "ray", head.pid)
        finally:
            for pid in (*tiny.descendants(head.pid), head.pid):  # in order they take 20 s
                with contextlib.suppress(ProcessLookupError):
                    tiny.kill(pid)
            head.wait()


class Relay:
    """Passes connections on to one port of this machine, until it is cut; `mend` lets new ones through again."""

    def __init__(self, address: str) -> None:
        """Name the server by its http address."""
        self._port = int(address.rpartition(":")[2])
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and let none through."""
        self._cut = True
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let new connections through again."""
        self._cut = False

    def close(self) -> None:
        """Listen no more."""
        self.cut()
        for end in (self._server, *self._open):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._server.accept()
                if self._cut:
                    ours.close()
                    continue
                theirs = socket.create_connection(("127.0.0.1", self._port))
                self._open += [ours, theirs]
                for source, target in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
