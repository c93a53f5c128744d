"""What the benchmarks say of their figures: in a table, as JSON, on the page and in the chart. Nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import chart
from tests.benchmarks.figures import Figures, percentile, shown

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def figures() -> Figures:
    """Two peers and two goals, of which one is missed."""
    made = Figures("retention_standalone", "Retention", 1000, "standalone")
    made.seconds("ours, archive on", 2.0, 1000)
    made.sampled("one delete per document", 1.5, 100, 1000)
    made.at_least("faster than one by one", 7.5, 5)
    made.at_most("loop lag, p99", 30, 20, "ms")
    return made


def test_a_sample_is_extrapolated_and_says_so(figures: Figures) -> None:
    row = figures.rows[1]
    assert (row.figure, row.count, row.note) == (15.0, 1000, "measured on 100, extrapolated")
    assert row.rate == pytest.approx(66.67, abs=0.01)


def test_goals_stand_beside_what_was_reached(figures: Figures) -> None:
    lines = [" ".join(line.split()) for line in figures.lines()]
    assert lines[3] == f"goal: faster than one by one ≥ 5.00 {TIMES} reached 7.50 {TIMES}: met"
    assert lines[4] == "goal: loop lag, p99 ≤ 20.0 ms reached 30.0 ms: short"


def test_the_json_has_ratios_machine_and_versions(figures: Figures, tmp_path: Path) -> None:
    figures.write(tmp_path)
    told = json.loads((tmp_path / "retention_standalone-1000.json").read_text())
    assert [row["ratio"] for row in told["rows"]] == [1.0, 7.5]
    assert [goal["met"] for goal in told["goals"]] == [True, False]
    assert {"cpu", "cores", "memory_gib", "load"} <= set(told["machine"])
    assert {"agent", "python", "mongod", "pymongo", "motor"} <= set(told["versions"])


def test_the_page_and_the_chart_are_written_from_the_json(figures: Figures, tmp_path: Path) -> None:
    figures.write(tmp_path)
    benchmarks = chart.read(tmp_path)
    lines = chart.page(benchmarks)
    command = '`make bench SIZE=1000 PYTEST_ARGS="-k retention"`'
    assert f"| Retention, standalone | loop lag, p99: ≤ 20.0 ms | 30.0 ms | **short** | {command} |" in lines
    assert f"| one delete per document | 15.0 s | 67 | 7.50 {TIMES} | measured on 100, extrapolated |" in lines
    chart.draw(benchmarks, tmp_path / "chart.svg")
    assert "loop lag" in (tmp_path / "chart.svg").read_text()


def test_the_page_has_room_for_them_and_holds_some() -> None:
    page = chart.PAGE.read_text(encoding="utf-8")
    written = page.partition(chart.BEGIN)[2].partition(chart.END)[0]
    assert "| benchmark | goal | figure | | command |" in written
    assert "Measured on " in written
    assert chart.CHART.is_file()


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert percentile([1.0], 0.99) == 1.0


@pytest.mark.parametrize(
    "figure, text", [(1234.5, "1,234 s"), (12.34, "12.3 s"), (1.234, "1.23 s"), (0.0123, "0.0123 s")]
)
def test_a_figure_has_as_many_digits_as_mean_something(figure: float, text: str) -> None:
    assert shown(figure, "s") == text
