"""How long a save stops the training, and how long it takes in all: generator and discriminator over 2 ranks.

Stages 0 to 3, each saved as the training loop saves: all ranks gather the full states, rank 0 hands them to the writer,
and steps go on while it serialises, hashes and commits them. "copy" is what cannot be less: copying as many bytes in
memory. Run: `python benchmarks/checkpoint_stall.py` (a minute or two).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch.distributed as dist
import workers

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.checkpoint.commit import committed, images_of
from hydramix_dist.store import Store
from hydramix_dist.training.group import on_first
from hydramix_dist.training.saving import Saver


@dataclass
class Saves:
    """Seconds of each save of one stage, on rank 0, and of the steps between them."""

    bytes: int = 0
    gathering: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)  # from the hand-over until the checkpoint stands
    copy: list[float] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)  # steps while nothing is written
    writing: list[float] = field(default_factory=list)  # steps that began while something was

    def note_copy(self, states: Mapping[str, EngineState]) -> None:
        """Copy the states' tensors, and note how long it took and how many bytes they have."""
        held = [
            t for state in states.values() for part in (state.weights, *state.moments.values()) for t in part.values()
        ]
        began = time.perf_counter()
        copies = [tensor.clone() for tensor in held]
        self.copy.append(time.perf_counter() - began)
        self.bytes = sum(tensor.nbytes for tensor in copies)


def measure(folder: str, micro_batch: int, width: int, saves: int) -> dict[int, Saves]:
    """Return by stage what saving took; a first save does not count."""
    return {stage: measure_stage(stage, folder, micro_batch, width, saves) for stage in range(4)}


def measure_stage(stage: int, folder: str, micro_batch: int, width: int, saves: int) -> Saves:
    group, result, number = workers.sharded(stage), Saves(), 0
    training = workers.generator_training(group, micro_batch, width, "bf16")
    step = workers.one_step(training, group)

    def timed_step() -> float:
        nonlocal number
        number += 1
        return seconds(lambda: step(number))

    def gather() -> dict[str, EngineState]:
        gathered = {name: engine.full_state() for name, engine in training.engines.items()}
        return {name: state for name, state in gathered.items() if state is not None}

    for _ in range(3):
        timed_step()
    store = Store(Path(folder, f"zero{stage}"))
    with Saver(store, keep=1) as saver:
        for save in range(saves + 1):
            quiet = [timed_step() for _ in range(3)]
            began = time.perf_counter()
            on_first(group, saver.finish)
            states = gather()
            gathering = time.perf_counter() - began
            on_first(group, partial(saver.save, save, states, {}, None))
            stall, writing = time.perf_counter() - began, []
            while not on_first(group, partial(is_saved, store, save)):
                writing.append(timed_step())
            on_first(group, saver.finish)
            if save > 0:
                result.quiet += quiet
                result.gathering.append(gathering)
                result.stall.append(stall)
                result.writing += writing
                result.written += [saved.seconds for saved in saver.finished()]
                result.note_copy(states)
            saver.finished()
    return result


def is_saved(store: Store, save: int) -> bool:
    return any(images_of(folder) == save for folder in committed(store))


def seconds(act: Callable[[], object]) -> float:
    """Return how long something took, until all ranks had done it."""
    dist.barrier()
    began = time.perf_counter()
    act()
    dist.barrier()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table and a JSON line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--saves", type=int, default=3, help="saves of each stage that count (default 3)")
    command.add_argument("--micro-batch", type=int, default=1, help="mixes a worker (default 1: short steps)")
    command.add_argument("--width", type=int, default=64, help="of generator and discriminator (default 64)")
    arguments = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = (folder, arguments.micro_batch, arguments.width, arguments.saves)
        found = workers.on_ranks(2, measure, *run)[0]
    rows = [
        {
            "stage": stage,
            "MB": f"{saves.bytes / 1e6:.0f}",
            "copy, ms": milliseconds(saves.copy),
            "gathering, ms": milliseconds(saves.gathering),
            "stall, ms": milliseconds(saves.stall),
            "written after, ms": milliseconds(saves.written),
            "step, ms": milliseconds(saves.quiet),
            "step while writing, ms": milliseconds(saves.writing),
        }
        for stage, saves in found.items()
    ]
    common.show(f"saving generator and discriminator, width {arguments.width}, 2 ranks", rows)
    medians = {
        f"stage {stage}": {name: float(np.median(value)) for name, value in vars(saves).items()}
        for stage, saves in found.items()
    }
    common.record("checkpoint_stall", seconds=medians)


def milliseconds(values: list[float]) -> str:
    return common.quartiles(1000 * np.array(values), 0)


if __name__ == "__main__":
    main()
