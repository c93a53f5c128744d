"""The primary of a replica set of three is killed while the agent works."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.demo.mongod import free_port
from tests import servers
from tests.faults import world
from tests.faults.agents import Agent, Nursery, finish, until
from tests.faults.conftest import PARAMETERS, Scaled
from tests.servers import ReplicaSet

KILLS = 10
DOCUMENTS = 5000


@pytest.fixture
def three() -> Iterator[ReplicaSet]:
    """A set of three members."""
    with servers.replica_set(3, PARAMETERS) as cluster:
        yield cluster


def test_no_run_lies_when_the_primary_is_killed_and_the_agent_is_ready_again_by_itself(
    three: ReplicaSet, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """Whatever becomes of a run, its counts are what the database shows; the service recovers, ends the work, and undoes it."""
    settings = world.settings(
        three.uri,
        "test",
        root,
        http={"host": "127.0.0.1", "port": free_port()},
        defaults={"batch": 50, "run_timeout": "60s"},
        schedule={"every": "1d", "run_on_startup": False},
    )
    outcomes: Counter[str] = Counter()
    with servers.connect(three.uri) as client, nursery.agent(settings) as agent:
        db = client["test"]
        made = world.make(db, root, scaled(DOCUMENTS, 1000), rng)
        assert "error" not in agent.ask("serve")
        ready_again(agent)
        for number in range(scaled(KILLS, 2)):
            outcomes += kill_the_primary_during(three, agent, rng.randint(1, 150), "run")
            world.check(db, made, settled=True)
            ready_again(agent)
            finish(agent, db)
            world.check(db, made, settled=True)
            world.check_ended(db, made)
            for run in world.newest_first(db):
                if number % 2:
                    outcomes += kill_the_primary_during(three, agent, rng.randint(1, 20), "restore", run=run)
                finish(agent, db, "restore", run=run)
            world.check_restored(db)
            assert not world.difference(made.first, world.snapshot(db))
            world.forget_the_agent(db)
    print(f"outcomes of the runs during which a primary was killed: {dict(outcomes)}")  # noqa: T201


def kill_the_primary_during(cluster: ReplicaSet, agent: Agent, number: int, what: str, **how: Any) -> Counter[str]:
    """Kills the primary at a command of what the agent does, restarts it, and returns the outcomes of the runs."""
    agent.ask("trap", act="tell", number=number)
    agent.tell(what, **how)
    answer = agent.answer()
    if "event" in answer:
        primary = cluster.primary()
        primary.kill()
        cluster.primary()
        primary.start()
        cluster.wait_for_members()
        answer = agent.answer()
    agent.disarm()
    if "runs" not in answer:  # it could not begin
        return Counter([answer["error"]])
    return Counter(run["outcome"] for run in answer["runs"])


def ready_again(agent: Agent) -> None:
    """Waits until the service says that it is ready."""
    until(lambda: agent.ask("health", endpoint="readyz")["ok"])
