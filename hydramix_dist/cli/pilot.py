"""The command `hydramix pilot`."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hydramix_dist.cli.console import LiveDisplay, error_console, print_json, print_line
from hydramix_dist.cli.options import settings_file, whole_numbers
from hydramix_dist.config.load import build, override, read_yaml
from hydramix_dist.config.schema import GeneratorSettings, PilotSettings
from hydramix_dist.errors import UserError, nearest
from hydramix_dist.evaluation.results import PilotResults, load_results
from hydramix_dist.orchestration.pilot import find_finished, read_stored, run_pilot, what_is_compared
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest


def pilot_command(
    data: str | None,
    preset: str,
    shots: str | None,
    seeds: str | None,
    arms: str | None,
    mix: int | None,
    assignments: list[str],
    workers: int | None,
    address: str | None,
    out: str | None,
    resume: bool,
    json_: bool,
) -> int:
    """Run the pilot and show its answer; return 0, or 1 where trainings failed."""
    if resume:
        if out is None:
            raise UserError("--resume needs --out, the folder of the pilot to go on with")
        if (data, shots, seeds, arms, mix) != (None,) * 5 or assignments:
            raise UserError(
                "--resume takes data and settings from --out; leave away all but --out, --workers, --address and --json"
            )
        store = Store(out)
        tree, preset_name, data = read_stored(store)
        tree = override(tree, [] if workers is None else [f"distributed.workers={workers}"])
        settings = build(PilotSettings, tree, store.path("run.json"))
    else:
        if workers is not None:
            assignments = [*assignments, f"distributed.workers={workers}"]
        settings = read_pilot(preset, shots, seeds, arms, mix, assignments)
        data = None if data is None else Store(data).url  # whole: a run goes on from any working folder
        preset_name = preset
        store = Store(out or _default_out(data, preset, settings))
    console = error_console()
    if find_finished(store, data, settings):
        print_line(console, f"finished already; the report is {store.path('report.html')}")
        return _show(load_results(store), store, json_)
    print_line(console, f"writing to {store.url}")
    with LiveDisplay(console) as display:
        outcome = run_pilot(data, settings, preset_name, store, display, address)
    _show(outcome.results, store, json_)
    return 1 if outcome.failed else 0


def read_pilot(
    preset: str, shots: str | None, seeds: str | None, arms: str | None, mix: int | None, assignments: list[str]
) -> PilotSettings:
    """Return the settings of a preset or file with the options laid over it. Raises UserError for wrong ones."""
    path = settings_file("--preset", "pilot", preset)
    ready = read_yaml(path)
    tree: dict[str, Any] = override(ready, assignments)
    _check_new_generators(tree, ready)
    _check_new_arms(tree, ready)
    if shots is not None:
        tree["shots"] = whole_numbers("--shots", shots)
    if seeds is not None:
        given = whole_numbers("--seeds", seeds)
        if len(given) == 1 and "," not in seeds:
            if given[0] < 1:
                raise UserError(f"--seeds {seeds} is no number of seeds; give 1 or more, or a list such as 0,1,2")
            given = list(range(given[0]))
        tree["seeds"] = given
    if arms is not None:
        tree["arms"] = _chosen_arms(tree.get("arms", {}), arms)
    if mix is not None:
        _set_mix(tree, mix)
    return build(PilotSettings, tree, str(path) if tree == ready else f"{path} with the options given")


def _check_new_generators(tree: dict[str, Any], ready: dict[str, Any]) -> None:
    """Raise UserError for a generator that --set has made and no arm uses: a slip in its name, without effect."""
    arms = tree.get("arms")
    used = {arm.get("generator") for arm in arms.values() if isinstance(arm, dict)} if isinstance(arms, dict) else set()
    for name in tree.get("generators") or {}:
        if name not in (ready.get("generators") or {}) and name not in used:
            known = [str(generator) for generator in used if generator]
            raise UserError(
                f"--set generators.{name}: no arm uses a generator of that name{nearest(str(name), known)}; there are "
                f"{', '.join(sorted(known)) or 'none'}, and arms.ARM.generator={name} makes an arm use it"
            )


def _check_new_arms(tree: dict[str, Any], ready: dict[str, Any]) -> None:
    """Raise UserError for an arm that --set has made by giving classifier settings to a name that is not there."""
    known = list(ready.get("arms") or {})
    for name, arm in (tree.get("arms") or {}).items():
        # An arm that is meant says how it differs; one with nothing but classifier settings was meant for another.
        if name not in known and isinstance(arm, dict) and set(arm) <= {"classifier"}:
            raise UserError(
                f"--set arms.{name}: there is no arm of that name{nearest(str(name), known)}; there are "
                f"{', '.join(known)}. A new arm needs its augmentation, as arms.{name}.augmentation=basic"
            )


def _chosen_arms(arms: dict[str, Any], text: str) -> dict[str, Any]:
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in arms:
            raise UserError(f"--arms '{name}' is not an arm{nearest(name, arms)}; there are {', '.join(arms)}")
    return {name: arms[name] for name in wanted}


def _set_mix(tree: dict[str, Any], count: int) -> None:
    """Set K in every generator whose mask is not ChimeraMix's, which is defined for two images.

    A group that would be too small for it becomes the next larger one that divides the batch.
    """
    for generator in tree.get("generators", {}).values():
        mix = generator.setdefault("mix", {})
        if str(mix.get("mask", {}).get("kind", "")).startswith("chimera"):
            continue
        mix["count"] = count
        group, batch = generator.get("group"), generator.get("batch", GeneratorSettings().batch)
        if isinstance(group, int) and isinstance(batch, int) and group < count:
            generator["group"] = next((size for size in range(count, batch + 1) if batch % size == 0), None)


def _default_out(data: str | None, preset: str, settings: PilotSettings) -> str:
    """Return a folder that the same call finds again and another call does not meet."""
    name = "photo-patches" if data is None else Path(data).name.partition(".")[0]
    label = Path(preset).name.partition(".")[0]
    return f"runs/{label}-{name}-{digest([data, what_is_compared(settings)])[:8]}"


def _show(results: PilotResults, store: Store, json_: bool) -> int:
    if json_:
        print_json(
            json.dumps({"run": store.url, "report": store.path("report.html"), **results.model_dump(mode="json")})
        )
        return 0
    console = Console()
    console.print()
    for sentence in results.verdict.sentences:
        print_line(console, sentence)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("arm", "N", "seeds", "accuracy", "spread", "seconds a seed"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for summary in results.summaries:
        table.add_row(
            summary.arm,
            str(summary.shots),
            str(summary.n),
            f"{100 * summary.mean:.1f} %",
            "-" if summary.sd is None else f"{100 * summary.sd:.1f}",
            f"{summary.seconds + summary.generator_seconds:.0f}",
        )
    console.print()
    console.print(table)
    console.print()
    print_line(console, f"report    {store.path('report.html')}")
    print_line(console, f"numbers   {store.path('results.json')}")
    print_line(console, f"settings  {store.path('run.json')}")
    if results.missing:
        print_line(console, f"go on     hydramix pilot --resume --out {store.url}")
    else:
        print_line(console, f"use it    hydramix predict {store.url} IMAGES")
    return 0
