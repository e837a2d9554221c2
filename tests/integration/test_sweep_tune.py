"""Sweeps by Ray Tune in earnest: candidates stopped early, Optuna, and trainings of several workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sweep_work import Quiet, data_of, quick, sweep_of, tree_of

from hydramix_dist.errors import Interrupted
from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.orchestration.sweep.run import run_sweep
from hydramix_dist.orchestration.sweep.standing import read_standing
from hydramix_dist.orchestration.tasks import ClassifierTask, Task
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run
from hydramix_dist.telemetry import Sink

# Ray's own code, when it imports its parts for data.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

SPACE = {"classifier.optimizer.lr": {"log": [0.005, 0.1]}}
QUARTERS = 4


@dataclass(frozen=True)
class Racing:
    """A training in four quarters, validated after each, that is the better the higher its rate."""

    file: Path

    def __call__(
        self, task: Task, progress: Callable[[int, int], None], should_stop: Callable[[], bool], sinks: Sequence[Sink]
    ) -> dict[str, Any]:
        if not isinstance(task, ClassifierTask) or task.test_rows:
            return quick(task, progress, should_stop, sinks)
        length, score = task.settings.images, task.settings.optimizer.lr
        for quarter in range(1, QUARTERS + 1):
            images = quarter * length // QUARTERS
            with self.file.open("a") as file:
                file.write(f"{Path(task.folder_url).name} {images}\n")
            progress(images, length)
            sinks[0].write({"validation_accuracy_ratio": score}, {}, images)
            if should_stop():
                raise Interrupted("saved")
        return quick(task, progress, should_stop, sinks) | {"validation_curve": [[length, score]]}


def test_asha_stops_the_worse_and_chooses_the_best(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    search = {"method": "asha", "trials": 8, "space": SPACE, "reduction": 2, "grace": 0.25}
    tree = tree_of(data_of(tmp_path_factory.getbasetemp()), arms={"baseline": {}}, search=search)
    tree |= {"runtime": tree["runtime"] | {"checkpoints": QUARTERS}}
    work, out = Racing(tmp_path / "quarters"), tmp_path / "out"
    standing = run_sweep(sweep_of(tree, out, tmp_path / "shared"), Quiet(), work=work)

    length = standing.whole.classifier.images
    asked = [
        event["values"]["classifier.optimizer.lr"] for event in read_events(Store(out)) if event["event"] == "asked"
    ]
    candidates = [line for line in standing.lines.values() if line.facts["kind"] == "candidate"]
    early = [line for line in candidates if line.state == "early"]
    assert len(candidates) == len(asked) == 8 and early and {line.state for line in candidates} == {"early", "done"}
    (chosen,) = standing.chosen.values()
    assert chosen["score"] == max(asked) == chosen["values"]["classifier.optimizer.lr"]
    assert chosen["candidates"] == 8 - len(early)
    # It heard of it where it was judged: not a quarter more was computed.
    seen: dict[str, int] = {}
    for name, images in (line.split() for line in work.file.read_text().splitlines()):
        seen[name] = max(seen.get(name, 0), int(images))
    for line in candidates:
        reached = seen[line.facts["key"].rsplit("/", 1)[-1]]
        assert reached == (line.result["images"] if line.state == "early" else length)
    for line in early:
        others = [
            event["value"]
            for event in read_events(Store(out))
            if event["event"] == "validated" and event["images"] == line.result["images"]
        ]
        assert line.result["value"] < max(others) and line.result["images"] < length
    assert standing.lines["classifiers/data/baseline-n5-seed0"].state == "done"


@pytest.mark.full
def test_optuna_asks_by_what_it_has_heard(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    search = {"method": "optuna", "trials": 14, "space": SPACE}
    tree = tree_of(data_of(tmp_path_factory.getbasetemp()), arms={"baseline": {}}, search=search, concurrent=1)
    run_sweep(sweep_of(tree, tmp_path / "out", tmp_path / "shared"), Quiet(), work=Racing(tmp_path / "quarters"))
    events = list(read_events(Store(tmp_path / "out")))
    asked = [event["values"]["classifier.optimizer.lr"] for event in events if event["event"] == "asked"]
    (chosen,) = (event for event in events if event["event"] == "chosen")
    assert len(asked) == 14 and chosen["score"] == max(asked)
    order = [event["event"] for event in events if event["event"] in ("asked", "done")]
    assert order[:28] == ["asked", "done"] * 14, "each was asked for when the one before had its score"


@pytest.mark.full
def test_trainings_of_two_workers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = tree_of(data_of(tmp_path_factory.getbasetemp()), arms={"baseline": {}})
    alone = run_sweep(sweep_of(tree, tmp_path / "alone", tmp_path / "shared"), Quiet())
    tree |= {"distributed": {"workers": 2}, "concurrent": None}
    standing = run_sweep(sweep_of(tree, tmp_path / "two", tmp_path / "shared"), Quiet())
    (line,), (expected,) = standing.lines.values(), alone.lines.values()
    assert (line.state, expected.state) == ("done", "done")
    assert read_run(Store(tmp_path / "two").child(line.facts["key"]))["facts"]["workers"] == 2
    assert line.result["images_seen"] == expected.result["images_seen"]
    assert line.result["accuracy"] == pytest.approx(expected.result["accuracy"], abs=0.2)  # rounding, on few images
    assert read_standing(Store(tmp_path / "two")).state == "succeeded"
