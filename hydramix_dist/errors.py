"""The exceptions that are an answer to the user, and the one that is a request to stop."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a state the user can mend; its text is the whole answer.

    The command line prints the text without a traceback and exits with code 2. The text names the
    file, key or object, the value met, what is allowed, and the way out.
    """


class DamagedError(UserError):
    """What was read, and read once more, is not what was written."""


class StoreAwayError(UserError):
    """The store gave no good answer for as long as it is waited for; whatever else is asked of it now waits as long."""


class Interrupted(Exception):  # noqa: N818 - not a failure: the user asked to stop
    """A training stopped on request after saving its state; the same command goes on from there."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the allowed word closest to `word`, or "" where none is close."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
