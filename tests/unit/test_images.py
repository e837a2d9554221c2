"""A run's images, its source and the run itself on a disk or in object storage."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from data_files import class_files, write_tree, zip_of

from hydramix_dist.data.importer import import_dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.images import check_source, open_data
from hydramix_dist.store import Store

FILES = class_files(["a", "b"], 2, "train/") | class_files(["a", "b"], 1, "test/", first=500)


class Told:
    """A display that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, key: str, done: int, total: int) -> None: ...


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.service)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with class folders `src`, the archive `src.zip` of them, and `set` imported from them."""
    if request.param == "s3":
        place: str = request.getfixturevalue("bucket")
    else:
        place = str(tmp_path / "place") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    store = Store(place)
    for name, data in FILES.items():
        store.put(f"src/{name}", data)
    store.put("src.zip", zip_of(tmp_path / "src.zip", FILES).read_bytes())
    import_dataset(write_tree(tmp_path / "near", FILES), f"{place}/set", segments=None, workers=1)
    return place


@pytest.mark.parametrize("name", ["src", "src.zip", "set"])
def test_images_come_from_wherever_they_lie_into_the_run(place: str, name: str) -> None:
    out, told, source = Store(f"{place}/run"), Told(), f"{place}/{name}"
    check_source(source, out)
    data = open_data(source, out, display(told))
    assert data.ids("train") == tuple(path for path in sorted(FILES) if path.startswith("train"))
    assert data.store.url == (Store(source).url if name == "set" else out.path("data"))
    assert out.exists("data/manifest.json") == (name != "set") and told.lines == []

    Store(place).delete(name)
    if name == "set":
        with pytest.raises(UserError, match="does not exist"):
            check_source(source, out)
    else:
        check_source(source, out)
        assert open_data(source, out, display(told)).fingerprint == data.fingerprint
        assert told.lines == [f"{source} is gone; going on with what was imported from it"]


def display(told: Told) -> Any:
    return told


def test_sources_that_cannot_be_are_refused_before_anything_is_written(place: str) -> None:
    before = Store(place).list()
    for source, out, words in [
        ("nowhere", "run", "/nowhere does not exist; give a folder"),
        ("src", "src/run", "lies inside the source"),
        ("src", "src", "is the source itself"),
    ]:
        with pytest.raises(UserError, match=words):
            check_source(f"{place}/{source}", Store(f"{place}/{out}"))
    assert Store(place).list() == before
