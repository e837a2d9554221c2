"""What a trial reserves, from what was measured, and how many fit: node by node, or a sentence."""

from typing import Any

import pytest
import torch

from hydramix_dist.config.load import build
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.sweep.probe import Probe
from hydramix_dist.orchestration.sweep.room import at_a_time, limit_device_memory, reserve, room

GIB = 2**30
CPU = {"device": "cpu", "threads": 2}


def settings(**changes: Any) -> SweepSettings:
    return build(SweepSettings, changes, "test")


def measured(memory: float = 1.0, device: float | None = None, total: float = 80.0) -> Probe:
    """Return a probe of a process with so many GiB."""
    on_gpu = device is not None
    return Probe(
        {}, int(memory * GIB), int(device * GIB) if device is not None else None, int(total * GIB) if on_gpu else None
    )


# ---- what a trial reserves


def test_on_a_cpu_threads_and_memory_with_a_margin() -> None:
    assert reserve(measured(1.0), settings(runtime=CPU)) == {"CPU": 2.0, "memory": 19 * 64 * 2**20}  # 1.15 GiB
    assert reserve(measured(1.0), settings()) == {"CPU": 1.0, "memory": 19 * 64 * 2**20}
    assert reserve(None, settings(runtime=CPU)) == {"CPU": 2.0}


@pytest.mark.parametrize(
    ("device", "share"), [(70.0, 1.0), (36.3, 0.5), (36.5, 1.0), (24.0, 0.3333), (10.0, 0.1428), (1.0, 0.125)]
)
def test_as_many_to_a_gpu_as_fit_with_a_margin(device: float, share: float) -> None:
    resources = reserve(measured(1.0, device), settings())
    assert resources["GPU"] == share
    fits = room({"GPU": resources["GPU"]}, [{"GPU": 1.0}])
    assert fits == min(8, int(80 / (1.1 * device))) == int(1 / resources["GPU"])


def test_a_share_that_is_given_wins_unless_it_is_too_small() -> None:
    assert reserve(measured(1.0, 10.0), settings(distributed={"gpus": 0.125}))["GPU"] == 0.125
    assert reserve(measured(1.0, 1.0), settings(distributed={"gpus": 1}))["GPU"] == 1.0
    with pytest.raises(UserError) as refusal:
        reserve(measured(1.0, 10.1), settings(distributed={"gpus": 0.125}))
    text = str(refusal.value)
    assert "distributed.gpus is 0.125, which is 10.0 GiB" in text
    assert "takes 10.1 GiB" in text and "set distributed.gpus to 0.13 or more" in text


def test_a_gpu_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes 75\.0 GiB of GPU memory.*the GPU has 80\.0 GiB.*runtime\.micro_batch"):
        reserve(measured(1.0, 75.0), settings())


def test_a_gpu_asked_for_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"distributed\.gpus is 0\.5, but the training is on the CPU"):
        reserve(measured(), settings(runtime=CPU, distributed={"gpus": 0.5}))


# ---- how many fit


def test_the_scarcest_resource_decides_on_each_node() -> None:
    trial = {"CPU": 1.0, "memory": 2.0 * GIB}
    nodes = [{"CPU": 8.0, "memory": 5.0 * GIB}, {"CPU": 1.0, "memory": 64.0 * GIB}, {"CPU": 4.0}]
    assert room(trial, nodes) == 2 + 1 + 0
    assert room({"CPU": 1.0, "GPU": 0.4}, [{"CPU": 16.0, "GPU": 2.0}]) == 4, "no share lies on two devices"
    assert room({"CPU": 1.0, "GPU": 2.0}, [{"CPU": 16.0, "GPU": 3.0}, {"CPU": 16.0, "GPU": 1.0}]) == 1


def test_as_many_as_fit_or_as_asked_for() -> None:
    trial, nodes = {"CPU": 1.0}, [{"CPU": 3.0}, {"CPU": 1.0}]
    assert at_a_time(trial, settings(), nodes, "the cluster") == 4
    assert at_a_time(trial, settings(concurrent=2), nodes, "the cluster") == 2
    assert at_a_time(trial, settings(concurrent=4), nodes, "the cluster") == 4
    with pytest.raises(UserError) as refusal:
        at_a_time(trial, settings(concurrent=5), nodes, "the cluster")
    assert str(refusal.value) == (
        "concurrent is 5 at 1 CPU each, but the cluster has room for 4 (3 CPU, 1 CPU); set concurrent to 4 or less, or "
        "to null"
    )


@pytest.mark.parametrize(
    ("trial", "words", "not_words"),
    [
        (
            {"CPU": 4.0, "memory": GIB},
            "4 CPU and 1.0 GiB of memory, but here has room for none (2 CPU and 3.0",
            "batch",
        ),
        ({"CPU": 1.0, "memory": 4.0 * GIB}, "classifier.batch", "runtime.threads"),
        ({"CPU": 1.0, "GPU": 0.5}, "runtime.device=cpu", "runtime.threads"),
    ],
)
@pytest.mark.parametrize("concurrent", [None, 3])
def test_none_fits(trial: dict[str, float], words: str, not_words: str, concurrent: int | None) -> None:
    with pytest.raises(UserError) as refusal:
        at_a_time(trial, settings(concurrent=concurrent), [{"CPU": 2.0, "memory": 3.0 * GIB}], "here")
    assert words in str(refusal.value) and not_words not in str(refusal.value)


def test_no_node_has_enough_of_all() -> None:
    nodes = [{"CPU": 1.0, "memory": 9.0 * GIB}, {"CPU": 9.0, "memory": 1.0 * GIB}]
    with pytest.raises(UserError, match="start a node that has enough of all"):
        at_a_time({"CPU": 2.0, "memory": 2.0 * GIB}, settings(), nodes, "the cluster")


# ---- in a trial's process


def test_a_trial_on_the_cpu_has_no_device_to_limit() -> None:
    limit_device_memory({"CPU": 1.0, "memory": 1e9})
    assert not torch.cuda.is_initialized()


def test_a_trial_runs_out_of_its_share_before_its_neighbours() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    total = torch.cuda.mem_get_info()[1]
    try:
        limit_device_memory({"GPU": 0.125})
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 4, dtype=torch.uint8, device="cuda")
    finally:
        limit_device_memory({"GPU": 1.0})
