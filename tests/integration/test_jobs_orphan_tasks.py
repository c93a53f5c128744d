"""Orphan tasks on a real server: what counts as a target, as the server compares, and all that refuses to judge."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any, cast

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from tests import servers
from tests.conftest import Database
from tests.harness import DAY, HOUR, MINUTE, Db, Document, meddled, opened, picture, server_now

MESSAGE = "Target app no longer exists - cancelled by maintenance service"


def tasks(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"tasks": {"kind": "orphan_tasks", **settings}}


ONE: dict[str, Any] = {"targets": "targets", "match": {"target": "key"}}


def task(target: Any, made: dt.datetime, status: str = "PENDING", **more: Any) -> Document:
    return {"target": target, "status": status, "created_at": made, **more}


async def selected(
    database: Database, db: Db, targets: list[Any], waiting: dict[str, Any], **settings: Any
) -> dict[Any, str]:
    """Inserts targets by their key and old tasks by their name; returns what the rule says."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"key": key} for key in targets])
    db["analysis_tasks"].insert_many([{"_id": name, **task(target, old)} for name, target in waiting.items()])
    async with opened(database, db, tasks(**{**ONE, **settings})) as bench:
        return await bench.selected("tasks")


# --- equality


NUMBERS: list[Any] = [1, Int64(1), 1.0, Decimal128("1"), Decimal128("1.00")]


@pytest.mark.parametrize("number", range(len(NUMBERS)))
async def test_numbers_are_equal_as_the_server_compares(database: Database, db: Db, number: int) -> None:
    """Whatever types task and target have; a different value of any type is an orphan."""
    waiting = {f"same{index}": value for index, value in enumerate(NUMBERS)}
    waiting |= {"other": 2, "fraction": 1.5, "decimal": Decimal128("1.01"), "long": Int64(2**60), "nan": float("nan")}
    found = await selected(database, db, [NUMBERS[number]], waiting)
    assert found == dict.fromkeys(["other", "fraction", "decimal", "long", "nan"], "cancelled")


async def test_values_of_every_type_meet_their_target(database: Database, db: Db) -> None:
    """And those of the same type without a target are orphans."""
    now = server_now(db)
    there: dict[str, Any] = {
        "text": "a",
        "empty": "",
        "unicode": "日本",
        "number": 7,
        "nan": float("nan"),
        "infinity": float("inf"),
        "id": ObjectId("65e1c0000000000000000000"),
        "date": now,
        "bool": True,
        "bytes": b"a",
        "uuid": Binary.from_uuid(uuid.UUID(int=1)),
        "document": {"a": 1, "b": 2},
        "timestamp": Timestamp(1, 2),
        "regex": Regex("^a"),
        "min": MinKey(),
        "max": MaxKey(),
        "null": None,
        "code": Code("a"),
        "dollar": "$a",
    }
    absent: dict[str, Any] = {
        "text": "A",
        "unicode": "日本 ",
        "number": 8,
        "id": ObjectId("65e1c0000000000000000001"),
        "date": now + MINUTE,
        "bool": False,
        "bytes": b"b",
        "uuid": Binary.from_uuid(uuid.UUID(int=2)),
        "document": {"b": 2, "a": 1},
        "document_more": {"a": 1, "b": 2, "c": 3},
        "timestamp": Timestamp(2, 1),
        "regex": Regex("a"),
        "code": Code("b"),
        "dollar": "$key",
    }
    waiting = {f"there_{name}": value for name, value in there.items()}
    waiting |= {f"absent_{name}": value for name, value in absent.items()}
    found = await selected(database, db, list(there.values()), waiting)
    assert found == {f"absent_{name}": "cancelled" for name in absent}


async def test_a_nested_number_of_another_type_meets_its_target(database: Database, db: Db) -> None:
    """The server compares documents deeply; bytes would differ."""
    waiting = {"same": {"a": 1.0, "b": [Int64(2)]}, "other": {"a": 2.0, "b": [2]}}
    assert await selected(database, db, [{"a": 1, "b": [2.0]}], waiting) == {"other": "cancelled"}


