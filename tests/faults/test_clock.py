"""An agent whose clock is an hour wrong does what the others do, when they do it: only the server's time counts."""

from __future__ import annotations

import datetime as dt
import random
from functools import partial
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Agent, Line, Nursery, until
from tests.faults.world import Document

HOUR = 3600.0
LEASE = dt.timedelta(seconds=4)

skewed = pytest.mark.parametrize("skew", [HOUR, -HOUR], ids=["an hour ahead", "an hour behind"])


@skewed
@servers.both_topologies
def test_horizons_are_those_of_the_servers_clock(
    database: Database, db: world.Database, root: Path, nursery: Nursery, skew: float
) -> None:
    """On both sides of each horizon, half an hour (for grace: some minutes) away, the fate is that of a right clock."""
    now = world.server_now(db)
    (root / world.path_of("a", 0)).mkdir(parents=True)
    fates: dict[str, str | None] = {}

    def record(number: int, minutes: float, fate: str | None) -> None:
        id = f"record-{number}"
        fates[id] = fate
        made = now - dt.timedelta(minutes=minutes)
        db[world.RECORDS].insert_one({"_id": id, "model_slug": "a", "app_number": number, "created_at": made})

    def task(id: str, fate: str | None, **values: object) -> None:
        fates[id] = fate
        target: Document = {"target_model": "a", "target_app_number": 0, "created_at": now - dt.timedelta(minutes=30)}
        db[world.TASKS].insert_one({"_id": id, **target, **values})

    def ago(**span: float) -> dt.datetime:
        return now - dt.timedelta(**span)

    record(0, 600, None)
    record(1, 5, None)
    record(2, 30, "is gone")
    task("pending", None, status="PENDING")
    task("stuck pending", "CANCELLED", status="PENDING", created_at=ago(minutes=90))
    task("running", None, status="RUNNING", started_at=ago(minutes=30))
    task("stuck running", "FAILED", status="RUNNING", started_at=ago(minutes=90))
    task("beating", None, status="RUNNING", started_at=ago(minutes=90), heartbeat_at=ago(minutes=30))
    task("finished", None, status="COMPLETED", completed_at=ago(days=30) + dt.timedelta(minutes=30))
    task("expired", "is gone", status="COMPLETED", completed_at=ago(days=30, minutes=30))
    task("orphan", "CANCELLED", status="PENDING", target_app_number=9, created_at=ago(minutes=5))
    task("young orphan", None, status="PENDING", target_app_number=9, created_at=now + dt.timedelta(minutes=30))
    before = {document["_id"]: document for name in (world.RECORDS, world.TASKS) for document in db[name].find()}
    settings = world.settings(database.uri, database.name, root, jobs=world.AN_HOUR)
    with nursery.agent(settings, skew=skew).open() as agent:
        assert {run["outcome"] for run in agent.runs()} == {"succeeded"}
    after = {document["_id"]: document for name in (world.RECORDS, world.TASKS) for document in db[name].find()}
    for id, fate in fates.items():
        expected = fate or before[id].get("status", "is there")
        assert after.get(id, {"status": "is gone"}).get("status", "is there") == expected, id
    check_times(db)


def check_times(db: world.Database) -> None:
    """All that was written bears the server's time."""
    now = world.server_now(db)
    for run in db["maintenance_runs"].find():
        assert now - dt.timedelta(minutes=2) < run["started_at"] <= run["ended_at"] <= now + dt.timedelta(seconds=1)
    for task in db[world.TASKS].find({"status": {"$in": ["FAILED", "CANCELLED"]}}):
        assert now - dt.timedelta(minutes=2) < task["completed_at"] <= now
    for entry in db["maintenance_items"].find():
        assert entry["expires_at"] > now + dt.timedelta(days=6, hours=23, minutes=55)


@skewed
def test_a_lease_lasts_as_long_as_the_server_says(
    database: Database, db: world.Database, root: Path, nursery: Nursery, skew: float
) -> None:
    """An agent with a wrong clock neither takes a lease too early nor too late, and its own is respected."""
    world.make(db, root, 200, random.Random(0))
    settings = world.settings(database.uri, database.name, root, lease={"ttl": f"{LEASE.seconds}s"})
    for first, second in ((0.0, skew), (skew, 0.0)):
        with nursery.agent(settings, skew=first).open() as holder, nursery.agent(settings, skew=second).open() as other:
            holder.ask("trap", act="freeze", command="find", number=3)
            holder.tell("run", names=["old"])
            assert holder.answer()["event"] == "freeze"
            lease: Document = db["maintenance_leases"].find_one({"_id": "old"}) or {}
            assert other.runs(names=["old"])[0]["outcome"] == "skipped"
            run = until(partial(taken, other), every=0.1)
            began = dt.datetime.fromisoformat(run["started_at"])
            assert lease["expires_at"] <= began < lease["expires_at"] + 2 * LEASE
            holder.thaw()
            assert not holder.answer()["runs"][0]["changed"]


def taken(agent: Agent) -> Line | None:
    """The run of a job, where its lease could be taken."""
    run = agent.runs(names=["old"])[0]
    return run if run["outcome"] == "succeeded" else None


@skewed
def test_plans_quarantine_and_holds_are_dated_by_the_server(
    database: Database, db: world.Database, root: Path, nursery: Nursery, skew: float
) -> None:
    """A sighting of a moment ago is one of a moment ago; a plan can be applied; what was restored is held for a week."""
    made = world.make(db, root, 200, random.Random(0))
    jobs = {"records": {"quarantine": "30m"}}
    settings = world.settings(database.uri, database.name, root, jobs=jobs)
    with nursery.agent(settings).open() as right:
        assert right.runs(names=["records"])[0]["changed"] == {}
    with nursery.agent(settings, skew=skew).open() as agent:
        run = agent.runs(names=["records"])[0]
        assert run["changed"] == {}
        assert run["held"] == {"quarantine": run["found"]["orphan"]}
        plan = agent.runs(dry_run=True, names=["records"])[0]
        applied = agent.runs("apply", plan=plan["_id"])[0]
        assert applied["changed"] == {"deleted": run["found"]["orphan"]}
        agent.runs("restore", run=applied["_id"])
        assert not world.difference(made.first, world.snapshot(db))
    week = world.server_now(db) + dt.timedelta(days=7)
    holds = list(db["maintenance_marks"].find({"_id.type": "hold"}))
    assert len(holds) == run["found"]["orphan"]
    for hold in holds:
        assert abs(hold["until"] - week) < dt.timedelta(minutes=5)
