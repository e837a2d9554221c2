"""What every test runs under: how many threads, which tests are taken, and when a skip counts as a failure.

- `full` tests run only with `--full` (`make test-full`).
- `shared` tests need the real image sets in ../shared/data and skip where those are absent.
- `service` tests need a program, a right or a server of the machine. They call `pytest.skip(reason)` in the test or a
  fixture where it is absent; with HYDRAMIX_REQUIRE_SERVICES=1 (set by .ci/run) such a skip is a failure.
"""

import os

# Before torch is imported by any test: two cores are shared by everything, and thread counts change last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

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
