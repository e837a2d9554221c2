"""A sweep from images to its table: begun or gone on with, stopped at any moment without loss."""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from hydramix_dist.config.load import dump
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.display import Display
from hydramix_dist.orchestration.exporting import exporting
from hydramix_dist.orchestration.images import check_source, open_data
from hydramix_dist.orchestration.pool import Stop
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.design import Design
from hydramix_dist.orchestration.sweep.ledger import Ledger, read_events
from hydramix_dist.orchestration.sweep.metrics import SweepMetrics
from hydramix_dist.orchestration.sweep.probe import probe
from hydramix_dist.orchestration.sweep.room import at_a_time, driver_room, reserve
from hydramix_dist.orchestration.sweep.standing import Standing, read_standing
from hydramix_dist.orchestration.sweep.watch import SweepDisplay, Watch
from hydramix_dist.orchestration.sweep.work import Together, Work, alone
from hydramix_dist.orchestration.train import check_workers
from hydramix_dist.store import Store
from hydramix_dist.store.lease import HeldError, exclusively
from hydramix_dist.store.run import RunFolder, check_same_run, digest, read_status
from hydramix_dist.telemetry import Recorder
from hydramix_dist.training import environment
from hydramix_dist.training.classifier import classifier_length
from hydramix_dist.training.generator import generator_length
from hydramix_dist.training.loop import prepare_device

# What may change from one command to the next; all else makes a sweep this one.
CHANGEABLE = ("limits", "priorities", "distributed", "concurrent")
_WAIT_SECONDS = 2.0  # between two looks whether another process has imported what this one needs


