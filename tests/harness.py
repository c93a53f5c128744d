"""An agent in the test's own process: the real one, as ``agent.app`` makes it, with pieces that a test can exchange.

``opened`` loads a configuration, opens an agent on the test's database and closes it afterwards. ``Bench`` runs jobs and
passes and waits for their end; records are read from the database, so that a test sees what a user would see.
``meddled`` wraps a job so that the world changes at a chosen moment of its run.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime as dt
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import bson
import yaml
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database as RawDatabase

from agent.app import Agent
from agent.job import Item, Job, Ports
from agent.jobs import KINDS
from agent.reader import StoreReader
from agent.runner import Active, Pass
from agent.settings import Settings, load
from agent.volume import Volume
from tests.conftest import Database

Document = dict[str, Any]
Db = RawDatabase[Document]
J = TypeVar("J", bound=Job)
Hook = Callable[[], Awaitable[None] | None]

MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
PREFIX = "maintenance_"
RUN_ENDS_WITHIN = 90.0  # seconds; a run that takes longer hangs
RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


def server_now(db: Db) -> dt.datetime:
    """The server's time, from which the documents of a test count their ages."""
    now: dt.datetime = db.client.admin.command("hello")["localTime"]
    return now.replace(tzinfo=dt.UTC)


def settings_of(
    database: Database, jobs: Mapping[str, Mapping[str, Any]], sections: Mapping[str, Any] | None = None
) -> Settings[Job]:
    """The settings that a file with these jobs and sections says."""
    told = {"mongodb": {"uri": database.uri, "database": database.name}, "jobs": dict(jobs), **(sections or {})}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maintenance.yaml"
        path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
        return load(KINDS, path=path, environ={})


def job_of(database: str = "app", **settings: Any) -> Job:
    """A single job as the configuration would make it."""
    kinds = {kind.model_fields["kind"].default: kind for kind in KINDS}
    return kinds[settings["kind"]](
        name=settings.pop("name", "job"), database=database, limit=settings.pop("limit", None), **settings
    )


