"""What processes tell the node's exporter: which training they carry out, what they ask of store and machine."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hydramix_dist.config.metrics import MetricsSettings, metrics_settings
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.store import Store
from hydramix_dist.store.disk import existing
from hydramix_dist.store.traffic import since, traffic
from hydramix_dist.telemetry import Recorder, Sender, Sink, Told
from hydramix_dist.training.environment import memory_bytes
from hydramix_dist.training.group import Alone, Group

if TYPE_CHECKING:
    from hydramix_dist.orchestration.tasks import Task

_log = logging.getLogger("hydramix")

_TRAFFIC = {
    "requests": "store_requests_total",
    "given_up": "store_given_up_total",
    "read_bytes": "store_read_bytes_total",
    "written_bytes": "store_written_bytes_total",
    "cache_hits": "cache_hits_total",
    "cache_misses": "cache_misses_total",
    "stall_seconds": "data_stall_seconds_total",
    "checksum_failures": "checksum_failures_total",
}
_RETRIES = "retries."


@contextlib.contextmanager
def exporting_training(task: "Task", labels: Mapping[str, str], group: Group) -> Iterator[list[Sink]]:
    """Yield the sink that exports a training's records; none where the settings export nothing.

    Every rank tells of its own memory and traffic; rank 0 counts the training.
    """
    settings = _settings()
    if settings.port is None or task.run_name is None:
        yield []
        return
    store, before = Store(task.folder_url), traffic.values()

    def probe() -> list[Told]:
        values = {"workers": 1.0, "device_memory_bytes": float(memory_bytes(group.device))}
        if group.rank == 0:
            values["trainings"] = 1.0
        preparing = group.preparing.mean()
        if preparing is not None:
            values["batch_seconds"] = preparing
        return [(values, {}), *_traffic_since(before), *_disk(store)]

    sections = ("Every training", task.kind.capitalize(), "Checkpoints", "Data")
    with Sender(labels, sections if group.rank == 0 else ("Data",), settings, probe) as sender:
        # Of several workers, who may be started again, the driver knows whether the training has failed.
        alone = isinstance(group, Alone)
        with counting_failures(Recorder([sender], **labels)) if alone else contextlib.nullcontext():
            yield [sender]


@contextlib.contextmanager
def exporting(labels: Mapping[str, str], sections: Sequence[str], store: Store) -> Iterator[Recorder]:
    """Yield a recorder for whoever starts trainings, `store` being the run's folder.

    It leads nowhere where the settings export nothing, or the run has no name.
    """
    settings = _settings()
    if settings.port is None or not labels["run"]:
        yield Recorder([], **labels)
        return
    before = traffic.values()

    def probe() -> list[Told]:
        return [*(_traffic_since(before) if "Data" in sections else ()), *_disk(store)]

    with Sender(labels, sections, settings, probe) as sender:
        yield Recorder([sender], **labels)


@contextlib.contextmanager
def counting_failures(recorder: Recorder) -> Iterator[None]:
    """Count a training that ends by an error, one that is asked to stop aside."""
    recorder.record(0, {"trainings_failed_total": 0.0})
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        recorder.record(0, {"trainings_failed_total": 1.0})
        raise


def _settings() -> MetricsSettings:
    """Return the settings; those that cannot be read end no training, they export nothing."""
    try:
        return metrics_settings()
    except UserError as error:
        _log.warning("metrics are not exported: %s", error)
        return MetricsSettings()


def _traffic_since(before: Mapping[str, float]) -> Iterator[Told]:
    counted = since(before)
    values = {metric: counted[name] for name, metric in _TRAFFIC.items()}
    yield values | {"checkpoint_verification_failures_total": counted["verification_failures"]}, {}
    for name, value in counted.items():
        if name.startswith(_RETRIES):
            yield {"store_retries_total": value}, {"cause": name.removeprefix(_RETRIES)}


def _disk(store: Store) -> Iterator[Told]:
    """Yield the space where a run's folder lies, or will lie; nothing in object storage."""
    local = store.local_path()
    if local is not None:
        usage = shutil.disk_usage(existing(local))
        yield {"disk_free_bytes": float(usage.free), "disk_size_bytes": float(usage.total)}, {}
