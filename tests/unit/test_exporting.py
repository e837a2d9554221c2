"""What a training tells the exporter from its beginning to its end, also to a bad one; and who tells nothing."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from exporters import Node, own_node, until

from hydramix_dist.config.load import build
from hydramix_dist.config.metrics import VARIABLE, metrics_settings
from hydramix_dist.config.training import ClassifierTrainingSettings, GeneratorTrainingSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.exporting import exporting
from hydramix_dist.orchestration.tasks import Task
from hydramix_dist.orchestration.train import make_task
from hydramix_dist.store import Store
from hydramix_dist.store.traffic import traffic
from hydramix_dist.training.loop import NonFiniteLossError

RUN = {"run": "mine", "role": "generator"}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    with own_node(tmp_path) as node:
        node.ensure()
        monkeypatch.setenv(VARIABLE, json.dumps(node.settings.model_dump()))
        yield node


def generator(dataset: Dataset, out: Path, **changes: object) -> Task:
    """A tiny generator's training, whose run is called "mine"."""
    tree = {"shots": 3, "generator": tiny.PILOT["generators"]["hydramix"] | changes, "runtime": tiny.PILOT["runtime"]}
    return make_task(build(GeneratorTrainingSettings, tree, "test"), dataset, Store(out / "mine"))


def ignore(images: int, total: int) -> None:
    pass


def test_a_training_is_seen_while_it_runs_and_its_last_values_after_it(
    node: Node, dataset: Dataset, tmp_path: Path
) -> None:
    seen, go_on = threading.Event(), threading.Event()

    def progress(images: int, total: int) -> None:
        if images == total // 2:
            seen.set()
            go_on.wait(60)

    task = generator(dataset, tmp_path)
    thread = threading.Thread(target=lambda: task.run(progress, tiny.never))
    thread.start()
    assert seen.wait(60)
    until(lambda: node.value("trainings", **RUN) == 1.0)
    assert node.value("workers", **RUN) == 1.0 and (node.value("device_memory_bytes", **RUN) or 0) > 1e7
    assert (node.value("disk_free_bytes", run="mine") or 0) <= (node.value("disk_size_bytes", run="mine") or 0)
    assert node.value("nonfinite_stops_total", **RUN) == 0.0
    until(lambda: 0 < (node.value("batch_seconds", **RUN) or 0) < 10)
    go_on.set()
    thread.join()
    until(lambda: node.value("trainings", **RUN) is None)
    assert node.value("progress_ratio", **RUN) == 1.0 and node.value("images_seen_total", **RUN) == 240.0
    assert node.value("step_seconds_count", **RUN) == 60.0
    assert node.value("trainings_failed_total", **RUN) == 0.0
    page = node.page()
    (info,) = (dict(labels) for name, labels in page if name == "run_info")
    assert dataset.fingerprint.startswith(info["data"]) and info["device"] == "cpu" and info["role"] == "generator"
    assert not any("mine/" in value or str(tmp_path) in value for _, labels in page for _, value in labels)


def test_a_training_that_ends_by_an_error_is_counted_and_one_that_is_stopped_is_not(
    node: Node, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        generator(dataset, tmp_path).run(ignore, tiny.stops_after(3))
    until(lambda: node.value("exporter_sources") == 0)
    assert node.value("trainings_failed_total", **RUN) == 0.0
    with pytest.raises(NonFiniteLossError):
        generator(dataset, tmp_path / "bad", optimizer={"lr": 1e30}).run(ignore, tiny.never)
    until(lambda: node.value("trainings_failed_total", **RUN) == 1.0)
    assert node.value("nonfinite_stops_total", **RUN) == 1.0


def test_a_training_that_goes_on_counts_from_there(node: Node, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        generator(dataset, tmp_path).run(ignore, tiny.stops_after(15))
    generator(dataset, tmp_path).run(ignore, tiny.never)
    until(lambda: node.value("images_seen_total", **RUN) == 240.0)  # of both together, none twice
    assert node.value("step_seconds_count", **RUN) == 60.0


def test_what_is_nobody_s_run_tells_nothing(node: Node, dataset: Dataset, tmp_path: Path) -> None:
    replace(generator(dataset, tmp_path), run_name=None).run(ignore, tiny.never)
    with exporting({"run": "", "role": "driver"}, ("Data",), Store(tmp_path)) as recorder:
        recorder.record(0, {"sweep_failures_total": 1})
    assert node.value("exporter_sources") == 0.0
    assert {name for name, _ in node.page() if not name.startswith("exporter")} == set()


def test_settings_that_became_wrong_end_no_training(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "{port: many}")
    result = generator(dataset, tmp_path).run(ignore, tiny.never)
    assert result["images_seen"] == 240
    assert "metrics are not exported: HYDRAMIX_METRICS" in caplog.text and "port" in caplog.text


def test_a_file_of_settings_that_is_not_there_is_named_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nowhere.yaml")
    with pytest.raises(UserError, match=r"^HYDRAMIX_METRICS: settings file nowhere\.yaml"):
        metrics_settings()


def test_a_classifier_tells_by_arm(node: Node, dataset: Dataset, tmp_path: Path) -> None:
    tree = {"shots": 3, "classifier": tiny.PILOT["classifier"] | {"images": 48}, "runtime": tiny.PILOT["runtime"]}
    make_task(build(ClassifierTrainingSettings, tree, "test"), dataset, Store(tmp_path / "c")).run(ignore, tiny.never)
    labels = {"run": "c", "role": "classifier", "arm": "basic, mixes: none"}
    until(lambda: node.value("test_accuracy_ratio", **labels) is not None)
    assert node.value("generalization_gap_ratio", **labels) is not None


def test_a_driver_tells_of_its_own_traffic(node: Node, tmp_path: Path) -> None:
    labels = {"run": "mine", "role": "driver"}
    traffic.count(read_bytes=1000)  # before: not its own
    with exporting(labels, ("Data", "Sweep"), Store(tmp_path / "not-yet-there")) as recorder:
        traffic.count(read_bytes=7, stall_seconds=0.5)
        traffic.retry("timeout")
        recorder.record(0, {"sweep_trials": 3.0}, state="pending")
    until(lambda: node.value("exporter_sources") == 0)
    assert node.value("sweep_trials", run="mine", state="pending") == 3.0
    assert node.value("store_read_bytes_total", **labels) == 7.0
    assert node.value("data_stall_seconds_total", **labels) == 0.5
    assert node.value("store_retries_total", **labels, cause="timeout") == 1.0
    assert node.value("store_retries_total", **labels, cause="server") == 0.0
