"""Settings: bad ones are answered in words, good ones mean the same in YAML, on the command line and after a dump."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hydramix_dist.config.load import build, configs_root, dump, override, read_yaml
from hydramix_dist.config.reference import settings_reference, settings_sections, sweep_sections, training_sections
from hydramix_dist.config.schema import GeneratorNetworkSettings, GeneratorSettings, PilotSettings
from hydramix_dist.config.sweep import AxisSettings, LimitSettings, SearchSettings, SpaceSettings, SweepSettings
from hydramix_dist.errors import UserError, nearest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "settings_keys.txt"
TRAINING = GOLDEN.with_name("training_keys.txt")  # the outermost keys of `hydramix train generator` and `classifier`


def load(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def refusal(tree: dict[str, Any], model: Any = PilotSettings) -> str:
    with pytest.raises(UserError) as caught:
        build(model, tree, "my.yaml")
    return str(caught.value)


# The interface is frozen: a key is added, renamed or taken away on purpose or not at all.


def test_the_keys_are_the_frozen_ones() -> None:
    keys = [key.path for section in settings_sections() for key in section.keys]
    assert keys == GOLDEN.read_text().split(), f"changed on purpose? then edit {GOLDEN.relative_to(ROOT)} as well"
    training = [key.path for section in training_sections() for key in section.keys]
    assert training == TRAINING.read_text().split(), f"edit {TRAINING.relative_to(ROOT)} as well"


def test_the_settings_page_is_the_schema_s() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_reference(), "run: python -m hydramix_dist.config.reference > docs/settings.md"


def test_every_key_says_what_it_means() -> None:
    sections = [*settings_sections(), *sweep_sections(), *training_sections()]
    assert [key.path for section in sections for key in section.keys if not key.meaning] == []


def test_the_page_has_every_key_of_a_sweep() -> None:
    """Counted from the other side: the fields of the models, those of a pilot aside."""
    sections = {section.path: {key.path for key in section.keys} for section in sweep_sections()}
    models = {
        "axes.<name>": AxisSettings,
        "limits": LimitSettings,
        "search": SearchSettings,
        "search.space.<name>": SpaceSettings,
    }
    assert sections.keys() == {"", *models}
    inner = {"search": {"space"}}  # a section of its own
    for path, model in models.items():
        assert sections[path] == {f"{path}.{name}" for name in model.model_fields.keys() - inner.get(path, set())}
    assert sections[""] == SweepSettings.model_fields.keys() - PilotSettings.model_fields.keys() - {"axes", "limits"}


def test_the_frozen_list_holds_every_leaf_of_the_resolved_settings() -> None:
    """Counted from the other side: what a run saves, with the names the user chose put back as <name>."""
    settings = PilotSettings()

    def leaves(tree: Any, path: str = "") -> list[str]:
        if not isinstance(tree, dict) or not tree:
            return [path]
        named = path in ("generators", "arms")
        return [leaf for key in tree for leaf in leaves(tree[key], f"{path}.{'<name>' if named else key}".lstrip("."))]

    assert sorted(leaves(dump(settings))) == sorted(GOLDEN.read_text().split())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_ready_file_can_be_read(path: Path) -> None:
    assert read_yaml(path)


def test_ready_settings_are_found_in_a_checkout() -> None:
    assert configs_root() == ROOT / "configs"


# YAML


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.e-3", ".1e-2", "0.001", "10e-4", "1.0e-3"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"lr: {text}") == {"lr": 0.001}
    assert override({}, [f"lr={text}"]) == {"lr": 0.001}


@pytest.mark.parametrize("text", ["'1e-3'", "e-3", "1e", "1e-3x", "x1e3", "1e-3 px", "."])
def test_other_text_stays_text(tmp_path: Path, text: str) -> None:
    value = load(tmp_path, f"lr: {text}")["lr"]
    assert isinstance(value, str) and value == text.strip("'")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_an_override_whatever_their_notation(value: float) -> None:
    assert override({}, [f"a.b={value!r}", f"a.c={value:e}", f"a.d={value:.0e}"])["a"] == {
        "b": value,
        "c": float(f"{value:e}"),
        "d": float(f"{value:.0e}"),
    }


def test_merge_keys_and_shared_parts_work(tmp_path: Path) -> None:
    tree = load(
        tmp_path,
        """
x-small: &small {batch: 8, images: 800}
x-slow: &slow {decay: 5e-1, batch: 16}
generators:
  one: &one
    <<: *small
    images: 1600
  two: {<<: [*small, *slow], images: 400}
  three: {<<: *one, batch: 2}
