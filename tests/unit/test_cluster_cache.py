"""The cache lends one good client a provider, forgets it for the right reasons, and closes none that is in use."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.cluster import (
    CacheSettings,
    ClientCache,
    EvictionRules,
    Observer,
    ProviderCredentials,
    Reason,
)
from agent.cluster.cache import Result
from agent.errors import ClusterDeniedError, ClusterTimeoutError, ClusterUnavailableError, UsageError

HOUR = 3600.0
SHORT = timedelta(milliseconds=20)  # of real time, where a time-out itself is what is tested


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Client:
    """Stands for a client: fails the test when it is used after it was closed."""

    def __init__(self, provider: str, credentials: ProviderCredentials) -> None:
        self.provider = provider
        self.credentials = credentials
        self.refusals = 0
        self.closed = False
        self.probes = 0
        self.ending: Callable[[], Awaitable[None]] | None = None

    def use(self) -> None:
        """Make a call."""
        assert not self.closed, f"the client of {self.provider} was used after it was closed"

    async def probe(self) -> None:
        """See whether the cluster answers, as it does unless `refusals` were counted before."""
        self.use()
        self.probes += 1
        await asyncio.sleep(0)
        self.use()
        if self.refusals:
            self.refusals += 1
            raise ClusterUnavailableError("no answer")

    async def close(self) -> None:
        """Close, in the way that the test set."""
        if self.ending is not None:
            await self.ending()
        assert not self.closed, f"the client of {self.provider} was closed twice"
        self.closed = True


class Factory:
    """Makes clients, and keeps count of them; a gate holds up the providers that a test names."""

    def __init__(self) -> None:
        self.made: list[Client] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.error: Exception | None = None

    async def __call__(self, provider: str, credentials: ProviderCredentials) -> Client:
        client = Client(provider, credentials)
        self.made.append(client)
        if provider in self.gates:
            await self.gates[provider].wait()
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return client


class Counts(Observer):
    """Keeps what the cache tells."""

    def __init__(self) -> None:
        self.results: Counter[Result] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self.connects: list[float] = []
        self.failures = 0
        self.size = 0

    def requested(self, result: Result) -> None:
        self.results[result] += 1

    def connected(self, seconds: float) -> None:
        self.connects.append(seconds)

    def evicted(self, reason: Reason) -> None:
        self.reasons[reason] += 1

    def close_failed(self) -> None:
        self.failures += 1

    def entries(self, count: int) -> None:
        self.size = count


class World:
    """A cache with all that it stands on; ``load`` gives the credentials of a generation."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.factory = Factory()
        self.counts = Counts()
        self.naps: asyncio.Queue[float] = asyncio.Queue()
        self.wake = asyncio.Event()
        self.cache: ClientCache[Client] = ClientCache(
            self.factory, CacheSettings(**settings), observer=self.counts, clock=self.clock, sleep=self.sleep
        )

    async def sleep(self, seconds: float) -> None:
        """Sleep until the test wakes it."""
        self.wake.clear()
        self.naps.put_nowait(seconds)
        await self.wake.wait()

    def lend(self, key: str, version: str = "1") -> contextlib.AbstractAsyncContextManager[Client]:
        """Borrow a client with these credentials."""
        return self.cache.client(key, load(version))

    async def touch(self, key: str, version: str = "1") -> Client:
        """Borrow a client and give it back."""
        async with self.lend(key, version) as client:
            client.use()
            return client


def credentials(secret: str) -> ProviderCredentials:
    """Credentials that differ by a secret."""
    return ProviderCredentials("https://api.example", authorization=f"Bearer {secret}")


def load(secret: str) -> Callable[[], Awaitable[ProviderCredentials]]:
    """Make what loads such credentials."""

    async def loaded() -> ProviderCredentials:
        await asyncio.sleep(0)
        return credentials(secret)

    return loaded


async def turns(count: int = 10) -> None:
    """Let every other task run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A fresh cache with the default settings; whatever the test leaves open is closed."""
    made = World()
    yield made
    await made.cache.aclose()


