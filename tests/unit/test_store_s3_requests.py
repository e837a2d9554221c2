"""What S3 is asked: again where it may help, once where not; uploads whole or absent; names as they are."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Faults, Request
from s3_fixtures import ACTS, refusal
from seaweed import Seaweed

from hydramix_dist.store import Store
from hydramix_dist.store.traffic import traffic


@pytest.fixture
def store(s3_store: Store) -> Store:
    return s3_store


# ---- what is tried again


def first(proxied: FaultProxy, count: int = 1, **faults: Any) -> None:
    """Let the first requests from now on meet a fault."""
    usual, last = proxied.faults, len(proxied.requests) + count
    proxied.faults = Faults(**faults)
    proxied.when(lambda seen: len(proxied.requests) > last, lambda: setattr(proxied, "faults", usual))


@pytest.mark.parametrize("fault", ["unavailable", "reset", "cut"])
def test_what_may_pass_is_tried_again(fault: str, store: Store, proxied: FaultProxy) -> None:
    body = os.urandom(100_000)
    store.put("x", body)
    for act in (lambda: store.read("x"), lambda: store.read("x", 0, len(body))):
        proxied.clear()
        before = traffic.values()
        first(proxied, 2, **{fault: 1.0})
        assert act() == body
        assert [request.fault for request in proxied.requests] == [fault] * 2 + [""]
        after = traffic.values()
        assert after["retries"] - before["retries"] == 2 and after["requests"] - before["requests"] == 3
        assert after["read_bytes"] - before["read_bytes"] == len(body)


def test_a_flipped_byte_is_noticed_by_the_store_s_checksum_and_read_again(store: Store, proxied: FaultProxy) -> None:
    """Records such as a manifest are read whole and have no other checksum."""
    store.put("x", b"0" * 1000)
    proxied.clear()
    first(proxied, flip=lambda path: True)
    assert store.read("x") == b"0" * 1000 and len(proxied.requests) == 2
    proxied.faults.flip = lambda path: True
    said = refusal(store.read, "x")
    assert said.startswith(f"cannot read {store.url}/x: twice it arrived otherwise than the store recorded it")
    assert len(proxied.requests) == 4


def test_what_is_final_is_asked_once(store: Store, proxied: FaultProxy) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("x")
    assert len(proxied.requests) == 1
    proxied.faults.refuse = lambda method, path: True
    refusal(store.read, "x")
    refusal(store.put, "x", b"")
    assert len(proxied.requests) == 3


def test_patience_ends(store: Store, proxied: FaultProxy, configured: Callable[..., None]) -> None:
    configured(patience=0.5)
    store.list()  # to make the client takes its time, too
    proxied.faults.unavailable = 1
    proxied.clear()
    bucket = Store(store.url.rsplit("/", 1)[0])
    acts = [(name, store) for name in ("read", "list", "put", "put_if_absent", "exists")]
    # The bucket must not be taken for missing while the server does not answer.
    for name, where in [*acts, ("exists at all", bucket)]:
        said = refusal(ACTS[name], where)
        assert f"{proxied.endpoint} gave no good answer in" in said and "503" in said, name
    assert len(proxied.requests) >= 2 * len(acts)


def test_a_server_that_was_never_there_is_given_up_sooner(
    store: Store, configured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydramix_dist.store.s3.FIRST_ANSWER_SECONDS", 0.5)
    configured(endpoint="http://127.0.0.1:9", patience=600)
    assert "http://127.0.0.1:9 gave no good answer in" in refusal(store.read, "x")


# ---- writing


def test_a_conditional_put_whose_answer_was_lost_knows_its_own_object(store: Store, proxied: FaultProxy) -> None:
    first(proxied, reset=1.0)
    assert store.put_if_absent("mine", b"my words")
    assert [(r.method, r.status, r.fault) for r in proxied.requests[:2]] == [("PUT", 200, "reset"), ("PUT", 412, "")]
    assert not store.put_if_absent("mine", b"my words")  # another call's are another's, be they the same
    store.put("theirs", b"other words")
    first(proxied, reset=1.0)
    assert not store.put_if_absent("theirs", b"my words")
    assert store.read("mine") == b"my words" and store.read("theirs") == b"other words"


def _put_large(url: str, size: int) -> None:
    Store(url).put("large", bytes(size))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_large_upload_that_is_killed_leaves_nothing_and_its_repetition_wins(
    store: Store, proxied: FaultProxy
) -> None:
    size = 110 * 2**20
    process = multiprocessing.get_context("fork").Process(target=_put_large, args=(store.url, size))
    process.start()
    proxied.when(lambda seen: seen.uploaded > size // 2, process.kill)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert store.list() == [] and not store.exists("large")
    _put_large(store.url, size)
    assert len({request.query["partNumber"] for request in proxied.requests if "partNumber" in request.query}) > 1
    digest = hashlib.sha256()
    for start in range(0, size, 2**23):
        digest.update(store.read("large", start, 2**23))
    assert store.size("large") == size and digest.digest() == hashlib.sha256(bytes(size)).digest()


def test_an_upload_whose_end_fails_is_whole_all_the_same(
    store: Store, seaweed: Seaweed, proxied: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    size = 101 * 2**20

    def ends() -> list[Request]:
        return [request for request in proxied.requests if request.method == "POST" and "uploadId" in request.query]

    # The end is done and its answer lost; the server knows it again.
    proxied.when(lambda seen: len(ends()) == 1, lambda: setattr(proxied.faults, "cut", 1.0))
    proxied.when(lambda seen: len(ends()) == 2, lambda: setattr(proxied.faults, "cut", 0.0))
    _put_large(store.url, size)
    assert [end.fault for end in ends()] == ["cut", ""] and store.size("large") == size
    store.delete("large")
    proxied.clear()

    # The end is not done, and when it is tried again the parts are gone, as by a rule of the bucket.
    def remove_parts() -> None:
        proxied.faults.unavailable = 0.0
        bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
        with closing(seaweed.client()) as client:
            client.abort_multipart_upload(Bucket=bucket, Key=f"{prefix}/large", UploadId=ends()[0].query["uploadId"])

    proxied.when(lambda seen: len(ends()) == 1, lambda: setattr(proxied.faults, "unavailable", 1.0))
    removed = proxied.when(lambda seen: len(ends()) == 2, remove_parts)
    _put_large(store.url, size)
    removed.result(1)
    assert [end.status for end in ends()] == [503, 404, 200] and store.size("large") == size
    assert not [record for record in caplog.records if "stay behind" in record.getMessage()]


def test_many_objects_go_a_thousand_with_each_request(store: Store, seaweed: Seaweed, proxied: FaultProxy) -> None:
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    with closing(seaweed.client()) as client, ThreadPoolExecutor(8) as pool:
        names = [f"{prefix}/run/{number:04d}" for number in range(1001)]
        list(pool.map(lambda name: client.put_object(Bucket=bucket, Key=name, Body=b""), names))
    store.put("kept", b"")
    assert len(store.list("run")) == 1001
    proxied.clear()
    store.delete("run")
    assert store.list() == ["kept"]
    assert sum("delete" in request.query for request in proxied.requests) == 2


def test_what_looks_like_a_version_is_a_part_of_the_name(bucket: str) -> None:
    """s3fs takes `?versionId=` for the version of another object: it must neither be read nor removed for it."""
    store = Store(bucket)
    store.put("v", b"the object")
    store.put("v/1", b"below it")
    other = Store(f"{bucket}/v?versionId=3")
    assert not other.exists() and other.list() == []
    other.delete()
    other.put("1", b"its own")
    assert store.read("v") == b"the object" and store.read("v/1") == b"below it" and other.read("1") == b"its own"
    other.delete()
    assert store.list() == ["v", "v/1"]


def test_a_writer_has_no_file_that_a_killed_process_would_leave(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    with Store(bucket).writer("object") as file:
        file.write(b"x" * 100_000)
        file.flush()
        assert set(tmp_path.iterdir()) == before
    assert Store(bucket).read("object") == b"x" * 100_000
