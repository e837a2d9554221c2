"""Alert rules: what Prometheus makes of them, and that none comes without tests, a runbook, or metrics that exist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hydramix_dist.cli.app import app
from hydramix_dist.telemetry import METRICS, PREFIX

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring" / "prometheus"
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
PAGES = [RUNBOOK, ROOT / "docs" / "alerts.md"]

RULES: list[dict[str, Any]] = [
    rule
    for path in sorted((FOLDER / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
SEVERITIES = ("critical", "warning", "info")

SERIES = {PREFIX + name: set(metric.labels) for name, metric in METRICS.items() if metric.kind != "histogram"}
SERIES |= {name: set(name.split(":")[0].split("_")) for name in RECORDED}
SCRAPED = {"instance", "job"}  # labels that Prometheus gives to what it reads
FOREIGN = re.compile(r"up|ray_node_\w+")
GROUPING = re.compile(r"\b(?:by|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
NAME = re.compile(r"(?<![\w.])[a-zA-Z_][\w:]*(?!\s*\(|[\w:])")
WORDS = {"and", "or", "unless", "offset", "by", "on", "bool", "group_left", "group_right"}


EXPECTED: dict[str, list[Any]] = {}  # what each test of an alert expects
for path in TESTS:
    for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
        for case in test["alert_rule_test"]:
            EXPECTED.setdefault(case["alertname"], []).append(case["exp_alerts"])


def rules(kind: str) -> list[Any]:
    return [pytest.param(rule, id=rule[kind]) for rule in RULES if kind in rule]


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)


# ---- what Prometheus says of them


@pytest.mark.service
def test_prometheus_takes_configuration_and_rules() -> None:
    done = promtool("check", "config", FOLDER / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(list((FOLDER / 'rules').glob('*.yml')))} rule files found" in done.stdout


@pytest.mark.service
def test_alerts_fire_when_they_should_and_else_are_silent() -> None:
    done = promtool("test", "rules", *TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- what comes with each


def test_every_alert_is_tested_firing_and_silent() -> None:
    assert EXPECTED.keys() == ALERTS.keys()
    assert [name for name, expected in EXPECTED.items() if not any(expected) or all(expected)] == []


@pytest.mark.parametrize("rule", rules("alert"))
def test_an_alert_says_what_where_how_bad_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Hydramix")
    assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in SEVERITIES
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    words = rule["annotations"]["summary"] + rule["annotations"]["description"]
    assert "$labels.run" in words or "$labels.instance" in words
    number, unit = re.fullmatch(r"(\d+)([sm])", rule["for"]).groups()  # type: ignore[union-attr]
    assert int(number) * {"s": 1, "m": 60}[unit] >= 30  # two scrapes


def test_the_runbook_has_a_section_an_alert_and_lists_them_by_severity() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) == sorted(ALERTS)
    for severity in SEVERITIES:
        (row,) = re.findall(rf"^\| {severity} \|.*$", text, flags=re.MULTILINE)
        of_it = {name.lower() for name, rule in ALERTS.items() if rule["labels"]["severity"] == severity}
        assert set(re.findall(r"\(#(\w+)\)", row)) == of_it


# ---- what they are made of


@pytest.mark.parametrize("rule", [*rules("alert"), *rules("record")])
def test_a_rule_asks_for_metrics_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    expression = re.sub(r'"[^"]*"', "", rule["expr"])
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\boffset \w+", "", GROUPING.sub("", expression))
    names = set(NAME.findall(bare)) - WORDS
    assert names, rule
    strangers = {name for name in names if name not in SERIES and not FOREIGN.fullmatch(name)}
    assert not strangers
    there = SCRAPED.union(*(SERIES.get(name, set()) for name in names))
    grouped = {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")}
    assert grouped - {""} <= there
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"\w+", matchers)) <= SERIES.get(name, set()) | SCRAPED


@pytest.mark.parametrize("rule", rules("record"))
def test_a_recording_rule_is_named_by_its_level_metric_and_operations(rule: dict[str, Any]) -> None:
    level, metric, _ = rule["record"].split(":")
    assert metric.startswith((PREFIX, "ray_"))
    for labels in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
        assert [label.strip() for label in labels.split(",")] == level.split("_")


def test_windows_hold_four_scrapes_or_more() -> None:
    windows = [window for rule in RULES for window in re.findall(r"\[(\d+)([mh])\]", rule["expr"])]
    assert windows and all(int(number) * {"m": 1, "h": 60}[unit] >= 1 for number, unit in windows)


def test_every_recorded_series_is_used() -> None:
    boards = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "monitoring" / "grafana").rglob("*.json"))
    asked = "".join(rule["expr"] for rule in RULES) + boards
    assert [name for name in RECORDED if name not in asked] == []


# ---- what the pages say


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_metrics_that_there_are(page: Path) -> None:
    named = set(re.findall(r"`?\b((?:\w+:)?hydramix_\w+(?::\w+)?)", page.read_text(encoding="utf-8")))
    assert {name for name in named if name not in SERIES} <= {PREFIX, "hydramix_dist"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_that_there_are(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in re.findall(r"`hydramix ([a-z]+(?: [a-z]+)?)", page.read_text(encoding="utf-8")):
        first, *rest = words.split()
        command = group.commands[first]  # type: ignore[attr-defined]
        if rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, words
