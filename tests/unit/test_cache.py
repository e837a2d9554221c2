"""The node's cache: what is in it is whole, it stays small, and no trouble of its disk stops who uses it."""

import fcntl
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hydramix_dist.config.store import VARIABLE
from hydramix_dist.store.cache import Cache, node_cache
from hydramix_dist.store.traffic import traffic

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # the children touch files only


def content(number: int, size: int = 10_000) -> tuple[str, bytes]:
    """Return (sha256, bytes) of the content of that number."""
    data = number.to_bytes(4, "big") * (size // 4)
    return hashlib.sha256(data).hexdigest(), data


def files(cache: Cache) -> dict[str, int]:
    """Return the finished files' names with their sizes."""
    finished = (path for path in cache.folder.glob("??/*") if not path.name.startswith("."))  # others may go meanwhile
    return {path.name: path.stat().st_size for path in finished}


def left_over(cache: Cache) -> list[Path]:
    return list(cache.folder.glob("??/.*"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "new" / "cache", 10**9)


# ---- contents and names


def test_a_content_lies_once_under_its_digest(cache: Cache) -> None:
    before = traffic.values()
    digest, data = content(1)
    assert cache.get(digest) is None
    cache.put(digest, data)
    cache.put(digest, memoryview(data))
    assert cache.get(digest) == Cache(cache.folder, 1).get(digest) == data
    assert files(cache) == {digest: len(data)} and left_over(cache) == []
    after = traffic.values()
    assert (after["cache_hits"] - before["cache_hits"], after["cache_misses"] - before["cache_misses"]) == (2, 1)
    assert after["requests"] == before["requests"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer"])
def test_a_damaged_file_is_noticed_and_makes_room_for_a_whole_one(
    cache: Cache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    digest, data = content(1)
    cache.put(digest, data)
    path = next(cache.folder.glob(f"??/{digest}"))
    path.write_bytes(
        {"flipped": data[:99] + b"X" + data[100:], "cut": data[:-1], "empty": b"", "longer": data + b"."}[damage]
    )
    assert cache.get(digest) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was damaged on disk; it is read from the store again"
    ]
    assert files(cache) == {}
    cache.put(digest, data)
    assert cache.get(digest) == data


def test_a_name_leads_to_its_content_until_it_is_forgotten(cache: Cache) -> None:
    assert cache.known("record of a") is None
    cache.note("record of a", b"12345")
    assert cache.known("record of a") == Cache(cache.folder, 1).known("record of a") == b"12345"
    assert cache.known("record of b") is None
    cache.forget("record of a")
    cache.forget("record of a")
    assert cache.known("record of a") is None
    cache.note("record of a", b"67")
    next(cache.folder.glob("??/*.name")).write_text("../../../etc/passwd")
    assert cache.known("record of a") is None


def test_the_settings_name_the_node_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "{cache: null}")
    assert node_cache() is None
    monkeypatch.setenv(VARIABLE, "{cache: ~/mine, cache_gib: 2.5}")
    found = node_cache()
    assert found is not None and found is node_cache() and found.folder == tmp_path / "mine"
    assert not found.folder.exists()
    monkeypatch.delenv(VARIABLE)
    default = node_cache()
    assert default is not None and default.folder == tmp_path / ".cache" / "hydramix"


# ---- size


def test_it_stays_under_its_limit_and_the_longest_unused_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100_000)
    digests = []
    for number in range(10):  # exactly full
        digest, data = content(number)
        cache.put(digest, data)
        digests.append(digest)
        age = time.time() - 1000 + number
        os.utime(next(cache.folder.glob(f"??/{digest}")), (age, age))
    assert len(files(cache)) == 10
    assert cache.get(digests[0]) is not None  # used again
    for number in range(10, 13):
        cache.put(*content(number))
        assert sum(files(cache).values()) <= 100_000
    left = files(cache)
    assert digests[0] in left and digests[9] in left
    # The first look above the limit frees two, to a tenth below it, so that not every later one has to.
    assert not {digests[1], digests[2]} & set(left)


def test_what_is_larger_than_the_limit_does_not_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 5_000)
    cache.put(*content(1))
    assert files(cache) == {}


def test_while_another_process_makes_room_nobody_waits(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 20_000)
    cache.put(*content(0))
    with (cache.folder / ".evicting").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for number in range(1, 5):
            cache.put(*content(number))
        assert len(files(cache)) == 5
    cache.put(*content(5, 100))  # too little to look for, but this look is owed
    assert sum(files(cache).values()) <= 20_000


# ---- many processes


