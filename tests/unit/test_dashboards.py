"""Grafana boards: built from code, asking for nothing that is not exported, readable and placed without overlap."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydramix_dist.telemetry import METRICS, PREFIX

MONITORING = Path(__file__).parents[2] / "monitoring"
sys.path.insert(0, str(MONITORING / "grafana"))

import build  # noqa: E402
from limits import LIMITS  # noqa: E402
from queries import panels, queries  # noqa: E402

BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in build.FOLDER.glob("*.json")}
RULES = [
    rule
    for path in (MONITORING / "prometheus" / "rules").glob("*.yml")
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"]: set(rule["record"].split(":")[0].split("_")) for rule in RULES if "record" in rule}
FOREIGN = re.compile(r"ray_\w+|up|ALERTS")  # exported by others
OF_ANY_SERIES = {"instance", "job"}  # Prometheus' own labels

GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?![\w:])(?:\{([^}]*)\}|(?!\s*\())")
WORDS = {"and", "or", "unless", "offset", "bool"}


def board(name: str) -> dict[str, Any]:
    return BOARDS[name]


def names_in(expr: str) -> dict[str, set[str]]:
    """Return the metrics of an expression, each with the labels that its selectors ask for."""
    bare = re.sub(r"\[[^\]]*\]", "", GROUPING.sub("", expr))
    found: dict[str, set[str]] = {}
    for name, selector in SELECTOR.findall(bare):
        if name not in WORDS:
            found.setdefault(name, set()).update(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)"', selector))
    return found


def aggregated(expr: str) -> list[tuple[set[str], str]]:
    """Return the labels of each `by (...)` with the expression in the parentheses behind it."""
    found = []
    for grouping in re.finditer(r"\bby\s*\(([^)]*)\)\s*\(", expr):
        depth, end = 1, grouping.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expr[end], 0)
            end += 1
        found.append((set(re.findall(r"\w+", grouping[1])), expr[grouping.end() : end - 1]))
    return found


def labels_of(name: str) -> set[str] | None:
    """Return the labels that a series of this name has, None for one of others; raise KeyError for an unknown one."""
    if FOREIGN.fullmatch(name):
        return None
    if name in RECORDED:
        return RECORDED[name]
    own = name.removeprefix(PREFIX)
    for suffix in ("_bucket", "_sum", "_count"):
        root = own.removesuffix(suffix)
        if root != own and root in METRICS and METRICS[root].kind == "histogram":
            return {*METRICS[root].labels, *(("le",) if suffix == "_bucket" else ())}
    metric = METRICS[own] if own != name else None
    if metric is None or metric.kind == "histogram":
        raise KeyError(name)
    return set(metric.labels)


def variable_queries(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Return expression and label of each variable that asks Prometheus for its values."""
    asked = [v["query"] for v in content["templating"]["list"] if v["type"] == "query"]
    return [re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups() for query in asked]  # type: ignore[union-attr,misc]


every_board = pytest.mark.parametrize("content", [pytest.param(board(name), id=name) for name in sorted(BOARDS)])


def test_the_committed_files_are_what_the_code_builds() -> None:
    assert set(BOARDS) == set(build.BOARDS)
    for name, built in build.BOARDS.items():
        assert (build.FOLDER / f"{name}.json").read_text(encoding="utf-8") == built.json(), (
            "run python monitoring/grafana/build.py"
        )


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ('sum by (run, le) (rate(a_bucket{run=~"x|y",role!="b"}[5m]))', {"a_bucket": {"run", "role"}}),
        ("a - on (job) group_right () b > 0 and on (x) max_over_time(c[1h:])", {"a": set(), "b": set(), "c": set()}),
        ('count(a:b:c{s="{"}) or vector(0)', {"a:b:c": {"s"}}),
    ],
)
def test_names_and_labels_are_found_in_an_expression(expr: str, expected: dict[str, set[str]]) -> None:
    assert names_in(expr) == expected


@every_board
def test_every_query_asks_for_what_is_exported(content: dict[str, Any]) -> None:
    """A renamed metric or label fails here, not on somebody's screen."""
    asked = [query.expr for query in queries(content)] + [expr for expr, _ in variable_queries(content)]
    assert asked
    for expr in asked:
        assert names_in(expr), expr
        for name, selected in names_in(expr).items():
            labels = labels_of(name)
            assert labels is None or selected <= labels | OF_ANY_SERIES, (expr, name)
        for kept, inside in aggregated(expr):
            for labels in map(labels_of, names_in(inside)):
                assert labels is None or kept <= labels | OF_ANY_SERIES, (expr, kept)


