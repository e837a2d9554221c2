"""A sweep over two hosts, of which one is lost: its training is begun again on the other, and each is finished once."""

import time
from collections import Counter

import pytest
import tiny
from host_runs import told
from hosts import Host
from ray_hosts import QUICK_HEALTH
from rehearsal import BUCKET, Rehearsal

from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.orchestration.sweep.standing import read_standing
from hydramix_dist.store import Store

# From the loss to the begin of the same training elsewhere, once there is room. It then waits for the lease that the
# lost one held, up to 35 s.
RECOVERY_SECONDS = 60.0
# From the mending of a link until a node that was given up has ended by itself. About 2 s.
LEFT_SECONDS = 30.0
TREE = tiny.PILOT | {
    "data": [f"s3://{BUCKET}/set"],
    "seeds": [0, 1],
    "generators": {},
    "classifier": tiny.PILOT["classifier"] | {"images": 1200},
    "arms": {"baseline": {}, "trivial": {"augmentation": "trivial"}},
    "concurrent": None,
}


@pytest.mark.parametrize("how", ["cut", pytest.param("kill", marks=pytest.mark.full)])
def test_sweep_over_two_hosts_one_of_which_is_lost(hosts: Rehearsal, how: str) -> None:
    """The link is cut for good, or the power goes; a node whose link comes back later ends by itself."""
    hosts.ready(QUICK_HEALTH)
    assert hosts.ray is not None
    lost, name = hosts.workers[1], f"sweep-{how}"
    sweep = hosts.start(f"s3://{BUCKET}/{name}", "sweep", hosts.settings(name, TREE))
    tiny.wait_for(lambda: all(trains(hosts, host, name) for host in hosts.workers), 120)
    began = time.time()
    lost.cut() if how == "cut" else lost.kill()
    sweep.says("is tried again", 120)
    sweep.ended()

    standing, events = read_standing(Store(sweep.url)), list(read_events(Store(sweep.url)))
    assert standing.counts == {"done": 4}
    assert set(Counter(event["key"] for event in events if event["event"] == "done").values()) == {1}
    (failed,) = (event for event in events if event["event"] == "failed")
    again = next(
        event["time"]
        for event in events
        if event["event"] == "begun" and event["key"] == failed["key"] and event["time"] > failed["time"]
    )
    print(f"begun again after {again - began:.1f} s")
    assert again - began < RECOVERY_SECONDS
    if how == "cut":
        assert hosts.is_node(lost) and not hosts.ray.nodes(lost.address)
        lost.mend()
        tiny.wait_for(lambda: not hosts.is_node(lost), LEFT_SECONDS)


def trains(hosts: Rehearsal, host: Host, run: str) -> bool:
    """Return whether a training of the run is under way on a host, as its exporter tells."""
    try:
        return bool(told(hosts, host, "trainings", run))
    except OSError:  # the first training starts it
        return False
