"""How runs come along, on a terminal; elsewhere the log has a line for each run that ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from agent.cli.output import counts

POLL_SECONDS: Final = 0.2
QUICK_SECONDS: Final = 0.5  # what ends sooner needs no bar

Json = dict[str, Any]


class Watched(Protocol):
    """Runs that are going on."""

    def records(self) -> list[Json]:
        """The runs as they are now."""

    async def wait(self, seconds: float) -> bool:
        """Waits for the end, that long at most; says whether it came."""


async def watch(started: Watched) -> None:
    """Waits for the end, and shows on a terminal how it comes along."""
    if not sys.stderr.isatty():
        while not await started.wait(3600):
            pass
    elif not await started.wait(QUICK_SECONDS):
        await _show(started)


async def _show(started: Watched) -> None:
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        while True:
            records = started.records()
            ended = sum(record["outcome"] is not None for record in records)
            bar.update(task, total=len(records), completed=ended, description=_described(records))
            if await started.wait(POLL_SECONDS):
                return


def _described(records: Sequence[Json]) -> str:
    """The run that is going on, and its numbers so far."""
    for record in records:
        if record["outcome"] is None and record["started_at"] is not None:
            found, changed = counts(record["found"]), counts(record["changed"])
            return f"{record['job']}: found {found}, changed {changed}"
    return "waiting"
