"""Runs on real servers: how they end, who may run, what two agents do, and what a broken one leaves behind."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent import batches as batches_module
from agent import lease as lease_module
from agent import runner as runner_module
from agent.batches import Batches
from agent.errors import BusyError, SlotTakenError, StoreError, UsageError
from agent.runner import Order, order_of
from agent.store import Collection
from tests import servers
from tests.conftest import Database
from tests.harness import DAY, HOUR, MINUTE, Bench, Db, Document, encoded, meddled, opened, picture, server_now

Jobs = dict[str, dict[str, Any]]
OLD: Jobs = {"old": {"kind": "retention", "limit": {"fraction": 1}}}
STUCK: Jobs = {"stuck": {"kind": "stuck_tasks", "limit": {"fraction": 1}}}


def finished(db: Db, count: int = 6, **more: Any) -> None:
    """Tasks that retention deletes."""
    ended = server_now(db) - 31 * DAY
    db["analysis_tasks"].insert_many(
        [{"_id": number, "status": "COMPLETED", "completed_at": ended, **more} for number in range(count)]
    )


def dead(db: Db, count: int = 6, **more: Any) -> None:
    """Tasks that are stuck."""
    begun = server_now(db) - DAY
    db["analysis_tasks"].insert_many(
        [{"_id": number, "status": "RUNNING", "started_at": begun, **more} for number in range(count)]
    )


def sample(bench: Bench, name: str, **labels: str) -> float | None:
    """A metric of the agent's process."""
    return bench.agent.metrics.registry.get_sample_value(f"maintenance_{name}", labels)


def slot(db: Db, hours: int = 0) -> dt.datetime:
    """A scheduled instant."""
    return server_now(db).replace(minute=0, second=0, microsecond=0) - hours * HOUR


# ------------------------------------------------------------------------------------------------------------- outcomes


async def test_a_record_says_all_there_is_to_say(database: Database, db: Db) -> None:
    """Who asked, when, what for, how it ended, what it found; without zeros; for as long as it is kept."""
    finished(db)
    when = slot(db)
    async with opened(database, db, OLD, journal={"keep": "5d"}) as bench:
        records = await bench.pass_(trigger="schedule", requested_by=None, slots={"old": when})
        (ran,) = records
        assert ran["seconds"] >= 0
        assert ran["ended_at"] >= ran["started_at"]
        assert ran["expires_at"] == ran["started_at"] + 5 * DAY
        assert {name: ran[name] for name in ran if name not in {"started_at", "ended_at", "seconds", "expires_at", "sample"}} == {
            "_id": ran["_id"],
            "pass": ran["pass"],
            "job": "old",
            "kind": "retention",
            "trigger": "schedule",
            "requested_by": None,
            "dry_run": False,
            "accept": [],
            "source": None,
            "scheduled_for": when,
            "outcome": "succeeded",
            "reason": None,
            "guard": None,
            "consent": None,
            "population": 6,
            "found": {"expired": 6},
            "held": {},
            "changed": {"deleted": 6},
            "failed": 0,
            "complete": True,
            "would_refuse": None,
            "oldest_found_at": ran["oldest_found_at"],
            "agent": bench.agent.name,
            "term": 1,
        } | {name: ran[name] for name in ("throttled",) if name in ran}  # fmt: skip
        shown = await bench.agent.operations.run(ran["_id"])
        assert "expires_at" not in shown
        assert shown["started_at"].endswith("Z")


async def test_a_refusal_names_the_guard_and_what_an_operator_can_accept(
    database: Database, db: Db, root: Path
) -> None:
    """In fields of their own, so that nobody has to read them out of the reason; null where no consent helps."""
    finished(db)
    db.generated_applications.insert_one({"model_slug": "m", "app_number": 1, "created_at": server_now(db) - DAY})
    jobs: dict[str, dict[str, Any]] = {
        "old": {"kind": "retention", "limit": {"fraction": 0.1, "floor": 0}},
        "apps": {"kind": "orphan_records", "root": str(root / "missing")},
        "empty": {"kind": "orphan_records", "root": str(root)},
    }
    async with opened(database, db, jobs) as bench:
        ran, looked = await bench.run("old"), await bench.dry("old")
        assert (ran["outcome"], ran["guard"], ran["consent"]) == ("refused", "cap", "cap")
        assert (looked["would_refuse"], looked["guard"], looked["consent"]) == ("cap", None, "cap")
        unread, unproven = await bench.run("apps"), await bench.run("empty")
        assert (unread["outcome"], unread["guard"], unread["consent"]) == ("refused", "root", None)
        assert (unproven["outcome"], unproven["guard"], unproven["consent"]) == ("refused", "root", "root")


