"""The world of the benchmarks: data at scale, and an agent at work on them.

All peers of a benchmark get the same documents: a collection is made once, and put in place anew for each of them by the
server (``$out``), with its indexes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pymongo.database import Database as RawDatabase

from tests.benchmarks.figures import percentile
from tests.conftest import Database
from tests.harness import Bench, opened

Document = dict[str, Any]
Db = RawDatabase[Document]

DAY: Final = dt.timedelta(days=1)
MINUTE: Final = dt.timedelta(minutes=1)
INSERT: Final = 10_000  # documents of one insert
LAG_EVERY: Final = 0.005
TASKS: Final = "analysis_tasks"
UNLIMITED: Final = {"items": 10**9, "fraction": 1.0}
# A run as long as it takes, whatever it finds, with nothing between the batches.
FREE: Final[Mapping[str, Any]] = {"run_timeout": "6h", "limit": UNLIMITED}
UNTHROTTLED: Final = {"pace": 0, "max_lag": None}


def insert(db: Db, collection: str, documents: Iterable[Document]) -> None:
    """Inserts any number of documents."""
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) >= INSERT:
            db[collection].insert_many(batch, ordered=False)
            batch = []
    if batch:
        db[collection].insert_many(batch, ordered=False)


def task(number: int, **fields: Any) -> Document:
    """A task as the analysis platform writes it."""
    return {
        "task_id": f"task-{number}",
        "target_model": f"model-{number % 500}",
        "target_app_number": number // 500 % 20,
        "status": "COMPLETED",
        "created_at": None,
        "started_at": None,
        "completed_at": None,
        "error_message": None,
        **fields,
    }


def finished(count: int, now: dt.datetime) -> Iterator[Document]:
    """Tasks that ended one to three months ago."""
    chance = random.Random(1)
    for number in range(count):
        ended = now - 31 * DAY - chance.random() * 60 * DAY
        yield task(number, created_at=ended - MINUTE, started_at=ended - MINUTE, completed_at=ended)


def put_in_place(db: Db, source: str, target: str = TASKS) -> None:
    """Makes ``target`` hold what ``source`` holds; its indexes stay."""
    db[source].aggregate([{"$out": target}], allowDiskUse=True)
    db.client.admin.command("fsync")  # what was written before is no burden of the next peer


@contextmanager
def timing() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the seconds since the beginning; after the block, those of the block."""
    began = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - began
    ended.append(time.perf_counter())


@dataclass
class Ran:
    """A run of the agent: its record, its seconds, its processor time, and how late the event loop was meanwhile."""

    record: Document
    seconds: float
    server_cpu: float
    agent_cpu: float
    lags: list[float] = field(default_factory=list)

    @property
    def lag(self) -> float:
        """The 99th percentile of the loop's lag, in milliseconds."""
        return 1000 * percentile(self.lags, 0.99) if self.lags else 0.0

    @property
    def changed(self) -> int:
        """How many documents it changed."""
        return sum(self.record["changed"].values())

    @property
    def note(self) -> str:
        """The processor time that one changed document took, the look included."""
        server, agent = (1e6 * seconds / self.changed for seconds in (self.server_cpu, self.agent_cpu))
        return f"processor time a document: server {server:.0f} µs, agent {agent:.0f} µs"


async def ran(bench: Bench, job: str, **options: Any) -> Ran:
    """Runs a job to its end, however long that takes, and fails where it does not succeed."""
    lags: list[float] = []
    watch = asyncio.create_task(_watch(lags))
    server = bench.db.client.admin.command("serverStatus")["pid"]
    began, server_cpu, agent_cpu = time.perf_counter(), processor_seconds(server), time.process_time()
    active = await bench.start(job, accept=frozenset({"cap"}), **options)
    await active.wait()
    seconds = time.perf_counter() - began
    server_cpu, agent_cpu = processor_seconds(server) - server_cpu, time.process_time() - agent_cpu
    watch.cancel()
    await asyncio.wait({watch})
    record = active.record()
    assert record["outcome"] == "succeeded", record
    return Ran(record, seconds, server_cpu, agent_cpu, lags)


def processor_seconds(pid: int) -> float:
    """Seconds of the processor that a process has had."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def _watch(lags: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY
        await asyncio.sleep(LAG_EVERY)
        lags.append(loop.time() - due)


@asynccontextmanager
async def agent(database: Database, db: Db, name: str, job: Mapping[str, Any], **sections: Any) -> AsyncIterator[Bench]:
    """An agent with one job, that nothing limits; ``sections`` are further ones of its configuration."""
    told: dict[str, Any] = {"throttle": UNTHROTTLED, "archive": {"max_size": "100GiB"}, "log": {"level": "warning"}}
    async with opened(database, db, {name: {**job, **FREE}}, **{**told, **sections}) as bench:
        yield bench
