"""DeepSpeed on real processes: any stage and number of ranks learns as plain torch in one process does."""

import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from sharded import (
    ADAM,
    BF16_TOLERANCE,
    CPU,
    EACH_TOPOLOGY,
    SGD,
    SLOW_BF16,
    STAGES,
    TOLERANCE,
    assert_close,
    assert_equal,
    deepspeed,
    loss_of,
    network,
    pieces,
    samples,
    train,
    whole,
)
from torch import nn

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.schema import SgdSettings
from hydramix_dist.training.group import Alone, Group

# ---- the same numbers

CASES: dict[str, dict[str, Any]] = {
    "adam, even": {"optimizer": ADAM, "batch": 6},
    "adam, uneven, two passes": {"optimizer": ADAM, "passes": 2},
    "sgd, uneven": {"optimizer": SGD},
    "sgd, even, two passes": {"optimizer": SGD, "batch": 6, "passes": 2},
    "plain sgd": {"optimizer": SgdSettings(lr=0.05, momentum=0.0)},
    "adam, bf16, one step": {"optimizer": ADAM, "passes": 2, "bf16": True, "steps": range(1)},
    "adam, bf16, uneven, two passes": {"optimizer": ADAM, "passes": 2, "bf16": True},
    "sgd, bf16, batch norm": {"optimizer": SGD, "bf16": True, "norm": "batch"},
}


def every_case(stage: int) -> dict[str, EngineState | None]:
    group = deepspeed(stage)
    return {name: train(group, **case) for name, case in CASES.items()}


@pytest.mark.parametrize(("stage", "size"), EACH_TOPOLOGY)
def test_sharded_training_is_plain_torch_s(stage: int, size: int) -> None:
    first, *others = ranks.run(size, every_case, stage)
    assert not any(state for other in others for state in other.values())
    for name, case in CASES.items():
        exact = "bf16" not in case or ("steps" in case and size < 3 and not SLOW_BF16)
        tolerance = TOLERANCE if exact else BF16_TOLERANCE
        assert_close(first[name], train(Alone(CPU), of_ranks=size, **case), name, tolerance)


@pytest.mark.parametrize("case", ["adam, uneven, two passes", "sgd, uneven"])
def test_pieces_add_up_to_the_batch_in_one(case: str) -> None:
    """So the comparison above is with the mean loss over the whole batch."""
    in_one = CASES[case] | {"passes": 1}
    assert_close(train(Alone(CPU), of_ranks=3, **CASES[case]), train(Alone(CPU), **in_one))


TINY = {"reduce_bucket_size": 100, "allgather_bucket_size": 100}  # less than the largest weight
OPTIONS: dict[int, list[dict[str, Any]]] = {
    1: [
        {"parameter_alignment": True},
        {"contiguous_gradients": False},
        {"use_multi_rank_bucket_allreduce": False},
        TINY,
    ],
    2: [
        {"parameter_alignment": True, **TINY},
        {"contiguous_gradients": False},
        {"reduce_scatter": False},
        {"use_multi_rank_bucket_allreduce": False},
        {"overlap_comm": True},
    ],
    3: [
        {"reduce_scatter": False, "contiguous_gradients": False},
        {"stage3_use_all_reduce_for_fetch_params": True},
        {"overlap_comm": True, "enable_sanity_checks": True, "stage3_prefetch_bucket_size": 10},
        {
            "sub_group_size": 60,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 10,
            "stage3_max_reuse_distance": 0,
            **TINY,
        },
    ],
}


def with_options(stage: int) -> list[EngineState | None]:
    return [train(deepspeed(stage, **options), ADAM, range(2)) for options in OPTIONS[stage]]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_a_user_may_set_leaves_the_numbers(stage: int) -> None:
    expected = train(Alone(CPU), ADAM, range(2))
    for state, options in zip(ranks.run(2, with_options, stage)[0], OPTIONS[stage], strict=True):
        assert_close(state, expected, str(options))


# ---- two models that learn in turns


def maker() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 3, padding=1))


def take_turns(group: Group, passes: int, of_ranks: int = 1) -> tuple[EngineState | None, EngineState | None]:
    """Train a maker against a judge, as the loop trains generator and discriminator; return both states."""
    g, d = group.engine(maker(), ADAM, None), group.engine(network(), ADAM, None)
    for step in range(4):
        parts = pieces(step, 7, group, passes, of_ranks)
        made = []
        for learns, rests in ((g, d), (d, g)):
            learns.module.requires_grad_(True)
            rests.module.requires_grad_(False)
            for i, x_BCHW in enumerate(parts):
                if learns is g:
                    made.append(g(x_BCHW))
                    loss = (d.module(made[i]) - 1).square().mean() + (made[i] - x_BCHW).abs().mean()
                else:
                    real_B1, made_B1 = d(torch.cat((x_BCHW, made[i].detach()))).chunk(2)
                    loss = (real_B1 - 1).square().mean() + made_B1.square().mean()
                learns.backward(loss, len(x_BCHW) / 7)
                assert all(p.grad is None for p in rests.module.parameters()), "a gradient in a model that rests"
            learns.step(0.01)
    return g.full_state(), d.full_state()


