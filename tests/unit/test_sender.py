"""What a process tells arrives, what it was is forgotten or kept as it ended, and it never waits for anybody."""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from exporters import Node, own_node, until

from hydramix_dist.config.metrics import VARIABLE
from hydramix_dist.telemetry import METRICS, Histogram, Recorder, Sender, Told, sender, starting
from hydramix_dist.telemetry.wire import LABEL_CHARACTERS, MESSAGE_BYTES, clean, place

RUN = {"run": "first", "role": "generator"}
SECTIONS = ("Every training", "Data")
STAYING = ("learning_rate", "images_seen_total")

SENDING = """
import sys, time
from hydramix_dist.config.metrics import metrics_settings
from hydramix_dist.telemetry import Sender
number, writes, labels = int(sys.argv[1]), int(sys.argv[2]), {"run": "first", "role": "generator"}
with Sender(labels, ["Every training"], metrics_settings(), lambda: [({"trainings": 1.0}, {})]) as sender:
    for write in range(writes):
        sender.write({"images_seen_total": (write + 1.0) * number, "learning_rate": float(number)}, labels)
        time.sleep(0.001)
    if len(sys.argv) > 3:
        time.sleep(1000)
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(sender, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(sender, "_RECONNECT_SECONDS", 0.2)
    monkeypatch.setattr(starting, "_failed_at", {})
    with own_node(tmp_path) as node:
        yield node


def sending(node: Node, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {VARIABLE: json.dumps(node.settings.model_dump())}
    return subprocess.Popen([sys.executable, "-c", SENDING, *arguments], env=environment)


def arrives(node: Node, name: str, value: float, **labels: str) -> None:
    until(lambda: node.value(name, **(labels or RUN)) == value)


# ---- what arrives


def test_values_arrive_and_counters_begin_at_zero(node: Node) -> None:
    steps = Histogram(METRICS["step_seconds"].bounds)
    with Sender(RUN, SECTIONS, node.settings) as sink:
        arrives(node, "nonfinite_stops_total", 0.0)
        page = node.page()
        for cause in METRICS["store_retries_total"].known["cause"]:
            assert page["store_retries_total", frozenset({**RUN, "cause": cause}.items())] == 0
        assert page["step_seconds_count", frozenset(RUN.items())] == 0
        assert not any(name in ("learning_rate", "trainings", "mixed_batches_total") for name, _ in page)
        for seconds in (0.02, 0.7, 500.0):
            steps.observe(seconds)
        recorder = Recorder([sink], **RUN)
        recorder.record(8, {"images_seen_total": 8, "step_seconds": steps, "learning_rate": 0.5})
        recorder.record(8, {"gradient_norm": 3.0}, engine="classifier")
        arrives(node, "gradient_norm", 3.0, engine="classifier", **RUN)
        assert node.value("images_seen_total", **RUN) == 8 and node.value("learning_rate", **RUN) == 0.5
        assert node.value("step_seconds_sum", **RUN) == 500.72
        buckets = [node.value("step_seconds_bucket", le=le, **RUN) for le in ("0.01", "0.025", "0.5", "1.0", "+Inf")]
        assert buckets == [0, 1, 1, 2, 3]


def test_strange_labels_and_numbers_come_through(node: Node) -> None:
    strange = 'a "quoted" \\ back{slash} äöü 日本'
    broken = "line\nfeed \ud800 \x1b[31m" + "x" * 500
    with Sender({**RUN, "run": strange}, (), node.settings) as sink:
        for number, value in (("learning_rate", math.inf), ("world_size", math.nan), ("images_seen_total", math.nan)):
            sink.write({number: value}, {**RUN, "run": strange})
        sink.write({"world_size": 2.0}, {**RUN, "run": broken})
        mended = clean(broken)
        assert (
            len(mended) == LABEL_CHARACTERS
            and "\n" not in mended
            and mended.startswith("line\N{REPLACEMENT CHARACTER}feed")
        )
        arrives(node, "world_size", 2.0, **{**RUN, "run": mended})
        for name in ("learning_rate", "world_size"):
            assert math.isnan(node.value(name, **{**RUN, "run": strange}) or 0)
        assert node.value("images_seen_total", **{**RUN, "run": strange}) is None


def test_a_state_larger_than_a_message_arrives_whole(node: Node) -> None:
    node.ensure()
    runs = [f"run {number} {'x' * 100}" for number in range(1500)]
    assert sum(map(len, runs)) > 2 * MESSAGE_BYTES
    with Sender(RUN, (), node.settings) as sink:
        for run in runs:
            sink.write({"world_size": 2.0}, {**RUN, "run": run})
        until(lambda: sum(name == "world_size" for name, _ in node.page()) == len(runs))


def test_a_probe_is_asked_again_and_again_and_its_failure_is_said_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    def probe() -> Iterator[Told]:
        nonlocal asked
        asked += 1
        yield {"store_requests_total": float(asked)}, {}
        yield {"store_retries_total": 2.0}, {"cause": "server"}
        if asked > 3:
            raise OSError("the disk is away")

    with Sender(RUN, (), node.settings, probe):
        until(lambda: asked > 6)
        arrives(node, "store_retries_total", 2.0, cause="server", **RUN)
        assert (node.value("store_requests_total", **RUN) or 0) > 1
    until(lambda: node.value("exporter_sources") == 0)
    assert node.value("store_requests_total", **RUN) == asked, "it is asked at the end as well"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_threads_may_write_at_once(node: Node) -> None:
    def write(thread: int) -> None:
        for number in range(300):
            sink.write({"images_seen_total": number + 1.0}, {**RUN, "run": str(thread)})

    with Sender(RUN, (), node.settings) as sink:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4):
            arrives(node, "images_seen_total", 300.0, **{**RUN, "run": str(number)})


# ---- how it ends


def test_a_killed_process_leaves_its_counters_and_no_gauge(node: Node) -> None:
    with sending(node, "7", "3", "stay") as process:
        arrives(node, "images_seen_total", 21.0)
        arrives(node, "trainings", 1.0)
        assert node.value("learning_rate", **RUN) == 7.0
        process.kill()
    until(lambda: node.value("exporter_sources") == 0)
    gauges = {f"hydramix_{name}" for name, metric in METRICS.items() if metric.kind == "gauge"}
    left = {line.split("{")[0] for line in node.text().splitlines() if "{" in line}
    assert left and not left & gauges
    assert node.value("images_seen_total", **RUN) == 21.0
    assert node.value("processes_lost_total", **RUN) == 1.0


def test_an_end_in_order_keeps_the_last_values_for_a_while(tmp_path: Path, node: Node) -> None:
    with own_node(tmp_path, expire=1.0) as brief:
        brief.ensure()
        runs = [{**RUN, "run": run} for run in ("by itself", "by an error")]
        with contextlib.suppress(ValueError):
            for labels in runs:
                with Sender(labels, (), brief.settings, lambda: [({"trainings": 1.0}, {})]) as sink:
                    arrives(brief, "trainings", 1.0, **labels)
                    assert brief.value("processes_lost_total", **labels) == 0.0
                    sink.write({"learning_rate": 0.25, "images_seen_total": 5.0}, labels)
                    if labels["run"] == "by an error":
                        raise ValueError("the process goes on")
        ended = time.monotonic()
        until(lambda: brief.value("exporter_sources") == 0)
        values = [
            [brief.value(name, **labels) for name in (*STAYING, "processes_lost_total", "trainings")] for labels in runs
        ]
        assert time.monotonic() < ended + 0.9, "too slow to see anything"
        assert values == [[0.25, 5.0, 0.0, None]] * 2
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as somebody:  # so that it does not end itself
            somebody.connect(place(brief.port))
            until(lambda: not {name for name, _ in brief.page()} & {*STAYING})


def test_a_training_that_is_shorter_than_the_start_of_an_exporter_is_seen(node: Node) -> None:
    with Sender(RUN, SECTIONS, node.settings) as sink:
        sink.write({"images_seen_total": 3.0}, RUN)
    arrives(node, "images_seen_total", 3.0)


# ---- many, and trouble


def test_many_processes_start_one_exporter_and_their_totals_add_up(node: Node) -> None:
    numbers, pids = (1, 2, 3, 4), set()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(sending(node, str(number), "100")) for number in numbers]
        until(node.text)
        while any(process.poll() is None for process in processes):
            pids.add(node.pid())
            node.page()
            time.sleep(0.05)
    assert [process.returncode for process in processes] == [0] * 4
    assert len(pids) == 1
    arrives(node, "images_seen_total", 100.0 * sum(numbers))
    assert node.value("learning_rate", **RUN) in map(float, numbers)


def test_when_the_exporter_is_killed_a_new_one_has_everything(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    with Sender(RUN, SECTIONS, node.settings) as sink:
        sink.write({"images_seen_total": 5.0, "learning_rate": 0.5}, RUN)
        arrives(node, "images_seen_total", 5.0)
        first = node.pid()
        node.end(signal.SIGKILL)
        sink.write({"images_seen_total": 6.0}, RUN)
        arrives(node, "images_seen_total", 6.0)
        assert node.pid() not in (None, first)
        assert node.value("learning_rate", **RUN) == 0.5
    assert caplog.records == []


def test_without_an_exporter_there_is_one_warning_and_no_waiting(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = node.settings.model_copy(update={"host": "192.0.2.1"})
    slowest, began = 0.0, time.monotonic()
    for _ in range(3):
        with Sender(RUN, SECTIONS, nowhere) as sink:
            for number in range(200):
                before = time.monotonic()
                sink.write({"images_seen_total": float(number), "learning_rate": 0.1}, RUN)
                slowest = max(slowest, time.monotonic() - before)
                time.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics are not exported: no metrics at 192.0.2.1:{node.port}: Cannot assign requested address; "
        "give another host or port; training goes on"
    ]
    assert slowest < starting.WAIT_SECONDS / 5 and time.monotonic() - began < starting.WAIT_SECONDS


def test_a_busy_exporter_is_not_waited_for_and_hears_the_last_values(node: Node) -> None:
    with Sender(RUN, (), node.settings) as sink:
        sink.write({"images_seen_total": 1.0}, RUN)
        arrives(node, "images_seen_total", 1.0)
        pid = node.pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            runs = [f"run {number % 50} {'x' * 100}" for number in range(3000)]
            for number, run in enumerate(runs):  # several times what the socket takes
                sink.write({"images_seen_total": number + 2.0}, {**RUN, "run": run})
            taken = time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)
        assert taken < 2.0
        for number in (2998, 2999):
            arrives(node, "images_seen_total", number + 2.0, **{**RUN, "run": runs[number]})


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[int]:
    """Let the exporter hang while the block runs; a block may end that before."""
    pid = node.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def fill(sink: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write more than the socket of an exporter that hangs takes, each value by itself."""
    monkeypatch.setattr(sender, "SEND_SECONDS", 0.0)
    for number in range(3000):
        sink.write({"images_seen_total": number + 1.0}, {**RUN, "run": f"run {number % 50} {'x' * 100}"})


