"""The journal: slots that belong to one, counts that only grow, pages that stay stable."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from agent import indexes, journal
from agent.errors import NotFoundError, SlotTakenError
from agent.job import Run
from agent.journal import Journal
from agent.store import Namespace, Store
from tests.conftest import Database
from tests.harness import DAY, HOUR, MINUTE, Db, Document, server_now

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
KEEP = 90 * DAY


@pytest.fixture
async def records(database: Database) -> AsyncIterator[Journal]:
    """A journal with its indexes."""
    store = Store(database.uri)
    namespace = Namespace(database.name, "runs")
    await indexes.manage(store, [indexes.Wanted(namespace, index, "test", own=True) for index in journal.INDEXES])
    yield Journal(store.collection(namespace), keep=KEEP)
    await store.close()


def run(id: str, **more: Any) -> Run:
    values: dict[str, Any] = {
        "pass_id": "p",
        "job": "old",
        "kind": "retention",
        "trigger": "schedule",
        "requested_by": None,
        "dry_run": False,
        "agent": "one",
        "started_at": NOON,
        "term": 1,
    }
    return Run(id=id, **{**values, **more})


async def test_a_slot_belongs_to_the_first(records: Journal) -> None:
    """Of one job; runs without a slot are not in each other's way."""
    await records.open(run("a", scheduled_for=NOON))
    with pytest.raises(SlotTakenError, match="old at"):
        await records.open(run("b", scheduled_for=NOON))
    await records.open(run("c", scheduled_for=NOON, job="other"))
    await records.open(run("d", scheduled_for=NOON + HOUR))
    for id in "efg":
        await records.open(run(id))
    assert await records.slot_exists("old", NOON)
    assert not await records.slot_exists("old", NOON + MINUTE)


async def test_of_many_who_claim_a_slot_at_once_one_gets_it(records: Journal, db: Db) -> None:
    """The unique index decides where the look came too early for all."""
    answers = await asyncio.gather(
        *(records.open(run(f"r{number}", scheduled_for=NOON)) for number in range(12)), return_exceptions=True
    )
    assert [type(answer) for answer in answers].count(SlotTakenError) == 11
    assert db["runs"].count_documents({}) == 1


async def test_counts_grow_with_the_batches_and_are_read_back_at_the_end(records: Journal, db: Db) -> None:
    """What a process believes never overwrites them."""
    one = run("a")
    await records.open(one)
    assert await records.count("a", {"deleted": 3}) is False
    assert await records.count("a", {"deleted": 2, "restored": 1, "failed": 0}) is False
    assert await records.count("a", {}) is False
    one.report.changed["deleted"] = 99
    one.outcome, one.ended_at = "succeeded", NOON + MINUTE
    assert await records.close(one)
    assert one.report.changed == {"deleted": 5, "restored": 1}
    stored = db["runs"].find_one({"_id": "a"})
    assert stored is not None
    assert (stored["changed"], stored["outcome"]) == ({"deleted": 5, "restored": 1}, "succeeded")
    assert not await records.close(one)


async def test_a_request_to_stop_is_told_with_the_next_count(records: Journal) -> None:
    """And refused once the run has ended."""
    one = run("a")
    await records.open(one)
    assert await records.ask_to_stop("a")
    assert await records.count("a", {"deleted": 1}) is True
    one.ended_at = NOON
    await records.close(one)
    assert not await records.ask_to_stop("a")
    assert not await records.ask_to_stop("nothing")
    assert "cancel" not in await records.get("a")


async def test_open_runs_of_earlier_terms_are_left_and_closed_once(records: Journal) -> None:
    """With the counts that they have; those of the own term, of other jobs and dry ones are not."""
    await records.open(run("left", term=3))
    await records.count("left", {"deleted": 7})
    for id, more in (("own", {"term": 5}), ("other", {"job": "x"}), ("dry", {"dry_run": True, "term": None})):
        await records.open(run(id, **more))
    assert await records.left("old", 5) == ["left"]
    closed = await records.close_left("left", NOON + HOUR)
    assert closed is not None
    assert (closed["outcome"], closed["changed"], closed["seconds"]) == ("interrupted", {"deleted": 7}, 3600.0)
    assert await records.close_left("left", NOON + HOUR) is None
    assert await records.close_left("nothing", NOON) is None
    assert await records.left("old", 5) == []


