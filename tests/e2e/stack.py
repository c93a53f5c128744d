"""The agent on the incident and on providers that drift, a real Prometheus that scrapes it, and what it answers.

The agent runs in the test's own process with the settings that a file would say; the providers' clusters are small
servers of the tests. Prometheus and Alertmanager are those of ``make stack``, with the shipped files.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import math
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from aiohttp import web
from bson import Int64

from agent.app import Service
from agent.demo.incident import Incident, incident
from agent.demo.mongod import free_port
from agent.demo.stack import Monitoring, get
from agent.job import Job
from agent.settings import Settings
from tests import faulty, promql
from tests.conftest import Database
from tests.harness import Db, server_now, settings_of

Json = dict[str, Any]

PROGRAMS: Final = ("prometheus", "prometheus-alertmanager", "openssl")
SECONDS: Final = 1  # between two scrapes, and between two evaluations
PATIENCE_SECONDS: Final = 30.0  # for anything that has to show in Prometheus; two or three on an idle machine
POLL_SECONDS: Final = 0.2
GIB: Final = 1024**3
JOB: Final = "orphan_tasks"  # the one that the dashboard of one job shows


def programs_or_skip() -> None:
    """Skips a test that has not what it needs."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: prometheus, prometheus-alertmanager, openssl)")


# ----------------------------------------------------------------------------------------------------------- the agent


def jobs(root: Path) -> dict[str, Json]:
    """The jobs of the test: the four that clean up, the audit with repair, the cache of its clients."""
    return {
        "orphan_apps": {"kind": "orphan_records", "root": str(root), "quarantine": "0s"},
        JOB: {"kind": "orphan_tasks"},
        "stuck_tasks": {"kind": "stuck_tasks"},
        "old_tasks": {"kind": "retention"},
        "allocations": {
            "kind": "allocation_audit",
            "repair": True,
            "confirm": "1s",
            "providers": {"bookings": None},
            "cluster": {"access": "kubeconfig", "timeout": "5s"},
        },
        "client_cache": {"kind": "client_eviction", "every": "5m"},
    }


def settings(database: Database, root: Path) -> Settings[Job]:
    """The settings of the test: nothing runs by itself."""
    sections = {
        "http": {"host": "127.0.0.1", "port": free_port()},
        "schedule": {"every": "1h", "run_on_startup": False},
    }
    return settings_of(database, jobs(root), sections)


