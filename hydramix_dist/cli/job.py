"""A job on the cluster: `python jobs/JOB.py`, the commands of the command line with a marker of how they ended."""

import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from hydramix_dist.cli.job_request import Request, import_options, parse, pilot_data
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.jobs.cluster import last_line
from hydramix_dist.orchestration.jobs.inside import cluster_address, submission
from hydramix_dist.orchestration.jobs.marker import begin, end, read_marker
from hydramix_dist.store.lease import HeldError


def run_job(job: str, arguments: Sequence[str]) -> int:
    """Run a job on the cluster that RAY_ADDRESS names, on this machine where it names none; return its exit code.

    0 success, 1 failure, 2 bad input, 130 stopped on request: the same as in the marker, `jobs/JOB.json` in the output
    folder, which is written at the beginning and at the end.
    """
    signal.signal(signal.SIGTERM, _stopped)  # so that a stop before the first step is told as well
    try:
        request = parse(job, arguments)
        before = read_marker(request.folder, job)
        marker = begin(request.folder, job, request.digest, *submission())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    code, reason, held = _ended(request)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left takes a moment
    try:
        end(request.folder, marker, code, reason, before, held=held)
    except UserError as error:
        print(f"error: how the job ended could not be written: {error}", file=sys.stderr)
        return code or 1
    return code


def _ended(request: Request) -> tuple[int, str | None, bool]:
    """Run the command of a job; return its exit code, the reason where it is not 0, and whether another runs there."""
    try:
        code = _command(request)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2, str(error), isinstance(error, HeldError)
    except (Interrupted, KeyboardInterrupt) as stopped:
        said = str(stopped) or "stopped"
        print(said, file=sys.stderr)
        return 130, said, False
    except Exception as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {last_line(error)}", False
    reason = None if code == 0 else "the command ended with failures, which its output and the run's folder name"
    return code, reason, False


def _command(request: Request) -> int:
    from hydramix_dist.cli.options import metrics_exported

    address, words, out = cluster_address(), list(request.assignments), request.out
    with metrics_exported(None):
        if request.job == "import_data":
            from hydramix_dist.cli.data import import_command

            options = {"size": None, "fit": "crop", "holdout": 0.5, "segment_side": None} | import_options(words)
            return import_command(request.sources[0], str(out), licence=None, json_=False, **options)
        if request.job == "report":
            from hydramix_dist.cli.report import report_command

            return report_command(request.sources, out, False)
        config = str(request.config)
        if request.job == "pilot":
            from hydramix_dist.cli.pilot import pilot_command

            data, words = pilot_data(words)
            return pilot_command(data, config, None, None, None, None, words, None, address, out, False, False)
        if request.job == "sweep":
            from hydramix_dist.cli.sweep import run_command

            return run_command(config, words, out, request.shared, address, False, False)
        from hydramix_dist.cli.train import train_command

        return train_command(request.job.removeprefix("train_"), config, words, None, address, out, False)


def _stopped(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break off what ends the job
    raise Interrupted("stopped; the same job submitted again goes on from there")
