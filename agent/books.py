"""The books of providers, as the audit reads them: what their documents say, and what their databases add up to.

Amounts are exact integers, millicores and bytes; a field of a document may hold a Kubernetes quantity as text, or a
number in a configured unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.conditions import read
from agent.errors import BookingKeyError, QuantityError
from agent.ledger import encode_key
from agent.quantity import BYTE_UNITS, CPU_UNITS, NOTHING, Amounts, Style, to_bytes, to_millicores, write
from agent.store import Decimal128, Document, Int64

CpuUnit = Literal["cores", "millicores"]
ByteUnit = Literal["bytes", "KiB", "MiB", "GiB", "TiB", "KB", "MB", "GB", "TB"]
RESOURCES = ("cpu", "memory", "storage")
MILLI = Decimal("0.001")


class Units(BaseModel):
    """What a plain number means; text is a Kubernetes quantity and says so itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: CpuUnit = "millicores"
    memory: ByteUnit = "bytes"
    storage: ByteUnit = "bytes"


class ProviderFields(BaseModel):
    """Where a provider's document keeps its books; the defaults are those of ``agent.ledger``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: str = Field(default="providers", min_length=1, description="The collection of the providers.")
    name: str = Field(default="name", description="What a provider is called in metrics and on the page.")
    kubeconfig: str = Field(default="kubeconfig", description="The credentials of its cluster.")
    capacity: str = Field(default="capacity", description="What there is: {cpu, memory, storage}.")
    allocated: str = Field(default="allocated", description="What is booked: {cpu, memory, storage}.")
    bookings: str | None = Field(default="bookings", description="The bookings by database; null: none are kept.")
    version: str = Field(default="version", description="The number of changes, which a repair compares and sets.")
    units: Units = Field(default=Units(), description="What plain numbers in it mean.")


class DatabaseFields(BaseModel):
    """Where a database's document says whose it is and what it was promised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: str = Field(default="databases", min_length=1, description="The collection of the databases.")
    provider_id: str = Field(default="provider_id", description="The `_id` of its provider.")
    status: str = Field(default="status", description="Its status.")
    resources: str = Field(default="resources", description="What it was promised: {cpu, memory, storage}.")
    units: Units = Field(default=Units(), description="What plain numbers in it mean.")


class DatabaseStatuses(BaseModel):
    """What the status of a database means for the books; one that is not listed counts as in transition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owed: tuple[str, ...] = ("active", "running", "ready", "available", "stopped", "paused")
    transition: tuple[str, ...] = ("pending", "creating", "provisioning", "updating", "resizing", "deleting")
    released: tuple[str, ...] = ("deleted", "failed", "cancelled")


@dataclass
class Owed:
    """What the databases of one provider add up to; ``provider_id`` is what they say themselves."""

    provider_id: Any = None
    total: Amounts = NOTHING
    by_booking: dict[str, Amounts] = field(default_factory=dict)
    transition: int = 0
    malformed: list[tuple[Any, str]] = field(default_factory=list)

    def add(self, ids: list[Any], amounts: Amounts) -> None:
        """Adds databases that were promised the same; one that can have no booking of its own is malformed."""
        booked = len(self.by_booking)
        for id in ids:
            try:
                name = encode_key(id)
            except BookingKeyError as error:
                self.malformed.append((id, str(error)))
                continue
            if name in self.by_booking:  # an ObjectId and its text, say
                self.malformed.append((id, f"another database of its provider has the same booking, {name}"))
            else:
                self.by_booking[name] = amounts
        self.total += amounts.times(len(self.by_booking) - booked)

    @property
    def judged(self) -> bool:
        """Whether nothing of it is on its way or unclear."""
        return not self.transition and not self.malformed


@dataclass(frozen=True, slots=True)
class Books:
    """What one provider's document says."""

    capacity: Amounts
    booked: Amounts
    bookings: Mapping[str, Amounts] | None
    version: int


def amounts_of(value: object, units: Units) -> Amounts:
    """The amounts that a document's field {cpu, memory, storage} says; what is missing is nothing.

    Raises ``QuantityError`` for what is no amount.
    """
    if not isinstance(value, dict):
        raise QuantityError("is no document with cpu, memory and storage")
    three = value.get("cpu", 0), value.get("memory", 0), value.get("storage", 0)
    try:
        return _amounts(*three, units.cpu, units.memory, units.storage)
    except TypeError:  # a value that cannot be a key of the cache
        return _amounts.__wrapped__(*map(_plain, three), units.cpu, units.memory, units.storage)


@lru_cache(maxsize=4096, typed=True)  # platforms offer few sizes; typed, since 1, 1.0 and True are equal keys
def _amounts(cpu: Any, memory: Any, storage: Any, *units: str) -> Amounts:
    return Amounts(to_millicores(cpu, units[0]), to_bytes(memory, units[1]), to_bytes(storage, units[2]))


