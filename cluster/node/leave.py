"""Take this machine out of its Ray cluster so that trainings lose nothing: `python leave.py`, before it is taken away.

`ray stop` alone ends the raylet first, and its workers with it, between two checkpoints. So the cluster is told first
that this node will go: trainings of several processes save and go on elsewhere. On the head, whose loss ends all, the
jobs are asked to stop instead: they save, too. Then Ray is stopped. For the preStop hook of a pod, and for nodes of the
launcher. It needs nothing but Python and `ray` beside it.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TURN_SECONDS = 0.5
STOP_SECONDS = 15  # that `ray stop` may take
JOB = re.compile(r"(?:^|/)jobs/\w+\.py$")
# Processes of Ray itself bear such names, too.
NO_WORK = re.compile(rb"ray::(?:IDLE|DashboardAgent|RuntimeEnvAgent|JobSupervisor)")


def main() -> int:
    """Leave, and return the exit code of `ray stop`."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=90.0, help="that trainings have to save (default 90)")
    end = time.monotonic() + (seconds := options.parse_args().seconds)
    jobs = {pid for pid, words in processes() if any(JOB.search(word) for word in words[:4])}
    for pid in jobs:
        ask(pid)
    if not jobs:
        drain(seconds)
    while time.monotonic() < end and (jobs & {pid for pid, _ in processes()} if jobs else working()):
        time.sleep(TURN_SECONDS)
    return subprocess.run([ray(), "stop", f"--grace-period={STOP_SECONDS}"], check=False).returncode


def drain(seconds: float) -> None:
    """Tell the cluster that this node goes in so many seconds; nothing where no Ray runs here."""
    told = next((found for _, words in processes() if (found := raylet(words))), None)
    if told is None:
        return
    node, head = told
    reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the machine is taken away"]
    whom = [f"--address={head}", f"--node-id={node}", f"--deadline-remaining-seconds={seconds:.0f}"]
    done = subprocess.run([ray(), "drain-node", *whom, *reason], check=False)
    if done.returncode:  # the head is gone, or this is the head: there is nobody to tell
        print("the cluster was not told that this node goes; work since the last checkpoints is lost", file=sys.stderr)


def raylet(words: list[str]) -> tuple[str, str] | None:
    """Return the node's id and the head's address where a command line is the raylet's."""
    if not words or Path(words[0]).name != "raylet":
        return None
    options = dict(word.lstrip("-").replace("-", "_").split("=", 1) for word in words if "=" in word)
    return options["node_id"], options["gcs_address"]


def working() -> bool:
    """Return whether a worker of Ray has anything to do."""
    return any(word.startswith("ray::") and not NO_WORK.match(word.encode()) for _, (word, *_) in processes())


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield the process ids and the command lines of this user's processes, those without one left out."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid():
                words = (folder / "cmdline").read_text(encoding="utf-8", errors="replace").rstrip("\0 ").split("\0")
                if words[0]:
                    yield int(folder.name), words
        except (FileNotFoundError, ProcessLookupError):
            continue


def ask(pid: int) -> None:
    """Ask a process to save and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def ray() -> str:
    """Return the `ray` of this Python's environment."""
    return str(Path(sys.executable).with_name("ray"))


if __name__ == "__main__":
    sys.exit(main())
