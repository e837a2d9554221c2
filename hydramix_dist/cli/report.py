"""The command `hydramix report`."""

import json
from collections.abc import Sequence

from hydramix_dist.cli.console import print_json
from hydramix_dist.evaluation.results import load_results
from hydramix_dist.report.page import REPORT_FILE, compare_runs, render_report, write_report
from hydramix_dist.report.sheets import load_sheets
from hydramix_dist.store import Store


def report_command(runs: Sequence[str], out: str | None, json_: bool) -> int:
    """Write the page of one pilot (into its own folder without `out`), or a comparing page of several; return 0."""
    stores = [Store(run) for run in runs]
    results = [load_results(store) for store in stores]
    if len(stores) > 1:
        page = _put(Store(out or "."), "compare.html", compare_runs(results))
    elif out is not None:
        page = _put(Store(out), REPORT_FILE, render_report(results[0], load_sheets(stores[0]), stores[0].path()))
    else:
        write_report(stores[0], results[0], load_sheets(stores[0]))
        page = stores[0].path(REPORT_FILE)
    if json_:
        print_json(json.dumps({"page": page, "verdicts": [r.verdict.model_dump(mode="json") for r in results]}))
        return 0
    for result in results:
        print(f"{result.name}: {result.verdict.sentences[0]}")
    print(f"page {page}")
    return 0


def _put(store: Store, name: str, page: str) -> str:
    store.put(name, page.encode())
    return store.path(name)
