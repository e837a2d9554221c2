"""DeepSpeed's configuration: what a user may set in it, and the complete one that an engine is made from.

A DeepSpeed configuration can change the numbers of a training without a word: clipped gradients, other precisions, an
optimizer of its own. Here it says how memory and traffic are handled; what changes numbers has its place in the
settings of the training, and is written out in full for DeepSpeed, whose defaults change between versions.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hydramix_dist.config.base import Settings
from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.errors import UserError, nearest

# 5e8, as DeepSpeed's own examples have it, is a float to YAML and JSON.
_Elements = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]
_Size = Annotated[_Elements, Field(ge=1)]
_Limit = Annotated[_Elements, Field(ge=0)]


class ZeroSettings(Settings):
    """What a user may set of `zero_optimization`: each key was tried and leaves the numbers as they are."""

    stage: Literal[0, 1, 2, 3]
    reduce_bucket_size: _Size = 500_000_000
    allgather_bucket_size: Annotated[_Size, Field(multiple_of=2)] = 500_000_000
    allgather_partitions: bool = True
    reduce_scatter: bool = True
    use_multi_rank_bucket_allreduce: bool = True
    contiguous_gradients: bool = True
    overlap_comm: bool = False
    parameter_alignment: bool = False
    sub_group_size: _Size = 1_000_000_000
    stage3_prefetch_bucket_size: _Limit = 50_000_000
    stage3_param_persistence_threshold: _Limit = 100_000
    stage3_model_persistence_threshold: _Limit = 2**63 - 1
    stage3_max_live_parameters: _Limit = 1_000_000_000
    stage3_max_reuse_distance: _Limit = 1_000_000_000
    stage3_use_all_reduce_for_fetch_params: bool = False
    log_trace_cache_warnings: bool = False
    enable_sanity_checks: bool = False


class CommsLoggerSettings(Settings):
    """DeepSpeed's own log of collective calls."""

    enabled: bool
    verbose: bool = False
    prof_all: bool = True
    debug: bool = False
    prof_ops: Annotated[tuple[str, ...], Field(strict=False)] = ()


class DeepSpeedSettings(Settings):
    """What a user may set of a DeepSpeed configuration."""

    zero_optimization: ZeroSettings
    comms_logger: CommsLoggerSettings | None = None
    steps_per_print: Annotated[int, Field(ge=1)] | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "error"


_PRECISION = "runtime.precision (bf16 or fp32) says in which precision a model computes"
_BATCH = "the batch is that of the training's settings (batch, runtime.micro_batch), shared among the workers"
_OPTIMIZER = "the optimizer and its rate are those of the training's settings (optimizer)"
_MEAN = "gradients are averaged exactly, in fp32, over the whole batch"

# What changes numbers: by its path in DeepSpeed's configuration, the value written there and what to use instead.
_OURS: dict[str, tuple[Any, str]] = {
    # Clipping is on by default since DeepSpeed 0.19; with a reconstruction weight of 1000 it rescales every step.
    "gradient_clipping": (0.0, "gradients are not clipped"),
    "train_micro_batch_size_per_gpu": (1, _BATCH),  # what DeepSpeed computes from it is never shown
    "gradient_accumulation_steps": (1, _BATCH),
    # step() is the boundary: a step may have any number of pieces, and DeepSpeed divides no loss by their number.
    "managed_gradient_accumulation": (False, _BATCH),
    "communication_data_type": ("fp32", _MEAN),
    "gradient_allreduce_op": ("mean", _MEAN),
    "prescale_gradients": (False, _MEAN),
    "gradient_predivide_factor": (1.0, _MEAN),
    "data_types.grad_accum_dtype": ("fp32", _PRECISION),
    "fp16.enabled": (False, _PRECISION),
    "bf16.enabled": (False, _PRECISION),
    "torch_autocast.enabled": (False, _PRECISION),
    "zero_allow_untested_optimizer": (True, _OPTIMIZER),  # SGD is not on DeepSpeed's list, and is tested here
    "zero_force_ds_cpu_optimizer": (False, _OPTIMIZER),
    "zero_optimization.zero_quantized_weights": (False, _MEAN),
    "zero_optimization.zero_quantized_nontrainable_weights": (False, _MEAN),
    "zero_optimization.zero_quantized_gradients": (False, _MEAN),
    "zero_optimization.zero_hpz_partition_size": (1, "weights are shared among all workers alike"),
    # Its own order of weights is not the one in which optimizer moments are read and written: they would be swapped.
    "zero_optimization.round_robin_gradients": (False, "checkpoints would take moments for those of other weights"),
    # Measuring speed makes a GPU wait twice a step; the training's records have the images per second.
    "timers.throughput.enabled": (False, "the training's own records have images_per_second"),
}

