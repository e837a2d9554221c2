"""Which runs a folder or bucket holds: what each is, how it stands, its size, and which others need it.

One listing of the place, then `run.json` and `status.json` of each run, many at a time; of one in a bucket that may be
running, its lease; nothing else is read.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from hydramix_dist.config.store import store_settings
from hydramix_dist.errors import StoreAwayError, UserError
from hydramix_dist.store import Store
from hydramix_dist.store.lease import is_held
from hydramix_dist.store.run import DELETED, parse_record, read_status
from hydramix_dist.store.store import Entry

# Where pilots and sweeps keep the trainings that are part of them.
INNER = ("generators", "classifiers", "candidates")
_OF_HOLDERS = (".lock", "lease/")  # changed by whoever only looks whether a run may be removed


@dataclass(frozen=True)
class Run:
    """One run of a place, with all that lies in its folder.

    `state` is running, succeeded, failed, killed (not running any more, though nobody has said so), deleted (what an
    interrupted deletion has left) or damaged (its record cannot be read; `reason` says why). `word` is the Unix time of
    its last word: when it ended, or when anything of it was written last. By name, `users` are the runs that need it,
    `doubts` the damaged ones, which may need what it holds, and `strangers` the other runs and image sets in it.
    """

    name: str  # its path below the place; the folder's own name where it is the place itself
    store: Store
    kind: str
    state: str
    reason: str | None
    word: float
    attempt: int
    entries: Mapping[str, Entry]
    record: Mapping[str, Any]
    held: bool | None = False  # by a process; None: only one on another machine could tell
    users: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Return the size of all that lies in its folder."""
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def checkpoints(self) -> dict[str, list[str]]:
        """Return the checkpoints' folders, oldest first, of each of its trainings ("" is the run itself)."""
        found = defaultdict(list)
        for path in sorted(self.entries):
            training, folder, rest = path.rpartition("checkpoints/")
            images, slash, name = rest.partition("/")
            if folder and slash and name == "manifest.json" and images.isdecimal() and len(images) >= 12:
                found[training.rstrip("/")].append(f"checkpoints/{images}")
        return dict(found)

    def url_of(self, user: str) -> str:
        """Return where one of its users lies."""
        return self.store.url.removesuffix(self.name) + user

    @property
    def ended(self) -> bool:
        """Return whether it runs no more, whatever came of it, as far as can be told from here at once."""
        return self.state in ("succeeded", "failed", "killed") or (self.state == "running" and self.held is None)


def find_runs(place: Store) -> list[Run]:
    """Return the runs below a folder, sorted by name; trainings inside a pilot or a sweep are part of it.

    Raises UserError where there is no such folder.
    """
    entries = place.entries()
    if not entries and not place.exists():
        raise UserError(f"{place.url} does not exist; give a folder or URL that holds runs")
    folders = owners(entries)
    parts: dict[str, dict[str, Entry]] = {folder: {} for folder in folders.values()}
    for path, entry in entries.items():
        owner = _owner_of(path, folders)
        if owner is not None:
            parts[owner][path[len(owner) :].lstrip("/")] = entry
    strangers = strangers_in(entries, folders)
    with ThreadPoolExecutor(store_settings().requests) as threads:
        runs = list(threads.map(lambda folder: _look(place, folder, parts[folder]), sorted(parts)))
    users, damaged = _users(runs), tuple(run.name for run in runs if run.state == "damaged")
    return [
        replace(
            run,
            users=users[run.name],
            doubts=damaged if _holds_for_others(run) else (),
            strangers=tuple(strangers[_folder(place, run)]),
        )
        for run in runs
    ]


def owner_above(store: Store) -> Store | None:
    """Return the pilot or sweep that a folder is part of, None where it is part of none."""
    scheme, separator, rest = store.url.partition("://") if "://" in store.url else ("", "/", store.url[1:])
    parts = rest.split("/")
    for position in range(len(parts) - 1, 0, -1):
        outer = scheme + separator + "/".join(parts[:position])
        if parts[position] in INNER and Store(outer).get("run.json") is not None:
            return Store(outer)
    return None


# ---- whose what lies there is


def owners(paths: Collection[str]) -> dict[str, str]:
    """Return, of a listing, the run that each folder with a record is, or is part of."""
    folders = (path.removesuffix("run.json").rstrip("/") for path in paths if _is_record(path))
    found: dict[str, str] = {}
    for folder in sorted(folders, key=lambda folder: (folder.count("/"), folder)):
        outer = next((above for above in _above(folder) if above in found and _inside(above, folder)), None)
        found[folder] = folder if outer is None else found[outer]
    return found


def strangers_in(paths: Collection[str], folders: Mapping[str, str]) -> dict[str, list[str]]:
    """Return, of a listing and its `owners`, the other runs and image sets in each run's folder.

    Images in its `data` are its own.
    """
    found: dict[str, list[str]] = {folder: [] for folder in folders.values()}
    for run in found:
        for outer in _above(run):
            if outer in found:
                found[outer].append(run)
    for images in _image_sets(paths):
        for outer in _above(images):
            if outer in found and images != f"{outer}/data".lstrip("/"):
                found[outer].append(images)
    return found


