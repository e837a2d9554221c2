"""The commands `hydramix sweep` and `hydramix sweep status|resume|results`."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hydramix_dist.cli.console import error_console, print_json, print_line, spoken
from hydramix_dist.cli.options import settings_file
from hydramix_dist.cli.sweep_display import SweepLive, best_table
from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build, override, read_yaml
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.sweep_results import DataPart, SweepResults, TrialLine, save_sweep_results
from hydramix_dist.orchestration.sweep.run import Sweep, run_sweep
from hydramix_dist.orchestration.sweep.standing import Standing, read_settings, read_standing, results_of
from hydramix_dist.report.sweep_page import write_sweep_page
from hydramix_dist.report.tables import cells, marks
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest, read_run


def run_command(
    config: str,
    assignments: list[str],
    out: str | None,
    shared: str | None,
    address: str | None,
    dry_run: bool,
    json_: bool,
) -> int:
    """Run a sweep, or go on with it, and show its table; return 0, or 1 where trainings failed or are left."""
    settings, whole, path = read_sweep(config, assignments)
    store = Store(out or f"runs/sweep-{path.stem}-{_label(settings)}")
    sweep = Sweep(settings, whole, store, Store(shared) if shared else _beside(store), str(path), address)
    if dry_run:
        from hydramix_dist.cli.sweep_forecast import show_forecast

        return show_forecast(sweep, json_)
    return _run(sweep, json_, only_failed=False)


def read_sweep(config: str, assignments: list[str]) -> tuple[SweepSettings, PilotSettings, Path]:
    """Return the settings of CONFIG with the assignments laid over them, these with the arms of all axes, and the file.

    Raises UserError for wrong ones.
    """
    path = settings_file("CONFIG", "sweep", config)
    tree = override(read_yaml(path), assignments)
    if isinstance(tree.get("data"), str):
        tree["data"] = [tree["data"]]
    if isinstance(tree.get("data"), list):  # whole: a sweep goes on from any working folder
        tree["data"] = [Store(source).url if isinstance(source, str) else source for source in tree["data"]]
    source = f"{path} with the options given" if assignments else str(path)
    settings = build(SweepSettings, tree, source)
    return settings, expanded(settings, source), path


def resume_command(name: str, assignments: list[str], address: str | None, only_failed: bool, json_: bool) -> int:
    """Go on with a sweep, with the settings it has; limits and the like may be changed."""
    store = find_sweep(name)
    settings, whole = read_settings(store, assignments)
    facts = read_run(store)["facts"]
    sweep = Sweep(settings, whole, store, Store(facts["shared"]), facts["source"], address)
    return _run(sweep, json_, only_failed=only_failed)


def status_command(name: str, json_: bool) -> int:
    """Show where a sweep stands, from its folder alone."""
    standing = read_standing(find_sweep(name))
    if json_:
        lines = [{**line.facts, "state": line.state, "error": line.error} for line in standing.lines.values()]
        counts = dict(standing.counts)
        print_json(json.dumps({"run": standing.store.url, "state": standing.state, "counts": counts, "trials": lines}))
        return 0
    console = Console()
    print_line(console, f"{standing.store.url}: {standing.state}")
    print_line(console, _counted(standing))
    if standing.generators_to_begin:
        print_line(console, f"and {standing.generators_to_begin} generators that are still to begin")
    if standing.candidates_to_ask:
        print_line(console, f"and {standing.candidates_to_ask} trainings of settings that are still to be drawn")
    recent = [line.changed for line in standing.lines.values() if line.changed]
    if recent:
        print_line(console, f"last word {spoken(max(0.0, time.time() - max(recent)))} ago")
    console.print(best_table([(line.facts, line.state, line.result) for line in standing.lines.values()]))
    _show_failed(console, standing)
    return 0


def results_command(name: str, select: str | None, arm: str | None, shots: int | None, json_: bool) -> int:
    """Write a sweep's tables and page from what is finished, show the table, and the best setting as settings files."""
    store = find_sweep(name)
    standing = read_standing(store)
    results = results_of(standing)
    save_sweep_results(store, results)
    write_sweep_page(store, results)
    if select is not None:
        from hydramix_dist.orchestration.sweep.select import write_selected

        for line in write_selected(standing, results, Store(select), arm, shots):
            print_line(error_console(), line)
    elif arm is not None or shots is not None:
        raise UserError("--arm and --shots say what --select writes; give --select FOLDER with them")
    if json_:
        print_json(json.dumps({"run": store.url, **results.model_dump(mode="json")}))
        return 0
    _show(standing, results)
    return 0


