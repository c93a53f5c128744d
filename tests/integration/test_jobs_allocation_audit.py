"""The audit of allocations on a real server: it finds exactly what was seeded, and repairs it while others book.

``HYPOTHESIS_EXAMPLES`` says how many worlds each property is tried on.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bson import Decimal128, Int64, ObjectId
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from motor.motor_asyncio import AsyncIOMotorClient

from agent.archive import Restorer
from agent.ledger import Ledger, encode_key
from agent.quantity import Amounts
from agent.store import Collection, Write
from tests import faulty, servers
from tests.conftest import Database
from tests.faulty import Certificates, Handler
from tests.harness import MINUTE, Bench, Db, Document, meddled, opened

WORLDS = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "15")),
    deadline=None,
    derandomize="HYPOTHESIS_EXAMPLES" not in os.environ,  # the same worlds every time, unless asked for more
    phases=(Phase.explicit, Phase.generate),  # a world is small as it is, and each costs two runs
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GIB = 2**30
RESOURCES = ("cpu", "memory", "storage")
SMALL = {"cpu": 250, "memory": GIB, "storage": 5 * GIB}
LARGE = {"cpu": 2000, "memory": 8 * GIB, "storage": 100 * GIB}
AMPLE = {name: 1000 * amount for name, amount in LARGE.items()}
NOTHING = dict.fromkeys(RESOURCES, 0)
# What somebody may have called a provider or a database, to see what it does.
HOSTILE = (
    "a.b",
    "$where",
    "..",
    "../../etc/passwd",
    'x"; db.dropDatabase() //',
    "'{}[]",
    "100%\u2028",
    " ",
    "{$ne: 1}",
)


def total(amounts: Sequence[Mapping[str, int]] | Iterator[Mapping[str, int]]) -> dict[str, int]:
    summed = Counter(NOTHING)
    for some in amounts:
        summed.update(some)
    return {name: summed[name] for name in RESOURCES}


def provider(id: Any, bookings: Mapping[str, Document] | None = None, **more: Any) -> Document:
    """A provider whose books agree with themselves."""
    booked = dict(bookings or {})
    allocated = total(iter(booked.values()))
    return {"_id": id, "capacity": AMPLE, "allocated": allocated, "bookings": booked, "version": 7, **more}


def database_of(provider_id: Any, id: Any, size: Mapping[str, Any] = SMALL, status: str = "active") -> Document:
    return {"_id": id, "provider_id": provider_id, "status": status, "resources": dict(size)}


def audit(**settings: Any) -> dict[str, Any]:
    """The audit as a job that may repair all there is, at the second reading."""
    return {"kind": "allocation_audit", "repair": True, "limit": {"fraction": 1.0}, **settings}


def agrees(db: Db, id: Any) -> bool:
    """Whether a provider's books say what its databases add up to, in all and one by one."""
    found = db["providers"].find_one({"_id": id})
    owed = {encode_key(one["_id"]): one["resources"] for one in db["databases"].find({"provider_id": id})}
    return found is not None and found["bookings"] == owed and found["allocated"] == total(iter(owed.values()))


# ----------------------------------------------------------------------------------------------- exactly what is seeded


@dataclass(frozen=True)
class Seed:
    """A database, and what is wrong with its booking: ``missing``, of another ``size``; or itself is ``malformed``."""

    status: str
    large: bool
    fault: str | None

    @property
    def size(self) -> dict[str, int]:
        return LARGE if self.large else SMALL


@dataclass(frozen=True)
class Place:
    """A provider: its databases, bookings for none, what is allocated beside its bookings, whether there is enough."""

    seeds: tuple[Seed, ...]
    surplus: int
    skew: int
    scarce: bool


@dataclass(frozen=True)
class World:
    """What is there, and what the audit has to say of it: id, what, what would be done, in which words."""

    providers: list[Document]
    databases: list[Document]
    expected: list[tuple[Any, str, str | None, str]]


OWED, RELEASED = ("active", "stopped"), ("deleted", "failed")
SEEDS = st.builds(
    Seed,
    st.sampled_from([*OWED, *OWED, *OWED, *RELEASED, "creating", "unheard of"]),
    st.booleans(),
    st.sampled_from([None, None, None, None, "missing", "size", "malformed"]),
)
PLACES = st.lists(
    st.builds(
        Place,
        st.lists(SEEDS, max_size=5).map(tuple),
        st.sampled_from([0, 0, 0, 1, 2]),
        st.sampled_from([0, 0, 0, 1, -1]),
        st.sampled_from([False, False, True]),
    ),
    min_size=1,
    max_size=6,
)
LOST = st.lists(st.sampled_from([*OWED, *RELEASED, "creating"]), max_size=3)


def id_of(number: int, within: object = "") -> Any:
    """Ids of all sorts, hostile ones too."""
    kinds: list[Any] = [f"{within}/{HOSTILE[number % len(HOSTILE)]}{number}", number, ObjectId(f"{number:024x}")]
    return kinds[number % len(kinds)]


