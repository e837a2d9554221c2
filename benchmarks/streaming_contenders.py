"""The contenders of benchmarks/streaming.py as processes in environments of their own; the search for their best."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

Settings = dict[str, Any]
Answer = dict[str, Any]
Needs = Callable[[Settings], Settings]

SCRIPTS = Path(__file__).with_name("streaming_peers")
# All decode with the Pillow that ours has, and those on torch have the torch that ours has.
_TORCH, _TORCHVISION, _PILLOW = (
    f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision", "pillow")
)
PEERS = {
    "mosaic": ("mosaicml-streaming==0.13.0", _TORCH, _TORCHVISION, _PILLOW),
    "tars": ("webdataset==1.0.2", _TORCH, _PILLOW),
    "ray_images": (f"ray[data]=={version('ray')}", _PILLOW),
}
# Ray else writes a token into the home folder, and tells its makers that it was used.
_QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Stage:
    """Where contenders run: the folder of their environments, and that of their logs and caches."""

    environments: Path
    logs: Path

    def contender(self, script: str) -> "Contender":
        """Return a new process of a script, in its environment, which is made where it is absent."""
        variables = os.environ | _QUIET
        if script == "ours":
            variables["PYTHONPATH"] = str(SCRIPTS.parents[1])
        return Contender(script, environment(script, self.environments), variables, self.logs / f"{script}.log")


def environment(script: str, folder: Path) -> Path:
    """Return the Python that runs a script: our own, or that of a peer's environment below a folder."""
    if script not in PEERS:
        return Path(sys.executable)
    home, wanted = folder / script, "\n".join(PEERS[script])
    done = home / "requirements.txt"
    if not done.exists() or done.read_text() != wanted:
        print(f"  an environment with {', '.join(PEERS[script])}", flush=True)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", *PEERS[script]], check=True)
        done.write_text(wanted)
    return home / "bin" / "python"


class Contender:
    """A process that makes passes one after another, for a `with` block."""

    def __init__(self, script: str, python: Path, variables: Mapping[str, str], log: Path) -> None:
        """Start it, and return once it has imported what it needs."""
        self._script, self._log = script, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, SCRIPTS / f"{script}.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables,
                text=True,
                start_new_session=True,
            )
        self.ask({"do": "nothing"})

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        family = self._family()
        assert self._process.stdin
        self._process.stdin.close()  # the end of its work
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        self._process.wait()

    def ask(self, settings: Settings) -> Answer:
        """Return what it answers, with its CPU seconds. Raises RuntimeError with the end of its log where it fails."""
        assert self._process.stdin and self._process.stdout
        with tempfile.TemporaryDirectory(prefix="pass-", dir=self._log.parent) as scratch:
            before = self._cpu()
            try:
                print(json.dumps({"do": "read", "scratch": scratch} | settings), file=self._process.stdin, flush=True)
                answer: Answer = json.loads(self._process.stdout.readline())
            except (BrokenPipeError, ValueError) as error:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._script} failed; the end of {self._log}:\n{tail}") from error
            return answer | {"cpu": self._cpu() - before}

    def watched(self, settings: Settings) -> Answer:
        """Return the same with the peak memory of all its processes, MiB: a page that many share counts once."""
        ended, peak = threading.Event(), [0]

        def watch() -> None:
            while True:
                peak[0] = max(peak[0], sum(map(_memory, self._family())))
                if ended.wait(0.05):
                    return

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            answer = self.ask(settings)
        finally:
            ended.set()
            watching.join()
        return answer | {"peak_mib": peak[0] >> 20}

    def _family(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _cpu(self) -> float:
        """Return the CPU seconds of all its processes, with those that have ended."""
        return sum(map(cpu_seconds, self._family()))


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and its ended children."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:  # its parent has its time now
        return 0.0


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0


def best(contender: Contender, start: Settings, options: Mapping[str, Sequence[Any]], needs: Needs) -> Settings:
    """Return the quickest settings found, each printed as it is tried: from `start`, one option after another.

    `needs` gives what else a pass needs with the settings chosen. The contender has made a pass before.
    """
    tried: dict[str, float] = {}

    def seconds(settings: Settings) -> float:
        words = ", ".join(f"{name} {value}" for name, value in settings.items())
        if words not in tried:
            answer = contender.ask(settings | needs(settings))
            tried[words] = answer["seconds"] - answer["opened"]
            print(f"    {tried[words]:6.2f} s   {words}", flush=True)
        return tried[words]

    chosen = start
    for name, values in options.items():
        chosen = min(({**chosen, name: value} for value in values), key=seconds)
    return chosen