async def test_a_record_that_was_closed_by_another_stays_as_it_is(records: Journal) -> None:
    """An agent that comes back from the dead learns what was counted, and overwrites nothing."""
    one = run("a", term=1)
    await records.open(one)
    await records.count("a", {"deleted": 2})
    await records.close_left("a", NOON)
    one.outcome, one.ended_at = "succeeded", NOON + HOUR
    assert not await records.close(one)
    assert one.report.changed == {"deleted": 2}
    assert (await records.get("a"))["outcome"] == "interrupted"


async def test_pages_stay_stable_while_runs_are_added(records: Journal) -> None:
    """The newest first, also where several began at the same instant; each exactly once."""
    for number in range(25):
        await records.open(run(f"r{number:02}", started_at=NOON + number // 3 * MINUTE))
    seen: list[str] = []
    before: str | None = None
    for number in range(10):
        page, before = await records.page({}, before=before, limit=4)
        seen += [record["_id"] for record in page]
        await records.open(run(f"later{number}", started_at=NOON + HOUR + number * MINUTE))
        if before is None:
            break
    assert seen == sorted(
        (f"r{number:02}" for number in range(25)), key=lambda id: (int(id[1:]) // 3, id), reverse=True
    )
    with pytest.raises(NotFoundError):
        await records.page({}, before="nothing", limit=4)
    page, following = await records.page({"job": "nothing"}, before=None, limit=4)
    assert (page, following) == ([], None)


async def test_records_say_when_they_go_and_hide_what_is_not_for_people(records: Journal, db: Db) -> None:
    """The server removes them by itself."""
    await records.open(run("a"))
    stored = db["runs"].find_one({"_id": "a"})
    assert stored is not None
    assert stored["expires_at"] == NOON + KEEP
    assert "expires_at" not in await records.get("a")
    index = db["runs"].index_information()["keep"]
    assert index["expireAfterSeconds"] == 0


async def test_the_last_run_and_those_finished_of_late_are_found(records: Journal, db: Db) -> None:
    """A restore, a dry run or a failure is no success."""
    now = server_now(db)
    for number, (job, outcome, more) in enumerate(
        [
            ("a", "succeeded", {}),
            ("b", "failed", {}),
            ("c", "succeeded", {"dry_run": True}),
            ("d", "succeeded", {"trigger": "restore"}),
            ("e", "succeeded", {}),
        ]
    ):
        one = run(f"r{number}", job=job, started_at=now - HOUR, **cast("Any", more))
        await records.open(one)
        one.outcome = outcome  # type: ignore[assignment]
        one.ended_at = now - (10 if job == "e" else 4) * MINUTE
        await records.close(one)
    assert await records.finished_since(list("abcde"), now - 5 * MINUTE) == {"a"}
    last: Document | None = await records.last("a", {})
    assert last is not None
    assert last["_id"] == "r0"
    assert await records.last("a", {"outcome": "failed"}) is None
    assert [one["_id"] for one in await records.of_pass("p")] == [f"r{number}" for number in range(5)]


async def test_the_last_success_of_a_job_that_only_fails_is_found_without_a_walk(records: Journal, db: Db) -> None:
    """However many records it has: the agent asks every few seconds."""
    for number in range(300):
        outcome = "succeeded" if number == 0 else "failed"
        await records.open(run(str(number), started_at=NOON + number * MINUTE, outcome=outcome, ended_at=NOON))
    db.command("profile", 2)
    found = await records.last("old", {"outcome": "succeeded", "trigger": {"$ne": "restore"}, "dry_run": False})
    db.command("profile", 0)
    assert found is not None
    assert found["_id"] == "0"
    (seen,) = db["system.profile"].find({"op": "query", "ns": f"{db.name}.runs"})
    assert seen["docsExamined"] <= 10
