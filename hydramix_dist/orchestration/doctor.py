"""What works on this machine, what is missing, and how to mend it: the checks behind `hydramix doctor`.

Everything is tried rather than looked up where a try is cheap. The module imports nothing heavy at its top, so that it
can still speak where torch itself is broken.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hydramix_dist.store import Store
from hydramix_dist.store.disk import existing
from hydramix_dist.store.probe import GET, LIST, RANGED_GET, Finding, probe

GIB = 2**30
MEMORY_NEEDED = 2 * GIB  # our choice: the quick pilot on two cores with room for the system
DISK_NEEDED = 1 * GIB  # our choice: checkpoints and report of a pilot, several times over

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Check:
    """One finding. `mend` is the way out in words or a command, "" where the state is ok."""

    name: str
    state: State
    detail: str
    mend: str = ""


def examine(out: str = ".", store: str | None = None) -> list[Check]:
    """Return the findings on this machine, in the order in which to mend them, and then those on a store.

    `out` is the folder (path or URL) that runs would be written to; it need not exist and is not made. `store` is the
    URL at which to try what its credentials permit. Raises UserError where that is no URL.
    """
    asked = None if store is None else Store(store)
    tries: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("gpu", _gpu),
        ("torchvision", _torchvision),
        ("photos", _photos),
        ("memory", lambda: memory_check(_memory_available())),
        ("disk", lambda: _disk(out)),
        ("output folder", lambda: _output_folder(out)),
    ]
    return [_tried(name, check) for name, check in tries] + ([] if asked is None else store_checks(_place(asked)))


def store_checks(store: Store) -> list[Check]:
    """Return what each kind of request at a store came to; only what reading needs counts as broken."""
    return [_store_check(finding) for finding in probe(store)]


def _store_check(finding: Finding) -> Check:
    request, name = finding.request, f"store: {finding.request.name}"
    if finding.state == "ok":
        return Check(name, "ok", finding.detail)
    if finding.state == "not tried":
        return Check(name, "missing", finding.detail, "give the URL of a data set or of a run, or the right to write")
    mends = {
        "not permitted": f"give these credentials {request.right} there, or use others",
        "not supported": "run one command at a time in a folder there, or use a store with conditional puts",
        "broken": "mend what it says; if the store is right, try again",
    }
    state: State = "broken" if finding.state == "broken" or request in (LIST, GET, RANGED_GET) else "missing"
    return Check(name, state, finding.detail, mends[finding.state])


def _tried(name: str, check: Callable[[], Check]) -> Check:
    # Any exception is a finding here: a check that dies must not keep the others from being made.
    try:
        return check()
    except Exception as error:
        text = " ".join(str(error).split())
        mend = (
            "mend what stands above; if all of that is ok, install again: pip install --force-reinstall hydramix_dist"
        )
        return Check(name, "broken", f"{type(error).__name__}: {text}", mend)


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    needed = metadata.metadata("hydramix_dist")["Requires-Python"]
    if version in SpecifierSet(needed):
        return Check("python", "ok", version)
    return Check("python", "broken", f"{version}, {needed} is needed", "make the environment with a newer python3")


def _packages() -> Check:
    """Return whether what every command needs is installed in the versions that the package asks for."""
    needed = _requirements()
    problems = [check for check in map(requirement_check, needed) if check.state != "ok"]
    if not problems:
        return Check("packages", "ok", f"all {len(needed)} in the versions asked for")
    state: State = "missing" if any(check.state == "missing" for check in problems) else "broken"
    wanted = " ".join(f"'{requirement}'" for requirement in needed if requirement_check(requirement) in problems)
    return Check("packages", state, "; ".join(check.detail for check in problems), f"pip install {wanted}")


def _requirements() -> list[Requirement]:
    """Return the package's own dependencies, without those of its extras."""
    texts = metadata.requires("hydramix_dist") or []
    found = [Requirement(text) for text in texts]
    return [
        requirement for requirement in found if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]


def requirement_check(requirement: Requirement) -> Check:
    """Return whether one requirement is installed in an allowed version; nothing is imported."""
    mend = f"pip install '{requirement}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "missing", f"{requirement.name} is not installed", mend)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "ok", f"{requirement.name} {version}")
    needed = f"{requirement.name} {version} is installed, {requirement.specifier} is needed"
    return Check(requirement.name, "broken", needed, mend)


