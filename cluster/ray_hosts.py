"""A Ray cluster with token authentication and an S3 server, each on hosts of its own (`hosts.py`).

What runs on a host finds there all that it needs in its environment, as on a machine that somebody has set up: the
cluster's token, the store's credentials, a cache and an exporter of its own.
"""

import json
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hosts import Host, HostsError, Network, Process
from seaweed import Seaweed

PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 9464
START_SECONDS = 120.0  # for a head or a node to be up; about 10 on an idle machine
LEAST_MEMORY = 100 * 2**20  # for objects of Ray
# A host that is silent is lost after 3 s, not after a minute, and a link that is cut for longer loses its host.
QUICK_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Head(NamedTuple):
    """A Ray head that answers: the host, its command, and where nodes and drivers, and where HTTP clients, meet it."""

    host: Host
    process: Process
    address: str
    dashboard: str
    token: Path

    def environment(self) -> dict[str, str]:
        """Return the variables by which a client on this machine is let in."""
        return _authenticated(self.token)

    def ask(self, path: str) -> Any:
        """Return what the dashboard answers to a GET, as JSON. Raises OSError where it does not answer."""
        request = urllib.request.Request(self.dashboard + path)
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as answer:
            return json.load(answer)

    def nodes(self, address: str) -> list[str]:
        """Return the ids of the nodes at an address that the cluster takes for alive."""
        found = self.ask("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        return [node["node_id"] for node in found if node["state"] == "ALIVE" and node["node_ip"] == address]


def equip(network: Network, server: Seaweed | None = None, **variables: str) -> None:
    """Give all hosts of a network what commands there need: token, store, cache, exporter and `variables`."""
    token = network.folder / "ray-token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    for host in network.hosts.values():
        store = {"cache": str(host.folder / "cache")}
        metrics = {"port": METRICS_PORT, "host": "0.0.0.0", "targets": str(host.folder / "targets")}
        own = {"HYDRAMIX_STORE": json.dumps(store), "HYDRAMIX_METRICS": json.dumps(metrics)}
        nowhere = {name: str(host.folder / "no-aws") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
        host.environment |= own | nowhere | _authenticated(token) | (server.environment() if server else {}) | variables


def start_seaweed(host: Host, **options: Any) -> Seaweed:
    """Return an S3 server that serves on a host, with `options` of `Seaweed`; it ends with the host."""
    server = Seaweed(host.folder / "seaweed", address=host.address, popen=host.start, **options)
    server.start()
    return server


def start_ray_head(
    host: Host, cpus: float = 0, health: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Head:
    """Return the head of a new cluster on an equipped host, with dashboard and metrics, once it answers.

    `health` are Ray's settings of health checks; `options` go to `ray start`. Raises HostsError where it does not come.
    """
    log = host.folder / "ray-head.log"
    ports = [f"--port={PORT}", "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
    command = [*_ray_start(host, cpus), "--head", *ports, *options]
    process = host.start(command, env=health, log=log)
    token = Path(host.environment["RAY_AUTH_TOKEN_PATH"])
    dashboard = f"http://{host.address}:{DASHBOARD_PORT}"
    head = Head(host, process, f"{host.address}:{PORT}", dashboard, token)
    _wait_for(head, host.address, process, log)
    return head


def start_ray_worker(
    host: Host, head: Head, cpus: float = 1, options: Sequence[str] = (), *, wait: bool = True
) -> Process:
    """Return the command that makes an equipped host a node of the cluster, once the node is alive, or at once."""
    log = host.folder / "ray-node.log"
    process = host.start([*_ray_start(host, cpus), f"--address={head.address}", *options], log=log)
    if wait:
        wait_for_node(host, head, process)
    return process


def wait_for_node(host: Host, head: Head, process: Process, before: str | None = None) -> None:
    """Wait until a host is a node that is alive, another one than `before`. Raises HostsError where it does not come.

    Of a host that falls silent and is back at once the cluster still takes the node before for alive.
    """
    _wait_for(head, host.address, process, host.folder / "ray-node.log", before)


def _ray_start(host: Host, cpus: float) -> list[str]:
    # --block: the command lives as long as Ray does, and what dies of Ray takes the rest with it.
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    return [*ray, f"--node-ip-address={host.address}", f"--num-cpus={cpus:g}", f"--object-store-memory={LEAST_MEMORY}"]


def _authenticated(token: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}


def _wait_for(head: Head, address: str, process: Process, log: Path, before: str | None = None) -> None:
    end, last = time.monotonic() + START_SECONDS, ""
    while True:
        try:
            if any(node != before for node in head.nodes(address)):
                return
        except (OSError, ValueError, KeyError, TypeError) as error:
            last = str(error)
        ended = process.poll() is not None
        if ended or time.monotonic() > end:
            what = "ended at its start" if ended else f"is not up after {START_SECONDS:.0f} s ({last})"
            raise HostsError(f"Ray on {address} {what}; the end of {log}:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
