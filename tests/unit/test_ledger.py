"""What a caller says is checked before the server is asked; what may pass is tried again, within a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from agent.errors import (
    ConflictError,
    InsufficientCapacityError,
    RequestError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from agent.ledger import Ledger, Paths, Retry
from agent.store import Collection, Document, Int64

PROVIDER: Document = {
    "capacity": {"cpu": 10, "memory": 10, "storage": 10},
    "allocated": {"cpu": 1, "memory": 0, "storage": 0},
    "bookings": {},
    "version": 5,
}


class Providers(Collection):
    """Stands for a collection: each operation ends as the test foresees, then all succeed."""

    def __init__(self, *outcomes: BaseException | None, provider: Document | None = None) -> None:
        self.outcomes = list(outcomes)
        self.provider = PROVIDER if provider is None else provider
        self.filters: list[Document] = []
        self.reads = 0

    async def find_one_and_update(self, filter: Document, *_: Any, **__: Any) -> Document | None:
        """Succeeds, fails, or (``None``) matches nothing."""
        self.filters.append(filter)
        if not self.outcomes:
            return self.provider
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return None

    async def find_one(self, *_: Any, **__: Any) -> Document | None:
        """The provider."""
        self.reads += 1
        return self.provider


class Time:
    """A clock that only pauses move, with the ceilings that were drawn from."""

    def __init__(self, chance: float = 1.0) -> None:
        self.now = 100.0
        self.chance = chance
        self.ceilings: list[float] = []
        self.pauses: list[float] = []

    def retry(self, **settings: timedelta) -> Retry:
        """Settings that use this clock."""
        return Retry(**settings, clock=lambda: self.now, uniform=self.uniform, sleep=self.sleep)

    def uniform(self, least: float, most: float) -> float:
        """The same share of each range."""
        assert least == 0
        self.ceilings.append(most)
        return most * self.chance

    async def sleep(self, seconds: float) -> None:
        """No time passes but here."""
        self.pauses.append(seconds)
        self.now += seconds


def ledger(providers: Providers, retry: Retry | None = None, **settings: Any) -> Ledger:
    """A ledger over a stand-in."""
    return Ledger(providers, retry=retry or Time().retry(), **settings)


GONE = StoreUnavailableError("gone")

# ------------------------------------------------------------------------------------------------------ trying again


async def test_a_lost_connection_is_tried_again_with_growing_pauses() -> None:
    """The pauses are drawn from nothing up to a ceiling that doubles to its limit."""
    time = Time(chance=0.5)
    providers = Providers(*[GONE] * 9)
    result = await ledger(providers, time.retry()).allocate(1, "a", {"cpu": 1})
    assert result.changed
    assert time.ceilings == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert time.pauses == [ceiling / 2 for ceiling in time.ceilings]


async def test_the_budget_ends_it_with_the_error_itself() -> None:
    """No pause is begun that would end after the budget, and no try either."""
    time = Time()
    providers = Providers(*[GONE] * 99)
    with pytest.raises(StoreUnavailableError, match="gone"):
        await ledger(providers, time.retry(budget=timedelta(seconds=1))).release(1, "a")
    assert time.pauses == [0.05, 0.1, 0.2, 0.4]
    assert len(providers.filters) == 5


async def test_without_a_budget_there_is_one_try() -> None:
    """The application has its own way to try again."""
    providers = Providers(GONE)
    with pytest.raises(StoreUnavailableError, match="gone"):
        await ledger(providers, Time().retry(budget=timedelta(0))).resize(1, "a", {})
    assert len(providers.filters) == 1


@pytest.mark.parametrize("call", ["allocate", "resize", "release"])
async def test_a_provider_that_changed_while_it_was_looked_at_is_tried_again(call: str) -> None:
    """Nothing matched, but what was read afterwards would have: somebody was faster."""
    time = Time()
    provider = {**PROVIDER, "bookings": {} if call == "allocate" else {"a": {"cpu": 1}}}
    providers = Providers(None, None, provider=provider)
    request = [] if call == "release" else [{"cpu": 2}]
    assert (await getattr(ledger(providers, time.retry()), call)(1, "a", *request)).changed
    assert (len(providers.filters), providers.reads, len(time.pauses)) == (3, 2, 2)


async def test_a_provider_that_always_changes_is_a_conflict_in_the_end() -> None:
    """The budget holds for this as well."""
    providers = Providers(*[None] * 99)
    with pytest.raises(ConflictError, match="provider 1 changed while it was looked at"):
        await ledger(providers, Time().retry(budget=timedelta(seconds=1))).allocate(1, "a", {"cpu": 1})


async def test_what_cannot_get_better_is_not_tried_again() -> None:
    """A refusal for want of capacity is final at once."""
    time = Time()
    providers = Providers(None)
    with pytest.raises(InsufficientCapacityError):
        await ledger(providers, time.retry()).allocate(1, "a", {"cpu": 10})
    assert time.pauses == []
    assert len(providers.filters) == 1


async def test_a_denied_or_unforeseen_error_is_not_tried_again() -> None:
    """Only the second is looked into: where the document says nothing, the server's words stay."""
    denied = Providers(StoreDeniedError("no right"))
    with pytest.raises(StoreDeniedError):
        await ledger(denied).allocate(1, "a", {"cpu": 1})
    assert denied.reads == 0
    odd = Providers(StoreError("odd"))
    with pytest.raises(StoreError, match="odd"):
        await ledger(odd).allocate(1, "a", {"cpu": 1})
    assert odd.reads == 1


