"""The pilot, from images to a measured answer: import, subsets, trainings, statistics, report; resumable throughout."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydramix_dist.config.load import dump
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.overview import describe
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.data.shots import load_shots
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.evaluation.assemble import assemble
from hydramix_dist.evaluation.probes import probe
from hydramix_dist.evaluation.results import RESULTS_FILE, PilotResults, RunResult, save_results
from hydramix_dist.models.trained import load_generator
from hydramix_dist.orchestration.collect import data_summary, run_result, subset_record
from hydramix_dist.orchestration.display import Display
from hydramix_dist.orchestration.exporting import exporting
from hydramix_dist.orchestration.images import check_source, open_data
from hydramix_dist.orchestration.plan import Plan, default_concurrency, make_plan
from hydramix_dist.orchestration.pool import Ended, Stop, run_tasks
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask
from hydramix_dist.orchestration.train import check_workers, run_distributed
from hydramix_dist.report.page import REPORT_FILE, write_report
from hydramix_dist.report.sheets import Sheet
from hydramix_dist.store import Store
from hydramix_dist.store.lease import Held, exclusively
from hydramix_dist.store.run import RunFolder, read_run, read_status
from hydramix_dist.training import environment
from hydramix_dist.training.classifier import classifier_length
from hydramix_dist.training.generator import generator_length
from hydramix_dist.training.length import Length
from hydramix_dist.training.loop import prepare_device

PROBES = 6  # mixes shown of each generator setting


@dataclass(frozen=True)
class Outcome:
    """A pilot that ran to its end: its results, and the trainings that failed with their errors by key."""

    results: PilotResults
    failed: Mapping[str, str]


def run_pilot(
    source: str | None,
    settings: PilotSettings,
    preset: str | None,
    out: Store,
    display: Display,
    address: str | None = None,
) -> Outcome:
    """Run, or go on with, a pilot in `out`; leaves results.json and report.html there, also when stopped half way.

    `address` is that of a running Ray cluster, whose workers then train.

    Raises Interrupted when asked to stop, UserError for bad input, for a folder that holds another run, and where
    another process is running in it.
    """
    check_source(source, out)
    check_workers(settings.distributed, settings.runtime, _lengths(settings), address)
    driver = {"run": out.name, "role": "driver"}
    with exclusively(out) as held, exporting(driver, ("Data",), out):
        facts = environment.facts(settings.runtime, prepare_device(settings.runtime))
        dataset = open_data(source, out, display)
        plan = make_plan(settings, dataset, out)  # before the folder is taken: what is refused here leaves it free
        identity = {"data": dataset.fingerprint, "settings": what_is_compared(settings)}
        folder = RunFolder.begin(out, "pilot", identity, facts | {"preset": preset, "source": source})
        results: dict[str, dict[str, Any]] = {}
        try:
            warnings = _prepare(plan, settings, dataset, out, display)
            write = partial(_write, plan, results, settings, preset, dataset, warnings, facts, out)
            try:
                failed = _train(plan, settings, address, results, held, display)
            except Interrupted:
                held.check()
                if results:
                    write()
                raise
            report = write()
        except BaseException as error:
            held.check()
            folder.fail_with(error)
            raise
        if failed:
            folder.fail(f"{len(failed)} of {len(plan.tasks)} trainings failed")
        else:
            folder.succeed()
        return Outcome(report, failed)


def _lengths(settings: PilotSettings) -> list[Length]:
    generators = [settings.generators[arm.generator] for arm in settings.arms.values() if arm.generator]
    return [
        *(generator_length(generator) for generator in generators),
        *(classifier_length(settings.classifier_of(name)) for name in settings.arms),
    ]


def _prepare(plan: Plan, settings: PilotSettings, dataset: Dataset, out: Store, display: Display) -> list[str]:
    """Write the subsets' ids, make the segment maps that are absent, and return the warnings on the data."""
    for subset in plan.subsets:
        _put_json(out, f"subsets/{subset.name}.json", subset_record(dataset, subset.train, subset.validation))
    # Segmented before the workers start, so that they do not all make the same maps.
    for side, segments in sorted(set().union(*(task.segment_maps() for task in plan.tasks.values())), key=str):
        dataset.ensure_segments(side, segments, progress=display.progress)
    return [warned.text for warned in describe(dataset, settings.shots).warnings]


def _train(
    plan: Plan,
    settings: PilotSettings,
    address: str | None,
    results: dict[str, dict[str, Any]],
    held: Held,
    display: Display,
) -> dict[str, str]:
    """Carry out the plan, filling `results` by task key as trainings end; return the errors of those that failed."""
    display.planned({key: task.name for key, task in plan.tasks.items()})
    failed: dict[str, str] = {}
    with Stop() as stop:
        held.when_lost(stop.request)
        for ended in _carried_out(plan, settings, address, stop, display):
            display.ended(ended)
            if ended.result is not None:
                results[ended.key] = ended.result
            else:
                failed[ended.key] = ended.error or "no reason given"
    return failed


