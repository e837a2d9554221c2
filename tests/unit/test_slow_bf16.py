"""A CPU that computes bf16 in software is told of before hours are spent on it."""

import json
import logging
import os

import pytest
import tiny
import torch

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.training.environment import warn_of_slow_bf16


@pytest.mark.parametrize(("capability", "slow"), [("avx2", True), ("default", False)])
def test_doctor_knows_by_what_torch_computes_with(capability: str, slow: bool) -> None:
    told = tiny.hydramix("doctor", "--json", env=os.environ | {"ATEN_CPU_CAPABILITY": capability}, check=None)
    (check,) = [check for check in json.loads(told.stdout) if check["name"] == "torch"]
    assert ("runtime.precision=fp32" in check["detail"]) == slow, check


@pytest.mark.parametrize(
    ("runtime", "device", "said"),
    [(tiny.FAST, "cpu", True), (tiny.RUNTIME, "cpu", False), (tiny.FAST, "meta", False)],
    ids=["bf16", "fp32", "another device"],
)
def test_a_training_warns_where_it_matters(
    runtime: RuntimeSettings, device: str, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with caplog.at_level(logging.WARNING, "hydramix"):
        warn_of_slow_bf16(runtime, torch.device(device))
    assert ("computes bf16 in software" in caplog.text) == said
