"""The process pool: what ends well, fails, is killed or stopped, and that nothing of it is lost or waits for ever."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
from pool_jobs import Job

from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.pool import ATTEMPTS, Ended, Stop, run_tasks

Seen = list[tuple[str, int, int]]


def jobs(folder: Path, **actions: str) -> dict[str, Any]:
    return {name: Job(name, folder, action) for name, action in actions.items()}


def run(
    tasks: Mapping[str, Any], needs: Mapping[str, str] | None = None, workers: int = 2, stop: Stop | None = None
) -> tuple[dict[str, Ended], list[str], Seen]:
    """Return the ends by key, the keys in order of ending, and the progress that was seen."""
    seen: Seen = []
    ended = list(run_tasks(tasks, needs or {}, workers, stop or Stop(), lambda *report: seen.append(report)))
    assert len({e.key for e in ended}) == len(ended)
    return {e.key: e for e in ended}, [e.key for e in ended], seen


def when(condition: Callable[[], bool], act: Callable[[], Any]) -> threading.Thread:
    """Do something, beside the pool, once a condition holds."""

    def body() -> None:
        tiny.wait_for(condition)
        act()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def test_results_needs_and_failures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = jobs(tmp_path, late="answer", bad="fail", doomed="answer", deeper="answer", first="answer", free="answer")
    needs = {"late": "first", "doomed": "bad", "deeper": "doomed"}
    ended, order, seen = run(tasks, needs)
    assert set(ended) == set(tasks)
    for key in ("first", "late", "free"):
        assert ended[key] == Ended(key, {"from": key}, None)
    assert order.index("first") < order.index("late")
    assert ended["bad"].result is None and ended["bad"].error == "ValueError: no such luck"
    for key in ("doomed", "deeper"):
        assert ended[key].error is not None and "no such luck" in ended[key].error
        assert tasks[key].attempts == [], "not begun"
    assert ("first", 1, 2) in seen
    assert "bad failed" in caplog.text


def test_killed_worker_is_retried_and_harms_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = jobs(tmp_path, always="killed always", beside="long", doomed="answer", other="answer")
    both_run = lambda: bool(tasks["always"].attempts and tasks["beside"].attempts)  # noqa: E731
    thread = when(both_run, (tmp_path / "kill").touch)
    freed = when(lambda: len(tasks["always"].attempts) == ATTEMPTS, (tmp_path / "go").touch)
    ended, _, _ = run(tasks, {"doomed": "always"})
    thread.join()
    freed.join()
    assert ended["always"].error is not None and f"killed {ATTEMPTS} times" in ended["always"].error
    assert len(set(tasks["always"].attempts)) == ATTEMPTS
    assert ended["beside"].result == {"from": "beside"} and ended["other"].result == {"from": "other"}
    assert len(tasks["beside"].attempts) == 1 and not tasks["beside"].saved.exists(), "it never noticed"
    assert ended["doomed"].error is not None and tasks["doomed"].attempts == []
    assert caplog.text.count("was killed (exit code -9)") == ATTEMPTS


def test_worker_killed_once_is_not_a_failure(tmp_path: Path) -> None:
    tasks = jobs(tmp_path, once="killed once", after="answer")
    (tmp_path / "kill").touch()
    ended, _, _ = run(tasks, {"after": "once"}, workers=1)
    assert [e.error for e in ended.values()] == [None, None]
    assert len(set(tasks["once"].attempts)) == 2


def test_terminated_worker_saves_and_its_task_goes_on(tmp_path: Path) -> None:
    """SIGTERM to one worker alone is no request to stop everything."""
    tasks = jobs(tmp_path, long="long")
    terminated = when(lambda: bool(tasks["long"].attempts), lambda: os.kill(tasks["long"].attempts[0], signal.SIGTERM))
    freed = when(lambda: len(tasks["long"].attempts) == 2, (tmp_path / "go").touch)
    ended, _, _ = run(tasks)
    terminated.join()
    freed.join()
    assert ended["long"].result == {"from": "long"} and tasks["long"].saved.exists()


def test_stop_saves_what_runs_and_begins_nothing_more(tmp_path: Path) -> None:
    tasks = jobs(tmp_path, one="long", two="long", never="answer")
    stop = Stop()
    thread = when(lambda: bool(tasks["one"].attempts and tasks["two"].attempts), stop.request)
    with pytest.raises(Interrupted, match="everything so far is saved"):
        run(tasks, stop=stop)
    thread.join()
    assert tasks["one"].saved.exists() and tasks["two"].saved.exists() and tasks["never"].attempts == []


def test_bad_input_in_one_ends_all_and_the_others_save(tmp_path: Path) -> None:
    tasks = jobs(tmp_path, long="long", bad="bad input")
    with pytest.raises(UserError, match="the disk is full"):
        run(tasks)
    assert tasks["long"].attempts == [] or tasks["long"].saved.exists()


def test_signals_request_a_stop_once_and_insist_the_second_time() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pool_jobs import Job
from hydramix_dist.orchestration.pool import Stop, run_tasks
if __name__ == "__main__":
    folder = Path(sys.argv[2])
    tasks = {"long": Job("long", folder, "long"), "short": Job("short", folder, "answer")}
    list(run_tasks(tasks, {}, 2, Stop(), lambda *report: None))
"""


def test_orphaned_workers_save_and_end(tmp_path: Path) -> None:
    """Main process killed with -9: the worker in a training saves and ends, the idle one ends."""
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    main = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parents[1]), str(tmp_path)])
    long, short = Job("long", tmp_path, "long"), Job("short", tmp_path, "answer")
    tiny.wait_for(lambda: bool(long.attempts and short.attempts))
    workers = {long.attempts[0], short.attempts[0]} | set(tiny.workers_of(main.pid))
    assert len(workers) == 2
    tiny.kill(main.pid)
    main.wait()
    tiny.wait_for(lambda: not any(tiny.alive(pid) for pid in workers), seconds=15)
    assert long.saved.exists()
