"""Draws a dashboard as Grafana would place it, from what Prometheus answered: for a person to look at, and not kept.

No likeness in colours and fonts is meant: what shows is which panel has which lines, bars and numbers, and which none.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.e2e.stack import Json, Series, Shown

CELL: Final = (0.75, 0.5)  # inches of one unit of the grid
WIDTH: Final = 24
LEGEND: Final = 6  # entries; more would cover what they describe
STEP_SECONDS: Final = 60.0
BYTES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
KIB: Final = 1024.0


def draw(board: Json, panels: Sequence[Shown], path: Path) -> None:
    """Writes the picture of a dashboard."""
    height = max(shown.panel["gridPos"]["y"] + shown.panel["gridPos"]["h"] for shown in panels)
    figure = Figure(figsize=(WIDTH * CELL[0], height * CELL[1]), dpi=70)
    figure.suptitle(board["title"], x=0.01, y=0.998, ha="left", fontsize=13)
    for shown in panels:
        _draw_panel(figure, shown, height)
    figure.savefig(path)


def _draw_panel(figure: Figure, shown: Shown, height: int) -> None:
    panel, place = shown.panel, shown.panel["gridPos"]
    left, top = place["x"] / WIDTH, 1 - place["y"] / height
    width, depth = place["w"] / WIDTH, place["h"] / height
    if panel["type"] == "row":
        figure.text(left + 0.005, top - depth * 0.7, panel["title"], fontsize=11, weight="bold")
        return
    axes = figure.add_axes((left + 0.03, top - depth + 0.25 * CELL[1] / height, width - 0.04, depth - 1.1 / height))
    axes.set_title(panel["title"], fontsize=8, loc="left")
    axes.tick_params(labelsize=6)
    named = [
        (_name(target, series), series)
        for target, answer in zip(panel["targets"], shown.answers, strict=True)
        for series in answer
    ]
    if not any(series.finite for _, series in named):
        axes.text(0.5, 0.5, "no data", ha="center", color="red", transform=axes.transAxes)
        axes.set_axis_off()
        return
    {
        "timeseries": _draw_lines,
        "stat": _draw_number,
        "bargauge": _draw_gauges,
        "table": _draw_table,
        "state-timeline": _draw_states,
    }[panel["type"]](axes, panel, named)


Named = Sequence[tuple[str, Series]]


def _draw_lines(axes: Axes, panel: Json, named: Named) -> None:
    now = time.time()
    stacked = panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars"
    below: dict[float, float] = {}
    for name, series in named:
        times = [round(at - now) for at, _ in series.samples]
        values = [value for _, value in series.samples]
        if stacked:
            axes.bar(times, values, bottom=[below.get(at, 0.0) for at in times], width=1.0, label=name)
            below |= {at: below.get(at, 0.0) + value for at, value in zip(times, values, strict=True)}
        else:
            axes.plot(times, values, linewidth=1, label=name)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.yaxis.set_major_formatter(lambda value, _: _said(value, unit))
    axes.margins(y=0.15)
    if len(named) <= LEGEND:
        axes.legend(fontsize=5, loc="upper left")
    else:
        axes.legend(axes.lines[:LEGEND] or axes.containers[:LEGEND], [name for name, _ in named[:LEGEND]], fontsize=5)


def _draw_number(axes: Axes, panel: Json, named: Named) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    texts = [_meant(panel["fieldConfig"]["defaults"], series.last, unit) for _, series in named]
    if panel["options"].get("textMode") == "name":
        texts = [name for name, _ in named]
    axes.text(0.5, 0.5, "\n".join(texts), ha="center", va="center", fontsize=14, transform=axes.transAxes)
    axes.set_axis_off()


def _draw_gauges(axes: Axes, panel: Json, named: Named) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    bars = axes.barh([name for name, _ in named], [series.last for _, series in named])
    axes.bar_label(bars, [_said(series.last, unit) for _, series in named], fontsize=6)
    axes.tick_params(axis="y", pad=-4, labelsize=6)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")


def _draw_table(axes: Axes, panel: Json, named: Named) -> None:
    columns: dict[str, Json] = {one["matcher"]["options"]: _defaults(one) for one in panel["fieldConfig"]["overrides"]}
    keys = [name for name in columns if not columns[name].get("unit")]
    values = [name for name in columns if name not in keys]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    each = iter(named)
    counts = [len([name for name, _ in named if name.startswith(f"{ref}:")]) for ref in "ABCDEFGHIJ"]
    for column, count in zip(values, counts, strict=False):
        for _ in range(count):
            _, series = next(each)
            key = tuple(sorted(series.labels.values()))
            rows.setdefault(key, {})[column] = _meant(columns[column], series.last, columns[column]["unit"])
    cells = [[" ".join(key), *(row.get(name, "") for name in values)] for key, row in sorted(rows.items())]
    made = axes.table(cellText=cells, colLabels=[" ".join(keys), *values], loc="center", cellLoc="left")
    made.auto_set_font_size(value=False)
    made.set_fontsize(6)
    axes.set_axis_off()


def _draw_states(axes: Axes, panel: Json, named: Named) -> None:
    now = time.time()
    colours = {"green": "tab:green", "red": "tab:red", "orange": "tab:orange", "transparent": "whitesmoke"}
    meanings = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for line, (_, series) in enumerate(named):
        for at, value in series.samples:
            axes.barh(line, 1.0, left=at - now, color=colours[meanings[f"{value:g}"]["color"]], height=0.8)
    axes.set_yticks(range(len(named)), [textwrap.shorten(name, 40) for name, _ in named], fontsize=5)
    axes.tick_params(axis="y", pad=-4)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")


# ---------------------------------------------------------------------------------------------------------------- words


def _name(target: Json, series: Series) -> str:
    if target["format"] == "table":
        return f"{target['refId']}: {series.labels}"
    if target["legendFormat"] == "__auto":
        return " ".join(series.labels.values())
    return re.sub(r"{{(\w+)}}", lambda found: series.labels.get(found[1], ""), target["legendFormat"]).strip()


def _defaults(override: Json) -> Json:
    return {one["id"]: one["value"] for one in override["properties"]}


def _meant(defaults: Json, value: float, unit: str) -> str:
    for mapping in defaults.get("mappings") or []:
        if f"{value:g}" in mapping["options"]:
            return str(mapping["options"][f"{value:g}"]["text"])
    return _said(value, unit)


def _said(value: float, unit: str) -> str:
    """A value with its unit, in short."""
    if unit == "dateTimeFromNow":
        return _duration(value / 1000 - time.time())
    if unit == "s":
        return _duration(value)
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "bytes":
        return _bytes(value)
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if abs(seconds) < STEP_SECONDS * 2:
        return f"{seconds:.3g} s"
    minutes = seconds / STEP_SECONDS
    return f"{minutes:.0f} min" if abs(minutes) < STEP_SECONDS * 2 else f"{minutes / STEP_SECONDS:.0f} h"


def _bytes(value: float) -> str:
    for name in BYTES:
        if abs(value) < KIB or name == BYTES[-1]:
            break
        value /= KIB
    return f"{value:.3g} {name}"


__all__: list[Any] = ["draw"]
