"""The command line: bad input is one clear sentence and exit code 2, machines get JSON, nothing shows a traceback."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from fixtures import FinishedPilot

from hydramix_dist.cli import main
from hydramix_dist.cli.pilot import _default_out, read_pilot
from hydramix_dist.config.load import configs_root
from hydramix_dist.errors import UserError


class Cli:
    """Runs commands in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = patch, capture

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        self._patch.setattr("sys.argv", ["hydramix", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = self._capture.readouterr()
        return int(leaving.value.code or 0), out, err

    def refuses(self, *arguments: str | Path) -> str:
        """Return the one sentence with which a command refuses its input."""
        code, out, err = self(*arguments)
        assert code == 2, (code, out, err)
        assert out == "" and "Traceback" not in err
        (sentence,) = (line for line in err.splitlines() if line.startswith("error: "))
        return sentence.removeprefix("error: ")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


# ---- a pilot's bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "quikc"], "--preset 'quikc' is not known (did you mean 'quick'?); there are paper, quick, smoke"),
        (["--preset", "mine.yaml"], "settings file mine.yaml: No such file or directory"),
        (["--set", "classifier.bacth=4"], "unknown key 'classifier.bacth' (did you mean 'batch'?); allowed here: ba"),
        (["--set", "clasifier.batch=4"], "unknown key 'clasifier' (did you mean 'classifier'?)"),
        (["--set", "generators.hydramix.mix.cuont=4"], "'generators.hydramix.mix.cuont' (did you mean 'count'?)"),
        (["--set", "classifier.batch=many"], "'classifier.batch': input should be a valid integer (given: 'many')"),
        (["--set", "classifier.batch=1"], "'classifier.batch': input should be greater than or equal to 2 (given: 1)"),
        (["--set", "classifier.mix_share=1.5"], "'classifier.mix_share': input should be less than or equal to 1"),
        (["--set", "classifier.batch"], "override 'classifier.batch' has no '='"),
        (["--set", "classifier.network=wrn-11-2"], "network 'wrn-11-2' does not exist"),
        (["--arms", "baseline,hydramixx"], "--arms 'hydramixx' is not an arm (did you mean 'hydramix'?)"),
        (["--arms", ","], "'arms'"),
        (["--shots", "5,x"], "--shots '5,x' is not a list of whole numbers such as 5,10"),
        (["--shots", "0"], "greater than or equal to 1 (given: 0)"),
        (["--shots", "5,5"], "shots lists a value twice"),
        (["--preset", "/etc/passwd"], "--preset '/etc/passwd' is not known; there are paper, quick, smoke, standard"),
        (["--set", "=4"], "override '=4' has no key before the '='"),
        (["--set", "generators.hydra.mix.count=4"], "no arm uses a generator of that name (did you mean 'hydramix'?)"),
        (["--shots", ","], "'shots': at least one is needed, none was given"),
        (["--seeds", "0"], "--seeds 0 is no number of seeds"),
        (["--seeds", "a"], "--seeds 'a' is not a list"),
        (["--seeds=-1,0"], "'seeds.0': input should be greater than or equal to 0 (given: -1)"),
        (["--mix", "0"], "'generators.hydramix.mix.count': input should be greater than or equal to 1 (given: 0)"),
        (["--mix", "256"], "less than or equal to 255 (given: 256)"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nothing-there"], "nothing-there holds no run (no run.json)"),
        (["--resume", "--out", "x", "--shots", "5"], "--resume takes data and settings from --out"),
        (["no/such/folder"], "no/such/folder"),
        (["empty"], "empty"),
        (["one"], "one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_of_a_pilot(cli: Cli, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    tiny.image_folder(tmp_path / "one", {"only": 3}, test=1)
    preset = [] if "--preset" in options or "--resume" in options else ["--preset", "smoke"]
    assert said in cli.refuses("pilot", *options, *preset, *([] if "--resume" in options else ["--out", "out"]))
    assert not (tmp_path / "out" / "report.html").exists()


def test_preset_file_with_an_unknown_key_names_the_file(cli: Cli, tmp_path: Path) -> None:
    path = tiny.write_preset(tmp_path / "mine.yaml", shotss=[5])
    assert cli.refuses("pilot", "--preset", path).startswith(f"{path}: unknown key 'shotss' (did you mean 'shots'?)")


def test_folder_of_a_newer_version(cli: Cli, finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    for name in ("run.json", "report.html", "status.json"):
        shutil.copy(finished_pilot.run / name, tmp_path / name)
    record = json.loads((tmp_path / "run.json").read_text()) | {"schema_version": 9}
    (tmp_path / "run.json").write_text(json.dumps(record))
    for command in (
        ["pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", tmp_path],
        ["pilot", "--resume", "--out", tmp_path],
        ["predict", tmp_path, finished_pilot.images],
    ):
        assert "was made by a newer version (schema 9" in cli.refuses(*command)


def test_damaged_results_are_written_anew_as_the_error_says(cli: Cli, finished_pilot: FinishedPilot) -> None:
    run = Path("run")
    shutil.copytree(finished_pilot.run, run)
    (run / "results.json").write_text("{")
    command = ("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", run)
    assert "results.json is not valid JSON" in (said := cli.refuses(*command)) and "delete it and run" in said
    (run / "results.json").unlink()
    assert cli(*command)[0] == 0
    assert tiny.measured(run) == tiny.measured(finished_pilot.run)


def test_refused_settings_do_not_take_the_folder_and_a_source_that_is_gone_is_not_missed(cli: Cli) -> None:
    images, preset = tiny.image_folder(Path("images"), {"a": 5, "b": 2}, test=2), tiny.write_preset(Path("tiny.yaml"))
    command = ("pilot", images, "--preset", preset, "--arms", "baseline", "--seeds", "1", "--out", "run")
    assert "the subset has one with 2" in cli.refuses(*command, "--set", "validation=0.2")
    assert cli(*command)[0] == 0
    images.rename("moved")
    Path("run/report.html").unlink()
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")  # the fixture's patch brings the tests back
    code, _, err = cli("pilot", "--resume", "--out", "../run")
    assert code == 0 and "is gone; going on with what was imported" in err and "otherwise" not in err
    assert "does not exist" in cli.refuses("pilot", "other", *command[2:-1], "../run", "--preset", f"../{preset}")


def test_folder_of_another_kind_of_run(cli: Cli, finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished_pilot.run / "classifiers" / "baseline-n5-seed0", folder)
    assert "holds a classifier run, not a pilot" in cli.refuses("pilot", "--resume", "--out", folder)
    command = ("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", folder)
    assert "holds a classifier run, not a pilot run; choose another folder" in cli.refuses(*command)


def test_data_without_test_images(cli: Cli, tmp_path: Path, finished_pilot: FinishedPilot) -> None:
    images = tiny.image_folder(tmp_path / "images", {"a": 2, "b": 2}, test=0)
    code, _, err = cli("pilot", images, "--preset", finished_pilot.preset, "--out", "out", "--set", "shots=[1]")
    assert code == 2 and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["--no-such-option"], ["no-such-command"], ["predict"], ["pilot", "a", "b"]], ids=str
)
def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and "Usage:" in err and "Traceback" not in err


def test_help_lists_every_command_and_each_explains_itself(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    for command in ("pilot", "predict", "report", "doctor", "data"):
        assert command in out
        code, text, _ = cli(command, "--help")
        assert code == 0 and "Usage:" in text and "--help" in text


def test_ctrl_c_outside_of_a_training_is_no_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("hydramix_dist.cli.data.verify_command", pressed)
    code, out, err = cli("data", "verify", "x")
    assert code == 130 and out == "" and "Traceback" not in err


# ---- settings from options


def settings(preset: str = "smoke", **options: Any) -> Any:
    known = {"shots": None, "seeds": None, "arms": None, "mix": None, "assignments": []}
    return read_pilot(preset, **(known | options))


def test_options_lie_over_the_preset() -> None:
    chosen = settings(shots="5, 10", seeds="3", arms="hydramix,baseline", assignments=["classifier.batch=7"])
    assert chosen.shots == (5, 10) and chosen.seeds == (0, 1, 2) and chosen.classifier.batch == 7
    assert list(chosen.arms) == ["hydramix", "baseline"]
    assert settings(seeds="4,2").seeds == (4, 2) and settings(seeds="4,").seeds == (4,)


def test_mix_sets_k_where_k_is_free() -> None:
    chosen = settings(mix=5)
    counts = {name: (g.mix.mask.kind, g.mix.count) for name, g in chosen.generators.items()}
    assert counts["chimeramix"][1] == 2 and counts["hydramix"][1] == 5


@pytest.mark.parametrize(("count", "group"), [(2, 4), (4, 4), (5, 8), (16, 16), (17, None)])
def test_a_larger_k_widens_the_group_that_its_sources_come_from(count: int, group: int | None) -> None:
    chosen = settings("quick", mix=count).generators
    assert chosen["hydramix"].mix.count == count and chosen["hydramix"].group == group
    assert chosen["chimeramix"] == settings("quick").generators["chimeramix"]


def test_an_override_of_one_arms_classifier_leaves_the_others_alone() -> None:
    chosen = settings(
        "quick", assignments=["arms.hydramix.classifier.mix_until=0.5", "arms.baseline.classifier.batch=8"]
    )
    assert chosen.classifier_of("hydramix").mix_until == 0.5 and chosen.classifier_of("baseline").batch == 8
    assert chosen.classifier_of("hydramix+trivialaugment") == settings("quick").classifier_of("hydramix+trivialaugment")
    assert chosen.classifier_of("hydramix").batch == chosen.classifier.batch


def test_classifier_settings_of_an_arm_that_is_not_there_are_a_slip() -> None:
    with pytest.raises(UserError, match=r"no arm of that name \(did you mean 'trivialaugment'\?\)"):
        settings("quick", assignments=["arms.trivialaugmnt.classifier.images=72000"])
    longer = ["arms.longer.classifier.images=72000", "arms.longer.augmentation=trivial"]
    assert settings("quick", assignments=longer).classifier_of("longer").images == 72000


@pytest.mark.parametrize("preset", ["smoke", "quick", "standard", "paper"])
def test_every_preset_is_valid_and_holds_the_five_arms(preset: str) -> None:
    chosen = settings(preset)
    assert len(chosen.arms) == 5 and {"chimeramix", "hydramix"} <= set(chosen.generators)
    assert chosen.generators["chimeramix"].mix.count == 2
    assert chosen.verdict == (preset != "smoke")


def test_an_override_changes_the_named_section_alone() -> None:
    """Sections that a preset shares by YAML merge keys are not shared any more."""
    chosen = settings("quick", assignments=["generators.hydramix.network.width=12"])
    assert chosen.generators["hydramix"].network.width == 12
    assert chosen.generators["chimeramix"].network == settings("quick").generators["chimeramix"].network


def test_mix_sets_k_in_a_section_that_generators_share_without_changing_the_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "x-mix: &mix {count: 2}\n"
        "generators: {free: {mix: *mix}, fixed: {mix: {<<: *mix, mask: {kind: chimera-grid}}}}\n"
    )
    chosen = settings(str(path), mix=5, assignments=["generators.free.mix.self_pairs=true"])
    assert {name: (g.mix.count, g.mix.self_pairs) for name, g in chosen.generators.items()} == {
        "free": (5, True),
        "fixed": (2, False),
    }


def test_default_folder_is_the_same_for_the_same_call_and_another_for_another() -> None:
    same = [_default_out("a/b.zip", "quick", settings()) for _ in range(2)]
    others = [
        _default_out("a/c.zip", "quick", settings()),
        _default_out(None, "quick", settings()),
        _default_out("a/b.zip", "quick", settings(shots="6")),
        _default_out("x/b.zip", "quick", settings()),
    ]
    assert same[0] == same[1] and same[0].startswith("runs/quick-b-")
    assert len({same[0], *others}) == 5
    assert all(path.startswith("runs/") for path in others)


def test_presets_lie_where_the_program_looks(tmp_path: Path) -> None:
    names = {path.stem for path in (configs_root() / "pilot").glob("*.yaml")}
    assert names == {"smoke", "quick", "standard", "paper"}
    for path in (configs_root() / "pilot").glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


# ---- the other commands


def test_data_commands(cli: Cli, tmp_path: Path) -> None:
    images = tiny.image_folder(tmp_path / "images", {"a": 3, "b": 2}, test=1)
    code, out, _ = cli("data", "import", images, "set", "--json")
    report = json.loads(out)
    assert code == 0 and report["classes"] == ["a", "b"] and report["counts"] == {"train": [3, 2], "test": [1, 1]}
    assert "holds this image set already" in cli("data", "import", images, "set")[1]
    code, out, _ = cli("data", "show", "set", "--shots", "3", "--json")
    assert code == 0 and [entry["name"] for entry in json.loads(out)["classes"]] == ["a", "b"]
    assert "fewer than 3" in out
    code, out, _ = cli("data", "show", "set")
    assert code == 0 and "class" in out
    assert cli("data", "verify", "set")[0] == 0
    shard = next(Path("set").rglob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, out, err = cli("data", "verify", "set")
    assert code == 1 and shard.name in out and "Traceback" not in err
    code, out, _ = cli("data", "verify", "set", "--json")
    assert code == 1 and any(shard.name in damage["path"] for damage in json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["import", "images", "set", "--fit", "letterbx"],
            "--fit 'letterbx' is not a rule (did you mean 'letterbox'?)",
        ),
        (["import", "images", "set", "--licence", "none.txt"], "--licence none.txt cannot be read"),
        (["import", "images", "set", "--size", "4"], "size 4 is not between 8 and 1024"),
        (["import", "images", "set", "--holdout", "1"], "holdout 1.0 is not between 0 and 1"),
        (["import", "nowhere", "set"], "nowhere"),
        (["show", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_bad_input_of_the_data_commands(cli: Cli, tmp_path: Path, arguments: list[str], said: str) -> None:
    tiny.image_folder(tmp_path / "images", {"a": 2, "b": 2}, test=1)
    assert said in cli.refuses("data", *arguments)


def test_report_is_written_anew_and_over_several(cli: Cli, finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished_pilot.run, tmp_path / name, ignore=shutil.ignore_patterns("data", "checkpoints"))
    old = (tmp_path / "one" / "report.html").read_text()
    (tmp_path / "one" / "report.html").unlink()
    code, out, _ = cli("report", "one")
    assert code == 0 and "report.html" in out
    new = (tmp_path / "one" / "report.html").read_text()
    assert new == old.replace(str(finished_pilot.run), str(tmp_path / "one")), "the same page, sheets and all"
    code, out, _ = cli("report", "one", "two", "--out", "both", "--json")
    page = Path(json.loads(out)["page"])
    assert code == 0 and page.name == "compare.html" and page.exists()
    assert "nothing/results.json does not exist" in cli.refuses("report", "nothing")


def test_doctor_for_machines(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("doctor", tmp_path, "--json")
    assert code in (0, 1) and all({"name", "state", "detail"} <= check.keys() for check in json.loads(out))


def test_paths_stay_whole_in_a_pipe(finished_pilot: FinishedPilot) -> None:
    """A path that is broken over two lines cannot be copied."""
    shown = tiny.hydramix("pilot", "--resume", "--out", finished_pilot.run, env={**os.environ, "COLUMNS": "40"})
    for name in ("report.html", "results.json", "run.json"):
        assert any(line.endswith(f" {finished_pilot.run}/{name}") for line in shown.stdout.splitlines())


def test_a_refused_source_leaves_no_folder_behind(cli: Cli, tmp_path: Path) -> None:
    tiny.image_folder(tmp_path / "images", {"a": 3, "b": 3}, test=1)
    assert "does not exist" in cli.refuses("pilot", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert "lies inside the source" in cli.refuses("pilot", tmp_path / "images", "--out", tmp_path / "images" / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["test", "train"]


def test_a_damaged_result_of_a_training_is_named_with_the_way_out(cli: Cli, finished_pilot: FinishedPilot) -> None:
    shutil.copytree(finished_pilot.run, "run")
    Path("run/report.html").unlink()
    result = next(Path("run/classifiers").glob("baseline-*/result.json"))
    result.write_text("{")
    command = ("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", "run")
    said = cli.refuses(*command)
    assert str(result) in said and "delete it and run the command again" in said


def test_one_pilots_page_goes_where_it_is_asked_to(cli: Cli, finished_pilot: FinishedPilot, tmp_path: Path) -> None:
    code, out, _ = cli("report", finished_pilot.run, "--out", tmp_path / "pages")
    assert code == 0 and str(tmp_path / "pages" / "report.html") in out
    assert (tmp_path / "pages" / "report.html").read_text() == (finished_pilot.run / "report.html").read_text()
