"""What the dashboards are made of: the board with its rows, variables, links and annotations, and the panels on it.

The SDK makes the JSON of each piece; what it leaves out is set here: the ids of panels, what variables show first, the
options of annotations that only the Prometheus data source knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as models_common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as models_prometheus

Json = dict[str, Any]

TAG: Final = "maintenance-agent"
SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRAFANA: Final = models.DataSourceRef(type_val="grafana", uid="-- Grafana --")
EVERYWHERE: Final = 'cluster=~"$cluster", namespace=~"$namespace"'
OVERVIEW: Final = "maintenance-overview"
JOB: Final = "maintenance-job"
ALLOCATIONS: Final = "maintenance-allocations"
AGENT: Final = "maintenance-agent"
DASHBOARDS: Final = {OVERVIEW: "Overview", JOB: "Job", ALLOCATIONS: "Allocations", AGENT: "Agent"}
# A run is a rare event: counted in steps of five minutes it is one bar, not the same bar in many narrow steps.
EVENT_STEP: Final = "5m"

GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"
Steps = Sequence[tuple[float | None, str]]
NO_STEPS: Final[Steps] = ((None, BLUE),)
ABOVE_ZERO_IS_BAD: Final[Steps] = ((None, GREEN), (1, RED))
ZERO_IS_BAD: Final[Steps] = ((None, RED), (1, GREEN))


P = TypeVar("P", bargauge.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)
Panel = bargauge.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel


@dataclass(frozen=True)
class Query:
    """An expression, in which ``WHERE`` stands for the board's matchers, and what its series are called."""

    expr: str
    legend: str = ""
    instant: bool = False
    table: bool = False


@dataclass(frozen=True)
class About:
    """What every panel says of itself: its title, how to read it, its unit, and its width of 24."""

    title: str
    description: str
    unit: str
    width: int


# ------------------------------------------------------------------------------------------------------------ variables


def _all() -> models.VariableOption:
    return models.VariableOption(selected=True, text=["All"], value=["$__all"])


def data_source() -> Builder[models.VariableModel]:
    """The Prometheus that is asked."""
    current = models.VariableOption(selected=False, text="default", value="default")
    return builders.DatasourceVariable("datasource").label("Data source").type("prometheus").current(current)


def chosen(name: str, label: str, values: str, *, several: bool = True) -> Builder[models.VariableModel]:
    """A variable with the values of a label; ``values`` is the series and the label, as ``label_values`` takes them."""
    variable = (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": f"label_values({values})", "refId": f"variable-{name}", "qryType": 1})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    if not several:
        return variable.current(models.VariableOption(selected=False, text="", value=""))
    # `.*` also takes series without the label: outside of Kubernetes there is no namespace.
    return variable.multi(several).include_all(several).all_value(".*").current(_all())


def places() -> list[Builder[models.VariableModel]]:
    """The variables of every board."""
    within = 'maintenance_build_info{cluster=~"$cluster"}, namespace'
    return [
        data_source(),
        chosen("cluster", "Cluster", "maintenance_build_info, cluster"),
        chosen("namespace", "Namespace", within),
    ]


# ---------------------------------------------------------------------------------------------------------- annotations


def _built_in() -> Json:
    query = builders.AnnotationQuery().name("Annotations & Alerts").datasource(GRAFANA).type("dashboard")
    return _plain(query.enable(enable=True).hide(hide=True).icon_color("rgba(0, 211, 255, 1)").built_in(1).build())


def _annotation(name: str, color: str, expr: str, title: str, text: str, **more: bool | str) -> Json:
    query = builders.AnnotationQuery().name(name).datasource(SOURCE).icon_color(color).expr(expr)
    return {**_plain(query.build()), "titleFormat": title, "textFormat": text, **more}


def _annotations(matchers: str, *, runs: bool) -> list[Json]:
    last_run = f"max by (cluster, namespace, job_name) (maintenance_last_run_timestamp_seconds{{{matchers}}}) * 1000"
    firing = f'ALERTS{{alertstate="firing", alertname=~"Maintenance.+", {EVERYWHERE}}}'
    return [
        _built_in(),
        _annotation("Runs", BLUE, last_run, "Run", "{{job_name}} {{namespace}}", enable=runs, useValueForTime=True),
        _annotation(
            "Alerts",
            RED,
            f"max by (alertname, namespace, job_name, provider) ({firing})",
            "{{alertname}}",
            "{{job_name}}{{provider}} {{namespace}}",
            step="60s",
        ),
    ]


# --------------------------------------------------------------------------------------------------------------- panels


def steps(levels: Steps) -> builders.ThresholdsConfig:
    """Colours by value, the first for everything below the second."""
    config = builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return config.steps([models.Threshold(value=value, color=color) for value, color in levels])


def words(meanings: Mapping[str, tuple[str, str]]) -> list[models.ValueMapping]:
    """What values mean: their word and its colour."""
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(meanings.items())
    }
    return [models.ValueMap(options=options)]