async def test_a_cancelled_call_is_not_tried_again() -> None:
    """Cancellation passes through."""
    providers = Providers(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await ledger(providers).allocate(1, "a", {"cpu": 1})


# ------------------------------------------------------------------------------------------------------ what is asked


@pytest.mark.parametrize(
    "request_, problems",
    [
        ({"cpu": 0.5}, ["cpu is 0.5: expected a whole number from 0 to 9223372036854775807 (agent.quantity converts)"]),
        ({"cpu": 1.0}, ["cpu is 1.0: expected a whole number"]),
        ({"cpu": True}, ["cpu is True: expected a whole number"]),
        ({"cpu": "500m"}, ["cpu is '500m': expected a whole number"]),
        ({"cpu": None}, ["cpu is None: expected a whole number"]),
        ({"cpu": -1}, ["cpu is -1: expected a whole number from 0"]),
        ({"memory": 2**63}, ["memory is 9223372036854775808: expected a whole number from 0 to 9223372036854775807"]),
        ({"cpus": 1}, ["'cpus' is no resource here (did you mean cpu?); there are cpu, memory, storage"]),
        ({"gpu.$inc": 1, "storage": -1}, ["'gpu.$inc' is no resource here; there are", "storage is -1"]),
        ([("cpu", 1)], ["a request is amounts by resource, not a value of type list"]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("call", ["allocate", "resize"])
async def test_a_request_that_cannot_be_booked_is_refused_with_all_that_is_wrong(
    call: str, request_: Any, problems: Sequence[str]
) -> None:
    """The server is not asked."""
    providers = Providers()
    with pytest.raises(RequestError) as refusal:
        await getattr(ledger(providers), call)(1, "a", request_)
    assert all(problem in str(refusal.value) for problem in problems)
    assert providers.filters == []


@pytest.mark.parametrize("version", [1.0, "1", True])
async def test_an_expected_version_is_an_integer(version: Any) -> None:
    """The server would compare 1 and 1.0 as equal, and true with nothing."""
    with pytest.raises(UsageError, match=r"expect_version is .*: expected an integer"):
        await ledger(Providers()).release(1, "a", expect_version=version)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"paths": Paths(capacity="$capacity")}, r"'\$capacity' is no path of a field"),
        ({"paths": Paths(bookings="a..b")}, r"'a\.\.b' is no path of a field"),
        ({"paths": Paths(version="")}, "'' is no path of a field"),
        ({"resources": ["cpu", "a.b"]}, r"'a\.b' is no name of a resource"),
    ],
    ids=repr,
)
def test_a_name_that_cannot_be_a_field_is_refused_when_the_ledger_is_made(settings: Any, reason: str) -> None:
    """Configuration is checked once, not in every call."""
    with pytest.raises(UsageError, match=reason):
        ledger(Providers(), **settings)


@pytest.mark.parametrize(
    "units", [{}, {"cpu": "cores", "memory": "GiB"}, {"cpu": "cores", "memory": "GiB", "storage": "gib"}]
)
async def test_adopting_needs_a_known_unit_for_every_resource(units: dict[str, str]) -> None:
    """A guessed unit would be wrong by a factor of a thousand million."""
    with pytest.raises(UsageError, match=r"the unit of \w+ is .*: expected one of cores, millicores, bytes, KiB"):
        await ledger(Providers()).adopt(1, units)


def test_a_new_provider_has_everything_that_the_ledger_needs() -> None:
    """Also where its fields have other places; all integers are of 64 bits."""
    assert ledger(Providers()).blank({"cpu": 4000, "memory": 2**33}) == {
        "capacity": {"cpu": 4000, "memory": 2**33, "storage": 0},
        "allocated": {"cpu": 0, "memory": 0, "storage": 0},
        "bookings": {},
        "version": 0,
        "ledger_format": 1,
    }
    paths = Paths(capacity="spec.capacity", allocated="books.used", bookings="books.by_id", version="books.version")
    blank = ledger(Providers(), paths=paths, resources=["slots"]).blank({"slots": 3})
    assert blank["spec"] == {"capacity": {"slots": 3}}
    assert blank["books"] == {"used": {"slots": 0}, "by_id": {}, "version": 0}
    assert isinstance(blank["spec"]["capacity"]["slots"], Int64)


@pytest.mark.parametrize("capacity", [{"cpu": 0.5}, {"cpus": 1}], ids=repr)
def test_a_new_provider_takes_exact_amounts_only(capacity: Any) -> None:
    """Its capacity is checked as a request is."""
    with pytest.raises(RequestError):
        ledger(Providers()).blank(capacity)
