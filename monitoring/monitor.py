"""Prometheus and Alertmanager for the trainings of this machine, without containers: `make monitor`.

They run with the configuration and rules that lie beside this file until Ctrl-C. A third, small server shows the run
folders, for links of dashboards to reports, and prints the alerts that Alertmanager sends.
"""

import argparse
import contextlib
import functools
import http.server
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import HOST, Alertmanager, Prometheus, alertmanager_config, free_port, prometheus_files

from hydramix_dist.config.metrics import metrics_settings
from hydramix_dist.errors import UserError

# Where each is looked for first; boards name the last, and Grafana's data source the first.
PROMETHEUS_PORT, ALERTMANAGER_PORT, PAGES_PORT = 9090, 9093, 8000
METRICS_PORT = 9464  # in the command that is suggested


def main() -> int:
    """Run the servers until Ctrl-C or SIGTERM; return 0, or 2 where one of them cannot run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--folder", type=Path, default=Path("~/.cache/hydramix/monitoring"), help="for what they store"
    )
    options.add_argument("--runs", type=Path, default=Path("runs"), help="folder whose files are shown")
    options.add_argument(
        "--cors", action="store_true", help="let any page in a browser here read the metrics; for pictures of boards"
    )
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a script began it in the background
    try:
        with contextlib.ExitStack() as stack:
            _run(stack, chosen.folder.expanduser().resolve(), chosen.runs.expanduser().resolve(), cors=chosen.cors)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(stack: contextlib.ExitStack, folder: Path, runs: Path, *, cors: bool) -> None:
    pages = stack.enter_context(_pages(runs))
    alertmanager = _alertmanager(folder / "alertmanager", pages)
    if alertmanager is not None:
        stack.enter_context(alertmanager)

    settings = metrics_settings()
    targets = Path(settings.targets).expanduser().absolute()
    targets.mkdir(parents=True, exist_ok=True)  # Prometheus sees at once what changes in a folder that is there
    files = prometheus_files(targets=targets, alertmanager=alertmanager.address if alertmanager else None)
    prometheus = Prometheus(folder / "prometheus", files, port=free_port(PROMETHEUS_PORT), cors=cors)
    stack.enter_context(prometheus)

    print(f"metrics    {prometheus.page('graph')}{_moved(prometheus.url, PROMETHEUS_PORT)}")
    print(f"targets    {prometheus.page('targets')}   (exporters are found in {targets})")
    print(f"alerts     {prometheus.page('alerts')}")
    if alertmanager is not None:
        print(
            f"routing    {alertmanager.url}{_moved(alertmanager.url, ALERTMANAGER_PORT)}"
            "   (without pages in Debian's package: amtool --alertmanager.url=... alert)"
        )
    print(f"reports    {pages}{_moved(pages, PAGES_PORT)}   ({runs}, as far as it is there)")
    if _moved(pages, PAGES_PORT):
        print("           Links on boards lead there once this address stands in their box `Runs at`.")
    print(f"stored in  {folder}")
    print("Dashboards need a Grafana, with this Prometheus as its source: monitoring/grafana")
    print(f"\nIn another terminal: .venv/bin/hydramix pilot --metrics-port {settings.port or METRICS_PORT}")
    print("Alerts are printed here. Ctrl-C ends all of this.", flush=True)
    while prometheus.running and (alertmanager is None or alertmanager.running):
        time.sleep(1.0)
    raise RuntimeError(f"a server has ended by itself; its last words are in {folder}/*/log.txt")


def _alertmanager(folder: Path, pages: str) -> Alertmanager | None:
    """Return Alertmanager, to send all alerts to `pages`; None where it is not installed."""
    try:
        return Alertmanager(folder, alertmanager_config(f"{pages}/alerts"), port=free_port(ALERTMANAGER_PORT))
    except RuntimeError as missing:
        print(f"{missing}; until then alerts are on the page of Prometheus alone", file=sys.stderr)
        return None


def _moved(url: str, wanted: int) -> str:
    """Return what is to be said of a server that does not listen where it is looked for first, else nothing."""
    return "" if url.endswith(f":{wanted}") else f"   (port {wanted} was taken)"


@contextlib.contextmanager
def _pages(runs: Path) -> Iterator[str]:
    """Serve the files below `runs` and take alerts while the block runs; yields the address."""
    handler = functools.partial(_Handler, directory=str(runs))
    with http.server.ThreadingHTTPServer((HOST, free_port(PAGES_PORT)), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Shows files, and prints what Alertmanager posts."""

    def do_POST(self) -> None:
        """Take alerts as Alertmanager's webhook sends them."""
        try:
            alerts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"]
            lines = [_told(alert) for alert in alerts]
        except (ValueError, TypeError, LookupError, AttributeError):
            self.send_error(400)
            return
        print(*lines, sep="\n", flush=True)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def _told(alert: dict[str, Any]) -> str:
    """Return an alert in one line."""
    labels, annotations = alert["labels"], alert["annotations"]
    state = "over" if alert["status"] == "resolved" else labels.get("severity", "alert")
    summary = f"{annotations.get('summary', labels['alertname'])}  ->  {annotations.get('runbook_url', '')}"
    line = f"{time.strftime('%H:%M:%S')}  {state:<8}  {labels['alertname']}: {summary}"
    # A run may be named by anybody: nothing that a terminal obeys.
    return "".join(character if character.isprintable() else "?" for character in line)


if __name__ == "__main__":
    sys.exit(main())
