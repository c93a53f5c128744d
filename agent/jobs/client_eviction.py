"""Client eviction: takes cached Kubernetes clients out of this process' cache when they have to go.

A client goes when nobody used it for ``ttl``, when it is older than ``max_age``, or when it was refused ``refusals``
times in a row; and where there are more than ``size``, the one used longest ago. It leaves the cache at once and is
closed when its last user is done.

Never touched: a client that is in use stays open until its user is done; and another process' clients, whose cache
cannot be reached from here. So every process runs this job for itself, without a lease and without MongoDB too.

Defaults: an hour, as the platform's own cache would have kept them had it kept any limit; a day at most, so that
rotated certificates are taken up; three refusals, since one may be a restart of the API server; a hundred clients:
give more where there are more providers, or each audit connects to all of them anew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from agent.clients import Rules
from agent.conditions import Condition
from agent.job import Action, Change, Item, Job, Limit, Ports, Scope
from agent.settings import Duration
from agent.store import Namespace


def strictest(jobs: Iterable[Job]) -> Rules | None:
    """The rules by which the enabled jobs of this kind evict, where there is one; of several, each has its say."""
    rules = [job.rules for job in jobs if isinstance(job, ClientEviction) and job.enabled]
    if not rules:
        return None
    names = ("ttl", "max_age", "refusals", "size")
    return Rules(**{name: min(getattr(one, name) for one in rules) for name in names})


class ClientEviction(Job):
    """Cached clients that have to go."""

    scope: ClassVar[Scope] = "process"
    limits: ClassVar[Limit] = Limit(items=10_000)
    cascade: ClassVar[int] = 6

    kind: Literal["client_eviction"] = "client_eviction"
    every: Duration | None = Field(default=dt.timedelta(minutes=5), description="Interval, aligned to the Unix epoch.")
    ttl: Duration = Field(default=dt.timedelta(hours=1), description="A client that nobody used for this long goes.")
    max_age: Duration = Field(default=dt.timedelta(days=1), description="A client that was made this long ago goes.")
    refusals: int = Field(default=3, ge=1, description="A client that was refused this often in a row goes.")
    size: int = Field(default=100, ge=1, le=10_000, description="Most clients kept; the one used longest ago goes.")

    @property
    def namespace(self) -> Namespace:
        """The cache, which is no collection."""
        return Namespace("", "client_cache")

    @property
    def rules(self) -> Rules:
        """When a client has to go."""
        return Rules(self.ttl, self.max_age, self.refusals, self.size)

    async def population(self, ports: Ports) -> int:
        """The clients in the cache."""
        return len(ports.clients)

    async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """The clients that have to go."""
        for leaving in ports.clients.leaving(self.rules):
            since = now - dt.timedelta(seconds=leaving.seconds)
            reason = f"{leaving.reason} for {leaving.seconds:.0f} s"
            yield Item(leaving.key, "idle", "evicted", reason, {"generation": leaving.generation}, since)

    async def evict(self, ports: Ports, item: Item) -> bool:
        """Takes a client out, if it still has to go; says whether it did."""
        return ports.clients.evict(str(item.id), item.match["generation"], self.rules)

    def change(self, action: Action, now: dt.datetime) -> Change:
        """Nothing is written."""
        del action, now
        return Change({}, None)

    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """There are no documents to explain."""
        del now
        return {}
