"""The ledger on a real server: what is booked adds up, and every refusal says why and changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.database import Database as RawDatabase

from agent.errors import StoreError, UsageError
from agent.ledger import (
    BookingExistsError,
    BookingNotFoundError,
    InsufficientCapacityError,
    Ledger,
    LedgerError,
    LedgerResult,
    MalformedProviderError,
    Paths,
    ProviderInactiveError,
    ProviderNotFoundError,
    VersionConflictError,
    decode_key,
    encode_key,
)
from agent.store import Collection, Namespace, Store
from tests import servers
from tests.conftest import Database

Document = dict[str, Any]
Db = RawDatabase[Document]

GIB = 2**30
CAPACITY = {"cpu": 4000, "memory": 8 * GIB, "storage": 100 * GIB}
SMALL = {"cpu": 500, "memory": 2 * GIB, "storage": 10 * GIB}
LARGE = {"cpu": 1000, "memory": 4 * GIB, "storage": 10 * GIB}
NOTHING = {"cpu": 0, "memory": 0, "storage": 0}
UNITS = {"cpu": "cores", "memory": "GiB", "storage": "GiB"}
P = "provider-1"


@pytest.fixture
async def collection(database: Database) -> AsyncIterator[AsyncIOMotorCollection[Document]]:
    """The providers, through a client of the application."""
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(database.uri)
    yield client[database.name]["providers"]
    client.close()


@pytest.fixture
def ledger(collection: AsyncIOMotorCollection[Document], db: Db) -> Ledger:
    """A ledger with one provider, of which nothing is booked."""
    made = Ledger(collection)
    db["providers"].insert_one({"_id": P, "name": "eu-1", "status": "active", **made.blank(CAPACITY)})
    return made


def stored(db: Db) -> Document:
    """The provider as it really is."""
    return db["providers"].find_one({"_id": P}) or {}


def arrange(db: Db, **fields: Any) -> Document:
    """Sets fields of the provider; ``...`` removes one."""
    update: Document = {"$set": {k: v for k, v in fields.items() if v is not ...}}
    update["$unset"] = {k: True for k, v in fields.items() if v is ...}
    db["providers"].update_one({"_id": P}, {name: change for name, change in update.items() if change})
    return stored(db)


@contextlib.contextmanager
def unchanged(db: Db) -> Iterator[None]:
    """The provider stays as it is, to the last field."""
    before = stored(db)
    yield
    assert stored(db) == before


# ---------------------------------------------------------------------------------------------------------- the calls


@servers.both_topologies
async def test_a_booking_is_made_changed_and_given_back(ledger: Ledger, db: Db) -> None:
    """Each call changes what is allocated, the booking and the version at once, and says how the books stand."""
    key = ObjectId()
    made = await ledger.allocate(P, key, SMALL)
    assert made == LedgerResult(P, key, True, 1, SMALL, CAPACITY, SMALL)
    assert made.free == {"cpu": 3500, "memory": 6 * GIB, "storage": 90 * GIB}
    assert stored(db)["bookings"] == {str(key): SMALL}

    grown = await ledger.resize(P, key, LARGE)
    assert (grown.changed, grown.version, grown.booked, grown.allocated) == (True, 2, LARGE, LARGE)
    assert stored(db)["bookings"] == {str(key): LARGE}

    gone = await ledger.release(P, key)
    assert (gone.changed, gone.version, gone.booked, gone.allocated) == (True, 3, {}, NOTHING)
    assert {**stored(db), "status": "active"} == {
        "_id": P,
        "name": "eu-1",
        "status": "active",
        "ledger_format": 1,
        "capacity": CAPACITY,
        "allocated": NOTHING,
        "bookings": {},
        "version": 3,
    }


@servers.both_topologies
async def test_a_repeated_call_changes_nothing_and_succeeds(ledger: Ledger, db: Db) -> None:
    """Whatever version was expected: an answer that was lost must not become a conflict."""
    assert (await ledger.allocate(P, "a", SMALL, expect_version=0)).changed
    with unchanged(db):
        again = await ledger.allocate(P, "a", SMALL, expect_version=0)
    assert (again.changed, again.version, again.booked) == (False, 1, SMALL)

    assert (await ledger.resize(P, "a", LARGE, expect_version=1)).changed
    with unchanged(db):
        again = await ledger.resize(P, "a", LARGE, expect_version=1)
    assert (again.changed, again.version, again.booked) == (False, 2, LARGE)

    assert (await ledger.release(P, "a", expect_version=2)).changed
    with unchanged(db):
        again = await ledger.release(P, "a", expect_version=2)
    assert (again.changed, again.version, again.booked) == (False, 3, {})


async def test_what_a_request_leaves_out_is_zero(ledger: Ledger, db: Db) -> None:
    """Also in a resize, and in what is compared."""
    assert (await ledger.allocate(P, "a", {"cpu": 500})).booked == {**NOTHING, "cpu": 500}
    assert not (await ledger.allocate(P, "a", {"cpu": 500, "memory": 0})).changed
    assert (await ledger.resize(P, "a", {"memory": 5})).allocated == {**NOTHING, "memory": 5}
    assert (await ledger.allocate(P, "b", {})).changed
    assert stored(db)["bookings"] == {"a": {**NOTHING, "memory": 5}, "b": NOTHING}


async def test_all_integers_on_the_wire_are_of_64_bits(ledger: Ledger, db: Db) -> None:
    """However small, and whatever the documents held before: no later sum changes its type."""
    arrange(db, capacity=CAPACITY, allocated=NOTHING, version=0)
    await ledger.allocate(P, "a", {"cpu": 1})
    await ledger.allocate(P, "b", {"memory": 1})
    await ledger.resize(P, "a", {"cpu": 2})
    for path in ("allocated.cpu", "bookings.a.cpu", "bookings.b.storage", "version"):
        assert db["providers"].count_documents({path: {"$type": "long"}}) == 1, path


async def test_the_largest_amounts_are_exact(ledger: Ledger, db: Db) -> None:
    """Up to 2**63 - 1; nothing overflows, and nothing becomes a float on the way."""
    largest = 2**63 - 1
    arrange(db, capacity={"cpu": largest, "memory": largest, "storage": largest}, allocated=NOTHING)
    await ledger.allocate(P, "a", {"cpu": largest - 1, "memory": 2**53 + 1})
    with pytest.raises(InsufficientCapacityError, match="cpu: 2 asked, 1 free"):
        await ledger.allocate(P, "b", {"cpu": 2})
    with pytest.raises(InsufficientCapacityError, match=f"cpu: {largest} asked, 1 free"):
        await ledger.allocate(P, "b", {"cpu": largest})
    assert (await ledger.resize(P, "a", {"cpu": largest})).free["cpu"] == 0
    assert (await ledger.resize(P, "a", {"memory": largest})).free == {"cpu": largest, "memory": 0, "storage": largest}
    assert (await ledger.release(P, "a")).allocated == NOTHING
    together = await asyncio.gather(
        *[ledger.allocate(P, i, {"cpu": largest}) for i in range(4)], return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in together) == ["InsufficientCapacityError"] * 3 + ["LedgerResult"]


# ----------------------------------------------------------------------------------------------------------- refusals


@servers.both_topologies
async def test_capacity_is_never_exceeded_by_one(ledger: Ledger, db: Db) -> None:
    """What is left to the last unit is granted, one unit more of one resource refuses all of them."""
    await ledger.allocate(P, "a", SMALL)
    left = (await ledger.read(P)).free
    with unchanged(db), pytest.raises(InsufficientCapacityError) as refusal:
        await ledger.allocate(P, "b", {**left, "memory": left["memory"] + 1})
    error = refusal.value
    assert (error.resource, error.resources, error.provider_id) == ("memory", ("memory",), P)
    assert (error.capacity, error.allocated, error.free) == (CAPACITY["memory"], SMALL["memory"], left["memory"])
    assert error.asked == left["memory"] + 1
    assert str(error) == (
        "provider 'provider-1' has too little left for 'b': memory: 6442450945 asked, 6442450944 free "
        "(2147483648 of 8589934592 allocated)"
    )
    assert (await ledger.allocate(P, "b", left)).free == NOTHING


async def test_a_resize_needs_only_what_it_grows_by(ledger: Ledger, db: Db) -> None:
    """Growth of one resource is checked, the shrinking of another is not."""
    await ledger.allocate(P, "a", {"cpu": 4000, "memory": 10})
    assert (await ledger.resize(P, "a", {"cpu": 3000, "memory": 20})).changed
    with unchanged(db), pytest.raises(InsufficientCapacityError, match=r"cpu: 1001 asked, 1000 free \(3000 of 4000"):
        await ledger.resize(P, "a", {"cpu": 4001})


async def test_an_overcommitted_provider_gives_back_and_shrinks_but_grants_nothing_of_that_resource(
    ledger: Ledger, db: Db
) -> None:
    """A capacity that was taken away does not hold up what eases it, nor the other resources."""
    await ledger.allocate(P, "a", SMALL)
    arrange(db, **{"capacity.cpu": Int64(100)})
    assert (await ledger.allocate(P, "b", {"memory": 1})).free["cpu"] == -400
    with pytest.raises(InsufficientCapacityError, match=r"cpu: 1 asked, -400 free \(500 of 100 allocated\)"):
        await ledger.allocate(P, "c", {"cpu": 1})
    assert (await ledger.resize(P, "a", {"cpu": 400})).changed
    assert (await ledger.release(P, "a")).allocated == {**NOTHING, "memory": 1}


async def test_the_same_key_with_other_amounts_is_refused_with_a_hint(ledger: Ledger, db: Db) -> None:
    """To allocate is not to change."""
    await ledger.allocate(P, "a", {"cpu": 1})
    with unchanged(db), pytest.raises(BookingExistsError, match="use resize to change it") as refusal:
        await ledger.allocate(P, "a", {"cpu": 2})
    assert (refusal.value.key, refusal.value.booked) == ("a", {**NOTHING, "cpu": 1})


async def test_what_is_not_booked_cannot_be_resized(ledger: Ledger, db: Db) -> None:
    """A resize never books anew: the database may just have been removed."""
    with (
        unchanged(db),
        pytest.raises(BookingNotFoundError, match="nothing is booked under 'a' on provider 'provider-1'"),
    ):
        await ledger.resize(P, "a", SMALL)


@pytest.mark.parametrize("call", ["allocate", "resize", "release"])
async def test_an_unexpected_version_is_a_conflict_that_names_both(ledger: Ledger, db: Db, call: str) -> None:
    """One version back and one ahead; at the right one the call succeeds."""
    if call != "allocate":
        await ledger.allocate(P, "b", SMALL)
    found = (await ledger.allocate(P, "a", SMALL)).version
    key, request = ("c", [SMALL]) if call == "allocate" else ("a", [LARGE] if call == "resize" else [])
    for expected in (found - 1, found + 1, 2**70):
        with unchanged(db), pytest.raises(VersionConflictError, match=f"at version {found}, not {expected}") as refusal:
            await getattr(ledger, call)(P, key, *request, expect_version=expected)
        assert (refusal.value.expected, refusal.value.found) == (expected, found)
    assert (await getattr(ledger, call)(P, key, *request, expect_version=found)).version == found + 1


NOBODY = ["nobody", ObjectId("6" * 24), None, {"$gt": ""}, {"$ne": None}, 1.5, b"x"]


@pytest.mark.parametrize("provider_id", NOBODY, ids=repr)
async def test_a_provider_that_does_not_exist_is_named(ledger: Ledger, db: Db, provider_id: Any) -> None:
    """An id is a value, never a condition."""
    calls = [ledger.allocate(provider_id, "a", SMALL), ledger.resize(provider_id, "a", SMALL)]
    for attempt in (
        *calls,
        ledger.release(provider_id, "a"),
        ledger.read(provider_id),
        ledger.adopt(provider_id, UNITS),
    ):
        with unchanged(db), pytest.raises(ProviderNotFoundError, match="there is no provider"):
            await attempt


async def test_an_id_that_cannot_be_stored_is_an_error_of_ours(ledger: Ledger) -> None:
    """Nothing of the driver reaches the caller."""
    for provider_id in (object(), 2**70, "\ud800"):
        with pytest.raises(StoreError, match="not a value that MongoDB stores"):
            await ledger.allocate(provider_id, "a", SMALL)


async def test_only_an_active_provider_grants_capacity(
    collection: AsyncIOMotorCollection[Document], ledger: Ledger, db: Db
) -> None:
    """Where statuses are named; giving back and shrinking need none."""
    careful = Ledger(collection, active=["active", "warm"])
    await careful.allocate(P, "a", LARGE)
    arrange(db, status="draining")
    for attempt in (careful.allocate(P, "b", SMALL), careful.allocate(P, "b", {}), careful.resize(P, "a", CAPACITY)):
        with (
            unchanged(db),
            pytest.raises(ProviderInactiveError, match="its status is 'draining', none of 'active', 'warm'"),
        ):
            await attempt
    assert not (await careful.allocate(P, "a", LARGE)).changed
    assert (await careful.resize(P, "a", SMALL)).changed
    assert (await ledger.resize(P, "a", LARGE)).changed  # this one does not look at it
    assert (await careful.release(P, "a")).changed
    arrange(db, status=...)
    with pytest.raises(ProviderInactiveError, match="its status is None") as refusal:
        await careful.allocate(P, "b", SMALL)
    assert refusal.value.status is None
    arrange(db, status="warm")
    assert (await careful.allocate(P, "b", SMALL)).changed


MALFORMED: list[tuple[Document, str, str]] = [
    ({"capacity": ...}, "capacity.cpu", "is missing"),
    ({"capacity": 4}, "capacity.cpu", "is missing"),
    ({"capacity": [{"cpu": 1, "memory": 1, "storage": 1}]}, "capacity.cpu", "is missing"),
    ({"capacity.memory": ...}, "capacity.memory", "is missing"),
    ({"capacity.memory": "8Gi"}, "capacity.memory", "is '8Gi', not an integer; Ledger.adopt converts quantities"),
    ({"capacity.cpu": 4.0}, "capacity.cpu", "is 4.0, not an integer"),
    ({"capacity.cpu": None}, "capacity.cpu", "is None, not an integer"),
    ({"capacity.cpu": True}, "capacity.cpu", "is True, not an integer"),
    ({"capacity.cpu": Decimal128("4")}, "capacity.cpu", "is a value of type Decimal128, not an integer"),
    ({"capacity.cpu": [4]}, "capacity.cpu", "is a value of type list, not an integer"),
    ({"allocated": ...}, "allocated.cpu", "is missing"),
    ({"allocated": []}, "allocated.cpu", "is missing"),
    ({"allocated.storage": ...}, "allocated.storage", "is missing"),
    ({"allocated.storage": 0.5}, "allocated.storage", "is 0.5, not an integer"),
    ({"allocated.storage": "$version"}, "allocated.storage", "is '$version', not an integer"),
    ({"allocated.memory": -1}, "allocated.memory", "is -1, less than 0"),
    ({"version": ...}, "version", "is missing"),
    ({"version": "3"}, "version", "is '3', not an integer"),
    ({"version": 3.0}, "version", "is 3.0, not an integer"),
    ({"bookings": ...}, "bookings", "is missing"),
    ({"bookings": None}, "bookings", "is None, not an object"),
    ({"bookings": "a"}, "bookings", "is 'a', not an object"),
    ({"bookings": []}, "bookings", "is a value of type list, not an object"),
    ({"bookings": [{"a": {}}]}, "bookings", "is a value of type list, not an object"),
    ({"bookings.a": 7}, "bookings.a", "is 7, not an object"),
    ({"bookings.a": None}, "bookings.a", "is None, not an object"),
    ({"bookings.a": [SMALL]}, "bookings.a", "is a value of type list, not an object"),
    ({"bookings.a": {**SMALL, "cpu": 0.5}}, "bookings.a.cpu", "is 0.5, not an integer"),
    ({"bookings.a": {**SMALL, "cpu": None}}, "bookings.a.cpu", "is None, not an integer"),
    ({"bookings.a": {**SMALL, "cpu": "500m"}}, "bookings.a.cpu", "is '500m', not an integer"),
    ({"bookings.a": {**SMALL, "cpu": -500}}, "bookings.a.cpu", "is -500, less than 0"),
]


@pytest.mark.parametrize("fields, path, what", MALFORMED, ids=[f"{f}" for f, _, _ in MALFORMED])
async def test_a_malformed_provider_is_refused_by_the_path_of_what_is_wrong(
    ledger: Ledger, db: Db, fields: Document, path: str, what: str
) -> None:
    """Nothing is guessed and nothing is changed, whichever call meets it."""
    await ledger.allocate(P, "a", SMALL)
    arrange(db, **fields)
    for attempt in (ledger.allocate(P, "a", LARGE), ledger.resize(P, "a", LARGE), ledger.release(P, "a")):
        with (
            unchanged(db),
            pytest.raises(MalformedProviderError, match=f"{re.escape(path)} {re.escape(what)}") as refusal,
        ):
            await attempt
        assert refusal.value.field == path


@pytest.mark.parametrize("key", ["0", "b", 5])
async def test_an_array_of_bookings_is_not_written_into(ledger: Ledger, db: Db, key: Any) -> None:
    """A key of digits is not taken for a position."""
    arrange(db, bookings=[{"x": 1}])
    with unchanged(db), pytest.raises(MalformedProviderError, match="bookings is a value of type list"):
        await ledger.allocate(P, key, SMALL)


async def test_books_that_are_short_are_not_taken_below_zero(ledger: Ledger, db: Db) -> None:
    """Less is allocated than the booking says: that is for the audit to repair, not to be papered over."""
    await ledger.allocate(P, "a", SMALL)
    arrange(db, **{"allocated.cpu": Int64(499)})
    for attempt in (ledger.release(P, "a"), ledger.resize(P, "a", {})):
        with (
            unchanged(db),
            pytest.raises(MalformedProviderError, match=r"allocated\.cpu is 499, less than the 500") as refusal,
        ):
            await attempt
        assert refusal.value.field == "allocated.cpu"
    assert (await ledger.resize(P, "a", {**SMALL, "cpu": 1})).allocated["cpu"] == 0


# ------------------------------------------------------------------------------------------------------------ as data

HOSTILE = [
    *("", ".", "..", "a.b", "$", "$set", "$$ROOT", "a.$[].b", "$where", "%", "%24", "%n:1", "0", "-1", "_id", "cpu"),
    *("bookings", "allocated.cpu", "version", "nul\0byte", "__proto__", "'; db.dropDatabase() //", '"}', "{$ne:null}"),
    *("日本語", "\u202e", "a" * 512, "a b\tc\n", "null", "true", "NaN", "1e3"),
    *(1, -1, 2**63 - 1, b"\x00$.", ObjectId("6" * 24)),
]


async def test_hostile_keys_are_data(ledger: Ledger, db: Db) -> None:
    """Each is a booking of its own that is read back, resized and given back, and touches nothing else."""
    for number, key in enumerate(HOSTILE):
        assert (await ledger.allocate(P, key, {"cpu": 1, "memory": number})).changed
        assert not (await ledger.allocate(P, key, {"cpu": 1, "memory": number})).changed
    books = await ledger.read(P)
    assert books.bookings == {key: {"cpu": 1, "memory": n, "storage": 0} for n, key in enumerate(HOSTILE)}
    assert books.drift == NOTHING
    assert set(stored(db)) == {"_id", "name", "status", "capacity", "allocated", "bookings", "version", "ledger_format"}
    assert set(stored(db)["bookings"]) == {encode_key(key) for key in HOSTILE}
    for key in HOSTILE:
        assert (await ledger.resize(P, key, {"storage": 7})).booked == {**NOTHING, "storage": 7}
        assert not (await ledger.resize(P, key, {"storage": 7})).changed
        assert (await ledger.release(P, key)).changed
        assert not (await ledger.release(P, key)).changed
    assert stored(db)["bookings"] == {}
    assert stored(db)["allocated"] == NOTHING


async def test_hostile_keys_are_data_in_company_too(ledger: Ledger, db: Db) -> None:
    """All of them at once: the same end."""
    await asyncio.gather(*[ledger.allocate(P, key, {"cpu": 1}) for key in HOSTILE])
    await asyncio.gather(*[ledger.resize(P, key, {"cpu": 2}) for key in HOSTILE])
    assert {decode_key(name) for name in stored(db)["bookings"]} == set(HOSTILE)
    assert stored(db)["allocated"]["cpu"] == 2 * len(HOSTILE)
    await asyncio.gather(*[ledger.release(P, key) for key in HOSTILE])
    assert stored(db)["bookings"] == {}
    assert stored(db)["version"] == 3 * len(HOSTILE)


async def test_provider_ids_and_statuses_are_data(collection: AsyncIOMotorCollection[Document], db: Db) -> None:
    """A provider whose id or status looks like an expression is a provider like any other."""
    careful = Ledger(collection, active=["$name", "$$ROOT"])
    for number, provider_id in enumerate(["$name", "a.b", "", {"a": 1}, 7, ObjectId()]):
        fields = careful.blank(CAPACITY)
        db["providers"].insert_one({"_id": provider_id, "name": "active", "status": "$$ROOT", **fields})
        assert (await careful.allocate(provider_id, "a", {"cpu": number})).changed
        assert (await careful.resize(provider_id, "a", SMALL)).changed
        db["providers"].update_one({"_id": {"$eq": provider_id}}, {"$set": {"status": "active"}})
        with pytest.raises(ProviderInactiveError):
            await careful.resize(provider_id, "a", LARGE)
        assert (await careful.release(provider_id, "a")).changed


# ------------------------------------------------------------------------------------------------------- all at once


@servers.both_topologies
async def test_many_callers_of_one_process_share_a_provider_to_the_last_unit(ledger: Ledger) -> None:
    """Of a hundred who each want a twentieth, twenty get it, and each is told its own answer."""
    share = {name: amount // 20 for name, amount in CAPACITY.items()}
    results = await asyncio.gather(*[ledger.allocate(P, n, share) for n in range(100)], return_exceptions=True)
    granted = [result for result in results if isinstance(result, LedgerResult)]
    refused = [result for result in results if isinstance(result, InsufficientCapacityError)]
    assert (len(granted), len(refused)) == (20, 80)
    books = await ledger.read(P)
    assert set(books.bookings) == {result.key for result in granted}
    assert (books.version, books.free["cpu"], books.drift) == (20, 0, NOTHING)
    assert all(result.changed and result.version <= 20 for result in granted)


async def test_calls_of_all_kinds_go_together_and_each_gets_its_own_answer(ledger: Ledger, db: Db) -> None:
    """Among the good ones: a repeated, a refused, an unknown and a malformed one."""
    for key in "abcd":
        await ledger.allocate(P, key, SMALL)
    arrange(db, **{"bookings.e": {"cpu": 0, "note": "kept"}})
    results = await asyncio.gather(
        ledger.release(P, "a"),
        ledger.resize(P, "b", LARGE),
        ledger.allocate(P, "c", SMALL),
        ledger.allocate(P, "c", LARGE),
        ledger.resize(P, "none", SMALL),
        ledger.release(P, "none"),
        ledger.resize(P, "e", {"cpu": 5}),
        ledger.allocate(P, "f", CAPACITY),
        ledger.release(P, "d"),
        ledger.allocate(P, "g", {}),
        return_exceptions=True,
    )
    told = [result.changed if isinstance(result, LedgerResult) else type(result).__name__ for result in results]
    assert told == [
        *(True, True, False, "BookingExistsError", "BookingNotFoundError"),
        *(False, True, "InsufficientCapacityError", True, True),
    ]
    assert stored(db)["bookings"] == {
        "b": LARGE,
        "c": SMALL,
        "e": {"cpu": 5, "memory": 0, "storage": 0, "note": "kept"},
        "g": NOTHING,
    }
    books = await ledger.read(P)
    assert (books.version, books.drift) == (9, NOTHING)


async def test_one_broken_booking_holds_up_nobody_else(ledger: Ledger, db: Db) -> None:
    """It is refused by its path, and the others of its company are served."""
    for key in "abc":
        await ledger.allocate(P, key, {"cpu": 1})
    arrange(db, **{"bookings.b": "broken"})
    results = await asyncio.gather(*[ledger.release(P, key) for key in "abc"], return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["LedgerResult", "MalformedProviderError", "LedgerResult"]


@pytest.mark.parametrize("meanwhile", ["resize", "release"])
async def test_a_booking_that_somebody_changes_while_a_company_looks_at_it_is_given_back_as_it_is_then(
    ledger: Ledger, collection: AsyncIOMotorCollection[Document], monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """What another process booked in between is not lost, and nothing is given back twice."""
    for key in "abc":
        await ledger.allocate(P, key, SMALL)
    other = Ledger(collection)
    find_one = ledger._providers.find_one
    first = iter([True])

    async def meddle(*arguments: Any, **options: Any) -> Document | None:
        found = await find_one(*arguments, **options)
        if next(first, False):
            await (other.resize(P, "b", LARGE) if meanwhile == "resize" else other.release(P, "b"))
        return found

    monkeypatch.setattr(ledger._providers, "find_one", meddle)
    results = await asyncio.gather(*[ledger.release(P, key) for key in "ab"], ledger.resize(P, "c", {"cpu": 7}))
    assert [result.changed for result in results] == [True, meanwhile == "resize", True]
    books = await other.read(P)
    assert (books.drift, books.bookings) == (NOTHING, {"c": {**NOTHING, "cpu": 7}})
    assert books.version == 3 + 1 + sum(result.changed for result in results)


async def test_callers_that_are_cancelled_leave_the_books_whole(ledger: Ledger) -> None:
    """Whether their operation was still waiting or under way: it is there whole, or not at all."""
    for round_ in range(10):
        tasks = [asyncio.create_task(ledger.allocate(P, f"{round_}-{n}", {"cpu": 3, "memory": 5})) for n in range(30)]
        await asyncio.sleep(0)
        for task in tasks[round_::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, LedgerResult | asyncio.CancelledError) for result in results)
        books = await ledger.read(P)
        assert {r.key for r in results if isinstance(r, LedgerResult)} <= set(books.bookings)
        assert (books.drift, books.version) == (NOTHING, len(books.bookings))


# ------------------------------------------------------------------------------------------------- other applications


async def test_the_fields_may_lie_elsewhere(collection: AsyncIOMotorCollection[Document], db: Db) -> None:
    """Other names, nested, other resources."""
    paths = Paths("spec.limits", "books.used", "books.by_database", "books.rev", "state.phase", "books.format")
    other = Ledger(collection, paths=paths, resources=["slots", "gpu-hours"], active=["up"])
    db["providers"].insert_one({"_id": P, **other.blank({"slots": 3, "gpu-hours": 9}), "state": {"phase": "up"}})
    await other.allocate(P, "a", {"slots": 2})
    await other.resize(P, "a", {"slots": 1, "gpu-hours": 9})
    with pytest.raises(InsufficientCapacityError, match="gpu-hours: 1 asked, 0 free"):
        await other.allocate(P, "b", {"gpu-hours": 1})
    assert stored(db)["books"] == {
        "used": {"slots": 1, "gpu-hours": 9},
        "by_database": {"a": {"slots": 1, "gpu-hours": 9}},
        "rev": 2,
        "format": 1,
    }
    arrange(db, **{"state.phase": "down"})
    with pytest.raises(ProviderInactiveError, match=r"its state\.phase is 'down'"):
        await other.allocate(P, "b", {})
    assert (await other.release(P, "a")).allocated == {"slots": 0, "gpu-hours": 0}


async def test_what_else_a_document_holds_is_left_alone(ledger: Ledger, db: Db) -> None:
    """Further fields beside, in the amounts, and in a booking that is resized."""
    before = arrange(db, **{"capacity.note": "x", "allocated.gpu": 0.5, "kubeconfig": "$secret"})
    await ledger.allocate(P, "a", SMALL)
    arrange(db, **{"bookings.a.since": "monday"})
    await ledger.resize(P, "a", LARGE)
    assert stored(db)["bookings"] == {"a": {**LARGE, "since": "monday"}}
    await ledger.release(P, "a")
    assert stored(db) == {**before, "version": 3}


async def test_the_collection_may_come_from_pymongos_own_asynchronous_client(
    ledger: Ledger, database: Database
) -> None:
    """Motor's successor."""
    async with AsyncMongoClient[Document](database.uri) as client:
        other = Ledger(client[database.name]["providers"])
        await asyncio.gather(*[other.allocate(P, n, {"cpu": 1}) for n in range(20)])
        assert (await other.allocate(P, 3, {"cpu": 1})).changed is False
        with pytest.raises(ProviderNotFoundError):
            await other.release("nobody", 1)
        assert (await ledger.read(P)).version == 20


