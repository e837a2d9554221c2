"""A training in its run folder: begun or gone on with, resumed from its newest checkpoint, concluded once."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from hydramix_dist.checkpoint import Checkpoint, EngineState, load, load_newest
from hydramix_dist.store.run import RunFolder, read_json
from hydramix_dist.training import environment
from hydramix_dist.training.group import on_first, together
from hydramix_dist.training.loop import Context, Outcome, Training, run


def train_in_folder(
    kind: str,
    identity: Mapping[str, Any],
    data_url: str,
    context: Context,
    build: Callable[[Mapping[str, EngineState]], Training],
    conclude: Callable[[Any, Outcome], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the training's `result.json`: `conclude`'s values, seconds, CPU seconds, images seen and peak memory.

    Rank 0 alone writes; all ranks return and raise alike. A finished training returns at once. Raises Interrupted when
    asked to stop, NonFiniteLossError, and UserError where the folder holds another run.
    """
    group, store = context.group, context.store
    facts = environment.facts(context.runtime, group.device) | group.description | {"data_url": data_url}
    folder = on_first(group, lambda: RunFolder.begin(store, kind, identity, facts))
    finished = on_first(group, lambda: read_json(store, "result.json"))
    if finished is not None:
        on_first(group, folder.succeed)
        return finished
    environment.reset_peak_memory(group.device)
    try:
        resumed = _resume(context)
        training = build({} if resumed is None else resumed.engines)
        outcome = run(training, context, resumed)
        result = {
            "seconds": outcome.seconds,
            "cpu_seconds": outcome.cpu_seconds,
            "images_seen": training.length.steps * training.length.batch,
            "peak_memory_bytes": environment.peak_memory_bytes(group.device),
            **conclude(training, outcome),
        }
        text = (json.dumps(result, indent=2) + "\n").encode()
        on_first(group, lambda: store.put("result.json", text))
    except BaseException as error:
        if group.rank == 0:
            folder.fail_with(error)
        raise
    on_first(group, folder.succeed)
    return result


def _resume(context: Context) -> Checkpoint | None:
    """Return the newest whole checkpoint, the same one on all ranks: rank 0 chooses."""
    group, store = context.group, context.store
    newest = together(group, lambda: load_newest(store) if group.rank == 0 else None)
    images = group.exchange(None if newest is None else newest.images)[0]
    if images is None:
        return None
    return together(group, lambda: newest if group.rank == 0 else load(store, images))