def _use(folder: Path, limit: int, seed: int) -> list[int]:
    """Read and write contents at random; return [hits, wrong ones, contents called damaged]."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hydramix").addHandler(handler)
    cache, draw = Cache(folder, limit), random.Random(seed)
    hits = wrong = 0
    for _ in range(300):
        digest, data = content(draw.randrange(30), 40_000)
        found = cache.get(digest)
        hits += found is not None
        wrong += found not in (None, data)
        if found is None:
            cache.put(digest, data)
    return [hits, wrong, len(said)]


def test_many_processes_at_once_see_whole_contents_only(tmp_path: Path) -> None:
    limit = 15 * 40_000
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.starmap(_use, [(tmp_path / "cache", limit, seed) for seed in range(4)])
    assert all(hits > 0 and wrong == said == 0 for hits, wrong, said in results), results
    cache = Cache(tmp_path / "cache", limit)
    assert left_over(cache) == []
    cache.put(*content(99))  # the last look of those processes may have been before the last content of another one
    assert 0 < sum(files(cache).values()) <= limit


def _put_for_ever(folder: Path) -> None:
    cache, number = Cache(folder, 10**10), 0
    while True:
        number += 1
        cache.put(*content(number, 8_000_000))


def test_kill_9_leaves_whole_files_and_temporary_ones_that_go_later(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10**10)
    for attempt in range(200):
        process = multiprocessing.get_context("fork").Process(target=_put_for_ever, args=(cache.folder,))
        process.start()
        try:
            end = time.monotonic() + 0.03 + 0.0007 * attempt
            while time.monotonic() < end or not files(cache):
                time.sleep(0.001)
        finally:  # it would fill the disk
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL
        for path in cache.folder.glob("??/*"):
            if not path.name.startswith("."):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
                path.unlink()
        if attempt >= 3 and left_over(cache):
            break
    (old,) = left_over(cache)[:1]
    cache = Cache(cache.folder, 10**10)  # a later process, whose first look comes with its first content
    cache.put(*content(0))
    assert old.exists()  # it may be one that is being written
    os.utime(old, (time.time() - 4000,) * 2)
    Cache(cache.folder, 10**10).put(*content(1))
    assert not old.exists() and {content(0)[0], content(1)[0]} <= set(files(cache))


# ---- a disk that does not want


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.service
def test_a_full_disk_is_said_once_and_what_is_there_is_used(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tiny_disk / "cache", 10**9)
    kept, data = content(0, 600_000)
    cache.put(kept, data)
    for number in (1, 2, 3):
        cache.put(*content(number, 600_000))
        cache.note(f"name {number}", b"1")
    assert warnings_of(caplog) == [
        f"the cache in {cache.folder} takes nothing more (No space left on device); going on without it"
    ]
    assert files(cache) == {kept: 600_000} and left_over(cache) == []
    assert cache.get(kept) == data


@pytest.mark.service
def test_a_cache_that_may_only_be_read_is_read(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tiny_disk / "cache", 10**9)
    digest, data = content(0)
    broken, _ = content(1)
    cache.put(digest, data)
    cache.put(broken, b"something else")
    cache.note("name", b"12345")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert cache.get(digest) == data and cache.known("name") == b"12345"
    assert cache.get(broken) is None and "was damaged" in warnings_of(caplog)[0]
    caplog.clear()
    for number in (2, 3):
        cache.put(*content(number))
    cache.forget("name")
    assert warnings_of(caplog) == [
        f"the cache in {cache.folder} takes nothing more (Read-only file system); going on without it"
    ]
    assert cache.get(digest) == data


def test_a_place_where_no_folder_can_be_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache", 10**9)
    for number in range(3):
        cache.put(*content(number))
        assert cache.get(content(number)[0]) is None
    assert len(warnings_of(caplog)) == 1 and "takes nothing more (Not a directory)" in warnings_of(caplog)[0]


def test_a_cache_that_is_removed_while_it_is_used_fills_again(cache: Cache) -> None:
    cache.put(*content(0))
    subprocess.run(["rm", "-r", str(cache.folder)], check=True)
    assert cache.get(content(0)[0]) is None
    cache.put(*content(1))
    assert cache.get(content(1)[0]) == content(1)[1]


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "thesis.docx").write_bytes(b"x" * 5000)
    os.utime(tmp_path / "db" / "thesis.docx", (0, 0))
    cache = Cache(tmp_path, 2000)
    for number in range(6):
        data = bytes([number]) * 900
        cache.put(hashlib.sha256(data).hexdigest(), data)
    assert (tmp_path / "db" / "thesis.docx").exists()
    assert len(list(tmp_path.glob("??/" + "?" * 64))) <= 2
