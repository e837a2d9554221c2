"""The doctor finds what is really wrong, says how to mend it, and speaks even where torch is broken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hydramix_dist.data import builtin
from hydramix_dist.orchestration.doctor import GIB, Check, examine, memory_check, requirement_check


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def test_a_machine_on_which_these_tests_run_has_what_every_command_needs(tmp_path: Path) -> None:
    checks = by_name(examine(str(tmp_path / "not" / "made")))
    for name in ("python", "packages", "torch", "torchvision", "photos", "output folder"):
        assert checks[name].state == "ok", checks[name]
    assert list(tmp_path.iterdir()) == []


def test_a_finding_says_how_to_mend_it_and_a_good_one_needs_no_mending(tmp_path: Path) -> None:
    for check in examine(str(tmp_path)):
        assert check.detail and bool(check.mend) == (check.state != "ok"), check


def test_what_later_versions_need_is_looked_up_and_not_loaded() -> None:
    program = (
        "import json, sys; from hydramix_dist.orchestration.doctor import examine; checks = examine();"
        "print(json.dumps([[c.name, c.detail] for c in checks])); print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    details, modules = (json.loads(line) for line in done.stdout.splitlines())
    for name in ("s3fs", "prometheus-client"):
        assert "no command of this version needs it yet" in dict(details)[name]
        assert name.replace("-", "_") not in modules


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        ("pytest>=8", "ok", "pytest "),
        ("pytest>=800", "broken", ">=800 is needed"),
        ("no-such-package-of-ours>=1", "missing", "is not installed"),
    ],
)
def test_a_requirement_is_compared_with_what_is_installed(text: str, state: str, said: str) -> None:
    check = requirement_check(Requirement(text))
    assert (check.state, said in check.detail) == (state, True)
    assert check.mend == ("" if state == "ok" else f"pip install '{text}'")


@pytest.mark.parametrize("problem", ["OSError('libtorch_cpu.so: cannot open')", "ImportError('no torch here')"])
def test_a_broken_torch_is_a_finding(tmp_path: Path, problem: str) -> None:
    (tmp_path / "torch.py").write_text(f"raise {problem}")
    program = "from hydramix_dist.orchestration.doctor import examine\nfor check in examine(): print(check)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.splitlines()
    broken = [line for line in found if "state='broken'" in line]
    assert "name='torch'" in broken[0] and problem.split("'")[1] in broken[0]
    assert any("name='output folder', state='ok'" in line for line in found)


def test_a_file_where_the_output_folder_would_be_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for out in ("file", "file/deeper"):
        check = by_name(examine(str(tmp_path / out)))["output folder"]
        assert check.state == "broken" and "not a folder" in check.detail
    assert (tmp_path / "file").read_text() == "kept"


def test_an_object_store_is_tried_and_left_as_it_was() -> None:
    checks = by_name(examine("memory://doctor/runs"))
    assert checks["output folder"].state == checks["disk"].state == "ok"
    assert "not known" in checks["disk"].detail


def test_absent_photographs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtin.photo_folder()
    first, second, *others = builtin.PHOTOS
    for photo in others:
        (tmp_path / photo.file).symlink_to(whole / photo.file)
    monkeypatch.setattr(builtin, "photo_folder", lambda: tmp_path)
    check = by_name(examine(str(tmp_path)))["photos"]
    assert check.state == "missing" and f"{first.file}, {second.file}" in check.detail
    assert "scikit-image" in check.mend


def test_little_memory_is_a_finding() -> None:
    assert memory_check(8 * GIB).state == "ok"
    check = memory_check(GIB // 2)
    assert check.state == "missing" and "0.5 GiB" in check.detail
