"""The file in which an exporter tells Prometheus where it listens: one of those that `file_sd_configs` reads.

Its folder is common to all exporters that one Prometheus is to find, also over nodes where it lies on a shared disk.
"""

import contextlib
import errno
import json
import logging
import os
import re
import socket
import stat
import time
from pathlib import Path

_log = logging.getLogger("hydramix")

KEEP_SECONDS = 60.0  # what cleans /tmp removes what was untouched for days; a full disk may have room again
_MOST_BYTES = 65_536  # read of a file


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


def open_file(path: Path, flags: int) -> int:
    """Return the descriptor of a regular file in a folder that may be somebody else's.

    Raises OSError for anything else: a link may lead anywhere, and a pipe would be waited for without end.
    """
    number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return number


class TargetsFile:
    """An exporter's own file; trouble with it is said once and stops nothing."""

    def __init__(self, folder: Path, address: str, port: int) -> None:
        """Write the file into `folder`, which is made, for the exporter that others reach at `address`."""
        self.path = folder / f"{host_name()}-{port}.json"
        self._content = json.dumps([{"targets": [address], "labels": {"job": "hydramix"}}]) + "\n"
        self._written = self._said = False
        self._kept_at = -KEEP_SECONDS
        _remove_stale(folder)
        self.keep()

    @property
    def listed(self) -> str:
        """The file's path, by which Prometheus finds the exporter; "" while it cannot be written."""
        return str(self.path) if self._written else ""

    def keep(self) -> None:
        """Write the file where it is missing, and mark it as used; does something once a minute."""
        if time.monotonic() - self._kept_at < KEEP_SECONDS:
            return
        self._kept_at = time.monotonic()
        try:
            if self._is_there():
                os.utime(self.path, follow_symlinks=False)
            else:
                self._write()
            self._written = True
        except OSError as error:
            self._written = False
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
        with contextlib.suppress(OSError), os.fdopen(open_file(self.path, os.O_RDONLY), "rb") as file:
            return file.read(_MOST_BYTES) == self._content.encode()
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
    """Remove the files of this host's exporters that were killed: nobody listens on their ports any more."""
    for path in folder.glob("*.json"):
        own = re.fullmatch(re.escape(host_name()) + r"-(\d{1,5})\.json", path.name)
        if own and not _in_use(int(own[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _in_use(port: int) -> bool:
    """Return whether somebody listens on a port, at whichever address of this machine.

    Nobody is asked: an exporter may be busy, and the address in a file one that the machine had yesterday. A port
    that is listened on at one address cannot be bound at all of them.
    """
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended a minute ago is no matter
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((everywhere, port))
        except OverflowError:  # no port
            return False
        except OSError as error:  # anything else: a machine without IPv6
            if error.errno == errno.EADDRINUSE:
                return True
    return False
