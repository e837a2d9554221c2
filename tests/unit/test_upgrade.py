"""Runs of an earlier version are read, gone on with, and reported by this one.

`tests/stored/runs.tar.xz` was written by the program of 24 November 2026 (commit 66dd6e5, the first that could run with
the settings of today): a finished pilot, a generator stopped half way, and the images of both. What was left out,
for it is made of the rest: the pilot's page and sheets, and the segment maps.
"""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from safetensors import safe_open

from hydramix_dist.checkpoint import load_newest
from hydramix_dist.checkpoint.inspect import describe
from hydramix_dist.cli import main
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.results import load_results
from hydramix_dist.models.trained import load_classifier, load_generator
from hydramix_dist.orchestration.runs import find_runs
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run, read_status

STORED = Path(__file__).parents[1] / "stored" / "runs.tar.xz"
CLASSIFIER = "pilot/classifiers/hydramix-n5-seed0"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored folder. Nobody may change it."""
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of the stored folder, to be changed."""
    return Path(shutil.copytree(unpacked, tmp_path / "old"))


def hydramix(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["hydramix", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_checkpoints_are_whole_and_their_weights_come_out(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (generator,) = (unpacked / "pilot/generators").iterdir()
    for run in (unpacked / CLASSIFIER, generator, unpacked / "generator"):
        found = describe(Store(run))
        assert found and all(facts.damages == () and facts.engines for facts in found)
        assert hydramix(monkeypatch, "checkpoint", "verify", run) == 0
        assert hydramix(monkeypatch, "checkpoint", "show", run) == 0
    capsys.readouterr()
    assert hydramix(monkeypatch, "checkpoint", "export", unpacked / CLASSIFIER, tmp_path / "x.safetensors") == 0
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        names = set(file.keys())
    checkpoint = load_newest(Store(unpacked / CLASSIFIER))
    assert checkpoint is not None and names == set(checkpoint.engines["classifier"].weights)


def test_finished_models_are_used_and_reported(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_classifier(Store(old / CLASSIFIER)).classes == ("blue", "green")
    (generator,) = (old / "pilot/generators").iterdir()
    assert load_generator(Store(generator)).settings.mix.count == 3

    assert hydramix(monkeypatch, "predict", old / "pilot", old / "images/test") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[0] == "image,class,probability"  # six test images
    results = load_results(Store(old / "pilot"))
    assert hydramix(monkeypatch, "report", old / "pilot") == 0
    (accuracy,) = {f"{100 * run.accuracy:.1f}" for run in results.runs}
    assert accuracy in (old / "pilot/report.html").read_text()


def test_runs_are_listed(unpacked: Path) -> None:
    runs = {run.name: run for run in find_runs(Store(unpacked))}
    assert {name: (run.kind, run.state) for name, run in runs.items()} == {
        "pilot": ("pilot", "succeeded"),
        "generator": ("generator", "failed"),
    }
    assert len(runs["pilot"].checkpoints) == 2 and len(runs["generator"].checkpoints) == 1


def test_images_of_the_first_schema_are_refused_with_the_way_out(unpacked: Path) -> None:
    with pytest.raises(UserError, match=r"schema 1, this one reads 2\); import the source again") as caught:
        Dataset.open(str(unpacked / "pilot/data"))
    assert f"delete {unpacked}/pilot/data and run the command again" in str(caught.value)


def test_an_unfinished_training_goes_on_to_its_end(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Store(old / "generator")
    began = load_newest(run)
    assert began is not None and 0 < began.images < 1000
    command = ("train", "generator", old / "generator.yaml", f"data={old / 'images'}", "--out", run.url)
    assert hydramix(monkeypatch, *command) == 2  # its images are of the first schema
    assert "delete " in capsys.readouterr().err
    shutil.rmtree(old / "generator/data")
    assert hydramix(monkeypatch, *command, "--json") == 0

    result = json.loads(capsys.readouterr().out)
    assert result["images_seen"] == 1000
    seen = [json.loads(line)["images"] for line in (old / "generator/metrics.jsonl").read_text().splitlines()]
    assert seen == sorted(seen) and min(seen) <= began.images < max(seen)  # gone on, not begun anew
    assert read_status(run)["attempt"] == 2
    assert load_generator(run).identity == read_run(run)["identity"]


def test_a_finished_pilot_is_taken_up_again_and_finds_all_done(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_results(Store(old / "pilot"))
    record = old / "pilot/run.json"
    record.write_text(record.read_text().replace("/tmp/stored-runs", str(old)))  # its source lies elsewhere since
    shutil.rmtree(old / "pilot/data")
    assert hydramix(monkeypatch, "pilot", "--resume", "--out", old / "pilot") == 0
    after = load_results(Store(old / "pilot"))
    assert [run.accuracy for run in after.runs] == [run.accuracy for run in before.runs]
    assert (old / "pilot/report.html").exists()
