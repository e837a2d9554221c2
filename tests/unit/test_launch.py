"""Launching on Ray without Ray: what is refused before it starts, and what is said of workers that come and go."""

import http.server
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from ray_jobs import Job

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration import account as accounts
from hydramix_dist.orchestration import preflight
from hydramix_dist.orchestration.account import Account, WorkersLostError
from hydramix_dist.orchestration.desk import Desk, Failure, Losses, News, Worker
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.store import Store

GPU = {"CPU": 1.0, "GPU": 1.0}


def settings(**changes: object) -> DistributedSettings:
    return DistributedSettings.model_validate(changes)


def refused(
    distributed: DistributedSettings, address: str | None = None, runtime: RuntimeSettings = tiny.RUNTIME
) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as refusal:
        if address is not None:
            preflight.check_address(address)
        with ray_session(distributed, runtime, address):
            pass
    assert time.monotonic() - began < 30
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()
    return str(refusal.value)


# ---- room


def test_more_workers_than_this_machine_has_cores() -> None:
    cores = usable_cores()
    text = refused(settings(workers=cores + 1))
    assert f"distributed.workers is {cores + 1} at 1 CPU each" in text
    assert f"this machine has room for {cores} ({cores} CPU)" in text
    assert "distributed.cpus" in text
    assert "distributed.min_workers is" in refused(settings(workers=cores + 2, min_workers=cores + 1))


def room(nodes: list[dict[str, float]], resources: dict[str, float], **changes: object) -> None:
    preflight.check_room(settings(**changes), resources, nodes, "the cluster")


def test_room_is_counted_node_by_node() -> None:
    two_halves = [{"CPU": 1.5}, {"CPU": 1.5}, {"object_store_memory": 1.0}]
    room(two_halves, {"CPU": 0.5}, workers=6)
    room(two_halves, {"CPU": 1.0}, workers=2)
    with pytest.raises(UserError, match=r"room for 2 \(1\.5 CPU, 1\.5 CPU\)"):
        room(two_halves, {"CPU": 1.0}, workers=3)
    room(two_halves, {"CPU": 1.0}, workers=3, min_workers=2)
    room([{"CPU": 3.0}], {"CPU": 0.1}, workers=30)


def test_room_for_gpus() -> None:
    room([{"CPU": 8.0, "GPU": 2.0}], GPU, workers=2)
    with pytest.raises(UserError, match=r"room for 1 \(8 CPU and 1 GPU, 4 CPU and 0 GPU\); lower distributed.workers$"):
        room([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}], GPU, workers=2)


@pytest.mark.parametrize(
    ("device", "gpus", "there", "expected"),
    [
        ("cpu", None, True, {"CPU": 1.0}),
        ("auto", None, False, {"CPU": 1.0}),
        ("auto", None, True, GPU),
        ("cuda", None, True, GPU),
    ],
)
def test_what_a_worker_reserves(device: str, gpus: float | None, there: bool, expected: dict[str, float]) -> None:
    runtime = RuntimeSettings.model_validate({"device": device})
    assert preflight.reserved(settings(workers=2, gpus=gpus), runtime, gpus_there=there) == expected


@pytest.mark.parametrize(
    ("device", "gpus", "words"),
    [
        ("cpu", 1.0, "training is on the CPU"),
        ("auto", 0.5, "cannot share a GPU"),
        ("auto", 0.0, "set runtime.device=cpu"),
    ],
)
def test_gpus_that_make_no_sense(device: str, gpus: float, words: str) -> None:
    runtime = RuntimeSettings.model_validate({"device": device})
    with pytest.raises(UserError, match=words):
        preflight.reserved(settings(workers=2, gpus=gpus), runtime, gpus_there=True)


# ---- address


@pytest.mark.parametrize("address", ["auto", "ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:66000", ":6379"])
def test_address_that_is_none(address: str) -> None:
    assert f"--address is '{address}'; give HOST:PORT" in refused(settings(workers=2), address)


def test_address_where_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert f"nothing answers at --address {address}" in refused(settings(workers=2), address)


