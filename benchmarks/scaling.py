"""The scaling model of docs/scaling.md as functions: bytes of model state, traffic and step time by formula.

What is counted in the code (weights, arithmetic, operations of a step) is counted when this runs; the machines' figures
stand below with their sources. Run: `python benchmarks/scaling.py` (seconds). Everything in seconds is a prediction.

Legend: R ranks, L layers whose weights are sharded.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import common
import torch
import torch.nn.functional as F
import workers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.schema import ClassifierSettings, DiscriminatorSettings, GeneratorNetworkSettings
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.models.discriminator import Discriminator
from hydramix_dist.models.generator import Generator
from hydramix_dist.training.group import Alone

FP32 = 4  # bytes: weights, gradients, moments and what is sent are fp32 whatever the precision of the arithmetic


# ---- bytes


@dataclass(frozen=True)
class Model:
    """What the formulas need to know of a network and its optimizer."""

    sizes: tuple[int, ...]  # of each tensor of weights, in order
    threshold: int  # stage 3 leaves tensors of at most so many weights whole on every rank
    moments: int  # of the optimizer, for each weight: Adam 2, SGD with momentum 1
    phases: int  # of a step in which it computes: the discriminator judges in both

    @classmethod
    def of(cls, network: nn.Module, moments: int, phases: int = 1) -> "Model":
        """Return the counts of a network, sharded as configs/deepspeed/zero3.yaml says."""
        threshold = read_deepspeed("zero3")["zero_optimization"]["stage3_param_persistence_threshold"]
        return cls(tuple(p.numel() for p in network.parameters()), threshold, moments, phases)

    @property
    def weights(self) -> int:
        return sum(self.sizes)

    @property
    def whole(self) -> int:
        """Return how many weights stage 3 leaves whole on every rank."""
        return sum(size for size in self.sizes if size <= self.threshold)

    @property
    def layers(self) -> int:
        """Return how many tensors stage 3 shards."""
        return sum(size > self.threshold for size in self.sizes)

    def touched(self, ranks: int) -> int:
        """Return the size of all tensors that one rank's part of the weights reaches into, on the rank with most."""
        part, ends = self.weights / ranks, [0, *itertools.accumulate(self.sizes)]
        tensors = list(itertools.pairwise(ends))
        return max(
            sum(end - first for first, end in tensors if first < part * (rank + 1) and end > part * rank)
            for rank in range(ranks)
        )


@dataclass(frozen=True)
class State:
    """Bytes that one rank keeps of a model, its gradients complete and the optimizer's step not yet taken."""

    weights: float
    masters: float  # DeepSpeed's second copy of the weights that the optimizer steps
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        return self.weights + self.masters + self.gradients + self.moments

    def __add__(self, other: "State") -> "State":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return State(*(a + b for a, b in pairs))


def state(model: Model, stage: int, ranks: int) -> State:
    """Return what a rank keeps at a stage: the formulas of docs/scaling.md."""
    whole, part = FP32 * model.weights, FP32 * model.weights / ranks
    return State(
        weights=part + FP32 * model.whole if stage == 3 else whole,
        masters=0 if stage == 0 else part,
        gradients=(whole, whole, FP32 * model.touched(ranks), part)[stage],
        moments=model.moments * (whole if stage == 0 else part),
    )


def networks(width: int = 64, *classifiers: str) -> dict[str, Model]:
    """Return generator and discriminator of that width, the rest as in the default settings, and these classifiers."""
    with torch.device("meta"):
        generator = Generator(GeneratorNetworkSettings(width=width))
        discriminator = Discriminator(DiscriminatorSettings(width=width))
        return {
            "generator": Model.of(generator, moments=2),
            "discriminator": Model.of(discriminator, moments=2, phases=2),
        } | {name: Model.of(build_classifier(ClassifierSettings(network=name), 10), moments=1) for name in classifiers}


# ---- traffic


@dataclass(frozen=True)
class Collective:
    """One collective call: its kind and the bytes of the whole tensor."""

    kind: str  # reduce (all-reduce), gather (all-gather), scatter (reduce-scatter)
    size: float

    def sent(self, ranks: int) -> float:
        """Return the bytes that each rank sends, on a ring."""
        return self.size * (ranks - 1) / ranks * (2 if self.kind == "reduce" else 1)


