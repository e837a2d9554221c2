"""Commands whose data and runs lie in a bucket of a real S3 server: the same numbers as on a disk, from any machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from fixtures import FinishedPilot
from seaweed import Seaweed
from test_workers import CALM, HALF

from hydramix_dist.checkpoint import load_newest
from hydramix_dist.cli import main
from hydramix_dist.config.store import VARIABLE
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_status


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def another_machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine that shares the bucket and nothing else: no cache, no home."""
    home = tmp_path / "another"
    home.mkdir()
    return os.environ | {"HOME": str(home), VARIABLE: json.dumps({"cache": str(home / "cache")})}


def test_pilot_into_a_bucket_measures_the_same_and_every_command_reads_it(
    bucket: str, finished_pilot: FinishedPilot, tmp_path: Path
) -> None:
    tiny.hydramix("data", "import", finished_pilot.images, f"{bucket}/set")
    assert "every file is as it was written" in tiny.hydramix("data", "verify", f"{bucket}/set").stdout
    run, elsewhere = f"{bucket}/run", another_machine(tmp_path)
    done = tiny.hydramix("pilot", f"{bucket}/set", "--preset", finished_pilot.preset, "--out", run)
    for where in ("report.html", "results.json", "run.json"):
        assert f"{run}/{where}" in done.stdout
    assert tiny.measured(run) == tiny.measured(finished_pilot.run)
    assert tiny.weights_of(run) == tiny.weights_of(finished_pilot.run)

    again = tiny.hydramix(
        "pilot", f"{bucket}/set", "--preset", finished_pilot.preset, "--out", run, env=elsewhere, cwd=tmp_path
    )
    assert "finished already" in again.stderr
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for number in range(3):
        picture = (finished_pilot.images / "test" / "red" / f"0{number}.png").read_bytes()
        (images / "deep" / f"{number}.png").write_bytes(picture)
        Store(bucket).put(f"new/deep/{number}.png", picture)
    far = tiny.hydramix("predict", run, f"{bucket}/new", "--out", f"{bucket}/answers.csv", env=elsewhere)
    near = tiny.hydramix("predict", finished_pilot.run, images)
    assert f"3 images classified to {bucket}/answers.csv" in far.stderr
    answers = Store(bucket).read("answers.csv").decode()
    assert answers.replace(f"{bucket}/new", str(images)) == near.stdout
    training = f"{run}/classifiers/baseline-n5-seed0"
    assert "every file of" in tiny.hydramix("checkpoint", "verify", training, env=elsewhere).stdout
    target = f"{bucket}/weights.safetensors"
    tiny.hydramix("checkpoint", "export", training, target, env=elsewhere)
    tiny.hydramix(
        "checkpoint", "export", finished_pilot.run / "classifiers/baseline-n5-seed0", tmp_path / "w.safetensors"
    )
    assert Store(bucket).read("weights.safetensors") == (tmp_path / "w.safetensors").read_bytes()
    page = tiny.hydramix("report", run, "--out", f"{bucket}/page", env=elsewhere)
    assert f"{bucket}/page/report.html" in page.stdout and Store(bucket).exists("page/report.html")


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGKILL])
def test_stopped_or_killed_it_goes_on_from_another_machine_to_the_same_end(
    bucket: str, finished_pilot: FinishedPilot, tmp_path: Path, how: signal.Signals
) -> None:
    arguments = ("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", f"{bucket}/run")
    command = tiny.start_hydramix(*arguments)
    tiny.wait_for(lambda: any("/checkpoints/" in path for path in Store(f"{bucket}/run").list("classifiers")))
    os.killpg(command.pid, how)
    said = command.communicate(timeout=60)
    assert command.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
    assert read_status(Store(f"{bucket}/run"))["state"] == ("failed" if how == signal.SIGINT else "running")
    done = tiny.hydramix(*arguments, env=another_machine(tmp_path), cwd=tmp_path)
    assert "finished already" not in done.stderr
    assert tiny.measured(f"{bucket}/run") == tiny.measured(finished_pilot.run)
    assert tiny.weights_of(f"{bucket}/run") == tiny.weights_of(finished_pilot.run)


@pytest.mark.full  # unit/test_lease.py has it for the lease alone
def test_of_two_commands_for_one_run_the_second_is_told(bucket: str, finished_pilot: FinishedPilot) -> None:
    arguments = ("pilot", finished_pilot.images, "--preset", finished_pilot.preset, "--out", f"{bucket}/run")
    first = tiny.start_hydramix(*arguments)
    tiny.wait_for(lambda: Store(f"{bucket}/run").exists("run.json"))
    second = tiny.hydramix(*arguments, check=2)
    (sentence,) = (line for line in second.stderr.splitlines() if line.startswith("error:"))
    assert f"{bucket}/run" in sentence and f"{first.pid}" in sentence
    said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert tiny.measured(f"{bucket}/run") == tiny.measured(finished_pilot.run)


