"""What a cluster of several hosts costs: time to the first step, recovery from faults, throughput, bytes on the link.

The hosts are made of this machine's namespaces (`cluster/rehearsal.py`): a head without CPUs, two hosts of one core
each, an S3 server on a fourth. They share this machine's disk and memory, and links that are faster than real ones: so
what is measured is our code and Ray's, not a network. It needs root. Nothing else may run meanwhile.
Run: `python benchmarks/cluster.py` (three quarters of an hour); `--only recovery` for one part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

import cluster_traffic
import common
import numpy as np
from cluster_faults import FAULTS
from rehearsal import BUCKET, GENERATOR, RUNTIME, Rehearsal, rehearsal
from sweeps import times, tuning_seconds

from hydramix_dist.data.builtin import build_photo_patches
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.store import Store

PARTS = ("submit", "recovery", "throughput", "traffic")
SEEDS = 3  # of the sweep: two trainings each, of some 50 s
ROOT = Path(__file__).resolve().parents[1]


# ---- from submit to the first step


def submitted(cluster: Rehearsal, number: int) -> dict[str, float]:
    """Return the seconds of each part between `hydramix submit` and the end of the first step, on a cluster that waits.

    The generator is so small, with a checkpoint after each of its four steps, that each step is recorded at its end.
    """
    assert cluster.ray is not None
    out = f"s3://{BUCKET}/submitted-{number}"
    words = [f"{key}={json.dumps(value)}" for key, value in (GENERATOR | {"images": 16, "group": None}).items()]
    words = [f"generator.{word}" for word in words]
    command = [str(Path(sys.executable).with_name("hydramix")), "submit", "train_generator", "quick", *words]
    command += [f"data=s3://{BUCKET}/set", "shots=5", "runtime.checkpoints=4", "runtime.device=cpu"]
    command += ["distributed.workers=2", "distributed.placement=spread", "--no-wait", "--json"]
    command += ["--address", cluster.ray.dashboard, "--out", out]
    began = time.time()
    done = subprocess.run(
        command, env=os.environ | cluster.ray.environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    taken = time.time()
    store = Store(out)
    while (marker := _marker(store))["state"] == "running":
        time.sleep(0.5)
    if marker["state"] != "succeeded":
        raise RuntimeError(f"the job {marker['state']}: {marker['reason']}")
    lines = [json.loads(line) for line in store.read("metrics.jsonl").splitlines()]
    first = next(line["time"] for line in lines if "training_start_timestamp_seconds" in line)
    step = next(line["time"] for line in lines if "step_seconds_count" in line)
    return {
        "checks, upload, submission": taken - began,
        "Ray starts the job, Python and its imports": marker["begun"] - taken,
        "joining, two workers, their imports, images": first - marker["begun"],
        "the first step": step - first,
        "in all": step - began,
    }


def _marker(store: Store) -> dict[str, Any]:
    """Return the job's marker; before there is one it is as good as running."""
    return dict(json.loads(store.get("jobs/train_generator.json") or '{"state": "running"}'))


# ---- throughput of a sweep


def swept(cluster: Rehearsal, hosts: int) -> dict[str, float]:
    """Return how long a sweep's trainings took on so many hosts, from the first that began to the last one done."""
    name = f"swept-{hosts}"
    tree = {
        "data": [f"s3://{BUCKET}/set"],
        "shots": [5],
        "seeds": list(range(SEEDS)),
        "test_limit": 200,
        "verdict": False,
        "generators": {},
        "classifier": {"network": "wrn-10-1", "dropout": 0.0, "batch": 16, "images": 24_000},
        "arms": {"baseline": {}, "trivialaugment": {"augmentation": "trivial"}},
        "runtime": RUNTIME | {"threads": 1, "checkpoints": 2},
    }
    sweep = cluster.start(f"s3://{BUCKET}/{name}/sweep", "sweep", cluster.settings(name, tree))
    sweep.ended(patience=1200)
    events = list(read_events(Store(sweep.url)))
    return {
        "trainings": len([event for event in events if event["event"] == "done"]),
        "seconds": tuning_seconds(events),
        "whole command": times(events, "ended")[-1] - times(events, "session")[0],
    }