def world_of(places: Sequence[Place], lost: Sequence[str]) -> World:
    """The documents of a world; what is expected is written down where it is seeded."""
    world = World([], [], [])
    for number, place in enumerate(places):
        _seed(world, id_of(number), place, first=100 * number)
    for number, status in enumerate(lost, 10_000):
        world.databases.append(database_of("gone", number, status=status))
        if status not in RELEASED:
            world.expected.append((number, "orphan", None, "its provider gone does not exist"))
    return world


@dataclass
class Sums:
    """What a provider's databases add up to, and how its bookings come to differ."""

    owed: dict[str, dict[str, int]] = field(default_factory=dict)
    bookings: dict[str, dict[str, int]] = field(default_factory=dict)
    unbooked: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    judged: bool = True


def _seed(world: World, id: Any, place: Place, first: int) -> None:
    sums = Sums()
    for number, seed in enumerate(place.seeds, first):
        _seed_database(world, id, seed, number, sums)
    surplus = [encode_key(f"ghost {number}") for number in range(place.surplus)]
    document = provider(id, {**sums.bookings, **dict.fromkeys(surplus, SMALL)})
    document["allocated"]["cpu"] += place.skew
    booked, due = document["allocated"], total(iter(sums.owed.values()))
    if place.scarce:
        document["capacity"] = {**AMPLE, "memory": GIB}
        if max(booked["memory"], due["memory"]) > GIB:
            world.expected.append((id, "overcommitted", None, ""))
    world.providers.append(document)
    said = [f"{name} booked {booked[name]}, owed {due[name]}" for name in RESOURCES if booked[name] != due[name]]
    for what, names in (
        ("bookings without a database", surplus),
        ("databases without a booking", sums.unbooked),
        ("bookings of another size", sums.other),
    ):
        said += [f"{len(names)} {what}: {', '.join(sorted(names))}"] if names else []
    if said and sums.judged:
        world.expected.append((id, "drift", "repaired", "; ".join(said)))


def _seed_database(world: World, provider_id: Any, seed: Seed, number: int, sums: Sums) -> None:
    one = database_of(provider_id, id_of(number, provider_id), seed.size, seed.status)
    world.databases.append(one)
    if seed.status in RELEASED:
        return
    name = encode_key(one["_id"])
    if seed.status in OWED and seed.fault == "malformed":
        one["resources"] = {**seed.size, "memory": "lots"}
        world.expected.append((one["_id"], "malformed", None, ""))
        sums.judged = False
        return
    if seed.status not in OWED:
        sums.judged = False
    else:
        sums.owed[name] = seed.size
    if seed.fault == "missing":
        sums.unbooked.append(name)
        return
    sums.bookings[name] = seed.size
    if seed.fault == "size":
        sums.other.append(name)
        sums.bookings[name] = SMALL if seed.large else LARGE


@pytest.fixture
async def bench(database: Database, db: Db) -> AsyncIterator[Bench]:
    """An agent with an audit that only reports, and one that repairs at once."""
    jobs = {"look": audit(repair=False), "repair": audit(confirm="0s")}
    async with opened(database, db, jobs) as opened_bench:
        yield opened_bench


def arrange(bench: Bench, world: World) -> None:
    for name in ("providers", "databases"):
        bench.db[name].delete_many({})
        if documents := getattr(world, name):
            bench.db[name].insert_many(documents)
    for name in ("controls", "marks"):  # each world is a first one: the proofs compare with no other
        bench.own(name).delete_many({})


def sorted_(things: Any) -> list[Any]:
    return sorted(things, key=repr)


@servers.both_topologies
@WORLDS
@given(places=PLACES, lost=LOST)
async def test_the_audit_reports_exactly_what_was_seeded(bench: Bench, places: list[Place], lost: list[str]) -> None:
    """Each kind of drift, with the bookings that differ; nothing of what is right or on its way. It changes nothing."""
    world = world_of(places, lost)
    arrange(bench, world)
    before = bench.picture()
    found = [
        (item.id, item.what, item.action, item.reason if item.what in {"drift", "orphan"} else "")
        for item in await bench.items("look")
    ]
    assert sorted_(found) == sorted_(world.expected)
    if world.databases:
        ran = await bench.run("look")
        assert (ran["outcome"], ran["population"], ran["changed"]) == ("succeeded", len(places), {})
        assert ran["found"] == Counter(what for _, what, _, _ in world.expected)
    assert bench.picture() == before


