"""Where a pilot's processor seconds go, by stage, in the main process and in all its workers.

Each process of the pilot looks at its own stack every 10 ms of processor time and books the time since the last look
on the stage that the stack is in; what no look sees (the interpreter's own start and end) is the rest to what the
system counted. Shares are of processor time: other programs hardly touch them. The pilot is the command itself, with
all its processes, on the built-in images and in a temporary folder.

Run: `python benchmarks/pilot_profile.py [--preset quick] [--seeds 1] [--set KEY=VALUE ...]`; the values shown are the
defaults and take about two minutes; `--seeds 3` is what `make pilot` runs.
"""

import argparse
import atexit
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = "HYDRAMIX_PROFILE_FOLDER"  # environment variable: where each process leaves its counts
INTERVAL = 0.01  # seconds of processor time
ALLOWED = 0.05  # of the whole, for a stage that is no training, decoding or segmentation

# Stage by (module, function): the innermost of these on the stack decides. A step's stage also says which model learns.
STAGES = {
    ("data/decode.py", "*"): "import: decode, resize, encode",
    ("data/segmentation.py", "segment"): "import: segmentation",
    ("data/builtin.py", "build_photo_patches"): "import: cut the built-in images",
    ("data/importer.py", "import_dataset"): "import: the rest",
    ("data/overview.py", "describe"): "data set: warnings",
    ("data/dataset.py", "open"): "data set: open",
    ("data/shots.py", "load_shots"): "data set: load a subset",
    ("orchestration/tasks.py", "_held_out"): "data set: load held-out images",
    ("models/trained.py", "load_generator"): "load a trained generator",
    ("training/generator.py", "batch"): "train generator: batch",
    ("training/classifier.py", "batch"): "train classifier: batch of real images",
    ("mixing/mixer.py", "mix"): "train classifier: batch of mixes",
    ("training/loop.py", "_step"): "train",
    ("training/classifier.py", "evaluate"): "test during training",
    ("training/classifier.py", "predictions"): "test at the end",
    ("training/loop.py", "save"): "checkpoints: gather, hand over",
    ("checkpoint/commit.py", "load_newest"): "checkpoints: load",
    ("telemetry/recorder.py", "record"): "records",
    ("training/loop.py", "run"): "loop, progress",
    ("training/session.py", "train_in_folder"): "build models, run folder",
    ("orchestration/plan.py", "make_plan"): "plan",
    ("orchestration/pool.py", "run_tasks"): "watch the workers",
    ("evaluation/assemble.py", "assemble"): "statistics, verdict",
    ("evaluation/probes.py", "probe"): "probes",
    ("report/page.py", "write_report"): "report",
}
IMPORT = "import of modules"
START = "process start"
REST = "the rest"
UNSEEN = "seen by no look"
WORTH = ("train", "import: decode", "import: segmentation")  # how stages begin that may be above ALLOWED


# ---- in every process of the pilot


def watch(role: str) -> Callable[[], None]:
    """Book this process's processor time by stage from now on; return what ends that and writes the sums."""
    seconds = defaultdict[str, float](float, {START: time.process_time()})
    last = time.process_time()

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.process_time()
        seconds[stage(frame)] += now - last
        last = now

    def leave() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        path = Path(os.environ[FOLDER]) / f"{os.getpid()}.json"
        path.write_text(json.dumps({"role": role, "seconds": seconds}))

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    return leave


def stage(frame: FrameType | None) -> str:
    """Return the stage that a stack is in."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load":
            return IMPORT
        if "/hydramix_dist/" in code.co_filename:
            module = code.co_filename.rpartition("/hydramix_dist/")[2]
            found = STAGES.get((module, code.co_name)) or STAGES.get((module, "*"))
            if found == "train":
                phase = frame.f_locals.get("phase")
                return f"train {phase.engine}: step" if phase else "loop, progress"
            if found:
                return found
        frame = frame.f_back
    return REST


if __name__ == "__mp_main__" and FOLDER in os.environ:  # a spawned process imports this file first
    atexit.register(watch("workers"))


# ---- the main process


def check_stages() -> None:
    """Raise SystemExit where a function named above is not in its module any more."""
    import hydramix_dist

    package = Path(hydramix_dist.__file__).parent
    for module, function in STAGES:
        if ("def " if function == "*" else f"def {function}(") not in (package / module).read_text(encoding="utf-8"):
            sys.exit(f"STAGES names {function} in {module}, which has no such function")


def run_pilot(arguments: list[str], out: str) -> None:
    """Run `hydramix pilot ARGUMENTS` in this process and its workers. Raises SystemExit where it fails."""
    from hydramix_dist.cli import main as hydramix

    sys.argv = ["hydramix", "pilot", *arguments, "--out", out]
    try:
        hydramix()
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    """Run the pilot; print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="KEY=VALUE")
    given = parser.parse_args()
    arguments = ["--preset", given.preset, "--seeds", given.seeds]
    arguments += [word for assignment in given.assignments for word in ("--set", assignment)]
    check_stages()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        began = time.monotonic()
        write_counts = watch("main process")
        run_pilot(arguments, f"{folder}/run")
        write_counts()
        wall = time.monotonic() - began
        counts = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    show(counts, wall, " ".join(("hydramix pilot", *arguments)))


def show(counts: list[dict[str, Any]], wall: float, command: str) -> None:
    """Print the sums of all processes by stage, largest first, and what is above the allowed share."""
    seconds = {role: defaultdict[str, float](float) for role in ("main process", "workers")}
    for count in counts:
        for name, value in count["seconds"].items():
            seconds[count["role"]][name] += value
    for role, who in (("main process", resource.RUSAGE_SELF), ("workers", resource.RUSAGE_CHILDREN)):
        used = resource.getrusage(who)
        seconds[role][UNSEEN] = used.ru_utime + used.ru_stime - sum(seconds[role].values())
    main_s, workers_s = seconds.values()
    both = {name: main_s[name] + workers_s[name] for name in {**main_s, **workers_s}}
    total = sum(both.values())
    falling = sorted(both.items(), key=lambda entry: -entry[1])

    print(f"\n{total:.1f} processor seconds in {len(counts)} processes, {wall:.1f} s on the clock: {command}")
    print(f"  {'stage':<38}{'main':>8}{'workers':>10}{'both':>9}{'share':>9}")
    for name, value in falling:
        print(f"  {name:<38}{main_s[name]:8.2f}{workers_s[name]:10.2f}{value:9.2f}{100 * value / total:8.2f} %")
    above = {n: round(v / total, 4) for n, v in falling if v > ALLOWED * total and not n.startswith(WORTH)}
    print(f"above {100 * ALLOWED:.0f} % and no training, decoding or segmentation: {', '.join(above) or 'nothing'}")
    record = {
        "benchmark": "pilot profile",
        "command": command,
        "wall_s": round(wall, 1),
        "processor_s": round(total, 1),
        "processes": len(counts),
        "stages_s": {name: round(value, 2) for name, value in falling},
        "above": above,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