async def test_the_collection_may_come_from_the_store(ledger: Ledger, database: Database) -> None:
    """As the agent itself has it."""
    store = Store(database.uri)
    try:
        other = Ledger(store.collection(Namespace(database.name, "providers")))
        assert (await other.allocate(P, "a", SMALL)).changed
    finally:
        await store.close()
    assert (await ledger.read(P)).version == 1


async def test_reads_and_writes_are_safe_whatever_the_client_is_set_to(
    collection: AsyncIOMotorCollection[Document],
) -> None:
    """A booking that only one member knows is none; a secondary may be behind."""
    settings: Document = {"write_concern": WriteConcern(w=0), "read_preference": ReadPreference.SECONDARY}
    careless = collection.with_options(**settings)
    raw = Collection.wrap(careless)._raw
    assert (raw.write_concern.document, raw.read_preference) == ({"w": "majority"}, ReadPreference.PRIMARY)


# ----------------------------------------------------------------------------------------------------------- adopting


async def test_quantities_are_adopted_exactly_and_once(ledger: Ledger, db: Db) -> None:
    """Text, floats and numbers in a unit become millicores and bytes; the residue of floats goes, real drift stays."""
    oid = str(ObjectId())
    fields: Document = {
        "capacity": {"cpu": "4", "memory": 64, "storage": "1Ti", "note": "kept"},
        "allocated": {"cpu": 0.1 + 0.2, "memory": 10.3, "storage": Decimal128("7")},
        "bookings": {
            oid: {"cpu": "100m", "memory": 4.1, "at": "monday"},
            "a$b": {"cpu": 0.2, "memory": "6.2", "storage": 5},
        },
        "version": 7,
        "ledger_format": ...,
    }
    arrange(db, **fields)
    db["providers"].update_one(
        {"_id": P}, [{"$set": {"bookings": {"$setField": {"field": "c.d", "input": "$bookings", "value": {}}}}}]
    )
    books = await ledger.adopt(P, UNITS)
    assert books.capacity == {"cpu": 4000, "memory": 64 * GIB, "storage": 1024 * GIB}
    memory = 4402341479 + 6657199309  # 4.1 and 6.2 GiB, rounded up to bytes
    assert books.allocated == {"cpu": 300, "memory": memory, "storage": 7 * GIB}
    assert books.drift == {"cpu": 0, "memory": 0, "storage": 2 * GIB}
    assert set(books.bookings) == {ObjectId(oid), "a$b", "c.d"}
    assert books.version == 8
    assert stored(db)["capacity"]["note"] == "kept"
    assert stored(db)["bookings"][oid]["at"] == "monday"
    for path in ("capacity.cpu", "allocated.memory", f"bookings.{oid}.storage", "version"):
        assert db["providers"].count_documents({path: {"$type": "long"}}) == 1, path
    with unchanged(db):
        assert await ledger.adopt(P, UNITS) == books
    assert (await ledger.release(P, "a$b")).changed


