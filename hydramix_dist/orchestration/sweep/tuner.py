"""Ray Tune as the hands of a sweep: it finds room, starts processes and tells of their end; the book decides.

Imports Ray at its top: import it late.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hydramix_dist.config.sweep import SearchSettings, SweepSettings
from hydramix_dist.errors import StoreAwayError
from hydramix_dist.orchestration.preflight import grown
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.design import Design, Trial
from hydramix_dist.orchestration.sweep.probe import Probe, probe
from hydramix_dist.orchestration.sweep.trial import Office, TrainingTrial
from hydramix_dist.orchestration.sweep.watch import Watch
from hydramix_dist.orchestration.sweep.work import News, Order, Work
from hydramix_dist.orchestration.tasks import ClassifierTask
from hydramix_dist.store import Store
from hydramix_dist.training.classifier import classifier_length

_log = logging.getLogger("hydramix")


@dataclass(frozen=True)
class Room:
    """What a trial reserves, how many run at a time, and the GPUs that each keeps busy, its workers' included."""

    resources: Mapping[str, float]
    concurrent: int
    gpus: float


def run_on_tune(
    book: Book,
    settings: SweepSettings,
    work: Work,
    room: Room,
    should_stop: Callable[[], bool],
    watch: Watch,
) -> None:
    """Carry out what the book has to be done, until it is over or `should_stop`; the book hears of all that happens."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    office = ray.remote(Office).options(num_cpus=0, scheduling_strategy=here).remote()
    races = _Races(book, settings.search)

    def order(trial: Trial) -> Order:
        pauses = trial.kind == "candidate" and races.early
        return Order(trial.key, trial.kind, trial.task, work, pauses, settings.limits.silent_minutes * 60)

    told = _Told(book, races, watch, room.gpus, office.drop.remote)
    resources = dict(room.resources)
    trainable = tune.with_resources(tune.with_parameters(TrainingTrial, office=office, resources=resources), resources)
    # Of what Tune writes nothing is needed again: what happened is in the book's record.
    with tempfile.TemporaryDirectory(prefix="hydramix-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Next(book, lambda trial: ray.get(office.post.remote(trial.key, order(trial))), told),
                scheduler=races,
                num_samples=-1,
                max_concurrent_trials=room.concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.trial_id),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                callbacks=[told],
                stop=_Ends(should_stop, told),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the book counts attempts
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trainings have their own
            ),
        )
        try:
            tuner.fit()
        finally:
            told.close()
            ray.kill(office)
    if told.error is not None:
        raise told.error


def nodes() -> list[Mapping[str, float]]:
    """Return what each living node of the cluster has."""
    return list(grown([node["Resources"] for node in ray.nodes() if node["Alive"]]))


def probed(design: Design) -> Probe:
    """Return what the sweep's trainings take on a node of the cluster: one with a GPU where they use one."""
    gpus = float(design.settings.runtime.device != "cpu" and any(node.get("GPU") for node in nodes()))
    tasks, shared = design.samples(), design.shared.url

    def measure() -> Probe:
        return probe(tasks, Store(shared), lambda key, done, total: None)

    cpus = design.settings.runtime.threads
    try:
        found: Probe = ray.get(ray.remote(measure).options(num_cpus=cpus, num_gpus=gpus).remote())
    except ray.exceptions.RayTaskError as error:  # whose text is a traceback
        raise error.cause from error
    return found


class _Here:
    """Base of what Tune calls in this process: pickled it is a word for itself.

    Tune pickles all that it is given, for a restore that never comes; a book with its open record cannot be.
    """

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return type(None), ()


