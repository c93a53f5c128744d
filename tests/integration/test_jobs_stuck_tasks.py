"""Stuck tasks on a real server: both sides of every limit, every sign of life, every odd value."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from tests import servers
from tests.conftest import Database
from tests.harness import DAY, HOUR, MINUTE, Db, Document, meddled, opened, server_now

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
MS = dt.timedelta(milliseconds=1)
LIMIT = HOUR


def stuck(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"stuck": {"kind": "stuck_tasks", **settings}}


async def selected(database: Database, db: Db, tasks: dict[str, Document], **settings: Any) -> dict[Any, str]:
    """Inserts tasks by name and returns what the rule says at noon."""
    db["analysis_tasks"].insert_many([{"_id": name, **task} for name, task in tasks.items()])
    async with opened(database, db, stuck(**settings), prepared=False) as bench:
        return await bench.selected("stuck", NOON)


def ago(span: dt.timedelta) -> dt.datetime:
    return NOON - span


HEARTBEAT = {"fields": {"heartbeat_at": "beat"}}


async def test_a_running_task_is_stuck_past_its_limit_and_not_at_it(database: Database, db: Db) -> None:
    """By its heartbeat where it has one, else by its start, else by its creation."""
    edges = {"young": LIMIT - MINUTE, "at": LIMIT, "just": LIMIT + MS, "old": LIMIT + MINUTE}
    never = {"beat": None, "started_at": None, "created_at": ago(9 * DAY)}
    tasks: dict[str, Document] = {}
    for name, span in edges.items():
        tasks |= {
            f"beat_{name}": {"beat": ago(span), "started_at": ago(9 * DAY), "created_at": ago(9 * DAY)},
            f"start_{name}": {"started_at": ago(span), "created_at": ago(9 * DAY)},
            f"start_null_beat_{name}": {**never, "started_at": ago(span)},
            f"created_{name}": {"created_at": ago(span)},
            f"created_nulls_{name}": {**never, "created_at": ago(span)},
        }
    running = {name: {"status": "RUNNING", **task} for name, task in tasks.items()}
    found = await selected(database, db, running, **HEARTBEAT)
    assert found == {name: "failed" for name in tasks if name.endswith(("just", "old"))}


async def test_a_pending_task_is_stuck_past_its_limit_by_its_creation_alone(database: Database, db: Db) -> None:
    """A start or a heartbeat says nothing of a task that waits."""
    tasks = {
        "young": {"created_at": ago(LIMIT - MINUTE), "started_at": ago(9 * DAY)},
        "at": {"created_at": ago(LIMIT)},
        "just": {"created_at": ago(LIMIT + MS), "started_at": NOON},
        "old": {"created_at": ago(LIMIT + MINUTE)},
    }
    found = await selected(database, db, {name: {"status": "PENDING", **task} for name, task in tasks.items()})
    assert found == {"just": "cancelled", "old": "cancelled"}


async def test_each_of_the_two_limits_is_its_own(database: Database, db: Db) -> None:
    """And a task that is neither pending nor running is nobody's."""
    task = {"created_at": ago(45 * MINUTE), "started_at": ago(45 * MINUTE)}
    tasks: dict[str, Document] = {
        status: {**task, "status": status} for status in ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "X")
    }
    found = await selected(database, db, tasks, timeout="30m", pending_timeout="1h")
    assert found == {"RUNNING": "failed"}


async def test_limits_may_differ_by_type_and_a_type_may_be_left_alone(database: Database, db: Db) -> None:
    """What a type does not say is as for all; a task without a type is like any other."""
    limits = {"long": {"timeout": "5h"}, "quick": {"timeout": "1m", "pending_timeout": "2m"}}
    kinds: dict[str, Any] = {
        "long": "long",
        "quick": "quick",
        "other": "other",
        "none": None,
        "number": 7,
        "pet": "pet",
    }
    tasks: dict[str, Document] = {}
    for name, kind in kinds.items():
        for status in ("RUNNING", "PENDING"):
            for age in (5 * MINUTE, 2 * HOUR, 6 * HOUR):
                at = ago(age)
                tasks[f"{name}_{status}_{age // MINUTE}"] = {
                    "status": status,
                    "info": {"type": kind},
                    "started_at": at,
                    "created_at": at,
                }
    tasks["missing_RUNNING_120"] = {"status": "RUNNING", "started_at": ago(2 * HOUR), "created_at": ago(2 * HOUR)}
    found = await selected(database, db, tasks, types=limits, never=["pet"], fields={"type": "info.type"})
    expected = {f"{name}_{status}_{minutes}": action for name in ("quick", "other", "none", "number", "long")
                for status, action in (("RUNNING", "failed"), ("PENDING", "cancelled"))
                for minutes in (5, 120, 360)
                if minutes >= {"quick": 5, "long": 360 if status == "RUNNING" else 120}.get(name, 120)}  # fmt: skip
    assert found == {**expected, "missing_RUNNING_120": "failed"}