# ------------------------------------------------------------------------------------------------------------- lending


async def test_a_client_is_made_once_and_lent_again(world: World) -> None:
    """The second look-up is a hit on the same client; the making was measured."""
    first = await world.touch("p")
    assert await world.touch("p") is first
    assert world.counts.results == {"miss": 1, "hit": 1}
    assert (len(world.factory.made), len(world.cache), world.counts.size) == (1, 1, 1)
    assert world.counts.connects == [0.0]


async def test_providers_have_clients_of_their_own(world: World) -> None:
    """The same credentials under two names are two clients."""
    assert await world.touch("p") is not await world.touch("q")


async def test_many_at_once_share_one_making(world: World) -> None:
    """Fifty that ask before there is a client wait for the same one."""
    clients = await asyncio.gather(*(world.touch("p") for _ in range(50)))
    assert len(set(map(id, clients))) == len(world.factory.made) == 1
    assert world.counts.results == {"miss": 50}


async def test_a_slow_provider_holds_up_no_other(world: World) -> None:
    """While one client is being made, others are made, lent and evicted."""
    world.factory.gates["slow"] = asyncio.Event()
    waiting = asyncio.create_task(world.touch("slow"))
    await turns()
    await world.touch("quick")
    assert world.cache.invalidate("quick")
    assert not waiting.done()
    world.factory.gates["slow"].set()
    assert (await waiting).provider == "slow"


async def test_the_first_to_wait_may_leave_without_the_others(world: World) -> None:
    """Cancelling who started the making does not cancel the making."""
    world.factory.gates["p"] = asyncio.Event()
    first, second = (asyncio.create_task(world.touch("p")) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    world.factory.gates["p"].set()
    assert (await second).provider == "p"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(world.factory.made) == 1
    assert world.counts.results == {"miss": 1}


async def test_a_client_that_nobody_waits_for_any_more_is_kept(world: World) -> None:
    """All who waited were cancelled: the next one finds what was made, unused, so that it can be idle and leave."""
    world.factory.gates["p"] = asyncio.Event()
    waiting = asyncio.create_task(world.touch("p"))
    await turns()
    waiting.cancel()
    world.factory.gates["p"].set()
    await turns()
    assert await world.touch("p") is world.factory.made[0]
    world.clock.now += HOUR
    assert [candidate.reason for candidate in world.cache.candidates()] == [Reason.IDLE]


async def test_a_failed_making_is_told_to_all_and_not_kept(world: World) -> None:
    """All who waited get the error, the next one tries again."""
    world.factory.error = ClusterDeniedError("401")
    outcomes = await asyncio.gather(*(world.touch("p") for _ in range(5)), return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"401"}
    assert world.counts.results == {"error": 5}
    assert (len(world.factory.made), len(world.cache)) == (1, 0)
    world.factory.error = None
    await world.touch("p")
    assert len(world.factory.made) == 2


async def test_an_error_of_nobody_is_not_left_over(world: World) -> None:
    """A making that fails after all who waited were cancelled is no error that nobody looked at."""
    left_over: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: left_over.append(context))
    world.factory.gates["p"] = asyncio.Event()
    world.factory.error = ClusterDeniedError("401")
    waiting = asyncio.create_task(world.touch("p"))
    await turns()
    waiting.cancel()
    world.factory.gates["p"].set()
    await turns()
    assert len(world.cache) == 0
    gc.collect()
    assert left_over == []


async def test_a_making_without_end_is_ended() -> None:
    """The backstop: a factory that hangs is a time-out for who waits, and is not kept."""
    world = World(connect=SHORT)
    world.factory.gates["p"] = asyncio.Event()
    with pytest.raises(ClusterTimeoutError, match="the cluster of 'p' could not be connected in time"):
        await world.touch("p")
    assert len(world.cache) == 0


