"""A job submitted once more: while one runs, once it has ended, with other settings; and what the marker then says."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hydramix_dist.cli import submit as submitting
from hydramix_dist.cli.job import run_job
from hydramix_dist.cli.job_request import request
from hydramix_dist.cli.submit import submit_command
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import Cluster, ExistsError, RayJob, State
from hydramix_dist.orchestration.jobs.marker import State as MarkerState
from hydramix_dist.orchestration.jobs.marker import begin, end, read_marker
from hydramix_dist.orchestration.jobs.submission import DIGEST, OUT
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
from hydramix_dist.store.run import RunFolder

ADDRESS = "http://127.0.0.1:9"  # where nothing answers
TRAINING, PAGE = "hydramix-train-generator-night", "hydramix-report-night"
OTHERS = "2" * 64


class Known(Cluster):
    """A cluster of one node that knows the jobs it is given, and notes what is submitted."""

    def __init__(self, *known: RayJob) -> None:
        super().__init__(ADDRESS)
        self.known = list(known)
        self.taken: list[tuple[str, str]] = []

    def check(self) -> None:
        """Be there."""

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 8.0}]

    def jobs(self) -> list[RayJob]:
        return list(self.known)

    def submit(self, submission_id: str, entrypoint: str, **options: Any) -> None:
        self.taken.append((submission_id, entrypoint))


def ask(
    cluster: Cluster, job: str, *words: str, out: Path, monkeypatch: pytest.MonkeyPatch, name: str | None = "night"
) -> int:
    monkeypatch.setattr(submitting, "Cluster", lambda address: cluster)
    return submit_command(job, words, ADDRESS, str(out), None, name, None, False, False, False)


def digest_of(job: str, *words: str, out: Path) -> str:
    config = None if job == "report" else words[0]
    return request(job, config, words if config is None else words[1:], str(out), None).digest


def ray_job(id_: str, state: State, digest: str, out: Path) -> RayJob:
    return RayJob(id_, state, {DIGEST: digest, OUT: str(out)}, "", None, 1.0, None)


# ---- a job that ends, or is submitted by somebody else, at this very moment


def test_a_job_that_ends_while_it_is_asked_for_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = digest_of("report", "s3://bkt/run", out=tmp_path)
    running = begin(Store(tmp_path), "report", digest, PAGE, 1)

    class Ending(Known):
        def jobs(self) -> list[RayJob]:
            end(Store(tmp_path), running, 0, None)
            return [ray_job(PAGE, "SUCCEEDED", digest, tmp_path)]

    cluster = Ending()
    assert ask(cluster, "report", "s3://bkt/run", out=tmp_path, monkeypatch=monkeypatch) == 0
    assert cluster.taken == []
    assert f"{PAGE} has succeeded already" in capsys.readouterr().err


def test_what_a_faster_one_has_submitted_and_ended_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = digest_of("report", "s3://bkt/run", out=tmp_path)

    class Slower(Known):
        def submit(self, submission_id: str, entrypoint: str, **options: Any) -> None:
            super().submit(submission_id, entrypoint)
            end(Store(tmp_path), begin(Store(tmp_path), "report", digest, PAGE, 1), 0, None)
            self.known = [ray_job(PAGE, "SUCCEEDED", digest, tmp_path)]
            raise ExistsError(submission_id)

    cluster = Slower()
    assert ask(cluster, "report", "s3://bkt/run", out=tmp_path, monkeypatch=monkeypatch) == 0
    assert [id_ for id_, _ in cluster.taken] == [PAGE]
    assert f"{PAGE} has succeeded already" in capsys.readouterr().err


# ---- other settings under the same name


def test_a_job_goes_on_with_as_many_workers_as_there_is_room_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    digest = digest_of("train_generator", "quick", "distributed.workers=8", out=out)
    cluster = Known(ray_job(TRAINING, "RUNNING", digest, out))
    fewer = ("train_generator", "quick", "distributed.workers=4")

    assert ask(cluster, *fewer, out=out, monkeypatch=monkeypatch) == 0
    assert f"{TRAINING} is there already; joining it" in capsys.readouterr().err and cluster.taken == []

    cluster.known = [ray_job(TRAINING, "FAILED", digest, out)]
    assert ask(cluster, *fewer, out=out, monkeypatch=monkeypatch) == 0
    assert f"attempt 1 has failed; going on as {TRAINING}-a2" in capsys.readouterr().err
    [(id_, entrypoint)] = cluster.taken
    assert id_ == f"{TRAINING}-a2" and entrypoint.endswith(" distributed.workers=4")

    with pytest.raises(UserError, match="belongs to other settings"):
        ask(cluster, *fewer, "seed=1", out=out, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("job", "config", "words", "same"),
    [
        ("train_generator", "quick", ["runtime.device=cpu", "runtime.keep=3"], True),
        ("train_classifier", "quick", ["runtime.threads=2", "distributed.min_workers=1"], True),
        ("train_classifier", "quick", ["augmentation=trivial"], False),
        ("pilot", "smoke", ["distributed.workers=2", "concurrent=3"], True),
        ("pilot", "smoke", ["runtime.threads=2"], False),  # as its folder has it
        ("sweep", "smoke", ["limits.hours=3", "priorities={hydramix: 1}", "concurrent=2"], True),
        ("sweep", "smoke", ["distributed.cpus=0.5"], True),
        ("sweep", "smoke", ["seeds=[7]"], False),
    ],
)
def test_a_job_is_the_same_as_far_as_its_run_is(
    job: str, config: str, words: Sequence[str], same: bool, tmp_path: Path
) -> None:
    digests = {digest_of(job, config, *more, out=tmp_path) for more in ([], words)}
    assert len(digests) == (1 if same else 2)


# ---- refused


@pytest.fixture
def as_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `run_job` run in this process, on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process is pytest's


@pytest.mark.usefixtures("as_a_job")
def test_a_job_that_finds_another_one_running_leaves_that_ones_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = Store(tmp_path), ["--config", "quick", "--out", str(tmp_path)]
    running = begin(folder, "train_generator", digest_of("train_generator", "quick", out=tmp_path), TRAINING, 1)
    with exclusively(folder):
        assert run_job("train_generator", words) == 2
    assert "another process is running" in capsys.readouterr().err
    assert read_marker(folder, "train_generator") == running
    end(folder, running, 1, "no room on the disk")
    found = read_marker(folder, "train_generator")
    assert found is not None and (found.state, found.submission_id) == ("failed", TRAINING)


@pytest.mark.usefixtures("as_a_job")
@pytest.mark.parametrize(("state", "stands"), [("running", True), ("succeeded", True), ("failed", False)])
def test_a_job_of_other_settings_is_refused_and_leaves_the_word_of_the_one_whose_folder_it_is(
    state: MarkerState, stands: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Store(tmp_path)
    RunFolder.begin(folder, "generator", {"seed": 1}, {})
    begun = begin(folder, "train_generator", OTHERS, TRAINING, 1)
    if state != "running":
        end(folder, begun, 0 if state == "succeeded" else 1, None)
    before = read_marker(folder, "train_generator")
    assert run_job("train_generator", ["--config", "quick", "--out", str(tmp_path), "--", "seed=0"]) == 2
    assert "seed was 1, now 0" in capsys.readouterr().err
    after = read_marker(folder, "train_generator")
    assert after is not None and (after == before) == stands and after.state == state
