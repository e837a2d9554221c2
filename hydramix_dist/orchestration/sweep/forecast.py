"""How many trainings a sweep has and what they are expected to take, before it runs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hydramix_dist.evaluation.wording import duration
from hydramix_dist.orchestration.sweep.probe import Probe, seconds_of
from hydramix_dist.orchestration.tasks import Task

KINDS = ("generators", "candidates", "classifiers")  # the folders that trainings' keys begin with


@dataclass(frozen=True)
class Part:
    """The trainings of one kind: how many, how many of them are finished, and the seconds of the others."""

    trainings: int
    finished: int
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """What a sweep is expected to take. Seconds sum over trainings, and are None where nothing was measured.

    `elapsed` are the seconds by the clock with `at_a_time` trainings, each as fast as by itself; `spared` counts the
    generator trainings that are not needed because others are shared, with their seconds.
    """

    parts: Mapping[str, Part]
    at_a_time: int
    elapsed: float | None
    generators: int
    spared: int
    spared_seconds: float | None

    @property
    def total(self) -> Part:
        """Return all kinds together."""
        parts = self.parts.values()
        known = [part.seconds for part in parts if part.seconds is not None]
        return Part(
            sum(part.trainings for part in parts),
            sum(part.finished for part in parts),
            sum(known) if len(known) == len(parts) else None,
        )


def forecast(
    tasks: Mapping[str, Task],
    needs: Mapping[str, str],
    finished: Collection[str],
    without_sharing: int,
    probe: Probe | None,
    at_a_time: int,
) -> Forecast:
    """Return what the trainings are expected to take that are not among the `finished` keys.

    `needs` has the generator of each training that needs one; `without_sharing` is how many generators would be trained
    if each such training had its own. Raises KeyError for a training of a shape that was not measured.
    """
    done = set(finished)
    seconds = {} if probe is None else {key: seconds_of(task, probe) for key, task in tasks.items()}
    left = {key: value for key, value in seconds.items() if key not in done}
    parts = {}
    for kind in KINDS:
        keys = [key for key in tasks if key.startswith(f"{kind}/")]
        parts[kind] = Part(
            len(keys), sum(key in done for key in keys), sum(left.get(key, 0.0) for key in keys) if probe else None
        )
    # However many run at a time: no classifier ends before the generator that it needs.
    longest = max((value + left.get(needs.get(key, ""), 0.0) for key, value in left.items()), default=0.0)
    generators = parts["generators"].trainings
    users = [seconds[generator] for key, generator in needs.items() if key in tasks and generator in seconds]
    mean = sum(users) / len(users) if users else 0.0
    trained = sum(value for key, value in seconds.items() if key.startswith("generators/"))
    return Forecast(
        parts=parts,
        at_a_time=at_a_time,
        elapsed=max(sum(left.values()) / at_a_time, longest) if probe else None,
        generators=generators,
        spared=without_sharing - generators,
        spared_seconds=without_sharing * mean - trained if probe else None,
    )


def lines(forecast: Forecast) -> list[str]:
    """Return the forecast as lines of plain text: a table of the kinds, and what follows from it."""
    rows = [("", "trainings", "finished", "time left")]
    for name, part in {**forecast.parts, "in all": forecast.total}.items():
        if part.trainings or name == "in all":
            time = "not measured" if part.seconds is None else duration(part.seconds)
            rows.append((name, str(part.trainings), str(part.finished), time))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    if forecast.spared:
        time = "" if forecast.spared_seconds is None else f" and {duration(forecast.spared_seconds)}"
        table.append(
            f"sharing: {forecast.generators} generators are trained instead of "
            f"{forecast.generators + forecast.spared}, which spares {forecast.spared} trainings{time}"
        )
    if forecast.elapsed is not None:
        table.append(
            f"expected: {duration(forecast.elapsed)} by the clock with {forecast.at_a_time} at a time, if each is as "
            "fast beside the others as it was alone; the start of processes is not counted"
        )
    return table
