"""Fixtures for all tests: real MongoDB servers, a fresh database a test, a directory that stands for the volume.

A server starts at the first test that asks for it, once a pytest-xdist worker. Tests share servers, never databases.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database as RawDatabase

from agent.demo.mongod import Mongod
from tests import kube as kubernetes
from tests import servers
from tests.kube import Kube
from tests.servers import ReplicaSet


@dataclass(frozen=True, slots=True)
class Database:
    """A database for one test: the name is unique, and nothing is in it."""

    uri: str
    name: str
    topology: str


@pytest.fixture(scope="session")
def mongod() -> Iterator[Mongod]:
    """A server that belongs to no set. It is shared: a test that stops a server starts one of its own."""
    with servers.standalone() as server:
        yield server


@pytest.fixture(scope="session")
def replica_set() -> Iterator[ReplicaSet]:
    """A replica set of one member. It is shared: a test that stops a server starts one of its own."""
    with servers.replica_set() as cluster:
        yield cluster


@pytest.fixture
def topology() -> str:
    """Where `database` lies, `standalone` or `replica_set`; `servers.both_topologies` runs a test on each."""
    return "replica_set"


@pytest.fixture
def database(topology: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A fresh database, dropped after the test."""
    server: Mongod | ReplicaSet = request.getfixturevalue("mongod" if topology == "standalone" else "replica_set")
    fresh = Database(uri=server.uri, name=f"test_{uuid.uuid4().hex}", topology=topology)
    yield fresh
    with servers.connect(fresh.uri) as client:
        client.drop_database(fresh.name)


@pytest.fixture
def db(database: Database) -> Iterator[RawDatabase[dict[str, Any]]]:
    """The same database through a plain synchronous client, to arrange data and to look at what is really there."""
    with servers.connect(database.uri) as client:
        yield client[database.name]


@pytest.fixture
def root() -> Iterator[Path]:
    """An empty directory that stands for the volume.

    Everybody may read it, unlike pytest's own `tmp_path`: tests of permissions look at it as another user.
    """
    with tempfile.TemporaryDirectory(prefix="maintenance-agent-root-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    """A real kube-apiserver. It is shared: a test uses namespaces and names of its own."""
    binaries = kubernetes.assets()
    if binaries is None:
        pytest.skip(f"{kubernetes.VARIABLE} is not set: it names the folder with etcd and kube-apiserver")
    with kubernetes.kube_apiserver(binaries) as server:
        yield server
