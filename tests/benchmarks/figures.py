"""Figures: what a benchmark measured, beside its goals, as a table for people and as JSON for the chart and the page.

A peer that would take too long at full size is measured on a sample and extrapolated linearly; its row says so.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from agent.app import agent_version
from agent.demo.mongod import locate

FOLDER: Final = Path(__file__).parents[2] / "build" / "bench"
PACKAGES: Final = ("pymongo", "motor", "aiohttp", "prometheus_client")
OURS: Final = "ours"


@dataclass(frozen=True, slots=True)
class Row:
    """One of the things compared: the seconds that it takes for ``count`` things, or any other figure."""

    peer: str
    figure: float
    unit: str = "s"
    count: int | None = None
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Things a second."""
        return self.count / self.figure if self.count and self.unit == "s" and self.figure else None


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, and what was reached: ``figure`` has to be at least or at most ``limit``."""

    goal: str
    figure: float
    limit: float
    sense: str
    unit: str = "×"

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.figure >= self.limit if self.sense == "≥" else self.figure <= self.limit


@dataclass
class Figures:
    """The figures of one benchmark; ``write`` says them."""

    name: str
    title: str
    size: int
    database: str
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def seconds(self, peer: str, seconds: float, count: int, note: str = "") -> float:
        """A peer that took so long for so many."""
        self.rows.append(Row(peer, seconds, "s", count, note))
        return seconds

    def sampled(self, peer: str, seconds: float, sample: int, count: int) -> float:
        """A peer that was measured on a sample; returns the seconds that it would take for all."""
        note = f"measured on {sample:,}, extrapolated" if sample < count else ""
        return self.seconds(peer, seconds * count / sample, count, note)

    def figure(self, what: str, value: float, unit: str, note: str = "") -> float:
        """A figure that is no time of a peer."""
        self.rows.append(Row(what, value, unit, note=note))
        return value

    def at_least(self, goal: str, figure: float, limit: float, unit: str = "×") -> None:
        """A goal that the figure has to reach."""
        self.goals.append(Goal(goal, figure, limit, "≥", unit))

    def at_most(self, goal: str, figure: float, limit: float, unit: str = "×") -> None:
        """A goal that the figure must not exceed."""
        self.goals.append(Goal(goal, figure, limit, "≤", unit))

    def write(self, folder: Path = FOLDER) -> None:
        """Prints the table, and leaves the JSON in ``build/bench``, beside those of other sizes."""
        print("\n" + "\n".join(self.lines()))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}-{self.size}.json"
        path.write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """The table."""
        lines = [f"{self.title} (SIZE={self.size:,}, {self.database})"]
        for row in self.rows:
            rate = f"{row.rate:>12,.0f} /s" if row.rate else " " * 15
            lines.append(f"  {row.peer:<44} {shown(row.figure, row.unit):>12} {rate}  {row.note}")
        for goal in self.goals:
            said = f"{goal.sense} {shown(goal.limit, goal.unit)}"
            reached = "met" if goal.met else "short"
            lines.append(f"  goal: {goal.goal:<38} {said:>12}   reached {shown(goal.figure, goal.unit)}: {reached}")
        return lines

    def document(self) -> dict[str, Any]:
        """All of it for machines: ratios are each row's figure in terms of the one of ours."""
        ours = next((row.figure for row in self.rows if row.peer.startswith(OURS) and row.unit == "s"), None)
        return {
            "name": self.name,
            "title": self.title,
            "size": self.size,
            "database": self.database,
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {"agent": agent_version(), "python": platform.python_version(), "mongod": mongod_version()}
            | {name: version(name) for name in PACKAGES},
            "rows": [
                asdict(row) | {"rate": row.rate, "ratio": row.figure / ours if ours and row.unit == "s" else None}
                for row in self.rows
            ],
            "goals": [asdict(goal) | {"met": goal.met} for goal in self.goals],
        }


def shown(figure: float, unit: str) -> str:
    """A figure with as many digits as mean something."""
    digits = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2 if abs(figure) >= 0.1 else 4
    return f"{figure:,.{digits}f} {unit}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory, and how busy all was with other things."""
    lines = _first("/proc/cpuinfo", lambda line: line.startswith("model name"))
    memory = _first("/proc/meminfo", lambda line: line.startswith("MemTotal"))
    return {
        "cpu": lines.partition(":")[2].strip() or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1) if memory else None,
        "load": [round(load, 1) for load in os.getloadavg()],
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }


def mongod_version() -> str:
    """The version of the server that is measured against."""
    said = subprocess.run([locate(), "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("\n")[0].removeprefix("db version v")


def _first(path: str, wanted: Callable[[str], bool]) -> str:
    try:
        with Path(path).open(encoding="utf-8") as lines:
            return next((line for line in lines if wanted(line)), "")
    except OSError:
        return ""
