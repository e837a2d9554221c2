"""Which runs a place holds, and what of them goes: never what runs, what another needs, or the only good checkpoint."""

import json
import logging
import sys
from pathlib import Path

import pytest
from runs_made import living_elsewhere, make_pilot, make_run, sign_elsewhere

from hydramix_dist.checkpoint import load_newest
from hydramix_dist.cli import main
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.removal import Plan, carry_out, plan_named, plan_older
from hydramix_dist.orchestration.runs import find_runs
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
from hydramix_dist.store.run import RunFolder, digest, mark_deleted, read_run
from hydramix_dist.store.traffic import since, traffic

S3 = pytest.param("s3", marks=pytest.mark.service)
DAY = 86400.0


@pytest.fixture(params=["disk", S3])
def place(request: pytest.FixtureRequest) -> Store:
    """A folder for runs, on this disk and in a bucket."""
    if request.param == "s3":
        store: Store = request.getfixturevalue("s3_store")
        return store.child("runs")
    return Store(request.getfixturevalue("tmp_path") / "runs")


def do(plan: Plan) -> None:
    """Carry a plan out, of which nothing may be refused."""
    assert [reason for _, reason in carry_out(plan) if reason is not None] == []


def left(place: Store) -> set[str]:
    """Return the names of the runs that are left; of one that is gone, nothing is."""
    names = {run.name for run in find_runs(place)}
    for path in place.list():
        assert any(path.startswith(f"{name}/") for name in names), f"{path} is left behind"
    return names


def test_runs_are_found_with_kind_state_size_and_who_needs_them(place: Store) -> None:
    generator = make_run(place.child("deep/gen"), "generator", images=[8])
    key = digest(read_run(generator)["identity"])[:16]
    make_run(place.child("clf"), "classifier", "failed", images=[8, 16], identity={"generator": key})
    make_pilot(place.child("pilot"), days=3)
    make_run(place.child("killed"), "classifier", "killed")
    make_run(place.child("sweep"), "sweep", facts={"shared": place.path("shared")})
    make_run(place.child("sweep/candidates/photos/a-n5-c000-seed0"))
    make_run(place.child("shared/generators/aaaaaaaaaaaaaaaa"), "generator")
    make_run(place.child("on-images"), facts={"data_url": place.path("pilot/data")})
    place.put("photos/manifest.json", b"{}")  # an image set is no run

    runs = {run.name: run for run in find_runs(place)}

    shared = "shared/generators/aaaaaaaaaaaaaaaa"
    assert set(runs) == {"deep/gen", "clf", "pilot", "killed", "sweep", shared, "on-images"}
    assert {name: run.state for name, run in runs.items() if run.state != "succeeded"} == {
        "clf": "failed",
        "killed": "killed",
    }
    assert runs["clf"].kind == "classifier" and runs["pilot"].kind == "pilot"
    assert {name: run.users for name, run in runs.items() if run.users} == {
        "deep/gen": ("clf",),
        "pilot": ("on-images",),
        shared: ("sweep",),
    }
    sizes = place.sizes("pilot")
    assert runs["pilot"].bytes == sum(sizes.values()) and len(runs["pilot"].entries) == len(sizes)
    assert sum(map(len, runs["pilot"].checkpoints.values())) == 6
    assert runs["clf"].checkpoints == {"": ["checkpoints/000000000008", "checkpoints/000000000016"]}
    status = json.loads(place.read("pilot/status.json"))
    assert runs["pilot"].word == status["updated"]


