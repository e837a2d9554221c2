"""A real Prometheus watches real trainings: every panel has what it shows, alerts wake somebody, healthy runs nobody.

One watch for all: what is healthy comes first, then, in the same set-up, what is not.
"""

import contextlib
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from fault_proxy import FaultProxy
from grafana.queries import queries
from seaweed import ADMIN, Seaweed
from sweep_work import data_of
from watched import FACTOR, MONITORING, Watch, ray_head, servers_there, watching

from hydramix_dist.store import Store

__all__ = ["servers_there"]
pytestmark = [pytest.mark.alone, pytest.mark.service]

GENERATOR = tiny.PILOT["generators"]["hydramix"] | {"group": None}
RUNTIME = tiny.PILOT["runtime"] | {"checkpoints": 6}
TWO = {"distributed": {"workers": 2, "cpus": 0.5}}

# Queries that none of the healthy runs feeds, by board, panel and what is in them, and why.
GPU, WELL = "this machine has no GPU", "nothing is wrong: fed by the runs that are not healthy"
UNFED = {
    ("run", "Firing alerts", ""): WELL,
    ("sweep", "Trainings by state", 'state="failed"'): WELL,
    ("sweep", "Trainings by state", 'state="early"'): "no settings are searched",
    ("cluster", "Use of GPUs", ""): GPU,
    ("cluster", "Use of each GPU", ""): GPU,
    ("cluster", "Memory of each GPU", ""): GPU,
}


@dataclass
class Place:
    """Where the trainings of these tests run and what watches them."""

    folder: Path
    bucket: str
    environment: dict[str, str]
    watch: Watch
    ray: str
    head: int  # process that all of Ray is below
    commands: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        """Start a command."""
        command = tiny.start_hydramix(*map(str, arguments), env=self.environment | environment, cwd=self.folder)
        self.commands.append(command)
        return command

    def settings(self, name: str, **tree: Any) -> Path:
        """Write the settings of one training by itself; return the path."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"data": f"{self.bucket}/set", "shots": 5, "runtime": RUNTIME, **tree}))
        return path


def command_of(pid: int) -> str:
    """Return a process's command line, "" where it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def ended(command: "subprocess.Popen[str]", code: int = 0) -> str:
    """Wait for a command, which must end with this exit code; return what it said on standard error."""
    out, error = command.communicate(timeout=240)
    assert command.returncode == code, f"exit {command.returncode}\n{out}\n{error}"
    return error


@pytest.fixture(scope="module")
def place(servers_there: None, seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    seaweed.restart((ADMIN,))  # whatever a test before has done to it
    folder = tmp_path_factory.mktemp("monitoring")
    bucket = "s3://test-bucket/monitoring"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"COLUMNS": "200", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    environment |= seaweed.environment() | {"HYDRAMIX_STORE": json.dumps({"cache": str(folder / "cache")})}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        images = Store(data_of(tmp_path_factory.getbasetemp()))
        for path in images.list():
            Store(bucket).put(f"set/{path}", images.read(path))
        with ray_head() as (address, ray_targets, head), watching(folder / "watch", ray_targets) as watch:
            place = Place(folder, bucket, environment | watch.environment, watch, address, head)
            try:
                yield place
            finally:
                for command in place.commands:
                    if command.poll() is None:
                        tiny.kill(command.pid)
                    command.communicate()


@pytest.fixture(scope="module")
def healthy(place: Place) -> Place:
    """A generator and a classifier from a bucket, a generator over two workers, and a small sweep, all of them well."""
    generator = place.settings("generator", generator=GENERATOR | {"images": 1000}, validation=0.2)
    two = place.settings("two", generator=GENERATOR | {"images": 600}, **TWO)
    classifier = place.settings("classifier", classifier=tiny.PILOT["classifier"] | {"images": 1500}, validation=0.2)
    both = place.start("train", "generator", two, "--address", place.ray, "--out", place.folder / "two")
    ended(place.start("train", "generator", generator, "--out", f"{place.bucket}/generator"))
    ended(both)
    mixes = f"generator_run={place.bucket}/generator"
    ended(place.start("train", "classifier", classifier, mixes, "--out", f"{place.bucket}/classifier"))
    sweep = place.folder / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(tiny.PILOT | {"data": [f"{place.bucket}/set"], "seeds": [0]}))
    ended(place.start("sweep", sweep, "--out", place.folder / "sweep"))
    return place


