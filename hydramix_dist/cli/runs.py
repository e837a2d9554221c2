"""The commands `hydramix runs list|delete`."""

import json
import re
import shlex
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from hydramix_dist.cli.console import error_console, print_json, print_line, spoken
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.removal import Order, Plan, carry_out, plan_named, plan_older
from hydramix_dist.orchestration.runs import Run, find_runs
from hydramix_dist.store import Store

_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_UNITS, _STEP = ("B", "KiB", "MiB", "GiB", "TiB"), 1024
_ENDLESS = 10_000  # columns


def list_command(place: str, json_: bool) -> int:
    """Show the runs below a folder or URL; return 0."""
    store = Store(place)
    runs = find_runs(store)
    if json_:
        print_json(json.dumps({"place": store.url, "runs": [_plain(run) for run in runs]}))
        return 0
    console = Console()
    if not runs:
        print_line(console, f"{store.url} holds no run")
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("run", "kind", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("last word", "size", "checkpoints"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("needed by", overflow="fold")
    for run in runs:
        age, count = _age(max(0.0, time.time() - run.word)), sum(map(len, run.checkpoints.values()))
        users = ", ".join((*run.users, *(f"{name}?" for name in run.doubts)))
        row = (run.name, run.kind, run.state, age, size(run.bytes), str(count), users)
        table.add_row(*map(Text, row))
    if not console.is_terminal:  # in a pipe, a run is a line
        Console(width=_ENDLESS).print(table)
    else:
        console.print(table)
    for run in runs:
        if run.state == "damaged":
            print_line(console, f"damaged: {run.reason}")
        elif run.state == "deleted":
            print_line(console, f"half deleted: hydramix runs delete {run.store.url} --yes ends it")
    print_line(
        console, f"{len(runs)} run{'s' * (len(runs) > 1)}, {size(sum(run.bytes for run in runs))} in {store.url}"
    )
    return 0


def delete_command(named: list[str], older_than: str | None, whole: bool, yes: bool, json_: bool) -> int:
    """Show what would be deleted, or delete it; return 0, or 1 where something could not be deleted."""
    if whole and older_than is None:
        raise UserError("--whole goes with --older-than; runs that are named are deleted as a whole without it")
    if not all(named):
        raise UserError("an empty name would be this folder: if it is meant, give it as '.'")
    stores = [Store(name) for name in named]
    plan = plan_named(stores) if older_than is None else _plan_older(stores, _age_of(older_than), whole)
    console = Console()
    failed = _carry_out(plan) if yes else []
    if json_:
        _print_plan(plan, failed, yes)
        return 1 if failed else 0
    _show(console, plan, failed, yes)
    if plan.orders and not yes:
        options = [] if older_than is None else ["--older-than", older_than, *(["--whole"] if whole else [])]
        words = shlex.join([*(store.url for store in stores), *options])
        print_line(console, f"nothing is deleted yet; to do it: hydramix runs delete {words} --yes")
    return 1 if failed else 0


def size(count: float) -> str:
    """Return a number of bytes as "512 B", "3.4 MiB" or "120 GiB"."""
    power = 0
    while count >= _STEP and power < len(_UNITS) - 1:
        count, power = count / _STEP, power + 1
    return f"{count:.0f} {_UNITS[power]}" if power == 0 or count >= 100 else f"{count:.1f} {_UNITS[power]}"


def _plan_older(places: Sequence[Store], seconds: float, whole: bool) -> Plan:
    """Look for what may go, which reads the newest checkpoint of each training."""
    with _bars(error_console()) as bars:
        bar = bars.add_task("reading checkpoints", total=None)

        def move(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        return plan_older(places, seconds, whole=whole, progress=move)


def _carry_out(plan: Plan) -> list[tuple[Order, str]]:
    """Delete; return what could not be, with the reasons."""
    failed = []
    console = error_console()
    with _bars(console) as bars:
        bar = bars.add_task("deleting", total=len(plan.orders))
        for order, reason in carry_out(plan):
            bars.advance(bar)
            if reason is not None:
                failed.append((order, reason))
            elif not console.is_terminal:
                print_line(console, f"deleted {_what(order)}")
    return failed


def _bars(console: Console) -> Progress:
    return Progress(console=console, disable=not console.is_terminal, transient=True)


def _show(console: Console, plan: Plan, failed: Sequence[tuple[Order, str]], done: bool) -> None:
    gone = [order for order in plan.orders if order not in [order for order, _ in failed]]
    for order in gone:
        print_line(console, f"{'deleted' if done else 'would delete'}  {size(order.bytes):>9}  {_what(order)}")
    for order, reason in failed:
        print_line(console, f"not deleted: {order.run.name}: {reason}")
    for run, reason in plan.kept:
        print_line(console, f"stays: {run.name}: {reason}")
    freed = size(sum(order.bytes for order in gone))
    print_line(console, f"{freed} freed" if done else f"{freed} would be freed")


def _what(order: Order) -> str:
    run = order.run
    if order.whole:
        return f"{run.store.url} ({run.kind}, {run.state})"
    count = len(order.checkpoints)
    return f"{count} checkpoint{'s' if count > 1 else ''} of {run.store.url}; the newest whole ones stay"


def _print_plan(plan: Plan, failed: Sequence[tuple[Order, str]], done: bool) -> None:
    reasons = {id(order): reason for order, reason in failed}
    orders = [
        {
            "run": order.run.store.url,
            "whole": order.whole,
            "checkpoints": ["/".join(filter(None, named)) for named in order.checkpoints],
            "bytes": order.bytes,
            "deleted": done and id(order) not in reasons,
            "error": reasons.get(id(order)),
        }
        for order in plan.orders
    ]
    kept = [{"run": run.store.url, "reason": reason} for run, reason in plan.kept]
    print_json(json.dumps({"orders": orders, "kept": kept}))


def _plain(run: Run) -> dict[str, object]:
    return {
        "run": run.store.url,
        "name": run.name,
        "kind": run.kind,
        "state": run.state,
        "reason": run.reason,
        "last_word": run.word,
        "bytes": run.bytes,
        "objects": len(run.entries),
        "checkpoints": sum(map(len, run.checkpoints.values())),
        "needed_by": list(run.users),
        "may_be_needed_by": list(run.doubts),
    }


def _age_of(text: str) -> float:
    """Return the seconds of "12h", "30d" or "8w". Raises UserError for another text."""
    match = re.fullmatch(r"(\d+)([hdw])", text)
    if match is None:
        raise UserError(f"--older-than '{text}' is no age; give hours, days or weeks, such as 12h, 30d or 8w")
    return int(match[1]) * float(_SECONDS[match[2]])


def _age(seconds: float) -> str:
    return spoken(seconds) if seconds < 2 * _SECONDS["d"] else f"{seconds / _SECONDS['d']:.0f} d"
