"""From a comparison's settings and a data set to its subsets, trainings, and which training needs which."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hydramix_dist.config.schema import PilotSettings, RuntimeSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.draws import uniform
from hydramix_dist.data.shots import draw_subset, split_validation
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask, Task
from hydramix_dist.store import Store
from hydramix_dist.training.generator import generator_identity, generator_key

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Subset:
    """The images of one (shots, seed): rows of the train split to learn from, and rows held out to validate on."""

    shots: int
    seed: int
    train: Rows
    validation: Rows

    @property
    def name(self) -> str:
        """Return the name used in folders and files."""
        return f"n{self.shots}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All trainings by key in the order to begin them, and the generator that each mixing arm's classifier needs."""

    subsets: tuple[Subset, ...]
    test_rows: Rows
    tasks: Mapping[str, Task]
    needs: Mapping[str, str]


def make_plan(settings: PilotSettings, dataset: Dataset, out: Store) -> Plan:
    """Return the plan; a generator that several arms share stands in it once. Raises UserError without test images."""
    if len(dataset.labels("test")) == 0:
        raise UserError("the data set has no test images; import it again with a hold-out share above 0")
    rows = choose_test_rows(dataset.labels("test"), len(dataset.classes), settings.test_limit)
    subsets = tuple(
        draw_rows(dataset, shots, seed, settings.validation) for shots in settings.shots for seed in settings.seeds
    )
    tasks: dict[str, Task] = {}
    needs: dict[str, str] = {}
    # Subset by subset: a pilot that is stopped has whole pairs of arms, and its time left is known early.
    for subset in subsets:
        keys = _add_generators(tasks, settings, dataset, subset, out)
        for name, arm in settings.arms.items():
            key = f"classifiers/{name}-{subset.name}"
            generator = keys[arm.generator] if arm.generator else None
            if generator:
                needs[key] = generator
            tasks[key] = classifier_task(
                settings,
                name,
                dataset,
                subset,
                rows,
                out.path(key),
                out.path(generator) if generator else None,
                out.name,
            )
    return Plan(subsets, rows, tasks, needs)


def classifier_task(
    settings: PilotSettings,
    arm: str,
    dataset: Dataset,
    subset: Subset,
    test_rows: Rows,
    folder_url: str,
    generator_url: str | None,
    run_name: str,
) -> ClassifierTask:
    """Return the training of an arm's classifier on a subset; a generator's folder has its key for a name."""
    return ClassifierTask(
        name=f"{arm}, N={subset.shots}, seed {subset.seed}",
        data=dataset.reference,
        folder_url=folder_url,
        arm=arm,
        shots=subset.shots,
        rows=subset.train,
        validation_rows=subset.validation,
        test_rows=test_rows,
        seed=subset.seed,
        method=settings.arms[arm],
        settings=settings.classifier_of(arm),
        runtime=settings.runtime,
        generator_url=generator_url,
        generator_key=generator_url.rsplit("/", 1)[-1] if generator_url else None,
        run_name=run_name,
    )


def generator_task(
    settings: PilotSettings, name: str, dataset: Dataset, subset: Subset, folder: Store, run_name: str
) -> GeneratorTask:
    """Return the training of a generator on a subset, in the folder below `folder` that has its key for a name."""
    generator = settings.generators[name]
    ids = [dataset.ids("train")[row] for row in subset.train]
    identity = generator_identity(dataset.fingerprint, ids, subset.seed, generator)
    return GeneratorTask(
        name=f"generator {name}, N={subset.shots}, seed {subset.seed}",
        data=dataset.reference,
        folder_url=folder.path(generator_key(identity)),
        rows=subset.train,
        seed=subset.seed,
        settings=generator,
        runtime=settings.runtime,
        run_name=run_name,
    )


def choose_test_rows(labels: npt.NDArray[np.int64], num_classes: int, limit: int | None) -> Rows:
    """Return the test rows used by every run: all, or up to limit / classes of each class by a fixed draw."""
    if limit is None or limit >= len(labels):
        return tuple(range(len(labels)))
    share = max(1, limit // num_classes)
    keys = uniform(0, "test-rows", range(len(labels)), 1)[:, 0].numpy()
    chosen = [
        rows[np.argsort(keys[rows])][:share] for rows in (np.flatnonzero(labels == c) for c in range(num_classes))
    ]
    return tuple(int(row) for row in np.sort(np.concatenate(chosen)))


def default_concurrency(runtime: RuntimeSettings, cores: int) -> int:
    """Return how many trainings run at a time: one on a GPU, else as many as their threads fit the cores."""
    if runtime.device != "cpu" and torch.cuda.is_available():
        return 1
    return max(1, cores // runtime.threads)


def draw_rows(dataset: Dataset, shots: int, seed: int, validation: float) -> Subset:
    """Return the subset of one (shots, seed), with the share `validation` of it held out."""
    labels = dataset.labels("train")
    rows = draw_subset(labels, shots, seed)
    if not validation:
        return Subset(shots, seed, tuple(rows.tolist()), ())
    train, held_out = split_validation(labels[rows], validation, seed)
    return Subset(shots, seed, tuple(rows[train].tolist()), tuple(rows[held_out].tolist()))


def _add_generators(
    tasks: dict[str, Task], settings: PilotSettings, dataset: Dataset, subset: Subset, out: Store
) -> dict[str, str]:
    """Add the generators that the arms need on a subset; return each one's task key by its settings' name."""
    keys: dict[str, str] = {}
    for name in dict.fromkeys(arm.generator for arm in settings.arms.values() if arm.generator):
        task = generator_task(settings, name, dataset, subset, out.child("generators"), out.name)
        keys[name] = f"generators/{Store(task.folder_url).name}"
        tasks[keys[name]] = task
    return keys
