"""What the kinds that work on tasks share: where a task keeps its state, and which values mean what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agent.conditions import Condition, one_of, together
from agent.job import Job, Ports
from agent.settings import Accepts
from agent.store import Document, Namespace


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Value = str | int | bool
Values = Annotated[
    tuple[Value, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=Value | list[Value]),
    Field(min_length=1),
    Accepts("a value or a list of values"),
]


class Statuses(BaseModel):
    """The values of the status field; of several values the first is the one that is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pending: Values = ("PENDING",)
    running: Values = ("RUNNING",)
    completed: Values = ("COMPLETED",)
    failed: Values = ("FAILED",)
    cancelled: Values = ("CANCELLED",)

    @property
    def active(self) -> tuple[str | int | bool, ...]:
        """Not finished yet."""
        return (*self.pending, *self.running)

    @property
    def terminal(self) -> tuple[str | int | bool, ...]:
        """Finished, one way or another."""
        return (*self.completed, *self.failed, *self.cancelled)


class Fields(BaseModel):
    """Where a task keeps what the rules look at: dotted paths; null means that there is no such field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: str = "status"
    created_at: str | None = "created_at"
    started_at: str | None = "started_at"
    completed_at: str | None = "completed_at"
    error_message: str | None = "error_message"
    heartbeat_at: str | None = None
    type: str | None = None


class TaskJob(Job):
    """A job over a collection of tasks."""

    collection: str = Field(default="analysis_tasks", min_length=1, description="The collection of the tasks.")
    statuses: Statuses = Field(default=Statuses(), description="The values of the status field.")
    fields: Fields = Field(default=Fields(), description="Where a task keeps its state.")

    @property
    def namespace(self) -> Namespace:
        """The collection of the tasks."""
        return Namespace(self.database, self.collection)

    def in_status(self, *values: str | int | bool) -> Condition:
        """The task is in one of the statuses."""
        names = " or ".join(str(value) for value in values)
        return Condition(f"{self.fields.status} is {names}", one_of(self.fields.status, values), (self.fields.status,))

    @property
    def active(self) -> Document:
        """The active tasks."""
        return together(self.in_status(*self.statuses.active), *self.narrowing)

    async def population(self, ports: Ports) -> int:
        """The active tasks."""
        return await ports.store.count(self.namespace, self.active)

    def ended(self, status: Sequence[Any], message: str, now: Any) -> Document:
        """What is set on a task that the rule ends: its status, why, and when."""
        fields = self.fields
        written: Document = {fields.status: status[0]}
        if fields.error_message is not None:
            written[fields.error_message] = message
        if fields.completed_at is not None:
            written[fields.completed_at] = now
        return written