def calls(model: Model, stage: int) -> Iterator[Collective]:
    """Yield the collective calls of one optimizer step whose batch is one piece a rank."""
    whole, sharded = FP32 * model.weights, FP32 * (model.weights - model.whole)
    if stage == 3:
        # Gathered for the forward pass; kept for the backward pass, as these models fit stage3_max_reuse_distance.
        yield from [Collective("gather", sharded / model.layers)] * model.layers * model.phases
        yield Collective("scatter", whole)
        yield Collective("gather", FP32 * model.whole)
        return
    yield Collective("reduce", whole)
    if stage > 0:
        yield Collective("gather", whole)


def traffic(model: Model, stage: int, ranks: int) -> float:
    """Return the bytes that each rank sends in one optimizer step."""
    return sum(call.sent(ranks) for call in calls(model, stage))


# ---- seconds


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs; rates in bytes a second and direction, as reached, and seconds a hop."""

    name: str
    gpus: int  # a node
    inside: float  # between GPUs of a node
    between: float  # between nodes, all of a node's network ports together
    hop: float  # between nodes, beyond the first bytes' way through NCCL

    def seconds(self, call: Collective, ranks: int) -> float:
        """Return the time of a call: NCCL's own model, a tree for all-reduce's start-up and a ring for the others'."""
        if ranks == 1:
            return 0.0
        here, nodes = min(ranks, self.gpus), -(-ranks // self.gpus)
        if call.kind == "reduce":
            start = 4.4e-6 + 2 * ((here - 1) * 1.2e-6 + math.log2(nodes) * self.hop)
        else:
            start = 10e-6 + (ranks - nodes) * 1.9e-6 + (nodes - 1) * self.hop / 2
        return start + call.sent(ranks) / (self.inside if nodes == 1 else min(self.inside, self.between))


# NVLink 4: 450 GB/s a direction, 370 reached. InfiniBand NDR: 8 ports of 50 GB/s, nine tenths reached.
INFINIBAND = Cluster("8 GPUs a node, 8 x 400 Gb/s InfiniBand", 8, 370e9, 8 * 45e9, 8.5e-6)
ETHERNET = Cluster("8 GPUs a node, 100 Gb/s Ethernet", 8, 370e9, 11e9, 30e-6)
SLOW = Cluster("1 GPU a node, 10 Gb/s Ethernet", 1, 370e9, 1.1e9, 30e-6)

PEAK, REACHED, LAUNCH = 989e12, 0.3, 6e-6  # H100: dense bf16; share of it in these convolutions; seconds an operation


@dataclass(frozen=True)
class Work:
    """A training step: the models that it updates, arithmetic of one sample, operations launched one after another."""

    models: tuple[Model, ...]
    gigaflop: float
    launches: int

    def computing(self, samples: float) -> float:
        """Return the seconds that one GPU computes: as many as the arithmetic or the launches take."""
        return max(samples * self.gigaflop * 1e9 / (PEAK * REACHED), self.launches * LAUNCH)

    def communicating(self, cluster: Cluster, stage: int, ranks: int) -> float:
        """Return the seconds of collective calls; none is hidden behind the backward pass."""
        return sum(cluster.seconds(call, ranks) for model in self.models for call in calls(model, stage))

    def seconds(self, cluster: Cluster, stage: int, ranks: int, samples: float) -> float:
        """Return the time of a step with `samples` on each rank."""
        return self.computing(samples) + self.communicating(cluster, stage, ranks)


class Launches(TorchDispatchMode):
    """Counts the operations that compute something while it is entered: on a GPU about one kernel each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = op.name()
        self.count += not (op.is_view or "::empty" in name or "::detach" in name)
        return op(*args, **(kwargs or {}))


def counted(step: common.Step, samples: int, *models: Model) -> Work:
    """Return what a step of so many samples costs, counted while it is taken."""
    step(0)
    arithmetic = common.gigaflop(step)
    with Launches() as launches:
        step(1)
    return Work(models, arithmetic / samples, launches.count)


def generator_work(found: Mapping[str, Model]) -> Work:
    """Return a step of generator and discriminator at the default settings."""
    training = workers.generator_training(Alone(workers.CPU), micro_batch=2, width=64, precision="bf16")
    return counted(common.one_step(training), 2, found["generator"], found["discriminator"])


def classifier_work(found: Mapping[str, Model], network: str) -> Work:
    """Return a step of a classifier on real images of 32 pixels: augmentation and mixing are left out."""
    classifier = build_classifier(ClassifierSettings(network=network), 10)
    optimizer = torch.optim.SGD(classifier.parameters(), 1e-3, momentum=0.9, nesterov=True, fused=True)
    labels = torch.zeros(2, dtype=torch.int64)

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(torch.zeros(2, 3, 32, 32))
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return counted(step, 2, found[network])


def activations() -> float:
    """Return the bytes that a mix adds to what is kept for the generator's backward pass, in bf16."""
    kept = []
    for samples in (2, 4):  # the difference leaves out bf16 copies of weights, which are as large for any batch
        training = workers.generator_training(Alone(workers.CPU), samples, width=64, precision="bf16")
        training.engines["discriminator"].module.requires_grad_(False)
        batch, found = common.whole_batch(training, 0), dict[int, int]()

        def note(kept: Tensor, found: dict[int, int] = found) -> Tensor:
            storage = kept.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return kept

        with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
            total, _ = training.phases[0].loss(batch)
        total.backward()  # only now the memory may be used again, and an address be met twice
        kept.append(sum(found.values()))
    return (kept[1] - kept[0]) / 2


# ---- tables


def show_states(found: Mapping[str, Model]) -> None:
    for name, model in found.items():
        rows: list[dict[str, object]] = [
            {"stage": stage} | {f"R={r}": f"{state(model, stage, r).total / 1e6:.1f}" for r in (1, 2, 8, 64, 1024)}
            for stage in range(4)
        ]
        common.show(f"model state, MB a rank: {name}, {model.weights:,} weights", rows)


def show_traffic(found: Mapping[str, Model]) -> None:
    rows: list[dict[str, object]] = [
        {"stage": stage} | {name: f"{traffic(model, stage, 1024) / 1e6:.1f}" for name, model in found.items()}
        for stage in range(4)
    ]
    common.show("traffic, MB that a rank sends in one optimizer step, many ranks", rows)


def show_one_training(title: str, work: Work, batch: int, ranks: tuple[int, ...]) -> None:
    """Print what more GPUs bring to one training whose global batch is fixed."""
    alone = work.computing(batch)
    rows: list[dict[str, object]] = []
    for r in ranks:
        rows.append({"GPUs": r, "samples a GPU": f"{batch / r:.3g}"})
        for cluster in (INFINIBAND, ETHERNET, SLOW):
            taken = work.seconds(cluster, 1, r, math.ceil(batch / r))
            rows[-1][cluster.name] = f"{1e3 * taken:.1f} ms, {alone / taken:.2f}x"
    common.show(f"predicted: {title}, global batch {batch}, stage 1", rows)


def show_growing_batch(title: str, work: Work, samples: int) -> None:
    """Print how well GPUs are used when the batch grows with their number."""
    alone = work.computing(samples)
    rows: list[dict[str, object]] = []
    for r in (8, 16, 64, 256, 1024):
        rows.append({"GPUs": r, "global batch": samples * r})
        for cluster in (INFINIBAND, ETHERNET):
            for stage in (0, 1, 3):
                taken = work.seconds(cluster, stage, r, samples)
                rows[-1][f"{cluster.name.split(', ')[1]}, stage {stage}"] = f"{100 * alone / taken:.0f} %"
    common.show(f"predicted: {title}, {samples} samples a GPU: share of R times one GPU's speed", rows)


def main() -> None:
    """Count, and print the tables of docs/scaling.md and a JSON line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = networks(64, "wrn-16-8", "wrn-10-2")
    show_states(found)
    show_traffic(found)
    print(f"\nkept for the backward pass of the generator: {activations() / 1e6:.1f} MB a mix")
    generator = generator_work(found)
    classifier = classifier_work(found, "wrn-16-8")
    show_one_training("generator", generator, 64, (1, 2, 4, 8, 16, 64))
    show_one_training("wrn-16-8", classifier, 10, (1, 2, 5, 10))
    show_growing_batch("generator", generator, 16)
    show_growing_batch("generator", generator, 64)
    common.record(
        "scaling",
        weights={name: model.weights for name, model in found.items()},
        gigaflop={"generator": generator.gigaflop, "wrn-16-8": classifier.gigaflop},
        launches={"generator": generator.launches, "wrn-16-8": classifier.launches},
    )


if __name__ == "__main__":
    main()
