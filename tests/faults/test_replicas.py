"""Several agents on one database, one of them frozen past its lease: each slot once, and no change by the stale one."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from agent.demo.mongod import free_port
from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Agent, Nursery, finish, until
from tests.faults.conftest import Scaled

SLOTS = 60
JOBS = ("old", "stuck")
LEASE_SECONDS = 2.0


def settings(uri: str, name: str, root: Path) -> world.Document:
    """A configuration of two jobs that are due every second."""
    made = world.settings(
        uri,
        name,
        root,
        schedule={"every": "1s", "jitter": "0s"},
        http={"host": "127.0.0.1", "port": free_port()},
        defaults={"batch": 5, "run_timeout": "90s"},
    )
    return {**made, "jobs": {job: made["jobs"][job] for job in JOBS}}


def feed(db: world.Database, now: dt.datetime) -> None:
    """Adds work for both jobs."""
    tasks: list[world.Document] = [
        {"status": "COMPLETED", "completed_at": now - dt.timedelta(days=40)} for _ in range(15)
    ]
    tasks += [{"status": "PENDING", "created_at": now - dt.timedelta(days=1)} for _ in range(15)]
    db[world.TASKS].insert_many(tasks)


def test_three_agents_run_each_slot_at_most_once_while_one_of_them_freezes(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """Each slot has one run or was counted as missed; terms strictly grow; what was written was written under its term."""
    now = world.server_now(db)
    feed(db, now)
    agents = [nursery.agent(settings(database.uri, database.name, root)) for _ in range(3)]
    for agent in agents:
        assert "error" not in agent.ask("serve")
    slots, frozen = scaled(SLOTS, 10), 0
    until(lambda: slots_run(db), seconds=30)
    first = min(slots_run(db))
    last = first + dt.timedelta(seconds=slots)
    while (db_now := world.server_now(db)) < last:
        feed(db, now)
        if rng.random() < 0.1 or (not frozen and db_now > first + (last - first) / 3):
            frozen += 1
            freeze_past_its_lease(rng.choice(agents), db, rng)
        until_later(db, 0.3)
    missed = [missed_by(agent) for agent in agents]
    for agent in agents:
        agent.close()
    print(f"{slots} slots, {frozen} freezes, missed {missed}, runs {Counter(run['outcome'] for run in runs_of(db))}")  # noqa: T201
    check_slots(db, first, last, missed)
    check_terms(db)
    check_fencing(db)
    world.check_totals(db)


def freeze_past_its_lease(agent: Agent, db: world.Database, rng: random.Random) -> None:
    """Stops an agent at a random moment, and lets it go on when its lease has been over for a while."""
    agent.freeze()
    until_later(db, LEASE_SECONDS + rng.uniform(0.2, 2))
    agent.thaw()


def until_later(db: world.Database, seconds: float) -> None:
    """Waits for an instant of the server's clock."""
    then = world.server_now(db) + dt.timedelta(seconds=seconds)
    until(lambda: world.server_now(db) > then)


def runs_of(db: world.Database) -> list[world.Document]:
    """The records of the runs, in the order in which they began."""
    return list(db["maintenance_runs"].find({}, sort=[("term", 1)]))


def slots_run(db: world.Database) -> list[dt.datetime]:
    """The slots that have a run."""
    return [run["scheduled_for"] for run in runs_of(db) if run["scheduled_for"]]


def missed_by(agent: Agent) -> Counter[str]:
    """The slots that an agent counted as missed, by job."""
    text = agent.ask("metrics")["text"]
    counts = re.findall(r'^maintenance_missed_runs_total\{job_name="(\w+)"\} (\d+)', text, re.MULTILINE)
    return Counter({job: int(count) for job, count in counts})


def check_slots(db: world.Database, first: dt.datetime, last: dt.datetime, missed: list[Counter[str]]) -> None:
    """At most one run a slot, and those without one were counted as missed by somebody."""
    for job in JOBS:
        run = Counter(run["scheduled_for"] for run in runs_of(db) if run["job"] == job and run["scheduled_for"])
        assert max(run.values()) == 1
        expected = {
            first + dt.timedelta(seconds=number) for number in range(1, int((last - first).total_seconds()) - 1)
        }
        without = expected - run.keys()
        assert sum(by[job] for by in missed) >= len(without), f"{job}: no run of {sorted(without)}, missed {missed}"


