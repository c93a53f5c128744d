"""The replay of the incident: the stage that it is set up on, the two ways to play it, and whether it ended well.

The stage is a private mongod (a replica set of one member, so that batches are transactions), the incident's documents
in it, its directories under a temporary root, and a configuration file. All of it is gone when the stage is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from agent.app import Agent, Service, open_agent
from agent.demo.incident import Document, Incident, incident
from agent.demo.mongod import Mongod, free_port
from agent.errors import StoreUnavailableError
from agent.job import Job
from agent.jobs import KINDS
from agent.settings import Settings, load
from agent.store import Namespace, Store

DATABASE: Final = "app"
RECORDS: Final = Namespace(DATABASE, "generated_applications")
TASKS: Final = Namespace(DATABASE, "analysis_tasks")
SET_NAME: Final = "demo"
PORT: Final = 9190  # where it is free, so that the address is the one of the documentation
PRIMARY_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05
WHO: Final = "demo"

# The sidecar's defaults, but for two: the one pass of the demonstration may act on what it sees for the first time, and
# the port is not for everybody.
CONFIGURATION: Final = """\
mongodb: {{uri: "{uri}", database: {database}}}
http: {{host: 127.0.0.1, port: {port}, tokens_file: "{tokens}"}}
jobs:
  orphan_apps: {{kind: orphan_records, root: "{root}", quarantine: 0s}}
  orphan_tasks: {{kind: orphan_tasks}}
  stuck_tasks: {{kind: stuck_tasks}}
  old_tasks: {{kind: retention}}
"""

Say = Callable[[str], None]
Counts = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Before:
    """What must not change: the healthy documents byte for byte, and the files."""

    documents: Mapping[Namespace, Mapping[Any, bytes]]
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass ended: its runs, and what speaks against it."""

    runs: Sequence[Document]
    problems: Sequence[str]

    @property
    def document(self) -> Document:
        """The report as JSON."""
        return {"ok": not self.problems, "problems": list(self.problems), "runs": list(self.runs)}


class Stage:
    """The incident, ready to be played."""

    def __init__(self, mongod: Mongod, folder: Path) -> None:
        self.incident: Incident
        self.before: Before
        self.token = secrets.token_urlsafe(24)
        self.port = PORT if _is_free(PORT) else free_port()
        self.root = folder / "volume"
        self._uri = mongod.uri
        self._address = mongod.address
        self._configuration = folder / "maintenance.yaml"
        self._tokens = folder / "tokens"

    def settings(self) -> Settings[Job]:
        """The configuration of the demonstration; the environment has no say in it."""
        settings: Settings[Job] = load(KINDS, path=self._configuration, environ={})
        return settings

    async def set_up(self) -> None:
        """Writes the files and fills the database."""
        self.root.mkdir()
        self._tokens.touch(0o600)
        self._tokens.write_text(f"{WHO}:{self.token}\n", encoding="utf-8")
        values = {"uri": self._uri, "database": DATABASE, "port": self.port, "tokens": self._tokens, "root": self.root}
        self._configuration.write_text(CONFIGURATION.format(**values), encoding="utf-8")
        store = Store(self._uri)
        try:
            await _initiate(store, self._address)
            self.incident = incident(await store.now())
            self.incident.write_files(self.root)
            await store.collection(RECORDS).insert_many(self.incident.records)
            await store.collection(TASKS).insert_many(self.incident.tasks)
            self.before = await self._now(store)
        finally:
            await store.close()

    async def _now(self, store: Store) -> Before:
        """What must not change, as it is now."""
        healthy = {
            RECORDS: self.incident.healthy_records,
            TASKS: (*self.incident.active_tasks, *self.incident.finished_tasks),
        }
        documents = {}
        for namespace, some in healthy.items():
            ids = [document["_id"] for document in some]
            found, _ = await store.collection(namespace).find_raw({"_id": {"$in": ids}})
            documents[namespace] = {document["_id"]: bytes(document.raw) for document in found}
        return Before(documents, await asyncio.to_thread(_fingerprints, self.root))

    async def damage(self, store: Store) -> list[str]:
        """What changed of that which must not change."""
        now, problems = await self._now(store), []
        for namespace, documents in self.before.documents.items():
            changed = sum(now.documents[namespace].get(id) != raw for id, raw in documents.items())
            if changed:
                problems.append(f"{changed} healthy documents of {namespace} are not what they were")
        if now.files != self.before.files:
            problems.append("the files under the root are not what they were")
        return problems

    @property
    def expected(self) -> Mapping[str, tuple[Counts, Counts]]:
        """By job: what it has to find, and what a real pass has to change."""
        expected = self.incident.expected
        stuck = {"cancelled": expected.stuck_pending, "failed": expected.stuck_running}
        return {
            "orphan_apps": _numbers("orphan", {"deleted": expected.orphan_records}),
            "orphan_tasks": _numbers("orphan", {"cancelled": expected.orphan_tasks}),
            "stuck_tasks": _numbers("stuck", stuck),
            "old_tasks": _numbers("expired", {"deleted": expected.expired}),
        }

    def mistakes(self, runs: Sequence[Document]) -> list[str]:
        """What the runs of a pass did other than they had to."""
        by_job = {run["job"]: run for run in runs}
        mistakes = [_mistakes(job, by_job.get(job), *numbers) for job, numbers in self.expected.items()]
        return list(chain.from_iterable(mistakes))

    async def report(self, agent: Agent, runs: Sequence[Document]) -> Report:
        """How a pass ended."""
        return Report(runs, [*self.mistakes(runs), *await self.damage(agent.store)])