_REFUSED = {
    "train_batch_size": _BATCH,
    "optimizer": _OPTIMIZER,
    "scheduler": _OPTIMIZER,
    "amp": _PRECISION,
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "torch_autocast": _PRECISION,
    "data_types": _PRECISION,
    "timers": "the training's own records have images_per_second",
    "sparse_gradients": _MEAN,
    "compression_training": "weights are neither quantised nor pruned",
    "checkpoint": "checkpoints are written by this program, for any number of workers",
    "data_efficiency": "the order of the images is that of the training's seed",
    "zero_optimization.offload_optimizer": "the optimizer works where the weights are; stages 1 to 3 save its memory",
    "zero_optimization.offload_param": "weights stay on the device; stage 3 saves their memory",
    "zero_optimization.cpu_offload": "the optimizer works where the weights are; stages 1 to 3 save its memory",
}


def read_deepspeed(name_or_path: str) -> dict[str, Any]:
    """Return the DeepSpeed configuration of that name (zero0 to zero3), or in that YAML or JSON file, checked.

    Raises UserError for an unknown name or a missing file, and for a key that is unknown, has a wrong value, or would
    change the numbers of a training: named with what to use instead.
    """
    path = _find(name_or_path)
    tree = _read_json(path) if path.suffix == ".json" else read_yaml(path)
    source = f"DeepSpeed configuration {path}"
    settings = build(DeepSpeedSettings, _without_ours(tree, source), source)
    if settings.zero_optimization.overlap_comm and settings.zero_optimization.stage < 2:
        raise UserError(
            f"{source}: 'zero_optimization.overlap_comm' is true, which DeepSpeed offers for stages 2 and 3 alone when "
            f"a step may have several pieces; set it to false, or the stage from {settings.zero_optimization.stage} "
            "to 2 or 3"
        )
    return settings.model_dump(mode="json", exclude_unset=True)


def engine_config(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole configuration of one engine, from what `read_deepspeed` gave: all that changes numbers in it.

    It shares nothing with `base` or with another engine's: DeepSpeed writes into it.
    """
    config: dict[str, Any] = copy.deepcopy(dict(base))
    for path, (value, _) in _OURS.items():
        *sections, key = path.split(".")
        section = config
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    zero = config["zero_optimization"]
    zero.setdefault("overlap_comm", False)
    # The norm would be measured for clipping, and a step left out without a word where it is not finite. At stage 3
    # DeepSpeed has no such switch.
    zero["compute_grad_norm"] = zero["stage"] not in (1, 2)
    config.setdefault("steps_per_print", None)
    # Its warnings go to the user's terminal, one of them for every SGD; `info` shows what the keys above measure.
    config.setdefault("log_level", "error")
    return config


def _find(name_or_path: str) -> Path:
    folder = configs_root() / "deepspeed"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name_or_path in names:
        return folder / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if not path.is_file():
        raise UserError(
            f"deepspeed '{name_or_path}' is neither one of {', '.join(names)} nor a file{nearest(name_or_path, names)}"
        )
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"DeepSpeed configuration {path}: {error.strerror or error}") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"DeepSpeed configuration {path} is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"DeepSpeed configuration {path} holds a {type(tree).__name__}, an object of keys is needed")
    return tree


def _without_ours(tree: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Return the tree without the keys whose values are those we set anyway. Raises UserError for other values."""
    left: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in _OURS:
            ours, instead = _OURS[path]
            if value != ours:
                raise UserError(
                    f"{source}: '{path}' is {value!r}; only {ours!r} is taken here, for it would change the numbers of "
                    f"the training: {instead}. Take the key out"
                )
        elif isinstance(value, Mapping) and any(known.startswith(f"{path}.") for known in _OURS):
            inner = _without_ours(value, source, f"{path}.")
            if inner or path == "zero_optimization":
                left[key] = inner
        else:
            left[key] = value
        if path in _REFUSED and key in left:
            raise UserError(f"{source}: '{path}' is not taken here: {_REFUSED[path]}. Take the key out")
    return left
