"""Marks on documents, in ``maintenance_marks``: sightings (since when a job sees an orphan) and holds (leave it alone).

A sighting belongs to a job and to its evidence (the volume it was made on); a hold belongs to the document and keeps
every job off it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable, Sequence
from typing import Any

from agent.store import Collection, Document, Index, MaxKey, MinKey, Namespace, Session, comparable

INDEXES: tuple[Index, ...] = (
    Index((("expires_at", 1),), expire_after=dt.timedelta(0), name="keep"),
    Index((("_id.job", 1), ("run", 1)), name="sightings"),
)
SIGHTING_KEEP = dt.timedelta(days=30)  # a sighting that no run repeats: its document or its job is gone
CHUNK = 1000


class Marks:
    """The sightings and the holds."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def held(self, namespace: Namespace, ids: Sequence[Any], session: Session | None = None) -> set[Hashable]:
        """Which of the documents are held, as ``comparable`` ids."""
        if not await self.any_held(namespace, session):
            return set()  # the usual case, for the price of one look instead of one a document
        wanted = [_hold(namespace, id) for id in ids]
        found = await self._collection.find_all({"_id": {"$in": wanted}}, ["_id"], session=session)
        return {comparable(mark["_id"]["id"]) for mark in found}

    async def any_held(self, namespace: Namespace, session: Session | None = None) -> bool:
        """Whether any document of the collection is held."""
        all_of_them = {"$gte": _hold(namespace, MinKey()), "$lte": _hold(namespace, MaxKey())}
        return bool(await self._collection.find_all({"_id": all_of_them}, ["_id"], limit=1, session=session))

    async def hold(
        self,
        namespace: Namespace,
        ids: Sequence[Any],
        *,
        by: str | None,
        reason: str,
        until: dt.datetime | None,
        session: Session | None = None,
    ) -> None:
        """Keeps every job off the documents, until then or until released."""
        values: Document = {"by": by, "reason": reason, "until": until}
        update: Document | list[Document] = {"$set": values, "$unset": {"expires_at": 1}}
        if until is not None:  # never shortens a hold without an end
            held = {"$mergeObjects": ["$$ROOT", {"$literal": {**values, "expires_at": until}}]}
            update = [{"$replaceWith": {"$cond": [{"$eq": ["$until", None]}, "$$ROOT", held]}}]
        await self._collection.upsert_each([({"_id": _hold(namespace, id)}, update) for id in ids], session=session)

    async def release(self, namespace: Namespace, id: Any) -> bool:
        """Ends a hold; says whether there was one."""
        return bool(await self._collection.delete_many({"_id": _hold(namespace, id)}))

    async def first_seen(
        self, job: str, namespace: Namespace, ids: Sequence[Any]
    ) -> dict[Hashable, tuple[str | None, dt.datetime]]:
        """Since when the job has seen the documents so, and which evidence it saw."""
        wanted = [_sighting(job, namespace, id) for id in ids]
        found = await self._collection.find_all({"_id": {"$in": wanted}})
        return {comparable(mark["_id"]["id"]): (mark["evidence"], mark["first_seen"]) for mark in found}

    async def sight(
        self, job: str, namespace: Namespace, seen: Sequence[tuple[Any, str | None]], *, run: str, now: dt.datetime
    ) -> None:
        """Records that a run sees documents (by id, with the evidence); with other evidence for the first time."""
        updates: list[tuple[Document, list[Document]]] = []
        for id, evidence in seen:
            same = {"$eq": ["$evidence", {"$literal": evidence}]}
            values = {
                "first_seen": {"$cond": [same, {"$ifNull": ["$first_seen", now]}, now]},
                "evidence": {"$literal": evidence},
                "run": run,
                "expires_at": now + SIGHTING_KEEP,
            }
            updates.append(({"_id": _sighting(job, namespace, id)}, [{"$set": values}]))
        await self._collection.upsert_each(updates)

    async def forget_unseen(self, job: str, run: str) -> None:
        """Drops the job's sightings that the run did not repeat: their counterpart is back, or they are gone."""
        await self._collection.delete_many({"_id.type": "sighting", "_id.job": job, "run": {"$ne": run}})


def _hold(namespace: Namespace, id: Any) -> Document:
    return {"type": "hold", "database": namespace.database, "collection": namespace.collection, "id": id}


def _sighting(job: str, namespace: Namespace, id: Any) -> Document:
    return {
        "type": "sighting",
        "job": job,
        "database": namespace.database,
        "collection": namespace.collection,
        "id": id,
    }
