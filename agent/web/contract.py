"""What the web asks of the rest of the agent: its operations, and what an application is made of.

Everything that operations answer is made of plain JSON types already, Extended JSON included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.health import Health
from agent.job import Trigger
from agent.metrics import Metrics
from agent.web.limits import RateLimiter, Turns
from agent.web.tokens import TokenFile

Json = dict[str, Any]


class Handle(Protocol):
    """A run that was started."""

    @property
    def id(self) -> str:
        """The run's id."""

    def record(self) -> Json:
        """The run as it is now."""

    async def wait(self, seconds: float) -> bool:
        """Waits until the run has ended, at most so long; says whether it has."""


class PassHandle(Protocol):
    """A pass that was started."""

    @property
    def id(self) -> str:
        """The pass' id."""

    def runs(self) -> list[Json]:
        """Its runs as they are now."""

    async def wait(self, seconds: float) -> bool:
        """Waits until all of its runs have ended, at most so long; says whether they have."""


class Operations(Protocol):
    """What an operator can ask for. All raise ``StoreUnavailableError`` where MongoDB is away."""

    async def run_job(
        self, name: str, /, *, trigger: Trigger, requested_by: str, dry_run: bool, accept: frozenset[str]
    ) -> Handle:
        """Starts one job. Raises ``NotFoundError``, or ``BusyError`` where it is running."""

    async def run_pass(
        self, *, trigger: Trigger, requested_by: str, dry_run: bool, accept: frozenset[str]
    ) -> PassHandle:
        """Starts all enabled jobs as one pass. Raises ``BusyError`` where one is running."""

    async def apply(self, plan: str, /, *, requested_by: str) -> PassHandle:
        """Applies the plan of a run or of a pass. Raises ``NotFoundError``, ``UsageError``, ``BusyError``."""

    async def restore(self, run_id: str, /, *, item: str | None, requested_by: str) -> Handle:
        """Undoes a run, or one item of it. Raises ``NotFoundError``, ``UsageError``, ``BusyError``."""

    async def cancel(self, run_id: str, /, *, requested_by: str) -> Json:
        """Asks a run to end between two batches; returns the run."""

    async def hold(
        self, database: str | None, collection: str, id_text: str, /, *, requested_by: str, reason: str | None
    ) -> Json:
        """Keeps every job off a document until it is released; returns the hold."""

    async def release(
        self, database: str | None, collection: str, id_text: str, /, *, requested_by: str, reason: str | None
    ) -> Json:
        """Ends a hold; returns the document that it was on."""

    async def pause(self, job: str | None, /, *, requested_by: str) -> Json:
        """Stops the clock of a job, or of everything."""

    async def resume(self, job: str | None, /, *, requested_by: str) -> Json:
        """Lets the clock go on."""

    async def status(self) -> Json:
        """The service at a glance."""

    async def jobs(self) -> list[Json]:
        """Every configured job."""

    async def job(self, name: str, /) -> Json:
        """One job. Raises ``NotFoundError``."""

    async def runs(
        self,
        *,
        job: str | None,
        pass_id: str | None,
        outcome: str | None,
        trigger: str | None,
        before: str | None,
        limit: int,
    ) -> tuple[list[Json], str | None]:
        """Runs, the newest first, and where to go on (``before``)."""

    async def run(self, run_id: str, /) -> Json:
        """One run. Raises ``NotFoundError``."""

    async def items(self, run_id: str, /, *, after: str | None, limit: int) -> tuple[list[Json], str | None]:
        """What a run planned or changed, in order, and where to go on (``after``)."""

    async def explain(self, job: str, id_text: str, /) -> Json:
        """Why a job would touch a document, or not."""

    async def reload(self, *, requested_by: str) -> Json:
        """Loads the configuration again. Raises ``ConfigurationError``; then the running one stays."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an application is made of. ``base_path`` is where a proxy publishes it (``/maintenance``, or nothing)."""

    operations: Operations
    metrics: Metrics
    health: Health
    tokens: TokenFile
    version: str
    base_path: str = ""
    limiter: RateLimiter = field(default_factory=RateLimiter)
    turns: Turns = field(default_factory=Turns)
