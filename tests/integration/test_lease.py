"""Leases: one holder at a time, terms that grow, and nobody who goes on past the end of his own."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent import lease as module
from agent.errors import LeaseLostError, StoreUnavailableError
from agent.lease import HeldError, Leases
from agent.store import Collection, Namespace, Store
from tests import servers
from tests.conftest import Database
from tests.harness import HOUR, MINUTE, Db, server_now

TTL = dt.timedelta(seconds=60)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


class Clock:
    """The clock by which a process knows how long its lease lasts."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Moved by the test alone."""
    clock = Clock()
    monkeypatch.setattr(module, "boot_time", clock)
    return clock


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """A connection of our own."""
    store = Store(database.uri)
    yield store
    await store.close()


@pytest.fixture
def collection(database: Database, store: Store) -> Collection:
    """Where the leases are."""
    return store.collection(Namespace(database.name, "leases"))


def leases(collection: Collection, holder: str = "one") -> Leases:
    return Leases(collection, holder=holder, ttl=TTL)


@servers.both_topologies
async def test_terms_grow_by_one_with_every_holder(collection: Collection, db: Db) -> None:
    """The same one or another; a lease that was given back is free at once."""
    for term in range(1, 6):
        holder = "one" if term % 2 else "two"
        lease = await leases(collection, holder).acquire("job", f"run{term}", NOON)
        assert lease.term == term
        stored = db["leases"].find_one({"_id": "job"})
        assert stored is not None
        assert (stored["holder"], stored["term"], stored["run"], stored["scheduled_for"]) == (
            holder,
            term,
            f"run{term}",
            NOON,
        )
        assert stored["expires_at"] - stored["acquired_at"] == TTL
        assert lease.now == stored["acquired_at"]
        assert not await leases(collection).free("job")
        await lease.release()
        assert await leases(collection).free("job")


@servers.both_topologies
async def test_a_held_lease_says_who_holds_it_and_for_which_slot(collection: Collection) -> None:
    """Other jobs have leases of their own."""
    await leases(collection, "one").acquire("job", "run", NOON)
    with pytest.raises(HeldError, match="job is already running on one") as caught:
        await leases(collection, "two").acquire("job", "run2", None)
    assert caught.value.lease.scheduled_for == NOON
    assert (await leases(collection, "two").acquire("other", "run3", None)).term == 1


