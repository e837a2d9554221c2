"""The loop all trainings share: resume, steps made of phases, records, checkpoints, stopping.

A training is its phases. In each phase one engine's model learns and every other one is frozen: the discipline
that sharded engines need, and that keeps a generator's loss from leaking gradients into the discriminator. All ranks
run this loop alike: what one of them sees (a loss that is not finite, a request to stop) becomes known to all before
any of them acts on it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hydramix_dist.checkpoint import Checkpoint
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.store import Store
from hydramix_dist.store.traffic import traffic
from hydramix_dist.telemetry import Recorder
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.group import Group, on_first
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.saving import Saver

# Of the whole process, since it began: a worker that carries out several trainings counts on.
_TRAFFIC = {
    "requests": "store_requests_total",
    "retries": "store_retries_total",
    "read_bytes": "store_read_bytes_total",
    "cache_hits": "cache_hits_total",
    "cache_misses": "cache_misses_total",
}
RECORD_SECONDS = 2.0  # at most one record in this time: reading a loss makes a GPU wait


class NonFiniteLossError(RuntimeError):
    """A loss term was not finite; the optimizer step was not taken and the last checkpoint stands."""


@dataclass(frozen=True)
class Phase:
    """One optimizer step: which engine learns, at which rate, from which loss.

    `loss(batch)` returns the total and the terms by metric name, all fp32 scalars on the device and means over the
    batch's samples; it may leave tensors in `batch` for the phases after it.
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

    @property
    def length(self) -> Length:
        """Return how long it is."""

    def batch(self, piece: Piece) -> dict[str, Any]:
        """Return the inputs of a piece, a pure function of the numbers in it."""

    def evaluate(self, images: int) -> Mapping[str, float]:
        """Return metrics measured on held-out images, called at every checkpoint; may be empty."""


@dataclass(frozen=True)
class Context:
    """What surrounds a training: its processes, folder, records, progress display and the question whether to stop.

    Folder, records and progress are rank 0's alone to write; any rank may be asked to stop.
    """

    group: Group
    store: Store
    recorder: Recorder
    runtime: RuntimeSettings
    progress: Callable[[int, int], None]  # images seen, images in all
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """A finished training: seconds over all attempts, by the clock and of this process's CPUs, and each evaluation.

    Evaluations are (images seen, metrics).
    """

    seconds: float
    cpu_seconds: float
    evaluations: tuple[tuple[int, Mapping[str, float]], ...]


def run(training: Training, context: Context, resumed: Checkpoint | None) -> Outcome:
    """Train to the end, from `resumed` where given, whose states the engines were made from.

    Raises Interrupted after saving when asked to stop, NonFiniteLossError before the step that would spread it.
    """
    length, group = training.length, context.group
    first = 0 if resumed is None else resumed.images // length.batch
    evaluations = [] if resumed is None else [(int(i), dict(m)) for i, m in resumed.counters["evaluations"]]
    spent = 0.0 if resumed is None else float(resumed.counters["seconds"])
    cpu_spent = 0.0 if resumed is None else float(resumed.counters.get("cpu_seconds", spent))
    if resumed is not None and resumed.fallbacks:
        context.recorder.record(resumed.images, {"checkpoint_fallbacks_total": resumed.fallbacks})
    saves = {round(length.steps * (i + 1) / context.runtime.checkpoints) for i in range(context.runtime.checkpoints)}
    meter = _Meter(context.recorder, first * length.batch)
    started, cpu_started, stopping = time.monotonic(), time.process_time(), False
    context.progress(first * length.batch, length.steps * length.batch)

    with _saving(context) as save:
        for step in range(first, length.steps):
            images = (step + 1) * length.batch
            try:
                terms = _step(training, context, step)
            except NonFiniteLossError:
                context.recorder.record(step * length.batch, {"nonfinite_stops_total": 1})
                raise
            meter.note(images, terms, last=step + 1 == length.steps)
            context.progress(images, length.steps * length.batch)
            stopping = bool(group.sum(torch.tensor(float(context.should_stop()))))
            if step + 1 in saves or stopping:
                # Also when stopping: resumed or not, a training has the same evaluations.
                metrics = training.evaluate(images) if step + 1 in saves else {}
                if metrics:
                    evaluations.append((images, dict(metrics)))
                    context.recorder.record(images, metrics)
                counters = {
                    "seconds": spent + time.monotonic() - started,
                    "cpu_seconds": cpu_spent + time.process_time() - cpu_started,
                    "evaluations": list(evaluations),
                }
                save(training, images, counters, metrics.get("validation_accuracy_ratio"))
            if stopping:
                break
    if stopping:
        raise Interrupted(f"stopped after {images} images; the same command goes on from there")
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    return Outcome(spent + seconds, cpu_spent + cpu_seconds, tuple(evaluations))


