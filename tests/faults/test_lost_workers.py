"""Workers, nodes and drivers killed while a training runs over Ray: it ends with the weights it would have had.

One Ray cluster on this machine serves all tests: a head without CPUs, where the driver is, and nodes of one CPU each.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from ray_jobs import Job

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.checkpoint.commit import committed, images_of
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.account import WorkersLostError
from hydramix_dist.orchestration.launch import launch
from hydramix_dist.orchestration.preflight import check_address
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.store import Store

# Ray's own code, when it imports its parts for data.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

TESTS = Path(__file__).parents[1]
TWO = DistributedSettings(workers=2, placement="spread", deepspeed="zero2")
MEMORY = 80 * 2**20  # about the least that Ray takes for a node's objects
# A node's death is seen after 2 s instead of 15.
QUICKLY = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


class Nodes:
    """A cluster whose nodes, beside the head, come and go."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def have(self, count: int) -> None:
        """Bring the number of nodes to `count`."""
        while len(self._nodes) < count:
            node = self._cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            self._nodes[node.node_id] = node
        while len(self._nodes) > count:
            self.lose(next(iter(self._nodes)))
        self._cluster.wait_for_nodes()

    def lose(self, node_id: str) -> None:
        """Kill all processes of a node."""
        self._cluster.remove_node(self._nodes.pop(node_id), allow_graceful=False)

    def drain(self, node_id: str) -> None:
        """Announce that a node will be taken away in a minute, as a cloud does."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "wanted elsewhere"]
        how = ["--address", self.address, "--node-id", node_id, *reason, "--deadline-remaining-seconds", "60"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *how], check=True, timeout=60)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        from ray.cluster_utils import Cluster

        with tempfile.TemporaryDirectory(
            dir="/tmp", ignore_cleanup_errors=True
        ) as folder:  # its sockets' paths are short
            head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "temp_dir": folder}
            # Ray writes the head's address below its default folder, which it makes for the default session alone.
            patch.setenv("RAY_TMPDIR", folder)
            (Path(folder) / "ray").mkdir()
            cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": QUICKLY})
            try:
                yield Nodes(cluster)
            finally:
                cluster.shutdown()


def run(
    job: Job,
    nodes: Nodes,
    distributed: DistributedSettings = TWO,
    should_stop: Callable[[], bool] = tiny.never,
    progress: Callable[[int, int], None] = lambda images, total: None,
) -> dict[str, Any]:
    with ray_session(distributed, job.runtime, nodes.address) as session:
        return launch(job, distributed, session, progress, should_stop)


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The digests of the weights, and of the optimizer's moments, that two workers come to, by kind of training."""

    @lru_cache
    def of(kind: str) -> dict[str, str]:
        nodes.have(2)
        job = Job(kind, tmp_path_factory.mktemp("undisturbed"))
        seen: list[tuple[int, int]] = []
        result = run(job, nodes, progress=lambda *report: seen.append(report))
        assert result["images_seen"] == 48 and seen[-1] == (48, 48)
        assert sorted((begun.rank, begun.of) for begun in job.attempts) == [(0, 2), (1, 2)]
        assert len({begun.node for begun in job.attempts}) == 2, "spread"
        return weights(job)

    return of


def weights(job: Job) -> dict[str, str]:
    checkpoint = load_newest(Store(job.folder))
    assert checkpoint is not None and checkpoint.images == 48, "each sample counts once"
    return {
        f"{name} {what}": weights_digest(tensors)
        for name, state in checkpoint.engines.items()
        for what, tensors in {"weights": state.weights, **state.moments}.items()
    }


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "hydramix")


