"""Every query of a dashboard as Prometheus would get it from Grafana: variables and intervals replaced.

Needs nothing but the standard library, so that whatever asks a real server can use it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


class Query(NamedTuple):
    """A panel's title and one of its expressions, ready to be asked."""

    title: str
    expr: str


def queries(dashboard: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> list[Query]:
    """Return all queries of all panels, in their order.

    `variables` are values by name, `__rate_interval`, `__interval` and `__range` (1m, 15s, 1h) among them. A variable
    that is not given has its default on the board: all of its values, or else any. Raises KeyError for a variable that
    the board does not have.
    """
    values = BUILT_IN | defaults(dashboard) | dict(variables or {})
    return [
        Query(panel["title"], _VARIABLE.sub(lambda found: values[found[1] or found[2]], target["expr"]))
        for panel in panels(dashboard)
        for target in panel.get("targets", ())
    ]


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all panels, those inside collapsed rows too; rows themselves left out."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def defaults(dashboard: Mapping[str, Any]) -> dict[str, str]:
    """Return a value for each variable of the board: what is typed in by default, or a pattern of all values."""
    return {
        variable["name"]: variable["query"] if variable["type"] == "textbox" else variable.get("allValue", ".*")
        for variable in dashboard["templating"]["list"]
    }
