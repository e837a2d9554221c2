"""SIGKILL at each point of a deletion: what is left is a whole run or none at all, and the same command ends it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.removal import carry_out, plan_older
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run

TESTS = Path(__file__).parents[1]
S3 = pytest.param("s3", marks=pytest.mark.service)
# What is about to happen when the process dies, and whether the run is then still a whole one.
POINTS = {
    "before the mark": True,
    "before the records": False,
    "within the records": False,
    "within the content": False,
    "before the mark goes": False,
}
PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
from unit.test_runs_killed import die_at_each_point
die_at_each_point(sys.argv[3])
"""


class KillingStore(Store):
    """A store that kills its own process at one point of a deletion."""

    point = ""

    def put(self, path: str, data: bytes) -> None:
        self._meet("before the mark", path == "run.json")
        super().put(path, data)

    def delete_all(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        records = bool(paths) and all(path.endswith("/run.json") for path in paths)
        self._meet("before the records", records)
        self._meet("before the mark goes", paths == ["run.json"])
        if self._half(paths, "within the records" if records else "within the content"):
            super().delete_all(paths[: len(paths) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete_all(paths)

    def delete(self, path: str = "") -> None:
        # On a disk the content goes by folders, and the mark after the last of them.
        self._meet("within the content", self.local_path() is not None and path == "data")
        self._meet("before the mark goes", self.local_path() is not None and path == "status.json")
        super().delete(path)

    def _half(self, paths: list[str], point: str) -> bool:
        return self.point == point and len(paths) > 1

    def _meet(self, point: str, here: bool) -> None:
        if self.point == point and here:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at_each_point(url: str) -> None:
    """Delete a run for each point, in a process of its own that is killed there."""
    for number, point in enumerate(POINTS):
        pid = os.fork()  # before anything of a bucket is open here
        if pid == 0:
            store = KillingStore(f"{url}/{number}")
            store.point = point
            list(carry_out(plan_older([store], 0, whole=True)))
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{point}: the deletion was not killed")


@pytest.fixture(params=["disk", S3])
def place(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A folder on this disk, and one in a bucket, which other processes reach as well."""
    if request.param == "s3":
        yield request.getfixturevalue("s3_store")
    else:
        yield Store(request.getfixturevalue("tmp_path"))


def test_a_killed_deletion_leaves_no_half_run_and_is_ended_by_the_same_command(place: Store) -> None:
    from runs_made import make_pilot, make_run  # with torch, which the process that dies does without

    kept = make_run(place.child("kept"), images=[8])
    for number in range(len(POINTS)):
        make_pilot(place.child(f"{number}/pilot"), images=[8])
    whole = set(place.child("0").list())
    program = [sys.executable, "-c", PROGRAM, str(TESTS), str(TESTS.parent / "cluster"), place.url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    for number, (point, is_whole) in enumerate(POINTS.items()):
        run = place.child(f"{number}/pilot")
        there = {
            path for path in place.child(str(number)).list() if not path.startswith(("pilot/lease/", "pilot/.lock"))
        }
        if is_whole:
            assert there == whole and read_run(run)["kind"] == "pilot"
        else:
            with pytest.raises(UserError, match="interrupted; end it with"):
                read_run(run)
            assert "pilot/run.json" in there and (there < whole or point == "before the records"), point
            for record in (path for path in there if path.count("/") == 3 and path.endswith("/run.json")):
                folder = record.removesuffix("run.json")  # a training that still has its record is whole
                assert {path for path in whole if path.startswith(folder)} <= there, point
        for _, reason in carry_out(plan_older([place.child(str(number))], 0, whole=True)):
            assert reason is None, point
        assert place.list(str(number)) == [], point
    assert read_run(kept)["kind"] == "classifier"