async def test_outcomes_and_refusals_are_counted_in_the_process(database: Database, db: Db) -> None:
    """One line a run; nothing is in progress afterwards and no lease is held."""
    finished(db)
    async with opened(database, db, {"old": {"kind": "retention", "limit": {"fraction": 0.1, "floor": 0}}}) as bench:
        assert (await bench.run("old"))["outcome"] == "refused"
        assert (await bench.dry("old"))["outcome"] == "succeeded"
        assert (await bench.run("old", accept=frozenset({"cap"})))["outcome"] == "succeeded"
        assert sample(bench, "runs_total", job_name="old", outcome="refused") == 1
        assert sample(bench, "runs_total", job_name="old", outcome="succeeded") == 2
        assert sample(bench, "refusals_total", job_name="old", guard="cap") == 1
        assert sample(bench, "changed_total", job_name="old", action="deleted") == 6
        assert sample(bench, "run_duration_seconds_count", job_name="old") == 3
        assert sample(bench, "run_in_progress", job_name="old") == 0
        assert sample(bench, "lease_held", job_name="old") == 0


@servers.both_topologies
async def test_a_run_whose_time_is_up_says_so_and_the_next_goes_on(database: Database, db: Db) -> None:
    """Whatever it was waiting for; its lease is given back."""
    finished(db)

    async def hangs() -> None:
        await asyncio.Event().wait()

    async with opened(database, db, OLD) as bench:
        plain = bench.jobs["old"]
        bench.use(meddled(plain, before_select=hangs).model_copy(update={"run_timeout": dt.timedelta(milliseconds=50)}))
        for dry_run in (True, False):
            ran = await bench.run("old", dry_run=dry_run)
            assert (ran["outcome"], ran["changed"], ran["complete"]) == ("timed_out", {}, False)
            assert "run_timeout" in ran["reason"]
        bench.use(plain)
        assert (await bench.run("old"))["changed"] == {"deleted": 6}


@servers.both_topologies
async def test_a_run_whose_time_is_up_half_way_counts_what_it_changed(database: Database, db: Db) -> None:
    """Between two batches."""
    finished(db)

    async def hangs(look: int) -> None:
        if look == 4:
            await asyncio.Event().wait()

    async with opened(database, db, {"old": {**OLD["old"], "batch": 1}}) as bench:
        plain = bench.jobs["old"]
        slow = meddled(plain, before_still=hangs)
        bench.use(slow.model_copy(update={"run_timeout": dt.timedelta(seconds=2)}))
        ran = await bench.run("old")
        deleted = 6 - db["analysis_tasks"].count_documents({})
        assert (ran["outcome"], ran["complete"]) == ("timed_out", False)
        assert ran["changed"] == ({"deleted": deleted} if deleted else {})
        bench.use(plain)
        assert sum((await bench.run("old"))["changed"].values()) == 6 - deleted


async def test_a_query_that_the_server_ends_when_the_time_is_up_is_a_time_out(database: Database, db: Db) -> None:
    """Not a failure of the server, which only did as it was told; several times, since the two ends race."""
    finished(db)
    async with opened(database, db, OLD) as bench:
        tasks = bench.agent.store.collection(bench.jobs["old"].namespace)

        async def queries() -> None:
            await tasks.find_all({"$where": "sleep(3000) || true"})

        slow = meddled(bench.jobs["old"], before_select=queries)
        bench.use(slow.model_copy(update={"run_timeout": dt.timedelta(milliseconds=300)}))
        outcomes = Counter([(await bench.run("old"))["outcome"] for _ in range(5)])
        assert outcomes == {"timed_out": 5}


async def test_a_defect_of_a_job_is_a_failed_run_and_no_more(database: Database, db: Db) -> None:
    """The process goes on; the record names the error, not its details."""
    finished(db)

    def breaks() -> None:
        raise KeyError("hunter2")

    async with opened(database, db, OLD) as bench:
        plain = bench.jobs["old"]
        bench.use(meddled(plain, after_select=breaks))
        ran = await bench.run("old")
        assert (ran["outcome"], ran["reason"]) == ("failed", "KeyError: a defect of the agent, see its log")
        bench.use(plain)
        assert (await bench.run("old"))["outcome"] == "succeeded"


# ------------------------------------------------------------------------------------------------------ who may run when