async def test_an_error_of_the_credentials_is_an_error_of_the_look_up(world: World) -> None:
    """What ``load`` raises reaches its caller; nothing is made."""

    async def failing() -> ProviderCredentials:
        raise KeyError("no such provider")

    with pytest.raises(KeyError):
        async with world.cache.client("p", failing):
            pass
    assert (world.counts.results, world.factory.made) == ({"error": 1}, [])


async def test_an_error_in_the_block_gives_the_client_back(world: World) -> None:
    """A user that fails is a user that is done."""
    with pytest.raises(ZeroDivisionError):
        async with world.lend("p") as client:
            raise ZeroDivisionError
    world.cache.invalidate("p")
    await world.cache.settled()
    assert client.closed


# --------------------------------------------------------------------------------------------------------- credentials


async def test_changed_credentials_make_a_new_client(world: World) -> None:
    """The old one leaves at once and is closed when its user is done, not before."""
    async with world.lend("p", "old") as old:
        new = await world.touch("p", "new")
        await world.cache.settled()
        assert new is not old
        old.use()
        assert await world.touch("p", "new") is new
    await world.cache.settled()
    assert (old.closed, new.closed) == (True, False)
    assert world.counts.reasons == {Reason.CREDENTIALS: 1}


async def test_credentials_that_were_loaded_earlier_do_not_come_back(world: World) -> None:
    """A look-up whose credentials took long to load finds newer ones in use, and takes those."""
    loaded = asyncio.Event()

    async def slowly() -> ProviderCredentials:
        await loaded.wait()
        return credentials("old")

    async def late() -> Client:
        async with world.cache.client("p", slowly) as client:
            return client

    waiting = asyncio.create_task(late())
    await turns()
    new = await world.touch("p", "new")
    loaded.set()
    assert await waiting is new
    assert len(world.factory.made) == 1


async def test_credentials_that_were_confirmed_meanwhile_stay(world: World) -> None:
    """A view of the past is one too if the cache's credentials are older but were loaded again since."""
    loaded = asyncio.Event()

    async def slowly() -> ProviderCredentials:
        await loaded.wait()
        return credentials("passing")

    async def late() -> Client:
        async with world.cache.client("p", slowly) as client:
            return client

    lasting = await world.touch("p", "lasting")
    waiting = asyncio.create_task(late())
    await turns()
    assert await world.touch("p", "lasting") is lasting
    loaded.set()
    assert await waiting is lasting


async def test_credentials_that_were_confirmed_while_they_were_tried_stay(world: World) -> None:
    """Asked for first and again last, they win over those that were asked for in between."""
    gate = world.factory.gates["p"] = asyncio.Event()
    asked: list[asyncio.Task[Client]] = []
    for version in ("lasting", "passing", "lasting"):
        asked.append(asyncio.create_task(world.touch("p", version)))
        await turns()
    gate.set()
    first, _, third = await asyncio.gather(*asked)
    assert first is third
    assert await world.touch("p", "lasting") is first


async def test_of_two_makings_the_newer_credentials_stay(world: World) -> None:
    """Whichever is finished last, the cache keeps the one asked for last; the other serves who asked for it."""
    gate = world.factory.gates["p"] = asyncio.Event()
    old = asyncio.create_task(world.touch("p", "old"))
    await turns()
    del world.factory.gates["p"]
    new = await world.touch("p", "new")
    gate.set()
    assert (await old).credentials == credentials("old")
    await world.cache.settled()
    assert (await old).closed
    assert await world.touch("p", "new") is new
    assert len(world.cache) == 1


# --------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("seconds,stays", [(HOUR - 1, True), (HOUR, False)])
async def test_a_client_is_idle_an_hour_after_its_last_use(world: World, seconds: float, stays: bool) -> None:
    """A second less and it stays, for the sweep and for a look-up alike."""
    client = await world.touch("p")
    world.clock.now += 100
    await world.touch("p")
    world.clock.now += seconds
    assert bool(world.cache.candidates()) is not stays
    assert (await world.touch("p") is client) is stays


