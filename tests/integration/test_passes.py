"""Passes: the incident cleared, dry passes that see their own plan, plans applied, holds, restores."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from agent.demo.incident import incident
from agent.errors import BusyError, NotFoundError, UsageError
from tests import servers
from tests.conftest import Database
from tests.harness import (
    DAY,
    HOUR,
    MINUTE,
    Bench,
    Db,
    Document,
    encoded,
    insert_raw,
    meddled,
    opened,
    picture,
    server_now,
)

Jobs = dict[str, dict[str, Any]]
JOBS = ("orphan_apps", "orphan_tasks", "stuck_tasks", "old_tasks")


def cleanup(root: Path, **changes: dict[str, Any]) -> Jobs:
    """The four cleanup jobs as they are built in, without a quarantine."""
    jobs: Jobs = {
        "orphan_apps": {"kind": "orphan_records", "root": str(root), "quarantine": "0s"},
        "orphan_tasks": {"kind": "orphan_tasks"},
        "stuck_tasks": {"kind": "stuck_tasks"},
        "old_tasks": {"kind": "retention"},
    }
    return {name: {**settings, **changes.get(name, {})} for name, settings in jobs.items()}


def small_world(db: Db, root: Path) -> None:
    """Ten healthy applications, four lost ones with two tasks each, and some of everything else."""
    now = server_now(db)
    old = now - DAY
    db["generated_applications"].insert_many(
        [{"_id": f"app{n}", "model_slug": "m", "app_number": n, "created_at": old} for n in range(14)]
    )
    for n in range(4, 14):
        (root / f"generated/apps/m/app{n}").mkdir(parents=True)

    def task(id: str, app: int, status: str, made: dt.datetime, **more: Any) -> Document:
        task = {"_id": id, "target_model": "m", "target_app_number": app, "status": status, "created_at": made}
        return {**task, "completed_at": None, **more}

    fresh = now - 5 * MINUTE
    db["analysis_tasks"].insert_many(
        [task(f"lost{n}", n // 2, "PENDING" if n % 2 else "RUNNING", fresh, started_at=fresh) for n in range(8)]
        + [task(f"lost_old{n}", n, "PENDING", old) for n in range(4)]
        + [task(f"stuck{n}", 5, "RUNNING", old, started_at=old) for n in range(3)]
        + [task(f"stuck_pending{n}", 6, "PENDING", old) for n in range(2)]
        + [task(f"healthy{n}", 7, "RUNNING", fresh, started_at=fresh) for n in range(20)]
        + [task(f"old{n}", n, "COMPLETED", old, completed_at=now - 31 * DAY) for n in range(5)]
        + [task(f"done{n}", n, "FAILED", old, completed_at=now - DAY) for n in range(9)]
    )


def items_of(bench: Bench, records: Iterable[Document]) -> Counter[tuple[str, str, str, str | None]]:
    """What the runs of a pass changed, or would change: job, id, action, and what would hold it."""
    return Counter(
        (record["job"], str(entry["id"]), entry["action"], entry.get("held"))
        for record in records
        for entry in bench.entries(record["_id"])
    )


def told(records: Iterable[Document]) -> list[tuple[Any, ...]]:
    """What the runs of a pass say of themselves, but for what they changed."""
    names = ("job", "outcome", "population", "found", "held", "failed", "complete")
    return [tuple(record[name] for name in names) for record in records]


# --------------------------------------------------------------------------------------------------------- the incident


@servers.both_topologies
async def test_a_dry_pass_and_a_real_pass_clear_the_incident_with_the_same_numbers(
    database: Database, db: Db, root: Path
) -> None:
    """28 records, 469 tasks, the stuck ones, the old ones; every other document and file as before."""
    world = incident(server_now(db))
    db["generated_applications"].insert_many(world.records)
    db["analysis_tasks"].insert_many(world.tasks)
    world.write_files(root)
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    before = picture(db)
    expected = {
        "orphan_apps": {"deleted": world.expected.orphan_records},
        "orphan_tasks": {"cancelled": world.expected.orphan_tasks},
        "stuck_tasks": {"failed": world.expected.stuck_running, "cancelled": world.expected.stuck_pending},
        "old_tasks": {"deleted": world.expected.expired},
    }
    assert (world.expected.orphan_records, world.expected.orphan_tasks) == (28, 469)
    async with opened(database, db, cleanup(root)) as bench:
        dry = await bench.pass_(dry_run=True)
        assert picture(db) == before
        assert [record["outcome"] for record in dry] == ["succeeded"] * 4
        assert {record["job"]: record["would_refuse"] for record in dry} == dict.fromkeys(JOBS)
        real = await bench.pass_()
        assert {record["job"]: record["changed"] for record in real} == expected
        assert {record["job"]: sum(record["found"].values()) for record in dry} == {
            job: sum(changed.values()) for job, changed in expected.items()
        }
        assert told(dry) == told(real)
        planned = items_of(bench, dry)
        assert planned == items_of(bench, real)
        assert Counter((job, action) for job, _, action, _ in planned.elements()) == Counter(
            {(job, action): count for job, changed in expected.items() for action, count in changed.items()}
        )
        statistics = (await bench.agent.operations.status())["statistics"]
        assert statistics["orphan_apps_cleaned"] == 28
        assert statistics["orphan_tasks_cleaned"] == 469
        assert statistics["stuck_tasks_cleaned"] == world.expected.stuck_running + world.expected.stuck_pending
        assert statistics["old_tasks_cleaned"] == world.expected.expired
        assert (statistics["runs"], statistics["errors"]) == (4, 0)
    message = "Target app no longer exists - cancelled by maintenance service"
    assert db["analysis_tasks"].count_documents({"status": "CANCELLED", "error_message": message}) == 469
    healthy = [*world.active_tasks, *world.finished_tasks]
    after = {one["_id"]: one for one in db["analysis_tasks"].find()}
    assert all(after[task["_id"]] == task for task in healthy)
    kept = {task["_id"] for task in (*healthy, *world.orphan_tasks, *world.stuck_running, *world.stuck_pending)}
    assert set(after) == kept
    assert list(db["generated_applications"].find(sort=[("_id", 1)])) == sorted(
        world.healthy_records, key=lambda record: record["_id"]
    )
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == files


@servers.both_topologies
async def test_a_pass_can_be_restored_run_by_run_in_reverse_to_the_first_byte(
    database: Database, db: Db, root: Path
) -> None:
    """And nothing of it is done again by the next pass."""
    small_world(db, root)
    before = picture(db)
    async with opened(database, db, cleanup(root)) as bench:
        records = await bench.pass_()
        assert picture(db) != before
        for record in reversed(records):
            restored = await bench.restore(record["_id"])
            assert restored["changed"]["restored"] == sum(record["changed"].values())
            assert (restored["trigger"], restored["source"], restored["failed"]) == ("restore", record["_id"], 0)
        assert picture(db) == before
        again = await bench.pass_()
        assert [record["changed"] for record in again] == [{}] * 4
        assert picture(db) == before


# ----------------------------------------------------------------------------------------------- dry passes and real ones


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "as built in": {},
    "quarantine": {"orphan_apps": {"quarantine": "10m"}},
    "quarantine of tasks": {"orphan_tasks": {"quarantine": "10m"}},
    "records over their cap": {"orphan_apps": {"limit": {"items": 3}}},
    "tasks over their cap": {"orphan_tasks": {"limit": {"items": 3}}},
    "no retention at all": {"old_tasks": {"keep": "0s", "limit": {"fraction": 1}}},
    "retention of the cancelled": {"old_tasks": {"keep": {"cancelled": "0s"}, "limit": {"fraction": 1}}},
    "truncated retention": {"old_tasks": {"keep": "0s", "limit": {"fraction": 1, "items": 7}}},
    "by time of creation": {"old_tasks": {"keep": "1h", "fields": {"completed_at": None}, "limit": {"fraction": 1}}},
    "short of time": {"stuck_tasks": {"timeout": "1m", "pending_timeout": "1m"}},
    "some are held": {"held": {}},
    "root away": {"orphan_apps": {"root": "/nowhere-at-all"}},
    "by model alone": {"orphan_tasks": {"match": {"target_model": "model_slug"}}},
    "few targets are left": {"orphan_apps": {"limit": {"fraction": 1}}, "few": {}},
}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_dry_pass_finds_what_a_real_pass_then_does(
    database: Database, db: Db, root: Path, variant: str
) -> None:
    """Item by item, with population, findings and holds, whatever an earlier job does to a later one."""
    small_world(db, root)
    changes = dict(VARIANTS[variant])
    held, few = changes.pop("held", None) is not None, changes.pop("few", None) is not None
    if few:
        for n in range(4, 11):
            (root / f"generated/apps/m/app{n}").rmdir()
    async with opened(database, db, cleanup(root, **changes)) as bench:
        if few:
            bench.own("controls").insert_one({"_id": "baseline/orphan_tasks/targets", "measure": 14, "identity": None})
        if held:
            for collection, id in (
                ("generated_applications", "app1"),
                ("analysis_tasks", "lost3"),
                ("analysis_tasks", "old1"),
            ):
                await bench.agent.operations.hold(None, collection, id, requested_by="ann")
        before = picture(db)
        dry = await bench.pass_(dry_run=True)
        assert picture(db) == before
        again = await bench.pass_(dry_run=True)
        assert told(again) == told(dry)
        real = await bench.pass_()
        refused = [record["job"] for record in dry if record["would_refuse"]]
        assert [record["job"] for record in real if record["outcome"] == "refused" and record["found"]] == refused
        names = ("job", "population", "found", "held")
        assert [[one[name] for name in names] for one in dry] == [[one[name] for name in names] for one in real]
        plan = items_of(bench, dry)
        due = {item: count for item, count in plan.items() if item[3] is None and item[0] not in refused}
        assert due == items_of(bench, real)
        assert Counter(item[3] for item in plan.elements() if item[3]) == sum(
            (Counter(record["held"]) for record in real), Counter()
        )
        for one, other in zip(dry, real, strict=True):
            if one["job"] not in refused:
                assert one["outcome"] == other["outcome"]
                assert sum(other["changed"].values()) == sum(due[item] for item in due if item[0] == one["job"])


async def test_a_dry_pass_sees_what_two_jobs_on_one_collection_would_do(database: Database, db: Db, root: Path) -> None:
    """What the first would delete or cancel is gone or cancelled for the second, its population included."""
    small_world(db, root)
    jobs = cleanup(root)
    jobs["more_apps"] = {**jobs["orphan_apps"], "where": {"app_number": {"$gte": 2}}}
    jobs["more_tasks"] = {**jobs["orphan_tasks"], "where": {"target_app_number": {"$lt": 3}}}
    jobs["again"] = {**jobs["old_tasks"], "keep": "0s", "limit": {"fraction": 1}}
    async with opened(database, db, jobs) as bench:
        dry = await bench.pass_(dry_run=True)
        real = await bench.pass_()
        assert told(dry) == told(real)
        assert items_of(bench, dry) == items_of(bench, real)
        populations = {record["job"]: record["population"] for record in real}
        assert (populations["orphan_apps"], populations["more_apps"]) == (14, 10)
        assert populations["more_tasks"] == 0


async def test_single_dry_runs_do_not_see_each_others_plans(database: Database, db: Db, root: Path) -> None:
    """Only a pass does."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        assert (await bench.dry("orphan_apps"))["found"] == {"orphan": 4}
        assert (await bench.dry("orphan_tasks"))["found"] == {}


