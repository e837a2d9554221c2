"""The page about results.json is the schemas' of a pilot and a sweep, and says all of both."""

from pathlib import Path
from typing import Any

import pytest
from results_factory import pilot, settings

from hydramix_dist.evaluation.schema_page import schema_page
from hydramix_dist.evaluation.sweep_results import Choice, TrialLine, assemble_sweep

RESULTS = pilot({"baseline": (0.5, 0.6, 0.55), "hydramix": (0.6, 0.66, 0.58)})
SWEEP = assemble_sweep(
    "first",
    [("photos", settings(("baseline", "hydramix")), RESULTS.runs)],
    [TrialLine(key="g", kind="generator", data="photos", shots=5, seed=0, state="done", attempts=1)],
    [Choice(data="photos", arm="hydramix", shots=5, values={}, score=0.5, candidates=3, for_shots=(5,))],
    {},
    {},
    {},
)
PAGE = Path(__file__).parents[2] / "docs" / "results-schema.md"


def test_the_committed_page_is_the_schema_s() -> None:
    assert PAGE.read_text(encoding="utf-8") == schema_page(), (
        "run: python -m hydramix_dist.evaluation.schema_page > docs/results-schema.md"
    )


def sections() -> dict[str, set[str]]:
    """Return the field names in each record's table, by the record's name."""
    found: dict[str, set[str]] = {}
    for part in schema_page().split("\n### ")[1:]:
        rows = [line for line in part.splitlines() if line.startswith("| `")]
        found[part.partition("\n")[0]] = {row.split("`")[1] for row in rows}
    return found


@pytest.mark.parametrize(
    "record",
    [
        *(RESULTS, RESULTS.arms[0], RESULTS.runs[0], RESULTS.summaries[0], RESULTS.pairs[0], RESULTS.verdict),
        *(RESULTS.verdict.answers[0], RESULTS.data),
        *(SWEEP, SWEEP.parts[0], SWEEP.parts[0].runs[0], SWEEP.trials[0], SWEEP.choices[0], SWEEP.generators),
    ],
    ids=lambda record: type(record).__name__,
)
def test_every_field_that_a_file_holds_is_on_the_page(record: Any) -> None:
    assert sections()[type(record).__name__] == set(record.model_dump())


def test_every_link_leads_to_a_section() -> None:
    page = schema_page()
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    outermost, parts = {"pilotresults", "sweepresults"}, {"of-a-pilot", "of-a-sweep"}
    assert links == ({name.lower() for name in sections()} - outermost) | parts


def test_a_record_of_both_stands_once() -> None:
    titles = [line for line in schema_page().splitlines() if line.startswith("#")]
    assert sorted(set(titles)) == sorted(titles)
