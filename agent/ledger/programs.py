"""What the server is asked to do: one filter and one update, which together are the whole rule.

The names of bookings come from ``encode_key``: in a path each is one step, and no expression. All else that callers
choose travels as values, or as literals of expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.ledger.documents import Amounts, Paths, long
from agent.ledger.refusals import Wish
from agent.store import Document, Int64

_INTEGERS: Final = ["int", "long"]


class Programs:
    """Builds the programs for providers of one shape."""

    def __init__(self, paths: Paths, resources: Sequence[str], active: Sequence[Any]) -> None:
        self._paths = paths
        self._resources = tuple(resources)
        self._active = list(active)
        allocated = [self._allocated(name) for name in resources]
        integers = [f"${paths.version}", *allocated, *(f"${paths.capacity}.{name}" for name in resources)]
        # An expression, since a filter takes an array for any of its elements.
        self._contract: list[Document] = [
            {"$setIsSubset": [[{"$type": path} for path in integers], _INTEGERS]},
            {"$gte": [{"$min": allocated}, 0]},
            {"$eq": [{"$type": f"${paths.bookings}"}, "object"]},
        ]

    def of(self, wish: Wish) -> tuple[Document, Document | list[Document]]:
        """The program of one wish."""
        return self.together([wish], {}) if wish.kind == "allocate" else self._rebooking(wish)

    def together(self, wishes: Sequence[Wish], standing: Mapping[str, Document]) -> tuple[Document, Document]:
        """Fulfils all ``wishes`` (one provider, different keys), where that fits and all bookings are as ``standing``.

        Plain operators instead of a pipeline: the server then writes only what changes, which is several times faster
        where a provider has hundreds of bookings. They take no value for an expression.
        """
        paths = self._paths
        growth = {name: sum(_growth(wish, standing, name) for wish in wishes) for name in self._resources}
        selection = self._selection(wishes[0])
        for wish in wishes:
            booking = standing.get(wish.name)
            selection[self._booking(wish)] = {"$exists": False} if booking is None else {"$eq": booking}
        fits = [{"$gte": [self._free(name), Int64(more)]} for name, more in growth.items() if more > 0]
        fits += [{"$gte": [self._allocated(name), Int64(-more)]} for name, more in growth.items() if more < 0]
        selection["$expr"] = {"$and": [*self._contract, *fits]}
        if self._active and any(wish.grows(standing.get(wish.name)) for wish in wishes):
            selection[paths.status] = {"$in": self._active}
        update: Document = {"$inc": {paths.version: Int64(len(wishes))}}
        update["$inc"] |= {f"{paths.allocated}.{name}": Int64(more) for name, more in growth.items() if more}
        if books := [wish for wish in wishes if wish.want is not None]:
            update["$set"] = {self._booking(w): {**standing.get(w.name, {}), **long(w.want or {})} for w in books}
        if releases := [wish for wish in wishes if wish.want is None]:
            update["$unset"] = {self._booking(wish): True for wish in releases}
        return selection, update

    def _rebooking(self, wish: Wish) -> tuple[Document, list[Document]]:
        """Changes a booking, or removes it, by the difference to what it holds at that very moment."""
        paths = self._paths
        name, bookings = {"$literal": wish.name}, f"${paths.bookings}"
        booking = {"$getField": {"field": name, "input": bookings}}
        had = {"$mergeObjects": [{"$literal": long(dict.fromkeys(self._resources, 0))}, booking]}
        selection = self._selection(wish)
        selection[self._booking(wish)] = {"$type": "object"}
        selection["$expr"] = _with_had(had, {"$and": [*self._contract, *self._conditions(wish)]})
        allocated = {name: {"$add": [self._allocated(name), _difference(wish, name)]} for name in self._resources}
        value = "$$REMOVE" if wish.want is None else {"$mergeObjects": [booking, {"$literal": long(wish.want)}]}
        change: Document = {
            paths.allocated: _with_had(had, {"$mergeObjects": [f"${paths.allocated}", allocated]}),
            paths.version: {"$add": [f"${paths.version}", Int64(1)]},
            paths.bookings: {"$setField": {"field": name, "input": bookings, "value": value}},
        }
        return selection, [{"$set": change}]

    def _conditions(self, wish: Wish) -> list[Document]:
        had = [f"$$had.{name}" for name in self._resources]
        conditions: list[Document] = [
            {"$setIsSubset": [[{"$type": amount} for amount in had], _INTEGERS]},
            {"$gte": [{"$min": had}, 0]},
        ]
        if wish.want is None:
            return conditions + [{"$gte": [self._allocated(name), f"$$had.{name}"]} for name in self._resources]
        wanted = {name: Int64(amount) for name, amount in wish.want.items()}
        for name, want in wanted.items():
            shrinks = {"$gte": [self._allocated(name), {"$subtract": [f"$$had.{name}", want]}]}
            conditions.append({"$cond": [{"$gt": [want, f"$$had.{name}"]}, self._grants(wish, name), shrinks]})
        return [*conditions, {"$or": [{"$ne": [f"$$had.{name}", want]} for name, want in wanted.items()]}]

    def _grants(self, wish: Wish, name: str) -> Document:
        fits = {"$gte": [self._free(name), _difference(wish, name)]}
        if not self._active:
            return fits
        return {"$and": [{"$in": [f"${self._paths.status}", {"$literal": self._active}]}, fits]}

    def _selection(self, wish: Wish) -> Document:
        selection = {"_id": {"$eq": wish.provider_id}}
        if wish.expected is not None:
            selection[self._paths.version] = {"$eq": wish.expected}
        return selection

    def _booking(self, wish: Wish) -> str:
        return f"{self._paths.bookings}.{wish.name}"

    def _allocated(self, name: str) -> str:
        return f"${self._paths.allocated}.{name}"

    def _free(self, name: str) -> Document:
        # By the contract both are integers and the second is not negative: the difference cannot leave 64 bits.
        return {"$subtract": [f"${self._paths.capacity}.{name}", self._allocated(name)]}


def _growth(wish: Wish, standing: Mapping[str, Amounts], name: str) -> int:
    return int((wish.want or {}).get(name, 0)) - int(standing.get(wish.name, {}).get(name, 0))


def _with_had(had: Document, expression: Document) -> Document:
    return {"$let": {"vars": {"had": had}, "in": expression}}


def _difference(wish: Wish, name: str) -> Document:
    """The expression of what a booking grows by; both parts are from 0 to 2**63 - 1, so the difference is exact."""
    return {"$subtract": [Int64((wish.want or {}).get(name, 0)), f"$$had.{name}"]}
