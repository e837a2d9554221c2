"""What has become of a job, asked from outside: its marker's word, and Ray's where the marker is out of reach."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from hydramix_dist.config.store import VARIABLE, store_settings
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import RayJob
from hydramix_dist.orchestration.jobs.marker import Marker, marker_path, read_marker
from hydramix_dist.store import Store

PATIENCE_SECONDS = 5.0  # with a store that nodes may reach and this machine may not


@dataclass(frozen=True)
class Look:
    """A look for a marker: what was found, None for nothing, and why it could not be looked for, None where it was."""

    marker: Marker | None
    trouble: str | None


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `remark` says what is odd about it."""

    state: str
    exit_code: int
    remark: str | None = None


def look(url: str, job: str) -> Look:
    """Return what is to be seen of a job's marker from this machine, in seconds."""
    with _patience(PATIENCE_SECONDS):
        folder = Store(url)
        path = folder.local_path()
        if path is not None and not path.is_dir():
            return Look(None, f"there is no folder {path} on this machine")
        try:
            return Look(read_marker(folder, job), None)
        except UserError as error:
            return Look(None, str(error))


def judge(ended: RayJob, url: str, job: str) -> Outcome:
    """Return how a job that is over has ended."""
    seen = look(url, job)
    marker = seen.marker
    if marker is not None and marker.submission_id == ended.id and marker.exit_code is not None:
        return Outcome(marker.state, marker.exit_code)
    by_ray = {"SUCCEEDED": 0, "STOPPED": 130}.get(ended.state)
    code = by_ray if by_ray is not None else ended.exit_code if ended.exit_code in (1, 2, 130) else 1
    where = Store(url).path(marker_path(job))
    if seen.trouble is not None:
        return Outcome(_STATES.get(code, "failed"), code, f"this is Ray's word, for {where} cannot be read from here")
    if code == 0:
        return Outcome("failed", 1, f"Ray says that it succeeded, but {where} does not say so")
    if marker is None or marker.submission_id == ended.id:
        lack = "it did not come to write how it ended"
    else:
        lack = f"{where} tells of {marker.submission_id or 'another job'}"
    first = next((text for text in ended.message.splitlines() if text.strip()), "").partition(", last available")[0]
    return Outcome(_STATES.get(code, "failed"), code, f"{lack}; Ray says: {first or ended.state}")


_STATES = {0: "succeeded", 130: "stopped"}


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Have the store asked no longer than this while the block runs."""
    before = os.environ.get(VARIABLE)
    tree = store_settings().model_dump(exclude_unset=True) | {"patience": seconds}
    os.environ[VARIABLE] = json.dumps(tree, ensure_ascii=False)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
