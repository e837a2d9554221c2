"""What `hydramix sweep CONFIG --dry-run` shows."""

import json
from collections import Counter
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from hydramix_dist.cli.console import LiveDisplay, error_console, print_json
from hydramix_dist.orchestration.sweep.forecast import lines
from hydramix_dist.orchestration.sweep.outlook import Outlook, look_ahead
from hydramix_dist.orchestration.sweep.run import Sweep

_LISTED = 30  # trainings; more are listed by --json


def show_forecast(sweep: Sweep, json_: bool) -> int:
    """Show a sweep's trainings, the generators that they share, and the expected cost; return 0."""
    with LiveDisplay(error_console()) as display:
        outlook = look_ahead(sweep, display)
    if json_:
        trials = [{**trial.facts, "needs": trial.needs} for trial in outlook.trials]
        print_json(json.dumps({"run": sweep.out.url, "trials": trials, "forecast": asdict(outlook.forecast)}))
        return 0
    console = Console()
    console.print(_trials(outlook))
    if len(outlook.trials) > _LISTED:
        console.print(f"and {len(outlook.trials) - _LISTED} more; --json lists all", highlight=False)
    console.print()
    for line in lines(outlook.forecast):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _trials(outlook: Outlook) -> Table:
    """Return a table of the trainings in their order; of a generator: how many trainings use it."""
    users = Counter(trial.needs for trial in outlook.trials)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("training", "data", "kind", "needs"):
        table.add_column(heading)
    for trial in outlook.trials[:_LISTED]:
        need = trial.needs or (f"(used by {users[trial.key]})" if trial.kind == "generator" else "")
        name = trial.task.name if trial.index is None else f"{trial.task.name}, candidate {trial.index}"
        table.add_row(name, trial.data, trial.kind, need)
    return table
