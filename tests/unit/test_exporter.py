"""One exporter a node: it serves, is found, hands its port on, and goes; nobody else's words get in."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exporters import Node, free_port, own_node, until

from hydramix_dist.config.metrics import VARIABLE
from hydramix_dist.telemetry import targets
from hydramix_dist.telemetry.targets import TargetsFile, host_name, joined
from hydramix_dist.telemetry.wire import BYE, Hello, place, source_message

NOBODY = 65534
Process = subprocess.Popen[str]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with own_node(tmp_path) as node:
        yield node


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Process]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def exporter_of(node: Node, *more: str) -> contextlib.AbstractContextManager[Process]:
    """Return the exporter that the settings ask for, as a child of this process."""
    known = {"--port": node.port, "--host": node.settings.host, "--targets": node.settings.targets}
    known |= {"--expire": node.settings.expire}
    options = [str(part) for pair in known.items() for part in pair]
    return running("-m", "hydramix_dist.telemetry.exporter", *options, *more)


def files_of(node: Node) -> list[str]:
    return sorted(path.name for path in Path(node.settings.targets).iterdir())


# ---- its life


def test_it_outlives_who_started_it_is_found_by_its_file_and_ends_in_order(node: Node) -> None:
    program = "from hydramix_dist.config.metrics import metrics_settings\n"
    program += (
        "from hydramix_dist.telemetry.starting import ensure_exporter\nprint(ensure_exporter(metrics_settings()).url)"
    )
    with running("-c", program, **{VARIABLE: json.dumps(node.settings.model_dump())}) as starter:
        said, _ = starter.communicate()
    assert said.strip() == f"http://127.0.0.1:{node.port}/metrics"
    pid = node.pid()
    assert pid is not None and os.getsid(pid) not in (os.getsid(0), starter.pid)
    assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
    hello = node.ensure()
    assert node.pid() == pid, "who comes later uses the one that runs"
    (entry,) = json.loads(Path(hello.targets).read_text())
    assert entry == {"targets": [f"127.0.0.1:{node.port}"], "labels": {"job": "hydramix"}}
    assert abs((node.value("exporter_clock_timestamp_seconds") or 0) - time.time()) < 5
    assert node.value("exporter_sources") == 0
    node.end(signal.SIGTERM)
    until(lambda: not Path(hello.targets).exists())
    assert [name.partition(".")[2] for name in files_of(node)] == ["log"]


def test_it_ends_when_nobody_has_been_there_for_a_while(tmp_path: Path) -> None:
    with own_node(tmp_path, expire=0.5) as node:
        hello = node.ensure()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as somebody:
            somebody.connect(place(node.port))
            time.sleep(0.8)
            assert Path(hello.targets).exists()
        until(lambda: not Path(hello.targets).exists())
        until(lambda: node.pid() is None)


def test_a_signal_that_was_ignored_before_it_began_stays_so(node: Node) -> None:
    file = Path(node.settings.targets, f"{host_name()}-{node.port}.json")
    with contextlib.ExitStack() as stack:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; a child has it from its parent
        try:
            process = stack.enter_context(exporter_of(node))
        finally:
            signal.signal(signal.SIGHUP, before)
        until(file.exists)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert file.exists(), "the file is the first thing that an exporter which ends takes away"
        process.terminate()
        assert process.wait(10) == 0 and not file.exists()


def test_of_several_at_once_one_lives(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        exporters = [stack.enter_context(exporter_of(node)) for _ in range(3)]
        until(lambda: sum(process.poll() is None for process in exporters) == 1 and node.text())
        ended = [process for process in exporters if process.poll() is not None]
        assert [(process.returncode, *process.communicate()) for process in ended] == [(0, "", "")] * 2
        until(lambda: len(files_of(node)) == 1)


def test_a_port_in_use_is_passed_over_and_said(node: Node) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", node.port))
        other.listen()
        hello = node.ensure()
        assert hello.taken and hello.address != f"127.0.0.1:{node.port}"
        (entry,) = json.loads(Path(hello.targets).read_text())
        assert entry["targets"] == [hello.address]
    assert node.ensure() == hello, "the place of senders is named by the wanted port"


def test_one_that_runs_says_what_it_has_whatever_others_want(node: Node) -> None:
    node.ensure()
    other = {"host": "127.0.0.2", "expire": 7.0, "targets": "/nowhere"}
    hello = Node(node.settings.model_copy(update=other)).ensure()
    assert (hello.host, hello.expire) == (node.settings.host, node.settings.expire)
    assert str(Path(hello.targets).parent) == node.settings.targets


def test_one_that_is_about_to_end_is_replaced_at_once(node: Node) -> None:
    def end() -> None:  # hang up on who looks first, and again on who looks after its own exporter has given way
        with place_holder:
            for _ in range(2):
                place_holder.accept()[0].close()

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as place_holder:
        place_holder.bind(place(node.port))
        place_holder.listen()
        thread = threading.Thread(target=end)
        thread.start()
        node.ensure()
        thread.join()
    assert node.value("exporter_sources") == 0


def test_an_address_that_is_none_of_this_machine_is_an_answer(node: Node) -> None:
    elsewhere = Node(node.settings.model_copy(update={"host": "192.0.2.1"}))
    with exporter_of(elsewhere) as process:
        _, said = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1] == (
        f"no metrics at 192.0.2.1:{node.port}: Cannot assign requested address; give another host or port"
    )


def test_all_addresses_are_told_as_one_that_others_reach(node: Node) -> None:
    hello = Node(node.settings.model_copy(update={"host": "0.0.0.0"})).ensure()
    host, _, port = hello.address.rpartition(":")
    assert host != "0.0.0.0"
    socket.create_connection((host, int(port)), 5).close()


# ---- what it is told


@contextlib.contextmanager
def connected(node: Node) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(place(node.port))
        assert Hello.parse(connection.recv(10_000)) == node.ensure()
        yield connection


def setting(value: object, name: object = "world_size", labels: object = ("r", "driver")) -> bytes:
    return json.dumps({"set": [[name, labels, value]]}).encode()


def test_what_nobody_understands_hurts_nobody(node: Node) -> None:
    node.ensure()
    with connected(node) as good, connected(node) as bad:
        good.send(source_message("good", {}))
        good.send(setting([2.0]))
        bad.send(setting([5.0]))  # before it has said who it is
        bad.send(BYE)
        for message in (b"{", b"[]", b"7", b"\xff\xfe", b"{}", b"[" * 50_000):
            bad.send(message)
        bad.send(source_message("bad", {}))
        bad.send(setting([10**400]))
        for message in (setting(None), setting(["x"]), setting([1.0], name=[]), setting([1.0], labels=7)):
            bad.send(message)
        bad.send(setting([1.0], labels=("r", {"a": 1})))
        bad.send(b'{"source": "bad", "labels": 7}')
        bad.send(b'{"source": "bad", "labels": {"run": ["r"], "role": null}}')
        bad.send(setting([4.0]))
        until(lambda: node.value("world_size", run="r", role="driver") == 4.0)
        assert node.value("exporter_sources") == 2
    until(lambda: node.value("exporter_sources") == 0)
    assert node.value("world_size", run="r", role="driver") is None


def test_a_source_that_speaks_over_a_new_connection_is_not_lost_with_the_old_one(node: Node) -> None:
    node.ensure()
    with connected(node) as new:
        with connected(node) as old:
            for connection, seen in ((old, 3.0), (new, 5.0)):
                connection.send(source_message("same", {"run": "r", "role": "driver"}))
                connection.send(setting([seen], "images_seen_total"))
                connection.send(setting([seen]))
            until(lambda: node.value("world_size", run="r", role="driver") == 5.0)
        time.sleep(0.1)
        assert node.value("world_size", run="r", role="driver") == 5.0
        assert node.value("images_seen_total", run="r", role="driver") == 5.0
        assert node.value("exporter_sources") == 1
        assert node.value("processes_lost_total", run="r", role="driver") == 0


@pytest.mark.service
def test_other_users_are_not_heard(node: Node) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    node.ensure()
    program = "import socket, sys\nwith socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:\n"
    program += " s.connect(sys.argv[1]); print(s.recv(999))"
    name = place(node.port)
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", program.replace("sys.argv[1]", repr(name))],
        capture_output=True,
        text=True,
        user=NOBODY,
        check=True,
    )
    assert done.stdout == "b''\n"


@pytest.mark.service
def test_its_page_is_what_prometheus_wants(node: Node) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    node.ensure()
    with connected(node) as sender:
        sender.send(source_message("one", {}))
        for name, values in (("step_seconds", [1.5, *[0] * 8, 2, *[0] * 5]), ("images_seen_total", [8])):
            sender.send(setting(values, name, ('say "no"\\', "generator")))
        until(lambda: "step_seconds_bucket" in node.text())
        done = subprocess.run(["promtool", "check", "metrics"], input=node.text(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- its file


def test_files_of_killed_exporters_of_this_host_are_removed_and_no_others(node: Node, tmp_path: Path) -> None:
    folder = Path(node.settings.targets)
    folder.mkdir()
    host = host_name()
    with contextlib.ExitStack() as stack:
        answering = [
            stack.enter_context(socket.create_server((address, 0))) for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0")
        ]
        alive = [server.getsockname()[1] for server in answering]
        stale = {f"{host}-{free_port()}.json": f"127.0.0.1:{alive[0]}", f"{host}-1.json": "", f"{host}-99999.json": ""}
        others = {f"{host}-{port}.json": f"192.0.2.1:{port}" for port in alive}  # the address of yesterday
        others |= {"other-host-9464.json": f"127.0.0.1:{free_port()}", f"{host}-notes.json": ""}
        for name, target in (stale | others).items():
            (folder / name).write_text(json.dumps([{"targets": [target]}]))
        node.ensure()
    assert {name for name in files_of(node) if name.endswith(".json")} == {*others, f"{host}-{node.port}.json"}


def test_what_somebody_has_laid_there_instead_of_files_stops_nothing(node: Node) -> None:
    folder = Path(node.settings.targets)
    folder.mkdir()
    log, target = (folder / f"{host_name()}-{node.port}.{ending}" for ending in ("log", "json"))
    for path in (log, target):
        os.mkfifo(path)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)  # without one a pipe would not be opened in the first place
    try:
        assert node.ensure().targets == str(target)
        assert os.read(reader, 1000) == b""
    finally:
        os.close(reader)
    assert json.loads(target.read_text())[0]["targets"] == [f"127.0.0.1:{node.port}"]


@pytest.mark.parametrize("lay", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_opened(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("text")
    with os.fdopen(targets.open_file(tmp_path / "file", os.O_RDONLY)) as file:
        assert file.read() == "text"
    lay(tmp_path / "other")
    with pytest.raises(OSError, match="other"):
        targets.open_file(tmp_path / "other", os.O_RDONLY)


def test_a_file_that_was_cleaned_away_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "KEEP_SECONDS", 0.0)
    file = TargetsFile(tmp_path / "deep" / "er", joined("::1", 9464), 9464)
    content = json.loads(file.path.read_text())
    assert content[0]["targets"] == ["[::1]:9464"]
    os.utime(file.path, (0, 0))
    file.keep()
    assert file.path.stat().st_mtime > time.time() - 60
    shutil.rmtree(tmp_path / "deep")
    file.keep()
    assert json.loads(file.path.read_text()) == content
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    file.remove()
    file.remove()
    assert not file.path.exists()


def test_a_folder_that_takes_nothing_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(targets, "KEEP_SECONDS", 0.0)
    (tmp_path / "file").write_text("mine")
    file = TargetsFile(tmp_path / "file", "127.0.0.1:9464", 9464)
    for _ in range(3):
        file.keep()
        assert file.listed == ""
    file.remove()
    assert [record.getMessage() for record in caplog.records] == [
        f"{file.path} cannot be written (Not a directory): Prometheus does not find this exporter by it"
    ]
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "file").unlink()
    file.keep()
    assert file.listed == str(file.path) and file.path.exists()


def test_it_serves_although_its_folder_takes_nothing(node: Node) -> None:
    Path(node.settings.targets).write_text("a file")
    assert node.ensure().targets == ""
    assert node.value("exporter_sources") == 0


# ---- the command


def test_the_command_serves_until_it_is_asked_to_end_and_a_second_one_is_refused(node: Node) -> None:
    environment = {VARIABLE: json.dumps(node.settings.model_dump() | {"expire": 0.2, "port": None})}
    command = ("-c", "from hydramix_dist.cli import main; main()", "exporter", "--port", str(node.port))
    with running(*command, **environment) as first:
        assert first.stdout is not None
        file = Path(node.settings.targets, f"{host_name()}-{node.port}.json")
        url = f"http://127.0.0.1:{node.port}/metrics"
        assert first.stdout.readline() == f"metrics at {url}; Prometheus finds them by {file}\n"
        with running(*command, **environment) as second:
            out, said = second.communicate()
        assert (second.returncode, out) == (2, "")
        assert said.startswith(f"error: an exporter for port {node.port} runs already") and said.count("\n") == 1
        assert first.poll() is None and file.exists(), "a service stays although nobody comes"
        first.send_signal(signal.SIGINT)
        out, said = first.communicate(timeout=60)
        assert (first.returncode, out, said) == (0, "", "")
        assert not file.exists()


def test_the_command_says_that_prometheus_does_not_find_it(node: Node) -> None:
    Path(node.settings.targets).write_text("a file")
    environment = {VARIABLE: json.dumps(node.settings.model_dump())}
    with running("-c", "from hydramix_dist.cli import main; main()", "exporter", **environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == (
            f"metrics at http://127.0.0.1:{node.port}/metrics; "
            f"Prometheus does not find them: {node.settings.targets} takes no file\n"
        )
