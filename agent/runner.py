"""The runner: the only caller of a job. Schedule, start-up, HTTP and command line all take this path.

It claims a run (lease, slot, record), lets ``Execution`` do the body, and turns whatever happens into one outcome, one
closed record, one set of metrics and one log line. A run that is not finished when the process dies is closed by the
next one that takes the lease.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, cast

import structlog

from agent.batches import Keep
from agent.errors import (
    AgentError,
    BusyError,
    InterruptedRunError,
    LeaseLostError,
    NotFoundError,
    RefusedError,
    SlotTakenError,
    StoreError,
)
from agent.execution import Execution
from agent.job import Guard, Job, Outcome, Run, Scope, Trigger
from agent.journal import as_json
from agent.lease import HeldError, Lease, Leases
from agent.reader import Overlay
from agent.store import Document, Session, time_limit

log = structlog.get_logger()

POLL_SECONDS = 0.02  # between two looks at the runs that a shutdown waits for
LATE_SECONDS = 60.0  # how long after its time the batch in hand, and what belongs to it, may take
CLOSE_SECONDS = 10.0  # for the record of a run that ends; what fails is closed by the next run
DRY_LEFT_AFTER = dt.timedelta(hours=24)  # a dry run that is still open then has no agent any more
RESTORE_TIMEOUT = dt.timedelta(minutes=30)

Body = Callable[[Execution], Awaitable[None]]


class Observer(Protocol):
    """What is told of runs, for metrics."""

    def run_started(self, job: str) -> None:
        """A run began."""

    def run_ended(
        self, job: str, outcome: Outcome, seconds: float, changed: Mapping[str, int], failed: int, guard: Guard | None
    ) -> None:
        """A run ended."""

    def skipped(self, job: str) -> None:
        """A run was not begun: the job is running, or a replica has the slot."""

    def missed(self, job: str, count: int = 1) -> None:
        """Slots went by without a run."""

    def lease(self, job: str, *, held: bool) -> None:
        """Whether this process holds the lease."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: which job, why, and how."""

    trigger: Trigger
    job: str = ""
    kind: str = ""
    requested_by: str | None = None
    dry_run: bool = False
    accept: frozenset[str] = frozenset()
    scheduled_for: dt.datetime | None = None
    timeout: dt.timedelta = dt.timedelta(minutes=10)
    pass_id: str = field(default_factory=lambda: new_id())  # noqa: PLW0108 - defined below
    run_id: str = field(default_factory=lambda: new_id())  # noqa: PLW0108 - as above
    overlay: Overlay | None = None
    shown: bool = False
    """Whether a later job of the pass has to see the plan of a dry run."""
    source: str | None = None
    scope: Scope = "shared"


