"""Several hosts on one Linux machine, made of its kernel's namespaces, and the faults that befall hosts and links.

Each host has an address, a name, processes, /tmp/ray and /dev/shm of its own, and cores that it may use; disks are
shared. A bridge joins them, on which this machine is the address that ends in 1. It needs root, iproute2 and
util-linux, and for lossy links nftables. Nothing stays behind: hosts die with the process that made them.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpu_groups import groups_root, limited, new_group, remove_group
from slow_links import HostsError, done, ip, slow_link

READY_SECONDS = 10.0  # for a host to be there; 0.1 on an idle machine
_PREFIX = "hx"  # of interfaces, whose names may have 15 characters
_numbers = itertools.count()
_COMMANDS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "taskset": "util-linux"}

# The first process of a host. It ends, and all others with it, when the pipe from its maker is closed; bash takes up
# what is orphaned meanwhile.
_FIRST = """
set -e
hostname "$1"
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
echo ready
while read -r _; do :; done
"""


class Process(subprocess.Popen[str]):
    """A command on a host; signals reach the command itself. `returncode` is its own, -N after a signal N."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command."""
        # What was started here is nsenter, which waits for the command and does not pass signals on.
        for pid in children(self.pid) if self.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)


class Host:
    """One host of a `Network`: on from the beginning, after `kill` off until `boot`."""

    def __init__(self, network: "Network", name: str, number: int, cpus: frozenset[int]) -> None:
        """Take a place in the network; nothing runs yet."""
        self.name, self.cpus, self.address = name, cpus, network.address_of(number)
        self.folder = network.folder / name  # of its own, on this machine's disk
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "HOME": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        }
        self._network, self._number = network, number
        self._link = f"{network.tag}v{number}"  # this machine's end; the host's own is eth0
        self._group = new_group(self._link)
        self._first: subprocess.Popen[str] | None = None
        self._pid = 0
        self._started: list[Process] = []

    def boot(self) -> None:
        """Switch the host on, with its address as before and nothing in /tmp/ray and /dev/shm."""
        if self._first is not None:
            raise HostsError(f"{self.name} is on already")
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self._first = subprocess.Popen(
            ["unshare", *spaces, "bash", "-c", _FIRST, "host", self.name, str(self._network.names)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for who made the hosts, not for them
        )
        assert self._first.stdout is not None and self._first.stderr is not None
        if self._first.stdout.readline() != "ready\n":
            said = self._first.communicate(timeout=READY_SECONDS)[1].strip().splitlines()
            self._first = None
            raise HostsError(f"the kernel does not let this process make a host ({said[-1] if said else 'no reason'})")
        (self._pid,) = children(self._first.pid)
        ip(f"link add {self._link} type veth peer name eth0 netns {self._pid}")
        ip(f"link set {self._link} master {self._network.bridge} up")
        self.inside("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")

    @property
    def is_on(self) -> bool:
        """Return whether the host is on."""
        return self._first is not None

    def path(self, path: str) -> Path:
        """Return where this machine finds a path of the host, as long as the host is on: for its /tmp/ray, /dev/shm."""
        return Path(f"/proc/{self._pid}/root{path}")

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        **options: Any,
    ) -> Process:
        """Start a command on the host, with its `environment` and `env`, in its folder or `cwd`.

        Output goes to the file `log`, or where `options` (of subprocess.Popen) say.
        """
        if self._first is None:
            raise HostsError(f"{self.name} is off")
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        enter = ["nsenter", f"--target={self._pid}", *spaces, f"--wdns={cwd or self.folder}"]
        pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(self.cpus)))]
        # The group of a process is left to its children: to be entered first, from outside.
        joining = f"echo $$ > {self._group / 'cgroup.procs'}; " if self._group else ""
        whole = ["sh", "-c", f'{joining}exec "$@"', "sh", *enter, *pinned, *command]
        with contextlib.ExitStack() as files:
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                options |= {"stdout": files.enter_context(log.open("a")), "stderr": subprocess.STDOUT}
            options = {"stdin": subprocess.DEVNULL, "start_new_session": True, "text": True} | options
            process = Process(whole, env=self.environment | dict(env or {}), **options)
        self._started = [one for one in self._started if one.returncode is None] + [process]
        return process

    def run(
        self, command: Sequence[str], *, timeout: float = 300.0, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end. Raises subprocess.CalledProcessError like subprocess.run."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = self.start(command, **options)
        try:
            out, error = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if check and process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(command), out, error)
        return subprocess.CompletedProcess(list(command), process.returncode, out, error)

    def inside(self, *command: str, stdin: str = "") -> str:
        """Return what a command of this machine says of the host's network. Raises HostsError where it fails."""
        return done(["nsenter", f"--target={self._pid}", "--net", *command], stdin)

    def kill(self) -> None:
        """Switch the host off at once: it falls silent, so that others are left waiting, and all it ran is gone."""
        if self._first is None:
            return
        first, self._first = self._first, None
        # First the link: else its kernel would still take leave of everyone it was connected to.
        ip(f"link set {self._link} down", check=False)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        first.communicate()
        for process in self._started:
            process.wait(READY_SECONDS)
        self._started.clear()
        ip(f"link del {self._link}", check=False)

    # --- faults

    def cut(self) -> None:
        """Cut the host's link: nothing goes in or out, and nobody is told."""
        ip(f"link set {self._link} down")

    def mend(self) -> None:
        """Mend the link that was cut."""
        ip(f"link set {self._link} up")

    @contextlib.contextmanager
    def slow(self, *, rate_mbit: float | None = None, delay_ms: float = 0.0, loss: float = 0.0) -> Iterator[None]:
        """Make the link slow for a block: megabits a second each way, milliseconds added each way, share lost each way.

        Frames are delayed by a process of this machine (`link_delay.py`), good for tens of megabytes a second.
        """
        how = {"rate_mbit": rate_mbit, "delay_ms": delay_ms, "loss": loss}
        with slow_link(self, self._link, self._network.bridge, **how):
            yield

    @contextlib.contextmanager
    def half_speed(self, share: float = 0.5) -> Iterator[None]:
        """Give the host that share of each of its cores' time for a block.

        Who waits for others that long anyway is not slowed by it. Where the kernel has no group of processes for the
        host, all of its processes are stopped and let go on by turns.
        """
        if self._group is not None:
            period = 4_000  # microseconds: short beside what a step computes at a stretch
            with limited(self._group, period, int(share * period * len(self.cpus))):
                yield
            return
        over = threading.Event()
        turns = threading.Thread(target=self._by_turns, args=(share, over), daemon=True)
        turns.start()
        try:
            yield
        finally:
            over.set()
            turns.join()

    def bytes_sent(self) -> int:
        """Return the bytes that the host has sent over its link since it was switched on, frames' headers included."""
        return self._count("rx_bytes")

    def bytes_received(self) -> int:
        """Return the bytes that the host has received likewise."""
        return self._count("tx_bytes")

    def pids(self) -> list[int]:
        """Return this machine's ids of the processes of the host, without the first."""
        mine = Path(f"/proc/{self._pid}/ns/pid").readlink()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "ns" / "pid").readlink() == mine and int(folder.name) != self._pid:
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        """Switch the host off and give back what it had of this machine."""
        self.kill()
        if self._group is not None:
            remove_group(self._group)

    def _count(self, what: str) -> int:
        return int(Path(f"/sys/class/net/{self._link}/statistics/{what}").read_text())

    def _by_turns(self, share: float, over: threading.Event) -> None:
        period = 0.02
        while not over.is_set():
            stopped = self.pids()
            _signal(stopped, signal.SIGSTOP)
            time.sleep(period * (1 - share))
            # nsenter stops with its command, and goes on after it.
            _signal([*stopped, *(one.pid for one in self._started if one.returncode is None)], signal.SIGCONT)
            time.sleep(period * share)


