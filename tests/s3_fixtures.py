"""What the tests of S3 share: a folder of the server, a test's settings, kinds of requests, what a user is told."""

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hydramix_dist.config.store import VARIABLE
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store

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
def s3_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
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
