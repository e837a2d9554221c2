"""What model state takes on a rank and what a rank sends in a step, counted by tensors, beside the formulas.

Generator, discriminator (a training's own steps) and WRN-16-8 at stages 0 to 3, on 1 and 2 ranks. State is counted when
the gradients are complete and the optimizer's step is not yet taken; storages are counted once and whole, so that what
DeepSpeed fills up or keeps of a neighbour's part is in it. "own" is the most that DeepSpeed took for buckets and for
copies to be sent. The formulas are those of docs/scaling.md. Run: `python benchmarks/model_state.py` (a minute).
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import common
import scaling
import torch
import torch.nn.functional as F
import workers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hydramix_dist.config.schema import ClassifierSettings
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.training.batch_norm import synchronised
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.group import Group
from hydramix_dist.training.loop import Phase

WITHIN = 0.15  # the goal: state is what the formula says, to this share
KINDS = {"allreduce": "reduce", "allgather": "gather", "reduce_scatter": "scatter"}  # by the start of torch's names


@dataclass
class Counted:
    """What one model took on one rank."""

    state: scaling.State
    own: int = 0  # bytes, at most
    sent: float = 0.0  # bytes in one optimizer step
    calls: Counter[str] = field(default_factory=Counter)


class Collectives(TorchDispatchMode):
    """Notes the collective calls of one step of an engine while it is entered, whichever way they are made."""

    def __init__(self, engine: Engine, ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._engine, self._ranks = engine, ranks
        self.own, self.sent, self.calls = 0, 0.0, Counter[str]()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if op.namespace == "c10d":
            self._note(op.name().removeprefix("c10d::").lstrip("_"), [a for a in tree_leaves(args) if is_fp32(a)])
        return op(*args, **(kwargs or {}))

    def _note(self, name: str, tensors: list[Tensor]) -> None:
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), None)
        if kind is None or not tensors:
            return
        self.calls[kind] += 1
        # The whole is the sum of what is reduced in place, else the larger side: gathered, or to be scattered.
        sizes = [t.numel() * t.element_size() for t in tensors]
        whole = sum(sizes) if kind == "reduce" else max(*sizes, sum(sizes) - sizes[-1])
        self.sent += scaling.Collective(kind, whole).sent(self._ranks)
        own = storages(buckets(self._engine))  # where gradients lie meanwhile
        kept = set().union(*(storages(t) for t in parts(self._engine).values())) - own
        self.own = max(self.own, sum(size for _, size in (storages(tensors) | own) - kept))


def is_fp32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def storages(tensors: Iterable[Tensor | None]) -> set[tuple[int, int]]:
    """Return the memory under tensors as (address, bytes), each once."""
    found = (t.untyped_storage() for t in tensors if t is not None)
    return {(storage.data_ptr(), storage.nbytes()) for storage in found if storage.nbytes()}


def parts(engine: Engine) -> dict[str, list[Tensor | None]]:
    """Return the tensors of a DeepSpeed engine's state, by the names of `scaling.State`."""
    weights = list(engine.module.parameters())
    optimizer, sharded = engine._optimizer, engine._engine.optimizer  # type: ignore[attr-defined]
    stepped = [*optimizer.state]  # not its groups, which stage 3 fills for the time of a step
    gradients = [p.grad for p in (*weights, *stepped)]
    for name in ("averaged_gradients", "all_grad_tensors", "grads_in_partition", "grad_partitions_flat_buffer"):
        gradients += [t for t in tree_leaves(getattr(sharded, name, None)) if isinstance(t, Tensor)]
    return {
        "weights": [*weights, *(getattr(p, "ds_tensor", None) for p in weights)],
        "masters": stepped,
        "gradients": gradients,
        "moments": [value for held in optimizer.state.values() for name, value in held.items() if name != "step"],
    }


def buckets(engine: Engine) -> list[Tensor]:
    """Return the buffers in which a DeepSpeed engine gathers gradients before it sends them."""
    found = getattr(engine._engine.optimizer, "ipg_buckets", {})  # type: ignore[attr-defined]
    return [t for bucket in found.values() for t in tree_leaves(bucket.buffer) if isinstance(t, Tensor)]


def kept_by(engine: Engine) -> scaling.State:
    """Return the bytes of an engine's state; memory that serves two purposes counts for the first."""
    seen: set[tuple[int, int]] = set()
    bytes_of = {}
    for name, tensors in parts(engine).items():
        bytes_of[name] = sum(size for _, size in storages(tensors) - seen)
        seen |= storages(tensors)
    return scaling.State(**bytes_of)


