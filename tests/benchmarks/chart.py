"""Writes the table and the chart of docs/performance.md from the figures in build/bench.

python -m tests.benchmarks.chart
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from tests.benchmarks.figures import FOLDER, shown

mpl.use("svg")

from matplotlib import pyplot as plt

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "performance.md"
CHART: Final = DOCS / "performance.svg"
BEGIN: Final = "<!-- Written by `make bench` from here ... -->\n"
END: Final = "<!-- ... to here. -->\n"
# In the order of a pass. A benchmark that is not named here comes last.
ORDER: Final = (
    *("orphan_records_few", "orphan_records_many", "orphan_tasks", "orphan_tasks_growth", "stuck_tasks"),
    *("retention_standalone", "retention_replica_set"),
    *("audit_standalone", "audit_replica_set", "audit_own_sizes_standalone", "audit_own_sizes_replica_set"),
    *("ledger_standalone", "ledger_replica_set", "client_cache", "application", "agent"),
)
INK, GREEN, AMBER, GRID = "#1f2933", "#2f7d5b", "#b7791f", "#d9dee3"
Benchmark = Mapping[str, Any]


def main() -> None:
    """Reads, draws and writes."""
    benchmarks = read(FOLDER)
    if not benchmarks:
        raise SystemExit(f"there are no figures in {FOLDER}: make bench measures them")
    draw(benchmarks, CHART)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(page(benchmarks)) + "\n" + END + after, encoding="utf-8")
    print(f"{PAGE.name} and {CHART.name}: {len(benchmarks)} benchmarks")


def read(folder: Path) -> list[Benchmark]:
    """All figures, in the order of a pass, small sizes before large ones."""
    known = {name: number for number, name in enumerate(ORDER)}
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda one: (known.get(one["name"], len(known)), one["size"]))


def page(benchmarks: Sequence[Benchmark]) -> list[str]:
    """The part of the page that is written: goals, machine, every figure."""
    lines = ["| benchmark | goal | figure | | command |", "|---|---|---|---|---|"]
    for one in benchmarks:
        for goal in one["goals"]:
            wanted = f"{goal['sense']} {shown(goal['limit'], goal['unit'])}"
            figure = shown(goal["figure"], goal["unit"])
            met = "met" if goal["met"] else "**short**"
            lines.append(f"| {_title(one)} | {goal['goal']}: {wanted} | {figure} | {met} | {_command(one)} |")
    lines += ["", "![Goals and what was reached](performance.svg)", "", *_machines(benchmarks), ""]
    for one in benchmarks:
        lines += [f"### {one['title']}", "", f"`SIZE={one['size']}`, {one['database'].replace('_', ' ')}.", ""]
        lines += ["| | figure | a second | in terms of ours | |", "|---|---|---|---|---|"]
        for row in one["rows"]:
            rate = f"{row['rate']:,.0f}" if row["rate"] else ""
            ratio = shown(row["ratio"], "×") if row["ratio"] else ""
            lines.append(f"| {row['peer']} | {shown(row['figure'], row['unit'])} | {rate} | {ratio} | {row['note']} |")
        lines.append("")
    return lines


def _title(one: Benchmark) -> str:
    server = {"none": ""}.get(one["database"], f", {one['database'].replace('_', ' ')}")
    return f"{one['title']}{server}"


def _command(one: Benchmark) -> str:
    name = one["name"].split("_standalone")[0].split("_replica_set")[0]
    for ending in ("_few", "_many", "_own_sizes"):
        name = name.removesuffix(ending)
    return f'`make bench SIZE={one["size"]} PYTEST_ARGS="-k {name}"`'


def _machines(benchmarks: Sequence[Benchmark]) -> list[str]:
    """One line for each machine and set of versions, with the days and the load of the measurements."""
    said: dict[str, list[float]] = {}
    for one in benchmarks:
        machine, versions = one["machine"], one["versions"]
        words = ", ".join(f"{name} {value}" for name, value in versions.items())
        what = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; {words}"
        said.setdefault(what, []).append(machine["load"][0])
    return [
        f"Measured on {what}; load average {min(loads):.1f} to {max(loads):.1f} (the benchmark's own included)."
        for what, loads in said.items()
    ]


def draw(benchmarks: Sequence[Benchmark], path: Path) -> None:
    """One bar a goal: how far it was reached, 1 being the goal, more being better; on a logarithmic scale."""
    bars: list[tuple[str, float, bool]] = []
    for one in benchmarks:
        for goal in one["goals"]:
            share = goal["figure"] / goal["limit"] if goal["sense"] == "≥" else goal["limit"] / goal["figure"]
            bars.append((f"{one['name'].replace('_', ' ')}: {goal['goal']}", share, goal["met"]))
    plt.rcParams.update(
        {
            "svg.hashsalt": "performance",
            "svg.fonttype": "none",
            "font.size": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
        }
    )
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(bars) + 1), facecolor="white")
    names, shares, met = zip(*bars, strict=True)
    axes.barh(
        names, [share - 1 for share in shares], left=1, color=[GREEN if one else AMBER for one in met], height=0.6
    )
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("how far the goal was reached (1 = the goal, to the right is better)")
    axes.invert_yaxis()
    axes.tick_params(colors=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
