"""A job submitted from outside the cluster, whose head is lost: submitted again it goes on from the bucket.

After that a host is lost as well, and the other one goes on alone.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import tiny
from host_runs import IMAGES, newest
from hosts import Host
from ray_hosts import QUICK_HEALTH
from rehearsal import BUCKET, CHECKPOINTS, Rehearsal, Training, head_lost, host_lost

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.store import Store

# From the loss of the head to all nodes up, and to the next checkpoint. About 25 and 40 s on an idle machine.
UP_SECONDS, HEAD_SECONDS = 90.0, 150.0
# From the loss of a worker's host to the next checkpoint. About 25 s on an idle machine.
HOST_SECONDS = 90.0
# What the dashboard tells of jobs, their processes and environments.
TOLD = ("jobs", "actors", "tasks", "workers", "nodes", "runtime_envs", "placement_groups")


def test_head_lost_then_a_host_and_no_secret_is_written(hosts: Rehearsal, alone: Mapping[str, EngineState]) -> None:
    hosts.ready()
    submitted = hosts.submit("overnight", IMAGES, min_workers=1)
    submitted.saves()
    hosts.health = QUICK_HEALTH  # for what comes next, and the tests after this one
    left: list[float] = []

    def submit_again() -> Training:
        left.extend((submitted.images_saved(), time.time()))
        return hosts.submit("overnight", IMAGES, min_workers=1)

    again, up, next_saved = head_lost(hosts, submitted, submit_again)
    print(f"all nodes up after {up:.1f} s, next checkpoint after {next_saved:.1f} s")
    assert up < UP_SECONDS and next_saved < HEAD_SECONDS
    assert all(map(hosts.trains, hosts.workers))
    gone_on, next_saved = host_lost(again, hosts.workers[1])
    print(f"goes on after {gone_on:.1f} s, next checkpoint after {next_saved:.1f} s")
    assert next_saved < HOST_SECONDS
    told = again.ended()
    assert re.search(r"going on with 1 worker instead of 2, from the checkpoint after [1-9]\d* images", told)
    assert "attempt 1 is lost" in told and "going on as hydramix-train-generator-overnight-a2" in told
    # Who watched the first attempt is told that it is gone.
    assert "submit the same again" in submitted.ended(1)

    marker = json.loads(Store(again.url).read("jobs/train_generator.json"))
    assert (marker["state"], marker["exit_code"], marker["attempt"]) == ("succeeded", 0, 2)
    records = [json.loads(line) for line in Store(again.url).read("metrics.jsonl").splitlines()]
    first = next(record["images"] for record in records if record["time"] > left[1])
    assert left[0] < first <= left[0] + IMAGES / CHECKPOINTS, "it goes on from the last checkpoint"
    tiny.assert_near(newest(again).engines, alone)
    _no_secret(hosts)


def _no_secret(hosts: Rehearsal) -> None:
    """Fail where the key of the bucket or the cluster's token stands in anything that jobs have written."""
    assert hosts.ray is not None
    keys = hosts.server.environment()
    secrets = {"S3 secret key": keys["AWS_SECRET_ACCESS_KEY"], "Ray's token": hosts.ray.token.read_text()}
    known, found = set(), []
    for name, content in _written(hosts):
        if b"overnight" in content:  # the job's name, to know that what jobs write is looked at
            known.add(name.partition(":")[0])
        found += [f"{what} in {name}" for what, secret in secrets.items() if secret.encode() in content]
    assert not found, "\n".join(found)
    assert known >= {"the bucket", "head", "the dashboard"}


def _written(hosts: Rehearsal) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of all objects, of all files of the hosts, and of all that the dashboard tells."""
    assert hosts.ray is not None
    store = Store(f"s3://{BUCKET}")
    for path in store.list():
        yield f"the bucket: {path}", store.read(path)
    for host in hosts.network.hosts.values():
        if host is not hosts.storage:
            for path in _files(host):
                with contextlib.suppress(FileNotFoundError):  # Ray is at work, and has removed it
                    yield f"{host.name}: {path}", path.read_bytes()
    for what in TOLD:
        yield f"the dashboard: {what}", json.dumps(hosts.ray.ask(f"/api/v0/{what}?detail=1&limit=10000")).encode()
    yield "the dashboard: submitted jobs", json.dumps(hosts.ray.ask("/api/jobs/")).encode()


def _files(host: Host) -> Iterator[Path]:
    for top in (host.path("/tmp/ray"), host.folder):
        for path in top.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path
