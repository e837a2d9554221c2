"""The command `hydramix train`."""

import json
from pathlib import Path
from typing import Any

from hydramix_dist.cli.console import TrainingDisplay, error_console, print_json
from hydramix_dist.cli.options import settings_file
from hydramix_dist.config.load import build, dump, override, read_yaml
from hydramix_dist.config.training import ClassifierTrainingSettings, GeneratorTrainingSettings
from hydramix_dist.orchestration.account import WorkersLostError
from hydramix_dist.orchestration.train import TrainSettings, train
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest
from hydramix_dist.training.loop import NonFiniteLossError

_MODELS: dict[str, type[TrainSettings]] = {
    "generator": GeneratorTrainingSettings,
    "classifier": ClassifierTrainingSettings,
}


def train_command(
    kind: str,
    config: str,
    assignments: list[str],
    workers: int | None,
    address: str | None,
    out: str | None,
    json_: bool,
) -> int:
    """Train one model and show what came of it; return 0, or 1 where the training failed."""
    if workers is not None:
        assignments = [*assignments, f"distributed.workers={workers}"]
    settings = read_training(kind, config, assignments)
    store = Store(out or _default_out(kind, config, settings))
    console = error_console()
    console.print(f"writing to {store.url}", highlight=False, markup=False, soft_wrap=True)
    try:
        with TrainingDisplay(console) as display:
            result = train(settings, store, address, display)
    except (NonFiniteLossError, WorkersLostError) as error:
        console.print(f"failed: {error}", highlight=False, markup=False, soft_wrap=True)
        return 1
    if json_:
        print_json(json.dumps({"run": store.url, "kind": kind, **result}))
    else:
        _show(kind, config, settings, store, result)
    return 0


def read_training(kind: str, config: str, assignments: list[str]) -> TrainSettings:
    """Return the settings of CONFIG with the assignments laid over them. Raises UserError for wrong ones."""
    path = settings_file("CONFIG", kind, config)
    tree = override(read_yaml(path), assignments)
    for key in ("data", "generator_run"):  # whole: a run goes on from any working folder
        if isinstance(tree.get(key), str):
            tree[key] = Store(tree[key]).url
    return build(_MODELS[kind], tree, f"{path} with the options given" if assignments else str(path))


def what_is_trained(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that make a training this one, as its folder's record has them: all but the machines'."""
    return {key: value for key, value in dump(settings).items() if key not in ("runtime", "distributed")}


def _default_out(kind: str, config: str, settings: TrainSettings) -> str:
    """Return a folder that the same training finds again, on however many workers, and another does not meet."""
    name = "photo-patches" if settings.data is None else Path(settings.data).name.partition(".")[0]
    return f"runs/{kind}-{Path(config).name.partition('.')[0]}-{name}-{digest(what_is_trained(settings))[:8]}"


def _show(kind: str, config: str, settings: TrainSettings, store: Store, result: dict[str, Any]) -> None:
    print(f"{result['images_seen']} images seen in {result['seconds']:.1f} s of training")
    if kind == "classifier":
        print(f"accuracy  {100 * result['test_curve'][-1][1]:.1f} % of {len(result['predictions'])} test images")
    print(f"run       {store.url}")
    print(f"settings  {store.path('run.json')}")
    print(f"inside    hydramix checkpoint show {store.url}")
    if kind == "generator":
        same = "" if settings.data is None else f" data={settings.data}"
        same += f" shots={settings.shots} seed={settings.seed}"
        same += f" validation={settings.validation}" if settings.validation else ""
        name = "CONFIG" if config.endswith((".yaml", ".yml")) else config
        print(f"use it    hydramix train classifier {name}{same} generator_run={store.url}")
    else:
        print(f"use it    hydramix predict {store.url} IMAGES")