async def test_a_provider_without_books_is_adopted_as_one_of_which_nothing_is_booked(ledger: Ledger, db: Db) -> None:
    """Only the capacity cannot be guessed."""
    arrange(
        db, capacity={"cpu": 2, "memory": 4, "storage": 8}, allocated=..., bookings=..., version=..., ledger_format=...
    )
    books = await ledger.adopt(P, UNITS)
    assert (books.allocated, books.bookings, books.version) == (NOTHING, {}, 1)
    arrange(db, **{"capacity.cpu": ..., "ledger_format": ...})
    with unchanged(db), pytest.raises(MalformedProviderError, match=r"capacity\.cpu is missing"):
        await ledger.adopt(P, UNITS)


async def test_what_is_missing_of_the_allocated_amounts_is_the_sum_of_the_bookings(ledger: Ledger, db: Db) -> None:
    """The bookings are what was promised."""
    booked = {"a": {"cpu": 1, "memory": 1}, "b": {"cpu": "500m"}}
    arrange(
        db, capacity={"cpu": 2, "memory": 4, "storage": 8}, allocated={"memory": 1}, bookings=booked, ledger_format=...
    )
    books = await ledger.adopt(P, UNITS)
    assert (books.allocated, books.drift) == ({"cpu": 1500, "memory": GIB, "storage": 0}, NOTHING)


