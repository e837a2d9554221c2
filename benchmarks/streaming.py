"""Whole sets out of object storage: ours against raw GETs, MosaicML Streaming, WebDataset and plain Ray Data.

All read the same SeaweedFS on this machine: 20,000 images of 32 pixels, and 500 of 288 pixels with 100 to 250 KB each,
as PNGs that are the same bytes for everyone, in each contender's own format. A pass is one epoch from the network by a
new process whose own cache is empty; time counts from opening the set, with everything imported, to the last batch.
Contenders take turns, each with the best settings of a search that is printed. Two tables a set:

- nothing decoded: GETs of our shards with sha256 and nothing else, by s3fs.cat and by urllib, and our verified encoded
  images. Here time counts from the opened set: a client takes about as long to connect as these sets take to read.
- decoded to uint8 tensors. A ratio is that of the seconds within a round. Memory (processes together, shared pages
  once), requests and a check of every image come from a pass of their own, which does not count.

The bound: server, reading and decoding share the cores of one machine, so nobody gives more images a second than
cores / (CPU seconds an image of the server, of raw reading and of decoding), those of raw GETs and of Pillow alone.

Last, ours reads a set of 2.5 GiB, ten times the memory that it may take beside what it has at the start.

pip installs the peers from its configured index into environments of their own (--environments keeps them).
Run: `python benchmarks/streaming.py [--quick]` (a quarter of an hour; three minutes with --quick, which takes a tenth
of the sets and does not search).
"""

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt
import psutil
import s3fs
from streaming_contenders import PEERS, Answer, Contender, Settings, Stage, best, cpu_seconds, environment
from streaming_entries import DECODED, ENCODED, SHARD_MIB, Entry, Placed
from streaming_peers.passes import decode
from streaming_sets import HUGE, LARGE, SMALL, Kind, lay_out, make

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster.seaweed import Seaweed

BUCKET = "streaming"
BUDGET_MIB = 256
LONG = 10.0  # seconds of a pass; an entry that takes longer searches on a tenth, and takes part in two rounds
PROMISED = 0.85  # of raw GETs, where nothing is decoded

Numbers = npt.NDArray[np.float64]


@dataclass
class Taken:
    """What an entry's passes took, in the order of the rounds, and the one that was checked and watched."""

    settings: Settings
    passes: list[Answer]
    watched: Answer

    def __getitem__(self, name: str) -> Numbers:
        return np.array([answer[name] for answer in self.passes])


