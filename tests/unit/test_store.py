"""Objects are complete or absent, whatever stops the writer: on a disk, on a real S3 server, and in memory."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydramix_dist.errors import UserError
from hydramix_dist.store import Store, split_target

S3 = pytest.param("s3", marks=pytest.mark.service)


def place(kind: str, request: pytest.FixtureRequest) -> Store:
    """Return a fresh folder that does not exist yet: on this disk, on the S3 server, or in fsspec's memory."""
    if kind == "disk":
        return Store(request.getfixturevalue("tmp_path") / "new" / "folder")
    if kind == "s3":
        url, monkeypatch = request.getfixturevalue("bucket"), request.getfixturevalue("monkeypatch")
        # The same environment in each test: to make a client of a new one takes half a second.
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, os.devnull)
        monkeypatch.setenv("HYDRAMIX_STORE", "{cache: null}")
        return Store(f"{url}/new/folder")
    return Store(f"memory://{uuid.uuid4().hex}/folder")


@pytest.fixture(params=["disk", S3, "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    """A fresh folder on each kind of storage."""
    return place(request.param, request)


@pytest.fixture(params=["disk", S3])
def shared(request: pytest.FixtureRequest) -> Store:
    """A fresh folder that several processes can reach."""
    return place(request.param, request)


def test_one_listing_tells_sizes_and_times_and_many_objects_go_at_once(store: Store) -> None:
    began = time.time()
    for name in ("a/x", "a/y", "b"):
        store.put(name, name.encode())
    entries = store.entries()
    assert {name: entry.bytes for name, entry in entries.items()} == {"a/x": 3, "a/y": 3, "b": 1}
    assert all(began - 2 < entry.changed < time.time() + 2 for entry in entries.values())  # S3 tells whole seconds
    assert store.entries("a").keys() == {"a/x", "a/y"} and store.entries("nothing") == {}
    store.delete_all(["a/x", "b", "nothing"])
    assert store.list() == ["a/y"]


def test_what_is_put_is_read_back_whole_and_in_parts(store: Store) -> None:
    data = bytes(range(256)) * 5
    store.put("a/b.bin", data)
    assert store.read("a/b.bin") == data
    assert store.read("a/b.bin", 10, 300) == data[10:310]
    assert store.read("a/b.bin", 0, 3) == data[:3]
    assert store.read("a/b.bin", 1270) == data[1270:]
    assert store.read("a/b.bin", 7, 0) == store.read("a/b.bin", 0, 0) == b""
    assert store.size("a/b.bin") == 1280
    with store.open("a/b.bin") as file:
        file.seek(100)
        assert file.read(5) == data[100:105]


def test_from_the_end_on_there_is_nothing(store: Store) -> None:
    store.put("five", b"12345")
    store.put("none", b"")
    assert store.read("five", 3, 30) == b"45"
    assert store.read("five", 5) == store.read("five", 5, 3) == store.read("five", 900, 3) == b""
    assert store.read("none") == store.read("none", 0, 5) == b"" and store.size("none") == 0
    with store.open("five") as file:
        file.seek(-2, 2)
        assert file.read() == b"45" and file.read() == b""


def test_put_replaces_the_old_object(store: Store) -> None:
    store.put("x", b"a long first content")
    store.put("x", b"new")
    assert store.read("x") == b"new"


def test_an_absent_object_is_said_to_be_absent(store: Store) -> None:
    assert not store.exists("x") and not store.exists()
    assert store.list() == []
    for missing in (lambda: store.read("x"), lambda: store.open("x"), lambda: store.size("x")):
        with pytest.raises(FileNotFoundError):
            missing()
    store.delete("x")


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_object_and_nothing_else(store: Store, problem: type[BaseException]) -> None:
    store.put("kept", b"old")
    for name in ("kept", "new"):
        with pytest.raises(problem), store.writer(name) as file:
            file.write(b"half of")
            raise problem
    assert store.list() == ["kept"]
    assert store.read("kept") == b"old"
    folder = store.local_path()
    assert folder is None or [path.name for path in folder.rglob("*")] == ["kept"]


def test_an_object_appears_only_when_its_writer_is_done(store: Store) -> None:
    with store.writer("slow") as file:
        file.write(b"1")
        assert not store.exists("slow") and store.list() == []
        file.write(b"2")
    assert store.read("slow") == b"12"


def test_list_is_sorted_and_relative_to_the_store(store: Store) -> None:
    for name in ("b", "a/2", "a/1", "ab"):
        store.put(name, b"")
    assert store.list() == ["a/1", "a/2", "ab", "b"]
    assert store.list("a") == ["a/1", "a/2"]
    assert store.child("a").list() == ["1", "2"]


def test_names_that_begin_alike_are_not_taken_for_a_folder_s(store: Store) -> None:
    for name in ("run", "run-2/x", "runs/x", "r/un/x"):
        store.put(name, b"1")
    assert store.list("run") == ["run"] and store.child("run").list() == [""]
    assert store.list("ru") == store.list("run-") == [] and not store.exists("ru") and not store.exists("run-")
    store.delete("run")
    assert store.list() == ["r/un/x", "run-2/x", "runs/x"]


@pytest.mark.parametrize("name", ["with space", "ü/ß", "a+b", "100%25", "q&<>\"'", "#1", "x=1/y=2", "tab\t"])
def test_any_name_is_a_name(store: Store, name: str) -> None:
    path = f"n/{name}.png"
    store.put(path, name.encode())
    assert store.list() == [path] and store.exists(path) and store.read(path) == name.encode()
    assert not store.put_if_absent(path, b"") and store.size(path) == len(name.encode())
    store.delete(path)
    assert not store.exists(path)


def test_a_folder_whose_objects_are_gone_holds_nothing(store: Store) -> None:
    """A disk keeps the folder, some servers an entry for it; nobody may take it for an object."""
    for name in ("one", "folder/two", "folder/deep/three"):
        store.put(name, b"x")
    for name in store.list():
        store.delete(name)
    assert store.list() == store.list("folder") == []
    assert store.put_if_absent("folder/two", b"again") and store.list() == ["folder/two"]


def test_list_hides_unfinished_files_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("my.partial-set/a.partial-b", b"whole")
    with store.writer("late"):
        assert len(list(tmp_path.iterdir())) == 2
        assert store.list() == ["my.partial-set/a.partial-b"]


def test_delete_removes_an_object_or_a_folder(store: Store) -> None:
    for name in ("keep", "gone", "folder/a", "folder/b/c"):
        store.put(name, b"x")
    store.delete("gone")
    store.delete("folder")
    assert store.list() == ["keep"]
    store.delete()
    assert not store.exists()


def test_put_if_absent_writes_once(store: Store) -> None:
    assert store.put_if_absent("run.json", b"first")
    assert not store.put_if_absent("run.json", b"second")
    assert store.read("run.json") == b"first"
    assert store.list() == ["run.json"]


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc/passwd"])
def test_paths_that_leave_the_store_are_refused(store: Store, path: str) -> None:
    for act in (store.read, store.exists, store.delete, store.child, store.list, lambda p: store.put(p, b"")):
        with pytest.raises(UserError, match="leads out of"):
            act(path)


def test_a_child_is_the_same_folder_seen_from_below(store: Store) -> None:
    store.child("a").child("b").put("c", b"1")
    assert store.read("a/b/c") == b"1"
    assert store.child("a/b").name == "b"
    assert store.child("a/b").url == Store(store.child("a").url).child("b").url


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example writes the object anew
@given(data=st.binary(max_size=300), offset=st.integers(0, 320), length=st.integers(0, 320))
def test_ranged_reads_are_slices(store: Store, data: bytes, offset: int, length: int) -> None:
    store.put("x", data)
    assert store.read("x", offset, length) == data[offset : offset + length]
    assert store.read("x", offset) == data[offset:]


def test_threads_use_one_store_at_once(store: Store) -> None:
    bodies = {f"{number % 3}/{number}": str(number).encode() * 1000 for number in range(60)}
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(store.put, bodies, bodies.values()))
        assert dict(zip(bodies, pool.map(store.read, bodies), strict=True)) == bodies
        assert sum(pool.map(lambda number: store.put_if_absent("one", b"%d" % number), range(24))) == 1


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match="nosuch"):
        Store("nosuch://bucket/folder")


def test_a_file_in_the_way_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    in_the_way = Store(tmp_path / "file")
    for act in (in_the_way.put, in_the_way.put_if_absent):
        for name in ("x", "deeper/x"):
            with pytest.raises(UserError, match="is a file, not a folder"):
                act(name, b"")
    with pytest.raises(UserError, match="a folder of that name"):
        Store(tmp_path / "folder").put("x", b"")


# Root may read all; what it imports it has to import before it is somebody else.
READ_ALL = """
import os, sys
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
if os.geteuid() == 0:
    os.seteuid(65534)
store = Store(sys.argv[1])
acts = [(act, "file") for act in (store.read, store.get, store.open)]
acts += [(act, "folder/file") for act in (store.exists, store.size, store.list, store.entries)]
for act, path in acts:
    try:
        act(path)
    except UserError as error:
        print(error)
"""


def test_what_may_not_be_read_is_an_answer() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lets nobody in
        Path(folder).chmod(0o755)
        for name in ("file", "folder/file"):
            Store(folder).put(name, b"secret")
        for name in ("file", "folder"):
            Path(folder, name).chmod(0)
        program = [sys.executable, "-c", READ_ALL, folder]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    words = "no permission to read there; mend its rights"
    assert done.stdout.splitlines() == [
        *[f"cannot read {folder}/file: {words}"] * 3,
        *[f"cannot read {folder}/folder/file: {words}"] * 4,
    ]


def test_a_block_s_own_errors_are_not_blamed_on_the_target(tmp_path: Path) -> None:
    """Reading another file inside a writer's block may fail; the target is then not what to mend."""
    (tmp_path / "source").mkdir()
    with pytest.raises(IsADirectoryError), Store(tmp_path / "out").writer("x"):
        (tmp_path / "source").open("rb")


def _race(url: str, start: float, number: int) -> bool:
    store = Store(url)
    time.sleep(max(0.0, start - time.time()))
    return store.put_if_absent("leader", str(number).encode() * 100_000)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_of_eight_racing_processes_exactly_one_wins(shared: Store) -> None:
    shared.put("used", b"before the fork")
    with multiprocessing.get_context("fork").Pool(8) as pool:
        for attempt in range(10 if shared.local_path() else 3):  # SeaweedFS lets a loser wait for a second now and then
            folder = shared.child(str(attempt))
            start = time.time() + 0.02
            won = pool.starmap(_race, [(folder.url, start, number) for number in range(8)], chunksize=1)
            assert sum(won) == 1
            assert folder.read("leader") == str(won.index(True)).encode() * 100_000
            assert folder.list() == ["leader"]
            local = folder.local_path()
            assert local is None or [path.name for path in local.iterdir()] == ["leader"]


def _write_for_ever(url: str, size: int) -> None:
    number = 0
    while True:
        number += 1
        Store(url).put("state", bytes([number % 256]) * size)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_kill_9_leaves_the_old_object_or_the_new_one(shared: Store) -> None:
    local = shared.local_path()
    kills, size = (25, 8_000_000) if local else (8, 2_000_000)
    for kill in range(kills):
        shared.delete("state")
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(shared.url, size))
        process.start()
        while not shared.exists("state"):
            time.sleep(0.001)
        time.sleep(0.01 + 0.0007 * kill)  # spread over the phases of a write
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        content = shared.read("state")
        assert content == content[:1] * size
        assert shared.list() == ["state"]
        for unfinished in local.glob(".*") if local else ():
            unfinished.unlink()


@pytest.mark.service
def test_a_full_disk_is_an_answer_and_costs_nothing_done(tiny_disk: Path) -> None:
    store = Store(tiny_disk)
    store.put("kept", b"old")
    too_much = b"x" * 2_000_000
    for act in (store.put, store.put_if_absent):
        with pytest.raises(UserError, match="the disk is full"):
            act("new", too_much)
    with pytest.raises(UserError, match="the disk is full"):
        store.put("kept", too_much)
    assert [path.name for path in tiny_disk.iterdir()] == ["kept"]
    assert store.read("kept") == b"old"
    store.put("small", b"fits again")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:/bucket/folder", "'s3:/bucket/folder' is no URL; write it as s3://BUCKET/PREFIX"),
        ("s3//bucket/folder", "is no URL"),
        ("s3://", "names no bucket"),
        ("s3:///folder", "names no bucket"),
        ("s3://Bucket/folder", "3 to 63 small letters"),
        ("s3://bucket//folder", "an empty part"),
        ("s3://bucket/a/../b", r"or '\.\.' between its slashes"),
        ("nowhere://host/folder", "storage of kind 'nowhere://' is not served"),
        ("gs://bucket/folder", "is no storage that this installation can open: .*gcsfs"),
    ],
)
def test_a_malformed_url_is_an_answer(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Store(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="credentials in it is refused") as caught:
        Store("s3://AKIAEXAMPLE:verysecret@bucket/folder")
    assert "verysecret" not in str(caught.value) and "AKIAEXAMPLE" not in str(caught.value)


def test_urls_of_object_storage_keep_their_form() -> None:
    assert Store("s3://bucket/folder/").url == "s3://bucket/folder"
    assert Store("s3a://bucket/folder").child("x/y").url == "s3://bucket/folder/x/y"
    assert Store("s3://bucket").child("x").path("y") == "s3://bucket/x/y"
    assert Store("s3://bucket/folder").local_path() is None


@pytest.mark.parametrize(
    "url", ["http://host/x", "ftp://host/x", "zip://x::s3://bucket/y.zip", "s3://bucket/a\nb", "dir::x"]
)
def test_storage_that_is_not_served_is_said(url: str) -> None:
    with pytest.raises(UserError, match=r"is not served; give a folder of this machine|is no URL that can be read"):
        Store(url)


def test_a_scheme_may_be_written_in_capitals() -> None:
    assert Store("S3://bucket/folder").url == "s3://bucket/folder"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("a.csv", "a.csv"),
        ("out/a.csv", "out/a.csv"),
        ("/a.csv", "/a.csv"),
        ("s3://bucket/x/a.csv", "s3://bucket/x/a.csv"),
    ],
)
def test_a_file_to_write_is_split_into_folder_and_name(target: str, path: str) -> None:
    folder, name = split_target(target)
    assert folder.path(name).replace("//", "/").endswith(path.replace("//", "/")) and name == "a.csv"
    if target == "/a.csv":
        assert folder.url == "/"


@pytest.mark.parametrize("target", ["s3://bucket/x/", "s3://bucket", "out/"])
def test_a_folder_is_no_file_to_write(target: str) -> None:
    with pytest.raises(UserError, match="names a folder, no file"):
        split_target(target)