def sharded_turns(stage: int) -> tuple[EngineState | None, EngineState | None]:
    return take_turns(deepspeed(stage), passes=2)


@pytest.mark.parametrize(("stage", "size"), [(0, 2), (1, 3), (2, 2), (3, 2), (3, 3)])
def test_two_models_learn_in_turns_without_touching_each_other(stage: int, size: int) -> None:
    for state, expected in zip(ranks.run(size, sharded_turns, stage)[0], take_turns(Alone(CPU), 2, size), strict=True):
        assert_close(state, expected)


# ---- what else a training does


def with_and_without_a_look(stage: int) -> tuple[Any, ...]:
    """Return states of a training with evaluations and saves and of one without, with the last evaluation's outputs."""
    group = deepspeed(stage)
    outputs, states = [], []
    for look in (True, False):
        engine = group.engine(network("batch"), ADAM, None)
        for step in range(4):
            for x_BCHW in pieces(step, 6, group, 2):
                engine.backward(loss_of(engine(x_BCHW), x_BCHW), len(x_BCHW) / 6)
            engine.step(0.01)
            if look:
                engine.module.eval()
                with torch.no_grad():
                    outputs.append(engine.module(samples(99, 5)))
                    outputs.append(engine.module(samples(98, 2)))
                engine.module.train()
                engine.full_state()
        states.append(engine.full_state())
    return *states, outputs[-2]


@pytest.mark.parametrize("stage", STAGES)
def test_an_evaluation_or_a_save_between_steps_changes_nothing(stage: int) -> None:
    looked, blind, output_B1 = ranks.run(2, with_and_without_a_look, stage)[0]
    assert_equal(looked, blind)
    net = network("batch")
    net.load_state_dict(looked.weights)
    torch.testing.assert_close(output_B1, net.eval()(samples(99, 5)).detach())


def first_step(stage: int) -> EngineState | None:
    return train(deepspeed(stage), SgdSettings(lr=0.05, momentum=0.0, weight_decay=0.0), range(1))


def first_norm(stage: int | None) -> float:
    """Return the norm of the first step's gradients, on plain torch where there is no stage."""
    group = Alone(CPU) if stage is None else deepspeed(stage)
    engine = group.engine(network(), ADAM, None)
    for x_BCHW in pieces(0, 7, group, 1):
        engine.backward(loss_of(engine(x_BCHW), x_BCHW), len(x_BCHW) / 7)
    norm = engine.step(0.01, measured=True)
    assert norm is not None
    return float(norm)


@pytest.mark.parametrize("stage", STAGES)
def test_the_norm_of_the_gradients_is_plain_torch_s_on_every_rank(stage: int) -> None:
    assert ranks.run(2, first_norm, stage) == pytest.approx([first_norm(None)] * 2, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_learns(stage: int) -> None:
    weights = whole(ranks.run(3, first_step, stage)[0]).weights
    assert [n for n, p in network().named_parameters() if torch.equal(weights[n], p.detach())] == []


def meet_infinity(stage: int) -> bool:
    """Return whether the step was refused; where it was not, the weights must show what happened."""
    group = deepspeed(stage)
    engine = group.engine(network(), ADAM, None)
    x_BCHW = samples(0, 2)
    engine.backward(loss_of(engine(x_BCHW), x_BCHW) * (float("inf") if group.rank else 1.0), 0.5)
    try:
        engine.step(0.01)
    except FloatingPointError:
        return True
    state = engine.full_state()
    assert state is None or not all(bool(t.isfinite().all()) for t in state.weights.values())
    return False


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_never_left_out_in_silence(stage: int) -> None:
    assert ranks.run(2, meet_infinity, stage) == [stage == 3] * 2


def backward_twice() -> str:
    engine = deepspeed(3).engine(network(), ADAM, None)
    x_BCHW = samples(0, 2)
    output_B1 = engine(x_BCHW)
    engine.backward(loss_of(output_B1, x_BCHW), 0.5)
    with pytest.raises(RuntimeError, match="without a call of the engine") as caught:
        engine.backward(loss_of(output_B1, x_BCHW), 0.5)
    return str(caught.value)


def test_a_second_backward_without_a_call_is_refused() -> None:
    ranks.run(1, backward_twice)


def all_that_is_printed(stage: int) -> str:
    train(deepspeed(stage), SGD, range(1))
    train(deepspeed(stage), ADAM, range(1))
    sys.stdout.flush()
    sys.stderr.flush()
    return Path("/proc/self/fd/1").readlink().read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_says_nothing(stage: int) -> None:
    assert ranks.run(2, all_that_is_printed, stage) == ["", ""]
