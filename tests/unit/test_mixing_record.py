"""Composing mixes, recording one so that it can be made again to the byte, and mixing in anybody's own loop."""

import json
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hydramix_dist.config.schema import Augmentation, GeneratorSettings
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.errors import UserError
from hydramix_dist.mixing.compose import Composer, Composition
from hydramix_dist.mixing.mixer import Mixer, PixelMixing
from hydramix_dist.mixing.record import Rendered, image_sha256, make_record, render
from hydramix_dist.mixing.transform import HydraMixTransform
from hydramix_dist.models.generator import mix_features
from hydramix_dist.models.pixels import to_float, to_uint8

MIXES: list[dict[str, Any]] = [
    {"count": 3},
    {"count": 3, "mask": {"downsample": "area"}},
    {"count": 5, "mask": {"kind": "segments-contiguous"}},
    {"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}},
    {"count": 4, "mask": {"kind": "grid", "downsample": "area"}},
    {"count": 2, "mask": {"kind": "chimera-grid"}},
    {"count": 1},
    {"count": 3, "mask": {"kind": "whole", "assign": "shares"}},
    {"count": 3, "mask": {"assign": "shares", "downsample": "area"}},
    {"count": 3, "mask": {"kind": "grid", "grid": 20, "assign": "shares", "downsample": "area"}},  # over 255 regions
]
SHOTS = tiny.shot_set((4, 3))
IMAGES = dict(zip(SHOTS.ids, SHOTS.images_NCHW, strict=True))


def compose(
    settings: GeneratorSettings, numbers: list[int], augmentation: Augmentation = "basic", shots: ShotSet = SHOTS
) -> Composition:
    """Compose with the anchor of a sample number fixed by the number."""
    composer = Composer(
        shots, settings.mix, tiny.trained_generator(settings).network.feature_side, 1, "t", augmentation
    )
    return composer.compose(torch.tensor([n % len(shots.ids) for n in numbers]), np.array(numbers), 7)


def fields(composition: Composition, index: int) -> list[Tensor]:
    """All that mix `index` is made of."""
    c, of_view = composition, composition.sources_BK[index]
    views = c.draws.at(of_view).views
    of_mix = [field[index] for field in (c.layout_B, c.regions.map_BHW, c.mask_BKhw)]  # the mask holds the weights
    return [*of_mix, c.rows_N[of_view], c.images_NCHW[of_view], views.oy, views.ox, views.flip]


# ---- composing


@pytest.mark.parametrize("augmentation", ["basic", "trivial"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_sample_is_composed_alike_in_any_batch(mix: dict[str, Any], augmentation: Augmentation) -> None:
    settings = tiny.generator_settings(mix=mix)
    whole = compose(settings, [9, 2, 30, 4], augmentation)
    for index, number in enumerate([9, 2, 30, 4]):
        alone = compose(settings, [number], augmentation)
        assert all(torch.equal(a, b) for a, b in zip(fields(whole, index), fields(alone, 0), strict=True))


@given(first=st.integers(0, 10_000), mix=st.sampled_from(MIXES), augmentation=st.sampled_from(["basic", "trivial"]))
def test_composition_is_what_its_parts_say(first: int, mix: dict[str, Any], augmentation: Augmentation) -> None:
    settings = tiny.generator_settings(mix=mix)
    numbers = list(range(first, first + 3))
    c = compose(settings, numbers, augmentation)
    rows_BK = c.rows_N[c.sources_BK]
    assert torch.equal(rows_BK[:, 0], torch.tensor([n % len(SHOTS.ids) for n in numbers]))
    assert bool((SHOTS.labels_N[rows_BK] == SHOTS.labels_N[rows_BK[:, :1]]).all()), "one class a mix"
    assert torch.equal(c.images_NCHW, c.draws.apply(SHOTS.images_NCHW[c.rows_N]))
    assert bool((c.mask_BKhw >= 0).all())
    torch.testing.assert_close(c.mask_BKhw.sum(1), torch.ones_like(c.mask_BKhw[:, 0]))
    if "segments" not in settings.mix.mask.kind or SHOTS.segments_NHW is None:
        return
    for i in range(3):
        view_1 = c.sources_BK[i, c.layout_B[i]][None]
        moved_HW = c.draws.at(view_1).apply_to_maps(SHOTS.segments_NHW[c.rows_N[view_1]])[0]
        for label in moved_HW.unique():
            assert len(c.regions.map_BHW[i][moved_HW == label].unique()) == 1, "a segment has one source"


def test_segment_mask_without_segments_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="without segments"):
        compose(tiny.generator_settings(), [0], shots=tiny.shot_set(segments=False))
    compose(tiny.generator_settings(mix={"mask": {"kind": "grid"}}), [0], shots=tiny.shot_set(segments=False))


# ---- identities of the mix


def test_one_image_mixed_is_its_reconstruction() -> None:
    settings = tiny.generator_settings(mix={"count": 1})
    generator = tiny.trained_generator(settings)
    mixer = Mixer(generator.network, SHOTS, settings.mix, 1, "basic", bf16=False)
    anchors, numbers = torch.tensor([0, 5]), np.array([10, 11])
    mixed = mixer.mix(anchors, numbers, 0, tiny.SIDE)
    composer = Composer(SHOTS, settings.mix, generator.network.feature_side, 1, "mixer")
    views_BCHW = to_float(composer.compose(anchors, numbers, 0).images_NCHW)
    assert torch.equal(mixed, generator.network.decode(generator.network.encode(views_BCHW)))


@pytest.mark.parametrize("k", [0, 1, 2])
def test_mask_on_one_image_alone_is_its_reconstruction(k: int) -> None:
    generator = tiny.trained_generator()
    x_KCHW = to_float(SHOTS.images_NCHW[:3])
    f_KDhw = generator.network.encode(x_KCHW)
    side = generator.network.feature_side
    m_1Khw = F.one_hot(torch.full((1, side, side), k), 3).permute(0, 3, 1, 2).float()
    f_1Dhw = mix_features(f_KDhw[None], m_1Khw)
    assert torch.equal(f_1Dhw[0], f_KDhw[k])
    assert torch.equal(generator.network.decode(f_1Dhw)[0], generator.network.decode(f_KDhw[k : k + 1])[0])


def test_pixels_are_mixed_where_there_is_no_generator() -> None:
    mix = tiny.generator_settings(mix={"count": 2, "mask": {"kind": "whole", "assign": "shares"}}).mix
    anchors, numbers = torch.tensor([0, 5]), np.array([10, 11])
    mixed = Mixer(PixelMixing(tiny.SIDE), SHOTS, mix, 1, "basic", bf16=False).mix(anchors, numbers, 0, tiny.SIDE)
    c = Composer(SHOTS, mix, tiny.SIDE, 1, "mixer").compose(anchors, numbers, 0)
    x_BKCHW = to_float(c.images_NCHW)[c.sources_BK]
    shares_BK = c.mask_BKhw[:, :, 0, 0]
    assert torch.equal(c.mask_BKhw, shares_BK[:, :, None, None].expand_as(c.mask_BKhw)), "one share for the whole image"
    torch.testing.assert_close(mixed, (shares_BK[:, :, None, None, None] * x_BKCHW).sum(1))


def test_mixer_reduces_to_the_side_asked_for_in_range_and_without_gradient() -> None:
    mixer = tiny.mixer(SHOTS)
    full = mixer.mix(torch.tensor([0, 1, 2]), np.arange(3), 0, tiny.SIDE)
    small = mixer.mix(torch.tensor([0, 1, 2]), np.arange(3), 0, 16)
    torch.testing.assert_close(small, F.interpolate(full, size=16, mode="bilinear", align_corners=True))
    assert not full.requires_grad and full.dtype == torch.float32 and float(full.abs().max()) <= 1


# ---- records


def record_of(
    settings: GeneratorSettings, numbers: list[int], index: int, augmentation: Augmentation
) -> dict[str, Any]:
    return make_record(compose(settings, numbers, augmentation), index, SHOTS.ids, tiny.trained_generator(settings))


def same(a: Rendered, b: Rendered) -> bool:
    pairs = ((a.sources_KCHW, b.sources_KCHW), (a.mask_Khw, b.mask_Khw), (a.mix_CHW, b.mix_CHW))
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("augmentation", ["basic", "trivial"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_record_makes_the_same_image_again_to_the_byte(mix: dict[str, Any], augmentation: Augmentation) -> None:
    settings = tiny.generator_settings(mix=mix)
    generator = tiny.trained_generator(settings)
    for index, number in enumerate([5, 17, 40]):
        record = record_of(settings, [5, 17, 40], index, augmentation)
        text = json.dumps(record)
        assert json.loads(text) == record, "plain JSON"
        first, again = render(record, generator, IMAGES), render(json.loads(text), generator, IMAGES)
        in_another_batch = render(record_of(settings, [number], 0, augmentation), generator, IMAGES)
        assert same(first, again) and same(first, in_another_batch)
        assert image_sha256(first.mix_CHW) == image_sha256(again.mix_CHW)

        composition = compose(settings, [number], augmentation)
        assert torch.equal(first.sources_KCHW, composition.images_NCHW)
        assert torch.equal(first.mask_Khw, composition.mask_BKhw[0])
        f_KDhw = generator.network.encode(to_float(composition.images_NCHW))
        direct = to_uint8(generator.network.decode(mix_features(f_KDhw[None], composition.mask_BKhw)))[0]
        assert torch.equal(first.mix_CHW, direct)


def test_records_of_trivial_augment_hold_all_of_its_draws() -> None:
    settings = tiny.generator_settings()
    records = [record_of(settings, [n], 0, "trivial") for n in range(40)]
    operations = {operation for record in records for operation, _, _ in record["trivial"]}
    assert len(operations) > 10
    assert record_of(settings, [0], 0, "basic")["trivial"] is None


def test_record_names_sources_and_weights() -> None:
    settings = tiny.generator_settings()
    record = record_of(settings, [2], 0, "basic")
    assert record["sources"][0] == SHOTS.ids[2] and set(record["sources"]) <= set(SHOTS.ids)
    assert record["generator_sha256"] == tiny.trained_generator(settings).weights_sha256


def test_other_weights_are_refused() -> None:
    settings = tiny.generator_settings()
    record = record_of(settings, [2], 0, "basic")
    with pytest.raises(UserError, match="cannot be made again without the recorded weights"):
        render(record, tiny.trained_generator(settings, seed=4), IMAGES)


def test_record_from_before_masks_had_shares_is_still_read() -> None:
    settings = tiny.generator_settings()
    record = record_of(settings, [2], 0, "basic")
    old = {key: value for key, value in record.items() if key != "weights"}
    generator = tiny.trained_generator(settings)
    assert same(render(old, generator, IMAGES), render(record, generator, IMAGES))


def test_missing_source_is_named() -> None:
    settings = tiny.generator_settings()
    record = record_of(settings, [2], 0, "basic")
    with pytest.raises(UserError, match=f"source image '{record['sources'][0]}'"):
        render(record, tiny.trained_generator(settings), {})


def test_digest_of_an_image_is_over_its_pixels_in_place() -> None:
    image = tiny.pictures(1)[0]
    changed = image.clone()
    changed[2, 31, 31] ^= 1
    assert len({image_sha256(image), image_sha256(changed), image_sha256(image.flip(-1))}) == 3


# ---- in a foreign loop


def transform(share: float = 1.0, seed: int = 0, shots: ShotSet = SHOTS, **options: Any) -> HydraMixTransform:
    return HydraMixTransform(tiny.trained_generator(), shots, share=share, seed=seed, **options)


def batch(side: int = tiny.SIDE, n: int = 5) -> tuple[Tensor, Tensor]:
    return tiny.pictures(n, side, seed=9), torch.arange(n) % 2


@pytest.mark.parametrize("side", [16, 32, 40])
def test_bytes_stay_bytes_and_floats_stay_in_range(side: int) -> None:
    images, labels = batch(side)
    as_bytes, same_labels = transform()(images, labels)
    assert same_labels is labels
    assert as_bytes.dtype == torch.uint8 and as_bytes.shape == images.shape and not torch.equal(as_bytes, images)
    as_floats, _ = transform()(to_float(images), labels)
    assert as_floats.dtype == torch.float32 and float(as_floats.abs().max()) <= 1
    assert torch.equal(to_uint8(as_floats), as_bytes), "one mix, in the batch's own range"
    halves, _ = transform()(to_float(images).half(), labels.int())
    assert halves.dtype == torch.float16


def test_share_zero_leaves_batches_alone_and_one_mixes_all() -> None:
    images, labels = batch()
    none, every = transform(0.0), transform(1.0)
    for _ in range(20):
        assert none(images, labels)[0] is images
        assert every(images, labels)[0] is not images


def test_share_between_is_honoured() -> None:
    images, labels = batch(16, 2)
    quarter = transform(0.25)
    mixed = sum(quarter(images, labels)[0] is not images for _ in range(200))
    assert 26 <= mixed <= 74  # four standard deviations about 50


def test_repeats_with_the_seed_and_not_with_another() -> None:
    images, labels = batch()

    def stream(seed: int) -> list[Tensor]:
        mix = transform(0.5, seed)
        return [mix(images, labels)[0] for _ in range(6)]

    assert all(torch.equal(a, b) for a, b in zip(stream(3), stream(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(stream(3), stream(4), strict=True))


def test_mixes_hold_images_of_their_labels_class_only() -> None:
    changed = SHOTS.images_NCHW.clone()
    changed[SHOTS.labels_N == 1] = 0
    other = ShotSet(changed, SHOTS.labels_N, SHOTS.ids, SHOTS.segments_NHW, SHOTS.classes)
    images, labels = batch(n=8)
    here, there = transform()(images, labels)[0], transform(shots=other)(images, labels)[0]
    differs = (here != there).flatten(1).any(1)
    assert differs.tolist() == (labels == 1).tolist()


@pytest.mark.parametrize("label", [2, -1, 3])
def test_label_without_images_is_said(label: int) -> None:
    three = ShotSet(SHOTS.images_NCHW, SHOTS.labels_N, SHOTS.ids, SHOTS.segments_NHW, ("a", "b", "empty"))
    images, labels = batch()
    labels[1] = label
    with pytest.raises(UserError, match="not one of the subset's 3 classes"):
        transform(shots=three)(images, labels)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_outside_its_range_is_said(share: float) -> None:
    with pytest.raises(UserError, match=r"is not in \[0, 1\]"):
        transform(share)


def test_works_in_a_plain_loop_and_teaches_only_the_users_network() -> None:
    mix = transform(0.5)
    before = [p.clone() for p in tiny.trained_generator().network.parameters()]
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    dataset = torch.utils.data.TensorDataset(to_float(SHOTS.images_NCHW), SHOTS.labels_N)
    loader = torch.utils.data.DataLoader(dataset, batch_size=3)
    net(dataset[0][0][None])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        for images, labels in loader:
            mixed, same_labels = mix(images, labels)
            loss = F.cross_entropy(net(mixed), same_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.isfinite(loss)
    network = mix._mixer._generator
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, network.parameters(), strict=True))
