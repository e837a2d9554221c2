"""Groups of processes, favoured or limited when cores are shared out: Linux control groups, version 1 or 2."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

# A host's core is its own: what else runs on this machine gets little of it while the host computes.
FAVOUR = 20
_WEIGHTS = {"cpu.shares": 1024, "cpu.weight": 100}  # of version 1 and 2, with their defaults


def groups_root() -> Path:
    """Return the folder of all groups."""
    one = Path("/sys/fs/cgroup/cpu")
    return one if one.is_dir() else Path("/sys/fs/cgroup")


def new_group(name: str) -> Path | None:
    """Return a new group, None where this machine does not let one be made that can be set so."""
    group = groups_root() / name
    try:
        group.mkdir()
    except OSError:
        return None
    for weight, default in _WEIGHTS.items():
        if (group / weight).exists():
            (group / weight).write_text(str(FAVOUR * default))
    if (group / "cpu.cfs_quota_us").exists() or (group / "cpu.max").exists():
        return group
    remove_group(group)
    return None


def remove_group(group: Path) -> None:
    """Remove a group whose processes have ended, or end within 5 s."""
    end = time.monotonic() + 5
    while time.monotonic() < end:  # it is busy until the last of its processes has been waited for
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)


@contextlib.contextmanager
def limited(group: Path, period: int, quota: int) -> Iterator[None]:
    """Give a group `quota` microseconds of all cores together in each `period` for a block."""
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {period}")
        try:
            yield
        finally:
            (group / "cpu.max").write_text("max 100000")
        return
    (group / "cpu.cfs_period_us").write_text(str(period))
    (group / "cpu.cfs_quota_us").write_text(str(quota))
    try:
        yield
    finally:
        (group / "cpu.cfs_quota_us").write_text("-1")
        (group / "cpu.cfs_period_us").write_text("100000")
