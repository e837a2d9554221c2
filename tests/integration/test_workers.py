"""`hydramix train` and `hydramix pilot` over two workers, through the command line: the same as in one process."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from hydramix_dist.checkpoint import EngineState, load_newest
from hydramix_dist.store import Store

pytestmark = pytest.mark.alone

# Two workers on a core: the tests ask for no more than that. No dropout, whose draws are each worker's own.
HALF = {"distributed": {"workers": 2, "cpus": 0.5}}
CALM: dict[str, Any] = {
    "seeds": [0],
    "generators": {"hydramix": tiny.PILOT["generators"]["hydramix"] | {"group": None, "images": 48}},
    "classifier": tiny.PILOT["classifier"] | {"dropout": 0.0, "images": 96, "optimizer": {"lr": 0.005}},
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def last(folder: Path) -> dict[str, EngineState]:
    checkpoint = load_newest(Store(folder))
    assert checkpoint is not None
    return dict(checkpoint.engines)


@pytest.mark.full
@pytest.mark.usefixtures("environment")
def test_pilot_over_two_workers_trains_the_same(tmp_path: Path, image_folder: Path) -> None:
    alone = tiny.write_preset(tmp_path / "alone.yaml", **CALM)
    both = tiny.write_preset(tmp_path / "both.yaml", **CALM, **HALF)
    tiny.hydramix("pilot", image_folder, "--preset", alone, "--out", tmp_path / "one")
    said = tiny.hydramix("pilot", image_folder, "--preset", both, "--out", tmp_path / "two").stderr
    assert "[3/3]" in said and "WARNING" not in said, said
    assert tiny.measured(tmp_path / "two").keys() == tiny.measured(tmp_path / "one").keys()
    folders = sorted(path.parent.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("*/*/checkpoints"))
    assert len(folders) == 3
    for folder in folders:
        tiny.assert_near(last(tmp_path / "two" / folder), last(tmp_path / "one" / folder))
        facts = json.loads((tmp_path / "two" / folder / "run.json").read_text())["facts"]
        assert (facts["workers"], facts["engine"]) == (2, "deepspeed-zero1")


@pytest.mark.usefixtures("environment")
def test_train_over_two_workers_answers_and_leaves_nothing_behind(tmp_path: Path, data_url: str) -> None:
    config = tmp_path / "generator.yaml"
    tree = {"data": data_url, "shots": 3, "generator": CALM["generators"]["hydramix"], **HALF}
    config.write_text(yaml.safe_dump(tree | {"runtime": tiny.PILOT["runtime"] | {"precision": "bf16"}}))
    home = tmp_path / "home"
    home.mkdir()

    without = os.environ | {"HOME": str(home), "ATEN_CPU_CAPABILITY": "avx2"}
    done = tiny.hydramix("train", "generator", config, "--out", tmp_path / "g", "--json", env=without)
    assert done.stderr.count("has no AVX-512 and computes bf16 in software") == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["images_seen"] == 48 and answer["weights_sha256"]
    assert not list(home.rglob("*")), "neither a token nor anything else in the user's home"
    again = tiny.hydramix("train", "generator", config, "--out", tmp_path / "g", "--json")
    assert json.loads(again.stdout) == answer


@pytest.mark.full
@pytest.mark.usefixtures("environment")
def test_command_over_two_workers_stopped_goes_on(tmp_path: Path, data_url: str) -> None:
    """By Ctrl-C, which the whole group of processes hears, and typed again."""
    config, run = tmp_path / "generator.yaml", tmp_path / "g"
    generator = CALM["generators"]["hydramix"] | {"images": 4000}
    tree = {"data": data_url, "shots": 3, "generator": generator, **HALF}
    config.write_text(yaml.safe_dump(tree | {"runtime": tiny.PILOT["runtime"] | {"checkpoints": 40}}))
    command = tiny.start_hydramix("train", "generator", config, "--out", run)
    tiny.wait_for(lambda: any(run.glob("checkpoints/*/manifest.json")), seconds=120)
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=60)
    assert command.returncode == 130 and "stopped after" in said[1] and said[0] == "", said
    stopped = load_newest(Store(run))
    assert stopped is not None and 0 < stopped.images < 4000
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    done = tiny.hydramix("train", "generator", config, "--out", run, "--json")
    assert json.loads(done.stdout)["images_seen"] == 4000
    finished = load_newest(Store(run))
    assert finished is not None and finished.engines["generator"].step == 1000
    for state in finished.engines.values():
        assert all(bool((moment >= 0).all()) for moment in state.moments["exp_avg_sq"].values())
