"""Items on their way from the selection to the batches: kept in order, compressed, about twenty bytes an item.

A run must know all that it would change before its first change, and a million items as objects would not fit a
sidecar's memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from agent.job import Item
from agent.store import decode, encode

_BLOCK = 1000  # items compressed together


class Spool:
    """A list of items that is written once and read as often as wanted, in batches."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[list[Any]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item) -> None:
        """Adds an item at the end."""
        self._open.append(
            [item.id, item.what, item.action, item.reason, item.match, item.since, item.values, item.identity]
        )
        self._count += 1
        if len(self._open) >= _BLOCK:
            self._blocks.append(zlib.compress(encode({"items": self._open}), 1))
            self._open = []

    def batches(self, size: int, *, most: int | None = None) -> Iterator[list[Item]]:
        """The items in order, ``size`` at a time, at most ``most`` in all."""
        batch: list[Item] = []
        left = self._count if most is None else min(most, self._count)
        for values in self._values():
            if left <= 0:
                break
            left -= 1
            batch.append(Item(*values))
            if len(batch) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _values(self) -> Iterator[list[Any]]:
        for block in self._blocks:
            yield from decode(zlib.decompress(block))["items"]
        yield from list(self._open)