async def test_a_dry_run_takes_neither_lease_nor_slot_and_runs_beside_a_real_one(
    database: Database, db: Db, root: Path
) -> None:
    """A preview never costs a run."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        plain, dry = bench.jobs["orphan_apps"], list[Document]()

        async def preview() -> None:
            bench.use(plain)
            dry.append(await bench.dry("orphan_apps"))

        bench.use(meddled(plain, before_select=preview))
        real = await bench.run("orphan_apps")
        assert (dry[0]["term"], dry[0]["scheduled_for"], dry[0]["found"]) == (None, None, {"orphan": 4})
        assert (real["outcome"], real["changed"]) == ("succeeded", {"deleted": 4})
        assert bench.own("leases").find_one({"_id": "orphan_apps"})["term"] == 1


async def test_a_job_that_is_refused_or_fails_does_not_stop_the_others(database: Database, db: Db, root: Path) -> None:
    """Each has its own outcome."""
    small_world(db, root)
    async with opened(database, db, cleanup(root, orphan_apps={"root": "/nowhere-at-all"})) as bench:

        def breaks() -> None:
            raise ZeroDivisionError

        bench.use(meddled(bench.jobs["orphan_tasks"], before_select=breaks))
        records = await bench.pass_()
        outcomes = {record["job"]: (record["outcome"], sum(record["changed"].values())) for record in records}
        assert outcomes == {
            "orphan_apps": ("refused", 0),
            "orphan_tasks": ("failed", 0),
            "stuck_tasks": ("succeeded", 9),
            "old_tasks": ("succeeded", 5),
        }
        assert "ZeroDivisionError" in next(one["reason"] for one in records if one["job"] == "orphan_tasks")
        assert len({record["pass"] for record in records}) == 1


async def test_a_configured_dry_run_changes_nothing_but_by_apply(database: Database, db: Db, root: Path) -> None:
    """Whatever triggers it."""
    small_world(db, root)
    jobs = cleanup(root)
    async with opened(database, db, {"orphan_apps": {**jobs["orphan_apps"], "dry_run": True}}) as bench:
        before = picture(db)
        ran: dict[str, Any] = {}
        for trigger in ("schedule", "manual", "cli", "startup"):
            ran = await bench.run("orphan_apps", trigger=trigger)
            assert (ran["dry_run"], ran["found"], ran["changed"]) == (True, {"orphan": 4}, {})
        assert picture(db) == before
        (applied,) = await bench.apply(ran["_id"])
        assert (applied["dry_run"], applied["changed"]) == (False, {"deleted": 4})
        assert (await bench.restore(applied["_id"]))["changed"] == {"restored": 4}
        assert picture(db) == before


async def test_a_dry_pass_does_not_count_on_a_job_that_never_acts(database: Database, db: Db, root: Path) -> None:
    """The tasks of records that a real pass would leave are no orphans: the dry pass is the real pass."""
    small_world(db, root)
    jobs = cleanup(root)
    jobs["orphan_apps"]["dry_run"] = True
    async with opened(database, db, jobs) as bench:
        dry, real = await bench.pass_(dry_run=True), await bench.pass_()
        assert [(run["job"], run["found"]) for run in dry] == [(run["job"], run["found"]) for run in real]


# --------------------------------------------------------------------------------------------------------------- apply


@servers.both_topologies
async def test_apply_does_exactly_the_plan(database: Database, db: Db, root: Path) -> None:
    """What appeared since is left to the next run; what no longer holds is reported."""
    small_world(db, root)
    async with opened(database, db, cleanup(root, orphan_apps={"quarantine": "10m"})) as bench:
        plan = await bench.dry("orphan_apps")
        assert (plan["found"], plan["held"]) == ({"orphan": 4}, {"quarantine": 4})
        (root / "generated/apps/m/app13").rmdir()
        (root / "generated/apps/m/app2").mkdir()
        (applied,) = await bench.apply(plan["_id"])
        assert (applied["outcome"], applied["trigger"], applied["source"]) == ("succeeded", "plan", plan["_id"])
        assert applied["changed"] == {"deleted": 3}
        assert applied["reason"].startswith("1 planned items were left alone")
        states = {entry["id"]: entry["state"] for entry in bench.entries(plan["_id"])}
        assert states == {"app0": "done", "app1": "done", "app2": "stale", "app3": "done"}
        left = {one["_id"] for one in db["generated_applications"].find()}
        assert left == {f"app{n}" for n in (2, *range(4, 14))}
        restored = await bench.restore(applied["_id"])
        assert restored["changed"] == {"restored": 3}


@servers.both_topologies
async def test_a_plan_over_the_cap_is_stored_and_can_be_applied(database: Database, db: Db, root: Path) -> None:
    """Apply overrides the cap: somebody has read the plan."""
    small_world(db, root)
    async with opened(database, db, cleanup(root, orphan_apps={"limit": {"items": 3}})) as bench:
        plan = await bench.dry("orphan_apps")
        assert (plan["outcome"], plan["would_refuse"]) == ("succeeded", "cap")
        assert "--accept cap" in plan["reason"]
        assert len(bench.entries(plan["_id"])) == 4
        (applied,) = await bench.apply(plan["_id"])
        assert applied["changed"] == {"deleted": 4}


async def test_a_pass_is_applied_in_cascade_order(database: Database, db: Db, root: Path) -> None:
    """Each of its plans by its own run, to the same end as a real pass."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        dry = await bench.pass_(dry_run=True)
        applied = await bench.apply(dry[0]["pass"])
        assert [record["job"] for record in applied] == list(JOBS)
        assert [record["source"] for record in applied] == [record["_id"] for record in dry]
        assert [record["outcome"] for record in applied] == ["succeeded"] * 4
        assert items_of(bench, applied) == items_of(bench, dry) - Counter(
            item for item in items_of(bench, dry).elements() if item[3]
        )
        assert [sum(record["changed"].values()) for record in await bench.pass_()] == [0] * 4