def test_address_of_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "TRIAL_SECONDS", 3.0)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            text = refused(settings(workers=2), f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert "is no Ray cluster" in text and "no answer in 3 s" in text


# ---- the desk


def worker(rank: int, of: int = 2, node: str = "n1") -> Worker:
    return Worker(rank, of, 100 + rank, "10.0.0.1", node, f"/logs/{rank}.err")


def test_desk_hands_on_progress_warnings_and_the_stop() -> None:
    desk = Desk()
    assert not desk.exchange((4, 48), ["a disk is slow"])
    assert not desk.exchange(None, [])
    news = desk.look(stop=False)
    assert (news.progress, news.happened, news.working) == ((4, 48), ("a disk is slow",), False)
    assert desk.look(stop=True) == News(None, (), None, working=False)
    assert desk.exchange(None, []), "asked to stop"


def test_desk_tells_of_a_group_when_it_is_complete() -> None:
    desk = Desk()
    desk.join(worker(1))
    assert desk.look(False).happened == ()
    desk.join(worker(0))
    assert desk.look(False).happened == ((worker(0), worker(1)),)
    desk.join(worker(0, of=1))  # another number of workers, though none was lost
    assert desk.look(False).happened == ((worker(0, of=1),),)


def test_desk_tells_the_nearest_cause_once() -> None:
    desk = Desk()
    desk.join(worker(0))
    desk.join(worker(1))
    desk.look(False)
    failures = {0: Failure(2, "lost the connection"), 1: Failure(0, "was killed")}
    assert not desk.lose(failures) and not desk.lose(failures), "Ray shall begin anew"
    news = desk.look(False)
    assert news.happened == (Losses(((1, worker(1), "was killed"),)),) and not news.working
    assert not desk.lose({0: Failure(0, "was killed")}), "before it came to work"
    assert desk.look(False).happened == ()


def test_desk_knows_what_is_final() -> None:
    bad = UserError("no such luck")
    desk = Desk()
    assert not desk.end(Interrupted("by a signal to a worker"))
    assert not desk.lose({0: Failure(0, "left")})
    desk.look(stop=True)
    assert desk.end(Interrupted("by the user"))
    desk = Desk()
    assert desk.end(bad) and desk.end(UserError("later"))
    assert desk.look(False).ending is bad
    assert desk.lose({0: Failure(2, "failed")}), "nothing is begun again"
    assert desk.look(False).happened == (), "and nothing is lost"


# ---- the account


def take(account: Account, *happened: Losses | tuple[Worker, ...] | str, working: bool = True) -> None:
    account.take(News(None, happened, None, working))


def test_account_says_who_was_lost_and_how_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.until_interrupted(lambda: tiny.run_classifier(tmp_path, should_stop=tiny.stops_after(5)))
    caplog.clear()
    account = Account(Store(tmp_path), settings(workers=2))
    take(account, (worker(0), worker(1)))
    assert caplog.messages == [], "a beginning is nothing to say"
    take(account, Losses(((1, worker(1), "was killed"),)), "a disk is slow", (worker(0, of=1),))
    take(account, Losses(((0, None, "was lost with its node"),)))
    take(account, (worker(0), worker(1)))
    assert caplog.messages == [
        "worker 1 of 2 (process 101 on 10.0.0.1) was killed (log: /logs/1.err)",
        "a disk is slow",
        "going on with 1 worker instead of 2, from the checkpoint after 20 images",
        "worker 0 was lost with its node",
        "going on with 2 workers instead of 1, from the checkpoint after 20 images",
    ]
    assert account.losses == "worker 0 was lost with its node"


def test_account_of_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "WORD_SECONDS", 0.0)
    account = Account(Store(tmp_path), settings(workers=3, min_workers=2))
    take(account, working=False)
    assert caplog.messages == ["waiting for room for 2 workers since 0 s; Ctrl-C stops"]
    monkeypatch.setattr(accounts, "PATIENCE_SECONDS", 0.0)
    take(account, working=True)
    with pytest.raises(WorkersLostError, match="no room for 2 workers"):
        take(account, working=False)


# ---- a worker


def test_worker_that_sees_another_folder_says_so(tmp_path: Path) -> None:
    from hydramix_dist.orchestration import worker as worker_module

    job = Job("classifier", tmp_path)
    order = worker_module.Order(job, {}, None, marker="ray/run/.validate_storage_marker", on_gpu=False)
    with pytest.raises(UserError, match=f"the run folder {tmp_path} is another one on node .* that all nodes share"):
        worker_module._carry_out(order, None)
