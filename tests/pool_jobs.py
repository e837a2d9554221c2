"""Tasks for tests of the process pool: they do what is hard to come by, such as being killed."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydramix_dist.errors import Interrupted, UserError


@dataclass(frozen=True)
class Job:
    """Leaves a line with its process id in `folder`/`name` at each attempt, then does `action`."""

    name: str
    folder: Path
    action: str

    @property
    def attempts(self) -> list[int]:
        """The process ids of all attempts so far."""
        path = self.folder / self.name
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def saved(self) -> Path:
        return self.folder / f"{self.name}.saved"

    def run(self, progress: Callable[[int, int], None], should_stop: Callable[[], bool]) -> dict[str, Any]:
        with (self.folder / self.name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        progress(1, 2)
        if self.action == "fail":
            raise ValueError("no such luck")
        if self.action == "bad input":
            raise UserError("the disk is full")
        if self.action == "killed always" or (self.action == "killed once" and len(self.attempts) == 1):
            self._wait(lambda: (self.folder / "kill").exists(), should_stop)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "long":
            self._wait(lambda: (self.folder / "go").exists(), should_stop)
        progress(2, 2)
        return {"from": self.name}

    def _wait(self, until: Callable[[], bool], should_stop: Callable[[], bool]) -> None:
        while not until():
            if should_stop():
                self.saved.touch()
                raise Interrupted("saved")
            time.sleep(0.01)
