"""What every test runs under: how many threads, which tests are taken, and when a skip counts as a failure.

- `full` tests run only with `--full` (`make test-full`).
- `shared` tests need the real image sets in ../shared/data and skip where those are absent.
- `alone` tests start Ray, whose many processes want all cores. `make test` takes the others in two processes, a file in
  one of them, so that what its tests share is made once.
- `service` tests need a program, a right or a server of the machine. They call `pytest.skip(reason)` in the test or a
  fixture where it is absent; with HYDRAMIX_REQUIRE_SERVICES=1 (set by .ci/run) such a skip is a failure. Tests that ask
  for the S3 server, `seaweed`, `bucket` or `proxied`, are marked by that.
"""

import json
import os
import re

# Before torch is imported by any test: two cores are shared by everything, and thread counts change last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# A developer's own exporter hears nothing of tests.
os.environ.pop("HYDRAMIX_METRICS", None)
# Tests leave nothing in the user's own cache; those of the cache name one of theirs.
os.environ.setdefault("HYDRAMIX_STORE", "{cache: null}")

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # a session without tests of object storage does without them
    from fault_proxy import FaultProxy
    from seaweed import Seaweed

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# derandomize: a plain run gives the same verdict twice; the full run looks at new examples each time.
settings.register_profile("plain", deadline=None, derandomize=True, database=None, max_examples=50)
settings.register_profile("full", deadline=None, database=None, max_examples=300, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked `full` as well")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "service: needs a program, right or server of this machine")
    settings.load_profile("full" if config.getoption("--full") else "plain")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "seaweed" in getattr(item, "fixturenames", ()):
            item.add_marker("service")
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not SHARED_DATA.is_dir():
        pytest.skip(f"the real image sets are not at {SHARED_DATA}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = os.environ.get("HYDRAMIX_REQUIRE_SERVICES") == "1" and item.get_closest_marker("service")
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although HYDRAMIX_REQUIRE_SERVICES=1: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.fixture
def shared_data() -> Path:
    """The folder of the real image sets, for tests marked `shared`, which skip where it is absent."""
    return SHARED_DATA


BUCKET = "test-bucket"
# Of a limited identity, for tests of what may not be done.
READER = ("reader", (f"Read:{BUCKET}", f"List:{BUCKET}"))


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Seaweed"]:
    """A real S3 server for the session, with the identities "admin" and "reader" and the bucket `test-bucket`.

    A test may kill or restart it, also with other identities: `bucket` puts it right for the next one.
    """
    from seaweed import ADMIN, Identity, Seaweed, find_weed

    try:
        find_weed()
    except RuntimeError as error:
        pytest.skip(str(error))
    server = Seaweed(tmp_path_factory.mktemp("seaweed"), identities=(ADMIN, Identity(*READER)))
    server.start()
    server.make_bucket(BUCKET)
    yield server
    server.kill()


@pytest.fixture
def bucket(seaweed: "Seaweed", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty folder of the S3 server; this process and its children reach it as "admin".

    It is named after the test, so that faults drawn from names are the same in every session.
    """
    from seaweed import ADMIN, Identity

    expected = (ADMIN, Identity(*READER))
    if seaweed.pid is None or seaweed.identities != expected:
        seaweed.restart(expected)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = {name: str(tmp_path / "no-aws") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    store = {"HYDRAMIX_STORE": json.dumps({"cache": str(tmp_path / "cache")})}
    for name, value in (seaweed.environment() | nowhere | store).items():
        monkeypatch.setenv(name, value)
    module = request.node.path.stem
    return f"s3://{BUCKET}/{re.sub('[^A-Za-z0-9]+', '-', f'{module}-{request.node.name}').strip('-')}"


@pytest.fixture
def proxied(seaweed: "Seaweed", bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["FaultProxy"]:
    """A proxy in front of the S3 server, through which `bucket` is reached in this test."""
    from fault_proxy import FaultProxy

    with FaultProxy(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
