"""The throttle without a server: what it pauses for, how long, and the sizes of batches; time is injected."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from agent.errors import StoreDeniedError
from agent.store import Document
from agent.throttle import LAG_POLL_SECONDS, PRIMARY, SECONDARY, Sizer, Throttle

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
RECOVERING = 3


@dataclass(frozen=True)
class Told:
    """The settings of a throttle."""

    max_lag: dt.timedelta | None = dt.timedelta(seconds=10)
    pace: float = 0.0


class FakeStore:
    """Answers ``replSetGetStatus`` in turn; the last answer stays."""

    def __init__(self, *statuses: Document | Exception, transactions: bool = True) -> None:
        self._statuses = list(statuses)
        self._transactions = transactions
        self.asked = 0

    async def has_transactions(self) -> bool:
        return self._transactions

    async def command(self, database: str, command: Document) -> Document:
        assert (database, command) == ("admin", {"replSetGetStatus": 1})
        self.asked += 1
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if isinstance(status, Exception):
            raise status
        return status


def members(*behind: float, odd: Sequence[Document] = ()) -> Document:
    """A primary, and secondaries so many seconds behind it."""
    secondaries = [{"state": SECONDARY, "optimeDate": NOON - dt.timedelta(seconds=seconds)} for seconds in behind]
    return {"members": [{"state": PRIMARY, "optimeDate": NOON}, *secondaries, *odd]}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time here."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return pauses


def throttle(store: FakeStore, settings: Told) -> tuple[Throttle, list[tuple[str, float]]]:
    """A throttle, and what it will have told of its pauses."""
    told: list[tuple[str, float]] = []
    made: Any = Throttle(store, settings, lambda reason, seconds: told.append((reason, seconds)))  # type: ignore[arg-type]
    return made, told


@pytest.mark.parametrize("pace, pause", [(0.1, 0.2), (1, 2.0), (4, 8.0)])
async def test_the_pause_is_a_share_of_the_batchs_own_time(slept: list[float], pace: float, pause: float) -> None:
    """A database that takes longer is asked for less."""
    made, told = throttle(FakeStore(members(0)), Told(pace=pace))
    await made.pause(2.0)
    assert slept == [pytest.approx(pause)]
    assert [reason for reason, _ in told] == ["pace"]
    assert told[0][1] == pytest.approx(pause)


async def test_without_a_pace_and_a_lag_there_is_no_pause(slept: list[float]) -> None:
    made, told = throttle(FakeStore(members(0, 9.9)), Told(pace=0))
    await made.pause(5.0)
    assert (slept, told) == ([], [])


async def test_it_waits_while_the_slowest_secondary_is_too_far_behind(slept: list[float]) -> None:
    """Each second that it waits is told; at the limit itself it goes on."""
    store = FakeStore(members(0, 30), members(0, 20), members(0, 10))
    made, told = throttle(store, Told())
    await made.pause(0.1)
    assert slept == [LAG_POLL_SECONDS] * 2
    assert told == [("lag", LAG_POLL_SECONDS)] * 2
    assert store.asked == 3


async def test_members_that_do_not_replicate_are_not_waited_for(slept: list[float]) -> None:
    """One that is being restored may be hours behind; and without a primary nothing can be told."""
    restored = {"state": RECOVERING, "optimeDate": NOON - dt.timedelta(hours=9)}
    made, _ = throttle(FakeStore(members(0, odd=[restored])), Told())
    await made.pause(0.1)
    headless = {"members": [{"state": SECONDARY, "optimeDate": NOON - dt.timedelta(hours=9)}]}
    made, _ = throttle(FakeStore(headless), Told())
    await made.pause(0.1)
    assert slept == []


async def test_where_the_lag_cannot_be_told_it_is_asked_for_once(slept: list[float]) -> None:
    """A missing privilege is no reason to fail, and none to ask again after each batch."""
    store = FakeStore(StoreDeniedError("not authorized"))
    made, told = throttle(store, Told())
    for _ in range(3):
        await made.pause(0.1)
    assert (store.asked, slept, told) == (1, [], [])


@pytest.mark.parametrize("settings, transactions", [(Told(max_lag=None), True), (Told(), False)])
async def test_a_lag_that_does_not_matter_is_not_asked_for(
    slept: list[float], settings: Told, transactions: bool
) -> None:
    """Not where the setting is null, and not on a standalone server, which has no secondaries."""
    store = FakeStore(members(3600), transactions=transactions)
    made, _ = throttle(store, settings)
    await made.pause(0.1)
    assert (store.asked, slept) == (0, [])


def test_batches_halve_when_they_are_too_slow_and_grow_back() -> None:
    """Down to one document, up to the most."""
    sizer = Sizer(1000)
    sizes = [sizer.size]
    for _ in range(3):
        sizer.too_slow()
        sizes.append(sizer.size)
    for _ in range(4):
        sizer.fine()
        sizes.append(sizer.size)
    assert sizes == [1000, 500, 250, 125, 250, 500, 1000, 1000]
    for _ in range(20):
        sizer.too_slow()
    assert sizer.size == 1
