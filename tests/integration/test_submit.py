"""Jobs on a real Ray head that asks for a token: submitted, joined, stopped, gone on with, refused."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny
from clusters import Head, Relay, token_head

from hydramix_dist.cli import submit as submitting
from hydramix_dist.cli.jobs import list_command, logs_command, stop_command
from hydramix_dist.cli.submit import submit_command
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import Cluster
from hydramix_dist.orchestration.jobs.follow import follow
from hydramix_dist.orchestration.jobs.submission import Submission, submit
from hydramix_dist.orchestration.jobs.upload import checkout

pytestmark = pytest.mark.alone

SECRET = "theusersownsecret0123456789"
CLUSTERS_SECRET = "thenodesownsecret0123456789"
SMALL = ("network.side=32", "network.width=8", "network.blocks=2", "network.mix_after=block1", "discriminator.width=8")
ANSWER_SECONDS = 30.0


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with token_head(AWS_SECRET_ACCESS_KEY=CLUSTERS_SECRET) as running:
        yield running


@pytest.fixture
def access(head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return head


def ask(head: Head, job: str, *words: str | Path, address: str | None = None, **options: Any) -> int:
    chosen = {"out": None, "shared": None, "name": None, "cluster_file": None, "wait": True, "dry_run": False}
    chosen |= {"json_": False} | options
    return submit_command(job, [str(word) for word in words], address or head.dashboard, **chosen)


def marker(folder: Path, job: str) -> dict[str, Any]:
    return dict(json.loads((folder / "jobs" / f"{job}.json").read_text()))


def job_of(head: Head, submission_id: str) -> Any:
    return Cluster(head.dashboard).job(submission_id)


def test_arguments_reach_the_job_as_they_are_and_no_shell_reads_them(access: Head, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    source = tmp_path / f"a $(touch {harm.name}) `touch {harm.name}` ;touch 'q' \"d\" && *"
    tiny.image_folder(source, {"cat": 2, "dog": 2}, test=1)
    assert ask(access, "import_data", source, tmp_path / "set", "fit=crop\n") == 0
    found = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert found["source"].endswith(source.name)
    assert marker(tmp_path / "set", "import_data")["state"] == "succeeded"
    assert not list(access.folder.rglob("harm")) and not harm.exists()
    # Asked for again it is not run again.
    before = len(Cluster(access.dashboard).jobs())
    assert ask(access, "import_data", source, tmp_path / "set", "fit=crop\n") == 0
    assert len(Cluster(access.dashboard).jobs()) == before


def test_a_job_that_fails_is_told_by_its_marker_and_tried_again_under_the_next_id(
    access: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "no-run"
    for attempt, name in ((1, "hydramix-report-first"), (2, "hydramix-report-first-a2")):
        assert ask(access, "report", run, name="first", json_=True) == 2
        said = json.loads(capsys.readouterr().out)
        assert said == {"submission_id": name, "state": "failed", "exit_code": 2, "out": str(run)}
        found = marker(run, "report")
        assert (found["attempt"], found["submission_id"], found["exit_code"]) == (attempt, name, 2)
        assert found["versions"]["ray"] == ray.__version__
    assert "results.json does not exist" in found["reason"]
    with pytest.raises(UserError, match="belongs to other settings"):
        ask(access, "report", run, out=str(tmp_path / "elsewhere"), name="first")
    assert list_command(access.dashboard, True) == 0
    listed = {job["submission_id"]: job for job in json.loads(capsys.readouterr().out)["jobs"]}
    assert listed["hydramix-report-first-a2"]["state"] == "failed"
    assert logs_command("hydramix-report-first-a2", access.dashboard, False) == 0
    assert "results.json does not exist" in capsys.readouterr().out
    assert logs_command("hydramix-report-first-a2", access.dashboard, True) == 2


def test_a_training_is_joined_stopped_and_gone_on_with_in_the_uploaded_code(
    access: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run, name = tmp_path / "checkout", tmp_path / "run", "hydramix-train-generator-overnight"
    for part in ("jobs", "configs", "hydramix_dist"):
        shutil.copytree(checkout() / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "hydramix_dist" / "__init__.py").write_text('"""Another one."""\n\n__version__ = "9.9.9"\n')
    monkeypatch.setattr(submitting, "checkout", lambda: copy)
    words = ["quick", *(f"generator.{word}" for word in SMALL), "generator.batch=8", "generator.images=1200"]
    words += ["runtime.checkpoints=15", "runtime.device=cpu", "runtime.precision=fp32", "distributed.cpus=0.5"]
    options = {"out": str(run), "name": "overnight"}

    assert ask(access, "train_generator", *words, **options, wait=False) == 0
    tiny.wait_for(lambda: any(run.glob("checkpoints/*/manifest.json")))
    assert ask(access, "train_generator", *words, **options, wait=False) == 0
    assert f"{name} is there already" in capsys.readouterr().err
    assert [job.id for job in Cluster(access.dashboard).jobs() if name in job.id] == [name]
    with pytest.raises(UserError, match="writes into"):
        ask(access, "train_generator", *words, "seed=1", out=str(run))

    assert stop_command(name, access.dashboard) == 0
    stopped = marker(run, "train_generator")
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 130)
    assert job_of(access, name).state == "STOPPED"

    assert ask(access, "train_generator", *words, **options) == 0
    said = capsys.readouterr()
    assert "attempt 1 has been stopped" in said.err and f"{name}-a2" in said.err
    done = marker(run, "train_generator")
    assert (done["state"], done["attempt"], done["submission_id"]) == ("succeeded", 2, f"{name}-a2")
    assert ask(access, "train_generator", *words, **options) == 0
    assert "has succeeded already" in capsys.readouterr().err

    record = json.loads((run / "run.json").read_text())
    assert record["facts"]["hydramix_dist"] == done["versions"]["hydramix_dist"] == "9.9.9"  # of worker and driver
    assert json.loads((run / "status.json").read_text())["attempt"] == 2
    _no_secret(access, run)


def _no_secret(head: Head, run: Path) -> None:
    """Fail where a secret of user or cluster stands in what a job left: its folder, its logs, what Ray tells of it."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    told = json.dumps(Cluster(head.dashboard)._get("/api/jobs/"))
    logs = [path for path in (head.folder / "session_latest" / "logs").rglob("*") if path.is_file()]  # workers' as well
    texts = [told.encode(), *(path.read_bytes() for path in [*logs, *run.rglob("*")] if path.is_file())]
    assert [path for path in logs if path.name.startswith("job-driver-")] and len(texts) > 10
    assert [path for path in logs if path.name.startswith("worker-")]
    for secret in (SECRET, CLUSTERS_SECRET, token):
        assert not [text for text in texts if secret.encode() in text]


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(access: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["quick", *(f"generator.{word}" for word in SMALL), "runtime.device=cpu", "--out", run]
    process = tiny.start_hydramix(
        *("submit", "train-generator", *words, "--address", access.dashboard, "--name", "long"), env={**os.environ}
    )
    try:
        assert process.stdout is not None  # the job's log is followed
        assert any("Running entrypoint for job hydramix-train-generator-long" in line for line in process.stdout)
        tiny.wait_for(lambda: (run / "jobs" / "train_generator.json").exists())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=ANSWER_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"hydramix jobs logs hydramix-train-generator-long --address {access.dashboard} --follow" in err
    assert job_of(access, "hydramix-train-generator-long").state == "RUNNING"
    assert stop_command("hydramix-train-generator-long", access.dashboard) == 0
    assert marker(run, "train_generator")["state"] == "stopped"


def test_of_two_who_submit_at_once_one_wins(access: Head, tmp_path: Path) -> None:
    wanted = Submission("report", "hydramix-report-race", "0" * 64, str(tmp_path), ("--help",), checkout(), {}, None)
    won: list[bool] = []
    cluster = Cluster(access.dashboard)
    threads = [threading.Thread(target=lambda: won.append(submit(cluster, wanted, 1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False, True]


def test_logs_are_taken_up_again_where_the_connection_broke(access: Head, tmp_path: Path) -> None:
    go = tmp_path / "go"
    numbers = "import pathlib, time\nfor i in range(6):\n  print('line', i, flush=True)\n"
    numbers += f"  while i == 2 and not pathlib.Path('{go}').exists(): time.sleep(0.1)"
    relay = Relay(access.dashboard)
    cluster = Cluster(relay.address)
    cluster.submit("hydramix-test-lines", f'python -c "{numbers}"', metadata={})
    heard: list[str] = []
    said: list[str] = []

    def write(text: str) -> None:
        heard.append(text)
        if "line 2" in text:
            relay.cut()
            threading.Timer(4.0, relay.mend).start()
            threading.Timer(5.0, go.touch).start()

    try:
        job = follow(cluster, "hydramix-test-lines", write, said.append)
    finally:
        relay.close()
    assert job.state == "SUCCEEDED"
    lines = [line for line in "".join(heard).splitlines() if line.startswith("line")]
    assert lines == [f"line {i}" for i in range(6)]
    assert len(said) == 2 and "does not answer" in said[0] and "answers again" in said[1]


def test_what_cannot_be_is_refused_in_one_sentence_and_soon(
    access: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*words: str, address: str | None = None) -> str:
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            ask(access, "train_generator", "quick", *words, out=str(tmp_path / "run"), address=address)
        assert time.monotonic() - began < ANSWER_SECONDS
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "within 5 s" in refusal(address="http://127.0.0.1:9")
    assert "8 processes with 1 CPU each" in refusal("distributed.workers=8")
    assert "the largest node has 2 CPU" in refusal("distributed.workers=8")
    with monkeypatch.context() as patch:
        patch.setattr(ray, "__version__", "2.59.1")
        assert "has Ray 2.60.0" in (said := refusal()) and "here are Ray 2.59.1" in said
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
        assert "another token" in refusal()
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        assert "there is no token" in refusal()
        patch.setenv("RAY_AUTH_MODE", "disabled")
        assert "this process gives none" in refusal()


@pytest.mark.full
def test_the_printed_command_is_the_very_call(access: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "it's $(no) run"
    assert ask(access, "report", run, name="pasted", dry_run=True) == 0
    command = capsys.readouterr().out
    shell = {**os.environ, "PATH": f"{tiny.HYDRAMIX.parent}{os.pathsep}{os.environ['PATH']}"}
    pasted = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=shell)
    assert pasted.returncode == 1, pasted.stderr
    found = marker(run, "report")
    assert (found["submission_id"], found["exit_code"]) == ("hydramix-report-pasted", 2)
    assert job_of(access, "hydramix-report-pasted").metadata["hydramix_digest"] == found["digest"]
