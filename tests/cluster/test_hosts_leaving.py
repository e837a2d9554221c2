"""A host that is taken away in order, by cluster/node/leave.py: its training saves and goes on elsewhere.

That the weights are those of an undisturbed one then is held by tests/faults/test_lost_workers.py.
"""

import re
import sys
import time
from pathlib import Path

import pytest
from host_runs import IMAGES, newest
from rehearsal import Rehearsal

LEAVE = Path(__file__).parents[2] / "cluster" / "node" / "leave.py"


@pytest.mark.full
def test_a_host_that_leaves_costs_nothing(hosts: Rehearsal) -> None:
    """No failure is permitted, and the work goes on from after the last of the regular checkpoints."""
    hosts.ready()
    training = hosts.train("leaving", IMAGES, checkpoints=4, min_workers=1, max_failures=0)
    regular = training.saves()
    began = time.monotonic()
    hosts.workers[1].run([sys.executable, str(LEAVE), "--seconds=60"])
    left = time.monotonic() - began
    hosts.workers[1].kill()
    told = training.ended()
    print(f"free after {left:.1f} s")
    assert left < 60, "it does not wait for what has ended"
    assert "its node is about to go" in told
    saved = re.search(r"going on with 1 worker instead of 2, from the checkpoint after (\d+) images", told)
    assert saved is not None and int(saved[1]) > regular and int(saved[1]) % (IMAGES // 4), told
    newest(training)  # whole, and of all images
