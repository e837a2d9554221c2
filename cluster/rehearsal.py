"""A cluster of four hosts, on which trainings run and faults befall them: for tests, and for measuring recovery.

A head without CPUs, where commands are typed; two hosts of one core each, where workers are; an S3 server on the
fourth, the only thing they share. What a fault costs is told in seconds.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hosts import Host, HostsError, Network
from ray_hosts import Head, equip, start_ray_head, start_ray_worker, start_seaweed, wait_for_node

BUCKET = "rehearsal"
DEFAULT_HEALTH: Mapping[str, str] = {}
CHECKPOINTS = 10
COUNTED_SECONDS = 21.0  # until Ray Train, asked for some of the workers at least, counts on a node that has come later
STOP_SECONDS = 30.0  # until a training has saved and ended, some 5 s; one whose cluster is gone cannot
PATIENCE = 240.0  # seconds for what takes a few on an idle machine
# A generator small enough for 30 steps a second and a core, with a rate at which rounding stays small.
GENERATOR: dict[str, Any] = {
    "optimizer": {"lr": 1e-5},
    "network": {"side": 32, "width": 4, "blocks": 2, "mix_after": "block1"},
    "discriminator": {"width": 4},
    "mix": {"count": 3},
    "batch": 4,
}
RUNTIME = {"device": "cpu", "precision": "fp32", "channels_last": False}


@dataclass
class Training:
    """A command that trains."""

    process: subprocess.Popen[str]
    url: str  # of the run folder
    log: Path  # what it says

    def said(self) -> str:
        """Return what it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ended(self, code: int = 0, patience: float = PATIENCE) -> str:
        """Wait for its end; return what it said. Raises AssertionError where it ends otherwise."""
        found = self.process.wait(patience)
        if found != code:
            raise AssertionError(f"exit {found} of the training in {self.url}:\n{self.said()[-3000:]}")
        return self.said()

    def stop(self) -> None:
        """End it as by Ctrl-C; a killed one's claim on room stands for 180 s with Ray, and elastic ones wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self.process.kill()

    def images_saved(self) -> int:
        """Return how many images the newest checkpoint has seen, 0 where there is none."""
        from hydramix_dist.checkpoint.commit import committed, images_of
        from hydramix_dist.store import Store

        folders = committed(Store(self.url))
        return images_of(folders[-1]) if folders else 0

    def saves(self, beyond: int = 0, patience: float = PATIENCE) -> int:
        """Wait for a checkpoint of more images than `beyond`; return how many it has seen."""
        return int(
            self._until(lambda: found if (found := self.images_saved()) > beyond else 0, "saved nothing", patience)
        )

    def says(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Wait until it has said something; return that."""
        found: re.Match[str] = self._until(lambda: re.search(pattern, self.said()), f"did not say {pattern}", patience)
        return found

    def _until(self, what: Callable[[], Any], else_: str, patience: float) -> Any:
        end = time.monotonic() + patience
        while not (found := what()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the training in {self.url} {else_}:\n{self.said()[-3000:]}")
            time.sleep(0.05)
        return found


class Rehearsal:
    """The cluster, on a network that the caller ends; Ray runs from `ready` on."""

    def __init__(self, network: Network) -> None:
        """Switch on the hosts and the S3 server."""
        cores = sorted(os.sched_getaffinity(0))
        self.network = network
        self.head = network.add("head")
        self.workers = (network.add("one", [cores[0]]), network.add("two", [cores[-1]]))
        self.storage = network.add("storage")
        self.server = start_seaweed(self.storage)
        self.server.make_bucket(BUCKET)
        equip(network, self.server)
        self.ray: Head | None = None
        self.health: Mapping[str, str] = {}
        self.generator: Mapping[str, Any] = GENERATOR  # what `words` trains
        self._trainings: list[Training] = []
        self._counted_at = 0.0  # when all nodes are counted on

    def ready(self, health: Mapping[str, str] = DEFAULT_HEALTH) -> float:
        """Put everything right: hosts on, links whole, Ray's head with these health checks, both nodes alive.

        Returns the seconds that it took.
        """
        began = time.monotonic()
        for training in self._trainings:
            training.stop()
        self._trainings.clear()
        self.storage.mend()
        if self.ray is None or self.health != health or not self._head_lives():
            self.start_head(health)
        assert self.ray is not None
        self.join(*(host for host in self.workers if not host.is_on or not self.ray.nodes(host.address)))
        return time.monotonic() - began

    def start_head(self, health: Mapping[str, str]) -> float:
        """Switch the head off and on, and the workers off; start Ray on it. Returns seconds."""
        began = time.monotonic()
        for host in (self.head, *self.workers):
            host.kill()
        self.head.boot()
        self.ray, self.health = start_ray_head(self.head, health=health), health
        return time.monotonic() - began

    def join(self, *hosts: Host) -> float:
        """Switch hosts off and on, and make them nodes. Returns seconds."""
        assert self.ray is not None
        began, coming = time.monotonic(), []
        for host in hosts:
            before = next(iter(self.ray.nodes(host.address)), None)
            host.kill()
            host.boot()
            coming.append((host, self.ray, start_ray_worker(host, self.ray, wait=False), before))
        for host, head, command, before in coming:
            try:
                wait_for_node(host, head, command, before)
            except HostsError:  # on a machine that is much too busy Ray gives up after 30 s, which nothing can set
                wait_for_node(host, head, start_ray_worker(host, head, wait=False), before)
        self._counted_at = time.monotonic() + COUNTED_SECONDS
        return time.monotonic() - began

    def words(self, images: int, checkpoints: int = CHECKPOINTS, **distributed: Any) -> list[str]:
        """Return CONFIG and KEY=VALUE of a generator's training over both hosts, with its data in the bucket."""
        tree: dict[str, Any] = {"generator": {**self.generator, "images": images}}  # instead of all that is in `quick`
        tree |= {"runtime": RUNTIME | {"checkpoints": checkpoints}}
        tree |= {"distributed": {"workers": 2, "placement": "spread", **distributed}}
        return ["quick", f"data=s3://{BUCKET}/set", *(f"{key}={json.dumps(value)}" for key, value in tree.items())]

    def settings(self, name: str, tree: Mapping[str, Any]) -> Path:
        """Write settings where the head finds them; return the path."""
        path = self.head.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(tree)))
        return path

    def train(self, name: str, images: int, checkpoints: int = CHECKPOINTS, **distributed: Any) -> Training:
        """Start a generator's training over both hosts, from and into the bucket, typed on the head.

        The same name goes on with the same training.
        """
        if "min_workers" in distributed:
            time.sleep(max(0.0, self._counted_at - time.monotonic()))
        words = self.words(images, checkpoints, **distributed)
        return self.start(f"s3://{BUCKET}/{name}", "train", "generator", *words)

    def submit(self, name: str, images: int, checkpoints: int = CHECKPOINTS, **distributed: Any) -> Training:
        """Submit the same as a job of that name, from this machine, which is no part of the cluster; follow it."""
        assert self.ray is not None
        url, words = f"s3://{BUCKET}/{name}", self.words(images, checkpoints, **distributed)
        command = [str(Path(sys.executable).with_name("hydramix")), "submit", "train_generator", *words]
        command += ["--name", name, "--address", self.ray.dashboard, "--out", url]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "HYDRAMIX_", "RAY_"))}
        env = kept | self.server.environment() | self.ray.environment() | {"COLUMNS": "200"}
        log = self._log(url)
        with log.open("w") as file:
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, "text": True}
            process = subprocess.Popen(command, env=env, start_new_session=True, **how)
        return self._kept(Training(process, url, log))

    def start(self, url: str, *command: object) -> Training:
        """Start one of our commands on the head, over the cluster, with that folder for what comes of it."""
        assert self.ray is not None
        log = self._log(url)
        whole = ["hydramix", *map(str, command), "--address", self.ray.address, "--out", url]
        return self._kept(Training(self.head.start(whole, env={"COLUMNS": "200"}, log=log), url, log))

    def _log(self, url: str) -> Path:
        log = self.head.folder / f"{url.rpartition('/')[2]}-{len(self._trainings)}.log"
        log.unlink(missing_ok=True)
        return log

    def _kept(self, training: Training) -> Training:
        self._trainings.append(training)
        return training

    def metrics(self, host: Host) -> str:
        """Return the page of a host's exporter, as Prometheus reads it."""
        import urllib.request

        from ray_hosts import METRICS_PORT

        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{host.address}:{METRICS_PORT}/metrics", timeout=10) as answer:
            return bytes(answer.read()).decode()

    def trains(self, host: Host) -> bool:
        """Return whether a worker of a training is on a host."""
        return any("RayTrainWorker" in _command(pid) for pid in host.pids())

    def is_node(self, host: Host) -> bool:
        """Return whether Ray runs on a host, whatever the cluster takes it for."""
        return any("raylet/raylet" in _command(pid) for pid in host.pids())

    def _head_lives(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return self.ray is not None and self.ray.process.poll() is None and bool(self.ray.nodes(self.head.address))
        return False


# --- faults; each returns seconds


def link_cut(training: Training, host: Host, seconds: float) -> float:
    """Cut a host's link for so long; return how long after its mending the next checkpoint is there."""
    saved = training.images_saved()
    host.cut()
    time.sleep(seconds)
    host.mend()
    return _until_saved(training, saved)


def link_slow(training: Training, host: Host, **how: float) -> float:
    """Make a host's link slow; return the seconds from one checkpoint to the next over it."""
    with host.slow(**how):
        return between_saves(training)


def half_speed(training: Training, host: Host) -> float:
    """Give a host half of its core's time; return the seconds from one checkpoint to the next."""
    with host.half_speed():
        return between_saves(training)


def between_saves(training: Training) -> float:
    """Return the seconds from the next checkpoint to the one after it."""
    saved = training.saves(training.images_saved())
    return _until_saved(training, saved)


def host_lost(training: Training, host: Host) -> tuple[float, float]:
    """Switch a host off; return how long until it goes on without it, and until its next checkpoint is there."""
    return _lost(training, host.kill)


def link_lost(training: Training, host: Host) -> tuple[float, float]:
    """Cut a host's link for good; return likewise."""
    return _lost(training, host.cut)


def head_lost(cluster: Rehearsal, training: Training, again: Callable[[], Training]) -> tuple[Training, float, float]:
    """Switch the head off, and start Ray anew on it and the workers; then do `again` what began the training.

    Returns what came of it, how long until all nodes are up, and until the next checkpoint is there.
    """
    saved = training.images_saved()
    began = time.monotonic()
    cluster.start_head(cluster.health)
    cluster.join(*cluster.workers)
    up = time.monotonic() - began
    gone_on = again()
    gone_on.saves(saved)
    return gone_on, up, time.monotonic() - began


def _lost(training: Training, lose: Callable[[], None]) -> tuple[float, float]:
    saved = training.images_saved()
    before = len(re.findall("going on with", training.said()))
    began = time.monotonic()
    lose()
    training.says(f"(?s)(going on with.*){{{before + 1}}}")
    gone_on = time.monotonic() - began
    return gone_on, gone_on + _until_saved(training, saved)


def _until_saved(training: Training, beyond: int) -> float:
    began = time.monotonic()
    training.saves(beyond)
    return time.monotonic() - began


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


@contextlib.contextmanager
def rehearsal(folder: Path) -> Iterator[Rehearsal]:
    """Yield a cluster on hosts of its own. Raises HostsError, and RuntimeError where there is no S3 server."""
    with Network(folder) as network:
        cluster = Rehearsal(network)
        try:
            yield cluster
        finally:
            cluster.server.kill()  # it leaves sockets in /tmp where only its host is switched off
