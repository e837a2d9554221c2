"""The tests' own processes: real ones, whose failures are seen and which are gone afterwards."""

import os
import time
import warnings
from pathlib import Path

import pytest
import ranks
import tiny
import torch
import torch.distributed as dist


def who(offset: torch.Tensor) -> tuple[int, int, float, int]:
    total = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(total)
    return dist.get_rank(), os.getpid(), float(total + offset), torch.get_num_threads()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_are_processes_that_talk(size: int) -> None:
    answers = ranks.run(size, who, torch.tensor(10.0))
    assert [rank for rank, *_ in answers] == list(range(size))
    pids = {pid for _, pid, *_ in answers}
    assert len(pids) == size
    assert os.getpid() not in pids
    assert {(total, threads) for *_, total, threads in answers} == {(10.0 + sum(range(size)), 1)}
    assert not any(tiny.alive(pid) for pid in pids)


def raise_on(rank: int) -> None:
    print(f"rank {dist.get_rank()} was here", flush=True)
    if dist.get_rank() == rank:
        raise ValueError("no such luck")
    dist.barrier()


def test_an_error_of_one_rank_is_shown_with_all_output() -> None:
    with pytest.raises(ranks.RankError) as caught:
        ranks.run(2, raise_on, 1)
    assert "ValueError: no such luck" in str(caught.value)
    assert "rank 0 was here" in str(caught.value)


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(7)


def test_a_rank_that_dies_is_seen() -> None:
    with pytest.raises(ranks.RankError, match="rank 1: died"):
        ranks.run(2, die_on, 1)


def hang_on(rank: int, noted: str) -> None:
    (Path(noted) / str(dist.get_rank())).write_text(str(os.getpid()))
    while dist.get_rank() == rank:
        time.sleep(0.1)


def test_ranks_that_hang_are_killed_and_say_where(tmp_path: Path) -> None:
    with pytest.raises(ranks.RankError, match=r"rank 1: not done in time(?s:.*)in hang_on"):
        ranks.run(2, hang_on, 1, str(tmp_path), seconds=3.0)
    assert not any(tiny.alive(int((tmp_path / str(rank)).read_text())) for rank in range(2))


def warn() -> None:
    warnings.warn("look out", FutureWarning, stacklevel=1)


def test_a_warning_is_an_error_there_too() -> None:
    with pytest.raises(ranks.RankError, match="FutureWarning: look out"):
        ranks.run(1, warn)
