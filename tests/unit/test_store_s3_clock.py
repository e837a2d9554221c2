"""A clock that is wrong is told as that, with both clocks, whichever kind of request the store refuses for it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from hydramix_dist.store import Store
from hydramix_dist.store.s3_errors import explain

PROGRAM = """
import json, sys, time
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
store, said = Store(sys.argv[1]), {"now": time.time()}
acts = {"get": lambda: store.read("x"), "head": lambda: store.size("x"), "list": store.list,
        "put": lambda: store.put("x", b"1"), "delete": lambda: store.delete("x")}
for name, act in acts.items():
    try:
        said[name] = str(act())
    except UserError as error:
        said[name] = f"error: {error}"
print(json.dumps(said))
"""
BOTH = re.compile(
    r"error: cannot (read|write) s3://\S+: the clock of \S+ says (?P<here>[-0-9: ]{19}) UTC, the store's "
    r"(?P<there>[-0-9: ]{19}) UTC, (?P<apart>\d+) min \d+ s apart, and more than 15 min are refused; set the one "
    r"that is wrong \(NTP\)"
)


def with_clock(offset: str, url: str) -> Mapping[str, Any]:
    """Do each kind of request in a process whose clock is off by so much; return what it is told, and its time."""
    program = shutil.which("faketime")
    if program is None:
        pytest.skip("faketime is not installed (Debian package faketime)")
    command = [program, "-m", "--exclude-monotonic", "-f", offset, sys.executable, "-c", PROGRAM, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=os.environ)
    return dict(json.loads(done.stdout))


def test_a_clock_an_hour_off_is_told_with_both_clocks(s3_store: Store) -> None:
    said = dict(with_clock("+1h", s3_store.url))
    real = datetime.now(UTC)
    assert abs(said.pop("now") - real.timestamp() - 3600) < 60
    for name, text in said.items():
        match = BOTH.fullmatch(text)
        assert match is not None, f"{name}: {text}"
        here, there = (datetime.fromisoformat(match[which]).replace(tzinfo=UTC) for which in ("here", "there"))
        assert abs(there - real) < timedelta(seconds=60) and abs(here - real - timedelta(hours=1)) < timedelta(
            minutes=1
        )
        assert match["apart"] in ("59", "60")


def test_ten_minutes_are_let_pass(s3_store: Store) -> None:
    s3_store.put("x", b"1")
    said = with_clock("-10m", s3_store.url)
    assert {name: text for name, text in said.items() if str(text).startswith("error")} == {}


def refused(code: str, status: int, headers: Mapping[str, str], **more: str) -> str:
    """Return what is told of an answer as a server gives it."""
    answer: Any = {
        "Error": {"Code": code, "Message": "no", **more},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": dict(headers)},
    }
    return str(explain(ClientError(answer, "GetObject"), "s3://b/x", "read"))


def test_amazons_answer_has_the_servers_clock_in_its_body() -> None:
    text = refused("RequestTimeTooSkewed", 403, {}, ServerTime="2026-01-02T03:04:05Z")
    assert "the store's 2026-01-02 03:04:05 UTC" in text


def test_an_answer_without_any_clock_still_names_ours() -> None:
    assert " says 20" in refused("RequestTimeTooSkewed", 403, {"date": "soon"})


def test_a_refusal_by_a_store_whose_clock_agrees_is_no_matter_of_clocks() -> None:
    now = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert "permission denied (403)" in refused("AccessDenied", 403, {"date": now})
    assert "clock" in refused("SignatureDoesNotMatch", 403, {"date": "Mon, 02 Feb 2026 10:00:00 GMT"})
