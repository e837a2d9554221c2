"""The driver of a sweep killed with -9 at random moments: gone on with each time, it comes to the undisturbed end."""

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from sweep_work import Counted, Quiet, data_of, drive, outcome, sweep_of, tree_of

from hydramix_dist.orchestration.sweep.run import run_sweep

# Ray's own code, when it imports its parts for data.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

WITH_GENERATOR: dict[str, Any] = {"baseline": {}, "hydramix": {"generator": "hydramix"}}
PLAIN: dict[str, Any] = {"baseline": {}, "trivial": {"augmentation": "trivial"}}
LR = {"classifier.optimizer.lr": {"log": [0.005, 0.1]}}
SWEEPS: dict[str, dict[str, Any]] = {
    "small": {
        "arms": WITH_GENERATOR,
        "search": {"trials": 2, "space": {"classifier.mix_share": {"uniform": [0.3, 0.9]}}},
    },
    "grid": {
        "arms": PLAIN | WITH_GENERATOR,
        "axes": {"generator.mix.count": [2, 3]},
        "seeds": [0, 1],
    },
    "search": {"arms": PLAIN, "seeds": [0, 1], "search": {"trials": 4, "space": LR}},
}
TRAININGS = {"small": 6, "grid": 12, "search": 12}
START_SECONDS = 20.0  # a moment drawn from the beginning on lies in the start of Ray or in the first trainings


def until_begun(counted: Counted, trainings: int, driver: subprocess.Popen[str]) -> None:
    """Wait until so many trainings were begun in all, or the driver has ended."""
    tiny.wait_for(lambda: counted.of("begun").total() >= trainings or driver.poll() is not None, 240)


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("small", 1),
        pytest.param("grid", 10, marks=[pytest.mark.full, pytest.mark.timeout(1500)]),
        pytest.param("search", 10, marks=[pytest.mark.full, pytest.mark.timeout(1500)]),
    ],
)
def test_killed_at_random_moments_it_comes_to_the_same_end(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, kills: int
) -> None:
    tree = tree_of(data_of(tmp_path_factory.getbasetemp()), **SWEEPS[kind])
    run_sweep(
        sweep_of(tree, tmp_path / "calm", tmp_path / "calm-shared"), Quiet(), work=Counted(tmp_path / "calm-count")
    )
    calm = Counted(tmp_path / "calm-count")
    assert len(calm.of("finished")) == TRAININGS[kind] == calm.of("begun").total() == calm.of("finished").total()

    counted, draw = Counted(tmp_path / "count"), random.Random(f"{kind} {kills}")
    place = (tree, tmp_path / "out", tmp_path / "shared", counted.file)
    left: list[int] = []
    killed = 0
    while killed < kills:
        driver = drive(*place)
        # Every fourth moment lies anywhere, the others among the trainings: else most would hit the start of Ray.
        if killed % 4 == 3:
            time.sleep(draw.uniform(0, START_SECONDS))
        else:
            before, more = counted.of("begun").total(), draw.choice([1, 1, 2])
            until_begun(counted, before + more, driver)
            time.sleep(draw.uniform(0, 1.5))
        left += tiny.descendants(driver.pid)
        driver.kill()
        _, said = driver.communicate(timeout=60)
        if driver.returncode == 0:
            break  # it came to its end first
        assert driver.returncode == -9, said
        killed += 1
    assert killed >= min(kills, 5)
    last = drive(*place)
    _, said = last.communicate(timeout=400)
    assert last.returncode == 0, said

    assert outcome(tmp_path / "out") == outcome(tmp_path / "calm")
    assert counted.of("finished") == calm.of("finished"), "each is finished once"
    assert max(counted.of("begun").values()) <= killed + 1
    assert counted.of("begun").total() <= TRAININGS[kind] + 2 * killed, "a kill costs no more than what was under way"
    assert len(left) > 3 * killed, "Ray and the trainings"
    tiny.wait_for(lambda: not any(map(tiny.alive, left)), 60)