async def test_a_task_without_a_target_is_judged_as_null(database: Database, db: Db) -> None:
    """Where some target lacks the field it has one; where none does, null is a type that no target has."""
    db["targets"].insert_one({"key": "a"})
    old = server_now(db) - DAY
    db["analysis_tasks"].insert_many(
        [{"_id": "null", **task(None, old)}, {"_id": "missing", "status": "PENDING", "created_at": old}, {"_id": "a", **task("a", old)}]
    )  # fmt: skip
    async with opened(database, db, tasks(**ONE)) as bench:
        assert await bench.selected("tasks") == dict.fromkeys(["null", "missing"], "malformed")
        db["targets"].insert_one({"other": 1})
        assert await bench.selected("tasks") == {}


async def test_a_target_that_holds_a_list_is_met_by_its_entries(database: Database, db: Db) -> None:
    """As the server's equality has it; a list as a whole meets it too."""
    waiting = {"entry": "a", "whole": ["a", "b"], "other": "c", "part": ["a"]}
    found = await selected(database, db, [["a", "b"], "x"], waiting)
    assert found == {"other": "cancelled", "part": "cancelled"}


async def test_a_task_that_holds_a_list_is_never_an_orphan_where_targets_hold_none(database: Database, db: Db) -> None:
    """It is malformed, also where each entry is a target."""
    found = await selected(database, db, ["a", "b"], {"list": ["a"], "empty": [], "fine": "a", "orphan": "c"})
    assert found == {"list": "malformed", "empty": "malformed", "orphan": "cancelled"}


# --- types that no target has


async def test_a_value_of_a_type_that_no_target_has_is_malformed(database: Database, db: Db) -> None:
    """It says more about the writer than about the target; a boolean is no number."""
    waiting = {
        "text": "1",
        "bool": True,
        "id": ObjectId(),
        "document": {"a": 1},
        "null": None,
        "date": server_now(db),
        "there": 1,
        "orphan": 2,
    }
    found = await selected(database, db, [1, 7.5], waiting)
    expected = dict.fromkeys(["text", "bool", "id", "document", "null", "date"], "malformed")
    assert found == {**expected, "orphan": "cancelled"}


async def test_each_field_of_the_match_has_its_own_types(database: Database, db: Db) -> None:
    """One field of a foreign type is enough."""
    old = server_now(db) - DAY
    db["generated_applications"].insert_many(
        [{"model_slug": "a", "app_number": 1}, {"model_slug": "b", "app_number": 2}]
    )
    cases: dict[str, tuple[Any, Any]] = {
        "there": ("a", 1.0),
        "crossed": ("a", 2),
        "text_number": ("a", "1"),
        "number_slug": (1, 1),
        "orphan": ("c", 3),
    }
    db["analysis_tasks"].insert_many(
        [
            {"_id": name, "target_model": model, "target_app_number": number, "status": "RUNNING", "created_at": old}
            for name, (model, number) in cases.items()
        ]
    )
    async with opened(database, db, tasks()) as bench:
        found = await bench.selected("tasks")
    assert found == {
        "crossed": "cancelled",
        "orphan": "cancelled",
        "text_number": "malformed",
        "number_slug": "malformed",
    }


@servers.both_topologies
async def test_a_match_between_different_types_refuses_the_run(database: Database, db: Db) -> None:
    """If every active task is of a foreign type, the match itself is wrong; with one that fits it is not."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"key": number} for number in range(5)])
    db["analysis_tasks"].insert_many([{"_id": number, **task(str(number), old)} for number in range(5)])
    before = picture(db)
    async with opened(database, db, tasks(**ONE)) as bench:
        for dry_run in (True, False):
            ran = await bench.run("tasks", dry_run=dry_run)
            assert (ran["outcome"], ran["found"], ran["changed"], ran["sample"]) == ("refused", {}, {}, [])
            assert ran["reason"].startswith("targets: no active task has values of the types in")
            assert "target with key" in ran["reason"]
        assert picture(db) == before
        accepted = await bench.run("tasks", accept=frozenset({"targets"}))
        assert (accepted["outcome"], accepted["found"], accepted["changed"]) == ("succeeded", {"malformed": 5}, {})
        db["analysis_tasks"].insert_one({"_id": "fits", **task(99, old)})
        ran = await bench.run("tasks")
        assert (ran["outcome"], ran["found"], ran["changed"]) == (
            "succeeded",
            {"malformed": 5, "orphan": 1},
            {"cancelled": 1},
        )


# --- the targets proof


@servers.both_topologies
@pytest.mark.parametrize("state", ["missing", "empty"])
async def test_targets_that_are_missing_or_empty_refuse_the_run(database: Database, db: Db, state: str) -> None:
    """A wrong name must never look like orphans; nobody's sightings are made either."""
    old = server_now(db) - DAY
    db["analysis_tasks"].insert_many([{"_id": number, **task(number, old)} for number in range(5)])
    if state == "empty":
        db.create_collection("targets")
    before = picture(db)
    async with opened(database, db, tasks(**ONE, quarantine="1m"), prepared=state == "empty") as bench:
        for dry_run in (True, False):
            ran = await bench.run("tasks", dry_run=dry_run)
            assert (ran["outcome"], ran["found"], ran["changed"]) == ("refused", {}, {})
            assert "targets is missing or empty" in ran["reason"]
            assert ran["reason"].endswith("maintenance-agent run tasks --accept targets")
        assert bench.own("marks").count_documents({}) == 0
    assert picture(db) == before


