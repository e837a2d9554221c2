"""What the benchmarks of training steps share: inputs, a step as a function, interleaved timing, arithmetic, output.

Variants take turns, one step each a round, so that a machine that drifts or is disturbed touches all alike. A ratio is
the median over the rounds of the ratio within a round; beside wall-clock time stands this process's CPU time, which
other programs on the machine disturb less (on a GPU it is the host's share).
"""

import argparse
import ctypes
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.loop import Phase

Step = Callable[[int], object]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Stepping(Protocol):
    """What a step needs of a training."""

    @property
    def engines(self) -> Mapping[str, Engine]: ...

    @property
    def phases(self) -> Sequence[Phase]: ...

    @property
    def length(self) -> Length: ...

    def batch(self, piece: Piece) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Times:
    """Milliseconds of each round, by the wall clock and by this process's CPU time."""

    wall: npt.NDArray[np.float64]
    cpu: npt.NDArray[np.float64]

    def __add__(self, other: "Times") -> "Times":
        return Times(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, part: "Times") -> "Times":
        return Times(self.wall - part.wall, self.cpu - part.cpu)

    def __mul__(self, factor: float) -> "Times":
        return Times(self.wall * factor, self.cpu * factor)

    def over(self, other: "Times") -> "Times":
        """Return the ratio to another variant, round by round."""
        return Times(self.wall / other.wall, self.cpu / other.cpu)


def photographs_like(side: int) -> ShotSet:
    """Return 10 classes x 5 images of smooth noise with block segments: speed does not depend on what they show."""
    torch.manual_seed(0)
    coarse = torch.rand(50, 3, side // 8, side // 8)
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear").mul(255).to(torch.uint8)
    blocks = torch.arange(6).view(1, 2, 3).float()
    segments = torch.nn.functional.interpolate(blocks[None], size=side)[0].int().expand(50, side, side).contiguous()
    labels = torch.arange(50) % 10
    return ShotSet(images, labels, tuple(map(str, range(50))), segments, tuple(map(str, range(10))))


def preset(name: str) -> PilotSettings:
    """Return the settings of a preset by name, or of a YAML file."""
    file = Path(name) if Path(name).suffix else configs_root() / "pilot" / f"{name}.yaml"
    return build(PilotSettings, read_yaml(file), str(file))


def whole_batch(training: Stepping, number: int) -> dict[str, Any]:
    """Return the batch of a step, as one process alone computes it."""
    (piece,) = training.length.pieces(number, 0, 1, None)
    return training.batch(piece)


def one_step(training: Stepping) -> Step:
    """Return a function that takes one step of a training, as the training loop takes it."""

    def step(number: int) -> None:
        batch = whole_batch(training, number)
        for phase in training.phases:
            for name, engine in training.engines.items():
                engine.module.requires_grad_(name == phase.engine)
            engine = training.engines[phase.engine]
            total, _ = phase.loss(batch)
            if not torch.isfinite(total):
                raise RuntimeError(f"the loss of {phase.engine} is not finite in step {number}")
            engine.backward(total, 1.0)
            engine.step(phase.lr(0.0))

    return step


def gigaflop(step: Step) -> float:
    """Return the arithmetic of one step in 10^9 operations, from the shapes of its products and convolutions.

    Forward and backward, as they run; a multiplication with its addition counts as two. The step is taken.
    """
    with FlopCounterMode(display=False) as counter:
        step(0)
    return int(counter.get_total_flops()) / 1e9


def interleaved(steps: Mapping[str, Step], repeats: int, device: torch.device, warm_up: int = 1) -> dict[str, Times]:
    """Return the times of each variant over `repeats` rounds in turn, after `warm_up` rounds that do not count."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(repeats + warm_up):
        for name, step in steps.items():
            _finish(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step(number)
            _finish(device)
            rounds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Times(*(1000 * np.array(pairs[warm_up:]).T)) for name, pairs in rounds.items()}


def quartiles(values: npt.NDArray[np.float64], digits: int = 2) -> str:
    """Return "median (lower quartile - upper quartile)"."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return f"{median:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of equal keys as a table."""
    head = list(rows[0])
    cells = [head, *([str(row[key]) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    print(f"\n{title}")
    for first, *rest in cells:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  " + "   ".join((first.ljust(widths[0]), *numbers)))


def record(benchmark: str, **values: object) -> None:
    """Print a JSON line; times become medians in milliseconds, or ratios."""

    def plain(value: object) -> object:
        if isinstance(value, Times):
            return {name: plain(float(np.median(times))) for name, times in vars(value).items()}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    print(json.dumps({"benchmark": benchmark} | {key: plain(value) for key, value in values.items()}))


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Return a command line with what every benchmark of steps takes."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    result.add_argument("--repeats", type=int, default=repeats, help=f"rounds that count (default {repeats})")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    return result


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Return the device, with the number of threads set and memory kept once it was used."""
    torch.set_num_threads(arguments.threads)
    if platform.libc_ver()[0] == "glibc":
        # A variant alone reuses its memory from step to step. In turns with smaller ones it would give it back and
        # fetch it anew, page by page: 0.4 s of a 2 s step. Set by hand, both thresholds stay where they are.
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return torch.device(arguments.device)


def machine(device: torch.device) -> str:
    """Return what the steps run on, in a few words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
