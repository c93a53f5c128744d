"""Operations that only remember what they were asked for, and an application around them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import AgentError, BusyError, NotFoundError
from agent.health import Check, Flag, Health
from agent.job import Trigger
from agent.metrics import Metrics
from agent.web import Context, RateLimiter, TokenFile

Json = dict[str, Any]

ANN, BOB = "ann's-token-of-sufficient-length", "bob's-token-of-sufficient-length"
RUN: Json = {
    "_id": "0190-run",
    "pass": "0190-pass",
    "job": "orphan_apps",
    "kind": "orphan_records",
    "trigger": "manual",
    "requested_by": "ann",
    "dry_run": False,
    "accept": [],
    "source": None,
    "scheduled_for": None,
    "started_at": "2026-11-22T10:00:00.000Z",
    "ended_at": "2026-11-22T10:00:01.500Z",
    "seconds": 1.5,
    "outcome": "succeeded",
    "reason": None,
    "guard": None,
    "consent": None,
    "population": 128,
    "found": {"orphan": 28},
    "held": {},
    "changed": {"deleted": 28},
    "failed": 0,
    "complete": True,
    "would_refuse": None,
    "oldest_found_at": "2026-11-20T10:00:00.000Z",
    "sample": [{"id": {"$oid": "507f1f77bcf86cd799439011"}, "action": "deleted", "reason": "no directory"}],
    "agent": "host-1",
    "term": 7,
}
RUNNING = {**RUN, "ended_at": None, "seconds": None, "outcome": None, "complete": False}
JOB: Json = {
    "name": "orphan_apps",
    "kind": "orphan_records",
    "enabled": True,
    "paused": False,
    "settings": {"grace": "10m"},
    "schedule": {"every": "1h"},
    "last_run": RUN,
    "next_run": "2026-11-22T11:00:00.000Z",
}
ITEM: Json = {
    "_id": "507f1f77bcf86cd799439012",
    "database": "app",
    "collection": "generated_applications",
    "id": {"$oid": "507f1f77bcf86cd799439011"},
    "what": "orphan",
    "action": "deleted",
    "reason": "no directory",
    "state": "done",
}
STATUS: Json = {
    "version": "1.2.3",
    "agent": "host-1",
    "now": "2026-11-22T10:30:00.000Z",
    "paused": False,
    "jobs": [JOB],
    "statistics": {
        "runs": 3,
        "last_run": "2026-11-22T10:00:01.500Z",
        "orphan_apps_cleaned": 28,
        "orphan_tasks_cleaned": 469,
        "stuck_tasks_cleaned": 0,
        "old_tasks_cleaned": 0,
        "errors": 0,
    },
}
EXPLANATION: Json = {
    "job": "orphan_apps",
    "kind": "orphan_records",
    "database": "app",
    "collection": "generated_applications",
    "id": {"$oid": "507f1f77bcf86cd799439011"},
    "found": "orphan",
    "action": "deleted",
    "reason": "its directory is missing",
    "held_by": ["quarantine"],
    "actions": [
        {
            "action": "deleted",
            "conditions": [{"name": "its directory is missing", "holds": True, "values": {"model_slug": "a"}}],
        }
    ],
    "proofs": [{"guard": "root", "refusal": None}],
}
HELD: Json = {"database": "app", "collection": "generated_applications", "id": "x", "held": True, "by": "ann"}
PAUSED: Json = {"job": None, "paused": True}
RELOADED: Json = {"reloaded": True, "jobs": ["orphan_apps"], "needs_restart": [], "warnings": []}


@dataclass
class FakeHandle:
    """A run, or a pass of one run, that ends when it is told to."""

    id: str
    ends: asyncio.Event
    waited: list[float] = field(default_factory=list)

    def record(self) -> Json:
        """The run as it is now."""
        return RUN if self.ends.is_set() else RUNNING

    def runs(self) -> list[Json]:
        """The runs of the pass."""
        return [self.record()]

    async def wait(self, seconds: float) -> bool:
        """Says whether it has ended, without letting time pass."""
        self.waited.append(seconds)
        await asyncio.sleep(0)
        return self.ends.is_set()


class FakeOperations:
    """Remembers every call; fails with ``error`` where one is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.ends = asyncio.Event()
        self.running = False
        self.handles: list[FakeHandle] = []

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def _handle(self, id_: str) -> FakeHandle:
        self.handles.append(FakeHandle(id_, self.ends))
        return self.handles[-1]

    async def run_job(
        self, name: str, /, *, trigger: Trigger, requested_by: str, dry_run: bool, accept: frozenset[str]
    ) -> FakeHandle:
        """Starts one job, once."""
        self._called("run_job", name, trigger, requested_by, dry_run, accept)
        if name == "unknown":
            raise NotFoundError("there is no job unknown")
        if self.running:
            raise BusyError(f"{name} is running")
        self.running = True
        return self._handle("0190-run")

    async def run_pass(
        self, *, trigger: Trigger, requested_by: str, dry_run: bool, accept: frozenset[str]
    ) -> FakeHandle:
        """Starts a pass."""
        self._called("run_pass", trigger, requested_by, dry_run, accept)
        return self._handle("0190-pass")

    async def apply(self, plan: str, /, *, requested_by: str) -> FakeHandle:
        """Applies a plan."""
        self._called("apply", plan, requested_by)
        return self._handle("0190-pass")

    async def restore(self, run_id: str, /, *, item: str | None, requested_by: str) -> FakeHandle:
        """Undoes a run."""
        self._called("restore", run_id, item, requested_by)
        return self._handle("0190-run")

    async def cancel(self, run_id: str, /, *, requested_by: str) -> Json:
        """Asks a run to end."""
        self._called("cancel", run_id, requested_by)
        return RUNNING

    async def hold(
        self, database: str | None, collection: str, id_text: str, /, *, requested_by: str, reason: str | None
    ) -> Json:
        """Puts a hold on a document."""
        self._called("hold", database, collection, id_text, requested_by, reason)
        return {**HELD, "database": database or "app", "collection": collection, "id": id_text, "reason": reason}

    async def release(
        self, database: str | None, collection: str, id_text: str, /, *, requested_by: str, reason: str | None
    ) -> Json:
        """Takes a hold off a document."""
        self._called("release", database, collection, id_text, requested_by, reason)
        return {"database": database or "app", "collection": collection, "id": id_text, "held": False}

    async def pause(self, job: str | None, /, *, requested_by: str) -> Json:
        """Stops the clock."""
        self._called("pause", job, requested_by)
        return {"job": job, "paused": True}

    async def resume(self, job: str | None, /, *, requested_by: str) -> Json:
        """Lets the clock go on."""
        self._called("resume", job, requested_by)
        return {"job": job, "paused": False}

    async def status(self) -> Json:
        """The service."""
        self._called("status")
        return STATUS

    async def jobs(self) -> list[Json]:
        """All jobs."""
        self._called("jobs")
        return [JOB]

    async def job(self, name: str, /) -> Json:
        """One job."""
        self._called("job", name)
        return JOB

    async def runs(self, **filters: Any) -> tuple[list[Json], str | None]:
        """A page of runs."""
        self._called("runs", filters)
        return [RUN], "0190-run"

    async def run(self, run_id: str, /) -> Json:
        """One run."""
        self._called("run", run_id)
        return RUN

    async def items(self, run_id: str, /, *, after: str | None, limit: int) -> tuple[list[Json], str | None]:
        """A page of items."""
        self._called("items", run_id, after, limit)
        return [ITEM], None

    async def explain(self, job: str, id_text: str, /) -> Json:
        """Why."""
        self._called("explain", job, id_text)
        return EXPLANATION

    async def reload(self, *, requested_by: str) -> Json:
        """Loads the configuration again."""
        self._called("reload", requested_by)
        return RELOADED


@dataclass
class Parts:
    """An application's context, with its parts as what they are."""

    operations: FakeOperations
    metrics: Metrics
    health: Health
    mongodb: Flag
    tokens: TokenFile
    context: Context

    def fail(self, error: AgentError | Exception) -> None:
        """Every operation fails from now on."""
        self.operations.error = error


def parts(tokens_file: Path | None, *, base_path: str = "", limiter: RateLimiter | None = None) -> Parts:
    """The parts of an application around fake operations."""
    operations, metrics, health, mongodb = FakeOperations(), Metrics("1.2.3", ["orphan_apps"]), Health(), Flag()
    health.register(Check("mongodb", mongodb))
    tokens = TokenFile(tokens_file)
    context = Context(
        operations, metrics, health, tokens, "1.2.3", base_path, limiter or RateLimiter(per_minute=100_000)
    )
    return Parts(operations, metrics, health, mongodb, tokens, context)