async def test_without_active_tasks_nothing_is_proven_and_nothing_refused(database: Database, db: Db) -> None:
    """An empty population succeeds, whatever its targets, and moves no baseline."""
    db["analysis_tasks"].insert_one(task("a", server_now(db) - DAY, "COMPLETED"))
    async with opened(database, db, tasks(**ONE)) as bench:
        ran = await bench.run("tasks")
        assert (ran["outcome"], ran["population"], ran["complete"]) == ("succeeded", 0, True)
        assert bench.own("controls").count_documents({"_id": {"$regex": "^baseline"}}) == 0


async def test_targets_that_lost_more_than_half_refuse_the_run(database: Database, db: Db) -> None:
    """Compared with the last good run; consent is by name."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"_id": number, "key": number} for number in range(20)])
    db["analysis_tasks"].insert_many([{"_id": number, **task(number, old)} for number in range(20)])
    async with opened(database, db, tasks(**ONE)) as bench:
        assert (await bench.run("tasks"))["outcome"] == "succeeded"
        db["targets"].delete_many({"_id": {"$lt": 11}})
        ran = await bench.run("tasks")
        assert (ran["outcome"], ran["changed"]) == ("refused", {})
        assert "saw 9 documents, expected at least 10: half of the 20" in ran["reason"]
        db["targets"].insert_one({"_id": 0, "key": 0})
        assert (await bench.dry("tasks"))["found"] == {"orphan": 10}
        db["targets"].delete_one({"_id": 0})
        ran = await bench.run("tasks", accept=frozenset({"targets"}))
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"cancelled": 11})


async def test_targets_that_vanish_while_they_are_looked_at_refuse_the_run(database: Database, db: Db) -> None:
    """The proof is asked again after the selection."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"key": number} for number in range(5)])
    db["analysis_tasks"].insert_many([{"_id": number, **task(number, old)} for number in range(5)])
    before = picture(db)["analysis_tasks"]

    def vanish() -> None:
        db["targets"].delete_many({})

    async with opened(database, db, tasks(**ONE)) as bench:
        for moment in ("before_select", "after_select"):
            bench.use(meddled(bench.jobs["tasks"], **cast("Any", {moment: vanish})))
            ran = await bench.run("tasks")
            assert (ran["outcome"], ran["found"], ran["changed"]) == ("refused", {}, {})
            db["targets"].insert_many([{"key": number} for number in range(5)])
            bench.configure("tasks")
    assert picture(db)["analysis_tasks"] == before


# --- what is changed


@servers.both_topologies
async def test_orphans_are_cancelled_with_the_message_and_the_time(database: Database, db: Db) -> None:
    """Pending or running; finished ones, those with a target and all other fields stay as they are."""
    old = server_now(db) - DAY
    db["targets"].insert_one({"key": "a"})
    statuses = ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "OTHER")
    documents = [
        {"_id": f"{status}{target}", **task(target, old, status, error_message=None, z=1)}
        for status in statuses
        for target in "ab"
    ]
    db["analysis_tasks"].insert_many(documents)
    async with opened(database, db, tasks(**ONE)) as bench:
        ran = await bench.run("tasks")
        assert (ran["population"], ran["found"], ran["changed"]) == (4, {"orphan": 2}, {"cancelled": 2})
        assert (await bench.run("tasks"))["found"] == {}
    after = {one["_id"]: one for one in db["analysis_tasks"].find()}
    for document in documents:
        if document["_id"] in {"PENDINGb", "RUNNINGb"}:
            ended = {"status": "CANCELLED", "error_message": MESSAGE, "completed_at": ran["started_at"]}
            assert after[document["_id"]] == {**document, **ended}
        else:
            assert after[document["_id"]] == document


