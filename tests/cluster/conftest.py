"""One cluster of several hosts for all tests of this folder; where it cannot be had, the reason to skip them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import tiny
from host_runs import IMAGES
from hosts import HostsError
from rehearsal import BUCKET, Rehearsal, rehearsal
from seaweed import find_weed

from hydramix_dist.checkpoint import EngineState, load_newest
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.store import Store

# So that Ray's head is started twice in all: the loss of the head is a test, after which health checks are quick.
ORDER = ("clock", "passing", "submitted", "sweep", "lasting", "leaving", "launcher")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "hosts" in getattr(item, "fixturenames", ()):
            item.add_marker("hosts")
            item.add_marker("alone")
    mine = [item for item in items if item.path.parent == Path(__file__).parent]
    places = [items.index(item) for item in mine]
    mine.sort(key=lambda item: ORDER.index(item.path.stem.rpartition("_")[2]))
    for place, item in zip(places, mine, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """Four hosts with an image set in the bucket, which this process reaches too; Ray runs after `hosts.ready()`."""
    try:
        find_weed()
    except RuntimeError as error:
        pytest.skip(str(error))
    entered = rehearsal(tmp_path_factory.mktemp("hosts"))
    try:
        cluster = entered.__enter__()
    except HostsError as error:  # and nothing else: an S3 server that does not start is a failure
        pytest.skip(str(error))
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in cluster.server.environment().items():
                patch.setenv(name, value)
            images = tiny.image_folder(tmp_path_factory.mktemp("images"), {"blue": 6, "green": 6, "red": 6}, test=8)
            import_dataset(str(images), f"s3://{BUCKET}/set", segment_side=tiny.SIDE, workers=1)
            yield cluster
    finally:
        entered.__exit__(None, None, None)


@pytest.fixture(scope="session")
def alone(hosts: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, EngineState]:
    """What the training comes to in one process on this machine."""
    folder = tmp_path_factory.mktemp("alone")
    tiny.hydramix("train", "generator", *hosts.words(IMAGES, workers=1), "--out", folder)
    checkpoint = load_newest(Store(folder))
    assert checkpoint is not None and checkpoint.images == IMAGES
    return checkpoint.engines
