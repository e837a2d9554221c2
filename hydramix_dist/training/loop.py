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
from hydramix_dist.telemetry import Recorder
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.group import Group, on_first
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.meter import Meter, Noted
from hydramix_dist.training.saving import Saver


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

    def inspect(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor | float]:
        """Return metrics of a step's last piece, after its phases; called by rank 0 where a record is due."""

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


Save = Callable[[Training, int, Mapping[str, Any], float | None], None]


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
    meter = Meter(context.recorder, first * length.batch, length.steps * length.batch, context.runtime.checkpoints)
    begun = {"world_size": group.world_size, "training_start_timestamp_seconds": time.time()}
    context.recorder.record(first * length.batch, begun)
    started, cpu_started, stopping = time.monotonic(), time.process_time(), False
    context.progress(first * length.batch, length.steps * length.batch)

    with _counting_stops(meter), _saving(context) as (save, look):
        for step in range(first, length.steps):
            images = (step + 1) * length.batch
            due = group.rank == 0 and (step + 1 in saves or meter.due())
            noted = _step(training, context, step, measured=due)
            meter.step(images, noted if due else None)
            look()
            context.progress(images, length.steps * length.batch)
            stopping = bool(group.sum(torch.tensor(float(context.should_stop()))))
            if step + 1 in saves or stopping:
                # Also when stopping: resumed or not, a training has the same evaluations.
                metrics = training.evaluate(images) if step + 1 in saves else {}
                if metrics:
                    evaluations.append((images, dict(metrics)))
                    meter.evaluated(images, metrics)
                counters = {
                    "seconds": spent + time.monotonic() - started,
                    "cpu_seconds": cpu_spent + time.process_time() - cpu_started,
                    "evaluations": list(evaluations),
                }
                save(training, images, counters, metrics.get("validation_accuracy_ratio"))
                meter.go_on()
            if stopping:
                break
    if stopping:
        raise Interrupted(f"stopped after {images} images; the same command goes on from there")
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    return Outcome(spent + seconds, cpu_spent + cpu_seconds, tuple(evaluations))


def _step(training: Training, context: Context, step: int, *, measured: bool) -> Noted:
    """Run one step's phases; return its terms, means over the whole batch of all ranks.

    `measured`: with gradient norms and what the training finds worth a look, which take a moment.
    """
    group, length = context.group, training.length
    pieces = length.pieces(step, group.rank, group.world_size, context.runtime.micro_batch)
    with group.preparing.measured():
        batches = [(piece, training.batch(piece)) for piece in pieces]
    noted = Noted({}, {})
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
        # One sum over ranks brings the terms together, and with them the news of a loss that is not finite anywhere,
        # and rank 0's word whether this step is measured, in which all take part.
        sums["measured"] = torch.full_like(sums[""], float(measured))
        values = dict(zip(sums, group.sum(torch.stack(list(sums.values()))).unbind(), strict=True))
        total, word = values.pop(""), values.pop("measured")
        _stop_if_not_finite(total, values, step)
        measured = bool(word) if group.world_size > 1 else measured
        rate = phase.lr(step / length.steps)
        try:
            norm = engine.step(rate, measured=measured)
        except FloatingPointError as error:  # a finite loss with gradients that are not, which a sharded engine sees
            raise NonFiniteLossError(str(error)) from error
        noted.terms.update(values, learning_rate=rate)
        if norm is not None:
            noted.norms[phase.engine] = norm
    if measured and group.rank == 0:
        noted.terms.update(training.inspect(batches[-1][1]))
    return noted


@contextlib.contextmanager
def _counting_stops(meter: Meter) -> Iterator[None]:
    try:
        yield
    except NonFiniteLossError:
        meter.stopped_not_finite()
        raise


def _stop_if_not_finite(total: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    if torch.isfinite(total):
        return
    values = {name: float(term) for name, term in terms.items()}
    raise NonFiniteLossError(
        f"step {step}: the loss is not finite ({', '.join(f'{k} = {v:g}' for k, v in values.items())}); stopped before "
        "the optimizer step, the last checkpoint is good. A lower learning rate or precision fp32 usually mends it"
    )


@contextlib.contextmanager
def _saving(context: Context) -> Iterator[tuple[Save, Callable[[], None]]]:
    """Yield the call that saves, and one that records what has become whole meanwhile.

    At the end of the block all saves are on disk, or their error is raised on all ranks. All ranks gather the full
    states, rank 0 writes them behind the training's back.
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

            yield save, lambda: _record_finished(saver, context)
            on_first(group, saver.finish)
            _record_finished(saver, context)
    except FloatingPointError as error:  # weights that a finite loss with infinite gradients has spoilt
        raise NonFiniteLossError(f"{error}; the checkpoint before it is good. A lower rate usually mends it") from error


def _record_finished(saver: Saver, context: Context) -> None:
    for saved in saver.finished():
        values = {"checkpoint_seconds": saved.seconds, "checkpoint_bytes": saved.bytes}
        context.recorder.record(saved.images, values | {"checkpoint_last_success_timestamp_seconds": saved.at})


def prepare_device(runtime: RuntimeSettings) -> torch.device:
    """Return the device to train on, with this process's thread count set as the settings say.

    Raises UserError where the settings ask for a GPU and torch sees none.
    """
    torch.set_num_threads(runtime.threads)
    gpu = torch.cuda.is_available()
    if runtime.device == "cuda" and not gpu:
        raise UserError("runtime.device is 'cuda', but torch sees no GPU here; use auto or cpu (see: hydramix doctor)")
    return torch.device("cuda" if gpu and runtime.device != "cpu" else "cpu")
