"""The journal: one record a run in ``maintenance_runs``, inserted when the run begins and closed when it ends.

A scheduled run's record is also the claim of its slot: a unique index on (job, scheduled_for) lets only one replica in,
and a holder that dies leaves a record that says so. While a run works, its counts grow in the record in the same
transactions as the changes, so the record is true whenever it is read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from agent.errors import DuplicateError, NotFoundError, SlotTakenError
from agent.job import Run
from agent.store import Collection, Document, Index, Session, id_to_json, to_extended_json

INDEXES: tuple[Index, ...] = (
    Index(
        (("job", 1), ("scheduled_for", 1)),
        partial={"scheduled_for": {"$type": "date"}},
        unique=True,
        name="slot",
    ),
    Index((("started_at", -1), ("_id", -1)), name="history"),
    Index((("job", 1), ("started_at", -1)), name="job_history"),
    # The last success of a job that has failed for weeks is asked for every few seconds.
    Index((("job", 1), ("outcome", 1), ("started_at", -1)), name="job_outcomes"),
    Index((("pass", 1),), name="pass"),
    Index((("expires_at", 1),), expire_after=dt.timedelta(0), name="keep"),
)
_HIDDEN = ("expires_at", "cancel")
_LIVE = ("changed",)  # grows with the batches; never overwritten by what a process believes


class Journal:
    """The records of all runs."""

    def __init__(self, collection: Collection, *, keep: dt.timedelta) -> None:
        self._collection = collection
        self._keep = keep

    async def open(self, run: Run) -> None:
        """Inserts the record of a run that begins. Raises ``SlotTakenError`` where another replica has its slot.

        The slot is looked up as well, which the lease makes safe where the unique index could not be created.
        """
        assert run.started_at is not None  # noqa: S101 - a run begins at an instant
        if run.scheduled_for is not None and await self.slot_exists(run.job, run.scheduled_for):
            raise SlotTakenError(f"{run.job} at {run.scheduled_for} was run by another replica")
        try:
            await self._collection.insert({**run.document, "expires_at": run.started_at + self._keep})
        except DuplicateError as error:
            raise SlotTakenError(f"{run.job} at {run.scheduled_for} belongs to another replica") from error

    async def count(self, run: str, changed: Mapping[str, int], session: Session | None = None) -> bool:
        """Adds to the counts of a run; says whether somebody asked for its end meanwhile."""
        increments = {f"changed.{action}": count for action, count in changed.items() if count}
        update: Document = {"$inc": increments} if increments else {"$set": {"complete": False}}
        found = await self._collection.find_one_and_update({"_id": run}, update, session=session)
        return bool(found and found.get("cancel"))

    async def close(self, run: Run, session: Session | None = None) -> bool:
        """Completes the record and reads back the counts that the batches wrote; says whether it was still open."""
        live = _LIVE if run.term is not None else ()  # without a lease there were no batches to count
        values = {key: value for key, value in run.document.items() if key not in {"_id", *live}}
        filter = {"_id": run.id, "ended_at": None}
        closed = await self._collection.find_one_and_update(filter, {"$set": values}, session=session)
        found = closed or await self._collection.find_one({"_id": run.id}, session=session)
        if found is not None:
            run.report.changed.clear()
            run.report.changed.update(found["changed"])
        return closed is not None

    async def set_counts(self, run: str, changed: Mapping[str, int]) -> None:
        """Raises counts of a run to what the archive tells (on a standalone server)."""
        counts = {f"changed.{action}": count for action, count in changed.items()}
        if counts:
            await self._collection.update_one({"_id": run}, {"$max": counts})

    async def left(self, job: str, term: int) -> list[str]:
        """The real runs of a job that a dead agent left open in an earlier term, the earliest first."""
        filter = {"job": job, "ended_at": None, "dry_run": False, "term": {"$lt": term}}
        return [run["_id"] for run in await self._collection.find_all(filter, ["_id"], sort=[("term", 1)])]

    async def close_left(self, run: str, now: dt.datetime, session: Session | None = None) -> Document | None:
        """Closes such a run as interrupted, with the counts that it has; nothing where somebody else did."""
        found = await self._collection.find_one({"_id": run}, ["started_at"], session=session)
        if found is None:
            return None
        values = {
            "ended_at": now,
            "outcome": "interrupted",
            "complete": False,
            "reason": "the agent that ran it is gone; what its committed batches changed is counted",
            "seconds": round((now - found["started_at"]).total_seconds(), 3),
        }
        return await self._collection.find_one_and_update(
            {"_id": run, "ended_at": None}, {"$set": values}, session=session
        )

    async def close_left_dry(self, before: dt.datetime, now: dt.datetime) -> None:
        """Closes dry runs that began so long ago that no agent can still be at them."""
        values = {
            "ended_at": now,
            "outcome": "interrupted",
            "complete": False,
            "reason": "the agent that ran it is gone",
        }
        await self._collection.update_many(
            {"dry_run": True, "ended_at": None, "started_at": {"$lt": before}}, {"$set": values}
        )

    async def ask_to_stop(self, run: str) -> bool:
        """Asks whoever runs it to end a run between two batches; says whether it was still running."""
        return await self._collection.update_one({"_id": run, "ended_at": None}, {"$set": {"cancel": True}})

    async def get(self, run: str) -> Document:
        """One record. Raises ``NotFoundError``."""
        found = await self._collection.find_one({"_id": run})
        if found is None:
            raise NotFoundError(f"there is no run {run}")
        return shown(found)

    async def of_pass(self, pass_id: str) -> list[Document]:
        """The records of a pass, in the order in which they began."""
        found = await self._collection.find_all({"pass": pass_id}, sort=[("started_at", 1), ("_id", 1)])
        return [shown(record) for record in found]

    async def page(self, filter: Document, *, before: str | None, limit: int) -> tuple[list[Document], str | None]:
        """Records, the newest first, and the id to go on from; stable while new runs are added."""
        clauses = [filter] if filter else []
        if before is not None:
            last = await self.get(before)
            at, id = last["started_at"], last["_id"]
            clauses.append({"$or": [{"started_at": {"$lt": at}}, {"started_at": at, "_id": {"$lt": id}}]})
        query: Document = {"$and": clauses} if clauses else {}
        found = await self._collection.find_all(query, sort=[("started_at", -1), ("_id", -1)], limit=limit + 1)
        page = [shown(record) for record in found[:limit]]
        return page, page[-1]["_id"] if len(found) > limit else None

    async def slot_exists(self, job: str, scheduled_for: dt.datetime) -> bool:
        """Whether some replica has, or had, the run of a slot."""
        return await self._collection.find_one({"job": job, "scheduled_for": scheduled_for}, ["_id"]) is not None

    async def finished_since(self, jobs: Sequence[str], since: dt.datetime) -> set[str]:
        """The jobs that a replica finished since then (dry runs and restores aside)."""
        filter = {
            "job": {"$in": list(jobs)},
            "ended_at": {"$gte": since},
            "outcome": "succeeded",
            "dry_run": False,
            "trigger": {"$ne": "restore"},
        }
        return {record["job"] for record in await self._collection.find_all(filter, ["job"])}

    async def last(self, job: str, filter: Document) -> Document | None:
        """The newest finished record of a job that matches."""
        query = {"job": job, "ended_at": {"$ne": None}, **filter}
        found = await self._collection.find_one(query, sort=[("started_at", -1)])
        return shown(found) if found else None


def shown(record: Document) -> Document:
    """The record as people and machines see it."""
    return {key: value for key, value in record.items() if key not in _HIDDEN}


def as_json(record: Document) -> Document:
    """The record in plain JSON types; the ids in its sample are as every operation takes them."""
    sample = [{**item, "id": id_to_json(item["id"])} for item in record["sample"]]
    plain: Document = to_extended_json({**record, "sample": sample})
    return plain
