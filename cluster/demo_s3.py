"""The quick pilot from and into a bucket, on a real S3 server of this machine: `make demo-s3`.

It starts SeaweedFS, imports the built-in photo patches into the bucket, runs the pilot there, prints what lies where.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seaweed import Seaweed

from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data.builtin import build_photo_patches, licence_text
from hydramix_dist.store import Store

BUCKET = "hydramix"


def main() -> int:
    """Run the demo; return the exit code of the first command that fails, else 0."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path("runs/demo-s3"), help="the server's data, cache and page")
    options.add_argument("--preset", default="quick", help="of the pilot: smoke ends in seconds, quick in minutes")
    chosen = options.parse_args()
    folder = chosen.folder.resolve()
    with Seaweed(folder / "server") as server:
        server.make_bucket(BUCKET)
        os.environ.update(server.environment() | {VARIABLE: f"{{cache: '{folder / 'cache'}'}}"})
        print(f"an S3 server of this machine's own: {server.endpoint}, bucket {BUCKET}, data in {folder / 'server'}")
        images, run = f"s3://{BUCKET}/data/photo-patches", f"s3://{BUCKET}/runs/{chosen.preset}"
        with tempfile.TemporaryDirectory() as photos:
            source, licence = Path(photos) / "photo-patches", Path(photos) / "licence.txt"
            build_photo_patches(source)
            licence.write_text(licence_text())
            commands = (
                ("data", "import", str(source), images, "--licence", str(licence)),
                ("pilot", images, "--preset", chosen.preset, "--out", run),
            )
            for command in commands:
                print("\n$ hydramix " + " ".join(command), flush=True)
                done = subprocess.run([str(Path(sys.executable).with_name("hydramix")), *command], check=False)
                if done.returncode:
                    return done.returncode
        counts = server.request_counts()
        _show(Store(f"s3://{BUCKET}"))
        print("requests   " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
        page = folder / f"report-{chosen.preset}.html"
        page.write_bytes(Store(run).read("report.html"))
        print(f"the report, copied here   {page}")
    return 0


def _show(bucket: Store) -> None:
    """Print objects and bytes below each folder."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for path, size in bucket.sizes().items():
        parts = path.split("/")
        sizes["/".join(parts[: min(3, len(parts) - 1)]) + "/"].append(size)
    table = Table("in the bucket", "objects", "MB", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in sorted(sizes.items()):
        table.add_row(f"{bucket.url}/{name}", str(len(found)), f"{sum(found) / 1e6:.2f}")
    print()
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
