"""What is decided before a job is submitted: its id, what is done again, what is refused, what goes along."""

import json
import shlex
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from hydramix_dist.cli.job import run_job
from hydramix_dist.cli.job_request import parse, request
from hydramix_dist.cli.submit import submit_command
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import RayJob, State, dashboard_address, default_address
from hydramix_dist.orchestration.jobs.inside import submission
from hydramix_dist.orchestration.jobs.marker import JOBS, Marker, begin, end, read_marker
from hydramix_dist.orchestration.jobs.marker import State as MarkerState
from hydramix_dist.orchestration.jobs.naming import attempt_id, attempt_of, base_id, base_of
from hydramix_dist.orchestration.jobs.outcome import judge
from hydramix_dist.orchestration.jobs.submission import DIGEST, JOB, OUT, Submission, decide
from hydramix_dist.orchestration.jobs.upload import checkout, config_inside, environment
from hydramix_dist.orchestration.preflight import check_address
from hydramix_dist.store import Store

ROOT = Path(__file__).parents[2]
BASE, OURS, OTHERS = "hydramix-sweep-night", "1" * 64, "2" * 64
WANTED = Submission("sweep", BASE, OURS, "s3://bkt/runs/x", ("--config", "nshot"), ROOT, {}, None)


def job(attempt: int, state: State, digest: str = OURS, base: str = BASE, out: str = WANTED.out, **more: Any) -> RayJob:
    fields: dict[str, Any] = {"message": "", "exit_code": None, "begun": float(attempt), "ended": None} | more
    return RayJob(attempt_id(base, attempt), state, {DIGEST: digest, OUT: out}, **fields)


def marker(attempt: int, state: MarkerState, digest: str = OURS, id_: str | None = None) -> Marker:
    code = {"running": None, "succeeded": 0, "failed": 1, "stopped": 130}[state]
    return Marker("sweep", digest, id_ or attempt_id(BASE, attempt), attempt, state, code, "why", {}, 0.0, None)


@pytest.mark.parametrize(
    ("jobs", "seen", "what", "attempt"),
    [
        ([], None, "submit", 1),
        ([job(1, "PENDING")], None, "join", 1),
        ([job(1, "FAILED"), job(2, "RUNNING")], marker(2, "running"), "join", 2),
        ([job(1, "SUCCEEDED")], marker(1, "succeeded"), "done", 1),
        ([], marker(3, "succeeded"), "done", 3),  # the head was started anew
        ([], marker(9, "succeeded", id_="raysubmit_x"), "done", 9),  # submitted by hand
        ([], marker(2, "running"), "submit", 3),  # lost with its head
        ([], marker(2, "stopped"), "submit", 3),
        ([job(1, "STOPPED")], marker(1, "stopped"), "submit", 2),
        ([job(1, "FAILED"), job(2, "FAILED")], marker(1, "failed"), "submit", 3),
        ([job(1, "SUCCEEDED")], marker(1, "running"), "submit", 2),  # Ray's word alone is not enough
        ([job(1, "SUCCEEDED")], None, "submit", 2),
        ([job(1, "FAILED")], marker(1, "succeeded"), "done", 1),
        ([job(10, "FAILED"), job(9, "FAILED")], None, "submit", 11),
        ([job(1, "RUNNING", base="hydramix-sweep-other", out="s3://bkt/y")], None, "submit", 1),
        ([], marker(1, "failed", OTHERS, id_="hydramix-sweep-other"), "submit", 1),  # the run's own check decides
    ],
)
def test_ray_and_marker_decide(jobs: list[RayJob], seen: Marker | None, what: str, attempt: int) -> None:
    decision = decide(WANTED, jobs, seen)
    assert (decision.what, decision.attempt) == (what, attempt)
    assert (decision.why is None) == (what != "submit" or attempt == 1)


def test_where_the_marker_cannot_be_read_rays_word_is_taken() -> None:
    assert decide(WANTED, [job(1, "SUCCEEDED")], None, judged=False).what == "done"


