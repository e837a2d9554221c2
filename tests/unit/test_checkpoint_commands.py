"""`hydramix checkpoint show|verify|export`: what is inside, is it whole, and plain weights for use elsewhere."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from fixtures import FinishedPilot

from hydramix_dist.checkpoint import load, load_newest, weights_digest
from hydramix_dist.checkpoint.export import export
from hydramix_dist.cli.checkpoint import export_command, show_command, verify_command
from hydramix_dist.config.load import build, dump
from hydramix_dist.config.schema import GeneratorSettings
from hydramix_dist.errors import UserError
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.trained import load_classifier, load_generator
from hydramix_dist.store import Store

Read = Callable[[], str]


@pytest.fixture(scope="module")
def finished_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator trained to its end, with checkpoints after 32 and 48 images. Nobody may change its folder."""
    folder = tmp_path_factory.mktemp("finished") / "generator"
    tiny.run_generator(folder)
    return folder


@pytest.fixture
def generator(finished_generator: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(finished_generator, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Read:
    return lambda: capsys.readouterr().out


def file_of(run: Path, images: int, name: str) -> Path:
    return run / "checkpoints" / f"{images:012d}" / name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# ---- show


def test_show_says_what_is_inside(finished_generator: Path, printed: Read) -> None:
    assert show_command(str(finished_generator), json_=False) == 0
    heading, titles, *rows = printed().splitlines()
    assert heading == str(finished_generator)
    assert titles.split() == ["images", "engine", "step", "weights", "bytes", "score", "state", "counters"]
    network = tiny.generator_training().engines["generator"].module
    weights = str(sum(tensor.numel() for tensor in network.state_dict().values()))
    size = sum(
        file_of(finished_generator, 48, name).stat().st_size
        for name in ("generator.safetensors", "generator.optimizer.safetensors")
    )
    assert [row.split()[:3] for row in rows] == [
        ["32", "generator", "8"],
        ["32", "discriminator", "8"],
        ["48", "generator", "12"],
        ["48", "discriminator", "12"],
    ]
    assert rows[2].split()[3:6] == [weights, str(size), "whole"]
    assert "evaluations 0" in rows[2] and "seconds " in rows[2]
    assert len({row.index("whole") for row in rows if "whole" in row}) == 1, "columns stand below each other"


def test_show_json_is_the_whole_of_it(finished_generator: Path, printed: Read) -> None:
    assert show_command(str(finished_generator), json_=True) == 0
    shown = json.loads(printed())
    assert shown["run"] == str(finished_generator)
    newest = shown["checkpoints"][-1]
    assert newest["images"] == 48 and newest["whole"] is True and newest["damages"] == [] and newest["score"] is None
    assert newest["engines"]["discriminator"]["step"] == 12
    assert newest["counters"] == load(Store(finished_generator), 48).counters


def test_show_tells_scores_and_counts_evaluations(tmp_path: Path, printed: Read) -> None:
    tiny.run_classifier(tmp_path, inputs=tiny.classifier_inputs(validation=True))
    scores = [
        f"{record['validation_accuracy_ratio']:.4f}"
        for record in tiny.metrics(tmp_path)
        if "validation_accuracy_ratio" in record
    ]
    assert show_command(str(tmp_path), json_=False) == 0
    last = printed().splitlines()[-1]
    assert last.split()[:2] == ["48", "classifier"] and last.split()[5] == scores[-1]
    assert "evaluations 3" in last


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("generator.safetensors", flip, "generator.safetensors has"),
        ("discriminator.optimizer.safetensors", Path.unlink, "discriminator.optimizer.safetensors is missing"),
        ("manifest.json", flip, "its manifest is damaged"),
    ],
)
def test_damage_is_shown_and_found(
    generator: Path, printed: Read, name: str, harm: Callable[[Path], None], said: str
) -> None:
    before = file_of(generator, 48, name).read_bytes()
    harm(file_of(generator, 48, name))
    if name == "manifest.json":  # its last byte is a line's end
        file_of(generator, 48, name).write_bytes(before.replace(b'"images": 48', b'"images": 47'))
    sentence = f"damaged: {generator}/checkpoints/{48:012d}: {said}"
    assert show_command(str(generator), json_=False) == 0
    rows = printed().splitlines()
    assert rows[-1].startswith(sentence)
    assert ["whole" in row for row in rows if row.startswith("    32   generator")] == [True]
    assert sum("broken" in row.split() for row in rows) == 1
    assert verify_command(str(generator), json_=False) == 1
    first, last = printed().splitlines()
    assert first.startswith(sentence) and last.startswith("1 of 2 checkpoints are damaged")