async def test_one_run_of_a_job_at_a_time(database: Database, db: Db) -> None:
    """A second one is busy, in a pass it is skipped; a dry run goes beside it."""
    finished(db)
    inside, outside = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        inside.set()
        await outside.wait()

    async with opened(database, db, {**OLD, **STUCK}) as bench:
        plain = bench.jobs["old"]
        bench.use(meddled(plain, before_select=waits))
        first = await bench.start("old")
        await inside.wait()
        bench.use(plain)
        with pytest.raises(BusyError, match="old is already running"):
            await bench.start("old")
        assert (await bench.dry("old"))["outcome"] == "succeeded"
        stuck, old = await bench.pass_()
        assert (stuck["job"], stuck["outcome"]) == ("stuck", "succeeded")
        assert (old["job"], old["outcome"]) == ("old", "skipped")
        assert bench.record(old["_id"]) is None
        outside.set()
        assert (await bench.ended(first))["changed"] == {"deleted": 6}
        assert sample(bench, "runs_total", job_name="old", outcome="skipped") == 2
        assert sample(bench, "missed_runs_total", job_name="old") == 0


@servers.both_topologies
async def test_two_agents_run_a_job_one_at_a_time(database: Database, db: Db) -> None:
    """The other is told by whom it is run, and has missed its slot."""
    finished(db)
    inside, outside = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        inside.set()
        await outside.wait()

    async with opened(database, db, OLD) as one, opened(database, db, OLD) as two:
        one.use(meddled(one.jobs["old"], before_select=waits))
        first = await one.start("old")
        await inside.wait()
        with pytest.raises(BusyError, match=f"already running on {one.agent.name}"):
            await two.start("old")
        (skipped,) = await two.pass_(trigger="schedule", slots={"old": slot(db)})
        assert skipped["outcome"] == "skipped"
        assert sample(two, "missed_runs_total", job_name="old") == 1
        assert (await two.dry("old"))["found"] == {"expired": 6}
        outside.set()
        assert (await one.ended(first))["changed"] == {"deleted": 6}
        assert (await two.run("old"))["changed"] == {}
        assert [run["term"] for run in two.own("runs").find({"dry_run": False}, sort=[("term", 1)])] == [1, 2]


@servers.both_topologies
@pytest.mark.parametrize("indexes", ["manage", "check"])
async def test_a_slot_is_run_once_however_many_agents_there_are(database: Database, db: Db, indexes: str) -> None:
    """At the same time or one after the other; also where the unique index could not be made."""
    finished(db)
    async with (
        opened(database, db, OLD, indexes=indexes) as one,
        opened(database, db, OLD, indexes=indexes) as two,
        opened(database, db, OLD, indexes=indexes) as three,
    ):
        agents = (one, two, three)
        for hours in range(5):
            when = slot(db, hours)
            rounds = await asyncio.gather(*(bench.pass_(trigger="schedule", slots={"old": when}) for bench in agents))
            outcomes = Counter(record["outcome"] for records in rounds for record in records)
            assert outcomes == {"succeeded": 1, "skipped": 2}
            (late,) = await one.pass_(trigger="schedule", slots={"old": when})
            assert late["outcome"] == "skipped"
        runs = list(one.own("runs").find({}, sort=[("term", 1)]))
        assert len(runs) == len({run["scheduled_for"] for run in runs}) == 5
        terms = [run["term"] for run in runs]
        assert terms == sorted(set(terms))
        assert sum(sample(bench, "missed_runs_total", job_name="old") or 0 for bench in agents) == 0
        (manual,) = await two.pass_()
        assert manual["outcome"] == "succeeded"


async def test_a_slot_that_a_replica_ran_is_taken_and_its_lease_is_free_again(database: Database, db: Db) -> None:
    """Asking for it costs the job nothing."""
    finished(db)
    async with opened(database, db, OLD) as one, opened(database, db, OLD) as two:
        when = slot(db)
        await one.pass_(trigger="schedule", slots={"old": when})
        order, body = order_of(two.jobs["old"], Order("schedule", scheduled_for=when))
        with pytest.raises(SlotTakenError):
            await two.agent.runner.start(order, body)
        assert (await one.run("old"))["outcome"] == "succeeded"


async def test_a_shutdown_lets_the_batch_in_hand_end_and_begins_nothing_more(database: Database, db: Db) -> None:
    """The run is interrupted, the rest of the pass is skipped, and the next agent goes on."""
    finished(db)
    inside = asyncio.Event()
    async with opened(database, db, {"old": {**OLD["old"], "batch": 2}, "second": OLD["old"]}) as bench:
        plain = bench.jobs["old"]

        async def waits(look: int) -> None:
            if look == 0:
                inside.set()
                await asyncio.sleep(0)

        bench.use(meddled(plain, after_still=waits))
        begun = await bench.agent.operations.run_pass(trigger="manual", requested_by=None)
        await inside.wait()
        await bench.agent.runner.shut_down(20)
        first, second = await bench.passed(begun)
        deleted = 6 - db["analysis_tasks"].count_documents({})
        assert (first["outcome"], sum(first["changed"].values())) == ("interrupted", deleted)
        assert deleted in {0, 2}
        assert second["outcome"] == "skipped"
        with pytest.raises(BusyError, match="shutting down"):
            await bench.start("old")
    async with opened(database, db, OLD) as bench:
        assert sum((await bench.run("old"))["changed"].values()) == 6 - deleted