def check_terms(db: world.Database) -> None:
    """The terms of a job's runs are all different, and grow with the time at which they began."""
    for job in JOBS:
        runs = [run for run in runs_of(db) if run["job"] == job]
        terms = [run["term"] for run in sorted(runs, key=lambda run: (run["started_at"], run["term"]))]
        assert terms == sorted(set(terms))


def check_fencing(db: world.Database) -> None:
    """In the order of the log of the replica set: each change stands in one transaction with its run, in the run's term."""
    terms = {run["_id"]: (run["job"], run["term"]) for run in runs_of(db)}
    now: Counter[str] = Counter()
    changes = 0
    for entry in db.client["local"]["oplog.rs"].find({}, sort=[("$natural", 1)]):
        operations = entry["o"].get("applyOps", [entry])
        operations = [one for one in operations if one["ns"].startswith(f"{db.name}.")]
        for one in operations:
            if one["ns"] == f"{db.name}.maintenance_leases":
                lease = one.get("o2", one["o"])["_id"]
                now[lease] = term_in(one["o"], now[lease])
        changing = [one for one in operations if one["ns"] == f"{db.name}.{world.TASKS}" and one["op"] in {"d", "u"}]
        if changing:
            changes += len(changing)
            of = [one["o2"]["_id"] for one in operations if one["ns"] == f"{db.name}.maintenance_runs"]
            assert len(of) == 1, "a change without its run"
            job, term = terms[of[0]]
            assert now[job] == term, f"{job} changed something in term {term} when {now[job]} was"
    assert changes == sum(sum(run["changed"].values()) for run in runs_of(db))


def term_in(operation: world.Document, before: int) -> int:
    """The term of a lease after an operation of the log: a whole document, or what differs."""
    changed = operation.get("diff", {}).get("u", {})
    term: int = operation.get("term", changed.get("term", before))
    return term


@pytest.mark.parametrize(
    "where",
    [{"command": "update", "collection": world.TASKS}, {"command": "commitTransaction"}],
    ids=["before the change is sent", "before the commit is sent"],
)
def test_a_batch_of_an_agent_that_froze_between_its_check_and_its_send_changes_nothing(
    database: Database, db: world.Database, root: Path, nursery: Nursery, where: dict[str, str]
) -> None:
    """Continued when another agent has the lease and has changed nothing yet, the stale one ends without a change."""
    feed(db, world.server_now(db))
    before = world.snapshot(db)
    configured = settings(database.uri, database.name, root)
    with nursery.agent(configured).open() as stale, nursery.agent(configured).open() as other:
        freeze_at(stale, **where)
        until_later(db, LEASE_SECONDS)
        freeze_at(other, collection=world.TASKS)
        stale.thaw()
        run = stale.answer()["runs"][0]
        assert run["outcome"] == "interrupted"
        assert not world.difference(before, world.snapshot(db))
        other.thaw()
        # Its own lease may be over by now.
        other.answer()
        finish(other, db, names=["stuck"])
    assert world.difference(before, world.snapshot(db))
    first, *_, last = runs_of(db)
    assert (first["_id"], first["outcome"]) == (run["_id"], "interrupted")
    assert "is gone" in first["reason"]
    assert first["term"] < last["term"]
    check_fencing(db)
    world.check_totals(db)


def freeze_at(agent: Agent, **where: str) -> None:
    """Has an agent run a job until it stands still at a command."""

    def frozen() -> bool:
        agent.ask("trap", act="freeze", number=1, **where)
        return agent.ask("run", names=["stuck"]).get("event") == "freeze"

    until(frozen, every=0.1)


@pytest.mark.parametrize("topology", ["standalone"])
def test_without_transactions_a_change_that_arrives_late_can_still_be_restored(
    database: Database, db: world.Database, root: Path, nursery: Nursery
) -> None:
    """A standalone server cannot fence a delete that was frozen in the very act; but its copies are kept."""
    feed(db, world.server_now(db))
    first = world.snapshot(db)
    with nursery.agent(settings(database.uri, database.name, root)) as stale:
        stale.open()
        stale.ask("trap", act="freeze", command="delete", number=1)
        stale.tell("run", names=["old"])
        assert stale.answer()["event"] == "freeze"
        until_later(db, LEASE_SECONDS)
        with nursery.agent(settings(database.uri, database.name, root)) as other:
            other.open()
            assert other.runs(names=["old"])[0]["outcome"] == "succeeded"
            stale.thaw()
            run = stale.answer()["runs"][0]
            assert run["outcome"] == "interrupted"
            for id in world.newest_first(db):
                other.runs("restore", run=id)
    assert not world.difference(first, world.snapshot(db))
