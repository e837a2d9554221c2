"""A run folder has one writer: one process gets it, the others are told, and a dead one is followed at once.

`Far` stands for object storage: its objects lie on this disk, where several processes see them, but no lock is used.
"""

import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny

from hydramix_dist.config.load import build
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.training import GeneratorTrainingSettings
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.pilot import run_pilot
from hydramix_dist.orchestration.pool import Ended
from hydramix_dist.orchestration.train import train
from hydramix_dist.store import Store, lease
from hydramix_dist.store.lease import HeldError, Lease, exclusively, is_held

if TYPE_CHECKING:
    from seaweed import Seaweed

BEAT, EXPIRY = 0.1, 1.0


class Far(Store):
    """A store whose objects others see, and which has no locks."""

    def local_path(self, path: str = "") -> Path | None:
        return None


class Weak(Far):
    """One that is not there while `down`, and says so."""

    down = False

    def put(self, path: str, data: bytes) -> None:
        self._fail_if_down()
        super().put(path, data)

    def list(self, prefix: str = "") -> list[str]:
        self._fail_if_down()
        return super().list(prefix)

    def _fail_if_down(self) -> None:
        if self.down:
            raise UserError("no good answer in 60 s")


def numbers(folder: Path) -> list[int]:
    return sorted(int(Path(path).stem) for path in Store(folder).list("lease"))


def newest(folder: Path) -> dict[str, Any]:
    """Return the lease's last object, looked for again where it was just being replaced."""
    while not (found := numbers(folder)):
        time.sleep(0.01)
    return dict(json.loads((folder / f"lease/{found[-1]:06d}.json").read_bytes()))


def write(folder: Path, number: int, **changes: Any) -> None:
    """Write the lease's object as another owner would."""
    mine = Lease(Far(folder))._mine
    sign = {"owner": "other", "host": "elsewhere", "machine": "another boot", "pid": 1, "started": 7, "beat": 3}
    sign |= {"released": False, **changes}
    assert sign.keys() == vars(mine).keys()
    Store(folder).put(f"lease/{number:06d}.json", json.dumps(sign).encode())


def seconds(act: Callable[[], Any]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def take(folder: Path) -> None:
    with Lease(Far(folder), BEAT, EXPIRY):
        pass


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "Lease", lambda store: Lease(store, BEAT, EXPIRY))


# ---- this machine


HOLDER = """
import sys
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
if sys.argv[1] == "far":
    Store.local_path = lambda store, path="": None
with exclusively(Store(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("store", [Store, Far])
def test_folder_is_held_by_one_process_and_free_once_that_is_killed(tmp_path: Path, store: type[Store]) -> None:
    command = [sys.executable, "-c", HOLDER, "far" if store is Far else "disk", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is running in") as told, exclusively(store(tmp_path)):
            pass
        if store is Far:
            assert f"process {holder.pid} on {os.uname().nodename}" in str(told.value)
        holder.kill()
        if store is Far:  # nobody has waited for it yet: a zombie is gone, too
            tiny.wait_for(lambda: not tiny.alive(holder.pid))
        else:
            holder.wait()
        with exclusively(store(tmp_path)), exclusively(store(tmp_path / "other")):
            pass


def test_a_number_that_a_new_process_got_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    mine = Lease(Far(tmp_path))._mine
    write(tmp_path, 1, machine=mine.machine, pid=mine.pid, started=mine.started - 1)
    with exclusively(Far(tmp_path)):
        assert numbers(tmp_path) == [1, 2]  # its first sign of life after this one is 10 s away


def test_what_was_left_is_taken_at_once_and_older_numbers_go(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        take(tmp_path)
        assert numbers(tmp_path) == [number] and newest(tmp_path)["released"]
    write(tmp_path, 1000000)
    write(tmp_path, 1000001, released=True)
    take(tmp_path)
    assert numbers(tmp_path) == [1000002]


# ---- several machines


def race(folder: str, name: str, everybody: Any, results: Any) -> None:
    lease._machine = lambda: name
    everybody.wait()
    try:
        with Lease(Far(folder), BEAT, EXPIRY) as held:
            results.put((name, "held"))
            everybody.wait()
            held.check()
    except UserError as error:
        results.put((name, str(error)))
        everybody.wait()


@pytest.mark.parametrize("before", ["nothing", "a dead owner", "an owner that ended"])
def test_of_several_machines_one_gets_the_folder_and_the_others_are_told(tmp_path: Path, before: str) -> None:
    if before != "nothing":
        write(tmp_path, 5, released=before == "an owner that ended")
    fork = multiprocessing.get_context("fork")
    everybody, results = fork.Barrier(6), fork.Queue()
    processes = [fork.Process(target=race, args=(str(tmp_path), f"m{i}", everybody, results)) for i in range(6)]
    for process in processes:
        process.start()
    said = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    winners = [name for name, text in said.items() if text == "held"]
    assert len(winners) == 1
    assert all("another process is running in" in text for name, text in said.items() if name not in winners)
    assert newest(tmp_path)["machine"] == winners[0] and newest(tmp_path)["released"]


def test_a_silent_owner_elsewhere_is_waited_for_and_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 1)
    with caplog.at_level(logging.WARNING, "hydramix"):
        assert seconds(lambda: take(tmp_path)) > EXPIRY
    assert f"waiting up to 1 s to see whether elsewhere still writes into {tmp_path}" in caplog.text


def test_an_owner_elsewhere_that_ends_meanwhile_is_followed_at_once(tmp_path: Path) -> None:
    write(tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=_end_soon, args=(tmp_path,))
    process.start()
    with Lease(Far(tmp_path), BEAT, expiry=60):
        tiny.wait_for(lambda: numbers(tmp_path) == [1, 2])
    process.join()


def _end_soon(folder: Path) -> None:
    time.sleep(0.3)
    write(folder, 1, released=True)


def test_damaged_lease_is_watched_like_that_of_another_machine(tmp_path: Path) -> None:
    Store(tmp_path).put("lease/000001.json", b"{")
    assert seconds(lambda: take(tmp_path)) > EXPIRY


def test_a_process_of_another_container_is_not_looked_for_in_this_one(tmp_path: Path) -> None:
    mine = Lease(Far(tmp_path))._mine
    boot = mine.machine.split()[0]
    write(tmp_path, 1, machine=f"{boot} pid:[1]", pid=999_999_999)
    assert seconds(lambda: take(tmp_path)) > EXPIRY


# ---- what a store may do


def test_a_number_that_was_free_only_in_an_old_view_is_not_the_folder(tmp_path: Path) -> None:
    mine = Lease(Far(tmp_path))._mine
    write(tmp_path, 2, released=True)

    class Stalled(Far):
        """Between this one's look and its put, others came and went, and one is there."""

        def put_if_absent(self, path: str, data: bytes) -> bool:
            written = super().put_if_absent(path, data)
            write(tmp_path, 9, machine=mine.machine, pid=mine.pid, started=mine.started)
            return written

    with pytest.raises(UserError, match=f"process {mine.pid} on elsewhere"), Lease(Stalled(tmp_path)):
        pass
    assert newest(tmp_path)["owner"] == "other"