@pytest.mark.parametrize(
    "fields, path, what",
    [
        ({"capacity.cpu": "four"}, "capacity.cpu", "is no quantity: 'four' is no quantity"),
        ({"capacity.cpu": -1}, "capacity.cpu", "is -1000, less than 0"),
        ({"capacity.cpu": Decimal128("NaN")}, "capacity.cpu", "is no quantity: NaN"),
        ({"capacity.memory": 2**40}, "capacity.memory", "is no quantity: 1099511627776 is too large"),
        ({"allocated": 7}, "allocated", "is 7, not an object"),
        ({"bookings": []}, "bookings", "is a value of type list, not an object"),
        ({"bookings.a": "1"}, "bookings.a", "is '1', not an object"),
        ({"bookings.a": {"memory": "1GiB"}}, "bookings.a.memory", "is no quantity: '1GiB' has an unknown suffix"),
        ({"version": "7"}, "version", "is '7', not an integer"),
    ],
    ids=repr,
)
async def test_what_cannot_be_adopted_is_named_and_left_as_it_is(
    ledger: Ledger, db: Db, fields: Document, path: str, what: str
) -> None:
    """All of a provider, or nothing of it."""
    arrange(db, ledger_format=..., **fields)
    with unchanged(db), pytest.raises(MalformedProviderError, match=f"{re.escape(path)} {re.escape(what)}") as refusal:
        await ledger.adopt(P, UNITS)
    assert refusal.value.field == path


