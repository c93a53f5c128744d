"""Batches: how changes are written and put back, so that nothing is lost whatever happens in between.

On a replica set (or a sharded cluster) a batch is one transaction: the lease touched by its term, the copies, the
changes, the run's counts. A holder that lost its lease aborts, a crash leaves all or nothing, a retry counts once. On a
standalone server the copies are written first as *pending* and confirmed after the change; what a crash leaves between
is settled by the next run. There, only the lease's local deadline keeps a stale holder from writing.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from agent.archive import ENTRY_BYTES, Archive, Restorer, copied_fields
from agent.clients import Clients
from agent.controls import Controls
from agent.errors import ConflictError, StoreDeniedError, StoreError, StoreSlowError, StoreUnavailableError
from agent.job import Action, Change, Item, Job, Run, action_of
from agent.journal import Journal
from agent.lease import Lease
from agent.marks import Marks
from agent.store import (
    Document,
    Namespace,
    RawBSONDocument,
    Session,
    Store,
    Write,
    comparable,
    encode,
    id_of,
    time_limit,
)
from agent.throttle import Reason, Sizer
from agent.throttle import Settings as ThrottleSettings

log = structlog.get_logger()
T = TypeVar("T")

# What is read of the documents of one batch. Deletions and copies stay in the server's cache to the transaction's end.
BATCH_BYTES = 32 * 1024 * 1024
MOST_A_BATCH = 10_000  # what `batch` may say at most
WRITE_SECONDS = 10.0  # how long the writes of a batch may take before they are tried again
HELD_AFTER_RESTORE = dt.timedelta(days=7)


@dataclass(frozen=True)
class Keep:
    """What runs are kept with: the collections of the agent, the archive's limit, the threads that read volumes."""

    store: Store
    journal: Journal
    controls: Controls
    marks: Marks
    archive: Archive
    restorer: Restorer
    archive_bytes: int
    threads: Executor
    clients: Clients
    throttle: ThrottleSettings
    throttled: Callable[[str, Reason, float], None]


@dataclass
class Written:
    """What one batch did: the confirmed entries with their items, and the items that found no room in it."""

    entries: list[Document] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)
    held: int = 0
    failed: int = 0
    bytes: int = 0
    cancelled: bool = False

    @property
    def counts(self) -> Counter[str]:
        """The changes by action."""
        return Counter(str(entry["action"]) for entry in self.entries)

    def join(self, other: Written) -> None:
        """Adds what another part of the batch did."""
        self.entries += other.entries
        self.items += other.items
        self.left += other.left
        self.held += other.held
        self.failed += other.failed
        self.bytes += other.bytes
        self.cancelled |= other.cancelled