def _torch() -> Check:
    """Return whether torch computes on the CPU, in the two precisions that settings offer."""
    import torch

    from hydramix_dist.training.environment import has_slow_bf16

    ones = torch.ones(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = ones @ ones
    if product.dtype != torch.bfloat16 or not bool((product == 8).all()):
        return Check("torch", "broken", "bf16 on the CPU gives wrong numbers", "set runtime.precision=fp32")
    cores = len(os.sched_getaffinity(0))
    capability = torch.backends.cpu.get_cpu_capability()
    detail = f"{torch.__version__}; CPU: {cores} cores, {torch.get_num_threads()} threads, {capability}, bf16 works"
    if has_slow_bf16():
        detail += ", but in software: take runtime.precision=fp32, about ten times as fast here"
    return Check("torch", "ok", detail)


def _gpu() -> Check:
    """Return whether the GPUs that the system shows can be used; having none is no fault."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        total = float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum())
        if total != 512:
            return Check(
                "gpu", "broken", f"{names}: wrong numbers", "set runtime.device=cpu and have the GPU looked at"
            )
        bf16 = "bf16 works" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16 in hardware"
        return Check("gpu", "ok", f"{names}; CUDA {torch.version.cuda}, {bf16}")
    if not Path("/proc/driver/nvidia/version").exists():
        return Check("gpu", "ok", "none found: trainings run on the CPU")
    if torch.version.cuda is None:
        wanted = next(requirement for requirement in _requirements() if requirement.name == "torch")
        detail = f"there is one, but torch {torch.__version__} is built without CUDA"
        return Check("gpu", "broken", detail, f"install a CUDA build of '{wanted}'; until then trainings use the CPU")
    reasons = "; ".join(" ".join(str(warning.message).split()) for warning in said) or "torch does not say why"
    detail = f"there is one, but torch {torch.__version__} for CUDA {torch.version.cuda} cannot use it: {reasons}"
    return Check("gpu", "broken", detail, "update the NVIDIA driver; until then trainings run on the CPU")


def _torchvision() -> Check:
    from hydramix_dist.data.torchvision_compat import torchvision_models, transforms_functional

    parts = torchvision_models().__name__, transforms_functional().__name__
    return Check("torchvision", "ok", f"{metadata.version('torchvision')}; {' and '.join(parts)} import")


def _photos() -> Check:
    """Return whether scikit-image's photographs are there, of which the pilot without DATA is made."""
    from hydramix_dist.data.builtin import PHOTOS, photo_folder

    folder = photo_folder()
    absent = [photo.file for photo in PHOTOS if not (folder / photo.file).is_file()]
    if not absent:
        return Check("photos", "ok", f"all {len(PHOTOS)} photographs of the built-in image set")
    wanted = next(requirement for requirement in _requirements() if requirement.name == "scikit-image")
    mend = f"pip install --force-reinstall --no-deps '{wanted}', or give `hydramix pilot` a data set"
    return Check("photos", "missing", f"{folder} lacks {', '.join(absent)}", mend)


def memory_check(available: int) -> Check:
    """Return whether `available` bytes of memory are enough for the quick pilot."""
    detail = f"{available / GIB:.1f} GiB available"
    if available >= MEMORY_NEEDED:
        return Check("memory", "ok", detail)
    mend = "end other programs or raise the container's limit; a smaller classifier.batch needs less"
    return Check("memory", "missing", f"{detail}, {MEMORY_NEEDED / GIB:.0f} GiB are needed", mend)


def _memory_available() -> int:
    """Return the bytes this process can still take: the system's, or what its container has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def _disk(out: str) -> Check:
    local = Store(out).local_path()
    if local is None:
        return Check("disk", "ok", f"{out} is an object store: its free space is not known here")
    free = shutil.disk_usage(existing(local)).free
    detail = f"{free / GIB:.1f} GiB free at {existing(local)}"
    if free >= DISK_NEEDED:
        return Check("disk", "ok", detail)
    return Check(
        "disk",
        "missing",
        f"{detail}, {DISK_NEEDED / GIB:.0f} GiB are needed",
        "free some space or choose another --out",
    )


def _output_folder(out: str) -> Check:
    """Return whether runs can be written: an object is listed, put, read, put conditionally and removed there.

    A local folder that does not exist yet is not made: its nearest existing parent is tried.
    """
    store = _place(Store(out))
    bad = next((finding for finding in probe(store) if finding.state != "ok"), None)
    if bad is not None:
        return Check("output folder", "broken", bad.detail, "choose another folder, or mend this one")
    return Check("output folder", "ok", f"{store.url} can be written, read and cleared")


def _place(store: Store) -> Store:
    """Return the store, or the nearest folder above it that exists on this machine's disk: a check makes none."""
    local = store.local_path()
    return store if local is None else Store(existing(local))
