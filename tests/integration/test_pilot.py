"""`hydramix pilot` from images to a page, through the command line: finished, repeated, stopped, killed, full disk."""

import html
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from fixtures import FinishedPilot

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.results import load_results
from hydramix_dist.mixing.record import render
from hydramix_dist.mixing.transform import HydraMixTransform
from hydramix_dist.models.trained import load_classifier, load_generator
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_status


def files(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def page_of(run: Path) -> str:
    return html.unescape((run / "report.html").read_text())


def state(run: Path) -> str:
    return str(read_status(Store(run))["state"])


# ---- finished


def test_leaves_everything_it_promises(finished_pilot: FinishedPilot) -> None:
    run = finished_pilot.run
    results = load_results(Store(run))
    assert [(r.arm, r.shots, r.seed) for r in results.runs] == [
        (arm, 5, seed) for seed in (0, 1) for arm in ("baseline", "hydramix")
    ] and results.missing == ()
    for r in results.runs:
        correct = sum(r.confusion[i][i] for i in range(3))
        assert r.test_images == 24 == sum(map(sum, r.confusion)) and r.accuracy == pytest.approx(correct / 24)
        assert [images for images, _ in r.test_curve] == [120, 240, 360, 480]
        assert r.test_curve[-1][1] == pytest.approx(r.accuracy)
        assert (r.generator_seconds > 0) == (r.arm == "hydramix") and r.seconds > 0 and r.images_seen == 480
    page = page_of(run)
    assert results.verdict.sentences[0] in page and 'src="http' not in page
    for seed in (0, 1):
        subset = json.loads((run / "subsets" / f"n5-seed{seed}.json").read_text())
        assert len(subset["train"]) == len(set(subset["train"])) == 5 + 5 + 4 and subset["validation"] == []
    assert state(run) == "succeeded"
    assert all(state(folder.parent) == "succeeded" for folder in run.glob("*/*/status.json"))
    for where in ("report.html", "results.json", "run.json", f"hydramix predict {finished_pilot.run} IMAGES"):
        assert where in finished_pilot.stdout


def test_arms_that_mix_pixels_or_train_longer(image_folder: Path, tmp_path: Path) -> None:
    arms = {
        "baseline": {},
        "longer": {"classifier": {"images": 96, "optimizer": {"lr": 0.01}}},
        "pixels": {"augmentation": "trivial", "pixels": {"count": 2}},
        "whole": {"pixels": {"count": 3, "mask": {"kind": "whole", "assign": "shares"}}},
    }
    classifier = tiny.PILOT["classifier"] | {"images": 48}
    preset = tiny.write_preset(tmp_path / "p.yaml", arms=arms, seeds=[0], classifier=classifier)
    run = tmp_path / "run"
    tiny.hydramix("pilot", image_folder, "--preset", preset, "--out", run)
    results = load_results(Store(run))
    assert {r.arm: r.images_seen for r in results.runs} == {"baseline": 48, "longer": 96, "pixels": 48, "whole": 48}
    assert {arm.name: arm.mixing for arm in results.arms} == {
        "baseline": False,
        "longer": False,
        "pixels": True,
        "whole": True,
    }
    assert not (run / "generators").exists(), "no generator is trained that no arm needs"
    page = page_of(run)
    assert "its own classifier settings: images 96, optimizer.lr 0.01" in page
    assert "mixes of the pixels of 3 images, whole, shares mask" in page
    assert "the rest of the classifier is the same for all" in page
    curves = {r.arm: r.test_curve for r in results.runs}
    assert curves["whole"] != curves["baseline"], "mixes were trained on"
    with pytest.raises(UserError, match="has no generator; give the folder of a generator"):
        HydraMixTransform.from_run(str(run / "classifiers" / "whole-n5-seed0"))


def test_class_with_fewer_images_than_asked_goes_on_and_is_warned_of_in_the_report(
    finished_pilot: FinishedPilot,
) -> None:
    (warning,) = (w for w in load_results(Store(finished_pilot.run)).warnings if "red" in w and "fewer than 5" in w)
    assert warning in page_of(finished_pilot.run)


def test_recorded_mixes_are_made_again_from_the_run_alone(finished_pilot: FinishedPilot) -> None:
    run = finished_pilot.run
    dataset = Dataset.open(str(run / "data"))
    images = dict(zip(dataset.ids("train"), dataset.images("train", range(16), tiny.SIDE), strict=True))
    records = [json.loads(line) for line in (run / "mixes.jsonl").read_text().splitlines()]
    assert len(records) == 6 and {record["class"] for record in records} == {"blue", "green", "red"}
    for record in records:
        generator = load_generator(Store(run).child(record["generator"]))
        assert render(record, generator, images).mix_CHW.shape == (3, 32, 32)
        assert all(f"/{record['class']}/" in f"/{source}" for source in record["sources"])


def test_typed_again_says_finished_and_touches_nothing(finished_pilot: FinishedPilot) -> None:
    run, before = finished_pilot.run, files(finished_pilot.run)
    again = tiny.hydramix("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", run)
    assert "finished already; the report is" in again.stderr and str(run / "report.html") in again.stderr
    resumed = tiny.hydramix("pilot", "--resume", "--out", run, "--json")
    assert "finished already" in resumed.stderr
    whole = json.loads(resumed.stdout)
    assert whole["report"] == str(run / "report.html") and len(whole["runs"]) == 4
    assert files(run) == before


def test_other_settings_in_its_folder_are_refused_with_the_key(finished_pilot: FinishedPilot) -> None:
    run, before = finished_pilot.run, files(finished_pilot.run)
    refused = tiny.hydramix(
        "pilot",
        finished_pilot.images,
        "--preset",
        finished_pilot.preset,
        "--out",
        run,
        "--set",
        "classifier.batch=8",
        check=2,
    )
    (sentence,) = (line for line in refused.stderr.splitlines() if line.startswith("error:"))
    assert "settings.classifier.batch was 4, now 8" in sentence and "choose another folder" in sentence
    assert "Traceback" not in refused.stderr
    changed = {name for name, time in files(run).items() if before.get(name) != time}
    assert changed <= {".lock"}


def test_transform_comes_out_of_a_pilots_folders(finished_pilot: FinishedPilot) -> None:
    run = finished_pilot.run
    (generator,) = {r.generator_key for r in load_results(Store(run)).runs if r.generator_key and r.seed == 0}
    images, labels = tiny.pictures(4, 16), torch.tensor([0, 1, 2, 1])
    mixed = [
        HydraMixTransform.from_run(str(folder), share=1.0, seed=4)(images, labels)[0]
        for folder in (run / "generators" / str(generator), run / "classifiers" / "hydramix-n5-seed0")
    ]
    assert torch.equal(mixed[0], mixed[1]) and mixed[0].dtype == torch.uint8
    assert not torch.equal(mixed[0], images)


def test_transform_refuses_what_has_no_generator_or_other_images(finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    run = finished_pilot.run
    for folder in (run / "classifiers" / "baseline-n5-seed0", run):
        with pytest.raises(UserError, match="has no generator; give the folder"):
            HydraMixTransform.from_run(str(folder))
    other = tiny.image_folder(tmp_path / "other", {"a": 2, "b": 2}, test=1)
    tiny.hydramix("data", "import", other, tmp_path / "set")
    with pytest.raises(UserError, match="is not the image set"):
        HydraMixTransform.from_run(str(run / "classifiers/hydramix-n5-seed0"), data=str(tmp_path / "set"))


def test_models_are_loaded_finished_and_whole_or_not_at_all(finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    folder = finished_pilot.run / "classifiers" / "baseline-n5-seed0"
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
    assert load_classifier(Store(copy)).classes == ("blue", "green", "red")
    with pytest.raises(UserError, match="holds a classifier run, a generator run is needed"):
        load_generator(Store(copy))
    newest = max((copy / "checkpoints").iterdir())
    (newest / "classifier.safetensors").unlink()
    with pytest.raises(UserError, match=r"last checkpoint of the classifier run in .* is damaged"):
        load_classifier(Store(copy))
    (copy / "status.json").write_text('{"state": "failed"}')
    with pytest.raises(UserError, match="is not finished"):
        load_classifier(Store(copy))


# ---- disturbed; one seed is enough, for a training does not depend on the others


def command(finished_pilot: FinishedPilot, run: Path, *options: str) -> tuple[str | Path, ...]:
    return ("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", run, "--seeds", "1", *options)


def has_saved(run: Path, pattern: str) -> bool:
    return any(run.glob(f"{pattern}/checkpoints/*/manifest.json"))


def assert_equals(run: Path, undisturbed: Path, trainings: int) -> None:
    """Check that all that a run trained and measured is, to the bit, what the undisturbed one did."""
    measured, weights = tiny.measured(run), tiny.weights_of(run)
    assert len(weights) == trainings
    assert measured.items() <= tiny.measured(undisturbed).items()
    assert weights.items() <= tiny.weights_of(undisturbed).items()
    assert state(run) == "succeeded"


def test_interrupted_half_way_and_resumed_equals_undisturbed(finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pilot = tiny.start_hydramix(*command(finished_pilot, run))
    tiny.wait_for(lambda: has_saved(run, "classifiers/hydramix-*"))
    workers = tiny.workers_of(pilot.pid)
    os.killpg(pilot.pid, signal.SIGINT)  # as the terminal sends it: to all processes of the command
    _, stderr = pilot.communicate(timeout=60)
    assert pilot.returncode == 130
    assert "everything so far is saved" in stderr and "Traceback" not in stderr
    assert state(run) == "failed"
    assert workers and not any(map(tiny.alive, workers))
    done = list(run.glob("*/*/result.json"))
    assert 0 < len(done) < 3 and load_results(Store(run)).missing != (), "a page over what is there"
    before = {path: path.stat().st_mtime_ns for path in done}
    resumed = tiny.hydramix("pilot", "--resume", "--out", run)
    assert "Too short to judge" in resumed.stdout
    assert before == {path: path.stat().st_mtime_ns for path in done}, "what was finished is not trained again"
    assert_equals(run, finished_pilot.run, trainings=4)


def test_killed_worker_then_killed_pilot_then_typed_again_equals_undisturbed(
    finished_pilot: FinishedPilot, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pilot = tiny.start_hydramix(*command(finished_pilot, run))
    tiny.wait_for(lambda: has_saved(run, "generators/*"))
    tiny.kill(tiny.workers_of(pilot.pid)[0])
    tiny.wait_for(lambda: has_saved(run, "classifiers/hydramix-*"))
    workers = tiny.workers_of(pilot.pid)
    tiny.kill(pilot.pid)
    _, stderr = pilot.communicate(timeout=60)
    assert "was killed (exit code -9)" in stderr
    tiny.wait_for(lambda: not any(map(tiny.alive, workers)), seconds=20)
    assert state(run) == "running", "nobody was left to write another"
    tiny.hydramix(*command(finished_pilot, run))
    assert_equals(run, finished_pilot.run, trainings=4)


def test_stopped_before_any_classifier_leaves_a_page_that_says_so(
    finished_pilot: FinishedPilot, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pilot = tiny.start_hydramix(*command(finished_pilot, run, "--set", "classifier.images=40000"))
    tiny.wait_for(lambda: any(run.glob("generators/*/result.json")) and any(run.glob("classifiers/hydramix*")))
    pilot.send_signal(signal.SIGTERM)
    _, stderr = pilot.communicate(timeout=60)
    assert pilot.returncode == 130 and "Traceback" not in stderr
    results = load_results(Store(run))
    assert results.runs == () and len(results.missing) == 2
    assert (run / "report.html").exists()


@pytest.mark.service
def test_full_disk_is_one_sentence_and_with_more_room_it_goes_on(
    finished_pilot: FinishedPilot, tiny_disk: Path
) -> None:
    run = tiny_disk / "run"
    one_training = command(finished_pilot, run, "--arms", "baseline")
    full = tiny.hydramix(*one_training, check=2)
    assert "the disk is full" in full.stderr and "Traceback" not in full.stderr
    assert len([line for line in full.stderr.splitlines() if line.startswith("error:")]) == 1
    assert any(run.glob("data/manifest.json")), "what was done is kept"
    subprocess.run(["mount", "-o", "remount,size=100m", str(tiny_disk)], check=True)
    tiny.hydramix(*one_training)
    assert_equals(run, finished_pilot.run, trainings=1)


def test_failed_training_is_told_and_the_others_are_compared(finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--set", "generators.hydramix.optimizer.lr=1e30", "--set", "classifier.images=80")
    done = tiny.hydramix(*command(finished_pilot, run, *options), check=1)
    assert "failed: generator hydramix" in done.stderr and "the loss is not finite" in done.stderr
    assert "not begun, for the training it needs failed" in done.stderr
    assert f"hydramix pilot --resume --out {run}" in done.stdout
    assert [r.arm for r in load_results(Store(run)).runs] == ["baseline"]
    assert read_status(Store(run))["reason"] == "2 of 3 trainings failed"