YES_NO: Final = {"0": ("no", ORANGE), "1": ("yes", GREEN)}
UP_DOWN: Final = {"0": ("down", RED), "1": ("up", GREEN)}


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(models_common.LegendDisplayMode.LIST)
    return legend.placement(models_common.LegendPlacement.BOTTOM).show_legend(show_legend=True)


def _tooltip() -> common.VizTooltipOptions:
    return (
        common.VizTooltipOptions().mode(models_common.TooltipDisplayMode.MULTI).sort(models_common.SortOrder.DESCENDING)
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(values=False).fields("")


def lines(*, fill: int = 0, below_zero: bool = False) -> timeseries.Panel:
    """Values over time."""
    panel = timeseries.Panel().draw_style(models_common.GraphDrawStyle.LINE).line_width(1).fill_opacity(fill)
    panel = panel.show_points(models_common.VisibilityMode.AUTO).legend(_legend()).tooltip(_tooltip())
    return panel if below_zero else panel.axis_soft_min(0)


def bars() -> timeseries.Panel:
    """Events over time, one on top of the other."""
    stacking = common.StackingConfig().mode(models_common.StackingMode.NORMAL).group("A")
    panel = timeseries.Panel().draw_style(models_common.GraphDrawStyle.BARS).line_width(0).fill_opacity(80)
    return panel.stacking(stacking).interval(EVENT_STEP).legend(_legend()).tooltip(_tooltip()).axis_soft_min(0)


def number(levels: Steps = NO_STEPS, meanings: Mapping[str, tuple[str, str]] | None = None) -> stat.Panel:
    """One value of now."""
    panel = (
        stat.Panel().reduce_options(_last()).graph_mode(models_common.BigValueGraphMode.NONE).thresholds(steps(levels))
    )
    panel = panel.color_mode(models_common.BigValueColorMode.VALUE)
    return panel.mappings(words(meanings)) if meanings else panel


def gauges(levels: Steps, most: float | None = None) -> bargauge.Panel:
    """Values of now beside each other."""
    panel = bargauge.Panel().reduce_options(_last()).orientation(models_common.VizOrientation.HORIZONTAL).min(0)
    panel = panel.display_mode(models_common.BarGaugeDisplayMode.BASIC).thresholds(steps(levels))
    return panel.max(most) if most is not None else panel


def states(meanings: Mapping[str, tuple[str, str]]) -> statetimeline.Panel:
    """What was the case when."""
    panel = statetimeline.Panel().merge_values(merge_values=True).show_value(models_common.VisibilityMode.NEVER)
    return panel.row_height(0.8).fill_opacity(75).line_width(0).mappings(words(meanings)).legend(_legend())


@dataclass(frozen=True)
class Column:
    """A column of a table of jobs: its name, the expression by job, and how its values are shown."""

    name: str
    expr: str
    unit: str = "short"
    meanings: Mapping[str, tuple[str, str]] | None = None


def columns(key: Mapping[str, str], shown: Sequence[Column], link: str) -> tuple[table.Panel, list[Query]]:
    """A table with a row for each combination of the labels of ``key``; the last of these links to ``link``."""
    panel = table.Panel().show_header(show_header=True).filterable(filterable=False)
    by = list(key)
    queries = [Query(f"max by ({', '.join(by)}) ({column.expr})", instant=True, table=True) for column in shown]
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    names = {f"Value #{_ref(number)}": column.name for number, column in enumerate(shown)}
    order = {name: place for place, name in enumerate([*by, *names])}
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": {**key, **names}}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))
    for column in shown:
        properties = [models.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.meanings:
            properties.append(models.DynamicConfigValue(id_val="mappings", value=words(column.meanings)))
            coloured = {"type": "color-text"}
            properties.append(models.DynamicConfigValue(id_val="custom.cellOptions", value=coloured))
        panel = panel.override_by_name(column.name, properties)
    target = [{"title": "Its dashboard", "url": link}]
    return panel.override_by_name(key[by[-1]], [models.DynamicConfigValue(id_val="links", value=target)]), queries


# ---------------------------------------------------------------------------------------------------------------- board


class Board:
    """A dashboard that grows row by row; ``matchers`` stand in its expressions where they say ``WHERE``."""

    def __init__(self, uid: str, description: str, *, matchers: str = EVERYWHERE, runs: bool = False) -> None:
        self._matchers = matchers
        self._runs = runs
        self._uid = uid
        self._board = (
            builders.Dashboard(f"Maintenance Agent / {DASHBOARDS[uid]}")
            .uid(uid)
            .description(description)
            .tags([TAG])
            .readonly()
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time("now-24h", "now")
            .timezone("browser")
            .refresh("1m")
            .version(1)
        )
        for variable in places():
            self._board.with_variable(variable)
        for other, title in DASHBOARDS.items():
            if other != uid:
                self._board.link(_link(title, other))

    def variable(self, variable: Builder[models.VariableModel]) -> None:
        """Adds a variable to those of every board."""
        self._board.with_variable(variable)

    def row(self, title: str, height: int, *panels: Panel) -> None:
        """Adds a heading, and below it panels of this height, from left to right."""
        self._board.with_row(builders.Row(title))
        for panel in panels:
            self._board.with_panel(panel.height(height))

    def panel(self, panel: P, about: About, *queries: Query) -> P:
        """Completes a panel: what it says of itself, and what it asks."""
        panel = panel.title(about.title).description(about.description).unit(about.unit).span(about.width)
        panel = panel.datasource(SOURCE)
        for number, query in enumerate(queries):
            panel = panel.with_target(self._target(query, _ref(number)))
        return panel

    def _target(self, query: Query, ref: str) -> prometheus.Dataquery:
        expr = " ".join(query.expr.replace("WHERE", self._matchers).split())
        target = (
            prometheus.Dataquery().expr(expr).ref_id(ref).datasource(SOURCE).legend_format(query.legend or "__auto")
        )
        form = models_prometheus.PromQueryFormat
        target = target.format(form.TABLE if query.table else form.TIME_SERIES)
        return target.instant() if query.instant else target.range()

    def json(self) -> str:
        """The dashboard as it is committed."""
        made: Json = _plain(self._board.build())
        made["id"] = None
        made["annotations"] = {"list": _annotations(self._matchers if self._runs else EVERYWHERE, runs=self._runs)}
        for number, panel in enumerate(made["panels"], 1):
            panel["id"] = number
        return json.dumps(made, indent=2) + "\n"


def _ref(number: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]


def _link(title: str, uid: str) -> builders.DashboardLink:
    link = builders.DashboardLink(title).type(models.DashboardLinkType.LINK).url(f"/d/{uid}").icon("dashboard")
    return link.tooltip(f"Maintenance Agent / {title}").include_vars(include_vars=True).keep_time(keep_time=True)


def _plain(made: object) -> Json:
    """What the SDK made, as plain JSON."""
    plain: Json = json.loads(json.dumps(made, cls=JSONEncoder))
    return plain
