"""One training over several workers: Ray Train starts them, and starts them again when some are lost.

Checkpoints are the training's own, in its run folder: whoever begins there, Ray after a loss or a user who types the
command again, goes on from the newest whole one. Ray stores nothing of its own but an empty marker file.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.errors import Interrupted
from hydramix_dist.orchestration.account import Account, WorkersLostError, workers
from hydramix_dist.orchestration.desk import Desk
from hydramix_dist.orchestration.exporting import counting_failures, exporting
from hydramix_dist.orchestration.ray_session import RaySession
from hydramix_dist.orchestration.tasks import Task
from hydramix_dist.store import Store
from hydramix_dist.store.run import mark_failed
from hydramix_dist.telemetry import Recorder

LOOK_SECONDS = 0.25  # between two looks at the desk


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
    labels, folder = {"run": task.run_name or "", "role": task.kind}, Store(task.folder_url)
    with exporting(labels, ("Workers and disk",), folder) as recorder, counting_failures(recorder):
        return _followed(task, distributed, session, progress, should_stop, recorder)


def _followed(
    task: Task,
    distributed: DistributedSettings,
    session: RaySession,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
    recorder: Recorder,
) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's node: it must not be lost with that of a worker.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
    store = Store(task.folder_url)
    account = Account(store, distributed)
    try:
        run = _in_thread(_trainer(task, distributed, session, desk).fit)
        done = False
        while not done:
            done = _done(run, LOOK_SECONDS)
            stop = should_stop()
            news = ray.get(desk.look.remote(stop))
            if news.progress is not None:
                progress(*news.progress)
            account.take(news)
            recorder.record(0, {"worker_restarts_total": account.restarts})
            if stop and not news.working and news.ending is None:
                raise Interrupted("stopped; the same command goes on from the last checkpoint")
        session.keep_logs = session.keep_logs or bool(account.losses)
        if news.ending is not None:
            raise news.ending
        return _result(run, account, distributed, session)
    except WorkersLostError as lost:
        if store.get("run.json") is not None:
            mark_failed(store, str(lost))
        raise
    finally:
        ray.kill(desk)


def _trainer(task: Task, distributed: DistributedSettings, session: RaySession, desk: Any) -> Any:
    """Return the Ray Train trainer of a task."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from hydramix_dist.orchestration.controller import Reporter, Together
    from hydramix_dist.orchestration.worker import Order, train

    store = Store(task.folder_url)
    marker = f"ray/{store.name}/.validate_storage_marker"
    storage_path, storage_filesystem = store.child("ray").for_ray()
    on_gpu = "GPU" in session.resources
    elastic = distributed.min_workers is not None
    return TorchTrainer(
        train,
        train_loop_config=Order(task, read_deepspeed(distributed.deepspeed), desk, marker, on_gpu),
        torch_config=Together(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(distributed.min_workers, distributed.workers) if elastic else distributed.workers,
            use_gpu=on_gpu,
            resources_per_worker=session.resources,
            placement_strategy=distributed.placement.upper(),
        ),
        run_config=RunConfig(
            name=store.name,
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=FailureConfig(max_failures=distributed.max_failures),
            callbacks=[Reporter(desk)],
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


def _done(future: "Future[Any]", seconds: float) -> bool:
    """Wait for a future, at most so long, and return whether it is done."""
    with contextlib.suppress(TimeoutError):
        future.exception(seconds)
        return True
    return False


def _result(
    run: "Future[Any]", account: Account, distributed: DistributedSettings, session: RaySession
) -> dict[str, Any]:
    """Return what the workers of a run that is done have returned. Raises WorkersLostError where they failed."""
    error = run.exception()
    if error is None:
        result: dict[str, Any] = run.result().return_value
        return result
    session.keep_logs = True
    where = f" (Ray's logs: {session.logs})" if session.logs else ""
    if not account.losses:
        raise WorkersLostError(f"{workers(distributed.workers)} could not be started: {error}{where}") from error
    raise WorkersLostError(
        f"{account.losses}; given up, for distributed.max_failures is {distributed.max_failures}. The same command "
        f"goes on from the last checkpoint{where}"
    ) from error