async def test_a_proof_refuses_an_apply_and_the_plan_stays(database: Database, db: Db, root: Path) -> None:
    """Apply overrides quarantine and cap, never a proof; a refused apply may be repeated once the source is back."""
    small_world(db, root)
    before = picture(db)
    async with opened(database, db, cleanup(root)) as bench:
        plan = await bench.dry("orphan_apps")
        away = root.with_name(root.name + "-away")
        root.rename(away)
        try:
            (refused,) = await bench.apply(plan["_id"])
        finally:
            away.rename(root)
        assert (refused["outcome"], refused["changed"]) == ("refused", {})
        assert picture(db) == before
        (applied,) = await bench.apply(plan["_id"])
        assert (applied["outcome"], applied["changed"]) == ("succeeded", {"deleted": 4})


async def test_a_plan_is_applied_once(database: Database, db: Db, root: Path) -> None:
    """The second time says which run did it."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        plan = await bench.dry("orphan_apps")
        (applied,) = await bench.apply(plan["_id"])
        with pytest.raises(UsageError, match=f"applied by run {applied['_id']}"):
            await bench.apply(plan["_id"])


async def test_a_plan_is_good_for_a_day(database: Database, db: Db, root: Path) -> None:
    """By the server's clock."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        plan = await bench.dry("orphan_apps")
        runs = bench.own("runs")
        runs.update_one({"_id": plan["_id"]}, {"$set": {"started_at": server_now(db) - DAY}})
        with pytest.raises(UsageError, match="older than 24h"):
            await bench.apply(plan["_id"])
        runs.update_one({"_id": plan["_id"]}, {"$set": {"started_at": server_now(db) - DAY + MINUTE}})
        (applied,) = await bench.apply(plan["_id"])
        assert applied["changed"] == {"deleted": 4}


