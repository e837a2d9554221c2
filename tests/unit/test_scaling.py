"""The scaling model says what DeepSpeed does, and docs/scaling.md says what the model says."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import model_state
import scaling

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
SMALL = (16, "wrn-10-1")  # width of the generator, and a classifier
MODELS = ("generator", "discriminator", "wrn-10-1")


@pytest.fixture(scope="module")
def counted() -> list[dict[int, dict[str, Any]]]:
    """Return what each of 2 ranks counts in real steps."""
    return ranks.run(2, model_state.count_all, 2, *SMALL, seconds=120)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_ranks_keep_what_the_formula_says(counted: list[dict[int, dict[str, Any]]], stage: int, name: str) -> None:
    formula = scaling.state(scaling.networks(*SMALL)[name], stage, 2)
    for part in ("weights", "masters", "gradients", "moments"):
        most = max(getattr(rank[stage][name].state, part) for rank in counted)
        assert most == pytest.approx(getattr(formula, part), rel=0.02), part


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("step", [MODELS[:2], MODELS[2:]], ids=" + ".join)
def test_ranks_send_what_the_formula_says(
    counted: list[dict[int, dict[str, Any]]], stage: int, step: tuple[str, ...]
) -> None:
    models = scaling.networks(*SMALL)
    formula = sum(scaling.traffic(models[name], stage, 2) for name in step)
    for rank in counted:
        # Beside it a classifier sends the statistics of its batch norms.
        assert sum(rank[stage][name].sent for name in step) == pytest.approx(formula, rel=0.03)


def test_formulas_by_hand() -> None:
    """Tensors of 6, 2 and 4 weights on 3 ranks: parts of 4; the second rank's reaches into the first two tensors."""
    model = scaling.Model((6, 2, 4), threshold=2, moments=2, phases=1)
    kept = [scaling.state(model, stage, 3) for stage in range(4)]
    assert [(s.weights, s.masters, s.gradients, s.moments) for s in kept] == [
        (48, 0, 48, 96),
        (48, 16, 48, 32),
        (48, 16, 32, 32),
        (16 + 8, 16, 16, 32),
    ]
    # All-reduce 2 x 48 x 2/3; all-gather half of it; stage 3 gathers 40 and then 8 bytes and scatters 48.
    assert [scaling.traffic(model, stage, 3) for stage in range(4)] == pytest.approx([64, 96, 96, 64])


def test_time_is_launches_until_arithmetic_takes_longer() -> None:
    work = scaling.Work(
        (), gigaflop=scaling.PEAK * scaling.REACHED / 1e12, launches=500
    )  # 1 ms a sample, 3 ms launches
    assert [work.computing(samples) for samples in (1, 3, 8)] == pytest.approx([3e-3, 3e-3, 8e-3])


def test_tables_of_the_page_are_the_models() -> None:
    page = PAGE.read_text(encoding="utf-8")
    models = scaling.networks(64, "wrn-16-8", "wrn-10-2")
    found: dict[tuple[str, int], list[str]] = {}
    name = ""
    for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")):
        if len(cells) == 8 and re.fullmatch("[0-3]", cells[2]):
            name = cells[0].lower() or name
            assert not cells[1] or cells[1] == f"{models[name].weights:,}"
            found[name, int(cells[2])] = cells[3:]
    assert found == {
        (name, stage): [f"{scaling.state(model, stage, r).total / 1e6:.1f}" for r in (1, 2, 8, 64, 1024)]
        for name, model in models.items()
        for stage in range(4)
    }
