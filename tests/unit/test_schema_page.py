"""The page about results.json is the schema's, and says all of it."""

from pathlib import Path
from typing import Any

import pytest
from results_factory import pilot

from hydramix_dist.evaluation.schema_page import schema_page

RESULTS = pilot({"baseline": (0.5, 0.6, 0.55), "hydramix": (0.6, 0.66, 0.58)})
PAGE = Path(__file__).parents[2] / "docs" / "results-schema.md"


def test_the_committed_page_is_the_schema_s() -> None:
    assert PAGE.read_text(encoding="utf-8") == schema_page(), (
        "run: python -m hydramix_dist.evaluation.schema_page > docs/results-schema.md"
    )


def sections() -> dict[str, set[str]]:
    """Return the field names in each record's table, by the record's name."""
    found: dict[str, set[str]] = {}
    for part in schema_page().split("\n## ")[1:]:
        rows = [line for line in part.splitlines() if line.startswith("| `")]
        found[part.partition("\n")[0]] = {row.split("`")[1] for row in rows}
    return found


@pytest.mark.parametrize(
    "record",
    [RESULTS, RESULTS.arms[0], RESULTS.runs[0], RESULTS.summaries[0], RESULTS.pairs[0], RESULTS.verdict, RESULTS.data],
    ids=lambda record: type(record).__name__,
)
def test_every_field_that_a_file_holds_is_on_the_page(record: Any) -> None:
    assert sections()[type(record).__name__] == set(record.model_dump())


def test_every_link_leads_to_a_section() -> None:
    page = schema_page()
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert links == {name.lower() for name in sections()} - {"pilotresults"}