@every_board
def test_a_variable_offers_a_label_that_its_metric_has(content: dict[str, Any]) -> None:
    for expr, label in variable_queries(content):
        (name,) = names_in(expr)
        labels = labels_of(name)
        assert labels is None or label in labels, (expr, label)


def test_every_metric_of_the_table_is_on_a_board() -> None:
    shown = {name for content in BOARDS.values() for query in queries(content) for name in names_in(query.expr)}
    behind = {name for rule in RULES if rule.get("record") in shown for name in names_in(rule["expr"])}
    missing = {
        metric.name
        for metric in METRICS.values()
        if not {PREFIX + metric.name, f"{PREFIX}{metric.name}_bucket"} & (shown | behind)
    }
    assert not missing


@every_board
def test_a_legend_names_labels_that_the_query_keeps(content: dict[str, Any]) -> None:
    for panel in panels(content):
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            kept = {label for labels, _ in aggregated(target["expr"]) for label in labels}
            kept |= {label for name in names_in(target["expr"]) for label in RECORDED.get(name, ())}
            assert named <= kept, (panel["title"], target)


@every_board
def test_every_panel_says_what_it_shows_in_its_unit(content: dict[str, Any]) -> None:
    for panel in panels(content):
        title, text = panel["title"], panel.get("description", "")
        assert len(text) > 40 and text.endswith("."), title
        if panel["type"] != "text":
            assert "Healthy: " in text, title
            assert panel["targets"] and panel["fieldConfig"]["defaults"]["unit"], title


@every_board
def test_every_panel_asks_the_chosen_data_source(content: dict[str, Any]) -> None:
    assert [v["name"] for v in content["templating"]["list"] if v["type"] == "datasource"] == ["datasource"]
    askers = [thing for panel in panels(content) for thing in (panel, *panel.get("targets", ()))]
    askers += [variable for variable in content["templating"]["list"] if variable["type"] == "query"]
    assert {thing["datasource"]["uid"] for thing in askers} == {"${datasource}"}


@every_board
def test_panels_lie_side_by_side(content: dict[str, Any]) -> None:
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in content["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    holes = {y for _, y in taken if sum((x, y) in taken for x in range(24)) < 24}
    assert not holes, "a line of the grid is not filled"


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_boards_are_provisioned_and_linked(name: str) -> None:
    content = board(name)
    assert content["uid"] == f"hydramix-{name}"  # links from outside hold on to it
    assert content["id"] is None and content["editable"] is False
    (link,) = content["links"]
    assert set(link["tags"]) <= set(content["tags"]) and link["includeVars"] and link["keepTime"]


def test_thresholds_are_those_of_the_alerts() -> None:
    alerts = {rule["alert"]: rule["expr"] for rule in RULES if "alert" in rule}
    for alert, limit in LIMITS.items():
        assert limit in {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", alerts[alert])}, (
            alert
        )


def test_variables_and_intervals_are_filled_in() -> None:
    content = {
        "templating": {"list": [{"name": "run", "type": "query", "allValue": ".*"}]},
        "panels": [
            {
                "type": "row",
                "title": "collapsed",
                "panels": [{"type": "stat", "title": "a", "targets": [{"expr": "$run"}]}],
            },
            {"type": "stat", "title": "b", "targets": [{"expr": 'rate(x{run=~"${run:regex}"}[$__rate_interval])'}]},
        ],
    }
    assert queries(content) == [("a", ".*"), ("b", 'rate(x{run=~".*"}[1m])')]
    assert queries(content, {"run": "r", "__rate_interval": "4s"})[1].expr == 'rate(x{run=~"r"}[4s])'
    content["panels"][1]["targets"][0]["expr"] = "$unknown"  # type: ignore[index]
    with pytest.raises(KeyError, match="unknown"):
        queries(content)


def test_provisioning_names_one_data_source_and_takes_boards_from_files_alone() -> None:
    folder = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    scraped = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]  # else rates have holes
    providers = yaml.safe_load((folder / "dashboards" / "hydramix.yml").read_text(encoding="utf-8"))["providers"]
    assert {provider["folder"] for provider in providers} == {"HydraMix", "Ray"}
    assert not any(provider["allowUiUpdates"] for provider in providers)
    compose = yaml.safe_load((MONITORING / "docker-compose.yml").read_text(encoding="utf-8"))
    mounted = [volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboards", providers[0]["options"]["path"]] in mounted
