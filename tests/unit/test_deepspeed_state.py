"""A training's state has no topology: any stage and number of ranks goes on from any other's."""

import functools
import itertools

import pytest
import ranks
import torch
from sharded import (
    ADAM,
    CPU,
    EACH_TOPOLOGY,
    HALF,
    RATES,
    SGD,
    STAGES,
    TOPOLOGIES,
    assert_close,
    assert_equal,
    deepspeed,
    network,
    samples,
    teach,
    tensors,
    train,
    whole,
)

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.errors import UserError
from hydramix_dist.training.group import Alone

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


# By default from and to each stage and each size once.
SOME = {(0, 2), (1, 2), (1, 3), (2, 1), (3, 2)}
CASES = [pytest.param(a, b, marks=() if a in SOME else pytest.mark.full) for a, b in SHIFTED]
CASES += [pytest.param(a, b, marks=pytest.mark.full) for a, b in OTHERS]


@pytest.mark.parametrize(("before", "after"), CASES)
def test_any_topology_goes_on_from_any_other_s_state(before: tuple[int, int], after: tuple[int, int]) -> None:
    states = saved(*before)
    (stage, size), halves = after, {name: half for name, (half, _) in states.items()}
    for state, (_, end) in zip(ranks.run(size, go_on, stage, halves)[0], states.values(), strict=True):
        assert_close(state, end)


@pytest.mark.parametrize(("stage", "size"), EACH_TOPOLOGY)
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