def _carried_out(
    plan: Plan, settings: PilotSettings, address: str | None, stop: Stop, display: Display
) -> Iterator[Ended]:
    """Yield each training as it ends: several at a time in a process each, or one after another over many workers."""
    if settings.distributed.workers > 1 or address is not None:
        return run_distributed(plan.tasks, plan.needs, settings.distributed, address, stop, display)
    concurrent = settings.concurrent or default_concurrency(settings.runtime, usable_cores())
    return run_tasks(plan.tasks, plan.needs, concurrent, stop, display.progress)


def _write(
    plan: Plan,
    results: Mapping[str, Mapping[str, Any]],
    settings: PilotSettings,
    preset: str | None,
    dataset: Dataset,
    warnings: Sequence[str],
    facts: Mapping[str, Any],
    out: Store,
) -> PilotResults:
    """Write results.json, the sheets and report.html from what is finished; return the results."""
    runs: list[RunResult] = []
    for key, task in plan.tasks.items():
        if isinstance(task, ClassifierTask) and key in results:
            generator = results[plan.needs[key]] if key in plan.needs else None
            runs.append(run_result(task, results[key], generator, dataset))
    assembled = assemble(
        settings,
        runs,
        data_summary(dataset, _data_name(dataset)),
        name=out.name,
        preset=preset,
        warnings=warnings,
        versions={"hydramix_dist": facts["hydramix_dist"], "python": facts["python"], **facts["packages"]},
        machine={key: str(facts[key]) for key in ("processor", "device", "threads", "precision")},
    )
    sheets = _sheets(plan, results, settings, dataset, out)
    save_results(out, assembled)
    write_report(out, assembled, sheets)
    return assembled


def _sheets(
    plan: Plan, results: Mapping[str, Any], settings: PilotSettings, dataset: Dataset, out: Store
) -> list[Sheet]:
    """Return mixes of each generator setting's first finished training, and write their records beside them."""
    sheets, records, shown = [], [], set()
    for key, task in plan.tasks.items():
        if not isinstance(task, GeneratorTask) or key not in results:
            continue
        name = next(name for name, generator in settings.generators.items() if generator == task.settings)
        if name in shown:
            continue
        shown.add(name)
        generator = load_generator(Store(task.folder_url))
        shots = load_shots(dataset, task.rows, task.settings.network.side, task.settings.segments)
        for found in probe(generator, shots, task.seed, PROBES):
            records.append({"generator": key, "class": found.class_name, **found.record})
            sheets.append(
                Sheet(
                    arm=name,
                    caption=found.class_name,
                    sources_KHWC=found.rendered.sources_KCHW.permute(0, 2, 3, 1).numpy(),
                    segments_HW=None if found.segments_HW is None else found.segments_HW.numpy(),
                    source_map_Khw=found.rendered.mask_Khw.numpy(),
                    mix_HWC=found.rendered.mix_CHW.permute(1, 2, 0).numpy(),
                    nearest_HWC=found.nearest_CHW.permute(1, 2, 0).numpy(),
                    distance=found.distance,
                )
            )
    if records:
        out.put("mixes.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    return sheets


def _data_name(dataset: Dataset) -> str:
    name = dataset.manifest.source.rstrip("/").rsplit("/", 1)[-1]
    for ending in (".zip", ".tar", ".tar.gz", ".tgz"):
        name = name.removesuffix(ending)
    return name


def find_finished(out: Store, source: str | None, settings: PilotSettings) -> bool:
    """Return whether `out` holds a finished pilot with this source and these settings, no training's result gone."""
    paths = set(out.list()) if out.exists("run.json") else set()
    trainings = {path.removesuffix("/run.json") for path in paths if path.endswith("/run.json")}
    if not {REPORT_FILE, RESULTS_FILE} <= paths or not all(
        f"{training}/result.json" in paths for training in trainings
    ):
        return False
    record = read_run(out)
    same = record["identity"].get("settings") == what_is_compared(settings)
    return bool(same and record["facts"].get("source") == source and read_status(out).get("state") == "succeeded")


def what_is_compared(settings: PilotSettings) -> dict[str, Any]:
    """Return the settings that make a pilot this one: all but how many workers and trainings share a machine."""
    tree: dict[str, Any] = json.loads(json.dumps(dump(settings)))
    return {key: value for key, value in tree.items() if key not in ("distributed", "concurrent")}


def read_stored(out: Store) -> tuple[Mapping[str, Any], str | None, str | None]:
    """Return the settings tree, preset and source of the pilot in `out`. Raises UserError where there is none."""
    record = read_run(out)
    if record["kind"] != "pilot":
        raise UserError(f"{out.url} holds a {record['kind']} run, not a pilot")
    return record["identity"]["settings"], record["facts"].get("preset"), record["facts"].get("source")


def _put_json(store: Store, path: str, value: Any) -> None:
    store.put(path, (json.dumps(value, indent=2) + "\n").encode())
