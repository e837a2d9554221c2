"""A run's folder: what it is (`run.json`), where it stands (`status.json`), and that both belong to the same run."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

from hydramix_dist.errors import StoreAwayError, UserError
from hydramix_dist.store.store import Store

SCHEMA_VERSION = 1
_BEFORE = ("lease/", "data/", "ray/", "jobs/", "imported-from.txt")  # what a run writes before it has begun
_log = logging.getLogger("hydramix")
_LOST = "what this folder holds cannot be told any more: choose another folder, or delete this one"
State = Literal["running", "succeeded", "failed"]
# Settings that once were part of a run's identity, by its kind, and since may change from one command to the next.
_OUTGROWN = {"pilot": ("concurrent", "distributed")}
DELETED = "deleted"  # the kind of a run of which parts may be gone already


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON-ready value, the same for equal values whatever their key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class RunFolder:
    """One run in one folder. `identity` is what makes it this run and no other; `facts` may change between attempts."""

    def __init__(self, store: Store, record: Mapping[str, Any], attempt: int) -> None:
        self.store, self.record, self.attempt = store, record, attempt

    @classmethod
    def begin(cls, store: Store, kind: str, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> "RunFolder":
        """Make the folder or go on with it, and mark it running.

        Raises UserError where the folder holds another run (the first differing key is named) or one made by a
        newer version.
        """
        identity = json.loads(json.dumps(identity))
        record = {"schema_version": SCHEMA_VERSION, "kind": kind, "identity": identity, "facts": dict(facts)}
        begun = store.get("run.json") is not None
        if not begun:
            _refuse_strangers(store)
        if begun or not store.put_if_absent("run.json", _pretty(record)):
            _warn_of_changed_facts(check_same_run(store, kind, identity), record)
        run = cls(store, record, int(read_status(store).get("attempt", 0)) + 1)
        run._put_status("running", None)
        return run

    def succeed(self) -> None:
        """Mark the run finished."""
        self._end("succeeded", None)

    def fail(self, reason: str) -> None:
        """Mark the run failed or stopped, with the reason in words."""
        self._end("failed", reason)

    def fail_with(self, error: BaseException) -> None:
        """Mark the run failed or stopped by an error that is about to be raised, and stays the one that is told."""
        if isinstance(error, StoreAwayError):  # the mark would be waited for as long again, and not be made either
            return
        try:
            self.fail(str(error) or type(error).__name__)
        except UserError as unmarked:
            _log.warning("besides, the run could not be marked as failed: %s", unmarked)

    def _end(self, state: State, reason: str | None) -> None:
        # Of a folder that another process has taken over since, what becomes is that one's to say.
        if int(read_status(self.store).get("attempt", 0)) <= self.attempt:
            self._put_status(state, reason)

    def _put_status(self, state: State, reason: str | None) -> None:
        status = {
            "schema_version": SCHEMA_VERSION,
            "state": state,
            "attempt": self.attempt,
            "reason": reason,
            "updated": round(time.time(), 3),
        }
        self.store.put("status.json", _pretty(status))


def _refuse_strangers(store: Store) -> None:
    """Raise UserError where a run would begin among objects of somebody else: a bucket is nobody's working folder."""
    there = [] if store.local_path() is not None else store.list()
    if "run.json" in there:  # another process has begun it a moment ago: whose it is, the put below tells
        return
    for path in there:
        if not path.startswith(_BEFORE):
            raise UserError(
                f"{store.url} holds no run, but other objects (such as {path}); choose an empty folder, for example "
                f"{store.path('runs/first')}"
            )


def mark_failed(store: Store, reason: str) -> None:
    """Mark a run failed for those that cannot do it themselves any more."""
    RunFolder(store, read_run(store), int(read_status(store).get("attempt", 0))).fail(reason)


def mark_deleted(store: Store) -> None:
    """Have nobody take the run for a whole one any more: in its record's place stands what it was. To be removed last.

    Raises UserError where the folder holds no run.
    """
    if parse_record(store)["kind"] != DELETED:
        kind = read_run(store)["kind"]
        mark = {"kind": DELETED, "identity": {}, "facts": {"was": kind}}
        store.put("run.json", _pretty({"schema_version": SCHEMA_VERSION, **mark}))


def check_same_run(store: Store, kind: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return `run.json` of a folder that holds this very run. Raises UserError where it holds another, or none."""
    old = read_run(store)
    if old["kind"] != kind:
        raise UserError(f"{store.url} holds a {old['kind']} run, not a {kind} run; choose another folder")
    difference = _first_difference(_as_now(kind, old["identity"]), json.loads(json.dumps(identity)))
    if difference:
        raise UserError(f"{store.url} holds another run: {difference}; choose another folder, or the same settings")
    return old


def _as_now(kind: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded identity without the settings that earlier versions took for a part of it."""
    settings = identity.get("settings")
    if not isinstance(settings, Mapping):
        return dict(identity)
    outgrown = _OUTGROWN.get(kind, ())
    return {**identity, "settings": {key: value for key, value in settings.items() if key not in outgrown}}


def read_run(store: Store) -> dict[str, Any]:
    """Return `run.json`. Raises UserError where there is no run, one of a newer version, or what is left of one."""
    record = parse_record(store)
    if record["kind"] == DELETED:
        raise UserError(
            f"{store.url} holds what is left of a {record['facts'].get('was')} run whose deletion was interrupted; end "
            f"it with: hydramix runs delete {store.url} --yes"
        )
    return record


def parse_record(store: Store) -> dict[str, Any]:
    """Return `run.json`, also that of a run that is being deleted. Raises UserError as `read_run` does otherwise."""
    try:
        record = json.loads(store.read("run.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{store.url} holds no run (no run.json); give the folder that a command named at its end"
        ) from error
    except ValueError as error:
        raise UserError(f"{store.path('run.json')} is damaged ({error}); {_LOST}") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{store.path('run.json')} is damaged (it is no record of a run); {_LOST}")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{store.path('run.json')} was made by a newer version (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update hydramix_dist"
        )
    if not (isinstance(record.get("identity"), dict) and isinstance(record.get("facts"), dict) and "kind" in record):
        raise UserError(f"{store.path('run.json')} is damaged (a part of it is missing); {_LOST}")
    return dict(record)


def read_status(store: Store) -> dict[str, Any]:
    """Return `status.json`, or an empty mapping where there is none yet. Raises UserError where it is damaged."""
    return read_json(store, "status.json") or {}


def read_json(store: Store, path: str) -> dict[str, Any] | None:
    """Return a JSON mapping that the run's command can write anew, None where there is none.

    Raises UserError where it is damaged.
    """
    text = store.get(path)
    try:
        return None if text is None else dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{store.path(path)} is damaged ({error}); delete it and run the command again") from error


def _warn_of_changed_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    no_matter = dict.fromkeys(("data_url", "source", "preset", "shared"))  # the identity has fingerprint and settings
    difference = _first_difference({**old["facts"], **no_matter}, {**new["facts"], **no_matter})
    if difference:
        _log.warning(
            "this run began elsewhere or otherwise: %s; it goes on, but its numbers may differ in the last bits",
            difference,
        )


def _first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Return "key a.b: was 1, now 2" for the first place where two JSON trees differ, or None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                return f"{inner} is {'new' if key not in old else 'gone'}"
            difference = _first_difference(old[key], new[key], inner)
            if difference:
                return difference
        return None
    return None if old == new else f"{path} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
