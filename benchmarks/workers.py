"""What the benchmarks of several processes share: the processes, the training that they run, and one step of it."""

import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import common
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import (
    DiscriminatorSettings,
    GeneratorNetworkSettings,
    GeneratorSettings,
    RuntimeSettings,
)
from hydramix_dist.orchestration.launch import launch
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.store import Store
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.group import Group

T = TypeVar("T")

CPU = torch.device("cpu")


def on_ranks(ranks: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Return what `function(*arguments)` returns on each of so many new processes, brought together by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (ranks, folder, function, arguments), nprocs=ranks)
        return [pickle.loads(Path(folder, f"{rank}").read_bytes()) for rank in range(ranks)]


def _rank(rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    Path(folder, f"{rank}").write_bytes(pickle.dumps(function(*arguments)))
    dist.barrier()
    dist.destroy_process_group()


@dataclass(frozen=True)
class Call:
    """A function as a task: Ray Train's workers carry it out as they do a training."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    folder_url: str
    runtime: RuntimeSettings

    def run(self, progress: object, should_stop: object, group: Group) -> Any:
        return self.function(*self.arguments)


def on_ray(ranks: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Return, alone in a list, what the function returns on rank 0 of Ray Train's workers, started as trainings are."""
    distributed, runtime = DistributedSettings(workers=ranks, max_failures=0), RuntimeSettings(device="cpu")
    with tempfile.TemporaryDirectory() as folder, ray_session(distributed, runtime, None) as session:
        task: Any = Call(function, arguments, Store(Path(folder, "run")).url, runtime)
        result: Any = launch(task, distributed, session, lambda done, total: None, lambda: False)
        return [result]


def sharded(stage: int, device: torch.device = CPU) -> Group:
    """Return this process's place among those that are together, with the engines of configs/deepspeed/zero<stage>."""
    return DeepSpeedGroup(read_deepspeed(f"zero{stage}"), device)


def generator_training(group: Group, micro_batch: int, width: int, precision: str) -> GeneratorTraining:
    """Return a generator's training at 64 x 64 pixels, `micro_batch` mixes a rank, on smooth noise."""
    settings = GeneratorSettings(
        network=GeneratorNetworkSettings(width=width),
        discriminator=DiscriminatorSettings(width=width),
        batch=micro_batch * group.world_size,
    )
    runtime = RuntimeSettings.model_validate({"device": group.device.type, "precision": precision})
    return GeneratorTraining(settings, runtime, common.photographs_like(64), 0, group, {})


def one_step(training: GeneratorTraining, group: Group) -> common.Step:
    """Return a function that takes one step of a training on this rank, as the training loop takes it."""

    def step(number: int) -> Mapping[str, Tensor]:
        (piece,) = training.length.pieces(number, group.rank, group.world_size, None)
        batch = training.batch(piece)
        noted: dict[str, Tensor] = {}
        for phase in training.phases:
            for name, engine in training.engines.items():
                engine.module.requires_grad_(name == phase.engine)
            engine = training.engines[phase.engine]
            total, terms = phase.loss(batch)
            engine.backward(total, piece.share)
            values_T = group.sum(torch.stack([total.detach(), *(v.detach() for v in terms.values())]) * piece.share)
            if not torch.isfinite(values_T[0]):
                raise RuntimeError(f"the loss of {phase.engine} is not finite in step {number}")
            engine.step(phase.lr(0.0))
            noted.update(zip(terms, values_T[1:], strict=True))
        return noted

    return step