""",
    )
    assert tree == {
        "generators": {
            "one": {"batch": 8, "images": 1600},
            "two": {"batch": 8, "images": 400, "decay": 0.5},
            "three": {"batch": 2, "images": 1600},
        }
    }


def test_shared_parts_are_shared_in_the_file_only(tmp_path: Path) -> None:
    tree = load(tmp_path, "x-net: &net {network: {width: 4}}\none: {<<: *net}\ntwo: {<<: *net}\nthree: *net\n")
    changed = override(tree, ["one.network.width=8", "two.network.side=64"])
    assert changed == {
        "one": {"network": {"width": 8}},
        "two": {"network": {"width": 4, "side": 64}},
        "three": {"network": {"width": 4}},
    }


@pytest.mark.parametrize("value", ["2024-13-01", "9" * 5000, "[" * 2000, "&a [*a]"], ids=lambda value: value[:10])
def test_values_that_no_parser_can_build_are_answers(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="the value is not valid YAML"):
        override({}, [f"a={value}"])
    with pytest.raises(UserError, match=r"settings\.yaml is not valid YAML"):
        load(tmp_path, f"a: {value}\n")


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        ("a: 1\nb: 2\na: 1\n", 3, 1),
        ("a:\n  b: {c: 1,\n   c: 2}\n", 3, 2),
        ("x-p: &p {a: 1}\nq:\n  <<: *p\n  <<: *p\n", 4, 3),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str, line: int, first: int) -> None:
    with pytest.raises(UserError, match=f"line {line}: the key '.*' stands twice, first in line {first}"):
        load(tmp_path, text)


def test_overrides_know_the_same_rules() -> None:
    with pytest.raises(UserError, match="stands twice"):
        override({}, ["mix={count: 2, count: 3}"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds nothing"),
        (b"- a\n- b\n", "type list"),
        (b"just words", "type str"),
        (b"a: 1\n b: 2\n", "line 2"),
        (b"a: [1, 2\n", "line 2"),
        (b"a: !!python/object:os.system {}\n", "line 1"),
        (b"a: \xff\xfe\n", "UTF-8"),
    ],
)
def test_a_broken_file_is_an_answer(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="directory"):
        read_yaml(tmp_path)


# Overrides


def test_an_override_changes_its_key_and_nothing_else() -> None:
    tree = {"classifier": {"batch": 10, "images": 100}, "shots": [5]}
    changed = override(tree, ["classifier.batch=16", "classifier.optimizer.lr = 0.1", "shots=[5, 10]", "concurrent="])
    assert changed == {
        "classifier": {"batch": 16, "images": 100, "optimizer": {"lr": 0.1}},
        "shots": [5, 10],
        "concurrent": None,
    }
    assert tree == {"classifier": {"batch": 10, "images": 100}, "shots": [5]}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("classifier.batch", "no '='"),
        ("=3", "no key before the '='"),
        ("shots.first=3", "'shots' is a value"),
        ("a=[1", "not valid YAML"),
    ],
)
def test_a_broken_override_is_an_answer(assignment: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        override({"shots": [5]}, [assignment])
    assert assignment in str(caught.value)


# The schema


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"clasifier": {}}, "unknown key 'clasifier' (did you mean 'classifier'?); allowed here: arms, "),
        ({"classifier": {"optimizer": {"learning": 1}}}, "allowed here: lr, momentum, weight_decay"),
        ({"generators": {"mine": {"mix": {"maks": {}}}}}, "'generators.mine.mix.maks' (did you mean 'mask'?)"),
        ({"arms": {"mine": {"augment": "basic"}}}, "'arms.mine.augment' (did you mean 'augmentation'?)"),
        ({"classifier": {"batch": "16"}}, "'classifier.batch': input should be a valid integer (given: '16')"),
        ({"classifier": {"batch": 16.0}}, "'classifier.batch': input should be a valid integer (given: 16.0)"),
        ({"classifier": {"batch": True}}, "'classifier.batch': input should be a valid integer (given: True)"),
        ({"classifier": {"batch": 1}}, "'classifier.batch': input should be greater than or equal to 2 (given: 1)"),
        (
            {"classifier": {"optimizer": {"lr": float("inf")}}},
            "'classifier.optimizer.lr': input should be a finite number",
        ),
        (
            {"classifier": {"optimizer": {"lr": float("nan")}}},
            "'classifier.optimizer.lr': input should be a finite number",
        ),
        ({"classifier": {"network": "resnet18"}}, "network 'resnet18' is not known: wrn-DEPTH-WIDTH"),
        ({"classifier": None}, "'classifier': a section of keys is needed, one value was given (given: None)"),
        ({"arms": ["baseline"]}, "'arms': a section of keys is needed"),
        ({"arms": {}}, "'arms': "),
        ({"shots": []}, "'shots': "),
        ({"shots": [5, 5]}, "shots lists a value twice"),
        ({"seeds": [1, 1]}, "seeds lists a value twice"),
        ({"shots": [4], "validation": 0.2}, "a validation part needs at least 5 images a class, shots has 4"),
        (
            {"arms": {"a": {"classifier": {"imags": 5}}}},
            "unknown key 'arms.a.classifier.imags' (did you mean 'images'?); allowed here: batch, batch_norm, dropout",
        ),
        (
            {"arms": {"a": {"classifier": {"optimizer": {"lr": 0}}}}},
            "arms.a.classifier.optimizer.lr: Input should be greater than 0 (given: 0)",
        ),
        (
            {"arms": {"a": {"classifier": {"network": "wrn-5-1"}}}},
            "arms.a.classifier: network 'wrn-5-1' does not exist",
        ),
        ({"arms": {"a": {"pixels": {"cont": 5}}}}, "unknown key 'arms.a.pixels.cont' (did you mean 'count'?)"),
        (
            {"arms": {"a": {"pixels": {"mask": {"knd": 5}}}}},
            "unknown key 'arms.a.pixels.mask.knd' (did you mean 'kind'?)",
        ),
        ({"arms": {"a": {"pixels": {}, "generator": "hydramix"}}}, "arms.a has generator and pixels"),
        ({"arms": {"a": {"pixels": {"mask": {"kind": "grid", "grid": 0}}}}}, "'arms.a.pixels.mask.grid'"),
        ({"generators": {"g": {"group": 3}}}, "batch 64 is not a multiple of group 3; choose one, or group null"),
        ({"generators": {"g": {"group": 2}}}, "set group to null or to a divisor of batch 64 from 3 on"),
        ({"generators": {"g": {"group": 4, "mix": {"self_pairs": True}}}}, "mix.self_pairs needs group null"),
        (
            {"generators": {"g": {"mix": {"mask": {"kind": "segments-contiguous", "assign": "shares"}}}}},
            "assign 'shares' is defined for whole, grid and segments-independent, not 'segments-contiguous'",
        ),
        ({"arms": {"a": {"generator": "mine"}}}, "arms.a.generator 'mine' is not under generators (known: hydramix)"),
        ({"generators": {"g": {"milestones": [0.5, 7.0]}}}, "'generators.g.milestones.1': "),
        ({"generators": {"g": {"network": {"side": 30}}}}, "side 30 is not divisible by 8"),
        ({"generators": {"g": {"network": {"side": 16}}}}, "network.side 16 is below 32"),
        ({"generators": {"g": {"network": {"mix_after": "block5"}}}}, "mix_after 'block5' is none of stem, down1, "),
        ({"generators": {"g": {"mix": {"mask": {"kind": "chimera-grid"}}}}}, "is defined for count 2, not 3"),
        ({"seeds": [-1]}, "'seeds.0': input should be greater than or equal to 0"),
        ({"seeds": [2**70]}, "'seeds.0': "),
        ({"arms": {"../elsewhere": {}}}, "arms has the name '../elsewhere'"),
        *(
            ({"classifier": {"network": name}}, f"network '{name}' does not exist: the depth is one of 10, 16, 22")
            for name in ("wrn-12-2", "wrn-4-1", "wrn-0-1", "wrn-16-0")
        ),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(tree: dict[str, Any], said: str) -> None:
    message = refusal(tree)
    assert message.startswith("my.yaml: ")
    assert said in message


def test_each_problem_has_one_line_and_none_is_said_twice() -> None:
    message = refusal({"seeds": ["one"], "shots": [0], "nonsense": 1})
    assert len(message.splitlines()) == 3


def test_a_long_value_is_cut() -> None:
    assert len(refusal({"classifier": {"batch": "x" * 10_000}})) < 250


def test_settings_survive_dump_and_yaml(tmp_path: Path) -> None:
    tree = {
        "shots": [5, 10],
        "seeds": [3, 1],
        "generators": {"c": {"mix": {"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}}}},
        "arms": {"plain": {}, "mixed": {"augmentation": "trivial", "generator": "c"}},
    }
    settings = build(PilotSettings, tree, "x")
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(dump(settings)))
    assert build(PilotSettings, read_yaml(tmp_path / "saved.yaml"), "x") == settings


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        PilotSettings().concurrent = 3  # type: ignore[misc]


@given(st.integers(1, 4), st.integers(0, 6))
def test_features_can_be_fused_after_every_layer_but_the_last(downsamplings: int, blocks: int) -> None:
    shape = {"downsamplings": downsamplings, "blocks": blocks, "mix_after": "stem"}
    names = build(GeneratorNetworkSettings, shape, "x").layer_names()
    assert len(names) == len(set(names)) == 2 + 2 * downsamplings + blocks
    for name in names[:-1]:
        assert build(GeneratorNetworkSettings, shape | {"mix_after": name}, "x").mix_after == name
    assert names[-1] in refusal(shape | {"mix_after": names[-1]}, GeneratorNetworkSettings)


def test_generator_settings_are_whole_without_any_key() -> None:
    assert build(GeneratorSettings, {}, "x") == GeneratorSettings()


@pytest.mark.parametrize(("word", "hint"), [("clasifier", " (did you mean 'classifier'?)"), ("zzz", "")])
def test_the_nearest_word_is_suggested_only_where_it_is_near(word: str, hint: str) -> None:
    assert nearest(word, ["classifier", "seeds"]) == hint


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_comparison_of_the_benchmarks_can_be_run(path: Path) -> None:
    settings = build(PilotSettings, read_yaml(path), str(path))
    assert {settings.mix_of(name) is not None for name in settings.arms} == {True, False}, (
        "arms with and without mixing"
    )