ODD: dict[str, Any] = {
    "text": "2026-03-01T10:00:00Z",
    "number": 1.7e9,
    "long": Int64(1_700_000_000),
    "decimal": Decimal128("1"),
    "bool": True,
    "array_of_old_dates": [NOON - 9 * DAY],
    "empty_array": [],
    "document": {"at": NOON - 9 * DAY},
    "timestamp": Timestamp(1, 1),
    "id": ObjectId.from_datetime(NOON - 9 * DAY),
    "regex": Regex("x"),
    "bytes": b"x",
    "min": MinKey(),
    "max": MaxKey(),
}


async def test_a_sign_of_life_that_is_no_date_is_reported_and_never_acted_on(database: Database, db: Db) -> None:
    """Not even where a later sign would be old enough, or where the value is an array of old dates."""
    old = ago(9 * DAY)
    tasks: dict[str, Document] = {}
    for name, value in ODD.items():
        tasks |= {
            f"beat_{name}": {"status": "RUNNING", "beat": value, "started_at": old, "created_at": old},
            f"start_{name}": {"status": "RUNNING", "started_at": value, "created_at": old},
            f"created_{name}": {"status": "RUNNING", "created_at": value},
            f"pending_{name}": {"status": "PENDING", "created_at": value, "started_at": old},
        }
    tasks |= {
        "running_without": {"status": "RUNNING"},
        "running_nulls": {"status": "RUNNING", "beat": None, "started_at": None, "created_at": None},
        "pending_without": {"status": "PENDING"},
        "pending_null": {"status": "PENDING", "created_at": None, "started_at": old},
    }
    fine: dict[str, dict[str, Any]] = {
        "odd_but_fresh_before": {"status": "RUNNING", "beat": NOON, "started_at": "x", "created_at": "y"},
        "odd_but_finished": {"status": "COMPLETED", "created_at": "x"},
    }
    found = await selected(database, db, {**tasks, **fine}, **HEARTBEAT)
    assert found == dict.fromkeys(tasks, "malformed")


async def test_dates_that_only_bson_can_say_are_dates(database: Database, db: Db) -> None:
    """The year 1 and the year 300,000 compare as they should."""
    db["analysis_tasks"].insert_many([{"_id": "past", "status": "RUNNING"}, {"_id": "future", "status": "RUNNING"}])
    for name, milliseconds in (("past", -(2**60)), ("future", 2**53)):
        update = [{"$set": {"started_at": {"$toDate": Int64(milliseconds)}}}]
        db["analysis_tasks"].update_one({"_id": name}, update)
    async with opened(database, db, stuck()) as bench:
        assert await bench.selected("stuck", NOON) == {"past": "failed"}
        record = await bench.run("stuck")
        assert (record["outcome"], record["changed"]) == ("succeeded", {"failed": 1})


async def test_statuses_may_be_lists_and_fields_dotted_paths(database: Database, db: Db) -> None:
    """The first status of a list is written, and what lies around the fields stays."""
    old = server_now(db) - 9 * DAY
    tasks = [
        {"_id": 1, "state": {"is": "busy", "by": "w1"}, "times": {"made": old, "begun": old}, "z": 1},
        {"_id": 2, "state": {"is": "working"}, "times": {"made": old}},
        {"_id": 3, "state": {"is": "new"}, "times": {"made": old}},
        {"_id": 4, "state": {"is": ["busy"]}, "times": {"made": old}},
        {"_id": 5, "state": {"is": "BUSY"}, "times": {"made": old}},
        {"_id": 6, "state": "busy", "times": {"made": old}},
    ]
    db["jobs"].insert_many(tasks)
    maps = {
        "statuses": {
            "pending": "new",
            "running": ["busy", "working"],
            "failed": ["broken", "dead"],
            "cancelled": "off",
        },
        "fields": {
            "status": "state.is",
            "created_at": "times.made",
            "started_at": "times.begun",
            "completed_at": "times.ended",
            "error_message": "result.error.text",
        },
    }
    async with opened(database, db, stuck(collection="jobs", messages={"failed": "dead"}, **maps)) as bench:
        record = await bench.run("stuck")
        assert record["changed"] == {"failed": 2, "cancelled": 1}
        ended = record["started_at"]
    found = list(db["jobs"].find(sort=[("_id", 1)]))
    assert found[0] == {
        "_id": 1,
        "state": {"is": "broken", "by": "w1"},
        "times": {"made": old, "begun": old, "ended": ended},
        "z": 1,
        "result": {"error": {"text": "dead"}},
    }
    assert found[1]["state"]["is"] == "broken"
    assert found[2]["state"]["is"] == "off"
    assert found[3:] == tasks[3:]


