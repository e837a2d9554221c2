"""A bucket's server fails while a set is imported or read, or a training saves: the right result, or one clear error.

On the real server, behind the fault proxy. What was left is looked at without faults, by a client of its own. Each
work's requests meet the same faults in every session.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fault_proxy import FaultProxy, Faults
from fixtures import FinishedPilot
from seaweed import ADMIN, Identity, Seaweed
from store_jobs import RUNTIME, TEST, TRAIN, WORKS, EachOnce, World

from hydramix_dist import checkpoint
from hydramix_dist.checkpoint import EngineState, load_newest
from hydramix_dist.checkpoint.inspect import describe
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store, s3
from hydramix_dist.store.run import RunFolder, read_run

PATIENCE = 10.0  # a killed server is back after a second, on a busy machine after some

SHARD = "set/train-00002.parquet"
# By work: an object that is under way when half of it is done.
HALF_WAY = {
    "read": SHARD,
    "import": SHARD,
    "classifier": "000000000048/classifier.safetensors",
    "generator": "000000000048/generator.optimizer.safetensors",
}
Undisturbed = Callable[[str], dict[str, Any]]


@pytest.fixture
def world(proxied: FaultProxy, seaweed: Seaweed, bucket: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(Store(bucket), proxied, seaweed, images, seaweed.identities, monkeypatch)
    world.be_patient(PATIENCE)
    return world


@pytest.fixture(autouse=True)
def _several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydramix_dist.data.shards.ROWS_PER_SHARD", 16)


@cache
def _images(base: Path) -> Path:
    return tiny.image_folder(base / "images-for-faults", {"blue": TRAIN // 2, "red": TRAIN // 2}, TEST // 2)


@pytest.fixture
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _images(tmp_path_factory.getbasetemp())


@cache
def _on_a_disk(work: str, images: Path) -> dict[str, Any]:
    return WORKS[work](Store(images.with_name("undisturbed")), images)


@pytest.fixture
def undisturbed(images: Path) -> Undisturbed:
    """What each work comes to on a disk."""
    _on_a_disk("import", images)
    return lambda work: _on_a_disk(work, images)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def refused(act: Callable[[], object], seconds: float = 5) -> str:
    """Return the one sentence that is the answer, which must come soon."""
    with within(seconds), pytest.raises(UserError) as told:
        act()
    assert "\n" not in str(told.value)
    return str(told.value)


# ---- what passes


PASSING: dict[str, Callable[[], Faults]] = {
    "latency": lambda: Faults(latency=0.03),
    "unavailable": lambda: Faults(unavailable=0.3),
    "reset": lambda: Faults(reset=0.2),
    "cut": lambda: Faults(cut=0.2),
    "flip": lambda: Faults(flip=EachOnce()),
}


def works(*less: str) -> list[Any]:
    """Return all works as parameters; some only for the full run, since others go the same ways."""
    return [pytest.param(work, marks=pytest.mark.full) if work in less else work for work in WORKS]


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("work", works("generator", "classifier"))
def test_what_passes_changes_nothing(world: World, undisturbed: Undisturbed, work: str, fault: str) -> None:
    world.prepare(work)
    world.proxy.faults = PASSING[fault]()
    with within(PATIENCE + s3.READ_SECONDS):
        assert world.do(work) == undisturbed(work)
    assert fault == "latency" or sum(request.fault == fault for request in world.proxy.requests) > 3


@pytest.mark.parametrize("work", works())
def test_server_is_killed_half_way_and_comes_back(world: World, undisturbed: Undisturbed, work: str) -> None:
    world.prepare(work)
    happened = world.when(HALF_WAY[work], world.server.restart)
    with within(PATIENCE + s3.READ_SECONDS):
        assert world.do(work) == undisturbed(work)
    happened()


# ---- what stays

READS_ONLY = Identity(ADMIN.name, ("Read", "List"))
CHANGES: dict[str, tuple[Callable[[Seaweed], None], str]] = {
    "gone": (Seaweed.kill, "gave no good answer in"),
    "revoked": (lambda server: server.restart(()), "the credentials are not valid (InvalidAccessKeyId)"),
    "read-only": (lambda server: server.restart((READS_ONLY,)), "permission denied (403)"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("work", works("generator"))
def test_what_stays_is_one_error_and_costs_nothing_saved(
    world: World, undisturbed: Undisturbed, work: str, change: str
) -> None:
    act, words = CHANGES[change]
    world.prepare(work)
    patience = 2.0 if change == "gone" else PATIENCE
    world.be_patient(patience)
    happened = world.when(HALF_WAY[work], lambda: act(world.server))
    if (work, change) == ("read", "read-only"):
        assert world.do(work) == undisturbed(work)
        return happened()
    said = refused(lambda: world.do(work), patience + s3.READ_SECONDS)
    happened()
    assert words in said and f"{world.store.url}/{'set' if work in ('read', 'import') else work}/" in said
    assert change == "gone" or set(world.asked(403).values()) == {1}, "a refusal is final"
    left = world.mended()
    if work == "import":
        assert "holds no data set" in refused(lambda: Dataset.open(f"{left.url}/set"))
    elif work != "read":
        assert "/000000000048/" in said
        assert [(facts.images, facts.damages) for facts in describe(left.child(work))] == [(24, ())]
    assert WORKS[work](left, world.images) == undisturbed(work)
    return None


@pytest.mark.parametrize(
    ("work", "record"), [("import", "set/manifest.json"), ("classifier", "000000000048/manifest.json")]
)
def test_a_record_that_was_under_way_is_whole_or_absent(
    world: World, undisturbed: Undisturbed, work: str, record: str
) -> None:
    world.be_patient(1)
    happened = world.when(record, world.server.kill)
    refused(lambda: world.do(work), 1 + s3.READ_SECONDS)  # of this object, or of the next one where its answer came
    happened()
    left = world.mended()
    if work == "classifier":
        assert all(facts.damages == () for facts in describe(left.child(work)))
    elif left.exists(record):
        assert WORKS["read"](left, world.images) == undisturbed("read")
    found = WORKS[work](left, world.images)
    # Where the record came to be, the last lines of the curve alone are lost: they were not written any more.
    assert {key: found[key] for key in found if key != "metrics"}.items() <= undisturbed(work).items()


def test_a_silent_server_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 0.5)
    world.be_patient(1)
    world.store.list()
    world.proxy.faults.latency = 60
    assert "gave no good answer in" in refused(lambda: world.do("read"))


# ---- what is damaged or lost


@pytest.mark.parametrize("harm", ["flipped", "deleted"])
def test_a_bad_shard_is_named(world: World, harm: str) -> None:
    world.prepare("read")
    dataset = Dataset.open(f"{world.store.url}/set")
    if harm == "deleted":
        world.store.delete(SHARD)
    else:
        world.proxy.faults.flip = lambda path: path.endswith(SHARD)
    world.proxy.clear()
    what = "is missing" if harm == "deleted" else "is damaged: its content is not what was written"
    way_out = f"; see: hydramix data verify {world.store.url}/set, then import again into an empty folder"
    assert refused(lambda: world.do("read")) == f"{world.store.path(SHARD)} {what}{way_out}"
    assert sum(request.path.endswith(SHARD) for request in world.proxy.requests) == (1 if harm == "deleted" else 2)
    world.proxy.clear()
    said = refused(lambda: dataset.images("train", [0, 36], tiny.SIDE))
    assert dataset.ids("train")[36] == "train/red/06.png"
    what = what if harm == "deleted" else "is damaged: image 'train/red/06.png' is not what was written"
    assert said == f"{world.store.path(SHARD)} {what}{way_out}"
    assert set(world.asked(404).values()) <= {1}


@pytest.mark.parametrize("harm", ["flipped", "all flipped", "deleted"])
def test_a_training_goes_back_from_a_bad_checkpoint(
    world: World, undisturbed: Undisturbed, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    folder, newest = world.store.child("classifier"), "checkpoints/000000000024"
    for _ in range(2):  # saved after 12 and 24 images
        tiny.until_interrupted(lambda: tiny.run_classifier(folder, runtime=RUNTIME, should_stop=tiny.stops_after(3)))
    if harm == "deleted":
        folder.delete(f"{newest}/classifier.safetensors")
    else:
        bad = "classifier.safetensors" if harm == "all flipped" else f"{newest}/classifier.safetensors"
        world.proxy.faults.flip = lambda path: path.endswith(bad)
    if harm == "all flipped":
        assert f"no checkpoint under {folder.url}/checkpoints is whole" in refused(lambda: world.do("classifier"))
        world.proxy.faults.flip = lambda path: False
    assert world.do("classifier") == undisturbed("classifier")
    assert f"{folder.url}/{newest} is broken (classifier.safetensors is " in caplog.text


# ---- uploads in parts

LARGE = EngineState({"weight": torch.arange(27 * 2**20, dtype=torch.float32)})  # 108 MiB, in parts of 50 MB


def forget_upload(world: World) -> None:
    """End the upload under way, as a rule of the bucket may."""
    *_, last = (request for request in world.proxy.requests if "uploadId" in request.query)
    _, name, key = last.path.split("/", 2)
    with closing(world.server.client()) as client:
        client.abort_multipart_upload(Bucket=name, Key=key, UploadId=last.query["uploadId"])


LATE: dict[str, tuple[Callable[[World], None], str]] = {
    "back": (lambda world: world.server.restart(), ""),
    "gone": (lambda world: world.server.kill(), "gave no good answer in"),
    "forgotten": (forget_upload, ""),
    "forgotten twice": (forget_upload, "twice the store has forgotten the upload"),
}


@pytest.mark.parametrize(
    "change", ["back", "gone", "forgotten", pytest.param("forgotten twice", marks=pytest.mark.full)]
)
def test_a_large_checkpoint_s_upload_is_hit(world: World, change: str) -> None:
    act, words = LATE[change]
    world.be_patient(2 if change == "gone" else PATIENCE)
    small = EngineState({"weight": torch.zeros(1)})
    checkpoint.save(world.store, 1, {"model": small}, {}, keep=2)
    for part in (60, 180) if change == "forgotten twice" else (60,):
        world.proxy.when(lambda seen, part=part: seen.uploaded > part * 2**20, lambda: act(world))

    def save() -> None:
        checkpoint.save(world.store, 2, {"model": LARGE}, {}, keep=2)

    if words:
        assert words in refused(save, PATIENCE + s3.READ_SECONDS)
    else:
        with within(PATIENCE + s3.READ_SECONDS):
            save()
    newest = load_newest(world.mended())
    assert newest is not None and newest.images == (1 if words else 2)
    assert torch.equal(newest.engines["model"].weights["weight"], (small if words else LARGE).weights["weight"])


# ---- several writers


def test_of_many_that_begin_a_run_at_once_one_wins(world: World) -> None:
    """Also where answers are lost, so that a put that was refused may be one's own."""
    world.proxy.faults = Faults(unavailable=0.1, reset=0.3)
    for name in ("one", "two"):
        folder = world.store.child(name)

        def begin(number: int, folder: Store = folder) -> str:
            try:
                RunFolder.begin(folder, "generator", {"seed": number}, {})
            except UserError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(4) as threads:
            said = list(threads.map(begin, range(4)))
        assert said.count("") == 1
        winner = said.index("")
        assert read_run(folder)["identity"] == {"seed": winner}
        for number in (number for number in range(4) if number != winner):
            assert f"{folder.url} holds another run: seed was {winner}, now {number}" in said[number]


