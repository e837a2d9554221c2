"""What a person sees while trainings run."""

import io

from rich.console import Console

from hydramix_dist.cli.console import LiveDisplay
from hydramix_dist.orchestration.pool import Ended


def test_of_trainings_that_end_together_each_line_counts_one_more() -> None:
    """The last progress of the second may be heard before the end of the first."""
    said = io.StringIO()
    with LiveDisplay(Console(file=said)) as display:
        display.planned({"a": "first", "b": "second"})
        for key in ("a", "b"):
            display.progress(key, 8, 8)
        for key in ("a", "b"):
            display.ended(Ended(key, {}, None))
    lines = said.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["2 trainings to do", "[1/2] first", "[2/2] second"]
