"""One training by itself: its images, its subset, its run folder; in this process or over several workers."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.load import dump
from hydramix_dist.config.schema import ArmSettings, RuntimeSettings
from hydramix_dist.config.training import ClassifierTrainingSettings, GeneratorTrainingSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.models.trained import load_generator
from hydramix_dist.orchestration.account import WorkersLostError, workers
from hydramix_dist.orchestration.display import Display
from hydramix_dist.orchestration.images import check_source, open_data
from hydramix_dist.orchestration.launch import launch
from hydramix_dist.orchestration.plan import choose_test_rows, draw_rows
from hydramix_dist.orchestration.pool import Ended, Stop
from hydramix_dist.orchestration.preflight import check_address, check_this_machine
from hydramix_dist.orchestration.ray_session import RaySession, ray_session
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask, Task
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
from hydramix_dist.store.run import check_same_run, read_json, read_run, read_status
from hydramix_dist.training.classifier import classifier_length
from hydramix_dist.training.environment import warn_of_slow_bf16
from hydramix_dist.training.generator import generator_key, generator_length
from hydramix_dist.training.length import Length
from hydramix_dist.training.loop import NonFiniteLossError, prepare_device

TrainSettings = GeneratorTrainingSettings | ClassifierTrainingSettings


def train(settings: TrainSettings, out: Store, address: str | None, display: Display) -> dict[str, Any]:
    """Return the result of a training in `out`, begun or gone on with; a finished one is not trained again.

    With several workers, or the `address` of a running Ray cluster, over Ray and DeepSpeed; else in this process.
    Raises Interrupted when asked to stop, UserError for bad input and for a folder that holds another run.
    """
    check_source(settings.data, out)
    _check_folder(settings, out)
    check_workers(settings.distributed, settings.runtime, [_length(settings)], address)
    with exclusively(out) as held:
        dataset = open_data(settings.data, out, display)
        task = make_task(settings, dataset, out)
        finished = finished_result(task)
        if finished is not None:
            return finished
        for side, segments in task.segment_maps():
            dataset.ensure_segments(side, segments, progress=display.progress)
        display.planned({task.name: task.name})
        progress = partial(display.progress, task.name)
        with Stop() as stop:
            held.when_lost(stop.request)
            if settings.distributed.workers == 1 and address is None:
                return task.run(progress, lambda: stop.requested)
            display.say(_starting(settings.distributed, address))
            with ray_session(settings.distributed, settings.runtime, address) as session:
                return launch(task, settings.distributed, session, progress, lambda: stop.requested)


def run_distributed(
    tasks: Mapping[str, Task],
    needs: Mapping[str, str],
    distributed: DistributedSettings,
    address: str | None,
    stop: Stop,
    display: Display,
) -> Iterator[Ended]:
    """Yield each task as it ends, one after another, each over all workers; a task whose need failed fails with it.

    `tasks` name a need before what needs it. Finished ones start no workers. Raises as `run_tasks`.
    """
    ended: dict[str, Ended] = {}
    with contextlib.ExitStack() as stack:
        session = None
        for key, task in tasks.items():
            need = ended.get(needs.get(key, ""))
            result = None if need and need.error else finished_result(task)
            if need and need.error:
                ended[key] = Ended(key, None, f"not begun, for the training it needs failed: {need.error}")
            elif result is not None:
                ended[key] = Ended(key, result, None)
            else:
                if session is None:
                    display.say(_starting(distributed, address))
                    session = stack.enter_context(ray_session(distributed, task.runtime, address))
                ended[key] = _ended(key, task, distributed, session, stop, display.progress)
            yield ended[key]


def _ended(
    key: str,
    task: Task,
    distributed: DistributedSettings,
    session: RaySession,
    stop: Stop,
    progress: Callable[[str, int, int], None],
) -> Ended:
    try:
        result = launch(task, distributed, session, partial(progress, key), lambda: stop.requested)
    except (WorkersLostError, NonFiniteLossError) as error:
        return Ended(key, None, str(error))
    return Ended(key, result, None)


def check_workers(
    distributed: DistributedSettings, runtime: RuntimeSettings, lengths: Iterable[Length], address: str | None
) -> None:
    """Raise UserError where trainings of these lengths cannot be shared by the workers asked for.

    All that can be told in seconds, for it is asked before images are imported. Warns of a CPU here that is slow; of
    their own, which may be elsewhere, workers warn.
    """
    for length in lengths:
        length.passes(distributed.workers, runtime.micro_batch)
    if runtime.compile and (distributed.workers > 1 or address is not None):
        raise UserError(
            "runtime.compile is for one process with plain torch; set it to false (torch.compile and DeepSpeed "
            "together are not tested)"
        )
    read_deepspeed(distributed.deepspeed)
    if address is not None:
        check_address(address)
        return
    if distributed.workers > 1:
        check_this_machine(distributed, runtime)
    else:
        warn_of_slow_bf16(runtime, prepare_device(runtime))


def _starting(distributed: DistributedSettings, address: str | None) -> str:
    """Return what is said while nothing moves yet."""
    where = "this machine" if address is None else f"the cluster at {address}"
    return f"starting {workers(distributed.workers)} on {where}"


def finished_result(task: Task) -> dict[str, Any] | None:
    """Return a finished training's result, None where it is still to be trained.

    Raises UserError where its folder holds another run.
    """
    store = Store(task.folder_url)
    if store.get("run.json") is None:
        return None
    check_same_run(store, task.kind, task.identity())
    return read_json(store, "result.json") if read_status(store).get("state") == "succeeded" else None


def _check_folder(settings: TrainSettings, out: Store) -> None:
    """Refuse, before images are imported, a folder of another run, and a generator that is not there."""
    generator = isinstance(settings, GeneratorTrainingSettings)
    inner = settings.generator if isinstance(settings, GeneratorTrainingSettings) else settings.classifier
    if out.get("run.json") is not None:
        known = {"seed": settings.seed, "settings": dump(inner)}
        check_same_run(out, "generator" if generator else "classifier", read_run(out)["identity"] | known)
    if isinstance(settings, ClassifierTrainingSettings) and settings.generator_run is not None:
        load_generator(Store(settings.generator_run))


def make_task(settings: TrainSettings, dataset: Dataset, out: Store) -> Task:
    """Return the training as a task. Raises UserError for a set without test images, or a generator of other images."""
    subset = draw_rows(dataset, settings.shots, settings.seed, settings.validation)
    if isinstance(settings, GeneratorTrainingSettings):
        return GeneratorTask(
            name=f"generator, N={settings.shots}, seed {settings.seed}",
            data=dataset.reference,
            folder_url=out.url,
            rows=subset.train,
            seed=settings.seed,
            settings=settings.generator,
            runtime=settings.runtime,
            run_name=out.name,
        )
    generator = _generator_key(settings.generator_run, dataset, subset.train) if settings.generator_run else None
    return ClassifierTask(
        name=f"classifier, N={settings.shots}, seed {settings.seed}",
        data=dataset.reference,
        folder_url=out.url,
        arm=_arm_name(settings),
        shots=settings.shots,
        rows=subset.train,
        validation_rows=subset.validation,
        test_rows=choose_test_rows(dataset.labels("test"), len(dataset.classes), settings.test_limit),
        seed=settings.seed,
        method=ArmSettings(augmentation=settings.augmentation, generator=generator, pixels=settings.pixels),
        settings=settings.classifier,
        runtime=settings.runtime,
        generator_url=Store(settings.generator_run).url if settings.generator_run else None,
        generator_key=generator,
        run_name=out.name,
    )


def _arm_name(settings: ClassifierTrainingSettings) -> str:
    mixes = "generator" if settings.generator_run else "pixels" if settings.pixels else "none"
    return f"{settings.augmentation}, mixes: {mixes}"


def _generator_key(run: str, dataset: Dataset, rows: Sequence[int]) -> str:
    """Return the key of a finished generator that learned from these very images, whose segment maps are then made."""
    trained = load_generator(Store(run))
    ids = [dataset.ids("train")[row] for row in rows]
    if trained.identity["data"] != dataset.fingerprint or trained.identity["subset"] != ids:
        part = (
            "another image set" if trained.identity["data"] != dataset.fingerprint else "another subset of the images"
        )
        raise UserError(
            f"generator_run {run} was trained on {part}; its mixes would bring in images from outside. Give a "
            "generator trained with the same data, shots, seed and validation"
        )
    dataset.ensure_segments(trained.settings.network.side, trained.settings.segments)
    return generator_key(trained.identity)


def _length(settings: TrainSettings) -> Length:
    if isinstance(settings, GeneratorTrainingSettings):
        return generator_length(settings.generator)
    return classifier_length(settings.classifier)