@pytest.mark.alone
@pytest.mark.full  # tests/cluster has it on hosts that share nothing else
def test_workers_of_a_cluster_share_the_bucket_and_nothing_else(bucket: str, tmp_path: Path, data_url: str) -> None:
    """Ray Train's own storage lies in the bucket too, and a training goes on there as on a shared disk."""
    config = tmp_path / "generator.yaml"
    tree = {"shots": 3, "generator": CALM["generators"]["hydramix"], **HALF}
    config.write_text(yaml.safe_dump(tree | {"runtime": tiny.PILOT["runtime"]}))
    for path in Store(data_url).list():
        Store(bucket).put(f"set/{path}", Store(data_url).read(path))
    alone = tiny.hydramix("train", "generator", config, f"data={data_url}", "--workers", "1", "--out", tmp_path / "one")
    both = tiny.hydramix("train", "generator", config, f"data={bucket}/set", "--out", f"{bucket}/two", cwd=tmp_path)
    assert alone.returncode == both.returncode == 0
    assert Store(f"{bucket}/two").list("ray") == ["ray/two/.validate_storage_marker"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["generator.yaml", "one"]
    one, two = load_newest(Store(tmp_path / "one")), load_newest(Store(f"{bucket}/two"))
    assert one is not None and two is not None
    tiny.assert_near(dict(two.engines), dict(one.engines))
    assert json.loads(Store(f"{bucket}/two").read("run.json"))["facts"]["workers"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data", "show", "s3:/test-bucket/set"), "is no URL; write it as s3://BUCKET/PREFIX"),
        (("data", "show", "s3://no-such-bucket/set"), "the bucket does not exist"),
        (("data", "show", "{bucket}/empty"), "holds no data set"),
        (("pilot", "{bucket}/empty", "--preset", "smoke", "--out", "{bucket}/run"), "does not exist"),
        (("report", "{bucket}/empty"), "results.json does not exist; name the folder of a pilot run"),
        (("predict", "{bucket}/empty", "{bucket}/images"), "holds no run"),
        (("checkpoint", "show", "{bucket}/empty"), "holds no run"),
        (("train", "generator", "quick", "data={bucket}/empty", "--out", "{bucket}/run"), "does not exist"),
    ],
)
def test_bad_places_are_one_sentence(
    bucket: str, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(capsys, *(argument.format(bucket=bucket) for argument in arguments))


def test_what_may_not_be_done_there_is_one_sentence(
    bucket: str,
    seaweed: Seaweed,
    image_folder: Path,
    data_url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in Store(data_url).list():
        Store(bucket).put(f"set/{path}", Store(data_url).read(path))
    other = "holds another data set (other images, or another size, fit or holdout); choose another folder"
    assert other in refusal(capsys, "data", "import", str(image_folder), f"{bucket}/set", "--size", "16")
    Store(bucket).put("newer/manifest.json", Store(data_url).read("manifest.json").replace(b": 2,", b": 99,", 1))
    assert "has schema version 99, this program reads up to 2" in refusal(capsys, "data", "show", f"{bucket}/newer")
    for name, value in seaweed.environment("reader").items():
        monkeypatch.setenv(name, value)
    denied = refusal(capsys, "data", "import", str(image_folder), f"{bucket}/new")
    assert f"cannot write {bucket}/new/" in denied and "permission denied (403)" in denied
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    unknown = refusal(capsys, "data", "show", f"{bucket}/set")
    assert "the credentials are not valid (InvalidAccessKeyId)" in unknown and "NOBODY" not in unknown


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is refused; return the one sentence that it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hydramix", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    (sentence,) = (line for line in said.splitlines() if line.startswith("error:"))
    assert "Traceback" not in said
    return sentence


@pytest.mark.alone
@pytest.mark.full
def test_ray_tune_keeps_its_own_in_the_bucket_too(bucket: str, tmp_path: Path) -> None:
    """Through the file system that trainings give Ray: a sweep's trials, and its state, from which it is restored."""
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, script, f"{bucket}/sweep"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[2, 4, 6]"
    names = {path.rsplit("/", 1)[-1] for path in Store(f"{bucket}/sweep").list()}
    assert {"tuner.pkl", "result.json", "params.json"} <= names


SWEEP = """
import sys

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.store import Store


def trial(config):
    from ray import tune

    tune.report({"doubled": 2 * config["x"]})


if __name__ == "__main__":
    with ray_session(DistributedSettings(), RuntimeSettings(device="cpu"), None):
        from ray import tune

        path, file_system = Store(sys.argv[1]).for_ray()
        where = tune.RunConfig(name="x", storage_path=path, storage_filesystem=file_system, verbose=0)
        space = {"x": tune.grid_search([1, 2, 3])}
        tune.Tuner(trial, param_space=space, run_config=where).fit()
        restored = tune.Tuner.restore(f"{path}/x", trial, storage_filesystem=file_system).get_results()
        print(sorted(result.metrics["doubled"] for result in restored))
"""
