"""The provider clients of this process, as the jobs need them: made when first needed, cached, evicted by a job.

The cache itself is ``agent.cluster``. Importing the Kubernetes client takes about a second and 40 MB, which an agent
that audits no clusters should not pay: it is imported with the first look at a cluster.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.cluster import CacheSettings, ClientCache, EvictionRules, Observer, ProviderClient, ProviderCredentials
    from agent.quantity import Amounts


@dataclass(frozen=True, slots=True)
class ClusterQuery:
    """What counts as used in a provider's cluster, in plain values: see ``agent.cluster.UsageQuery``."""

    labels: Mapping[str, Any] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    pods: bool = True
    claims: bool = True
    resources: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Access:
    """How a provider's cluster is reached: by a kubeconfig, by a file named as the provider, or from inside."""

    kubeconfig: object = None
    directory: Path | None = None
    file: str = ""
    in_cluster: bool = False


@dataclass(frozen=True, slots=True)
class Leaving:
    """A client that has to go, and why."""

    key: str
    generation: int
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Rules:
    """When a client has to go, and how many there are at most.

    ``known`` holds the providers that exist (``None``: not looked).
    """

    ttl: timedelta
    max_age: timedelta
    refusals: int
    size: int
    known: Collection[str] | None = None


class Clients:
    """Looks at clusters, and the cache of the clients that it takes for that."""

    def __init__(self, observer: Observer, rules: Rules | None = None) -> None:
        """``rules`` are those of the job that evicts: the cache's own would else cut a longer ``ttl`` short."""
        self._observer = observer
        self._own_rules = rules
        self._cache: ClientCache[ProviderClient] | None = None

    def __len__(self) -> int:
        return len(self._cache) if self._cache is not None else 0

    async def used(self, provider: str, access: Access, query: ClusterQuery) -> Amounts:
        """What the cluster has set aside. Raises ``ClusterError`` or ``UsageError``."""
        from agent import cluster  # noqa: PLC0415 - see the module's docstring

        async def load() -> ProviderCredentials:
            if access.in_cluster:
                return await cluster.in_cluster()
            if access.directory is not None:
                return await cluster.from_directory(access.directory, access.file)
            return cluster.from_kubeconfig(access.kubeconfig, provider=provider)  # type: ignore[arg-type]

        wanted = cluster.UsageQuery(
            labels=query.labels,
            namespaces=query.namespaces,
            pods=query.pods,
            claims=query.claims,
            resources=tuple(cluster.CustomResource(**resource) for resource in query.resources),
            budget=timedelta(seconds=query.seconds),
        )
        async with self._opened().client(provider, load) as client:
            return (await cluster.usage(client, wanted)).total

    def _opened(self) -> ClientCache[ProviderClient]:
        from agent import cluster  # noqa: PLC0415 - see the module's docstring

        if self._cache is None:
            self._cache = cluster.provider_clients(self._settings(), observer=self._observer)
        return self._cache

    def use(self, rules: Rules | None) -> None:
        """Takes the rules of another configuration."""
        self._own_rules = rules
        if self._cache is not None:
            self._cache.use(self._settings())

    def _settings(self) -> CacheSettings:
        from agent import cluster  # noqa: PLC0415 - see the module's docstring

        own = self._own_rules
        return cluster.CacheSettings() if own is None else cluster.CacheSettings(size=own.size, rules=self._rules(own))

    def leaving(self, rules: Rules) -> list[Leaving]:
        """The clients that have to go by the rules."""
        if self._cache is None:
            return []
        found = self._cache.candidates(self._rules(rules))
        return [Leaving(one.key, one.generation, str(one.reason), one.seconds) for one in found]

    def evict(self, key: str, generation: int, rules: Rules) -> bool:
        """Takes this very client out, if it still has to go; it is closed when its last user is done."""
        return self._cache is not None and self._cache.evict(key, generation, self._rules(rules)) is not None

    @staticmethod
    def _rules(rules: Rules) -> EvictionRules:
        from agent import cluster  # noqa: PLC0415 - see the module's docstring

        return cluster.EvictionRules(ttl=rules.ttl, max_age=rules.max_age, refusals=rules.refusals, known=rules.known)

    async def settled(self) -> None:
        """Waits until evicted clients that nobody uses are closed."""
        if self._cache is not None:
            await self._cache.settled()

    async def close(self) -> None:
        """Closes all clients."""
        if self._cache is not None:
            await self._cache.aclose()
