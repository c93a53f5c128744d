"""The throttle on a real server: batches that the server does not finish in time are made smaller; pauses are told."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import StoreSlowError
from agent.store import Collection, Write
from tests.conftest import Database
from tests.harness import DAY, Db, opened, picture, server_now
from tests.servers import both_topologies

FITS = 25  # documents that the server of the test changes in time
TASKS = 200


def finished(db: Db) -> None:
    ended = server_now(db) - 31 * DAY
    db["analysis_tasks"].insert_many(
        [{"_id": number, "status": "COMPLETED", "completed_at": ended} for number in range(TASKS)]
    )


@both_topologies
async def test_a_batch_that_is_too_slow_is_done_in_smaller_ones(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, nothing is counted twice, and the batches that follow begin small and grow."""
    finished(db)
    before = picture(db)
    sizes: list[int] = []
    write = Collection.write

    async def slow(self: Collection, writes: list[Write], **options: Any) -> int:
        size = sum(len(one.filter["$and"][0]["_id"]["$in"]) for one in writes)
        sizes.append(size)
        if size > FITS:
            raise StoreSlowError("operation exceeded time limit")
        return await write(self, writes, **options)

    monkeypatch.setattr(Collection, "write", slow)
    async with opened(database, db, {"old": {"kind": "retention", "batch": 100}}) as bench:
        ran = await bench.run("old", accept=frozenset({"cap"}))
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"deleted": TASKS}, 0)
        assert sum(size for size in sizes if size <= FITS) == TASKS
        assert sizes[:3] == [100, 50, 25]
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": TASKS}
    assert picture(db) == before


async def test_pauses_are_in_the_record_and_in_the_metric(database: Database, db: Db) -> None:
    """A pace of one pauses for as long as the batches took."""
    finished(db)
    async with opened(database, db, {"old": {"kind": "retention", "batch": 50}}, throttle={"pace": 1}) as bench:
        ran = await bench.run("old", accept=frozenset({"cap"}))
        metrics, _ = await bench.agent.metrics.render("text/plain", "")
    assert ran["changed"] == {"deleted": TASKS}
    assert 0 < ran["throttled"]["pace"] < ran["seconds"]
    line = 'maintenance_throttled_seconds_total{job_name="old",reason="pace"} '
    told = next(one for one in metrics.decode().splitlines() if one.startswith(line))
    assert float(told.removeprefix(line)) == pytest.approx(ran["throttled"]["pace"], abs=0.002)


async def test_a_look_rests_too_and_takes_bites_of_the_size_of_a_batch(database: Database, db: Db) -> None:
    """An application must not notice the walk over a million documents more than the batches that follow."""
    finished(db)
    throttled: dict[float, float] = {}
    for pace in (0, 1):
        jobs = {"old": {"kind": "retention", "batch": 100}}
        async with opened(database, db, jobs, throttle={"pace": pace}) as bench:
            db["system.profile"].drop()
            db.command("profile", 2)
            ran = await bench.dry("old", accept=frozenset({"cap"}))
            db.command("profile", 0)
        assert ran["found"] == {"expired": TASKS}
        throttled[pace] = ran["throttled"].get("pace", 0.0)
        seen = db["system.profile"].find({"ns": f"{db.name}.analysis_tasks", "op": {"$in": ["query", "getmore"]}})
        assert max(one["nreturned"] for one in seen) == 100
    assert throttled[0] == 0
    assert throttled[1] > 0
