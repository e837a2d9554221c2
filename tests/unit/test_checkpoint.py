"""Checkpoints are whole or absent, verified when read, and never fewer than one good one."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TornError, TornStore

from hydramix_dist.checkpoint import EngineState, load, load_newest, save, weights_digest
from hydramix_dist.checkpoint.layout import count_values, pieces
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest


def state(seed: int) -> EngineState:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.running_mean": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(seed),
    }
    moments = {"exp_avg": {"conv.weight": torch.randn(4, 3, 3, 3, generator=generator)}}
    return EngineState(weights, moments, step=seed)


def write(store: Store, images: int, keep: int = 9, score: float | None = None) -> None:
    save(store, images, {"net": state(images), "other": state(images + 1)}, {"seconds": 1.5}, keep=keep, score=score)


def newest(store: Store) -> tuple[int, int]:
    """Return (images, fallbacks) of what loads, whose weights must be those written at that number of images."""
    loaded = load_newest(store)
    assert loaded is not None
    assert weights_digest(loaded.engines["net"].weights) == weights_digest(state(loaded.images).weights)
    assert weights_digest(loaded.engines["other"].weights) == weights_digest(state(loaded.images + 1).weights)
    return loaded.images, loaded.fallbacks


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_comes_back_as_it_was_to_the_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert load_newest(store) is None
    written = state(7)
    save(store, 7, {"net": written}, {"evaluations": [(7, {"a": 0.1})]}, keep=1)
    loaded = load_newest(store)
    assert loaded is not None and (loaded.images, loaded.fallbacks) == (7, 0)
    assert loaded.counters == {"evaluations": [[7, {"a": 0.1}]]}
    read = loaded.engines["net"]
    assert read.step == 7 and read.weights.keys() == written.weights.keys()
    for name, tensor in written.weights.items():
        assert torch.equal(read.weights[name], tensor) and read.weights[name].dtype == tensor.dtype
    assert torch.equal(read.moments["exp_avg"]["conv.weight"], written.moments["exp_avg"]["conv.weight"])


SEED = st.integers(0, 9)


def tensors() -> st.SearchStrategy[dict[str, torch.Tensor]]:
    """Return tensors as states have them: fp32 and int64, also empty, single and strided, under all kinds of names."""
    shapes = st.lists(st.integers(0, 4), max_size=4)
    plain = st.builds(
        lambda shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)), shapes, SEED
    )
    any_ = st.one_of(
        plain, plain.map(lambda t: (t * 9).long()), plain.map(lambda t: t.transpose(0, -1) if t.dim() else t)
    )
    return st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), any_, max_size=5)


@given(tensors(), st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=1))
def test_layout_is_that_of_safetensors_to_the_byte(named: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    named.pop("__metadata__", None)
    ours = b"".join(pieces(named, metadata))
    assert ours == safetensors.torch.save({name: t.contiguous() for name, t in named.items()}, metadata or None)
    assert count_values(ours) == sum(t.numel() for t in named.values())


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    write(Store(tmp_path), 3)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_memory_order_is_no_part_of_a_weights_name() -> None:
    plain = {"a": torch.arange(48.0).view(1, 3, 4, 4), "b": torch.ones(2)}
    strided = {"b": torch.ones(2), "a": plain["a"].clone(memory_format=torch.channels_last)}
    assert weights_digest(plain) == weights_digest(strided)
    changed = plain["a"].clone()
    changed[0, 0, 0, 0] = torch.nextafter(changed[0, 0, 0, 0], torch.tensor(1.0))
    assert weights_digest(plain | {"a": changed}) != weights_digest(plain)
    assert weights_digest({"c": plain["a"], "b": plain["b"]}) != weights_digest(plain)


@pytest.fixture(scope="module")
def good_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole checkpoints at 10 and 20 images; who changes it puts it back."""
    folder = tmp_path_factory.mktemp("pair")
    for images in (10, 20):
        write(Store(folder), images)
    return folder


FILES = ["net.safetensors", "net.optimizer.safetensors", "other.safetensors", "manifest.json"]


@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_is_read_as_good(good_pair: Path, name: str, where: float, bit: int) -> None:
    path = good_pair / "checkpoints" / f"{20:012d}" / name
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = newest(Store(good_pair))
        if found == (20, 0):  # a blank between two JSON tokens may become another blank
            assert name == "manifest.json" and json.loads(data) == json.loads(whole)
        else:
            assert found == (10, 1)
    finally:
        path.write_bytes(whole)


