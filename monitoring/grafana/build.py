"""Writes the dashboards: `python monitoring/grafana/build.py`; with `--check` it only compares."""

import argparse
import sys
from pathlib import Path

import cluster_board
import data_board
import run_board
import sweep_board

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = {
    "run": run_board.BOARD,
    "sweep": sweep_board.BOARD,
    "data": data_board.BOARD,
    "cluster": cluster_board.BOARD,
}


def main() -> int:
    """Write or compare all files; return 1 where one differs from what the code builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a file is out of date")
    check = parser.parse_args().check
    stale = 0
    for name, board in BOARDS.items():
        path, text = FOLDER / f"{name}.json", board.json()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{path}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