@servers.both_topologies
@WORLDS
@given(places=PLACES, lost=LOST)
async def test_a_repair_sets_what_is_owed_and_touches_nothing_else(
    bench: Bench, db: Db, places: list[Place], lost: list[str]
) -> None:
    """Books equal what is owed, versions grow by one; a second run has nothing to do, a restore gives it all back."""
    world = world_of(places, lost)
    if not world.databases:
        return
    arrange(bench, world)
    drifted = [id for id, what, _, _ in world.expected if what == "drift"]
    ran = await bench.run("repair")
    assert (ran["outcome"], ran["failed"], ran["changed"].get("repaired", 0)) == ("succeeded", 0, len(drifted))
    for before in world.providers:
        after = db["providers"].find_one({"_id": before["_id"]})
        assert after is not None
        if before["_id"] in drifted:
            db["databases"].delete_many({"provider_id": before["_id"], "status": {"$in": RELEASED}})
            assert agrees(db, before["_id"])
            assert after == {
                **before, "allocated": after["allocated"], "bookings": after["bookings"], "version": 8
            }  # fmt: skip
        else:
            assert after == before
    again = await bench.run("repair")
    found = {what: count for what, count in again["found"].items() if what != "overcommitted"}  # mended with the books
    assert found == Counter(what for _, what, _, _ in world.expected if what in {"orphan", "malformed"})
    if drifted:
        assert (await bench.restore(ran["_id"]))["changed"] == {"restored": len(drifted)}
        for before in world.providers:
            version = 9 if before["_id"] in drifted else 7
            assert db["providers"].find_one({"_id": before["_id"]}) == {**before, "version": version}


def test_the_model_says_what_a_person_would() -> None:
    """One world that can be checked by hand."""
    place = Place((Seed("active", large=False, fault="missing"), Seed("stopped", large=False, fault=None)), 1, 1, True)
    world = world_of([place], ["active", "deleted"])
    (it,) = world.providers
    assert it["allocated"] == {"cpu": 501, "memory": 2 * GIB, "storage": 10 * GIB}
    assert [(what, action) for _, what, action, _ in world.expected] == [
        ("overcommitted", None), ("drift", "repaired"), ("orphan", None)
    ]  # fmt: skip
    assert world.expected[1][3] == (
        "cpu booked 501, owed 500; 1 bookings without a database: ghost 0; "
        f"1 databases without a booking: {encode_key(id_of(0, id_of(0)))}"
    )


# ------------------------------------------------------------------------------------------------- what documents hold


async def test_databases_that_share_the_name_of_a_booking_are_malformed(bench: Bench, db: Db) -> None:
    """An ObjectId and its text are one key: one booking cannot serve two databases, and no repair makes it so."""
    id = ObjectId("64b7f0c2a1d2e3f405162738")
    db["providers"].insert_one(provider("p", {str(id): SMALL}))
    db["databases"].insert_many([database_of("p", id), database_of("p", str(id)), database_of("p", 1.5)])
    (shared, unfit) = sorted_(await bench.items("repair"))
    assert {shared.what, unfit.what} == {"malformed"}
    assert {type(shared.id), type(unfit.id)} <= {ObjectId, str, float}
    assert {"the same booking" in one.reason for one in (shared, unfit)} == {True, False}


async def test_decimals_are_amounts_as_other_numbers_are(database: Database, db: Db) -> None:
    """A Decimal128 is read exactly and written back as one; what is no number at all is named with its field."""
    odd = {"cpu": Decimal128("0.5"), "memory": Decimal128("1.5"), "storage": 2}
    one = {**provider("p"), "bookings": {"d": odd}}
    one["capacity"] = {"cpu": Decimal128("4"), "memory": Decimal128("1E+2"), "storage": 100}
    one["allocated"] = {"cpu": Decimal128("0.75"), "memory": Decimal128("1.50"), "storage": 2}
    bad = {**provider("q"), "capacity": {"cpu": Decimal128("NaN")}}
    db["providers"].insert_many([one, bad])
    db["databases"].insert_one(database_of("p", "d", {"cpu": 0.5, "memory": "1536Mi", "storage": Decimal128("2.0")}))
    units = {"cpu": "cores", "memory": "GiB", "storage": "GiB"}
    job = audit(confirm="0s", providers={"units": units}, databases={"units": units})
    async with opened(database, db, {"job": job}) as bench:
        found = {item.id: (item.what, item.reason) for item in await bench.items("job")}
        assert found["p"] == ("drift", "cpu booked 750, owed 500")
        assert found["q"][0] == "malformed"
        assert found["q"][1].startswith("capacity: ")
        assert "NaN" in found["q"][1]
        assert (await bench.run("job"))["changed"] == {"repaired": 1}
    after = db["providers"].find_one({"_id": "p"})
    assert after is not None
    right = {"cpu": Decimal128("0.500"), "memory": Decimal128("1.5"), "storage": Int64(2)}
    assert (after["allocated"], after["bookings"]) == (right, {"d": right})


# -------------------------------------------------------------------------------------------------------- two readings


@pytest.fixture
async def patient(database: Database, db: Db) -> AsyncIterator[Bench]:
    """An agent whose audit repairs what two readings, ten minutes apart, agree on; one provider has drifted."""
    db["providers"].insert_many([provider("p", {"ghost": SMALL}), provider("fine", {"d2": LARGE})])
    db["databases"].insert_many([database_of("p", "d1"), database_of("fine", "d2", LARGE)])
    async with opened(database, db, {"job": audit()}) as opened_bench:
        yield opened_bench


