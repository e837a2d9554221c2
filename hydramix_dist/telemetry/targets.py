"""The file in which an exporter tells Prometheus where it listens: one of those that `file_sd_configs` reads.

Its folder is common to all exporters that one Prometheus is to find, also over nodes where it lies on a shared disk.
"""

import contextlib
import json
import logging
import os
import re
import socket
import time
from pathlib import Path

_log = logging.getLogger("hydramix")

KEEP_SECONDS = 60.0  # what cleans /tmp removes what was untouched for days; a full disk may have room again
_ANSWER_SECONDS = 0.5


def host_name() -> str:
    """Return this machine's name as file names have it."""
    return re.sub("[^A-Za-z0-9.-]", "-", socket.gethostname())


def reachable(host: str) -> str:
    """Return the address at which others reach what listens on `host`."""
    if host not in ("0.0.0.0", "::"):
        return host
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))  # an address for documentation; connecting a datagram socket sends nothing
        return str(probe.getsockname()[0])
    return socket.gethostname()  # no route: a machine by itself


def joined(host: str, port: int) -> str:
    """Return HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TargetsFile:
    """An exporter's own file; trouble with it is said once and stops nothing."""

    def __init__(self, folder: Path, address: str, port: int) -> None:
        """Write the file into `folder`, which is made, for the exporter that others reach at `address`."""
        self.path = folder / f"{host_name()}-{port}.json"
        self._content = json.dumps([{"targets": [address], "labels": {"job": "hydramix"}}]) + "\n"
        self._said = False
        self._kept_at = -KEEP_SECONDS
        _remove_stale(folder)
        self.keep()

    def keep(self) -> None:
        """Write the file where it is missing, and mark it as used; does something once a minute."""
        if time.monotonic() - self._kept_at < KEEP_SECONDS:
            return
        self._kept_at = time.monotonic()
        try:
            if self._is_there():
                os.utime(self.path)
            else:
                self._write()
        except OSError as error:
            if not self._said:
                _log.warning(
                    "%s cannot be written (%s): Prometheus does not find this exporter by it", self.path, error.strerror
                )
            self._said = True

    def remove(self) -> None:
        """Remove the file: Prometheus forgets the exporter."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return self.path.read_text(encoding="utf-8") == self._content
        return False

    def _write(self) -> None:
        with contextlib.suppress(FileExistsError):  # where it is a file, what follows says so
            self.path.parent.mkdir(parents=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with temporary.open("x", encoding="utf-8") as file:  # never through a link that somebody else has laid
                file.write(self._content)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove the files of this host's exporters that were killed: nobody answers at their address."""
    for path in folder.glob("*.json"):
        if re.fullmatch(re.escape(host_name()) + r"-\d+\.json", path.name) and not _answers(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _answers(path: Path) -> bool:
    try:
        ((entry),) = json.loads(path.read_text(encoding="utf-8"))
        host, _, port = str(entry["targets"][0]).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except TimeoutError:
        return True  # busy
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return True
