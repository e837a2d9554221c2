"""The trainings of a sweep: which there are for each cell (data set, arm, N, seed), as tasks of a pilot's kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hydramix_dist.config.axes import changed, touched
from hydramix_dist.config.load import build, dump
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import Scalar, SweepSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.plan import (
    Rows,
    Subset,
    choose_test_rows,
    classifier_task,
    draw_rows,
    generator_task,
)
from hydramix_dist.orchestration.tasks import Task
from hydramix_dist.store import Store

Kind = Literal["generator", "candidate", "classifier"]


@dataclass(frozen=True)
class Cell:
    """One result of the table: an arm on one subset. `group` names the search that chooses its settings."""

    data: str
    arm: str
    shots: int
    seed: int
    priority: int
    group: str | None

    @property
    def key(self) -> str:
        """Return the key of its classifier: the folder in the sweep's."""
        return f"classifiers/{self.data}/{self.arm}-n{self.shots}-seed{self.seed}"


@dataclass(frozen=True)
class Group:
    """Candidates that compete: settings tried for one arm at one N of a data set."""

    name: str
    data: str
    arm: str
    shots: int
    keys: tuple[str, ...]  # of the settings that are searched


@dataclass(frozen=True)
class Trial:
    """One training: its key, task, place in the order, and the training that it needs finished."""

    key: str
    kind: Kind
    data: str
    arm: str | None
    shots: int
    seed: int
    priority: int
    task: Task
    needs: str | None = None
    group: str | None = None  # of a candidate
    index: int | None = None  # of a candidate in its group

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the record of a sweep says of it."""
        facts = {"key": self.key, "kind": self.kind, "data": self.data, "arm": self.arm, "shots": self.shots}
        return facts | {"seed": self.seed, "name": self.task.name}


def cells_of(settings: SweepSettings, whole: PilotSettings, names: Sequence[str]) -> list[Cell]:
    """Return the cells in the order to begin them: by priority, then seed by seed, so that tables fill evenly."""
    groups = {(group.data, group.arm, group.shots): group.name for group in groups_of(settings, whole, names)}
    at = settings.search.at if settings.search else None
    cells = [
        Cell(data, arm, shots, seed, priority_of(settings, arm), groups.get((data, arm, at or shots)))
        for seed in settings.seeds
        for data in names
        for shots in settings.shots
        for arm in whole.arms
    ]
    return sorted(cells, key=lambda cell: -cell.priority)


def groups_of(settings: SweepSettings, whole: PilotSettings, names: Sequence[str]) -> list[Group]:
    """Return the searches: one for each arm that has settings to search, at each N or the one they are chosen at."""
    if settings.search is None:
        return []
    shots_values = settings.shots if settings.search.at is None else (settings.search.at,)
    found = []
    for data in names:
        for shots in shots_values:
            for arm in whole.arms:
                keys = tuple(touched(whole, arm, settings.search.space))
                if keys:
                    found.append(Group(f"{data}/{arm}-n{shots}", data, arm, shots, keys))
    return found


def priority_of(settings: SweepSettings, arm: str) -> int:
    """Return the priority of an arm of the expanded comparison: that of the arm it was made from."""
    origin = max((name for name in settings.arms if arm == name or arm.startswith(f"{name}-")), key=len, default=arm)
    return settings.priorities.get(origin, 0)


@dataclass
class Design:
    """Makes the trainings of cells and candidates, on data sets that are open."""

    settings: SweepSettings
    whole: PilotSettings
    datasets: Mapping[str, Dataset]
    out: Store
    shared: Store
    _subsets: dict[tuple[str, int, int, float], Subset] = field(default_factory=dict)
    _tested: dict[str, Rows] = field(default_factory=dict)
    _chosen: dict[tuple[str, tuple[tuple[str, Scalar], ...]], PilotSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise UserError for a data set without test images, or with too few images for what is searched."""
        self.cells = cells_of(self.settings, self.whole, list(self.datasets))
        self.groups = {group.name: group for group in groups_of(self.settings, self.whole, list(self.datasets))}
        for name, dataset in self.datasets.items():
            if len(dataset.labels("test")) == 0:
                raise UserError(f"data set {name} has no test images; import it again with a hold-out share above 0")
            self._tested[name] = choose_test_rows(
                dataset.labels("test"), len(dataset.classes), self.settings.test_limit
            )

        search = self.settings.search
        for group in self.groups.values():
            for seed in search.seeds if search else ():
                self._subset(group.data, group.shots, seed, search.validation if search else 0.0)

    def final(self, cell: Cell, values: Mapping[str, Scalar]) -> list[Trial]:
        """Return a cell's classifier, and before it the generator that it needs, with searched values laid over."""
        subset = self._subset(cell.data, cell.shots, cell.seed, self.settings.validation)
        return self._trials(
            "classifier", cell.key, cell.data, cell.arm, values, subset, self._tested[cell.data], cell.priority
        )

    def candidate(self, group: Group, index: int, values: Mapping[str, Scalar]) -> list[Trial]:
        """Return the trainings that try values: a classifier for each of the search's seeds, scored without test."""
        search = self.settings.search
        assert search is not None  # there is a group
        trials = []
        for seed in search.seeds:
            subset = self._subset(group.data, group.shots, seed, search.validation)
            key = f"candidates/{group.data}/{group.arm}-n{group.shots}-c{index:03d}-seed{seed}"
            priority = priority_of(self.settings, group.arm)
            trials += self._trials(
                "candidate", key, group.data, group.arm, values, subset, (), priority, group.name, index
            )
        return trials

    def samples(self) -> list[Task]:
        """Return a training of each shape that there is, with as many images as any of that shape has."""
        seen: set[tuple[str, str, int]] = set()
        trials: dict[str, Trial] = {}
        for cell in sorted(self.cells, key=lambda cell: -cell.shots):
            shape = (cell.data, cell.arm, cell.shots if self.settings.validation else 0)  # a part that grows with N
            if shape not in seen:
                seen.add(shape)
                trials |= {trial.key: trial for trial in self.final(cell, {})}
        for group in self.groups.values():
            trials |= {trial.key: trial for trial in self.candidate(group, 0, {})}
        return [trial.task for trial in trials.values()]

    def with_values(self, arm: str, values: Mapping[str, Scalar]) -> PilotSettings:
        """Return the comparison with searched values in one arm. Raises UserError where they are not allowed."""
        known = (arm, tuple(sorted(values.items(), key=lambda item: item[0])))
        if known not in self._chosen:
            self._chosen[known] = with_values(self.whole, arm, values) if values else self.whole
        return self._chosen[known]

    def _trials(
        self,
        kind: Kind,
        key: str,
        data: str,
        arm: str,
        values: Mapping[str, Scalar],
        subset: Subset,
        test_rows: Rows,
        priority: int,
        group: str | None = None,
        index: int | None = None,
    ) -> list[Trial]:
        settings, dataset = self.with_values(arm, values), self.datasets[data]
        trials: list[Trial] = []
        generator = settings.arms[arm].generator
        url = needs = None
        if generator is not None:
            folder = self.shared.child("generators")
            task = generator_task(settings, generator, dataset, subset, folder, self.out.name)
            url, needs = task.folder_url, f"generators/{Store(task.folder_url).name}"
            trials.append(Trial(needs, "generator", data, None, subset.shots, subset.seed, priority, task))
        folder_url, run_name = self.out.path(key), self.out.name
        classifier = classifier_task(settings, arm, dataset, subset, test_rows, folder_url, url, run_name)
        trials.append(Trial(key, kind, data, arm, subset.shots, subset.seed, priority, classifier, needs, group, index))
        return trials

    def _subset(self, data: str, shots: int, seed: int, validation: float) -> Subset:
        known = (data, shots, seed, validation)
        if known not in self._subsets:
            self._subsets[known] = draw_rows(self.datasets[data], shots, seed, validation)
        return self._subsets[known]


def with_values(whole: PilotSettings, arm: str, values: Mapping[str, Any]) -> PilotSettings:
    """Return a comparison with other values in one arm and its generator. Raises UserError where they are not allowed.

    The generator keeps its name: what it is follows from its settings.
    """
    tree, generator = changed(whole, arm, values, f"arm {arm}")
    full = dump(whole)
    full["arms"] = {**full["arms"], arm: tree}
    if generator is not None:
        full["generators"] = {**full["generators"], str(tree["generator"]): generator}
    return build(PilotSettings, full, f"arm {arm}")
