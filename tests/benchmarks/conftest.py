"""Fixtures of the benchmarks: the size, and servers with the memory that a server has."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Iterator

import pytest
from pymongo.database import Database as RawDatabase

from agent import log
from agent.cli.process import calm_collector
from agent.cli.serving import SWITCH_SECONDS
from tests import servers
from tests.conftest import Database

CACHE = "cache_size=2G"  # the servers of the tests have a quarter of a gibibyte
PARAMETERS = {"ttlMonitorSleepSecs": "1"}  # from the start: the monitor would end its first sleep of a minute otherwise
SIZE = 1_000_000


@pytest.fixture(scope="session", autouse=True)
def _as_served() -> None:
    """An agent in this process works as one that is served: it says little, and the interpreter is set as for it."""
    log.configure("warning")
    calm_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def size() -> int:
    """How many tasks there are (``make bench SIZE=...``); the other numbers follow from it."""
    return int(os.environ.get("SIZE") or SIZE)


@pytest.fixture
def topology() -> str:
    """Most figures are of a single server: no peer needs more."""
    return "standalone"


@pytest.fixture
def database(topology: str) -> Iterator[Database]:
    """A database on a server of its own: no benchmark works on what another one left in the caches."""
    start = servers.standalone if topology == "standalone" else servers.replica_set
    with start(parameters=PARAMETERS) as server:
        with servers.connect(server.uri) as client:
            client.admin.command("setParameter", 1, wiredTigerEngineRuntimeConfig=CACHE)
        yield Database(uri=server.uri, name=f"bench_{uuid.uuid4().hex[:8]}", topology=topology)


@pytest.fixture
def db(database: Database) -> Iterator[RawDatabase[dict[str, object]]]:
    """The same database through a plain synchronous client that is never in a hurry."""
    with servers.connect(database.uri, timeout_ms=3_600_000) as client:
        yield client[database.name]
