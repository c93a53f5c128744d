"""A job: a maintenance rule with its settings, and the words that the runner and the jobs share.

A job is a frozen settings class whose fields are its configuration, and a few small methods that make it a rule:
*population*, *proofs*, *select*, *still*, *change*, *conditions*. It reads through the ports that it is handed, and
nothing else: no clock, no environment, no driver. The runner guards, batches, plans, applies and records.
"""

from __future__ import annotations

import datetime as dt
import itertools
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agent.conditions import Condition
from agent.settings import Duration, Filter
from agent.store import Document, Index, Key, Namespace, from_extended_mapping

if TYPE_CHECKING:
    from agent.clients import Clients
    from agent.volume import Volume

Scope = Literal["shared", "process"]
What = Literal["orphan", "stuck", "expired", "drift", "overcommitted", "idle", "malformed", "unreadable", "outside"]
Action = Literal["deleted", "cancelled", "failed", "repaired", "evicted", "restored"]
Hold = Literal["quarantine", "hold"]
Guard = Literal["root", "targets", "cap", "archive"]
Trigger = Literal["schedule", "startup", "manual", "plan", "restore", "cli"]
Outcome = Literal["succeeded", "failed", "timed_out", "refused", "interrupted"]

SAMPLE = 100  # items that a run record shows


@dataclass(slots=True)  # nobody changes one; frozen, it would take four times as long to make, twice a document
class Item:
    """One document that a rule found.

    ``action`` is what the rule wants done; ``None`` is a finding that is only reported. ``match`` is the part of the
    evidence that only this document carries (its target, its path) and is repeated in the write. ``since`` is the
    instant (UTC) that its age counts from.
    """

    id: Any
    what: What
    action: Action | None
    reason: str
    match: Document = field(default_factory=dict)
    since: dt.datetime | None = None
    values: Document = field(default_factory=dict)
    """What is set on this document, beside what the change sets on all."""
    identity: str | None = None
    """Names the evidence: a sighting of another one is not a second sighting."""


def action_of(item: Item) -> Action:
    """The action of an item that is to be changed."""
    assert item.action is not None  # noqa: S101 - items that are only reported never come so far
    return item.action


@dataclass(frozen=True, slots=True)
class Change:
    """What is written to an item: the conditions that the write repeats, and the fields to set (``None``: delete)."""

    filter: Document
    set: Document | None
    counter: str | None = None
    """A field that every write increments, a restore too: versions never go back."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a guard on the source of truth saw.

    ``refusal`` says why absence must not count (``None``: it may). ``measure`` is what the next run is compared with;
    ``identity`` names the source (a volume's marker). ``consent`` says whether an operator may accept the refusal.
    """

    guard: Guard
    measure: int | None = None
    identity: str | None = None
    refusal: str | None = None
    consent: bool = True
    unit: str = "documents"
    deletes: Namespace | None = None
    """The collection whose documents are measured: what the agent itself deleted there is no drop."""


class Limit(BaseModel):
    """How much one run may change: at most ``items``; above ``floor``, at most ``fraction`` of the population."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(default=10_000, ge=0, description="Most items that one run may change.")
    fraction: float = Field(default=1.0, ge=0, le=1, description="Most of the population, as a share of it.")
    floor: int = Field(default=0, ge=0, description="Up to this many items the fraction does not count.")


class Reader(Protocol):
    """What a job reads of MongoDB. In a dry pass the plan of the earlier jobs is laid over it."""

    async def count(self, namespace: Namespace, filter: Document) -> int:
        """How many documents match."""

    def find(
        self,
        namespace: Namespace,
        filter: Document,
        fields: Sequence[str],
        *,
        sort: Sequence[tuple[str, int]] = (),
        hint: str | Sequence[tuple[str, int]] | None = None,
    ) -> AsyncIterator[Document]:
        """The matching documents, with ``_id`` and ``fields`` only."""

    def keys(
        self, namespace: Namespace, filter: Document, fields: Sequence[str], *, distinct: bool
    ) -> AsyncIterator[Key]:
        """The values of ``fields`` of the matching documents; ``distinct`` has the server group them first.

        A field that is missing is ``None``. Without ``distinct``, a document may be seen twice or, when it is changed
        meanwhile, not at all: confirm what seems absent with ``existing``.
        """

    def groups(
        self, namespace: Namespace, filter: Document, fields: Sequence[str]
    ) -> AsyncIterator[tuple[Key, list[Any]]]:
        """The different values of ``fields`` of the matching documents, each with the ids of the documents."""

    async def existing(self, namespace: Namespace, fields: Sequence[str], keys: Sequence[Key]) -> set[int]:
        """The positions in ``keys`` for which a document exists, as the server compares."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a job may use: the database's reader, the volumes' reader."""

    store: Reader
    volume: Volume
    clients: Clients
    seen: Counter[str] = field(default_factory=Counter)
    """What the selection counts for the proofs that are asked after it."""
    pictures: list[Document] = field(default_factory=list)
    """What the selection saw of providers, for the gauges and the page."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query that a job makes, for ``check`` and the index advice: where, what, and the index that serves it."""

    namespace: Namespace
    filter: Document
    index: Index | None
    purpose: str
    sort: tuple[tuple[str, int], ...] = ()