async def test_a_client_in_use_is_not_idle(world: World) -> None:
    """However long the use takes; the hour begins with its end."""
    async with world.lend("p"):
        world.clock.now += 5 * HOUR
        assert world.cache.candidates() == []
    world.clock.now += HOUR - 1
    assert world.cache.candidates() == []


@pytest.mark.parametrize("seconds,stays", [(24 * HOUR - 1, True), (24 * HOUR, False)])
async def test_a_client_has_a_maximum_age(world: World, seconds: float, stays: bool) -> None:
    """Used or not, after a day it is made anew."""
    async with world.lend("p") as client:
        world.clock.now += seconds
        swept = await world.cache.sweep()
        assert not client.closed
    assert [candidate.reason for candidate in swept] == ([] if stays else [Reason.MAX_AGE])
    await world.cache.settled()
    assert client.closed is not stays


async def test_a_client_that_is_refused_again_and_again_leaves_when_it_is_given_back(world: World) -> None:
    """Twice in a row it stays, the third time it leaves; who asks next gets a new one."""
    async with world.lend("p") as client:
        client.refusals = 2
    assert await world.touch("p") is client
    async with world.lend("p") as client:
        client.refusals = 3
    await world.cache.settled()
    assert client.closed
    assert await world.touch("p") is not client
    assert world.counts.reasons == {Reason.REFUSED: 1}


async def test_providers_that_are_gone_or_changed_are_told_by_the_rules(world: World) -> None:
    """What was not looked at (None) is never gone; what was looked at and is not there is."""
    for key in ("kept", "gone", "changed"):
        await world.touch(key)
    assert world.cache.candidates(EvictionRules()) == []
    now = {"kept": credentials("1").fingerprint, "changed": credentials("2").fingerprint}
    found = world.cache.candidates(EvictionRules(known={"kept", "changed"}, fingerprints=now))
    assert {candidate.key: candidate.reason for candidate in found} == {
        "gone": Reason.DELETED,
        "changed": Reason.CREDENTIALS,
    }


async def test_candidates_tell_for_how_long(world: World) -> None:
    """Idle since the last use, too old since the making, and the one used longest ago first."""
    for key in ("p", "q"):
        await world.touch(key)
    world.clock.now += 23 * HOUR
    await world.touch("p")
    world.clock.now += HOUR
    found = {candidate.key: candidate for candidate in world.cache.candidates()}
    assert list(found) == ["q", "p"]
    # By then the hour has made a new client of p, a second ago or longer.
    assert (found["q"].reason, found["q"].seconds) == (Reason.MAX_AGE, 24 * HOUR)
    assert (found["p"].reason, found["p"].seconds) == (Reason.IDLE, HOUR)


async def test_an_old_decision_does_not_evict_a_new_client(world: World) -> None:
    """Between the decision and the act the client was made anew: the generation differs, it stays."""
    await world.touch("p")
    world.clock.now += HOUR
    (candidate,) = world.cache.candidates()
    new = await world.touch("p")
    rules = EvictionRules(ttl=timedelta(0))
    assert world.cache.evict("p", candidate.generation, rules) is None
    assert await world.touch("p") is new


async def test_the_condition_is_repeated_in_the_act(world: World) -> None:
    """Between the decision and the act the client was used: it is the same one, and stays."""
    rules = EvictionRules(ttl=timedelta(minutes=30))
    client = await world.touch("p")
    world.clock.now += HOUR / 2
    (candidate,) = world.cache.candidates(rules)
    assert world.cache.look("p", candidate.generation, rules) == candidate
    assert await world.touch("p") is client
    assert world.cache.look("p", candidate.generation, rules) is None
    assert world.cache.evict("p", candidate.generation, rules) is None
    world.clock.now += HOUR / 2
    assert world.cache.evict("p", candidate.generation, rules) is Reason.IDLE
    assert world.cache.evict("p", candidate.generation, rules) is None


# --------------------------------------------------------------------------------------------------------- invalidation


