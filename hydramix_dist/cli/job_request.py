"""What a job is asked to do: one reading of its arguments, before it is submitted and in the job itself."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hydramix_dist.cli.options import settings_file
from hydramix_dist.cli.pilot import read_pilot
from hydramix_dist.cli.sweep import read_sweep
from hydramix_dist.cli.train import read_training, what_is_trained
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.load import override, read_yaml
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import UserError, nearest
from hydramix_dist.orchestration.jobs.marker import JOBS
from hydramix_dist.orchestration.pilot import what_is_compared
from hydramix_dist.orchestration.sweep.run import identity_of
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest

_WHOLE, _NUMBER, _WORD = (int, type(None)), (int, float), (str,)
_IMPORT_KEYS: dict[str, tuple[type, ...]] = {"size": _WHOLE, "fit": _WORD, "holdout": _NUMBER, "segment_side": _WHOLE}


@dataclass(frozen=True)
class Load:
    """The trainings of a job as far as a cluster's room is concerned."""

    distributed: DistributedSettings
    runtime: RuntimeSettings
    many: bool  # several trainings at a time, each in a process of its own unless it has several workers
    concurrent: int | None = None


@dataclass(frozen=True)
class Request:
    """One job: its name, what it reads and writes, and the digest of what makes it this job and no other."""

    job: str
    config: str | None  # as given: a ready name or a file
    assignments: tuple[str, ...]
    sources: tuple[str, ...]  # positional ones, of import_data and report
    out: str | None  # as given
    shared: str | None  # as given, of a sweep
    places: tuple[tuple[str, str], ...]  # (option or key, value) of everything outside that nodes read or write
    folder: Store  # where the marker lies
    digest: str
    load: Load | None  # None: it computes in its own process

    def arguments(self, config: str | None) -> list[str]:
        """Return what stands behind `python jobs/JOB.py`, with the path of CONFIG as the job finds it."""
        options = [] if config is None else ["--config", config]
        for name, value in (("--out", self.out), ("--shared", self.shared)):
            if value is not None and self.job != "import_data":
                options += [name, value]
        target = [self.out] if self.job == "import_data" and self.out is not None else []
        return [*options, "--", *self.sources, *target, *self.assignments]