Told = tuple[dict[str, int], dict[str, int], dict[str, int]]


async def reads(bench: Bench) -> Told:
    ran = await bench.run("job")
    assert (ran["outcome"], ran["failed"]) == ("succeeded", 0)
    return ran["found"], ran["held"], ran["changed"]


SIGHTED: Told = ({"drift": 1}, {"quarantine": 1}, {})
REPAIRED: Told = ({"drift": 1}, {}, {"repaired": 1})


@servers.both_topologies
async def test_drift_is_two_readings_that_lie_apart(patient: Bench, db: Db) -> None:
    """The first only sights it, and so does one that comes too soon."""
    before = patient.picture()
    assert await reads(patient) == SIGHTED
    patient.age_sightings(9 * MINUTE)
    assert await reads(patient) == SIGHTED
    assert patient.picture() == before
    patient.age_sightings(2 * MINUTE)
    assert await reads(patient) == REPAIRED
    assert agrees(db, "p")
    assert await reads(patient) == ({}, {}, {})


@pytest.mark.parametrize("what", ["version", "owed", "gone and back"])
async def test_readings_that_do_not_agree_are_two_first_ones(patient: Bench, db: Db, what: str) -> None:
    """On the version, on what is owed; and between them it must not have been away."""
    assert await reads(patient) == SIGHTED
    patient.age_sightings(11 * MINUTE)
    if what == "version":
        db["providers"].update_one({"_id": "p"}, {"$inc": {"version": 1}})
    elif what == "owed":
        db["databases"].update_one({"_id": "d1"}, {"$set": {"resources.cpu": 251}})
    else:
        db["databases"].update_one({"_id": "d1"}, {"$set": {"status": "updating"}})
        assert await reads(patient) == ({}, {}, {})
        db["databases"].update_one({"_id": "d1"}, {"$set": {"status": "active"}})
    assert await reads(patient) == SIGHTED
    patient.age_sightings(9 * MINUTE)
    assert await reads(patient) == SIGHTED
    patient.age_sightings(2 * MINUTE)
    assert await reads(patient) == REPAIRED
    assert agrees(db, "p")


async def test_without_repair_both_readings_only_report(database: Database, db: Db) -> None:
    """However often."""
    db["providers"].insert_one(provider("p", {"ghost": SMALL}))
    db["databases"].insert_one(database_of("p", "d1"))
    before = servers_picture(db)
    async with opened(database, db, {"job": audit(repair=False)}) as bench:
        for _ in range(3):
            ran = await bench.run("job")
            assert (ran["outcome"], ran["found"], ran["changed"]) == ("succeeded", {"drift": 1}, {})
            bench.age_sightings(11 * MINUTE)
    assert servers_picture(db) == before


def servers_picture(db: Db) -> list[Document]:
    return [*db["providers"].find(), *db["databases"].find()]


# -------------------------------------------------------------------------------------- between the look and the write


@servers.both_topologies
@pytest.mark.parametrize("moment", ["before_still", "after_still", "after_select"])
@pytest.mark.parametrize("what", ["booked", "owed"])
async def test_what_changes_before_the_write_is_left_to_the_next_run(
    database: Database, patient: Bench, db: Db, moment: str, what: str
) -> None:
    """An allocator books in between (the version says so), or a database is on its way: nothing is lost or invented."""
    if (what, moment) == ("owed", "after_still"):
        pytest.skip("the platform books after it has written its document, so the version tells")
    assert await reads(patient) == SIGHTED
    patient.age_sightings(11 * MINUTE)
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(database.uri)
    happened: list[str] = []

    async def books(*_: object) -> None:
        if happened:
            return
        happened.append(moment)
        status = "creating" if what == "owed" else "active"
        db["databases"].insert_one(database_of("p", "d3", SMALL, status))
        if what == "booked":
            await Ledger(client[database.name]["providers"]).allocate("p", "d3", SMALL)

    patient.use(meddled(patient.jobs["job"], **{moment: books}))
    found, _, changed = await reads(patient)
    assert (found, changed, happened) == ({"drift": 1}, {}, [moment])
    after = db["providers"].find_one({"_id": "p"})
    assert after is not None
    assert set(after["bookings"]) == ({"ghost", "d3"} if what == "booked" else {"ghost"})
    db["databases"].update_one({"_id": "d3"}, {"$set": {"status": "active"}})
    await reads(patient)
    patient.age_sightings(11 * MINUTE)
    assert await reads(patient) == REPAIRED
    assert agrees(db, "p")
    client.close()


