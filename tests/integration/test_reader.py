"""What jobs read: the collections as they are, and in a dry pass as the earlier plans would leave them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.reader import Overlay, StoreReader, _implies
from agent.store import Namespace, Store
from tests.conftest import Database
from tests.harness import Db


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """A connection of our own."""
    store = Store(database.uri)
    yield store
    await store.close()


@pytest.fixture
def things(database: Database, db: Db) -> Namespace:
    """Twenty documents: `a` counts up, `b` is a third of it."""
    db["things"].insert_many([{"_id": n, "a": n, "b": n // 3, "deep": {"er": str(n)}} for n in range(20)])
    return Namespace(database.name, "things")


def planned(namespace: Namespace) -> Overlay:
    """A plan that deletes 0 to 4 and sets `b` of 5 to 9."""
    overlay = Overlay()
    for n in range(5):
        overlay.delete(namespace, n)
    for n in range(5, 10):
        overlay.update(namespace, n, {"b": 99, "new.field": n})
    return overlay


async def ids(found: AsyncIterator[dict[str, Any]]) -> list[Any]:
    return [one["_id"] async for one in found]


async def test_without_a_plan_things_are_as_they_are(store: Store, things: Namespace) -> None:
    """Counted, found in order, with the fields that were asked for."""
    reader = StoreReader(store)
    assert await reader.count(things, {}) == 20
    assert await reader.count(things, {"b": {"$lt": 2}}) == 6
    found = [one async for one in reader.find(things, {"a": {"$gte": 17}}, ["a"], sort=[("a", -1)])]
    assert found == [{"_id": 19, "a": 19}, {"_id": 18, "a": 18}, {"_id": 17, "a": 17}]
    nested = [one async for one in reader.find(things, {"a": 3}, ["deep.er", "deep"])]
    assert nested == [{"_id": 3, "deep": {"er": "3"}}]
    assert await reader.count(Namespace(things.database, "nothing"), {}) == 0


async def test_a_plan_is_laid_over_what_is_counted_and_found(store: Store, things: Namespace) -> None:
    """What would be deleted is gone; what would be changed meets the filters of its new values, and no others."""
    reader = StoreReader(store, planned(things))
    assert await reader.count(things, {}) == 15
    assert await reader.count(things, {"b": {"$lt": 4}}) == 2
    assert await reader.count(things, {"b": 99}) == 5
    assert await reader.count(things, {"new.field": {"$gte": 8}}) == 2
    assert sorted(await ids(reader.find(things, {"b": {"$lte": 4}}, []))) == [10, 11, 12, 13, 14]
    found = [one async for one in reader.find(things, {"b": 99, "a": {"$lt": 7}}, ["b", "new.field"])]
    assert sorted(found, key=lambda one: one["_id"]) == [
        {"_id": 5, "b": 99, "new": {"field": 5}},
        {"_id": 6, "b": 99, "new": {"field": 6}},
    ]


async def test_a_later_plan_of_the_same_document_wins(store: Store, things: Namespace) -> None:
    """Two updates add up; a deletion ends it."""
    overlay = planned(things)
    overlay.update(things, 9, {"b": 100})
    overlay.delete(things, 8)
    reader = StoreReader(store, overlay)
    found = [one async for one in reader.find(things, {"new": {"$exists": True}}, ["b", "new"])]
    assert {one["_id"]: one["b"] for one in found} == {5: 99, 6: 99, 7: 99, 9: 100}
    assert await reader.count(things, {}) == 14
    assert overlay.deleted(Namespace("other", "things")) == []


async def test_a_plan_of_thousands_is_laid_over_in_portions(database: Database, store: Store, db: Db) -> None:
    """More than one query takes."""
    db["many"].insert_many([{"_id": n, "b": 0} for n in range(3500)])
    namespace, overlay = Namespace(database.name, "many"), Overlay()
    for n in range(1200):
        overlay.delete(namespace, n)
    for n in range(1200, 2700):
        overlay.update(namespace, n, {"b": n % 2})
    reader = StoreReader(store, overlay)
    assert await reader.count(namespace, {}) == 2300
    assert await reader.count(namespace, {"b": 1}) == 750
    assert len(await ids(reader.find(namespace, {"b": 0}, []))) == 1550


@pytest.mark.parametrize("index", [None, [("b", 1)], [("x", 1), ("b", 1)]])
async def test_keys_are_read_without_those_that_leave_with_their_last_document(
    store: Store, things: Namespace, db: Db, index: Any
) -> None:
    """A key that another document still holds stays, whichever index is used."""
    if index:
        db["things"].create_index(index)
    plain, laid = StoreReader(store), StoreReader(store, planned(things))
    assert {key async for key in plain.keys(things, {}, ["b"], distinct=False)} == {(n,) for n in range(7)}
    # 0 to 2 have b = 0; 3 and 4 have b = 1, which 5 has as well.
    assert {key async for key in laid.keys(things, {}, ["b"], distinct=False)} == {(n,) for n in range(1, 7)}
    assert {key async for key in plain.keys(things, {"a": {"$lt": 6}}, ["b"], distinct=True)} == {(0,), (1,)}


async def test_existing_answers_as_the_server_compares(store: Store, things: Namespace, db: Db) -> None:
    """By position; what the plan deletes does not exist."""
    db["things"].insert_many([{"_id": "n", "a": 1.5, "b": {"x": 1}}, {"_id": "null", "a": None}, {"_id": "none"}])
    keys = [(3, 1), (3, 2), (1.5, {"x": 1.0}), (None, None), ("3", 1), (7, 2)]
    fields = ["a", "b"]
    assert await StoreReader(store).existing(things, fields, keys) == {0, 2, 3, 5}
    assert await StoreReader(store, planned(things)).existing(things, fields, keys) == {2, 3, 5}
    assert await StoreReader(store).existing(things, fields, keys[1:2]) == set()
    assert await StoreReader(store).existing(things, fields, keys[2:3]) == {0}
    assert await StoreReader(store).existing(things, fields, []) == set()


async def test_groups_name_the_documents_of_each_value(store: Store, things: Namespace) -> None:
    """With the plan laid over them."""

    async def grouped(reader: StoreReader) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        async for key, members in reader.groups(things, {"a": {"$lt": 12}}, ["b"]):
            found.setdefault(key, []).extend(members)
        return {key: sorted(members) for key, members in found.items()}

    assert await grouped(StoreReader(store)) == {(n,): [3 * n, 3 * n + 1, 3 * n + 2] for n in range(4)}
    assert await grouped(StoreReader(store, planned(things))) == {(99,): [5, 6, 7, 8, 9], (3,): [10, 11]}


async def test_of_several_indexes_one_that_needs_no_document_is_taken(database: Database, db: Db, store: Store) -> None:
    """An older one that holds the keys and not what the filter asks for has the server read each document."""
    namespace = Namespace(database.name, "tasks")
    some = {"s": {"$in": ["a", "b"]}}
    db["tasks"].insert_many([{"s": "a", "k": number} for number in range(3)])
    db["tasks"].create_index([("k", 1)], partialFilterExpression=some, name="a")
    assert await StoreReader(store)._covering(namespace, some, ["k"]) == "a"
    db["tasks"].create_index([("s", 1), ("k", 1)], partialFilterExpression=some, name="b")
    assert await StoreReader(store)._covering(namespace, {"$and": [some]}, ["k"]) == "b"
    assert await StoreReader(store)._covering(namespace, {}, ["k"]) is None


@pytest.mark.parametrize(
    "filter, partial, implies",
    [
        ({"s": {"$in": ["a"]}}, {"s": {"$in": ["a", "b"]}}, True),
        ({"$and": [{"x": 1}, {"s": {"$in": ["a", "b"]}}]}, {"s": {"$in": ["a", "b"]}}, True),
        ({"s": {"$in": ["a", "c"]}}, {"s": {"$in": ["a", "b"]}}, False),
        ({"x": 1}, {"s": {"$in": ["a"]}}, False),
        ({"s": {"$in": ["a"]}}, {"s": {"$in": ["a"]}, "x": {"$in": [1]}}, False),
        ({"s": {"$in": ["a"]}}, {"s": "a"}, False),
        ({"s": {"$in": ["a"]}}, {"s": {"$exists": True}}, False),
        ({"s": "a"}, {"s": {"$in": ["a"]}}, False),
        ({}, {"s": {"$in": ["a"]}}, False),
        ({"s": {"$in": [["a"]]}}, {"s": {"$in": [{"x": 1}]}}, False),
        ({"s": {"$in": [1]}}, {"s": {"$in": [True]}}, False),
    ],
)
def test_a_partial_index_serves_only_what_asks_for_no_more(filter: Any, partial: Any, implies: bool) -> None:
    """In doubt it is not used."""
    assert _implies(filter, partial) == implies
