"""A run's folder holds one run, says where it stands, and refuses another."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.run import RunFolder, digest, read_run, read_status

IDENTITY: dict[str, Any] = {"data": "abc", "settings": {"batch": 4, "shots": (5, 10), "mix": {"count": 3}}}
FACTS: dict[str, Any] = {"python": "3.11", "threads": 1, "data_url": "/here"}


def begin(folder: Path, kind: str = "pilot", identity: Any = IDENTITY, facts: Any = FACTS) -> RunFolder:
    return RunFolder.begin(Store(folder), kind, identity, facts)


def status(folder: Path) -> tuple[str, int, str | None]:
    found = read_status(Store(folder))
    return found["state"], found["attempt"], found["reason"]


def test_states_and_attempts(tmp_path: Path) -> None:
    assert read_status(Store(tmp_path)) == {}
    run = begin(tmp_path)
    assert status(tmp_path) == ("running", 1, None)
    run.fail("the reason")
    assert status(tmp_path) == ("failed", 1, "the reason")
    again = begin(tmp_path)
    assert status(tmp_path) == ("running", 2, None)
    again.succeed()
    assert status(tmp_path) == ("succeeded", 2, None)


def test_an_attempt_that_was_taken_over_says_nothing_more(tmp_path: Path) -> None:
    first = begin(tmp_path)
    second = begin(tmp_path)
    first.fail("it noticed too late")
    assert status(tmp_path) == ("running", 2, None)
    second.succeed()
    first.fail("and again")
    assert status(tmp_path) == ("succeeded", 2, None)


def test_record_says_what_the_run_is_and_stays_that_of_the_first_attempt(tmp_path: Path) -> None:
    begin(tmp_path)
    begin(tmp_path, facts=FACTS | {"python": "3.12"})
    record = read_run(Store(tmp_path))
    assert record["kind"] == "pilot" and record["facts"] == FACTS and record["schema_version"] == 1
    assert record["identity"] == json.loads(json.dumps(IDENTITY))


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (IDENTITY | {"settings": IDENTITY["settings"] | {"mix": {"count": 4}}}, "settings.mix.count was 3, now 4"),
        (IDENTITY | {"settings": IDENTITY["settings"] | {"shots": [5]}}, r"settings.shots was \[5, 10\], now \[5\]"),
        (IDENTITY | {"data": "xyz"}, 'data was "abc", now "xyz"'),
        (IDENTITY | {"more": 1}, "more is new"),
        ({"data": "abc"}, "settings is gone"),
    ],
)
def test_other_run_is_refused_with_the_first_differing_key(tmp_path: Path, identity: Any, named: str) -> None:
    begin(tmp_path).succeed()
    with pytest.raises(UserError, match=f"holds another run: {named}; choose another folder"):
        begin(tmp_path, identity=identity)
    assert status(tmp_path) == ("succeeded", 1, None)


def test_other_kind_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UserError, match="holds a pilot run, not a generator run"):
        begin(tmp_path, kind="generator")


def test_changed_surroundings_are_warned_of_and_a_moved_data_set_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path)
    with caplog.at_level(logging.WARNING, "hydramix"):
        begin(tmp_path, facts=FACTS | {"data_url": "/there"})
        assert not caplog.records
        begin(tmp_path, facts=FACTS | {"threads": 2})
    assert "threads was 1, now 2" in caplog.text and "last bits" in caplog.text


def test_newer_version_is_refused_and_nothing_written(tmp_path: Path) -> None:
    begin(tmp_path)
    record = read_run(Store(tmp_path)) | {"schema_version": 2}
    (tmp_path / "run.json").write_text(json.dumps(record))
    before = (tmp_path / "status.json").read_bytes()
    for act in (lambda: begin(tmp_path), lambda: read_run(Store(tmp_path))):
        with pytest.raises(UserError, match=r"newer version \(schema 2, this one reads up to 1\); update"):
            act()
    assert (tmp_path / "status.json").read_bytes() == before


def test_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(no run\.json\)"):
        read_run(Store(tmp_path))


NO_FACTS = b'{"schema_version": 1, "kind": "pilot", "identity": {}, "facts": null}'
NO_RECORD = (b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe{", b'{"schema_version": "1"}', NO_FACTS)


@pytest.mark.parametrize("text", NO_RECORD)
def test_damaged_record_is_said_and_never_a_traceback(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_run(Store(tmp_path))


@pytest.mark.parametrize("text", [b"", b"[3]", b"3", b"\xff\xfe{"])
def test_damaged_status_is_said_with_the_way_out(tmp_path: Path, text: bytes) -> None:
    begin(tmp_path)
    (tmp_path / "status.json").write_bytes(text)
    with pytest.raises(UserError, match=r"status\.json is damaged.*delete it"):
        read_status(Store(tmp_path))


def test_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1], None)}) == 7


def test_in_object_storage_a_run_begins_among_nothing_but_its_own(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}")
    store.put("report.html", b"somebody's")
    with pytest.raises(
        UserError, match=r"holds no run, but other objects \(such as report\.html\); choose an empty folder"
    ):
        RunFolder.begin(store, "pilot", IDENTITY, FACTS)
    assert store.list() == ["report.html"]
    store.delete()
    store.put("data/manifest.json", b"its own import")
    store.put("lease/000001.json", b"its own lease")
    RunFolder.begin(store, "pilot", IDENTITY, FACTS)
    store.put("results.json", b"{}")
    assert RunFolder.begin(store, "pilot", IDENTITY, FACTS).attempt == 2


def test_who_comes_a_moment_late_is_told_of_the_run_that_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"memory://{tmp_path.name}")
    get = Store.get

    def beaten(self: Store, path: str) -> bytes | None:
        """Answer as before the other began, who does so right after."""
        found = get(self, path)
        if found is None and path == "run.json":
            monkeypatch.setattr(Store, "get", get)
            RunFolder.begin(store, "pilot", IDENTITY, FACTS)
        return found

    monkeypatch.setattr(Store, "get", beaten)
    with pytest.raises(UserError, match=r"holds another run: data was .abc., now .xyz."):
        RunFolder.begin(store, "pilot", IDENTITY | {"data": "xyz"}, FACTS)
