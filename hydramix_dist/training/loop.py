"""The loop all trainings share: resume, steps made of phases, records, checkpoints, stopping.

A training is its phases. In each phase one engine's model learns and every other one is frozen: the discipline
that sharded engines need, and that keeps a generator's loss from leaking gradients into the discriminator.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hydramix_dist import checkpoint
from hydramix_dist.checkpoint import Checkpoint
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.store import Store
from hydramix_dist.telemetry import Recorder
from hydramix_dist.training.engine import Engine

_log = logging.getLogger("hydramix")
RECORD_SECONDS = 2.0  # at most one record in this time: reading a loss makes a GPU wait


class NonFiniteLossError(RuntimeError):
    """A loss term was not finite; the optimizer step was not taken and the last checkpoint stands."""


@dataclass(frozen=True)
class Phase:
    """One optimizer step: which engine learns, at which rate, from which loss.

    `loss(batch)` returns the total and the terms by metric name, all fp32 scalars on the device; it may leave
    tensors in `batch` for the phases after it.
    """

    engine: str
    lr: Callable[[float], float]
    loss: Callable[[dict[str, Any]], tuple[Tensor, Mapping[str, Tensor]]]


class Training(Protocol):
    """What is trained: engines by name, phases in order, and the batch of a step."""

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Return the engines by name; these names stand in checkpoints."""

    @property
    def phases(self) -> Sequence[Phase]:
        """Return the phases of a step, in order."""

    def batch(self, step: int) -> dict[str, Any]:
        """Return the inputs of a step, a pure function of its number."""

    def evaluate(self, images: int) -> Mapping[str, float]:
        """Return metrics measured on held-out images, called at every checkpoint; may be empty."""


@dataclass(frozen=True)
class Length:
    """How long a training is, in images; a step shows `batch` of them."""

    images: int
    batch: int

    @property
    def steps(self) -> int:
        """Return the number of steps: the images in whole batches, rounded up."""
        return -(-self.images // self.batch)


@dataclass(frozen=True)
class Context:
    """What surrounds a training: its folder, records, progress display and the question whether to stop."""

    store: Store
    recorder: Recorder
    runtime: RuntimeSettings
    progress: Callable[[int, int], None]  # images seen, images in all
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """A finished training: seconds over all attempts, and each evaluation as (images seen, metrics)."""

    seconds: float
    evaluations: tuple[tuple[int, Mapping[str, float]], ...]


def run(training: Training, length: Length, context: Context, resumed: Checkpoint | None) -> Outcome:
    """Train to the end, from `resumed` where given, whose states the engines were made from.

    Raises Interrupted after saving when asked to stop, NonFiniteLossError before the step that would spread it.
    """
    first = 0 if resumed is None else resumed.images // length.batch
    evaluations = [] if resumed is None else [(int(i), dict(m)) for i, m in resumed.counters["evaluations"]]
    spent = 0.0 if resumed is None else float(resumed.counters["seconds"])
    if resumed is not None and resumed.fallbacks:
        context.recorder.record(resumed.images, {"checkpoint_fallbacks_total": resumed.fallbacks})
    saves = {round(length.steps * (i + 1) / context.runtime.checkpoints) for i in range(context.runtime.checkpoints)}
    meter = _Meter(context.recorder, first * length.batch)
    started = time.monotonic()

    for step in range(first, length.steps):
        images = (step + 1) * length.batch
        try:
            terms = _step(training, step, step / length.steps)
        except NonFiniteLossError:
            context.recorder.record(step * length.batch, {"nonfinite_stops_total": 1})
            raise
        meter.note(images, terms, last=step + 1 == length.steps)
        context.progress(images, length.steps * length.batch)
        stopping = context.should_stop()
        if step + 1 in saves or stopping:
            # Also when stopping: resumed or not, a training has the same evaluations.
            metrics = training.evaluate(images) if step + 1 in saves else {}
            if metrics:
                evaluations.append((images, dict(metrics)))
                context.recorder.record(images, metrics)
            score = metrics.get("validation_accuracy_ratio")
            _save(training, images, spent + time.monotonic() - started, evaluations, score, context)
        if stopping:
            raise Interrupted(f"stopped after {images} images; the same command goes on from there")
    return Outcome(spent + time.monotonic() - started, tuple(evaluations))


def _step(training: Training, step: int, done: float) -> dict[str, Tensor | float]:
    """Run one step's phases at the rates that hold after the share `done` of the training; return its terms."""
    batch = training.batch(step)
    noted: dict[str, Tensor | float] = {}
    for phase in training.phases:
        for name, engine in training.engines.items():
            engine.module.requires_grad_(name == phase.engine)
        engine = training.engines[phase.engine]
        total, terms = phase.loss(batch)
        _stop_if_not_finite(engine, total, terms, step)
        engine.backward(total)
        engine.step(phase.lr(done))
        noted.update({name: term.detach() for name, term in terms.items()})
        noted["learning_rate"] = phase.lr(done)
    return noted


def _stop_if_not_finite(engine: Engine, total: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    if engine.all_finite(total.detach()):
        return
    values = {name: float(term.detach()) for name, term in terms.items()}
    raise NonFiniteLossError(
        f"step {step}: the loss is not finite ({', '.join(f'{k} = {v:g}' for k, v in values.items())}); stopped before "
        "the optimizer step, the last checkpoint is good. A lower learning rate or precision fp32 usually mends it"
    )


def _save(
    training: Training,
    images: int,
    seconds: float,
    evaluations: Sequence[tuple[int, Any]],
    score: float | None,
    context: Context,
) -> None:
    began = time.monotonic()
    checkpoint.save(
        context.store,
        images,
        {name: engine.full_state() for name, engine in training.engines.items()},
        {"seconds": seconds, "evaluations": list(evaluations)},
        keep=context.runtime.keep,
        score=score,
    )
    context.recorder.record(images, {"checkpoint_seconds": time.monotonic() - began})


class _Meter:
    """Records a step's terms every `RECORD_SECONDS` and at the end, with the speed since the last record."""

    def __init__(self, recorder: Recorder, images: int) -> None:
        self._recorder, self._images, self._time = recorder, images, time.monotonic()

    def note(self, images: int, terms: Mapping[str, Tensor | float], *, last: bool) -> None:
        """Take a step's terms; they are read from the device only when they are recorded."""
        now = time.monotonic()
        if now - self._time < RECORD_SECONDS and not last:
            return
        values = {name: float(value) for name, value in terms.items()}
        values["images_seen_total"] = images
        values["images_per_second"] = (images - self._images) / max(now - self._time, 1e-9)
        self._recorder.record(images, values)
        self._images, self._time = images, now


def prepare_device(runtime: RuntimeSettings) -> torch.device:
    """Return the device to train on, with this process's thread count set as the settings say.

    Raises UserError where the settings ask for a GPU and torch sees none.
    """
    torch.set_num_threads(runtime.threads)
    gpu = torch.cuda.is_available()
    if runtime.device == "cuda" and not gpu:
        raise UserError("runtime.device is 'cuda', but torch sees no GPU here; use auto or cpu (see: hydramix doctor)")
    return torch.device("cuda" if gpu and runtime.device != "cpu" else "cpu")


def autocast(runtime: RuntimeSettings, device: torch.device) -> torch.autocast:
    """Return the precision context of the settings; losses inside it are computed in fp32 by their own code."""
    return torch.autocast(device.type, torch.bfloat16, enabled=runtime.precision == "bf16")
