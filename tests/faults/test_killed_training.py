"""A training process killed with -9 in the middle of a step, twice: the same call comes to the same weights."""

import subprocess
import sys
import time
from pathlib import Path

import tiny

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.store import Store

STEPS = 160  # some 10 ms each, a checkpoint every eighth: hit in the middle
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from faults.test_killed_training import train
train(Path(sys.argv[2]))
"""


def train(folder: Path) -> None:
    runtime = tiny.RUNTIME.model_copy(update={"checkpoints": 20})
    tiny.run_classifier(folder, tiny.classifier_settings(images=4 * STEPS), runtime)


def saved(folder: Path) -> int:
    manifests = (folder / "checkpoints").glob("*/manifest.json")
    return max((int(path.parent.name) for path in manifests), default=0)


def test_killed_in_mid_step_comes_to_the_same_weights(tmp_path: Path) -> None:
    train(tmp_path / "undisturbed")
    folder, tests = tmp_path / "killed", Path(__file__).parents[1]
    for delay in (0.004, 0.033):
        before = saved(folder)
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tests), str(folder)])
        tiny.wait_for(lambda start=before: saved(folder) > start)
        time.sleep(delay)
        tiny.kill(child.pid)
        assert child.wait() == -9
        assert saved(folder) < 4 * STEPS, "killed before its end"
    train(folder)
    digests = []
    for run in (tmp_path / "undisturbed", folder):
        checkpoint = load_newest(Store(run))
        assert checkpoint is not None
        digests.append(weights_digest(checkpoint.engines["classifier"].weights))
    assert digests[0] == digests[1]
