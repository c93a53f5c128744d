"""Items on their way from the selection to the batches: kept in order, compressed, about twenty bytes an item.

A run must know all that it would change before its first change, and a million items as objects would not fit a
sidecar's memory.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from agent.job import Item
from agent.store import Document, decode, encode

_BLOCK = 1000  # items compressed together
_FIELDS = tuple(field.name for field in fields(Item))


class Spool:
    """A list of items that is written once and read as often as wanted, in batches."""

    def __init__(self, most: int | None = None) -> None:
        """Of more than ``most`` items the first are kept, and the others counted."""
        self._blocks: list[bytes] = []
        self._open: list[Item] = []
        self._most = math.inf if most is None else most
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item) -> None:
        """Adds an item at the end."""
        self._count += 1
        if self._count > self._most:
            return
        self._open.append(item)
        if len(self._open) >= _BLOCK:
            self._blocks.append(_packed(self._open))
            self._open = []

    def batches(self, size: int, *, most: int | None = None) -> Iterator[list[Item]]:
        """The items in order, ``size`` at a time, at most ``most`` in all."""
        items = itertools.islice(self._items(), most)
        while batch := list(itertools.islice(items, size)):
            yield batch

    def _items(self) -> Iterator[Item]:
        for block in self._blocks:
            yield from _unpacked(block)
        yield from list(self._open)


def _packed(items: list[Item]) -> bytes:
    """Field by field; what is the same text, or empty, for all of them is written once."""
    columns: Document = {"count": len(items)}
    for name in _FIELDS:
        values = [getattr(item, name) for item in items]
        first = values[0]
        if (isinstance(first, str | None) or first == {}) and values.count(first) == len(values):
            columns[name] = first
        else:
            columns[name] = values
    return zlib.compress(encode(columns), 1)


def _unpacked(block: bytes) -> Iterator[Item]:
    columns = decode(zlib.decompress(block))
    return map(Item, *(_column(columns[name], columns["count"]) for name in _FIELDS))


def _column(values: Any, count: int) -> Iterator[Any]:
    if isinstance(values, list):
        return iter(values)
    if isinstance(values, dict):
        return iter([{} for _ in range(count)])
    return itertools.repeat(values, count)