def throughput(cluster: Rehearsal) -> None:
    """Measure a sweep on one host and on two, and print how much sooner it is done."""
    cluster.ready()
    both = swept(cluster, 2)
    cluster.workers[1].kill()
    assert cluster.ray is not None
    while cluster.ray.nodes(cluster.workers[1].address):
        time.sleep(1)
    one = swept(cluster, 1)
    rows = [
        {
            "hosts of one core": hosts,
            **{key: f"{value:.0f}" for key, value in found.items()},
            "an hour": f"{3600 * found['trainings'] / found['seconds']:.0f}",
        }
        for hosts, found in ((1, one), (2, both))
    ]
    common.show("A sweep of equal trainings", rows)
    gain, whole = one["seconds"] / both["seconds"], one["whole command"] / both["whole command"]
    print(f"  two hosts are {gain:.2f} times as fast as one; the whole command {whole:.2f} times")
    common.record("cluster_throughput", one=one, two=both, gain=gain, gain_of_whole=whole)


# ---- tables


def table(title: str, name: str, rounds: list[dict[str, float]]) -> None:
    """Print each figure's median with the least and the most, and a JSON line."""
    figures = {key: np.array([one[key] for one in rounds if key in one]) for key in rounds[0]}
    rows = [
        {"s": key, "median": f"{np.median(v):.1f}", "least - most": f"{v.min():.1f} - {v.max():.1f}", "runs": len(v)}
        for key, v in figures.items()
    ]
    common.show(title, rows)
    common.record(name, **{key: float(np.median(values)) for key, values in figures.items()})


def recovery(cluster: Rehearsal, repeats: int) -> None:
    """Measure what each fault costs, and print it."""
    rounds: list[dict[str, float]] = []
    for number in range(repeats):
        rounds.append({})
        for fault in FAULTS:
            found = fault(cluster, number)
            shown = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in found.items())
            print(f"  round {number + 1} of {repeats}: {shown}", file=sys.stderr)
            rounds[-1] |= found
    table("Faults in a training over two hosts", "cluster_recovery", rounds)


def main() -> None:
    """Measure, and print tables and JSON lines."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be repeated")
    command.add_argument("--repeats", type=int, default=3, help="rounds of submissions and faults (default 3)")
    chosen = command.parse_args()
    parts: dict[str, Callable[[Rehearsal], None]] = {
        "submit": lambda cluster: _submissions(cluster, chosen.repeats),
        "recovery": lambda cluster: recovery(cluster, chosen.repeats),
        "throughput": throughput,
        "traffic": _traffic,
    }
    with tempfile.TemporaryDirectory() as temporary, rehearsal(Path(temporary) / "hosts") as cluster:
        os.environ.update(cluster.server.environment() | {"HYDRAMIX_STORE": "{cache: null}"})
        photos = Path(temporary) / "photos"
        build_photo_patches(photos)
        import_dataset(str(photos), f"s3://{BUCKET}/set", workers=1)
        for name in chosen.only or PARTS:
            parts[name](cluster)


def _submissions(cluster: Rehearsal, repeats: int) -> None:
    cluster.ready()
    submitted(cluster, 0)  # images, segments and caches of the hosts are there from then on
    rounds = [submitted(cluster, number + 1) for number in range(repeats)]
    table("From `hydramix submit` to the first step of a training over two hosts", "cluster_submit", rounds)


def _traffic(cluster: Rehearsal) -> None:
    for host in cluster.workers:  # one may be off, and what Ray sends is not to be counted
        host.kill()
        host.boot()
    found = cluster_traffic.measure(cluster.network, *cluster.workers)
    cluster_traffic.show(found)
    common.record("cluster_traffic", **{f"zero{stage}": values for stage, values in found.items()})


if __name__ == "__main__":
    main()
