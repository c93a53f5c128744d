"""Allocation audit: whether booked, owed and used capacity of each provider agree.

*Booked* is what the provider's ledger says, *owed* what its databases add up to, *used* what its cluster really
requests (where ``cluster`` is configured). It reports ledger drift (with the bookings that differ), cluster drift,
over-committed providers and databases of missing providers. It changes nothing; with ``repair: true`` it sets booked
to owed by compare-and-set on the version, after two readings, ``confirm`` apart, that agree on owed and version.

Never touched: a provider with a database in transition, which is reported as such and not judged. The platform writes
its database's document in a transitional status before it books, and removes it after it released: so whatever is on
its way is seen. A provider whose cluster cannot be read is reported (*unreadable*) and disturbs no other.

Defaults: ten minutes between two readings, longer than any booking is on its way; at most 100 providers and half of
them are repaired at a time, since more drift than that is rarely the ledger's fault.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.books import (
    Books,
    DatabaseFields,
    DatabaseStatuses,
    Owed,
    ProviderFields,
    amounts_of,
    books_of,
    corrected,
    differences,
    exceeds,
    picture,
)
from agent.clients import Access, ClusterQuery
from agent.conditions import Condition, read, together
from agent.errors import AgentError, QuantityError
from agent.job import Action, Change, Item, Job, Limit, Ports, Proof, Query
from agent.quantity import Amounts
from agent.settings import Duration
from agent.store import Document, Index, Namespace, comparable, encode, to_extended_json

PROVIDERS_A_QUERY = 100  # alternatives of one query


class ResourceSettings(BaseModel):
    """A custom resource that counts: its names, and the paths of what it requests (see ``agent.cluster``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    version: str
    plural: str
    cpu: str | None = None
    memory: str | None = None
    storage: str | None = None
    replicas: tuple[str, ...] = ()
    labels: dict[str, str | tuple[str, ...]] | None = None


class ClusterSettings(BaseModel):
    """How providers' clusters are read, and what counts there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    access: Literal["kubeconfig", "directory", "in_cluster"] = Field(
        default="kubeconfig",
        description="The provider's field, a mounted directory of files, or the pod's own account.",
    )
    directory: Path | None = Field(default=None, description="The directory of `access: directory`: a file a provider.")
    labels: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict, description="Labels of the pods and volume claims that count."
    )
    namespaces: tuple[str, ...] = Field(default=(), description="Where they are looked for; empty: everywhere.")
    pods: bool = Field(default=True, description="Whether requests of pods count.")
    claims: bool = Field(default=True, description="Whether requests of volume claims count.")
    resources: tuple[ResourceSettings, ...] = Field(default=(), description="Custom resources that count.")
    timeout: Duration = Field(default=dt.timedelta(seconds=30), description="For one provider, all pages together.")
    concurrency: int = Field(default=10, ge=1, le=100, description="Providers that are read at the same time.")
    tolerance: float = Field(default=0.0, ge=0, le=1, description="The share by which used may differ from booked.")


class AllocationAudit(Job):
    """Providers whose capacity does not add up."""

    limits: ClassVar[Limit] = Limit(items=100, fraction=0.5, floor=5)
    cascade: ClassVar[int] = 5
    looks_back: ClassVar[bool] = False

    kind: Literal["allocation_audit"] = "allocation_audit"
    repair: bool = Field(default=False, description="Whether booked is set to owed where both readings agree.")
    confirm: Duration = Field(default=dt.timedelta(minutes=10), description="Least time between the two readings.")
    providers: ProviderFields = Field(default=ProviderFields(), description="The providers and their books.")
    databases: DatabaseFields = Field(default=DatabaseFields(), description="The databases of the providers.")
    statuses: DatabaseStatuses = Field(default=DatabaseStatuses(), description="What a database's status means.")
    targets_database: str | None = Field(default=None, description="The databases' database, where it is another.")
    cluster: ClusterSettings | None = Field(default=None, description="How clusters are read; null: they are not.")

    @property
    def namespace(self) -> Namespace:
        """The collection of the providers."""
        return Namespace(self.database, self.providers.collection)

    @property
    def target_namespace(self) -> Namespace:
        """The collection of the databases."""
        return Namespace(self.targets_database or self.database, self.databases.collection)

    @property
    def sources(self) -> tuple[Namespace, ...]:
        """The databases."""
        return (self.target_namespace,)

    @property
    def patience(self) -> dt.timedelta:
        """The time between the two readings."""
        return self.confirm

    @property
    def acts(self) -> bool:
        """Only where it may repair."""
        return self.repair

    async def population(self, ports: Ports) -> int:
        """The providers."""
        return await ports.store.count(self.namespace, self.filter)

    async def proofs(self, ports: Ports) -> Sequence[Proof]:
        """The targets proof on the databases."""
        count = await ports.store.count(self.target_namespace, {})
        refusal = None if count else f"{self.target_namespace} is missing or empty, so nothing would be owed"
        return [Proof("targets", measure=count, refusal=refusal, deletes=self.target_namespace)]

    async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """What does not add up, provider by provider, and the databases of providers that are missing."""
        del now
        owed, providers = await self._readings(ports)
        names = self._names(providers)
        used = await self._used_by_all(ports, providers, names)
        for provider in providers:
            key = comparable(provider["_id"])
            for item in self._judge(ports, provider, names[key], owed.pop(key, Owed()), used.get(key)):
                yield item
        for item in await self._without_provider(ports, owed):
            yield item

    async def _readings(self, ports: Ports) -> tuple[dict[Hashable, Owed], list[Document]]:
        """What is owed and what is booked: the server groups the databases while the books are decoded here.

        Whatever is booked between the two looks like drift; the second reading, ``still`` and the version sort it out.
        """
        owing = asyncio.create_task(self._owed(ports, {}))
        try:
            providers = [one async for one in ports.store.find(self.namespace, self.filter, self._wanted)]
            return await owing, providers
        finally:
            owing.cancel()

    # --- owed

    async def _owed(self, ports: Ports, filter: Document) -> dict[Hashable, Owed]:
        """What the databases add up to, by provider: grouped by the server, so that few documents travel."""
        paths = self.databases
        owed: dict[Hashable, Owed] = {}
        fields = (paths.provider_id, paths.status, paths.resources)
        async for (provider, status, resources), ids in ports.store.groups(self.target_namespace, filter, fields):
            mine = owed.setdefault(comparable(provider), Owed(provider))
            if status in self.statuses.released:
                continue
            if status not in self.statuses.owed:
                mine.transition += len(ids)
                continue
            try:
                mine.add(ids, amounts_of(resources, paths.units))
            except QuantityError as error:
                mine.malformed += [(id, f"{paths.resources}: {error}") for id in ids]
        return owed

    async def _without_provider(self, ports: Ports, owed: Mapping[Hashable, Owed]) -> list[Item]:
        """The databases whose provider does not exist, as the server compares."""
        items: list[Item] = []
        keys = [(one.provider_id,) for one in owed.values()]
        for start in range(0, len(keys), PROVIDERS_A_QUERY):
            some = keys[start : start + PROVIDERS_A_QUERY]
            there = await ports.store.existing(self.namespace, ["_id"], some)
            missing = [provider for number, (provider,) in enumerate(some) if number not in there]
            items += await self._of_providers(ports, missing)
        return items

    async def _of_providers(self, ports: Ports, missing: Sequence[Any]) -> list[Item]:
        if not missing:
            return []
        paths = self.databases
        among = {paths.provider_id: {"$in": list(missing)}}
        found = ports.store.groups(self.target_namespace, among, (paths.provider_id, paths.status))
        return [
            Item(id, "orphan", None, f"its provider {to_extended_json(provider)} does not exist")
            async for (provider, status), ids in found
            if status not in self.statuses.released
            for id in ids
        ]

    # --- judge

    @property
    def _wanted(self) -> list[str]:
        paths = self.providers
        wanted = [paths.name, paths.capacity, paths.allocated, paths.version]
        wanted += [paths.bookings] if paths.bookings else []
        return [*wanted, paths.kubeconfig] if self.cluster and self.cluster.access == "kubeconfig" else wanted

    def _names(self, providers: Sequence[Document]) -> dict[Hashable, str]:
        """What each provider is called in metrics and as a client: its name, with its id where others have the same."""
        called = {comparable(one["_id"]): self._name(one) for one in providers}
        times = Counter(called.values())
        for one in providers:
            key = comparable(one["_id"])
            if times[called[key]] > 1:
                called[key] += f" ({json.dumps(to_extended_json(one['_id']))})"
        return called

    def _name(self, provider: Document) -> str:
        return str(read(provider, self.providers.name) or provider["_id"])

    def _judge(self, ports: Ports, provider: Document, name: str, owed: Owed, used: Amounts | str | None) -> list[Item]:
        id = provider["_id"]
        items = [Item(database, "malformed", None, reason) for database, reason in owed.malformed]
        if isinstance(used, str):
            items.append(Item(id, "unreadable", None, f"its cluster could not be read: {used}"))
        try:
            books = books_of(provider, self.providers)
        except QuantityError as error:
            return [*items, Item(id, "malformed", None, str(error))]
        ports.pictures.append(self._picture(name, books, owed, used))
        if short := exceeds(books.booked, books.capacity) or exceeds(owed.total, books.capacity):
            items.append(Item(id, "overcommitted", None, f"more than it has: {', '.join(short)}"))
        if owed.judged:
            items += self._drift(provider, books, owed)
            items += self._cluster_drift(id, books, used)
        return items

    def _drift(self, provider: Document, books: Books, owed: Owed) -> list[Item]:
        said = differences(books, owed)
        if not said:
            return []
        try:
            values = corrected(provider, owed, self.providers)
        except QuantityError as error:
            return [Item(provider["_id"], "drift", None, f"{'; '.join(said)}; cannot be repaired: {error}")]
        match = {self.providers.version: {"$eq": read(provider, self.providers.version)}}
        identity = f"{books.version}:{_digest(owed)}"
        return [Item(provider["_id"], "drift", "repaired", "; ".join(said), match, None, values, identity)]

    def _cluster_drift(self, id: Any, books: Books, used: Amounts | str | None) -> list[Item]:
        if not isinstance(used, Amounts) or self.cluster is None:
            return []
        said = [
            f"{name} used {real}, booked {booked}"
            for name, real, booked in (
                ("cpu", used.millicores, books.booked.millicores),
                ("memory", used.memory, books.booked.memory),
                ("storage", used.storage, books.booked.storage),
            )
            if abs(real - booked) > self.cluster.tolerance * booked
        ]
        return [Item(id, "drift", None, f"its cluster differs: {', '.join(said)}")] if said else []

    @staticmethod
    def _picture(name: str, books: Books, owed: Owed, used: Amounts | str | None) -> Document:
        """What the gauges and the page show of a provider."""
        return {
            "provider": name,
            "capacity": picture(books.capacity),
            "booked": picture(books.booked),
            "owed": picture(owed.total) if not owed.malformed else None,
            "used": picture(used) if isinstance(used, Amounts) else None,
            "transition": owed.transition,
            "up": None if used is None else not isinstance(used, str),
        }

    # --- used

    async def _used_by_all(
        self, ports: Ports, providers: Sequence[Document], names: Mapping[Hashable, str]
    ) -> dict[Hashable, Amounts | str]:
        """What each cluster really requests, or why it could not be read; several at a time."""
        if self.cluster is None:
            return {}
        places = asyncio.Semaphore(self.cluster.concurrency)

        async def one(provider: Document) -> tuple[Hashable, Amounts | str]:
            key = comparable(provider["_id"])
            async with places:
                return key, await self._used(ports, provider, names[key])

        return dict(await asyncio.gather(*(one(provider) for provider in providers)))

    async def _used(self, ports: Ports, provider: Document, name: str) -> Amounts | str:
        cluster = self.cluster
        assert cluster is not None  # noqa: S101 - asked only where it is configured
        access = Access(
            kubeconfig=read(provider, self.providers.kubeconfig),
            directory=cluster.directory if cluster.access == "directory" else None,
            file=self._name(provider),
            in_cluster=cluster.access == "in_cluster",
        )
        seconds = cluster.timeout.total_seconds()
        resources = tuple(resource.model_dump() for resource in cluster.resources)
        query = ClusterQuery(cluster.labels, cluster.namespaces, cluster.pods, cluster.claims, resources, seconds)
        try:
            async with asyncio.timeout(seconds):
                return await ports.clients.used(name, access, query)
        except TimeoutError:
            return f"no answer within {seconds:g} s"
        except AgentError as error:
            return str(error)

    # --- repair

    async def still(self, ports: Ports, items: Sequence[Item], now: dt.datetime) -> Sequence[Item]:
        """Those whose databases add up to the same, with none in transition."""
        del now
        ids = [item.id for item in items]
        owed = await self._owed(ports, {self.databases.provider_id: {"$in": ids}})
        return [item for item in items if self._as_before(item, owed.get(comparable(item.id), Owed()))]

    @staticmethod
    def _as_before(item: Item, owed: Owed) -> bool:
        return owed.judged and (item.identity or "").rpartition(":")[2] == _digest(owed)

    def change(self, action: Action, now: dt.datetime) -> Change:
        """Each provider gets its own values; the version grows by one."""
        del action, now
        return Change(together(*self.narrowing), {}, counter=self.providers.version)

    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """The conditions on the provider itself; what its databases add up to is looked at beside them."""
        del now
        return {"repaired": self.narrowing}

    @property
    def evidence(self) -> str:
        """Booked and owed differ."""
        return f"{self.providers.allocated} differs from what its documents in {self.target_namespace} add up to"

    @property
    def queries(self) -> Sequence[Query]:
        """The databases by provider."""
        paths = self.databases
        index = Index(((paths.provider_id, 1), (paths.status, 1)))
        return [Query(self.target_namespace, {}, index, "databases by provider")]


def _digest(owed: Owed) -> str:
    """Names what is owed, so that two readings can be compared."""
    amounts = {name: [some.millicores, some.memory, some.storage] for name, some in sorted(owed.by_booking.items())}
    return hashlib.sha256(encode(amounts)).hexdigest()[:16]
