"""The commands of sweeps as a user types them: what they print and write, and a sentence for what cannot be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from sweep_work import data_of, tree_of

from hydramix_dist.cli import main
from hydramix_dist.store import Store

ARMS: dict[str, Any] = {
    "baseline": {},
    "hydramix": {"generator": "hydramix"},
    "both": {"generator": "hydramix", "augmentation": "trivial"},
}
pytestmark = pytest.mark.alone

AXIS = {"generator.mix.count": [2, 3]}
FILES = ("results.html", "results.md", "results.csv", "results.tex", "results.json")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def write(path: Path, data: str, **changes: Any) -> Path:
    """Write a sweep's settings; return the path."""
    path.write_text(yaml.safe_dump(tree_of(data, **({"arms": ARMS, "axes": AXIS} | changes))))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of five arms, of which four take turns at two generators."""
    data = data_of(tmp_path_factory.getbasetemp())
    return write(tmp_path_factory.mktemp("sweep-cli") / "small.yaml", data)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """The folder of that sweep, finished. What is written beside it may be written again."""
    out = config.parent / "out"
    done = tiny.hydramix("sweep", config, "--out", out)
    assert "7 trainings: 7 done" in done.stdout and f"page      {out}/results.html" in done.stdout
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one sentence with which the command line, in this process, ends with exit code 2."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["hydramix", "sweep", *map(str, arguments)])
        main()
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2, told
    (line,) = (line for line in told if line.startswith("error: "))
    assert told[-1] == line
    return line


# ---- before


def test_dry_run_lists_trainings_and_cost_and_trains_nothing(config: Path) -> None:
    out = config.parent / "out"  # of the sweep that `finished` runs later, and then need not measure again
    plain = tiny.hydramix("sweep", config, "--out", out, "--dry-run").stdout
    for words in (
        "generator hydramix-count=2, N=5",
        "used by 2",
        "needs ",
        "sharing: 2 generators are trained instead of 4",
        "expected: ",
    ):
        assert words in plain
    told = json.loads(tiny.hydramix("sweep", config, "--out", out, "--dry-run", "--json").stdout)
    assert told["run"] == str(out)
    kinds = [trial["kind"] for trial in told["trials"]]
    assert (kinds.count("generator"), kinds.count("classifier"), len(kinds)) == (2, 5, 7)
    keys = {trial["key"] for trial in told["trials"]}
    assert {trial["needs"] for trial in told["trials"]} - {None} == {key for key in keys if key.startswith("gen")}
    assert told["forecast"]["parts"]["generators"]["trainings"] == 2 and told["forecast"]["elapsed"] > 0
    assert not (out / "run.json").exists() and not (config.parent / "shared" / "generators").exists()


# ---- after


def test_status_of_a_finished_sweep(finished: Path) -> None:
    lines = tiny.hydramix("sweep", "status", finished).stdout.splitlines()
    assert lines[:2] == [f"{finished}: succeeded", "7 trainings: 7 done"]
    header = next(line.split() for line in lines if line.startswith("arm"))
    rows = {line.split()[0] for line in lines if line.endswith("(1)")}
    assert header == ["arm", "N=5"]
    assert rows == {"baseline", *(f"{arm}-count={k}" for arm in ("hydramix", "both") for k in (2, 3))}
    told = json.loads(tiny.hydramix("sweep", "status", finished, "--json").stdout)
    assert told["counts"] == {"done": 7} and {trial["state"] for trial in told["trials"]} == {"done"}


def test_results_are_written_again_from_the_record_alone(finished: Path) -> None:
    before = json.loads((finished / "results.json").read_text())
    for name in FILES:
        (finished / name).unlink()
    done = tiny.hydramix("sweep", "results", finished)
    assert all((finished / name).stat().st_size for name in FILES)
    for row in (finished / "results.md").read_text().splitlines():
        if row.startswith(("| base", "| hydra", "| both")):
            arm, accuracy = row.strip("| ").split(" <sup>")[0].split(" | ")
            assert any(line.split() == [arm, *accuracy.split(), "a"] for line in done.stdout.splitlines())
    after = json.loads((finished / "results.json").read_text())
    assert {**before, "created": 0} == {**after, "created": 0}
    printed = json.loads(tiny.hydramix("sweep", "results", finished, "--json").stdout)
    assert {**printed, "created": 0} == {**after, "created": 0, "run": str(finished)}
    assert len(after["parts"][0]["runs"]) == 5 and after["generators"]["reused"] == 2


def test_typed_again_it_starts_nothing(config: Path, finished: Path) -> None:
    before = (finished / "trials.jsonl").read_text()
    again = tiny.hydramix("sweep", config, "--out", finished)
    assert "Ray" not in again.stderr and "7 trainings: 7 done" in again.stdout
    only = tiny.hydramix("sweep", "resume", finished, "--only-failed")
    assert "Ray" not in only.stderr and "7 trainings: 7 done" in only.stdout
    later = (finished / "trials.jsonl").read_text().removeprefix(before).splitlines()
    assert {json.loads(line)["event"] for line in later} == {"session", "data", "ended"}


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"axes": {"generator.mix.count": []}},
            ["'axes.generator.mix.count.values': at least one is needed, none was given"],
        ),
        ({"axes": {"generator.mix.cuont": [2]}}, ["'generator.mix.cuont' is no setting", "'generator.mix.count'"]),
        ({"axes": {"mix.count": [2]}}, ["'mix.count' is no setting of an arm", "did you mean 'generator.mix.count'?"]),
        ({"axes": {"seeds": [0, 1]}}, ["'seeds' is a list of its own at the top of the file, as seeds: [...]"]),
        (
            {"axes": {"generator.mix.count": [0]}},
            ["arm both-count=0: generator: 'mix.count': input should be greater", "(given: 0)"],
        ),
        (
            {"search": {"trials": 2, "space": {"generator.mix.count": {"choice": [2]}}}},
            ["'generator.mix.count' is in axes and in search.space"],
        ),
        (
            {"shots": [1], "search": {"trials": 2, "space": {"classifier.batch": {"choice": [2]}}}},
            ["with N = 1 nothing can be held out", "search.at"],
        ),
        ({"priorities": {"hydra": 1}}, ["there is no arm 'hydra'"]),
        ({"arms": {"baseline": {}}}, ["'generator.mix.count' is a setting that no arm has; the arms are baseline"]),
        (
            {
                "arms": {"baseline": {}},
                "axes": {},
                "generators": {},
                "distributed": {"workers": 2},
                "search": {"method": "asha", "space": {"classifier.batch": {"choice": [2]}}},
            },
            ["search.method asha stops trainings of one process"],
        ),
    ],
)
def test_bad_settings_are_one_sentence(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str]
) -> None:
    data = yaml.safe_load(config.read_text())["data"][0]
    bad = write(tmp_path / "bad.yaml", data, **changes)
    told = refusal(capsys, bad, "--out", tmp_path / "out")
    for word in words:
        assert word in told
    assert not (tmp_path / "out" / "run.json").exists()


def test_images_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, write(tmp_path / "bad.yaml", str(tmp_path / "nowhere")), "--out", tmp_path / "out")
    assert f"{tmp_path}/nowhere does not exist; give a folder with one sub-folder a class" in told
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings(config: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, config, "seeds=[0,1]", "--out", finished)
    assert f"{finished} holds another run: settings.seeds was [0], now [0, 1]" in told
    pilot = config.parent / "pilot"
    Store(pilot).put(
        "run.json", json.dumps({"schema_version": 1, "kind": "pilot", "identity": {}, "facts": {}}).encode()
    )
    assert f"{pilot} holds a pilot run, not a sweep run" in refusal(capsys, config, "--out", pilot)
    for command in ("status", "results", "resume"):
        assert f"{pilot} holds a pilot run, not a sweep" in refusal(capsys, command, pilot)


@pytest.mark.parametrize("command", ["status", "results", "resume"])
def test_a_name_that_is_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = refusal(capsys, command, "nosuch")
    assert f"there is no sweep 'nosuch': neither {tmp_path}/nosuch nor {tmp_path}/runs/nosuch has a run.json" in told


def test_resume_changes_limits_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "resume", finished, "seeds=[0,1]")
    assert "settings.seeds was [0], now [0, 1]" in told


def test_arm_without_select(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --select FOLDER with them" in refusal(capsys, "results", finished, "--arm", "baseline")


@pytest.mark.full
def test_more_at_a_time_than_the_machine_has_room_for(config: Path, tmp_path: Path) -> None:
    done = tiny.hydramix("sweep", config, "concurrent=64", "--out", tmp_path / "out", check=2)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert "concurrent is 64 at " in line and "but this machine has room for " in line
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "failed"
    dry = tiny.hydramix("sweep", config, "concurrent=64", "--out", tmp_path / "dry", "--dry-run", check=2)
    assert "concurrent is 64 at " in dry.stderr