def test_of_processes_that_begin_a_training_at_once_one_trains(world: World, undisturbed: Undisturbed) -> None:
    world.proxy.faults = Faults(unavailable=0.2, reset=0.3)
    world.patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    command = [sys.executable, "-c", f"from store_jobs import take_turns; take_turns({world.store.url!r})"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    try:
        for _ in range(2):  # all are ready; all have decided, while the winner holds it
            said = [writer.stdout.readline().strip() for writer in writers]
            for writer in writers:
                if writer.poll() is None:
                    writer.stdin.write("go on\n")
                    writer.stdin.flush()
        assert said.count("mine") == 1
        world.proxy.faults = Faults()
        winner = writers[said.index("mine")]
        for sentence in said:
            assert (
                sentence == "mine" or f"is running in {world.store.url}/classifier (process {winner.pid} " in sentence
            )
        assert winner.wait(60) == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert world.do("classifier") == undisturbed("classifier")


# ---- a command


@pytest.mark.parametrize("arms", [("baseline",), pytest.param(("baseline", "hydramix"), marks=pytest.mark.full)])
def test_a_pilot_through_many_faults_measures_the_same(
    world: World, finished_pilot: FinishedPilot, tmp_path: Path, arms: tuple[str, ...]
) -> None:
    preset, run = tmp_path / "smaller.yaml", f"{world.store.url}/run"
    tiny.write_preset(preset, seeds=[0], arms={arm: tiny.PILOT["arms"][arm] for arm in arms})
    world.proxy.faults = Faults(unavailable=0.3, reset=0.1)
    tiny.hydramix("pilot", finished_pilot.images, "--preset", preset, "--out", run)
    met = Counter(request.fault for request in world.proxy.requests)
    assert met["unavailable"] > 20 and met["reset"] > 5
    world.proxy.faults = Faults()
    on_disk = tiny.measured(finished_pilot.run)
    assert tiny.measured(run) == {key: on_disk[key] for key in on_disk if key[0] in arms and key[2] == 0}
    weights = tiny.weights_of(run)
    assert len(weights) == (1 if len(arms) == 1 else 4)
    assert weights.items() <= tiny.weights_of(finished_pilot.run).items()