@servers.both_topologies
async def test_a_repair_counts_whatever_is_booked_right_after_it(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One provider of a batch conflicts; another is booked on before anybody looks what became of the batch."""
    db["providers"].insert_many([provider(name, {"ghost": SMALL}) for name in ("p", "q")])
    db["databases"].insert_many([database_of(name, f"d-{name}", status="deleted") for name in ("p", "q")])
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(database.uri)
    settle = Restorer.settle

    async def booked_first(self: Restorer, entries: Sequence[Document], **options: bool) -> list[Document]:
        await Ledger(client[database.name]["providers"]).allocate("p", "d", SMALL)
        return await settle(self, entries, **options)

    write = Collection.write
    written: list[Sequence[Write]] = []

    async def conflicts(self: Collection, writes: Sequence[Write], **options: Any) -> int:
        if not written:
            db["providers"].update_one({"_id": "q"}, {"$inc": {"version": 1}})
        written.append(writes)
        return await write(self, writes, **options)

    monkeypatch.setattr(Collection, "write", conflicts)
    monkeypatch.setattr(Restorer, "settle", booked_first)
    async with opened(database, db, {"job": audit(confirm="0s")}) as bench:
        ran = await bench.run("job")
        assert (ran["outcome"], ran["failed"], ran["changed"]) == ("succeeded", 0, {"repaired": 1})
        assert [(entry["id"], entry["state"]) for entry in bench.entries(ran["_id"])] == [("p", "done")]
    client.close()


@servers.both_topologies
async def test_a_restore_conflicts_with_what_was_booked_since(database: Database, patient: Bench, db: Db) -> None:
    """What the agent left is not there any more; the booking stays. Versions never go back."""
    await reads(patient)
    patient.age_sightings(11 * MINUTE)
    ran = await patient.run("job")
    assert ran["changed"] == {"repaired": 1}
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(database.uri)
    db["databases"].insert_one(database_of("p", "d3"))
    await Ledger(client[database.name]["providers"]).allocate("p", "d3", SMALL)
    client.close()
    restored = await patient.restore(ran["_id"])
    assert (restored["changed"], restored["failed"]) == ({}, 1)
    assert agrees(db, "p")
    after = db["providers"].find_one({"_id": "p"})
    assert after is not None
    assert after["version"] == 9


async def test_what_was_restored_is_held(patient: Bench, db: Db) -> None:
    """Or the next runs would take it again; released, it is repaired."""
    await reads(patient)
    patient.age_sightings(11 * MINUTE)
    ran = await patient.run("job")
    await patient.restore(ran["_id"])
    await reads(patient)
    patient.age_sightings(11 * MINUTE)
    assert await reads(patient) == ({"drift": 1}, {"hold": 1}, {})
    await patient.agent.operations.release(None, "providers", "p", requested_by="ann")
    assert await reads(patient) == REPAIRED
    assert agrees(db, "p")


# -------------------------------------------------------------------------------------------------------------- guards


@servers.both_topologies
async def test_more_drift_than_is_likely_is_refused_and_can_be_consented_to(database: Database, db: Db) -> None:
    """Six of eight providers are more than half of them, and more than five."""
    db["providers"].insert_many([provider(n, {"ghost": SMALL} if n < 6 else {f"%n:{n}": SMALL}) for n in range(8)])
    db["databases"].insert_many([database_of(n, n) for n in range(8)])
    async with opened(database, db, {"job": {"kind": "allocation_audit", "repair": True, "confirm": "0s"}}) as bench:
        before = bench.picture()
        dry = await bench.dry("job")
        assert (dry["outcome"], dry["would_refuse"], dry["found"]) == ("succeeded", "cap", {"drift": 6})
        ran = await bench.run("job")
        assert (ran["outcome"], ran["changed"]) == ("refused", {})
        assert bench.picture() == before
        ran = await bench.run("job", accept=["cap"])
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"repaired": 6})
    assert all(agrees(db, n) for n in range(8))


@servers.both_topologies
async def test_databases_that_are_not_there_are_no_proof_that_nothing_is_owed(database: Database, db: Db) -> None:
    """A wrong database name, an empty collection, a collection that lost more than half: refused, nothing changed."""
    db["providers"].insert_many([provider(n, {f"%n:{n}": SMALL}) for n in range(4)])
    async with opened(database, db, {"job": audit(confirm="0s")}) as bench:
        before = bench.picture()
        empty = await bench.run("job")
        assert (empty["outcome"], empty["found"]) == ("refused", {})
        assert bench.picture()["providers"] == before["providers"]
        db["databases"].insert_many([database_of(n, n) for n in range(4)])
        assert (await bench.run("job"))["outcome"] == "succeeded"
        db["databases"].delete_many({"_id": {"$gt": 0}})
        dropped = await bench.run("job")
        assert (dropped["outcome"], dropped["found"], dropped["changed"]) == ("refused", {}, {})
        assert bench.picture()["providers"] == before["providers"]
        accepted = await bench.run("job", accept=["targets"])
        assert (accepted["outcome"], accepted["changed"]) == ("succeeded", {"repaired": 3})


# ------------------------------------------------------------------------------------------- while allocators run

CALLERS = 2
PROVIDERS = 8
BURST = 10  # calls for one provider before the next is chosen: so some are quiet for as long as two readings take
DONE_WITHIN = 240.0  # seconds; some tens on a machine with two cores


class Platform:
    """A process of an application that keeps the contract: it marks its document, books, and then says that it is done.

    What it has booked and not given back must be booked: a release that finds nothing, or a resize, would say so.
    """

    def __init__(self, uri: str, name: str, caller: str) -> None:
        self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(uri)
        self._db = self._client[name]
        self._ledger = Ledger(self._db["providers"])
        self._rng = random.Random(caller)
        self._caller = caller
        self._mine: dict[str, Any] = {}
        self._made = 0
        self.calls = 0

    async def work(self) -> int:
        """Works until it is told to stop; returns how many calls that were."""
        while await self._db["told"].find_one({"_id": "stop"}) is None:
            provider_id = self._rng.randrange(PROVIDERS)
            for _ in range(BURST):
                await self._one(provider_id)
            await self._db["told"].update_one({"_id": self._caller}, {"$set": {"calls": self.calls}}, upsert=True)
        self._client.close()
        return self.calls

    async def _one(self, provider_id: int) -> None:
        mine = [id for id, home in self._mine.items() if home == provider_id]
        self.calls += 1
        if len(mine) < 2 or self._rng.random() < 0.4:
            await self._create(provider_id)
        elif self._rng.random() < 0.5:
            await self._resize(provider_id, self._rng.choice(mine))
        else:
            await self._remove(provider_id, self._rng.choice(mine))

    async def _create(self, provider_id: int) -> None:
        self._made += 1
        id = f"{self._caller}-{self._made}"
        await self._db["databases"].insert_one(database_of(provider_id, id, SMALL, "creating"))
        assert (await self._ledger.allocate(provider_id, id, SMALL)).changed
        await self._db["databases"].update_one({"_id": id}, {"$set": {"status": "active"}})
        self._mine[id] = provider_id

    async def _resize(self, provider_id: int, id: str) -> None:
        size = {**SMALL, "cpu": self._rng.randrange(1, 1000)}
        await self._db["databases"].update_one({"_id": id}, {"$set": {"status": "resizing"}})
        await self._ledger.resize(provider_id, id, size)
        await self._db["databases"].update_one({"_id": id}, {"$set": {"status": "active", "resources": size}})

    async def _remove(self, provider_id: int, id: str) -> None:
        del self._mine[id]
        await self._db["databases"].update_one({"_id": id}, {"$set": {"status": "deleting"}})
        assert (await self._ledger.release(provider_id, id)).changed
        await self._db["databases"].delete_one({"_id": id})


def allocators(uri: str, name: str, caller: int) -> int:
    """One process of the application."""

    async def work() -> int:
        return await Platform(uri, name, str(caller)).work()  # made here, since a client belongs to a running loop

    return asyncio.run(work())


@servers.both_topologies
async def test_repairs_while_allocators_run_lose_and_invent_no_booking(database: Database, db: Db) -> None:
    """Every drift that was seeded is mended under load, and every booking that an application made is still there."""
    for number in range(PROVIDERS):
        drifted = provider(number, {"ghost": SMALL, f"kept{number}": SMALL, f"size{number}": LARGE})
        drifted["allocated"]["cpu"] += 100
        db["providers"].insert_one(drifted)
        ids = (f"kept{number}", f"size{number}", f"unbooked{number}")
        db["databases"].insert_many([database_of(number, id) for id in ids])
    spawn = multiprocessing.get_context("spawn")
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(CALLERS, mp_context=spawn) as processes:
        running = [
            loop.run_in_executor(processes, allocators, database.uri, database.name, caller)
            for caller in range(CALLERS)
        ]
        try:
            async with opened(database, db, {"job": audit(limit={"fraction": 1.0, "floor": 100})}) as bench:
                repaired = await mended(bench, db, running)
        finally:
            db["told"].insert_one({"_id": "stop"})
        calls = sum(await asyncio.gather(*running))
    assert repaired >= PROVIDERS
    assert calls > 0
    assert [number for number in range(PROVIDERS) if not agrees(db, number)] == []
    assert db["databases"].count_documents({"status": {"$ne": "active"}}) == 0
    print(f"\n{database.topology}: {repaired} repairs beside {calls} calls of {CALLERS} processes")  # noqa: T201 - a figure


async def mended(bench: Bench, db: Db, running: Sequence[asyncio.Future[int]]) -> int:
    """Audits twice and again until no seeded drift is left; returns the number of repairs."""
    repaired, deadline = 0, time.monotonic() + DONE_WITHIN
    while db["told"].count_documents({}) < CALLERS:  # until all of them are at work
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    while db["providers"].count_documents({"bookings.ghost": {"$exists": True}}):
        assert time.monotonic() < deadline
        assert not any(one.done() for one in running)
        for _ in range(2):
            ran = await bench.run("job")
            assert (ran["outcome"], ran["failed"]) == ("succeeded", 0)
            repaired += ran["changed"].get("repaired", 0)
            bench.age_sightings(11 * MINUTE)
    return repaired


# ------------------------------------------------------------------------------------------------------------ clusters


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What TLS needs: a kubeconfig in a document is taken with https alone."""
    return faulty.certificates(tmp_path_factory.mktemp("certificates"))


def kubeconfig(certificates: Certificates, url: str, token: str = "token") -> str:  # noqa: S107 - a secret of the tests
    """A kubeconfig as a field of a provider holds it."""
    cluster = {"certificate-authority-data": certificates.data("ca.crt")}
    return json.dumps(faulty.kubeconfig(url, {"token": token}, cluster))


def pod(cpu: str) -> Document:
    requests = {"cpu": cpu, "memory": "1Gi"}
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"resources": {"requests": requests}}]}}