class Active:
    """A run that is going on in this process."""

    def __init__(self, run: Run, deadline: float) -> None:
        self.run = run
        self.deadline = deadline
        self.stop = asyncio.Event()
        self.error: AgentError | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The run's id."""
        return self.run.id

    def record(self) -> Document:
        """The record as it is now, as JSON."""
        return as_json(self.run.document)

    async def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end, that long at most; says whether it came."""
        assert self.task is not None  # noqa: S101 - set where it is made
        done, _ = await asyncio.wait({self.task}, timeout=seconds)
        return bool(done)


class Runner:
    """Claims, runs and closes."""

    def __init__(self, keep: Keep, leases: Leases, observer: Observer, *, agent: str) -> None:
        """``agent`` names this process in records and leases."""
        self._keep = keep
        self._leases = leases
        self._observer = observer
        self._agent = agent
        self._active: dict[str, Active] = {}
        self._busy: set[tuple[str, bool]] = set()
        self._ending = asyncio.Event()

    def active(self, run: str) -> Active | None:
        """The run, if it is going on here."""
        return self._active.get(run)

    async def start(self, order: Order, body: Body) -> Active:
        """Claims a run and begins it. Raises ``BusyError``, ``SlotTakenError``, ``StoreError`` where it cannot."""
        slot = (order.job, order.dry_run)
        if self._ending.is_set():
            raise BusyError("the agent is shutting down")
        if slot in self._busy:
            raise BusyError(f"{order.job} is already running")
        self._busy.add(slot)
        try:
            run, lease, now = await self._claim(order)
        except BaseException:
            self._busy.discard(slot)
            raise
        active = Active(run, asyncio.get_running_loop().time() + order.timeout.total_seconds())
        self._active[run.id] = active
        active.task = asyncio.create_task(self._run(active, order, body, lease, now), name=f"run {run.id}")
        return active

    # --- claim

    async def _claim(self, order: Order) -> tuple[Run, Lease | None, dt.datetime]:
        run = Run(
            id=order.run_id,
            pass_id=order.pass_id,
            job=order.job,
            kind=order.kind,
            trigger=order.trigger,
            requested_by=order.requested_by,
            dry_run=order.dry_run,
            agent=self._agent,
            scheduled_for=None if order.dry_run else order.scheduled_for,
            accept=order.accept,
            source=order.source,
        )
        with time_limit(CLOSE_SECONDS):
            if order.scope == "process":
                run.started_at = dt.datetime.now(dt.UTC)
                run.scheduled_for = None  # every process has its own
                await self._open_if_possible(run)
                return run, None, run.started_at
            if order.dry_run:
                now = run.started_at = await self._keep.store.now()
                await self._keep.journal.close_left_dry(now - DRY_LEFT_AFTER, now)
                await self._keep.journal.open(run)
                return run, None, now
            lease = await self._leases.acquire(order.job, run.id, run.scheduled_for)
            run.started_at, run.term = lease.now, lease.term
            try:
                await self._keep.journal.open(run)
                await self._recover(order.job, lease)
            except BaseException:
                await lease.release()
                raise
            return run, lease, lease.now

    async def _open_if_possible(self, run: Run) -> None:
        """The record of a run that needs no MongoDB: written where there is one."""
        try:
            await self._keep.journal.open(run)
        except StoreError as error:
            log.warning("record_not_opened", run=run.id, error=str(error))

    async def _recover(self, job: str, lease: Lease) -> None:
        """Settles what a dead agent left of earlier terms of the job."""
        transactions = await self._keep.store.has_transactions()
        if not transactions:
            last = await self._keep.journal.last(job, {"dry_run": False})
            if last is not None:
                await self._keep.controls.add_totals(last)  # its agent may have died before it did
            await self._settle(job)
        for left in await self._keep.journal.left(job, lease.term):
            if not transactions:
                await self._recount(left)
            if await self._together(partial(self._close_left, left, lease.now)):
                log.warning("closed_left_run", job=job, run=left)

    async def _close_left(self, left: str, now: dt.datetime, session: Session | None) -> bool:
        closed = await self._keep.journal.close_left(left, now, session)
        if closed is not None:
            await self._keep.controls.add_totals(closed, session)
        return closed is not None

    async def _settle(self, job: str) -> None:
        """Without transactions: finds out what became of the changes that were begun and not confirmed."""
        pending = [entry async for entry in self._keep.archive.entries({"state": "pending", "job": job})]
        await self._keep.restorer.settle(pending, forget=False)

    async def _recount(self, run: str) -> None:
        """Without transactions: the record's counts are what the archive tells."""
        await self._keep.journal.set_counts(run, await self._keep.archive.counts(run))

    async def _together(self, work: Callable[[Session | None], Awaitable[bool]]) -> bool:
        """Does the work in one transaction where the server has them."""
        if await self._keep.store.has_transactions():
            return await self._keep.store.transaction(work, seconds=CLOSE_SECONDS)
        return await work(None)

    # --- run

    async def _run(self, active: Active, order: Order, body: Body, lease: Lease | None, now: dt.datetime) -> None:
        run = active.run
        if self._ending.is_set():
            active.stop.set()  # the shutdown began while the run was being claimed
        began = asyncio.get_running_loop().time()
        self._observer.run_started(run.job)
        try:
            with structlog.contextvars.bound_contextvars(run=run.id, job=run.job):
                execution = Execution(
                    self._keep,
                    run,
                    now=now,
                    deadline=active.deadline,
                    stop=active.stop,
                    lease=lease,
                    overlay=order.overlay,
                    shown=order.shown,
                )
                run.outcome = await self._outcome(active, execution, body, lease)
                run.seconds = round(asyncio.get_running_loop().time() - began, 3)
                run.ended_at = now + dt.timedelta(seconds=run.seconds)
                await self._close(active, execution, lease)
        finally:
            self._busy.discard((order.job, order.dry_run))
            self._active.pop(run.id, None)
            self._report(active)

    async def _outcome(self, active: Active, execution: Execution, body: Body, lease: Lease | None) -> Outcome:
        """Does the work, and names how it ended."""
        run = active.run
        try:
            # What has no limit of its own must not hang with the server: an end that is late is an end.
            with time_limit(active.deadline - asyncio.get_running_loop().time() + LATE_SECONDS):
                if lease is None:
                    await body(execution)
                else:
                    self._observer.lease(run.job, held=True)
                    async with lease.renewing():
                        await body(execution)
        except RefusedError as error:
            run.guard, run.consent = cast("Guard", error.guard), error.consent
            run.reason = f"{error.guard}: {error}"
            return "refused"
        except (InterruptedRunError, LeaseLostError, asyncio.CancelledError) as error:
            run.reason = str(error) or "the agent was shut down"
            return "interrupted"
        except (TimeoutError, AgentError) as error:
            return self._failed(active, error)
        except Exception as error:  # the one place that catches broadly: a defect of a job must not stop the others
            log.exception("run_broke")
            run.reason = f"{type(error).__name__}: a defect of the agent, see its log"
            return "failed"
        return "succeeded"

    @staticmethod
    def _failed(active: Active, error: TimeoutError | AgentError) -> Outcome:
        """Failed, or out of time: what a dependency says when the run's time ends is not its fault."""
        if isinstance(error, TimeoutError) or asyncio.get_running_loop().time() >= active.deadline:
            active.run.reason = "the run's time was up (run_timeout); the next run goes on"
            return "timed_out"
        active.error, active.run.reason = error, str(error)
        return "failed"

    async def _close(self, active: Active, execution: Execution, lease: Lease | None) -> None:
        run = active.run
        run.report.complete = run.report.complete and run.outcome == "succeeded"
        try:
            with time_limit(CLOSE_SECONDS):
                await self._close_record(run, lease)
                if run.outcome == "succeeded" and not run.dry_run:
                    for proof in execution.proofs:
                        await self._keep.controls.set_baseline(run.job, proof, run)
                    if execution.pictures:
                        await self._keep.controls.set_pictures(run.job, execution.pictures)
        except (StoreError, LeaseLostError) as error:
            log.warning("record_not_closed", run=run.id, error=str(error))
        finally:
            await self._release(run.job, lease)

    async def _close_record(self, run: Run, lease: Lease | None) -> None:
        """Closes the record and adds it to the totals, both or neither where the server has transactions."""
        if run.dry_run:
            await self._keep.journal.close(run)
            return
        clean = run.outcome == "succeeded" and not run.report.failed
        if lease is not None and not clean and not await self._keep.store.has_transactions():
            lease.check()  # else the next holder finds out what became of the last batch, and closes the record
            await self._settle(run.job)
            await self._recount(run.id)

        async def close(session: Session | None) -> bool:
            closed = await self._keep.journal.close(run, session)
            if closed:
                await self._keep.controls.add_totals(run.document, session)
            return closed

        await self._together(close)

    async def _release(self, job: str, lease: Lease | None) -> None:
        if lease is None:
            return
        try:
            with time_limit(CLOSE_SECONDS):
                await lease.release()
        except StoreError as error:
            log.warning("lease_not_released", error=str(error))
        finally:
            self._observer.lease(job, held=False)

    def _report(self, active: Active) -> None:
        run, report = active.run, active.run.report
        outcome: Outcome = run.outcome or "failed"
        self._observer.run_ended(run.job, outcome, run.seconds or 0.0, report.changed, report.failed, run.guard)
        write = log.info if outcome in {"succeeded", "interrupted"} else log.warning
        write(
            "run_ended",
            run=run.id,
            job=run.job,
            trigger=run.trigger,
            dry_run=run.dry_run,
            outcome=outcome,
            reason=run.reason,
            seconds=run.seconds,
            population=report.population,
            found=dict(report.found),
            held=dict(report.held),
            changed=dict(report.changed),
            failed=report.failed,
        )

    # --- end

    async def shut_down(self, seconds: float) -> None:
        """Lets the batches in hand end, records the runs as interrupted, and breaks off what does not end in time."""
        self._ending.set()
        for active in self._active.values():
            active.stop.set()
        until = asyncio.get_running_loop().time() + seconds
        while self._busy and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 - runs end in many places
            await asyncio.sleep(POLL_SECONDS)  # a run that is still being claimed has no task yet
        late = [active.task for active in self._active.values() if active.task is not None]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


