"""The commands `hydramix jobs list|logs|stop`."""

import json
import sys
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hydramix_dist.cli.console import error_console, print_json, print_line, spoken
from hydramix_dist.cli.submit import address_of, writer
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import Cluster, RayJob
from hydramix_dist.orchestration.jobs.follow import LostError, follow, wait_until_over
from hydramix_dist.orchestration.jobs.outcome import judge
from hydramix_dist.orchestration.jobs.submission import JOB, OUT
from hydramix_dist.orchestration.jobs.upload import STOP_SECONDS

_PIPE_WIDTH = 400  # so that ids and URLs stay whole
_STOPPED_WITHIN = STOP_SECONDS + 30.0  # after the kill Ray has to notice


def list_command(address: str | None, json_: bool) -> int:
    """Show the jobs of this program that the cluster knows, the newest last; return 0."""
    cluster = _cluster(address)
    jobs = [job for job in cluster.jobs() if JOB in job.metadata]
    if json_:
        print_json(json.dumps({"address": cluster.address, "jobs": [_plain(job) for job in jobs]}))
        return 0
    if not jobs:
        print(f"no jobs of hydramix at {cluster.address}; a head that is started anew has forgotten those before")
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("id", "job", "state", "begun", "took", "out"):
        table.add_column(heading, justify="right" if heading == "took" else "left", overflow="fold")
    for job in jobs:
        begun = "-" if job.begun is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(job.begun))
        took = "-" if job.begun is None else spoken((job.ended or time.time()) - job.begun)
        cells = (job.id, job.metadata[JOB], job.state.lower(), begun, took, job.metadata.get(OUT, "-"))
        table.add_row(*(Text(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    return 0


def logs_command(submission_id: str, address: str | None, follow_: bool) -> int:
    """Show what a job has said and return 0; with `follow_` what it says until its end, and return how it ended."""
    cluster = _cluster(address)
    _known(cluster, submission_id)
    if not follow_:
        sys.stdout.write(cluster.logs(submission_id))
        return 0
    console = error_console()

    try:
        job = follow(cluster, submission_id, writer(sys.stdout), lambda text: print_line(console, text))
    except KeyboardInterrupt:
        print_line(console, f"\n{submission_id} goes on")
        return 130
    except LostError as lost:
        print_line(console, f"failed: {lost}")
        return 1
    if JOB not in job.metadata:  # not ours: it leaves no marker
        print_line(console, f"{submission_id}: {job.state.lower()}")
        return 0 if job.state == "SUCCEEDED" else 1
    outcome = judge(job, job.metadata[OUT], job.metadata[JOB])
    print_line(console, f"{submission_id}: {outcome.state}" + (f"; {outcome.remark}" if outcome.remark else ""))
    return outcome.exit_code


def stop_command(submission_id: str, address: str | None) -> int:
    """Stop a job and wait until it has; return 0, or 1 where it has not stopped in time."""
    cluster, console = _cluster(address), error_console()
    job = _known(cluster, submission_id)
    if job.over:
        print_line(console, f"{submission_id} is over already: {job.state.lower()}")
        return 0
    print_line(console, f"stopping {submission_id}; it has {STOP_SECONDS} s to save")
    cluster.stop(submission_id)
    after = wait_until_over(cluster, submission_id, _STOPPED_WITHIN)
    if after is not None and not after.over:
        print_line(
            console, f"{submission_id} is still {after.state.lower()} after {_STOPPED_WITHIN:.0f} s; look at its node"
        )
        return 1
    state = "gone" if after is None else after.state.lower()
    print_line(
        console, f"{submission_id}: {state}; submitted again with the same settings it goes on from its last checkpoint"
    )
    return 0


def _cluster(address: str | None) -> Cluster:
    cluster = Cluster(address_of(address))
    cluster.check()
    return cluster


def _known(cluster: Cluster, submission_id: str) -> RayJob:
    job = cluster.job(submission_id)
    if job is None:
        raise UserError(
            f"the cluster at {cluster.address} knows no job '{submission_id}'; see: hydramix jobs list --address "
            f"{cluster.address}"
        )
    return job


def _plain(job: RayJob) -> dict[str, object]:
    return {
        "submission_id": job.id,
        "job": job.metadata.get(JOB),
        "state": job.state.lower(),
        "begun": job.begun,
        "ended": job.ended,
        "exit_code": job.exit_code,
        "out": job.metadata.get(OUT),
    }
