"""Trainings for tests over Ray: real ones, in which a chosen worker meets a fault at a chosen step of one attempt."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import UserError
from hydramix_dist.training.classifier import train_classifier
from hydramix_dist.training.generator import generator_identity, train_generator
from hydramix_dist.training.group import Group

MID_STEP = 0.004  # seconds after a step: in the middle of the next one


@dataclass(frozen=True)
class Job:
    """A tiny training of 12 steps. `fault` befalls `rank` after `step` steps of the first attempt in `folder`."""

    kind: str
    folder: Path
    fault: str | None = None
    rank: int = 1
    step: int = 6
    runtime: RuntimeSettings = tiny.RUNTIME

    @property
    def name(self) -> str:
        return f"the {self.kind}"

    @property
    def folder_url(self) -> str:
        return str(self.folder)

    @property
    def attempts(self) -> list[tuple[int, int, int, str]]:
        """Rank, number of workers, process and node of each worker that began, in order."""
        path = self.folder / "attempts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(rank), int(of), int(process), node) for rank, of, process, node in map(str.split, lines)]

    def node_that_waits(self) -> str:
        """Return the node of the worker that meets its fault, once it does."""
        tiny.wait_for((self.folder / "meets").exists)
        return next(node for rank, _, _, node in self.attempts if rank == self.rank)

    def run(
        self, progress: Callable[[int, int], None], should_stop: Callable[[], bool], group: Group
    ) -> dict[str, Any]:
        import ray

        first = not (self.folder / "begun").exists()
        with (self.folder / "attempts").open("a") as file:
            node = ray.get_runtime_context().get_node_id()
            file.write(f"{group.rank} {group.world_size} {os.getpid()} {node}\n")
        group.exchange(None)  # all ranks have looked
        (self.folder / "begun").touch()
        steps = 0

        def after_step() -> bool:
            nonlocal steps
            steps += 1
            if first and self.fault and group.rank == self.rank and steps == self.step:
                self._suffer(should_stop)
            return should_stop()

        context = replace(
            tiny.context(self.folder, self.kind, self.runtime, after_step, group),
            progress=progress if group.rank == 0 else lambda images, total: None,
        )
        if self.kind == "generator":
            settings, shots = tiny.generator_settings(), tiny.shot_set()
            return train_generator(
                shots, settings, 5, generator_identity("data", shots.ids, 5, settings), "no", context
            )
        return train_classifier(
            tiny.classifier_inputs(), tiny.classifier_settings(), 5, {"settings": "the test's"}, "nowhere", context
        )

    def _suffer(self, should_stop: Callable[[], bool]) -> None:
        (self.folder / "meets").touch()
        if self.fault == "killed":
            threading.Timer(MID_STEP, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self.fault == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            tiny.wait_for(should_stop, 5)
        elif self.fault == "bad input":
            raise UserError("no such luck")
        elif self.fault == "crash":
            raise ValueError("no such luck")
        elif self.fault == "waits":
            tiny.wait_for(should_stop)
