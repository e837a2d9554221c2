"""DeepSpeed's configuration: a user says how memory and traffic are handled, and is refused what changes numbers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import yaml

from hydramix_dist.config.deepspeed import ZeroSettings, engine_config, read_deepspeed
from hydramix_dist.config.load import configs_root
from hydramix_dist.errors import UserError

ZERO = {"zero_optimization": {"stage": 2}}


def write(folder: Path, tree: Any, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(json.dumps(tree) if name.endswith("json") else yaml.safe_dump(tree))
    return str(path)


def refusal(folder: Path, tree: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_deepspeed(write(folder, tree))
    assert str(folder / "mine.yaml") in str(caught.value)
    return str(caught.value)


def zero(**keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 2, **keys}}


# ---- what is taken


@pytest.mark.parametrize("stage", range(4))
def test_the_ready_ones_are_there_for_each_stage(stage: int) -> None:
    assert read_deepspeed(f"zero{stage}")["zero_optimization"]["stage"] == stage


def test_there_is_no_other_ready_one() -> None:
    assert {path.name for path in (configs_root() / "deepspeed").iterdir()} == {f"zero{n}.yaml" for n in range(4)}


@pytest.mark.parametrize("name", ["mine.yaml", "mine.json"])
def test_a_file_of_the_user_s_own(tmp_path: Path, name: str) -> None:
    tree = zero(reduce_bucket_size=5e8, overlap_comm=True) | {"steps_per_print": 10, "comms_logger": {"enabled": True}}
    assert read_deepspeed(write(tmp_path, tree, name)) == tree
    assert type(read_deepspeed(write(tmp_path, tree, name))["zero_optimization"]["reduce_bucket_size"]) is int


def test_a_value_that_is_ours_anyway_is_taken(tmp_path: Path) -> None:
    ours = {"gradient_clipping": 0, "gradient_accumulation_steps": 1, "fp16": {"enabled": False}, "bf16": {}}
    assert read_deepspeed(write(tmp_path, zero(zero_quantized_weights=False) | ours)) == ZERO


# ---- what is refused, and what to use instead

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"gradient_clipping": 1.0}, ["'gradient_clipping' is 1.0", "only 0.0"]),
    ({"fp16": {"enabled": True}}, ["'fp16.enabled' is True", "runtime.precision"]),
    ({"fp16": {"enabled": False, "loss_scale": 128}}, ["'fp16'", "runtime.precision"]),
    ({"bf16": {"enabled": True}}, ["'bf16.enabled' is True", "runtime.precision"]),
    ({"torch_autocast": {"enabled": True}}, ["'torch_autocast.enabled'", "runtime.precision"]),
    ({"amp": {"enabled": True}}, ["'amp'", "runtime.precision"]),
    ({"data_types": {"grad_accum_dtype": "bf16"}}, ["'data_types.grad_accum_dtype' is 'bf16'", "runtime.precision"]),
    ({"communication_data_type": "fp16"}, ["'communication_data_type' is 'fp16'", "only 'fp32'"]),
    ({"optimizer": {"type": "Adam"}}, ["'optimizer'", "those of the training's settings"]),
    ({"scheduler": {"type": "WarmupLR"}}, ["'scheduler'", "those of the training's settings"]),
    ({"train_batch_size": 64}, ["'train_batch_size'", "runtime.micro_batch"]),
    ({"train_micro_batch_size_per_gpu": 4}, ["'train_micro_batch_size_per_gpu' is 4", "runtime.micro_batch"]),
    ({"train_micro_batch_size_per_gpu": "auto"}, ["'train_micro_batch_size_per_gpu' is 'auto'"]),
    ({"gradient_accumulation_steps": 2}, ["'gradient_accumulation_steps' is 2", "runtime.micro_batch"]),
    ({"prescale_gradients": True}, ["'prescale_gradients' is True"]),
    ({"gradient_predivide_factor": 2.0}, ["'gradient_predivide_factor' is 2.0"]),
    ({"gradient_allreduce_op": "sum"}, ["'gradient_allreduce_op' is 'sum'"]),
    ({"sparse_gradients": True}, ["'sparse_gradients'"]),
    ({"compression_training": {}}, ["'compression_training'"]),
    (zero(zero_quantized_gradients=True), ["'zero_optimization.zero_quantized_gradients' is True"]),
    (zero(zero_quantized_weights=True), ["'zero_optimization.zero_quantized_weights' is True"]),
    (zero(zero_hpz_partition_size=2), ["'zero_optimization.zero_hpz_partition_size' is 2"]),
    (zero(round_robin_gradients=True), ["'zero_optimization.round_robin_gradients' is True", "checkpoints"]),
    (zero(offload_optimizer={"device": "cpu"}), ["'zero_optimization.offload_optimizer'", "stages 1 to 3"]),
    (zero(offload_param={"device": "cpu"}), ["'zero_optimization.offload_param'", "stage 3"]),
]


@pytest.mark.parametrize(("keys", "said"), REFUSED, ids=lambda value: "" if isinstance(value, list) else str(value))
def test_what_would_change_numbers_is_refused(tmp_path: Path, keys: dict[str, Any], said: list[str]) -> None:
    text = refusal(tmp_path, ZERO | keys)
    assert all(part in text for part in said), text


def test_an_unknown_stage_is_told_the_known_ones(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"zero_optimization": {"stage": 4}})
    assert all(part in text for part in ("'zero_optimization.stage'", "0, 1, 2 or 3", "given: 4"))


def test_a_configuration_without_a_stage_is_refused(tmp_path: Path) -> None:
    assert "'zero_optimization'" in refusal(tmp_path, {"steps_per_print": 1})
    assert "'zero_optimization.stage'" in refusal(tmp_path, {"zero_optimization": {"overlap_comm": False}})


def test_an_unknown_key_is_told_the_nearest(tmp_path: Path) -> None:
    assert "'zero_optimisation' (did you mean 'zero_optimization'?)" in refusal(tmp_path, {"zero_optimisation": {}})
    text = refusal(tmp_path, zero(reduce_bucketsize=1))
    assert "'zero_optimization.reduce_bucketsize' (did you mean 'reduce_bucket_size'?)" in text


@pytest.mark.parametrize("value", ["auto", 0, 1.5, True])
def test_a_value_of_the_wrong_kind_is_refused(tmp_path: Path, value: Any) -> None:
    assert "'zero_optimization.reduce_bucket_size'" in refusal(tmp_path, zero(reduce_bucket_size=value))


def test_overlap_where_deepspeed_has_none_is_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"zero_optimization": {"stage": 1, "overlap_comm": True}})
    assert "'zero_optimization.overlap_comm' is true" in text


def test_an_unknown_name_is_told_the_ready_ones() -> None:
    with pytest.raises(UserError, match=r"'zero4' is neither one of zero0, zero1, zero2, zero3 nor a file .*mean"):
        read_deepspeed("zero4")


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[1]", "holds a list")])
def test_a_broken_json_file_is_an_answer(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_deepspeed(str(path))


# ---- the whole configuration of an engine

# Everything by which DeepSpeed could change a number, each with its harmless value: its defaults change.
NUMBERS: dict[str, Any] = {
    "gradient_clipping": 0.0,
    "gradient_accumulation_steps": 1,
    "managed_gradient_accumulation": False,
    "communication_data_type": "fp32",
    "gradient_allreduce_op": "mean",
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "data_types": {"grad_accum_dtype": "fp32"},
    "fp16": {"enabled": False},
    "bf16": {"enabled": False},
    "torch_autocast": {"enabled": False},
    "zero_force_ds_cpu_optimizer": False,
}


@pytest.mark.parametrize("stage", range(4))
def test_every_number_changing_setting_is_written_out(stage: int) -> None:
    config = engine_config(read_deepspeed(f"zero{stage}"))
    assert {key: config[key] for key in NUMBERS} == NUMBERS
    assert "optimizer" not in config
    assert "scheduler" not in config
    section = config["zero_optimization"]
    quantised = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
    assert [section[key] for key in (*quantised, "round_robin_gradients", "overlap_comm")] == [False] * 5


def test_two_engines_share_no_configuration() -> None:
    base = read_deepspeed("zero2")
    untouched = copy.deepcopy(base)
    one, other = engine_config(base), engine_config(base)
    one["zero_optimization"]["stage"] = 0
    one["fp16"]["enabled"] = True
    assert base == untouched
    assert other == engine_config(untouched)


def test_the_user_s_keys_reach_the_engine(tmp_path: Path) -> None:
    keys = {"reduce_bucket_size": 1234, "overlap_comm": True}
    config = engine_config(read_deepspeed(write(tmp_path, zero(**keys) | {"log_level": "info"})))
    assert config["zero_optimization"].items() >= keys.items()
    assert config["log_level"] == "info"


def defaults_of_deepspeed() -> dict[str, Any]:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {field.alias or name: field.default for name, field in DeepSpeedZeroConfig.model_fields.items()}


def test_every_key_that_is_taken_is_one_of_deepspeed_s_with_its_default() -> None:
    """A key that is not in the user's file is left to DeepSpeed, so the default shown must be DeepSpeed's."""
    (theirs,) = ranks.run(1, defaults_of_deepspeed)
    ours = {name: field.default for name, field in ZeroSettings.model_fields.items()}
    del ours["stage"], ours["overlap_comm"]  # required here; by stage there, off here
    assert {name: theirs.get(name, "unknown") for name in ours} == ours