async def test_adopting_starts_over_when_somebody_changes_the_provider_meanwhile(
    ledger: Ledger, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an old application books between the look and the write is not lost."""
    arrange(db, ledger_format=..., capacity={"cpu": 4, "memory": 8, "storage": 8})
    find_one = ledger._providers.find_one
    meddling = iter(["a", "b"])

    async def meddle(*arguments: Any, **options: Any) -> Document | None:
        found = await find_one(*arguments, **options)
        if key := next(meddling, None):
            db["providers"].update_one(
                {"_id": P}, {"$inc": {"allocated.cpu": 1}, "$set": {f"bookings.{key}": {"cpu": 1}}}
            )
        return found

    monkeypatch.setattr(ledger._providers, "find_one", meddle)
    books = await ledger.adopt(P, UNITS)
    assert books.bookings == {key: {**NOTHING, "cpu": 1000} for key in "ab"}
    assert (books.allocated["cpu"], books.drift, books.version) == (2000, NOTHING, 1)


# ------------------------------------------------------------------------------------------------------ documentation


async def test_the_example_of_the_documentation_runs(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it prints, and prints what it says."""
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text()
    program, printed = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)[:2]
    names: Document = {}
    exec(compile(program, "docs/ledger.md", "exec"), names)  # noqa: S102 - our own documentation
    await names["main"](database.uri, database.name)
    assert capsys.readouterr().out == printed


def test_every_refusal_can_be_caught_as_one() -> None:
    """An application that does not care why catches LedgerError; what it said wrong is a UsageError."""
    refusals = [BookingExistsError, BookingNotFoundError, InsufficientCapacityError, MalformedProviderError]
    refusals += [ProviderInactiveError, ProviderNotFoundError, VersionConflictError]
    assert all(issubclass(refusal, LedgerError) for refusal in refusals)
    assert issubclass(ProviderNotFoundError, UsageError)