def test_what_nobody_needs_goes_and_the_newest_whole_checkpoint_stays(
    place: Store, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(place.child("old"), images=[8, 16, 24], scores={8: 0.9, 16: 0.5, 24: 0.7}, days=31)
    make_run(place.child("torn"), "classifier", "failed", images=[8, 16, 24], days=31)
    place.put("torn/checkpoints/000000000024/classifier.safetensors", b"torn")
    make_run(place.child("young"), images=[8, 16], days=29)
    make_pilot(place.child("pilot"), days=31)
    before = place.sizes()

    with caplog.at_level(logging.WARNING):
        plan = plan_older([place], 30 * DAY, whole=False)
    assert place.sizes() == before
    do(plan)

    gone = set(before) - set(place.sizes())
    folders = {path.rpartition("/")[0] for path in gone}
    assert folders == {
        "old/checkpoints/000000000016",  # 8 is the best one, 24 the newest
        "torn/checkpoints/000000000008",  # 24 is damaged, so 16 is what it goes on from
        "pilot/generators/0123456789abcdef/checkpoints/000000000008",
        "pilot/classifiers/baseline-n5-seed0/checkpoints/000000000008",
        "pilot/classifiers/hydramix-n5-seed0/checkpoints/000000000008",
    }
    assert sum(order.bytes for order in plan.orders) == sum(before[path] for path in gone)
    found = load_newest(place.child("torn"))
    assert found is not None and found.images == 16
    assert plan_older([place], 30 * DAY, whole=False).orders == []  # nothing more


def test_whole_runs_go_but_for_those_that_can_go_on_or_are_needed(place: Store) -> None:
    generator = make_run(place.child("gen"), "generator", images=[8, 16], days=50)
    other = make_run(place.child("gen-2"), "generator", images=[8], days=50)
    keys = [digest(read_run(store)["identity"])[:16] for store in (generator, other)]
    make_run(place.child("young"), images=[8], identity={"generator": keys[0]}, days=1)
    make_run(place.child("old"), images=[8], identity={"generator": keys[1]}, days=50)
    make_run(place.child("unfinished"), "classifier", "failed", images=[8, 16], days=50)
    make_run(place.child("empty"), "classifier", "failed", days=50)
    make_pilot(place.child("pilot"), "failed", days=50)

    plan = plan_older([place], 30 * DAY, whole=True)
    reasons = {run.name: reason for run, reason in plan.kept}
    do(plan)

    assert left(place) == {"gen", "young", "unfinished", "pilot"}
    assert reasons["gen"].startswith("young needs it")
    assert "can go on" in reasons["unfinished"] and "can go on" in reasons["pilot"]
    assert find_runs(place.child("unfinished"))[0].checkpoints == {"": ["checkpoints/000000000016"]}


def test_a_part_of_a_place_is_looked_at_with_those_around_that_need_it(place: Store) -> None:
    generator = make_run(place.child("gen"), "generator", images=[8], days=50)
    key = digest(read_run(generator)["identity"])[:16]
    make_run(place.child("clf"), images=[8], identity={"generator": key}, days=1)
    make_run(place.child("sweep"), "sweep", facts={"shared": place.path("shared")}, days=1)
    make_run(place.child("shared/generators/aaaaaaaaaaaaaaaa"), "generator", images=[8], days=50)
    make_run(place.child("unneeded"), "generator", images=[8], days=50)

    parts = [place.child(name) for name in ("gen", "shared", "shared/generators", "unneeded", "unneeded")]
    plan = plan_older(parts, 30 * DAY, whole=True)

    assert [order.run.store.url for order in plan.orders] == [place.path("unneeded")]  # once
    assert [reason.partition(" needs")[0] for _, reason in plan.kept] == ["clf", "sweep"]


def test_named_runs_go_whole_in_one_command_with_those_that_need_them(place: Store) -> None:
    generator = make_run(place.child("gen"), "generator", images=[8])
    key = digest(read_run(generator)["identity"])[:16]
    user = make_run(place.child("clf"), "classifier", "failed", images=[8], identity={"generator": key})
    make_run(place.child("killed"), "classifier", "killed")
    make_run(place.child("other"))
    make_run(place.child("other-sweep"), "sweep", facts={"shared": place.path("shared")})
    shared = make_run(place.child("shared/generators/aaaaaaaaaaaaaaaa"), "generator")

    with pytest.raises(UserError, match="gen stays: clf needs it"):
        plan_named([generator])
    with pytest.raises(UserError, match="aaaa stays: other-sweep needs it"):
        plan_named([shared])
    do(plan_named([generator, user, place.child("killed")]))

    assert left(place) == {"other", "other-sweep", "shared/generators/aaaaaaaaaaaaaaaa"}


def test_a_run_that_is_running_stays_however_it_is_asked_for(place: Store) -> None:
    run = make_run(place.child("busy"), "classifier", "killed", images=[8, 16])
    with exclusively(run):
        with pytest.raises(UserError, match="it is running; stop it first"):
            plan_named([run])
        assert plan_older([place], 0, whole=True).orders == []
        assert [found.state for found in find_runs(place)] == ["running"]
    plan = plan_named([run])  # killed now; then it is taken up again before its turn comes
    with exclusively(run):
        ((_, reason),) = carry_out(plan)
        assert reason is not None and "another process is running" in reason
    RunFolder.begin(run, "classifier", {"name": "busy"}, {}).fail("stopped again")
    ((_, reason),) = carry_out(plan)
    assert reason is not None and "has gone on meanwhile" in reason
    assert load_newest(run) is not None


@pytest.mark.full
def test_a_run_whose_machine_is_gone_goes_once_its_lease_has_run_out(s3_store: Store) -> None:
    run = make_run(s3_store.child("runs/lost"), "classifier", "killed")
    sign_elsewhere(run)
    assert [found.state for found in find_runs(s3_store)] == ["running"]  # nobody here can tell at once
    assert plan_older([s3_store], 3600, whole=True).orders == []
    plan = plan_older([s3_store], 0, whole=True)
    with living_elsewhere(run):
        ((_, reason),) = carry_out(plan)
    assert reason is not None and "(process 1 on spot-node)" in reason
    do(plan)
    assert s3_store.list() == []


def test_only_runs_are_deleted_and_only_those_meant(place: Store, tmp_path: Path) -> None:
    make_pilot(place.child("pilot"))
    make_run(place.child("outer"))
    make_run(place.child("outer/kept/inner"))
    place.put("photos/manifest.json", b"{}")
    place.put("broken/run.json", b"{")
    place.put("later/run.json", json.dumps({"schema_version": 99}).encode())
    for name, words in {
        "pilot/generators/0123456789abcdef": "is part of the pilot in",
        "photos": "holds no run",
        "nothing": "holds no run|does not exist",
        "broken": "is damaged",
        "later": "was made by a newer version",
        "outer": r"in its folder lie others \(outer/kept/inner\)",
    }.items():
        with pytest.raises(UserError, match=words):
            plan_named([place.child(name)])
    with pytest.raises(UserError, match="is no run, but holds"):
        plan_named([place])
    with pytest.raises(UserError, match="is part of the pilot in"):
        plan_older([place.child("pilot/generators")], 0, whole=True)
    plan = plan_older([place], 0, whole=True)
    assert {order.run.name for order in plan.orders} == {"pilot", "outer/kept/inner"}
    reasons = {run.name: reason for run, reason in plan.kept}
    assert "cannot be read" in reasons["broken"] and "cannot be read" in reasons["later"]
    assert "lie others" in reasons["outer"]


def test_nothing_outside_the_folder_goes(tmp_path: Path) -> None:
    place, elsewhere = Store(tmp_path / "runs"), tmp_path / "elsewhere"
    run = make_run(place.child("run"), images=[8])
    make_run(Store(elsewhere / "run"))
    (tmp_path / "runs/run/data").symlink_to(elsewhere)
    (tmp_path / "runs/linked").symlink_to(elsewhere)
    (tmp_path / "runs/alias").symlink_to(tmp_path / "runs/run")

    assert [found.name for found in find_runs(place)] == ["run"]
    for name in ("linked/run", "linked/../elsewhere//run", "run/../run"):
        (order,) = plan_named([Store(f"{place.url}/{name}")]).orders
        assert order.run.store.url == f"{tmp_path}/{'runs' if name[0] == 'r' else 'elsewhere'}/run"
    with pytest.raises(UserError, match="is a link; give the folder that it leads to"):
        plan_named([place.child("alias")])
    do(plan_named([run]))

    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["alias", "linked"]
    assert [found.name for found in find_runs(Store(elsewhere))] == ["run"]


def test_a_need_is_seen_whatever_name_a_folder_was_called_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "runs")
    place = Store(tmp_path / "runs")
    make_run(place.child("sweep"), "sweep", facts={"shared": f"{tmp_path}/alias/shared"})
    make_run(place.child("shared/generators/aaaaaaaaaaaaaaaa"), "generator", days=50)
    make_pilot(place.child("images"), days=50)
    make_pilot(place.child("by-path"), facts={"source": "runs/images/data"})
    monkeypatch.chdir(tmp_path)

    for name in ("runs", "alias"):
        assert plan_older([Store(name)], 30 * DAY, whole=True).orders[0].whole is False  # its spare checkpoints
        users = {run.name: run.users for run in find_runs(Store(name)) if run.users}
        assert users == {"shared/generators/aaaaaaaaaaaaaaaa": ("sweep",), "images": ("by-path",)}


