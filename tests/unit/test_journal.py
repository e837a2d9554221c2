"""A journal's lines are there: on a disk at once, elsewhere soon and at the end, whatever the store does in between."""

import logging
import time
from pathlib import Path

import pytest
import tiny

from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.journal import Journal

SOON = 0.1


class Remote(Store):
    """A store in memory that counts its puts and refuses them while `down`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"memory://journal/{name}")
        self.puts, self.refused, self.down = 0, 0, False

    def put(self, path: str, data: bytes) -> None:
        if self.down:
            self.refused += 1
            raise UserError("no good answer in 60 s")
        self.puts += 1
        super().put(path, data)


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path.name)


def test_on_a_disk_each_line_is_there_at_once_and_after_older_ones(tmp_path: Path) -> None:
    for line in (b"1\n", b"2\n"):
        with Journal(Store(tmp_path), "log/metrics.jsonl") as journal:
            journal.write(line)
            assert (tmp_path / "log/metrics.jsonl").read_bytes().endswith(line)
    assert (tmp_path / "log/metrics.jsonl").read_bytes() == b"1\n2\n"


def test_a_disk_that_refuses_a_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with (
        pytest.raises(UserError, match=r"cannot write .*log/metrics\.jsonl"),
        Journal(Store(tmp_path), "log/metrics.jsonl") as journal,
    ):
        journal.write(b"1\n")


def test_many_lines_are_one_put_and_a_later_journal_goes_on_after_them(remote: Remote) -> None:
    with Journal(remote, "metrics.jsonl") as journal:
        for number in range(100):
            journal.write(b"%d\n" % number)
    assert remote.puts == 1
    with Journal(remote, "metrics.jsonl"):
        pass
    assert remote.puts == 1, "nothing is rewritten for nothing"
    with Journal(remote, "metrics.jsonl") as journal:
        journal.write(b"100\n")
    assert remote.read("metrics.jsonl").split() == [b"%d" % number for number in range(101)]


def test_lines_are_written_while_it_is_open(remote: Remote) -> None:
    with Journal(remote, "metrics.jsonl", every=SOON) as journal:
        journal.write(b"1\n")
        tiny.wait_for(lambda: remote.puts == 1)
        time.sleep(3 * SOON)
        assert remote.puts == 1 and remote.read("metrics.jsonl") == b"1\n"
        journal.write(b"2\n")
        tiny.wait_for(lambda: remote.puts == 2)
    assert remote.read("metrics.jsonl") == b"1\n2\n" and remote.puts == 2


def test_a_failed_rewrite_is_said_once_and_made_good(remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hydramix"), Journal(remote, "metrics.jsonl", every=SOON) as journal:
        remote.down = True
        journal.write(b"1\n")
        tiny.wait_for(lambda: remote.refused >= 3)
        remote.down = False
        tiny.wait_for(lambda: remote.puts == 1)
        assert remote.read("metrics.jsonl") == b"1\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"{remote.path('metrics.jsonl')} cannot be written now (no good answer in 60 s)"
    ]


def test_lines_that_could_not_be_written_until_the_end_are_an_error(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    remote.down = True
    with pytest.raises(UserError, match="no good answer"), Journal(remote, "metrics.jsonl") as journal:
        journal.write(b"1\n")
    with pytest.raises(ZeroDivisionError), Journal(remote, "metrics.jsonl") as journal:
        journal.write(b"1\n")
        raise ZeroDivisionError("of the training itself")
    assert "the last lines of" in caplog.text and "no good answer" in caplog.text


def test_what_an_object_holds_must_be_readable(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.put("metrics.jsonl", b"1\n")

    def refuse(path: str, offset: int = 0, length: int | None = None) -> bytes:
        raise UserError("permission denied")

    monkeypatch.setattr(remote, "read", refuse)
    with pytest.raises(UserError, match="permission denied"), Journal(remote, "metrics.jsonl"):
        pass
    monkeypatch.undo()
    assert remote.read("metrics.jsonl") == b"1\n"
