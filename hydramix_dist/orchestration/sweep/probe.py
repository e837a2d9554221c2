"""What the trainings of a sweep cost, measured in seconds before hundreds of them start.

Trainings of one shape take equally long steps. Each shape is measured once, all of them in one process one after
another, as Ray Tune lets one process carry out many trials.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hydramix_dist.config.load import dump
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.pool import Stop, run_tasks
from hydramix_dist.orchestration.sweep.measure import Measurement
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask, Task
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest, read_run
from hydramix_dist.training import environment
from hydramix_dist.training.classifier import classifier_length
from hydramix_dist.training.generator import generator_length
from hydramix_dist.training.loop import prepare_device

MEASURING = "measuring"  # the key of the progress that is told
_SCHEMA = 1
_OF_GENERATOR = {"network", "discriminator", "mix", "segments", "batch", "group"}
_OF_CLASSIFIER = {"network", "side", "batch", "batch_norm"}
_log = logging.getLogger("hydramix")


@dataclass(frozen=True)
class Pace:
    """Seconds that a step of a shape takes, and an evaluation with the save that goes with it."""

    step_seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class Probe:
    """The pace of each shape, and the memory of a process that has run them all, bytes; of devices None on a CPU.

    `device_bytes` counts what anybody else had on the device meanwhile.
    """

    paces: Mapping[str, Pace]
    memory_bytes: int
    device_bytes: int | None
    device_total_bytes: int | None


_PROBE = TypeAdapter(Probe)


def shape_of(task: Task) -> str:
    """Return 16 hex digits, equal for trainings whose steps and evaluations cost the same.

    Rate, length, seed and subset have no part in it; nor has the share of mixed batches, which `seconds_of` weighs. A
    generator stands for its settings by its name, so that these have to be one sweep's trainings.
    """
    shape: dict[str, Any] = {
        "kind": task.kind,
        "data": task.data.manifest_sha256 or task.data.url,
        "runtime": task.runtime.model_dump(exclude={"checkpoints", "keep"}),
    }
    if isinstance(task, GeneratorTask):
        shape |= {"settings": task.settings.model_dump(include=_OF_GENERATOR)}
    else:
        shape |= {
            "settings": task.settings.model_dump(include=_OF_CLASSIFIER),
            "dropout": task.settings.dropout > 0,
            "momentum": task.settings.optimizer.momentum > 0,
            "method": task.method.model_dump(exclude={"classifier"}),
            "test": len(task.test_rows),
            "validation": len(task.validation_rows),
        }
    return digest(shape)[:16]


def seconds_of(task: Task, probe: Probe) -> float:
    """Return how long a training takes from its first step on. Raises KeyError for a shape that was not measured."""
    length = generator_length(task.settings) if isinstance(task, GeneratorTask) else classifier_length(task.settings)
    paces = [(share, probe.paces[shape_of(part)]) for share, part in _parts(task)]
    step = sum(share * pace.step_seconds for share, pace in paces)
    # A classifier with test images ends with one evaluation more: the predictions of its last weights.
    evaluations = min(task.runtime.checkpoints, length.steps)
    evaluations += isinstance(task, ClassifierTask) and bool(task.test_rows)
    return length.steps * step + evaluations * paces[0][1].evaluation_seconds


def probe(tasks: Sequence[Task], cache: Store, progress: Callable[[str, int, int], None]) -> Probe:
    """Return what one training of each shape took: measured, or, on a machine like this, read from `cache`.

    Generators that `tasks` do not contain have to be finished, and segment maps made. `progress` is told of (key,
    shapes measured, shapes in all). Raises UserError where a training fails or its memory does not suffice, Interrupted
    when stopped.
    """
    if not tasks:
        raise ValueError("a sweep without trainings has nothing to measure")
    parts: dict[str, Task] = {}
    for task in tasks:
        for _, part in _parts(task):
            shape = shape_of(part)
            if shape not in parts or len(part.rows) > len(parts[shape].rows):  # the one that takes most memory
                parts[shape] = part
    generators = {task.folder_url: task for task in tasks if isinstance(task, GeneratorTask)}
    path = f"probes/{_key(parts, generators)}.json"
    known = _read(cache, path)
    if known is None:
        known = _measured(parts, generators, progress)
        cache.put(path, _PROBE.dump_json(known, indent=1))
    return known


def _parts(task: Task) -> list[tuple[float, Task]]:
    """Return (share of the steps, training whose steps are all alike) of what a training is made of."""
    if isinstance(task, GeneratorTask) or (task.method.generator is None and task.method.pixels is None):
        return [(1.0, task)]
    mixed = task.settings.mix_share * task.settings.mix_until
    always = replace(task, settings=task.settings.model_copy(update={"mix_share": 1.0, "mix_until": 1.0}))
    method = task.method.model_copy(update={"generator": None, "pixels": None})
    never = replace(task, method=method, generator_url=None, generator_key=None)
    return [(share, part) for share, part in ((mixed, always), (1 - mixed, never)) if share > 0]


def _key(parts: Mapping[str, Task], generators: Mapping[str, GeneratorTask]) -> str:
    """Return the digest of all that a measurement depends on."""
    runtime = next(iter(parts.values())).runtime
    shapes = {shape: (len(task.rows), _mixes_by(task, generators)) for shape, task in parts.items()}
    return digest({"schema": _SCHEMA, "facts": environment.facts(runtime, prepare_device(runtime)), "shapes": shapes})


def _mixes_by(task: Task, generators: Mapping[str, GeneratorTask]) -> Any:
    """Return the settings of the generator that a training needs, None where it needs none."""
    if isinstance(task, GeneratorTask) or task.generator_url is None:
        return None
    if task.generator_url in generators:
        return dump(generators[task.generator_url].settings)
    return read_run(Store(task.generator_url))["identity"]["settings"]


def _read(cache: Store, path: str) -> Probe | None:
    text = cache.get(path)
    if text is None:
        return None
    try:
        return _PROBE.validate_json(text)
    except ValidationError:
        _log.warning("%s is damaged; the trainings are measured again", cache.path(path))
        return None


def _measured(
    parts: Mapping[str, Task],
    generators: Mapping[str, GeneratorTask],
    progress: Callable[[str, int, int], None],
) -> Probe:
    values: dict[str, Mapping[str, Any]] = {}
    progress(MEASURING, 0, len(parts))
    with tempfile.TemporaryDirectory(prefix="hydramix-measured-") as folder, Stop() as stop:
        jobs: dict[str, Any] = {
            shape: Measurement(task.name, task, _needed(task, generators), f"{folder}/{shape}")
            for shape, task in parts.items()
        }
        for ended in run_tasks(jobs, {}, 1, stop, lambda key, done, total: None):
            if ended.result is None:
                raise UserError(_failed(parts[ended.key], ended.error or "no reason given"))
            value = ended.result
            if "killed" in value:
                raise UserError(_no_memory(parts[value["killed"]], "its process was killed"))
            if "error" in value:
                raise UserError(_no_memory(parts[ended.key], value["error"]))
            values[ended.key] = value
            progress(MEASURING, len(values), len(parts))
    last = list(values.values())
    on_device = [value["device_bytes"] for value in last if value["device_bytes"] is not None]
    return Probe(
        paces={shape: Pace(value["step_seconds"], value["evaluation_seconds"]) for shape, value in values.items()},
        memory_bytes=max(value["memory_bytes"] for value in last),
        device_bytes=max(on_device, default=None),
        device_total_bytes=last[0]["device_total_bytes"],
    )


def _needed(task: Task, generators: Mapping[str, GeneratorTask]) -> GeneratorTask | None:
    return generators.get(task.generator_url or "") if isinstance(task, ClassifierTask) else None


def _failed(task: Task, error: str) -> str:
    return (
        f"the training '{task.name}' failed when its cost was measured, as it would in the sweep: {error}; mend its "
        "settings, or leave it out"
    )


def _no_memory(task: Task, error: str) -> str:
    key = "classifier" if isinstance(task, ClassifierTask) else "generators.NAME"
    return (
        f"memory ran out when the cost of the training '{task.name}' was measured ({error}): its batch is "
        f"{task.settings.batch}, runtime.micro_batch {task.runtime.micro_batch or 'null'}; lower {key}.batch, set "
        f"runtime.micro_batch, or take a smaller {key}.network"
    )
