"""MongoDB in trouble: conflicts, lost connections, no primary, no time, no space. Counts stay true and nothing is lost."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.mongod import Mongod
from tests import servers
from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Nursery, check_and_undo, finish
from tests.faults.conftest import Scaled
from tests.faults.world import Document

ROUNDS = 20  # passes a trouble
DOCUMENTS = 600
STILL_SECONDS = 12  # longer than the writes of a batch may take
WRITES = ["insert", "update", "delete", "findAndModify"]
READS = ["find", "aggregate", "getMore"]
NO_PRIMARY = {10107, 11602}

# What the server answers instead of doing it, and how often: the codes are those of its own errors.
TROUBLES: dict[str, Document] = {
    "write conflicts": {"failCommands": WRITES, "errorCode": 112, "often": 0.2},
    "no primary": {"failCommands": [*WRITES, *READS, "commitTransaction"], "errorCode": 10107, "often": 0.03},
    "stepping down": {"failCommands": [*WRITES, "commitTransaction"], "errorCode": 11602, "often": 0.05},
    "lost connections": {"failCommands": [*WRITES, *READS], "closeConnection": True, "often": 0.03},
    "commits without an answer": {"failCommands": ["commitTransaction"], "closeConnection": True, "often": 0.4},
    "commits that fail": {"failCommands": ["commitTransaction"], "errorCode": 251, "often": 0.3},
    "no time": {"failCommands": [*WRITES, *READS], "errorCode": 262, "often": 0.03},
    "no space": {"failCommands": ["insert"], "errorCode": 14031, "often": 0.3},
    "not allowed": {"failCommands": ["delete", "update"], "errorCode": 13, "often": 0.1},
    "an unknown error": {"failCommands": WRITES, "errorCode": 8, "often": 0.05},
}


@contextlib.contextmanager
def trouble(db: world.Database, data: Document) -> Iterator[None]:
    """The trouble, for agents only, while the block lasts."""
    # A driver that hears that its only server is no primary looks for another one for half a second each time.
    alone = "setName" not in db.client.admin.command("hello")
    often = data["often"] * (0.3 if alone and data.get("errorCode") in NO_PRIMARY else 1)
    point: Document = {name: value for name, value in data.items() if name != "often"}
    if "errorCode" in point:
        labels = [] if point["errorCode"] in {13, 8, 14031} else ["TransientTransactionError"]
        point["errorLabels"] = [] if alone else labels
    on = {"configureFailPoint": "failCommand", "mode": {"activationProbability": often}}
    db.client.admin.command({**on, "data": {**point, "appName": "maintenance-agent"}})
    try:
        yield
    finally:
        db.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.mark.parametrize("name", TROUBLES)
@servers.both_topologies
def test_counts_are_true_and_nothing_is_lost_whatever_the_server_answers(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled, name: str
) -> None:
    """Runs in trouble change what they say, or leave it to the next one to find out; then the work ends and is undone."""
    made = world.make(db, root, scaled(DOCUMENTS, 100), rng)
    settings = world.settings(database.uri, database.name, root, defaults={"batch": 10, "run_timeout": "20s"})
    outcomes: Counter[str] = Counter()
    with nursery.agent(settings).open() as agent:
        for _ in range(scaled(ROUNDS, 1)):
            with trouble(db, TROUBLES[name]):
                outcomes.update(run["outcome"] for run in agent.runs())
                world.check(db, made, settled=database.topology == "replica_set")
            finish(agent, db)
            world.check(db, made, settled=True)
            world.check_ended(db, made)
            for run in world.newest_first(db):
                with trouble(db, TROUBLES[name]):
                    agent.ask("restore", run=run)
                finish(agent, db, "restore", run=run)
            assert not world.difference(made.first, world.snapshot(db))
            world.forget_the_agent(db)
    print(f"{name}: {dict(outcomes)}")  # noqa: T201


@servers.both_topologies
def test_documents_that_the_server_will_not_change_are_counted_and_the_others_are_changed(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random
) -> None:
    """A collection's validator refuses some documents in the middle of batches: each is a failure, and no count is off."""
    made = world.make(db, root, DOCUMENTS, rng)
    stuck = [id for id, fate in made.fates[world.TASKS].items() if fate == "failed"]
    refused = rng.sample(stuck, 7)
    db[world.TASKS].update_many({"_id": {"$in": refused}}, {"$set": {"refused": True}})
    made.first = world.snapshot(db)
    rule = {"$or": [{"refused": {"$ne": True}}, {"status": {"$ne": "FAILED"}}]}
    db.command("collMod", world.TASKS, validator=rule)
    settings = world.settings(database.uri, database.name, root, defaults={"batch": 20})
    with nursery.agent(settings).open() as agent:
        runs = {run["job"]: run for run in agent.runs()}
    assert runs["stuck"]["failed"] == len(refused)
    assert runs["stuck"]["changed"]["failed"] == len(stuck) - len(refused)
    world.check(db, made, settled=True)
    assert not db["maintenance_items"].count_documents({"state": "pending"})


@servers.both_topologies
def test_a_server_that_stands_still_for_a_while_costs_no_truth(
    database: Database,
    db: world.Database,
    root: Path,
    nursery: Nursery,
    rng: random.Random,
    scaled: Scaled,
    request: pytest.FixtureRequest,
) -> None:
    """Commands that nobody answers run into their time limit, and may have been done all the same: the counts tell."""
    server: Mongod = (
        request.getfixturevalue("breakable_set").members[0]
        if database.topology == "replica_set"
        else request.getfixturevalue("breakable_mongod")
    )
    made = world.make(db, root, scaled(DOCUMENTS, 100), rng)
    settings = world.settings(database.uri, database.name, root, defaults={"batch": 10, "run_timeout": "20s"})
    outcomes: Counter[str] = Counter()
    with nursery.agent(settings).open() as agent:
        for _ in range(scaled(ROUNDS, 1)):
            agent.ask("trap", act="tell", number=rng.randint(20, 100))
            agent.tell("run")
            if agent.answer().get("event") == "tell":
                stand_still(server, scaled(STILL_SECONDS, 3))
                outcomes.update(run["outcome"] for run in agent.answer()["runs"])
            world.check(db, made, settled=database.topology == "replica_set")
            finish(agent, db)
            check_and_undo(agent, db, made)
    print(f"a server that stands still: {dict(outcomes)}")  # noqa: T201


def stand_still(server: Mongod, seconds: float) -> None:
    """Freezes a server for some seconds."""
    server.pause()
    thawed = threading.Timer(seconds, server.resume)
    thawed.start()
    thawed.join()
