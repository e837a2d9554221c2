"""Hosts and links that are lost for good: the training goes on without them, and nothing is seen twice or left out.

Health checks are quick here, so that a silent host is taken for lost after 3 s.
"""

import re
from collections.abc import Mapping

import pytest
import tiny
from host_runs import IMAGES, newest
from ray_hosts import QUICK_HEALTH
from rehearsal import Rehearsal, host_lost, link_cut, link_lost

from hydramix_dist.checkpoint import EngineState

# From the loss to the next checkpoint of those that go on. About 25 s on an idle machine.
RECOVERY_SECONDS = 90.0


pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def _ready(hosts: Rehearsal) -> None:
    print(f"ready after {hosts.ready(QUICK_HEALTH):.1f} s")


def test_over_two_hosts_as_on_one_machine(hosts: Rehearsal, alone: Mapping[str, EngineState]) -> None:
    training = hosts.train("calm", IMAGES)
    training.ended()
    tiny.assert_near(newest(training).engines, alone)


def test_host_lost(hosts: Rehearsal, alone: Mapping[str, EngineState]) -> None:
    """The other one goes on alone."""
    training = hosts.train("host-lost", IMAGES, min_workers=1)
    training.saves()
    assert all(map(hosts.trains, hosts.workers))
    gone_on, saved = host_lost(training, hosts.workers[1])
    told = training.ended()
    print(f"goes on after {gone_on:.1f} s, next checkpoint after {saved:.1f} s")
    assert saved < RECOVERY_SECONDS
    assert re.search(r"going on with 1 worker instead of 2, from the checkpoint after [1-9]\d* images", told)
    tiny.assert_near(newest(training).engines, alone)


def test_link_cut_for_good(hosts: Rehearsal, alone: Mapping[str, EngineState]) -> None:
    """As a lost host, though its processes live; what comes back later must come as a new node."""
    training = hosts.train("link-lost", IMAGES, min_workers=1)
    training.saves()
    assert all(map(hosts.trains, hosts.workers))
    gone_on, saved = link_lost(training, hosts.workers[0])
    told = training.ended()
    print(f"goes on after {gone_on:.1f} s, next checkpoint after {saved:.1f} s")
    assert saved < RECOVERY_SECONDS
    assert "going on with 1 worker instead of 2" in told
    tiny.assert_near(newest(training).engines, alone)
    assert hosts.ray is not None and not hosts.ray.nodes(hosts.workers[0].address)


def test_link_cut_for_ten_seconds(hosts: Rehearsal, alone: Mapping[str, EngineState]) -> None:
    """With quick checks that costs the node, which ends by itself once the link is back, and disturbs nobody."""
    training = hosts.train("link-cut", IMAGES, min_workers=1)
    training.saves()
    assert all(map(hosts.trains, hosts.workers))
    cut = hosts.workers[1]
    took = link_cut(training, cut, 10.0)
    print(f"next checkpoint {took:.1f} s after the link was mended")
    assert took < RECOVERY_SECONDS
    tiny.wait_for(lambda: not hosts.is_node(cut), 30)
    assert "going on with 1 worker instead of 2" in training.ended()
    tiny.assert_near(newest(training).engines, alone)
