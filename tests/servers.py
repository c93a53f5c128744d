"""Real MongoDB servers for the tests: one alone, and replica sets whose members can be killed, frozen and restarted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from agent.demo.mongod import Mongod

SET_NAME: Final = "rs0"
PRIMARY_TIMEOUT: Final = 60.0  # seconds; 4 to 7 on an idle machine
POLL: Final = 0.05  # seconds between two looks at the members
# With the default of ten seconds three members take a quarter of a minute to elect their first primary.
ELECTION_TIMEOUT_MS: Final = 1000

Client = MongoClient[dict[str, Any]]

TOPOLOGIES: Final = ("standalone", "replica_set")
# For a test that must hold on a single server and on a replica set alike; it takes the place of the fixture `topology`.
both_topologies = pytest.mark.parametrize("topology", TOPOLOGIES)


class ReplicaSet:
    """A running replica set; ``members`` are its servers, in the order of their ids in the set."""

    def __init__(self, members: Sequence[Mongod]) -> None:
        self.members = tuple(members)

    @property
    def uri(self) -> str:
        """The connection string for the whole set."""
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={SET_NAME}"

    def primary(self) -> Mongod:
        """Return the member that is the primary, once there is one that accepts writes."""
        deadline = time.monotonic() + PRIMARY_TIMEOUT
        while time.monotonic() < deadline:
            for member in self.members:
                if member.running and _hello(member).get("isWritablePrimary"):
                    return member
            time.sleep(POLL)
        raise TimeoutError(f"no member became primary within {PRIMARY_TIMEOUT:.0f} s")

    def secondaries(self) -> list[Mongod]:
        """Return the running members that replicate from the primary."""
        return [member for member in self.members if member.running and _hello(member).get("secondary")]

    def initiate(self) -> None:
        """Make one set of the started members and wait for its primary, and for all to have caught up."""
        config = {
            "_id": SET_NAME,
            "members": [{"_id": number, "host": member.address} for number, member in enumerate(self.members)],
            "settings": {"electionTimeoutMillis": ELECTION_TIMEOUT_MS},
        }
        with connect(self.members[0].uri) as client:
            client.admin.command("replSetInitiate", config)
        self.primary()
        self.wait_for_members()

    def wait_for_members(self) -> None:
        """Wait until every running member is primary or secondary, as after a restart."""
        running = sum(member.running for member in self.members)
        deadline = time.monotonic() + PRIMARY_TIMEOUT
        while len(self.secondaries()) + 1 < running:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not every member was ready within {PRIMARY_TIMEOUT:.0f} s")
            time.sleep(POLL)


@contextlib.contextmanager
def standalone(parameters: Mapping[str, str] | None = None) -> Iterator[Mongod]:
    """Run one server that belongs to no set: no transactions, no change streams."""
    with Mongod(parameters=parameters) as server:
        yield server


@contextlib.contextmanager
def replica_set(members: int = 1, parameters: Mapping[str, str] | None = None) -> Iterator[ReplicaSet]:
    """Run a set of so many members; with three, one may be lost."""
    with contextlib.ExitStack() as stack:
        servers = [Mongod(replica_set=SET_NAME, parameters=parameters) for _ in range(members)]
        for server in servers:
            stack.callback(server.close)
        for server in servers:
            server.start()
        cluster = ReplicaSet(servers)
        cluster.initiate()
        # All at once: one after the other, each primary would first hand its office over to a member that goes too.
        stack.callback(_close_all, servers)
        yield cluster


@contextlib.contextmanager
def connect(uri: str, timeout_ms: int = 30_000) -> Iterator[Client]:
    """Connect with a plain synchronous client, and close it: one that stays open fails the test run."""
    client: Client = MongoClient(uri, serverSelectionTimeoutMS=timeout_ms, timeoutMS=timeout_ms, tz_aware=True)
    try:
        yield client
    finally:
        client.close()


def _hello(server: Mongod) -> dict[str, Any]:
    try:
        with connect(server.uri, timeout_ms=1000) as client:
            return client.admin.command("hello")
    except OperationFailure:
        raise
    except PyMongoError:  # not up yet, frozen, or just killed
        return {}


def _close_all(servers: Sequence[Mongod]) -> None:
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(Mongod.close, servers))