@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_no_truncated_file_is_read_as_good(good_pair: Path, name: str, share: float) -> None:
    path = good_pair / "checkpoints" / f"{20:012d}" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * (len(whole) - 1))])  # without its closing newline JSON is still whole
    try:
        assert newest(Store(good_pair)) == (10, 1)
    finally:
        path.write_bytes(whole)


def test_flip_that_safetensors_itself_does_not_see(tmp_path: Path) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    path = tmp_path / "checkpoints" / f"{20:012d}" / "net.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert newest(Store(tmp_path)) == (10, 1)


@pytest.mark.parametrize("name", FILES[:3])
def test_missing_file_goes_back_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    (tmp_path / "checkpoints" / f"{20:012d}" / name).unlink()
    with caplog.at_level(logging.WARNING, "hydramix"):
        assert newest(Store(tmp_path)) == (10, 1)
    assert f"{20:012d}" in caplog.text and name in caplog.text and "missing" in caplog.text


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe\xfd", b'{"sha256": "0"}'])
def test_damaged_manifest_goes_back(tmp_path: Path, text: bytes) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    (tmp_path / "checkpoints" / f"{20:012d}" / "manifest.json").write_bytes(text)
    assert newest(Store(tmp_path)) == (10, 1)
    # And a training that goes on from there saves and prunes without stumbling over it.
    write(Store(tmp_path), 15, keep=1)
    assert kept(tmp_path) == [15]


def test_goes_back_over_several(tmp_path: Path) -> None:
    for images in (10, 20, 30):
        write(Store(tmp_path), images)
    for images in (20, 30):
        (tmp_path / "checkpoints" / f"{images:012d}" / "net.safetensors").write_bytes(b"")
    assert newest(Store(tmp_path)) == (10, 2)


def test_without_its_manifest_a_checkpoint_does_not_exist(tmp_path: Path) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    (tmp_path / "checkpoints" / f"{20:012d}" / "manifest.json").unlink()
    assert newest(Store(tmp_path)) == (10, 0)


def test_none_whole_is_said_and_names_the_way_out(tmp_path: Path) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    for path in tmp_path.rglob("net.safetensors"):
        path.write_bytes(b"\0")
    with pytest.raises(UserError, match=r"checkpoints is whole; delete that folder"):
        load_newest(Store(tmp_path))


def test_newer_schema_is_said(tmp_path: Path) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    path = tmp_path / "checkpoints" / f"{20:012d}" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["schema_version"] = 99
    path.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
    with pytest.raises(UserError, match="newer version"):
        load_newest(Store(tmp_path))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    for images in (10, 20, 30, 40):
        write(Store(tmp_path), images, keep=keep)
    assert kept(tmp_path) == [10, 20, 30, 40][-keep:]


def test_keeps_the_best_where_there_are_scores(tmp_path: Path) -> None:
    for images, score in ((10, 0.2), (20, 0.9), (30, 0.5), (40, None), (50, 0.4)):
        write(Store(tmp_path), images, keep=1, score=score)
    assert kept(tmp_path) == [20, 50]
    write(Store(tmp_path), 60, keep=1, score=0.9)  # of equals the newer
    assert kept(tmp_path) == [60]


def test_broken_newer_ones_never_crowd_out_the_good(tmp_path: Path) -> None:
    """A training that went back from 30 to 10 and saves at 15 must not lose 15 in favour of the broken ones."""
    for images in (10, 20, 30):
        write(Store(tmp_path), images)
    for images in (20, 30):
        (tmp_path / "checkpoints" / f"{images:012d}" / "other.safetensors").unlink()
    write(Store(tmp_path), 15, keep=1)
    assert newest(Store(tmp_path)) == (15, 0)
    assert kept(tmp_path) == [15]


def test_remains_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    write(Store(tmp_path), 10)
    Store(tmp_path).put(f"checkpoints/{14:012d}/net.safetensors", b"half a checkpoint")
    write(Store(tmp_path), 20, keep=2)
    assert kept(tmp_path) == [10, 20]


@pytest.mark.parametrize("name", [FILES[0], FILES[3]])
def test_remains_of_a_save_killed_while_writing_are_removed(tmp_path: Path, name: str) -> None:
    """A half-written object has a name of its own, which no list shows, not even that of what is to be removed."""
    write(Store(tmp_path), 10)
    for images in (14, 20):  # one that is never reached again, one that is saved anew
        folder = tmp_path / "checkpoints" / f"{images:012d}"
        folder.mkdir()
        (folder / f".partial-0123-{name}").write_bytes(b"half a file")
    assert newest(Store(tmp_path)) == (10, 0)
    write(Store(tmp_path), 20, keep=2)
    assert kept(tmp_path) == [10, 20]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".partial")]


