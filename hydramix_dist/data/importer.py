"""Import: from a folder, archive or published file set to shards, index, segment maps and, last, the manifest."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data import staging
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.decode import Refusal, native_size
from hydramix_dist.data.manifest import MANIFEST, SCHEMA_VERSION, Fit, Refused, read_manifest, write_manifest
from hydramix_dist.data.pool import Workers, processes_for
from hydramix_dist.data.segmentation import default_side, segment_batch
from hydramix_dist.data.sources import Source, open_source
from hydramix_dist.data.writing import Choice, write_objects
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

Progress = Callable[[str, int, int], None]

_CLAIM = f"{staging.FOLDER}/plan.json"
_DEFAULT_SIDE, _NATIVE_UP_TO = 64, 96


@dataclass(frozen=True)
class ImportReport:
    """What an import did. `counts` has, for each split, images a class in class order; `already_complete`: nothing."""

    url: str
    already_complete: bool
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    side: int
    refused: tuple[Refused, ...]
    warnings: tuple[str, ...]
    seconds: float


def import_dataset(
    src: str | Path,
    dst: str,
    *,
    size: int | None = None,
    fit: Fit = "crop",
    holdout: float = 0.5,
    licence: str | None = None,
    segments: SegmentSettings | None = SegmentSettings(),  # noqa: B008 - frozen
    segment_side: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Return the report of importing `src` (a local path) into `dst` (a path or URL).

    An interrupted import run again goes on where it was; a complete one is said to be complete, and only segment maps
    of a side or setting not there yet are made. `size`: stored side, pixels (default: the native one where all images
    are square, equal and at most 96, else 64). `holdout`: share for testing where the source has no test split.
    `progress(stage, done, total)` is called often, with the stages "read", "images" and "segments".
    Raises UserError for bad input, or where `dst` holds something else.
    """
    started = time.monotonic()
    tell = progress or (lambda stage, done, total: None)
    _check_options(size, holdout, segment_side, workers)
    store = Store(dst)
    check_apart(src, store)
    with open_source(src) as source:
        if not source.items:
            raise UserError(
                f"{source.name} has no image in any class folder; one sub-folder a class is needed, each with images"
            )
        # One set of processes for all that follows; they come up while this one reads.
        with Workers(workers or processes_for(len(source.items)), staging.prepare_batch, segment_batch) as running:
            pa.array([])  # pyarrow's first array imports pandas where that is installed; here no worker waits for it
            content, native = _survey(source, tell)
            side = size or native
            choice = Choice(
                plan=_plan(source, content, side, fit, holdout), side=side, fit=fit, holdout=holdout, licence=licence
            )
            complete = _claim(store, source, choice.plan)
            dataset = Dataset.open(dst) if complete else _brought_in(store, source, choice, running, tell)
            if segments is not None:
                dataset.ensure_segments(segment_side or default_side(side), segments, running, tell)
    if not complete:
        write_manifest(store, dataset.manifest)
    store.delete(staging.FOLDER)
    return ImportReport(
        url=store.url,
        already_complete=complete,
        classes=dataset.classes,
        counts=dataset.manifest.counts,
        side=dataset.side,
        refused=dataset.manifest.refused,
        warnings=dataset.manifest.warnings,
        seconds=time.monotonic() - started,
    )


def _brought_in(store: Store, source: Source, choice: Choice, workers: Workers, tell: Progress) -> Dataset:
    """Return the data set, all of it stored but segment maps and manifest."""
    parts = staging.stage(
        store, source, plan=choice.plan, side=choice.side, fit=choice.fit, workers=workers, progress=tell
    )
    manifest, index = write_objects(store, source, parts, choice)
    return Dataset(store, manifest, index)


# ---- before anything is written


def _check_options(size: int | None, holdout: float, segment_side: int | None, workers: int | None) -> None:
    for name, value in (("size", size), ("segment side", segment_side)):
        if value is not None and not 8 <= value <= 1024:
            raise UserError(f"{name} {value} is not between 8 and 1024 pixels")
    if not 0 < holdout < 1:
        raise UserError(f"holdout {holdout} is not between 0 and 1; it is the share of each class kept for testing")
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers} is below 1")


def check_apart(src: str | Path, store: Store) -> None:
    """Raise UserError where a destination lies inside the source, which it would become a part of."""
    folder = store.local_path()
    if folder and "://" not in str(src) and folder.resolve().is_relative_to(Path(src).resolve()):
        raise UserError(f"the destination {folder} lies inside the source {src}; choose a folder outside of it")


def _survey(source: Source, tell: Progress) -> tuple[str, int]:
    """Return a digest over every item's id and content, and the default side; each item is read once."""
    digest, sizes, sides_open = hashlib.sha256(), set[tuple[int, int]](), True
    for number, item in enumerate(source.items, start=1):
        payload = staging.read_item(item)
        raw = str(payload).encode() if isinstance(payload, Refusal) else payload
        body = hashlib.sha256(raw.tobytes() if isinstance(raw, np.ndarray) else raw).hexdigest()
        digest.update(repr((item.id, item.split, item.label, body)).encode())
        if sides_open and not isinstance(payload, Refusal):
            with contextlib.suppress(Refusal):  # it is listed when it is decoded
                sizes.add(native_size(payload))
            sides_open = len(sizes) <= 1
        tell("read", number, len(source.items))
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return digest.hexdigest(), width if width == height and 8 <= width <= _NATIVE_UP_TO else _DEFAULT_SIDE


def _plan(source: Source, content: str, side: int, fit: Fit, holdout: float) -> str:
    """Return the digest of all that decides what the data set will hold; licence and segments are no part of it."""
    cut = holdout if not any(item.split for item in source.items) else None
    key = [SCHEMA_VERSION, source.layout, source.classes, content, side, fit, cut]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _claim(store: Store, source: Source, plan: str) -> bool:
    """Return whether this very import is complete in `store`; else mark the folder as its own."""
    if store.exists(MANIFEST):
        if read_manifest(store).plan != plan:
            raise UserError(
                f"{store.url} holds another data set (other images, or another size, fit or holdout); "
                "choose another folder, or delete this one first"
            )
        return True
    store_is_new = not store.exists(_CLAIM)
    if store_is_new and store.exists() and store.list():
        raise UserError(f"{store.url} is not empty and holds no data set; choose another folder")
    mark = json.dumps({"plan": plan, "source": source.name}).encode()
    if not store.put_if_absent(_CLAIM, mark) and json.loads(store.read(_CLAIM))["plan"] != plan:
        raise UserError(
            f"{store.url} holds an unfinished import of other images or settings; "
            "choose another folder, or delete this one first"
        )
    return False