async def test_only_a_dry_run_that_ended_well_has_a_plan(database: Database, db: Db, root: Path) -> None:
    """Anything else says what it is."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        with pytest.raises(NotFoundError):
            await bench.apply("nothing")
        away = root.with_name(root.name + "-away")
        root.rename(away)
        try:
            refused = await bench.dry("orphan_apps")
        finally:
            away.rename(root)
        with pytest.raises(UsageError, match="has no plan"):
            await bench.apply(refused["_id"])
        real = await bench.run("orphan_apps")
        with pytest.raises(UsageError, match="no dry run"):
            await bench.apply(real["_id"])


@servers.both_topologies
async def test_an_interrupted_apply_is_continued(database: Database, db: Db, root: Path) -> None:
    """With what is left of the plan, and nothing twice."""
    small_world(db, root)
    async with opened(database, db, cleanup(root, orphan_apps={"batch": 1})) as bench:
        plain = bench.jobs["orphan_apps"]
        plan = await bench.dry("orphan_apps")

        def stop(look: int) -> None:
            if look == 2:
                for active in bench.agent.runner._active.values():
                    active.stop.set()

        bench.use(meddled(plain, after_still=stop))
        (first,) = await bench.apply(plan["_id"])
        assert (first["outcome"], first["changed"]) == ("interrupted", {"deleted": 2})
        bench.use(plain)
        (second,) = await bench.apply(plan["_id"])
        assert (second["outcome"], second["changed"], second["reason"]) == ("succeeded", {"deleted": 2}, None)
        with pytest.raises(UsageError, match="applied once"):
            await bench.apply(plan["_id"])


async def test_an_interrupted_apply_of_a_pass_is_continued(database: Database, db: Db, root: Path) -> None:
    """What was applied to its end is left out."""
    small_world(db, root)
    async with opened(database, db, cleanup(root, orphan_tasks={"batch": 1})) as bench:
        plain = bench.jobs["orphan_tasks"]
        dry = await bench.pass_(dry_run=True)

        def stop(look: int) -> None:
            if look == 2:
                for active in bench.agent.runner._active.values():
                    active.stop.set()

        bench.use(meddled(plain, after_still=stop))
        first = await bench.apply(dry[0]["pass"])
        assert [record["outcome"] for record in first] == ["succeeded", "interrupted", "succeeded", "succeeded"]
        bench.use(plain)
        (second,) = await bench.apply(dry[0]["pass"])
        assert (second["job"], second["outcome"], second["changed"]) == ("orphan_tasks", "succeeded", {"cancelled": 10})
        with pytest.raises(UsageError, match="applied once"):
            await bench.apply(dry[0]["pass"])


async def test_two_applies_of_one_plan_change_it_once(database: Database, db: Db, root: Path) -> None:
    """Where two people press the button, one is told so."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench, opened(database, db, cleanup(root)) as other:
        plan = await bench.dry("orphan_apps")
        begun = await bench.agent.operations.apply(plan["_id"], requested_by="ann")
        with pytest.raises(BusyError):
            await bench.agent.operations.apply(plan["_id"], requested_by="bob")
        (third,) = await other.apply(plan["_id"])
        (first,) = await bench.passed(begun)
        assert Counter(first["changed"]) + Counter(third["changed"]) == {"deleted": 4}
        assert {first["outcome"], third["outcome"]} in ({"succeeded", "failed"}, {"succeeded", "skipped"})


