"""What `hydramix sweep CONFIG --dry-run` shows."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console

from hydramix_dist.cli.console import LiveDisplay, error_console, print_json
from hydramix_dist.orchestration.preflight import shown
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
    more = len(outlook.trials) - _LISTED
    for line in [
        *_listed(outlook),
        *([f"and {more} more; --json lists all"] if more > 0 else []),
        "",
        *lines(outlook.forecast),
        *_reserved(outlook),
    ]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _reserved(outlook: Outlook) -> Iterator[str]:
    yield f"each reserves {shown(outlook.resources)}"
    share, seconds = outlook.resources.get("GPU", 0.0), outlook.forecast.total.seconds
    if share and seconds is not None:
        yield f"expected: {share * seconds / 3600:.1f} GPU-hours, if those that share a GPU do not slow each other"


def _listed(outlook: Outlook) -> Iterator[str]:
    """Yield a line for each training in their order, and of a generator how many trainings use it."""
    users = Counter(trial.needs for trial in outlook.trials)
    several = len({trial.data for trial in outlook.trials}) > 1
    names = [
        (f"{trial.data}: " if several else "")
        + trial.task.name
        + ("" if trial.index is None else f", candidate {trial.index}")
        for trial in outlook.trials[:_LISTED]
    ]
    width = max(map(len, names))
    for name, trial in zip(names, outlook.trials, strict=False):
        if trial.kind == "generator":
            yield f"{name:<{width}}  {_short(trial.key)}, used by {users[trial.key]}"
        else:
            yield f"{name:<{width}}  needs {_short(trial.needs)}" if trial.needs else name


def _short(key: str) -> str:
    return key.removeprefix("generators/")[:8]
