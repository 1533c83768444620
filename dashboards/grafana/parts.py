"""What all dashboards are made of: one look for lines and figures, one way to name a release's metrics.

Queries are written with empty braces behind each metric, as the alerts are; `narrow` puts the variables of
the dashboard into them. A panel that an alert watches links to the alert's runbook.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

RUNBOOKS_URL = "https://github.com/coffee-rt/coffee-rt/blob/main/docs/runbooks"
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
NARROWING = 'namespace=~"$namespace", release=~"$release", pod=~"$pod"'
GRID_COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and how a line of its answer is called (label names in double braces)."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Look:
    """What is common to both kinds of panel. `good` says what a good value is; it ends the description."""

    title: str
    about: str
    good: str
    unit: str = "short"
    alert: str | None = None
    limits: tuple[float | None, float | None] = (None, None)
    """From where on it is yellow, and red."""

    @property
    def description(self) -> str:
        return f"{self.about} Good: {self.good}"


def narrow(expression: str) -> str:
    """A query with the variables of the dashboard in each selector."""
    return re.sub(
        r"\b(coffee_rt_\w+|up)\{(.)",
        lambda match: f"{match[1]}{{{NARROWING}{'' if match[2] == '}' else ', '}{match[2]}",
        expression,
    )


def lines(look: Look, *queries: Query, columns: int = 8, rows: int = 8) -> timeseries.Panel:
    """Lines over time."""
    panel = (
        timeseries.Panel()
        .title(look.title)
        .description(look.description)
        .datasource(DATASOURCE)
        .span(columns)
        .height(rows)
        .unit(look.unit)
        .axis_soft_min(0)
        .line_width(1)
        .fill_opacity(8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
    )
    if look.limits != (None, None):
        panel.thresholds(_thresholds(look)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
        )
    if look.alert:
        panel.links([_runbook(look.alert)])
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        panel.with_target(_target(query, letter))
    return panel


def figure(look: Look, query: Query, columns: int = 4, rows: int = 4) -> stat.Panel:
    """The newest value, large, in the colour of its limits."""
    panel = (
        stat.Panel()
        .title(look.title)
        .description(look.description)
        .datasource(DATASOURCE)
        .span(columns)
        .height(rows)
        .unit(look.unit)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(look))
    )
    if look.alert:
        panel.links([_runbook(look.alert)])
    return panel.with_target(_target(query, "A"))


def empty_dashboard(uid: str, title: str, about: str) -> dashboard.Dashboard:
    """Without panels; with the variables that `narrow` relies on."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["coffee-rt"])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("namespace", "Namespace", "coffee_rt_ready_ratio"))
        .with_variable(
            _variable("release", "Release", 'coffee_rt_ready_ratio{namespace=~"$namespace"}')
        )
        .with_variable(
            _variable(
                "pod",
                "Pod",
                'coffee_rt_ready_ratio{namespace=~"$namespace", release=~"$release"}',
            )
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
            .multi(True)
        )
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(DashboardLinkType.LINK)
            .url(f"{RUNBOOKS_URL}/README.md")
            .target_blank(True)
        )
    )


def _variable(name: str, label: str, series: str) -> dashboard.QueryVariable:
    """Values of a label. One namespace and one release at a time: shards of two have the same numbers."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({series}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .ref_id(letter)
        .range()
        .datasource(DATASOURCE)
        .expr(narrow(query.expression))
        .legend_format(query.legend)
    )


def _thresholds(look: Look) -> dashboard.ThresholdsConfig:
    yellow, red = look.limits
    steps = [Threshold(value=None, color="green")]
    if yellow is not None:
        steps.append(Threshold(value=yellow, color="yellow"))
    if red is not None:
        steps.append(Threshold(value=red, color="red"))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _runbook(alert: str) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(f"Runbook: {alert}")
        .type(DashboardLinkType.LINK)
        .url(f"{RUNBOOKS_URL}/{alert}.md")
        .target_blank(True)
    )
