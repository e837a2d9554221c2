"""Where a sweep stands, read from its folder alone: by whoever has access, while it runs and after."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build, dump, override
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.results import Measured
from hydramix_dist.evaluation.sweep_results import Choice, SweepResults, TrialLine, assemble_sweep
from hydramix_dist.orchestration.sweep.design import Cell, Group, cells_of, groups_of
from hydramix_dist.orchestration.sweep.ledger import Event, read_events
from hydramix_dist.store import Store
from hydramix_dist.store.lease import is_held
from hydramix_dist.store.run import read_run, read_status


@dataclass
class Line:
    """One training as the events tell of it."""

    facts: Mapping[str, Any]
    state: str = "pending"
    attempts: int = 0
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    changed: float = 0.0


@dataclass
class Standing:
    """A sweep's settings and all its trainings, in the order they are to begin."""

    store: Store
    settings: SweepSettings
    whole: PilotSettings
    record: Mapping[str, Any]  # run.json
    state: str  # of the run: running, succeeded, failed; killed: not running any more, though nobody has said so
    data: dict[str, Event]
    lines: dict[str, Line]
    groups: dict[str, Group]
    cells: list[Cell]
    chosen: dict[str, Event]
    sessions: list[Event]

    @property
    def counts(self) -> Counter[str]:
        """Return the number of trainings by state."""
        return Counter(line.state for line in self.lines.values())

    @property
    def generators_to_begin(self) -> int:
        """Return how many generators of the table's cells are not begun yet; those of candidates are not known."""
        needed = {
            (cell.data, self.whole.generators[generator].model_dump_json(), cell.shots, cell.seed)
            for cell in self.cells
            if cell.group is None and (generator := self.whole.arms[cell.arm].generator) is not None
        }
        known = sum(1 for line in self.lines.values() if line.facts["kind"] == "generator")
        return max(0, len(needed) - known)

    @property
    def candidates_to_ask(self) -> int:
        """Return how many candidates of the searches are not known yet, each a training for every search seed."""
        if self.settings.search is None:
            return 0
        known = sum(1 for line in self.lines.values() if line.facts["kind"] == "candidate")
        return len(self.groups) * self.settings.search.trials * len(self.settings.search.seeds) - known


def read_settings(store: Store, assignments: Sequence[str] = ()) -> tuple[SweepSettings, PilotSettings]:
    """Return the settings of the sweep in a folder as its last command had them, and the comparison that they come to.

    `assignments` ("limits.hours=8") are laid over. Raises UserError where the folder holds none.
    """
    record = read_run(store)
    if record["kind"] != "sweep":
        raise UserError(f"{store.url} holds a {record['kind']} run, not a sweep")
    sessions = [event["settings"] for event in read_events(store) if event["event"] == "session"]
    tree = override(sessions[-1] if sessions else record["identity"]["settings"], assignments)
    source = store.path("run.json") + (" with the options given" if assignments else "")
    settings = build(SweepSettings, tree, source)
    return settings, expanded(settings, source)


def read_standing(store: Store) -> Standing:
    """Return where the sweep in a folder stands. Raises UserError where there is none."""
    settings, whole = read_settings(store)
    record = read_run(store)
    state = str(read_status(store).get("state", "running"))
    standing = Standing(store, settings, whole, record, state, {}, {}, {}, [], {}, [])
    events = list(read_events(store))
    standing.data = {event["name"]: event for event in events if event["event"] == "data"}
    standing.groups = {group.name: group for group in groups_of(settings, whole, list(standing.data))}
    standing.cells = cells_of(settings, whole, list(standing.data))
    for cell in standing.cells:
        facts = {"key": cell.key, "kind": "classifier", "data": cell.data, "arm": cell.arm, "shots": cell.shots}
        name = f"{cell.arm}, N={cell.shots}, seed {cell.seed}"
        standing.lines[cell.key] = Line(facts | {"seed": cell.seed, "name": name})
    _take(standing, events)
    if state == "running" and is_held(store) is False:
        standing.state = "killed"
        for line in standing.lines.values():
            line.state = "pending" if line.state == "running" else line.state
    return standing