class Job(BaseModel, ABC):
    """The settings that every job has, and the methods that make a rule. A kind is a subclass in ``agent.jobs``."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    scope: ClassVar[Scope] = "shared"
    limits: ClassVar[Limit] = Limit()
    truncates: ClassVar[bool] = False
    """Whether more than ``limit.items`` is no refusal: the first go, the rest waits for the next run."""
    looks_back: ClassVar[bool] = True
    """Whether the evidence is looked at once more after a batch, and what came back is put back."""
    cascade: ClassVar[int]
    """The kind's place in the order of a pass."""

    name: str = Field(exclude=True, description="The job's name; the key in `jobs`.")
    kind: str
    enabled: bool = Field(default=True, description="Whether the schedule and `--all` include the job.")
    run_timeout: Duration = Field(default=dt.timedelta(minutes=10), description="A run ends after this long.")
    dry_run: bool = Field(default=False, description="Only look: nothing but apply and restore changes anything.")
    batch: int = Field(default=1000, ge=1, le=10_000, description="Documents changed in one batch.")
    every: Duration | None = Field(default=None, description="Interval, aligned to the Unix epoch.")
    cron: str | None = Field(default=None, description="crontab(5) expression instead of `every`; 0 and 7 are Sunday.")
    timezone: str | None = Field(default=None, description="Time zone of `cron`.")
    run_on_startup: bool = Field(default=True, description="Whether the start-up pass includes the job.")
    where: Filter = Field(
        default_factory=dict, description="A filter that narrows the collection that the job changes."
    )
    database: str = Field(description="The database of the collection that the job changes.")
    limit: Limit = Field(description="Caps of one run, merged over the kind's own.")

    @field_validator("where")
    @classmethod
    def _where_is_extended_json(cls, where: Mapping[str, Any]) -> Mapping[str, Any]:
        from_extended_mapping(where)
        return where

    @model_validator(mode="before")
    @classmethod
    def _merge_limit(cls, data: Any) -> Any:
        """A configured ``limit`` says only what differs from the kind's."""
        if not isinstance(data, dict):
            return data
        limit = data.get("limit")
        if limit is None or isinstance(limit, dict):
            data = {**data, "limit": {**cls.limits.model_dump(), **(limit or {})}}
        return data

    @property
    def narrowing(self) -> list[Condition]:
        """The ``where`` of the configuration as a condition."""
        fields = tuple(key for key in self.where if not key.startswith("$"))
        return [Condition("matches the configured `where`", self.filter, fields)] if self.where else []

    @property
    def filter(self) -> Document:
        """The ``where`` of the configuration, as MongoDB takes it."""
        return from_extended_mapping(self.where)

    @property
    def patience(self) -> dt.timedelta:
        """How long after its first sighting an item may be changed, by a later run; zero: at once."""
        return dt.timedelta(0)

    @property
    def acts(self) -> bool:
        """Whether a run changes what it found, or only reports it."""
        return True

    @property
    @abstractmethod
    def namespace(self) -> Namespace:
        """The collection that the job changes."""

    @property
    def sources(self) -> tuple[Namespace, ...]:
        """The other collections that the rule reads."""
        return ()

    @abstractmethod
    async def population(self, ports: Ports) -> int:
        """Out of how many the rule selects."""

    async def proofs(self, ports: Ports) -> Sequence[Proof]:
        """What must hold before absence counts. Asked only of a population that is not empty.

        Asked twice, before the selection and after it: a source may go away while it is looked at, and some of what
        proves it (``ports.seen``) is known only then.
        """
        del ports
        return ()

    @abstractmethod
    def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """The items that the rule finds at ``now``, those that are only reported included."""

    async def still(self, ports: Ports, items: Sequence[Item], now: dt.datetime) -> Sequence[Item]:
        """Those of ``items`` whose evidence outside their document still holds (for most rules there is none)."""
        del ports, now
        return items

    @abstractmethod
    def change(self, action: Action, now: dt.datetime) -> Change:
        """What is written to an item for ``action``; the runner adds ``_id`` and the item's own ``match``."""

    @abstractmethod
    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """The conditions under which each action is taken, as the selection has them."""

    async def evict(self, ports: Ports, item: Item) -> bool:
        """Does the change of a kind of scope ``process``, which is no write to a document; says whether it did."""
        raise NotImplementedError(f"{self.kind} changes documents")

    @property
    def evidence(self) -> str | None:
        """What must hold outside the document itself, in a sentence; ``None`` where its own fields say all."""
        return None

    @property
    def queries(self) -> Sequence[Query]:
        """The queries that the job makes and the indexes that serve them."""
        return ()