async def test_a_task_is_an_orphan_past_its_grace_and_not_at_it(database: Database, db: Db) -> None:
    """Some applications write the task first."""
    now = server_now(db) + HOUR
    ms = dt.timedelta(milliseconds=1)
    ages = {"young": 0 * MINUTE, "almost": MINUTE - ms, "at": MINUTE, "just": MINUTE + ms, "old": 2 * MINUTE}
    db["targets"].insert_one({"key": "a"})
    db["analysis_tasks"].insert_many([{"_id": name, **task("b", now - age)} for name, age in ages.items()])
    db["analysis_tasks"].insert_many(
        [{"_id": f"odd{number}", "target": "b", "status": "PENDING", "created_at": value} for number, value in enumerate([None, "x", [now - DAY]])]
        + [{"_id": "missing", "target": "b", "status": "PENDING"}]
    )  # fmt: skip
    async with opened(database, db, tasks(**ONE)) as bench:
        found = await bench.selected("tasks", now)
        assert found == {
            **dict.fromkeys(["just", "old"], "cancelled"),
            **dict.fromkeys(["odd0", "odd1", "odd2", "missing"], "malformed"),
        }


@servers.both_topologies
async def test_what_changed_between_the_look_and_the_write_is_left_alone(database: Database, db: Db) -> None:
    """A task that finished, was aimed at another target or made anew; one whose target came back."""
    now = server_now(db)
    db["targets"].insert_many([{"key": "a"}, {"key": "b"}])
    names = ("stays", "finishes", "re_targets", "re_made", "touched", "has_target", "vanishes")
    db["analysis_tasks"].insert_many([{"_id": name, **task(f"x{name}", now - DAY)} for name in names])

    def changes() -> None:
        collection = db["analysis_tasks"]
        collection.update_one({"_id": "finishes"}, {"$set": {"status": "COMPLETED"}})
        collection.update_one({"_id": "re_targets"}, {"$set": {"target": "a"}})
        collection.update_one({"_id": "re_made"}, {"$set": {"created_at": now}})
        collection.update_one({"_id": "touched"}, {"$set": {"something": "else"}})
        collection.delete_one({"_id": "vanishes"})
        db["targets"].insert_one({"key": "xhas_target"})

    async with opened(database, db, tasks(**ONE)) as bench:
        bench.use(meddled(bench.jobs["tasks"], after_select=changes))
        ran = await bench.run("tasks")
    assert (ran["found"], ran["changed"], ran["failed"]) == ({"orphan": 7}, {"cancelled": 2}, 0)
    cancelled = {one["_id"] for one in db["analysis_tasks"].find({"status": "CANCELLED"})}
    assert cancelled == {"stays", "touched"}


@servers.both_topologies
async def test_a_target_that_comes_back_during_the_write_has_its_tasks_restored_at_once(
    database: Database, db: Db
) -> None:
    """Counted as cancelled and as restored, byte for byte as before, not held."""
    now = server_now(db)
    db["targets"].insert_many([{"key": "a"}, {"key": "b"}])
    db["analysis_tasks"].insert_many([{"_id": number, **task(number % 3, now - DAY)} for number in range(9)])
    db["targets"].insert_one({"key": 99})
    before = picture(db)["analysis_tasks"]

    def comes_back(look: int) -> None:
        if look == 0:
            db["targets"].insert_one({"key": 1.0})

    async with opened(database, db, tasks(**ONE)) as bench:
        bench.use(meddled(bench.jobs["tasks"], after_still=comes_back))
        ran = await bench.run("tasks")
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"cancelled": 9, "restored": 3})
        assert bench.own("marks").count_documents({}) == 0
        after = picture(db)["analysis_tasks"]
        assert [number for number in range(9) if after[number] == before[number]] == [1, 4, 7]
        assert (await bench.run("tasks"))["changed"] == {}
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": 6}
    assert picture(db)["analysis_tasks"] == before


