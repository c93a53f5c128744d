"""Retention: deletes finished tasks that ended longer than ``keep`` ago, the oldest first.

A task has ended when its status says so and its time of completion is a date (where the application keeps none, set
``fields.completed_at: null`` and the time of creation counts). ``keep`` may differ by status.

Never touched: active tasks, whatever their age; result files; a finished task without a time of its end (*malformed*,
reported: it stays until somebody gives it one).

Defaults: thirty days; at most half of all tasks (above 1,000) in a run, since a clock that is wrong makes everything
old; more than 1,000,000 in one run is no refusal: the oldest go, the next run goes on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from agent.conditions import Condition, before, no_date, read, together
from agent.job import Action, Change, Item, Limit, Ports, Query
from agent.settings import Duration, format_duration
from agent.store import Index
from agent.tasks import TaskJob

Ended = Literal["completed", "failed", "cancelled"]
MONTH = dt.timedelta(days=30)


class Retention(TaskJob):
    """Finished tasks past the time that they are kept."""

    limits: ClassVar[Limit] = Limit(items=1_000_000, fraction=0.5, floor=1000)
    truncates: ClassVar[bool] = True
    cascade: ClassVar[int] = 4

    kind: Literal["retention"] = "retention"
    keep: Duration | dict[Ended, Duration] = Field(
        default=MONTH,
        description="How long finished tasks are kept: one duration, or one for each of completed, failed, cancelled "
        "(a status that is not named is kept for ever).",
    )

    @field_validator("keep")
    @classmethod
    def _keeps_something(cls, keep: Any) -> Any:
        if keep == {}:
            raise ValueError("names no status: give a duration, or one for each of completed, failed, cancelled")
        return keep

    @property
    def _kept(self) -> dict[Ended, dt.timedelta]:
        if isinstance(self.keep, dict):
            return self.keep
        return {"completed": self.keep, "failed": self.keep, "cancelled": self.keep}

    @property
    def _end(self) -> str:
        return self.fields.completed_at or self.fields.created_at or "created_at"

    async def population(self, ports: Ports) -> int:
        """All tasks."""
        return await ports.store.count(self.namespace, self.filter)

    async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """The expired tasks, oldest first, and the finished ones without an end."""
        expired = together(*self._conditions(now))
        async for task in ports.store.find(
            self.namespace, expired, [self.fields.status, self._end], sort=[(self._end, 1)]
        ):
            since = read(task, self._end)
            status = read(task, self.fields.status)
            date = since if isinstance(since, dt.datetime) else None
            ended = date.date().isoformat() if date else "long ago"  # strftime takes seven times as long
            yield Item(task["_id"], "expired", "deleted", f"{status}, ended {ended}", since=date)
        async for task in ports.store.find(self.namespace, together(*self._unfinished(now)), []):
            yield Item(task["_id"], "malformed", None, f"finished, but {self._end} is not a date")

    def change(self, action: Action, now: dt.datetime) -> Change:
        """The task is deleted, while it is finished and as old as it was."""
        del action
        return Change(together(*self._conditions(now)), None)

    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """Finished, and long enough ago."""
        return {"deleted": self._conditions(now)}

    def _conditions(self, now: dt.datetime) -> list[Condition]:
        spans = self._kept
        finished = self.in_status(*(value for name in spans for value in getattr(self.statuses, name)))
        if len(set(spans.values())) == 1:
            span = next(iter(spans.values()))
            old = Condition(
                f"ended more than {format_duration(span)} ago (`keep`)", before(self._end, now - span), (self._end,)
            )
        else:
            each = [
                {"$and": [self.in_status(*getattr(self.statuses, name)).filter, before(self._end, now - span)]}
                for name, span in spans.items()
            ]
            kept = ", ".join(f"{name} {format_duration(span)}" for name, span in spans.items())
            old = Condition(f"ended longer ago than its status is kept (`keep`: {kept})", {"$or": each}, (self._end,))
        return [finished, *self.narrowing, old]

    def _unfinished(self, now: dt.datetime) -> list[Condition]:
        """Finished by status, without an end."""
        horizon = now - min(self._kept.values())
        values = [value for name in self._kept for value in getattr(self.statuses, name)]
        return [
            self.in_status(*values),
            *self.narrowing,
            Condition("has no end", no_date(self._end, horizon), (self._end,)),
        ]

    @property
    def queries(self) -> Sequence[Query]:
        """The finished tasks by their end."""
        index = Index(((self.fields.status, 1), (self._end, 1)))
        finished = self.in_status(*self.statuses.terminal).filter
        return [Query(self.namespace, finished, index, "finished tasks by their end", ((self._end, 1),))]
