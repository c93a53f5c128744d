"""A provider's document from before the ledger: what its quantities are as exact integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import BookingKeyError, QuantityError
from agent.ledger.documents import FORMAT, MISSING, Amounts, Reader, long
from agent.ledger.keys import decode_key, encode_key
from agent.quantity import CPU_UNITS, to_bytes, to_millicores
from agent.store import Decimal128, Document, Int64


@dataclass(frozen=True, slots=True)
class Adoption(Reader):
    """Reads a document whose quantities are of another kind; ``units`` says of which, for each resource."""

    units: Mapping[str, str]

    def adopted(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.at(self.paths.format) == FORMAT)

    def seen(self) -> Document:
        """The filter that matches this very document, as far as it was read, and no other."""
        paths = self.paths
        values = {
            path: self.at(path)
            for path in (paths.capacity, paths.allocated, paths.bookings, paths.version, paths.format)
        }
        return {path: {"$exists": False} if value is MISSING else {"$eq": value} for path, value in values.items()}

    def fields(self) -> Document:
        """What has to be set."""
        paths = self.paths
        old = self._optional(paths.bookings)
        bookings = {_renamed(name): self._converted(name, value) for name, value in old.items()}
        booked = {name: self.object(f"{paths.bookings}.{name}", value) for name, value in old.items()}
        fields: Document = {
            paths.version: Int64(self._changes() + 1),
            paths.bookings: {_renamed(name): {**booked[name], **long(bookings[_renamed(name)])} for name in old},
            paths.format: FORMAT,
        }
        self._optional(paths.allocated)
        for name in self.resources:
            total = sum(booking[name] for booking in bookings.values())
            capacity, allocated = f"{paths.capacity}.{name}", f"{paths.allocated}.{name}"
            fields[capacity] = Int64(self._quantity(capacity, self.at(capacity), name))
            fields[allocated] = Int64(self._allocated(allocated, name, total, len(bookings)))
        return fields

    def _changes(self) -> int:
        version = self.at(self.paths.version)
        return self.integer(self.paths.version, 0 if version is MISSING else version, least=0)

    def _optional(self, path: str) -> Document:
        value = self.at(path)
        return {} if value is MISSING else self.object(path, value)

    def _converted(self, name: str, value: object) -> Amounts:
        path = f"{self.paths.bookings}.{name}"
        booking = self.object(path, value)
        return {r: self._quantity(f"{path}.{r}", booking.get(r, 0), r) for r in self.resources}

    def _allocated(self, path: str, name: str, total: int, bookings: int) -> int:
        value = self.at(path)
        if value is MISSING:
            return total
        amount = self._quantity(path, value, name)
        # Each rounding up added less than one, and so does what the float arithmetic of old left behind.
        return total if abs(amount - total) <= bookings + 1 else amount

    def _quantity(self, path: str, value: object, name: str) -> int:
        if value is MISSING:
            raise self.malformed(path, "is missing")
        exact = value.to_decimal() if isinstance(value, Decimal128) else value
        unit = self.units[name]
        try:
            amount = to_millicores(exact, unit) if unit in CPU_UNITS else to_bytes(exact, unit)
        except QuantityError as error:
            raise self.malformed(path, f"is no quantity: {error}") from error
        return self.integer(path, amount, least=0)


def _renamed(name: str) -> str:
    """The name of a booking as the ledger writes it: of old, it was simply the id as text."""
    try:
        decode_key(name)
    except BookingKeyError:
        return encode_key(name)
    return name
