"""Kubernetes as the jobs and the application need it: reads, and the cache of provider clients.

The only importer of kubernetes_asyncio. What belongs here: where credentials come from and which are refused
(``credentials``), how a call is made (``client``), what a cluster has set aside (``reads``), which clients stay open
(``cache``), and what may be sent as a name (``names``). What does not: what the figures mean. Errors are
``ClusterError`` and its kind, with the vendor's error as their cause.

An application uses it like this::

    async with provider_clients() as cache:
        cache.start_sweeping(every=timedelta(minutes=5))
        async with cache.client(provider["name"], load) as client:
            used = await usage(client, UsageQuery(labels={"app.kubernetes.io/managed-by": "kubedb.com"}))

where ``load`` returns the provider's credentials as they are now, ``from_kubeconfig(document["kubeconfig"])`` say.
"""

from agent.cluster.cache import (
    CachedClient,
    CacheSettings,
    Candidate,
    ClientCache,
    EvictionRules,
    Observer,
    Reason,
    provider_clients,
)
from agent.cluster.client import ClientSettings, ProviderClient, Time, connect, connected
from agent.cluster.credentials import ProviderCredentials, from_directory, from_kubeconfig, in_cluster
from agent.cluster.names import label_selector
from agent.cluster.reads import CustomResource, Usage, UsageQuery, usage

__all__ = [
    "CacheSettings",
    "CachedClient",
    "Candidate",
    "ClientCache",
    "ClientSettings",
    "CustomResource",
    "EvictionRules",
    "Observer",
    "ProviderClient",
    "ProviderCredentials",
    "Reason",
    "Time",
    "Usage",
    "UsageQuery",
    "connect",
    "connected",
    "from_directory",
    "from_kubeconfig",
    "in_cluster",
    "label_selector",
    "provider_clients",
    "usage",
]
