"""What an operator can ask for, in the same words on the command line, over HTTP and on the page.

Each operation checks what was asked, does it through the runner and the collections of the agent, and answers in plain
JSON types. Errors are those of ``agent.errors``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from agent.batches import Keep
from agent.conditions import Condition, read
from agent.controls import statistics
from agent.errors import BusyError, NotFoundError, UsageError
from agent.execution import Execution
from agent.job import Item, Job, Ports, Trigger
from agent.journal import as_json
from agent.reader import Overlay, StoreReader
from agent.runner import (
    RESTORE_TIMEOUT,
    Active,
    Body,
    Observer,
    Order,
    Pass,
    Runner,
    find_job,
    in_cascade,
    new_id,
    order_of,
)
from agent.store import (
    Document,
    Namespace,
    ObjectId,
    comparable,
    exact_json,
    from_extended_json,
    id_to_json,
    is_storable,
    to_extended_json,
)
from agent.volume import Volume

Schedule = Callable[[str], dt.datetime | None]
Reload = Callable[[], Awaitable[Document]]
HEX_OF_AN_OBJECT_ID = 24
CONTINUED = {"interrupted", "failed", "timed_out", "refused"}


class Operations:
    """The operations on one configuration; ``use`` replaces the jobs when it is loaded again."""

    def __init__(
        self,
        keep: Keep,
        runner: Runner,
        observer: Observer,
        jobs: Mapping[str, Job],
        *,
        database: str,
        agent: str,
        version: str,
    ) -> None:
        self._keep = keep
        self._runner = runner
        self._observer = observer
        self._jobs = jobs
        self._database = database
        self._agent = agent
        self._version = version
        self._next_run: Schedule = lambda _: None
        self._reload: Reload | None = None
        self._passes: dict[str, Pass] = {}

    def serve(self, *, next_run: Schedule, reload: Reload) -> None:
        """Joins the operations to a running service: its clock, and its configuration."""
        self._next_run = next_run
        self._reload = reload

    def use(self, jobs: Mapping[str, Job]) -> None:
        """Takes the jobs of a configuration that was loaded again."""
        self._jobs = jobs

    # --- run

    async def run_job(
        self,
        name: str,
        /,
        *,
        trigger: Trigger,
        requested_by: str | None,
        dry_run: bool = False,
        accept: frozenset[str] = frozenset(),
    ) -> Active:
        """Begins a run of one job. Raises ``NotFoundError``, ``BusyError``, ``StoreError``."""
        job = find_job(self._jobs, name)
        order, body = order_of(job, Order(trigger, requested_by=requested_by, dry_run=dry_run, accept=accept))
        try:
            return await self._runner.start(order, body)
        except BusyError:
            self._observer.skipped(name)
            raise

    async def run_pass(
        self,
        *,
        trigger: Trigger,
        requested_by: str | None,
        dry_run: bool = False,
        accept: frozenset[str] = frozenset(),
        names: Sequence[str] | None = None,
        slots: Mapping[str, dt.datetime] | None = None,
    ) -> Pass:
        """Begins a pass: the named jobs, or all that are enabled, in cascade order.

        Raises ``NotFoundError`` for a name, and ``BusyError`` where a pass that a person asked for is still going on.
        """
        if names is None:
            chosen = [job for job in self._jobs.values() if job.enabled]
        else:
            chosen = [find_job(self._jobs, name) for name in dict.fromkeys(names)]
        asked = Order(trigger, requested_by=requested_by, dry_run=dry_run, accept=accept)
        jobs, slots, overlay = in_cascade(chosen), slots or {}, Overlay()
        orders = [
            order_of(
                job,
                replace(
                    asked,
                    scheduled_for=slots.get(job.name),
                    overlay=overlay,
                    # A job that never acts leaves nothing behind for the later ones: neither here nor in a real pass.
                    shown=not job.dry_run and _reads(jobs[at:], job),
                ),
            )
            for at, job in enumerate(jobs, 1)
        ]
        return self._begin(orders, exclusive=trigger in {"manual", "cli"})

    def _begin(self, orders: Sequence[tuple[Order, Body]], *, exclusive: bool) -> Pass:
        if exclusive and any(not going.task.done() for going in self._passes.values()):
            raise BusyError("a pass is already running")
        begun = Pass(self._runner, self._observer, orders)
        if exclusive:
            self._passes = {begun.id: begun}
        return begun

    async def cancel(self, run_id: str, /, *, requested_by: str | None) -> Document:
        """Asks a run to end between two batches, on whichever replica. Raises ``NotFoundError``, ``UsageError``."""
        active = self._runner.active(run_id)
        if active is not None:
            active.stop.set()
            return active.record()
        record = await self._keep.journal.get(run_id)
        if not await self._keep.journal.ask_to_stop(run_id):
            raise UsageError(f"run {run_id} has ended ({record['outcome']}): there is nothing to cancel")
        del requested_by
        return as_json(record)

    # --- plans, restore

    async def apply(self, plan: str, /, *, requested_by: str | None) -> Pass:
        """Carries out the plan of a dry run, or of each dry run of a pass.

        Raises ``NotFoundError``, ``UsageError``, ``BusyError``.
        """
        records = await self._plans(plan)
        left = [record for record in records if await self._applied_by(record["_id"]) is None]
        pass_id = new_id()
        orders: list[tuple[Order, Body]] = []
        for record in left or records:
            orders.append(await self._apply_order(record, pass_id, requested_by, [order for order, _ in orders]))
        return self._begin(orders, exclusive=True)

    async def _plans(self, id: str) -> list[Document]:
        """The dry runs that are meant, those that planned something."""
        of_pass = await self._keep.journal.of_pass(id)
        records = of_pass or [await self._keep.journal.get(id)]
        if not all(record["dry_run"] for record in records):
            raise UsageError(f"{id} is no dry run: only the plan of a dry run can be applied")
        planned = [record for record in records if record["outcome"] == "succeeded"]
        if not planned:
            raise UsageError(f"{id} has no plan: {records[0]['reason'] or 'it has not ended'}")
        cascade = {job.name: number for number, job in enumerate(in_cascade(list(self._jobs.values())))}
        return sorted(planned, key=lambda record: cascade.get(record["job"], len(cascade)))

    async def _apply_order(
        self, record: Document, pass_id: str, requested_by: str | None, before: Sequence[Order]
    ) -> tuple[Order, Body]:
        job, plan, controls = find_job(self._jobs, record["job"]), record["_id"], self._keep.controls
        now = await self._keep.store.now()
        expires = record["started_at"] + dt.timedelta(hours=24)
        if now >= expires:
            raise UsageError(f"the plan of {plan} is older than 24h: look again with a new dry run")
        if applied := await self._applied_by(plan):
            raise UsageError(f"the plan of {plan} was applied by run {applied}: a plan is applied once")
        earlier = await controls.plan_of(plan)
        order = Order(
            job=job.name,
            kind=job.kind,
            trigger="plan",
            requested_by=requested_by,
            timeout=job.run_timeout,
            pass_id=pass_id,
            source=plan,
        )

        # What such a plan was to delete would still be there, and the items of this one no longer hold.
        needed = [one.run_id for one in before if find_job(self._jobs, one.job).namespace in job.sources]

        async def body(execution: Execution) -> None:
            if not all([await self._succeeded(run) for run in needed]):
                raise UsageError("an earlier plan of the pass was not applied: apply the pass once more")
            if not await controls.claim_plan(plan, earlier, order.run_id, expires):
                raise UsageError(f"the plan of {plan} is being applied by another run")
            await execution.apply(job, plan)

        return order, body

    async def _succeeded(self, run: str) -> bool:
        try:
            record = await self._keep.journal.get(run)
        except NotFoundError:
            return False
        return bool(record["outcome"] == "succeeded")

    async def _applied_by(self, plan: str) -> str | None:
        """The run that applied a plan; one that did not come to its end may be continued.

        One that has not ended is at it, which its lease tells whoever asks for it, or its agent is dead.
        """
        run = await self._keep.controls.plan_of(plan)
        if run is None:
            return None
        try:
            record = await self._keep.journal.get(run)
        except NotFoundError:
            return None
        return None if record["outcome"] is None or record["outcome"] in CONTINUED else run

    async def restore(self, run_id: str, /, *, item: str | None = None, requested_by: str | None) -> Active:
        """Undoes what a run changed, or one document of it. Raises ``NotFoundError``, ``UsageError``, ``BusyError``."""
        record = await self._keep.journal.get(run_id)
        if record["dry_run"] or record["trigger"] == "restore":
            raise UsageError(f"run {run_id} changed nothing that can be restored: it is a {_sort(record)}")
        narrowing = await self._narrowing(run_id, item) if item is not None else {}
        order = Order(
            job=record["job"],
            kind=record["kind"],
            trigger="restore",
            requested_by=requested_by,
            timeout=RESTORE_TIMEOUT,
            source=run_id,
        )
        return await self._runner.start(order, lambda execution: execution.restore(run_id, narrowing))

    async def _narrowing(self, run_id: str, text: str) -> Document:
        """The one entry of the run that is about the document of that id."""
        narrowing = _any_id("id", text)
        found = [entry async for entry in self._keep.archive.entries({"run": run_id, **narrowing}, limit=10)]
        return {"id": {"$eq": _the_one(text, [entry["id"] for entry in found], f"run {run_id}")}}

    # --- holds, pauses

    async def hold(
        self,
        database: str | None,
        collection: str,
        id_text: str,
        /,
        *,
        requested_by: str | None,
        reason: str | None = None,
    ) -> Document:
        """Keeps every job off a document until it is released. Raises ``NotFoundError``, ``UsageError``."""
        namespace = Namespace(database or self._database, collection)
        id = await self._id(namespace, id_text)
        why = reason or "held by an operator"
        await self._keep.marks.hold(namespace, [id], by=requested_by, reason=why, until=None)
        return _json({**namespace._asdict(), "id": id_to_json(id), "held": True, "by": requested_by, "reason": why})

    async def release(
        self,
        database: str | None,
        collection: str,
        id_text: str,
        /,
        *,
        requested_by: str | None,
        reason: str | None = None,
    ) -> Document:
        """Ends a hold. Raises ``NotFoundError`` where there is none."""
        del requested_by, reason
        namespace = Namespace(database or self._database, collection)
        ids = ids_of(id_text)
        held = await self._keep.marks.held(namespace, ids)
        found = [id for id in ids if comparable(id) in held]
        if not found:
            raise NotFoundError(f"{namespace} has no held document with the id {id_text}")
        id = _the_one(id_text, found, str(namespace))
        await self._keep.marks.release(namespace, id)
        return _json({**namespace._asdict(), "id": id_to_json(id), "held": False})

    async def _id(self, namespace: Namespace, text: str) -> Any:
        found = await self._keep.store.collection(namespace).find_all(_any_id("_id", text), ["_id"])
        return _the_one(text, [document["_id"] for document in found], str(namespace))

    async def pause(self, job: str | None, /, *, requested_by: str | None) -> Document:
        """Stops the clock of a job, or of everything, on every replica and across restarts."""
        if job is not None:
            find_job(self._jobs, job)
        await self._keep.controls.pause(job, by=requested_by, at=await self._keep.store.now())
        return {"job": job, "paused": True}

    async def resume(self, job: str | None, /, *, requested_by: str | None) -> Document:
        """Lets the clock go on."""
        del requested_by
        if job is not None:
            find_job(self._jobs, job)
        await self._keep.controls.resume(job)
        return {"job": job, "paused": False}

    # --- look

    async def status(self) -> Document:
        """The service at a glance."""
        jobs = await self.jobs()
        totals = await self._keep.controls.totals()
        pauses = await self._keep.controls.pauses()
        return _json(
            {
                "version": self._version,
                "agent": self._agent,
                "now": await self._keep.store.now(),
                "paused": None in pauses,
                "jobs": jobs,
                "statistics": statistics(totals),
                "allocations": [_allocation(one) for one in await self._keep.controls.pictures(list(self._jobs))],
            }
        )

    async def jobs(self) -> list[Document]:
        """Every configured job."""
        pauses = await self._keep.controls.pauses()
        return [await self._described(job, pauses) for job in in_cascade(list(self._jobs.values()))]

    async def job(self, name: str, /) -> Document:
        """One job. Raises ``NotFoundError``."""
        job = find_job(self._jobs, name)
        return await self._described(job, await self._keep.controls.pauses())

    async def _described(self, job: Job, pauses: Mapping[str | None, Document]) -> Document:
        settings, last = job.model_dump(mode="json"), await self._keep.journal.last(job.name, {})
        return _json(
            {
                "name": job.name,
                "kind": job.kind,
                "enabled": job.enabled,
                "dry_run": job.dry_run,
                "paused": None in pauses or job.name in pauses,
                "schedule": {key: settings.get(key) for key in ("every", "cron", "timezone", "run_on_startup")},
                "settings": settings,
                "last_run": as_json(last) if last else None,
                "next_run": self._next_run(job.name),
            }
        )

    async def runs(
        self,
        *,
        job: str | None = None,
        pass_id: str | None = None,
        outcome: str | None = None,
        trigger: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> tuple[list[Document], str | None]:
        """Runs, the newest first, and where to go on."""
        asked = {"job": job, "pass": pass_id, "outcome": outcome, "trigger": trigger}
        filter = {key: value for key, value in asked.items() if value is not None}
        page, following = await self._keep.journal.page(filter, before=before, limit=limit)
        return [as_json(record) for record in page], following

    async def run(self, run_id: str, /) -> Document:
        """One run, also one that waits for its turn. Raises ``NotFoundError``."""
        for going in self._passes.values():
            for record in going.runs():
                if record["_id"] == run_id and (record["started_at"] is None):
                    return record
        active = self._runner.active(run_id)
        return active.record() if active is not None else as_json(await self._keep.journal.get(run_id))

    async def items(
        self, run_id: str, /, *, after: str | None = None, limit: int = 100
    ) -> tuple[list[Document], str | None]:
        """What a run planned or changed, in order, and where to go on. Raises ``NotFoundError``, ``UsageError``."""
        await self._keep.journal.get(run_id)
        if after is not None and not ObjectId.is_valid(after):
            raise UsageError(f"after is the _id of an item, not {after!r}")
        page, following = await self._keep.archive.page(run_id, after=after, limit=limit)
        return [_json({**entry, "id": id_to_json(entry["id"])}) for entry in page], following

    async def reload(self, *, requested_by: str | None) -> Document:
        """Loads the configuration again. Raises ``ConfigurationError``; then the running one stays."""
        del requested_by
        if self._reload is None:
            raise UsageError("there is no running service to reload")
        return await self._reload()

    # --- explain

    async def explain(self, name: str, id_text: str, /) -> Document:
        """Why a job would touch a document, or not: each condition with its value, and what the selection says.

        The conditions are the job's own, evaluated by the server for this one document; the verdict is the job's own
        selection, narrowed to it.
        """
        job = find_job(self._jobs, name)
        if job.scope == "process":
            raise UsageError(f"{name} is about this process, not about documents")
        id = await self._id(job.namespace, id_text)
        now = await self._keep.store.now()
        document = await self._keep.store.collection(job.namespace).find_one({"_id": {"$eq": id}}) or {}
        ports = Ports(StoreReader(self._keep.store), Volume(self._keep.threads), self._keep.clients)
        proofs = await job.proofs(ports)  # before the selection: one document proves no source
        item = await self._selected(job, ports, id, now)
        return _json(
            {
                "job": job.name,
                "kind": job.kind,
                **job.namespace._asdict(),
                "id": id_to_json(id),
                "found": item.what if item else None,
                "action": item.action if item else None,
                "reason": item.reason if item else "the job would leave it alone",
                "held_by": await self._held_by(job, ports, item, now) if item else [],
                "actions": [
                    {
                        "action": action,
                        "conditions": [await self._evaluated(job, one, document) for one in conditions]
                        + (
                            [{"name": job.evidence, "holds": bool(item and item.action), "values": {}}]
                            if job.evidence
                            else []
                        ),
                    }
                    for action, conditions in job.explain(now).items()
                ],
                "proofs": [{"guard": proof.guard, "refusal": proof.refusal} for proof in proofs],
            }
        )

    async def _selected(self, job: Job, ports: Ports, id: Any, now: dt.datetime) -> Item | None:
        narrowed = job.model_copy(
            update={"where": {"$and": [*([dict(job.where)] if job.where else []), {"_id": {"$eq": id}}]}}
        )
        async for item in narrowed.select(ports, now):
            return item
        return None

    async def _evaluated(self, job: Job, condition: Condition, document: Document) -> Document:
        collection = self._keep.store.collection(job.namespace)
        holds = await collection.count({"$and": [{"_id": {"$eq": document["_id"]}}, condition.filter]})
        return {
            "name": condition.name,
            "holds": bool(holds),
            "values": {field: read(document, field) for field in condition.fields},
        }

    async def _held_by(self, job: Job, ports: Ports, item: Item, now: dt.datetime) -> list[str]:
        id = item.id
        held = ["hold"] if await self._keep.marks.held(job.namespace, [id]) else []
        if job.patience:
            seen = await self._keep.marks.first_seen(job.name, job.namespace, [id])
            volume = next((proof.identity for proof in await job.proofs(ports) if proof.identity), None)
            evidence, first = seen.get(comparable(id), (None, now))
            if evidence != (item.identity or volume) or first > now - job.patience:
                held.append("quarantine")
        return held


def _reads(later: Sequence[Job], earlier: Job) -> bool:
    """Whether a later job of a pass reads what an earlier one changes."""
    return any(earlier.namespace in {job.namespace, *job.sources} for job in later)


def ids_of(text: str) -> list[Any]:
    """The ids that a text may mean: Extended JSON if it parses as such, else a string, else a 24-digit ObjectId."""
    ids: list[Any] = [text]
    with suppress(ValueError):
        ids.insert(0, from_extended_json(text))
    if len(text) == HEX_OF_AN_OBJECT_ID and ObjectId.is_valid(text):
        ids.append(ObjectId(text))
    return [id for id in ids if id is not None and is_storable(id)]


def _any_id(field: str, text: str) -> Document:
    """The field holds one of the ids that the text may mean (a list of `$in` would take a pattern for a search)."""
    ids = ids_of(text)
    return {"$or": [{field: {"$eq": id}} for id in ids]} if ids else {field: {"$in": []}}


def _the_one(text: str, found: Sequence[Any], where: str) -> Any:
    if not found:
        raise NotFoundError(f"{where} has no document with the id {text}")
    if len(found) > 1:
        listed = ", ".join(exact_json(id) for id in found)
        raise UsageError(f"{text} means several documents of {where}: {listed}; write the one as Extended JSON")
    return found[0]


def _allocation(picture: Document) -> Document:
    """What the last audit saw of a provider, by resource: cores' thousandths, and bytes."""
    views = ("capacity", "booked", "owed", "used")
    resources = {
        name: {view: picture[view][name] if picture[view] else None for view in views}
        for name in ("cpu", "memory", "storage")
    }
    return {
        "provider": picture["provider"],
        "up": picture["up"],
        "transition": picture["transition"],
        "resources": resources,
    }


def _sort(record: Document) -> str:
    return "dry run" if record["dry_run"] else "restore"


def _json(document: Mapping[str, Any]) -> Document:
    shown: Document = to_extended_json(document)
    return shown