@pytest.mark.parametrize(
    ("jobs", "seen", "words"),
    [
        ([job(1, "FAILED", OTHERS)], None, ("other settings", OURS[:12], OTHERS[:12])),
        ([], marker(1, "failed", OTHERS), ("other settings", OURS[:12], OTHERS[:12])),
        ([job(1, "RUNNING", OTHERS, "hydramix-sweep-other")], None, ("hydramix-sweep-other is running", "with other")),
        ([job(1, "RUNNING", OURS, "hydramix-sweep-other")], None, (WANTED.out, "these settings; follow it")),
    ],
)
def test_what_belongs_to_others_is_refused(jobs: list[RayJob], seen: Marker | None, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        decide(WANTED, jobs, seen)
    assert all(word in str(caught.value) for word in words)


def test_a_job_that_has_succeeded_under_another_name_is_called_by_it() -> None:
    assert decide(WANTED, [], marker(1, "succeeded", id_="hydramix-sweep-other")).by == "hydramix-sweep-other"


def test_ids_say_job_settings_and_attempt() -> None:
    assert base_id("train_generator", "0123456789abcdef", None) == "hydramix-train-generator-0123456789ab"
    assert base_id("sweep", OURS, "night-b2") == "hydramix-sweep-night-b2"
    for attempt in (1, 2, 31):
        assert attempt_of(attempt_id(BASE, attempt)) == attempt
        assert base_of(attempt_id(BASE, attempt)) == BASE
    assert attempt_of("raysubmit_abc") is None
    for name in ("x-a2", "a2", "", "a b", "$(x)", "x" * 61):
        with pytest.raises(UserError, match="--name"):
            base_id("sweep", OURS, name)


# ---- the digest: the same job wherever it is read


def test_the_job_reads_the_digest_that_was_submitted() -> None:
    words = ["data=s3://bkt/set", "runtime.threads=1", "axes={generator.mix.count: [2, 4]}"]
    asked = request("sweep", "smoke", words, "s3://bkt/x", "s3://bkt/shared")
    assert parse("sweep", asked.arguments("configs/sweep/smoke.yaml")).digest == asked.digest
    assert request("sweep", "smoke", words, "s3://bkt/y", "s3://bkt/shared").digest != asked.digest
    assert request("sweep", "smoke", words[:2], "s3://bkt/x", "s3://bkt/shared").digest != asked.digest
    pilot = request("pilot", "smoke", ["data=s3://bkt/set"], "s3://bkt/x", None)
    assert parse("pilot", pilot.arguments("smoke")).digest == pilot.digest
    assert request("pilot", "smoke", ["data=s3://bkt/other"], "s3://bkt/x", None).digest != pilot.digest
    imported = request("import_data", None, ["s3://bkt/a.zip", "s3://bkt/set", "size=32"], None, None)
    assert parse("import_data", imported.arguments(None)).digest == imported.digest
    page = request("report", None, ["s3://bkt/x", "s3://bkt/y"], "s3://bkt/page", None)
    assert parse("report", page.arguments(None)).digest == page.digest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("swep", "smoke"), "did you mean 'sweep'"),
        (("sweep", "data=s3://bkt/x"), "needs a CONFIG"),
        (("sweep", "smoke"), "needs --out"),
        (("sweep", "smoke", "shots=none"), "shots"),
        (("import_data", "s3://bkt/a"), "SRC and DST"),
        (("import_data", "s3://bkt/a", "s3://bkt/c", "sise=3"), "did you mean 'size'"),
        (("import_data", "s3://bkt/a", "s3://bkt/c", "size=big"), "size=big of import_data: a number is needed"),
        (("import_data", "s3://bkt/a", "s3://bkt/c", "holdout=null"), "a number is needed"),
        (("import_data", "s3://bkt/a", "s3://bkt/c", "fit=3"), "a word is needed"),
        (("report",), "at least one RUN"),
        (("report", "s3://bkt/a", "s3://bkt/c"), "needs --out"),
    ],
)
def test_wrong_arguments_are_answered(arguments: tuple[str, ...], said: str) -> None:
    job_, *words = arguments
    out = "s3://bkt/x" if "shots=none" in words else None
    config = words.pop(0) if job_ in ("sweep", "swep") and words else None
    with pytest.raises(UserError, match=said):
        request(job_, config, words, out, None)


def test_a_place_may_look_like_an_assignment() -> None:
    found = request("import_data", None, ["s3://bkt/day=3", "s3://bkt/set", "size=32"], None, None)
    assert (found.sources, found.out, found.assignments) == (("s3://bkt/day=3",), "s3://bkt/set", ("size=32",))


