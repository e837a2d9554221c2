"""Bytes that one training step sends over the link between two hosts, ZeRO 0 to 3, against the formula of scaling.py.

Two ranks on two hosts of `cluster/hosts.py`, one core each, take steps of a small generator and its discriminator; the
kernel counts what leaves a host, headers of frames included. Gloo sums parts (stage 3) by summing the whole, which
sends twice as much; NCCL does not. Called by cluster.py.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import common
import scaling
import torch
import torch.distributed as dist
import workers
from hosts import Host, Network, Process

WIDTH = 32
STAGES = (0, 1, 2, 3)
WARM_UP = 3  # stage 3 learns its order in two
STEPS = 20


def measure(network: Network, first: Host, second: Host, steps: int = STEPS) -> dict[int, dict[str, float]]:
    """Return by stage the MB that a host sends in a step, counted and by the formulas."""
    models = scaling.networks(WIDTH)
    found = {}
    for stage in STAGES:
        folder = network.folder / f"zero{stage}"
        folder.mkdir()
        program = [sys.executable, str(Path(__file__).resolve()), str(folder), str(stage), str(steps)]
        ranks = [
            host.start([*program, str(rank)], env={"PYTHONPATH": ":".join(sys.path)}, log=folder / f"{rank}.txt")
            for rank, host in enumerate((first, second))
        ]
        counted = []
        for name in ("warm", "done"):
            for rank, process in enumerate(ranks):
                _wait_for(folder / f"{name}-{rank}", process, folder / f"{rank}.txt")
            counted.append([host.bytes_sent() for host in (first, second)])
            (folder / f"after-{name}").touch()
        for process in ranks:
            process.wait()
        sent = [(after - before) / steps / 1e6 for before, after in zip(*counted, strict=True)]
        by_formula = sum(scaling.traffic(model, stage, 2) for model in models.values()) / 1e6
        by_gloo = sum(_sent_by_gloo(model, stage) for model in models.values()) / 1e6
        found[stage] = {"counted": max(sent), "formula": by_formula, "gloo": by_gloo, "ratio": max(sent) / by_gloo}
    return found


def _sent_by_gloo(model: scaling.Model, stage: int) -> float:
    """Return the formula's bytes where a sum of parts is carried out as a sum of the whole, as gloo does it."""
    calls = scaling.calls(model, stage)
    return sum(replace(call, kind="reduce" if call.kind == "scatter" else call.kind).sent(2) for call in calls)


def _wait_for(path: Path, process: Process, log: Path) -> None:
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.05)


def take_steps(folder: Path, stage: int, steps: int, rank: int) -> None:
    """Take steps as one of two ranks; say when they begin and have ended, and wait until that was seen."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    group = workers.sharded(stage)
    step = workers.one_step(workers.generator_training(group, micro_batch=1, width=WIDTH, precision="fp32"), group)
    done = 0
    for name, count in (("warm", WARM_UP), ("done", steps)):
        for _ in range(count):
            step(done)
            done += 1
        dist.barrier()
        (folder / f"{name}-{rank}").touch()
        while not (folder / f"after-{name}").exists():
            time.sleep(0.05)
    dist.destroy_process_group()


def show(found: dict[int, dict[str, float]]) -> None:
    """Print the table."""
    rows = [
        {
            "stage": stage,
            "MB a step over the link": f"{one['counted']:.2f}",
            "formula": f"{one['formula']:.2f}",
            "gloo": f"{one['gloo']:.2f}",
            "counted / gloo": f"{one['ratio']:.3f}",
        }
        for stage, one in found.items()
    ]
    common.show(f"One host's bytes sent in a step, two ranks, generator and discriminator of width {WIDTH}", rows)


if __name__ == "__main__":
    command = argparse.ArgumentParser()
    command.add_argument("folder", type=Path)
    for name in ("stage", "steps", "rank"):
        command.add_argument(name, type=int)
    take_steps(**vars(command.parse_args()))