@servers.both_topologies
async def test_of_many_who_ask_at_once_one_gets_it(collection: Collection, db: Db) -> None:
    """Also for a job that never ran."""
    for round_ in range(1, 4):
        asked = [leases(collection, f"h{number}").acquire("job", f"r{number}", None) for number in range(12)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        taken = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == [HeldError] * 11
        assert [lease.term for lease in taken] == [round_]
        await taken[0].release()
    assert db["leases"].count_documents({}) == 1


@servers.both_topologies
async def test_a_lease_ends_by_the_servers_clock_and_can_be_taken_then(collection: Collection, db: Db) -> None:
    """The holder of before can neither renew it nor give the new one back."""
    old = await leases(collection, "one").acquire("job", "run", None)
    db["leases"].update_one({}, {"$set": {"expires_at": server_now(db) - MINUTE}})
    new = await leases(collection, "two").acquire("job", "run2", None)
    assert new.term == 2
    await old.release()
    stored = db["leases"].find_one({"_id": "job"})
    assert stored is not None
    assert (stored["holder"], stored["expires_at"] > server_now(db)) == ("two", True)
    with pytest.raises(LeaseLostError, match="taken over"):
        await old.touch()
    with pytest.raises(LeaseLostError):
        old.check()
    await new.touch()


@servers.both_topologies
async def test_the_same_holder_in_a_later_term_is_another(collection: Collection, db: Db) -> None:
    """The term counts, not the name."""
    old = await leases(collection).acquire("job", "run", None)
    db["leases"].update_one({}, {"$set": {"expires_at": server_now(db) - MINUTE}})
    new = await leases(collection).acquire("job", "run2", None)
    with pytest.raises(LeaseLostError):
        await old.touch()
    new.check()


@servers.both_topologies
async def test_a_holder_stops_a_fifth_before_the_end(collection: Collection, clock: Clock) -> None:
    """Counted from before it asked; a touch begins anew, one that fails does not."""
    lease = await leases(collection).acquire("job", "run", None)
    clock.now += 47.9
    lease.check()
    await lease.touch()
    clock.now += 47.9
    lease.check()
    clock.now += 0.2
    with pytest.raises(LeaseLostError, match="ran out"):
        lease.check()
    with pytest.raises(LeaseLostError, match="ran out"):
        await lease.touch()


@servers.both_topologies
async def test_the_clock_is_read_before_the_server_is_asked(
    collection: Collection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that takes long makes the lease shorter, never longer."""
    original = Collection.find_one_and_update

    async def slow(self: Collection, *arguments: Any, **options: Any) -> Any:
        answer = await original(self, *arguments, **options)
        clock.now += 40
        return answer

    monkeypatch.setattr(Collection, "find_one_and_update", slow)
    lease = await leases(collection).acquire("job", "run", None)
    lease.check()
    clock.now += 9
    with pytest.raises(LeaseLostError):
        lease.check()


@servers.both_topologies
async def test_an_answer_that_was_lost_is_found_again(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, db: Db
) -> None:
    """The agent must not be kept out by itself."""
    original = Collection.find_one_and_update
    broken: list[bool] = []

    async def breaks(self: Collection, *arguments: Any, **options: Any) -> Any:
        answer = await original(self, *arguments, **options)
        if answer is not None and not broken:
            broken.append(True)
            raise StoreUnavailableError("no answer")
        return answer

    monkeypatch.setattr(Collection, "find_one_and_update", breaks)
    lease = await leases(collection).acquire("job", "run", None)
    assert broken
    assert lease.term == 1
    await lease.touch()
    assert db["leases"].count_documents({"term": 1, "run": "run"}) == 1


@servers.both_topologies
async def test_the_lease_is_renewed_in_the_background_but_not_during_a_batch(
    collection: Collection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of its time apart; a batch renews it itself."""
    lease = await leases(collection).acquire("job", "run", None)
    turns: asyncio.Queue[float] = asyncio.Queue()
    naps: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds == 0:
            await real(0)
            return
        naps.append(seconds)
        clock.now += await turns.get()

    touched: list[float] = []
    original = type(lease).touch

    async def touch(self: Any, session: Any = None) -> None:
        touched.append(clock.now)
        await original(self, session)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(type(lease), "touch", touch)

    async def until_it_sleeps(times: int) -> None:
        async with asyncio.timeout(30):
            while len(naps) < times:
                await real(0.001)

    async with lease.renewing():
        for number in range(1, 6):
            await until_it_sleeps(number)
            turns.put_nowait(20.0)
        await until_it_sleeps(6)
        assert naps == [20.0] * 6
        assert len(touched) == 5
        lease.check()
        async with lease.batch():
            turns.put_nowait(20.0)
            for _ in range(20):
                await real(0.001)
            assert len(touched) == 5
        await until_it_sleeps(7)
        assert len(touched) == 6
    assert not [task for task in asyncio.all_tasks() if "Lease._renew" in str(task.get_coro())]


@servers.both_topologies
async def test_a_renewer_that_finds_the_lease_taken_stops_and_the_run_learns_it(
    collection: Collection, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its next look."""
    lease = await leases(collection).acquire("job", "run", None)
    db["leases"].update_one({}, {"$inc": {"term": 1}})
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real(0 if seconds > 1 else seconds))
    async with lease.renewing():
        async with asyncio.timeout(30):
            while lease._deadline > 0:
                await real(0.001)
        with pytest.raises(LeaseLostError):
            lease.check()


async def test_the_open_transaction_of_a_frozen_holder_keeps_others_out_without_keeping_them_waiting(
    collection: Collection, store: Store, database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told that it is held; when the server has ended it, the lease can be taken, and the old one is fenced."""
    monkeypatch.setattr(module, "TAKE_SECONDS", 0.3)
    old = await leases(collection, "frozen").acquire("job", "run", None)
    async with await store._client.start_session() as session:
        session.start_transaction()
        await old.touch(session)
        with servers.connect(database.uri) as client:
            client[database.name]["other"].insert_one({})
        await collection.find_one({"_id": "job"})
        # Whether its lease is over cannot be told: the document is locked by its transaction.
        with pytest.raises(HeldError, match="frozen"):
            await leases(collection, "two").acquire("job", "run2", None)
        await session.abort_transaction()
    db["leases"].update_one({}, {"$set": {"expires_at": server_now(db) - HOUR}})
    assert (await leases(collection, "two").acquire("job", "run2", None)).term == 2
    with pytest.raises(LeaseLostError):
        await old.touch()
