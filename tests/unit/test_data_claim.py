"""One folder, several imports: stopped anywhere and gone on with, or at work at the same time."""

import json
import multiprocessing
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import class_files, write_tree

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data import importer, staging
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import ImportReport, import_dataset
from hydramix_dist.data.verify import verify
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store

FILES = class_files(["a", "b"], 3, "train/") | class_files(["a", "b"], 2, "test/", first=500)
ITEMS_PER_PART = 4


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_ITEMS_PER_PART", ITEMS_PER_PART)


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.service)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder for image sets that does not exist yet."""
    if request.param == "s3":
        return request.getfixturevalue("bucket")  # type: ignore[no-any-return]
    return str(tmp_path / "sets") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", FILES)


def take_in(src: Path, dst: str, **options: Any) -> ImportReport:
    return import_dataset(src, dst, **{"segments": None, "workers": 1} | options)


def content(url: str) -> dict[str, bytes]:
    return {path: Store(url).read(path) for path in Store(url).list()}


# ---- stopped anywhere


class TornError(Exception):
    """What a torn store fails with."""


def torn_after(whole: int) -> type[Store]:
    """Return a store that does `whole` writes and removals and then fails for ever, as if its process were killed."""

    class Torn(Store):
        done = 0

        def _count(self) -> None:
            if Torn.done == whole:
                raise TornError
            Torn.done += 1

        def put(self, path: str, data: bytes) -> None:
            self._count()
            super().put(path, data)

        def put_if_absent(self, path: str, data: bytes) -> bool:
            self._count()
            return super().put_if_absent(path, data)

        def delete(self, path: str = "") -> None:
            self._count()
            super().delete(path)

    return Torn


def test_an_import_that_is_stopped_at_any_write_goes_on_and_ends_the_same(
    place: str, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"segments": SegmentSettings(), "segment_side": 24}
    take_in(src, f"{place}/whole", **options)
    whole = content(f"{place}/whole")
    for stopped in range(100):
        dst = f"{place}/{stopped}"
        monkeypatch.setattr(importer, "Store", torn_after(stopped))
        try:
            take_in(src, dst, **options)
        except TornError:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(importer, "Store", Store)
        if not Store(dst).exists("manifest.json"):
            with pytest.raises(UserError, match="no data set"):
                Dataset.open(dst)
        take_in(src, dst, **options)
        assert content(dst) == whole
    # The mark, three parts, two shards, an index, the maps' three files, the manifest, the parts' removal.
    assert stopped == 12


# ---- at the same time


@pytest.mark.parametrize("stage", ["read", "images", "segments"])
def test_of_two_imports_of_one_plan_the_slower_one_ends_well(place: str, src: Path, stage: str) -> None:
    """The other one comes and ends while the first one reads, has staged a part, or makes segment maps."""
    dst, others = f"{place}/dst", []
    options: dict[str, Any] = {"segments": SegmentSettings(), "segment_side": 24}

    def tell(now: str, done: int, total: int) -> None:
        if now == stage and not others and (done > ITEMS_PER_PART or now == "segments"):
            others.append(take_in(src, dst, **options))

    mine = take_in(src, dst, progress=tell, **options)
    assert (others[0].already_complete, mine.already_complete) == (False, True)
    assert mine.counts == others[0].counts == {"train": (3, 3), "test": (2, 2)}
    take_in(src, f"{place}/alone", **options)
    assert content(dst) == content(f"{place}/alone")


@pytest.mark.parametrize("stage", ["read", "images", "segments"])
def test_of_two_imports_of_other_plans_one_wins_and_the_other_is_told(place: str, src: Path, stage: str) -> None:
    """The folder is whose images are read first; until then another one may come and have it."""
    dst, others = f"{place}/dst", []
    options: dict[str, Any] = {"segments": SegmentSettings(), "segment_side": 24}

    def come(now: str, done: int, total: int) -> None:
        if now == stage and not others and (done > ITEMS_PER_PART or now == "segments"):
            others.append(caught(lambda: take_in(src, dst, size=32, **options)))

    mine = caught(lambda: take_in(src, dst, progress=come, **options))
    won, told = (others[0], mine) if stage == "read" else (mine, others[0])
    assert won == (32 if stage == "read" else 24)
    assert "holds another data set" in told if stage == "read" else "holds an unfinished import of other" in told
    take_in(src, f"{place}/alone", size=won, **options)
    assert content(dst) == content(f"{place}/alone")


def caught(act: Callable[[], ImportReport]) -> Any:
    """Return the side of what an import made, or its error's text."""
    try:
        return act().side
    except UserError as error:
        return str(error)


