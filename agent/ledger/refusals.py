"""Why a wish is not fulfilled: the provider's document, read after nothing matched, against what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.errors import (
    BookingExistsError,
    BookingNotFoundError,
    InsufficientCapacityError,
    MalformedProviderError,
    ProviderInactiveError,
    ProviderNotFoundError,
    VersionConflictError,
    shown,
)
from agent.ledger.documents import Amounts, Reader, text

Kind = Literal["allocate", "resize", "release"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a call asks for. ``want`` is what shall be booked in the end: nothing at all for a release."""

    kind: Kind
    provider_id: Any
    key: Any
    name: str
    want: Amounts | None
    expected: int | None

    def grows(self, booked: Mapping[str, int] | None) -> bool:
        """Whether it takes capacity, where ``booked`` is what is booked so far."""
        if self.want is None:
            return False
        return self.kind == "allocate" or any(
            amount > (booked or {}).get(name, 0) for name, amount in self.want.items()
        )

    def changes(self, booked: Mapping[str, int] | None) -> bool:
        """Whether it is the right call where ``booked`` is booked so far, and changes something."""
        return booked != self.want and (booked is None) == (self.kind == "allocate")

    @property
    def provider(self) -> str:
        """How a message names the provider."""
        return f"provider {text(self.provider_id)}"


def no_provider(provider_id: object) -> ProviderNotFoundError:
    """The refusal of an id that nobody has."""
    return ProviderNotFoundError(provider_id, f"there is no provider {text(provider_id)}")


def refuse(wish: Wish, reader: Reader, active: Sequence[Any]) -> bool:
    """Raises the reason why ``wish`` cannot be fulfilled, the most telling one first.

    True: all stands as asked already. False: there is no reason any more, it would be fulfilled now.
    """
    version = reader.version()
    capacity, allocated = reader.amounts(reader.paths.capacity), reader.amounts(reader.paths.allocated, least=0)
    booked = reader.booking(wish.name)
    if booked == wish.want:
        return True
    _refuse_version(wish, version)
    _refuse_booking(wish, booked)
    growth = {name: (wish.want or {}).get(name, 0) - (booked or {}).get(name, 0) for name in capacity}
    if wish.grows(booked):
        _refuse_status(wish, reader, active)
    _refuse_shortage(wish, growth, capacity, allocated)
    _refuse_underflow(wish, growth, allocated, reader.paths.allocated)
    return False


def _refuse_version(wish: Wish, found: int) -> None:
    if wish.expected is not None and wish.expected != found:
        raise VersionConflictError(
            wish.provider_id,
            f"{wish.provider} is at version {found}, not {wish.expected} as expected: it changed in between",
            expected=wish.expected,
            found=found,
        )


def _refuse_booking(wish: Wish, booked: Amounts | None) -> None:
    if wish.kind == "allocate" and booked is not None:
        raise BookingExistsError(
            wish.provider_id,
            f"{text(wish.key)} is booked on {wish.provider} already, with {_list(booked)} instead of "
            f"{_list(wish.want or {})}: use resize to change it",
            key=wish.key,
            booked=booked,
        )
    if wish.kind == "resize" and booked is None:
        raise BookingNotFoundError(
            wish.provider_id,
            f"nothing is booked under {text(wish.key)} on {wish.provider}: use allocate",
            key=wish.key,
        )


def _refuse_status(wish: Wish, reader: Reader, active: Sequence[Any]) -> None:
    status = reader.status()
    if active and status not in active:
        raise ProviderInactiveError(
            wish.provider_id,
            f"{wish.provider} grants no capacity: its {reader.paths.status} is {shown(status)}, none of "
            f"{', '.join(map(shown, active))}",
            status=status,
        )


def _refuse_shortage(wish: Wish, growth: Amounts, capacity: Amounts, allocated: Amounts) -> None:
    short = tuple(name for name, more in growth.items() if more > 0 and more > capacity[name] - allocated[name])
    if short:
        told = "; ".join(
            f"{name}: {growth[name]} asked, {capacity[name] - allocated[name]} free "
            f"({allocated[name]} of {capacity[name]} allocated)"
            for name in short
        )
        raise InsufficientCapacityError(
            wish.provider_id,
            f"{wish.provider} has too little left for {text(wish.key)}: {told}",
            resources=short,
            capacity=capacity[short[0]],
            allocated=allocated[short[0]],
            asked=growth[short[0]],
        )


def _refuse_underflow(wish: Wish, growth: Amounts, allocated: Amounts, path: str) -> None:
    for name, more in growth.items():
        if allocated[name] + more < 0:
            raise MalformedProviderError(
                wish.provider_id,
                f"{wish.provider} is malformed: {path}.{name} is {allocated[name]}, less than the {-more} to give "
                f"back for {text(wish.key)}; the books need a repair (allocation_audit)",
                field=f"{path}.{name}",
            )


def _list(amounts: Amounts) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in amounts.items())