def _numbers(what: str, changed: dict[str, int]) -> tuple[Counts, Counts]:
    return {"found": {what: sum(changed.values())}}, {"changed": changed}


def _mistakes(job: str, run: Document | None, found: Counts, changed: Counts) -> list[str]:
    if run is None:
        return [f"{job} did not run"]
    if run["outcome"] != "succeeded":
        return [f"{job} {run['outcome']}: {run['reason']}"]
    wanted = {**found, "held": {}, "changed": {} if run["dry_run"] else changed["changed"]}
    return [f"{job}: {name} is {run[name]}, not {value}" for name, value in wanted.items() if run[name] != value]


@asynccontextmanager
async def stage(say: Say) -> AsyncIterator[Stage]:
    """Sets the stage, and removes it at the end. Raises ``MongodError`` where there is no mongod."""
    say("Starting a private mongod ...")
    with tempfile.TemporaryDirectory(prefix="maintenance-agent-demo-") as name, Mongod(replica_set=SET_NAME) as mongod:
        made = Stage(mongod, Path(name))
        await made.set_up()
        expected = made.incident.expected
        say(
            f"The incident is loaded. Of {len(made.incident.records)} records {expected.orphan_records} have lost their"
            f" directory, {expected.orphan_tasks} pending tasks target these; {expected.stuck_running} running and"
            f" {expected.stuck_pending} pending tasks are stuck, {expected.expired} finished ones are past their time."
        )
        yield made


async def once(stage: Stage) -> tuple[Report, Report]:
    """One dry pass, then one real pass."""
    async with open_agent(stage.settings()) as agent:
        looked = await _pass(agent, dry_run=True)
        plan = await stage.report(agent, looked)
        done = await _pass(agent, dry_run=False)
        return plan, await stage.report(agent, done)


async def _pass(agent: Agent, *, dry_run: bool) -> list[Document]:
    begun = await agent.operations.run_pass(trigger="cli", requested_by=WHO, dry_run=dry_run)
    await begun.wait()
    return begun.runs()


async def start_up_pass(stage: Stage, service: Service) -> Report:
    """Waits for the pass that the service makes when it starts."""
    while True:
        runs, _ = await service.agent.operations.runs(trigger="startup")
        ended = [run for run in runs if run["outcome"] is not None]
        if len(ended) == len(stage.expected):
            return await stage.report(service.agent, ended[::-1])
        await asyncio.sleep(POLL_SECONDS)


async def _initiate(store: Store, address: str) -> None:
    """Makes the server a replica set of its own, and waits until it takes writes. Raises ``StoreUnavailableError``."""
    members = [{"_id": 0, "host": address}]
    await store.command("admin", {"replSetInitiate": {"_id": SET_NAME, "members": members}})
    deadline = time.monotonic() + PRIMARY_SECONDS
    while not (await store.hello()).get("isWritablePrimary"):
        if time.monotonic() > deadline:
            raise StoreUnavailableError(f"the private mongod took no writes within {PRIMARY_SECONDS:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


def _fingerprints(root: Path) -> dict[str, str]:
    """The directories and files below the root, with what they hold."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in root.rglob("*")
    }


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: closed connections may linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
