"""kill -9 of the agent: at random moments of a large pass, and at each single command of a small one."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests import servers
from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Agent, GoneError, Nursery, check_and_undo, finish, until
from tests.faults.conftest import Scaled
from tests.faults.world import World

KILLS_A_WORLD = 8  # kills before a world is restored and begun anew
KILLS, DOCUMENTS = 200, 20_000
TOGETHER = 4  # worlds at a time: most of the time goes into waiting for the lease of a dead agent to end


@servers.both_topologies
def test_nothing_is_lost_when_the_agent_is_killed_at_random_moments(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """Every change has its copy, no healthy document differs, every count is true, the next run ends, and restore undoes it."""
    batch = 250 if scaled(DOCUMENTS, 1) == DOCUMENTS else 20
    settings = world.settings(database.uri, database.name, root, defaults={"batch": batch, "run_timeout": "90s"})
    made = world.make(db, root, scaled(DOCUMENTS, 1000), rng)
    kills, wanted = 0, scaled(KILLS, 8)
    commands = count_commands(nursery, settings, db, made)
    while kills < wanted:
        kills += pass_with_kills(nursery, settings, db, made, rng, min(KILLS_A_WORLD, wanted - kills), commands // 3)
        world.check(db, made, settled=True)
        world.check_ended(db, made)
        undo(nursery, settings, db, made, rng)


@servers.both_topologies
def test_nothing_is_lost_when_the_agent_is_killed_at_any_command_to_the_database(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """The same for a kill right before each command of a small pass is sent, and right after each was answered."""
    settings = world.settings(
        database.uri, database.name, root, defaults={"batch": 5}, jobs={"records": {"quarantine": "1ms"}}
    )
    made = world.make(db, root, 60, rng)
    with nursery.agent(settings).open() as agent:
        agent.runs(names=["records"])  # the first sighting
        agent.ask("trap")
        agent.runs()
        commands = agent.ask("commands")["commands"]
    points = [(number, when) for number in range(1, commands + 1) for when in ("started", "succeeded")]
    chosen = rng.sample(points, scaled(len(points), 8))

    def kill_at(point: tuple[int, str]) -> bool:
        number, when = point
        name = f"{database.name}_{number}_{when}"
        other = {**settings, "mongodb": {"uri": database.uri, "database": name}}
        try:
            return survives(nursery, other, db.client[name], made, number, when)
        except AssertionError as error:
            raise AssertionError(f"killed at command {number}, {when}: {error}") from error
        finally:
            db.client.drop_database(name)

    with ThreadPoolExecutor(TOGETHER) as pool:
        struck = list(pool.map(kill_at, chosen))
    assert sum(struck) >= len(chosen) * 0.9, "a pass takes about as many commands every time"


@servers.both_topologies
def test_a_plan_is_applied_to_its_end_however_often_the_agent_is_killed(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """Apply goes on where the dead agent left it; in the end what the plan lists is changed, once, and nothing else."""
    settings = world.settings(database.uri, database.name, root, defaults={"batch": 10})
    made = world.make(db, root, scaled(DOCUMENTS, 300) // 10, rng)
    with nursery.agent(settings).open() as agent:
        plan = agent.ask("run", dry_run=True)["pass"]
    planned = db["maintenance_items"].count_documents({"state": "planned"})
    for _ in range(scaled(20, 3)):
        with nursery.agent(settings) as agent:
            agent.ask("open")
            agent.ask("trap", act="kill", number=rng.randint(20, 120))
            with contextlib.suppress(GoneError):
                until(partial(applied, agent, db, plan), every=0.2)
    with nursery.agent(settings).open() as agent:
        until(lambda: applied(agent, db, plan), every=0.2)
        finish(agent, db)
    world.check(db, made, settled=True)
    world.check_ended(db, made)
    assert sum(made.expected().values()) == planned
    by_plan = db["maintenance_runs"].find({"trigger": "plan"})
    assert sum(sum(run["changed"].values()) for run in by_plan) == planned


def test_a_plan_is_not_used_up_where_an_earlier_one_of_its_pass_cannot_begin(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random
) -> None:
    """While another agent holds the job of the records, the plan for their tasks waits; then both are applied."""
    settings = world.settings(database.uri, database.name, root)
    made = world.make(db, root, 100, rng)
    with nursery.agent(settings).open() as agent, nursery.agent(settings).open() as holder:
        plan = agent.ask("run", dry_run=True)["pass"]
        holder.ask("trap", act="freeze", number=1, collection=world.RECORDS)
        holder.tell("run", names=["records"])
        assert holder.answer()["event"] == "freeze"
        outcomes = {run["job"]: run["outcome"] for run in agent.runs("apply", plan=plan)}
        assert (outcomes["records"], outcomes["orphans"]) == ("skipped", "failed")
        until(partial(applied, agent, db, plan), every=0.2)
    by_plan = list(db["maintenance_runs"].find({"trigger": "plan"}))
    assert sum(sum(run["changed"].values()) for run in by_plan) == sum(made.expected().values())


def applied(agent: Agent, db: world.Database, plan: str) -> bool:
    """Applies a plan; says whether all of it was."""
    agent.ask("apply", plan=plan)
    return not db["maintenance_items"].count_documents({"state": "planned"})


def survives(
    nursery: Nursery, settings: world.Document, db: world.Database, made: World, number: int, when: str
) -> bool:
    """Kills a pass at a command, and has the next one end the work; says whether the trap struck."""
    world.put(db, made)
    with nursery.agent(settings).open() as agent:
        finish(agent, db, names=["records"])
    with nursery.agent(settings) as agent:
        struck = killed(agent, db, number, when, 0)
    world.check(db, made, settled="setName" in db.client.admin.command("hello"))
    with nursery.agent(settings).open() as agent:
        finish(agent, db)
    world.check(db, made, settled=True)
    world.check_ended(db, made)
    return struck


def count_commands(nursery: Nursery, settings: world.Document, db: world.Database, made: World) -> int:
    """How many commands an undisturbed pass sends; the world is as before afterwards."""
    with nursery.agent(settings).open() as agent:
        agent.ask("trap")
        agent.runs()
        commands: int = agent.ask("commands")["commands"]
        check_and_undo(agent, db, made)
    return commands


def pass_with_kills(
    nursery: Nursery,
    settings: world.Document,
    db: world.Database,
    made: World,
    rng: random.Random,
    most: int,
    commands: int,
) -> int:
    """Begins passes and kills them, until one ends or there were enough kills; then one ends the work."""
    atomic = "setName" in db.client.admin.command("hello")
    kills = 0
    while kills < most:
        with nursery.agent(settings) as agent:
            # Half of the kills strike between two commands, half of them while one is on its way.
            delay = rng.choice([0, rng.uniform(0, 0.01)])
            if not killed(agent, db, rng.randint(1, commands), rng.choice(["started", "succeeded"]), delay):
                return kills
        kills += 1
        world.check(db, made, settled=atomic)
    with nursery.agent(settings).open() as agent:
        finish(agent, db)
    return kills


def killed(
    agent: Agent, db: world.Database, number: int, when: str, delay: float, what: str = "run", **how: Any
) -> bool:
    """Does something, with a trap at a command; says whether it struck before the end."""
    try:
        agent.ask("open")
        agent.ask("trap", act="kill", number=number, when=when, delay=delay)
        finish(agent, db, what, **how)
    except GoneError:
        return True
    return False


def undo(nursery: Nursery, settings: world.Document, db: world.Database, made: World, rng: random.Random) -> None:
    """Restores every run, with a kill in between, and finds the first state byte for byte."""
    for run in world.newest_first(db):
        with nursery.agent(settings) as agent:
            if not killed(agent, db, rng.randint(1, 60), "started", 0, "restore", run=run):
                continue
        with nursery.agent(settings).open() as agent:
            finish(agent, db, "restore", run=run)
    assert not world.difference(made.first, world.snapshot(db))
    world.forget_the_agent(db)