def test_a_lost_answer_is_no_loss(tmp_path: Path) -> None:
    class Forgetful(Far):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            super().put_if_absent(path, data)
            return False

    with Lease(Forgetful(tmp_path), BEAT, EXPIRY) as held:
        time.sleep(3 * BEAT)
        held.check()
        tiny.wait_for(lambda: numbers(tmp_path) == [1] and newest(tmp_path)["beat"] > 2)


# ---- holding and losing


def test_the_owner_is_told_of_a_taker_and_writes_nothing_more(tmp_path: Path) -> None:
    told: list[str] = []
    with (
        pytest.raises(UserError, match=f"another process on elsewhere has taken over {tmp_path}; this one ends"),
        Lease(Far(tmp_path), BEAT, EXPIRY) as held,
    ):
        held.when_lost(lambda: told.append("before"))
        held.check()
        write(tmp_path, 2)
        tiny.wait_for(lambda: held.lost)
        held.when_lost(lambda: told.append("after"))
        held.check()
    assert told == ["before", "after"]
    assert numbers(tmp_path) == [1, 2] and newest(tmp_path)["owner"] == "other"
    assert not json.loads((tmp_path / "lease/000001.json").read_bytes())["released"]


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("ending", [None, Interrupted("stopped")])
def test_a_block_that_ends_after_the_loss_ends_with_it(tmp_path: Path, ending: Exception | None) -> None:
    with pytest.raises(UserError, match="has taken over"), exclusively(Far(tmp_path)) as held:
        write(tmp_path, 2)
        tiny.wait_for(lambda: held.lost)
        if ending:
            raise ending


def test_an_interruption_without_a_loss_stays_one(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), exclusively(Far(tmp_path)):
        raise Interrupted("stopped")
    assert newest(tmp_path)["released"]


@pytest.mark.parametrize("outage", [0.5, 2.0])
def test_an_outage_loses_nothing_where_nobody_came(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, outage: float
) -> None:
    store = Weak(tmp_path)
    with caplog.at_level(logging.WARNING, "hydramix"), Lease(store, BEAT, EXPIRY) as held:
        store.down = True
        time.sleep(outage)
        store.down = False
        before = newest(tmp_path)["beat"]
        tiny.wait_for(lambda: newest(tmp_path)["beat"] > before + 2)
        held.check()
        # After a silence in which others might have begun to take over, it had to win a number anew.
        tiny.wait_for(lambda: numbers(tmp_path) == ([1] if outage < EXPIRY else [1, 2]))
    assert len(caplog.records) == 1 and "others cannot see that this process writes into" in caplog.text


