"""Axes make arms: every combination for the arms that have the settings, no change for the others."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.config.axes import changed, check_key, expanded, known_keys, touched
from hydramix_dist.config.load import build, dump
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import UserError

ARMS: dict[str, Any] = {
    "baseline": {},
    "hydramix": {"generator": "hydramix"},
    "trivial": {"generator": "hydramix", "augmentation": "trivial"},
    "mixup": {"pixels": {"count": 2, "mask": {"kind": "whole"}}},
    "chimera": {"generator": "chimera"},
    "chimera-pixels": {"pixels": {"count": 2, "mask": {"kind": "chimera-grid"}}},
}
GENERATORS = {"hydramix": {"batch": 8}, "chimera": {"mix": {"count": 2, "mask": {"kind": "chimera-segments"}}}}
LR = "classifier.optimizer.lr"


def settings(**changes: Any) -> SweepSettings:
    return build(SweepSettings, {"arms": ARMS, "generators": GENERATORS} | changes, "s.yaml")


def expand(axes: dict[str, Any], **changes: Any) -> PilotSettings:
    return expanded(settings(axes=axes, **changes), "s.yaml")


def refusal(axes: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        expand(axes, **changes)
    return str(error.value)


def only(*names: str) -> dict[str, Any]:
    return {name: ARMS[name] for name in names}


# ---- which arms there are


def test_without_axes_it_is_the_comparison_itself() -> None:
    whole = expand({})
    given_settings = settings()
    assert list(whole.arms) == list(ARMS) and list(whole.generators) == ["hydramix", "chimera"]
    for name in PilotSettings.model_fields:
        assert getattr(whole, name) == getattr(given_settings, name)


def test_every_value_makes_an_arm_and_untouched_ones_stand_once() -> None:
    whole = expand({"generator.mix.count": [2, 3, 5]}, arms=only("baseline", "hydramix", "mixup"))
    assert list(whole.arms) == ["baseline", "hydramix-count=2", "hydramix-count=3", "hydramix-count=5", "mixup"]
    counts = [mix.count for mix in map(whole.mix_of, whole.arms) if mix is not None]
    assert counts == [2, 3, 5, 2]
    assert whole.arms["baseline"] == settings().arms["baseline"] and whole.arms["mixup"] == settings().arms["mixup"]


def test_combinations_stand_in_the_order_of_the_axes() -> None:
    whole = expand({LR: [0.1, 1e-5], "augmentation": ["basic", "trivial"]}, arms=only("baseline"))
    assert list(whole.arms) == [
        "baseline-lr=0.1-augmentation=basic",
        "baseline-lr=0.1-augmentation=trivial",
        "baseline-lr=1e-05-augmentation=basic",
        "baseline-lr=1e-05-augmentation=trivial",
    ]
    arm = "baseline-lr=1e-05-augmentation=trivial"
    assert whole.classifier_of(arm).optimizer.lr == 1e-5 and whole.arms[arm].augmentation == "trivial"
    assert whole.classifier.optimizer.lr == settings().classifier.optimizer.lr  # the common ones stay


def test_chimera_stands_beside_other_counts() -> None:
    whole = expand({"generator.mix.count": [2, 3]}, arms=only("chimera", "hydramix"))
    assert list(whole.arms) == ["chimera", "hydramix-count=2", "hydramix-count=3"]
    assert whole.generators["chimera"] == settings().generators["chimera"]
    pixels = expand({"pixels.count": [2, 3]}, arms=only("chimera-pixels", "mixup"))
    assert list(pixels.arms) == ["chimera-pixels", "mixup-count=2", "mixup-count=3"]
    masks = expand({"generator.batch": [8, 16]}, arms=only("chimera"))
    assert list(masks.arms) == ["chimera-batch=8", "chimera-batch=16"]  # other axes are for it as well


def test_what_only_mixing_has_is_for_mixing_arms() -> None:
    whole = expand({"classifier.mix_share": [0.25, 1]}, arms=only("baseline", "mixup"))
    assert list(whole.arms) == ["baseline", "mixup-mix_share=0.25", "mixup-mix_share=1"]


def test_an_axis_for_some_arms_only() -> None:
    whole = expand({"generator.mix.count": {"values": [2, 5], "arms": ["trivial"]}}, arms=only("hydramix", "trivial"))
    assert list(whole.arms) == ["hydramix", "trivial-count=2", "trivial-count=5"]
    assert [whole.arms[arm].generator for arm in whole.arms] == ["hydramix", "hydramix-count=2", "hydramix-count=5"]
    assert whole.generators["hydramix"].mix.count == 3


@pytest.mark.parametrize(
    ("key", "arm"),
    [
        ("generator.mix.count", "baseline"),
        ("generator.batch", "mixup"),
        ("pixels.count", "hydramix"),
        ("generator.mix.count", "chimera"),
        ("classifier.mix_share", "baseline"),
    ],
)
def test_an_axis_for_an_arm_without_the_setting(key: str, arm: str) -> None:
    assert refusal({key: {"values": [2, 3], "arms": [arm]}}) == (
        f"s.yaml: axes.{key}.arms names '{arm}', which does not have that setting, or for which it is fixed or without "
        "effect; leave it out"
    )


def test_words_stand_in_names_as_yaml_writes_them() -> None:
    whole = expand({"generator.group": [None, 4], "generator.mix.self_pairs": [False]}, arms=only("hydramix"))
    assert list(whole.arms) == ["hydramix-group=none-self_pairs=false", "hydramix-group=4-self_pairs=false"]
    assert [generator.group for generator in whole.generators.values()] == [None, 4]


def test_equal_leaves_get_longer_labels() -> None:
    whole = expand({"generator.optimizer.lr": [0.1], LR: [0.2], "classifier.batch": [4]}, arms=only("hydramix"))
    assert list(whole.arms) == ["hydramix-generator.optimizer.lr=0.1-classifier.optimizer.lr=0.2-batch=4"]
    counts = expand({"generator.mix.count": [2], "pixels.count": [3]}, arms=only("hydramix", "mixup"))
    assert list(counts.arms) == ["hydramix-mix.count=2", "mixup-pixels.count=3"]


def test_arms_that_come_to_have_one_name_are_refused() -> None:
    axes = {"classifier.batch": {"values": [4, 8], "arms": ["a"]}}
    text = refusal(axes, arms={"a": {}, "a-batch=8": {"augmentation": "trivial"}})
    assert text.startswith("s.yaml: ") and "'a-batch=8'" in text


# ---- generators


def test_a_generator_is_shared_where_its_settings_are() -> None:
    arms = only("hydramix", "trivial")
    assert list(expand({LR: [0.1, 0.2]}, arms=arms).generators) == ["hydramix"]
    whole = expand({"generator.mix.count": [2, 3], "classifier.batch": [4, 8]}, arms=arms)
    assert len(whole.arms) == 8 and list(whole.generators) == ["hydramix-count=2", "hydramix-count=3"]
    for name, arm in whole.arms.items():
        assert str(arm.generator) in name.replace("trivial", "hydramix")
        assert whole.generators[str(arm.generator)].batch == 8  # given, and not the default
        assert whole.classifier_of(name).batch in (4, 8)


def test_values_are_laid_over_an_arm_s_own() -> None:
    own = {"a": {"generator": "hydramix", "classifier": {"images": 60, "optimizer": {"momentum": 0.5}}}}
    whole = expand({LR: [0.1], "classifier.images": [80]}, arms=own)
    classifier = whole.classifier_of("a-lr=0.1-images=80")
    assert (classifier.images, classifier.optimizer.lr, classifier.optimizer.momentum) == (80, 0.1, 0.5)
    tree, generator = changed(settings(), "hydramix", {"generator.mix.mask.kind": "grid", LR: 0.3}, "test")
    assert tree["classifier"] == {"optimizer": {"lr": 0.3}} and tree["generator"] == "hydramix"
    assert generator is not None and generator["mix"]["mask"]["kind"] == "grid" and generator["mix"]["count"] == 3
    assert changed(settings(), "baseline", {"augmentation": "trivial"}, "test")[1] is None


# ---- keys


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("mix.count", "generator.mix.count"),
        ("generator.count", "generator.mix.count"),
        ("pixels.mix.count", "pixels.count"),
        ("classifier.lr", LR),
        ("generator.lr", "generator.optimizer.lr"),
        ("classifier.optimiser.lr", LR),
        ("generator.mix.cuont", "generator.mix.count"),
        ("augmentaton", "augmentation"),
        ("classifier.mixshare", "classifier.mix_share"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, found: str) -> None:
    assert refusal({key: [2]}) == (
        f"s.yaml: axes: '{key}' is no setting of an arm (did you mean '{found}'?); keys begin with generator., pixels. "
        "or classifier., or are augmentation"
    )


def test_a_key_that_resembles_none() -> None:
    assert refusal({"zzz": [2]}).startswith("s.yaml: axes: 'zzz' is no setting of an arm; keys begin with")
    with pytest.raises(UserError, match=r"s\.yaml: search\.space: 'classifier\.lr' is no setting .*optimizer\.lr"):
        expand({}, search={"space": {"classifier.lr": {"log": [0.1, 1]}}})


@pytest.mark.parametrize("key", ["shots", "seeds", "data", "arms"])
def test_lists_of_their_own(key: str) -> None:
    assert refusal({key: [2]}) == f"s.yaml: axes: '{key}' is a list of its own at the top of the file, as {key}: [...]"


def test_keys_that_no_arm_has() -> None:
    sentence = "is a setting that no arm has; the arms are"
    assert refusal({"generator.batch": [8]}, arms=only("baseline", "mixup")) == (
        f"s.yaml: 'generator.batch' {sentence} baseline, mixup"
    )
    assert sentence in refusal({"classifier.mix_until": [0.5]}, arms=only("baseline"))
    assert sentence in refusal({"generator.mix.count": [2, 3]}, arms=only("chimera"))
    assert sentence in refusal({}, arms=only("baseline"), search={"space": {"pixels.count": {"choice": [2]}}})


def test_known_keys_are_those_of_the_settings() -> None:
    keys = known_keys()
    assert len(set(keys)) == len(keys) and "augmentation" in keys and "generator.mix" not in keys
    assert {"generator.mix.count", "generator.milestones", "pixels.mask.kind", LR} <= set(keys)
    for key in keys:
        check_key(key, "test")


# ---- values


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        (
            {"augmentation": ["heavy"]},
            "s.yaml: arm baseline-augmentation=heavy: 'augmentation': input should be 'basic'",
        ),
        ({"generator.mix.count": [0]}, "s.yaml: arm hydramix-count=0: generator: 'mix.count': input should be greater"),
        ({"generator.group": [3]}, "s.yaml: arm hydramix-group=3: generator: batch 8 is not a multiple of group 3"),
        ({LR: [0]}, "s.yaml: arms.baseline-lr=0.classifier.optimizer.lr: Input should be greater than 0 (given: 0)"),
        (
            {"classifier.batch": ["4"]},
            "s.yaml: arms.baseline-batch=4.classifier.batch: Input should be a valid integer",
        ),
        (
            {"classifier.network": ["wrn/10"]},
            "s.yaml: arms has the name 'baseline-network=wrn/10'; a name is of letters",
        ),
    ],
)
def test_values_that_are_not_allowed(axes: dict[str, Any], sentence: str) -> None:
    assert refusal(axes, arms=only("baseline", "hydramix")).startswith(sentence)


def test_a_setting_is_varied_once() -> None:
    text = refusal({LR: [0.1, 0.2]}, search={"space": {LR: {"log": [0.1, 1]}}})
    assert text == f"s.yaml: '{LR}' is in axes and in search.space; a setting is varied by one of them"


@pytest.mark.parametrize(
    ("key", "space", "value", "arm"),
    [
        (LR, {"uniform": [-1, 1]}, "-1.0", "baseline"),
        ("classifier.dropout", {"uniform": [0.5, 1]}, "1.0", "baseline"),
        ("classifier.batch", {"log": [4, 16]}, "4.0", "baseline"),
        ("classifier.batch", {"choice": [4, 8, "16"]}, "16", "baseline"),
        ("generator.mix.count", {"choice": [2, 999]}, "999", "hydramix"),
        ("augmentation", {"choice": ["basic", "heavy"]}, "heavy", "baseline"),
    ],
)
def test_searched_values_that_are_not_allowed(key: str, space: dict[str, Any], value: str, arm: str) -> None:
    text = refusal({}, arms=only("baseline", "hydramix"), search={"space": {key: space}})
    assert text.startswith(f"s.yaml: search.space '{key}' = {value} of arm {arm}: ") and "nput should be" in text


@pytest.mark.parametrize("key", ["generator.network.side", "classifier.side", "generator.segments.scale"])
def test_what_images_are_segmented_by_is_not_searched(key: str) -> None:
    sentence = f"s.yaml: search.space '{key}': images are segmented before a sweep begins; vary it in axes"
    assert refusal({}, search={"space": {key: {"choice": [32, 64]}}}) == sentence
    assert len(expand({key: [32, 64]}, arms=only("hydramix")).arms) == 2


def test_searched_values_that_are_not_allowed_together() -> None:
    space = {"generator.group": {"choice": [None, 4]}, "generator.mix.count": {"choice": [2, 5]}}
    text = refusal({}, arms=only("hydramix"), search={"space": space})
    assert text.startswith("s.yaml: search.space") and "group 4 is below mix.count 5" in text
    allowed = {"generator.group": {"choice": [None, 8]}, "generator.mix.count": {"choice": [2, 5]}}
    assert list(expand({}, arms=only("hydramix"), search={"space": allowed}).arms) == ["hydramix"]


def test_touched_are_the_settings_that_an_arm_has() -> None:
    keys = [LR, "generator.batch", "generator.mix.count", "pixels.count", "classifier.mix_share", "augmentation"]
    assert touched(settings(), "baseline", keys) == [LR, "augmentation"]
    assert touched(settings(), "trivial", keys) == [*keys[:3], *keys[4:]]
    assert touched(settings(), "chimera", keys) == [LR, "generator.batch", "classifier.mix_share", "augmentation"]
    assert touched(settings(), "mixup", keys) == [LR, *keys[3:]]


# ---- whatever the axes

VALUES: dict[str, list[Any]] = {
    "generator.mix.count": [1, 2, 5],
    "generator.batch": [8, 40],
    "generator.optimizer.lr": [0.1, 0.2, 0.3],
    "pixels.count": [2, 3],
    "pixels.self_pairs": [True, False],
    LR: [0.1, 0.02, 1e-5],
    "classifier.mix_share": [0.5, 1.0],
    "augmentation": ["basic", "trivial"],
}


@st.composite
def axes_of(draw: st.DrawFn) -> dict[str, Any]:
    """Return up to three axes, some of them for some of the arms that have the setting."""
    axes: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=3)):
        values = draw(st.lists(st.sampled_from(VALUES[key]), unique=True, min_size=1))
        having = [arm for arm in ARMS if touched(settings(), arm, [key])]
        arms = draw(st.none() | st.lists(st.sampled_from(having), unique=True, min_size=1))
        axes[key] = values if arms is None else {"values": values, "arms": arms}
    return axes


@given(axes=axes_of())
def test_arms_are_the_product_of_the_axes_that_touch_them(axes: dict[str, Any]) -> None:
    plain, whole = settings(axes=axes), expand(axes)
    expected = 0
    for name in ARMS:
        own = {
            key: axis.values
            for key, axis in plain.axes.items()
            if (name in axis.arms if axis.arms is not None else touched(plain, name, [key]))
        }
        expected += math.prod(map(len, own.values()))
        if not own:
            assert whole.arms[name] == plain.arms[name] and whole.mix_of(name) == plain.mix_of(name)
            assert whole.classifier_of(name) == plain.classifier_of(name)
            continue
        # What differs between the arms made of one is what the axes name, and takes every combination.
        made = [arm for arm in whole.arms if arm.startswith(f"{name}-") and "=" in arm and origin(arm) == name]
        found = [tuple(value_at(whole, arm, key) for key in own) for arm in made]
        assert found == list(itertools.product(*own.values()))
    assert len(whole.arms) == expected
    assert set(whole.generators) == {arm.generator for arm in whole.arms.values() if arm.generator}


def origin(arm: str) -> str:
    return max((name for name in ARMS if arm.startswith(f"{name}-")), key=len)


def value_at(whole: PilotSettings, arm: str, key: str) -> Any:
    """Return the value that a setting has in an arm."""
    section, _, inner = key.partition(".")
    tree: Any = dump(whole.arms[arm])[section] if section in ("pixels", "augmentation") else None
    if section == "generator":
        tree = dump(whole.generators[str(whole.arms[arm].generator)])
    elif section == "classifier":
        tree = dump(whole.classifier_of(arm))
    for part in inner.split(".") if inner else ():
        tree = tree[part]
    return tree