def test_a_mark_that_comes_after_the_end_of_the_other_import_claims_nothing(
    place: str, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other import begins and ends between this one's look at the empty folder and its mark there."""
    dst = f"{place}/dst"

    class Late(Store):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            monkeypatch.setattr(importer, "Store", Store)
            if not Store(dst).exists():
                take_in(src, dst)
            return super().put_if_absent(path, data)

    for size, told in ((32, "holds another data set"), (None, None)):
        monkeypatch.setattr(importer, "Store", Late)
        if told:
            with pytest.raises(UserError, match=told):
                take_in(src, dst, size=size)
        else:
            assert take_in(src, dst, size=size).already_complete
        take_in(src, f"{place}/alone")
        assert content(dst) == content(f"{place}/alone")
        Store(dst).delete()


def test_an_object_that_another_version_wrote_is_not_replaced(place: str, src: Path) -> None:
    """Its checksum may be in the other import's record by now."""
    dst = f"{place}/dst"

    def tell(now: str, done: int, total: int) -> None:
        if (now, done) == ("images", total):
            Store(dst).put("test-00000.parquet", b"the same images, written otherwise")

    with pytest.raises(UserError, match=r"dst was changed by another program meanwhile \(test-00000\.parquet\)"):
        take_in(src, dst, progress=tell)
    assert Store(dst).read("test-00000.parquet") == b"the same images, written otherwise"
    assert not Store(dst).exists("manifest.json")


def test_a_part_that_vanishes_is_an_answer(place: str, src: Path) -> None:
    def tell(now: str, done: int, total: int) -> None:
        if (now, done) == ("images", total):
            Store(f"{place}/dst").delete(staging.FOLDER)

    with pytest.raises(UserError, match=r"dst was changed by another program meanwhile .* run the same command again"):
        take_in(src, f"{place}/dst", progress=tell)
    assert not take_in(src, f"{place}/dst").already_complete


ROUNDS = 5


def _race(src: str, dst: str, size: int, gate: Any, answers: Any) -> None:
    for number in range(ROUNDS):
        gate.wait(60)
        try:
            report = import_dataset(src, f"{dst}/{number}", size=size, workers=1, segment_side=size)
        except UserError as error:
            answers.put((number, size, str(error)))
        else:
            answers.put((number, size, report.already_complete))


@pytest.mark.parametrize(
    ("where", "sizes"),
    [
        ("disk", (24, 32)),
        pytest.param("s3", (24, 24), marks=pytest.mark.service),
        pytest.param("disk", (24, 24), marks=pytest.mark.full),
        pytest.param("s3", (24, 32), marks=[pytest.mark.full, pytest.mark.service]),
    ],
)
def test_of_racing_processes_the_set_is_one_s(
    src: Path, tmp_path: Path, where: str, sizes: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    dst = f"{request.getfixturevalue('bucket') if where == 's3' else tmp_path}/dst"
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(len(sizes)), context.Queue()
    processes = [context.Process(target=_race, args=(str(src), dst, size, gate, answers)) for size in sizes]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in range(ROUNDS * len(sizes))]
    for process in processes:
        process.join()
    for number in range(ROUNDS):
        answers_of = [(size, answer) for round_, size, answer in found if round_ == number]
        (winner,) = [size for size, answer in answers_of if answer is False]
        for size, answer in answers_of:
            assert answer in (True, False) if size == winner else "holds" in answer
        assert verify(f"{dst}/{number}") == []
        take_in(src, f"{tmp_path}/alone-{winner}", size=winner, segments=SegmentSettings(), segment_side=winner)
        assert content(f"{dst}/{number}") == content(f"{tmp_path}/alone-{winner}")


def test_the_mark_names_plan_and_source(place: str, src: Path) -> None:
    marks: list[dict[str, str]] = []
    told: Callable[[str, int, int], None] = lambda stage, done, total: (  # noqa: E731
        marks.append(json.loads(Store(f"{place}/dst").read("import/plan.json"))) if stage == "images" else None
    )
    take_in(src, f"{place}/dst", progress=told)
    assert marks[0] == {"plan": Dataset.open(f"{place}/dst").manifest.plan, "source": "src"}