@pytest.mark.parametrize("connected", [True, False])
def test_an_exporter_that_hangs_does_not_hold_the_end_of_a_training(
    node: Node, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    assert sender.CLOSE_SECONDS <= 2.0
    monkeypatch.setattr(sender, "CLOSE_SECONDS", 0.3)
    node.ensure()
    with contextlib.ExitStack() as hanging:
        if not connected:
            hanging.enter_context(stopped(node))
        sink = Sender(RUN, SECTIONS, node.settings)
        if connected:
            arrives(node, "processes_lost_total", 0.0)
            hanging.enter_context(stopped(node))
            fill(sink, monkeypatch)
        began = time.monotonic()
        sink.close()
        assert time.monotonic() - began < 5  # without a connection it would wait for 10
    # What was not said could not be; a connection that was not there yet has come afterwards.
    until(lambda: node.value("exporter_sources") == 0)
    arrives(node, "processes_lost_total", float(connected))


def test_a_goodbye_waits_for_an_exporter_that_is_busy(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sender(RUN, SECTIONS, node.settings) as sink:
        arrives(node, "processes_lost_total", 0.0)
        sink.write({"learning_rate": 0.5}, RUN)
        with stopped(node) as pid:
            fill(sink, monkeypatch)
            goes_on = threading.Timer(0.4, os.kill, (pid, signal.SIGCONT))
            goes_on.start()
            sink.close()
            goes_on.join()
    until(lambda: node.value("exporter_sources") == 0)
    assert node.value("processes_lost_total", **RUN) == 0.0 and node.value("learning_rate", **RUN) == 0.5


def test_an_exporter_of_another_version_is_told(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    def answer() -> None:
        connection, _ = place_holder.accept()
        with connection:
            connection.send(b'{"greeting": "hello"}')

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as place_holder:
        place_holder.bind(place(node.port))
        place_holder.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        assert starting.ensure_exporter(node.settings) is None
        thread.join()
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics are not exported: the exporter for port {node.port} is of another version; end it; training goes on"
    ]


@pytest.mark.service
def test_a_place_that_somebody_else_holds_is_told(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    program = "import socket\nwith socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:\n"
    program += f" s.bind({place(node.port)!r}); s.listen(); print('there', flush=True); s.accept()[0].recv(1)"
    with subprocess.Popen(["/usr/bin/env", "python3", "-c", program], stdout=subprocess.PIPE, user=65534) as other:
        assert other.stdout is not None and other.stdout.readline() == b"there\n"
        assert starting.ensure_exporter(node.settings) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics are not exported: a process of another user holds the place for port {node.port}; use another port; "
        "training goes on"
    ]
