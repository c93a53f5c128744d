"""Retention: SIZE finished tasks, all of them expired, deleted by each of the peers."""

from __future__ import annotations

import time

import pymongo

from tests.benchmarks.figures import Figures
from tests.benchmarks.world import TASKS, Db, Ran, agent, finished, insert, put_in_place, ran, timing
from tests.conftest import Database
from tests.harness import DAY, server_now
from tests.servers import both_topologies

SAMPLE = 5000  # documents of the peer that deletes one by one
RETENTION = {"kind": "retention", "keep": "30d"}


@both_topologies
async def test_retention(database: Database, db: Db, size: int, topology: str) -> None:
    now = server_now(db)
    expired = {"status": "COMPLETED", "completed_at": {"$lt": now - 30 * DAY}}
    insert(db, "source", finished(size, now))
    figures = Figures(f"retention_{topology}", f"Retention of {size:,} tasks", size, topology)
    async with agent(database, db, "old", RETENTION):
        pass  # makes the indexes

    put_in_place(db, "source")
    with timing() as seconds:
        deleted = db[TASKS].delete_many(expired).deleted_count
    floor = figures.seconds("one delete_many (the floor)", seconds(), deleted)

    with_archive = await _ours(database, db, enabled=True)
    without = await _ours(database, db, enabled=False)
    figures.seconds("ours, archive on", with_archive.seconds, with_archive.changed, with_archive.note)
    figures.seconds("ours, archive off", without.seconds, without.changed, without.note)

    put_in_place(db, "source")
    ids = [one["_id"] for one in db[TASKS].find({}, {"_id": 1}).limit(min(SAMPLE, size))]
    with timing() as seconds:
        for id in ids:
            db[TASKS].delete_one({"_id": id, **expired})
    figures.sampled("one delete per document", seconds(), len(ids), size)

    ttl = figures.seconds("MongoDB's TTL index (looks every second)", _ttl(db), size)
    figures.at_least("archive off, of one delete_many", floor / without.seconds, 0.8)
    figures.at_least("archive off, faster than the TTL index", ttl / without.seconds, 1.0)
    figures.at_least("archive on, of one delete_many", floor / with_archive.seconds, 0.6)
    figures.at_most("loop lag, p99", max(with_archive.lag, without.lag), 20, "ms")
    figures.write()


async def _ours(database: Database, db: Db, *, enabled: bool) -> Ran:
    put_in_place(db, "source")
    async with agent(database, db, "old", RETENTION, archive={"enabled": enabled, "max_size": "100GiB"}) as bench:
        done = await ran(bench, "old")
    assert db[TASKS].estimated_document_count() == 0
    db["maintenance_items"].delete_many({})
    return done


def _ttl(db: Db) -> float:
    """The seconds from the moment that the server may begin until the collection is empty."""
    put_in_place(db, "source")
    db.client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
    db[TASKS].create_index([("completed_at", pymongo.ASCENDING)], expireAfterSeconds=30 * 86400, name="ttl")
    with timing() as seconds:
        db.client.admin.command("setParameter", 1, ttlMonitorEnabled=True)
        while db[TASKS].find_one({}, {"_id": 1}) is not None:
            time.sleep(0.1)
    return seconds()