async def test_a_shutdown_breaks_off_what_does_not_end_in_time(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record says interrupted all the same."""
    finished(db)
    inside = asyncio.Event()

    async def hangs(*_: object) -> None:
        inside.set()
        await asyncio.Event().wait()

    async with opened(database, db, OLD) as bench:
        monkeypatch.setattr(Batches, "write", hangs)
        active = await bench.start("old")
        await inside.wait()
        await bench.agent.runner.shut_down(0.05)
        ran = bench.record(active.id)
        assert ran is not None
        assert (ran["outcome"], ran["changed"]) == ("interrupted", {})
        assert ran["reason"] == "the agent was shut down"
        assert bench.own("leases").find_one({"_id": "old"})["expires_at"] <= server_now(db)


@servers.both_topologies
async def test_a_run_can_be_cancelled_here_and_from_another_replica(database: Database, db: Db) -> None:
    """Between two batches; a run that has ended cannot."""
    finished(db)
    async with opened(database, db, {"old": {**OLD["old"], "batch": 1}}) as one, opened(database, db, OLD) as two:
        plain = one.jobs["old"]
        for canceller in (two, one):
            running: list[Any] = []

            async def cancels(look: int, by: Bench = canceller, what: list[Any] = running) -> None:
                if look == 2:
                    await by.agent.operations.cancel(what[0].id, requested_by="ann")

            one.use(meddled(plain, after_still=cancels))
            running.append(await one.start("old"))
            ran = await one.ended(running[0])
            assert ran["outcome"] == "interrupted"
            assert sum(ran["changed"].values()) in {2, 3, 1}
            with pytest.raises(UsageError, match="nothing to cancel"):
                await two.agent.operations.cancel(ran["_id"], requested_by="ann")
        one.use(plain)
        assert (await one.run("old"))["outcome"] == "succeeded"
        assert db["analysis_tasks"].count_documents({}) == 0


# --------------------------------------------------------------------------------------------------------------- fencing


@servers.both_topologies
async def test_a_holder_whose_lease_was_taken_changes_nothing_more(database: Database, db: Db) -> None:
    """The batch that notices is undone whole; the new holder's term stands."""
    finished(db)

    def taken(look: int) -> None:
        if look == 2:
            db["maintenance_leases"].update_one(
                {"_id": "old"},
                {"$set": {"holder": "another", "expires_at": server_now(db) + HOUR}, "$inc": {"term": 1}},
            )

    async with opened(database, db, {"old": {**OLD["old"], "batch": 2}}) as bench:
        bench.use(meddled(bench.jobs["old"], before_still=taken))
        active = await bench.start("old")
        ran = await bench.ended(active)
        assert active.record()["outcome"] == "interrupted"
        deleted = 6 - db["analysis_tasks"].count_documents({})
        assert deleted in {2, 4}  # a batch looks twice, where there is evidence to look at
        assert ran["changed"] == {"deleted": deleted}
        assert len([entry for entry in bench.entries(ran["_id"]) if entry["state"] == "done"]) == deleted
        lease = bench.own("leases").find_one({"_id": "old"})
        assert (lease["holder"], lease["term"]) == ("another", 2)
        assert lease["expires_at"] > server_now(db)
        await closed_by_the_next(bench, ran)


async def closed_by_the_next(bench: Bench, ran: Document) -> None:
    """The record of a run that lost its lease is closed at once, or by the next that takes it; its counts stand."""
    bench.own("leases").update_many({}, {"$set": {"expires_at": server_now(bench.db) - MINUTE}})
    bench.use(bench.jobs["old"].model_copy(update={"batch": 100}))
    following = await bench.run("old")
    closed = bench.record(ran["_id"])
    assert closed is not None
    assert (closed["outcome"], closed["changed"]) == ("interrupted", ran["changed"])
    assert sum(following["changed"].values()) + sum(closed["changed"].values()) == 6
    assert bench.db["analysis_tasks"].count_documents({}) == 0


@servers.both_topologies
async def test_a_holder_that_stood_still_past_its_lease_changes_nothing_more(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock tells it, before the server does."""
    finished(db)
    real, jump = lease_module.boot_time, [0.0]
    monkeypatch.setattr(lease_module, "boot_time", lambda: real() + jump[0])

    def stands_still(look: int) -> None:
        if look == 2:
            jump[0] += 49  # of the 60 that the lease lasts; the last fifth is a margin

    async with opened(database, db, {"old": {**OLD["old"], "batch": 2}}) as bench:
        plain = bench.jobs["old"]
        bench.use(meddled(plain, before_still=stands_still))
        active = await bench.start("old")
        ran = await bench.ended(active)
        assert active.record()["outcome"] == "interrupted"
        assert "ran out" in active.record()["reason"]
        deleted = 6 - db["analysis_tasks"].count_documents({})
        assert ran["changed"] == {"deleted": deleted}
        assert deleted in {2, 4}
        bench.use(plain)
        await closed_by_the_next(bench, ran)


@servers.both_topologies
async def test_a_stale_holder_and_the_new_one_delete_everything_once(database: Database, db: Db) -> None:
    """The counts of both together are what is gone."""
    finished(db, 20)
    others: list[Document] = []
    async with opened(database, db, {"old": {**OLD["old"], "batch": 3}}) as one, opened(database, db, OLD) as two:

        async def frozen(look: int) -> None:
            if look == 3 and not others:
                one.own("leases").update_one({"_id": "old"}, {"$set": {"expires_at": server_now(db) - MINUTE}})
                others.append(await two.run("old"))

        one.use(meddled(one.jobs["old"], after_still=frozen))
        stale = await one.run("old")
        assert others[0]["outcome"] == "succeeded"
        # The new holder found the stale one's record still open, and closed it with what its batches had committed.
        assert stale["outcome"] == "interrupted"
        assert sum(stale["changed"].values()) + sum(others[0]["changed"].values()) == 20
        assert 0 < sum(stale["changed"].values()) < 20
        assert db["analysis_tasks"].count_documents({}) == 0
        entries = Counter(entry["id"] for entry in one.own("items").find({"state": "done"}))
        assert entries == dict.fromkeys(range(20), 1)
        totals = one.own("controls").find_one({"_id": "totals"})
        assert (totals["runs"], totals["retention"]) == (2, {"deleted": 20})


# -------------------------------------------------------------------------------------------- what a dead agent left


def left_open(db: Db, term: int = 4, **more: Any) -> Document:
    """The record and the expired lease of an agent that died."""
    at = server_now(db) - MINUTE
    run = {
        "_id": "left",
        "pass": "p",
        "job": "old",
        "kind": "retention",
        "trigger": "schedule",
        "dry_run": False,
        "started_at": at,
        "ended_at": None,
        "outcome": None,
        "changed": {},
        "failed": 0,
        "term": term,
        **more,
    }
    db["maintenance_runs"].insert_one(run)
    db["maintenance_leases"].insert_one({"_id": "old", "holder": "dead", "term": term, "expires_at": at})
    return run


@servers.both_topologies
async def test_a_run_that_a_dead_agent_left_is_closed_with_the_counts_of_its_batches(
    database: Database, db: Db
) -> None:
    """By the next run that takes the lease, with the next term; the totals have them too."""
    finished(db)
    left_open(db, changed={"deleted": 3} if database.topology == "replica_set" else {})
    if database.topology == "standalone":
        for number in range(3):
            db["maintenance_items"].insert_one(
                {"run": "left", "job": "old", "id": number, "action": "deleted", "state": "done"}
            )
    async with opened(database, db, OLD) as bench:
        ran = await bench.run("old")
        assert ran["term"] == 5
        closed = bench.record("left")
        assert closed is not None
        assert (closed["outcome"], closed["changed"], closed["complete"]) == ("interrupted", {"deleted": 3}, False)
        assert closed["ended_at"] == ran["started_at"]
        totals = bench.own("controls").find_one({"_id": "totals"})
        assert (totals["runs"], totals["retention"]) == (2, {"deleted": 9})


@pytest.mark.parametrize("topology", ["standalone"])
async def test_pending_changes_are_settled_both_ways(database: Database, db: Db) -> None:
    """What happened is confirmed, counted and can be restored; what did not is dropped and done by the next run."""
    finished(db, 4)
    originals = {one["_id"]: one for one in db["analysis_tasks"].find()}
    left_open(db)
    for number in range(4):
        db["maintenance_items"].insert_one(
            {
                "run": "left",
                "job": "old",
                "database": database.name,
                "collection": "analysis_tasks",
                "id": number,
                "what": "expired",
                "action": "deleted",
                "reason": "old",
                "state": "pending",
                "before": encoded(originals[number]),
                "expires_at": server_now(db) + DAY,
            }
        )
    db["analysis_tasks"].delete_many({"_id": {"$in": [0, 1]}})
    async with opened(database, db, OLD) as bench:
        ran = await bench.run("old")
        assert ran["changed"] == {"deleted": 2}
        closed = bench.record("left")
        assert closed is not None
        assert (closed["outcome"], closed["changed"]) == ("interrupted", {"deleted": 2})
        assert [entry["state"] for entry in bench.entries("left") if entry["state"] == "pending"] == []
        assert (await bench.restore("left"))["changed"] == {"restored": 2}
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": 2}
    assert {one["_id"]: one for one in db["analysis_tasks"].find()} == originals


async def test_dry_runs_that_nobody_can_be_at_any_more_are_closed(database: Database, db: Db) -> None:
    """A day later, by the next dry run."""
    for hours in (23, 25):
        db["maintenance_runs"].insert_one(
            {
                "_id": f"dry{hours}",
                "job": "old",
                "dry_run": True,
                "started_at": server_now(db) - hours * HOUR,
                "ended_at": None,
            }
        )
    async with opened(database, db, OLD) as bench:
        await bench.dry("old")
        assert (bench.record("dry25") or {})["outcome"] == "interrupted"
        assert (bench.record("dry23") or {})["ended_at"] is None


@servers.both_topologies
@pytest.mark.parametrize("verb", ["write", "insert_many", "delete_many", "update_many"])
async def test_a_batch_that_breaks_leaves_true_counts(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Whichever command is cut off after the server did it; what is gone is counted, archived and restored."""
    finished(db, 9)
    before = picture(db)
    original = getattr(Collection, verb)
    calls = [0]

    async def cut_off(self: Collection, *arguments: Any, **options: Any) -> Any:
        result = await original(self, *arguments, **options)
        calls[0] += 1
        if calls[0] == 2:
            raise StoreError("the connection broke after the server had done it")
        return result

    async with opened(database, db, {"old": {**OLD["old"], "batch": 3}}) as bench:
        monkeypatch.setattr(Collection, verb, cut_off)
        first = await bench.run("old")
        monkeypatch.setattr(Collection, verb, original)
        second = await bench.run("old")
        gone = 9 - db["analysis_tasks"].count_documents({})
        first = bench.record(first["_id"]) or first
        assert gone == 9
        assert first["changed"].get("deleted", 0) + second["changed"].get("deleted", 0) == 9
        assert {entry["id"] for entry in bench.own("items").find({"state": "done"})} == set(range(9))
        for run in (first, second):
            await bench.restore(run["_id"])
    assert picture(db) == before


# -------------------------------------------------------------------------------------------------- items that cannot be


@servers.both_topologies
async def test_a_document_that_the_servers_rules_protect_is_an_item_failure(database: Database, db: Db) -> None:
    """The others of its batch are changed, archived and counted, and can be restored."""
    dead(db, 9)
    db["analysis_tasks"].update_one({"_id": 4}, {"$set": {"protected": True}})
    db["analysis_tasks"].update_one({"_id": 7}, {"$set": {"result": None, "protected": True}})
    rule = {"$or": [{"protected": {"$ne": True}}, {"status": {"$ne": "FAILED"}}]}
    db.command("collMod", "analysis_tasks", validator=rule)
    before = picture(db)
    async with opened(database, db, STUCK) as bench:
        ran = await bench.run("stuck")
        assert (ran["outcome"], ran["found"]) == ("succeeded", {"stuck": 9})
        assert (ran["changed"], ran["failed"]) == ({"failed": 7}, 2)
        assert db["analysis_tasks"].count_documents({"status": "FAILED"}) == 7
        states = Counter(entry["state"] for entry in bench.entries(ran["_id"]))
        assert states == {"done": 7}
        assert sample(bench, "item_failures_total", job_name="stuck") == 2
        totals = bench.own("controls").find_one({"_id": "totals"})
        assert (totals["errors"], totals["stuck_tasks"]) == (2, {"failed": 7})
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": 7}
    assert picture(db) == before


@servers.both_topologies
async def test_a_field_that_cannot_be_set_is_an_item_failure(database: Database, db: Db) -> None:
    """Below a null, a number or an array there is no path."""
    dead(db, 6)
    for id, value in ((1, None), (3, 5), (5, "text")):
        db["analysis_tasks"].update_one({"_id": id}, {"$set": {"result": value}})
    db["analysis_tasks"].update_one({"_id": 2}, {"$set": {"result": {"x": 1}}})
    before = picture(db)
    settings = {"stuck": {**STUCK["stuck"], "fields": {"error_message": "result.error"}}}
    async with opened(database, db, settings) as bench:
        ran = await bench.run("stuck")
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"failed": 3}, 3)
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": 3}
    assert picture(db) == before