def _is_record(path: str) -> bool:
    return path == "run.json" or path.endswith("/run.json")


def _inside(outer: str, folder: str) -> bool:
    return folder[len(outer) :].lstrip("/").partition("/")[0] in INNER


def _above(path: str) -> Iterator[str]:
    """Yield the folders that a path lies in, the nearest first, "" last."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _owner_of(path: str, folders: Mapping[str, str]) -> str | None:
    return next((folders[above] for above in _above(path) if above in folders), None)


def _image_sets(paths: Collection[str]) -> list[str]:
    names = (path.removesuffix("/index.parquet") for path in paths if path.endswith("/index.parquet"))
    return [name for name in names if f"{name}/manifest.json" in paths]


def _folder(place: Store, run: Run) -> str:
    return run.store.url[len(place.url) :].lstrip("/")


# ---- one run


def _look(place: Store, folder: str, entries: Mapping[str, Entry]) -> Run:
    store = place.child(folder) if folder else place
    written = [entry.changed for path, entry in entries.items() if not path.startswith(_OF_HOLDERS)]
    run = Run(folder or place.name, store, "?", "damaged", None, max(written, default=0.0), 0, entries, {})
    try:
        record, status = parse_record(store), read_status(store)
        state = DELETED if record["kind"] == DELETED else str(status.get("state", "running"))
        held = is_held(store) if state == "running" else False
    except StoreAwayError:  # which is no word about this run
        raise
    except UserError as error:
        return replace(run, reason=str(error))
    if state == DELETED:
        return replace(run, kind=str(record["facts"].get("was")), state=DELETED, record=record)
    state = "killed" if state == "running" and held is False else state
    word = float(status["updated"]) if state in ("succeeded", "failed") and "updated" in status else run.word
    attempt = int(status.get("attempt", 0))
    known = replace(run, kind=str(record["kind"]), state=state, reason=status.get("reason"), record=record)
    return replace(known, word=word, attempt=attempt, held=held)


# ---- who needs whom


def _users(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Return, for each run, the names of the runs that need what it holds: a generator, or images."""
    users: dict[str, set[str]] = {run.name: set() for run in runs}
    wanted = {run.name: run.record.get("identity", {}).get("generator") for run in runs}
    wanted = {name: key for name, key in wanted.items() if key is not None}
    by_url = {_tidy(run.store.url): run for run in runs}
    sharing: dict[str, list[str]] = defaultdict(list)
    for user in runs:
        shared, images = _places(user)
        for url in shared:
            sharing[url].append(user.name)
        for folder in (above for url in (*shared, *images) for above in (url, *_above(url))):
            if folder in by_url:
                users[by_url[folder].name].add(user.name)
    for run in runs:
        keys = _generators(run) if wanted else set()
        users[run.name].update(name for name, key in wanted.items() if key in keys)
        if run.kind == "generator" and run.state != DELETED:
            for folder in _above(_tidy(run.store.url)):
                users[run.name].update(sharing.get(folder, ()))
    return {name: tuple(sorted(found - {name})) for name, found in users.items()}


def _generators(run: Run) -> set[str]:
    """Return the keys of the generators that a run is, or has among its trainings."""
    inner = {path.split("/")[1] for path in run.entries if path.startswith("generators/") and _is_record(path)}
    if run.kind != "generator" or run.state == DELETED:
        return inner
    from hydramix_dist.training.generator import generator_key  # brings torch in, which most places can do without

    return {*inner, generator_key(run.record["identity"])}


def _holds_for_others(run: Run) -> bool:
    """Return whether others can need it: it is or has a generator, or has images."""
    if run.state in (DELETED, "damaged"):
        return False
    return run.kind == "generator" or any(path.startswith(("generators/", "data/")) for path in run.entries)


def _places(user: Run) -> tuple[list[str], list[str]]:
    """Return what a run goes on with outside of its folder: a sweep's shared folder, and the folders of images.

    A path that is not whole is taken as one from here: most commands are given where this one is.
    """
    facts, settings = user.record.get("facts", {}), user.record.get("identity", {}).get("settings", {})
    sweep = user.kind == "sweep"
    images = settings.get("data") if sweep else [facts.get("source"), facts.get("data_url")]
    found = [[facts.get("shared")] if sweep else [], images or []]
    shared, images = ([_tidy(url) for url in urls if isinstance(url, str)] for urls in found)
    return shared, images


def _tidy(url: str) -> str:
    """Return one name for a folder, whatever links and spellings it was called by."""
    url = url.removeprefix("file://").rstrip("/")
    return url.replace("s3a://", "s3://", 1) if "://" in url else os.path.realpath(url)
