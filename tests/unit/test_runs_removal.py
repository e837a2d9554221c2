"""Deletion where not all is as it was when it was looked at: what may be needed, or lives, or cannot be read, stays."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runs_made import DAY, living_elsewhere, make_pilot, make_run

from hydramix_dist.checkpoint import load_newest
from hydramix_dist.errors import StoreAwayError, UserError
from hydramix_dist.orchestration.removal import Plan, carry_out, plan_named, plan_older
from hydramix_dist.orchestration.runs import find_runs
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest, mark_deleted, read_run

if TYPE_CHECKING:
    from seaweed import Seaweed

# Root may do all; what it imports it has to import before it is somebody else.
AS_NOBODY = """
import os, sys
import hydramix_dist.checkpoint.commit
from hydramix_dist.cli.runs import delete_command, list_command
if os.geteuid() == 0:
    os.seteuid(65534)
words = sys.argv[1:]
sys.exit(list_command(words[1], True) if words[0] == "list" else delete_command([words[1]], None, False, True, False))
"""


def as_nobody(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `runs list --json` or `runs delete --yes` as a user who may do only what others may."""
    program = [sys.executable, "-c", AS_NOBODY, command, str(folder)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Store:
    """A folder for runs."""
    return Store(tmp_path / "runs")


def key_of(generator: Store) -> str:
    """Return the key by which classifiers name a generator."""
    return digest(read_run(generator)["identity"])[:16]


def reasons(plan: Plan) -> dict[str, str | None]:
    """Carry a plan out; return why each run stays, None where it goes."""
    return {order.run.name: reason for order, reason in carry_out(plan)}


# ---- who needs what


def test_what_a_run_needs_stays_where_that_run_is_found_to_live(s3_store: Store) -> None:
    generator = make_run(s3_store.child("gen"), "generator", images=[8], days=2)
    classifier = make_run(s3_store.child("clf"), "classifier", "killed", identity={"generator": key_of(generator)})
    sweep = make_run(s3_store.child("sweep"), "sweep", "killed", facts={"shared": s3_store.path("shared")})
    shared = make_run(s3_store.child("shared/generators/aaaaaaaaaaaaaaaa"), "generator", images=[8], days=2)
    make_run(s3_store.child("other"), days=2)
    with living_elsewhere(classifier, sweep):
        plan = plan_older([s3_store], 0, whole=True)
        assert len(plan.orders) == 5, "that two of them live is not seen at once"
        why = reasons(plan)

    assert why.pop("other") is None
    assert why.pop("gen") == "clf needs it and could not be deleted"
    assert why.pop("shared/generators/aaaaaaaaaaaaaaaa") == "sweep needs it and could not be deleted"
    assert why.keys() == {"clf", "sweep"} and all("(process 1 on spot-node)" in str(reason) for reason in why.values())
    assert load_newest(generator) is not None and load_newest(shared) is not None
    assert read_run(classifier)["kind"] == "classifier" and read_run(sweep)["kind"] == "sweep"


def test_runs_that_need_each_other_go_together(place: Store) -> None:
    generator = make_run(place.child("gen"), "generator", facts={"source": place.path("clf/data")})
    classifier = make_run(place.child("clf"), identity={"generator": key_of(generator)})
    with pytest.raises(UserError, match="gen stays: clf needs it"):
        plan_named([generator])
    with pytest.raises(UserError, match="clf stays: gen needs it"):
        plan_named([classifier])
    assert reasons(plan_named([generator, classifier])) == {"gen": None, "clf": None}
    assert place.list() == []


def test_needs_are_seen_directly_below_a_bucket(s3_store: Store, seaweed: "Seaweed") -> None:
    seaweed.make_bucket("nothing-but-runs")
    place = Store("s3://nothing-but-runs")
    make_run(place.child("sweep"), "sweep", facts={"shared": place.path("shared")}, days=1)
    shared = make_run(place.child("shared/generators/aaaaaaaaaaaaaaaa"), "generator", images=[8], days=50)
    alone = make_run(place.child("generators/alone"), "generator")  # two folders above it there is no bucket

    with pytest.raises(UserError, match="aaaa stays: sweep needs it"):
        plan_named([shared])
    plan = plan_older([place.child("shared")], 30 * DAY, whole=True)
    assert plan.orders == [] and [reason.partition(";")[0] for _, reason in plan.kept] == ["sweep needs it"]
    assert reasons(plan_named([alone])) == {"alone": None}
    place.delete()


def test_a_run_whose_folder_a_sweep_shares_is_needed(place: Store) -> None:
    pilot = make_pilot(place.child("pilot"), days=50)
    make_run(place.child("on-pilot"), "sweep", facts={"shared": pilot.url}, days=1)
    first = make_run(place.child("first"), "sweep", days=50)
    make_run(first.child("generators/bbbbbbbbbbbbbbbb"), "generator")
    make_run(place.child("on-first"), "sweep", facts={"shared": first.url}, days=1)

    for run, user in ((pilot, "on-pilot"), (first, "on-first")):
        with pytest.raises(UserError, match=f"stays: {user} needs it"):
            plan_named([run])
    plan = plan_older([place], 30 * DAY, whole=True)
    assert not any(order.whole for order in plan.orders) and [run.name for run, _ in plan.kept] == ["first", "pilot"]


# ---- what an interrupted deletion has left


def test_what_was_begun_in_a_half_deleted_run_keeps_it(place: Store) -> None:
    old = make_pilot(place.child("old"))
    mark_deleted(old)
    make_run(old.child("again"), "classifier", "killed", images=[8])

    plan = plan_older([place], 30 * DAY, whole=False)
    assert plan.orders == [] and [run.name for run, _ in plan.kept] == ["old"]
    assert plan.kept[0][1].startswith("in its folder lie others (old/again), which would go with it")
    with pytest.raises(UserError, match="lie others"):
        plan_named([old])


def test_what_begins_in_a_run_before_its_turn_keeps_it(place: Store) -> None:
    half, whole, other = (make_run(place.child(name), images=[8]) for name in ("half", "whole", "other"))
    mark_deleted(half)
    plan = plan_named([half, whole, other])
    make_run(half.child("again"))
    make_run(other.child("data"))
    for name in ("manifest.json", "index.parquet"):
        whole.put(f"photos/{name}", b"")
    before = place.sizes()

    why = reasons(plan)
    assert {name: str(why[name]).partition(", which")[0] for name in why} == {
        "half": f"{half.url} stays: in its folder lie others (again)",
        "whole": f"{whole.url} stays: in its folder lie others (photos)",
        "other": f"{other.url} stays: in its folder lie others (data)",
    }
    after = place.sizes()
    assert {path: after[path] for path in before} == before


def test_of_what_is_left_only_images_are_needed(place: Store) -> None:
    make_run(place.child("sweep"), "sweep", facts={"shared": place.path("shared")})
    for name in ("shared/generators/aaaaaaaaaaaaaaaa", "images"):
        mark_deleted(make_pilot(place.child(name)) if name == "images" else make_run(place.child(name), "generator"))
    make_run(place.child("clf"), facts={"source": place.path("images/data")})

    plan = plan_older([place], 30 * DAY, whole=False)
    assert [order.run.name for order in plan.orders] == ["shared/generators/aaaaaaaaaaaaaaaa"]
    assert [(run.name, reason.partition(";")[0]) for run, reason in plan.kept] == [("images", "clf needs it")]


# ---- what cannot be read


def test_what_a_run_that_cannot_be_read_may_need_stays(place: Store) -> None:
    generator = make_run(place.child("gen"), "generator", images=[8, 16], days=31)
    make_pilot(place.child("pilot"), days=31)
    make_run(place.child("plain"), "classifier", days=31)
    broken = make_run(place.child("broken"), "classifier", identity={"generator": key_of(generator)})
    broken.put("run.json", b"{")

    runs = {run.name: run for run in find_runs(place)}
    assert {name: run.doubts for name, run in runs.items() if run.doubts} == {"gen": ("broken",), "pilot": ("broken",)}
    plan = plan_older([place], 30 * DAY, whole=True)
    assert [order.run.name for order in plan.orders if order.whole] == ["plain"]
    assert [order.run.name for order in plan.orders if not order.whole] == ["gen", "pilot"], "what is spare goes"
    assert "broken may need it" in {run.name: why for run, why in plan.kept}["gen"]
    with pytest.raises(UserError, match=r"runs/gen stays: broken may need it and cannot be read; mend that one or"):
        plan_named([generator])
    broken.delete("run.json")
    assert not plan_named([generator]).kept


def test_a_checkpoint_that_cannot_be_read_keeps_the_checkpoints_of_its_run_alone(place: Store) -> None:
    later = make_run(place.child("later"), images=[8, 16], days=31)
    manifest = json.loads(later.read("checkpoints/000000000016/manifest.json")) | {"schema_version": 99}
    del manifest["sha256"]
    text = json.dumps(manifest | {"sha256": digest(manifest)})
    later.put("checkpoints/000000000016/manifest.json", text.encode())
    make_run(place.child("old"), images=[8, 16], days=31)
    read: list[tuple[int, int]] = []

    plan = plan_older([place], 30 * DAY, whole=False, progress=lambda *told: read.append(told))
    assert [(order.run.name, order.checkpoints) for order in plan.orders] == [
        ("old", (("", "checkpoints/000000000008"),))
    ]
    ((run, reason),) = plan.kept
    assert run.name == "later" and "was made by a newer version (schema 99)" in reason
    assert read == [(0, 2), (1, 2)]


@pytest.mark.parametrize("lost", ["status.json", "manifest.json"])
def test_a_store_that_is_away_ends_the_command(place: Store, lost: str) -> None:
    class Going(Store):
        """A store that is not there any more when it is asked for one of these."""

        def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
            if path.endswith(lost):
                raise StoreAwayError("no good answer in 60 s")
            return super().read(path, offset, length)

    make_run(place.child("old"), images=[8, 16], days=31)
    with pytest.raises(StoreAwayError):
        plan_older([Going(place.url)], 30 * DAY, whole=False)


def test_a_run_that_may_not_be_read_is_listed_as_such() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lets nobody in
        Path(folder).chmod(0o755)
        locked = {"record": "run.json", "status": "status.json", "lock": ".lock"}
        for name, file in {"fine": "result.json", **locked}.items():
            run = make_run(Store(f"{folder}/{name}"), "classifier", "killed" if name == "lock" else "succeeded")
            run.put(file, run.get(file) or b"")
            Path(folder, name, file).chmod(0)
        done = as_nobody("list", Path(folder))

    assert done.returncode == 0, done.stderr
    runs = {run["name"]: run for run in json.loads(done.stdout)["runs"]}
    assert runs.keys() == {"fine", *locked} and runs["fine"]["state"] == "succeeded"
    for name, file in locked.items():
        assert runs[name]["state"] == "damaged"
        assert runs[name]["reason"].startswith(f"cannot read {folder}/{name}/{file}: no permission to read there; mend")


def test_what_may_not_be_removed_is_a_sentence_and_goes_with_the_next() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own lets nobody in
        run = make_run(Store(f"{name}/run"), images=[8, 16])
        folder = Path(run.url)
        for inner in (folder.parent, folder, *filter(Path.is_dir, folder.rglob("*"))):
            inner.chmod(0o777)
        locked = folder / "checkpoints" / f"{8:012}"
        locked.chmod(0o555)
        refused = as_nobody("delete", folder)
        left = locked.exists()
        locked.chmod(0o777)
        done = as_nobody("delete", folder)
        assert left and not folder.exists()
    assert (refused.returncode, done.returncode) == (1, 0), refused.stderr + done.stderr
    said = f"not deleted: run: cannot remove all of {folder}/checkpoints: no permission to remove "
    assert said in refused.stdout and "mend the rights of its folder and run the same command again" in refused.stdout