@servers.both_topologies
async def test_a_unique_index_that_an_update_would_break_is_an_item_failure(database: Database, db: Db) -> None:
    """The document keeps its status."""
    dead(db, 4, target="t")
    db["analysis_tasks"].update_many({"_id": {"$gte": 2}}, {"$set": {"target": "u"}})
    db["analysis_tasks"].create_index(
        [("target", 1), ("status", 1)], unique=True, partialFilterExpression={"status": "FAILED"}
    )
    async with opened(database, db, STUCK) as bench:
        ran = await bench.run("stuck")
        assert (ran["changed"], ran["failed"]) == ({"failed": 2}, 2)
        assert db["analysis_tasks"].count_documents({"status": "RUNNING"}) == 2


@servers.both_topologies
async def test_documents_as_large_as_they_can_be_are_archived_and_those_too_large_stay(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch takes as many as fit; none is lost on the way, and all come back byte for byte."""
    # The servers of the tests have a small cache: a transaction of 32 MiB and its copies would not fit.
    monkeypatch.setattr(batches_module, "BATCH_BYTES", 4 * 1024 * 1024)
    monkeypatch.setattr("agent.execution.BATCH_BYTES", 4 * 1024 * 1024)
    finished(db, 4, filler="x" * 3_000_000)
    ended = server_now(db) - 31 * DAY
    for name, size in (("large", 15_000_000), ("largest", 16 * 1024 * 1024 - 100), ("small", 1)):
        db["analysis_tasks"].insert_one(
            {"_id": name, "status": "COMPLETED", "completed_at": ended, "filler": "x" * size}
        )
    before = picture(db)
    async with opened(database, db, OLD) as bench:
        ran = await bench.run("old")
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"deleted": 6}, 1)
        assert [one["_id"] for one in db["analysis_tasks"].find({}, {"_id": 1})] == ["largest"]
        restored = await bench.restore(ran["_id"])
        assert (restored["outcome"], restored["changed"]) == ("succeeded", {"restored": 6})
    assert picture(db) == before


async def test_a_batch_is_bounded_by_its_bytes(database: Database, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many documents it may have: what a transaction writes stays in the server's memory until its end."""
    finished(db, 40, filler="x" * 100_000)
    monkeypatch.setattr(batches_module, "BATCH_BYTES", 1_000_000)
    most: list[int] = []
    original = Collection.find_raw

    async def watched(self: Collection, *arguments: Any, **options: Any) -> Any:
        documents, whole = await original(self, *arguments, **options)
        most.append(sum(len(document.raw) for document in documents))
        return documents, whole

    monkeypatch.setattr(Collection, "find_raw", watched)
    async with opened(database, db, OLD) as bench:
        ran = await bench.run("old")
        assert ran["changed"] == {"deleted": 40}
    assert max(most) < 1_300_000
    assert len(most) >= 4


# --------------------------------------------------------------------------------------------------------------- archive


@servers.both_topologies
async def test_a_full_archive_refuses_the_run_before_its_first_change(database: Database, db: Db) -> None:
    """No consent helps; a run that has nothing to change is not refused."""
    finished(db)
    before = picture(db)
    async with opened(database, db, OLD, archive={"max_size": "1kB"}) as bench:
        bench.own("items").insert_one({"run": "x", "filler": "x" * 2000, "state": "done"})
        for accept in (frozenset[str](), frozenset({"archive", "cap"})):
            ran = await bench.run("old", accept=accept)
            assert (ran["outcome"], ran["changed"]) == ("refused", {})
            assert ran["reason"].startswith("archive: ")
            assert "--accept" not in ran["reason"]
        assert picture(db) == before
        assert sample(bench, "refusals_total", job_name="old", guard="archive") == 2
        assert (await bench.dry("old"))["outcome"] == "succeeded"
        db["analysis_tasks"].delete_many({})
        db["analysis_tasks"].insert_one({"status": "PENDING"})
        assert (await bench.run("old"))["outcome"] == "succeeded"


@servers.both_topologies
async def test_an_archive_that_fills_up_fails_the_run_and_nothing_goes_uncopied(database: Database, db: Db) -> None:
    """What was deleted by then can be restored."""
    finished(db, 6, filler="x" * 1000)
    before = picture(db)
    async with opened(database, db, {"old": {**OLD["old"], "batch": 1}}, archive={"max_size": "2500B"}) as bench:
        ran = await bench.run("old")
        assert (ran["outcome"], ran["complete"]) == ("failed", False)
        assert "archive is full" in ran["reason"]
        deleted = ran["changed"]["deleted"]
        assert 1 < deleted < 6
        assert db["analysis_tasks"].count_documents({}) == 6 - deleted
        assert (await bench.run("old"))["outcome"] == "refused"
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": deleted}
    assert picture(db) == before


@servers.both_topologies
async def test_only_the_copy_of_an_update_counts_for_the_archives_size(database: Database, db: Db) -> None:
    """The previous values of three fields are small, however large their documents are."""
    dead(db, 6, filler="x" * 100_000)
    async with opened(database, db, {"stuck": {**STUCK["stuck"], "batch": 1}}, archive={"max_size": "50kB"}) as bench:
        ran = await bench.run("stuck")
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"failed": 6})


