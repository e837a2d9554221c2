"""A training in its run folder: begun or gone on with, resumed from its newest checkpoint, concluded once."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hydramix_dist.checkpoint import EngineState, load_newest
from hydramix_dist.store.run import RunFolder, read_json
from hydramix_dist.training import environment
from hydramix_dist.training.loop import Context, Length, Outcome, Training, prepare_device, run


def train_in_folder(
    kind: str,
    identity: Mapping[str, Any],
    data_url: str,
    context: Context,
    length: Length,
    build: Callable[[torch.device, Mapping[str, EngineState]], Training],
    conclude: Callable[[Any, Outcome], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the training's `result.json`: `conclude`'s values, seconds, images seen and peak memory.

    A finished training returns at once. Raises Interrupted when asked to stop, NonFiniteLossError, and UserError where
    the folder holds another run.
    """
    device = prepare_device(context.runtime)
    facts = environment.facts(context.runtime, device) | {"data_url": data_url}
    folder = RunFolder.begin(context.store, kind, identity, facts)
    if context.store.exists("result.json"):
        result = read_json(context.store, "result.json")
        folder.succeed()
        return result
    environment.reset_peak_memory(device)
    try:
        resumed = load_newest(context.store)
        training = build(device, {} if resumed is None else resumed.engines)
        outcome = run(training, length, context, resumed)
        result = {
            "seconds": outcome.seconds,
            "images_seen": length.steps * length.batch,
            "peak_memory_bytes": environment.peak_memory_bytes(device),
            **conclude(training, outcome),
        }
        context.store.put("result.json", (json.dumps(result, indent=2) + "\n").encode())
    except BaseException as error:
        folder.fail(str(error) or type(error).__name__)
        raise
    folder.succeed()
    return result
