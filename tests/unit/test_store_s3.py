"""What is particular to S3: who may do what, where the server is, what is tried again, and processes and threads."""

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificates
from fault_proxy import FaultProxy, Faults, Request
from seaweed import Seaweed

from hydramix_dist.config.store import VARIABLE, StoreSettings, portable, store_settings
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.s3 import s3_file_system
from hydramix_dist.store.traffic import traffic

ACTS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("x"),
    "open": lambda store: store.open("x"),
    "size": lambda store: store.size("x"),
    "exists": lambda store: store.exists("x"),
    "exists at all": lambda store: store.exists(),
    "list": lambda store: store.list(),
    "put": lambda store: store.put("x", b"1"),
    "put_if_absent": lambda store: store.put_if_absent("x", b"1"),
    "delete": lambda store: store.delete("x"),
}


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty folder of the server."""
    # The same environment in each test: to make a client of a new one takes half a second.
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv(VARIABLE, "{cache: null}")
    return Store(bucket)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets HYDRAMIX_STORE to keys given by name."""

    def configure(**keys: Any) -> None:
        monkeypatch.setenv(VARIABLE, json.dumps({"cache": None} | keys))

    yield configure


def refusal(act: Callable[..., object], *arguments: object) -> str:
    """Return what the user is told; it must come at once."""
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        act(*arguments)
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- who may do what


def test_who_may_only_read_is_told_so_at_the_first_write(
    store: Store, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("x", b"whole")
    for name, value in seaweed.environment("reader").items():
        monkeypatch.setenv(name, value)
    assert store.read("x") == b"whole" and store.list() == ["x"] and store.exists("x") and not store.exists("y")
    for name in ("put", "put_if_absent"):
        said = refusal(ACTS[name], store)
        assert said.startswith(f"cannot write {store.url}/x: permission denied") and "s3:PutObject" in said, name
    assert "permission denied" in refusal(store.delete, "x")
    assert store.read("x") == b"whole"


def test_a_bucket_that_is_not_one_s_own_says_denied(
    store: Store, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    seaweed.make_bucket("test-other")
    for variable, value in seaweed.environment("reader").items():
        monkeypatch.setenv(variable, value)
    for name, act in ACTS.items():
        said = refusal(act, Store("s3://test-other/folder"))
        assert "s3://test-other/folder" in said and "permission denied" in said, name
        assert "hydramix doctor --store" in said, name


def test_a_missing_bucket_is_an_answer(store: Store) -> None:
    for name, act in ACTS.items():
        said = refusal(act, Store("s3://test-missing/folder"))
        assert "s3://test-missing/folder" in said and "the bucket does not exist; make it first" in said, name


CREDENTIALS = {
    "unknown key": ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, "the credentials are not valid (InvalidAccessKeyId)"),
    "wrong secret": (
        {"AWS_SECRET_ACCESS_KEY": "another secret"},
        "the credentials are not valid (SignatureDoesNotMatch)",
    ),
    "none": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials found; set AWS_ACCESS_KEY_ID"),
    "a half": ({"AWS_SECRET_ACCESS_KEY": ""}, "no credentials found"),
    "no such profile": ({"AWS_PROFILE": "gone"}, "The config profile (gone) could not be found"),
}


@pytest.mark.parametrize("case", CREDENTIALS)
def test_bad_credentials_are_an_answer(case: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, words = CREDENTIALS[case]
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    for name in ("read", "list", "put", "put_if_absent", "delete"):
        said = refusal(ACTS[name], store)
        assert words in said and store.url in said, name
    # The server's answer to these has no body that could tell why.
    for name in ("exists", "size"):
        said = refusal(ACTS[name], store)
        assert words in said or "these credentials, if they are valid at all, need s3:GetObject" in said, name


@pytest.mark.parametrize("where", ["environment", "settings"])
def test_a_profile_gives_credentials(
    where: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: Callable[..., None]
) -> None:
    store.put("x", b"1")
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "credentials").write_text(f"[site]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    if where == "environment":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_PROFILE", "site")
    else:  # which is nearer than the environment's keys
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not this one")
        configured(profile="site")
    assert store.read("x") == b"1"


def test_credentials_appear_nowhere(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    configured: Callable[..., None],
) -> None:
    caplog.set_level(logging.DEBUG)
    store.put("x", b"1")
    _, file_system = store.for_ray()
    fs = file_system.handler.fs
    told = [repr(store), store.path("x"), repr(fs), str(fs.storage_options), fs.to_json(), repr(file_system)]
    told += [repr(store_settings()), str(store_settings().model_dump()), str(portable())]
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    wrong = secret[::-1]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    for name in ("read", "exists", "list", "put", "put_if_absent"):
        with pytest.raises(UserError) as caught:
            ACTS[name](store)
        told += [repr(caught.value), "".join(traceback.format_exception(caught.value))]
    told += [record.getMessage() for record in caplog.records if record.name.startswith("hydramix")]
    assert not [text for text in told for hidden in (key, secret, wrong) if hidden in text]
    # What botocore itself logs for those who look for bugs has the key's name in it, and the secret neither.
    assert caplog.records and secret not in caplog.text and wrong not in caplog.text


def test_a_pickled_file_system_holds_no_credentials_and_works(store: Store) -> None:
    """Ray sends its storage's file system to every worker, which has credentials of its own."""
    store.put("folder/x", b"12345")
    root, file_system = store.for_ray()
    sent = pickle.dumps((root, file_system, store))
    for hidden in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[hidden].encode() not in sent
    root, arrived, copy = pickle.loads(sent)
    with arrived.open_input_file(f"{root}/folder/x") as file:
        assert file.read() == b"12345"
    with arrived.open_output_stream(f"{root}/by-ray") as file:
        file.write(b"6")
    assert copy.read("folder/x") == b"12345" and store.read("by-ray") == b"6"
    assert arrived.handler.fs.patience == file_system.handler.fs.patience
    other = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; print(pickle.load(sys.stdin.buffer)[2].read('folder/x'))"],
        input=sent,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert other.stdout == b"b'12345'\n"


# ---- where the server is


def test_the_endpoint_of_the_settings_is_nearer_than_aws_variables(
    store: Store, proxied: FaultProxy, monkeypatch: pytest.MonkeyPatch, configured: Callable[..., None]
) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nowhere)
    configured(endpoint=proxied.endpoint + "/")
    store.put("x", b"1")
    configured(endpoint=None)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxied.endpoint)
    assert store.read("x") == b"1"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxied.endpoint)
    assert store.read("x") == b"1"
    assert len(proxied.requests) == 3