@contextlib.asynccontextmanager
async def serving(settings: Settings[Job]) -> AsyncIterator[Service]:
    """The service, from when it listens until it has ended."""
    service = Service(lambda: settings)
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready=lambda _: ready.set()))
    try:
        await asyncio.wait({task, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        yield service
    finally:
        service.stop()
        await task


async def run(service: Service, *names: str) -> dict[str, Json]:
    """A pass of these jobs (all, where none is named), to its end: the records by job."""
    begun = await service.agent.operations.run_pass(trigger="manual", requested_by="ann", names=names or None)
    assert await begun.wait(60)
    return {record["job"]: record for record in begun.runs()}


def load_incident(db: Db, root: Path) -> Incident:
    """The incident, in the database and on the volume."""
    made = incident(server_now(db))
    made.write_files(root)
    db.generated_applications.insert_many(made.records)
    db.analysis_tasks.insert_many(made.tasks)
    return made


def burst(db: Db, made: Incident, number: int) -> None:
    """Seven more tasks for an application that is gone, older than the grace."""
    created = server_now(db) - dt.timedelta(minutes=5)
    like = {key: value for key, value in made.orphan_tasks[number].items() if key != "_id"}
    db.analysis_tasks.insert_many([{**like, "task_id": f"{number}-{one}", "created_at": created} for one in range(7)])


# ------------------------------------------------------------------------------------------------------- the providers


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Json]:
    """A cluster in which one pod requests 4 cores and 8 GiB, and one claim 100 GiB; yields its kubeconfig."""
    certificates = faulty.certificates(folder)
    requests = {"cpu": "4", "memory": "8Gi"}
    pod = {"metadata": {"name": "db-0"}, "spec": {"containers": [{"name": "db", "resources": {"requests": requests}}]}}
    claim = {"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "100Gi"}}}}

    async def lists(request: web.BaseRequest) -> web.StreamResponse:
        listed = [pod] if request.path.endswith("/pods") else [claim]
        return await faulty.items(*listed)(request)

    async with faulty.serving(faulty.healthy(lists), certificates.for_server()) as server:
        trusted = {"certificate-authority-data": certificates.data("ca.crt")}
        yield faulty.kubeconfig(server.url, {"token": "secret-token"}, trusted)


def _amounts(cores: int, memory: int, storage: int) -> Json:
    return {"cpu": Int64(cores * 1000), "memory": Int64(memory * GIB), "storage": Int64(storage * GIB)}


def load_providers(db: Db, kubeconfig: Json) -> None:
    """One that adds up, one whose books are wrong, one that has promised too much, one that cannot be read."""
    provider = {"kubeconfig": kubeconfig, "capacity": _amounts(16, 64, 1000), "version": Int64(1)}
    nowhere = faulty.kubeconfig("https://127.0.0.1:1", {"token": "t"})
    db.providers.insert_many(
        [
            {**provider, "_id": "east", "name": "east", "allocated": _amounts(4, 8, 100)},
            {**provider, "_id": "north", "name": "north", "allocated": _amounts(6, 12, 150)},
            {**provider, "_id": "south", "name": "south", "allocated": _amounts(20, 48, 900)},
            {**provider, "_id": "west", "name": "west", "allocated": _amounts(4, 8, 100), "kubeconfig": nowhere},
        ]
    )
    owed = {"east": _amounts(4, 8, 100), "north": _amounts(4, 8, 100), "south": _amounts(20, 48, 900)}
    owed["west"] = owed["east"]
    databases = [{"provider_id": id, "status": "running", "resources": amounts} for id, amounts in owed.items()]
    db.databases.insert_many(databases)


# ---------------------------------------------------------------------------------------------------------- Prometheus


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and its samples in the order of time."""

    labels: Mapping[str, str]
    samples: Sequence[tuple[float, float]]

    @property
    def last(self) -> float:
        """The latest value."""
        return self.samples[-1][1]

    @property
    def finite(self) -> bool:
        """Whether any value is a number."""
        return any(math.isfinite(value) for _, value in self.samples)


class Answers:
    """What Prometheus and Alertmanager say; asked in a thread, since the agent that they scrape shares the loop."""

    def __init__(self, monitoring: Monitoring) -> None:
        self.monitoring = monitoring
        self.began = time.time()

    async def _get(self, path: str, **parameters: str) -> Any:
        target = f"/api/v1/{path}?{urlencode(parameters)}"
        return json.loads(await asyncio.to_thread(get, self.monitoring.prometheus, target))["data"]

    async def now(self, expr: str) -> list[Series]:
        """The value of an expression now. Raises ``OSError`` for one that Prometheus does not take."""
        return _series(await self._get("query", query=expr))

    async def since(self, began: float, expr: str) -> list[Series]:
        """Its values from then until now, a second apart."""
        end = time.time()
        return _series(await self._get("query_range", query=expr, start=f"{began}", end=f"{end}", step=f"{SECONDS}"))

    async def value(self, expr: str) -> float | None:
        """The one value of an expression now, if there is one."""
        found = await self.now(expr)
        return found[0].last if len(found) == 1 else None

    async def rules(self) -> list[Json]:
        """The rules, with what came of their last evaluation."""
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def alerts(self) -> dict[tuple[str, str], Json]:
        """What Alertmanager has been told and what was not resolved, by alert and job."""
        found = await asyncio.to_thread(self.monitoring.alerts)
        return {(one["labels"]["alertname"], one["labels"].get("job_name", "")): one for one in found}

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        """Waits until something shows."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await holds():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:.0f} s"
            await asyncio.sleep(POLL_SECONDS)

    async def until_value(self, expr: str, value: float) -> None:
        """Waits until an expression has a value."""

        async def holds() -> bool:
            return await self.value(expr) == value

        await self.until(f"{expr} == {value}", holds)

    async def until_told(self, alert: str, job: str, *, told: bool = True) -> Json:
        """Waits until Alertmanager knows an alert, or no longer does; returns it."""
        found: Json = {}

        async def holds() -> bool:
            alerts = await self.alerts()
            found.update(alerts.get((alert, job), {}))
            return ((alert, job) in alerts) == told

        await self.until(f"{alert} of {job} {'told' if told else 'resolved'}", holds)
        return found


def _series(data: Json) -> list[Series]:
    if data["resultType"] in {"scalar", "string"}:
        return [Series({}, [(float(data["result"][0]), float(data["result"][1]))])]
    return [
        Series(one["metric"], [(float(at), float(value)) for at, value in one.get("values") or [one["value"]]])
        for one in data["result"]
    ]


# ---------------------------------------------------------------------------------------------------------- dashboards


@dataclass(frozen=True)
class Shown:
    """What a panel of a dashboard shows: the answers to its queries, in their order."""

    panel: Json
    answers: Sequence[Sequence[Series]]


async def shown(board: Json, answers: Answers) -> list[Shown]:
    """Asks what a dashboard would ask, with everything chosen and from the beginning on."""
    seconds = int(time.time() - answers.began) + 1
    chosen = {"job_name": JOB, "__rate_interval": f"{5 * SECONDS}s", "__range": f"{seconds}s"}
    found = []
    for panel in board["panels"]:
        answered = []
        for target in panel.get("targets", []):
            expr = promql.substituted(target["expr"], chosen)
            answered.append(await (answers.now(expr) if target.get("instant") else answers.since(answers.began, expr)))
        found.append(Shown(panel, answered))
    return found
