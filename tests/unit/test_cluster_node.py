"""What runs on nodes beside Ray: leaving a cluster in order, and hearing of it from a cloud that takes a machine away.

How a training moves away from a node that leaves is tested where several hosts are: tests/faults/test_lost_workers.py.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from answering import Answering, Answers
from versions import ROOT

NODE = ROOT / "cluster" / "node"
sys.path.insert(0, str(NODE))
import leave  # noqa: E402
import spot  # noqa: E402

# A machine of its own as far as processes go: `ray stop` ends whatever Ray it sees.
ALONE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
JOB = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("at work", flush=True)
time.sleep(60)
"""


class Metadata(Answering):
    """Plays Amazon's metadata service: asks for its token, and announces the end once `over` is set."""

    def __init__(self) -> None:
        self.over = threading.Event()
        over = self.over

        class Handler(Answers):
            def do_PUT(self) -> None:
                asked = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
                self.answer(200 if asked else 400, b"the token")

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] != "the token":
                    self.answer(401, b"")
                elif self.path != "/latest/meta-data/spot/instance-action" or not over.is_set():
                    self.answer(404, b"")
                else:
                    self.answer(200, b'{"action": "terminate", "time": "2026-11-27T22:00:00Z"}')

        super().__init__(Handler)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as service:
        yield service


def test_an_announcement_is_heard_and_silence_is_none(metadata: Metadata) -> None:
    assert not spot.announced(metadata.url)
    metadata.over.set()
    assert spot.announced(metadata.url)
    assert not spot.announced("http://127.0.0.1:1")


@pytest.mark.service
def test_a_job_saves_before_a_spot_machine_goes(metadata: Metadata, tmp_path: Path) -> None:
    """From the announcement to the end of Ray, with the real scripts; the job is a process that takes its time."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("processes cannot be given a space of their own here: root and util-linux are needed")
    job, saved = tmp_path / "jobs" / "waits.py", tmp_path / "saved"
    job.parent.mkdir()
    job.write_text(JOB, encoding="utf-8")
    watch = f"{sys.executable} {NODE / 'spot.py'} --metadata {metadata.url} --every 0.1"
    both = f"{sys.executable} {job} {saved} & pid=$!; {watch}; echo left $?; wait $pid; echo job $?"
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    node = subprocess.Popen([*ALONE, "bash", "-c", both], stdout=subprocess.PIPE, text=True, env=environment)
    assert node.stdout is not None and node.stdout.readline() == "at work\n"
    time.sleep(0.5)
    assert node.poll() is None and not saved.exists(), "nothing is announced"
    metadata.over.set()
    out, _ = node.communicate(timeout=60)
    assert saved.read_text() == "saved"
    assert "taken away in two minutes" in out and "left 0" in out and "job 130" in out


def test_a_raylet_is_known_by_its_command() -> None:
    words = ["/x/ray/core/src/ray/raylet/raylet", "--node_id=ab", "--gcs-address=10.0.0.1:6379", "--num=1"]
    assert leave.raylet(words) == ("ab", "10.0.0.1:6379")
    assert leave.raylet(["python", "raylet", "--node_id=ab"]) is None


@pytest.mark.parametrize(
    ("words", "is_job"),
    [
        (["python", "jobs/sweep.py", "--config", "x"], True),
        (["/opt/venv/bin/python", "-u", "/opt/hydramix/jobs/pilot.py"], True),
        (["/bin/sh", "-c", "python jobs/sweep.py --config x"], False),
        (["vi", "jobs/notes.txt"], False),
        (["python", "other.py", "--a", "b", "jobs/sweep.py"], False),
    ],
)
def test_a_job_is_known_by_its_command(words: list[str], is_job: bool) -> None:
    assert any(leave.JOB.search(word) for word in words[:4]) == is_job


def test_processes_of_this_user_are_seen() -> None:
    assert os.getpid() in dict(leave.processes())
