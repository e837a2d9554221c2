"""Trainings for tests over Ray: real ones, in which a chosen worker meets a fault at a chosen step."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import UserError
from hydramix_dist.training.classifier import train_classifier
from hydramix_dist.training.generator import generator_identity, train_generator
from hydramix_dist.training.group import Group

MID_STEP = 0.004  # seconds after a step: in the middle of the next one


@dataclass(frozen=True)
class Begun:
    """A worker that began to train."""

    rank: int
    of: int
    process: int
    node: str


@dataclass(frozen=True)
class Job:
    """A tiny training of 12 steps of 4 images. `fault` befalls `rank` after `step` steps, once in `folder`."""

    kind: str
    folder: Path
    fault: str | None = None
    rank: int = 1
    step: int = 6
    runtime: RuntimeSettings = tiny.RUNTIME
    run_name: str | None = None

    @property
    def name(self) -> str:
        return f"the {self.kind}"

    @property
    def folder_url(self) -> str:
        return str(self.folder)

    @property
    def attempts(self) -> list[Begun]:
        """All workers that began, in order."""
        path = self.folder / "attempts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Begun(int(rank), int(of), int(process), node) for rank, of, process, node in map(str.split, lines)]

    @property
    def victim(self) -> Begun:
        """The worker that meets the fault, once it does."""
        tiny.wait_for((self.folder / "meets").exists)
        return next(begun for begun in self.attempts if begun.rank == self.rank)

    def run(
        self, progress: Callable[[int, int], None], should_stop: Callable[[], bool], group: Group
    ) -> dict[str, Any]:
        import ray

        with (self.folder / "attempts").open("a") as file:
            node = ray.get_runtime_context().get_node_id()
            file.write(f"{group.rank} {group.world_size} {os.getpid()} {node}\n")
        steps = 0

        def after_step() -> bool:
            nonlocal steps
            steps += 1
            if self.fault and group.rank == self.rank and steps == self.step and not (self.folder / "meets").exists():
                (self.folder / "meets").touch()
                self._suffer(should_stop)
            return should_stop()

        telling = progress if group.rank == 0 else lambda images, total: None
        with tiny.context(self.folder, self.kind, self.runtime, after_step, group) as surroundings:
            context = replace(surroundings, progress=telling)
            if self.kind == "generator":
                settings, shots = tiny.generator_settings(), tiny.shot_set()
                identity = generator_identity("data", shots.ids, 5, settings)
                return train_generator(shots, settings, 5, identity, "nowhere", context)
            settings, inputs = tiny.classifier_settings(), tiny.classifier_inputs()
            return train_classifier(inputs, settings, 5, {"settings": "the test's"}, "nowhere", context)

    def _suffer(self, should_stop: Callable[[], bool]) -> None:
        if self.fault == "killed":
            threading.Timer(MID_STEP, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self.fault == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            tiny.wait_for(should_stop)
        elif self.fault == "bad input":
            raise UserError("no such luck")
        elif self.fault == "waits":
            tiny.wait_for(should_stop)


def drive(job: Job) -> None:
    """Carry out a training over two workers of a private Ray, as a command does."""
    from hydramix_dist.orchestration.launch import launch
    from hydramix_dist.orchestration.pool import Stop
    from hydramix_dist.orchestration.ray_session import ray_session

    two = DistributedSettings(workers=2, deepspeed="zero2")
    with Stop() as stop, ray_session(two, job.runtime, None) as session:
        launch(job, two, session, lambda images, total: None, lambda: stop.requested)
