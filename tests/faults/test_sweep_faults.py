"""Trainings of a sweep that are killed, fail or hang: tried again, told apart, and none of the others' concern."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from sweep_work import Faulty, Quiet, data_of, sweep_of, tree_of

from hydramix_dist.errors import StoreAwayError
from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.orchestration.sweep.run import run_sweep
from hydramix_dist.orchestration.sweep.standing import read_standing
from hydramix_dist.store import Store

# Ray's own code, when it imports its parts for data.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

PLAIN = ("fine", "killed", "memory", "fails", "sleeps")
ATTEMPTS = 2
SILENT_MINUTES = 0.1  # quick trainings make no pauses
ALARM_SECONDS = 60 + 60 * SILENT_MINUTES  # when a process is ended that lets no thread of its own look
DIED = "its process was killed, or crashed"


def faulty(data: str, folder: Path, arms: dict[str, Any]) -> tuple[Faulty, Store]:
    """Run a sweep of arms that are named after their fault; return the work and the sweep's folder."""
    limits = {"attempts": ATTEMPTS, "silent_minutes": SILENT_MINUTES}
    work, out = Faulty(folder / "attempts"), folder / "out"
    work.folder.mkdir()
    run_sweep(sweep_of(tree_of(data, arms=arms, limits=limits), out, folder / "shared"), Quiet(), work=work)
    return work, Store(out)


def errors(out: Store) -> dict[str, list[str]]:
    """Return the errors of each training, in order, by arm or kind."""
    found: dict[str, list[str]] = {}
    for event in read_events(out):
        if event["event"] == "failed":
            found.setdefault(event["arm"] or event["kind"], []).append(event["error"])
    return found


def begun_since(out: Store, events: int) -> list[str]:
    """Return which trainings were begun after so many events, by arm or kind."""
    later = list(read_events(out))[events:]
    return sorted(event["arm"] or event["kind"] for event in later if event["event"] == "begun")


def test_faults_concern_nobody_else_and_can_be_made_good(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arms = {name: {} for name in PLAIN} | {"needing": {"generator": "hydramix"}}
    work, out = faulty(data_of(tmp_path_factory.getbasetemp()), tmp_path, arms)

    standing = read_standing(out)
    lines = {line.facts["arm"] or line.facts["kind"]: line for line in standing.lines.values()}
    assert {name: line.state for name, line in lines.items()} == {
        "fine": "done",
        "killed": "done",
        "sleeps": "done",
        "memory": "failed",
        "fails": "failed",
        "generator": "failed",
        "needing": "failed",
    }
    assert standing.state == "failed"
    attempts = {name: len(work.attempts(name)) for name in lines}
    assert attempts == {"fine": 1, "needing": 0} | dict.fromkeys(
        ("killed", "sleeps", "memory", "fails", "generator"), ATTEMPTS
    )
    assert {name: line.attempts for name, line in lines.items()} == attempts

    told = errors(out)
    assert len(told.pop("killed")) == 1 and DIED in errors(out)["killed"][0]
    (silent,) = told.pop("sleeps")
    assert silent.startswith("no progress for 0.") and silent.endswith("taken for hanging, and ended")
    assert told == {
        "memory": ["out of memory (MemoryError: no such luck)"] * ATTEMPTS,
        "fails": ["ValueError: the fails has no such luck"] * ATTEMPTS,
        "generator": ["ValueError: the generator has no such luck"] * ATTEMPTS,
        "needing": ["not begun, for the training it needs failed: ValueError: the generator has no such luck"],
    }
    for name in ("killed", "sleeps"):
        first, second = work.attempts(name)
        assert first != second and not tiny.alive(first), "its process ended with it"

    # What has failed for good stays so, is told, and starts nothing.
    events = len(list(read_events(out)))
    again = tiny.hydramix("sweep", "resume", out.url, check=1)
    assert begun_since(out, events) == [] and "Ray" not in again.stderr
    for words in ("3 done, 4 failed", "after 2 attempts: out of memory (MemoryError: no such luck)", "--only-failed"):
        assert words in again.stdout
    state = json.loads(tiny.hydramix("sweep", "status", out.url, "--json").stdout)
    assert state["counts"] == {"done": 3, "failed": 4}
    assert {trial["arm"]: trial["error"] for trial in state["trials"]}["fails"] == told["fails"][-1]

    # Nothing stands in their way any more: these are real trainings.
    events = len(list(read_events(out)))
    mended = tiny.hydramix("sweep", "resume", out.url, "--only-failed")
    assert begun_since(out, events) == ["fails", "generator", "memory", "needing"]
    assert "7 done" in mended.stdout and read_standing(out).state == "succeeded"

    events = len(list(read_events(out)))
    over = tiny.hydramix("sweep", "resume", out.url)
    assert begun_since(out, events) == [] and "Ray" not in over.stderr


@pytest.mark.full
def test_what_no_other_training_can_mend_ends_the_sweep(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arms: dict[str, Any] = {"away": {}, "fine": {}}
    tree = tree_of(data_of(tmp_path_factory.getbasetemp()), arms=arms, concurrent=1)
    work, out = Faulty(tmp_path / "attempts"), Store(tmp_path / "out")
    work.folder.mkdir()
    sweep = sweep_of(tree, out.url, tmp_path / "shared")
    with pytest.raises(StoreAwayError, match="no answer"):
        run_sweep(sweep, Quiet(), work=work)
    assert errors(out) == {} and read_standing(out).counts == {"pending": 2}, "nobody's fault, no attempt of anybody's"
    assert run_sweep(sweep, Quiet(), work=work).counts == {"done": 2}


@pytest.mark.full
def test_process_that_hangs_within_a_call_is_ended(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    began = time.monotonic()
    work, out = faulty(data_of(tmp_path_factory.getbasetemp()), tmp_path, {"fine": {}, "holds": {}})
    assert time.monotonic() - began > ALARM_SECONDS
    assert read_standing(out).counts == {"done": 2}
    (told,) = errors(out)["holds"]
    assert DIED in told
    first, second = work.attempts("holds")
    assert first != second and not tiny.alive(first)
