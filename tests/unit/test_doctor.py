"""The doctor finds what is really wrong, says how to mend it, and speaks even where torch is broken."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from hydramix_dist.cli.doctor import doctor_command
from hydramix_dist.data import builtin
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.doctor import (
    GIB,
    Check,
    examine,
    memory_check,
    requirement_check,
    store_checks,
)
from hydramix_dist.store import Store
from hydramix_dist.store.probe import probe

if TYPE_CHECKING:
    from seaweed import Seaweed


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


def test_what_is_looked_up_is_not_loaded() -> None:
    program = "import sys; from hydramix_dist.orchestration.doctor import examine; examine(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"prometheus_client", "s3fs"} & set(done.stdout.split()), "a disk needs no client of an object store"


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


class Ignoring(Store):
    """A store that does not know conditions: who puts, has put."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True


def said(store: Store) -> dict[str, tuple[str, str]]:
    """Return (state, detail) by request."""
    return {finding.request.name: (finding.state, finding.detail) for finding in probe(store)}


def states(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {name: state for name, (state, _) in found.items()}


ALL_OK = dict.fromkeys(("list", "get", "ranged get", "put", "conditional put", "delete"), "ok")


def test_a_store_of_ones_own_permits_everything_and_is_left_as_it_was(bucket: str, tmp_path: Path) -> None:
    for url in (bucket, str(tmp_path / "folder"), "memory://doctor/mine"):
        Store(url).put("mine", b"kept")
        assert states(said(Store(url))) == ALL_OK
        assert Store(url).list() == ["mine"]


def test_who_may_only_read_is_told_what_that_is_enough_for(
    bucket: str, seaweed: "Seaweed", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(bucket).put("data/manifest.json", b"as long as it is")
    for name, value in seaweed.environment("reader").items():
        monkeypatch.setenv(name, value)
    found = said(Store(f"{bucket}/data"))
    assert states(found) == {"list": "ok", "put": "not permitted", "get": "ok", "ranged get": "ok"}
    assert found["put"][1] == "runs and imports cannot be written here: s3:PutObject is refused"
    assert states(said(Store(f"{bucket}/empty")))["get"] == "not tried"
    # Reading is what a store of images is for: nothing is broken, and what is lacking is named with its right.
    assert doctor_command(".", f"{bucket}/data", json_=True) == 0
    put = {check["name"]: check for check in json.loads(capsys.readouterr().out)}["store: put"]
    assert put["state"] == "missing" and put["mend"] == "give these credentials s3:PutObject there, or use others"
    # But no run can be written there.
    assert by_name(examine(bucket))["output folder"].state == "broken"


def test_what_cannot_be_removed_is_named(bucket: str, seaweed: "Seaweed", monkeypatch: pytest.MonkeyPatch) -> None:
    name = bucket.removeprefix("s3://").partition("/")[0]
    may_put = {"Effect": "Allow", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/*"}
    with contextlib.closing(seaweed.client()) as client:
        client.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [may_put]}))
        try:
            with monkeypatch.context() as patch:
                for variable, value in seaweed.environment("reader").items():
                    patch.setenv(variable, value)
                found = said(Store(bucket))
        finally:
            client.delete_bucket_policy(Bucket=name)
    assert states(found) == ALL_OK | {"delete": "not permitted"}
    left = [Store(bucket).path(path) for path in Store(bucket).list()]
    assert len(left) == 2 and all(path in found["delete"][1] for path in left)
    assert "a training ends where it is to remove a checkpoint" in found["delete"][1]


def test_a_store_that_ignores_conditions_is_found_out(tmp_path: Path) -> None:
    found = said(Ignoring(tmp_path))
    assert states(found) == ALL_OK | {"conditional put": "not supported"}
    assert found["conditional put"][1] == "two writers of one run could both win: the store ignores If-None-Match"
    check = by_name(store_checks(Ignoring(tmp_path)))["store: conditional put"]
    assert check.state == "missing" and "one command at a time" in check.mend


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the credentials are not valid (SignatureDoesNotMatch)"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the credentials are not valid (InvalidAccessKeyId)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "HYDRAMIX_STORE": "{patience: 0.5}"}, "gave no good answer"),
    ],
)
def test_a_store_that_lets_nobody_in_is_broken(
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    expected: str,
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    assert expected in said(Store(bucket))["list"][1]
    assert doctor_command(".", bucket, json_=False) == 1
    assert expected in capsys.readouterr().out


def test_a_bucket_that_is_not_there_is_said_once(bucket: str) -> None:
    (check,) = store_checks(Store("s3://there-is-no-such-bucket/runs"))
    assert check.state == "broken" and "the bucket does not exist" in check.detail


def test_what_is_no_url_is_bad_input() -> None:
    with pytest.raises(UserError, match="names no bucket"):
        examine(".", "s3://")


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