# ---- verify


def test_verify_of_a_whole_run(finished_generator: Path, printed: Read) -> None:
    assert verify_command(str(finished_generator), json_=False) == 0
    assert printed() == f"{finished_generator}: every file of 2 checkpoints is as it was written\n"
    assert verify_command(str(finished_generator), json_=True) == 0
    assert json.loads(printed()) == {"run": str(finished_generator), "checkpoints": 2, "damages": []}


def test_verify_names_every_damaged_file(generator: Path, printed: Read) -> None:
    damaged = [(32, "generator.safetensors"), (32, "discriminator.safetensors"), (48, "generator.safetensors")]
    for images, name in damaged:
        flip(file_of(generator, images, name))
    assert verify_command(str(generator), json_=True) == 1
    found = json.loads(printed())["damages"]
    assert [(int(d["checkpoint"][-12:]), d["problem"].split()[0]) for d in found] == damaged


# ---- export


def test_exported_weights_are_those_of_the_training(finished_generator: Path, tmp_path: Path, printed: Read) -> None:
    target = tmp_path / "weights.safetensors"
    assert export_command(str(finished_generator), str(target), None, None, json_=False) == 0
    first, *rest = printed().splitlines()
    assert first == f"wrote the weights of the generator after 48 images to {target}"
    program = "\n".join(rest[2:])
    loaded: dict[str, Any] = {}
    exec(program, loaded)
    assert len(program.splitlines()) == 3
    trained = load_generator(Store(finished_generator))
    about = loaded["about"]
    assert about["kind"] == about["engine"] == "generator" and about["images"] == "48" and about["step"] == "12"
    assert about["weights_sha256"] == trained.weights_sha256 and "classes" not in about
    settings = build(GeneratorSettings, json.loads(about["settings"]), "metadata")
    assert dump(settings) == dump(tiny.generator_settings())
    network = Generator(settings.network).eval()
    network.load_state_dict(loaded["weights"])
    f_1Dhw, same_1Dhw = (n.encode(torch.ones(1, 3, tiny.SIDE, tiny.SIDE)) for n in (network, trained.network))
    assert torch.equal(f_1Dhw, same_1Dhw)


def test_exported_classifier_works_as_the_page_says(
    finished_pilot: FinishedPilot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = min((finished_pilot.run / "classifiers").iterdir())
    export(Store(folder), "classifier.safetensors", None, None)
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    loaded: dict[str, Any] = {}
    exec(program, loaded)
    trained = load_classifier(Store(folder))
    assert tuple(loaded["classes"]) == trained.classes == ("blue", "green", "red")
    side = trained.settings.side
    assert torch.equal(*(network(torch.ones(1, 3, side, side)) for network in (loaded["network"], trained.network)))


def test_engine_and_images_choose(finished_generator: Path, tmp_path: Path, printed: Read) -> None:
    target = tmp_path / "d.safetensors"
    assert export_command(str(finished_generator), str(target), "discriminator", 32, json_=True) == 0
    said = json.loads(printed())
    assert (said["path"], said["engine"], said["images"], said["written"]) == (str(target), "discriminator", 32, True)
    digest = weights_digest(load(Store(finished_generator), 32).engines["discriminator"].weights)
    assert weights_digest(safetensors.torch.load_file(target)) == digest == said["metadata"]["weights_sha256"]


def test_the_same_again_is_well_and_other_content_is_never_overwritten(
    finished_generator: Path, tmp_path: Path, printed: Read
) -> None:
    run, target = str(finished_generator), tmp_path / "new" / "w.safetensors"
    for first in ("wrote", str(target)):
        assert export_command(run, str(target), None, None, json_=False) == 0
        assert printed().startswith(first)
    before = target.read_bytes()
    for engine, images in (("discriminator", None), (None, 32)):
        with pytest.raises(UserError, match=r"w\.safetensors exists and holds something else; choose another name"):
            export(Store(run), str(target), engine, images)
    assert target.read_bytes() == before
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match="exists and holds something else"):
        export(Store(run), str(tmp_path / "folder.safetensors"), None, None)


