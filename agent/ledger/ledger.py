"""The ledger itself: what callers say, checked; the operation, tried again where that helps; the answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import difflib
import random
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from agent.errors import (
    ConflictError,
    RequestError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    UsageError,
    shown,
)
from agent.ledger import documents
from agent.ledger.adoption import Adoption
from agent.ledger.documents import PATHS, Amounts, Books, Paths, Reader, difference, is_integer
from agent.ledger.keys import encode_key
from agent.ledger.lanes import Lanes
from agent.ledger.programs import Programs
from agent.ledger.refusals import Kind, Wish, no_provider, refuse
from agent.quantity import BYTE_UNITS, CPU_UNITS, LARGEST
from agent.store import Collection, Document, RawCollection, time_limit

RESOURCES: Final = ("cpu", "memory", "storage")

T = TypeVar("T")
_NAME: Final = r"[A-Za-z_][A-Za-z0-9_-]*"


@dataclass(frozen=True, slots=True)
class Retry:
    """How a call persists: until ``budget`` is spent, no single try longer than ``attempt``.

    The pause before a try is drawn between nothing and a ceiling that starts at ``first`` and doubles up to
    ``longest`` (full jitter: callers that failed together do not come back together). No budget: a single try.
    """

    budget: dt.timedelta = dt.timedelta(seconds=30)  # an election takes about twelve seconds by default
    # A frozen server must not eat the whole budget; but the driver may look every ten seconds only for a new primary.
    attempt: dt.timedelta = dt.timedelta(seconds=12)
    first: dt.timedelta = dt.timedelta(milliseconds=50)
    longest: dt.timedelta = dt.timedelta(seconds=2)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class LedgerResult:
    """How the books stand after a call; amounts are whole millicores and bytes by resource.

    ``changed`` is false where everything stood as asked already. ``booked`` is what is booked under the key now, empty
    after a release. ``version``, ``capacity`` and ``allocated`` are the provider's, from the same operation.
    """

    provider_id: Any
    key: Any
    changed: bool
    version: int
    booked: Amounts
    capacity: Amounts
    allocated: Amounts

    @property
    def free(self) -> Amounts:
        """What is left; less than nothing where the capacity shrank below what is booked."""
        return difference(self.capacity, self.allocated)


class Ledger:
    """The books of all providers of a collection. It may be shared between the tasks of one event loop.

    ``collection`` is motor's, pymongo's asynchronous one, or ``agent.store``'s; it is read from the primary and written
    with majority concern, whatever it is set to. ``active`` names the statuses in which capacity is granted (none: the
    status is not looked at); a release is always possible.
    """

    def __init__(
        self,
        collection: Collection | RawCollection,
        *,
        resources: Sequence[str] = RESOURCES,
        paths: Paths = PATHS,
        active: Sequence[Any] = (),
        retry: Retry = Retry(),
    ) -> None:
        """Raises UsageError where a path or a resource cannot be the name of a field."""
        _check_names(paths, resources)
        self._providers = Collection.wrap(collection)
        self._resources = tuple(resources)
        self._paths = paths
        self._active = tuple(active)
        self._retry = retry
        self._figures = (paths.capacity, paths.allocated, paths.version)
        self._programs = Programs(paths, resources, active)
        self._lanes = Lanes[Wish, LedgerResult](alone=self._alone, together=self._together, name=lambda wish: wish.name)

    async def allocate(
        self, provider_id: Any, key: Any, request: Mapping[str, int], *, expect_version: int | None = None
    ) -> LedgerResult:
        """Books ``request`` under ``key``; resources that it does not name are zero.

        The same amounts under the same key again are a success without a change. Raises InsufficientCapacityError,
        BookingExistsError (the key holds other amounts: ``resize``), VersionConflictError, ProviderInactiveError,
        ProviderNotFoundError or MalformedProviderError, and nothing has changed; RequestError or BookingKeyError
        before the server is asked; StoreError where it cannot be.
        """
        return await self._fulfil(self._wish("allocate", provider_id, key, request, expect_version))

    async def resize(
        self, provider_id: Any, key: Any, request: Mapping[str, int], *, expect_version: int | None = None
    ) -> LedgerResult:
        """Changes what is booked under ``key`` to ``request``, up or down; resources that it does not name become zero.

        Only growth needs capacity and an active provider. Raises BookingNotFoundError where nothing is booked under
        the key, else as ``allocate`` does.
        """
        return await self._fulfil(self._wish("resize", provider_id, key, request, expect_version))

    async def release(self, provider_id: Any, key: Any, *, expect_version: int | None = None) -> LedgerResult:
        """Gives back what is booked under ``key``; where nothing is, that is a success without a change.

        Raises VersionConflictError, ProviderNotFoundError, BookingKeyError or StoreError, and MalformedProviderError
        also where less is allocated than the booking says: then the books need a repair first.
        """
        return await self._fulfil(self._wish("release", provider_id, key, None, expect_version))

    async def read(self, provider_id: Any) -> Books:
        """The books of a provider. Raises ProviderNotFoundError, MalformedProviderError or StoreError."""
        return await self._persist(lambda: self._read(provider_id))

    def blank(self, capacity: Mapping[str, int]) -> Document:
        """The fields that the ledger needs of a new provider, nothing booked; insert them with the rest."""
        return documents.blank(self._paths, self._amounts(capacity))

    async def adopt(self, provider_id: Any, units: Mapping[str, str]) -> Books:
        """Turns a provider's quantities into exact integers, once: a provider that was adopted stays as it is.

        ``units`` says for each resource in what its plain numbers are (``{"cpu": "cores", "memory": "GiB", ...}``, see
        ``agent.quantity``); text with a suffix says it itself. Fractions are rounded up. What is missing of
        ``allocated`` is the sum of the bookings, ``bookings`` are none, ``version`` is 0; where the allocated amount
        differs from the sum of the bookings by no more than their rounding, it becomes the sum. Any other difference
        stays, for the audit to report. The document changes only if nobody else changed it in between, and its version
        counts one up. Raises MalformedProviderError where a value is no quantity, UsageError for a unit.
        """
        _check_units(units, self._resources)
        return await self._persist(lambda: self._adopt(provider_id, units))

    # -------------------------------------------------------------------------------------------------- what is asked

    def _wish(
        self, kind: Kind, provider_id: Any, key: Any, request: Mapping[str, int] | None, expected: int | None
    ) -> Wish:
        if expected is not None and not is_integer(expected):
            raise UsageError(f"expect_version is {shown(expected)}: expected an integer")
        want = None if request is None else self._amounts(request)
        return Wish(kind, provider_id, key, encode_key(key), want, expected)

    def _amounts(self, request: Mapping[str, int]) -> Amounts:
        if not isinstance(request, Mapping):
            raise RequestError(f"a request is amounts by resource, not {shown(request)}")
        problems = [self._unknown(name) for name in request if name not in self._resources]
        problems += [
            f"{name} is {shown(amount)}: expected a whole number from 0 to {LARGEST} (agent.quantity converts)"
            for name, amount in request.items()
            if name in self._resources and not (is_integer(amount) and 0 <= amount <= LARGEST)
        ]
        if problems:
            raise RequestError("; ".join(problems))
        return {name: int(request.get(name, 0)) for name in self._resources}

    def _unknown(self, name: object) -> str:
        near = difflib.get_close_matches(str(name), self._resources, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{shown(name)} is no resource here{hint}; there are {', '.join(self._resources)}"

    # ---------------------------------------------------------------------------------------------------- what is done

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        retry = self._retry
        limit, ceiling = retry.attempt.total_seconds(), retry.first.total_seconds()
        deadline = retry.clock() + retry.budget.total_seconds()
        while True:
            left = deadline - retry.clock()
            try:
                with time_limit(min(limit, left) if left > 0 else limit):
                    return await attempt()
            except (StoreUnavailableError, ConflictError):
                pause = retry.uniform(0, ceiling)
                if retry.clock() + pause >= deadline:
                    raise
            await retry.sleep(pause)
            ceiling = min(2 * ceiling, retry.longest.total_seconds())

    async def _fulfil(self, wish: Wish) -> LedgerResult:
        if wish.expected is not None or not isinstance(wish.provider_id, Hashable):
            return await self._persist(lambda: self._alone(wish))
        # The type belongs to it: Python takes True for 1, the server does not.
        lane = (type(wish.provider_id), wish.provider_id)
        return await self._persist(lambda: self._lanes.ask(lane, wish))

    async def _together(self, wishes: Sequence[Wish]) -> list[LedgerResult | None]:
        """Fulfils those that are the right call for what is booked; the operation insists that it still is."""
        with time_limit(self._retry.attempt.total_seconds()):
            standing, booked = await self._standing(wishes)
            able = {wish.name: wish for wish in wishes if wish.changes(booked.get(wish.name))}
            document = None
            if able:
                program = self._programs.together(list(able.values()), standing)
                document = await self._providers.find_one_and_update(*program, fields=self._figures)
        if document is None:
            return [None] * len(wishes)
        return [self._result(wish, document, changed=True) if wish.name in able else None for wish in wishes]

    async def _standing(self, wishes: Sequence[Wish]) -> tuple[Document, dict[str, Amounts]]:
        """What stands under the keys of those wishes that change a booking: as it is, and as it is read."""
        names = [f"{self._paths.bookings}.{wish.name}" for wish in wishes if wish.kind != "allocate"]
        if not names:
            return {}, {}
        reader = self._reader(wishes[0].provider_id, await self._document(wishes[0].provider_id, names))
        standing = reader.bookings()
        return standing, {name: reader.booked(name, value) for name, value in standing.items()}

    async def _alone(self, wish: Wish) -> LedgerResult:
        try:
            document = await self._providers.find_one_and_update(*self._programs.of(wish), fields=self._figures)
        except (StoreUnavailableError, StoreDeniedError, ConflictError):
            raise
        except StoreError as error:
            # Perhaps the server stumbled over the document (text where a number belongs), which then says it better. It
            # does not say more: a booking that stands after an error may not have reached the majority.
            await self._explain(wish, error)
            raise
        if document is None:
            return await self._explain(wish, ConflictError(f"{wish.provider} changed while it was looked at"))
        return self._result(wish, document, changed=True)

    async def _explain(self, wish: Wish, otherwise: StoreError) -> LedgerResult:
        """Reads why nothing was changed. Raises the reason, and ``otherwise`` where there is none."""
        bookings, status = self._paths.bookings, self._paths.status
        document = await self._document(wish.provider_id, [status, f"{bookings}.{wish.name}"])
        if self._reader(wish.provider_id, document).at(bookings) is documents.MISSING:
            # There are none, or something that has no fields: the whole of it tells which.
            document = await self._document(wish.provider_id, [status, bookings])
        if not refuse(wish, self._reader(wish.provider_id, document), self._active):
            raise otherwise
        return self._result(wish, document, changed=False)

    def _result(self, wish: Wish, document: Document, *, changed: bool) -> LedgerResult:
        reader = self._reader(wish.provider_id, document)
        return LedgerResult(
            provider_id=wish.provider_id,
            key=wish.key,
            changed=changed,
            version=reader.version(),
            booked=dict(wish.want or {}),
            capacity=reader.amounts(self._paths.capacity),
            allocated=reader.amounts(self._paths.allocated),
        )

    # ----------------------------------------------------------------------------------------------- whole documents

    async def _read(self, provider_id: Any) -> Books:
        document = await self._document(provider_id, [self._paths.status, self._paths.bookings])
        return self._reader(provider_id, document).books()

    async def _adopt(self, provider_id: Any, units: Mapping[str, str]) -> Books:
        paths = self._paths
        document = await self._document(provider_id, [paths.status, paths.bookings, paths.format])
        adoption = Adoption(document, paths, self._resources, provider_id, units)
        if adoption.adopted():
            return adoption.books()
        changed = await self._providers.find_one_and_update(
            {"_id": {"$eq": provider_id}, **adoption.seen()},
            {"$set": adoption.fields()},
            fields=[*self._figures, paths.status, paths.bookings],
        )
        if changed is None:
            raise ConflictError(f"provider {documents.text(provider_id)} changed while it was adopted")
        return self._reader(provider_id, changed).books()

    async def _document(self, provider_id: Any, more: Sequence[str]) -> Document:
        document = await self._providers.find_one({"_id": {"$eq": provider_id}}, [*self._figures, *more])
        if document is None:
            raise no_provider(provider_id)
        return document

    def _reader(self, provider_id: Any, document: Document) -> Reader:
        return Reader(document, self._paths, self._resources, provider_id)


def _check_names(paths: Paths, resources: Sequence[str]) -> None:
    for path in (paths.capacity, paths.allocated, paths.bookings, paths.version, paths.status, paths.format):
        if not re.fullmatch(rf"{_NAME}(\.{_NAME})*", path):
            raise UsageError(f"{shown(path)} is no path of a field: expected names joined by dots")
    for name in resources:
        if not re.fullmatch(_NAME, name):
            raise UsageError(f"{shown(name)} is no name of a resource: expected letters, digits, - and _")


def _check_units(units: Mapping[str, str], resources: Sequence[str]) -> None:
    known = [*CPU_UNITS, *BYTE_UNITS]
    for name in resources:
        if units.get(name) not in known:
            found = shown(units.get(name))
            raise UsageError(f"the unit of {name} is {found}: expected one of {', '.join(known)}")
