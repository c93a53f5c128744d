"""Many processes book on a few providers while connections break, answers get lost, callers and servers are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import WriteConcern
from pymongo.database import Database as RawDatabase

from agent.demo.mongod import Mongod, spawn
from agent.errors import StoreError, StoreUnavailableError
from agent.ledger import RESOURCES, Ledger, Paths, Retry
from agent.ledger.documents import blank
from tests import servers
from tests.conftest import Database
from tests.faults.agents import until
from tests.faults.conftest import PARAMETERS, Scaled
from tests.faults.ledger_callers import Order
from tests.servers import Client

Amounts = dict[str, int]
Document = dict[str, Any]
Db = RawDatabase[Document]

CALLERS, TASKS, PROVIDERS, CALLS, KILLS = 64, 3, 8, 20_000, 60
CAPACITY = {"cpu": 700, "memory": 900, "storage": 800}  # about as much as all want at a time: many are refused
STEPS = 40  # parts of a test, each with a fault of its own
PROGRAM = Path(__file__).with_name("ledger_callers.py")

# What a fail point does to a share of the commands. A write concern error comes after the change: the answer is lost.
FAULTS: list[Document] = [
    {"share": 0.05, "failCommands": ["findAndModify", "find"], "closeConnection": True},
    # After these two the driver waits for the server to say that it is a primary again: up to ten seconds.
    {"share": 0.002, "failCommands": ["findAndModify", "find"], "errorCode": 11602},  # InterruptedDueToReplStateChange
    {"share": 0.002, "failCommands": ["findAndModify"], "writeConcernError": {"code": 91, "errmsg": "shutting down"}},
    {"share": 0.05, "failCommands": ["findAndModify"], "errorCode": 112},  # WriteConflict
    {"share": 0.05, "failCommands": ["findAndModify", "find"], "blockConnection": True, "blockTimeMS": 30},
    {
        "share": 0.10,
        "failCommands": ["findAndModify"],
        "writeConcernError": {"code": 64, "errmsg": "waiting timed out"},
    },
    {"share": 0.05, "failCommands": ["findAndModify", "find"], "errorCode": 262},  # ExceededTimeLimit
    {"share": 0.00, "failCommands": ["find"], "closeConnection": True},
]


@servers.both_topologies
def test_the_books_add_up_whatever_breaks(topology: str, tmp_path: Path, rng: random.Random, scaled: Scaled) -> None:
    """64 processes, 8 providers: allocated is the sum of the bookings and of the grants, versions count changes."""
    order = {"callers": scaled(CALLERS, 24), "tasks": TASKS, "providers": PROVIDERS}
    order |= {"calls": scaled(CALLS, 1500), "kills": scaled(KILLS, 10), "seed": rng.randrange(2**32)}
    with Mongod(replica_set=None if topology == "standalone" else servers.SET_NAME, parameters=PARAMETERS) as server:
        if topology == "replica_set":
            servers.ReplicaSet([server]).initiate()
        with servers.connect(server.uri) as client:
            make_providers(client["platform"])
        began = time.monotonic()
        call_while_things_break(server, Order(server.uri, "platform", str(tmp_path), **order), rng)
        seconds = time.monotonic() - began
        with servers.connect(server.uri) as client:
            stop_failing(client)
            told = check(client["platform"], tmp_path)
    print(f"{topology}: {sum(told.values())} calls in {seconds:.0f} s: {dict(told.most_common())}")  # noqa: T201 - the figure


@servers.both_topologies
async def test_a_change_whose_answer_is_lost_is_made_once(database: Database, db: Db) -> None:
    """Also where the version that was expected is gone by it, and where the answer to several at once is lost."""
    make_providers(db)
    lost = {"failCommands": ["findAndModify"], "writeConcernError": {"code": 64, "errmsg": "waiting timed out"}}
    async with ledger_of(database.uri, database.name) as ledger:
        calls: list[tuple[Any, ...]] = [(ledger.allocate, {"cpu": 1}), (ledger.resize, {"cpu": 2}), (ledger.release,)]
        for version, (call, *request) in enumerate(calls):
            db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=lost)
            assert (await call(0, "a", *request, expect_version=version)).version == version + 1
        db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 10}, data=lost)
        results = await asyncio.gather(*[ledger.allocate(1, key, {"cpu": 1}) for key in range(30)])
        books = await ledger.read(1)
    assert (books.version, books.allocated["cpu"], set(books.bookings)) == (30, 30, {result.key for result in results})


@servers.both_topologies
async def test_a_change_that_the_majority_may_not_know_is_not_told_as_made(database: Database, db: Db) -> None:
    """The server says that the write concern cannot be met: the booking may stand, but it could be rolled back."""
    make_providers(db)
    unsure = {"failCommands": ["findAndModify"], "writeConcernError": {"code": 100, "errmsg": "cannot be satisfied"}}
    async with ledger_of(database.uri, database.name) as ledger:
        db.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=unsure)
        calls = [ledger.allocate(0, key, {"cpu": 1}) for key in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        db.client.admin.command("configureFailPoint", "failCommand", mode="off")
        assert [type(result) for result in results] == [StoreError] * 3
        assert not any([(await ledger.allocate(0, key, {"cpu": 1})).changed for key in range(3)])
        assert (await ledger.read(0)).version == 3


async def test_a_frozen_server_costs_no_more_than_the_budget_and_books_once() -> None:
    """The call ends with what it does not know; said again after the server woke up, it is made once."""
    with Mongod() as server:
        with servers.connect(server.uri) as client:
            make_providers(client["platform"])
        retry = Retry(budget=timedelta(seconds=1), attempt=timedelta(seconds=0.3))
        async with ledger_of(server.uri, "platform", retry) as ledger:
            await ledger.allocate(0, "a", {"cpu": 1})
            server.pause()
            began = time.monotonic()
            calls = [ledger.allocate(0, "b", {"cpu": 2}), ledger.allocate(0, "c", {"cpu": 3}), ledger.release(0, "a")]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [StoreUnavailableError] * 3
            assert time.monotonic() - began < 20
            server.resume()
        async with ledger_of(server.uri, "platform") as ledger:
            await asyncio.gather(
                ledger.allocate(0, "b", {"cpu": 2}), ledger.allocate(0, "c", {"cpu": 3}), ledger.release(0, "a")
            )
            books = await ledger.read(0)
    assert (books.version, books.allocated["cpu"], set(books.bookings)) == (4, 5, {"b", "c"})


async def test_nothing_that_was_granted_is_lost_when_the_primary_dies(scaled: Scaled) -> None:
    """The callers go on with the next primary, and notice nothing but the time."""
    calls = scaled(1000, 200)
    with servers.replica_set(3, PARAMETERS) as cluster:
        with servers.connect(cluster.uri) as client:
            make_providers(client["platform"])
        async with ledger_of(cluster.uri, "platform", Retry(budget=timedelta(seconds=90))) as ledger:
            left = iter(range(calls))
            killed = asyncio.Event()

            async def book() -> None:
                for number in left:
                    if number == calls // 2:
                        await asyncio.to_thread(lambda: cluster.primary().kill())
                        killed.set()
                    assert (await ledger.allocate(number % PROVIDERS, number, {"cpu": 1, "memory": 2})).booked[
                        "cpu"
                    ] == 1

            await asyncio.gather(*[book() for _ in range(24)])
            assert killed.is_set()
            shelf = [await ledger.read(provider) for provider in range(PROVIDERS)]
    assert sorted(key for books in shelf for key in books.bookings) == list(range(calls))
    for books in shelf:
        assert books.drift == dict.fromkeys(RESOURCES, 0)
        assert books.version == len(books.bookings)


@contextlib.asynccontextmanager
async def ledger_of(uri: str, database: str, retry: Retry = Retry()) -> AsyncIterator[Ledger]:  # noqa: B008 - frozen
    """A ledger with a client of its own."""
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(uri)
    try:
        yield Ledger(client[database]["providers"], retry=retry)
    finally:
        client.close()


def make_providers(db: Db) -> None:
    """Empty books."""
    providers = db.get_collection("providers", write_concern=WriteConcern("majority"))
    providers.insert_many([{"_id": n, "status": "active", **blank(Paths(), CAPACITY)} for n in range(PROVIDERS)])


def call_while_things_break(server: Mongod, order: Order, rng: random.Random) -> None:
    """Runs the callers to their end, with another fault in each part of the way."""
    folder = Path(order.folder)
    order.write(folder / "order")
    restarts = set() if server.replica_set is None else {STEPS // 3, 2 * STEPS // 3}
    process = spawn([sys.executable, PROGRAM, folder / "order"], folder / "log")
    try:
        for step in range(STEPS):
            if step in restarts:
                # Only a set acknowledges no write that a kill could take back: see the write concern of the ledger.
                server.kill()
                server.start()
            with servers.connect(server.uri) as client:
                begin_failing(client, rng.choice(FAULTS))
            goal = order.calls * (step + 1) // STEPS
            until(partial(reached, process, folder, goal), seconds=600)
        until(lambda: ended(process), seconds=600)
        assert process.returncode == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def ended(process: Popen[bytes]) -> bool:
    """Whether all callers are gone."""
    return process.poll() is not None


def reached(process: Popen[bytes], folder: Path, goal: int) -> bool:
    """Whether so many calls have begun, or none will any more."""
    progress = folder / "progress"
    return ended(process) or (progress.exists() and int(progress.read_text() or 0) >= goal)


def begin_failing(client: Client, fault: Document) -> None:
    """Arms the fail point with this fault instead of the one before."""
    data = {name: value for name, value in fault.items() if name != "share"}
    mode = {"activationProbability": fault["share"]}
    client.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)


def stop_failing(client: Client) -> None:
    """Disarms it, and waits until nothing that a killed caller had asked for is still under way."""
    client.admin.command("configureFailPoint", "failCommand", mode="off")
    busy: list[Document] = [{"$currentOp": {"allUsers": True}}, {"$match": {"command.findAndModify": "providers"}}]
    until(lambda: not list(client.admin.aggregate(busy)))


# ------------------------------------------------------------------------------------------------- what must hold now


@dataclass
class Story:
    """What is known of one booking, from the journal of its caller."""

    booked: Amounts | None = None
    changes: int = 0
    maybe: list[Amounts | None] = field(default_factory=list)  # what calls without an answer asked for

    def hear(self, call: Document, said: str | None) -> None:
        """Takes down one call and its answer; ``None``: there was none."""
        want = call["want"]
        if said is None:
            self.maybe.append(want)
        elif said in {"changed", "unchanged"}:
            # No fault is so silent that a change could be told of twice, or be told of and not be one.
            assert said == "unchanged" or self.booked != want or self.maybe
            self.become(want)
            self.maybe.clear()
        else:
            assert not self.maybe, "a refusal after a call that may have been applied"

    def become(self, booked: Amounts | None) -> None:
        """The booking is now this."""
        self.changes += self.booked != booked
        self.booked = booked


def check(db: Db, folder: Path) -> Counter[str]:
    """The books say what the callers were told; returns how often they were told what."""
    told: Counter[str] = Counter()
    stories: dict[int, dict[str, Story]] = defaultdict(lambda: defaultdict(Story))
    versions: dict[int, Counter[int]] = defaultdict(Counter)
    for call, answer in journals(folder):
        said = answer.get("said")
        told[said or ("killed" if not answer else "no answer")] += 1
        stories[call["provider"]][call["key"]].hear(call, said)
        if said in {"changed", "unchanged"}:
            assert min(answer["free"].values()) >= 0, "past capacity"
            assert min(answer["allocated"].values()) >= 0, "below zero"
            versions[call["provider"]][answer["version"]] += 1
    for provider in db["providers"].find({}):
        check_provider(provider, stories[provider["_id"]])
        assert max(versions[provider["_id"]], default=0) <= provider["version"]
    assert told["changed"] > told["unchanged"] > 0
    assert told["InsufficientCapacityError"] > 0
    assert told["VersionConflictError"] > 0
    return told


def check_provider(provider: Document, stories: dict[str, Story]) -> None:
    """Allocated is the sum of the bookings, these are what was granted, and the version counts each change once."""
    bookings = provider["bookings"]
    for name in RESOURCES:
        assert provider["allocated"][name] == sum(booking[name] for booking in bookings.values())
        assert 0 <= provider["allocated"][name] <= provider["capacity"][name]
    assert set(bookings) <= set(stories)
    for key, story in stories.items():
        booking = bookings.get(key)
        if booking != story.booked:
            assert booking in story.maybe, f"{key} is booked with {booking}, its caller knows of {story}"
            story.become(booking)
    assert {key: story.booked for key, story in stories.items() if story.booked is not None} == bookings
    assert provider["version"] == sum(story.changes for story in stories.values())


def journals(folder: Path) -> Iterator[tuple[Document, Document]]:
    """All calls with their answers, those of one booking in their order; a killed caller's last have none."""
    for path in folder.glob("*.jsonl"):
        calls: dict[int, Document] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            if "call" in line:
                calls[line["call"]] = line
            else:
                yield calls.pop(line["answer"]), line
        for call in calls.values():
            yield call, {}
