"""Leases: who may run a job now, and the number of the term.

One document a job in ``maintenance_leases``: {holder, term, run, scheduled_for, expires_at}, all by the server's clock,
so that agents need not agree on the time. Every batch on a replica set touches the lease by its term in the same
transaction, which both renews it and shuts out a holder that was frozen past its term. On a standalone server only the
local deadline, a margin before the lease's end, keeps a stale holder from writing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from agent.errors import BusyError, ConflictError, DuplicateError, LeaseLostError, StoreError, StoreUnavailableError
from agent.store import Collection, Document, Session, time_limit

RENEW_SHARE = 3  # renewed after the 3rd part of its time, so that two renewals may fail
MARGIN_SHARE = 5  # the local deadline is a 5th part before the end
TAKE_SECONDS = 2.0  # a take that waits so long waits for somebody's open transaction, or for a new primary
TAKE_TRIES = 2  # so that both together leave time to look for a new primary in between


def boot_time() -> float:
    """Seconds on a clock that nobody sets and that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else's lease: what blocks a run."""

    holder: str
    scheduled_for: dt.datetime | None


class HeldError(BusyError):
    """The lease is held; ``lease`` says by whom and for which slot."""

    def __init__(self, job: str, lease: Held) -> None:
        super().__init__(f"{job} is already running on {lease.holder}")
        self.lease = lease


class Leases:
    """The leases of all jobs, as one agent sees them."""

    def __init__(self, collection: Collection, *, holder: str, ttl: dt.timedelta) -> None:
        self._collection = collection
        self._holder = holder
        self._ttl = ttl

    async def acquire(self, job: str, run: str, scheduled_for: dt.datetime | None) -> Lease:
        """Takes the lease for a new term. Raises ``HeldError`` where another run holds it."""
        values: Document = {
            "holder": {"$literal": self._holder},
            "run": {"$literal": run},
            "scheduled_for": {"$literal": scheduled_for},
            "term": {"$add": ["$term", 1]},
            "acquired_at": "$$NOW",
            "expires_at": {"$add": ["$$NOW", self._milliseconds]},
        }
        lease = await self._take(job, values)
        if lease is None and await self._made(job):
            lease = await self._take(job, values)
        if lease is None:
            raise HeldError(job, await self._held(job))
        return lease

    async def _take(self, job: str, values: Document) -> Lease | None:
        """Takes the lease if it is free. Raises ``StoreUnavailableError`` where MongoDB is away."""
        free = {"_id": job, "$expr": {"$lte": ["$expires_at", "$$NOW"]}}
        for _ in range(TAKE_TRIES):
            asked = boot_time()
            try:
                with time_limit(TAKE_SECONDS):
                    taken = await self._collection.find_one_and_update(free, [{"$set": values}])
            except ConflictError:
                return None
            except StoreUnavailableError:
                # MongoDB is away, or the open transaction of a holder that is frozen or dead is in the way until the
                # server ends it, or only the answer was lost: a read tells, which is not kept waiting.
                found = await self._collection.find_one({"_id": job})
                if found is not None and found.get("run") == values["run"]["$literal"]:
                    return Lease(self._collection, found, self._ttl, asked)
            else:
                return Lease(self._collection, taken, self._ttl, asked) if taken is not None else None
        return None

    async def _made(self, job: str) -> bool:
        """Makes the lease document of a job that never ran (an upsert takes no ``$expr``); says whether it did."""
        if await self._collection.find_one({"_id": job}, ["_id"]) is not None:
            return False
        with suppress(DuplicateError):
            await self._collection.insert({"_id": job, "term": 0, "expires_at": dt.datetime.fromtimestamp(0, dt.UTC)})
        return True

    async def _held(self, job: str) -> Held:
        found = await self._collection.find_one({"_id": job}) or {}
        return Held(str(found.get("holder", "another agent")), found.get("scheduled_for"))

    async def free(self, job: str) -> bool:
        """Whether nobody holds the job's lease."""
        held = {"_id": job, "$expr": {"$gt": ["$expires_at", "$$NOW"]}}
        return await self._collection.find_one(held) is None

    @property
    def _milliseconds(self) -> int:
        return int(self._ttl.total_seconds() * 1000)


class Lease:
    """A lease that this process holds, until it says that it lost it."""

    def __init__(self, collection: Collection, taken: Document, ttl: dt.timedelta, asked: float) -> None:
        self._collection = collection
        self._mine: Document = {"_id": taken["_id"], "holder": taken["holder"], "term": taken["term"]}
        self._ttl = ttl.total_seconds()
        self._deadline = asked + self._ttl * (1 - 1 / MARGIN_SHARE)
        self._lock = asyncio.Lock()
        self.term: int = taken["term"]
        self.now: dt.datetime = taken["acquired_at"]
        """The server's time at which the lease was taken."""

    def check(self) -> None:
        """Raises ``LeaseLostError`` where the lease may have run out by now."""
        if boot_time() >= self._deadline:
            raise LeaseLostError(f"the lease of {self._mine['_id']} ran out (term {self.term})")

    async def touch(self, session: Session | None = None) -> None:
        """Renews the lease. Raises ``LeaseLostError`` where another holder has taken it or it ran out here."""
        self.check()
        asked = boot_time()
        milliseconds = int(self._ttl * 1000)
        renewed = [{"$set": {"expires_at": {"$add": ["$$NOW", milliseconds]}}}]
        if not await self._collection.update_one(self._mine, renewed, session=session):
            self._deadline = float("-inf")
            raise LeaseLostError(f"the lease of {self._mine['_id']} was taken over (term {self.term})")
        self._deadline = max(self._deadline, asked + self._ttl * (1 - 1 / MARGIN_SHARE))

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Keeps the renewer out while a batch touches the lease itself: the two would conflict."""
        async with self._lock:
            yield

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Renews the lease in the background, between the batches."""
        task = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._ttl / RENEW_SHARE)
            async with self._lock:
                try:
                    await self.touch()
                except LeaseLostError:
                    return  # the run notices at its next batch
                except StoreError:
                    continue  # the deadline decides

    async def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        async with self._lock:
            await self._collection.update_one(self._mine, [{"$set": {"expires_at": "$$NOW"}}])
