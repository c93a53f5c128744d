"""Retention on a real server: both sides of the horizon, by status, the oldest first, and what has no end."""

from __future__ import annotations

import datetime as dt
from typing import Any

from bson import Int64, ObjectId, Timestamp

from agent.conditions import together
from agent.jobs.retention import Retention
from tests import servers
from tests.conftest import Database
from tests.harness import DAY, HOUR, MINUTE, Db, Document, meddled, opened, server_now

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
KEEP = 30 * DAY
MS = dt.timedelta(milliseconds=1)


def old(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"old": {"kind": "retention", **settings}}


async def selected(database: Database, db: Db, tasks: dict[str, Document], **settings: Any) -> dict[Any, str]:
    """Inserts tasks by name and returns what the rule says at noon."""
    db["analysis_tasks"].insert_many([{"_id": name, **task} for name, task in tasks.items()])
    async with opened(database, db, old(**settings), prepared=False) as bench:
        return await bench.selected("old", NOON)


async def test_a_finished_task_goes_past_the_horizon_and_not_at_it(database: Database, db: Db) -> None:
    """Whatever its ending; an active one stays for ever."""
    edges = {"young": KEEP - MINUTE, "at": KEEP, "just": KEEP + MS, "old": KEEP + MINUTE}
    tasks: dict[str, Document] = {
        f"{status}_{name}": {"status": status, "completed_at": NOON - span, "created_at": NOON - 99 * DAY}
        for status in ("COMPLETED", "FAILED", "CANCELLED", "PENDING", "RUNNING", "ARCHIVED")
        for name, span in edges.items()
    }
    found = await selected(database, db, tasks)
    expected = {f"{status}_{name}" for status in ("COMPLETED", "FAILED", "CANCELLED") for name in ("just", "old")}
    assert found == dict.fromkeys(expected, "deleted")


async def test_each_status_may_be_kept_its_own_time_and_one_for_ever(database: Database, db: Db) -> None:
    """A status that is not named stays, and is not reported either."""
    tasks: dict[str, Document] = {
        f"{status}_{days}": {"status": status, "completed_at": NOON - days * DAY - MS}
        for status in ("COMPLETED", "FAILED", "CANCELLED")
        for days in (0, 1, 7, 90, 400)
    }
    tasks |= {"COMPLETED_odd": {"status": "COMPLETED"}, "CANCELLED_odd": {"status": "CANCELLED"}}
    found = await selected(database, db, tasks, keep={"completed": "7d", "failed": "90d"})
    assert found == {
        **dict.fromkeys(["COMPLETED_7", "COMPLETED_90", "COMPLETED_400", "FAILED_90", "FAILED_400"], "deleted"),
        "COMPLETED_odd": "malformed",
    }


async def test_nothing_may_be_kept_at_all(database: Database, db: Db) -> None:
    """`keep: 0s` is what it says; a task that ended this instant waits for the next run."""
    tasks: dict[str, Document] = {
        "now": {"status": "COMPLETED", "completed_at": NOON},
        "before": {"status": "COMPLETED", "completed_at": NOON - MS},
        "later": {"status": "COMPLETED", "completed_at": NOON + HOUR},
    }
    assert await selected(database, db, tasks, keep="0s") == {"before": "deleted"}


async def test_without_a_field_of_the_end_the_creation_counts(database: Database, db: Db) -> None:
    """Where the application keeps none; where it does, its creation says nothing."""
    tasks: dict[str, Document] = {
        "old": {"status": "COMPLETED", "created_at": NOON - KEEP - MS},
        "young": {"status": "COMPLETED", "created_at": NOON - KEEP, "completed_at": NOON - 99 * DAY},
        "none": {"status": "COMPLETED", "completed_at": NOON - 99 * DAY},
    }
    assert await selected(database, db, tasks, fields={"completed_at": None}) == {"old": "deleted", "none": "malformed"}


