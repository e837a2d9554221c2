"""What a person sees while something runs: live progress on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hydramix_dist.errors import Interrupted

if TYPE_CHECKING:  # it brings torch in, which not every command needs
    from hydramix_dist.orchestration.pool import Ended

LINE_SECONDS = 10.0


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
            _LeftColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._share: dict[str, float] = {}
        self._ended = 0
        self._whole: TaskID | None = None
        self._clock = _Clock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()
        if kind is KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on from there") from error

    def say(self, text: str) -> None:
        """Show one line."""
        print_line(self._console, text)

    def planned(self, names: Mapping[str, str]) -> None:
        """Take the trainings to come and begin the bar of the whole."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._names = dict(names)
        self._share = dict.fromkeys(names, 0.0)
        self._ended = 0
        self._clock = _Clock()
        self._whole = self._bars.add_task(f"all {len(names)} trainings", total=1.0)
        if not self._console.is_terminal:  # where no bars move, the first training's end is the next sign of life
            self.say(f"{len(names)} trainings to do")

    def progress(self, key: str, done: int, total: int) -> None:
        """Move one bar; a key that is no planned training (an import) gets a bar of its own."""
        if key not in self._tasks:
            if self._share.get(key) == 1.0:  # a report that was under way when its training ended
                return
            self._tasks[key] = self._bars.add_task(self._names.get(key, key), total=total)
        self._bars.update(self._tasks[key], completed=done, total=total)
        if key in self._share:
            self._share[key] = done / max(total, 1)
            self._clock.began(key)
            self._move_whole()

    def ended(self, ended: "Ended") -> None:
        """Take a training's bar away and count it."""
        self._share[ended.key] = 1.0
        self._ended += 1
        self._clock.ended(ended.key)
        self._move_whole()
        if ended.key in self._tasks:
            self._bars.remove_task(self._tasks.pop(ended.key))
        name = self._names.get(ended.key, ended.key)
        if ended.error is not None:
            self.say(f"failed: {name}: {ended.error}")
        elif not self._console.is_terminal:
            left = self._clock.left(self._share)
            self.say(f"[{self._ended}/{len(self._names)}] {name}" + (f", about {spoken(left)} left" if left else ""))

    def _move_whole(self) -> None:
        if self._whole is not None:
            done = sum(self._share.values()) / len(self._share)
            self._bars.update(self._whole, completed=done, seconds_left=self._clock.left(self._share))


class TrainingDisplay(LiveDisplay):
    """One training: a bar with its speed; on no terminal, a line every `LINE_SECONDS`."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars.columns = (*self._bars.columns, _SpeedColumn())
        self._begun: tuple[float, int] | None = None  # time and images, of the first word from this attempt
        self._said = 0.0

    def planned(self, names: Mapping[str, str]) -> None:
        """Take the training to come; there is no whole beside it."""
        self._names = dict(names)

    def progress(self, key: str, done: int, total: int) -> None:
        """Move the bar, or say a line."""
        super().progress(key, done, total)
        if key not in self._names:  # an import
            return
        now = time.monotonic()
        if self._begun is None or done < self._begun[1]:  # also after going back to a checkpoint
            self._begun, self._said = (now, done), now
        if self._console.is_terminal or now - self._said < LINE_SECONDS or done == self._begun[1]:
            return
        self._said = now
        speed = (done - self._begun[1]) / (now - self._begun[0])
        left = spoken((total - done) / speed)
        self.say(f"{self._names[key]}: {done} of {total} images, {speed:.0f} images/s, about {left} left")


class _SpeedColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} images/s", style="progress.data.speed")


class _LeftColumn(TimeRemainingColumn):
    """Time left of a bar: as estimated by us where that is given, else from the bar's own speed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("seconds_left")
        return super().render(task) if seconds is None else Text(spoken(seconds), style="progress.remaining")


class _Clock:
    """Time left of all trainings, from how long those of the same kind (the key's folder) took so far."""

    def __init__(self) -> None:
        self._first = time.monotonic()
        self._begun: dict[str, float] = {}
        self._took: dict[str, list[float]] = {}

    def began(self, key: str) -> None:
        """Note that a training is under way."""
        self._begun.setdefault(key, time.monotonic())

    def ended(self, key: str) -> None:
        """Note that a training has ended."""
        if key in self._begun:  # else it was finished before this command began
            self._took.setdefault(_kind(key), []).append(time.monotonic() - self._begun[key])

    def left(self, share: Mapping[str, float]) -> float | None:
        """Return seconds, or None before the first training has ended; `share` is what each training has done."""
        took = [seconds for values in self._took.values() for seconds in values]
        if not took:
            return None
        overall = sum(took) / len(took)
        mean = {kind: sum(values) / len(values) for kind, values in self._took.items()}
        work = sum((1 - done) * mean.get(_kind(key), overall) for key, done in share.items())
        at_a_time = max(1.0, sum(took) / (time.monotonic() - self._first))
        return work / at_a_time


def _kind(key: str) -> str:
    return key.partition("/")[0]


def print_line(console: Console, text: str) -> None:
    """Print text as it is; only a terminal wraps it, so that paths stay whole in a pipe."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def print_json(text: str) -> None:
    """Print one JSON text on standard output."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def spoken(seconds: float) -> str:
    """Return a time as "45 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
