"""Takes a picture of a committed board on a live Prometheus: `python picture.py run --out run.png`. See README.md."""

import argparse
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

HERE = Path(__file__).parent
FOLDER = Path.home() / ".cache" / "hydramix" / "board-preview"
SOURCES = ("package.json", "vite.config.ts", "index.html", "main.tsx", "prometheus.ts")
INSTALL = ("npm", "install", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund")
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-sync"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]


def main() -> int:
    """Build the page if its sources changed, and save one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("board", choices=[path.stem for path in (HERE.parent / "dashboards").glob("*.json")])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="one that any page may read: --cors")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--end", type=float, help="Unix time of the right edge; now")
    parser.add_argument("--scrape", type=int, default=15, help="scrape interval in seconds, for rates")
    parser.add_argument("--size", default="1600,1000")
    parser.add_argument("--set", action="append", default=[], metavar="VARIABLE=VALUE", help="such as run=NAME")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of node_modules and the built page")
    choice = parser.parse_args()
    build(choice.folder)
    values = {name: getattr(choice, name) for name in ("board", "prometheus", "minutes", "scrape", "end")}
    address = {name: value for name, value in values.items() if value is not None}
    address |= dict(pair.split("=", 1) for pair in choice.set)
    with served(choice.folder / "dist") as url, tempfile.TemporaryDirectory() as profile:
        command = [*CHROMIUM, f"--window-size={choice.size}", f"--screenshot={choice.out.absolute()}"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=20000", f"{url}/?{urlencode(address)}"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    print(choice.out)
    return 0


def build(folder: Path) -> None:
    """Bring `folder/dist` up to date: packages and page where their sources differ, boards always."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = [name for name in SOURCES if not _same(HERE / name, folder / name)]
    for name in changed:
        shutil.copy2(HERE / name, folder / name)
    if "package.json" in changed or not (folder / "node_modules").exists():
        subprocess.run(INSTALL, cwd=folder, check=True, stdout=sys.stderr)
    dist = folder / "dist"
    if changed or not dist.exists():
        subprocess.run(("npx", "vite", "build", "--target", "esnext", "--logLevel", "warn"), cwd=folder, check=True)
        icons = folder / "node_modules" / "@grafana" / "ui" / "dist" / "public" / "img" / "icons"
        shutil.copytree(icons, dist / "public" / "build" / "img" / "icons")
    shutil.copytree(HERE.parent / "dashboards", dist / "dashboards", dirs_exist_ok=True)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free loopback port; yield its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