def dry_run(*words: str, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    chosen: dict[str, Any] = {"address": "http://head:8265", "out": "s3://bkt/x", "shared": None, "name": None}
    chosen |= {"cluster_file": None, "wait": True, "dry_run": True, "json_": False} | options
    assert submit_command(words[0], words[1:], **chosen) == 0
    return shlex.split(capsys.readouterr().out)


def test_the_printed_command_survives_a_shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRAMIX_STORE", "{endpoint: 'http://store:8333', cache: null}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    odd = "data=s3://bkt/$(touch x) 'q' \"d\" ;rm"
    command = dry_run("sweep", "smoke", odd, name="night", capsys=capsys)
    assert command[:5] == ["ray", "job", "submit", "--address", "http://head:8265"]
    option = dict(zip(command[3:-1:2], command[4::2], strict=False))
    assert option["--submission-id"] == "hydramix-sweep-night"
    variables = json.loads(option["--runtime-env-json"])["env_vars"]
    assert json.loads(variables["HYDRAMIX_STORE"]) == {"endpoint": "http://store:8333", "cache": None}
    assert set(variables) == {"HYDRAMIX_STORE", "RAY_JOB_STOP_WAIT_TIME_S"}
    assert command[command.index("--") + 1 :] == [
        *("python", "jobs/sweep.py", "--config", "smoke", "--out", "s3://bkt/x", "--", odd)
    ]
    assert "hush" not in " ".join(command)


def test_ray_reads_its_variables_before_its_option_so_they_are_taken_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    assert dry_run("report", "s3://bkt/run", out=None, capsys=capsys)[:4] == ["env", "-u", "RAY_ADDRESS", "ray"]


@pytest.mark.parametrize("place", ["runs/x", "./x", "~/x"])
def test_places_that_nodes_do_not_reach_are_refused(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, out in ((("sweep", "smoke"), place), (("train_generator", "quick", f"data={place}"), "s3://bkt/x")):
        with pytest.raises(UserError, match="cannot reach"):
            dry_run(*words, out=out, capsys=capsys)


@pytest.mark.parametrize(("job_", "kind"), [("train_generator", "generator"), ("sweep", "sweep")])
def test_a_relative_place_in_a_settings_file_is_refused_and_a_quoted_url_taken(
    job_: str, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    ready = yaml.safe_load(
        (ROOT / "configs" / kind / ("quick.yaml" if kind == "generator" else "smoke.yaml")).read_text()
    )
    file.write_text(yaml.safe_dump(ready | {"data": "data/photos"}))
    assert ("data", "data/photos") in request(job_, str(file), [], "s3://bkt/x", None).places
    quoted = request(job_, str(file), ['data="s3://bkt/a"', 'data="s3://bkt/b"'], "s3://bkt/x", None)
    assert [place for key, place in quoted.places if key == "data"] == ["s3://bkt/b"]


# ---- what goes along


def test_only_what_a_job_needs_goes_along(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    create_package(str(checkout()), tmp_path / "package.zip", include_gitignore=True)
    names = zipfile.ZipFile(tmp_path / "package.zip").namelist()
    assert {name.partition("/")[0] for name in names} == {"jobs", "configs", "hydramix_dist", "pyproject.toml"}
    tracked = subprocess.run(
        ["git", "ls-files", "jobs", "configs", "hydramix_dist"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tracked and not set(tracked) - set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert (tmp_path / "package.zip").stat().st_size < 3 * 2**20


def test_settings_must_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match="copy it into"):
        config_inside(str(own), ROOT)
    assert config_inside("nshot", ROOT) == "nshot"
    monkeypatch.chdir(ROOT / "configs")
    assert config_inside("sweep/nshot.yaml", ROOT) == "configs/sweep/nshot.yaml"


def test_credentials_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAMIX_STORE", "{secret: abc}")
    with pytest.raises(UserError, match="no place for credentials"):
        environment()


@pytest.mark.parametrize("job_", JOBS)
def test_every_job_has_its_entry_point(job_: str) -> None:
    text = (ROOT / "jobs" / f"{job_}.py").read_text()
    assert f'run_job("{job_}", sys.argv[1:])' in text and len(text.splitlines()) < 12


# ---- addresses


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address("head:8265") == dashboard_address("http://head:8265/") == "http://head:8265"
    for wrong in ("ray://head:10001", "http://head:8265/x", "auto x"):
        with pytest.raises(UserError, match=f"--address is '{wrong}'"):
            dashboard_address(wrong)
    for ask in (dashboard_address, check_address):
        with pytest.raises(UserError, match="--address is one with credentials; give") as caught:
            ask("http://me:hush@head:8265")
        assert "hush" not in str(caught.value)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # that of the nodes, not of a dashboard
    assert default_address() is None
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert default_address() == "http://head:8265"


# ---- markers


def test_an_older_attempt_does_not_speak_over_a_later_one_unless_it_succeeded(tmp_path: Path) -> None:
    folder = Store(tmp_path)
    first = begin(folder, "sweep", OURS, BASE, 1)
    second = begin(folder, "sweep", OURS, attempt_id(BASE, 2), 2)
    end(folder, first, 2, "held by another process")
    assert read_marker(folder, "sweep") == second
    end(folder, first, 0, None)
    found = read_marker(folder, "sweep")
    assert found is not None and (found.state, found.attempt) == ("succeeded", 1)
    by_hand = begin(folder, "sweep", OURS, "raysubmit_x", None)
    assert by_hand.attempt == 2
    third = begin(folder, "sweep", OURS, "hydramix-sweep-renamed", 1)  # attempts of two names cannot be compared
    end(folder, by_hand, 1, "cut off")
    assert read_marker(folder, "sweep") == third


def test_a_job_that_is_refused_leaves_the_word_of_the_one_that_succeeded_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process is pytest's
    for name in ("cats", "dogs"):
        tiny.image_folder(tmp_path / name, {name: 2, "rest": 2}, test=1)
    assert run_job("import_data", [str(tmp_path / "cats"), str(tmp_path / "set")]) == 0
    before = read_marker(Store(tmp_path / "set"), "import_data")
    assert run_job("import_data", [str(tmp_path / "dogs"), str(tmp_path / "set")]) == 2
    assert "error: " in capsys.readouterr().err
    assert before is not None and before.state == "succeeded"
    assert read_marker(Store(tmp_path / "set"), "import_data") == before


def test_attempts_are_read_from_our_own_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def inside(**metadata: str) -> tuple[str | None, int | None]:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": metadata}))
        return submission()

    assert inside(job_submission_id=f"{BASE}-a3", **{JOB: "sweep"}) == (f"{BASE}-a3", 3)
    assert inside(job_submission_id="hydramix-pilot-x7k2p") == ("hydramix-pilot-x7k2p", None)  # of KubeRay
    assert inside() == (None, None)


def test_a_marker_of_another_kind_is_said_to_be_so(tmp_path: Path) -> None:
    folder = Store(tmp_path)
    folder.put("jobs/sweep.json", json.dumps({"schema_version": 99}).encode())
    with pytest.raises(UserError, match="newer version"):
        read_marker(folder, "sweep")
    folder.put("jobs/sweep.json", b'{"job": "sweep"}')
    with pytest.raises(UserError, match="damaged"):
        read_marker(folder, "sweep")


@pytest.mark.parametrize(
    ("state", "ray_code", "written", "expected"),
    [
        ("SUCCEEDED", 0, 0, ("succeeded", 0, False)),
        ("SUCCEEDED", 0, 1, ("failed", 1, False)),  # the marker's word counts
        ("SUCCEEDED", 0, None, ("failed", 1, True)),  # it did not come to its end
        ("FAILED", -9, None, ("failed", 1, True)),
        ("FAILED", 2, 2, ("failed", 2, False)),
        ("STOPPED", None, 130, ("stopped", 130, False)),
        ("STOPPED", None, None, ("stopped", 130, True)),
    ],
)
def test_a_job_is_judged_by_its_marker(
    tmp_path: Path, state: State, ray_code: int | None, written: int | None, expected: tuple[str, int, bool]
) -> None:
    begun = begin(Store(tmp_path), "sweep", OURS, BASE, 1)
    if written is not None:
        end(Store(tmp_path), begun, written, None)
    outcome = judge(job(1, state, exit_code=ray_code), str(tmp_path), "sweep")
    assert (outcome.state, outcome.exit_code, outcome.remark is not None) == expected


def test_where_the_folder_is_not_here_rays_word_is_taken(tmp_path: Path) -> None:
    outcome = judge(job(1, "SUCCEEDED"), str(tmp_path / "shared"), "sweep")
    assert outcome.exit_code == 0 and outcome.remark is not None and "Ray's word" in outcome.remark


def test_a_marker_of_another_job_is_not_taken_for_a_job_that_was_cut_off(tmp_path: Path) -> None:
    begin(Store(tmp_path), "sweep", OTHERS, "hydramix-sweep-other", 1)
    remark = judge(job(1, "FAILED", exit_code=2), str(tmp_path), "sweep").remark
    assert remark is not None and "tells of hydramix-sweep-other" in remark


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "smoke", "data=s3://bkt/set", "shots=[5]", "--out", "s3://bkt/x"),
        ("--config", "smoke", "--out", "s3://bkt/x", "--", "data=s3://bkt/set", "shots=[5]"),
        ("data=s3://bkt/set", "--config=smoke", "shots=[5]", "--out", "s3://bkt/x"),
    ],
)
def test_arguments_may_stand_in_any_order(arguments: tuple[str, ...]) -> None:
    found = parse("pilot", arguments)
    assert (found.config, found.out, found.assignments) == ("smoke", "s3://bkt/x", ("data=s3://bkt/set", "shots=[5]"))