class Pass:
    """Runs of jobs that are due together, one after the other, in cascade order."""

    def __init__(self, runner: Runner, observer: Observer, orders: Sequence[tuple[Order, Body]]) -> None:
        self.id = orders[0][0].pass_id if orders else new_id()
        self._runner = runner
        self._observer = observer
        self._orders = orders
        self._records: dict[str, Document | Active] = {order.run_id: _waiting(order) for order, _ in orders}
        self.errors: list[AgentError] = []
        self.task = asyncio.create_task(self._run(), name=f"pass {self.id}")

    def runs(self) -> list[Document]:
        """The records of the runs, those that wait or were skipped included."""
        return [entry.record() if isinstance(entry, Active) else entry for entry in self._records.values()]

    @property
    def actives(self) -> list[Active]:
        """The runs that began."""
        return [entry for entry in self._records.values() if isinstance(entry, Active)]

    async def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of all runs, that long at most; says whether it came."""
        done, _ = await asyncio.wait({self.task}, timeout=seconds)
        return bool(done)

    async def _run(self) -> None:
        for order, body in self._orders:
            try:
                active = await self._runner.start(order, body)
            except (BusyError, SlotTakenError) as error:
                self._skip(order, error)
            except AgentError as error:
                self._fail(order, error)
            else:
                self._records[order.run_id] = active
                await active.wait()

    def _skip(self, order: Order, error: AgentError) -> None:
        self._observer.skipped(order.job)
        if order.scheduled_for is not None and _missed(order, error):
            self._observer.missed(order.job)
        self._records[order.run_id] = {**_waiting(order), "outcome": "skipped", "reason": str(error)}
        log.info("run_skipped", job=order.job, trigger=order.trigger, reason=str(error))

    def _fail(self, order: Order, error: AgentError) -> None:
        """A run that could not be claimed leaves no record: its dependency is away."""
        self.errors.append(error)
        self._observer.run_started(order.job)
        self._observer.run_ended(order.job, "failed", 0.0, {}, 0, None)
        self._records[order.run_id] = {**_waiting(order), "outcome": "failed", "reason": str(error)}
        log.warning("run_not_begun", job=order.job, trigger=order.trigger, error=str(error))


def _missed(order: Order, error: AgentError) -> bool:
    """Whether a slot goes by without a run: the lease is held, and not for this very slot."""
    return not isinstance(error, SlotTakenError) and not (
        isinstance(error, HeldError) and error.lease.scheduled_for == order.scheduled_for
    )


def _waiting(order: Order) -> Document:
    """The record of a run that has not begun."""
    run = Run(
        id=order.run_id,
        pass_id=order.pass_id,
        job=order.job,
        kind=order.kind,
        trigger=order.trigger,
        requested_by=order.requested_by,
        dry_run=order.dry_run,
        agent="",
        scheduled_for=order.scheduled_for,
        accept=order.accept,
        source=order.source,
    )
    return as_json(run.document)


def new_id() -> str:
    """An id for a run or a pass: the time of its making, for people, and randomness, for uniqueness."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(5)}"


def order_of(job: Job, asked: Order) -> tuple[Order, Body]:
    """The order for a plain run of a job, as it was asked for."""
    order = replace(
        asked,
        job=job.name,
        kind=job.kind,
        scope=job.scope,
        timeout=job.run_timeout,
        dry_run=asked.dry_run or job.dry_run,
        run_id=new_id(),
    )
    return order, lambda execution: execution.clean(job)


def in_cascade(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in the order of a pass; those of one kind in the order of the configuration."""
    return sorted(jobs, key=lambda job: job.cascade)


def find_job(jobs: Mapping[str, Job], name: str) -> Job:
    """The job of that name. Raises ``NotFoundError``, naming those that there are."""
    if name not in jobs:
        raise NotFoundError(f"there is no job {name}; there are: {', '.join(sorted(jobs)) or 'none'}")
    return jobs[name]
