"""How one training is spread over several processes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hydramix_dist.config.base import Settings


class DistributedSettings(Settings):
    """Several workers for one training: Ray Train starts and restarts them, DeepSpeed shards what they hold."""

    workers: Annotated[
        int, Field(ge=1, description="processes of one training; 1: this process alone, without Ray")
    ] = 1
    min_workers: Annotated[
        int | None,
        Field(ge=1, description="elastic: goes on with fewer workers, at least this many; null: waits for all of them"),
    ] = None
    deepspeed: Annotated[
        str, Field(description="zero0, zero1, zero2 or zero3, or a DeepSpeed configuration of your own (YAML or JSON)")
    ] = "zero1"
    placement: Annotated[
        Literal["pack", "spread"], Field(description="workers on as few nodes as possible, or on as many")
    ] = "pack"
    cpus: Annotated[float, Field(gt=0, description="CPUs that a worker reserves; below 1, several share one")] = 1.0
    gpus: Annotated[
        float | None, Field(ge=0, description="GPUs that a worker reserves; null: 1 where it trains on a GPU, else 0")
    ] = None
    max_failures: Annotated[
        int,
        Field(ge=0, description="lost workers or nodes after each of which the training goes on from its checkpoint"),
    ] = 3

    @model_validator(mode="after")
    def _range(self) -> "DistributedSettings":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        return self
