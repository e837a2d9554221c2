"""What the driver of a training tells the user of its workers: who was lost, and how it goes on."""

import logging
import time

from hydramix_dist.checkpoint.commit import committed, images_of
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.orchestration.desk import Losses, News, Worker
from hydramix_dist.store import Store

NODES_SECONDS = 1.0  # between two questions to Ray, which nodes are alive
WORD_SECONDS = 60.0  # between two words on waiting for workers
PATIENCE_SECONDS = 1800.0  # without workers: in that time a cluster may bring lost nodes back
_log = logging.getLogger("hydramix")


class WorkersLostError(RuntimeError):
    """Workers failed more often than the settings allow, or none could be had; the last checkpoint stands."""


class Account:
    """The workers of one training, as they come and go; each change is logged as a warning."""

    def __init__(self, folder: Store, distributed: DistributedSettings) -> None:
        """Take the training's run folder, for its checkpoints, and how many workers it wants."""
        self.losses = ""  # the last ones, in words
        self.restarts = 0  # how often workers have come again after a loss
        self._lost = False
        self._folder, self._distributed = folder, distributed
        self._crew: tuple[Worker, ...] = ()  # the last one that was complete
        self._dead_nodes: set[str] = set()
        self._asked_nodes = self._spoke = self._idle_since = time.monotonic()

    def take(self, news: News) -> None:
        """Say what is new. Raises WorkersLostError where there were no workers for too long."""
        for happening in news.happened:
            if isinstance(happening, str):
                _log.warning("%s", happening)
            elif isinstance(happening, Losses):
                self._say_losses(happening)
            else:
                self._say_crew(happening)
        self._say_dead_nodes()
        self._say_waiting(news.working)

    def _say_losses(self, losses: Losses) -> None:
        self._lost = True
        self.losses = "; ".join(f"{_name(rank, worker)} {what}" for rank, worker, what in losses.told)
        logs = ", ".join(worker.log for _, worker, _ in losses.told if worker is not None)
        _log.warning("%s%s", self.losses, f" (log: {logs})" if logs else "")

    def _say_crew(self, crew: tuple[Worker, ...]) -> None:
        before, self._crew = len(self._crew), crew
        if not before:
            return
        self.restarts += self._lost  # else their number was changed, though none was lost
        self._lost = False
        folders = committed(self._folder)
        _log.warning(
            "going on with %s%s, from %s",
            workers(len(crew)),
            f" instead of {before}" if before != len(crew) else "",
            f"the checkpoint after {images_of(folders[-1])} images" if folders else "the start",
        )

    def _say_dead_nodes(self) -> None:
        """Say which nodes are dead, which Ray may find seconds after their workers were missed."""
        import ray

        now = time.monotonic()
        if not self._crew or now - self._asked_nodes < NODES_SECONDS:
            return
        self._asked_nodes = now
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for worker in self._crew:
            if worker.node not in alive | self._dead_nodes:
                self._dead_nodes.add(worker.node)
                _log.warning("the node of worker %d, %s, was lost", worker.rank, worker.address)

    def _say_waiting(self, working: bool) -> None:
        now = time.monotonic()
        waited = now - self._idle_since
        wanted = workers(self._distributed.min_workers or self._distributed.workers)
        if working:
            self._spoke = self._idle_since = now
        elif waited > PATIENCE_SECONDS:
            raise WorkersLostError(
                f"no room for {wanted} for {waited / 60:.0f} minutes; the same command goes on from the last checkpoint"
            )
        elif now - self._spoke > WORD_SECONDS:
            self._spoke = now
            _log.warning("waiting for room for %s since %.0f s; Ctrl-C stops", wanted, waited)


def _name(rank: int, worker: Worker | None) -> str:
    if worker is None:  # it never came to work
        return f"worker {rank}"
    return f"worker {rank} of {worker.of} (process {worker.process} on {worker.address})"


def workers(count: int) -> str:
    """Return "1 worker" or "2 workers"."""
    return "1 worker" if count == 1 else f"{count} workers"
