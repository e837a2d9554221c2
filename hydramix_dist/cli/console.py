"""What a person sees while something runs: live progress on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hydramix_dist.orchestration.pool import Ended


def error_console() -> Console:
    """Return the console for progress and notes: standard error, so that standard output stays clean."""
    return Console(stderr=True)


class LiveDisplay:
    """Bars for the whole and for each running training; on no terminal, a line at each training's end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._share: dict[str, float] = {}
        self._whole: TaskID | None = None
        self._started = time.monotonic()
        self._done = 0

    def __enter__(self) -> "LiveDisplay":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Show one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=not self._console.is_terminal)

    def planned(self, names: Mapping[str, str]) -> None:
        """Take the trainings to come and begin the bar of the whole."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._names = dict(names)
        self._share = dict.fromkeys(names, 0.0)
        self._started = time.monotonic()
        self._whole = self._bars.add_task(f"all {len(names)} trainings", total=1.0)

    def progress(self, key: str, done: int, total: int) -> None:
        """Move one bar; a key that is no planned training (an import) gets a bar of its own."""
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(self._names.get(key, key), total=total)
        self._bars.update(self._tasks[key], completed=done, total=total)
        if key in self._share:
            self._share[key] = done / max(total, 1)
            self._move_whole()

    def ended(self, ended: Ended) -> None:
        """Take a training's bar away and count it."""
        self._done += 1
        self._share[ended.key] = 1.0
        self._move_whole()
        if ended.key in self._tasks:
            self._bars.remove_task(self._tasks.pop(ended.key))
        name = self._names.get(ended.key, ended.key)
        if ended.error is not None:
            self.say(f"failed: {name}: {ended.error}")
        elif not self._console.is_terminal:
            elapsed = time.monotonic() - self._started
            left = elapsed / self._done * (len(self._names) - self._done)
            self.say(f"[{self._done}/{len(self._names)}] {name}, about {_clock(left)} left")

    def _move_whole(self) -> None:
        if self._whole is not None:
            self._bars.update(self._whole, completed=sum(self._share.values()) / len(self._share))


def print_json(text: str) -> None:
    """Print one JSON text on standard output."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
