"""DeepSpeed on real processes: any stage and number of ranks learns as plain torch in one process does, and goes on
from any other's state."""

import functools
import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.schema import AdamSettings, SgdSettings
from hydramix_dist.errors import UserError
from hydramix_dist.models.placement import placed
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.group import Alone, Group

CPU = torch.device("cpu")
ADAM, SGD = AdamSettings(lr=0.01), SgdSettings(lr=0.05)
STAGES, SIZES = range(4), (1, 2, 3)
TOPOLOGIES = list(itertools.product(STAGES, SIZES))
RATES = [0.02, 0.02, 0.01, 0.005]  # one a step
HALF = len(RATES) // 2

# What the order of summation may cost, relative to a tensor's largest value. Measured: 1e-6 at most over six steps.
TOLERANCE = 1e-5
# In bf16 a weight that differs in its last bit may be rounded the other way, which changes it by 0.4 %, and then all
# that follows: measured 2.4e-2 over six steps. The first step alone is as exact as in fp32, but for three ranks: for
# DeepSpeed's mean over them losses are scaled by 3, which gradients in bf16 do not take without rounding.
BF16_TOLERANCE = 5e-2


# ---- what is trained


def network(norm: str = "instance", bf16: bool = False) -> nn.Module:
    """Weights of 135, 5, 3, 48 and 1 elements, so that two ranks, and three, divide some of them and others not."""
    torch.manual_seed(1)
    layer = nn.InstanceNorm2d(5, affine=True) if norm == "instance" else nn.BatchNorm2d(5)
    head = nn.Conv2d(5, 3, 3)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), layer, nn.ReLU(), head, nn.Flatten(), nn.Linear(48, 1))
    return placed(net, CPU, channels_last=True, bf16=bf16)


def samples(step: int, batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def loss_of(output_B1: Tensor, x_BCHW: Tensor) -> Tensor:
    return (output_B1[:, 0].float() - x_BCHW.mean((1, 2, 3)) - 1).square().mean()


def pieces(step: int, batch: int, group: Group, passes: int, of_ranks: int = 1) -> list[Tensor]:
    """Return what a rank computes of a step's batch, in as equal pieces as there are; `of_ranks`: what so many do."""
    count = group.world_size * of_ranks * passes
    own = np.array_split(np.arange(count), group.world_size)[group.rank]
    return [part for i, part in enumerate(torch.tensor_split(samples(step, batch), count)) if i in own]


def train(
    group: Group,
    optimizer: AdamSettings | SgdSettings,
    steps: range = range(len(RATES)),
    state: EngineState | None = None,
    batch: int = 7,
    passes: int = 1,
    of_ranks: int = 1,
    norm: str = "instance",
    bf16: bool = False,
) -> EngineState | None:
    """Train some steps; with `of_ranks`, one process computes what so many would, piece by piece."""
    engine = group.engine(network(norm, bf16), optimizer, state)
    for step in steps:
        for x_BCHW in pieces(step, batch, group, passes, of_ranks):
            engine.backward(loss_of(engine(x_BCHW), x_BCHW), len(x_BCHW) / batch)
        engine.step(RATES[step])
    return engine.full_state()


def deepspeed(stage: int, **zero: Any) -> DeepSpeedGroup:
    config = read_deepspeed(f"zero{stage}")
    return DeepSpeedGroup({"zero_optimization": config["zero_optimization"] | zero}, CPU)


def whole(state: EngineState | None) -> EngineState:
    assert state is not None
    return state


def tensors(state: EngineState) -> Iterator[tuple[str, Tensor]]:
    """Yield weights and moments, without what batch norm counts: it sees its own rank's images."""
    for name, tensor in state.weights.items():
        if "running" not in name and "batches" not in name:
            yield name, tensor
    for moment, of_names in state.moments.items():
        for name, tensor in of_names.items():
            yield f"{moment} of {name}", tensor


def assert_close(
    state: EngineState | None, expected: EngineState | None, what: str = "", tolerance: float = TOLERANCE
) -> None:
    given, wanted = dict(tensors(whole(state))), dict(tensors(whole(expected)))
    assert given.keys() == wanted.keys()
    assert whole(state).step == whole(expected).step
    for name, tensor in wanted.items():
        error = float((given[name] - tensor).abs().max() / tensor.abs().max())
        assert error < tolerance, f"{what}: {name} differs by {error:.1e} of its largest value"


def assert_equal(state: EngineState | None, expected: EngineState | None) -> None:
    given, wanted = whole(state), whole(expected)
    assert given.step == wanted.step
    assert given.moments.keys() == wanted.moments.keys()
    for one, other in [(given.weights, wanted.weights)] + [
        (given.moments[m], wanted.moments[m]) for m in wanted.moments
    ]:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other)


