"""A sweep whose folders lie in a bucket: read from any machine, and to the same end though the store is away."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from seaweed import Seaweed
from sweep_work import Counted, Quiet, data_of, drive, outcome, sweep_of, tree_of

from hydramix_dist.config.store import VARIABLE
from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.orchestration.sweep.run import run_sweep
from hydramix_dist.store import Store

# Ray's own code, when it imports its parts for data.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

AWAY_SECONDS = 30.0  # half of what a request is tried again for
SEARCHED: dict[str, Any] = {
    "arms": {"baseline": {}, "hydramix": {"generator": "hydramix"}},
    "seeds": [0, 1],
    "search": {"trials": 2, "space": {"classifier.optimizer.lr": {"log": [0.005, 0.1]}}},
}


def into_bucket(data: str, bucket: str) -> str:
    """Copy a data set into the bucket; return its URL there."""
    for path in Store(data).list():
        Store(bucket).put(f"data/{path}", Store(data).read(path))
    return f"{bucket}/data"


@pytest.mark.full  # tests/cluster has a sweep in a bucket, over several hosts
def test_sweep_in_a_bucket_is_read_from_another_machine(
    bucket: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = into_bucket(data_of(tmp_path_factory.getbasetemp()), bucket)
    tree, out = tree_of(data, arms=SEARCHED["arms"]), f"{bucket}/out"
    counted = Counted(tmp_path / "count")
    run_sweep(sweep_of(tree, out, f"{bucket}/shared"), Quiet(), work=counted)
    assert counted.of("finished").total() == 3

    home = tmp_path / "another"
    home.mkdir()
    elsewhere = os.environ | {"HOME": str(home), VARIABLE: json.dumps({"cache": str(home / "cache")})}
    state = json.loads(tiny.hydramix("sweep", "status", out, "--json", env=elsewhere, cwd=home).stdout)
    assert (state["run"], state["state"], state["counts"]) == (out, "succeeded", {"done": 3})
    told = json.loads(tiny.hydramix("sweep", "results", out, "--json", env=elsewhere, cwd=home).stdout)
    assert [(run["arm"], run["seed"]) for run in told["parts"][0]["runs"]] == [("baseline", 0), ("hydramix", 0)]
    written = ("results.html", "results.md", "results.csv", "results.tex", "results.json")
    assert set(written) <= set(Store(out).list())
    # Beside the caches of libraries.
    assert {path.name for path in home.iterdir() if not path.name.startswith(".")} <= {"cache"}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_store_is_away_for_half_a_minute(
    bucket: str, seaweed: Seaweed, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    on_disk = data_of(tmp_path_factory.getbasetemp())
    calm = Counted(tmp_path / "calm-count")
    run_sweep(sweep_of(tree_of(on_disk, **SEARCHED), tmp_path / "calm", tmp_path / "shared"), Quiet(), work=calm)

    data, counted = into_bucket(on_disk, bucket), Counted(tmp_path / "count")
    driver = drive(tree_of(data, **SEARCHED), f"{bucket}/out", f"{bucket}/shared", counted.file)
    half = calm.of("finished").total() // 2
    tiny.wait_for(lambda: counted.of("finished").total() >= half or driver.poll() is not None, 300)
    seaweed.kill()
    before = counted.of("finished").total()
    with pytest.raises(AssertionError, match="waited too long"):
        tiny.wait_for(lambda: driver.poll() is not None, AWAY_SECONDS)
    # What is finished has been saved: while nothing can be, at most the two that are under way look finished.
    assert counted.of("finished").total() <= before + 2 < calm.of("finished").total()
    seaweed.restart()
    _, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    assert outcome(f"{bucket}/out") == outcome(tmp_path / "calm")
    assert counted.of("begun") == counted.of("finished") == calm.of("finished"), "no training was begun again"
    assert not [event for event in read_events(Store(f"{bucket}/out")) if event["event"] == "failed"]
