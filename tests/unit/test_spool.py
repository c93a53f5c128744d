"""Items on their way: kept in order, whatever their ids are."""

from __future__ import annotations

import datetime as dt

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex, Timestamp

from agent.job import Item
from agent.spool import Spool
from agent.store import encode

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)


def _items(count: int) -> list[Item]:
    return [Item(number, "orphan", "deleted", f"reason {number}") for number in range(count)]


def _spool(items: list[Item]) -> Spool:
    spool = Spool()
    for item in items:
        spool.add(item)
    return spool


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
def test_items_come_out_in_order_and_as_often_as_wanted(count: int, size: int) -> None:
    """In batches of at most the size that was asked for, none of them empty."""
    items = _items(count)
    spool = _spool(items)
    assert len(spool) == count
    for _ in range(2):
        batches = list(spool.batches(size))
        assert [item for batch in batches for item in batch] == items
        assert all(0 < len(batch) <= size for batch in batches)


@pytest.mark.parametrize("most", [0, 1, 999, 1000, 1001, 9999])
def test_no_more_items_come_out_than_wanted(most: int) -> None:
    """The first of them, in batches."""
    items = _items(1500)
    assert [item for batch in _spool(items).batches(400, most=most) for item in batch] == items[:most]


@pytest.mark.parametrize("most", [0, 1, 999, 1000, 1001, 9999])
def test_what_nobody_will_want_is_counted_and_not_kept(most: int) -> None:
    """The first items are kept; the length is that of all."""
    items = _items(1500)
    spool = Spool(most)
    for item in items:
        spool.add(item)
    assert len(spool) == 1500
    assert [item for batch in spool.batches(400) for item in batch] == items[:most]


def test_ids_of_every_type_and_all_evidence_survive() -> None:
    """What comes out is what went in, byte for byte."""
    ids = [ObjectId(), "text", 1, Int64(1), 1.5, Decimal128("1.0"), Binary(b"a", 128), Timestamp(1, 2), True, NOON]
    items = [
        Item(id, "drift", "repaired", "why", {"at": {"$eq": Regex("a")}}, NOON, {"a.b": {"c": 1}}, "identity")
        for id in ids
    ]
    items += [Item({"b": 1, "a": 2}, "stuck", None, "", {}, None)]
    found = [item for batch in _spool(items * 200).batches(100) for item in batch]
    assert len(found) == len(items) * 200
    for item, original in zip(found, items * 200, strict=True):
        assert encode({"id": item.id, "match": item.match, "values": item.values}) == encode(
            {"id": original.id, "match": original.match, "values": original.values}
        )
        assert (item.what, item.action, item.reason, item.since, item.identity) == (
            original.what,
            original.action,
            original.reason,
            original.since,
            original.identity,
        )
