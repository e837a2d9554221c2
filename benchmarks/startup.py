"""Processor time of `hydramix --help` against an interpreter that does nothing, and which libraries it loads.

Each command is a process of its own; commands take turns, so that a drifting machine touches all alike, and the
system counts each child's processor time (wait4), so that what else runs hardly does. Quoted are medians and the
ratio to `python -c pass`; the promise is at most 8 for `hydramix --help`. Run: `python benchmarks/startup.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

MOST = 8.0
COMMANDS = {
    "python -c pass": [],
    "hydramix --help": ["--help"],
    "hydramix data --help": ["data", "--help"],
    "hydramix pilot --help": ["pilot", "--help"],
}
# What the entry point does, and then the installed libraries (no part of Python, nor of the package) it has loaded.
LOADED = """
import sys, sysconfig
before = set(sys.modules)
from hydramix_dist.cli import main
try:
    main()
except SystemExit:
    pass
own = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib"))
files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in sys.modules.keys() - before}
print(*sorted({name.partition(".")[0] for name, file in files.items() if file.startswith(own)}), file=sys.stderr)
"""


def processor_seconds(command: list[str]) -> float:
    """Return user and system seconds of one run of a command. Raises RuntimeError where it fails."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {child.returncode}")
    return usage.ru_utime + usage.ru_stime


def loaded(arguments: list[str]) -> list[str]:
    """Return the installed libraries that `hydramix ARGUMENTS` loads."""
    command = [sys.executable, "-c", LOADED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()


def main() -> None:
    """Print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    hydramix = str(Path(sys.executable).with_name("hydramix"))
    commands = {name: [hydramix, *given] for name, given in COMMANDS.items()}
    commands["python -c pass"] = [sys.executable, "-c", "pass"]

    times: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        processor_seconds(command)  # compiles what is not compiled yet
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(processor_seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    nothing = medians["python -c pass"]
    libraries = {name: loaded(given) for name, given in COMMANDS.items() if given}

    print(f"processor time, median of {repeats}")
    for name, median in medians.items():
        beside = f"   loads {', '.join(libraries[name])}" if name in libraries else ""
        print(f"  {name:<24} {1000 * median:7.1f} ms   {median / nothing:5.2f} x{beside}")
    ratio = medians["hydramix --help"] / nothing
    print(f"hydramix --help: {ratio:.2f} x, promised at most {MOST:g}")
    record = {
        "benchmark": "startup",
        "repeats": repeats,
        "median_ms": {name: round(1000 * median, 2) for name, median in medians.items()},
        "ratio": round(ratio, 2),
        "libraries": libraries,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