def beside(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_worker_killed_in_mid_step(
    nodes: Nodes, undisturbed: Callable[[str], dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.have(2)
    job = Job("generator", tmp_path, "killed")
    run(job, nodes)
    assert weights(job) == undisturbed(job.kind)
    assert f"worker 1 of 2 (process {job.victim.process} on " in said(caplog) and ") was killed" in said(caplog)
    assert Path(said(caplog).partition("(log: ")[2].partition(")")[0]).is_file()
    assert "going on with 2 workers, from the checkpoint after 16 images" in said(caplog)


@pytest.mark.full
def test_worker_killed_once_too_often(nodes: Nodes, tmp_path: Path) -> None:
    nodes.have(2)
    job = Job("classifier", tmp_path, "killed")
    with pytest.raises(
        WorkersLostError, match=r"worker 1 of 2 .* was killed.* given up, for distributed.max_failures is 0"
    ):
        run(job, nodes, TWO.model_copy(update={"max_failures": 0}))
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "was killed" in status["reason"]
    assert images_of(committed(Store(job.folder))[-1]) == 16, "the last checkpoint stands"


@pytest.mark.full
def test_worker_terminated(
    nodes: Nodes, undisturbed: Callable[[str], dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It saves before it leaves, and that is no failure."""
    nodes.have(2)
    job = Job("classifier", tmp_path, "terminated")
    run(job, nodes, TWO.model_copy(update={"max_failures": 0}))
    assert weights(job) == undisturbed(job.kind)
    assert "was sent SIGTERM" in said(caplog)
    assert "going on with 2 workers, from the checkpoint after 24 images" in said(caplog), "the step of the signal"


@pytest.mark.full  # tests/cluster loses whole hosts
def test_node_lost(
    nodes: Nodes, undisturbed: Callable[[str], dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one takes its place."""
    nodes.have(3)
    job = Job("generator", tmp_path, "waits")
    losing = beside(lambda: nodes.lose(job.victim.node))
    run(job, nodes)
    losing.join()
    assert weights(job) == undisturbed(job.kind)
    assert "the node of worker 1, " in said(caplog) and ", was lost" in said(caplog)
    assert "going on with 2 workers, from the checkpoint after 16 images" in said(caplog)


@pytest.mark.full
def test_node_lost_for_good(nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An elastic training goes on with the worker that is left."""
    nodes.have(2)
    job = Job("generator", tmp_path / "run", "waits")
    job.folder.mkdir()
    losing = beside(lambda: nodes.lose(job.victim.node))
    run(job, nodes, TWO.model_copy(update={"min_workers": 1}))
    losing.join()
    tiny.run_generator(tmp_path / "alone")
    now, then = (load_newest(Store(folder)) for folder in (job.folder, tmp_path / "alone"))
    assert now is not None and then is not None
    tiny.assert_near(now.engines, then.engines)
    assert [begun.of for begun in job.attempts] == [2, 2, 1]
    assert "going on with 1 worker instead of 2, from the checkpoint after 16 images" in said(caplog)
    assert "workers was 2, now 1" in said(caplog), "a worker's own warning"


@pytest.mark.full
def test_node_about_to_go(
    nodes: Nodes, undisturbed: Callable[[str], dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training is saved and moves away before."""
    nodes.have(3)
    job = Job("classifier", tmp_path, "waits")
    draining = beside(lambda: nodes.drain(job.victim.node))
    run(job, nodes, TWO.model_copy(update={"max_failures": 0}))
    draining.join()
    nodes.lose(job.victim.node)
    assert weights(job) == undisturbed(job.kind)
    assert "its node is about to go" in said(caplog)
    assert "going on with 2 workers, from the checkpoint after 24 images" in said(caplog)


@pytest.mark.full
def test_stopped_and_gone_on_with(nodes: Nodes, undisturbed: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    nodes.have(2)
    job = Job("classifier", tmp_path, "waits", rank=0)
    with pytest.raises(Interrupted, match="after 24 images"):
        run(job, nodes, should_stop=(tmp_path / "meets").exists)
    run(job, nodes)
    assert weights(job) == undisturbed(job.kind)


def test_bad_input_on_one_worker_ends_all(nodes: Nodes, tmp_path: Path) -> None:
    """Though the others wait for that one, and Ray would begin anew."""
    nodes.have(2)
    job = Job("classifier", tmp_path, "bad input")
    with pytest.raises(UserError, match=r"^no such luck$"):
        run(job, nodes)
    assert len(job.attempts) == 2


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ray_jobs import Job, drive
drive(Job("generator", Path(sys.argv[2]), "waits", rank=0))
"""


@pytest.mark.full  # tests/cluster loses the head with the driver on it
def test_driver_killed_and_the_same_command_again(
    undisturbed: Callable[[str], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command has a private Ray: it ends with its driver, hears this machine alone, and asks for a token."""
    job = Job("generator", tmp_path / "run", "waits", rank=0)
    job.folder.mkdir()
    command = [sys.executable, "-c", DRIVER, str(TESTS), str(job.folder)]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            worker = job.victim.process
            family = psutil.Process(driver.pid).children(recursive=True)
            abroad = {process.pid for process in family if any(not at_home(port) for port in listening(process))}
            assert abroad <= {worker}, "the meeting place of torch.distributed, with rank 0"
            gcs = next(process for process in family if process.name() == "gcs_server")
            token = Path(gcs.environ()["RAY_AUTH_TOKEN_PATH"])
            assert token.stat().st_mode & 0o777 == 0o600
            # Else Ray takes 127.0.0.1 for this machine's address in its network.
            monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            with pytest.raises(UserError, match="another token"):
                check_address(f"127.0.0.1:{listening(gcs)[0].port}")
        finally:
            driver.send_signal(signal.SIGKILL)
        assert driver.communicate()[0] == ""
    # Ray's two agents of a node, which do not train, take a minute.
    _, alive = psutil.wait_procs([process for process in family if not process.name().endswith("Agent")], timeout=10)
    assert not alive, "nobody writes into the run folder any more"
    shutil.rmtree(token.parent)
    assert images_of(committed(Store(job.folder))[-1]) == 16

    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert again.stdout == ""
    assert weights(job) == undisturbed(job.kind)
    assert not (tmp_path / "home").exists(), "nothing in ~/.ray"


def listening(process: psutil.Process) -> list[Any]:
    """Return the addresses at which a process takes connections."""
    connections = process.net_connections("tcp")
    return [connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN]


def at_home(port: Any) -> bool:
    return str(port.ip).removeprefix("::ffff:").startswith("127.")
