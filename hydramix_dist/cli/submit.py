"""The command `hydramix submit`."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from hydramix_dist.cli.console import error_console, print_json, print_line
from hydramix_dist.cli.job_request import Request, request
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.capacity import (
    ask_of_one,
    ask_of_sweep,
    ask_of_workers,
    check_capacity,
    declared_nodes,
)
from hydramix_dist.orchestration.jobs.cluster import (
    ADDRESS_VARIABLES,
    Cluster,
    dashboard_address,
    default_address,
)
from hydramix_dist.orchestration.jobs.follow import LostError, follow
from hydramix_dist.orchestration.jobs.naming import attempt_id, base_id
from hydramix_dist.orchestration.jobs.outcome import Outcome, judge, look
from hydramix_dist.orchestration.jobs.submission import Decision, Submission, decide, submit
from hydramix_dist.orchestration.jobs.upload import checkout, config_inside, environment
from hydramix_dist.store import Store

_TRIES = 3  # to find out what to do, where others submit the same at the same time


def submit_command(
    job: str,
    words: Sequence[str],
    address: str | None,
    out: str | None,
    shared: str | None,
    name: str | None,
    cluster_file: Path | None,
    wait: bool,
    dry_run: bool,
    json_: bool,
) -> int:
    """Submit a job, or join it, and return its exit code at its end; 0 at once where it is not waited for."""
    console = error_console()
    given_address = address_of(address)
    asked = _read(job, words, out, shared)
    wanted = _submission(asked, name, cluster_file)
    if dry_run:
        return _dry_run(wanted, given_address, json_)
    cluster = Cluster(given_address)
    cluster.check()
    decision = _decided(cluster, wanted, asked, cluster_file, console)
    id_ = decision.by or attempt_id(wanted.base, decision.attempt)
    if decision.what == "done":
        print_line(console, f"{id_} has succeeded already; its results are in {wanted.out}")
        return _end(wanted, id_, Outcome("succeeded", 0), json_)
    back = f"hydramix jobs logs {id_} --address {cluster.address} --follow"
    if not wait:
        print_line(console, f"it goes on by itself; its output: {back}")
        return _end(wanted, id_, Outcome("submitted", 0), json_)
    try:
        ended = follow(
            cluster, id_, writer(sys.stderr if json_ else sys.stdout), lambda text: print_line(console, text)
        )
    except KeyboardInterrupt:
        print_line(console, f"\n{id_} goes on; its output: {back}")
        print_line(console, f"stop it: hydramix jobs stop {id_} --address {cluster.address}")
        return 130
    except LostError as lost:
        print_line(console, f"failed: {lost}; submit the same again: it joins the job, or goes on from {wanted.out}")
        return _end(wanted, id_, Outcome("lost", 1), json_)
    outcome = judge(ended, wanted.out, wanted.job)
    if outcome.remark:
        print_line(console, f"{id_}: {outcome.remark}")
    stopped = "been stopped" if outcome.state == "stopped" else outcome.state
    print_line(console, f"{id_} has {stopped}; what it wrote is in {wanted.out}")
    return _end(wanted, id_, outcome, json_)


def address_of(given: str | None) -> str:
    """Return the address given, else the one in the environment. Raises UserError where there is none."""
    found = given or default_address()
    if found is None:
        raise UserError(
            "no cluster is named: give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS to the same"
        )
    return dashboard_address(found)


def _read(job: str, words: Sequence[str], out: str | None, shared: str | None) -> Request:
    """Return the request, every place of which all nodes reach."""
    kind = job.replace("-", "_")
    takes_config = kind not in ("import_data", "report")
    config = words[0] if takes_config and words else None
    asked = request(kind, config, words[1:] if takes_config else words, out, shared)
    for key, place in asked.places:
        if Store(place).local_path() is not None and not place.startswith(("/", "file://")):
            raise UserError(
                f"{key} is '{place}', which the cluster's nodes cannot reach; give a URL such as s3://BUCKET/{Path(place).name}"
                ", or the absolute path of a folder that all nodes share"
            )
    return asked


def _submission(asked: Request, name: str | None, cluster_file: Path | None) -> Submission:
    root = checkout()
    config = None if asked.config is None else config_inside(asked.config, root)
    return Submission(
        job=asked.job,
        base=base_id(asked.job, asked.digest, name),
        digest=asked.digest,
        out=asked.folder.url,
        arguments=tuple(asked.arguments(config)),
        root=root,
        environment=environment(declared_nodes(cluster_file).some() if cluster_file is not None else ()),
        cpus=1.0 if asked.load is None else None,
    )


def _dry_run(wanted: Submission, address: str, json_: bool) -> int:
    command = wanted.command(address, 1)
    # Ray's command line takes these before its own option.
    others = [name for name in ADDRESS_VARIABLES if os.environ.get(name, address) != address]
    if others:
        command = ["env", *(word for name in others for word in ("-u", name)), *command]
    if json_:
        print_json(json.dumps({"submission_id": wanted.base, "digest": wanted.digest, "command": command}))
    else:
        print(shlex.join(command))
    return 0


def _decided(
    cluster: Cluster,
    wanted: Submission,
    asked: Request,
    cluster_file: Path | None,
    console: Console,
) -> Decision:
    """Return what was done: an attempt submitted, joined, or found to have succeeded."""
    warned = False
    for _ in range(_TRIES):
        # The marker after Ray: a job writes it before it ends, so of one that Ray calls ended it tells how.
        jobs = cluster.jobs()
        seen = look(wanted.out, wanted.job)
        decision = decide(wanted, jobs, seen.marker, judged=seen.trouble is None)
        # A folder on a disk is not there before the first attempt, which is no news.
        first = decision.what == "submit" and decision.attempt == 1 and Store(wanted.out).local_path() is not None
        if seen.trouble is not None and not first and not warned:
            print_line(
                console, f"warning: Ray's word is taken for what has become of the job, for its marker: {seen.trouble}"
            )
            warned = True
        id_ = attempt_id(wanted.base, decision.attempt)
        if decision.what != "submit":
            if decision.what == "join":
                print_line(console, f"{id_} is there already; joining it")
            return decision
        _check_room(cluster, asked, cluster_file)
        if decision.why:
            print_line(console, f"{decision.why}; going on as {id_}")
        if submit(cluster, wanted, decision.attempt):
            print_line(console, f"submitted {id_} to {cluster.address}; it writes to {wanted.out}")
            return decision
    raise UserError(f"others submit {wanted.base} as well, and end it at once; run the command again")


def _check_room(cluster: Cluster, asked: Request, cluster_file: Path | None) -> None:
    nodes = cluster.nodes()
    everything = [*nodes, *(declared_nodes(cluster_file).workers if cluster_file is not None else [])]
    gpus_there = any(node.get("GPU", 0.0) for node in everything)
    load = asked.load
    if load is None:
        ask = ask_of_one()
    elif load.many:
        ask = ask_of_sweep(load.distributed, load.runtime, load.concurrent, gpus_there=gpus_there)
    else:
        ask = ask_of_workers(load.distributed, load.runtime, gpus_there=gpus_there)
    check_capacity(cluster, ask, nodes, cluster_file)


def writer(stream: TextIO) -> Callable[[str], None]:
    """Return what writes text to a stream at once."""

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _end(wanted: Submission, id_: str, outcome: Outcome, json_: bool) -> int:
    if json_:
        told = {"submission_id": id_, "state": outcome.state, "exit_code": outcome.exit_code, "out": wanted.out}
        print_json(json.dumps(told))
    return outcome.exit_code