def test_target_beside_the_working_folder(
    finished_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = export(Store(finished_generator), "w.safetensors", None, None)
    assert done.path == str(tmp_path / "w.safetensors") and (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("target", "engine", "images", "said"),
    [
        (
            "w.safetensors",
            "generatr",
            None,
            r"no engine 'generatr' \(did you mean 'generator'\?\); --engine can be gen",
        ),
        ("w.safetensors", "classifier", None, "no engine 'classifier'; --engine can be generator, discriminator$"),
        ("w.safetensors", None, 40, "has no checkpoint of 40 images; --images can be 32, 48$"),
        ("weights", None, None, r"'.*weights' is no name of a \.safetensors file; give for example .*/generator\.safe"),
        ("weights.pt", None, None, r"is no name of a \.safetensors file"),
    ],
)
def test_bad_choices_name_what_there_is(
    finished_generator: Path, tmp_path: Path, target: str, engine: str | None, images: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        export(Store(finished_generator), str(tmp_path / target), engine, images)
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_not_exported_and_older_ones_only_on_request(generator: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "w.safetensors")
    flip(file_of(generator, 48, "generator.safetensors"))
    with pytest.raises(
        UserError, match=r"48 is damaged \(generator.safetensors has .*--images chooses another: 32, 48"
    ):
        export(Store(generator), target, None, None)
    assert not Path(target).exists()
    assert export(Store(generator), target, "generator", 32).written
    assert export(Store(generator), str(tmp_path / "d.safetensors"), "discriminator", None).images == 48


# ---- folders that are none of a training


@pytest.mark.parametrize(
    "command",
    [
        lambda run: show_command(run, json_=False),
        lambda run: verify_command(run, json_=False),
        lambda run: export_command(run, f"{run}.safetensors", None, None, json_=False),
    ],
    ids=["show", "verify", "export"],
)
def test_other_folders_are_refused(
    tmp_path: Path, finished_pilot: FinishedPilot, command: Callable[[str], int], printed: Read
) -> None:
    with pytest.raises(UserError, match="holds no run"):
        command(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"holds a pilot, .*give one of them: classifiers/baseline-n5-seed0, .* more$"):
        command(str(finished_pilot.run))
    calls = iter([False])
    with pytest.raises(StopIteration):  # killed before its first checkpoint
        tiny.run_generator(tmp_path / "begun", should_stop=lambda: next(calls))
    with pytest.raises(UserError, match="begun has no checkpoint yet"):
        command(str(tmp_path / "begun"))
    assert printed() == ""


def test_nothing_is_changed_by_looking(finished_generator: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_generator.rglob("*")}
    show_command(str(finished_generator), json_=False)
    verify_command(str(finished_generator), json_=False)
    export(Store(finished_generator), str(tmp_path / "w.safetensors"), None, None)
    assert before == {path: path.stat().st_mtime_ns for path in finished_generator.rglob("*")}
    assert load_newest(Store(finished_generator)) is not None
