"""Several processes fail alike: an error of one is everybody's, so that nobody waits for those that are gone."""

import importlib.metadata

import pytest
import ranks
import tiny
import torch
import torch.distributed as dist

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.errors import UserError
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.group import on_first, together

CPU = torch.device("cpu")


def own_group() -> DeepSpeedGroup:
    return DeepSpeedGroup(read_deepspeed("zero1"), torch.device("cpu"))


def failing_on(rank: int) -> tuple[str, int]:
    """Fail on one rank inside `together`, then go on; return what was heard, and a sum that needs all ranks."""
    group = own_group()

    def act() -> int:
        if group.rank == rank:
            raise UserError(f"rank {group.rank} cannot read its images")
        return group.rank

    try:
        together(group, act)
        heard = "nothing"
    except UserError as error:
        heard = str(error)
    return heard, int(group.sum(torch.tensor(1)))


def first_only(fails: bool) -> tuple[str | list[int], int]:
    group = own_group()
    calls: list[int] = []

    def act() -> list[int]:
        calls.append(group.rank)
        if fails:
            raise UserError("the disk is full")
        return [7, group.rank]

    try:
        answer: str | list[int] = on_first(group, act)
    except UserError as error:
        answer = str(error)
    assert calls == ([0] if group.rank == 0 else [])
    return answer, int(group.sum(torch.tensor(1)))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_is_raised_on_all(rank: int) -> None:
    assert ranks.run(2, failing_on, rank) == [(f"rank {rank} cannot read its images", 2)] * 2


def test_rank_0_alone_acts_and_all_hear_of_it() -> None:
    assert ranks.run(2, first_only, False) == [([7, 0], 2)] * 2
    assert ranks.run(2, first_only, True) == [("the disk is full", 2)] * 2


def test_alone_everything_is_ones_own() -> None:
    assert together(tiny.ALONE, lambda: 3) == 3
    assert on_first(tiny.ALONE, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        together(tiny.ALONE, lambda: 1 // 0)
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(tiny.ALONE.sum(values), values) and torch.equal(tiny.ALONE.gather(values), values[None])


# ---- what they tell each other


def talk() -> None:
    group = DeepSpeedGroup(read_deepspeed("zero2"), CPU)
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