def claim(storage: str) -> Document:
    return {"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": storage}}}}


def cluster(cpu: str = "250m") -> Handler:
    """A cluster with one pod and one claim."""

    async def lists(request: web.BaseRequest) -> web.StreamResponse:
        listed = pod(cpu) if request.path.endswith("/pods") else claim("5Gi")
        return web.json_response({"kind": "List", "metadata": {}, "items": [listed]})

    return faulty.healthy(lists)


async def pictures(bench: Bench) -> dict[str, Document]:
    return {one["provider"]: one for one in await bench.agent.keep.controls.pictures(["job"])}


async def test_a_cluster_that_cannot_be_read_is_reported_and_disturbs_no_other(
    database: Database, db: Db, certificates: Certificates
) -> None:
    """Hanging, refusing, forbidding, babbling, without a usable kubeconfig: each says why; the others are read."""
    tls = certificates.for_server()
    handlers = {
        "right": cluster(),
        "differs": cluster("300m"),
        "hangs": faulty.healthy(faulty.hanging),
        "forbids": faulty.healthy(faulty.answering(403)),
        "babbles": faulty.healthy(faulty.saying(b"{}")),
        "unknown": faulty.healthy(faulty.answering(401)),
    }
    async with AsyncExitStack() as stack:
        configs: dict[str, Any] = {}
        for name, handler in handlers.items():
            server = await stack.enter_async_context(faulty.serving(handler, tls))
            configs[name] = kubeconfig(certificates, server.url)
        configs["refuses"] = kubeconfig(
            certificates, stack.enter_context(faulty.refusing()).url.replace("http:", "https:")
        )
        configs["plain"] = kubeconfig(certificates, "http://127.0.0.1:1")
        configs["runs"] = json.dumps(faulty.kubeconfig("https://127.0.0.1:1", {"exec": {"command": "sh"}}))
        configs["none"] = None
        configs["number"] = 7
        for name, config in configs.items():
            db["providers"].insert_one(provider(name, {f"d-{name}": SMALL}, name=name, kubeconfig=config))
            db["databases"].insert_one(database_of(name, f"d-{name}"))
        job = audit(repair=False, cluster={"timeout": "2s", "concurrency": 20})
        async with opened(database, db, {"job": job}) as bench:
            ran = await bench.run("job")
            shown = await pictures(bench)
    assert (ran["outcome"], ran["found"]) == ("succeeded", {"unreadable": 9, "drift": 1})
    said = {one["id"]: one["reason"] for one in ran["sample"]}
    assert said.pop("differs") == "its cluster differs: cpu used 300, booked 250"
    assert {name for name, one in shown.items() if not one["up"]} == set(configs) - {"right", "differs"} == set(said)
    for name, words in {
        "hangs": "no answer within 2 s",
        "forbids": "does not allow to list pods",
        "babbles": "no list of pods",
        "plain": "https://",
        "runs": "exec",
        "none": "neither text nor a mapping",
        "number": "neither text nor a mapping",
    }.items():
        assert words in said[name], name
    assert shown["right"]["used"] == {"cpu": 250, "memory": GIB, "storage": 5 * GIB}
    assert shown["hangs"]["used"] is None


