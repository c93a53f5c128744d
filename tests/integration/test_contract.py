"""What every kind promises, whatever its rule is. A new kind needs one more class under "worlds", and nothing else here.

A world is a configured job and the data that it works on: some of it to be changed, some of it healthy.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from agent import jobs as package
from agent import runner, store
from agent.cluster import CacheSettings, ClientCache, ProviderCredentials
from agent.demo.mongod import free_port
from agent.errors import StoreUnavailableError
from agent.job import Job
from agent.jobs import KINDS
from tests import servers
from tests.conftest import Database
from tests.harness import DAY, HOUR, Bench, Db, Document, job_of, meddled, opened, picture, server_now

NAMES = tuple(str(kind.model_fields["kind"].default) for kind in KINDS)
SHARED = tuple(str(kind.model_fields["kind"].default) for kind in KINDS if kind.scope == "shared")
COUNT = 6  # documents that each world has to change
W = TypeVar("W", bound="type[World]")

Changes = dict[Any, tuple[str, ...]]


# --------------------------------------------------------------------------------------------------------------- worlds


class World:
    """A job of one kind, and data for it."""

    kind: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    collection: ClassVar[str]
    """The collection that the job changes."""
    action: ClassVar[str]
    what: ClassVar[str]

    def __init__(self, db: Db, root: Path) -> None:
        self.db = db
        self.root = root
        self.now = server_now(db)

    def configuration(self) -> dict[str, Any]:
        """The job's settings; small limits do not matter in a small world."""
        return {"kind": self.kind, "limit": {"fraction": 1}, **self.settings}

    def fill(self) -> set[Any]:
        """Makes the world; returns the ids of what is to be changed."""
        raise NotImplementedError

    def alter(self, id: Any) -> None:
        """Changes one document so that the rule does not hold for it any more."""
        raise NotImplementedError

    def is_changed(self, id: Any) -> bool:
        """Whether the document is as the job leaves it."""
        raise NotImplementedError

    async def enter(self, bench: Bench) -> None:
        """Makes what lives in the process."""

    def everything(self) -> Any:
        """All that a dry run must leave as it is."""
        return picture(self.db)


WORLDS: dict[str, type[World]] = {}


def world_of_its_kind(world: W) -> W:
    """Registers a world."""
    WORLDS[world.kind] = world
    return world


@world_of_its_kind
class OrphanRecordsWorld(World):
    kind = "orphan_records"
    collection = "generated_applications"
    action, what = "deleted", "orphan"

    def configuration(self) -> dict[str, Any]:
        return {**super().configuration(), "root": str(self.root), "quarantine": "0s"}

    def fill(self) -> set[Any]:
        old = self.now - DAY
        for number in range(2 * COUNT):
            self.db[self.collection].insert_one(
                {"_id": f"r{number}", "model_slug": "m", "app_number": number, "created_at": old, "extra": [1, None]}
            )
            if number >= COUNT:
                (self.root / f"generated/apps/m/app{number}").mkdir(parents=True)
        self.db[self.collection].insert_one(
            {"_id": "young", "model_slug": "m", "app_number": 99, "created_at": self.now}
        )
        return {f"r{number}" for number in range(COUNT)}

    def alter(self, id: Any) -> None:
        self.db[self.collection].update_one({"_id": id}, {"$set": {"app_number": COUNT}})

    def is_changed(self, id: Any) -> bool:
        return self.db[self.collection].find_one({"_id": id}) is None


class TaskWorld(World):
    collection = "analysis_tasks"
    status: ClassVar[str]

    def task(self, id: Any, status: str, age: dt.timedelta, **more: Any) -> Document:
        at = self.now - age
        return {
            "_id": id,
            "target_model": "there",
            "target_app_number": 1,
            "status": status,
            "created_at": at,
            "started_at": at if status != "PENDING" else None,
            "completed_at": None,
            "error_message": None,
            **more,
        }

    def is_changed(self, id: Any) -> bool:
        found = self.db[self.collection].find_one({"_id": id})
        return found is not None and found["status"] == self.status


@world_of_its_kind
class OrphanTasksWorld(TaskWorld):
    kind = "orphan_tasks"
    action, what, status = "cancelled", "orphan", "CANCELLED"

    def fill(self) -> set[Any]:
        self.db["generated_applications"].insert_many(
            [{"model_slug": "there", "app_number": number} for number in range(3)]
        )
        self.db[self.collection].insert_many(
            [self.task(number, "PENDING", DAY, target_model="gone") for number in range(COUNT)]
            + [self.task(f"fine{number}", "RUNNING", DAY) for number in range(COUNT)]
        )
        return set(range(COUNT))

    def alter(self, id: Any) -> None:
        self.db[self.collection].update_one({"_id": id}, {"$set": {"target_model": "there"}})


