"""The panels that our boards are made of, with the looks that all of them share.

Grafana's own builders stand below (grafana-foundation-sdk, made from its schema): no Grafana server runs in the tests,
so that names of options are right has to come from there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    LineStyle,
    ReduceDataOptions,
    ScaleDistributionConfig,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
Panel = timeseries.Panel | stat.Panel | table.Panel | text.Panel
Queries = Mapping[str, str]  # legend -> PromQL
Steps = Sequence[tuple[float, str]]  # from which value on which colour; green, or the given base, below


def thresholds(steps: Steps, base: str = "green") -> ThresholdsConfig:
    """Return colours by value: `base` up to the first step."""
    levels = [Threshold(value=None, color=base), *(Threshold(value=value, color=color) for value, color in steps)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels)


def above(yellow: float | None = None, red: float | None = None) -> Steps:
    """Return the steps of a number that is bad when large."""
    return [(value, color) for value, color in ((yellow, "yellow"), (red, "red")) if value is not None]


def graph(
    title: str,
    description: str,
    queries: Queries,
    unit: str = "short",
    *,
    width: int = 8,
    height: int = 8,
    least: float | None = 0,
    most: float | None = None,
    limit: float | None = None,
    log: bool = False,
    stacked: bool = False,
    dashed: str = "",
    colors: Mapping[str, str] | None = None,
) -> timeseries.Panel:
    """Return lines over time.

    `limit` is drawn as a red dashed line, the alert's threshold; `dashed` is a regular expression of the names whose
    lines are dashed, `colors` gives names a colour; `least` and `most` bound the axis softly, so that values outside
    still show.
    """
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).unit(unit)
    panel.span(width).height(height)
    for target in _targets(queries):
        panel.with_target(target.range())
    panel.line_width(2).fill_opacity(25 if stacked else 0).show_points(VisibilityMode.NEVER)
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel.legend(legend.show_legend(True))
    panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if log:
        panel.scale_distribution(ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    elif least is not None:
        panel.axis_soft_min(least)
    if most is not None:
        panel.axis_soft_max(most)
    if limit is not None:
        panel.thresholds(thresholds([(limit, "red")]))
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if dashed:
        style = LineStyle().fill("dash").dash([8, 6]).build()
        panel.override_by_regexp(dashed, [_property("custom.lineStyle", style)])
    for name, color in (colors or {}).items():
        panel.override_by_name(name, [_property("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def number(
    title: str,
    description: str,
    queries: Queries,
    unit: str = "short",
    *,
    width: int = 4,
    height: int = 4,
    steps: Steps = (),
    base: str = "green",
    decimals: int | None = None,
    none: str = "–",
) -> stat.Panel:
    """Return one large number a series, of this moment, coloured by `steps`; `none` stands where there is none."""
    panel = stat.Panel().title(title).description(description).datasource(SOURCE).unit(unit).no_value(none)
    panel.span(width).height(height)
    for target in _targets(queries):
        panel.with_target(target.instant())
    panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(BigValueGraphMode.NONE).color_mode(BigValueColorMode.VALUE)
    several = len(queries) > 1 or any("{{" in legend for legend in queries)
    panel.text_mode(BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.VALUE)
    panel.thresholds(thresholds(steps, base))
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def grid(
    title: str,
    description: str,
    expression: str,
    transformations: Sequence[tuple[str, dict[str, Any]]],
    unit: str = "short",
    *,
    width: int = 12,
    height: int = 8,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    heat: bool = False,
    none: str = "no data",
) -> table.Panel:
    """Return a table of the present values; `overrides` are settings of the columns whose names match a pattern.

    With `heat` numbers lie on a colour from the lowest to the highest of the table.
    """
    panel = table.Panel().title(title).description(description).datasource(SOURCE).unit(unit).no_value(none)
    panel.span(width).height(height).show_header(True)
    panel.with_target(_query("A", expression).instant().format(PromQueryFormat.TABLE))
    for name, options in transformations:
        panel.with_transformation(DataTransformerConfig(id_val=name, options=options))
    if heat:
        panel.color_scheme(FieldColor().mode(FieldColorModeId.CONTINUOUS_BLUES)).decimals(1)
        cells = {"type": "color-background", "mode": "basic"}
        panel.override_by_field_type("number", [_property("custom.cellOptions", cells), _property("custom.width", 90)])
    for pattern, settings in (overrides or {}).items():
        panel.override_by_regexp(pattern, [_property(name, value) for name, value in settings.items()])
    return panel


def words(title: str, description: str, content: str, *, width: int = 24, height: int = 4) -> text.Panel:
    """Return a panel of Markdown."""
    panel = text.Panel().title(title).description(description).content(content).mode(TextMode.MARKDOWN)
    return panel.datasource(SOURCE).span(width).height(height)


def _targets(queries: Queries) -> list[prometheus.Dataquery]:
    """Return the queries with letters for names, as Grafana gives them."""
    named = enumerate(queries.items())
    return [_query(chr(ord("A") + place), query).legend_format(legend) for place, (legend, query) in named]


def _query(name: str, expression: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).ref_id(name).datasource(SOURCE)


def _property(name: str, value: object) -> DynamicConfigValue:
    return DynamicConfigValue(id_val=name, value=value)