async def test_two_providers_of_one_name_are_two(database: Database, db: Db, certificates: Certificates) -> None:
    """Each is read with its own credentials, and shown beside the other; who has no name goes by the id."""
    tls = certificates.for_server()
    async with AsyncExitStack() as stack:
        for number, name in enumerate(["same", "same", None]):
            server = await stack.enter_async_context(faulty.serving(cluster(f"{number + 1}"), tls))
            config = kubeconfig(certificates, server.url)
            db["providers"].insert_one(provider(number, name=name, kubeconfig=config))
        db["databases"].insert_one(database_of(0, "d", status="deleted"))
        async with opened(database, db, {"job": audit(repair=False, cluster={})}) as bench:
            for _ in range(2):  # the second time with the clients of the first
                await bench.run("job")
                used = {name: one["used"]["cpu"] for name, one in (await pictures(bench)).items()}
                assert used == {"same (0)": 1000, "same (1)": 2000, "2": 3000}
            assert len(bench.agent.keep.clients) == 3


# ------------------------------------------------------------------------------------------------- data, not strings


@servers.both_topologies
async def test_hostile_names_go_through_as_data(database: Database, db: Db, certificates: Certificates) -> None:
    """As ids and names of providers, ids of databases, keys of bookings, passwords: from finding to restoring."""
    password = "p\"a's$s{}..%/\\"  # noqa: S105 - as above
    asked: list[tuple[str, str | None]] = []

    async def lists(request: web.BaseRequest) -> web.StreamResponse:
        asked.append((request.path_qs, request.headers.get("Authorization")))
        return await cluster()(request)

    async with faulty.serving(faulty.healthy(lists), certificates.for_server()) as server:
        for number, name in enumerate(HOSTILE):
            config = kubeconfig(certificates, server.url, f"{number}{password}")
            right, lost = f"{name}-right", f"{name}-lost"
            books = provider(name, {encode_key(right): SMALL, encode_key(f"{name}-ghost"): SMALL}, name=name)
            db["providers"].insert_one({**books, "kubeconfig": config})
            db["databases"].insert_many([database_of(name, right), database_of(name, lost)])
        db["databases"].insert_many([database_of(f"{name}?", f"orphan {name}") for name in HOSTILE])
        before = {one["_id"]: one for one in db["providers"].find()}
        labels = {"app.kubernetes.io/name": ["a", "b_c.d"]}
        async with opened(database, db, {"job": audit(confirm="0s", cluster={"labels": labels})}) as bench:
            ran = await bench.run("job")
            shown = await pictures(bench)
            after = {one["_id"]: one for one in db["providers"].find()}
            restored = await bench.restore(ran["_id"])
    count = len(HOSTILE)
    assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"repaired": count}, 0)
    assert ran["found"] == {"drift": 2 * count, "orphan": count}  # the ledger's and the cluster's
    assert set(shown) == set(HOSTILE)
    assert all(one["up"] for one in shown.values())
    for name in HOSTILE:
        assert set(after[name]["bookings"]) == {encode_key(f"{name}-right"), encode_key(f"{name}-lost")}
    assert restored["changed"] == {"restored": count}
    assert {one["_id"]: {**one, "version": 7} for one in db["providers"].find()} == before
    selector = "labelSelector=app.kubernetes.io/name+in+(a,b_c.d)&limit=100"
    assert {path for path, _ in asked} == {f"/api/v1/{what}?{selector}" for what in ("pods", "persistentvolumeclaims")}
    assert {given for _, given in asked} == {f"Bearer {number}{password}" for number in range(count)}


