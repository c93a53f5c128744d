"""The provider clients of one process, each made once, lent while it is good, and closed when nobody uses it.

Rule: a client leaves the cache when nobody used it for ``ttl`` (an hour), when it is older than ``max_age``, when its
provider is gone, when its provider's credentials changed, when it was refused several times in a row, or when the cache
is full and it was used longest ago.

Caution: a client that leaves is out of the cache at once, and closed when its last user is done; never before. So for a
while more clients may be open than the cache holds. The cache belongs to one process and one event loop: evicting here
does nothing to another process' clients.

Nothing here looks at the wall clock, waits for a lock, or makes one provider wait for another: all that changes the
cache happens between two awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final, Generic, Literal, Protocol, Self, TypeVar

import structlog

from agent.cluster.client import ProviderClient, Sleep, connect
from agent.cluster.credentials import ProviderCredentials
from agent.errors import ClusterError, ClusterTimeoutError, ClusterUnavailableError, UsageError, shown

_log: Final = structlog.get_logger(__name__)

PROBES_AT_ONCE: Final = 10  # enough for a bound of 100 clients, few enough not to crowd out the reads

Result = Literal["hit", "miss", "error"]


class Reason(StrEnum):
    """Why a client left the cache."""

    IDLE = "idle"
    MAX_AGE = "max_age"
    DELETED = "deleted"
    CREDENTIALS = "credentials"
    REFUSED = "refused"
    FULL = "full"
    INVALIDATED = "invalidated"
    SHUTDOWN = "shutdown"


class CachedClient(Protocol):
    """What the cache needs of a client."""

    @property
    def refusals(self) -> int:
        """How many calls were refused, and probes failed, in a row."""

    async def probe(self) -> None:
        """See whether the cluster answers. Raises ClusterError, and counts it, if not."""

    async def close(self) -> None:
        """Close the connections."""


class Observer:
    """Is told what the cache does, for the metrics; it must not raise. This one tells nobody."""

    def requested(self, result: Result) -> None:
        """A client was asked for."""

    def connected(self, seconds: float) -> None:
        """A client was made, in so many seconds."""

    def evicted(self, reason: Reason) -> None:
        """A client left the cache."""

    def close_failed(self) -> None:
        """A client could not be closed."""

    def entries(self, count: int) -> None:
        """So many clients are in the cache now."""


C = TypeVar("C", bound=CachedClient)
Load = Callable[[], Awaitable[ProviderCredentials]]
Connect = Callable[[str, ProviderCredentials], Awaitable[C]]


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """When a client has to go.

    ``ttl`` counts from the last use, ``max_age`` from the making, ``refusals`` in a row. ``known`` holds the providers
    that exist and ``fingerprints`` their credentials as they are now; ``None`` is "not looked", which is never "gone".
    """

    ttl: timedelta = timedelta(hours=1)
    max_age: timedelta = timedelta(hours=24)
    refusals: int = 3
    known: Collection[str] | None = None
    fingerprints: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The cache's own settings.

    ``size`` is how many clients it holds at most. Making a client may take ``connect`` (more than a client's own budget
    for a call: this is the backstop), closing one ``close``; at the end of the process users have ``drain`` to finish.
    """

    size: int = 100
    connect: timedelta = timedelta(seconds=45)
    close: timedelta = timedelta(seconds=5)
    drain: timedelta = timedelta(seconds=5)
    rules: EvictionRules = field(default_factory=EvictionRules)

    def __post_init__(self) -> None:
        """Refuse a cache that could hold nothing. Raises UsageError."""
        if self.size < 1:
            raise UsageError(f"a client cache holds at least one client, not {self.size}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A client that has to go: which one, why, and the seconds since its last use (its making, for ``max_age``)."""

    key: str
    generation: int
    reason: Reason
    seconds: float


@dataclass(eq=False, slots=True)
class _Entry(Generic[C]):
    """One client, from the start of its making to its closing.

    ``ticket`` orders the credentials: that of the latest request which loaded them. ``left`` says why it is no longer
    in the cache.
    """

    key: str
    fingerprint: str
    generation: int
    ticket: int
    ready: asyncio.Task[C] = field(init=False)
    client: C | None = None
    users: int = 0
    made: float = 0.0
    used: float = 0.0
    left: Reason | None = None


class ClientCache(Generic[C]):
    """A cache of clients, for one event loop. ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        connect: Connect[C],
        settings: CacheSettings | None = None,
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._connect = connect
        self._settings = settings or CacheSettings()
        self._observer = observer or Observer()
        self._clock = clock
        self._sleep = sleep
        self._entries: OrderedDict[str, _Entry[C]] = OrderedDict()  # the one used longest ago comes first
        self._pending: dict[tuple[str, str], _Entry[C]] = {}
        self._leaving: set[_Entry[C]] = set()  # out of the cache, still in use
        self._closing: set[asyncio.Task[None]] = set()
        self._generations = itertools.count(1)
        self._tickets = itertools.count(1)
        self._unused = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, settings: CacheSettings) -> None:
        """Take other settings, from now on."""
        self._settings = settings
        self._make_room()

    # -------------------------------------------------------------------------------------------------------- lending

    @contextlib.asynccontextmanager
    async def client(self, key: str, load: Load) -> AsyncIterator[C]:
        """Lend the client of a provider for the time of the block; do not close it, do not keep it.

        ``load`` reads the provider's credentials as they are now; it is called every time, so that a rotated kubeconfig
        makes a new client with the next use. Raises what ``load`` and the making raise, to all who wait for it;
        ClusterUnavailableError once the cache is closed.
        """
        entry, client = await self._borrow(key, load)
        try:
            yield client
        finally:
            self._give_back(entry)

    async def _borrow(self, key: str, load: Load) -> tuple[_Entry[C], C]:
        result: Result | None = "error"
        try:
            ticket = next(self._tickets)
            credentials = await load()
            entry, found = self._entry(key, credentials, ticket)
            client = await self._lease(entry)
            result = found
        except asyncio.CancelledError:
            result = None
            raise
        finally:
            if result is not None:
                self._observer.requested(result)
        return entry, client

    def _entry(self, key: str, credentials: ProviderCredentials, ticket: int) -> tuple[_Entry[C], Result]:
        if self._closed:
            raise ClusterUnavailableError("the client cache is closed")
        fingerprint = credentials.fingerprint
        entry = self._usable(key, fingerprint, ticket)
        if entry is not None:
            self._entries.move_to_end(key)
            return entry, "hit"
        pending = self._pending.get((key, fingerprint))
        if pending is None:
            pending = self._start(key, credentials, ticket)
        pending.ticket = max(pending.ticket, ticket)
        return pending, "miss"

    def _usable(self, key: str, fingerprint: str, ticket: int) -> _Entry[C] | None:
        """The client in the cache if it may be lent; if not, it leaves."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        reason = self._reason(entry, self._settings.rules)
        if reason is None and entry.fingerprint != fingerprint and entry.ticket < ticket:
            reason = Reason.CREDENTIALS
        if reason is not None:
            self._evict(entry, reason)
            return None
        if entry.fingerprint == fingerprint:
            entry.ticket = max(entry.ticket, ticket)
        # Else the cache's credentials were loaded after these, which are a view of the past.
        return entry

    async def _lease(self, entry: _Entry[C]) -> C:
        entry.users += 1
        try:
            return await self._made(entry)
        except BaseException:
            self._give_back(entry)
            raise

    async def _made(self, entry: _Entry[C]) -> C:
        if not entry.ready.done():
            await asyncio.wait({entry.ready})  # not the task itself: who stops waiting must not stop the others
        if entry.ready.cancelled():
            raise ClusterUnavailableError("the client cache was closed")
        return entry.ready.result()

    def _give_back(self, entry: _Entry[C]) -> None:
        entry.users -= 1
        entry.used = self._clock()
        if entry.left is None and self._refused(entry, self._settings.rules):
            self._evict(entry, Reason.REFUSED)
        elif entry.left is not None and entry.users == 0:
            self._leaving.discard(entry)
            self._close(entry, entry.left)
        if not self._leaving:
            self._unused.set()

    # --------------------------------------------------------------------------------------------------------- making

    def _start(self, key: str, credentials: ProviderCredentials, ticket: int) -> _Entry[C]:
        entry: _Entry[C] = _Entry(key, credentials.fingerprint, next(self._generations), ticket)
        entry.ready = asyncio.create_task(self._make(entry, credentials), name=f"connect-{entry.generation}")
        # Those who waited may all be gone when it fails: somebody has to look at the error.
        entry.ready.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._pending[key, entry.fingerprint] = entry
        return entry

    async def _make(self, entry: _Entry[C], credentials: ProviderCredentials) -> C:
        started = self._clock()
        try:
            async with asyncio.timeout(self._settings.connect.total_seconds()):
                entry.client = await self._connect(entry.key, credentials)
        except TimeoutError as error:
            raise ClusterTimeoutError(f"the cluster of {shown(entry.key)} could not be connected in time") from error
        finally:
            if self._pending.get((entry.key, entry.fingerprint)) is entry:
                del self._pending[entry.key, entry.fingerprint]
        self._observer.connected(self._clock() - started)
        self._admit(entry)
        return entry.client

    def _admit(self, entry: _Entry[C]) -> None:
        """Put a new client into the cache, unless it was evicted while it was made or is outdated already."""
        entry.made = entry.used = self._clock()
        current = self._entries.get(entry.key)
        if entry.left is None and current is not None and current.ticket > entry.ticket:
            entry.left = Reason.CREDENTIALS
        if entry.left is not None:
            self._retire(entry, entry.left)
            return
        if current is not None:
            self._evict(current, Reason.CREDENTIALS)
        self._entries[entry.key] = entry
        self._make_room()
        self._observer.entries(len(self._entries))

    def _make_room(self) -> None:
        while len(self._entries) > self._settings.size:
            self._evict(self._dispensable(), Reason.FULL)

    def _dispensable(self) -> _Entry[C]:
        """The client used longest ago that nobody uses; if all are in use, the one lent longest ago."""
        unused = (entry for entry in self._entries.values() if entry.users == 0)
        return next(unused, next(iter(self._entries.values())))

    # ------------------------------------------------------------------------------------------------------- evicting

    def candidates(self, rules: EvictionRules | None = None) -> list[Candidate]:
        """The clients that have to go by the rules (the cache's own if none are given), used longest ago first."""
        found = []
        for entry in self._entries.values():
            candidate = self._candidate(entry, rules or self._settings.rules)
            if candidate is not None:
                found.append(candidate)
        return found

    def look(self, key: str, generation: int, rules: EvictionRules | None = None) -> Candidate | None:
        """Whether this very client still has to go, and why; None if it need not, or is no longer there."""
        entry = self._entries.get(key)
        if entry is None or entry.generation != generation:
            return None
        return self._candidate(entry, rules or self._settings.rules)

    def evict(self, key: str, generation: int, rules: EvictionRules | None = None) -> Reason | None:
        """Take this very client out, if it still has to go, and close it when its last user is done.

        The decision is repeated here: a client that was used or made anew since it was a candidate stays. Returns the
        reason for which it left, None if it did not.
        """
        candidate = self.look(key, generation, rules)
        if candidate is None:
            return None
        self._evict(self._entries[key], candidate.reason)
        return candidate.reason

    def invalidate(self, key: str, reason: Reason = Reason.INVALIDATED) -> bool:
        """Take a provider's client out, the one that is being made too; whoever asks from now on gets a new one.

        Returns whether there was one. Here and now only: other processes have caches of their own.
        """
        entry = self._entries.get(key)
        if entry is not None:
            self._evict(entry, reason)
        making = [pending for pending in self._pending.values() if pending.key == key]
        for pending in making:
            del self._pending[key, pending.fingerprint]
            pending.left = reason
        return bool(entry or making)

    def _candidate(self, entry: _Entry[C], rules: EvictionRules) -> Candidate | None:
        reason = self._reason(entry, rules)
        if reason is None:
            return None
        since = entry.made if reason is Reason.MAX_AGE else entry.used
        return Candidate(entry.key, entry.generation, reason, max(self._clock() - since, 0.0))

    def _reason(self, entry: _Entry[C], rules: EvictionRules) -> Reason | None:
        if rules.known is not None and entry.key not in rules.known:
            return Reason.DELETED
        if rules.fingerprints is not None and rules.fingerprints.get(entry.key, entry.fingerprint) != entry.fingerprint:
            return Reason.CREDENTIALS
        if self._refused(entry, rules):
            return Reason.REFUSED
        now = self._clock()
        if now - entry.made >= rules.max_age.total_seconds():
            return Reason.MAX_AGE
        if entry.users == 0 and now - entry.used >= rules.ttl.total_seconds():
            return Reason.IDLE
        return None

    def _refused(self, entry: _Entry[C], rules: EvictionRules) -> bool:
        return entry.client is not None and entry.client.refusals >= rules.refusals

    def _evict(self, entry: _Entry[C], reason: Reason) -> None:
        del self._entries[entry.key]
        self._observer.evicted(reason)
        self._observer.entries(len(self._entries))
        self._retire(entry, reason)

    def _retire(self, entry: _Entry[C], reason: Reason) -> None:
        entry.left = reason
        if entry.users == 0:
            self._close(entry, reason)
        else:
            self._leaving.add(entry)
            self._unused.clear()

    # -------------------------------------------------------------------------------------------------------- closing

    def _close(self, entry: _Entry[C], reason: Reason) -> None:
        client, entry.client = entry.client, None
        if client is not None:
            task = asyncio.create_task(self._close_client(entry, client, reason))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_client(self, entry: _Entry[C], client: C, reason: Reason) -> None:
        log = _log.bind(provider=entry.key, generation=entry.generation, reason=str(reason))
        error = await self._outcome_of(client.close())
        if error is None:
            log.info("closed_expired_client", age_seconds=round(self._clock() - entry.made, 3))
        else:
            self._observer.close_failed()
            log.warning("failed_to_close_expired_client", error=f"{type(error).__name__}: {error}")

    async def _outcome_of(self, closing: Awaitable[None]) -> BaseException | None:
        """What went wrong, if anything did. It runs apart, since whatever it raises must stop nothing here."""
        task = asyncio.ensure_future(closing)
        done, _ = await asyncio.wait({task}, timeout=self._settings.close.total_seconds())
        if not done:
            task.cancel()
            return TimeoutError(f"not closed within {self._settings.close.total_seconds():g} s")
        return asyncio.CancelledError() if task.cancelled() else task.exception()

    async def settled(self) -> None:
        """Wait until every client that nobody uses any more is closed, or has failed to."""
        while self._closing:
            await asyncio.wait(self._closing)

    async def aclose(self) -> None:
        """Close everything: stop lending, let users finish for a while (``drain``), then close what is left."""
        self._closed = True
        await self._stop_sweeping()
        making = list(self._pending.values())
        for key in {*self._entries, *(entry.key for entry in making)}:
            self.invalidate(key, Reason.SHUTDOWN)
        for entry in making:
            entry.ready.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain.total_seconds()):
                await self._drained()
        for entry in list(self._leaving):
            self._close(entry, Reason.SHUTDOWN)
        await asyncio.gather(*(entry.ready for entry in making), return_exceptions=True)
        await self.settled()

    async def _drained(self) -> None:
        while self._leaving:
            await self._unused.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # ------------------------------------------------------------------------------------------------------- sweeping

    async def sweep(self, rules: EvictionRules | None = None) -> list[Candidate]:
        """Evict what has to go and wait until it is closed, except for what is in use. Returns what left."""
        found = self.candidates(rules)
        if not found:
            return []
        _log.info("cleaning_up_expired_clients", count=len(found), entries=len(self._entries))
        left = [candidate for candidate in found if self.evict(candidate.key, candidate.generation, rules)]
        await self.settled()
        _log.info("expired_clients_cleaned_up", count=len(left), in_use=len(self._leaving), entries=len(self._entries))
        return left

    async def probe(self) -> None:
        """Ask every cluster that has an unused client whether it answers; who fails often enough has to go.

        Failures are counted at the client (``refusals``) and raise nothing.
        """
        places = asyncio.Semaphore(PROBES_AT_ONCE)
        await asyncio.gather(*(self._probe(entry, places) for entry in list(self._entries.values()) if not entry.users))

    async def _probe(self, entry: _Entry[C], places: asyncio.Semaphore) -> None:
        async with places:
            if entry.left is not None or entry.client is None:
                return
            entry.users += 1
            try:
                with contextlib.suppress(ClusterError):
                    await entry.client.probe()
            finally:
                used = entry.used
                self._give_back(entry)
                entry.used = used  # a probe is no use, or the client would never be idle

    def start_sweeping(self, every: timedelta) -> None:
        """Sweep in the background until the cache is closed; for applications that have no job to do it."""
        if self._sweeper is None and not self._closed:
            self._sweeper = asyncio.create_task(self._keep_sweeping(every.total_seconds()), name="client-cache-sweeper")

    async def _keep_sweeping(self, seconds: float) -> None:
        while True:
            await self._sleep(seconds)
            await self.sweep()

    async def _stop_sweeping(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})


def provider_clients(
    settings: CacheSettings | None = None, *, observer: Observer | None = None
) -> ClientCache[ProviderClient]:
    """A cache of real clients with the default settings of a client."""
    return ClientCache(connect, settings, observer=observer)
