"""Submitting a job once, however often it is asked for: what Ray and the marker know decides what is done."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import Cluster, ExistsError, RayJob
from hydramix_dist.orchestration.jobs.marker import Marker
from hydramix_dist.orchestration.jobs.naming import attempt_id, attempt_of, base_of

JOB, DIGEST, OUT = "hydramix_job", "hydramix_digest", "hydramix_out"  # keys of a job's metadata


@dataclass(frozen=True)
class Submission:
    """All that a `ray job submit` call is made of, but for address and attempt."""

    job: str
    base: str  # id of the first attempt
    digest: str
    out: str  # URL of the marker's folder
    arguments: tuple[str, ...]
    root: Path  # the folder that is uploaded
    environment: Mapping[str, str]
    cpus: float | None  # that the entry point itself reserves, on whichever node has them; None: it runs on the head

    @property
    def entrypoint(self) -> str:
        """Return the command line, quoted so that a shell takes every argument as it is."""
        return shlex.join(["python", f"jobs/{self.job}.py", *self.arguments])

    @property
    def metadata(self) -> dict[str, str]:
        """Return what Ray keeps with the job."""
        return {JOB: self.job, DIGEST: self.digest, OUT: self.out}

    def command(self, address: str, attempt: int) -> list[str]:
        """Return the words of the very same call of Ray's own command line."""
        cpus = [] if self.cpus is None else ["--entrypoint-num-cpus", f"{self.cpus:g}"]
        return [
            *("ray", "job", "submit", "--address", address, "--working-dir", str(self.root)),
            *("--submission-id", attempt_id(self.base, attempt), "--metadata-json", json.dumps(self.metadata)),
            *("--runtime-env-json", json.dumps({"env_vars": dict(self.environment)}), *cpus, "--"),
            *shlex.split(self.entrypoint),
        ]


@dataclass(frozen=True)
class Decision:
    """What is to be done: submit this attempt, join it, or nothing, for it has succeeded."""

    what: Literal["submit", "join", "done"]
    attempt: int
    why: str | None = None  # why an earlier attempt is followed by this one
    by: str | None = None  # id of the job that has succeeded, where it is not this attempt's


def decide(wanted: Submission, jobs: Sequence[RayJob], marker: Marker | None, *, judged: bool = True) -> Decision:
    """Return what is to be done, by what Ray knows and what the marker says.

    `judged`: the marker could be read; else Ray's word is taken. Raises UserError where the id belongs to other
    settings, or another job writes into the same folder.
    """
    attempts = {attempt_of(job.id) or 1: job for job in jobs if base_of(job.id) == wanted.base}
    ours = marker if marker is not None and base_of(marker.submission_id or "") == wanted.base else None
    _refuse_others(wanted, jobs, attempts, ours)
    last = max([*attempts, ours.attempt if ours else 0], default=0)
    newest = attempts.get(max(attempts, default=0))
    if newest is not None and not newest.over:
        return Decision("join", max(attempts))
    if marker is not None and marker.digest == wanted.digest and marker.state == "succeeded":
        return Decision("done", marker.attempt, by=marker.submission_id)
    if newest is not None and newest.state == "SUCCEEDED" and not judged:
        return Decision("done", last)
    return Decision("submit", last + 1, _why(newest, ours, last))


def _why(newest: RayJob | None, marker: Marker | None, last: int) -> str | None:
    if not last:
        return None
    if marker is not None and marker.attempt == last and marker.state != "running":
        return f"attempt {last} has {_said(marker.state)}" + (f" ({marker.reason})" if marker.reason else "")
    if newest is None or (attempt_of(newest.id) or 1) < last:
        return f"attempt {last} is lost: the cluster does not know it any more"
    if newest.state == "SUCCEEDED":
        return f"Ray says that attempt {last} succeeded, but no marker says so"
    return f"attempt {last} has {_said(newest.state.lower())}"


def _said(state: str) -> str:
    return {"failed": "failed", "stopped": "been stopped"}.get(state, state)


def _refuse_others(
    wanted: Submission, jobs: Sequence[RayJob], attempts: Mapping[int, RayJob], marker: Marker | None
) -> None:
    for digest in [*(job.metadata.get(DIGEST) for job in attempts.values()), marker.digest if marker else None]:
        if digest is not None and digest != wanted.digest:
            raise UserError(
                f"the job {wanted.base} belongs to other settings (digest {digest[:12]}, these have "
                f"{wanted.digest[:12]}); take another --name, or the settings that it was submitted with"
            )
    for job in jobs:
        if not job.over and base_of(job.id) != wanted.base and job.metadata.get(OUT) == wanted.out:
            same = job.metadata.get(DIGEST) == wanted.digest
            raise UserError(
                f"the job {job.id} is {job.state.lower()} and writes into {wanted.out}, with "
                + (
                    f"these settings; follow it (hydramix jobs logs {job.id} --follow)"
                    if same
                    else f"other settings; stop it (hydramix jobs stop {job.id}), or choose another folder"
                )
            )


def submit(cluster: Cluster, wanted: Submission, attempt: int) -> bool:
    """Submit an attempt; return whether this call did, False where somebody else was faster and it is theirs."""
    options: dict[str, Any] = {} if wanted.cpus is None else {"entrypoint_num_cpus": wanted.cpus}
    runtime = {"working_dir": str(wanted.root), "env_vars": dict(wanted.environment)}
    try:
        cluster.submit(
            attempt_id(wanted.base, attempt),
            wanted.entrypoint,
            runtime_env=runtime,
            metadata=wanted.metadata,
            **options,
        )
    except ExistsError:
        return False
    return True
