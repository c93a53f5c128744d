"""Stuck tasks: a twentieth of SIZE tasks is running without a sign of life, and is failed by each of the peers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from tests.benchmarks.figures import Figures
from tests.benchmarks.world import MINUTE, TASKS, Db, Document, agent, finished, insert, put_in_place, ran, task, timing
from tests.conftest import Database
from tests.harness import HOUR, server_now

SAMPLE = 5000
STUCK = {"kind": "stuck_tasks"}


async def test_stuck_tasks(database: Database, db: Db, size: int) -> None:
    now = server_now(db)
    stuck = size // 20
    insert(db, "source", finished(size - stuck, now))
    insert(db, "source", _stuck(stuck, now))
    silent = {"status": "RUNNING", "started_at": {"$lt": now - HOUR}}
    end = {"$set": {"status": "FAILED", "error_message": "No sign of life", "completed_at": now}}
    figures = Figures("stuck_tasks", f"{stuck:,} stuck of {size:,} tasks", size, "standalone")
    async with agent(database, db, "stuck", STUCK):
        pass  # makes the indexes

    put_in_place(db, "source")
    with timing() as seconds:
        changed = db[TASKS].update_many(silent, end).modified_count
    floor = figures.seconds("one update_many (the floor)", seconds(), changed)

    put_in_place(db, "source")
    async with agent(database, db, "stuck", STUCK) as bench:
        ours = await ran(bench, "stuck")
    figures.seconds("ours, archive on", ours.seconds, ours.changed, ours.note)
    put_in_place(db, "source")
    async with agent(database, db, "stuck", STUCK, archive={"enabled": False}) as bench:
        without = await ran(bench, "stuck")
    figures.seconds("ours, archive off", without.seconds, without.changed, without.note)

    put_in_place(db, "source")
    sample = [one["_id"] for one in db[TASKS].find(silent, {"_id": 1}).limit(SAMPLE)]
    with timing() as seconds:
        for id in sample:
            db[TASKS].update_one({"_id": id, **silent}, end)
    each = figures.sampled("one update per task", seconds(), len(sample), stuck)

    assert ours.changed == without.changed == changed == stuck
    figures.at_most("times the floor", ours.seconds / floor, 2)
    figures.at_least("faster than one update per task", each / ours.seconds, 1)
    figures.at_most("loop lag, p99", max(ours.lag, without.lag), 20, "ms")
    figures.write()


def _stuck(count: int, now: dt.datetime) -> Iterator[Document]:
    for number in range(count):
        began = now - 3 * HOUR - number % 100 * MINUTE
        yield task(number, status="RUNNING", created_at=began, started_at=began)