async def test_an_invalidated_client_leaves_at_once(world: World) -> None:
    """Who has it keeps it, who asks gets a new one, and what was not there is told."""
    async with world.lend("p") as old:
        assert world.cache.invalidate("p")
        assert not world.cache.invalidate("p")
        assert await world.touch("p") is not old
        old.use()
    await world.cache.settled()
    assert old.closed


async def test_what_was_invalidated_while_it_was_made_is_not_kept(world: World) -> None:
    """Even if nobody asks again, and nobody waits: it is closed when it is made."""
    world.factory.gates["p"] = asyncio.Event()
    waiting = asyncio.create_task(world.touch("p"))
    await turns()
    assert world.cache.invalidate("p")
    waiting.cancel()
    world.factory.gates["p"].set()
    await turns()
    await world.cache.settled()
    assert (len(world.cache), world.factory.made[0].closed) == (0, True)


async def test_a_client_that_is_being_made_can_be_invalidated(world: World) -> None:
    """Who waits gets it, it is not kept, and is closed when they are done; later ones get another."""
    gate = world.factory.gates["p"] = asyncio.Event()
    waiting = asyncio.create_task(world.touch("p"))
    await turns()
    assert world.cache.invalidate("p")
    del world.factory.gates["p"]
    new = await world.touch("p")
    gate.set()
    assert await waiting is not new
    await world.cache.settled()
    assert ((await waiting).closed, new.closed, len(world.cache)) == (True, False, 1)


# --------------------------------------------------------------------------------------------------------------- bound


async def test_a_full_cache_forgets_what_was_used_longest_ago() -> None:
    """Not the oldest: the one whose last use is oldest."""
    world = World(size=2)
    first, second = await world.touch("a"), await world.touch("b")
    await world.touch("a")
    await world.touch("c")
    await world.cache.settled()
    assert (first.closed, second.closed, len(world.cache)) == (False, True, 2)
    assert world.counts.reasons == {Reason.FULL: 1}
    await world.cache.aclose()


async def test_a_full_cache_spares_what_is_in_use() -> None:
    """An unused client leaves, though one in use was lent longer ago."""
    world = World(size=2)
    async with world.lend("a") as used:
        unused = await world.touch("b")
        await world.touch("c")
        await world.cache.settled()
        assert (used.closed, unused.closed) == (False, True)
        assert await world.touch("a") is used
    await world.cache.aclose()


async def test_with_all_in_use_the_bound_holds_and_nobody_loses_a_client() -> None:
    """The one lent longest ago leaves the cache, and is closed when its user is done."""
    world = World(size=2)
    async with world.lend("a") as first, world.lend("b") as second, world.lend("c"):
        await world.cache.settled()
        assert len(world.cache) == 2
        first.use()
        assert not first.closed
        assert await world.touch("b") is second
    await world.cache.settled()
    assert (first.closed, second.closed) == (True, False)
    await world.cache.aclose()


async def test_a_smaller_size_holds_at_once() -> None:
    """As many leave as there are too many, those used longest ago."""
    world = World(size=3)
    clients = [await world.touch(name) for name in "abc"]
    world.cache.use(CacheSettings(size=1))
    await world.cache.settled()
    assert ([client.closed for client in clients], len(world.cache)) == ([True, True, False], 1)
    assert world.counts.reasons == {Reason.FULL: 2}
    await world.cache.aclose()


def test_a_cache_holds_at_least_one() -> None:
    """A size of nothing is a mistake."""
    with pytest.raises(UsageError, match="at least one client, not 0"):
        CacheSettings(size=0)


# ------------------------------------------------------------------------------------------------------------- closing


async def failing() -> None:
    """Fail to close."""
    raise RuntimeError("cannot close")


async def hanging() -> None:
    """Never finish closing."""
    await asyncio.Event().wait()


async def test_a_closing_that_hangs_is_stopped() -> None:
    """It is not left behind to hold its connections."""
    world, stopped = World(close=SHORT), asyncio.Event()

    async def until_stopped() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    (await world.touch("p")).ending = until_stopped
    world.cache.invalidate("p")
    await world.cache.settled()
    async with asyncio.timeout(10):
        await stopped.wait()


