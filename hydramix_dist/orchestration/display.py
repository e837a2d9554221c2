"""What whoever starts trainings shows of them, on a terminal or elsewhere."""

from collections.abc import Mapping
from typing import Protocol

from hydramix_dist.orchestration.pool import Ended


class Display(Protocol):
    """What a person sees while trainings run."""

    def say(self, text: str) -> None:
        """Show one line."""

    def planned(self, names: Mapping[str, str]) -> None:
        """Take the trainings to come: display name by key."""

    def progress(self, key: str, done: int, total: int) -> None:
        """Take a training's (or an import's) progress."""

    def ended(self, ended: Ended) -> None:
        """Take a training's end."""