async def test_a_finished_task_without_an_end_is_reported_and_stays(database: Database, db: Db) -> None:
    """Null, missing or of another type, an array of old dates among them; its creation does not stand in."""
    ancient = NOON - 999 * DAY
    odd: dict[str, Any] = {
        "null": None,
        "text": "2020-01-01",
        "number": Int64(1),
        "array": [ancient],
        "document": {"at": ancient},
        "timestamp": Timestamp(1, 1),
        "id": ObjectId.from_datetime(ancient),
        "bool": False,
    }
    tasks: dict[str, Document] = {
        name: {"status": "COMPLETED", "completed_at": value, "created_at": ancient} for name, value in odd.items()
    }
    tasks["missing"] = {"status": "FAILED", "created_at": ancient}
    tasks |= {
        "status_array": {"status": ["COMPLETED"], "completed_at": ancient},
        "status_case": {"status": "completed", "completed_at": ancient},
        "status_null": {"status": None, "completed_at": ancient},
    }
    assert await selected(database, db, tasks) == dict.fromkeys([*odd, "missing"], "malformed")


async def test_what_is_kept_is_not_looked_at_to_find_what_has_no_end(database: Database, db: Db) -> None:
    """A run costs what is past the horizon, not what the collection holds; an array is found by its first old entry."""
    kept = [{"_id": number, "status": "COMPLETED", "completed_at": NOON - number * HOUR} for number in range(500)]
    ends = {"empty": [], "mixed": ["2020", NOON], "old": [NOON, NOON - 99 * DAY], "young": [NOON]}
    odd = [{"_id": name, "status": "FAILED", "completed_at": end} for name, end in ends.items()]
    db["analysis_tasks"].insert_many(kept + odd)
    async with opened(database, db, old()) as bench:
        assert await bench.selected("old", NOON) == dict.fromkeys({*ends} - {"young"}, "malformed")
        job = bench.jobs["old"]
        assert isinstance(job, Retention)
        filter = together(*job._unfinished(NOON))
    query = {"find": "analysis_tasks", "filter": filter}
    explained = db.command("explain", query, verbosity="executionStats")
    assert explained["executionStats"]["totalDocsExamined"] < 20


async def test_the_oldest_come_first(database: Database, db: Db) -> None:
    """Across statuses, in the order of their ends."""
    statuses = ("COMPLETED", "FAILED", "CANCELLED")
    tasks = [
        {"_id": number, "status": statuses[number % 3], "completed_at": NOON - KEEP - (number * 37 % 100 + 1) * HOUR}
        for number in range(100)
    ]
    db["analysis_tasks"].insert_many(tasks)
    for prepared in (False, True):
        async with opened(database, db, old(), prepared=prepared) as bench:
            found = [item.id for item in await bench.items("old", NOON)]
        assert found == sorted(range(100), key=lambda number: -(number * 37 % 100))


def expired_by_age(db: Db) -> None:
    """Twenty-five tasks past their time, the oldest first."""
    now = server_now(db)
    db["analysis_tasks"].insert_many(
        [{"_id": number, "status": "COMPLETED", "completed_at": now - KEEP - (25 - number) * HOUR} for number in range(25)]
    )  # fmt: skip


@servers.both_topologies
async def test_more_than_the_limit_is_no_refusal_the_oldest_go_first(database: Database, db: Db) -> None:
    """The run says that it is not complete, and the next ones go on."""
    expired_by_age(db)
    async with opened(database, db, old(limit={"items": 10}, batch=4)) as bench:
        plan = await bench.dry("old")
        assert (plan["outcome"], plan["would_refuse"], plan["complete"]) == ("succeeded", None, False)
        assert [entry["id"] for entry in bench.entries(plan["_id"])] == list(range(10))
        left = []
        for complete in (False, False, True):
            record = await bench.run("old")
            assert (record["outcome"], record["complete"]) == ("succeeded", complete)
            left.append([task["_id"] for task in db["analysis_tasks"].find(sort=[("_id", 1)])])
    assert left == [list(range(10, 25)), list(range(20, 25)), []]