@world_of_its_kind
class StuckTasksWorld(TaskWorld):
    kind = "stuck_tasks"
    action, what, status = "failed", "stuck", "FAILED"

    def fill(self) -> set[Any]:
        self.db[self.collection].insert_many(
            [self.task(number, "RUNNING", DAY) for number in range(COUNT)]
            + [self.task(f"fine{number}", "RUNNING", 0 * DAY) for number in range(COUNT)]
        )
        return set(range(COUNT))

    def alter(self, id: Any) -> None:
        self.db[self.collection].update_one({"_id": id}, {"$set": {"started_at": self.now}})


@world_of_its_kind
class RetentionWorld(TaskWorld):
    kind = "retention"
    action, what = "deleted", "expired"

    def fill(self) -> set[Any]:
        ended = {"completed_at": self.now - 31 * DAY}
        self.db[self.collection].insert_many(
            [self.task(number, "COMPLETED", 40 * DAY, **ended) for number in range(COUNT)]
            + [self.task(f"fine{number}", "FAILED", 40 * DAY, completed_at=self.now) for number in range(COUNT)]
        )
        return set(range(COUNT))

    def alter(self, id: Any) -> None:
        self.db[self.collection].update_one({"_id": id}, {"$set": {"completed_at": self.now}})

    def is_changed(self, id: Any) -> bool:
        return self.db[self.collection].find_one({"_id": id}) is None


@world_of_its_kind
class AllocationAuditWorld(World):
    kind = "allocation_audit"
    settings: ClassVar[dict[str, Any]] = {"repair": True, "confirm": "0s"}
    collection = "providers"
    action, what = "repaired", "drift"

    def fill(self) -> set[Any]:
        amounts = {"cpu": 500, "memory": 2**30, "storage": 2**31}
        none = dict.fromkeys(amounts, 0)
        capacity = {name: 100 * amount for name, amount in amounts.items()}
        for number in range(2 * COUNT):
            booked = none if number < COUNT else amounts
            self.db[self.collection].insert_one(
                {
                    "_id": number,
                    "name": f"p{number}",
                    "capacity": capacity,
                    "allocated": booked,
                    "bookings": {} if number < COUNT else {f"d{number}": amounts},
                    "version": 3,
                    "status": "active",
                }
            )
            self.db["databases"].insert_one(
                {"_id": f"d{number}", "provider_id": number, "status": "active", "resources": amounts}
            )
        return set(range(COUNT))

    def alter(self, id: Any) -> None:
        self.db[self.collection].update_one({"_id": id}, {"$inc": {"version": 1}})

    def is_changed(self, id: Any) -> bool:
        found = self.db[self.collection].find_one({"_id": id})
        return found is not None and found["allocated"]["cpu"] == 500 and found["version"] == 4


