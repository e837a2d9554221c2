"""`hydramix train`: one training by itself, through the command line's own function, in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from hydramix_dist.cli.train import train_command
from hydramix_dist.errors import UserError

GENERATOR = {
    "generator": tiny.PILOT["generators"]["hydramix"] | {"images": 24, "group": None},
    "runtime": tiny.PILOT["runtime"],
}
CLASSIFIER = {"classifier": tiny.PILOT["classifier"] | {"images": 24}, "runtime": tiny.PILOT["runtime"]}


def write(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.fixture
def files(tmp_path: Path, data_url: str) -> dict[str, str]:
    """Settings of a generator and of a classifier on the tiny image set."""
    return {
        "generator": write(tmp_path / "generator.yaml", GENERATOR | {"data": data_url, "shots": 3}),
        "classifier": write(tmp_path / "classifier.yaml", CLASSIFIER | {"data": data_url, "shots": 3}),
    }


def train(kind: str, file: str, out: Path, *assignments: str, workers: int | None = None, json_: bool = False) -> int:
    return train_command(kind, file, list(assignments), workers, None, str(out), json_)


def test_generator_then_classifier_with_its_mixes(
    tmp_path: Path, files: dict[str, str], data_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("generator", files["generator"], tmp_path / "g") == 0
    said = capsys.readouterr()
    assert (
        f"train classifier CONFIG data={data_url} shots=3 seed=0 generator_run={tmp_path / 'g'}" in said.out
        and f"writing to {tmp_path / 'g'}" in said.err
    )
    assert train("classifier", files["classifier"], tmp_path / "c", f"generator_run={tmp_path / 'g'}", json_=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["images_seen"] == 24 and answer["kind"] == "classifier"
    assert len(answer["predictions"]) == 24, "all test images of three classes"
    identity = json.loads((tmp_path / "c" / "run.json").read_text())["identity"]
    assert identity["generator"] and identity["generator"] == identity["method"]["generator"]
    without = tmp_path / "without"
    assert train("classifier", files["classifier"], without) == 0
    assert json.loads((without / "result.json").read_text())["predictions"] is not None
    assert json.loads((without / "run.json").read_text())["identity"]["generator"] is None


def test_typed_again_a_finished_training_is_not_repeated(tmp_path: Path, files: dict[str, str]) -> None:
    train("generator", files["generator"], tmp_path / "g")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "g" / "checkpoints").rglob("*")}
    # Not even workers are started for it: how many is no part of what a run is.
    train("generator", files["generator"], tmp_path / "g", workers=2)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "g" / "checkpoints").rglob("*")}


def test_same_training_has_the_same_folder_on_any_number_of_workers(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train_command("generator", files["generator"], [], None, None, None, False)
    train_command("generator", files["generator"], ["runtime.checkpoints=3"], 2, None, None, False)
    train_command("generator", files["generator"], ["seed=1"], None, None, None, False)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_folder_of_another_run_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    train("generator", files["generator"], tmp_path / "g")
    for workers in (None, 2):
        with pytest.raises(UserError, match="holds another run: seed was 0, now 1"):
            train("generator", files["generator"], tmp_path / "g", "seed=1", workers=workers)
    with pytest.raises(UserError, match="holds a generator run, not a classifier run"):
        train("classifier", files["classifier"], tmp_path / "g", workers=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("shots=2",), "another subset of the images"),
        (("seed=1",), "another subset of the images"),
        (("data=null",), "another image set"),
    ],
)
def test_generator_that_saw_other_images_is_refused(
    tmp_path: Path, files: dict[str, str], changes: tuple[str, ...], said: str
) -> None:
    train("generator", files["generator"], tmp_path / "g")
    with pytest.raises(UserError, match=f"generator_run .* was trained on {said}"):
        train("classifier", files["classifier"], tmp_path / "c", f"generator_run={tmp_path / 'g'}", *changes)


@pytest.mark.parametrize(
    ("assignments", "workers", "said"),
    [
        (
            ("generator.group=4",),
            5,
            r"a batch of 4 cannot be shared by 5 workers \(groups of 4 are not divided\); use at most 1, or",
        ),
        ((), 5, "a batch of 4 cannot be shared by 5 workers; use at most 4, or a batch"),
        (("runtime.compile=true",), 2, "runtime.compile is for one process"),
        (("distributed.deepspeed=zero4",), 2, r"deepspeed 'zero4' .* \(did you mean 'zero"),
        (("distributed.min_workers=3",), 2, "min_workers 3 is above workers 2"),
        (
            ("distributed.cpus=100",),
            2,
            "distributed.workers is 2 at 100 CPU each, but this machine",
        ),
        (("distributed.gpus=1",), 2, "but the training is on the CPU"),
        (("runtime.micro_batch=2", "generator.group=4"), None, "runtime.micro_batch 2 is below the group of 4"),
        (("data=/no/such/folder",), None, "/no/such/folder does not exist"),
        (("generator.imags=4",), None, "unknown key 'generator.imags'"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(
    tmp_path: Path, files: dict[str, str], assignments: tuple[str, ...], workers: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train("generator", files["generator"], tmp_path / "out", *assignments, workers=workers)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_name_that_is_no_ready_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CONFIG 'quik' is not known \(did you mean 'quick'\?\)"):
        train("generator", "quik", tmp_path / "out")


def test_images_that_are_gone_after_their_import_are_not_needed(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.image_folder(tmp_path / "images", {"blue": 4, "green": 4}, test=2)
    train("generator", files["generator"], tmp_path / "g", f"data={source}")
    shutil.rmtree(source)
    (tmp_path / "g" / "result.json").unlink()
    assert train("generator", files["generator"], tmp_path / "g", f"data={source}") == 0
    assert f"{source} is gone; going on with what was imported from it" in capsys.readouterr().err
    with pytest.raises(UserError, match="does not exist"):
        train("generator", files["generator"], tmp_path / "other", f"data={source}")
