"""What a dashboard is made of, and how it becomes Grafana's JSON with grafana-foundation-sdk.

A board says what is asked and what it means; how it looks is decided here, once. No data source is named: each query
goes to the one that the reader chose.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog import builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
"""Columns of Grafana's grid."""
HEIGHT = 8
_OF_JOBS = "loradpo_operator_job_"


class View(enum.Enum):
    """How a panel shows its series."""

    LINES = enum.auto()
    STACKED = enum.auto()
    NUMBER = enum.auto()
    BARS = enum.auto()
    STATES = enum.auto()
    TABLE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and the legend of its series; a table has the legend as its column."""

    expression: str
    legend: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One question with its answer.

    Attributes:
        unit: Grafana's id of the unit.
        base: the colour below every threshold.
        thresholds: from which value on which colour; each is drawn as a line where there is an axis.
        width: columns of 24.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    base: str = "green"
    thresholds: tuple[tuple[float, str], ...]
    view: View = View.LINES
    width: int = 8
    low: float | None = None
    high: float | None = None
    decimals: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """A choice of the reader's: values of a label."""

    name: str
    label: str
    query: str


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """An annotation: a moment at which an expression has a value."""

    name: str
    expression: str
    colour: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...] = ()
    since: str = "now-6h"
    refresh: str = "30s"


def to_json(board: Board) -> str:
    """The dashboard as a file."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["lora-dpo-operator"])
        .time(board.since, "now")
        .refresh(board.refresh)
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("LoRA-DPO")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["lora-dpo-operator"])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(True)
        )
    )
    for variable in board.variables:
        made.with_variable(_variable(variable))
    for mark in board.marks:
        made.annotation(
            dashboard.AnnotationQuery()
            .name(mark.name)
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(mark.colour)
            .expr(mark.expression)
        )
    for row in board.rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made.with_panel(_panel(panel))
    found: dict[str, Any] = json.loads(JSONEncoder().encode(made.build()))
    _complete(found, board)
    return _written(found)


def for_google(text: str) -> str:
    """The same dashboard for Google Cloud Managed Service for Prometheus.

    It keeps the label namespace for the scraped pod, so that the operator's series about jobs name the job's namespace
    exported_namespace. No expression asks for both those series and the trainer's.
    """
    found: dict[str, Any] = json.loads(text)
    asked: list[dict[str, Any]] = [*found.get("annotations", {}).get("list", ())]
    for panel in found["panels"]:
        asked += (targets := panel.get("targets", []))
        if all(_OF_JOBS in target["expr"] for target in targets):
            for transformation in panel.get("transformations", ()):
                order = transformation["options"].get("indexByName", {})
                transformation["options"] |= {"indexByName": {_exported(name): place for name, place in order.items()}}
    asked += [variable["query"] for variable in found["templating"]["list"] if variable["type"] == "query"]
    for question in asked:
        if _OF_JOBS in question.get("expr", question.get("query", "")):
            texts = {key: question[key] for key in ("expr", "query", "legendFormat", "textFormat") if key in question}
            question |= {key: _exported(text) for key, text in texts.items()}
    return _written(found)


def expressions(board: Board) -> Iterator[tuple[str, str]]:
    """Everything that the dashboard asks of Prometheus, with where it stands."""
    for row in board.rows:
        for panel in row.panels:
            yield from ((panel.title, query.expression) for query in panel.queries)
    yield from ((mark.name, mark.expression) for mark in board.marks)
    for variable in board.variables:
        yield variable.name, variable.query.removeprefix("label_values(").rpartition(", ")[0]


def filled(expression: str, **values: str) -> str:
    """The expression as Grafana sends it: with the reader's choices, for a range of an hour."""
    values = {"namespace": ".*", "job": ".*", "__range": "1h", "__rate_interval": "1m", "__interval": "15s"} | values
    for name in sorted(values, key=len, reverse=True):
        expression = expression.replace(f"${name}", values[name])
    return expression


def _written(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _exported(text: str) -> str:
    """With the label namespace under its other name; the reader's choice `$namespace` stays."""
    return re.sub(r"(?<![$\w])namespace\b", "exported_namespace", text)


def _complete(found: dict[str, Any], board: Board) -> None:
    """What the SDK's models have no field or builder for."""
    texts = {mark.name: mark.text for mark in board.marks}
    for annotation in found.get("annotations", {}).get("list", ()):
        if annotation["name"] in texts:
            annotation |= {"titleFormat": annotation["name"], "textFormat": texts[annotation["name"]], "step": "60s"}
    for number, panel in enumerate(found["panels"], start=1):
        panel["id"] = number


def _variable(variable: Variable) -> builder.Builder[models.VariableModel]:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(DATASOURCE)
        .query({"query": variable.query, "refId": variable.name, "qryType": 1})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel) -> builder.Builder[models.Panel]:
    made = _VIEWS[panel.view](panel)
    made.title(panel.title).description(panel.description).unit(panel.unit).datasource(DATASOURCE)
    made.height(HEIGHT).span(panel.width)
    steps = [models.Threshold(value=None, color=panel.base)]
    steps += [models.Threshold(value=value, color=colour) for value, colour in panel.thresholds]
    made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.low is not None:
        made.min(panel.low)
    if panel.high is not None:
        made.max(panel.high)
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    for index, query in enumerate(panel.queries):
        made.with_target(_target(query, chr(ord("A") + index), panel.view))
    done: builder.Builder[models.Panel] = made
    return done


def _target(query: Query, ref: str, view: View) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expression).ref_id(ref).datasource(DATASOURCE)
    made.editor_mode(prometheus_models.QueryEditorMode.CODE)
    if view is View.TABLE:
        return made.instant().format(prometheus_models.PromQueryFormat.TABLE)
    made.legend_format(query.legend)
    return made.instant() if view in (View.NUMBER, View.BARS) else made.range()


def _lines(panel: Panel) -> Any:
    style = common_models.GraphThresholdsStyleMode.DASHED
    made = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(0)
        .show_points(common_models.VisibilityMode.AUTO)
        .span_nulls(False)
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull"])
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    )
    if panel.view is View.STACKED:
        stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
        made.stacking(stacking).fill_opacity(30)
    return made


def _number(_: Panel) -> Any:
    return (
        stat.Panel()
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .reduce_options(_last())
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _bars(_: Panel) -> Any:
    return (
        bargauge.Panel()
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .reduce_options(_last())
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _states(_: Panel) -> Any:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .show_value(common_models.VisibilityMode.NEVER)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _table(panel: Panel) -> Any:
    """One row a job, one column a query."""
    values = [f"Value #{chr(ord('A') + index)}" for index in range(len(panel.queries))]
    names = dict(zip(values, (query.legend for query in panel.queries), strict=True))
    order = {name: index for index, name in enumerate(("namespace", "name", *values))}
    return (
        table.Panel()
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names},
            )
        )
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


_VIEWS: dict[View, Callable[[Panel], Any]] = {
    View.LINES: _lines,
    View.STACKED: _lines,
    View.NUMBER: _number,
    View.BARS: _bars,
    View.STATES: _states,
    View.TABLE: _table,
}