class Client:
    """Stands for a client of a cluster."""

    def __init__(self) -> None:
        self.refusals = 0
        self.closed = False

    async def probe(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Remembers it."""
        self.closed = True


@world_of_its_kind
class ClientEvictionWorld(World):
    kind = "client_eviction"
    action, what = "evicted", "idle"

    def __init__(self, db: Db, root: Path) -> None:
        super().__init__(db, root)
        self.seconds = 0.0
        self.clients: dict[str, Client] = {}
        self.cache: ClientCache[Client] | None = None

    def fill(self) -> set[Any]:
        return {f"idle{number}" for number in range(COUNT)}

    async def enter(self, bench: Bench) -> None:
        async def connect(key: str, _: ProviderCredentials) -> Client:
            return self.clients.setdefault(key, Client())

        self.cache = ClientCache(connect, CacheSettings(size=100), clock=lambda: self.seconds)
        bench.agent.keep.clients._cache = self.cache  # type: ignore[assignment]
        for number in range(COUNT):
            await self.use(f"idle{number}")
        self.seconds += 2 * HOUR.total_seconds()
        for number in range(COUNT):
            await self.use(f"fine{number}")

    async def use(self, key: str) -> None:
        async def load() -> ProviderCredentials:
            return ProviderCredentials(server="https://127.0.0.1", authorization="Bearer token")

        assert self.cache is not None
        async with self.cache.client(key, load):
            pass

    def everything(self) -> Any:
        assert self.cache is not None
        return sorted(self.cache._entries), [client.closed for client in self.clients.values()]

    def is_changed(self, id: Any) -> bool:
        assert self.cache is not None
        return id not in self.cache._entries


# ---------------------------------------------------------------------------------------------------- without a server


def test_every_kind_has_a_world() -> None:
    """A kind without one would go untested: write a class under "worlds"."""
    assert set(WORLDS) == set(NAMES)


def test_names_are_unique_and_so_is_each_place_in_the_cascade() -> None:
    """A kind is named once."""
    assert len(set(NAMES)) == len(KINDS)
    assert len({kind.cascade for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_kinds_name_equals_its_file(kind: type[Job]) -> None:
    """Who knows the name finds the rule."""
    assert kind.__module__ == f"{package.__name__}.{kind.model_fields['kind'].default}"


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_kinds_file_begins_with_what_an_operator_has_to_know(kind: type[Job]) -> None:
    """The rule in a sentence, what it never touches, and why the defaults are what they are."""
    text = inspect.getdoc(inspect.getmodule(kind)) or ""
    name = str(kind.model_fields["kind"].default).replace("_", " ")
    assert text.startswith(f"{name.capitalize()}: ")
    assert text.splitlines()[0].endswith(".")
    assert "\nNever touched: " in text
    assert "\nDefaults: " in text
    assert len(text.split()) > 60


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_kind_needs_nothing_but_its_name(kind: type[Job]) -> None:
    """Defaults construct, and every field of its own is described."""
    job = job_of(kind=str(kind.model_fields["kind"].default))
    assert type(job) is kind
    assert job.limit == kind.limits
    own = set(kind.model_fields) - set(Job.model_fields)
    assert [name for name in own - {"kind"} if not kind.model_fields[name].description] == []


# ------------------------------------------------------------------------------------------------------- with a server


@pytest.fixture(params=NAMES)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind."""
    return str(request.param)


@pytest.fixture
def world(kind: str, db: Db, root: Path) -> World:
    """Its world, still empty."""
    if kind not in WORLDS:
        pytest.fail(f"{kind} has no world: write a class under 'worlds'")
    return WORLDS[kind](db, root)


@asynccontextmanager
async def entered(database: Database, world: World, **settings: Any) -> Any:
    async with opened(database, world.db, {"job": {**world.configuration(), **settings}}) as bench:
        await world.enter(bench)
        yield bench


def changed(world: World, ids: set[Any]) -> set[Any]:
    return {id for id in ids if world.is_changed(id)}


@servers.both_topologies
async def test_an_empty_world_gives_an_empty_report(database: Database, world: World) -> None:
    """It succeeds, asks for no proof, moves no baseline and changes nothing."""
    async with opened(database, world.db, {"job": world.configuration()}) as bench:
        before = picture(world.db)
        for dry_run in (True, False):
            ran = await bench.run("job", dry_run=dry_run)
            assert (ran["outcome"], ran["complete"], ran["population"]) == ("succeeded", True, 0)
            assert (ran["found"], ran["held"], ran["changed"], ran["failed"], ran["sample"]) == ({}, {}, {}, 0, [])
        assert picture(world.db) == before
        assert bench.own("items").count_documents({}) == 0
        assert bench.own("controls").count_documents({"_id": {"$regex": "^baseline"}}) == 0


@servers.both_topologies
async def test_a_dry_run_changes_nothing_and_plans_what_a_real_run_then_changes(
    database: Database, world: World
) -> None:
    """Item by item, with the action of each."""
    expected = world.fill()
    async with entered(database, world) as bench:
        before = world.everything()
        dry = await bench.dry("job")
        assert (dry["outcome"], dry["found"], dry["changed"]) == ("succeeded", {world.what: COUNT}, {})
        assert world.everything() == before
        planned = {entry["id"]: (entry["action"], entry["held"]) for entry in bench.entries(dry["_id"])}
        real = await bench.run("job")
        done = {entry["id"]: (entry["action"], None) for entry in bench.entries(real["_id"])}
        assert (real["outcome"], real["found"], real["held"]) == (dry["outcome"], dry["found"], dry["held"])
        assert {str(item["id"]) for item in dry["sample"]} == {str(id) for id in expected}
        assert changed(world, expected) == expected
        if bench.jobs["job"].scope == "shared":
            assert planned == done == dict.fromkeys(expected, (world.action, None))


@servers.both_topologies
async def test_counts_equal_what_is_really_changed_and_a_second_run_changes_nothing(
    database: Database, world: World
) -> None:
    """In the record, in the statistics, and in the metrics of the process."""
    expected = world.fill()
    async with entered(database, world) as bench:
        ran = await bench.run("job")
        assert (ran["outcome"], ran["complete"], ran["failed"]) == ("succeeded", True, 0)
        assert ran["changed"] == {world.action: COUNT}
        assert ran["population"] >= 2 * COUNT
        assert changed(world, expected) == expected
        totals = bench.own("controls").find_one({"_id": "totals"})
        assert (totals["runs"], totals["errors"], totals[world.kind]) == (1, 0, {world.action: COUNT})
        sample = bench.agent.metrics.registry.get_sample_value(
            "maintenance_changed_total", {"job_name": "job", "action": world.action}
        )
        assert sample == COUNT
        before = world.everything()
        again = await bench.run("job")
        assert (again["outcome"], again["found"], again["changed"]) == ("succeeded", {}, {})
        assert world.everything() == before


@servers.both_topologies
@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_a_document_that_is_altered_between_the_look_and_the_write_is_left_alone(
    database: Database, world: World
) -> None:
    """After the selection, and again between the second look and the write."""
    expected = world.fill()
    first, second, gone = sorted(expected, key=str)[:3]
    altered: dict[Any, Any] = {}

    def alter(id: Any) -> Callable[..., None]:
        def now(*_: object) -> None:
            if id not in altered:
                world.alter(id)
                altered[id] = world.db[world.collection].find_one({"_id": id})

        return now

    def vanish() -> None:
        alter(first)()
        world.db[world.collection].delete_one({"_id": gone})

    async with entered(database, world) as bench:
        bench.use(meddled(bench.jobs["job"], after_select=vanish, after_still=alter(second)))
        ran = await bench.run("job")
        assert (ran["outcome"], ran["failed"]) == ("succeeded", 0)
        assert ran["changed"] == {world.action: COUNT - 3}
        for id, document in altered.items():
            assert world.db[world.collection].find_one({"_id": id}) == document
        assert changed(world, expected - {first, second, gone}) == expected - {first, second, gone}
        assert {entry["id"] for entry in bench.entries(ran["_id"])} == expected - {first, second, gone}


@servers.both_topologies
@pytest.mark.parametrize("kind", SHARED, indirect=True)
@pytest.mark.parametrize(
    "limit", [{"items": COUNT - 1}, {"fraction": 0.01, "floor": COUNT - 1}], ids=["items", "fraction"]
)
async def test_a_limit_refuses_before_the_first_change(database: Database, world: World, limit: dict[str, Any]) -> None:
    """The first few of an unexpected set are not changed; consent is by name; a kind may truncate instead."""
    expected = world.fill()
    async with entered(database, world, limit={"fraction": 1, **limit}, batch=1) as bench:
        before = world.everything()
        if bench.jobs["job"].truncates and "items" in limit:
            ran = await bench.run("job")
            assert (ran["outcome"], ran["complete"], ran["changed"]) == ("succeeded", False, {world.action: COUNT - 1})
            return
        dry = await bench.dry("job")
        assert (dry["outcome"], dry["would_refuse"], dry["found"]) == ("succeeded", "cap", {world.what: COUNT})
        ran = await bench.run("job")
        assert (ran["outcome"], ran["changed"], ran["complete"]) == ("refused", {}, False)
        assert "--accept cap" in ran["reason"]
        assert world.everything() == before
        assert bench.entries(ran["_id"]) == []
        ran = await bench.run("job", accept=frozenset({"cap"}))
        assert (ran["outcome"], ran["changed"], ran["accept"]) == ("succeeded", {world.action: COUNT}, ["cap"])
        assert changed(world, expected) == expected


@servers.both_topologies
@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_a_run_that_is_stopped_half_way_says_so_and_the_next_one_finishes(
    database: Database, world: World
) -> None:
    """The batch in hand ends; what was changed is counted; nothing is done twice."""
    expected = world.fill()
    async with entered(database, world, batch=1) as bench:
        started: list[Any] = []

        def stop(look: int) -> None:
            if look == 4:
                started[0].stop.set()

        plain = bench.jobs["job"]
        bench.use(meddled(plain, after_still=stop))
        started.append(await bench.start("job"))
        ran = await bench.ended(started[0])
        assert (ran["outcome"], ran["complete"]) == ("interrupted", False)
        done = changed(world, expected)
        assert 0 < len(done) < COUNT
        assert ran["changed"] == {world.action: len(done)}
        bench.use(plain)
        rest = await bench.run("job")
        assert (rest["outcome"], rest["complete"]) == ("succeeded", True)
        assert rest["changed"] == {world.action: COUNT - len(done)}
        assert changed(world, expected) == expected
        assert bench.own("controls").find_one({"_id": "totals"})[world.kind] == {world.action: COUNT}


@servers.both_topologies
@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_a_dependency_that_goes_during_the_run_fails_it_without_a_change(
    database: Database, world: World
) -> None:
    """Before and after the selection; the next run does the work."""
    expected = world.fill()

    def goes() -> None:
        raise StoreUnavailableError("127.0.0.1:1: connection refused")

    async with entered(database, world) as bench:
        plain, before = bench.jobs["job"], world.everything()
        for moment in ("before_select", "after_select", "before_still"):
            bench.use(meddled(plain, **{moment: lambda *_: goes()}))
            ran = await bench.run("job")
            assert (ran["outcome"], ran["changed"], ran["complete"]) == ("failed", {}, False)
            assert "connection refused" in ran["reason"]
            assert world.everything() == before
        bench.use(plain)
        assert (await bench.run("job"))["changed"] == {world.action: COUNT}
        assert changed(world, expected) == expected
        totals = bench.own("controls").find_one({"_id": "totals"})
        assert (totals["runs"], totals["errors"]) == (4, 3)


async def test_without_mongodb_a_run_fails_or_needs_none(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared kind cannot even begin; one that works on its own process does its work all the same."""
    monkeypatch.setattr(store, "SERVER_SELECTION_SECONDS", 0.05)
    monkeypatch.setattr(runner, "CLOSE_SECONDS", 0.2)
    expected = world.fill()
    nobody = Database(f"mongodb://127.0.0.1:{free_port()}", database.name, database.topology)
    before = picture(world.db)
    async with opened(nobody, world.db, {"job": world.configuration()}, prepared=False) as bench:
        await world.enter(bench)
        (ran,) = await bench.pass_()
        metrics = bench.agent.metrics.registry
        assert metrics.get_sample_value("maintenance_run_in_progress", {"job_name": "job"}) == 0
        if bench.jobs["job"].scope == "process":
            assert (ran["outcome"], ran["changed"]) == ("succeeded", {world.action: COUNT})
            assert changed(world, expected) == expected
            return
        assert (ran["outcome"], ran["changed"]) == ("failed", {})
        runs = metrics.get_sample_value("maintenance_runs_total", {"job_name": "job", "outcome": "failed"})
        assert runs == 1
        with pytest.raises(StoreUnavailableError):
            await bench.start("job")
    assert picture(world.db) == before


@servers.both_topologies
@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_what_a_run_changed_can_be_restored_and_is_held_then(database: Database, world: World) -> None:
    """Byte for byte where no version counts, and the next run leaves it alone until it is released."""
    expected = world.fill()
    async with entered(database, world) as bench:
        before = world.everything()
        ran = await bench.run("job")
        restored = await bench.restore(ran["_id"])
        assert (restored["outcome"], restored["changed"], restored["failed"]) == ("succeeded", {"restored": COUNT}, 0)
        if world.kind != "allocation_audit":  # a version never goes back
            assert world.everything() == before
        again = await bench.run("job")
        assert (again["found"], again["held"], again["changed"]) == ({world.what: COUNT}, {"hold": COUNT}, {})
        bench.own("marks").delete_many({"_id.type": "hold"})
        assert (await bench.run("job"))["changed"] == {world.action: COUNT}
    assert len(expected) == COUNT


@pytest.mark.parametrize("kind", SHARED, indirect=True)
async def test_explain_says_of_each_document_what_the_run_then_does(database: Database, world: World) -> None:
    """One source of the rule: the verdict is the selection's, the conditions are those of the write."""
    expected = world.fill()
    async with entered(database, world) as bench:
        for document in list(world.db[world.collection].find()):
            text = document["_id"] if isinstance(document["_id"], str) else str(document["_id"])
            said = await bench.agent.operations.explain("job", text)
            if document["_id"] in expected:
                assert (said["found"], said["action"], said["held_by"]) == (world.what, world.action, [])
                actions = {one["action"]: one["conditions"] for one in said["actions"]}
                assert all(condition["holds"] for condition in actions[world.action])
            else:
                assert (said["found"], said["action"]) == (None, None)
                assert all(any(not one["holds"] for one in action["conditions"]) for action in said["actions"])
            assert [proof["refusal"] for proof in said["proofs"]] == [None] * len(said["proofs"])