@servers.both_topologies
async def test_without_an_archive_changes_are_made_and_nothing_can_be_restored(database: Database, db: Db) -> None:
    """Plans are kept all the same, and what comes back during a batch is put back."""
    finished(db)
    db["analysis_tasks"].insert_one(
        {
            "_id": "largest",
            "status": "COMPLETED",
            "completed_at": server_now(db) - 31 * DAY,
            "filler": "x" * (16 * 1024 * 1024 - 100),
        }
    )
    async with opened(database, db, OLD, archive={"enabled": False}) as bench:
        plan = await bench.dry("old")
        assert len(bench.entries(plan["_id"])) == 7
        ran = await bench.run("old")
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"deleted": 7}, 0)
        assert bench.entries(ran["_id"]) == []
        assert (await bench.restore(ran["_id"]))["changed"] == {}
        assert db["analysis_tasks"].count_documents({}) == 0


@servers.both_topologies
async def test_without_an_archive_what_comes_back_is_still_put_back(database: Database, db: Db, root: Path) -> None:
    """The copy is in the hands of the run."""
    old = server_now(db) - DAY
    for number in range(6):
        db["generated_applications"].insert_one(
            {"_id": number, "model_slug": "m", "app_number": number, "created_at": old}
        )
    for number in range(3, 6):
        (root / f"generated/apps/m/app{number}").mkdir(parents=True)
    before = picture(db)["generated_applications"]

    def comes_back(look: int) -> None:
        if look == 0:
            (root / "generated/apps/m/app1").mkdir()

    apps = {"kind": "orphan_records", "root": str(root), "quarantine": "0s"}
    async with opened(database, db, {"apps": apps}, archive={"enabled": False}) as bench:
        bench.use(meddled(bench.jobs["apps"], after_still=comes_back))
        ran = await bench.run("apps")
        assert ran["changed"] == {"deleted": 3, "restored": 1}
    assert picture(db)["generated_applications"] == [before[1], *before[3:]]


