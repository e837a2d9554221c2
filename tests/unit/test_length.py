"""How a batch is shared: every sample once, equally many passes on every process, the limits kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.errors import UserError
from hydramix_dist.training.length import Length


@st.composite
def shared(draw: st.DrawFn) -> tuple[Length, int, int | None, int]:
    """A length, a number of processes that it can be shared by, a micro-batch or none, and a step."""
    unit, units = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    world_size = draw(st.integers(1, units))
    micro_batch = draw(st.none() | st.integers(unit, 60))
    return Length(10**6, unit * units, unit), world_size, micro_batch, draw(st.integers(0, 1000))


@given(shared())
def test_every_sample_number_of_a_step_is_in_one_piece(case: tuple[Length, int, int | None, int]) -> None:
    length, world_size, micro_batch, step = case
    by_rank = [length.pieces(step, rank, world_size, micro_batch) for rank in range(world_size)]
    pieces = [piece for rank in by_rank for piece in rank]
    numbers = np.concatenate([piece.numbers for piece in pieces])
    assert numbers.tolist() == list(range(step * length.batch, (step + 1) * length.batch))
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert sum(piece.share for piece in pieces) == pytest.approx(1)
    assert all(piece.share * length.batch == pytest.approx(len(piece.numbers)) for piece in pieces)
    assert {piece.step for piece in pieces} == {step}


@given(shared())
def test_processes_make_equally_many_passes_over_nearly_equal_whole_units(
    case: tuple[Length, int, int | None, int],
) -> None:
    length, world_size, micro_batch, step = case
    by_rank = [length.pieces(step, rank, world_size, micro_batch) for rank in range(world_size)]
    assert {len(pieces) for pieces in by_rank} == {length.passes(world_size, micro_batch)}
    sizes = [len(piece.numbers) for pieces in by_rank for piece in pieces]
    assert min(sizes) > 0 and all(size % length.unit == 0 for size in sizes)
    assert max(sizes) - min(sizes) <= length.unit
    shares = [sum(len(piece.numbers) for piece in pieces) for pieces in by_rank]
    assert max(shares) - min(shares) <= length.unit
    if micro_batch is not None:
        assert max(sizes) <= micro_batch + length.unit
        if length.batch % (world_size * length.unit) == 0:
            assert max(sizes) <= micro_batch, "the limit is passed only where the batch cannot be divided evenly"


def test_no_micro_batch_is_one_pass() -> None:
    assert Length(100, 12).passes(5, None) == 1
    assert [len(p.numbers) for p in Length(100, 12).pieces(0, 1, 5, None)] == [2]


def test_batch_below_the_workers_is_refused_with_the_nearest_values() -> None:
    with pytest.raises(UserError, match=r"batch of 3 cannot be shared by 4 workers; use at most 3, or a batch of 4"):
        Length(100, 3).passes(4, None)
    with pytest.raises(UserError, match=r"batch of 8 .*groups of 4 are not divided.* at most 2, or a batch of 12 or"):
        Length(100, 8, unit=4).pieces(0, 0, 3, None)


def test_micro_batch_below_a_group_is_refused() -> None:
    with pytest.raises(UserError, match=r"runtime.micro_batch 2 is below the group of 4"):
        Length(100, 8, unit=4).passes(1, 2)