async def cancelled() -> None:
    """Cancel oneself while closing."""
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    "ending,error",
    [
        (failing, "RuntimeError: cannot close"),
        (hanging, "TimeoutError: not closed within 0.02 s"),
        (cancelled, "CancelledError: "),
    ],
)
async def test_a_failure_to_close_is_counted_and_logged(ending: Callable[[], Awaitable[None]], error: str) -> None:
    """It is never raised, not even as the task's own cancellation, and the other clients are closed all the same."""
    world = World(close=SHORT)
    for key in ("bad", "good"):
        client = await world.touch(key)
        client.ending = ending if key == "bad" else None
    world.clock.now += HOUR
    with capture_logs() as logs:
        swept = await world.cache.sweep()
    assert len(swept) == 2
    assert (world.counts.failures, len(world.cache), world.factory.made[1].closed) == (1, 0, True)
    (failure,) = [line for line in logs if line["event"] == "failed_to_close_expired_client"]
    assert (failure["provider"], failure["reason"], failure["error"]) == ("bad", "idle", error)


async def test_a_sweep_says_what_it_did(world: World) -> None:
    """Before, for each client, and after; no credential in any line."""
    async with world.lend("p", "hunter2"):
        world.clock.now += 24 * HOUR
        await world.touch("q", "hunter2")
        world.clock.now += HOUR
        with capture_logs() as logs:
            await world.cache.sweep()
    lines = [{key: value for key, value in line.items() if key != "log_level"} for line in logs]
    assert lines == [
        {"event": "cleaning_up_expired_clients", "count": 2, "entries": 2},
        {
            "event": "closed_expired_client",
            "provider": "q",
            "generation": 2,
            "reason": "idle",
            "age_seconds": HOUR,
        },
        {"event": "expired_clients_cleaned_up", "count": 2, "in_use": 1, "entries": 0},
    ]
    assert "hunter2" not in str(logs)


async def test_a_sweep_with_nothing_to_do_is_silent(world: World) -> None:
    """No line every five minutes about nothing."""
    await world.touch("p")
    with capture_logs() as logs:
        assert await world.cache.sweep() == []
    assert logs == []


async def test_the_cache_sweeps_itself_where_it_is_asked_to(world: World) -> None:
    """Every so often, once however often it is started, and until it is closed."""
    client = await world.touch("p")
    for _ in range(2):
        world.cache.start_sweeping(timedelta(minutes=5))
    assert await world.naps.get() == 300
    world.clock.now += HOUR
    world.wake.set()
    assert await world.naps.get() == 300
    assert client.closed
    await world.cache.aclose()
    world.wake.set()
    await turns()
    assert world.naps.empty()


# ------------------------------------------------------------------------------------------------------------- probing


async def test_clients_whose_probes_fail_leave(world: World) -> None:
    """Three failures in a row are enough; a client in use is not probed, and a good one stays."""
    bad, good = await world.touch("bad"), await world.touch("good")
    bad.refusals = 1
    async with world.lend("used") as used:
        await world.cache.probe()
        await world.cache.probe()
    await world.cache.settled()
    assert (bad.closed, good.closed) == (True, False)
    assert (bad.probes, good.probes, used.probes) == (2, 2, 0)
    assert world.counts.reasons == {Reason.REFUSED: 1}


async def test_a_probe_is_no_use(world: World) -> None:
    """Or a client that is probed every five minutes would never be idle."""
    await world.touch("p")
    world.clock.now += HOUR
    await world.cache.probe()
    assert [candidate.reason for candidate in world.cache.candidates()] == [Reason.IDLE]


# ------------------------------------------------------------------------------------------------------------- the end


