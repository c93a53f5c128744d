"""An application's latency without a pass, and beside a retention pass: as the agent comes, and as gentle as it can be."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Figures, percentile
from tests.benchmarks.world import FREE, Db, finished, insert, put_in_place
from tests.conftest import Database
from tests.harness import opened, server_now

REPOSITORY = Path(__file__).parents[2]
MOST_SECONDS = 45.0  # of each measurement, beside a pass from its first batch on: thousands of operations
LEAST_SECONDS = 10.0
PASSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beside a pass, default throttle": ({}, {}),
    "beside a pass, throttled (pace 4, batch 100)": ({"batch": 100}, {"pace": 4}),
}


async def test_application(database: Database, db: Db, size: int) -> None:
    figures = Figures("application", f"An application's p99 beside a pass over {size:,} tasks", size, "standalone")
    insert(db, "source", finished(size, server_now(db)))
    alone: list[float] = []
    async with _application(database, alone):
        await asyncio.sleep(max(LEAST_SECONDS, min(MOST_SECONDS, size / 10_000)))
    figures.figure("without a pass, p50", percentile(alone, 0.5), "ms")
    base = figures.figure("without a pass, p99", percentile(alone, 0.99), "ms", f"{len(alone):,} operations")
    p99 = base
    for name, (job, throttle) in PASSES.items():
        beside: list[float] = []
        put_in_place(db, "source")
        jobs = {"old": {"kind": "retention", **FREE, **job}}
        async with opened(database, db, jobs, throttle=throttle, log={"level": "warning"}) as bench:
            async with _application(database, beside):
                active = await bench.start("old", accept=frozenset({"cap"}))
                while not active.run.report.changed and not await active.wait(0.1):
                    pass  # the look, however long it takes; then the batches
                await active.wait(MOST_SECONDS)
                active.stop.set()
            await active.wait()
        deleted = active.record()["changed"].get("deleted", 0)
        figures.figure(f"{name}, p50", percentile(beside, 0.5), "ms")
        note = f"{len(beside):,} operations while {deleted:,} tasks were deleted"
        p99 = figures.figure(f"{name}, p99", percentile(beside, 0.99), "ms", note)
    figures.at_most("p99 beside a throttled pass, of that without", p99 / base, 1.25)
    figures.write()


@asynccontextmanager
async def _application(database: Database, latencies: list[float]) -> AsyncIterator[None]:
    """An application at work; afterwards ``latencies`` holds what it measured, in milliseconds."""
    words = [sys.executable, "-m", "tests.benchmarks.application", database.uri, database.name + "_app"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, cwd=REPOSITORY, stdin=pipe, stdout=pipe)
    try:
        await asyncio.sleep(1)  # it loads and makes its documents
        yield
    finally:
        told, _ = await process.communicate(b"")  # which ends its input
    latencies += json.loads(told)
