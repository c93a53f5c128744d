"""Orphan tasks: a tenth of SIZE tasks is active, two in a hundred of these have lost their target."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator, Mapping

from tests.benchmarks.figures import Figures
from tests.benchmarks.world import MINUTE, TASKS, Db, Document, Ran, agent, finished, insert, ran, task, timing
from tests.conftest import Database
from tests.harness import server_now

SAMPLE = 5000
FEW = 1000  # active tasks where their number does not grow with the collection
RECORDS = "generated_applications"
ORPHANS = {"kind": "orphan_tasks"}
TRIES = 3  # of what is quick: the best counts
ACTIVE: Mapping[str, object] = {"status": {"$in": ["PENDING", "RUNNING"]}}
LOOKUP = {
    "from": RECORDS,
    "let": {"model": "$target_model", "number": "$target_app_number"},
    "pipeline": [
        {"$match": {"$expr": {"$and": [{"$eq": ["$model_slug", "$$model"]}, {"$eq": ["$app_number", "$$number"]}]}}},
        {"$project": {"_id": 1}},
    ],
    "as": "found",
}


async def test_orphan_tasks(database: Database, db: Db, size: int) -> None:
    now = server_now(db)
    active = size // 10
    _records(db, now)
    insert(db, TASKS, finished(size - active, now))
    insert(db, TASKS, _active(active, now))
    figures = Figures("orphan_tasks", f"Orphans of {active:,} active among {size:,} tasks", size, "standalone")
    async with agent(database, db, "orphans", ORPHANS) as bench:
        found = _best([await ran(bench, "orphans", dry_run=True) for _ in range(TRIES)])
    figures.seconds("ours, finding them", found.seconds, active)

    by_target = "status_1_target_model_1_target_app_number_1"
    floor = min(_covered_scan(db, by_target) for _ in range(TRIES))
    figures.seconds("a covered index scan (the floor)", floor, active)
    with timing() as seconds:
        list(db[TASKS].aggregate([{"$match": ACTIVE}, {"$lookup": LOOKUP}, {"$match": {"found": []}}, {"$count": "n"}]))
    lookup = figures.seconds("$lookup per task", seconds(), active)
    each = figures.sampled("a look-up per task", _one_by_one(db), min(SAMPLE, active), active)

    async with agent(database, db, "orphans", ORPHANS) as bench:
        done = await ran(bench, "orphans")
    figures.seconds("ours, cancelling them", done.seconds, done.changed)
    assert done.changed == found.record["found"]["orphan"]
    figures.at_least("faster than a look-up per task", each / found.seconds, 200)
    figures.at_least("faster than $lookup", lookup / found.seconds, 40)
    figures.at_most("times the floor", found.seconds / floor, 4)
    figures.at_most("loop lag, p99", max(found.lag, done.lag), 20, "ms")
    figures.write()


async def test_orphan_tasks_growth(database: Database, db: Db, size: int) -> None:
    """The active tasks stay as many while the finished ones become ten times as many (SIZE=10000000: 1M, 10M)."""
    now = server_now(db)
    _records(db, now)
    insert(db, TASKS, _active(FEW, now))
    small = size // 10
    figures = Figures("orphan_tasks_growth", f"Orphans of {FEW:,} active tasks as the others grow", size, "standalone")
    seconds = {}
    async with agent(database, db, "orphans", ORPHANS) as bench:
        for count, more in ((small, small - FEW), (size, size - small)):
            insert(db, TASKS, finished(more, now))
            best = _best([await ran(bench, "orphans", dry_run=True) for _ in range(2 * TRIES)])
            seconds[count] = figures.seconds(f"ours, among {count:,}", best.seconds, FEW)
    figures.at_most("ten times as many tasks take so much longer", seconds[size] / seconds[small], 1.2)
    figures.write()


def _best(runs: list[Ran]) -> Ran:
    return min(runs, key=lambda one: one.seconds)


def _records(db: Db, now: dt.datetime) -> None:
    insert(
        db,
        RECORDS,
        ({"model_slug": f"model-{n % 500}", "app_number": n // 500, "created_at": now} for n in range(10_000)),
    )


def _active(count: int, now: dt.datetime) -> Iterator[Document]:
    chance = random.Random(2)
    for number in range(count):
        lost = {"target_model": f"gone-{number % 300}", "target_app_number": number % 7} if number % 50 == 0 else {}
        yield task(
            chance.randrange(10_000),
            status=chance.choice(["PENDING", "RUNNING"]),
            created_at=now - 30 * MINUTE,
            started_at=now - 20 * MINUTE,
            **lost,
        )


def _covered_scan(db: Db, index: str) -> float:
    fields = {"_id": 0, "target_model": 1}
    with timing() as seconds:
        list(db[TASKS].aggregate([{"$match": ACTIVE}, {"$project": fields}, {"$count": "n"}], hint=index))
    return seconds()


def _one_by_one(db: Db) -> float:
    """What the old service did."""
    with timing() as seconds:
        for one in db[TASKS].find(ACTIVE).limit(SAMPLE):
            target = {"model_slug": one["target_model"], "app_number": one["target_app_number"]}
            db[RECORDS].find_one(target, {"_id": 1})
    return seconds()