class Batches:
    """The writes of one real run, under its lease."""

    def __init__(self, keep: Keep, run: Run, lease: Lease, now: dt.datetime, left: Callable[[], float]) -> None:
        """``left`` tells the seconds that the run still has."""
        self._keep = keep
        self._run = run
        self._lease = lease
        self._now = now
        self._left = left
        self.sizer = Sizer(MOST_A_BATCH)

    def check(self) -> None:
        """Raises ``LeaseLostError`` where this process may no longer write."""
        self._lease.check()

    async def write(self, job: Job, items: Sequence[Item], plan: str | None = None) -> Written:
        """Changes the items; where the server rejects a batch, in halves, down to the item that is at fault."""
        if not items:
            return Written()
        try:
            written = await self._together(lambda session: self._change(job, items, plan, session))
        except StoreSlowError:
            self.sizer.too_slow()
            written = await self._settle(items)
            if len(items) == 1 and not written.items:
                raise
        except (StoreUnavailableError, StoreDeniedError):
            raise
        except StoreError as error:
            written = await self._settle(items)
            if len(items) == 1 and not written.items:
                log.warning("item_failed", job=job.name, id=str(items[0].id), error=str(error))
                return Written(failed=1)
        else:
            self.sizer.fine()
            return written
        changed = {comparable(item.id) for item in written.items}
        for half in _halves([item for item in items if comparable(item.id) not in changed]):
            written.join(await self.write(job, half, plan))
        return written

    async def put_back(self, entries: Sequence[Document], *, hold: bool) -> tuple[list[Document], list[Document]]:
        """Restores archived documents; returns the entries that were restored, and those in conflict."""
        if not entries:
            return [], []
        try:
            return await self._together(lambda session: self._reverse(entries, session, hold=hold))
        except (StoreUnavailableError, StoreDeniedError):
            raise
        except StoreError as error:
            if len(entries) == 1:
                log.warning("item_conflicts", id=str(entries[0]["id"]), error=str(error))
                await self._keep.archive.mark([entries[0]["_id"]], "conflict")
                return [], list(entries)
        restored: list[Document] = []
        conflicts: list[Document] = []
        for half in _halves(entries):
            some, others = await self.put_back(half, hold=hold)
            restored += some
            conflicts += others
        return restored, conflicts

    async def _together(self, work: Callable[[Session | None], Awaitable[T]]) -> T:
        """Does the work in one transaction where the server has them, with the lease's renewer kept out."""
        async with self._lease.batch():
            self._lease.check()
            if await self._keep.store.has_transactions():
                return await self._keep.store.transaction(work, seconds=max(self._left(), WRITE_SECONDS))
            with time_limit(WRITE_SECONDS):
                return await work(None)

    # --- change

    async def _change(self, job: Job, items: Sequence[Item], plan: str | None, session: Session | None) -> Written:
        """Touches the lease, archives, changes, counts: in one transaction, or in this order."""
        keep, namespace = self._keep, job.namespace
        await self._lease.touch(session)
        held = await keep.marks.held(namespace, [item.id for item in items], session)
        written = Written(held=len(held))
        by_action: dict[Action, list[Item]] = defaultdict(list)
        for item in items:
            if not held or comparable(item.id) not in held:
                by_action[action_of(item)].append(item)
        for action, some in by_action.items():
            change = job.change(action, self._now)
            # What others write all the time may differ again before it is looked at, whether the change happened:
            # without a transaction, these are written one by one, and the server's count tells.
            for alike in [[item] for item in some] if change.counter and session is None else [some]:
                await self._change_alike(job, change, alike, written, session)
        if plan is not None:
            await keep.archive.settle_planned(plan, [item.id for item in written.items], "done", session)
        counts = written.counts
        written.cancelled = await keep.journal.count(self._run.id, counts, session)
        if counts["deleted"]:
            await keep.controls.count_deleted(namespace, counts["deleted"], session)
        return written

    async def _change_alike(
        self, job: Job, change: Change, items: Sequence[Item], written: Written, session: Session | None
    ) -> None:
        """Archives and changes items that get the same change."""
        collection = self._keep.store.collection(job.namespace)
        documents, whole = await collection.find_raw(
            _any_of(change, items), copied_fields(change, items), hint="_id_", most_bytes=BATCH_BYTES, session=session
        )
        pairs = _paired(items, documents)
        most = ENTRY_BYTES if change.set is None and self._keep.archive.enabled else math.inf
        fitting = [(item, document) for item, document in pairs if len(document.raw) <= most]
        written.failed += len(pairs) - len(fitting)
        if not whole:
            seen = {comparable(item.id) for item, _ in pairs}
            written.left += [item for item in items if comparable(item.id) not in seen]
        entries = await self._keep.archive.copy(
            self._run,
            job.namespace,
            fitting,
            change,
            now=self._now,
            state="pending" if session is None else "done",
            session=session,
        )
        matched = [item for item, _ in fitting]
        if session is None:
            self._lease.check()  # as late as can be: a standalone server has no other fence
        writes = [
            Write(filter, None if change.set is None else {**change.set, **some[0].values}, change.counter)
            for filter, some in _guarded(change, matched)
        ]
        count = await collection.write(writes, session=session)
        if session is None:
            entries = await self._confirm(entries, count)
        elif count != len(matched):
            raise ConflictError("a document changed inside the transaction")
        written.entries += entries
        written.items += _confirmed(matched, entries)
        written.bytes += sum(len(entry["before"]) for entry in entries)

    async def _confirm(self, entries: list[Document], count: int) -> list[Document]:
        """Without a transaction: which of the pending changes the server made."""
        if count == len(entries):
            if not self._keep.archive.enabled:
                return entries  # nothing was stored that could be confirmed
            await self._keep.archive.mark([entry["_id"] for entry in entries], "done")
            return entries
        return await self._keep.restorer.settle(entries)

    async def _settle(self, items: Sequence[Item]) -> Written:
        """Without transactions: what a batch that broke has changed all the same, before the rest is copied again."""
        if await self._keep.store.has_transactions():
            return Written()
        archive, run = self._keep.archive, self._run.id
        pending = [entry async for entry in archive.entries({"state": "pending", "job": self._run.job})]
        await self._keep.restorer.settle(pending)
        await self._keep.journal.set_counts(run, await archive.counts(run))
        ids = [item.id for item in items]
        done = [entry async for entry in archive.entries({"run": run, "state": "done", "id": {"$in": ids}})]
        changed = {comparable(entry["id"]) for entry in done}
        return Written(entries=done, items=[item for item in items if comparable(item.id) in changed])

    # --- put back

    async def _reverse(
        self, entries: Sequence[Document], session: Session | None, *, hold: bool
    ) -> tuple[list[Document], list[Document]]:
        await self._lease.touch(session)
        if hold and session is None:
            await self._hold(entries, None)  # first: the next run must not take it again
        restored, conflicts = await self._keep.restorer.restore(entries, session)
        if hold and session is not None:
            await self._hold(restored, session)
        deleted = Counter(_namespace(entry) for entry in restored if entry["action"] == "deleted")
        for namespace, count in deleted.items():
            await self._keep.controls.count_deleted(namespace, -count, session)
        # Last: without a transaction a batch that breaks is put back again in parts, and must not be counted twice.
        await self._keep.journal.count(self._run.id, {"restored": len(restored)}, session)
        return restored, conflicts

    async def _hold(self, entries: Sequence[Document], session: Session | None) -> None:
        by_namespace: dict[Namespace, list[object]] = defaultdict(list)
        for entry in entries:
            by_namespace[_namespace(entry)].append(entry["id"])
        for namespace, ids in by_namespace.items():
            await self._keep.marks.hold(
                namespace,
                ids,
                by=self._run.requested_by,
                reason=f"restored by {self._run.id}",
                until=self._now + HELD_AFTER_RESTORE,
                session=session,
            )


