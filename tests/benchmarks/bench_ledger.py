"""The ledger: allocations a second on one hot provider, by so many callers at once; each allocation is a new booking."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection

from agent.ledger import Ledger
from tests.benchmarks.figures import Figures
from tests.conftest import Database
from tests.servers import both_topologies

SECONDS = 2.0
CALLERS = (1, 16, 64)
AMOUNTS = {"cpu": 1, "memory": 1, "storage": 1}
PLENTY = 10**12
Collection = AsyncIOMotorCollection[dict[str, object]]
Call = Callable[[str], Awaitable[None]]


@both_topologies
async def test_ledger(database: Database, size: int, topology: str) -> None:
    figures = Figures(f"ledger_{topology}", "Allocations on one hot provider", size, topology)
    client: AsyncIOMotorClient[dict[str, object]] = AsyncIOMotorClient(database.uri, w="majority")
    seconds = min(SECONDS, max(0.5, size / 100_000))
    try:
        providers = client[database.name]["providers"]
        peers: dict[str, Callable[[Collection], Call]] = {"ours": _ours, "bare": _bare, "optimistic": _optimistic}
        rates: dict[tuple[str, int], float] = {}
        for callers in CALLERS:
            for peer, make in peers.items():
                await _fresh(providers)
                granted = await _granted(make(providers), callers, seconds)
                rates[peer, callers] = granted / seconds
                figures.seconds(f"{NAMES[peer]}, {callers} callers", seconds, granted)
    finally:
        client.close()
    hot = CALLERS[-1]
    figures.at_least("of a bare find_one_and_update, 64 callers", rates["ours", hot] / rates["bare", hot], 0.8)
    optimistic = max(rates["optimistic", hot], 1 / seconds)
    figures.at_least("optimistic read-modify-write, 64 callers", rates["ours", hot] / optimistic, 5)
    figures.write()


NAMES = {"ours": "agent.ledger", "bare": "find_one_and_update (the floor)", "optimistic": "read, write by version"}


async def _fresh(providers: Collection) -> None:
    nothing = dict.fromkeys(AMOUNTS, 0)
    await providers.delete_many({})
    await providers.insert_one(
        {
            "_id": "hot",
            "capacity": dict.fromkeys(AMOUNTS, PLENTY),
            "allocated": nothing,
            "bookings": {},
            "version": 0,
            "status": "active",
        }
    )


async def _granted(call: Call, callers: int, seconds: float) -> int:
    """How many calls end within the time."""
    until = time.perf_counter() + seconds
    granted = 0

    async def caller(number: int) -> None:
        nonlocal granted
        for turn in itertools.count():
            if time.perf_counter() >= until:
                return
            await call(f"c{number}-{turn}")
            granted += time.perf_counter() < until

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return granted


def _ours(providers: Collection) -> Call:
    ledger = Ledger(providers, active=["active"])

    async def call(key: str) -> None:
        await ledger.allocate("hot", key, AMOUNTS)

    return call


def _bare(providers: Collection) -> Call:
    """No key, no booking: what the server does at best."""
    room = {f"allocated.{name}": {"$lte": PLENTY - amount} for name, amount in AMOUNTS.items()}
    update = {"$inc": {f"allocated.{name}": amount for name, amount in AMOUNTS.items()} | {"version": 1}}

    async def call(_: str) -> None:
        assert await providers.find_one_and_update({"_id": "hot", "status": "active", **room}, update, {"_id": 1})

    return call


def _optimistic(providers: Collection) -> Call:
    """The old service: read the document, look whether there is room, write where the version is still the same."""

    async def call(key: str) -> None:
        while True:
            found = await providers.find_one({"_id": "hot"}, {"allocated": 1, "capacity": 1, "version": 1})
            assert found is not None
            allocated, version = found["allocated"], found["version"]
            assert isinstance(allocated, dict)
            assert isinstance(version, int)
            values = {f"allocated.{name}": allocated[name] + amount for name, amount in AMOUNTS.items()}
            values |= {f"bookings.{key}": AMOUNTS, "version": version + 1}
            done = await providers.update_one({"_id": "hot", "version": version}, {"$set": values})
            if done.modified_count:
                return
            await asyncio.sleep(random.uniform(0, 0.01))

    return call
