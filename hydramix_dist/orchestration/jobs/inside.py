"""What a job knows of itself from the environment that Ray gives its process."""

import json
import os

from hydramix_dist.orchestration.jobs.naming import attempt_of
from hydramix_dist.orchestration.jobs.submission import JOB

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own: runtime environment and metadata of the job


def cluster_address() -> str | None:
    """Return the address of the cluster that the job runs on, None outside of one."""
    return os.environ.get("RAY_ADDRESS") or None


def given_by_ray(address: str) -> bool:
    """Return whether Ray itself gave this process the address, with a job to run: then the cluster is there."""
    return _CONFIG in os.environ and os.environ.get("RAY_ADDRESS") == address


def submission() -> tuple[str | None, int | None]:
    """Return the job's submission id and attempt, None for what Ray, or an id that we did not make, does not tell."""
    try:
        metadata = json.loads(os.environ.get(_CONFIG, "{}")).get("metadata", {})
        found = metadata.get("job_submission_id")
    except (ValueError, AttributeError):
        return None, None
    # Others make ids that look like ours: those of a RayJob of KubeRay are hydramix-pilot-x7k2p, new at each attempt.
    return found, attempt_of(found) if found and JOB in metadata else None