def _take(standing: Standing, events: Iterable[Event]) -> None:
    for event in events:
        kind = event["event"]
        if kind in ("begun", "failed") and event["key"] not in standing.lines:
            facts = {name: event[name] for name in ("key", "kind", "data", "arm", "shots", "seed", "name")}
            standing.lines[event["key"]] = Line(facts)
        line = standing.lines.get(event.get("key", ""))
        if line is not None:
            line.changed = event["time"]
        if kind == "begun" and line:
            line.state, line.attempts = "running", line.attempts + 1
        elif kind == "busy" and line:
            line.state, line.attempts = "pending", line.attempts - 1
        elif kind == "done" and line:
            line.state, line.result, line.error = "done", event, None
        elif kind == "early" and line:
            line.state, line.result = "early", event
        elif kind == "failed" and line:
            line.state, line.error = "failed" if event["final"] else "pending", event["error"]
        elif kind == "again":
            for key in event["keys"]:
                if key in standing.lines:
                    standing.lines[key].state = "pending"
            unchosen = {group for group, choice in standing.chosen.items() if choice["event"] == "unchosen"}
            for cell in standing.cells:
                if cell.group in unchosen:
                    standing.lines[cell.key].state = "pending"
        elif kind in ("chosen", "unchosen"):
            standing.chosen[event["group"]] = event
            for cell in standing.cells if kind == "unchosen" else ():
                if cell.group == event["group"]:
                    line = standing.lines[cell.key]
                    line.state, line.error = "failed", event["error"]
        elif kind in ("session", "ended"):
            standing.sessions.append(event)
            for line in standing.lines.values():
                if line.state == "running":  # of a driver that is gone
                    line.state = "pending"
    if standing.sessions and standing.sessions[-1].get("reason") == "limit":
        for line in standing.lines.values():
            if line.state == "pending":
                line.state = "left"


def results_of(standing: Standing) -> SweepResults:
    """Return the results of what is finished so far."""
    runs: dict[str, list[Measured]] = {name: [] for name in standing.data}
    for line in standing.lines.values():
        if line.facts["kind"] == "classifier" and line.state == "done":
            runs[line.facts["data"]].append(_measured(standing, line))
    facts = standing.record["facts"]
    return assemble_sweep(
        standing.store.name,
        [(name, standing.whole, found) for name, found in runs.items()],
        [_trial_line(line) for line in standing.lines.values()],
        [_choice(standing, event) for event in standing.chosen.values() if event["event"] == "chosen"],
        dump(standing.settings),
        {"hydramix_dist": facts["hydramix_dist"], "python": facts["python"], **facts["packages"]},
        {key: str(facts[key]) for key in ("processor", "device", "threads", "precision")},
    )


def _measured(standing: Standing, line: Line) -> Measured:
    result = line.result
    generator = standing.lines.get(f"generators/{result['generator_key']}")
    return Measured(
        arm=line.facts["arm"],
        shots=line.facts["shots"],
        seed=line.facts["seed"],
        accuracy=result["accuracy"],
        balanced_accuracy=result["balanced_accuracy"],
        seconds=result["seconds"],
        generator_seconds=generator.result["seconds"] if generator and generator.state == "done" else 0.0,
        generator_key=result["generator_key"],
        test_images=result["test_images"],
    )


def _trial_line(line: Line) -> TrialLine:
    return TrialLine.model_validate(
        {name: line.facts[name] for name in ("key", "kind", "data", "arm", "shots", "seed")}
        | {"state": line.state, "attempts": line.attempts, "error": line.error}
        | {name: line.result.get(name) for name in ("seconds", "value", "peak_memory_bytes")}
    )


def _choice(standing: Standing, event: Event) -> Choice:
    group = standing.groups[event["group"]]
    shots = {cell.shots for cell in standing.cells if cell.group == group.name}
    return Choice(
        data=group.data,
        arm=group.arm,
        shots=group.shots,
        values=event["values"],
        score=event["score"],
        candidates=event["candidates"],
        for_shots=tuple(sorted(shots)),
    )