def test_a_whole_bucket_is_not_deleted(s3_store: Store) -> None:
    with pytest.raises(UserError, match="is a whole bucket"):
        plan_named([Store(f"s3://{s3_store.url.split('/')[2]}")])


def test_a_place_is_read_with_few_requests(s3_store: Store) -> None:
    for number in range(3):
        make_pilot(s3_store.child(f"pilot-{number}"))
    make_run(s3_store.child("killed"), "classifier", "killed")
    sign_elsewhere(make_run(s3_store.child("elsewhere"), "classifier", "killed"))
    before = traffic.values()
    assert len(find_runs(s3_store)) == 5
    # One list, then run.json and status.json of each; of those that may be running, whose lease it is.
    assert since(before)["requests"] == 1 + 2 * 5 + 2 * 2


def test_what_an_interrupted_deletion_left_is_no_run_and_goes_with_the_next(place: Store) -> None:
    run = make_pilot(place.child("pilot"))
    mark_deleted(run)
    with pytest.raises(UserError, match=r"interrupted; end it with: hydramix runs delete .*/pilot --yes"):
        read_run(run)
    with pytest.raises(UserError, match="interrupted"):
        RunFolder.begin(run, "pilot", {"name": "pilot"}, {})
    assert [(found.kind, found.state) for found in find_runs(place)] == [("pilot", "deleted")]
    do(plan_older([place], 300 * DAY, whole=False))
    assert place.list() == []


