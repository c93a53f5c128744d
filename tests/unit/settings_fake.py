"""Three small kinds of jobs, so that what is said of settings does not depend on the real ones."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.settings import Duration, Filter


class Limit(BaseModel):
    """Caps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(default=100, ge=0, description="Most items.")
    fraction: float = Field(default=0.5, ge=0, le=1, description="Most of all.")


class Fields(BaseModel):
    """Where things are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: str = "status"
    ended: str | None = "ended_at"


class FakeJob(BaseModel):
    """What every job has."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    limits: ClassVar[Limit] = Limit()

    name: str = Field(exclude=True)
    kind: str
    enabled: bool = Field(default=True, description="Whether it runs.")
    run_timeout: Duration = Field(default=dt.timedelta(minutes=10), description="Its end.")
    dry_run: bool = Field(default=False, description="Only look.")
    batch: int = Field(default=1000, ge=1, le=10_000, description="At once.")
    every: Duration | None = Field(default=None, description="Interval.")
    cron: str | None = Field(default=None, description="Instants.")
    timezone: str | None = Field(default=None, description="Of `cron`.")
    run_on_startup: bool = Field(default=True, description="At the start.")
    where: Filter = Field(default_factory=dict, description="Narrows.")
    database: str = Field(description="Where.")
    limit: Limit = Field(description="Caps.")

    @model_validator(mode="before")
    @classmethod
    def _merge_limit(cls, data: Any) -> Any:
        return {**data, "limit": {**cls.limits.model_dump(), **(data.get("limit") or {})}}


class Records(FakeJob):
    """Records."""

    kind: Literal["orphan_records"] = "orphan_records"
    root: Path = Field(default=Path("/data"), description="The volume.")
    match: dict[str, str] = Field(default={"model": "slug", "number": "app"}, description="Pairs.")
    fields_: Fields = Field(default=Fields(), alias="fields", description="Where things are.")
    never: tuple[str, ...] = Field(default=(), description="Left alone.")


class Stuck(FakeJob):
    """Stuck."""

    kind: Literal["stuck_tasks"] = "stuck_tasks"
    timeout: Duration = Field(default=dt.timedelta(hours=1), description="Running.")
    pending_timeout: Duration = Field(default=dt.timedelta(hours=1), description="Pending.")


class Retention(FakeJob):
    """Retention."""

    limits: ClassVar[Limit] = Limit(items=7)

    kind: Literal["retention"] = "retention"
    keep: Duration | dict[Literal["done", "failed"], Duration] = Field(
        default=dt.timedelta(days=30), description="How long."
    )

    @model_validator(mode="after")
    def _keeps_something(self) -> Retention:
        if self.keep == {}:
            raise ValueError("`keep` names no status")
        return self


class Cache(FakeJob):
    """Has a rhythm of its own."""

    kind: Literal["client_eviction"] = "client_eviction"
    every: Duration | None = Field(default=dt.timedelta(minutes=5), description="Interval.")


KINDS: tuple[type[FakeJob], ...] = (Records, Stuck, Retention, Cache)