class Network:
    """A network of hosts, as a context; at its end, however it comes, hosts, links and bridge are gone."""

    def __init__(self, folder: Path) -> None:
        """Take a folder for what the hosts keep on disk."""
        self.folder = folder.resolve()
        self.tag = f"{_PREFIX}{os.getpid():x}{next(_numbers):x}_"
        self.bridge = f"{self.tag}b"
        self.names = self.folder / "etc-hosts"
        self.hosts: dict[str, Host] = {}
        self._net = ""

    @property
    def address(self) -> str:
        """Return the address of this machine, for hosts."""
        return self.address_of(1)

    def address_of(self, number: int) -> str:
        """Return the address with this number in the network."""
        return f"{self._net}.{number}"

    def add(self, name: str, cpus: Sequence[int] | None = None) -> Host:
        """Return a new host that is on, pinned to the cores `cpus` of this machine, or to all that this process has."""
        allowed = os.sched_getaffinity(0)
        number = 11 + len(self.hosts)
        host = Host(self, name, number, frozenset(cpus or allowed) & allowed or frozenset(allowed))
        self.hosts[name] = host
        with self.names.open("a") as file:
            file.write(f"{host.address} {name}\n")
        host.boot()
        return host

    def __enter__(self) -> "Network":
        _check_rights()
        _remove_left()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names.write_text("127.0.0.1 localhost\n")
        self._net = _free_net()
        try:
            ip(f"link add {self.bridge} type bridge")
            ip(f"addr add {self.address}/24 dev {self.bridge}")
            ip(f"link set {self.bridge} up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.close()
        ip(f"link del {self.bridge}", check=False)


def children(pid: int) -> list[int]:
    """Return the ids of a process's children, none where it has ended."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def _check_rights() -> None:
    if os.geteuid() != 0:
        raise HostsError("several hosts on one machine are made of network namespaces, for which one must be root")
    for command, package in _COMMANDS.items():
        if shutil.which(command) is None:
            raise HostsError(f"several hosts on one machine need the command {command} (Debian package {package})")


def _free_net() -> str:
    """Return the first three numbers of a private network of 256 addresses that this machine has no route to."""
    routes = [route["dst"] for route in json.loads(done(["ip", "-json", "-4", "route"]) or "[]")]
    while True:
        net = f"10.{64 + secrets.randbelow(128)}.{secrets.randbelow(256)}"
        if not any(route.startswith(f"{net}.") or route == "10.0.0.0/8" for route in routes):
            return net


def _remove_left() -> None:
    """Remove the bridges and groups of processes that were killed: their hosts died with them."""
    for link in json.loads(done(["ip", "-json", "link", "show", "type", "bridge"]) or "[]"):
        name = link.get("ifname", "")
        if name.startswith(_PREFIX) and name.endswith("_b") and not _lives(name):
            ip(f"link del {name}", check=False)
    for group in groups_root().glob(f"{_PREFIX}*_v*") if groups_root() else ():
        if not _lives(group.name):
            remove_group(group)


def _lives(name: str) -> bool:
    """Return whether the process that an interface or group is named after lives."""
    try:
        os.kill(int(name.removeprefix(_PREFIX).partition("_")[0][:-1], 16), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
