"""Workers, nodes and drivers that are killed while a training runs over Ray: it ends with the weights it would have had.

One Ray cluster of this machine serves all tests: a head without CPUs, where the driver is, and nodes of one CPU each.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from ray_jobs import Job

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.launch import WorkersLostError, launch
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.store import Store

# Ray's own code, when it imports its parts for data.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
TWO = DistributedSettings(workers=2, placement="spread", deepspeed="zero2")
TESTS = Path(__file__).parents[1]


class Nodes:
    """A cluster whose worker nodes come and go."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def have(self, count: int) -> None:
        """Bring the number of nodes to `count`."""
        while len(self._nodes) < count:
            node = self._cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
            self._nodes[node.node_id] = node
        while len(self._nodes) > count:
            self.lose(next(iter(self._nodes)))
        self._cluster.wait_for_nodes()

    def lose(self, node_id: str) -> None:
        """Kill all of a node's processes."""
        self._cluster.remove_node(self._nodes.pop(node_id), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        from ray.cluster_utils import Cluster

        quickly = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
        }
        head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False, "_system_config": quickly}
        cluster = Cluster(initialize_head=True, head_node_args=head)
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
    job.folder.mkdir(exist_ok=True)
    with ray_session(distributed, job.runtime, nodes.address) as session:
        return launch(job, distributed, session, progress, should_stop)


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights that two workers come to."""
    nodes.have(2)
    job = Job("classifier", tmp_path_factory.mktemp("undisturbed") / "run")
    seen: list[tuple[int, int]] = []
    result = run(job, nodes, progress=lambda *report: seen.append(report))
    assert result["images_seen"] == 48 and seen[-1] == (48, 48)
    assert [(rank, of) for rank, of, *_ in sorted(job.attempts)] == [(0, 2), (1, 2)]
    return weights(job)


def weights(job: Job) -> dict[str, str]:
    checkpoint = load_newest(Store(job.folder))
    assert checkpoint is not None and checkpoint.images == 48, "each sample counts once"
    return {name: weights_digest(state.weights) for name, state in checkpoint.engines.items()}


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "hydramix")


def beside(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_worker_killed_in_mid_step(
    nodes: Nodes, undisturbed: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.have(2)
    job = Job("classifier", tmp_path / "run", "killed")
    run(job, nodes)
    assert weights(job) == undisturbed
    assert "worker 1 of 2" in said(caplog) and "was killed" in said(caplog)
    assert "going on with 2 workers, from the checkpoint after 16 images" in said(caplog)


def test_worker_terminated(
    nodes: Nodes, undisturbed: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It saves before it leaves, which is no failure."""
    nodes.have(2)
    job = Job("classifier", tmp_path / "run", "terminated")
    run(job, nodes, TWO.model_copy(update={"max_failures": 0}))
    assert weights(job) == undisturbed
    assert "worker 1 of 2" in said(caplog) and "was sent SIGTERM" in said(caplog)
    assert "from the checkpoint after 24 images" in said(caplog), "the step of the signal"


def test_node_lost(nodes: Nodes, undisturbed: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another node takes its place."""
    nodes.have(3)
    job = Job("classifier", tmp_path / "run", "waits")
    losing = beside(lambda: nodes.lose(job.node_that_waits()))
    run(job, nodes)
    losing.join()
    assert weights(job) == undisturbed
    assert "going on with 2 workers, from the checkpoint after 16 images" in said(caplog)
    assert "node" in said(caplog)


def test_node_lost_for_good(
    nodes: Nodes, undisturbed: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An elastic training goes on with the worker that is left."""
    nodes.have(2)
    job = Job("classifier", tmp_path / "run", "waits")
    losing = beside(lambda: nodes.lose(job.node_that_waits()))
    began = time.monotonic()
    run(job, nodes, TWO.model_copy(update={"min_workers": 1}))
    losing.join()
    print("elastic", time.monotonic() - began)
    assert [of for _, of, *_ in job.attempts] == [2, 2, 1]
    assert "going on with 1 worker instead of 2, from the checkpoint after 16 images" in said(caplog)
