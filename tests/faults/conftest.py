"""What the tests of faults share: their size, their seed, their servers, and agents as processes.

``FAULTS_SCALE`` scales them: 1 is the full size, as ``make faults`` runs it; the default keeps them within minutes.
``FAULTS_SEED`` repeats a run: each test prints the seed that it used.
"""

from __future__ import annotations

import os
import random
import secrets
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.database import Database as RawDatabase

from agent.demo.mongod import Mongod
from tests import servers
from tests.conftest import Database
from tests.faults import agents
from tests.faults.agents import Nursery
from tests.servers import ReplicaSet

DEFAULT_SCALE = 0.03
# A client that is gone leaves its transaction open until the server ends it: after a minute, if nothing is set.
PARAMETERS = {"enableTestCommands": "1", "transactionLifetimeLimitSeconds": "2"}

Scaled = Callable[[int, int], int]


@pytest.fixture(scope="session")
def scaled() -> Scaled:
    """Scales a full size down, but not below the second argument."""
    scale = float(os.environ.get("FAULTS_SCALE", DEFAULT_SCALE))
    return lambda full, least: max(least, round(full * scale))


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be repeated."""
    seed = os.environ.get("FAULTS_SEED") or secrets.token_hex(4)
    print(f"FAULTS_SEED={seed}")  # noqa: T201 - shown where the test fails
    return random.Random(seed)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where agents come from."""
    with agents.nursery() as started:
        yield started


@pytest.fixture(scope="session")
def breakable_mongod() -> Iterator[Mongod]:
    """A standalone server that takes fail points."""
    with servers.standalone(PARAMETERS) as server:
        yield server


@pytest.fixture(scope="session")
def breakable_set() -> Iterator[ReplicaSet]:
    """A replica set of one member that takes fail points."""
    with servers.replica_set(parameters=PARAMETERS) as cluster:
        yield cluster


@pytest.fixture
def database(topology: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A fresh database on a server that takes fail points; dropped after the test."""
    server: Mongod | ReplicaSet = request.getfixturevalue(
        "breakable_mongod" if topology == "standalone" else "breakable_set"
    )
    fresh = Database(uri=server.uri, name=f"test_{uuid.uuid4().hex}", topology=topology)
    yield fresh
    with servers.connect(fresh.uri) as client:
        client.drop_database(fresh.name)


@pytest.fixture
def db(database: Database) -> Iterator[RawDatabase[dict[str, Any]]]:
    """The same database through a plain synchronous client, to arrange data and to look at what is really there."""
    with servers.connect(database.uri) as client:
        yield client[database.name]
