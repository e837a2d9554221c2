"""The marker of a job in its output folder: what has become of it, told by the job itself.

Ray forgets its jobs with its head, and other systems report what their own pods did. So who asks whether a job has
succeeded reads `jobs/JOB.json`. A job that is killed leaves the state "running": Ray's word and the next attempt settle
it.
"""

import json
import logging
import platform
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hydramix_dist import __version__
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_json

SCHEMA_VERSION = 1
JOBS = ("import_data", "pilot", "train_generator", "train_classifier", "sweep", "report")
State = Literal["running", "succeeded", "failed", "stopped"]
_log = logging.getLogger("hydramix")


@dataclass(frozen=True)
class Marker:
    """What a job says of itself. `attempt` counts from 1, `begun` and `ended` are seconds since 1970."""

    job: str
    digest: str
    submission_id: str | None
    attempt: int
    state: State
    exit_code: int | None
    reason: str | None
    versions: dict[str, str]
    begun: float
    ended: float | None
    schema_version: int = SCHEMA_VERSION


def marker_path(job: str) -> str:
    """Return where the marker of a job lies in its output folder."""
    return f"jobs/{job}.json"


def read_marker(folder: Store, job: str) -> Marker | None:
    """Return the marker, None where no job has begun there.

    Raises UserError where it cannot be read, is damaged, or was made by a newer version.
    """
    tree = read_json(folder, marker_path(job))
    if tree is None:
        return None
    version = tree.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"{folder.path(marker_path(job))} was made by a newer version (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update hydramix_dist"
        )
    try:
        return Marker(**tree)
    except TypeError as error:
        raise UserError(
            f"{folder.path(marker_path(job))} is damaged ({error}); delete it and run the command again"
        ) from error


def begin(folder: Store, job: str, digest: str, submission_id: str | None, attempt: int | None) -> Marker:
    """Write that a job is running, and return the marker. `attempt` None: one more than the marker there has."""
    before = read_marker(folder, job)
    marker = Marker(
        job=job,
        digest=digest,
        submission_id=submission_id,
        attempt=attempt if attempt is not None else (before.attempt if before else 0) + 1,
        state="running",
        exit_code=None,
        reason=None,
        versions=_versions(),
        begun=round(time.time(), 3),
        ended=None,
    )
    _put(folder, marker)
    return marker


def end(
    folder: Store,
    marker: Marker,
    code: int,
    reason: str | None,
    before: Marker | None = None,
    *,
    held: bool = False,
) -> None:
    """Write how a job ended. The word of one that began later stands, unless this one has succeeded.

    `before` is what the folder had, which stands where this job was refused: because another process runs there
    (`held`), or as bad input where another job runs or has succeeded.
    """
    now = read_marker(folder, marker.job)
    if code and now is not None and now != marker:
        _log.warning(
            "%s has begun here since this job did, which ended with: %s", now.submission_id or "another", reason
        )
        return
    if before is not None:
        others = before.digest != marker.digest and before.state in ("running", "succeeded")
        if held or (code == 2 and others):
            _put(folder, before)
            return
    states: dict[int, State] = {0: "succeeded", 130: "stopped"}
    state = states.get(code, "failed")
    _put(folder, replace(marker, state=state, exit_code=code, reason=reason, ended=round(time.time(), 3)))


def _put(folder: Store, marker: Marker) -> None:
    tree: dict[str, Any] = asdict(marker)
    folder.put(marker_path(marker.job), (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode())


def _versions() -> dict[str, str]:
    import ray

    return {"hydramix_dist": __version__, "ray": ray.__version__, "python": platform.python_version()}
