"""The test session's own switches: a run that takes too little must not look green."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SAMPLE = """
import pytest

@pytest.mark.service
def test_service():
    pytest.skip("no such server")

@pytest.mark.service
@pytest.mark.xfail(strict=True)
def test_known_fault():
    raise AssertionError

@pytest.mark.full
def test_long():
    pass

@pytest.mark.shared
def test_real_images(shared_data):
    pass

def test_plain():
    pass
"""


def session(folder: Path, *options: str, **environment: str) -> str:
    """Return the last line of a pytest session over SAMPLE under a copy of this suite's conftest."""
    (folder / "tests").mkdir(parents=True)
    shutil.copy(CONFTEST, folder / "tests" / "conftest.py")
    (folder / "tests" / "test_sample.py").write_text(SAMPLE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  full: x\n  shared: x\n")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRAMIX_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "--strict-markers", "-p", "no:cacheprovider", *options, "tests"],
        cwd=folder,
        env=env | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_plain_session_leaves_out_long_tests_and_says_why_it_skips(tmp_path: Path) -> None:
    output = session(tmp_path / "repo")
    assert "1 passed, 2 skipped, 1 deselected, 1 xfailed" in output
    assert "no such server" in output and str(tmp_path / "shared" / "data") in output


def test_full_session_takes_long_tests(tmp_path: Path) -> None:
    assert "2 passed, 2 skipped, 1 xfailed" in session(tmp_path / "repo", "--full")


def test_switch_turns_a_service_skip_into_a_failure_and_nothing_else(tmp_path: Path) -> None:
    output = session(tmp_path / "repo", HYDRAMIX_REQUIRE_SERVICES="1")
    assert "1 failed, 1 passed, 1 skipped, 1 deselected, 1 xfailed" in output
    assert "no such server" in output


def test_shared_tests_run_where_the_folder_lies_beside_the_repository(tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert "2 passed, 1 skipped, 1 deselected, 1 xfailed" in session(tmp_path / "repo")
