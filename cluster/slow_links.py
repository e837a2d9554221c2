"""A host's link that is narrow, late or lossy for a block (`hosts.py`), each way.

A host's link has two ends: this machine's, named by the caller, and eth0 on the host, which commands reach through
`inside`. What is undone at the end of a block is left where the host is off by then: it took its end with it.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol


class HostsError(RuntimeError):
    """Hosts, or a fault of them, cannot be made on this machine; the message is one sentence."""


class Linked(Protocol):
    """A host as far as its link is concerned."""

    name: str

    @property
    def is_on(self) -> bool:
        """Return whether the host is on."""

    def inside(self, *command: str, stdin: str = "") -> str:
        """Return what a command says of the host's network."""


@contextlib.contextmanager
def slow_link(
    host: Linked, link: str, bridge: str, *, rate_mbit: float | None, delay_ms: float, loss: float
) -> Iterator[None]:
    """Make a link slow for a block; `Host.slow` says how. Raises HostsError where the machine has no means for it."""
    with contextlib.ExitStack() as undo:
        if loss:
            undo.enter_context(_lossy(host, loss))
        if delay_ms:
            undo.enter_context(_delayed(host, link, bridge, delay_ms))
        if rate_mbit:
            undo.enter_context(_narrow(host, link, rate_mbit))
        yield


def done(command: list[str], stdin: str = "") -> str:
    """Return what a command says. Raises HostsError where it fails."""
    ended = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        raise HostsError(f"the kernel refused `{' '.join(command)}` ({said[-1] if said else ended.returncode})")
    return ended.stdout


def ip(arguments: str, check: bool = True) -> None:
    """Run the command `ip`. Raises HostsError where it fails and that matters."""
    with contextlib.nullcontext() if check else contextlib.suppress(HostsError):
        done(["ip", *arguments.split()])


@contextlib.contextmanager
def _lossy(host: Linked, loss: float) -> Iterator[None]:
    if shutil.which("nft") is None:
        raise HostsError("a lossy link needs the command nft (Debian package nftables)")
    drop = f"numgen random mod 100000 < {round(loss * 100_000)} drop"
    ways = ("ingress", "egress")
    rules = "".join(f"chain {way} {{\n type filter hook {way} device eth0 priority 0\n {drop}\n}}\n" for way in ways)
    host.inside("nft", "-f", "-", stdin=f"table netdev lossy {{\n{rules}}}\n")
    with _undone(host, lambda: host.inside("nft", "delete", "table", "netdev", "lossy")):
        yield


@contextlib.contextmanager
def _narrow(host: Linked, link: str, rate_mbit: float) -> Iterator[None]:
    how = ["root", "tbf", "rate", f"{rate_mbit:g}mbit", "burst", "64kb", "latency", "200ms"]
    done(["tc", "qdisc", "replace", "dev", link, *how])
    host.inside("tc", "qdisc", "replace", "dev", "eth0", *how)

    def widen() -> None:
        done(["tc", "qdisc", "del", "dev", link, "root"])
        host.inside("tc", "qdisc", "del", "dev", "eth0", "root")

    with _undone(host, widen):
        yield


@contextlib.contextmanager
def _delayed(host: Linked, link: str, bridge: str, delay_ms: float) -> Iterator[None]:
    near, far = f"{link}a", f"{link}b"
    relay = None
    try:
        ip(f"link add {near} type veth peer name {far}")
        # Not on the bridge, an end is heard by the relay alone: it must not answer for itself.
        for end in (near, far, link):
            Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6").write_text("1")
        ip(f"link set {near} up")
        ip(f"link set {link} nomaster")
        command = [sys.executable, str(Path(__file__).with_name("link_delay.py")), link, near, str(delay_ms)]
        relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise HostsError(f"the link of {host.name} cannot be delayed: the relay ended at its start")
        ip(f"link set {far} master {bridge} up")
        yield
    finally:
        if relay is not None:
            relay.kill()
            relay.communicate()
        ip(f"link del {near}", check=False)
        if host.is_on:
            ip(f"link set {link} master {bridge}")


@contextlib.contextmanager
def _undone(host: Linked, undo: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    finally:
        if host.is_on:
            undo()