@dataclass(frozen=True)
class Sweep:
    """What is to be run, and where. `shared` holds generators and imported images, for other sweeps as well."""

    settings: SweepSettings
    whole: PilotSettings
    out: Store
    shared: Store
    config: str  # what the user named, for the record
    address: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Return what makes a sweep this one and no other."""
        return identity_of(self.settings) | {"arms": list(self.whole.arms)}  # whose names follow the order of axes


def identity_of(settings: SweepSettings) -> dict[str, Any]:
    """Return the settings that make a sweep this one: all but those that a later command may change."""
    tree: dict[str, Any] = json.loads(json.dumps(dump(settings)))
    return {"settings": {key: value for key, value in tree.items() if key not in CHANGEABLE}}


def run_sweep(
    sweep: Sweep,
    display: SweepDisplay,
    *,
    only_failed: bool = False,
    work: Work | None = None,
) -> Standing:
    """Carry the sweep out as far as its limits let it; return where it stands then.

    What failed for good under an earlier command stays so, unless `only_failed`: then nothing else is begun. `work` is
    what carries a training out, in place of the training itself, which is then not measured before. Raises
    Interrupted when asked to stop, UserError for bad input, for a folder that holds another sweep, and where another
    process is running in it.
    """
    check_sweep(sweep)
    driver = {"run": sweep.out.name, "role": "driver"}
    with exclusively(sweep.out) as held, exporting(driver, ("Sweep", "Data"), sweep.out) as recorder:
        design = make_design(sweep, display)
        folder = _begin(sweep)
        try:
            segment(design, display)
            with Ledger(sweep.out) as ledger, Stop() as stop:
                held.when_lost(stop.request)
                book = Book(design, ledger.write)
                book.replay(read_events(sweep.out))
                if only_failed:
                    book.only_failed()
                _open_session(ledger, sweep, design)
                reason = "failed"  # unless it comes to a better end
                try:
                    reason = _carry_out(sweep, design, book, stop, display, recorder, work)
                finally:
                    if not held.lost:
                        ledger.write({"event": "ended", "reason": reason})
        except BaseException as error:
            held.check()
            folder.fail_with(error)
            raise
        if reason == "stopped":
            folder.fail("stopped")
            raise Interrupted(f"stopped; all is saved: hydramix sweep resume {sweep.out.url} goes on from there")
        standing = read_standing(sweep.out)
        counts = standing.counts
        if counts["failed"]:
            folder.fail(f"{counts['failed']} of {len(standing.lines)} trainings failed")
        elif counts["left"]:
            folder.fail(f"a limit was reached, {counts['left']} trainings are left")
        elif counts["pending"]:
            folder.fail(f"{counts['pending']} trainings are still to begin")
        else:
            folder.succeed()
        standing.state = str(read_status(sweep.out)["state"])
        return standing


def check_sweep(sweep: Sweep) -> None:
    """Raise UserError for what can be refused in seconds: sources, folders, workers, another sweep of that name."""
    for source in sweep.settings.data or (None,):
        check_source(source, imported_into(sweep.shared, source))
    if sweep.out.get("run.json") is not None:
        check_same_run(sweep.out, "sweep", sweep.identity)
    whole, search = sweep.whole, sweep.settings.search
    lengths = [
        *(generator_length(generator) for generator in whole.generators.values()),
        *(classifier_length(whole.classifier_of(arm)) for arm in whole.arms),
    ]
    check_workers(whole.distributed, whole.runtime, lengths, sweep.address)
    if search is not None and search.method == "asha" and whole.distributed.workers > 1:
        raise UserError(
            "search.method asha stops trainings of one process; with distributed.workers above 1 use random or optuna"
        )


def imported_into(shared: Store, source: str | None) -> Store:
    """Return the folder that a source is imported into, once for all sweeps that share."""
    return shared.child(f"imported/{digest([source])[:12]}")


def open_parts(sweep: Sweep, display: Display) -> dict[str, Dataset]:
    """Return the data sets by name, imported where they are not yet; another sweep that imports one is waited for."""
    found: dict[str, Dataset] = {}
    for source in sweep.settings.data or (None,):
        name = stem = "photo-patches" if source is None else _stem(source)
        while name in found:
            name = f"{stem}-{len(found) + 1}"
        with _waiting_for(imported_into(sweep.shared, source), display):
            found[name] = open_data(source, imported_into(sweep.shared, source), display)
    return found


def make_design(sweep: Sweep, display: Display) -> Design:
    """Return the sweep's trainings on its data sets, imported where they are not yet.

    Raises UserError where a data set is not the one that the sweep was begun with.
    """
    datasets = open_parts(sweep, display)
    for event in read_events(sweep.out):
        if event["event"] == "data" and datasets[event["name"]].fingerprint != event["fingerprint"]:
            raise UserError(
                f"{datasets[event['name']].store.url} holds other images than those {sweep.out.url} was begun with; "
                "give the sweep another --out"
            )
    return Design(sweep.settings, sweep.whole, datasets, sweep.out, sweep.shared)


def segment(design: Design, display: Display) -> None:
    """Make the segment maps that trainings take, where they are absent: before they start, so that none makes them."""
    one_each = {(cell.data, cell.arm): cell for cell in design.cells}
    needed = {
        (cell.data, side, settings)
        for cell in one_each.values()
        for trial in design.final(cell, {})
        for side, settings in trial.task.segment_maps()
    }
    for name, side, settings in sorted(needed, key=str):
        lock = f"imported/segmenting-{design.datasets[name].fingerprint[:12]}"
        with _waiting_for(design.shared.child(lock), display):
            design.datasets[name].ensure_segments(side, settings, progress=display.progress)


def _begin(sweep: Sweep) -> RunFolder:
    facts = environment.facts(sweep.settings.runtime, prepare_device(sweep.settings.runtime))
    facts |= {"shared": sweep.shared.url, "source": sweep.config}
    return RunFolder.begin(sweep.out, "sweep", sweep.identity, facts)


def _open_session(ledger: Ledger, sweep: Sweep, design: Design) -> None:
    ledger.write({"event": "session", "settings": dump(sweep.settings)})
    for name, dataset in design.datasets.items():
        ledger.write({"event": "data", "name": name, "url": dataset.store.url, "fingerprint": dataset.fingerprint})


def _carry_out(
    sweep: Sweep,
    design: Design,
    book: Book,
    stop: Stop,
    display: SweepDisplay,
    recorder: Recorder,
    work: Work | None,
) -> str:
    """Run what the book has; return why it ended: "over", "limit" or "stopped"."""
    if book.over:
        return "limit" if book.unfinished else "over"
    settings, here = sweep.settings, sweep.address is None
    together = settings.distributed.workers > 1
    # What is known of this machine says nothing about a cluster's nodes.
    measure = work is None and not together
    known = probe(design.samples(), design.shared, display.progress) if measure and here else None
    display.say("starting Ray on this machine" if sweep.address is None else f"joining the cluster at {sweep.address}")
    with ray_session(settings.distributed, settings.runtime, sweep.address) as session:
        from hydramix_dist.orchestration.sweep.tuner import Room, nodes, probed, run_on_tune

        where = "this machine" if here else f"the cluster at {sweep.address}"
        if together:
            work = work or Together(settings.distributed, session.resources)
            resources, concurrent = driver_room(settings, session.resources, nodes(), where)
            gpus = session.resources.get("GPU", 0.0) * settings.distributed.workers
        else:
            if measure and not here:
                display.say(f"measuring the trainings on a node of {where}")
                known = probed(design)
            resources = reserve(known, settings)
            concurrent = at_a_time(resources, settings, nodes(), where)
            gpus = resources.get("GPU", 0.0)
        hours = settings.limits.hours
        deadline = None if hours is None else time.monotonic() + 3600 * hours

        def late() -> bool:
            return deadline is not None and time.monotonic() > deadline

        metrics = SweepMetrics(book, recorder, gpus)

        def look(watch: Watch) -> None:
            display.look(book, watch)
            metrics.tell()

        room = Room(resources, concurrent, gpus)
        run_on_tune(book, settings, work or alone, room, lambda: stop.requested or late(), Watch(look))
        metrics.tell(last=True)
    if stop.requested:
        return "stopped"
    return "limit" if book.unfinished else "over"


@contextlib.contextmanager
def _waiting_for(store: Store, display: Display) -> Iterator[None]:
    """Hold a folder that others share, once they are done with it."""
    said = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusively(store))
                break
            except HeldError:
                if not said:
                    display.say(f"waiting for another process that is writing into {store.url}")
                said = True
                time.sleep(_WAIT_SECONDS)
        yield


def _stem(source: str) -> str:
    name = PurePosixPath(source.rstrip("/")).name
    for ending in (".zip", ".tar.gz", ".tgz", ".tar"):
        name = name.removesuffix(ending)
    return re.sub(r"[^\w.-]+", "-", name) or "data"