class Benchmark:
    """A server, and what is measured against it."""

    def __init__(self, stage: Stage, server: Seaweed, folder: Path) -> None:
        """Bind to a server that runs, and to a folder for all files."""
        self._stage, self._server, self._folder = stage, server, folder
        self._process = psutil.Process(server.pid)
        self._bucket = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        server.make_bucket(BUCKET)

    def place(self, kind: Kind) -> Placed:
        """Return a set, made and put into the bucket in every format."""
        folder, prefix = self._folder / kind.name, f"{BUCKET}/{kind.name}"
        images = make(kind, folder)
        placed = Placed(images, lay_out(images, folder / "loose"), self._bucket, prefix)
        self._put(images.imported, f"{prefix}/ours")
        self._put(placed.loose.folder, f"{prefix}/loose")
        for script in ("mosaic", "tars"):
            with self._stage.contender(script) as writer:
                for mib in SHARD_MIB:
                    out = folder / f"{script}-{mib}"
                    out.mkdir()
                    loose = str(placed.loose.folder)
                    writer.ask({"do": "write", "folder": loose, "out": str(out), "shard_mib": mib})
                    self._put(out, f"{prefix}/{out.name}")
        return placed

    def memory(self, kind: Kind) -> Answer:
        """Return what a decoded pass of ours took, and the set's bytes."""
        images = make(kind, self._folder / kind.name)
        self._put(images.imported, f"{BUCKET}/{kind.name}/ours")
        with self._stage.contender("ours") as ours:
            answer = ours.ask({"decode": True, "requests": 16, "url": f"s3://{BUCKET}/{kind.name}/ours"})
        return answer | {"bytes": images.shard_bytes}

    def measure(self, placed: Placed, entries: Mapping[str, Entry], rounds: int, search: bool) -> dict[str, Taken]:
        """Return what each entry took with the best settings, or without a search with those it would begin with."""
        taken: dict[str, Taken] = {}
        for name, entry in entries.items():
            taken[name] = Taken(self._search(name, entry, placed) if search else entry.start, [], {})
        for number in range(rounds):
            for name, entry in entries.items():
                one = taken[name]
                if number >= 2 and one.passes[0]["seconds"] > LONG:
                    continue
                settings = one.settings | entry.needs(placed, one.settings)
                with self._stage.contender(entry.script) as contender:
                    one.passes.append(self._passed(contender, settings))
                    if number == 0:
                        one.watched = self._watched(contender, placed, settings)
        return taken

    def _search(self, name: str, entry: Entry, placed: Placed) -> Settings:
        print(f"  {name}", flush=True)
        with self._stage.contender(entry.script) as contender:
            first = contender.ask(entry.start | entry.needs(placed, entry.start))
            part = {"path": f"{placed.prefix}/loose/0"} if first["seconds"] > LONG else {}
            return best(contender, entry.start, entry.options, lambda chosen: entry.needs(placed, chosen) | part)

    def _put(self, folder: Path, target: str) -> None:
        self._bucket.put(f"{folder}/", target, recursive=True, batch_size=16)  # the slash: what is in the folder

    def _passed(self, contender: Contender, settings: Settings) -> Answer:
        """Return what a pass took, with the server's CPU seconds and the seconds from the opened set on."""
        before = self._server_cpu()
        answer = contender.ask(settings)
        return answer | {"server_cpu": self._server_cpu() - before, "reading": answer["seconds"] - answer["opened"]}

    def _watched(self, contender: Contender, placed: Placed, settings: Settings) -> Answer:
        """Return what a pass took, with memory and requests. Raises ValueError where an image is not what it was."""
        before = sum(self._server.request_counts().values())
        answer = contender.watched(settings | {"check": True})
        requests = sum(self._server.request_counts().values()) - before
        digest = placed.loose.pixel_digest if settings.get("decode", True) else placed.loose.encoded_digest
        if "sha256" not in settings and (answer["images"], answer["digest"]) != (placed.images.kind.images, digest):
            raise ValueError(f"other images than were stored: {answer}")
        return answer | {"requests": 1000 * requests / placed.images.kind.images}

    def _server_cpu(self) -> float:
        return cpu_seconds(self._process)


def report(placed: Placed, taken: Mapping[str, Taken]) -> dict[str, Any]:
    """Print both tables, the goals and the bound of a set, and return the figures."""
    images, mb = placed.images.kind.images, placed.images.shard_bytes / 1e6
    raw, encoded = taken["raw, s3fs.cat"], taken["ours, encoded"]
    rows = []
    for name in ENCODED:
        one = taken[name]
        rows.append(
            {
                "nothing decoded": name,
                "MB/s": common.quartiles(mb / one["reading"], 0),
                "of s3fs.cat": common.quartiles(raw["reading"] / one["reading"]),
                "to open, s": f"{np.median(one['opened']):.2f}",
                **_costs(one, images),
            }
        )
    title = f"{images} images of {placed.images.kind.side} pixels, {mb:.0f} MB in {len(placed.images.shards)} shards"
    common.show(title, rows)
    ours = taken["ours"]
    rows = []
    for name in DECODED:
        one = taken[name]
        rows.append(
            {
                "decoded": name,
                "images/s": common.quartiles(images / one["seconds"], 0),
                "its time / ours": common.quartiles(_ratios(one, ours)),
                "first batch, s": f"{np.median(one['first']):.2f}",
                **_costs(one, images),
            }
        )
    common.show("", rows)
    share = float(np.median(raw["reading"] / encoded["reading"]))
    server, reading, decoding = _bound(placed, raw)
    cores = len(os.sched_getaffinity(0))
    bound = cores / (server + reading + decoding)
    reached = float(np.median(images / ours["seconds"])) / bound
    print(
        f"  nothing decoded: {share:.2f} of raw GETs by s3fs.cat, promised {PROMISED}\n"
        f"  decoded: {_verdicts(taken)}\n"
        f"  bound: {cores} cores / ({1e6 * server:.0f} us server + {1e6 * reading:.0f} us reading and sha256 + "
        f"{1e6 * decoding:.0f} us decoding, an image) = {bound:.0f} images/s; ours reaches {reached:.0%}"
    )
    return {
        "share_of_raw": share,
        "bound_images_s": bound,
        "mb_s": {name: float(np.median(mb / taken[name]["reading"])) for name in ENCODED},
        "images_s": {name: float(np.median(images / taken[name]["seconds"])) for name in DECODED},
        "time_over_ours": {name: float(np.median(_ratios(taken[name], ours))) for name in DECODED},
        "first_batch_s": {name: float(np.median(taken[name]["first"])) for name in DECODED},
        "peak_mib": {name: one.watched["peak_mib"] for name, one in taken.items()},
        "requests_per_1000": {name: one.watched["requests"] for name, one in taken.items()},
        "cpu_ms_an_image": {name: 1000 * float(one["cpu"].min()) / images for name, one in taken.items()},
        "settings": {name: one.settings for name, one in taken.items()},
    }


