"""The verbs on a collection that read through a cursor: all of it, in turns, and no further than is wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent.errors import StoreError
from agent.store import CHUNK, PORTION, Collection, Document, Namespace, Store
from tests.conftest import Database
from tests.harness import Db, until

COUNT = 2 * CHUNK + CHUNK // 2
DEADLINE = 30.0  # seconds

Read = Callable[..., AsyncIterator[Document]]
READS: dict[str, Read] = {
    "find": lambda things, **options: things.find({}, sort=[("_id", 1)], **options),
    "aggregate": lambda things, **options: things.aggregate([{"$sort": {"_id": 1}}], **options),
}


@pytest.fixture
async def things(database: Database, db: Db) -> AsyncIterator[Collection]:
    """Two and a half round trips of documents, through a connection of our own."""
    db["things"].insert_many([{"_id": number} for number in range(COUNT)])
    store = Store(database.uri)
    yield store.collection(Namespace(database.name, "things"))
    await store.close()


def open_cursors(db: Db) -> int:
    """The cursors on the collection that the server keeps."""
    stages: list[dict[str, Any]] = [
        {"$currentOp": {"idleCursors": True, "allUsers": True}},
        {"$match": {"ns": f"{db.name}.things", "cursor": {"$exists": True}}},
    ]
    return len(list(db.client.admin.aggregate(stages)))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_all_comes_in_order_and_leaves_no_cursor(things: Collection, db: Db, read: Read) -> None:
    """However many round trips it takes."""
    assert [one["_id"] async for one in read(things)] == list(range(COUNT))
    assert open_cursors(db) == 0


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_the_next_documents_are_on_their_way_while_these_are_looked_at(
    things: Collection, db: Db, read: Read
) -> None:
    """The second round trip is made before the first one's documents are all handed out."""
    db.command("profile", 2)
    found = read(things)
    assert (await anext(found))["_id"] == 0
    fetched = {"op": "getmore", "ns": f"{db.name}.things"}
    await until(lambda: db["system.profile"].count_documents(fetched) == 1, DEADLINE)
    db.command("profile", 0)
    db["things"].drop()
    seen = 1
    with contextlib.suppress(StoreError):  # from the third on there is nothing to read
        async for one in found:
            assert one["_id"] == seen
            seen += 1
    assert seen >= 2 * CHUNK


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_who_breaks_off_leaves_no_cursor(things: Collection, db: Db, read: Read) -> None:
    """Though the next documents may be on their way at that moment."""
    async with contextlib.aclosing(read(things)) as found:  # type: ignore[type-var]
        async for one in found:
            if one["_id"] == 10:
                break
    await until(lambda: open_cursors(db) == 0, DEADLINE)
    assert [one["_id"] async for one in read(things)] == list(range(COUNT))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_who_looks_at_many_keeps_the_loop_from_nothing(things: Collection, read: Read) -> None:
    """Everything else has its turn every so many documents."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    longest = seen = before = 0
    async for _ in read(things):
        seen, longest, before = (seen + 1 if turns == before else 1), max(longest, seen), turns
    counting.cancel()
    assert 0 < longest <= PORTION


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_before_each_round_trip_but_the_first_there_is_a_rest(things: Collection, read: Read) -> None:
    """It is told how long the last one took."""
    told: list[float] = []

    async def rest(seconds: float) -> None:
        told.append(seconds)

    found = [one["_id"] async for one in read(things, chunk=300, rest=rest)]
    assert found == list(range(COUNT))
    assert len(told) == COUNT // 300
    assert all(0 < seconds < DEADLINE for seconds in told)
