"""The body of one run: look, guard, then plan (a dry run) or act in batches.

Everything that would be changed is known before the first change. A job reads through its ports and yields items; here
they are counted, held back where a mark says so, capped, and handed to the batches.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from agent.archive import RESTORE_BATCH
from agent.batches import BATCH_BYTES, Batches, Keep
from agent.errors import AgentError, InterruptedRunError, RefusedError, VolumeError
from agent.guards import cap, judge, refuse_cap
from agent.job import Action, Change, Item, Job, Ports, Proof, Run, action_of
from agent.lease import Lease
from agent.reader import Overlay, StoreReader
from agent.spool import Spool
from agent.store import CHUNK, Document, comparable, time_limit
from agent.throttle import Reason, Throttle
from agent.volume import Volume

T = TypeVar("T")
log = structlog.get_logger()

LOOK_BACK_SECONDS = 10.0  # for MongoDB; a volume has its own limit
LEAST_CHUNK = 100  # documents of one round trip of the look: with fewer it would take mostly round trips
SORT_OUT = 1000  # items whose marks are looked up in one round trip


class Execution:
    """One run at work. The runner makes it, tells it what to do, and reads the run's report whenever it ends."""

    def __init__(  # noqa: PLR0913 - what a run is made of, given by the runner alone
        self,
        keep: Keep,
        run: Run,
        *,
        now: dt.datetime,
        deadline: float,
        stop: asyncio.Event,
        lease: Lease | None,
        overlay: Overlay | None = None,
        shown: bool = False,
    ) -> None:
        """``deadline`` is an instant of the event loop's clock; ``stop`` asks for an end between two batches.

        ``overlay`` holds the plans of the earlier jobs of a pass; ``shown`` says whether a later one needs this plan.
        """
        self._keep = keep
        self._run = run
        self._report = run.report
        self._now = now
        self._deadline = deadline
        self._stop = stop
        self._overlay = overlay if run.dry_run else None
        self._shown = shown
        self._throttle = Throttle(keep.store, keep.throttle, self._throttled)
        self._reader = StoreReader(keep.store, self._overlay, self._throttle.rest)
        self._ports = Ports(self._reader, Volume(keep.threads), keep.clients)
        self._batches = Batches(keep, run, lease, now, self._left) if lease is not None else None
        self._archived = 0
        self.proofs: Sequence[Proof] = ()

    @property
    def pictures(self) -> Sequence[Document]:
        """What the selection saw of providers."""
        return self._ports.pictures

    # --- look and guard

    async def clean(self, job: Job) -> None:
        """Selects, guards, and then plans or acts."""
        if job.scope == "process":
            await self._evict(job)
            return
        spool = await self._interruptible(self._look(job))
        if spool is None:
            self._report.complete = True
            return
        due = await self._interruptible(self._sort_out(job, spool))
        if not job.acts:
            self._report.complete = True
            return
        self._guard(job, len(spool))
        waiting = len(spool) - self._report.held.total() - self._most(job, due)
        if self._run.dry_run:
            self._lay_over(job, due)
        else:
            await self._act(job, due)
        self._report.complete = not waiting

    async def _evict(self, job: Job) -> None:
        """The whole run of a kind that changes nothing but this process: no marks, no archive, no batches."""
        self._report.population = await job.population(self._ports)
        async for item in job.select(self._ports, self._now):
            self._check()
            self._report.finds(item)
            if not self._run.dry_run and await job.evict(self._ports, item):
                self._report.changed[action_of(item)] += 1
        self._report.complete = True

    async def _look(self, job: Job, *, count: bool = True) -> Spool | None:
        """What the rule finds, with the proofs asked before and after; nothing where there is no population.

        Without ``count`` only the proofs matter: nothing is counted or kept.
        """
        self._reader.chunk = max(LEAST_CHUNK, min(job.batch, CHUNK))  # who wants small batches wants small bites
        self._report.population = await job.population(self._ports)
        if not self._report.population:
            return None
        await self._prove(job)
        spool = Spool(await self._wanted(job) if count else 0)
        said = log.bind(job=job.name)  # once: a line that is not written then costs next to nothing
        async for item in job.select(self._ports, self._now):
            if count:
                self._report.finds(item)
                said.debug("item_found", id=str(item.id), what=item.what, reason=item.reason)
            if item.action:
                spool.add(item)
        await self._prove(job)
        return spool

    async def _wanted(self, job: Job) -> int | None:
        """How many of the items are kept: all, or what one run takes where the rest is only counted for the cap.

        Where something is held, or sighted first, each item has to be looked at.
        """
        if not job.truncates or job.patience or await self._keep.marks.any_held(job.namespace):
            return None
        return job.limit.items

    async def _prove(self, job: Job) -> None:
        self.proofs = await job.proofs(self._ports)
        for proof in self.proofs:
            baseline = await self._keep.controls.baseline(job.name, proof)
            if baseline is not None and proof.deletes is not None and self._overlay is not None:
                planned = len(self._overlay.deleted(proof.deletes))
                baseline = replace(baseline, deleted_since=baseline.deleted_since + planned)
            try:
                judge(proof, baseline, self._run.accept, job.name)
            except RefusedError:
                self._report.forget()  # absence does not count: nothing was found
                raise

    async def _sort_out(self, job: Job, spool: Spool) -> Spool:
        """The items that may be changed now; the others are counted as held. Stores the plan or the sightings."""
        if not (self._run.dry_run or job.patience or await self._keep.marks.any_held(job.namespace)):
            return spool
        due = Spool()
        for items in spool.batches(SORT_OUT):
            held = await self._held(job, items)
            planned: list[tuple[Item, str | None]] = []
            for number, item in enumerate(items):
                reason = held.get(number)
                if reason is None:
                    due.add(item)
                else:
                    self._report.held[reason] += 1
                if reason is not None or len(due) <= self._most(job, due):
                    planned.append((item, reason))
            if not self._run.dry_run:
                await self._sight(job, items)
            elif job.acts:
                await self._keep.archive.plan(self._run, job.namespace, planned, self._now)
        if not self._run.dry_run and job.patience:
            await self._keep.marks.forget_unseen(job.name, self._run.id)
        return due

    async def _held(self, job: Job, items: Sequence[Item]) -> dict[int, str]:
        """By position: what keeps an item from being changed."""
        marks, ids = self._keep.marks, [item.id for item in items]
        held = await marks.held(job.namespace, ids)
        reasons = {number: "hold" for number, item in enumerate(items) if comparable(item.id) in held}
        if not job.patience:
            return reasons
        seen = await marks.first_seen(job.name, job.namespace, ids)
        for number, item in enumerate(items):
            evidence, first = seen.get(comparable(item.id), (None, self._now))
            if evidence != self._evidence(item) or first > self._now - job.patience:
                reasons.setdefault(number, "quarantine")
        return reasons

    async def _sight(self, job: Job, items: Sequence[Item]) -> None:
        if job.patience:
            seen = [(item.id, self._evidence(item)) for item in items]
            await self._keep.marks.sight(job.name, job.namespace, seen, run=self._run.id, now=self._now)

    def _evidence(self, item: Item) -> str | None:
        """What names the evidence: sightings on different volumes are not two of one thing."""
        return item.identity or next((proof.identity for proof in self.proofs if proof.identity), None)

    def _guard(self, job: Job, actionable: int) -> None:
        found = actionable - self._report.held["hold"]
        reason = cap(job.limit, found, self._report.population, truncates=job.truncates)
        if reason is None or "cap" in self._run.accept:
            return
        refusal = refuse_cap(reason, job.name)
        if not self._run.dry_run:
            raise refusal
        self._report.would_refuse = "cap"
        self._run.reason, self._run.consent = str(refusal), refusal.consent

    def _most(self, job: Job, due: Spool) -> int:
        """How many of the due items one run takes."""
        return min(len(due), job.limit.items) if job.truncates else len(due)

    def _lay_over(self, job: Job, due: Spool) -> None:
        """Shows the plan to the later jobs of a dry pass; one that would be refused has no effect."""
        if self._overlay is None or not self._shown or self._report.would_refuse:
            return
        changes: dict[Action, Change] = {}
        for items in due.batches(SORT_OUT, most=self._most(job, due)):
            for item in items:
                action = action_of(item)
                change = changes.get(action) or changes.setdefault(action, job.change(action, self._now))
                if change.set is None:
                    self._overlay.delete(job.namespace, item.id)
                else:
                    self._overlay.update(job.namespace, item.id, {**change.set, **item.values})

    # --- act

    async def _act(self, job: Job, due: Spool) -> None:
        await self._guard_archive(len(due))
        for items in due.batches(job.batch, most=self._most(job, due)):
            await self._batch(job, items)

    async def apply(self, job: Job, plan: str) -> None:
        """Carries out the stored plan of a dry run: exactly its items, each looked at again."""
        spool = await self._interruptible(self._look(job, count=False))
        await self._guard_archive(0 if spool is None else 1)
        planned = 0
        async for items in self._keep.archive.planned(plan, job.batch):
            planned += len(items)
            for item in items:
                self._report.finds(item)
            await self._batch(job, items, plan=plan)
        self._report.complete = True
        stale = planned - self._done - self._report.failed
        if stale:
            self._run.reason = f"{stale} planned items were left alone: they no longer hold, or are held"

    @property
    def _done(self) -> int:
        return sum(count for action, count in self._report.changed.items() if action != "restored")

    async def _guard_archive(self, due: int) -> None:
        if not self._keep.archive.enabled or not due:
            return
        self._archived = await self._keep.archive.size()
        if self._archived >= self._keep.archive_bytes:
            raise RefusedError(
                "archive",
                f"the archive holds {self._archived} bytes, archive.max_size is {self._keep.archive_bytes}: raise it,"
                " or wait until entries expire (archive.keep)",
            )

    async def _batch(self, job: Job, items: Sequence[Item], plan: str | None = None) -> None:
        """Changes what still holds of the items, and puts back at once what came back meanwhile."""
        assert self._batches is not None  # noqa: S101 - only a real run acts, and it holds the lease
        left: Sequence[Item] = items
        while left:
            self._check()
            size, began = self._batches.sizer.size, asyncio.get_running_loop().time()
            now_due, later = left[:size], left[size:]
            holding = await self._interruptible(job.still(self._ports, now_due, self._now))
            written = await self._batches.write(job, holding, plan)
            self._report.changed.update(written.counts)
            self._report.failed += written.failed
            if written.held:
                self._report.held["hold"] += written.held
            await self._look_back(job, written.items, written.entries)
            self._check_archive(written.bytes)
            if written.cancelled:
                raise InterruptedRunError("the run was cancelled")
            left = [*written.left, *later]
            await self._interruptible(self._throttle.pause(asyncio.get_running_loop().time() - began))
        if plan is not None:
            await self._keep.archive.settle_planned(plan, [item.id for item in items], "stale")

    def _throttled(self, reason: Reason, seconds: float) -> None:
        self._report.throttled[reason] += seconds
        self._keep.throttled(self._run.job, reason, seconds)

    def _check_archive(self, added: int) -> None:
        self._archived += added
        if self._keep.archive.enabled and self._archived > self._keep.archive_bytes:
            raise AgentError(
                f"the archive is full (archive.max_size is {self._keep.archive_bytes} bytes); the next run goes on"
            )

    async def _look_back(self, job: Job, items: Sequence[Item], entries: Sequence[Document]) -> None:
        """Looks at the evidence once more and restores at once what came back while the batch was written."""
        if not items or not job.looks_back:
            return
        try:
            with time_limit(LOOK_BACK_SECONDS):
                holding = {comparable(item.id) for item in await job.still(self._ports, items, self._now)}
        except VolumeError:
            await self._put_back(entries, hold=False)  # could not look is never absent
            raise
        back = [entry for entry in entries if comparable(entry["id"]) not in holding]
        if back:
            log.warning("came_back", job=job.name, run=self._run.id, documents=len(back))
            await self._put_back(back, hold=False)

    # --- restore

    async def restore(self, run: str, narrowing: Document) -> None:
        """Puts back what a run changed (``narrowing``: one document of it), and holds it."""
        entries: list[Document] = []
        size = 0
        async for entry in self._keep.archive.entries(
            {"run": run, "state": {"$in": ["done", "conflict"]}, **narrowing}
        ):
            self._report.population += 1
            entries.append(entry)
            size += len(entry["before"])
            if len(entries) >= RESTORE_BATCH or size >= BATCH_BYTES:
                self._check()
                await self._put_back(entries, hold=True)
                entries, size = [], 0
        self._check()
        await self._put_back(entries, hold=True)
        self._report.complete = True
        if self._report.failed:
            self._run.reason = f"{self._report.failed} documents changed since and were left as they are (conflicts)"

    async def _put_back(self, entries: Sequence[Document], *, hold: bool) -> None:
        assert self._batches is not None  # noqa: S101 - only a real run restores, and it holds the lease
        restored, conflicts = await self._batches.put_back(entries, hold=hold)
        self._report.changed["restored"] += len(restored)
        self._report.failed += len(conflicts)
        if hold:
            self._report.sampled(
                {"id": entry["id"], "action": "restored", "reason": entry["reason"]} for entry in restored
            )
            self._report.sampled({"id": entry["id"], "action": None, "reason": "conflict"} for entry in conflicts)

    # --- time

    @property
    def _left_seconds(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()

    def _left(self) -> float:
        """Seconds that the run still has."""
        return max(self._left_seconds, 0.0)

    def _check(self) -> None:
        if self._stop.is_set():
            raise InterruptedRunError("the run was asked to stop")
        if self._left_seconds <= 0:
            raise TimeoutError
        if self._batches is not None:
            self._batches.check()

    async def _interruptible(self, work: Awaitable[T]) -> T:
        """Awaits work that may be broken off: at the run's deadline, or when it is asked to stop."""
        task = asyncio.ensure_future(self._limited(work))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise InterruptedRunError("the run was asked to stop")
        finally:
            for unfinished in (task, stopped):
                unfinished.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    async def _limited(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout_at(self._deadline):
            with time_limit(self._left()):
                return await work
