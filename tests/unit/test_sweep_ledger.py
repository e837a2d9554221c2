"""The record of a sweep: a line an event, and no more than the last line lost to a kill."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.orchestration.sweep.ledger import LEDGER_FILE, Event, Ledger, read_events
from hydramix_dist.store import Store


def append(folder: Path, *events: Event) -> None:
    with Ledger(Store(folder)) as ledger:
        for event in events:
            ledger.write(event)


def read(folder: Path) -> list[Event]:
    """Return the events without their times."""
    return [{name: value for name, value in event.items() if name != "time"} for event in read_events(Store(folder))]


def begun(number: int) -> Event:
    return {"event": "begun", "key": f"classifiers/ä\n{number}", "shots": number, "arm": None}


def test_a_folder_without_a_record_has_no_events(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    append(tmp_path)
    assert read(tmp_path) == []


def test_events_come_back_in_order_with_their_times(tmp_path: Path) -> None:
    before = round(time.time(), 3)
    append(tmp_path, begun(0), begun(1))
    append(tmp_path, begun(2))
    assert read(tmp_path) == [begun(0), begun(1), begun(2)]
    times = [event["time"] for event in read_events(Store(tmp_path))]
    assert times == sorted(times) and before <= times[0] and times[-1] <= round(time.time(), 3)
    assert len((tmp_path / LEDGER_FILE).read_bytes().splitlines()) == 3


def test_each_event_is_there_at_once(tmp_path: Path) -> None:
    with Ledger(Store(tmp_path)) as ledger:
        for number in range(3):
            ledger.write(begun(number))
            assert read(tmp_path) == [begun(n) for n in range(number + 1)]


def test_what_stands_there_is_not_changed(tmp_path: Path) -> None:
    append(tmp_path, begun(0))
    whole = (tmp_path / LEDGER_FILE).read_bytes()
    append(tmp_path, begun(1))
    assert (tmp_path / LEDGER_FILE).read_bytes().startswith(whole) and b"\n\n" not in whole


@given(torn=st.integers(0, 150))
def test_a_kill_costs_the_line_it_tears_and_no_other(torn: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    path = folder / LEDGER_FILE
    append(folder, *(begun(n) for n in range(3)))
    *lines, last = path.read_bytes().splitlines(keepends=True)
    torn = min(torn, len(last))
    path.write_bytes(b"".join(lines) + last[: len(last) - torn])
    whole = [begun(0), begun(1), *([begun(2)] if torn <= 1 else [])]  # all but the line feed is there
    assert read(folder) == whole
    append(folder, begun(3), begun(4))
    assert read(folder) == [*whole, begun(3), begun(4)]


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    append(tmp_path, begun(0))
    with (tmp_path / LEDGER_FILE).open("ab") as file:
        file.write(b'\n[1]\n"event"\n{"key": "a"}\n\xff\xfe\n')
    append(tmp_path, begun(1))
    assert read(tmp_path) == [begun(0), begun(1)]