def _step(training: Training, context: Context, step: int) -> dict[str, Tensor | float]:
    """Run one step's phases; return its terms, means over the whole batch of all ranks."""
    group, length = context.group, training.length
    pieces = length.pieces(step, group.rank, group.world_size, context.runtime.micro_batch)
    batches = [(piece, training.batch(piece)) for piece in pieces]
    noted: dict[str, Tensor | float] = {}
    for phase in training.phases:
        for name, engine in training.engines.items():
            engine.module.requires_grad_(name == phase.engine)
        engine = training.engines[phase.engine]
        sums: dict[str, Tensor] = {}
        for piece, batch in batches:
            total, terms = phase.loss(batch)
            engine.backward(total, piece.share)
            for name, value in {"": total, **terms}.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * piece.share
        # One sum over ranks brings the terms together, and with them the news of a loss that is not finite anywhere.
        values = dict(zip(sums, group.sum(torch.stack(list(sums.values()))).unbind(), strict=True))
        total = values.pop("")
        _stop_if_not_finite(total, values, step)
        rate = phase.lr(step / length.steps)
        try:
            engine.step(rate)
        except FloatingPointError as error:  # a finite loss with gradients that are not, which a sharded engine sees
            raise NonFiniteLossError(str(error)) from error
        noted.update(values, learning_rate=rate)
    return noted


def _stop_if_not_finite(total: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    if torch.isfinite(total):
        return
    values = {name: float(term) for name, term in terms.items()}
    raise NonFiniteLossError(
        f"step {step}: the loss is not finite ({', '.join(f'{k} = {v:g}' for k, v in values.items())}); stopped before "
        "the optimizer step, the last checkpoint is good. A lower learning rate or precision fp32 usually mends it"
    )


@contextlib.contextmanager
def _saving(context: Context) -> Iterator[Callable[[Training, int, Mapping[str, Any], float | None], None]]:
    """Yield the call that saves; at the end of the block all saves are on disk, or their error is raised on all ranks.

    All ranks gather the full states, rank 0 writes them behind the training's back.
    """
    group = context.group
    try:
        with Saver(context.store, context.runtime.keep) as saver:

            def save(training: Training, images: int, counters: Mapping[str, Any], score: float | None) -> None:
                began = time.monotonic()
                on_first(group, saver.finish)  # before gathering: two whole states are never in memory at once
                _record_finished(saver, context)
                gathered = {name: engine.full_state() for name, engine in training.engines.items()}
                states = {name: state for name, state in gathered.items() if state is not None}
                on_first(group, lambda: saver.save(images, states, counters, score))
                context.recorder.record(images, {"checkpoint_stall_seconds": time.monotonic() - began})

            yield save
            on_first(group, saver.finish)
            _record_finished(saver, context)
    except FloatingPointError as error:  # weights that a finite loss with infinite gradients has spoilt
        raise NonFiniteLossError(f"{error}; the checkpoint before it is good. A lower rate usually mends it") from error


def _record_finished(saver: Saver, context: Context) -> None:
    for images, seconds in saver.finished():
        context.recorder.record(images, {"checkpoint_seconds": seconds})


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
        if traffic.requests or traffic.cache_hits:
            values.update({_TRAFFIC[name]: float(count) for name, count in traffic.values().items()})
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
