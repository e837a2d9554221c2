"""What a training ran on: the facts that decide its last bits, and the memory it took."""

import importlib.metadata
import logging
import platform
import resource
from pathlib import Path
from typing import Any

import torch

from hydramix_dist import __version__
from hydramix_dist.config.schema import RuntimeSettings

_PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "pillow", "safetensors", "pyarrow")
_log = logging.getLogger("hydramix")


def facts(runtime: RuntimeSettings, device: torch.device) -> dict[str, Any]:
    """Return versions, machine and runtime settings: what, beside a run's identity, decides its bits on a CPU."""
    return {
        "hydramix_dist": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "processor": _processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "device": device.type,
        "threads": runtime.threads,
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "compile": runtime.compile,
        "micro_batch": runtime.micro_batch,
    }


def has_slow_bf16() -> bool:
    """Return whether this CPU computes bf16 in software: with AVX2 alone a classifier's step took 11 times as long."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def warn_of_slow_bf16(runtime: RuntimeSettings, device: torch.device) -> None:
    """Say so where a training on this machine is slow by its precision alone."""
    if runtime.precision == "bf16" and device.type == "cpu" and has_slow_bf16():
        _log.warning(
            "the CPU of %s has no AVX-512 and computes bf16 in software, about ten times as slowly as fp32; for a new "
            "run take runtime.precision=fp32",
            platform.node(),
        )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement, so that a process that trains several models reports each one's own peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # "5" resets VmHWM (proc(5)); other systems than Linux keep the peak of the process.
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5")


def memory_bytes(device: torch.device) -> int:
    """Return what this process holds now: memory of the GPU, or resident memory on a CPU; 0 where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak since the reset: allocated device memory on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
