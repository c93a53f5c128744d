"""Health: named checks, answered as Kubernetes' own endpoints answer.

``livez`` asks only whether the event loop turns: a MongoDB that is away must never have the agent restarted, since a
restart would not bring it back. ``readyz`` asks for what the agent needs to do its work; it recovers by itself.
``healthz`` asks everything.

Each check of a dependency runs at most once at a time and its result is kept for a second, so that probes cannot pile
up on one that does not answer. A check that takes too long has failed; its probe is left to end by itself for a
while, because a driver that is cancelled keeps its thread anyway. No reason carries a secret.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal

from agent import log
from agent.errors import AgentError
from agent.metrics import Metrics

Endpoint = Literal["livez", "readyz", "healthz"]
Probe = Callable[[], Awaitable[str | None]]
"""Returns the reason why something is not well, or nothing; an error that it raises is a reason too."""

KEPT_SECONDS: Final = 1.0  # shorter than any sensible probe period
PATIENCE_SECONDS: Final = 2.0  # what a request waits for a check; below the usual time-out of a scraper or a monitor
ABANDONED_SECONDS: Final = 30.0  # a probe without an end is cancelled after this long
LAG_EVERY_SECONDS: Final = 0.25

_log = log.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """A check by name. ``healthz`` asks every check, whatever ``endpoints`` says."""

    name: str
    probe: Probe
    endpoints: frozenset[Literal["livez", "readyz"]] = frozenset({"readyz"})


@dataclass(frozen=True, slots=True)
class Result:
    """What a check said: nothing, or the reason why it failed."""

    name: str
    reason: str | None
    excluded: bool = False

    @property
    def line(self) -> str:
        """The line of a verbose answer."""
        if self.excluded:
            return f"[+]{self.name} excluded: ok"
        return f"[+]{self.name} ok" if self.reason is None else f"[-]{self.name} failed: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of an endpoint: the results of its checks, and excluded names that no check has."""

    endpoint: str
    results: tuple[Result, ...]
    unknown: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check passed that was not excluded."""
        return all(result.reason is None for result in self.results)

    @property
    def text(self) -> str:
        """The verbose answer."""
        lines = [result.line for result in self.results]
        if self.unknown:
            names = ",".join(f'"{name}"' for name in self.unknown)
            lines.append(f"warn: some health checks cannot be excluded: no matches for {names}")
        return "\n".join([*lines, f"{self.endpoint} check {'passed' if self.ok else 'failed'}", ""])


class Flag:
    """A check that somebody sets: failing for a reason until it is cleared, or well until it is raised."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason

    def fail(self, reason: str) -> None:
        """The check fails from now on."""
        self.reason = reason

    def clear(self) -> None:
        """The check passes from now on."""
        self.reason = None

    async def __call__(self) -> str | None:
        """The probe."""
        return self.reason


class _Asked:
    """A check with its probe in flight and its last result."""

    def __init__(self, check: Check, monotonic: Callable[[], float], patience: float) -> None:
        self.check = check
        self._monotonic = monotonic
        self._patience = patience
        self._task: asyncio.Task[str | None] | None = None
        self._result = Result(check.name, "not asked yet")
        self._at = -math.inf

    async def ask(self) -> Result:
        """The result of the last second, else that of one probe that all who ask now share; of a flag, what it says."""
        if isinstance(self.check.probe, Flag):
            self._keep(self.check.probe.reason)  # a start or an end that is a second old would be told too late
            return self._result
        if self._monotonic() - self._at < KEPT_SECONDS:
            return self._result
        task = self._task or self._start()
        done, _ = await asyncio.wait({task}, timeout=self._patience)
        if done:
            self._ended(task)
        else:
            self._keep(f"no answer within {self._patience:g} s")
        return self._result

    def _start(self) -> asyncio.Task[str | None]:
        self._task = asyncio.create_task(self._probe(), name=f"health check {self.check.name}")
        self._task.add_done_callback(self._ended)
        return self._task

    async def _probe(self) -> str | None:
        async with asyncio.timeout(ABANDONED_SECONDS):
            return await self.check.probe()

    def _ended(self, task: asyncio.Task[str | None]) -> None:
        """Keeps the result; called when the probe ends, and sooner by whoever waits for it."""
        if self._task is task:
            self._task = None
            self._keep(self._reason(task))

    def _reason(self, task: asyncio.Task[str | None]) -> str | None:
        if task.cancelled():
            return "cancelled"
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, AgentError | OSError):  # a time-out is an OSError
            return str(error) or type(error).__name__
        _log.error("a health check broke", check=self.check.name, exc_info=error)
        return f"the check itself broke ({type(error).__name__})"

    def _keep(self, reason: str | None) -> None:
        told = None if reason is None else " ".join(log.redact(reason).split())
        self._result, self._at = Result(self.check.name, told), self._monotonic()

    async def close(self) -> None:
        """Cancels the probe in flight."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})


class Health:
    """The registry of the checks. The event loop's own is there from the start."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic, patience: float = PATIENCE_SECONDS) -> None:
        """``patience`` is what a request waits for a check, in seconds."""
        self._monotonic = monotonic
        self._patience = patience
        self._checks: dict[str, _Asked] = {}
        self.register(Check("event-loop", Flag(), frozenset({"livez", "readyz"})))

    def register(self, check: Check) -> None:
        """Adds a check, in the order in which answers list them; one of the same name is replaced."""
        self._checks[check.name] = _Asked(check, self._monotonic, self._patience)

    def names(self, endpoint: Endpoint) -> list[str]:
        """The checks of an endpoint."""
        return [
            name for name, asked in self._checks.items() if endpoint == "healthz" or endpoint in asked.check.endpoints
        ]

    async def ask(self, endpoint: Endpoint, exclude: Collection[str] = ()) -> Verdict:
        """Asks the checks of an endpoint at the same time, without those excluded."""
        names = self.names(endpoint)
        results = await asyncio.gather(*(self._result(name, exclude) for name in names))
        unknown = tuple(sorted(set(exclude) - set(names)))
        return Verdict(endpoint, tuple(results), unknown)

    async def ask_one(self, endpoint: Endpoint, name: str) -> Verdict | None:
        """Asks one check of an endpoint; nothing where the endpoint has no such check."""
        if name not in self.names(endpoint):
            return None
        return Verdict(endpoint, (await self._checks[name].ask(),))

    async def _result(self, name: str, exclude: Collection[str]) -> Result:
        if name in exclude:
            return Result(name, None, excluded=True)
        return await self._checks[name].ask()

    async def close(self) -> None:
        """Cancels the probes that are in flight."""
        await asyncio.gather(*(asked.close() for asked in self._checks.values()))


async def watch_loop_lag(metrics: Metrics, every: float = LAG_EVERY_SECONDS) -> None:
    """Measures for ever how late a timer of the event loop is, and tells the metrics."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        await asyncio.sleep(every)
        metrics.loop_lag(loop.time() - due)
