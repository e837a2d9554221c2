"""A Ray cluster as its dashboard's HTTP tells of it: versions, nodes, jobs. Every answer comes in seconds."""

import http.client
import json
import os
import platform
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from hydramix_dist.errors import UserError

ANSWER_SECONDS = 5.0  # for each question
UPLOAD_SECONDS = 60.0  # for each of the few requests that send what a job needs
STARTING_SECONDS = 10.0  # from a dashboard's first answer to its knowing the nodes
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]


class AwayError(UserError):
    """The cluster gave no answer in time."""


class ExistsError(Exception):
    """A job of this submission id is there already."""


@dataclass(frozen=True)
class RayJob:
    """A job as Ray knows it; times in seconds since 1970."""

    id: str
    state: State
    metadata: Mapping[str, str]
    message: str
    exit_code: int | None
    begun: float | None
    ended: float | None

    @property
    def over(self) -> bool:
        """Return whether it has ended."""
        return self.state in ENDED


class Cluster:
    """The dashboard at `http://HEAD:8265`, asked with the token that RAY_AUTH_MODE and its kin name."""

    def __init__(self, address: str) -> None:
        """Bind to an address; nothing is asked yet. Raises UserError for one that is no dashboard's, or a bad token."""
        self.address = dashboard_address(address)
        self._headers = _headers()

    def check(self) -> None:
        """Raise UserError where nothing answers, the token is not taken, or Ray or Python is of another version."""
        import ray

        found = self._get("/api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise UserError(
                f"what answers at --address {self.address} is no dashboard of Ray; give http://HEAD:8265, the "
                "port that `ray start` calls the dashboard's"
            )
        data = cast(dict[str, Any], self._get("/api/v0/cluster_metadata") or {}).get("data", {})
        here, there = (ray.__version__, platform.python_version()), (found["ray_version"], data.get("pythonVersion"))
        if here[0] != there[0] or (there[1] and _minor(here[1]) != _minor(there[1])):
            raise UserError(
                f"the cluster at {self.address} has Ray {there[0]} and Python {there[1] or 'of an unknown version'}, "
                f"here are Ray {here[0]} and Python {here[1]}; submit from an environment with the cluster's versions"
            )

    def nodes(self) -> list[dict[str, float]]:
        """Return what each living node has, by resource, the head among them."""
        end = time.monotonic() + STARTING_SECONDS
        while True:
            listed = cast(dict[str, Any], self._get("/api/v0/nodes?limit=10000"))["data"]["result"]["result"]
            alive = [node["resources_total"] or {} for node in listed if node["state"] == "ALIVE"]
            if alive or time.monotonic() > end:  # a dashboard that has just begun does not know even its own node
                return alive
            time.sleep(0.5)

    def jobs(self) -> list[RayJob]:
        """Return all submitted jobs that Ray knows, the oldest first."""
        listed = cast(list[dict[str, Any]], self._get("/api/jobs/"))
        return sorted((_job(entry) for entry in listed if entry.get("submission_id")), key=lambda job: job.begun or 0.0)

    def job(self, submission_id: str) -> RayJob | None:
        """Return a job, None where Ray knows none of that id."""
        if not submission_id:  # all jobs have that path
            return None
        found = cast(dict[str, Any] | None, self._get(_path(submission_id), missing=None))
        # Ray also finds drivers that nobody submitted, by the number that it gives each.
        return None if found is None or found.get("submission_id") is None else _job(found)

    def logs(self, submission_id: str) -> str:
        """Return all that a job has said so far."""
        return str(cast(dict[str, Any], self._get(_path(submission_id, "/logs"), missing={"logs": ""}))["logs"])

    def stop(self, submission_id: str) -> None:
        """Ask a job to stop; it has not stopped when this returns."""
        self._ask("POST", _path(submission_id, "/stop"))

    def client(self) -> Any:
        """Return Ray's own client, for what is more than a question: to upload and submit, and to follow logs."""
        import logging

        from ray.job_submission import JobSubmissionClient

        kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}  # they win over ours
        try:
            client = JobSubmissionClient(self.address)
        except (ConnectionError, RuntimeError) as error:
            raise AwayError(f"the cluster at {self.address} does not answer any more ({error})") from error
        finally:
            os.environ.update(kept)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # it tells of each connection's end
        if client._ssl_context is None:  # which aiohttp warns of
            client._ssl_context = True
        return client

    def submit(self, submission_id: str, entrypoint: str, **options: Any) -> None:
        """Upload what the job needs and submit it. Raises ExistsError where a job has this id, else UserError."""
        import logging

        import requests

        client = self.client()
        ask = client._do_request
        client._do_request = lambda *words, **how: ask(*words, **{"timeout": UPLOAD_SECONDS, **how})
        logging.disable(logging.WARNING)  # Ray tells of all the files that it leaves out
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=submission_id, **options)
        except requests.exceptions.RequestException as error:
            raise AwayError(f"the cluster at {self.address} went away while the job was submitted ({error})") from error
        except (RuntimeError, ValueError) as error:
            if "already exists" in str(error):
                raise ExistsError(submission_id) from error
            if "No available agent" in str(error):
                raise AwayError(
                    f"the cluster at {self.address} has no agent that would start the job: its head is just starting, "
                    "or something else has the agent's port (ray start --dashboard-agent-listen-port); try again"
                ) from error
            raise UserError(f"the cluster at {self.address} does not take the job: {last_line(error)}") from error
        finally:
            logging.disable(logging.NOTSET)

    def _get(self, path: str, **missing: Any) -> object:
        return self._ask("GET", path, **missing)

    def _ask(self, method: str, path: str, **missing: Any) -> object:
        """Return what is answered as JSON; `missing` is returned where there is no such thing."""
        asked = urllib.request.Request(self.address + path, method=method, headers=self._headers)
        try:
            with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise wrong_token(self.address, given=error.code == 403) from error
            if error.code == 404 and "missing" in missing:
                return missing["missing"]
            if error.code >= 500:
                raise AwayError(f"the cluster at {self.address} answers with HTTP {error.code} to {path}") from error
            raise UserError(
                f"what answers at --address {self.address} is no dashboard of Ray 2.60 (HTTP {error.code} to {path}); "
                "give http://HEAD:8265"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            cut = isinstance(error, OSError | http.client.IncompleteRead)  # before an answer, or in the midst of one
            if not cut:
                raise UserError(
                    f"what answers at --address {self.address} is no dashboard of Ray (it speaks no HTTP); give "
                    "http://HEAD:8265, not the port that nodes join at"
                ) from error
            why = getattr(error, "reason", None) or error
            raise AwayError(
                f"no dashboard of Ray answers at --address {self.address} within {ANSWER_SECONDS:.0f} s ({why}); is "
                "the cluster up, is this the dashboard's port (8265), and does a firewall stand between?"
            ) from error
        except ValueError as error:
            raise UserError(
                f"what answers at --address {self.address} is no dashboard of Ray (it speaks no JSON); give "
                "http://HEAD:8265"
            ) from error


ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def default_address() -> str | None:
    """Return the dashboard that the environment names, as Ray reads it: by a URL."""
    named = (os.environ.get(name, "") for name in ADDRESS_VARIABLES)
    return next((value for value in named if value.startswith(("http://", "https://"))), None)


def dashboard_address(address: str) -> str:
    """Return the address as http://HOST:PORT. Raises UserError for one that is none."""
    text = address if "://" in address else f"http://{address}"
    if not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?/?", text):
        raise UserError(
            f"--address is {shown_address(address)}; give the cluster's dashboard as http://HEAD:8265, without path "
            "and credentials"
        )
    return text.rstrip("/")


def shown_address(address: str) -> str:
    """Return an address that is none as an answer may show it: without the password that it may hold."""
    return "one with credentials" if "@" in address else f"'{address}'"


def _headers() -> dict[str, str]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # said in so many words: Ray guesses differently by process
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    ray._raylet.Config.initialize("")  # read when it was imported, perhaps for other variables
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        return dict(get_auth_headers_if_auth_enabled({}))
    except Exception as error:  # Ray's own class, and others for a file that cannot be read
        raise UserError(
            f"RAY_AUTH_MODE is token, but there is no token ({last_line(error)}); set RAY_AUTH_TOKEN_PATH to the file "
            "with the cluster's token"
        ) from error


def wrong_token(address: str, *, given: bool) -> UserError:
    """Return the answer to a cluster that does not take this process's token, or wants one and got none."""
    asked = "another token than this process has" if given else "a token, and this process gives none"
    return UserError(
        f"the cluster at {address} asks for {asked}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with "
        "the cluster's token"
    )


def _path(submission_id: str, what: str = "") -> str:
    return f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}{what}"


def _job(entry: Mapping[str, Any]) -> RayJob:
    times = [None if entry.get(key) is None else entry[key] / 1000 for key in ("start_time", "end_time")]
    return RayJob(
        id=entry["submission_id"],
        state=entry["status"],
        metadata=entry.get("metadata") or {},
        message=entry.get("message") or "",
        exit_code=entry.get("driver_exit_code"),
        begun=times[0],
        ended=times[1],
    )


def _minor(version: str) -> Sequence[str]:
    return version.split(".")[:2]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, which has the cause where another process's traceback is in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