def reversed_on_rank_1(state: EngineState, stage: int) -> EngineState | None:
    """Load a state, which rank 1 was given in another order, and gather it again."""
    group = deepspeed(stage)
    if group.rank == 1:
        moments = {moment: dict(reversed(of_names.items())) for moment, of_names in reversed(state.moments.items())}
        state = EngineState(dict(reversed(state.weights.items())), moments, state.step)
    return group.engine(network(), ADAM, state).full_state()


@pytest.mark.parametrize("stage", STAGES)
def test_state_read_in_another_order_on_one_rank_is_gathered_as_it_was(stage: int) -> None:
    """As safetensors hands tensors out, in an order of each process's own; gathering is a collective."""
    state = whole(train(Alone(CPU), ADAM))
    assert_equal(ranks.run(2, reversed_on_rank_1, state, stage)[0], state)


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


@pytest.mark.parametrize(("stage", "size"), TOPOLOGIES)
def test_sharded_training_is_plain_torch_s(stage: int, size: int) -> None:
    first, *others = ranks.run(size, every_case, stage)
    assert not any(state for other in others for state in other.values())
    for name, case in CASES.items():
        exact = "bf16" not in case or ("steps" in case and size < 3)
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


# ---- a state has no topology


def train_and_save(stage: int) -> dict[str, tuple[EngineState | None, EngineState | None]]:
    """Return by optimizer the state after half of the steps, and that of a training that nobody disturbed."""
    group = deepspeed(stage)
    return {
        type(optimizer).__name__: (train(group, optimizer, range(HALF)), train(group, optimizer))
        for optimizer in (ADAM, SGD)
    }


def go_on(stage: int, halves: dict[str, EngineState]) -> list[EngineState | None]:
    group, rest = deepspeed(stage), range(HALF, len(RATES))
    return [train(group, optimizer, rest, halves[type(optimizer).__name__]) for optimizer in (ADAM, SGD)]


@functools.cache
def saved(stage: int, size: int) -> dict[str, tuple[EngineState, EngineState]]:
    return {name: (whole(half), whole(end)) for name, (half, end) in ranks.run(size, train_and_save, stage)[0].items()}


# Each topology once as the one that saved and once as the one that goes on, stage and size both changed.
SHIFTED = [((s, n), ((s + 1 + n) % 4, n % 3 + 1)) for s, n in TOPOLOGIES]
OTHERS = [(a, b) for a, b in itertools.product(TOPOLOGIES, TOPOLOGIES) if a != b and (a, b) not in SHIFTED]


@pytest.mark.parametrize(
    ("before", "after"), [*SHIFTED, *(pytest.param(a, b, marks=pytest.mark.full) for a, b in OTHERS)]
)
def test_any_topology_goes_on_from_any_other_s_state(before: tuple[int, int], after: tuple[int, int]) -> None:
    states = saved(*before)
    (stage, size), halves = after, {name: half for name, (half, _) in states.items()}
    for state, (_, end) in zip(ranks.run(size, go_on, stage, halves)[0], states.values(), strict=True):
        assert_close(state, end)


@pytest.mark.parametrize(("stage", "size"), TOPOLOGIES)
def test_the_same_topology_goes_on_bit_by_bit(stage: int, size: int) -> None:
    states = saved(stage, size)
    halves = {name: half for name, (half, _) in states.items()}
    for state, (_, end) in zip(ranks.run(size, go_on, stage, halves)[0], states.values(), strict=True):
        assert_equal(state, end)