async def test_targets_may_lie_in_another_database(database: Database, db: Db) -> None:
    """A record of the same name in the tasks' own database is none."""
    old = server_now(db) - DAY
    other = db.client[f"{database.name}_2"]
    try:
        other["targets"].insert_one({"key": "a"})
        db["targets"].insert_many([{"key": "b"}, {"key": "c"}])
        db["analysis_tasks"].insert_many([{"_id": key, **task(key, old)} for key in "ab"])
        async with opened(database, db, tasks(**ONE, targets_database=other.name)) as bench:
            ran = await bench.run("tasks")
            assert ran["changed"] == {"cancelled": 1}
            assert db["analysis_tasks"].count_documents({"_id": "b", "status": "CANCELLED"}) == 1
    finally:
        db.client.drop_database(other.name)


async def test_a_job_may_work_in_another_database_than_the_agents_own(database: Database, db: Db) -> None:
    """Its records stay with the agent; what it changes can be restored from there."""
    old = server_now(db) - DAY
    other = db.client[f"{database.name}_2"]
    try:
        other["targets"].insert_many([{"key": "a"}, {"key": "z"}])
        other["analysis_tasks"].insert_many([{"_id": key, **task(key, old)} for key in "ab"])
        db["analysis_tasks"].insert_one({"_id": "b", **task("b", old)})
        async with opened(database, db, tasks(**ONE, database=other.name)) as bench:
            ran = await bench.run("tasks")
            assert ran["changed"] == {"cancelled": 1}
            assert bench.entries(ran["_id"])[0]["database"] == other.name
            assert (await bench.restore(ran["_id"]))["changed"] == {"restored": 1}
        assert [name for name in other.list_collection_names() if name.startswith("maintenance_")] == []
        assert other["analysis_tasks"].count_documents({"status": "PENDING"}) == 2
        assert db["analysis_tasks"].count_documents({"status": "PENDING"}) == 1
    finally:
        db.client.drop_database(other.name)


async def test_targets_may_be_named_by_their_id_and_statuses_be_of_another_platform(database: Database, db: Db) -> None:
    """The built-in job for operations without a database."""
    old = server_now(db) - DAY
    there, gone = ObjectId(), ObjectId()
    db["databases"].insert_one({"_id": there})
    operations = [
        {"_id": number, "database_id": id, "type": "create", "status": status, "created_at": old}
        for number, (id, status) in enumerate(
            (id, status) for id in (there, gone) for status in ("pending", "in_progress", "completed", "failed")
        )
    ]
    db["operations"].insert_many(operations)
    settings: dict[str, Any] = {
        "collection": "operations",
        "targets": "databases",
        "match": {"database_id": "_id"},
        "statuses": {
            "pending": "pending",
            "running": "in_progress",
            "completed": "completed",
            "failed": "failed",
            "cancelled": "cancelled",
        },
        "fields": {"started_at": None},
        "message": "gone",
    }
    async with opened(database, db, tasks(**settings)) as bench:
        ran = await bench.run("tasks")
    assert (ran["population"], ran["changed"]) == (4, {"cancelled": 2})
    after = list(db["operations"].find(sort=[("_id", 1)]))
    ended = {"status": "cancelled", "error_message": "gone", "completed_at": ran["started_at"]}
    assert after == [{**one, **ended} if one["_id"] in {4, 5} else one for one in operations]


async def test_where_narrows_the_tasks_and_not_the_targets(database: Database, db: Db) -> None:
    """Another tenant's tasks are neither found nor population."""
    old = server_now(db) - DAY
    db["targets"].insert_one({"key": "a", "tenant": "y"})
    db["analysis_tasks"].insert_many(
        [{"_id": f"{tenant}{key}", **task(key, old, tenant=tenant)} for tenant in "xy" for key in "ab"]
    )
    async with opened(database, db, tasks(**ONE, where={"tenant": "x"})) as bench:
        ran = await bench.run("tasks")
    assert (ran["population"], ran["changed"]) == (2, {"cancelled": 1})
    assert {one["_id"] for one in db["analysis_tasks"].find({"status": "CANCELLED"})} == {"xb"}