def test_healthy_runs_wake_nobody(healthy: Place) -> None:
    assert healthy.watch.fired() == []
    assert {one["labels"]["severity"] for one in healthy.watch.webhook.received} <= {"info"}


@pytest.mark.parametrize("board", ["run", "sweep", "data", "cluster"])
def test_every_panel_is_fed(healthy: Place, board: str) -> None:
    unfed, count = empty(healthy, board)
    assert count
    known = {(title, part): reason for (of, title, part), reason in UNFED.items() if of == board}
    # What faults alone feed may be fed by an alert of severity info too.
    for title, expr in unfed:
        assert any(title == panel and part in expr for panel, part in known), f"{title}: {expr}"
    for (panel, part), reason in known.items():
        assert reason == WELL or any(title == panel and part in expr for title, expr in unfed), panel


def empty(place: Place, board: str) -> tuple[list[tuple[str, str]], int]:
    """Return the queries of a board, with their panels, that have had no value at any time, and how many there are."""
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / f"{board}.json").read_text())
    found = queries(dashboard, {"__rate_interval": "15s", "__interval": "1s", "__range": "2m"})
    unfed = []
    for title, expr in found:
        series = place.watch.prometheus.history(expr, place.watch.began, time.time(), 2.0)
        if not any(math.isfinite(value) for _, values in series for value in values):
            unfed.append((title, expr))
    return unfed, len(found)


def test_faults_wake_somebody(healthy: Place, seaweed: Seaweed) -> None:
    """A loss that is not finite, a killed worker and a store that is away, all at once."""
    place, told = healthy, healthy.watch.webhook.told
    lost = place.folder / "lost"
    two = place.settings("lost", generator=GENERATOR | {"images": 1500}, **TWO)
    both = place.start("train", "generator", two, "--address", place.ray, "--out", lost)
    tiny.wait_for(lambda: any(lost.glob("checkpoints/*/manifest.json")))
    workers = [pid for pid in tiny.descendants(place.head) if "RayTrainWorker" in command_of(pid)]
    assert workers, "the training was over before one of its workers could be killed"
    tiny.kill(workers[-1])
    with FaultProxy(seaweed.endpoint) as proxy:
        out = f"{place.bucket}/away"
        settings = place.settings("away", generator=GENERATOR | {"images": 3000})
        # As everything else: the patience of 60 s, divided.
        store = json.loads(place.environment["HYDRAMIX_STORE"]) | {"patience": 60 / FACTOR}
        proxied = {"AWS_ENDPOINT_URL": proxy.endpoint, "HYDRAMIX_STORE": json.dumps(store)}
        away = place.start("train", "generator", settings, "--out", out, **proxied)
        tiny.wait_for(lambda: any(path.endswith("manifest.json") for path in Store(out).list("checkpoints")))
        proxy.faults.unavailable = 1.0
        settings = place.settings("nan", classifier=tiny.PILOT["classifier"] | {"optimizer": {"lr": 1e12}})
        said = ended(place.start("train", "classifier", settings, "--out", place.folder / "nan"), code=1)
        assert "is not finite" in said
        assert "gave no good answer" in ended(away, code=2)
    for alert, labels in (
        ("HydramixNonFiniteStop", {"run": "nan", "severity": "critical"}),
        ("HydramixStoreGivenUp", {"run": "away", "severity": "critical"}),
        ("HydramixProcessLost", {"run": "lost", "severity": "warning"}),
        ("HydramixWorkersRestarting", {"run": "lost", "severity": "warning"}),
    ):
        tiny.wait_for(lambda: bool(told(alert, **labels)))  # noqa: B023 - asked at once
    assert "going on with 2 workers" in ended(both)
    assert not told("HydramixTrainingFailed", run="lost")  # it went on
    (message, *_) = told("HydramixNonFiniteStop")
    assert message["annotations"]["summary"] == "nan: a classifier stopped, its loss was not finite"
    assert message["annotations"]["runbook_url"] == "docs/runbook.md#hydramixnonfinitestop"
    assert "Firing alerts" not in dict(empty(place, "run")[0])
