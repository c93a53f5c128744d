"""Stuck tasks: ends tasks that have been running or pending past their limit.

A running task is stuck when its last sign of life is older than ``timeout``: its heartbeat where it has one, else its
start, else its creation. It becomes *failed*. A pending task is stuck when it was created longer than
``pending_timeout`` ago. It becomes *cancelled*. Both get the reason and the time. Limits may differ by type of task.

Never touched: a task that finished, or that gave a sign of life, between the look and the write; a task of a type under
``never``; a task whose sign of life is not a date (*malformed*, reported).

Defaults: an hour, which is long for a step of an analysis and short for a person who waits; at most half of the active
tasks at a time (above 50), since workers that are down for an hour must not cost the whole queue.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agent.conditions import Condition, absent, before, no_date, odd_date, read, together
from agent.job import Action, Change, Item, Limit, Ports, Query
from agent.settings import Duration, format_duration
from agent.store import Document, Index
from agent.tasks import TaskJob

HOUR = dt.timedelta(hours=1)
MESSAGES: Mapping[Literal["failed", "cancelled"], str] = {
    "failed": "Task was running without a sign of life past its limit - failed by maintenance service",
    "cancelled": "Task was pending past its limit - cancelled by maintenance service",
}


class TypeLimits(BaseModel):
    """The limits of one type of task; what is left out is as for all types."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration | None = None
    pending_timeout: Duration | None = None


class StuckTasks(TaskJob):
    """Active tasks past their limit."""

    limits: ClassVar[Limit] = Limit(items=10_000, fraction=0.5, floor=50)
    cascade: ClassVar[int] = 3

    kind: Literal["stuck_tasks"] = "stuck_tasks"
    timeout: Duration = Field(default=HOUR, description="A running task without a sign of life for this long is stuck.")
    pending_timeout: Duration = Field(
        default=HOUR, description="A pending task that was created this long ago is stuck."
    )
    types: dict[str, TypeLimits] = Field(
        default_factory=dict, description="Other limits for single types of tasks (needs `fields.type`)."
    )
    never: tuple[str, ...] = Field(
        default=(), description="Types of tasks that are never touched (needs `fields.type`)."
    )
    messages: dict[Literal["failed", "cancelled"], str] = Field(
        default=dict(MESSAGES), description="What `error_message` of an ended task says."
    )

    @field_validator("messages")
    @classmethod
    def _says_the_rest(
        cls, messages: dict[Literal["failed", "cancelled"], str]
    ) -> dict[Literal["failed", "cancelled"], str]:
        """One message may be said alone."""
        return {**MESSAGES, **messages}

    def model_post_init(self, _context: Any, /) -> None:
        """Limits by type need to know where the type stands."""
        if (self.types or self.never) and self.fields.type is None:
            raise ValueError("`types` and `never` need `fields.type`: the field that holds a task's type")

    async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """The stuck tasks, and the active ones whose signs of life are not dates."""
        wanted = [name for name in (*self._signs, self.fields.status, self.fields.type) if name]
        for action, conditions in self.explain(now).items():
            async for task in ports.store.find(self.namespace, together(*conditions), wanted):
                yield self._stuck(task, action)
        async for task in ports.store.find(self.namespace, self._malformed, []):
            yield Item(task["_id"], "malformed", None, "no date says since when it is active")

    def _stuck(self, task: Document, action: Action) -> Item:
        signs = self._signs if action == "failed" else self._signs[-1:]
        since = next((value for name in signs if isinstance(value := read(task, name), dt.datetime)), None)
        limit = self._limit(task, action)
        status = read(task, self.fields.status)
        return Item(
            task["_id"], "stuck", action, f"{status} since {since}, limit {format_duration(limit)}", since=since
        )

    def _limit(self, task: Document, action: Action) -> dt.timedelta:
        kind = read(task, self.fields.type) if self.fields.type else None
        own = self.types.get(kind) if isinstance(kind, str) else None
        if action == "failed":
            return own.timeout if own and own.timeout is not None else self.timeout
        return own.pending_timeout if own and own.pending_timeout is not None else self.pending_timeout

    def change(self, action: Action, now: dt.datetime) -> Change:
        """The task is ended, while it is in the status and without the sign of life that made it stuck."""
        status = self.statuses.failed if action == "failed" else self.statuses.cancelled
        message = self.messages["failed" if action == "failed" else "cancelled"]
        return Change(together(*self.explain(now)[action]), self.ended(status, message, now))

    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """The conditions for each of the two actions."""
        return {
            "failed": [
                self.in_status(*self.statuses.running),
                *self.narrowing,
                *self._not_never,
                self._silent("timeout", now, self.timeout, self._running_before),
            ],
            "cancelled": [
                self.in_status(*self.statuses.pending),
                *self.narrowing,
                *self._not_never,
                self._silent("pending_timeout", now, self.pending_timeout, self._pending_before),
            ],
        }

    def _silent(
        self, name: Literal["timeout", "pending_timeout"], now: dt.datetime, limit: dt.timedelta, older: Any
    ) -> Condition:
        """No sign of life within the limit of the task's type."""
        own = {kind: value for kind, limits in self.types.items() if (value := getattr(limits, name)) is not None}
        signs = tuple(field for field in (*self._signs, self.fields.type) if field)
        sentence = f"no sign of life for {format_duration(limit)} (`{name}`)"
        if not own:
            return Condition(sentence, older(now - limit), signs)
        kind = self.fields.type or ""
        others = {"$and": [{kind: {"$nin": list(own)}}, older(now - limit)]}
        each = [{"$and": [{kind: {"$eq": value}}, older(now - span)]} for value, span in own.items()]
        return Condition(f"{sentence}, or the limit of its type", {"$or": [others, *each]}, signs)

    def _running_before(self, horizon: dt.datetime) -> Document:
        """The first sign of life that is there is older than the horizon."""
        chain: list[Document] = []
        missing: list[Document] = []
        for name in self._signs:
            chain.append({"$and": [*missing, before(name, horizon)]} if missing else before(name, horizon))
            missing.append(absent(name))
        return {"$or": chain}

    def _pending_before(self, horizon: dt.datetime) -> Document:
        return before(self._signs[-1], horizon)

    @property
    def _signs(self) -> list[str]:
        """The fields that tell since when a task has been silent, the best first."""
        fields = self.fields
        return [name for name in (fields.heartbeat_at, fields.started_at, fields.created_at) if name] or ["created_at"]

    @property
    def _not_never(self) -> list[Condition]:
        if not self.never or not self.fields.type:
            return []
        return [
            Condition(
                "its type is not under `never`", {self.fields.type: {"$nin": list(self.never)}}, (self.fields.type,)
            )
        ]

    @property
    def _malformed(self) -> Document:
        """Active tasks of which no date says since when."""
        broken: list[Document] = []
        missing: list[Document] = []
        for name in self._signs:
            broken.append({"$and": [*missing, odd_date(name)]} if missing else odd_date(name))
            missing.append(absent(name))
        broken.append({"$and": missing})
        running = together(self.in_status(*self.statuses.running), *self.narrowing, *self._not_never)
        pending = together(self.in_status(*self.statuses.pending), *self.narrowing, *self._not_never)
        return {"$or": [{"$and": [running, {"$or": broken}]}, {"$and": [pending, no_date(self._signs[-1])]}]}

    @property
    def queries(self) -> Sequence[Query]:
        """The tasks of a status."""
        index = Index(((self.fields.status, 1),), partial={})
        return [Query(self.namespace, self._malformed, index, "tasks by status")]
