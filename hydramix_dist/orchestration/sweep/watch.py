"""What whoever runs a sweep shows of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hydramix_dist.orchestration.display import Display
from hydramix_dist.orchestration.sweep.book import Book


@dataclass
class Watch:
    """What is under way; `look` is called about twice a second."""

    look: Callable[["Watch"], None]
    running: dict[str, tuple[int, int]] = field(default_factory=dict)  # key -> images seen, in all
    reserved: str = ""  # of the cluster's CPUs and GPUs


class SweepDisplay(Display, Protocol):
    """What a person sees while a sweep runs."""

    def look(self, book: Book, watch: Watch) -> None:
        """Show where the sweep stands."""