@pytest.mark.parametrize("stage", STAGES)
def test_plain_torch_and_deepspeed_go_on_from_each_other(stage: int) -> None:
    rest = range(HALF, len(RATES))
    for name, optimizer in (("AdamSettings", ADAM), ("SgdSettings", SGD)):
        half, end = saved(stage, 2)[name]
        assert_close(train(Alone(CPU), optimizer, rest, half), end)
    halves = {
        name: whole(train(Alone(CPU), o, range(HALF))) for name, o in (("AdamSettings", ADAM), ("SgdSettings", SGD))
    }
    adam, sgd = ranks.run(2, go_on, stage, halves)[0]
    assert_close(adam, train(Alone(CPU), ADAM))
    assert_close(sgd, train(Alone(CPU), SGD))


def look_at_states(stage: int) -> None:
    group = deepspeed(stage)
    engine = group.engine(network("batch"), ADAM, None)
    fresh = engine.full_state()
    assert (fresh is None) == (group.rank > 0)
    if fresh is not None:
        assert fresh.moments == {}
        assert fresh.step == 0
        expected = network("batch").state_dict()
        assert fresh.weights.keys() == expected.keys()
        assert all(torch.equal(fresh.weights[name], tensor) for name, tensor in expected.items())

    teach(engine, samples(0, 2), group)
    engine.module.requires_grad_(False)  # another phase's turn
    state = engine.full_state()
    assert not any(p.requires_grad for p in engine.module.parameters())
    engine.module.requires_grad_(True)
    copies = None if state is None else {name: tensor.clone() for name, tensor in tensors(state)}
    teach(engine, samples(1, 2), group)
    if state is not None and copies is not None:
        assert all(torch.equal(tensor, copies[name]) for name, tensor in tensors(state)), "a state is a copy"
        parameters = {name for name, _ in network("batch").named_parameters()}
        assert {m: set(of_names) for m, of_names in state.moments.items()} == dict.fromkeys(
            ("exp_avg", "exp_avg_sq"), parameters
        )
        assert {t.dtype for n, t in state.weights.items() if "batches" not in n} == {torch.float32}
        assert int(state.weights["1.num_batches_tracked"]) == 1


def teach(engine: Engine, x_BCHW: Tensor, group: Group) -> None:
    engine.backward(loss_of(engine(x_BCHW), x_BCHW), 1 / group.world_size)
    engine.step(0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_is_whole_and_a_copy_and_rank_0_s(stage: int) -> None:
    ranks.run(2, look_at_states, stage)


def refuse(stage: int) -> str:
    other = EngineState({"0.weight": torch.ones(2, 3)})
    with pytest.raises(UserError) as caught:
        deepspeed(stage).engine(network(), ADAM, other)
    return str(caught.value)


def test_another_model_s_state_is_refused_on_all_ranks() -> None:
    assert all("belongs to another model: weight '0.weight'" in text for text in ranks.run(2, refuse, 1))


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


# ---- the group


def talk() -> None:
    group = deepspeed(2)
    assert (group.rank, group.world_size, group.device) == (dist.get_rank(), 3, CPU)
    version = importlib.metadata.version("deepspeed")
    assert group.description == {"workers": 3, "engine": "deepspeed-zero2", "deepspeed": version}

    own = torch.tensor([1.0, float(group.rank)], requires_grad=True)
    assert group.sum(own).tolist() == [3.0, 3.0]
    assert own.tolist() == [1.0, float(group.rank)]

    rows_32 = torch.full((2, 3), group.rank).T  # not contiguous
    gathered_R32 = group.gather(rows_32)
    assert gathered_R32.shape == (3, 3, 2)
    assert gathered_R32[:, 0, 0].tolist() == [0, 1, 2]

    said = group.exchange(UserError("no") if group.rank == 1 else {"rank": group.rank})
    assert said[0] == {"rank": 0}
    assert isinstance(said[1], UserError)


def test_ranks_tell_each_other() -> None:
    ranks.run(3, talk)


def all_that_is_printed(stage: int) -> str:
    train(deepspeed(stage), SGD, range(1))
    train(deepspeed(stage), ADAM, range(1))
    sys.stdout.flush()
    sys.stderr.flush()
    return Path("/proc/self/fd/1").readlink().read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_says_nothing(stage: int) -> None:
    assert ranks.run(2, all_that_is_printed, stage) == ["", ""]