async def test_a_held_item_of_a_plan_is_left_alone(database: Database, db: Db, root: Path) -> None:
    """Whether it was held before the plan or after it."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        operations = bench.agent.operations
        await operations.hold(None, "generated_applications", "app0", requested_by="ann")
        plan = await bench.dry("orphan_apps")
        assert plan["held"] == {"hold": 1}
        await operations.hold(None, "generated_applications", "app1", requested_by="ann")
        (applied,) = await bench.apply(plan["_id"])
        assert (applied["changed"], applied["held"]) == ({"deleted": 2}, {"hold": 2})
        assert db["generated_applications"].count_documents({"_id": {"$in": ["app0", "app1"]}}) == 2


# --------------------------------------------------------------------------------------------------------------- holds


@servers.both_topologies
async def test_a_held_document_is_kept_from_every_job_until_it_is_released(
    database: Database, db: Db, root: Path
) -> None:
    """It is found, listed as held, and left byte for byte as it is."""
    small_world(db, root)
    held = [
        ("generated_applications", "app0"),
        ("analysis_tasks", "lost2"),
        ("analysis_tasks", "lost_old1"),
        ("analysis_tasks", "stuck1"),
        ("analysis_tasks", "old1"),
    ]
    async with opened(database, db, cleanup(root)) as bench:
        operations = bench.agent.operations
        for collection, id in held:
            said = await operations.hold(None, collection, id, requested_by="ann", reason="looking at it")
            assert (said["held"], said["by"], said["reason"]) == (True, "ann", "looking at it")
        before = {name: {one["_id"]: one for one in db[name].find()} for name, _ in held}
        records = await bench.pass_()
        assert {record["job"]: record["held"] for record in records} == {
            "orphan_apps": {"hold": 1},
            "orphan_tasks": {"hold": 2},
            "stuck_tasks": {"hold": 2},
            "old_tasks": {"hold": 1},
        }
        for collection, id in held:
            assert db[collection].find_one({"_id": id}) == before[collection][id]
            assert (await operations.release(None, collection, id, requested_by="ann"))["held"] is False
        records = await bench.pass_()
        assert [record["held"] for record in records] == [{}] * 4
        assert sum(sum(record["changed"].values()) for record in records) >= 5


async def test_a_hold_that_is_made_between_the_look_and_the_write_counts(
    database: Database, db: Db, root: Path
) -> None:
    """Marks are looked at again with every batch."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:

        async def hold(look: int) -> None:
            if look == 0:
                await bench.agent.operations.hold(None, "generated_applications", "app1", requested_by="ann")

        bench.use(meddled(bench.jobs["orphan_apps"], after_still=hold))
        ran = await bench.run("orphan_apps")
        assert (ran["changed"], ran["held"]) == ({"deleted": 3}, {"hold": 1})


