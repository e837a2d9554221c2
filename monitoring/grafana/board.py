"""What makes a board of panels: variables, links to the other boards, rows, and the JSON that is committed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from panels import SOURCE, Panel

TAG = "hydramix"
Variable = dashboard.QueryVariable | dashboard.TextBoxVariable


@dataclass(frozen=True)
class Board:
    """One dashboard; `rows` holds the panels under the headline of each row, the most important row first."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]
    variables: Sequence[Variable] = field(default=())

    def json(self) -> str:
        """Return the text of the file: panels numbered and placed from left to right, 24 columns a line."""
        board = dashboard.Dashboard(self.title).uid(self.uid).description(self.description).tags([TAG])
        board.readonly().timezone("browser").time("now-1h", "now").refresh("10s")
        board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        for variable in self.variables:
            board.with_variable(variable)
        board.link(_to_the_others())
        for title, panels in self.rows.items():
            board.with_row(dashboard.Row(title))
            for panel in panels:
                board.with_panel(panel)
        content = json.loads(json.dumps(board.build(), cls=JSONEncoder))
        return json.dumps(_finished(content), indent=2, ensure_ascii=False) + "\n"


def choice(
    name: str, label: str, query: str, *, several: bool = True, sort: VariableSort = VariableSort.ALPHABETICAL_ASC
) -> dashboard.QueryVariable:
    """Return a variable whose values Prometheus has; with `several` any number of them, at first all."""
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(sort)
    if several:
        everything = VariableOption(text="All", value="$__all")
        variable.multi(True).include_all(True).all_value(".*").current(everything)
    return variable


def entry(name: str, label: str, value: str) -> dashboard.TextBoxVariable:
    """Return a variable that is typed."""
    typed = VariableOption(text=value, value=value)
    variable = dashboard.TextBoxVariable(name).label(label).default_value(value).hide(VariableHide.DONT_HIDE)
    return variable.current(typed).options([typed])


def _to_the_others() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("HydraMix boards").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.icon("external link").as_dropdown(False).keep_time(True).include_vars(True)


def _finished(content: dict[str, Any]) -> dict[str, Any]:
    """Return the board as Grafana's provisioning wants it: no id of its own, panels numbered from 1."""
    for number, panel in enumerate(content["panels"], start=1):
        panel["id"] = number
    for variable in content["templating"]["list"]:
        del variable["id"]  # the builder's placeholder
    return {"id": None, **content, "annotations": {"list": []}}