def test_who_comes_during_a_long_outage_of_the_owner_gets_the_folder(tmp_path: Path) -> None:
    store = Weak(tmp_path)
    with Lease(store, BEAT, EXPIRY) as first:
        store.down = True
        time.sleep(1.5 * EXPIRY)
        write(tmp_path, 2)
        store.down = False
        tiny.wait_for(lambda: first.lost)
    assert newest(tmp_path)["owner"] == "other"


def test_a_store_that_is_away_at_the_end_is_not_waited_for(tmp_path: Path) -> None:
    store = Weak(tmp_path)
    with Lease(store, BEAT, EXPIRY):
        store.down = True
        time.sleep(3 * BEAT)
    assert not newest(tmp_path)["released"]


# ---- the real server


def start_holder(url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, "as it is", url]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_of_processes_that_begin_a_run_in_a_bucket_one_gets_it(bucket: str) -> None:
    holders = [start_holder(bucket) for _ in range(4)]
    try:
        ended = [holder for holder in holders if holder.stdout is not None and holder.stdout.readline() == ""]
        (winner,) = (holder for holder in holders if holder not in ended)
        for holder in ended:
            assert f"another process is running in {bucket} (process {winner.pid} on " in holder.communicate()[1]
        winner.kill()
        tiny.wait_for(lambda: not tiny.alive(winner.pid))
        began = time.monotonic()
        with exclusively(Store(bucket)):
            assert time.monotonic() - began < lease.EXPIRY / 2
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_a_server_that_is_killed_and_comes_back_costs_nobody_the_folder(bucket: str, seaweed: "Seaweed") -> None:
    with Lease(Store(bucket), 0.2, expiry=1.0) as held:
        seaweed.kill()
        time.sleep(1.5)
        seaweed.start()
        tiny.wait_for(lambda: len(Store(bucket).list("lease")) == 2)
        held.check()
    assert len(Store(bucket).list("lease")) == 1


# ---- what the loss stops


class TakenOver:
    """A display that has the folder taken over once a training is on its way."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._taken = folder, False

    def say(self, text: str) -> None:
        pass

    def planned(self, names: Mapping[str, str]) -> None:
        pass

    def progress(self, key: str, done: int, total: int) -> None:
        if not self._taken and done and (self._folder / "run.json").exists():
            self._taken = True
            write(self._folder, 2)

    def ended(self, ended: Ended) -> None:
        raise AssertionError(f"{ended} although the folder was taken over")


@pytest.mark.usefixtures("short_times")
def test_a_training_that_is_taken_over_stops_and_says_so(tmp_path: Path, data_url: str) -> None:
    generator = tiny.PILOT["generators"]["hydramix"] | {"images": 40_000}
    tree = {"data": data_url, "shots": 3, "generator": generator, "runtime": tiny.PILOT["runtime"]}
    settings = build(GeneratorTrainingSettings, tree, "test")
    with pytest.raises(UserError, match=f"another process on elsewhere has taken over {tmp_path}; this one ends"):
        train(settings, Far(tmp_path), None, TakenOver(tmp_path))
    assert not (tmp_path / "result.json").exists()
    assert newest(tmp_path)["owner"] == "other" and not newest(tmp_path)["released"]


@pytest.mark.usefixtures("short_times")
def test_a_pilot_that_is_taken_over_stops_its_processes_and_leaves_the_folder_as_it_is(
    tmp_path: Path, data_url: str
) -> None:
    generators = {"hydramix": tiny.PILOT["generators"]["hydramix"] | {"images": 40_000}}
    classifier = tiny.PILOT["classifier"] | {"images": 40_000}
    tree = tiny.PILOT | {"generators": generators, "classifier": classifier}
    settings = build(PilotSettings, tree, "test")
    with pytest.raises(UserError, match=f"another process on elsewhere has taken over {tmp_path}; this one ends"):
        run_pilot(data_url, settings, None, Far(tmp_path), TakenOver(tmp_path))
    assert json.loads((tmp_path / "status.json").read_bytes())["state"] == "running", "which is the taker's to say"
    assert not (tmp_path / "results.json").exists() and tiny.workers_of(os.getpid()) == []


def test_a_lock_in_a_folder_that_was_deleted_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it another process deletes the folder, and a third begins there."""
    store = Store(tmp_path / "run")
    flock, deleted = fcntl.flock, []

    def late(*arguments: Any) -> None:
        if not deleted:
            deleted.append(True)
            shutil.rmtree(tmp_path / "run")
        flock(*arguments)

    monkeypatch.setattr("fcntl.flock", late)
    with exclusively(store):
        assert deleted and is_held(store)
        with pytest.raises(HeldError), exclusively(store):
            pass
