"""A tiny sweep for the tests: its design on real images, and a driver that carries its book out in no time.

The driver stands for Ray Tune and the trainings: what becomes of a training depends on its key alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.draws import uniform
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.design import Design, Trial
from hydramix_dist.store import Store

ARMS: Mapping[str, Any] = {
    "baseline": {},
    "hydramix": {"generator": "hydramix"},
    "both": {"generator": "hydramix", "augmentation": "trivial"},
}
SPACE: Mapping[str, Any] = {"classifier.optimizer.lr": {"log": [0.005, 0.1]}}


def settings_of(**changes: Any) -> SweepSettings:
    """Return the settings of three arms at N = 5 with one seed, with `changes` to the top keys."""
    tree = tiny.PILOT | {"arms": ARMS, "seeds": [0]} | changes
    del tree["concurrent"]
    return build(SweepSettings, tree, "test")


def tiny_images(folder: Path, seed: int = 0) -> Dataset:
    """Return a data set of two classes with seven images for training and three for testing each."""
    images = tiny.image_folder(folder / "images", {"a": 7, "b": 7 + seed}, test=3)
    import_dataset(images, str(folder / "data"), segments=None, workers=1)
    return Dataset.open(str(folder / "data"))


def design_of(settings: SweepSettings, **datasets: Dataset) -> Design:
    """Return the sweep's trainings, in folders that nobody makes."""
    return Design(settings, expanded(settings, "test"), datasets, Store("/sweep"), Store("/shared"))


def value_of(key: str) -> float:
    """Return the accuracy of a training, a pure function of its key."""
    return float(uniform(0, key, [0], 1)[0, 0])


def result_of(trial: Trial, value: float | None = None) -> dict[str, Any]:
    """Return what the record of a sweep keeps of a finished training."""
    value = value_of(trial.key) if value is None else value
    result: dict[str, Any] = {"seconds": 2.0, "wall_seconds": 3.0, "images_seen": 48, "peak_memory_bytes": 1 << 20}
    if trial.kind == "candidate":
        result["value"] = value
    if trial.kind == "classifier":
        generator = None if trial.needs is None else trial.needs.rsplit("/", 1)[-1]
        result |= {"accuracy": value, "balanced_accuracy": value, "test_images": 6, "generator_key": generator}
    return result


@dataclass
class Driver:
    """Begins what the book has next, as many at a time as fit, and ends one after another.

    `pick` chooses among n trainings under way the one that ends; `failures` says how often a training fails first.
    """

    book: Book
    at_a_time: int = 1
    failures: Mapping[str, int] = field(default_factory=dict)
    values: Callable[[Trial], float | None] = lambda trial: None
    pick: Callable[[int], int] = lambda under_way: 0
    under_way: list[Trial] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)

    def fill(self) -> list[str]:
        """Begin as many trainings as fit; return the keys of all that are under way."""
        while len(self.under_way) < self.at_a_time and (trial := self.book.next()) is not None:
            self.book.begun(trial.key)
            self.under_way.append(trial)
            self.begun.append(trial.key)
        return [trial.key for trial in self.under_way]

    def end_one(self) -> None:
        """End one training."""
        trial = self.under_way.pop(self.pick(len(self.under_way)))
        if self.book.entries[trial.key].failures < self.failures.get(trial.key, 0):
            self.book.failed(trial.key, f"{trial.key} broke")
        else:
            self.book.done(trial.key, result_of(trial, self.values(trial)))

    def run(self) -> list[str]:
        """Go on until the book is over; return the keys in the order they were begun. Fails where it is at a loss."""
        while not self.book.over:
            assert self.fill(), "nothing is under way, nothing is next, and the book is not over"
            self.end_one()
        assert self.book.next() is None
        return self.begun


def states(book: Book) -> dict[str, str]:
    """Return where each training stands, by key; the book's own counts must agree."""
    found = {key: str(entry.state) for key, entry in book.entries.items()}
    assert +book.counts == Counter(found.values())
    return found


def of_kind(events: list[dict[str, Any]], *kinds: str) -> Iterator[dict[str, Any]]:
    """Yield the events of these kinds."""
    return (event for event in events if event["event"] in kinds)
