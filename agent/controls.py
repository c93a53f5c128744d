"""What outlives single runs, in ``maintenance_controls``: pauses, totals, baselines of the proofs, applied plans.

One document a thing, its ``_id`` saying which: ``pause`` or ``pause/JOB``, ``totals``, ``baseline/JOB/GUARD``,
``deleted/DATABASE.COLLECTION``, ``plan/RUN``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from agent.errors import DuplicateError
from agent.guards import Baseline
from agent.job import Proof, Run
from agent.store import Collection, Document, Index, Namespace, Session

INDEXES: tuple[Index, ...] = (Index((("expires_at", 1),), expire_after=dt.timedelta(0), name="keep"),)


class Controls:
    """The documents that steer and sum up the runs."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def pause(self, job: str | None, *, by: str | None, at: dt.datetime) -> None:
        """Stops the clock of a job, or of everything, for every replica."""
        await self._collection.update_one({"_id": _pause(job)}, {"$set": {"by": by, "at": at}}, upsert=True)

    async def resume(self, job: str | None) -> None:
        """Lets the clock go on."""
        await self._collection.delete_many({"_id": _pause(job)})

    async def pauses(self) -> dict[str | None, Document]:
        """What is paused now: by job, with ``None`` for everything."""
        found = await self._collection.find_all({"_id": {"$regex": "^pause"}})
        return {record["_id"].partition("/")[2] or None: record for record in found}

    async def add_totals(self, run: Document, session: Session | None = None) -> None:
        """Adds the record of a real run that ended to the totals, which are kept for ever; each job's last run once."""
        counts = {f"{run['kind']}.{action}": count for action, count in run["changed"].items() if count}
        errors = int(run["outcome"] in {"failed", "timed_out"}) + run["failed"]
        counted = f"counted.{run['job']}"
        new = {"_id": "totals", counted: {"$ne": run["_id"]}}
        update = {
            "$inc": {"runs": 1, "errors": errors, **counts},
            "$set": {"last_run": run["ended_at"], counted: run["_id"]},
        }
        try:
            await self._collection.update_one(new, update, upsert=True, session=session)
        except DuplicateError:  # counted before, or the totals were made by another agent at this very moment
            await self._collection.update_one(new, update, session=session)

    async def totals(self) -> Document:
        """The totals: runs, errors, last_run, and what was changed by kind and action."""
        return await self._collection.find_one({"_id": "totals"}) or {}

    async def baseline(self, job: str, proof: Proof) -> Baseline | None:
        """What the last good run saw, and what the agent deleted there since."""
        found = await self._collection.find_one({"_id": f"baseline/{job}/{proof.guard}"})
        if found is None:
            return None
        deleted = await self._deleted(proof.deletes) - found.get("deleted", 0) if proof.deletes else 0
        return Baseline(found.get("measure"), found.get("identity"), deleted)

    async def set_baseline(self, job: str, proof: Proof, run: Run) -> None:
        """What a good run saw becomes what the next is compared with."""
        values = {
            "measure": proof.measure,
            "identity": proof.identity,
            "deleted": await self._deleted(proof.deletes) if proof.deletes else 0,
            "run": run.id,
            "at": run.started_at,
        }
        await self._collection.update_one({"_id": f"baseline/{job}/{proof.guard}"}, {"$set": values}, upsert=True)

    async def set_pictures(self, job: str, pictures: Sequence[Document]) -> None:
        """Keeps what the last audit saw of the providers, for the gauges and the page of every replica."""
        await self._collection.update_one(
            {"_id": f"pictures/{job}"}, {"$set": {"pictures": list(pictures)}}, upsert=True
        )

    async def pictures(self, jobs: Sequence[str]) -> list[Document]:
        """What the last audits of these jobs saw of the providers."""
        found = await self._collection.find_all({"_id": {"$in": [f"pictures/{job}" for job in jobs]}})
        return [picture for record in found for picture in record["pictures"]]

    async def count_deleted(self, namespace: Namespace, count: int, session: Session | None = None) -> None:
        """Counts what the agent deleted (or, negative, restored) in a collection."""
        await self._collection.update_one(
            {"_id": f"deleted/{namespace}"}, {"$inc": {"count": count}}, upsert=True, session=session
        )

    async def _deleted(self, namespace: Namespace) -> int:
        found = await self._collection.find_one({"_id": f"deleted/{namespace}"})
        return int(found["count"]) if found else 0

    async def plan_of(self, plan: str) -> str | None:
        """The run that applied, or applies, a plan."""
        found = await self._collection.find_one({"_id": f"plan/{plan}"})
        return str(found["run"]) if found else None

    async def claim_plan(self, plan: str, earlier: str | None, run: str, expires_at: dt.datetime) -> bool:
        """Makes ``run`` the one that applies a plan, in the place of ``earlier``; says whether nobody else did."""
        if earlier is not None:
            return await self._collection.update_one({"_id": f"plan/{plan}", "run": earlier}, {"$set": {"run": run}})
        try:
            await self._collection.insert({"_id": f"plan/{plan}", "run": run, "expires_at": expires_at})
        except DuplicateError:
            return False
        return True


def _pause(job: str | None) -> str:
    return "pause" if job is None else f"pause/{job}"


def statistics(totals: Mapping[str, object]) -> Document:
    """The statistics of the service that the agent replaced, under their old names."""

    def changed(kind: str) -> int:
        counts = totals.get(kind)
        if not isinstance(counts, dict):
            return 0
        return sum(count for action, count in counts.items() if action != "restored")

    return {
        "runs": totals.get("runs", 0),
        "last_run": totals.get("last_run"),
        "orphan_apps_cleaned": changed("orphan_records"),
        "orphan_tasks_cleaned": changed("orphan_tasks"),
        "stuck_tasks_cleaned": changed("stuck_tasks"),
        "old_tasks_cleaned": changed("retention"),
        "errors": totals.get("errors", 0),
    }