@servers.both_topologies
async def test_what_came_back_is_put_back_even_by_a_run_that_has_to_end(database: Database, db: Db, root: Path) -> None:
    """The look back belongs to the batch in hand."""
    old = server_now(db) - DAY
    for number in range(6):
        db["generated_applications"].insert_one(
            {"_id": number, "model_slug": "m", "app_number": number, "created_at": old}
        )
    for number in range(3, 6):
        (root / f"generated/apps/m/app{number}").mkdir(parents=True)
    running: list[Any] = []

    def comes_back(look: int) -> None:
        if look == 0:
            (root / "generated/apps/m/app1").mkdir()
        else:
            running[0].stop.set()

    apps = {"kind": "orphan_records", "root": str(root), "quarantine": "0s"}
    async with opened(database, db, {"apps": apps}) as bench:
        bench.use(meddled(bench.jobs["apps"], after_still=comes_back))
        running.append(await bench.start("apps"))
        ran = await bench.ended(running[0])
        assert ran["changed"] == {"deleted": 3, "restored": 1}
    assert db["generated_applications"].count_documents({"_id": 1}) == 1


async def test_the_agents_own_collections_have_the_prefix_that_is_configured(database: Database, db: Db) -> None:
    """All of them, and no others."""
    finished(db)
    async with opened(database, db, OLD, collections={"prefix": "upkeep_"}) as bench:
        active = await bench.start("old")
        assert await active.wait(60)
    names = set(db.list_collection_names())
    assert {name for name in names if name.startswith("maintenance_")} == set()
    assert {"upkeep_runs", "upkeep_items", "upkeep_leases", "upkeep_controls"} <= names


def test_constants_of_time_leave_room_for_each_other() -> None:
    """A record is closed within less than a shutdown may take; a batch's writes end before its lease does."""
    assert runner_module.CLOSE_SECONDS <= 10
    assert batches_module.WRITE_SECONDS < 60 * (1 - 1 / lease_module.MARGIN_SHARE)