class Bench:
    """An opened agent, and the database as a bystander sees it."""

    def __init__(self, agent: Agent, db: Db) -> None:
        self.agent = agent
        self.db = db

    @property
    def jobs(self) -> dict[str, Job]:
        """The jobs that the agent runs."""
        return dict(self.agent.operations._jobs)

    def use(self, *jobs: Job) -> None:
        """Puts jobs in the place of those of the same name."""
        self.agent.operations.use({**self.jobs, **{job.name: job for job in jobs}})

    def configure(self, name: str, **settings: Any) -> None:
        """Changes settings of a job."""
        self.use(self.jobs[name].model_copy(update=settings))

    # --- runs

    async def start(self, name: str, **options: Any) -> Active:
        """Begins a run."""
        return await self.agent.operations.run_job(name, **{"trigger": "manual", "requested_by": "ann", **options})

    async def run(self, name: str, **options: Any) -> Document:
        """Runs a job to its end; returns its record."""
        return await self.ended(await self.start(name, **options))

    async def dry(self, name: str, **options: Any) -> Document:
        """Looks without changing anything; returns the record."""
        return await self.run(name, dry_run=True, **options)

    async def ended(self, active: Active) -> Document:
        """Waits for the end of a run; returns its record, as it is stored where it could be."""
        assert await active.wait(RUN_ENDS_WITHIN), f"{active.record()} does not end"
        assert active.task is not None
        active.task.result()
        stored = self.record(active.id)
        return stored if stored is not None else active.record()

    async def pass_(self, **options: Any) -> list[Document]:
        """Runs a pass to its end; returns the records of its runs, those that were skipped included."""
        return await self.passed(
            await self.agent.operations.run_pass(**{"trigger": "manual", "requested_by": "ann", **options})
        )

    async def passed(self, begun: Pass) -> list[Document]:
        """Waits for the end of a pass."""
        assert await begun.wait(RUN_ENDS_WITHIN), f"{begun.runs()} do not end"
        begun.task.result()
        return [self.record(run["_id"]) or run for run in begun.runs()]

    async def apply(self, plan: str) -> list[Document]:
        """Applies a plan, or those of a pass."""
        return await self.passed(await self.agent.operations.apply(plan, requested_by="ann"))

    async def restore(self, run: str, item: str | None = None) -> Document:
        """Restores what a run changed."""
        return await self.ended(await self.agent.operations.restore(run, item=item, requested_by="ann"))

    def read_volumes_with(self, threads: Executor) -> None:
        """Exchanges the threads in which volumes are read."""
        object.__setattr__(self.agent.keep, "threads", threads)

    # --- looking without a run

    def ports(self) -> Ports:
        """What a job reads through."""
        return Ports(StoreReader(self.agent.store), Volume(self.agent.threads), self.agent.keep.clients)

    async def items(self, name: str, now: dt.datetime | None = None) -> list[Item]:
        """What a job's rule selects at an instant (the server's now), without any guard."""
        job = self.jobs[name]
        return [item async for item in job.select(self.ports(), now or await self.agent.store.now())]

    async def selected(self, name: str, now: dt.datetime | None = None) -> dict[Any, str]:
        """The same by id: the action, or what it is where it is only reported."""
        return {item.id: item.action or item.what for item in await self.items(name, now)}

    # --- what is there

    def record(self, run: str) -> Document | None:
        """The stored record of a run."""
        found: Document | None = self.own("runs").find_one({"_id": run})
        return found

    def own(self, name: str) -> Any:
        """A collection of the agent."""
        return self.db[PREFIX + name]

    def entries(self, run: str) -> list[Document]:
        """The archive's or the plan's entries of a run, in order."""
        return list(self.own("items").find({"run": run}, sort=[("_id", 1)]))

    def age_sightings(self, by: dt.timedelta) -> None:
        """Lets the sightings have been made that much earlier."""
        self.own("marks").update_many(
            {"_id.type": "sighting"},
            [{"$set": {"first_seen": {"$subtract": ["$first_seen", by // dt.timedelta(milliseconds=1)]}}}],
        )

    def picture(self) -> dict[str, list[bytes]]:
        """Every document of the application, byte for byte."""
        return picture(self.db)


def picture(db: Db) -> dict[str, list[bytes]]:
    """Every document of the application, byte for byte, in the order of their ids."""
    names = sorted(name for name in db.list_collection_names() if not name.startswith(PREFIX))
    raw: dict[str, Any] = {name: db.get_collection(name, RAW).find(sort=[("_id", 1)]) for name in names}
    return {name: [bytes(one.raw) for one in found] for name, found in raw.items()}


def insert_raw(db: Db, collection: str, *documents: bytes) -> None:
    """Inserts documents byte for byte, whatever a driver would say of them."""
    db.get_collection(collection, RAW).insert_many([RawBSONDocument(document) for document in documents])


def encoded(document: Mapping[str, Any]) -> bytes:
    """The document as BSON."""
    return bson.encode(document)


@asynccontextmanager
async def opened(
    database: Database,
    db: Db,
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    prepared: bool = True,
    **sections: Any,
) -> AsyncIterator[Bench]:
    """An agent with these jobs; ``prepared`` with its indexes, as every agent has that could create them."""
    agent = Agent(settings_of(database, jobs, sections))
    try:
        if prepared:
            await agent.prepare()
        yield Bench(agent, db)
    finally:
        await agent.runner.shut_down(10)
        await agent.close()


# --- volumes

NOBODY = 65534


@contextmanager
def unprivileged_threads(count: int = 2) -> Iterator[Executor]:
    """Threads that read file systems as a user without rights, also where the tests run as root.

    Linux keeps the user of file system calls by thread, and takes root's rights away with it.
    """

    def drop() -> None:
        if os.geteuid() == 0:
            ctypes.CDLL(None).setfsuid(NOBODY)

    with ThreadPoolExecutor(count, initializer=drop) as threads:
        yield threads


# --- moments


def meddled(
    job: J,
    *,
    before_select: Hook | None = None,
    while_selecting: Callable[[Item], Awaitable[None] | None] | None = None,
    after_select: Hook | None = None,
    before_still: Callable[[int], Awaitable[None] | None] | None = None,
    after_still: Callable[[int], Awaitable[None] | None] | None = None,
) -> J:
    """The same job, in whose runs something happens at chosen moments.

    ``before_still`` and ``after_still`` are told how often the evidence was looked at before: with ``looks_back`` a
    batch looks twice.
    """
    kind = type(job)

    async def happens(hook: Callable[..., Awaitable[None] | None] | None, *arguments: Any) -> None:
        result = hook(*arguments) if hook is not None else None
        if result is not None:
            await result

    class Meddled(kind):  # type: ignore[misc, valid-type]
        async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
            await happens(before_select)
            async for item in super().select(ports, now):
                yield item
                await happens(while_selecting, item)
            await happens(after_select)

        async def still(self, ports: Ports, items: Sequence[Item], now: dt.datetime) -> Sequence[Item]:
            looks = self.__dict__.setdefault("_looks", [0])
            looks[0] += 1
            await happens(before_still, looks[0] - 1)
            holding: Sequence[Item] = await super().still(ports, items, now)
            await happens(after_still, looks[0] - 1)
            return holding

    made = Meddled.model_construct(_fields_set=set(job.model_fields_set), **dict(job))
    assert isinstance(made, kind)
    return made


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits for something that happens by itself, that long at most."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another task or another program makes it true
            await asyncio.sleep(0.01)