def find_sweep(name: str) -> Store:
    """Return the folder of a sweep by its path, its URL, or its name under runs/. Raises UserError for no sweep."""
    for place in (name, f"runs/{name}"):
        store = Store(place)
        if store.get("run.json") is not None:
            return store
    raise UserError(
        f"there is no sweep '{name}': neither {Store(name).url} nor {Store(f'runs/{name}').url} has a run.json; give "
        "the folder that the sweep's command named"
    )


def _run(sweep: Sweep, json_: bool, *, only_failed: bool) -> int:
    console = error_console()
    print_line(console, f"writing to {sweep.out.url}; generators and imported images to {sweep.shared.url}")
    with SweepLive(console) as display:
        standing = run_sweep(sweep, display, only_failed=only_failed)
    results = results_of(standing)
    save_sweep_results(sweep.out, results)
    write_sweep_page(sweep.out, results)
    if json_:
        print_json(json.dumps({"run": sweep.out.url, **results.model_dump(mode="json")}))
    else:
        _show(standing, results)
    return 1 if {"failed", "left", "pending"} & set(standing.counts) else 0


def _show(standing: Standing, results: SweepResults) -> None:
    console = Console()
    for part in results.parts:
        console.print()
        for sentence in part.verdict.sentences:
            print_line(console, f"{part.name}: {sentence}" if len(results.parts) > 1 else sentence)
        console.print()
        _show_table(console, part, results.trials)
    console.print()
    print_line(console, _counted(standing))
    _show_failed(console, standing)
    print_line(console, f"page      {standing.store.path('results.html')}")
    print_line(console, f"tables    {standing.store.path('results.md')}, results.csv and results.tex beside it")
    print_line(console, f"numbers   {standing.store.path('results.json')}")
    print_line(console, f"settings  {standing.store.path('run.json')}")
    counts = standing.counts
    if counts["pending"] or counts["left"]:
        print_line(console, f"go on     hydramix sweep resume {standing.store.url}")
    elif counts["failed"]:
        print_line(console, f"again     hydramix sweep resume {standing.store.url} --only-failed")
    else:
        print_line(console, f"use it    hydramix sweep results {standing.store.url} --select FOLDER")


def _show_table(console: Console, part: DataPart, trials: Sequence[TrialLine]) -> None:
    found = cells(part, trials)
    letters = marks(found)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("accuracy, %")
    for shots in part.shots:
        table.add_column(f"N={shots}", justify="right")
    for arm in part.arms:
        row = [found[arm.name, shots] for shots in part.shots]
        table.add_row(Text(arm.name), *(Text(" ".join([cell.text, *(letters[n] for n in cell.notes)])) for cell in row))
    console.print(table)
    for note, mark in letters.items():
        print_line(console, f"{mark}: {note}")


def _counted(standing: Standing) -> str:
    counts = standing.counts
    words = {"early": "stopped early", "left": "left, for a limit was reached"}
    states = ("done", "running", "pending", "early", "failed", "left")
    return f"{len(standing.lines)} trainings: " + ", ".join(
        f"{counts[state]} {words.get(state, state)}" for state in states if counts[state]
    )


def _show_failed(console: Console, standing: Standing) -> None:
    failed = [line for line in standing.lines.values() if line.state == "failed"]
    for line in failed[:20]:
        tried = f" after {line.attempts} attempts" if line.attempts else ""
        print_line(console, f"failed: {line.facts['name']}{tried}: {line.error}")
    if len(failed) > 20:
        print_line(console, f"and {len(failed) - 20} more; `hydramix sweep status --json` lists all")


def _label(settings: SweepSettings) -> str:
    from hydramix_dist.orchestration.sweep.run import identity_of

    name = "photo-patches" if settings.data is None else Path(settings.data[0]).name.partition(".")[0]
    return f"{name}-{digest(identity_of(settings))[:8]}"


def _beside(store: Store) -> Store:
    if re.fullmatch(r"[a-z0-9]+://[^/]+", store.url):
        raise UserError(f"--out {store.url} is a whole bucket; give a folder in it, or --shared with it")
    return Store(f"{store.url.rpartition('/')[0]}/shared")