def books_of(provider: Document, paths: ProviderFields) -> Books:
    """The books of a provider's document. Raises ``QuantityError`` naming the field that is wrong."""
    bookings: dict[str, Amounts] | None = None
    if paths.bookings is not None:
        kept = read(provider, paths.bookings)
        if kept is not None and not isinstance(kept, dict):
            raise QuantityError(f"{paths.bookings} is no document")
        bookings = {name: _named(paths.bookings, value, paths.units) for name, value in (kept or {}).items()}
    version = read(provider, paths.version)
    if not isinstance(version, int) or isinstance(version, bool):
        raise QuantityError(f"{paths.version} is no whole number")
    capacity = _named(paths.capacity, read(provider, paths.capacity), paths.units)
    allocated = read(provider, paths.allocated)
    booked = NOTHING if allocated is None else _named(paths.allocated, allocated, paths.units)
    return Books(capacity, booked, bookings, int(version))


def _named(path: str, value: object, units: Units) -> Amounts:
    try:
        return amounts_of(value, units)
    except QuantityError as error:
        raise QuantityError(f"{path}: {error}") from error


def corrected(provider: Document, owed: Owed, paths: ProviderFields) -> Document:
    """What is set on a provider's document so that it says what is owed, in the manner in which it says it now.

    Raises ``QuantityError`` where an amount cannot be written exactly in the configured unit.
    """
    now = read(provider, paths.allocated)
    values: Document = {paths.allocated: _written(owed.total, now if isinstance(now, dict) else {}, paths.units)}
    if paths.bookings is not None:
        kept = read(provider, paths.bookings) or {}
        values[paths.bookings] = {
            name: _written(amounts, kept.get(name, {}), paths.units) for name, amounts in owed.by_booking.items()
        }
    return values


def _written(amounts: Amounts, like: Mapping[str, Any], units: Units) -> Document:
    exact = {"cpu": amounts.millicores, "memory": amounts.memory, "storage": amounts.storage}
    return {**like, **{name: _amount(exact[name], name, like.get(name), units) for name in RESOURCES}}


def _amount(amount: int, name: str, like: object, units: Units) -> object:
    base = Decimal(amount) * MILLI if name == "cpu" else Decimal(amount)
    if isinstance(like, str):
        return write(base, Style.DECIMAL if name == "cpu" else Style.BINARY)
    unit = CPU_UNITS[units.cpu] if name == "cpu" else BYTE_UNITS[getattr(units, name)]
    number = base / unit
    if isinstance(like, Decimal128) and number * unit == base:
        return Decimal128(number)
    if number == number.to_integral_value():
        return Int64(int(number))
    if Decimal(repr(float(number))) * unit == base:
        return float(number)
    raise QuantityError(f"{amount} of {name} cannot be written exactly as a number in its unit")


def _plain(value: Any) -> Any:
    """A number as Python's own; ``agent.quantity`` knows nothing of MongoDB's."""
    return value.to_decimal() if isinstance(value, Decimal128) else value


def differences(books: Books, owed: Owed) -> list[str]:
    """What the ledger says otherwise than the databases, in words."""
    said = []
    for name, booked, due in zip(RESOURCES, _three(books.booked), _three(owed.total), strict=True):
        if booked != due:
            said.append(f"{name} booked {booked}, owed {due}")
    if books.bookings is not None and books.bookings != owed.by_booking:
        lost = sorted(set(books.bookings) - set(owed.by_booking))
        unbooked = sorted(set(owed.by_booking) - set(books.bookings))
        other = sorted(
            name for name in set(books.bookings) & set(owed.by_booking) if books.bookings[name] != owed.by_booking[name]
        )
        said += _listed("bookings without a database", lost)
        said += _listed("databases without a booking", unbooked)
        said += _listed("bookings of another size", other)
    return said


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:10])
    return [f"{len(names)} {what}: {shown}{', ...' if len(names) > 10 else ''}"]  # noqa: PLR2004 - as many as are shown


def _three(amounts: Amounts) -> tuple[int, int, int]:
    return amounts.millicores, amounts.memory, amounts.storage


def exceeds(amounts: Amounts, capacity: Amounts) -> list[str]:
    """The resources of which there is less than that, in words."""
    triples = zip(RESOURCES, _three(amounts), _three(capacity), strict=True)
    return [f"{name} {amount} of {least}" for name, amount, least in triples if amount > least]


def picture(amounts: Amounts | None) -> Document | None:
    """Amounts as they are kept for the gauges and the page."""
    if amounts is None:
        return None
    return {"cpu": Int64(amounts.millicores), "memory": Int64(amounts.memory), "storage": Int64(amounts.storage)}
