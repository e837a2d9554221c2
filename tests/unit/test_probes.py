"""The mixes shown to people: fixed, of every class, with the real image that is truly nearest."""

import pytest
import tiny
import torch

from hydramix_dist.data.shots import ShotSet
from hydramix_dist.evaluation.probes import Probe, probe
from hydramix_dist.mixing.record import render


def probes(count: int = 5, seed: int = 1, **mix: object) -> tuple[ShotSet, list[Probe]]:
    settings = tiny.generator_settings(mix={"count": 3} | mix)
    shots = tiny.shot_set((4, 3, 2))
    return shots, probe(tiny.trained_generator(settings), shots, seed, count)


def test_same_call_same_probes_and_fewer_are_the_first_of_more() -> None:
    shots, five = probes(5)
    _, two = probes(2)
    for a, b in zip(five, two, strict=False):
        assert a.record == b.record and torch.equal(a.rendered.mix_CHW, b.rendered.mix_CHW)
    assert [p.record for p in probes(5, seed=2)[1]] != [p.record for p in five]
    assert len(shots.ids) == 9


def test_classes_take_turns_and_sources_belong_to_them() -> None:
    shots, found = probes(7)
    assert [p.class_name for p in found] == ["class-0", "class-1", "class-2"] * 2 + ["class-0"]
    label_of = dict(zip(shots.ids, shots.labels_N.tolist(), strict=True))
    for p in found:
        assert {shots.classes[label_of[source]] for source in p.record["sources"]} == {p.class_name}


def test_class_without_images_is_passed_over() -> None:
    shots = tiny.shot_set((2, 2))
    wider = ShotSet(shots.images_NCHW, shots.labels_N * 2, shots.ids, shots.segments_NHW, ("a", "empty", "b"))
    assert [p.class_name for p in probe(tiny.trained_generator(), wider, 0, 4)] == ["a", "b", "a", "b"]


def test_record_renders_to_what_is_shown() -> None:
    shots, found = probes(3)
    images = dict(zip(shots.ids, shots.images_NCHW, strict=True))
    for p in found:
        again = render(p.record, tiny.trained_generator(), images)
        assert torch.equal(again.mix_CHW, p.rendered.mix_CHW)


def test_nearest_is_the_nearest_of_all_images_and_mirror_images() -> None:
    shots, found = probes(4)
    for p in found:
        candidates = [*shots.images_NCHW, *(image.flip(-1) for image in shots.images_NCHW)]
        rms = [float((c.double() - p.rendered.mix_CHW.double()).square().mean().sqrt()) for c in candidates]
        assert p.distance == pytest.approx(min(rms), rel=1e-5)
        assert torch.equal(p.nearest_CHW, candidates[rms.index(min(rms))])


@pytest.mark.parametrize("kind", ["grid", "segments-independent", "segments-contiguous"])
def test_segments_are_shown_where_they_shape_the_mask(kind: str) -> None:
    _, found = probes(4, mask={"kind": kind})
    for p in found:
        assert (p.segments_HW is None) == (kind == "grid")
        if p.segments_HW is not None:  # as the mask is hard, each segment is of one source where cells are sampled
            cells_hw = p.segments_HW[::4, ::4]
            source_hw = p.rendered.mask_Khw.argmax(0)
            assert all(len(source_hw[cells_hw == label].unique()) == 1 for label in cells_hw.unique())
