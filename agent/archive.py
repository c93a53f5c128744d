"""The archive: the copy that makes every change undoable, and the plans of dry runs, both in ``maintenance_items``.

An entry holds what a document was (the whole of it as raw BSON before a deletion, the previous values of the fields
before an update) and what became of it. States: *planned* (a dry run's), *pending* (about to change, on a server
without transactions), *done*, *restored*, *conflict* (changed since, left as it is), *stale* (a planned item that no
longer held when its plan was applied; a pending change of a dead agent that did not happen).

Restore puts back what is still as the agent left it, byte for byte, the order of fields too, and reports the rest.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from agent.conditions import read
from agent.job import Change, Item, Run
from agent.store import (
    Collection,
    Document,
    Index,
    Namespace,
    ObjectId,
    RawBSONDocument,
    Session,
    Store,
    comparable,
    decode,
    encode,
)

State = Literal["planned", "pending", "done", "restored", "conflict", "stale"]

INDEXES: tuple[Index, ...] = (
    Index((("run", 1), ("_id", 1)), name="run"),
    Index((("state", 1), ("job", 1)), partial={"state": "pending"}, name="pending"),
    Index((("expires_at", 1),), expire_after=dt.timedelta(0), name="keep"),
)
PLAN_KEEP = dt.timedelta(hours=24)
ENTRY_BYTES = 16 * 1024 * 1024 - 16 * 1024  # what MongoDB stores, less what an entry adds to the document
RESTORE_BATCH = 500
PORTION = 100  # documents that are copied in one turn of the event loop: some milliseconds


class Archive:
    """The entries of ``maintenance_items``."""

    def __init__(self, collection: Collection, *, keep: dt.timedelta, enabled: bool = True) -> None:
        """``enabled`` false keeps plans, but no copies of what is changed: nothing can be restored later."""
        self._collection = collection
        self._keep = keep
        self.enabled = enabled

    async def plan(
        self, run: Run, namespace: Namespace, items: Sequence[tuple[Item, str | None]], now: dt.datetime
    ) -> None:
        """Stores items of a dry run with what would hold them."""
        entries = [
            {
                **_entry(run, namespace, item, "planned", now + PLAN_KEEP),
                "held": held,
                "item": encode({"match": item.match, "values": item.values, "identity": item.identity}),
                "since": item.since,
            }
            for item, held in items
        ]
        await self._collection.insert_many(entries)

    async def copy(
        self,
        run: Run,
        namespace: Namespace,
        documents: Sequence[tuple[Item, RawBSONDocument]],
        change: Change,
        *,
        now: dt.datetime,
        state: State,
        session: Session | None = None,
    ) -> list[Document]:
        """Archives documents before their change: whole ones before a deletion, else the fields that it sets."""
        entries: list[Document] = []
        alike = None if change.set is None else _set(change.set)  # for most changes it is the same for all
        for number, (item, document) in enumerate(documents, 1):
            if not number % PORTION:
                await asyncio.sleep(0)  # a batch of thousands must not keep the loop from the health checks
            entry = _entry(run, namespace, item, state, now + self._keep)
            if change.set is None:
                entry["before"] = bytes(document.raw)
            else:
                before = decode(bytes(document.raw))
                after = {**change.set, **item.values}
                entry["before"] = encode(_previous(before, list(after)))
                if change.counter is not None:
                    entry["counter"] = change.counter
                    after[change.counter] = read(before, change.counter) + 1
                entry["after"] = _set(after) if item.values or change.counter is not None else alike
            entries.append(entry)
        if self.enabled:
            await self._collection.insert_many(entries, session=session)
        return entries

    async def mark(self, entries: Sequence[ObjectId], state: State, session: Session | None = None) -> None:
        """Says what became of entries."""
        if entries:
            await self._collection.update_many(
                {"_id": {"$in": list(entries)}}, {"$set": {"state": state}}, session=session
            )

    async def forget(self, entries: Sequence[ObjectId]) -> None:
        """Drops entries of changes that did not happen."""
        if entries:
            await self._collection.delete_many({"_id": {"$in": list(entries)}})

    async def entries(self, filter: Document, *, limit: int = 0) -> AsyncIterator[Document]:
        """Entries in the order of their making."""
        found = self._collection.find(filter, sort=[("_id", 1)], limit=limit, chunk=RESTORE_BATCH, large=True)
        async for entry in found:
            yield entry

    async def size(self) -> int:
        """Bytes that the entries take."""
        return await self._collection.size()

    async def page(self, run: str, *, after: str | None, limit: int) -> tuple[list[Document], str | None]:
        """The entries of a run as people see them, and the one to go on from."""
        filter: Document = {"run": run}
        if after is not None:
            filter["_id"] = {"$gt": ObjectId(after)}
        found = [_shown(entry) async for entry in self.entries(filter, limit=limit + 1)]
        page = found[:limit]
        return page, page[-1]["_id"] if len(found) > limit else None

    async def counts(self, run: str) -> Counter[str]:
        """What a run changed, as the archive tells: its confirmed entries by action."""
        stages: list[Document] = [
            {"$match": {"run": run, "state": {"$in": ["done", "restored", "conflict"]}}},
            {"$sortByCount": "$action"},
        ]
        return Counter({found["_id"]: found["count"] async for found in self._collection.aggregate(stages)})

    async def planned(self, run: str, size: int) -> AsyncIterator[list[Item]]:
        """The items of a plan that were not applied yet, in batches."""
        batch: list[Item] = []
        async for entry in self.entries({"run": run, "state": "planned"}):
            said = {name: entry[name] for name in ("id", "what", "action", "reason", "since")}
            batch.append(Item(**said, **decode(entry["item"])))
            if len(batch) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    async def settle_planned(self, plan: str, ids: Sequence[Any], state: State, session: Session | None = None) -> None:
        """Says what became of planned items, by the ids of their documents."""
        filter = {"run": plan, "state": "planned", "id": {"$in": list(ids)}}
        await self._collection.update_many(filter, {"$set": {"state": state}}, session=session)


def _entry(run: Run, namespace: Namespace, item: Item, state: State, expires_at: dt.datetime) -> Document:
    return {
        "_id": ObjectId(),
        "run": run.id,
        "job": run.job,
        "database": namespace.database,
        "collection": namespace.collection,
        "id": item.id,
        "what": item.what,
        "action": item.action,
        "reason": item.reason,
        "state": state,
        "expires_at": expires_at,
    }


def _shown(entry: Document) -> Document:
    """An entry without the copies, which may hold secrets of the application and are restored, not read."""
    names = ("database", "collection", "id", "what", "action", "reason", "state", "held")
    return {"_id": str(entry["_id"]), **{name: entry[name] for name in names if name in entry}}


def copied_fields(change: Change, items: Sequence[Item]) -> list[str] | None:
    """What has to be read of documents to copy them: the outermost fields that the change touches, or everything."""
    if change.set is None:
        return None
    paths = {*change.set, *(path for item in items for path in item.values)}
    if change.counter is not None:
        paths.add(change.counter)
    return ["_id", *sorted({path.partition(".")[0] for path in paths} - {"_id"})]


def _set(values: Document) -> bytes:
    return encode({"set": list(values.items())})


def _previous(document: Document, paths: Sequence[str]) -> Document:
    """What an update would overwrite: for each path its value, or the highest part of it that the update creates."""
    previous: list[Document] = []
    for path in paths:
        value: Any = document
        parts = path.split(".")
        for depth, part in enumerate(parts):
            if not isinstance(value, dict) or part not in value:
                previous.append({"path": path, "created": ".".join(parts[: depth + 1])})
                break
            value = value[part]
        else:
            previous.append({"path": path, "value": value})
    return {"previous": previous}


def undo(entry: Document) -> tuple[Document, Document]:
    """The filter that says that an updated document is still as the agent left it, and the update that undoes it."""
    still: Document = {"_id": entry["id"]}
    for path, value in decode(entry["after"])["set"]:
        still[path] = {"$eq": value}
    sets: Document = {}
    unsets: Document = {}
    for previous in decode(entry["before"])["previous"]:
        if "created" in previous:
            unsets[previous["created"]] = ""
        else:
            sets[previous["path"]] = previous["value"]
    counts = {entry["counter"]: 1} if "counter" in entry else {}
    return still, {name: values for name, values in (("$set", sets), ("$unset", unsets), ("$inc", counts)) if values}


class Restorer:
    """Puts archived documents back, and finds out which pending changes happened."""

    def __init__(self, store: Store, archive: Archive) -> None:
        self._store = store
        self._archive = archive

    async def restore(
        self, entries: Sequence[Document], session: Session | None = None
    ) -> tuple[list[Document], list[Document]]:
        """Restores the documents of entries; returns the entries that were restored and those that conflict.

        A document that is already as it was counts as restored. Raises ``StoreError``.
        """
        restored: list[Document] = []
        for (database, collection, deleted), some in _alike(entries).items():
            verbs = self._store.collection(Namespace(database, collection))
            restored += await (self._reinsert if deleted else self._revert)(verbs, some, session)
        kept = {entry["_id"] for entry in restored}
        conflicts = [entry for entry in entries if entry["_id"] not in kept]
        await self._archive.mark(list(kept), "restored", session)
        await self._archive.mark([entry["_id"] for entry in conflicts], "conflict", session)
        return restored, conflicts

    async def settle(self, entries: Sequence[Document], *, forget: bool = True) -> list[Document]:
        """Marks the pending entries whose change happened as done, drops the others; returns the former.

        ``forget`` false keeps the others, as *stale*: a change that was sent long ago may still arrive.
        """
        happened = [entry for entry in entries if await self._happened(entry)]
        kept = {entry["_id"] for entry in happened}
        others = [entry["_id"] for entry in entries if entry["_id"] not in kept]
        await self._archive.mark(list(kept), "done")
        if forget:
            await self._archive.forget(others)
        else:
            await self._archive.mark(others, "stale")
        return happened

    async def _happened(self, entry: Document) -> bool:
        collection = self._store.collection(Namespace(entry["database"], entry["collection"]))
        if entry["action"] == "deleted":
            return await collection.find_one({"_id": {"$eq": entry["id"]}}, ["_id"]) is None
        still, _ = undo(entry)
        return await collection.find_one(still, ["_id"]) is not None

    async def _reinsert(
        self, collection: Collection, entries: Sequence[Document], session: Session | None
    ) -> list[Document]:
        """Inserts the documents that are missing; one that is there must be what it was."""
        present, _ = await collection.find_raw({"_id": {"$in": [entry["id"] for entry in entries]}}, session=session)
        found = {comparable(document["_id"]): bytes(document.raw) for document in present}
        missing = [entry for entry in entries if comparable(entry["id"]) not in found]
        await collection.insert_many([RawBSONDocument(bytes(entry["before"])) for entry in missing], session=session)
        same = [entry for entry in entries if found.get(comparable(entry["id"])) == bytes(entry["before"])]
        return missing + same

    async def _revert(
        self, collection: Collection, entries: Sequence[Document], session: Session | None
    ) -> list[Document]:
        """Sets the fields back where they are as the agent left them, or finds them so already."""
        if await collection.update_each([undo(entry) for entry in entries], session=session) == len(entries):
            return list(entries)
        return [entry for entry in entries if await self._is_reverted(collection, entry, session)]

    async def _is_reverted(self, collection: Collection, entry: Document, session: Session | None) -> bool:
        present, _ = await collection.find_raw({"_id": {"$eq": entry["id"]}}, session=session)
        if not present:
            return False
        before = decode(entry["before"])
        paths = [one["path"] for one in before["previous"]]
        return encode(_previous(decode(bytes(present[0].raw)), paths)) == encode(before)


def _alike(entries: Sequence[Document]) -> dict[tuple[str, str, bool], list[Document]]:
    """The entries by collection and by whether they were deletions."""
    groups: dict[tuple[str, str, bool], list[Document]] = defaultdict(list)
    for entry in entries:
        groups[entry["database"], entry["collection"], entry["action"] == "deleted"].append(entry)
    return groups