async def test_the_end_waits_for_users(world: World) -> None:
    """A user finishes its call; what nobody uses is closed at once; nobody is lent anything any more."""
    unused = await world.touch("q")
    async with world.lend("p") as used:
        ending = asyncio.create_task(world.cache.aclose())
        await turns()
        used.use()
        assert (used.closed, unused.closed, ending.done()) == (False, True, False)
    await ending
    assert used.closed
    with pytest.raises(ClusterUnavailableError, match="the client cache is closed"):
        await world.touch("p")
    assert world.counts.reasons == {Reason.SHUTDOWN: 2}


async def test_the_end_does_not_wait_for_ever() -> None:
    """A user that does not finish in time loses its client: the process ends."""
    world = World(drain=SHORT)
    async with world.lend("p") as used:
        await world.cache.aclose()
        assert used.closed
    await world.cache.settled()
    assert world.counts.failures == 0


@pytest.mark.parametrize("waited", [2, 10], ids=["before-it-began", "while-it-lasts"])
async def test_the_end_stops_what_is_being_made(world: World, waited: int) -> None:
    """Who waits gets an error, not a cancellation that nobody asked for."""
    world.factory.gates["p"] = asyncio.Event()
    waiting = asyncio.create_task(world.touch("p"))
    await turns(waited)
    assert bool(world.factory.made) is (waited > 2)
    await world.cache.aclose()
    with pytest.raises(ClusterUnavailableError, match="the client cache was closed"):
        await waiting
    assert not waiting.cancelled()


async def test_it_can_be_closed_twice_and_by_its_block() -> None:
    """The second time does nothing."""
    async with World().cache as cache:
        await cache.aclose()


# --------------------------------------------------------------------------------------------------------------- crowd


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_crowd_no_closed_client_is_used_and_none_is_made_twice(seed: int) -> None:
    """10,000 look-ups at once over 300 providers, a bound of 100, rotations, evictions and probes all the while."""
    chance = random.Random(seed)
    world = World(size=100)
    secrets = {f"p{number}": 1 for number in range(300)}
    busy = Counter[str]()

    async def one() -> None:
        key = f"p{int(300 * chance.random() ** 2)}"
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        async with world.cache.client(key, load(str(secrets[key]))) as client:
            busy[key] += 1
            for _ in range(chance.randrange(5)):
                client.use()
                client.refusals = 3 if chance.random() < 0.002 else 0
                await asyncio.sleep(0)
            client.use()

    async def disturb(tasks: list[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in tasks):
            key = f"p{chance.randrange(300)}"
            secrets[key] += chance.random() < 0.3
            world.cache.invalidate(f"p{chance.randrange(300)}")
            world.clock.now += 60
            await world.cache.sweep(EvictionRules(ttl=timedelta(minutes=5), known=secrets.keys() - {key}))
            await world.cache.probe()
            assert len(world.cache) <= 100
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(one()) for _ in range(10_000)]
    await asyncio.gather(disturb(tasks), *tasks)
    await world.cache.settled()
    alive = [client for client in world.factory.made if not client.closed]
    assert len(alive) == len(world.cache) <= 100
    generations = {entry.generation for entry in world.cache._entries.values()}
    assert len(world.factory.made) == len(world.counts.connects) >= max(generations)
    assert sum(world.counts.results.values()) == sum(busy.values()) == 10_000
    assert len(busy) > 250
    await world.cache.aclose()
    assert all(client.closed for client in world.factory.made)


async def test_while_a_client_can_be_had_no_second_one_is_made() -> None:
    """Without evictions each provider's client is made exactly once a generation of its credentials."""
    world = World(size=300)
    secret = 1

    async def one(key: str) -> None:
        async with world.cache.client(key, load(str(secret))) as client:
            await asyncio.sleep(0)
            client.use()

    for secret in (1, 2, 3):  # noqa: B007 - the loads above read it
        await asyncio.gather(*(one(f"p{number % 300}") for number in range(10_000)))
    made = Counter((client.provider, client.credentials.fingerprint) for client in world.factory.made)
    assert (len(made), set(made.values())) == (900, {1})
    await world.cache.aclose()
