"""The client cache: hits a second on 100 providers, against a cache that knows times and against a plain dictionary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from agent.cluster.cache import ClientCache
from agent.cluster.credentials import ProviderCredentials, from_kubeconfig
from tests.benchmarks.figures import Figures
from tests.faulty import kubeconfig

HITS = 200_000
KEYS = [f"provider-{number}" for number in range(100)]


class _Client:
    """Nothing but what the cache needs of a client."""

    refusals = 0

    async def probe(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def test_client_cache(size: int) -> None:
    hits = min(HITS, size)
    figures = Figures("client_cache", "Hits of the client cache", size, "none")
    figures.seconds("ours: credentials looked at, client lent and given back", await _timed(await _ours(), hits), hits)
    ttl = await _timed(_ttl_cache(), hits)
    figures.seconds("cachetools.TTLCache with a lock", ttl, hits)
    figures.seconds("a dictionary", await _timed(_dictionary(), hits), hits)
    figures.write()


async def _timed(get: Callable[[str], Awaitable[object]], hits: int) -> float:
    began = time.perf_counter()
    for number in range(hits):
        await get(KEYS[number % len(KEYS)])
    return time.perf_counter() - began


async def _ours() -> Callable[[str], Awaitable[object]]:
    async def connect(_: str, __: ProviderCredentials) -> _Client:
        return _Client()

    credentials = from_kubeconfig(kubeconfig("https://127.0.0.1:1", {"token": "secret"}), allow_insecure=True)

    async def load() -> ProviderCredentials:
        return credentials

    cache = ClientCache(connect)

    async def get(key: str) -> object:
        async with cache.client(key, load) as client:
            return client

    return get


def _ttl_cache() -> Callable[[str], Awaitable[object]]:
    cache: TTLCache[str, _Client] = TTLCache(maxsize=len(KEYS), ttl=3600)
    cache.update({key: _Client() for key in KEYS})
    lock = asyncio.Lock()

    async def get(key: str) -> object:
        async with lock:
            return cache[key]

    return get


def _dictionary() -> Callable[[str], Awaitable[object]]:
    clients = {key: _Client() for key in KEYS}

    async def get(key: str) -> object:
        return clients[key]

    return get