async def test_hostile_names_of_files_and_labels_are_refused_by_name(database: Database, db: Db, root: Path) -> None:
    """A provider's name is no way out of the mounted directory, a label no way into a selector."""
    (root / "secret").write_text("{}")
    (root / "mounted").mkdir()
    for name in (*HOSTILE, "../secret", "..data", "/etc/passwd"):
        db["providers"].insert_one(provider(name, name=name))
    db["databases"].insert_one(database_of("a.b", "d", status="deleted"))
    access = {"access": "directory", "directory": str(root / "mounted")}
    async with opened(database, db, {"job": audit(repair=False, cluster=access)}) as bench:
        said = {item.id: item.reason for item in await bench.items("job") if item.what == "unreadable"}
    assert len(said) == len(HOSTILE) + 3
    for name, reason in said.items():
        words = "the file 'a.b' cannot be read" if name == "a.b" else f"{name!r} is no name for a file"
        assert words in reason
    hostile = {"cluster": {"labels": {"app": "a,b in (c)"}}}
    async with opened(database, db, {"job": audit(repair=False, **hostile)}) as bench:
        reasons = {item.reason for item in await bench.items("job") if item.what == "unreadable"}
    expected = "letters, digits, -, _ and dots, at most 63"
    assert reasons == {f"its cluster could not be read: 'a,b in (c)' is no value of a label: expected {expected}"}


# ---------------------------------------------------------------------------------------------- the rules of the cache


async def test_the_jobs_own_times_hold_for_the_cache(database: Database, db: Db) -> None:
    """Longer ones are not cut short by the cache's, shorter ones hold at the next use; a reload exchanges them."""
    jobs = {
        "job": audit(repair=False),
        "long": {"kind": "client_eviction", "ttl": "3d", "max_age": "9d", "refusals": 7, "size": 300},
        "off": {"kind": "client_eviction", "ttl": "1m", "enabled": False},
    }
    async with opened(database, db, jobs) as bench:
        clients = bench.agent.keep.clients
        cache = clients._opened()
        rules = cache._settings.rules
        assert cache._settings.size == 300
        assert (rules.ttl, rules.max_age, rules.refusals) == (timedelta(days=3), timedelta(days=9), 7)
        clients.use(None)
        assert (cache._settings.rules.ttl, cache._settings.size) == (timedelta(hours=1), 100)
    async with opened(database, db, {"job": audit(repair=False)}) as bench:
        assert bench.agent.keep.clients._opened()._settings.rules.max_age == timedelta(hours=24)


def test_amounts_of_this_file_are_what_the_agent_reads() -> None:
    """A quantity in a cluster and a number in a document are the same thing."""
    assert Amounts(SMALL["cpu"], SMALL["memory"], SMALL["storage"]) == Amounts(250, GIB, 5 * GIB)
