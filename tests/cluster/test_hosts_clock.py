"""A host whose clock is an hour off: its requests are refused, and one sentence names both clocks."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from host_runs import IMAGES
from hosts import Host
from rehearsal import BUCKET, Rehearsal

CLOCK = "[-0-9]{10} [0-9:]{8} UTC"


@pytest.fixture
def faketime() -> Path:
    """The library by which a process takes it for another time."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("faketime is not installed (Debian package faketime)")
    return library


@pytest.mark.usefixtures("faketime")
def test_clock_an_hour_behind(hosts: Rehearsal) -> None:
    """That of the processes on one host, not the machine's."""
    host = hosts.workers[0]
    show = ["hydramix", "data", "show", f"s3://{BUCKET}/set"]
    done = host.run(["faketime", "-m", "--exclude-monotonic", "-f", "-1h", *show], check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    told = re.fullmatch(
        rf"error: cannot read s3://{BUCKET}/set\S* the clock of one says (?P<here>{CLOCK}), "
        rf"the store's (?P<there>{CLOCK}), .*",
        done.stderr.strip(),
    )
    assert told is not None, done.stderr
    here, there = (datetime.fromisoformat(told[name].removesuffix(" UTC") + "Z") for name in ("here", "there"))
    assert abs(there - here - timedelta(hours=1)) < timedelta(seconds=10)
    assert abs(datetime.now(UTC) - there) < timedelta(seconds=60)
    assert host.run(show).returncode == 0, "with the right clock it can be read"


@pytest.fixture
def behind(hosts: Rehearsal, faketime: Path) -> Iterator[Host]:
    """A node of the cluster all of whose processes take it for an hour earlier."""
    hosts.ready()
    host, usual = hosts.workers[1], dict(hosts.workers[1].environment)
    # With the clock that only runs on, or Ray's sleeps fail.
    host.environment |= {"LD_PRELOAD": str(faketime), "FAKETIME": "-1h"}
    try:
        hosts.join(host)
        yield host
    finally:
        host.environment = usual
        host.kill()


@pytest.mark.full
def test_training_over_a_host_whose_clock_is_behind(hosts: Rehearsal, behind: Host) -> None:
    """Ray takes the node; the training ends at its first request to the bucket, and is not begun again."""
    told = hosts.train("clock", IMAGES).ended(2)
    assert re.search(rf"error: .* the clock of two says {CLOCK}, the store's {CLOCK}, (59|60) min", told)
    assert "going on with" not in told