async def test_what_is_not_there_cannot_be_held_or_released(database: Database, db: Db, root: Path) -> None:
    """The message names the collection and the id."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        with pytest.raises(NotFoundError, match="analysis_tasks has no document with the id nothing"):
            await bench.agent.operations.hold(None, "analysis_tasks", "nothing", requested_by="ann")
        with pytest.raises(NotFoundError, match="no held document"):
            await bench.agent.operations.release(None, "analysis_tasks", "lost1", requested_by="ann")


async def test_an_id_given_as_text_means_one_document_or_an_error(database: Database, db: Db) -> None:
    """Extended JSON, text, 24 digits; of several the error lists them, and so it does for a release."""
    hexadecimal = "65e1c0000000000000000000"
    ids: list[Any] = [
        ObjectId(hexadecimal),
        hexadecimal,
        5,
        "5",
        "plain",
        {"a": 1},
        True,
        2**70 % 2**63,
        Decimal128("5.5"),
    ]
    db["things"].insert_many([{"_id": id} for id in ids])
    async with opened(database, db, {}) as bench:
        operations = bench.agent.operations

        async def hold(text: str) -> Any:
            return (await operations.hold(None, "things", text, requested_by="ann"))["id"]

        for text in (hexadecimal, "5"):
            with pytest.raises(UsageError, match="means several documents"):
                await hold(text)
        assert await hold(f'{{"$oid": "{hexadecimal}"}}') == {"$oid": hexadecimal}
        assert await hold(f'"{hexadecimal}"') == hexadecimal
        assert await hold('"5"') == "5"
        assert await hold('{"$numberInt": "5"}') == 5
        assert await hold("plain") == "plain"
        assert await hold('{"a": 1}') == {"a": 1}
        assert await hold("true") is True
        assert await hold('{"$numberDecimal": "5.5"}') == {"$numberDecimal": "5.5"}
        pattern = '{"$regularExpression": {"pattern": "^pl", "options": ""}}'
        for text in ("9" * 30, "[1]", "null", '{"$date": "x"}', "\x00", pattern):
            with pytest.raises(NotFoundError):
                await hold(text)
        assert bench.own("marks").count_documents({}) == 8
        for text in (hexadecimal, "5"):
            with pytest.raises(UsageError, match="means several documents"):
                await operations.release(None, "things", text, requested_by="ann")
        assert (await operations.release(None, "things", '"5"', requested_by="ann"))["id"] == "5"
        assert (await operations.release(None, "things", "5", requested_by="ann"))["id"] == 5
        assert bench.own("marks").count_documents({}) == 6


# ------------------------------------------------------------------------------------------------------------- restore


ODD: Document = {
    "z": 1,
    "a": 2,
    "regex": Regex("^a(", "imx"),
    "decimal": Decimal128("1.10"),
    "nan": math.nan,
    "infinity": -math.inf,
    "negative_zero": -0.0,
    "binary": Binary(b"\x00\xff", 128),
    "bytes": b"raw",
    "timestamp": Timestamp(1, 2),
    "min": MinKey(),
    "max": MaxKey(),
    "long": Int64(1),
    "int": 1,
    "double": 1.0,
    "code": Code("function() {}", {"x": 1}),
    "reference": DBRef("things", 1),
    "id": ObjectId("65e1c0000000000000000000"),
    "nested": {"b": {"z": [], "a": [{"x": None}, [1, [2]]]}, "a": {}},
    "empty": "",
    "null": None,
    "$dollar": {"$where": 1, "$set": {"x": 1}},
    "dotted.name": {"a.b": 1, "": 2},
    "日本": "語",
}


@servers.both_topologies
async def test_odd_documents_come_back_byte_for_byte_and_in_their_order(database: Database, db: Db, root: Path) -> None:
    """Deleted ones whole, changed ones in the fields that were changed."""
    small_world(db, root)
    now = server_now(db)
    records = [
        encoded({**ODD, "_id": "odd1", "model_slug": "m", "app_number": 50, "created_at": now - DAY}),
        encoded({"created_at": now - DAY, **ODD, "app_number": 51, "_id": "odd2", "model_slug": "m"}),
    ]
    insert_raw(db, "generated_applications", *records)
    tasks = [
        {"status": "RUNNING", "_id": "odd1", **ODD, "started_at": now - DAY},
        {"_id": "odd2", "error_message": ODD, "status": "RUNNING", "started_at": now - DAY, "completed_at": Regex("x")},
        {
            "_id": "odd3",
            "completed_at": math.nan,
            "x": 1,
            "error_message": None,
            "status": "RUNNING",
            "started_at": now - DAY,
        },
        {
            "_id": "odd4",
            "status": "PENDING",
            "created_at": now - DAY,
            "error_message": DBRef("a", 1),
            "completed_at": [now],
        },
    ]
    insert_raw(
        db, "analysis_tasks", *(encoded({**task, "target_model": "m", "target_app_number": 5}) for task in tasks)
    )
    before = picture(db)
    async with opened(database, db, cleanup(root)) as bench:
        records_run, _, stuck_run, old_run = await bench.pass_()
        assert records_run["changed"] == {"deleted": 6}
        assert stuck_run["changed"] == {"failed": 6, "cancelled": 3}
        assert old_run["failed"] == 0
        for record in (old_run, stuck_run, _, records_run):
            restored = await bench.restore(record["_id"])
            assert (restored["outcome"], restored["failed"]) == ("succeeded", 0)
    assert picture(db) == before


@servers.both_topologies
async def test_what_changed_since_is_a_conflict_and_stays_and_what_is_as_it_was_is_none(
    database: Database, db: Db, root: Path
) -> None:
    """Nothing is overwritten, ever."""
    small_world(db, root)
    before = picture(db)
    async with opened(database, db, cleanup(root)) as bench:
        first = await bench.run("orphan_apps")
        originals = {entry["id"]: entry["before"] for entry in bench.entries(first["_id"])}
        insert_raw(db, "generated_applications", bytes(originals["app0"]))
        db["generated_applications"].insert_one({"_id": "app1", "made": "anew"})
        restored = await bench.restore(first["_id"])
        assert (restored["outcome"], restored["changed"], restored["failed"]) == ("succeeded", {"restored": 3}, 1)
        assert restored["reason"].startswith("1 documents changed since")
        states = {entry["id"]: entry["state"] for entry in bench.entries(first["_id"])}
        assert states == {"app0": "restored", "app1": "conflict", "app2": "restored", "app3": "restored"}
        assert db["generated_applications"].find_one({"_id": "app1"}) == {"_id": "app1", "made": "anew"}
        assert {item["reason"] for item in restored["sample"] if item["action"] is None} == {"conflict"}
        db["generated_applications"].delete_one({"_id": "app1"})
        again = await bench.restore(first["_id"])
        assert (again["changed"], again["failed"]) == ({"restored": 1}, 0)
        assert picture(db) == before

        stuck = await bench.run("stuck_tasks")
        tasks = db["analysis_tasks"]
        tasks.update_one({"_id": "stuck0"}, {"$set": {"status": "RUNNING"}})
        tasks.update_one({"_id": "stuck1"}, {"$set": {"something": "else"}})
        tasks.update_one({"_id": "stuck2"}, {"$set": {"status": "RUNNING"}, "$unset": {"error_message": 1}})
        tasks.update_one({"_id": "stuck2"}, {"$set": {"completed_at": None}})
        tasks.delete_one({"_id": "stuck_pending0"})
        restored = await bench.restore(stuck["_id"])
        assert (restored["changed"], restored["failed"]) == ({"restored": 7}, 2)
        states = {entry["id"]: entry["state"] for entry in bench.entries(stuck["_id"]) if entry["state"] != "restored"}
        assert states == {"stuck0": "conflict", "stuck_pending0": "conflict"}
        assert tasks.count_documents({"_id": "stuck1", "something": "else"}) == 1
        assert tasks.count_documents({"_id": "stuck_pending0"}) == 0


@servers.both_topologies
async def test_one_document_of_a_run_can_be_restored(database: Database, db: Db, root: Path) -> None:
    """By its id as text; the rest stays as the run left it and can follow."""
    small_world(db, root)
    before = picture(db)
    async with opened(database, db, cleanup(root)) as bench:
        ran = await bench.run("orphan_apps")
        one = await bench.restore(ran["_id"], item="app2")
        assert (one["changed"], one["population"]) == ({"restored": 1}, 1)
        assert db["generated_applications"].count_documents({"_id": {"$in": ["app0", "app1", "app2", "app3"]}}) == 1
        with pytest.raises(NotFoundError):
            await bench.restore(ran["_id"], item="app7")
        with pytest.raises(NotFoundError):
            await bench.restore("nothing")
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": 3}
        assert (await bench.restore(ran["_id"]))["changed"] == {}
        assert picture(db) == before
        with pytest.raises(UsageError, match="changed nothing that can be restored"):
            await bench.restore(one["_id"])
        dry = await bench.dry("orphan_apps")
        with pytest.raises(UsageError, match="changed nothing that can be restored"):
            await bench.restore(dry["_id"])


@servers.both_topologies
async def test_what_was_restored_is_held_for_a_week_and_a_hold_of_a_person_for_ever(
    database: Database, db: Db, root: Path
) -> None:
    """A restore never shortens what an operator said."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        ran = await bench.run("stuck_tasks")
        await bench.agent.operations.hold(None, "analysis_tasks", "stuck0", requested_by="ann", reason="mine")
        restored = await bench.restore(ran["_id"])
        holds = {mark["_id"]["id"]: mark for mark in bench.own("marks").find({"_id.type": "hold"})}
        assert len(holds) == restored["changed"]["restored"]
        assert holds["stuck1"]["until"] == restored["started_at"] + 7 * DAY
        assert holds["stuck1"]["expires_at"] == holds["stuck1"]["until"]
        assert holds["stuck1"]["reason"] == f"restored by {restored['_id']}"
        assert (holds["stuck0"]["until"], holds["stuck0"]["reason"], holds["stuck0"]["by"]) == (None, "mine", "ann")
        assert "expires_at" not in holds["stuck0"]
        await bench.agent.operations.hold(None, "analysis_tasks", "stuck1", requested_by="ann", reason="mine too")
        mark = bench.own("marks").find_one({"_id": holds["stuck1"]["_id"]})
        assert (mark["until"], mark["reason"], "expires_at" in mark) == (None, "mine too", False)


