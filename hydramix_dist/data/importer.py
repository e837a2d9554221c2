"""Import: from a folder, archive or published file set to shards, index, segment maps and, last, the manifest."""

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data import staging
from hydramix_dist.data.claim import claim, complete, is_by_another, is_complete, release
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.decode import Refusal, native_size
from hydramix_dist.data.manifest import SCHEMA_VERSION, Fit, Refused
from hydramix_dist.data.pool import Workers, processes_for
from hydramix_dist.data.segmentation import default_side, segment_batch
from hydramix_dist.data.sources import ChangedError, Progress, Source, open_source, payload_digest
from hydramix_dist.data.writing import Choice, write_objects
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

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
    """Return the report of importing `src` into `dst`, each a path or URL.

    An interrupted import run again goes on where it was; a complete one is said to be complete, and only segment maps
    of a side or setting not there yet are made. `size`: stored side, pixels (default: the native one where all images
    are square, equal and at most 96, else 64). `holdout`: share for testing where the source has no test split.
    `progress(stage, done, total)` is called often, with the stages "read", "images" and "segments", and for an archive
    in object storage "copy" before them, in bytes.
    Raises UserError for bad input, or where `dst` holds something else.
    """
    started = time.monotonic()
    tell = progress or (lambda stage, done, total: None)
    _check_options(size, holdout, segment_side, workers)
    store = Store(dst)
    check_apart(src, store)
    with open_source(src, tell) as source:
        if not source.items:
            raise UserError(
                f"{source.name} has no image in any class folder; one sub-folder a class is needed, each with images"
            )
        # One set of processes for all that follows; they come up while this one reads.
        with Workers(workers or processes_for(len(source.items)), staging.prepare_batch, segment_batch) as running:
            pa.array([])  # pyarrow's first array imports pandas where that is installed; here no worker waits for it
            survey = _survey(source, tell)
            side = size or survey.side
            plan = _plan(source, survey.content, side, fit, holdout)
            choice = Choice(plan=plan, side=side, fit=fit, holdout=holdout, licence=licence)
            made = None if claim(store, plan, source.name) else _make(store, source, survey, choice, running, tell)
            dataset = made or Dataset.open(dst)
            if segments is not None:
                dataset.ensure_segments(segment_side or default_side(side), segments, running, tell)
    if made is not None and not complete(store, made.manifest):
        made = None  # of two imports of this plan the other one was faster
    release(store)
    return ImportReport(
        url=store.url,
        already_complete=made is None,
        classes=dataset.classes,
        counts=dataset.manifest.counts,
        side=dataset.side,
        refused=dataset.manifest.refused,
        warnings=dataset.manifest.warnings,
        seconds=time.monotonic() - started,
    )


def _make(
    store: Store, source: Source, survey: "_Survey", choice: Choice, workers: Workers, tell: Progress
) -> Dataset | None:
    """Return the data set, all of it stored but segment maps and manifest; None where another import has made it."""
    try:
        parts = staging.stage(
            store,
            source,
            survey.digests,
            plan=choice.plan,
            side=choice.side,
            fit=choice.fit,
            workers=workers,
            progress=tell,
        )
        manifest, index = write_objects(store, source, parts, choice)
    except ChangedError:
        release(store)  # the plan was made of what is no more: the folder is free for another
        raise
    except (OSError, UserError) as error:
        if is_by_another(error) and is_complete(store, choice.plan):
            return None
        if isinstance(error, FileNotFoundError | FileExistsError):
            raise UserError(
                f"{store.url} was changed by another program meanwhile ({error}); where another import of these "
                "images is at work there, let it end, else delete the folder; then run the same command again"
            ) from error
        raise
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
    """Raise UserError where a destination is the source, or lies inside it, which it would become a part of."""
    source = Store(src)
    origin, folder = source.local_path(), store.local_path()
    if origin and folder:
        same, inside = origin.resolve() == folder.resolve(), folder.resolve().is_relative_to(origin.resolve())
    else:
        same, inside = source.url == store.url, store.url.startswith(f"{source.url.rstrip('/')}/")
    if same:
        raise UserError(f"the destination {store.url} is the source itself; choose another folder")
    if inside:
        raise UserError(f"the destination {store.url} lies inside the source {src}; choose a folder outside of it")


@dataclass(frozen=True)
class _Survey:
    """What one look at every item gives: a digest of all ids and contents, each item's own, and the default side."""

    content: str
    digests: list[bytes]
    side: int


def _survey(source: Source, tell: Progress) -> _Survey:
    whole, digests, sizes = hashlib.sha256(), list[bytes](), set[tuple[int, int]]()
    with contextlib.closing(source.payloads(range(len(source.items)))) as payloads:
        for item, payload in zip(source.items, payloads, strict=True):
            digests.append(payload_digest(payload))
            whole.update(repr((item.id, item.split, item.label, digests[-1].hex())).encode())
            if len(sizes) <= 1 and not isinstance(payload, Refusal):
                with contextlib.suppress(Refusal):  # it is listed when it is decoded
                    sizes.add(native_size(payload))
            tell("read", len(digests), len(source.items))
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    native = width == height and 8 <= width <= _NATIVE_UP_TO
    return _Survey(whole.hexdigest(), digests, width if native else _DEFAULT_SIDE)


def _plan(source: Source, content: str, side: int, fit: Fit, holdout: float) -> str:
    """Return the digest of all that decides what the data set will hold; licence and segments are no part of it."""
    cut = holdout if not any(item.split for item in source.items) else None
    key = [SCHEMA_VERSION, source.layout, source.classes, content, side, fit, cut]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
