"""The N-shot draw is the published one, classes keep their share, and the subset arrives whole."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import class_files, picture, write_tree
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.shots import draw_subset, load_shots, split_validation
from hydramix_dist.errors import UserError

CLASSES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def labelled(counts: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


@given(CLASSES, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_subset_has_exactly_n_of_each_class_or_all_there_are(counts: list[int], shots: int, seed: int) -> None:
    labels = labelled(counts)
    rows = draw_subset(labels, shots, seed)
    assert len(set(rows.tolist())) == len(rows)
    assert np.bincount(labels[rows], minlength=len(counts)).tolist() == [min(count, shots) for count in counts]
    assert np.array_equal(rows, draw_subset(labels, shots, seed))


@given(CLASSES, st.integers(1, 10), st.integers(1, 10), st.integers(0, 99))
def test_smaller_subsets_lie_inside_larger_ones(counts: list[int], few: int, more: int, seed: int) -> None:
    labels = labelled(counts)
    inner, outer = (set(draw_subset(labels, shots, seed).tolist()) for shots in (few, few + more))
    assert inner <= outer


def test_subsets_differ_between_seeds() -> None:
    labels = labelled([100] * 5)
    assert len({frozenset(draw_subset(labels, 5, seed).tolist()) for seed in range(5)}) == 5


def test_no_shots_are_refused() -> None:
    with pytest.raises(UserError, match="below 1"):
        draw_subset(labelled([3, 3]), 0, 0)


@pytest.mark.shared
def test_draw_is_the_published_one(shared_data: Path) -> None:
    """The published draws are those of this function on full CIFAR-10, as far as the pack can show.

    The pack does not hold the labels of all 50,000 images, but every class has 5,000, so the draw gives positions in
    each class's sorted list. Shown: for each class one strictly increasing map takes the positions drawn under five
    seeds to the published indices, in the published order; the first 150 positions have known indices, and those agree
    index for index. Not shown: the joint order after the last shuffle, which was not published.
    """
    with zipfile.ZipFile(shared_data / "cifar10_nshot.zip") as archive:
        published = json.loads(archive.read("cifar10_nshot/nshot_splits.json"))
        pack = {tuple(name.split("/")[1:]) for name in archive.namelist()}
    names = list(published["first150"])
    labels = np.tile(np.arange(10), 5000)  # any order with 5,000 a class: row = 10 * position + label
    known = 0
    for label, name in enumerate(names):
        index_of = dict(enumerate(published["first150"][name]))
        for seed, draws in published["seeded"].items():
            for shots in (5, 100):
                rows = draw_subset(labels, shots, int(seed))
                positions = set((rows[labels[rows] == label] // 10).tolist())
                generator = np.random.default_rng(int(seed))
                for _ in range(label + 1):  # the draw, spelled out: one generator, the classes in order
                    order = list(range(5000))
                    generator.shuffle(order)
                assert positions == set(order[:shots])
            for position, index in zip(order[:100], draws[name], strict=True):
                known += position in index_of
                assert index_of.setdefault(position, index) == index
                assert ("train", name, f"{index:05d}.jpg") in pack
        indices = [index for _, index in sorted(index_of.items())]
        assert indices == sorted(set(indices)) and len(indices) > 550
    assert known > 150


@given(st.lists(st.integers(5, 20), min_size=2, max_size=5), st.floats(0.01, 0.99), st.integers(0, 999))
def test_validation_part_is_stratified_and_leaves_both_sides_filled(counts: list[int], share: float, seed: int) -> None:
    labels = labelled(counts, seed)
    training, validation = split_validation(labels, share, seed)
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(len(labels)))
    held = np.bincount(labels[validation], minlength=len(counts))
    for number, count in zip(held.tolist(), counts, strict=True):
        assert 1 <= number < count and abs(number - share * count) <= 1
    assert np.array_equal(validation, split_validation(labels, share, seed)[1])


def test_validation_is_refused_below_five_images_a_class() -> None:
    with pytest.raises(UserError, match=r"at least 5 images of each class, the subset has one with 4"):
        split_validation(labelled([5, 4]), 0.2, 0)
    with pytest.raises(UserError, match="share"):
        split_validation(labelled([5, 5]), 1.0, 0)


def test_shot_set_holds_images_labels_ids_and_maps_of_the_same_rows(tmp_path: Path) -> None:
    files = class_files(["a", "b", "c"], 6, "train/", 32) | class_files(["a", "b", "c"], 1, "test/", 32, first=400)
    data = Dataset.open(import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst")).url)
    labels = data.labels("train")
    rows = draw_subset(labels, 4, 3)
    shots = load_shots(data, rows, 32, SegmentSettings())
    assert shots.classes == ("a", "b", "c") and shots.labels_N.tolist() == labels[rows].tolist()
    for image, name, label in zip(shots.images_NCHW, shots.ids, shots.labels_N.tolist(), strict=True):
        seed = 1000 * label + int(name.split("/")[-1].removesuffix(".png"))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(seed, 32))
    assert shots.segments_NHW is not None
    assert torch.equal(shots.segments_NHW, data.segments(rows.tolist(), 32, SegmentSettings()))
    table, counts = shots.members
    assert counts.tolist() == [4, 4, 4] and table.shape == (3, 4)
    assert all(set(shots.labels_N[table[label]].tolist()) == {label} for label in range(3))
    assert load_shots(data, rows[:5], 48, None).segments_NHW is None
    assert shots.to("cpu").ids == shots.ids


def test_members_of_unequal_classes_are_padded(tmp_path: Path) -> None:
    files = class_files(["a"], 3) | class_files(["b"], 9, first=70)
    data = Dataset.open(import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None).url)
    shots = load_shots(data, draw_subset(data.labels("train"), 5, 0), 24, None)
    table, counts = shots.members
    assert counts.tolist() == np.bincount(shots.labels_N.numpy()).tolist() and table.shape == (2, counts.max())
    for label, count in enumerate(counts.tolist()):
        assert set(shots.labels_N[table[label, :count]].tolist()) == {label}
        assert len(set(table[label, :count].tolist())) == count