@servers.both_topologies
async def test_a_unique_index_that_is_in_the_way_of_a_restore_is_a_conflict(
    database: Database, db: Db, root: Path
) -> None:
    """Of the one document; the others come back."""
    small_world(db, root)
    db["generated_applications"].create_index([("model_slug", 1), ("app_number", 1)], unique=True)
    async with opened(database, db, cleanup(root)) as bench:
        ran = await bench.run("orphan_apps")
        db["generated_applications"].insert_one({"_id": "another", "model_slug": "m", "app_number": 2})
        restored = await bench.restore(ran["_id"])
        assert (restored["outcome"], restored["changed"], restored["failed"]) == ("succeeded", {"restored": 3}, 1)
        states = {entry["id"]: entry["state"] for entry in bench.entries(ran["_id"])}
        assert states == {"app0": "restored", "app1": "restored", "app2": "conflict", "app3": "restored"}
        assert bench.own("runs").find_one({"_id": restored["_id"]})["changed"] == {"restored": 3}


async def test_a_restore_does_not_count_as_success_of_the_job_nor_in_its_statistics(
    database: Database, db: Db, root: Path
) -> None:
    """What was restored is no cleaning."""
    small_world(db, root)
    async with opened(database, db, cleanup(root)) as bench:
        ran = await bench.run("orphan_apps")
        await bench.restore(ran["_id"])
        statistics = (await bench.agent.operations.status())["statistics"]
        assert statistics["orphan_apps_cleaned"] == 4
        assert bench.own("controls").find_one({"_id": {"$regex": "^deleted/"}})["count"] == 0