def test_the_bucket_stands_in_the_path_or_in_the_host_name(
    store: Store, proxied: FaultProxy, monkeypatch: pytest.MonkeyPatch, configured: Callable[..., None]
) -> None:
    name, _, prefix = store.url.removeprefix("s3://").partition("/")
    resolve = socket.getaddrinfo

    def resolved(host: Any, *arguments: Any, **options: Any) -> Any:  # not every resolver knows names below localhost
        text = host.decode() if isinstance(host, bytes) else host
        return resolve("127.0.0.1" if text in ("localhost", f"{name}.localhost") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    endpoint = proxied.endpoint.replace("127.0.0.1", "localhost")
    for addressing, path in (
        ("auto", f"/{name}/{prefix}/x"),
        ("path", f"/{name}/{prefix}/x"),
        ("virtual", f"/{prefix}/x"),
    ):
        configured(endpoint=endpoint, addressing=addressing)
        proxied.clear()
        store.put("x", addressing.encode())
        assert store.read("x") == addressing.encode()
        assert [request.path for request in proxied.requests] == [path, path], addressing


def test_tls_wants_the_authority(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: Callable[..., None]
) -> None:
    tls = make_certificates(tmp_path / "tls")
    with Seaweed(tmp_path / "server", tls=tls) as server:
        server.make_bucket("secure")
        store = Store("s3://secure/folder")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        store.put("x", b"by AWS_CA_BUNDLE")
        monkeypatch.delenv("AWS_CA_BUNDLE")
        configured(ca_bundle=str(tls.ca))
        assert store.read("x") == b"by AWS_CA_BUNDLE"
        configured(patience=30)
        for name in ("read", "exists", "list", "put"):
            said = refusal(ACTS[name], store)
            assert "certificate was not accepted" in said and "AWS_CA_BUNDLE" in said and "ca_bundle" in said, name
        configured(ca_bundle=str(tmp_path / "missing.pem"))
        assert "missing.pem" in refusal(store.read, "x")


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
        assert f"{proxied.endpoint} gave no good answer in 0.5 s" in said and "503" in said, name
    assert len(proxied.requests) >= 2 * len(acts)


def test_a_server_that_was_never_there_is_given_up_sooner(
    store: Store, configured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydramix_dist.store.s3.FIRST_ANSWER_SECONDS", 0.5)
    configured(endpoint="http://127.0.0.1:9", patience=600)
    assert "http://127.0.0.1:9 gave no good answer in 0.5 s" in refusal(store.read, "x")


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


# ---- processes and threads

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
    proxied.faults.latency = 0.05
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