def _costs(one: Taken, images: int) -> dict[str, str]:
    return {
        "CPU ms/1000": f"{1e6 * one['cpu'].min() / images:.0f}",
        "server's": f"{1e6 * one['server_cpu'].min() / images:.0f}",
        "peak MiB": str(one.watched["peak_mib"]),
        "requests/1000": f"{one.watched['requests']:.1f}",
    }


def _ratios(one: Taken, ours: Taken) -> Numbers:
    """Return another's seconds over ours, round by round."""
    return np.array([a / b for a, b in zip(one["seconds"], ours["seconds"], strict=False)])  # some sit rounds out


def _verdicts(taken: Mapping[str, Taken]) -> str:
    """Return in words where ours stands: a difference counts where the quartiles of the ratio lie on one side of 1."""
    words = []
    for name in DECODED:
        low, high = np.percentile(_ratios(taken[name], taken["ours"]), (25, 75))
        if name != "ours":
            words.append(f"{'ahead of' if low > 1 else 'behind' if high < 1 else 'level with'} {name}")
    return ", ".join(words)


def _bound(placed: Placed, raw: Taken) -> tuple[float, float, float]:
    """Return CPU seconds an image, the least seen: of the server, of raw reading, and of decoding by one thread."""
    images = placed.images.kind.images
    pngs = list(itertools.islice(placed.images.encoded(), 2000))
    seconds = []
    for _ in range(3):
        began = time.process_time()
        for png in pngs:
            decode(png)
        seconds.append(time.process_time() - began)
    return raw["server_cpu"].min() / images, raw["cpu"].min() / images, min(seconds) / len(pngs)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sets, 2 rounds, no search")
    parser.add_argument("--rounds", type=int, help="rounds that count (default 5)")
    parser.add_argument("--environments", type=Path, help="folder that keeps the peers' environments (default: none)")
    given = parser.parse_args()
    rounds = given.rounds or (2 if given.quick else 5)
    small, large, huge = ((kind.tenth() if given.quick else kind) for kind in (SMALL, LARGE, HUGE))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streaming-")))
        environments = (given.environments or folder / "environments").absolute()
        for script in PEERS:
            environment(script, environments)
        server = stack.enter_context(Seaweed(folder / "server"))
        # Nothing stands between this machine and itself.
        os.environ.update(server.environment() | {"S3_ENDPOINT_URL": server.endpoint, "NO_PROXY": "127.0.0.1"})
        benchmark = Benchmark(Stage(environments, folder), server, folder)
        figures: dict[str, Any] = {}
        for kind in (small, large):
            print(f"\n{kind.images} images of {kind.side} pixels", flush=True)
            placed = benchmark.place(kind)
            taken = benchmark.measure(placed, ENCODED | DECODED, rounds, search=not given.quick)
            figures[kind.name] = report(placed, taken)
        memory = benchmark.memory(huge)
        mib, grown = memory["bytes"] / 2**20, memory["grown_mib"]
        held = "kept" if grown <= BUDGET_MIB else "missed"
        print(
            f"\n{mib:.0f} MiB decoded in {memory['seconds']:.1f} s, {mib / BUDGET_MIB:.1f} times the {BUDGET_MIB} MiB "
            f"allowed: memory at its peak {grown:.0f} MiB above the start, {held}"
        )
        figures["memory"] = {"set_mib": mib, "budget_mib": BUDGET_MIB, "grown_mib": grown}
    print(f"{time.monotonic() - began:.0f} s in all")
    common.record("streaming", rounds=rounds, **figures)


if __name__ == "__main__":
    main()