def hydramix(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["hydramix", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_shows_first_and_deletes_with_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pilot(Store(tmp_path / "runs/pilot"), days=40)
    make_run(Store(tmp_path / "runs/busy"), "classifier", "killed")
    needed = make_run(Store(tmp_path / "runs/one/gen"), "generator")
    key = digest(read_run(needed)["identity"])[:16]
    make_run(Store(tmp_path / "runs/another/clf"), identity={"generator": key})
    assert hydramix(monkeypatch, "runs", "delete", "runs/one/gen", "--yes") == 2
    assert "another/clf needs it" in capsys.readouterr().err
    assert hydramix(monkeypatch, "runs", "delete", "runs/one/gen", "runs/another/clf", "--yes") == 0
    assert hydramix(monkeypatch, "runs", "list", "runs/one") == 0
    assert "holds no run" in capsys.readouterr().out

    assert hydramix(monkeypatch, "runs", "list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["run", "kind", "state", "last", "word", "size", "checkpoints", "needed", "by"]
    assert listed[1].split()[:3] == ["busy", "classifier", "killed"]
    assert listed[2].split()[:5] == ["pilot", "pilot", "succeeded", "40", "d"] and listed[2].split()[-1] == "6"
    assert listed[3].startswith("2 runs, ")

    old = ("runs", "delete", "runs", "--older-than", "30d")
    assert hydramix(monkeypatch, *old) == 0
    shown = capsys.readouterr().out
    assert "3 checkpoints of" in shown and "runs --older-than 30d --yes" in shown
    assert len(list(tmp_path.glob("runs/pilot/*/*/checkpoints/*"))) == 6
    assert hydramix(monkeypatch, *old, "--yes", "--json") == 0
    assert [order["deleted"] for order in json.loads(capsys.readouterr().out)["orders"]] == [True]
    assert len(list(tmp_path.glob("runs/pilot/*/*/checkpoints/*"))) == 3
    assert hydramix(monkeypatch, "runs", "delete", "runs/pilot", "--yes") == 0
    assert not (tmp_path / "runs/pilot").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["delete", "runs", "--older-than", "soon"], "--older-than 'soon' is no age; give hours, days or weeks"),
        (["delete", "runs", "--whole"], "--whole goes with --older-than"),
        (["list", "nowhere"], "nowhere does not exist"),
        (["delete", ""], "an empty name would be this folder"),
        (["delete", "file"], "holds no run"),
        (["delete", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert hydramix(monkeypatch, "runs", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