def count(engine: Engine, ranks: int, loss: Callable[[], Tensor]) -> Counted:
    """Return what an engine takes in one step; the step is taken."""
    with Collectives(engine, ranks) as noted:
        engine.backward(loss(), 1 / ranks)
        state = kept_by(engine)
        engine.step(1e-4)
    return Counted(state, noted.own, noted.sent, noted.calls)


def count_all(ranks: int, width: int, network: str) -> dict[int, dict[str, Counted]]:
    """Return by stage and model what this rank keeps and sends, in its third step: stage 3 learns its order in two."""
    found = {}
    for stage in range(4):
        group = workers.sharded(stage)
        training = workers.generator_training(group, micro_batch=1, width=width, precision="bf16")
        step = workers.one_step(training, group)
        step(0)
        step(1)
        (piece,) = training.length.pieces(2, group.rank, ranks, None)
        batch, of_stage = training.batch(piece), {}
        for phase in training.phases:
            for name, engine in training.engines.items():
                engine.module.requires_grad_(name == phase.engine)
            of_stage[phase.engine] = count(training.engines[phase.engine], ranks, partial(total, phase, batch))
        of_stage[network] = count_classifier(group, ranks, network)
        found[stage] = of_stage
    return found


def total(phase: Phase, batch: dict[str, Any]) -> Tensor:
    return phase.loss(batch)[0]


def count_classifier(group: Group, ranks: int, network: str) -> Counted:
    settings = ClassifierSettings(network=network)
    torch.manual_seed(0)
    engine = group.engine(synchronised(build_classifier(settings, 10)), settings.optimizer, None)

    def loss() -> Tensor:
        return F.cross_entropy(engine(torch.zeros(2, 3, 32, 32)), torch.zeros(2, dtype=torch.int64))

    for _ in range(2):
        engine.backward(loss(), 1 / ranks)
        engine.step(1e-4)
    return count(engine, ranks, loss)


def state_row(ranks: int, stage: int, name: str, counted: Counted, formula: scaling.State) -> dict[str, Any]:
    """Return a row of the table of bytes kept."""
    parts_of = {key: round(value / 1e6, 1) for key, value in asdict(counted.state).items()}
    return {"stage": stage, "model": name, "ranks": ranks, **parts_of} | {
        "total": round(counted.state.total / 1e6, 1),
        "formula": round(formula.total / 1e6, 1),
        "ratio": round(counted.state.total / formula.total, 3),
        "own": round(counted.own / 1e6, 1),
    }


def traffic_row(stage: int, name: str, counted: Iterable[Counted], formula: float) -> dict[str, Any]:
    """Return a row of the table of bytes sent, for models that make one step together."""
    sent, calls = 0.0, Counter[str]()
    for one in counted:
        sent, calls = sent + one.sent, calls + one.calls
    return {
        "stage": stage,
        "step": name,
        "sent": round(sent / 1e6, 1),
        "formula": round(formula / 1e6, 1),
        "ratio": round(sent / formula, 3),
        "calls": ", ".join(f"{n} {kind}" for kind, n in sorted(calls.items())),
    }


def main() -> None:
    """Count, and print a table for each number of ranks and a JSON line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    models, states, traffic = scaling.networks(64, "wrn-16-8"), [], []
    for ranks in (1, 2):
        found = workers.on_ranks(ranks, count_all, ranks, 64, "wrn-16-8")[0]
        for stage, of_stage in found.items():
            states += [
                state_row(ranks, stage, name, counted, scaling.state(models[name], stage, ranks))
                for name, counted in of_stage.items()
            ]
            for step in (("generator", "discriminator"), ("wrn-16-8",)) if ranks > 1 else ():
                formula = sum(scaling.traffic(models[name], stage, ranks) for name in step)
                traffic.append(traffic_row(stage, " + ".join(step), (of_stage[name] for name in step), formula))
    common.show("state on rank 0, MB", states)
    common.show("sent by each of 2 ranks in a step, MB", traffic)
    worst = max(abs(float(row["ratio"]) - 1) for row in states)
    print(f"\nstate is the formula's to {100 * worst:.1f} % (goal: {100 * WITHIN:.0f} %)")
    common.record("model_state", worst=worst, goal=WITHIN, states=states, traffic=traffic)


if __name__ == "__main__":
    main()
