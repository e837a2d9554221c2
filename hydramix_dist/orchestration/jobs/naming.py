"""Submission ids: the same job has the same one wherever it is submitted from, with its attempt at the end."""

import re

from hydramix_dist.errors import UserError

_PREFIX = "hydramix-"
_ATTEMPT = re.compile(r"-a([1-9]\d*)$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


def base_id(job: str, digest: str, name: str | None) -> str:
    """Return the id of a job's first attempt, from its settings' digest or the user's name for it.

    Raises UserError for a name that cannot be part of an id.
    """
    if name is not None and (not _NAME.fullmatch(name) or _ATTEMPT.search(f"-{name}")):
        raise UserError(
            f"--name '{name}' cannot be part of a job's id; take up to 60 letters, digits, '.', '_' and '-', not "
            "ending in -a and a number, which counts attempts"
        )
    return f"{_PREFIX}{job.replace('_', '-')}-{name or digest[:12]}"


def attempt_id(base: str, attempt: int) -> str:
    """Return the id of an attempt, counted from 1."""
    return base if attempt == 1 else f"{base}-a{attempt}"


def attempt_of(submission_id: str) -> int | None:
    """Return the attempt that an id names, None where it is not an id of ours."""
    if not submission_id.startswith(_PREFIX):
        return None
    found = _ATTEMPT.search(submission_id)
    return int(found[1]) if found else 1


def base_of(submission_id: str) -> str:
    """Return an id without its attempt."""
    return _ATTEMPT.sub("", submission_id)