async def test_a_quarantine_of_tasks_needs_a_later_run(database: Database, db: Db) -> None:
    """Off by default; where it is on, a target that was back meanwhile begins it anew."""
    old = server_now(db) - DAY
    db["targets"].insert_one({"key": "a"})
    db["analysis_tasks"].insert_many([{"_id": key, **task(key, old)} for key in ("b", "c")])
    async with opened(database, db, tasks(**ONE, quarantine="10m")) as bench:
        assert (await bench.run("tasks"))["held"] == {"quarantine": 2}
        bench.age_sightings(HOUR)
        db["targets"].insert_one({"_id": 1, "key": "b"})
        dry = await bench.dry("tasks")
        assert (dry["found"], dry["held"]) == ({"orphan": 1}, {})
        ran = await bench.run("tasks")
        assert (ran["held"], ran["changed"]) == ({}, {"cancelled": 1})
        db["targets"].delete_one({"_id": 1})
        assert (await bench.run("tasks"))["held"] == {"quarantine": 1}


async def test_two_instances_of_the_kind_work_on_their_own_collections(database: Database, db: Db) -> None:
    """Under their own names, with leases, baselines and records of their own."""
    old = server_now(db) - DAY
    for name in ("first", "second"):
        db[f"{name}_targets"].insert_many([{"key": key} for key in "abc"])
        db[f"{name}_tasks"].insert_many([{"_id": key, **task(key, old)} for key in "abcd"])
    jobs = {
        name: tasks(collection=f"{name}_tasks", targets=f"{name}_targets", match={"target": "key"}, message=name)[
            "tasks"
        ]
        for name in ("first", "second")
    }
    async with opened(database, db, jobs) as bench:
        records = await bench.pass_()
        assert [(one["job"], one["outcome"], one["changed"]) for one in records] == [
            ("first", "succeeded", {"cancelled": 1}),
            ("second", "succeeded", {"cancelled": 1}),
        ]
        baselines = {one["_id"] for one in bench.own("controls").find({"_id": {"$regex": "^baseline"}})}
        assert baselines == {"baseline/first/targets", "baseline/second/targets"}
        db["first_targets"].delete_many({})
        outcomes = [one["outcome"] for one in await bench.pass_()]
        assert outcomes == ["refused", "succeeded"]
    for name in ("first", "second"):
        assert db[f"{name}_tasks"].find_one({"_id": "d"})["error_message"] == name  # type: ignore[index]


async def test_targets_with_a_collation_of_their_own_compare_as_they_do(database: Database, db: Db) -> None:
    """Where the collection ignores case, so does the rule."""
    old = server_now(db) - DAY
    db.create_collection("targets", collation={"locale": "en", "strength": 2})
    db["targets"].insert_many([{"key": "Alpha"}, {"key": "beta"}])
    waiting = {"same": "Alpha", "case": "ALPHA", "orphan": "gamma"}
    db["analysis_tasks"].insert_many([{"_id": name, **task(key, old)} for name, key in waiting.items()])
    async with opened(database, db, tasks(**ONE)) as bench:
        assert await bench.selected("tasks") == {"orphan": "cancelled"}


