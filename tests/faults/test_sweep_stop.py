"""Sweeps that end before they are over, on request or at a limit, and sweeps that meet another process."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import tiny
import yaml
from sweep_work import Counted, Faulty, Quiet, data_of, drive, sweep_of, tree_of

from hydramix_dist.checkpoint import load_newest
from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.orchestration.sweep.run import run_sweep
from hydramix_dist.orchestration.sweep.standing import read_standing
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_status

# Ray's own code, when it imports its parts for data.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

# Two trainings hear of it when they next report, save, and Ray ends: some 12 s on a quiet machine, more on a busy one.
STOP_SECONDS = 45.0
IMAGES, CHECKPOINTS = 5000, 20  # of a classifier: it takes a dozen seconds


def sentence(stderr: str) -> str:
    """Return the one sentence that is the answer to bad input."""
    (line,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    return line


def test_ctrl_c_saves_all_and_the_sweep_goes_on(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    config, out = tmp_path / "long.yaml", tmp_path / "out"
    tree = tree_of(
        data_of(tmp_path_factory.getbasetemp()), arms={"baseline": {}, "trivial": {"augmentation": "trivial"}}
    )
    tree["classifier"] = tree["classifier"] | {"images": IMAGES}
    tree["runtime"] = tree["runtime"] | {"checkpoints": CHECKPOINTS}
    config.write_text(yaml.safe_dump(tree))
    driver = tiny.start_hydramix("sweep", config, "--out", out)
    tiny.wait_for(lambda: driver.poll() is not None or (out / "run.json").exists(), 120)
    second = tiny.hydramix("sweep", config, "--out", out, check=2)
    assert f"another process is running in {out}" in sentence(second.stderr)

    folders = [out / f"classifiers/data/{arm}-n5-seed0" for arm in ("baseline", "trivial")]
    tiny.wait_for(
        lambda: driver.poll() is not None or all((folder / "checkpoints").is_dir() for folder in folders), 240
    )
    left = tiny.descendants(driver.pid)
    began = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=240)
    took = time.monotonic() - began
    assert driver.returncode == 130, said
    assert took < STOP_SECONDS
    assert said.splitlines()[-1] == f"stopped; all is saved: hydramix sweep resume {out} goes on from there"
    tiny.wait_for(lambda: not any(map(tiny.alive, left)), 30)
    assert read_status(Store(out))["reason"] == "stopped"
    assert read_standing(Store(out)).counts == {"pending": 2}
    state = tiny.hydramix("sweep", "status", out)
    assert "2 pending" in state.stdout

    stopped_at = {}
    for folder in folders:
        newest = load_newest(Store(folder))
        assert newest is not None and 0 < newest.images < IMAGES
        stopped_at[folder] = newest.images
    assert any(images % (IMAGES // CHECKPOINTS) for images in stopped_at.values()), "saved where it was"
    before = {folder: len(tiny.metrics(folder)) for folder in folders}
    done = tiny.hydramix("sweep", "resume", out)
    assert "2 trainings: 2 done" in done.stdout
    for folder in folders:
        later = tiny.metrics(folder)[before[folder] :]
        assert later and all(record["images"] >= stopped_at[folder] for record in later), "it went on from there"


@pytest.mark.full
def test_at_a_limit_the_rest_is_left(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = tree_of(data_of(tmp_path_factory.getbasetemp()), arms={"fine": {}, "well": {}, "waits": {}}, concurrent=1)
    work, out = Faulty(tmp_path / "attempts"), tmp_path / "out"
    work.folder.mkdir()

    def run(**limits: float) -> dict[str, str]:
        sweep = sweep_of(tree | {"limits": limits, "priorities": {"waits": -1}}, out, tmp_path / "shared")
        standing = run_sweep(sweep, Quiet(), work=work)
        assert read_status(Store(out))["state"] == "failed"
        return {line.facts["arm"]: line.state for line in standing.lines.values()}

    began = time.monotonic()
    assert run(trials=1) == {"fine": "done", "well": "left", "waits": "left"}
    a_start = time.monotonic() - began
    assert read_status(Store(out))["reason"] == "a limit was reached, 2 trainings are left"
    began = time.monotonic()
    assert run(trials=1) == {"fine": "done", "well": "left", "waits": "left"}
    assert time.monotonic() - began < a_start / 2, "what begins nothing starts no Ray"

    began = time.monotonic()
    seconds = a_start + 10
    assert run(hours=seconds / 3600) == {"fine": "done", "well": "done", "waits": "left"}
    assert seconds < time.monotonic() - began < seconds + STOP_SECONDS
    assert len(work.attempts("fine")) == len(work.attempts("well")) == len(work.attempts("waits")) == 1
    again = tiny.hydramix("sweep", "results", out, "--json")
    assert sorted(trial["state"] for trial in json.loads(again.stdout)["trials"]) == ["done", "done", "left"]


@pytest.mark.full
def test_two_sweeps_that_need_the_same_generator_train_it_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data, shared, counted = data_of(tmp_path_factory.getbasetemp()), tmp_path / "shared", Counted(tmp_path / "count")
    arms = {"hydramix": {"generator": "hydramix"}, "both": {"generator": "hydramix", "augmentation": "trivial"}}
    gate, outs = tmp_path / "gate", [tmp_path / name for name in arms]
    drivers = [
        drive(tree_of(data, arms={name: arm}), tmp_path / name, shared, counted.file, gate)
        for name, arm in arms.items()
    ]

    def asked(out: Path) -> bool:
        return any(event["event"] == "begun" and event["kind"] == "generator" for event in read_events(Store(out)))

    tiny.wait_for(lambda: all(map(asked, outs)) or any(driver.poll() is not None for driver in drivers), 240)
    gate.touch()
    for driver in drivers:
        _, said = driver.communicate(timeout=240)
        assert driver.returncode == 0, said
    (generator,) = {path.split("/")[1] for path in Store(shared).list("generators")}
    expected = {generator: 1, "hydramix-n5-seed0": 1, "both-n5-seed0": 1}
    assert counted.of("begun") == counted.of("finished") == expected
    for name, out in zip(arms, outs, strict=True):
        standing = read_standing(Store(out))
        assert standing.counts == {"done": 2}
        assert standing.lines[f"classifiers/data/{name}-n5-seed0"].result["generator_key"] == generator
        assert standing.lines[f"generators/{generator}"].attempts == 1, "to wait for another's is no attempt"