async def test_the_agents_own_deletions_are_no_drop_of_the_targets(database: Database, db: Db, root: Path) -> None:
    """Neither in the same pass nor in a later one, and a restore takes them back."""
    small_world(db, root)
    for n in range(4, 11):
        (root / f"generated/apps/m/app{n}").rmdir()
    async with opened(database, db, cleanup(root, orphan_apps={"limit": {"fraction": 1}})) as bench:
        bench.own("controls").insert_one({"_id": "baseline/orphan_tasks/targets", "measure": 14, "identity": None})
        records = await bench.pass_()
        assert [record["outcome"] for record in records] == ["succeeded"] * 4
        assert records[0]["changed"] == {"deleted": 11}
        baseline = bench.own("controls").find_one({"_id": "baseline/orphan_tasks/targets"})
        assert (baseline["measure"], baseline["deleted"]) == (3, 11)
        await bench.restore(records[0]["_id"])
        db["generated_applications"].delete_many({"_id": {"$in": [f"app{n}" for n in range(8)]}})
        db["analysis_tasks"].insert_one(
            {"target_model": "m", "target_app_number": 77, "status": "PENDING", "created_at": server_now(db) - HOUR}
        )
        assert (await bench.run("orphan_tasks"))["outcome"] == "refused"


async def test_the_items_of_a_run_are_shown_without_their_contents(database: Database, db: Db, root: Path) -> None:
    """Page by page, in order; the copies may hold secrets and are restored, not read."""
    small_world(db, root)
    db["generated_applications"].update_many({}, {"$set": {"password": "hunter2"}})
    async with opened(database, db, cleanup(root)) as bench:
        ran = await bench.run("orphan_apps")
        seen: list[Document] = []
        after: str | None = None
        for _ in range(10):
            page, after = await bench.agent.operations.items(ran["_id"], after=after, limit=3)
            seen += page
            if after is None:
                break
        assert [item["id"] for item in seen] == ["app0", "app1", "app2", "app3"]
        assert {item["state"] for item in seen} == {"done"}
        assert "hunter2" not in str(seen)
        with pytest.raises(UsageError):
            await bench.agent.operations.items(ran["_id"], after="nonsense")