class Quarantined(Job):
    """A job whose items are sightings first: acted on by a later run, ``quarantine`` after the first."""

    grace: Duration = Field(default=dt.timedelta(0), description="Minimum age before absence counts.")
    quarantine: Duration = Field(default=dt.timedelta(0), description="From the first sighting to acting on it.")

    @property
    def patience(self) -> dt.timedelta:
        """The quarantine."""
        return self.quarantine


@dataclass
class Report:
    """What a run found and changed so far; filled while working, so that it is true whenever the run ends."""

    population: int = 0
    found: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    complete: bool = False
    would_refuse: str | None = None
    sample: list[Document] = field(default_factory=list)
    oldest_found_at: dt.datetime | None = None
    throttled: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of pauses between batches, by reason."""

    def finds(self, item: Item) -> None:
        """Counts a finding, held or not."""
        self.found[item.what] += 1
        if (
            item.since is not None
            and item.action
            and (self.oldest_found_at is None or item.since < self.oldest_found_at)
        ):
            self.oldest_found_at = item.since
        if len(self.sample) < SAMPLE:
            self.sample.append({"id": item.id, "action": item.action, "reason": item.reason})

    def forget(self) -> None:
        """Drops what was found, where the proof that it counts has failed."""
        self.found.clear()
        self.sample.clear()
        self.oldest_found_at = None

    def sampled(self, items: Iterable[Document]) -> None:
        """Shows items in the record, as far as there is room."""
        self.sample.extend(itertools.islice(items, SAMPLE - len(self.sample)))


@dataclass
class Run:
    """One execution of one job: its record in ``maintenance_runs``."""

    id: str
    pass_id: str
    job: str
    kind: str
    trigger: Trigger
    requested_by: str | None
    dry_run: bool
    agent: str
    scheduled_for: dt.datetime | None = None
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    seconds: float | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    guard: Guard | None = None
    """The guard that refused it."""
    consent: str | None = None
    """What an operator can accept so that the next run is not refused, or would not be."""
    term: int | None = None
    accept: frozenset[str] = frozenset()
    source: str | None = None
    """The run whose plan is applied, or whose changes are restored."""
    report: Report = field(default_factory=Report)

    @property
    def document(self) -> Document:
        """The record as it is stored and shown."""
        report = self.report
        return {
            "_id": self.id,
            "pass": self.pass_id,
            "job": self.job,
            "kind": self.kind,
            "trigger": self.trigger,
            "requested_by": self.requested_by,
            "dry_run": self.dry_run,
            "accept": sorted(self.accept),
            "source": self.source,
            "scheduled_for": self.scheduled_for,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "seconds": self.seconds,
            "outcome": self.outcome,
            "reason": self.reason,
            "guard": self.guard,
            "consent": self.consent,
            "population": report.population,
            "found": without_zeros(report.found),
            "held": without_zeros(report.held),
            "changed": without_zeros(report.changed),
            "failed": report.failed,
            "complete": report.complete,
            "would_refuse": report.would_refuse,
            "oldest_found_at": report.oldest_found_at,
            "throttled": {reason: round(seconds, 3) for reason, seconds in report.throttled.items()},
            "sample": report.sample,
            "agent": self.agent,
            "term": self.term,
        }


def without_zeros(counter: Mapping[str, int]) -> dict[str, int]:
    """The counts that are not zero."""
    return {name: count for name, count in counter.items() if count}
