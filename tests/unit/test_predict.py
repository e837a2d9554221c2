"""`hydramix predict`: new images of any size and mode, answered in order, with what could not be read named."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import FinishedPilot
from PIL import Image

from hydramix_dist.cli import main
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.results import load_results
from hydramix_dist.models.pixels import to_float
from hydramix_dist.models.trained import load_classifier
from hydramix_dist.orchestration.predict import Images, choose_classifier, classify, find_images
from hydramix_dist.store import Store


def predict(*arguments: str | Path) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hydramix", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
    return int(leaving.value.code or 0)


def rows(text: str) -> list[list[str]]:
    header, *body = csv.reader(io.StringIO(text))
    assert header == ["image", "class", "probability"]
    return body


@pytest.fixture
def folder(finished_pilot: FinishedPilot, tmp_path: Path) -> Path:
    """Readable images of all kinds, made of one test image: other sizes, modes, formats."""
    source = Image.open(finished_pilot.images / "test" / "red" / "00.png")
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    source.save(images / "same.png")
    source.resize((80, 60)).save(images / "wide.jpg")
    source.resize((20, 20)).save(images / "small.bmp")
    source.convert("L").save(images / "grey.png")
    source.convert("P").save(images / "palette.gif")
    source.convert("RGBA").save(images / "alpha.webp", lossless=True)
    source.convert("CMYK").save(images / "print.tiff")
    Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257).save(images / "deep.png")
    source.save(images / "deeper" / "UPPER.PNG")
    (images / "notes.txt").write_text("no image")
    return images


def test_every_readable_image_gets_a_line_in_order(
    finished_pilot: FinishedPilot, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(finished_pilot.run, folder) == 0
    out, err = capsys.readouterr()
    found = rows(out)
    assert [row[0] for row in found] == [
        find_images(str(folder)).store.path(name) for name in find_images(str(folder)).names
    ] and len(found) == 9
    assert all(row[1] in ("blue", "green", "red") and 1 / 3 <= float(row[2]) <= 1 for row in found)
    answers = {Path(path).name: (label, probability) for path, label, probability in found}
    assert answers["same.png"] == answers["UPPER.PNG"] == answers["alpha.webp"]
    assert "9 images classified" in err


def test_answers_are_those_of_the_pilots_own_test(finished_pilot: FinishedPilot) -> None:
    """The files of the test split, read anew, are seen as the training saw the imported ones."""
    folder = Store(finished_pilot.run).child("classifiers/hydramix-n5-seed1")
    stored = json.loads(folder.read("result.json"))["predictions"]
    dataset = Dataset.open(str(finished_pilot.run / "data"))
    paths = dataset.ids("test")
    answers = classify(folder, Images(Store(finished_pilot.images), paths))
    assert [a.label for a in answers] == [dataset.classes[label] for label in stored]
    trained = load_classifier(folder)
    images = to_float(dataset.images("test", range(len(paths)), 16))
    probabilities = trained.network(images).softmax(1).max(1).values
    torch.testing.assert_close(torch.tensor([a.probability for a in answers]), probabilities, rtol=1e-4, atol=1e-6)


def test_unreadable_image_is_named_with_the_reason_and_the_others_are_answered(
    finished_pilot: FinishedPilot, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"not an image at all")
    whole = (folder / "wide.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    target = tmp_path / "out" / "answers.csv"
    assert predict(finished_pilot.run, folder, "--out", target, "--arm", "baseline") == 1
    out, err = capsys.readouterr()
    assert out == "" and len(rows(target.read_text())) == 9
    for name in ("broken.png", "cut.jpg"):
        (line,) = (line for line in err.splitlines() if name in line)
        assert line.startswith("not read: ") and len(line.partition(f"{name}: ")[2]) > 10
    assert "Traceback" not in err and str(target) in err


def test_only_unreadable_images(
    finished_pilot: FinishedPilot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    assert predict(finished_pilot.run, tmp_path / "x.png") == 1
    out, err = capsys.readouterr()
    assert rows(out) == [] and "not read:" in err


def test_json_for_machines(finished_pilot: FinishedPilot, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.png").write_bytes(b"")
    assert predict(finished_pilot.run, folder, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["predictions"]) == 10
    broken = [p for p in answer["predictions"] if p["error"]]
    assert [Path(p["image"]).name for p in broken] == ["broken.png"] and broken[0]["label"] is None
    assert Store(answer["classifier"]).exists("run.json")


@pytest.mark.parametrize("make", ["nothing", "empty", "texts"])
def test_no_images_is_said(
    finished_pilot: FinishedPilot, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: str
) -> None:
    path = tmp_path / "images"
    if make != "nothing":
        path.mkdir()
    if make == "texts":
        (path / "a.txt").write_text("x")
    assert predict(finished_pilot.run, path) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path} ") and (
        "does not exist" in err if make == "nothing" else "holds no image" in err
    )


def test_classifier_is_chosen_by_the_mean_and_never_by_the_seeds_test_result(finished_pilot: FinishedPilot) -> None:
    run = Store(finished_pilot.run)
    best = max(load_results(run).summaries, key=lambda s: s.mean)
    assert choose_classifier(run, None).name == f"{best.arm}-n5-seed0"
    assert choose_classifier(run, "baseline").name == "baseline-n5-seed0"
    one = run.child("classifiers/hydramix-n5-seed1")
    assert choose_classifier(one, None).url == one.url


def test_wrong_folders_and_arms_are_said(finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    run = Store(finished_pilot.run)
    with pytest.raises(UserError, match=r"--arm 'hydra' has no finished run in .*; there are baseline, hydramix"):
        choose_classifier(run, "hydra")
    with pytest.raises(UserError, match="is a single run; --arm is for a pilot"):
        choose_classifier(run.child("classifiers/hydramix-n5-seed1"), "baseline")
    with pytest.raises(UserError, match="holds no run"):
        choose_classifier(Store(tmp_path), None)
    generator = next(finished_pilot.run.glob("generators/*"))
    with pytest.raises(UserError, match="holds a generator run, a classifier run is needed"):
        classify(choose_classifier(Store(generator), None), find_images(str(finished_pilot.images)))


def test_pilot_without_results_is_said(finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((finished_pilot.run / "run.json").read_bytes())
    with pytest.raises(UserError, match="has no results yet; run hydramix pilot --resume"):
        choose_classifier(Store(tmp_path), None)
    stopped = json.loads((finished_pilot.run / "results.json").read_text()) | {"runs": [], "summaries": [], "pairs": []}
    (tmp_path / "results.json").write_text(json.dumps(stopped))  # as a pilot leaves it that is stopped early
    with pytest.raises(UserError, match="has no finished classifier yet; run hydramix pilot --resume"):
        choose_classifier(Store(tmp_path), None)


def test_images_may_be_one_file(finished_pilot: FinishedPilot) -> None:
    path = finished_pilot.images / "test" / "blue" / "01.png"
    images = find_images(str(path))
    assert [images.store.read(name) for name in images.names] == [path.read_bytes()]
    assert images.store.path(images.names[0]) == str(path)
    (answer,) = classify(choose_classifier(Store(finished_pilot.run), None), images)
    assert answer.image == str(path) and answer.error is None


def test_size_that_does_not_matter(tmp_path: Path, finished_pilot: FinishedPilot) -> None:
    """A plain colour is the same image at every size, so the answer must be the same."""
    for side in ((32, 32), (64, 64), (300, 17), (1, 1)):
        Image.new("RGB", side, (200, 30, 30)).save(tmp_path / f"{side[0]}x{side[1]}.png")
    answers = classify(choose_classifier(Store(finished_pilot.run), None), find_images(str(tmp_path)))
    assert len({a.label for a in answers}) == 1
    assert max(a.probability or 0 for a in answers) - min(a.probability or 0 for a in answers) < 1e-5