def test_files_that_no_manifest_lists_are_not_read_and_do_not_stay(tmp_path: Path) -> None:
    write(Store(tmp_path), 10)
    folder = tmp_path / "checkpoints" / f"{20:012d}"
    folder.mkdir()
    for name in ("net.safetensors", "more.safetensors", "more.optimizer.safetensors"):  # an attempt that died here
        (folder / name).write_bytes(b"no tensors at all")
    write(Store(tmp_path), 20)
    assert {path.name for path in folder.iterdir()} == {*FILES, "other.optimizer.safetensors"}
    (folder / "more.safetensors").write_bytes(b"no tensors at all")
    for loaded in (load(Store(tmp_path), 20), load_newest(Store(tmp_path))):
        assert loaded is not None and loaded.engines.keys() == {"net", "other"}
    assert newest(Store(tmp_path)) == (20, 0)


def test_what_a_user_keeps_beside_checkpoints_stays(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write(Store(tmp_path), 10)
    (folder / "notes.txt").write_text("good one at 10")
    shutil.copytree(folder / f"{10:012d}", folder / "mine" / f"{90:012d}")
    shutil.copytree(folder / f"{10:012d}", folder / "mine-too")
    assert newest(Store(tmp_path)) == (10, 0)
    write(Store(tmp_path), 20, keep=1)
    assert {path.name for path in folder.iterdir()} == {f"{20:012d}", "notes.txt", "mine", "mine-too"}


def test_others_load_what_one_has_chosen(tmp_path: Path) -> None:
    """The newest is broken for the one that chose, or was written by it since: the others load the chosen one."""
    for images in (10, 20, 30):
        write(Store(tmp_path), images)
    loaded = load(Store(tmp_path), 20)
    assert (loaded.images, loaded.fallbacks, loaded.counters) == (20, 0, {"seconds": 1.5})
    for name, seed in (("net", 20), ("other", 21)):
        read, written = loaded.engines[name], state(seed)
        assert weights_digest(read.weights) == weights_digest(written.weights) and read.step == seed
        assert weights_digest(read.moments["exp_avg"]) == weights_digest(written.moments["exp_avg"])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "net.safetensors").write_bytes(b""), "net.safetensors has 0 bytes"),
        (lambda folder: (folder / "net.optimizer.safetensors").unlink(), "net.optimizer.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{}"), "its manifest is damaged"),
        (shutil.rmtree, "its manifest is missing"),
    ],
    ids=["cut", "gone", "manifest", "removed"],
)
def test_what_one_has_chosen_is_never_replaced(tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    for images in (10, 20):
        write(Store(tmp_path), images)
    harm(tmp_path / "checkpoints" / f"{20:012d}")
    with pytest.raises(UserError, match=f"{20:012d} cannot be loaded \\({said}.*run the command again"):
        load(Store(tmp_path), 20)
    assert load(Store(tmp_path), 10).images == 10


def test_states_of_another_model_are_refused_with_the_weight_named() -> None:
    shapes = {name: tuple(t.shape) for name, t in state(0).weights.items()}
    state(0).check_fits(shapes, "the checkpoint")
    for other, named in (
        (shapes | {"conv.weight": (4, 3, 5, 5)}, "conv.weight"),
        (shapes | {"more": (1,)}, "more"),
        ({name: shape for name, shape in shapes.items() if "mean" not in name}, "running_mean"),
    ):
        with pytest.raises(UserError, match=named):
            state(0).check_fits(other, "the checkpoint")


@pytest.mark.parametrize("whole", range(7))
def test_a_save_torn_anywhere_leaves_a_whole_checkpoint(tmp_path: Path, whole: int) -> None:
    """Four files, the manifest, then (keep=1) two removals of the one before: torn before each of the seven."""
    write(Store(tmp_path), 10)
    with pytest.raises(TornError):
        write(TornStore(tmp_path, whole), 20, keep=1)
    assert newest(Store(tmp_path)) == ((20, 0) if whole >= 5 else (10, 0))
    write(Store(tmp_path), 30, keep=1)
    assert kept(tmp_path) == [30]
