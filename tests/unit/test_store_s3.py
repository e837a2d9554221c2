"""Who may do what on S3, and where the server is: each refusal one sentence, credentials in none."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificates
from fault_proxy import FaultProxy
from s3_fixtures import ACTS, refusal
from seaweed import Seaweed

from hydramix_dist.config.store import portable, store_settings
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store


@pytest.fixture
def store(s3_store: Store) -> Store:
    return s3_store


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
