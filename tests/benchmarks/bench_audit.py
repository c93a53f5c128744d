"""The audit of 200 providers with 500 databases each, beside what would be run instead.

    python -m pytest -s -o python_files='bench_*.py' tests/benchmarks/bench_audit.py

*ours* is a whole run: claim, proofs, selection, marks, journal. *A query per provider* reads each provider's databases
and adds them up in Python. *The floor* is one ``$group`` that sums by provider on the server, and compares nothing.
All in one process on one mongod with the same data; each is taken in turn, and the median of the rounds counts.
``AUDIT_PROVIDERS``, ``AUDIT_DATABASES`` (of each) and ``AUDIT_ROUNDS`` say how many.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.ledger import encode_key
from tests import faulty, servers
from tests.benchmarks.figures import Figures
from tests.conftest import Database
from tests.harness import Bench, Db, Document, opened

PROVIDERS = int(os.environ.get("AUDIT_PROVIDERS", "200"))
DATABASES = int(os.environ.get("AUDIT_DATABASES", "500"))
ROUNDS = int(os.environ.get("AUDIT_ROUNDS", "5"))
GOAL = 2.0  # times the floor
RESOURCES = ("cpu", "memory", "storage")
OWED = ("active", "running", "ready", "available", "stopped", "paused")
# What a platform offers: a dozen sizes. The other extreme is a size of its own for each database.
FLAVOURS = [{"cpu": 250 * n, "memory": n * 2**30, "storage": 5 * n * 2**30} for n in range(1, 13)]
DRIFTED, LOST = 3, 7

Work = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Row:
    """A way to do it, and what it took."""

    name: str
    seconds: float
    cpu: float
    peak: int
    commands: int

    @property
    def note(self) -> str:
        """What else it took."""
        return f"{self.cpu * 1000:.0f} ms own CPU, {self.peak / 2**20:.1f} MiB at most, {self.commands} commands"


def fill(db: Db, flavours: list[dict[str, int]]) -> None:
    """Providers whose books agree with their databases, but for a few; and a few databases without a provider."""
    databases: list[Document] = []
    providers: list[Document] = []
    for provider in range(PROVIDERS):
        mine: list[Document] = [
            {
                "_id": f"{provider}-{number}",
                "provider_id": provider,
                "status": OWED[number % 2],
                "resources": flavours[(provider * DATABASES + number) % len(flavours)],
                "name": f"database {number} of provider {provider}",
                "connection": {"host": f"db-{number}.example", "port": 5432, "secret": "x" * 40},
            }
            for number in range(DATABASES)
        ]
        databases += mine
        bookings = {encode_key(one["_id"]): one["resources"] for one in mine[1 if provider < DRIFTED else 0 :]}
        allocated = {name: sum(one[name] for one in bookings.values()) for name in RESOURCES}
        capacity = {name: 2 * amount + 1 for name, amount in allocated.items()}
        providers.append(
            {
                "_id": provider,
                "name": f"provider {provider}",
                "kubeconfig": "x" * 3000,
                "capacity": capacity,
                "allocated": allocated,
                "bookings": bookings,
                "version": 1,
            }
        )
    databases += [
        {"_id": f"lost-{number}", "provider_id": "gone", "status": "active", "resources": flavours[0]}
        for number in range(LOST)
    ]
    for name, documents in (("providers", providers), ("databases", databases)):
        db[name].delete_many({})
        db[name].insert_many(documents)
    db["databases"].create_index([("provider_id", 1), ("status", 1)])


def by_group(db: Db) -> int:
    """The floor."""
    sums: Document = {name: {"$sum": f"$resources.{name}"} for name in RESOURCES}
    return len(list(db["databases"].aggregate([{"$group": {"_id": "$provider_id", **sums}}])))


def by_provider(db: Db) -> int:
    """What is written first: a query for each provider."""
    drifted = 0
    for provider in db["providers"].find({}, ["allocated", "bookings"]):
        mine = list(
            db["databases"].find({"provider_id": provider["_id"], "status": {"$in": OWED}}, ["resources"], batch_size=1000)
        )  # fmt: skip
        owed = {name: sum(one["resources"][name] for one in mine) for name in RESOURCES}
        booked = {encode_key(one["_id"]): one["resources"] for one in mine}
        drifted += owed != provider["allocated"] or booked != provider["bookings"]
    return drifted


async def measured(name: str, work: Work, commands: Callable[[], int]) -> Row:
    """Rounds by the clock, and one more in which memory is traced, which takes longer."""
    await work()
    seconds, cpu = [], []
    for _ in range(ROUNDS):
        started, worked = time.perf_counter(), time.process_time()
        await work()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
    before = commands()
    tracemalloc.start()
    await work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Row(name, statistics.median(seconds), statistics.median(cpu), peak, commands() - before)


def commands_of(bench: Bench) -> Callable[[], int]:
    """The commands that the agent has sent, as its metrics count them."""

    def count() -> int:
        samples = [sample for metric in bench.agent.metrics.registry.collect() for sample in metric.samples]
        name = "maintenance_mongodb_command_duration_seconds_count"
        return int(sum(sample.value for sample in samples if sample.name == name))

    return count


async def ours(name: str, database: Database, db: Db, **settings: Any) -> Row:
    """A run of the audit."""
    async with opened(database, db, {"job": {"kind": "allocation_audit", "run_timeout": "5m", **settings}}) as bench:

        async def run() -> None:
            ran = await bench.run("job")
            assert (ran["outcome"], ran["found"]) == ("succeeded", {"drift": DRIFTED, "orphan": LOST})

        return await measured(name, run, commands_of(bench))


@servers.both_topologies
@pytest.mark.parametrize("flavours", ["a dozen sizes", "each its own size"])
async def test_audit(database: Database, db: Db, flavours: str) -> None:
    """Without clusters: what the databases say against what the providers say."""
    several = FLAVOURS
    if flavours != "a dozen sizes":
        several = [{**FLAVOURS[n % 12], "cpu": n + 1} for n in range(PROVIDERS * DATABASES)]
    fill(db, several)

    def sent() -> int:
        counts = db.client.admin.command("serverStatus")["metrics"]["commands"]
        return sum(int(counts[name]["total"]) for name in ("find", "aggregate", "getMore"))

    def synchronous(work: Callable[[Db], int], expected: int) -> Work:
        async def run() -> None:
            assert work(db) == expected

        return run

    rows = [
        await ours("ours", database, db),
        await measured("a query per provider", synchronous(by_provider, DRIFTED), sent),
    ]
    floor = await measured("the floor: one $group", synchronous(by_group, PROVIDERS + 1), sent)
    few = flavours == "a dozen sizes"
    title = f"{PROVIDERS} providers with {DATABASES} databases each, {flavours}"
    name = f"audit_{database.topology}" if few else f"audit_own_sizes_{database.topology}"
    figures = Figures(name, title, PROVIDERS * DATABASES, database.topology)
    for row in [*rows, floor]:
        figures.seconds(row.name, row.seconds, PROVIDERS * DATABASES, row.note)
    if few:
        figures.at_most("times the floor", rows[0].seconds / floor.seconds, GOAL)
    figures.write()


@pytest.fixture
async def clusters(tmp_path: Path) -> AsyncIterator[tuple[str, Counter[str]]]:
    """One server that stands for every cluster: a kubeconfig for it, and what it was asked."""
    certificates, asked = faulty.certificates(tmp_path), Counter[str]()
    lists = faulty.healthy(faulty.items())

    async def counted(request: web.BaseRequest) -> web.StreamResponse:
        asked[request.path] += 1
        return await lists(request)

    async with faulty.serving(counted, certificates.for_server(), remember=False) as server:
        authority = {"certificate-authority-data": certificates.data("ca.crt")}
        yield json.dumps(faulty.kubeconfig(server.url, {"token": "token"}, authority)), asked


async def test_audit_with_clusters(database: Database, db: Db, clusters: tuple[str, Counter[str]]) -> None:
    """With a cluster a provider, each of one page; more than the client cache holds, so each audit connects anew."""
    config, asked = clusters
    fill(db, FLAVOURS)
    db["providers"].update_many({}, {"$set": {"kubeconfig": config}})
    job = {"kind": "allocation_audit", "run_timeout": "5m", "cluster": {"tolerance": 1, "timeout": "60s"}}
    print(f"\n{PROVIDERS} clusters, read ten at a time; their servers run in the same process")
    async with opened(database, db, {"job": job}) as bench:
        for name in ("first audit", "second audit"):
            before = asked.total()
            started = time.perf_counter()
            ran = await bench.run("job")
            seconds = time.perf_counter() - started
            assert (ran["outcome"], ran["found"].get("unreadable")) == ("succeeded", None)
            print(f"  {name:<20} {seconds:>6.1f} s {asked.total() - before:>5} calls")