class _Parser(argparse.ArgumentParser):
    """A parser that answers as all commands do."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def parse(job: str, arguments: Sequence[str]) -> Request:
    """Return the request that stands behind `python jobs/JOB.py`. Raises UserError for wrong arguments or settings."""
    parser = _Parser(prog=f"jobs/{job}.py", allow_abbrev=False)
    if job == "import_data":
        parser.add_argument("words", nargs="+", metavar="SRC DST [KEY=VALUE]", help=f"keys: {', '.join(_IMPORT_KEYS)}")
    elif job == "report":
        parser.add_argument("words", nargs="+", metavar="RUN", help="folders of pilots")
        parser.add_argument("--out", help="folder of the page; needed for several")
    else:
        parser.add_argument("--config", required=True, help="a ready name, or a YAML file")
        parser.add_argument("--out", required=True, help="folder of the run, a URL or a folder that all nodes share")
        if job == "sweep":
            parser.add_argument("--shared", help="folder of generators and imported images")
        parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="any setting; data=URL names the images")
    found = parser.parse_intermixed_args(list(arguments))
    return request(
        job, getattr(found, "config", None), found.words, getattr(found, "out", None), getattr(found, "shared", None)
    )


def request(job: str, config: str | None, words: Sequence[str], out: str | None, shared: str | None) -> Request:
    """Return the request with its settings resolved. Raises UserError where something is wrong with them."""
    if job not in JOBS:
        raise UserError(f"'{job}' is no job{nearest(job, JOBS)}; there are {', '.join(JOBS)}")
    if shared is not None and job != "sweep":
        raise UserError(f"--shared is for a sweep, not for {job}; leave it away")
    if job == "import_data":
        return _import(words, out)
    if job == "report":
        return _report(words, out)
    if config is None or "=" in config:
        raise UserError(f"{job} needs a CONFIG, a ready name or a YAML file, before any KEY=VALUE")
    if out is None:
        raise UserError(f"{job} needs --out, a URL (or a folder that all nodes share) to write the run to")
    tree, load, places = _settings(job, config, list(words))
    places += [("--out", out), *([("--shared", shared)] if shared is not None else [])]
    whole = {"job": job, "out": Store(out).url, "shared": Store(shared).url if shared else None, "settings": tree}
    return Request(job, config, tuple(words), (), out, shared, tuple(places), Store(out), digest(whole), load)


def _settings(job: str, config: str, words: list[str]) -> tuple[dict[str, Any], Load, list[tuple[str, str]]]:
    """Return the settings that make the run this one, the load, and the places that the settings name."""
    if job == "pilot":
        data, others = pilot_data(words)
        pilot = read_pilot(config, None, None, None, None, others)
        load = Load(pilot.distributed, pilot.runtime, many=False)
        what = {"data": None if data is None else Store(data).url, **what_is_compared(pilot)}
        return what, load, _places({"data": data})
    kind = job.removeprefix("train_")
    # As it stands there: what is read below has the paths of this machine made whole, which no node would find.
    raw = override(read_yaml(settings_file("CONFIG", kind, config)), words)
    if job == "sweep":
        sweep, whole, _ = read_sweep(config, words)
        load = Load(whole.distributed, whole.runtime, many=True, concurrent=sweep.concurrent)
        data_list = raw["data"] if isinstance(raw.get("data"), list) else [raw.get("data")]
        return identity_of(sweep), load, [place for source in data_list for place in _places({"data": source})]
    training = read_training(kind, config, words)
    load = Load(training.distributed, training.runtime, many=False)
    return what_is_trained(training), load, _places({key: raw.get(key) for key in ("data", "generator_run")})


def pilot_data(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the images that `data=` names, which a pilot takes apart from its settings, and the other words."""
    given = [word for word in words if word.partition("=")[0].strip() == "data"]
    data = override({}, given).get("data")
    return None if data is None else str(data), [word for word in words if word not in given]


def _places(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in found.items() if value is not None]


def import_options(words: Sequence[str]) -> dict[str, Any]:
    """Return the options of an import from KEY=VALUE. Raises UserError for an unknown key."""
    found = override({}, words)
    for key, value in found.items():
        if key not in _IMPORT_KEYS:
            raise UserError(
                f"'{key}' is no option of import_data{nearest(key, _IMPORT_KEYS)}; there are {', '.join(_IMPORT_KEYS)}"
            )
        if not isinstance(value, _IMPORT_KEYS[key]) or isinstance(value, bool):
            wanted = "a word" if _IMPORT_KEYS[key] is _WORD else "a number"
            raise UserError(f"{key}={value} of import_data: {wanted} is needed")
    return found


def _import(words: Sequence[str], out: str | None) -> Request:
    # A place may have an "=" as well, as in s3://BUCKET/day=3.
    assignments = tuple(word for word in words if word.partition("=")[0].isidentifier() and "=" in word)
    sources = [*(word for word in words if word not in assignments), *([out] if out is not None else [])]
    if len(sources) != 2:
        raise UserError(
            f"import_data takes SRC and DST and then KEY=VALUE ({', '.join(_IMPORT_KEYS)}), not {len(sources)} places"
        )
    src, dst = sources
    options = import_options(assignments)
    whole = {"job": "import_data", "src": Store(src).url, "out": Store(dst).url, "options": options}
    places = (("SRC", src), ("DST", dst))
    return Request("import_data", None, assignments, (src,), dst, None, places, Store(dst), digest(whole), None)


def _report(words: Sequence[str], out: str | None) -> Request:
    if not words:
        raise UserError("report needs at least one RUN, the folder of a pilot")
    if len(words) > 1 and out is None:
        raise UserError("report of several runs needs --out, the folder of the page")
    folder = Store(out if out is not None else words[0])
    places = (*(("RUN", run) for run in words), *([("--out", out)] if out is not None else []))
    whole = {"job": "report", "runs": [Store(run).url for run in words], "out": folder.url}
    return Request("report", None, (), tuple(words), out, None, places, folder, digest(whole), None)