async def test_a_date_inside_an_array_is_no_sign_of_life(database: Database, db: Db) -> None:
    """A list of attempts is no time; the task is reported, whatever the entries say."""
    attempts = [{"at": ago(9 * DAY)}, {"at": NOON}]
    tasks: dict[str, Document] = {
        "running": {"status": "RUNNING", "beat": attempts, "made": {"at": ago(9 * DAY)}},
        "pending": {"status": "PENDING", "made": attempts},
        "neither": {"status": "RUNNING", "beat": {"at": None}, "made": attempts},
        "plain": {"status": "RUNNING", "beat": {"at": ago(9 * DAY)}, "made": attempts},
    }
    fields = {"heartbeat_at": "beat.at", "started_at": None, "created_at": "made.at"}
    found = await selected(database, db, tasks, fields=fields)
    assert found == {**dict.fromkeys(["running", "pending", "neither"], "malformed"), "plain": "failed"}


async def test_without_a_time_of_creation_a_waiting_task_cannot_be_judged(database: Database, db: Db) -> None:
    """It is reported; a running one is judged by its start."""
    tasks: dict[str, Document] = {
        "waiting": {"status": "PENDING"},
        "running": {"status": "RUNNING", "started_at": ago(2 * HOUR)},
    }
    found = await selected(database, db, tasks, fields={"created_at": None})
    assert found == {"waiting": "malformed", "running": "failed"}


@servers.both_topologies
@pytest.mark.parametrize(
    "sign",
    [{"beat": dt.timedelta(0)}, {"status": "COMPLETED"}, {"status": "CANCELLED"}, {"type": "pet"}],
    ids=["beats", "completes", "is cancelled", "becomes a pet"],
)
async def test_a_task_that_shows_life_between_the_look_and_the_write_is_left_alone(
    database: Database, db: Db, sign: Document
) -> None:
    """The write repeats the whole condition."""
    now = server_now(db)
    old = now - 9 * DAY
    tasks = [
        {"_id": number, "status": "RUNNING", "type": "t", "beat": old, "started_at": old, "created_at": old}
        for number in range(6)
    ]
    db["analysis_tasks"].insert_many(tasks)
    change = {key: now if isinstance(value, dt.timedelta) else value for key, value in sign.items()}

    def shows_life() -> None:
        db["analysis_tasks"].update_one({"_id": 3}, {"$set": change})

    settings = {"never": ["pet"], "fields": {"heartbeat_at": "beat", "type": "type"}}
    async with opened(database, db, stuck(**settings)) as bench:
        bench.use(meddled(bench.jobs["stuck"], after_select=shows_life))
        record = await bench.run("stuck")
    assert (record["outcome"], record["found"], record["changed"]) == ("succeeded", {"stuck": 6}, {"failed": 5})
    assert db["analysis_tasks"].find_one({"_id": 3}) == {**tasks[3], **change}
    assert db["analysis_tasks"].count_documents({"status": "FAILED"}) == 5


async def test_arrays_of_statuses_do_not_make_room_for_more_than_a_share(database: Database, db: Db) -> None:
    """However many finished tasks keep a history where others keep a status: they are not active."""
    now = server_now(db)
    history = ["PENDING", "RUNNING", "COMPLETED"]
    db["analysis_tasks"].insert_many(
        [{"_id": number, "status": "RUNNING", "created_at": now - DAY} for number in range(6)]
        + [{"_id": number, "status": history, "created_at": now - DAY} for number in range(6, 40)]
    )
    async with opened(database, db, stuck(limit={"fraction": 0.5, "floor": 0})) as bench:
        ran = await bench.run("stuck")
    assert (ran["outcome"], ran["guard"], ran["population"], ran["changed"]) == ("refused", "cap", 6, {})


async def test_where_narrows_what_is_found_reported_and_counted(database: Database, db: Db) -> None:
    """Another tenant's tasks are neither changed nor population."""
    old = server_now(db) - 9 * DAY
    db["analysis_tasks"].insert_many(
        [{"_id": f"{tenant}{number}", "tenant": tenant, "status": "RUNNING", "created_at": old} for tenant in "ab" for number in range(3)]
        + [{"_id": f"{tenant}odd", "tenant": tenant, "status": "PENDING"} for tenant in "ab"]
    )  # fmt: skip
    async with opened(database, db, stuck(where={"tenant": "a"})) as bench:
        record = await bench.run("stuck")
    assert record["population"] == 4
    assert record["found"] == {"stuck": 3, "malformed": 1}
    assert db["analysis_tasks"].count_documents({"tenant": "b", "status": "RUNNING"}) == 3
