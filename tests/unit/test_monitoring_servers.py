"""The servers that `make monitor` starts, the configuration they take, and the way of an alert to a person."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from monitor import PAGES_PORT, _pages
from servers import (
    Alertmanager,
    Prometheus,
    alertmanager_config,
    find_program,
    free_port,
    prometheus_files,
    scaled,
)

from hydramix_dist.config.metrics import VARIABLE, MetricsSettings

FOLDER = Path(__file__).parents[2] / "monitoring"
PATIENCE = 60.0  # seconds in which something must happen on a busy machine
FACTOR = 100.0


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def post(url: str, content: object) -> int:
    """Return the status of the answer to a POST."""
    text = content if isinstance(content, str) else json.dumps(content)
    request = urllib.request.Request(url, text.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def installed() -> None:
    try:
        find_program(("prometheus",), "prometheus")
        find_program(("prometheus-alertmanager", "alertmanager"), "prometheus-alertmanager")
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "runs").mkdir()
    with _pages(tmp_path / "runs") as address:
        yield address


# ---- durations


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("  for: 10m", "  for: 10000ms"),
        ("scrape_interval: 15s  # a comment of 5m", "scrape_interval: 250ms  # a comment of 5m"),
        ("rate(x_total[1h30m])", "rate(x_total[90000ms])"),
        ("max_over_time(x[1h:30s])", "max_over_time(x[60000ms:500ms])"),
        ("x offset 15m > 0", "x offset 15000ms > 0"),
        ("group_wait: 0s", "group_wait: 0s"),
        ("for: 20ms", "for: 1ms"),
        ("description: none for 15 minutes, {{ $value }}", "description: none for 15 minutes, {{ $value }}"),
        ("record: run:x:increase1h", "record: run:x:increase1h"),
        ("expr: x > 30", "expr: x > 30"),
    ],
)
def test_durations_are_divided_and_nothing_else_is(text: str, shorter: str) -> None:
    assert scaled(text, 60) == shorter
    assert scaled(text, 1) == text


def test_no_duration_of_the_committed_rules_is_left_out() -> None:
    files = prometheus_files(factor=7)
    assert len(files) > 2
    for name, text in files.items():
        code = re.sub(r"#.*|\w+:\w+:\w+|summary:.*|description: >-(?:\n {12}.*)*", "", text)
        assert re.findall(r"\b\d+[smhdw]\b", code) == [], name


# ---- configuration


def test_prometheus_looks_where_exporters_write() -> None:
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in config["scrape_configs"]}
    assert jobs["hydramix"] == [f"{MetricsSettings().targets}/*.json"]
    elsewhere = yaml.safe_load(prometheus_files(targets="/shared/x")["prometheus.yml"])
    assert elsewhere["scrape_configs"][0]["file_sd_configs"][0]["files"] == ["/shared/x/*.json"]
    ray = yaml.safe_load(prometheus_files(ray="/shared/ray.json")["prometheus.yml"])["scrape_configs"]
    assert [job["file_sd_configs"][0]["files"] for job in ray] == [jobs["hydramix"], ["/shared/ray.json"]]


@pytest.mark.service
def test_alertmanager_takes_its_configuration() -> None:
    if shutil.which("amtool") is None:
        pytest.skip("amtool is not installed: apt-get install prometheus-alertmanager")
    file = FOLDER / "alertmanager" / "alertmanager.yml"
    done = subprocess.run(["amtool", "check-config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_is_sent_until_somebody_is_named() -> None:
    """The committed receiver would else fail for ever where `make monitor` is not."""
    committed = yaml.safe_load((FOLDER / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    assert [receiver.keys() for receiver in committed["receivers"]] == [{"name"}]
    sent = yaml.safe_load(alertmanager_config("http://127.0.0.1:1/x"))
    assert [receiver.pop("webhook_configs") for receiver in sent["receivers"]] == [[{"url": "http://127.0.0.1:1/x"}]]
    assert sent == committed


def test_containers_are_given_what_the_configuration_names() -> None:
    text = (FOLDER / "docker-compose.yml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        assert service["network_mode"] == "host", name
        listens = [*service.get("command", ()), *service.get("environment", {}).values()]
        assert any("127.0.0.1" in str(word) for word in listens), name
        mounts = [volume.split(":") for volume in service["volumes"]]
        assert all((FOLDER / source).is_dir() for source, *_ in mounts if source.startswith(".")), name
    mounted = {target for _, target, *_ in (volume.split(":") for volume in services["prometheus"]["volumes"])}
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert {str(PAGES_PORT), "/checkout/runs"} <= set(services["reports"]["command"])  # where boards link to
    found = [path for job in config["scrape_configs"] for path in job["file_sd_configs"][0]["files"]]
    assert {str(Path(path).parent) for path in found} <= mounted


# ---- the real servers


@pytest.mark.service
def test_an_alert_goes_its_way_from_a_rule_to_a_terminal(
    tmp_path: Path, pages: str, installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = tmp_path / "targets"
    targets.mkdir()
    address = f"127.0.0.1:{free_port()}"  # where no exporter is
    (targets / "node.json").write_text(json.dumps([{"targets": [address], "labels": {"job": "hydramix"}}]))
    routing = scaled(alertmanager_config(f"{pages}/alerts"), FACTOR)
    told = ""

    def printed() -> str:
        nonlocal told
        told += capsys.readouterr().out
        return told

    with Alertmanager(tmp_path / "alertmanager", routing) as alertmanager:
        # What follows from something critical is held back, what may not, and other runs' alerts, are not.
        alerts = [("A", "critical", "lost"), ("HydramixTrainingFailed", "warning", "lost")]
        alerts += [("HydramixTrainingFailed", "warning", "other"), ("HydramixDiskNearlyFull", "warning", "lost")]
        names = [{"alertname": name, "severity": severity, "run": run} for name, severity, run in alerts]
        assert post(f"{alertmanager.url}/api/v2/alerts", [{"labels": labels} for labels in names]) == 200

        ray = tmp_path / "none.json"  # not what a Ray of this machine's user has left
        files = prometheus_files(targets=targets, ray=ray, alertmanager=alertmanager.address, factor=FACTOR)
        with Prometheus(tmp_path / "prometheus", files) as prometheus:
            assert prometheus.running and prometheus.query("1 + 1") == [({}, 2.0)]
            with pytest.raises(ValueError, match="parse error"):
                prometheus.query("sum(")
            until(lambda: prometheus.query("up") == [({"__name__": "up", "job": "hydramix", "instance": address}, 0.0)])
            until(lambda: [alert for alert in prometheus.alerts() if alert["state"] == "firing"])
            (alert,) = prometheus.alerts()
            assert alert["labels"]["alertname"] == "HydramixExporterAway" and address in alert["annotations"]["summary"]
            until(lambda: f"warning   HydramixExporterAway: {address}: metrics cannot be read" in printed())
            assert allowed(prometheus) is None
        found = [(alert["labels"], alert["status"]["state"]) for alert in alertmanager.alerts()]
        held = {(labels["alertname"], labels.get("run")) for labels, state in found if state == "suppressed"}
    assert held == {("HydramixTrainingFailed", "lost")}
    assert (
        "critical  A" in told
        and told.count("warning   HydramixTrainingFailed") == 1
        and "HydramixDiskNearlyFull" in told
    )


def allowed(prometheus: Prometheus) -> str | None:
    """Return the pages that a browser lets read an answer of Prometheus; None for its own alone."""
    request = urllib.request.Request(f"{prometheus.url}/api/v1/query?query=1", headers={"Origin": "http://a.test"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        found: str | None = answer.headers["Access-Control-Allow-Origin"]
        return found


@pytest.mark.service
def test_pages_of_others_read_prometheus_only_where_they_may(tmp_path: Path, installed: None) -> None:
    with Prometheus(tmp_path, prometheus_files(targets=tmp_path), cors=True) as prometheus:
        assert allowed(prometheus) in ("*", "http://a.test")


@pytest.mark.service
def test_a_server_that_cannot_start_says_why(tmp_path: Path, installed: None) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)prometheus ended at its start.*scrape_intervals"):
        Prometheus(tmp_path, {"prometheus.yml": "global: {scrape_intervals: 1s}"}).start()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


@pytest.mark.service
def test_monitoring_runs_until_it_is_stopped_and_leaves_nothing_running(tmp_path: Path, installed: None) -> None:
    targets = tmp_path / "home" / "targets"
    environment = os.environ | {"HOME": str(tmp_path / "home"), VARIABLE: json.dumps({"targets": "~/targets"})}
    command = [sys.executable, str(FOLDER / "monitor.py"), "--folder", str(tmp_path / "m"), "--runs", str(tmp_path)]
    (tmp_path / "report.html").write_text("a report")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    taken = [socket.create_server(("127.0.0.1", PAGES_PORT))] if free_port(PAGES_PORT) == PAGES_PORT else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        lines = list(itertools.takewhile(lambda line: "Ctrl-C" not in line, process.stdout))
        urls = [match[0] for line in lines if (match := re.search(r"http://127.0.0.1:\d+[/\w]*", line))]
        for url in (*urls, f"{urls[-1]}/report.html"):
            with direct.open(url, timeout=10) as answer:
                assert answer.status == 200, url
        assert targets.is_dir() and f"exporters are found in {targets})" in "".join(lines)
        reports = next(place for place, line in enumerate(lines) if line.startswith("reports"))
        assert f"(port {PAGES_PORT} was taken)" in lines[reports] and "`Runs at`" in lines[reports + 1]
    finally:
        for other in taken:
            other.close()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and len(urls) == 5
    for url in urls:
        with pytest.raises(urllib.error.URLError, match="refused"):
            direct.open(url, timeout=10)


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "monitor.py"), "--folder", str(tmp_path)]
    environment = os.environ | {"PATH": str(tmp_path), VARIABLE: json.dumps({"targets": str(tmp_path)})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    alertmanager, prometheus = done.stderr.splitlines()
    assert alertmanager.startswith("alertmanager is not installed: apt-get install prometheus-alertmanager")
    assert prometheus.startswith("prometheus is not installed: apt-get install prometheus")


# ---- what is printed


def test_alerts_are_printed_without_what_a_terminal_obeys(pages: str, capsys: pytest.CaptureFixture[str]) -> None:
    alert = {"status": "resolved", "labels": {"alertname": "A"}, "annotations": {"summary": "run \x1b[2J\nx"}}
    assert post(f"{pages}/alerts", {"alerts": [alert]}) == 200
    (line,) = capsys.readouterr().out.splitlines()
    assert "over      A: run ?[2J?x" in line
    for nonsense in ("{", "[]", '{"alerts": [{}]}', '{"alerts": [1]}'):
        assert post(f"{pages}/alerts", nonsense) == 400
    assert capsys.readouterr().out == ""
