"""One training over several workers: Ray Train starts them, and starts them again when some are lost.

Checkpoints are the training's own, in its run folder: whoever begins there, Ray after a loss or a user who types the
command again, goes on from the newest whole one. Ray stores nothing of its own but an empty marker file.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hydramix_dist.checkpoint.commit import committed, images_of
from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.errors import Interrupted
from hydramix_dist.orchestration.desk import Desk, Losses, News, Worker
from hydramix_dist.orchestration.ray_session import RaySession
from hydramix_dist.orchestration.tasks import Task
from hydramix_dist.store import Store

LOOK_SECONDS = 0.25
WORD_SECONDS = 60.0  # between two words on waiting for workers
PATIENCE_SECONDS = 1800.0  # without workers: a cluster may bring lost nodes back in that time
_log = logging.getLogger("hydramix")


class WorkersLostError(RuntimeError):
    """Workers failed more often than the settings allow, or none could be had; the last checkpoint stands."""


def launch(
    task: Task,
    distributed: DistributedSettings,
    session: RaySession,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Return the task's result, carried out by all workers of the settings, begun or gone on with.

    Losses, and what follows on them, are logged as warnings. Raises what the task raises where it would raise that
    again (UserError, NonFiniteLossError), Interrupted after saving when asked to stop, and WorkersLostError.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        run = _in_thread(_trainer(task, distributed, session, desk).fit)
        watch = _Watch(task, distributed, session)
        while not run.done():
            with contextlib.suppress(TimeoutError):
                run.exception(timeout=LOOK_SECONDS)
            stop = should_stop()
            watch.take(ray.get(desk.look.remote(stop)), progress)
            if stop and not watch.working:
                raise Interrupted("stopped; everything so far is saved, the same command goes on from there")
        watch.take(ray.get(desk.look.remote(should_stop())), progress)
        return watch.conclude(run)
    finally:
        ray.kill(desk)


def _trainer(task: Task, distributed: DistributedSettings, session: RaySession, desk: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from hydramix_dist.orchestration import worker

    on_gpu = "GPU" in session.resources
    elastic = distributed.min_workers is not None
    store = Store(task.folder_url)
    order = worker.Order(
        task, read_deepspeed(distributed.deepspeed), desk, marker=f"ray/{store.name}/.validate_storage_marker"
    )
    return TorchTrainer(
        worker.train,
        train_loop_config=order,
        torch_config=worker.Together(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(distributed.min_workers, distributed.workers) if elastic else distributed.workers,
            use_gpu=on_gpu,
            resources_per_worker=session.resources,
            placement_strategy=distributed.placement.upper(),
        ),
        run_config=RunConfig(
            name=store.name,
            storage_path=store.path("ray"),
            failure_config=FailureConfig(max_failures=distributed.max_failures),
            callbacks=[worker.Watch(desk)],
        ),
    )


def _in_thread(function: Callable[[], Any]) -> "Future[Any]":
    """Return the coming result of a call that is made in a thread; the process does not wait for it at its end."""
    future: Future[Any] = Future()

    def body() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


class _Watch:
    """What the driver knows of a running training, and says of it."""

    def __init__(self, task: Task, distributed: DistributedSettings, session: RaySession) -> None:
        self._task, self._distributed, self._session = task, distributed, session
        self._crew: tuple[Worker, ...] = ()  # the last that was complete
        self._gone: set[str] = set()  # nodes that were said to be lost
        self._losses = ""
        self._ending: Exception | None = None
        self._spoke = self._idle_since = time.monotonic()
        self.working = False

    def take(self, news: News, progress: Callable[[int, int], None]) -> None:
        """Take news, say them, and raise WorkersLostError where no worker has come for too long."""
        self.working, self._ending = news.working, news.ending
        if news.progress is not None:
            progress(*news.progress)
        for happening in news.happened:
            if isinstance(happening, str):
                _log.warning("%s", happening)
            elif isinstance(happening, Losses):
                self._say_losses(happening)
            else:
                self._say_crew(happening)
        self._say_lost_nodes()
        self._say_waiting()

    def conclude(self, run: "Future[Any]") -> dict[str, Any]:
        """Return the result of a run that is done, or raise its error."""
        error = run.exception()
        if error is None:
            result: dict[str, Any] = run.result().return_value
            return result
        if self._ending is not None:
            raise self._ending
        self._session.keep_logs = True
        where = f" (Ray's logs: {self._session.logs})" if self._session.logs else ""
        if not self._losses:
            raise WorkersLostError(f"{_workers(self._needed)} could not be started: {error}{where}") from error
        raise WorkersLostError(
            f"{self._losses}; given up, for distributed.max_failures is {self._distributed.max_failures}. The same "
            f"command goes on from the last checkpoint{where}"
        ) from error

    def _say_losses(self, losses: Losses) -> None:
        self._session.keep_logs = True
        texts = []
        for rank, worker, what in losses.told:
            who = f"worker {rank}" if worker is None else _who(worker)
            texts.append(f"{who} {what}" + ("" if worker is None else f" (log: {worker.log} on {worker.address})"))
        self._losses = "; ".join(texts)
        self._idle_since = time.monotonic()
        _log.warning("%s", self._losses)

    def _say_crew(self, crew: tuple[Worker, ...]) -> None:
        before, self._crew = len(self._crew), crew
        if before:
            folders = committed(Store(self._task.folder_url))
            _log.warning(
                "going on with %s%s, from %s",
                _workers(len(crew)),
                f" instead of {before}" if before != len(crew) else "",
                f"the checkpoint after {images_of(folders[-1])} images" if folders else "the start",
            )

    def _say_lost_nodes(self) -> None:
        import ray

        if self._working_on is 
    def _say_waiting(self) -> None:
        now = time.monotonic()
        if self.working:
            self._spoke = self._idle_since = now
        elif now - self._idle_since > PATIENCE_SECONDS:
            raise WorkersLostError(
                f"no {_workers(self._needed)} to be had for {PATIENCE_SECONDS / 60:.0f} minutes; the same command goes "
                "on from the last checkpoint"
            )
        elif now - self._spoke > WORD_SECONDS:
            self._spoke = now
            _log.warning("waiting for %s since %.0f s (Ctrl-C stops)", _workers(self._needed), now - self._idle_since)

    @property
    def _needed(self) -> int:
        return self._distributed.min_workers or self._distributed.workers


def _who(worker: Worker) -> str:
    return f"worker {worker.rank} of {worker.of} (process {worker.process} on {worker.address})"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
