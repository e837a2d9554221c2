"""`ray up cluster/local.yaml` as it is, over ssh, on three hosts: all come, the head does no work, metrics and token.

Setting the nodes up is left out, for that needs the package index; they have the environment of these tests.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Host, HostsError, Network

from hydramix_dist.cli.exporter import DEFAULT_PORT

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
PATIENCE = 180.0

# A home folder of the host's own, into which ssh leads.
SSHD = """
set -e
sed "s#:/root:#:$1/home:#" /etc/passwd > "$1/passwd"
mount --bind "$1/passwd" /etc/passwd
mkdir -p "$1/home" /run/sshd
ln -s "$2" "$1/home/hydramix-venv"
exec /usr/sbin/sshd -D -e -f "$3"
"""

pytestmark = [pytest.mark.full, pytest.mark.service, pytest.mark.timeout(900)]


class Launched:
    """A cluster that Ray's launcher has started from a copy of cluster/local.yaml."""

    def __init__(self, hosts: list[Host], file: Path, token: Path) -> None:
        self.hosts, self.file, self._token = hosts, file, token

    def ray(self, *words: str) -> str:
        """Return what a command of the launcher, typed on this machine, says."""
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token), "RAY_USAGE_STATS_ENABLED": "0"}
        how: dict[str, Any] = {"cwd": ROOT, "env": os.environ | secret, "capture_output": True, "text": True}
        done = subprocess.run([RAY, *words], check=False, timeout=PATIENCE, **how)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def on_head(self, command: str) -> str:
        return self.ray("exec", str(self.file), f". ~/hydramix/cluster/node/env.sh; {command}")


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    for program, package in (("sshd", "openssh-server"), ("ssh-keygen", "openssh-client"), ("rsync", "rsync")):
        if shutil.which(program) is None and not Path(f"/usr/sbin/{program}").exists():
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    for key in ("key", "hostkey"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/hostkey\nAuthorizedKeysFile {tmp_path}/key.pub\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\nMaxSessions 50\n"
    )
    token = tmp_path / "hydramix-token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Network(tmp_path / "hosts"))
        except HostsError as error:
            pytest.skip(str(error))
        hosts = [network.add(name) for name in ("first", "second", "third")]
        for host in hosts:
            folder = tmp_path / host.name
            folder.mkdir()
            words = ["bash", "-c", SSHD, "sshd", str(folder), sys.prefix, str(tmp_path / "sshd_config")]
            host.start(words, log=folder / "sshd.log")
        file = tmp_path / "local.yaml"
        file.write_text(yaml.safe_dump(filled(hosts, tmp_path)), encoding="utf-8")
        yield Launched(hosts, file, token)
        for state in Path("/tmp/ray").glob(f"cluster-hydramix-{os.getpid()}.*"):  # the launcher's own book of nodes
            state.unlink()


def filled(hosts: list[Host], folder: Path) -> dict[str, Any]:
    """Return the committed file with what is to be filled in, but for setting up."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text(encoding="utf-8"))
    tree["cluster_name"] = f"hydramix-{os.getpid()}"
    tree["provider"] |= {"head_ip": hosts[0].address, "worker_ips": [host.address for host in hosts[1:]]}
    tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    tree["file_mounts"]["~/hydramix-token"] = str(folder / "hydramix-token")
    tree["setup_commands"] = []
    return tree


def read(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_all_machines_join_and_the_head_does_no_work(launched: Launched) -> None:
    head, *workers = launched.hosts
    launched.ray("up", "-y", "--no-config-cache", str(launched.file))
    end = time.monotonic() + PATIENCE
    nodes: list[dict[str, Any]] = []
    while len(nodes) < len(launched.hosts):
        assert time.monotonic() < end, launched.on_head("ray status")
        said = launched.on_head("ray list nodes --format json --detail 2>/dev/null")
        nodes = [
            node for node in json.loads(said[said.index("[{") : said.rindex("}]") + 2]) if node["state"] == "ALIVE"
        ]
    cpus = {node["node_ip"]: node["resources_total"].get("CPU", 0) for node in nodes}
    assert cpus.keys() == {host.address for host in launched.hosts}
    assert cpus[head.address] == 0 and all(cpus[host.address] > 0 for host in workers)
    for host in launched.hosts:
        assert "hydramix_exporter_sources" in read(f"http://{host.address}:{DEFAULT_PORT}/metrics")
        assert "ray_" in read(f"http://{host.address}:8080/metrics")
    with pytest.raises(OSError, match="refused"):  # from outside there is no dashboard, and inside none without a token
        read(f"http://{head.address}:8265/api/version")
    asked = "curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8265/api/jobs/"
    assert re.search("^401", launched.on_head(asked), re.MULTILINE)  # what the launcher says stands before or behind
    submitted = "ray job submit --address http://127.0.0.1:8265 --entrypoint-num-cpus 1 -- hostname"
    said = launched.on_head(submitted)
    assert "succeeded" in said and any(f"\n{host.name}" in said for host in workers)
    launched.ray("down", "-y", str(launched.file))