class _Next(_Here, Searcher):  # type: ignore[misc]
    """Tune's question for the next trial, answered by the book."""

    def __init__(self, book: Book, post: Callable[[Trial], None], told: "_Told") -> None:
        super().__init__()
        self._book, self._post, self._told = book, post, told

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next training's key; None where there is none for now, FINISHED for good."""
        try:
            trial = self._book.next()
            if trial is None:
                return str(Searcher.FINISHED) if self._book.over else None
            self._post(trial)
            return {"key": trial.key}
        except Exception as error:
            self._told.keep(error)
            return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the book hears of it from the callback."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the book's record is what is gone on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class _Told(_Here, tune.Callback):  # type: ignore[misc]
    """Tells the book what Tune sees."""

    def __init__(
        self,
        book: Book,
        races: "_Races",
        watch: Watch,
        gpus: float,
        drop: Callable[[str], object],
    ) -> None:
        self._book, self._races, self.watch, self._drop = book, races, watch, drop
        self._gpus = gpus
        self._begun: dict[str, float] = {}
        self.error: Exception | None = None  # that ends the sweep: Tune would wrap it into one of its own

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the beginning."""
        key = trial.config["key"]
        self._begun[key] = time.monotonic()
        self.watch.running[key] = (0, 0)
        with self._kept():
            self._book.begun(key)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take the news of a training."""
        with self._kept():
            self._take(trial.config["key"], News(**result["news"]))

    def _take(self, key: str, news: News) -> None:
        self.watch.running[key] = (news.images, news.total)
        for images, accuracy in news.validated:
            self._book.validated(key, images, accuracy)
        if news.outcome == "running":
            if key in self._races.stopped:
                self._book.early(key, *self._races.stopped[key], self._forget(key))
            return
        gpu_seconds = self._forget(key)
        if news.outcome == "done":
            self._book.done(key, news.summary | {"gpu_seconds": gpu_seconds})
        elif news.outcome == "failed":
            self._fail(key, news.error or "no reason given", gpu_seconds)
        elif news.outcome == "busy":
            self._book.busy(key)
        else:
            self._book.put_back(key)
            if news.outcome == "away":
                raise StoreAwayError(news.error or "the store is away")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a process is gone, or that its training hangs."""
        key = trial.config["key"]
        with self._kept():
            if self._book.entries[key].state == "running":  # also where its process could not even be started
                self._fail(key, _reason(trial), self._forget(key))

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.keep(error)

    def keep(self, error: Exception) -> None:
        """Keep an error, for which the sweep then ends."""
        self.error = self.error or error

    def close(self) -> None:
        """Put back what was under way, or waiting for room, when the sweep was stopped."""
        for key, entry in self._book.entries.items():
            if entry.state == "running":
                self._book.put_back(key)
        self._begun.clear()
        self.watch.running.clear()

    def _forget(self, key: str) -> float:
        """Return how many seconds of a GPU a training took."""
        self._drop(key)
        self.watch.running.pop(key, None)
        return self._gpus * (time.monotonic() - self._begun.pop(key, time.monotonic()))

    def _fail(self, key: str, reason: str, gpu_seconds: float) -> None:
        self._book.failed(key, reason, gpu_seconds)
        entry = self._book.entries[key]
        what = "failed for good" if entry.state == "failed" else "failed, and is tried again"
        _log.warning("%s %s: %s", entry.trial.task.name, what, reason)


def _reason(trial: Any) -> str:
    # Tune's own `get_error` looks into the storage, where these files come later.
    pickled = trial.pickled_error_file
    error = None if pickled is None else ray.cloudpickle.loads(Path(pickled).read_bytes())
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process was killed, or crashed (often: memory ran out), or its node was lost"
    if isinstance(error, ray.exceptions.RayTaskError):
        return str(error.cause)
    text = [] if trial.error_file is None else Path(trial.error_file).read_text().strip().splitlines()
    return text[-1] if text else "its process ended without a word"


class _Races(_Here, FIFOScheduler):  # type: ignore[misc]
    """Begins trials in the order they come; with `asha`, stops candidates that fall behind in their group."""

    def __init__(self, book: Book, search: SearchSettings | None) -> None:
        super().__init__()
        self._book, self._search = book, search
        self.early = search is not None and search.method == "asha"
        self.stopped: dict[str, tuple[int, float]] = {}
        self._races: dict[str, AsyncHyperBandScheduler] = {}
        self._known: set[str] = set()
        if self.early:
            for key, images, accuracy in book.validated_before:
                if self._judge(key, images, accuracy) == TrialScheduler.STOP:
                    self.stopped[key] = (images, accuracy)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return STOP for a candidate that is among the worse of its group at this length."""
        key = trial.config["key"]
        decision = str(TrialScheduler.STOP if key in self.stopped else TrialScheduler.CONTINUE)
        for images, accuracy in result["news/validated"] if self.early else ():
            if self._judge(key, images, accuracy) == TrialScheduler.STOP:
                self.stopped[key] = (images, accuracy)
                decision = str(TrialScheduler.STOP)
        return decision

    def _judge(self, key: str, images: int, accuracy: float) -> str:
        entry = self._book.entries[key].trial
        task = entry.task
        if entry.group is None or self._search is None or not isinstance(task, ClassifierTask):
            return str(TrialScheduler.CONTINUE)
        length = classifier_length(task.settings)
        total = length.steps * length.batch
        if images >= total:
            return str(TrialScheduler.CONTINUE)
        if entry.group not in self._races:
            self._races[entry.group] = AsyncHyperBandScheduler(
                time_attr="images",
                metric="accuracy",
                mode="max",
                max_t=total,
                grace_period=max(1, round(self._search.grace * total)),
                reduction_factor=self._search.reduction,
            )
        race, candidate = self._races[entry.group], SimpleNamespace(trial_id=key)
        if key not in self._known:
            self._known.add(key)
            race.on_trial_add(None, candidate)
        return str(race.on_trial_result(None, candidate, {"images": images, "accuracy": accuracy}))


class _Ends(_Here, tune.Stopper):  # type: ignore[misc]
    """Stops everything on request; asked a few times a second, it also has the sweep shown."""

    def __init__(self, should_stop: Callable[[], bool], told: _Told) -> None:
        self._should_stop, self._told = should_stop, told
        self._looked = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Return whether to stop."""
        now = time.monotonic()
        if now - self._looked > 0.5:
            self._looked = now
            there, free = ray.cluster_resources(), ray.available_resources()
            self._told.watch.reserved = ", ".join(
                f"{there[name] - free.get(name, 0.0):.3g} of {there[name]:g} {name}s"
                for name in ("CPU", "GPU")
                if there.get(name)
            )
            self._told.watch.look(self._told.watch)
        return self._told.error is not None or self._should_stop()
