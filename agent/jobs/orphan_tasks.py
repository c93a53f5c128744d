"""Orphan tasks: cancels active tasks whose target record does not exist.

A task names its target in the fields of ``match``. It is an orphan when no target has these values, as the database
compares them, and the task is older than ``grace``. Then its status becomes *cancelled*, with a message and the time.
Nothing is ever changed unless the targets are proven: their collection exists, is not empty, and holds no less than
half of what it held at the last good run, less what the agent itself deleted since.

Never touched: a task whose target reappears before or while its batch is written, a finished task, and a task whose
target value is of a type that no target has (*malformed*: text where the targets have numbers says more about the
writer than about the target). If all active tasks are so, the match itself is wrong and the run is refused.

Defaults: a grace of one minute, since some applications write the task first; no quarantine, since a cancelled task can
be restored and an orphan costs a worker; up to 10,000 at a time, all of them orphans if need be: in the incident that
this rule was made for nearly every active task was one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from agent.conditions import Condition, among, made_at, made_before, read, together
from agent.job import Action, Change, Item, Limit, Ports, Proof, Quarantined, Query
from agent.settings import Duration
from agent.store import Document, Index, Key, Namespace, comparable, encode, type_name
from agent.tasks import TaskJob

KEYS_A_QUERY = 100  # alternatives of one query: each is a look-up in the index
QUERY_BYTES = 4 * 1024 * 1024  # what they may take together; a query is as large as a document at most


class OrphanTasks(TaskJob, Quarantined):
    """Active tasks without their target."""

    limits: ClassVar[Limit] = Limit(items=10_000, fraction=1.0)
    cascade: ClassVar[int] = 2

    kind: Literal["orphan_tasks"] = "orphan_tasks"
    targets: str = Field(
        default="generated_applications", min_length=1, description="The collection of the records that tasks target."
    )
    targets_database: str | None = Field(default=None, description="Its database, where it is not the tasks' own.")
    match: dict[str, str] = Field(
        default={"target_model": "model_slug", "target_app_number": "app_number"},
        min_length=1,
        description="Which field of a task equals which field of its target.",
    )
    grace: Duration = Field(default=dt.timedelta(minutes=1), description="Younger tasks are no orphans.")
    quarantine: Duration = Field(default=dt.timedelta(0), description="From first sighting to cancellation.")
    message: str = Field(
        default="Target app no longer exists - cancelled by maintenance service",
        description="What `error_message` of a cancelled task says.",
    )

    @property
    def target_namespace(self) -> Namespace:
        """The collection of the targets."""
        return Namespace(self.targets_database or self.database, self.targets)

    @property
    def sources(self) -> tuple[Namespace, ...]:
        """The targets."""
        return (self.target_namespace,)

    async def population(self, ports: Ports) -> int:
        """The active tasks; by the index alone where the number says no more than that there are some."""
        exactly = self.limit.fraction < 1
        return await ports.store.count(self.namespace, self.active if exactly else self._active_by_index)

    async def proofs(self, ports: Ports) -> Sequence[Proof]:
        """The targets proof; after the selection also that some task and some target have values of one type."""
        count = await ports.store.count(self.target_namespace, {})
        refusal = None
        if count == 0:
            refusal = f"{self.target_namespace} is missing or empty, so every task would be an orphan"
        elif ports.seen["foreign"] and ports.seen["foreign"] == ports.seen["active"]:
            pairs = ", ".join(f"{task} with {target}" for task, target in self.match.items())
            refusal = f"no active task has values of the types in {self.target_namespace}; `match` compares {pairs}"
        return [Proof("targets", measure=count, refusal=refusal, deletes=self.target_namespace)]

    async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """The active tasks without a target, and those that cannot be judged."""
        suspects, types = await self._suspects(ports)
        foreign = [key for key in suspects if self._is_foreign(key, types)]
        absent = await self._absent(ports, [key for key in suspects if not self._is_foreign(key, types)])
        for reason, keys in (("foreign", foreign), ("orphan", absent)):
            for some in _some_at_a_time(keys):
                async for task in self._tasks_of(ports, some):
                    if reason == "foreign":
                        ports.seen["foreign"] += 1
                    item = self._foreign(task) if reason == "foreign" else self._orphan(task, now)
                    if item is not None:
                        yield item
        if foreign:
            ports.seen["active"] = await ports.store.count(self.namespace, self.active)

    async def _suspects(self, ports: Ports) -> tuple[list[Key], list[set[str]]]:
        """The targets that active tasks name and a covered walk over the targets does not meet; the types it met."""
        wanted: dict[Any, Key] = {}
        async for key in ports.store.keys(self.namespace, self._active_by_index, list(self.match), distinct=True):
            wanted[comparable(key)] = key
        examples: list[dict[type, Any]] = [{} for _ in self.match]  # a value of each type; millions may be of one
        if wanted:
            async for key in ports.store.keys(self.target_namespace, {}, list(self.match.values()), distinct=False):
                wanted.pop(comparable(key), None)
                for seen, value in zip(examples, key, strict=True):
                    seen[type(value)] = value
        types = [{type_name(value) for value in seen.values()} for seen in examples]
        return list(wanted.values()), types

    @staticmethod
    def _is_foreign(key: Key, types: Sequence[set[str]]) -> bool:
        return any(type_name(value) not in seen for value, seen in zip(key, types, strict=True))

    async def _absent(self, ports: Ports, keys: Sequence[Key]) -> list[Key]:
        """Those of the suspects for which the server finds no target."""
        absent: list[Key] = []
        for some in _some_at_a_time(keys):
            existing = await ports.store.existing(self.target_namespace, list(self.match.values()), some)
            absent += [key for position, key in enumerate(some) if position not in existing]
        return absent

    def _tasks_of(self, ports: Ports, keys: Sequence[Key]) -> AsyncIterator[Document]:
        alternatives = [{"$and": [self.active, self._match(key)]} for key in keys]
        created = [self.fields.created_at] if self.fields.created_at else []
        return ports.store.find(self.namespace, {"$or": alternatives}, [*self.match, *created])

    def _match(self, key: Key) -> Document:
        return {name: {"$eq": value} for name, value in zip(self.match, key, strict=True)}

    @staticmethod
    def _foreign(task: Document) -> Item:
        return Item(task["_id"], "malformed", None, "its target value is of a type that no target has")

    def _orphan(self, task: Document, now: dt.datetime) -> Item | None:
        created = made_at(task, self.fields.created_at)
        if created is None and self.fields.created_at is not None:
            return Item(task["_id"], "malformed", None, f"{self.fields.created_at} is not a date")
        if created is not None and created >= now - self.grace:
            return None
        key = tuple(read(task, name) for name in self.match)
        named = ", ".join(f"{name}={str(value)[:80]}" for name, value in zip(self.match, key, strict=True))
        return Item(
            task["_id"], "orphan", "cancelled", f"no record in {self.targets} for {named}", self._match(key), created
        )

    async def still(self, ports: Ports, items: Sequence[Item], now: dt.datetime) -> Sequence[Item]:
        """Those whose target does not exist now."""
        del now
        keys = {comparable(key): key for key in map(self._key, items)}
        absent = {comparable(key) for key in await self._absent(ports, list(keys.values()))}
        return [item for item in items if comparable(self._key(item)) in absent]

    def _key(self, item: Item) -> Key:
        return tuple(item.match[name]["$eq"] for name in self.match)

    def change(self, action: Action, now: dt.datetime) -> Change:
        """The task is cancelled, while it is active and as old as it was."""
        del action
        return Change(together(*self._conditions(now)), self.ended(self.statuses.cancelled, self.message, now))

    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """The conditions on the task itself; its target is looked for beside them."""
        return {"cancelled": self._conditions(now)}

    def _conditions(self, now: dt.datetime) -> list[Condition]:
        field = self.fields.created_at
        horizon = now - self.grace
        old = Condition(
            f"made before {horizon:%Y-%m-%dT%H:%M:%SZ} (grace)", made_before(field, horizon), (field or "_id",)
        )
        return [self.in_status(*self.statuses.active), *self.narrowing, old]

    @property
    def _active_by_index(self) -> Document:
        """The active tasks, and those whose status is an array of such: as much as the index tells by itself."""
        return {"$and": [among(self.fields.status, self.statuses.active), *(one.filter for one in self.narrowing)]}

    @property
    def evidence(self) -> str:
        """It has no target."""
        pairs = ", ".join(f"{target} equal to its {task}" for task, target in self.match.items())
        return f"{self.target_namespace} has no document with {pairs}"

    @property
    def queries(self) -> Sequence[Query]:
        """The active tasks by target, and the targets themselves."""
        active = among(self.fields.status, self.statuses.active)
        # The status in front: without it the server reads each document to be sure of it, and counts by reading all.
        by_target = Index(tuple((name, 1) for name in dict.fromkeys((self.fields.status, *self.match))), partial=active)
        targets = tuple(self.match.values())
        known = None if targets == ("_id",) else Index(tuple((name, 1) for name in targets))
        return [
            Query(self.namespace, active, by_target, "active tasks by target"),
            Query(self.target_namespace, {}, known, "the targets' keys"),
        ]


def _some_at_a_time(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """The keys in portions that fit one query."""
    some: list[Key] = []
    size = 0
    for key in keys:
        taken = len(encode({"": list(key)}))
        if some and (len(some) >= KEYS_A_QUERY or size + taken > QUERY_BYTES):
            yield some
            some, size = [], 0
        some.append(key)
        size += taken
    if some:
        yield some