def _halves(things: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    middle = len(things) // 2
    return things[:middle], things[middle:]


def _namespace(entry: Document) -> Namespace:
    return Namespace(entry["database"], entry["collection"])


def _guarded(change: Change, items: Sequence[Item]) -> list[tuple[Document, list[Item]]]:
    """Filters for writes, each with its items: ids, the change's conditions, and the evidence that only they carry."""
    groups: dict[tuple[bytes, bytes], list[Item]] = defaultdict(list)
    for item in items:
        groups[_packed(item.match), _packed(item.values)].append(item)
    return [
        ({"$and": [{"_id": {"$in": [item.id for item in some]}}, change.filter, some[0].match]}, some)
        for some in groups.values()
    ]


def _packed(document: Document) -> bytes:
    return encode(document) if document else b""


def _any_of(change: Change, items: Sequence[Item]) -> Document:
    """One filter for all of the items, that lets the server walk the ``_id`` index once."""
    filters = [filter for filter, _ in _guarded(change, items)]
    if len(filters) == 1:
        return filters[0]
    return {"$and": [{"_id": {"$in": [item.id for item in items]}}, {"$or": filters}]}


def _confirmed(items: Sequence[Item], entries: Sequence[Document]) -> list[Item]:
    """Those of the items whose change is confirmed by an entry."""
    if len(entries) == len(items):
        return list(items)
    done = {comparable(entry["id"]) for entry in entries}
    return [item for item in items if comparable(item.id) in done]


def _paired(items: Sequence[Item], documents: Sequence[RawBSONDocument]) -> list[tuple[Item, RawBSONDocument]]:
    by_id = {comparable(item.id): item for item in items}
    return [(by_id[comparable(id_of(document))], document) for document in documents]
