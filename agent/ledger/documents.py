"""The document of a provider, as the ledger reads it: strictly, naming whatever breaks the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from agent.errors import BookingKeyError, MalformedProviderError, shown
from agent.ledger.keys import decode_key
from agent.store import Document, Int64, ObjectId

Amounts = dict[str, int]

FORMAT: Final = 1  # of the document; it is written where the ledger makes or adopts one, so that none is adopted twice
MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the document of a provider holds what; a dotted path leads into embedded documents."""

    capacity: str = "capacity"
    allocated: str = "allocated"
    bookings: str = "bookings"
    version: str = "version"
    status: str = "status"
    format: str = "ledger_format"


PATHS: Final = Paths()


@dataclass(frozen=True, slots=True)
class Books:
    """The books of one provider as they stood at ``version``; ``bookings`` by their keys.

    Amounts are whole millicores and bytes by resource.
    """

    provider_id: Any
    version: int
    status: Any
    capacity: Amounts
    allocated: Amounts
    bookings: dict[Any, Amounts]

    @property
    def free(self) -> Amounts:
        """What is left; less than nothing where the capacity shrank below what is booked."""
        return difference(self.capacity, self.allocated)

    @property
    def drift(self) -> Amounts:
        """What is allocated beyond the sum of the bookings: zeros, unless somebody writes past the ledger."""
        return {name: self.allocated[name] - sum(b[name] for b in self.bookings.values()) for name in self.allocated}


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads parts of one document. Every method raises MalformedProviderError, which names the path of the fault."""

    document: Document
    paths: Paths
    resources: Sequence[str]
    provider_id: Any

    def books(self) -> Books:
        """All of it."""
        return Books(
            provider_id=self.provider_id,
            version=self.version(),
            status=self.status(),
            capacity=self.amounts(self.paths.capacity),
            allocated=self.amounts(self.paths.allocated),
            bookings={self.key(name): self.booked(name, value) for name, value in self.bookings().items()},
        )

    def status(self) -> Any:
        """The status, ``None`` where there is none."""
        status = self.at(self.paths.status)
        return None if status is MISSING else status

    def version(self) -> int:
        """The number of changes so far."""
        return self.integer(self.paths.version, self.at(self.paths.version))

    def amounts(self, path: str, least: int | None = None) -> Amounts:
        """The amounts of all resources at ``path``, none of them below ``least``."""
        return {name: self.integer(f"{path}.{name}", self.at(f"{path}.{name}"), least) for name in self.resources}

    def booking(self, name: str) -> Amounts | None:
        """What is booked under the name of a booking."""
        bookings = self.bookings()
        return self.booked(name, bookings[name]) if name in bookings else None

    def bookings(self) -> Document:
        """All bookings, unread."""
        return self.object(self.paths.bookings, self.at(self.paths.bookings))

    def booked(self, name: str, value: object) -> Amounts:
        """What the value of a booking says; resources that it does not name are zero."""
        path = f"{self.paths.bookings}.{name}"
        booking = self.object(path, value)
        return {r: self.integer(f"{path}.{r}", booking.get(r, 0), least=0) for r in self.resources}

    def key(self, name: str) -> Any:
        """The key of a booking."""
        try:
            return decode_key(name)
        except BookingKeyError as error:
            raise self.malformed(f"{self.paths.bookings}.{name}", str(error)) from error

    def integer(self, path: str, value: object, least: int | None = None) -> int:
        """A value that has to be an integer."""
        if value is MISSING:
            raise self.malformed(path, "is missing; Ledger.blank and Ledger.adopt make it")
        if not is_integer(value):
            raise self.malformed(path, f"is {shown(value)}, not an integer; Ledger.adopt converts quantities")
        if least is not None and value < least:
            raise self.malformed(path, f"is {value}, less than {least}")
        return int(value)

    def object(self, path: str, value: object) -> Document:
        """A value that has to be an embedded document."""
        if value is MISSING:
            raise self.malformed(path, "is missing; Ledger.blank and Ledger.adopt make it")
        if not isinstance(value, dict):
            raise self.malformed(path, f"is {shown(value)}, not an object")
        return value

    def at(self, path: str) -> Any:
        """The value at a path, ``MISSING`` where there is none."""
        value: Any = self.document
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                return MISSING
            value = value[name]
        return value

    def malformed(self, path: str, what: str) -> MalformedProviderError:
        """The error that names a path."""
        return MalformedProviderError(
            self.provider_id, f"provider {text(self.provider_id)} is malformed: {path} {what}", field=path
        )


def blank(paths: Paths, capacity: Amounts) -> Document:
    """The fields of a provider of which nothing is booked."""
    fields: Document = {}
    _put(fields, paths.capacity, long(capacity))
    _put(fields, paths.allocated, long(dict.fromkeys(capacity, 0)))
    _put(fields, paths.bookings, {})
    _put(fields, paths.version, Int64(0))
    _put(fields, paths.format, FORMAT)
    return fields


def _put(document: Document, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        document = document.setdefault(name, {})
    document[last] = value


def long(amounts: Mapping[str, int]) -> Document:
    """Amounts as the 64-bit integers that a document holds, however small they are."""
    return {name: Int64(amount) for name, amount in amounts.items()}


def difference(more: Amounts, less: Amounts) -> Amounts:
    """``more - less``, resource by resource."""
    return {name: amount - less[name] for name, amount in more.items()}


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def text(value: object) -> str:
    """How a message shows an id."""
    return str(value) if isinstance(value, ObjectId) else shown(value)