@pytest.mark.parametrize(
    "index",
    [
        None,
        {"keys": [("key", 1)]},
        {"keys": [("key", -1), ("x", 1)]},
        {"keys": [("key", 1)], "sparse": True},
        {"keys": [("key", 1)], "partialFilterExpression": {"key": {"$gt": "b"}}},
        {"keys": [("key", "hashed")]},
        {"keys": [("key", "text")]},
        {"keys": [("key", 1)], "hidden": True},
        {"keys": [("key", 1)], "collation": {"locale": "en", "strength": 1}},
        {"keys": [("$**", 1)]},
    ],
    ids=["none", "plain", "compound", "sparse", "partial", "hashed", "text", "hidden", "collation", "wildcard"],
)
async def test_whatever_indexes_the_application_has_the_answer_is_the_same(
    database: Database, db: Db, index: dict[str, Any] | None
) -> None:
    """An index that does not hold every target is never taken for the targets."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"key": key} for key in "abc"] + [{"other": 1}])
    waiting = {"a": "a", "c": "c", "null": None, "A": "A", "d": "d"}
    db["analysis_tasks"].insert_many([{"_id": name, **task(key, old)} for name, key in waiting.items()])
    if index is not None:
        db["targets"].create_index(index["keys"], **{key: value for key, value in index.items() if key != "keys"})
        tasks_index = [("target" if name == "key" else name, direction) for name, direction in index["keys"]]
        options = {key: value for key, value in index.items() if key in {"sparse", "hidden", "collation"}}
        db["analysis_tasks"].create_index(tasks_index, **options)
    async with opened(database, db, tasks(**ONE), prepared=False) as bench:
        assert await bench.selected("tasks") == dict.fromkeys(["A", "d"], "cancelled")


async def test_active_tasks_are_counted_and_walked_by_the_index_alone(database: Database, db: Db) -> None:
    """However many finished ones there are, and without reading one document."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"key": number} for number in range(20)])
    active = [task(number % 20, old, status) for number in range(100) for status in ("PENDING", "RUNNING")]
    db["analysis_tasks"].insert_many([*active, *(task(number, old, "COMPLETED") for number in range(500))])
    async with opened(database, db, tasks(**ONE)) as bench:
        db.command("profile", 2)
        ran = await bench.dry("tasks")
        db.command("profile", 0)
    assert (ran["population"], ran["found"]) == (200, {})
    seen = list(db["system.profile"].find({"ns": f"{db.name}.analysis_tasks", "keysExamined": {"$exists": True}}))
    assert seen
    for one in seen:
        assert one["docsExamined"] == 0, one["command"]
        assert one["keysExamined"] <= 210, one["command"]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
async def test_a_task_whose_status_is_an_array_is_left_alone(database: Database, db: Db, fraction: float) -> None:
    """The index tells it from an active one no more than it need: only where a share is compared it must not count."""
    old = server_now(db) - DAY
    waiting = {"list": task("gone", old) | {"status": ["PENDING", "RUNNING"]}, "one": task("a", old)}
    db["targets"].insert_one({"key": "a"})
    db["analysis_tasks"].insert_many([{"_id": name, **one} for name, one in waiting.items()])
    before = picture(db)
    async with opened(database, db, tasks(**ONE, limit={"fraction": fraction})) as bench:
        ran = await bench.run("tasks")
    assert (ran["outcome"], ran["population"], ran["found"]) == ("succeeded", 2 if fraction == 1 else 1, {})
    assert picture(db)["analysis_tasks"] == before["analysis_tasks"]


async def test_an_array_of_statuses_does_not_hide_a_match_of_different_types(database: Database, db: Db) -> None:
    """All that is really active is foreign, so the run is refused."""
    old = server_now(db) - DAY
    db["targets"].insert_one({"key": 1})
    db["analysis_tasks"].insert_many([task("1", old), task("2", old) | {"status": ["PENDING"]}])
    async with opened(database, db, tasks(**ONE)) as bench:
        ran = await bench.run("tasks")
    assert ran["outcome"] == "refused"
    assert "no active task has values of the types" in ran["reason"]


async def test_many_different_targets_are_found_in_many_queries(database: Database, db: Db) -> None:
    """More than one query takes, some there, some not."""
    old = server_now(db) - DAY
    db["targets"].insert_many([{"key": number} for number in range(0, 500, 2)])
    db["analysis_tasks"].insert_many([{"_id": number, **task(number, old)} for number in range(500)])
    async with opened(database, db, tasks(**ONE, batch=70)) as bench:
        ran = await bench.run("tasks")
    assert ran["changed"] == {"cancelled": 250}
    assert db["analysis_tasks"].count_documents({"status": "CANCELLED", "target": {"$mod": [2, 1]}}) == 250


async def test_a_target_value_of_megabytes_does_not_stop_the_run(database: Database, db: Db) -> None:
    """Such tasks are orphans like others; several do not fit one query."""
    old = server_now(db) - DAY
    db["targets"].insert_one({"key": "a"})
    db["analysis_tasks"].insert_many([{"_id": n, **task(str(n) * 4_500_000, old)} for n in range(4)])
    db["analysis_tasks"].insert_many([{"_id": "small", **task("b", old)}, {"_id": "fine", **task("a", old)}])
    async with opened(database, db, tasks(**ONE)) as bench:
        ran = await bench.run("tasks")
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"cancelled": 5}, 0)
        assert bench.record(ran["_id"]) is not None
