"""A real Prometheus and Alertmanager that watch trainings of tests, with all durations of rules divided by a factor.

What stands as minutes in the committed rules is seconds here; a training's own beat of two seconds is not changed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from answering import Answering, Answers
from servers import Alertmanager, Prometheus, alertmanager_config, free_port, prometheus_files

from hydramix_dist.config.metrics import VARIABLE

MONITORING = Path(__file__).resolve().parents[1] / "monitoring"
FACTOR = 20.0  # [5m] is 15 s, in which a process tells of itself seven times; a scrape each 0.75 s


class Webhook(Answering):
    """What is woken: takes Alertmanager's messages on a port of its own while the context lasts."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(Answers):
            def do_POST(self) -> None:
                received.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
                self.answer(200)

        super().__init__(Handler)

    def told(self, alert: str, **labels: str) -> list[dict[str, Any]]:
        """Return the messages of an alert that fires, with these labels."""
        wanted = {"alertname": alert, **labels}
        return [one for one in self.received if one["status"] == "firing" and wanted.items() <= one["labels"].items()]


class Watch:
    """Prometheus, Alertmanager and who hears of it; `environment` has trainings export where it looks."""

    def __init__(self, prometheus: Prometheus, webhook: Webhook, environment: Mapping[str, str]) -> None:
        self.prometheus, self.webhook, self.environment = prometheus, webhook, environment
        self.began = time.time()

    def fired(self) -> list[dict[str, str]]:
        """Return the labels of all warnings and critical alerts that have fired so far."""
        wanted = 'ALERTS{alertstate="firing", severity=~"warning|critical"}'
        return [labels for labels, _ in self.prometheus.history(wanted, self.began, time.time(), 1.0)]


def prompt(config: str) -> str:
    """Return a configuration of Alertmanager that groups for a tenth of a second."""
    tree = yaml.safe_load(config)
    for route in (tree["route"], *tree["route"].get("routes", ())):
        route |= {"group_wait": "100ms", "group_interval": "500ms"}
    return yaml.safe_dump(tree)


@contextlib.contextmanager
def watching(folder: Path, ray_targets: Path | None = None) -> Iterator[Watch]:
    """Yield a watch over all that exports with its environment, and over Ray where its file of targets is named."""
    targets = folder / "targets"
    port = free_port()
    settings = {"port": port, "targets": str(targets), "expire": 300 / FACTOR}
    with contextlib.ExitStack() as stack:
        webhook = stack.enter_context(Webhook())
        for name in ("alertmanager", "prometheus"):
            (folder / name).mkdir(parents=True)
        manager = stack.enter_context(Alertmanager(folder / "alertmanager", prompt(alertmanager_config(webhook.url))))
        ray = ray_targets or folder / "none.json"
        files = prometheus_files(targets=targets, ray=ray, alertmanager=manager.address, factor=FACTOR)
        prometheus = stack.enter_context(Prometheus(folder / "prometheus", files))
        yield Watch(prometheus, webhook, {VARIABLE: json.dumps(settings)})


@contextlib.contextmanager
def ray_head(cpus: int = 2) -> Iterator[tuple[str, Path, int]]:
    """Yield the address of a Ray with dashboard and metrics, the file that names its targets, and its process."""
    with tempfile.TemporaryDirectory(prefix="hx-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {"RAY_TMPDIR": folder, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        port = free_port()
        options = [
            f"--port={port}",
            f"--temp-dir={folder}/ray",
            f"--num-cpus={cpus}",
            "--object-store-memory=104857600",
        ]
        options += [
            f"--dashboard-port={free_port()}",
            f"--metrics-export-port={free_port()}",
            "--include-dashboard=true",
        ]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
        log = Path(folder) / "log.txt"
        with log.open("wb") as file:
            head = subprocess.Popen(ray, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            targets = Path(folder) / "ray" / "prom_metrics_service_discovery.json"
            end = time.monotonic() + 90
            while not targets.exists():
                assert head.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield f"{socket.gethostbyname(socket.gethostname())}:{port}", targets, head.pid
        finally:
            for pid in (*tiny.descendants(head.pid), head.pid):  # in order they take 20 s
                with contextlib.suppress(ProcessLookupError):
                    tiny.kill(pid)
            head.wait()


@pytest.fixture(scope="module")
def servers_there() -> None:
    """Skip where Prometheus or Alertmanager is not installed."""
    from servers import find_program

    try:
        find_program(("prometheus",), "prometheus")
        find_program(("prometheus-alertmanager", "alertmanager"), "prometheus-alertmanager")
    except RuntimeError as error:
        pytest.skip(str(error))
