"""One client a process: forks, threads that begin together."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import FaultProxy

from hydramix_dist.config.store import StoreSettings
from hydramix_dist.store import Store
from hydramix_dist.store.s3 import s3_file_system


@pytest.fixture
def store(s3_store: Store) -> Store:
    return s3_store


FORKED = """
import os, sys
from hydramix_dist.store import Store

store = Store(sys.argv[1])
assert store.read("x") == b"1"
child = os.fork()
if child == 0:
    assert store.read("x") == b"1" and Store(sys.argv[1]).list() == ["x"]
    store.put("by-child", b"2")
    sys.exit(7)  # with all that a process does at its end
assert os.waitpid(child, 0)[1] == 7 << 8
assert store.read("by-child") == b"2"
"""


def test_a_forked_child_has_a_client_of_its_own(store: Store) -> None:
    store.put("x", b"1")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED, store.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def _read(url: str) -> bytes:
    return Store(url).read("x")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_children_forked_while_threads_read_do_not_hang(store: Store) -> None:
    store.put("x", b"1" * 10_000)
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            assert store.read("x") == b"1" * 10_000

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read_on) for _ in range(4)]
        try:
            for _ in range(3):
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    found = pool.map_async(_read, [store.url] * 4).get(30)
                assert found == [b"1" * 10_000] * 4
        finally:
            stop.set()
        for reader in readers:
            reader.result()


def test_threads_that_begin_together_share_one_client_and_its_limit(
    store: Store, proxied: FaultProxy, configured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("x", b"1")
    configured(requests=3)  # a client that none of them has made yet
    proxied.faults.gather, proxied.faults.latency = 2, 0.05
    proxied.clear()
    together, turns = threading.Barrier(16), iter(range(16))

    def slow(settings: StoreSettings) -> object:
        made = s3_file_system(settings)
        time.sleep(0.02 * next(turns))  # so that each has made its own before the first is known
        return made

    monkeypatch.setattr("hydramix_dist.store.s3.s3_file_system", slow)

    def read(_: int) -> bytes:
        together.wait()
        return store.read("x")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(16))) == [b"1"] * 16
    assert 2 <= proxied.most_at_once <= 3