@servers.both_topologies
async def test_what_is_held_takes_no_place_of_those_that_may_go(database: Database, db: Db) -> None:
    """Of the oldest that are not held, as many go as a run takes; all that is held is told, and left out of the cap."""
    expired_by_age(db)
    db["analysis_tasks"].insert_many([{"_id": number, "status": "RUNNING"} for number in range(25, 42)])
    async with opened(database, db, old(limit={"items": 10, "fraction": 0.5, "floor": 0}, batch=4)) as bench:
        for held in (0, 2, 4, 20):
            await bench.agent.operations.hold(None, "analysis_tasks", str(held), requested_by="ann")
        plan = await bench.dry("old")
        assert [entry["id"] for entry in bench.entries(plan["_id"]) if not entry["held"]] == [1, 3, *range(5, 13)]
        for changed, found, complete in ((10, 25, False), (10, 15, False), (1, 5, True)):
            record = await bench.run("old")
            told = (record["changed"], record["found"], record["held"], record["complete"])
            assert told == ({"deleted": changed}, {"expired": found}, {"hold": 4}, complete)
    assert [task["_id"] for task in db["analysis_tasks"].find({"_id": {"$lt": 25}}, sort=[("_id", 1)])] == [0, 2, 4, 20]


async def test_half_of_all_tasks_is_too_many_however_the_limit_truncates(database: Database, db: Db) -> None:
    """A clock that is wrong makes everything old."""
    now = server_now(db)
    db["analysis_tasks"].insert_many(
        [{"_id": number, "status": "COMPLETED", "completed_at": now - KEEP - HOUR} for number in range(6)]
        + [{"_id": number, "status": "PENDING"} for number in range(6, 11)]
    )
    async with opened(database, db, old(limit={"items": 1, "floor": 5})) as bench:
        record = await bench.run("old")
        assert (record["outcome"], record["changed"], record["population"]) == ("refused", {}, 11)
        db["analysis_tasks"].insert_one({"_id": 11, "status": "RUNNING"})
        record = await bench.run("old")
        assert (record["outcome"], record["changed"], record["population"]) == ("succeeded", {"deleted": 1}, 12)


@servers.both_topologies
async def test_a_task_that_is_started_again_between_the_look_and_the_write_stays(database: Database, db: Db) -> None:
    """Neither its status nor its end is what it was."""
    now = server_now(db)
    tasks = [{"_id": number, "status": "FAILED", "completed_at": now - KEEP - HOUR, "x": "y"} for number in range(6)]
    db["analysis_tasks"].insert_many(tasks)

    def starts_again() -> None:
        db["analysis_tasks"].update_one({"_id": 2}, {"$set": {"status": "RUNNING"}})
        db["analysis_tasks"].update_one({"_id": 4}, {"$set": {"completed_at": now}})

    async with opened(database, db, old()) as bench:
        bench.use(meddled(bench.jobs["old"], after_select=starts_again))
        record = await bench.run("old")
    assert (record["found"], record["changed"], record["failed"]) == ({"expired": 6}, {"deleted": 4}, 0)
    left = list(db["analysis_tasks"].find(sort=[("_id", 1)]))
    assert left == [{**tasks[2], "status": "RUNNING"}, {**tasks[4], "completed_at": now}]


async def test_dotted_paths_and_lists_of_statuses_are_followed(database: Database, db: Db) -> None:
    """For the horizon, the order and the report alike; never into an array, which is a history or worse."""
    tasks: dict[str, Document] = {
        "a": {"state": {"is": "done", "at": NOON - KEEP - HOUR}},
        "b": {"state": {"is": "ok", "at": NOON - KEEP - 2 * HOUR}},
        "c": {"state": {"is": "done"}},
        "d": {"state": [{"is": "done", "at": NOON - 99 * DAY}]},
        "history": {"state": [{"is": "done", "at": NOON - 99 * DAY}, {"is": "busy", "at": NOON}]},
        "e": {"state": {"is": "busy", "at": NOON - 99 * DAY}},
    }
    maps = {
        "statuses": {"completed": ["done", "ok"], "running": "busy"},
        "fields": {"status": "state.is", "completed_at": "state.at"},
    }
    found = await selected(database, db, tasks, **maps)
    assert found == {"a": "deleted", "b": "deleted", "c": "malformed"}
