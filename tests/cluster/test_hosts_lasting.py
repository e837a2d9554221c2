"""Hosts and links that are lost for good: the training goes on without them, and nothing is seen twice or left out.

Health checks are quick here, so that a silent host is taken for lost after 3 s.
"""

import re
from collections.abc import Callable, Mapping

import pytest
import tiny
from host_runs import IMAGES, newest
from hosts import Host
from ray_hosts import QUICK_HEALTH
from rehearsal import Rehearsal, Training, host_lost, link_cut, link_lost

from hydramix_dist.checkpoint import EngineState

# From the loss to the next checkpoint of those that go on. About 25 s on an idle machine.
RECOVERY_SECONDS = 90.0
Lose = Callable[[Training, Host], tuple[float, float]]

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def _ready(hosts: Rehearsal) -> None:
    print(f"ready after {hosts.ready(QUICK_HEALTH):.1f} s")


def test_over_two_hosts_as_on_one_machine(hosts: Rehearsal, alone: Mapping[str, EngineState]) -> None:
    training = hosts.train("calm", IMAGES)
    training.ended()
    tiny.assert_near(newest(training).engines, alone)


@pytest.mark.parametrize(("lose", "number"), [(host_lost, 1), (link_lost, 0)])
def test_lost_for_good(hosts: Rehearsal, alone: Mapping[str, EngineState], lose: Lose, number: int) -> None:
    """The power goes, or the link of a host whose processes live: the other host goes on alone."""
    training, lost = hosts.train(lose.__name__, IMAGES, min_workers=1), hosts.workers[number]
    training.saves()
    assert all(map(hosts.trains, hosts.workers))
    gone_on, saved = lose(training, lost)
    told = training.ended()
    print(f"goes on after {gone_on:.1f} s, next checkpoint after {saved:.1f} s")
    assert saved < RECOVERY_SECONDS
    assert re.search(r"going on with 1 worker instead of 2, from the checkpoint after [1-9]\d* images", told)
    tiny.assert_near(newest(training).engines, alone)
    assert hosts.ray is not None and not hosts.ray.nodes(lost.address)


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
