"""Check: whether the agent would find what it needs. Nothing is changed.

It looks at tokens, volumes, connection, permissions, collections, indexes and queries. Each look yields findings: what
is right, what is worth knowing (*warning*), and what will keep a job from its work (*problem*). ``role`` is the other
side of the permissions: the least that the user in the connection string must be allowed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from agent import indexes
from agent.app import Agent
from agent.errors import StoreDeniedError, StoreError, StoreUnavailableError, VolumeError
from agent.job import Job, Ports
from agent.jobs.orphan_records import OrphanRecords
from agent.reader import StoreReader
from agent.settings import Settings
from agent.store import Document, Key, Namespace, Store, encode, time_limit
from agent.volume import Volume
from agent.web.tokens import TokenFile

Level = Literal["ok", "warning", "problem"]
Place = Namespace | None
"""What a privilege is for: a collection, or the cluster as a whole."""

OLDEST: Final = (6, 0)  # the server's version
REACH_SECONDS: Final = 5.0
ROLE: Final = "maintenance_agent"
ROLE_DATABASE: Final = "admin"
# What the agent does in its own collections, besides their indexes: see journal, archive, marks, lease, controls.
OWN: Final[Mapping[str, frozenset[str]]] = {
    "runs": frozenset({"find", "insert", "update"}),
    "items": frozenset({"find", "insert", "update", "remove", "collStats"}),
    "marks": frozenset({"find", "insert", "update", "remove"}),
    "leases": frozenset({"find", "insert", "update"}),
    "controls": frozenset({"find", "insert", "update", "remove"}),
}
DELETES: Final = frozenset({"remove", "insert"})  # insert: to restore what was deleted
UPDATES: Final = frozenset({"update"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    topic: str
    message: str

    @property
    def document(self) -> Document:
        """The finding as JSON."""
        return {"level": self.level, "topic": self.topic, "message": self.message}


async def check(agent: Agent) -> AsyncIterator[Finding]:
    """All looks, one after the other. Raises ``StoreUnavailableError`` where MongoDB is away."""
    settings = agent.settings
    enabled = [name for name, job in settings.jobs.items() if job.enabled]
    yield Finding("ok", "configuration", f"{len(settings.jobs)} jobs; enabled: {', '.join(enabled) or 'none'}")
    for warning in settings.warnings:
        yield Finding("warning", "configuration", warning)
    try:
        for look in (_tokens, _volumes, _connection, permissions, _collections, _indexes, _queries):
            async for finding in look(agent):
                yield finding
    except StoreDeniedError as error:  # before anybody is logged in; what single looks may not see, they say
        yield Finding("problem", "connection", f"MongoDB refused: {error}")


def working(settings: Settings[Job]) -> list[Job]:
    """The jobs whose collections are looked at: enabled, and with documents to work on."""
    return [job for job in settings.jobs.values() if job.enabled and job.scope == "shared"]


# -------------------------------------------------------------------------------------------------------------- tokens


async def _tokens(agent: Agent) -> AsyncIterator[Finding]:
    """Whether the tokens can be read, without which `serve` does not start."""
    path = agent.settings.http.tokens_file
    if path is None:
        yield Finding("ok", "tokens", "http.tokens_file names no file: the API answers 403 to everybody")
        return
    tokens = await asyncio.to_thread(TokenFile(path).load)
    for problem in tokens.problems:
        yield Finding("problem", "tokens", f"{path}: {problem}, so the agent will not serve")
    for warning in tokens.warnings:
        yield Finding("warning", "tokens", f"{path}: {warning}")
    if not tokens.problems:
        yield Finding("ok", "tokens", f"{path}: names of users: {len(tokens.digests)}")


# ------------------------------------------------------------------------------------------------------------- volumes


async def _volumes(agent: Agent) -> AsyncIterator[Finding]:
    """Whether roots can be read, and carry their markers."""
    for job in working(agent.settings):
        if isinstance(job, OrphanRecords):
            try:
                yield await _volume(Volume(agent.threads), job)
            except VolumeError as error:
                yield Finding("problem", "volume", f"{job.name}: {error}")


async def _volume(volume: Volume, job: OrphanRecords) -> Finding:
    root = await volume.inspect(job.root, job.marker)
    if root.problem:
        return Finding("problem", "volume", f"{job.name}: {root.problem}, so runs will be refused")
    if job.marker and root.marker is None:
        why = f"there is no {job.marker} under {job.root}, so runs will be refused"
        return Finding("problem", "volume", f"{job.name}: {why}")
    named = f", the marker names {root.marker!r}" if root.marker else ""
    return Finding("ok", "volume", f"{job.name}: {job.root} can be read{named}")


# ---------------------------------------------------------------------------------------------------------- connection


async def _connection(agent: Agent) -> AsyncIterator[Finding]:
    """Whether the server answers, which it is, and what it cannot do."""
    store = agent.store
    with time_limit(REACH_SECONDS):
        hello = await store.hello()
        version = (await store.command("admin", {"buildInfo": 1}))["versionArray"]
    named = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) < OLDEST:
        yield Finding("problem", "connection", f"MongoDB {named} is too old: 6.0 or newer is needed")
    else:
        yield Finding("ok", "connection", f"MongoDB {named}, {_topology(hello)}")
    if not await store.has_transactions():
        yield Finding(
            "warning",
            "connection",
            "a standalone server has no transactions: copy and change are two steps, which the next run settles after a"
            " crash, and an agent that was frozen is kept out by its clock alone; a replica set of one member has them",
        )
    elif not hello.get("isWritablePrimary"):
        yield Finding("warning", "connection", "the server is not a primary: nothing can be written through it now")


def _topology(hello: Document) -> str:
    if "setName" in hello:
        return f"replica set {hello['setName']} of {len(hello.get('hosts', []))}"
    return "sharded cluster" if hello.get("msg") == "isdbgrid" else "standalone server"


# --------------------------------------------------------------------------------------------------------- collections


async def _collections(agent: Agent) -> AsyncIterator[Finding]:
    """Whether the collections that the jobs name are there."""
    for job in working(agent.settings):
        for namespace in dict.fromkeys((job.namespace, *job.sources)):
            try:
                yield await _collection(agent.store, job, namespace)
            except StoreError as error:
                yield _unseen("collections", namespace, error)


async def _collection(store: Store, job: Job, namespace: Namespace) -> Finding:
    kind = await _kind(store, namespace)
    if kind is None:
        why = "or its user may see nothing of it" if await _users(store) else "is a name wrong?"
        return Finding("warning", "collections", f"{job.name}: {namespace} does not exist; {why}")
    if kind != "collection" and namespace == job.namespace:
        return Finding("problem", "collections", f"{job.name}: {namespace} is a {kind}: no job can change it")
    if not await _has_documents(store, namespace):
        return Finding("warning", "collections", f"{job.name}: {namespace} is empty")
    return Finding("ok", "collections", f"{job.name}: {namespace} is there")


async def _kind(store: Store, namespace: Namespace) -> str | None:
    """``collection``, ``view`` or ``timeseries``; nothing where there is none that this user may see."""
    command = {
        "listCollections": 1,
        "nameOnly": True,
        "authorizedCollections": True,
        "filter": {"name": namespace.collection},
    }
    found = (await store.command(namespace.database, command))["cursor"]["firstBatch"]
    return str(found[0]["type"]) if found else None


def _unseen(topic: str, what: object, error: StoreError) -> Finding:
    """What is said of something that the server does not let be looked at. Raises ``StoreUnavailableError``."""
    if isinstance(error, StoreUnavailableError):
        raise error
    return Finding("problem", topic, f"{what}: cannot be looked at: {error}")


# ------------------------------------------------------------------------------------------------- indexes and queries


async def _indexes(agent: Agent) -> AsyncIterator[Finding]:
    """Which indexes are missing."""
    wanted = agent.wanted_indexes()
    manage = agent.settings.indexes == "manage"
    missing = 0
    for want in wanted:
        try:
            lacks = not await indexes.is_there(agent.store, want)
        except StoreError as error:
            yield _unseen("indexes", want.namespace, error)
            continue
        missing += lacks
        if lacks and manage:
            yield Finding("ok", "indexes", f"will be created at the next start: {indexes.describe(want)}")
        elif lacks:
            yield Finding("warning", "indexes", f"missing: {indexes.describe(want)}")
    if not missing:
        yield Finding("ok", "indexes", f"all {len(wanted)} are there")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query of a job: what for, and the index that it may be led to."""

    namespace: Namespace
    filter: Document
    sort: tuple[tuple[str, int], ...]
    purpose: str
    led_by: Mapping[str, int] | None = None


class _Recorder(StoreReader):
    """A reader that finds nothing and remembers what was asked: the queries that every run of a job begins with."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked: list[tuple[Namespace, Document, tuple[tuple[str, int], ...]]] = []
        self._nothing: tuple[Any, ...] = ()

    async def count(self, namespace: Namespace, filter: Document) -> int:
        """Remembers a count."""
        self.asked.append((namespace, filter, ()))
        return 0

    async def find(
        self,
        namespace: Namespace,
        filter: Document,
        fields: Sequence[str],
        *,
        sort: Sequence[tuple[str, int]] = (),
        hint: str | Sequence[tuple[str, int]] | None = None,
    ) -> AsyncIterator[Document]:
        """Remembers a query."""
        del fields, hint
        self.asked.append((namespace, filter, tuple(sort)))
        for nothing in self._nothing:
            yield nothing

    async def keys(
        self, namespace: Namespace, filter: Document, fields: Sequence[str], *, distinct: bool
    ) -> AsyncIterator[Key]:
        """Finds nothing; the walk over keys is led to its index, which the job names itself."""
        del namespace, filter, fields, distinct
        for nothing in self._nothing:
            yield nothing

    async def groups(
        self, namespace: Namespace, filter: Document, fields: Sequence[str]
    ) -> AsyncIterator[tuple[Key, list[Any]]]:
        """Remembers a query."""
        del fields
        self.asked.append((namespace, filter, ()))
        for nothing in self._nothing:
            yield nothing

    async def existing(self, namespace: Namespace, fields: Sequence[str], keys: Sequence[Key]) -> set[int]:
        """Finds nothing."""
        del namespace, fields, keys
        return set()


async def _queries(agent: Agent) -> AsyncIterator[Finding]:
    """Which queries of the jobs would read a whole collection that holds documents."""
    for job in working(agent.settings):
        try:
            scans = [asked for asked in await _asked(agent, job) if await _scans(agent.store, asked)]
        except StoreError as error:
            yield _unseen("queries", job.name, error)
            continue
        for message in dict.fromkeys(_scan(asked) for asked in scans):
            yield Finding("warning", "queries", f"{job.name}: {message}")
        if not scans:
            yield Finding("ok", "queries", f"{job.name}: none reads a whole collection")


def _scan(asked: _Asked) -> str:
    fields = ", ".join(dict.fromkeys([*_fields_of(asked.filter), *(name for name, _ in asked.sort)])) or "all"
    return f"{asked.purpose} ({fields}): no index serves it, so all of {asked.namespace} is read"


async def _asked(agent: Agent, job: Job) -> list[_Asked]:
    """The queries of a job, each once: those that it names, with their index, and those that a run begins with."""
    asked: dict[tuple[object, ...], _Asked] = {}
    for query in job.queries:
        led_by = dict(query.index.keys) if query.index else {"_id": 1}
        named = _Asked(query.namespace, query.filter, query.sort, query.purpose, led_by)
        asked[_key(query.namespace, query.filter, query.sort)] = named
    for namespace, filter, sort in await _begins_with(agent, job):
        if filter or sort:
            asked.setdefault(_key(namespace, filter, sort), _Asked(namespace, filter, sort, "the selection"))
    return list(asked.values())


def _key(namespace: Namespace, filter: Document, sort: tuple[tuple[str, int], ...]) -> tuple[object, ...]:
    return (namespace, encode(filter), sort)


async def _begins_with(agent: Agent, job: Job) -> list[tuple[Namespace, Document, tuple[tuple[str, int], ...]]]:
    recorder = _Recorder(agent.store)
    ports = Ports(recorder, Volume(agent.threads), agent.keep.clients)
    await job.population(ports)
    async for _ in job.select(ports, await agent.store.now()):
        pass
    return recorder.asked


async def _scans(store: Store, asked: _Asked) -> bool:
    """Whether the server would read a whole collection, also when it is led to the query's own index."""
    collection = store.collection(asked.namespace)
    if not _reads_all(await collection.explain(asked.filter, sort=asked.sort)):
        return False
    if asked.led_by is not None:
        for name, index in (await collection.indexes()).items():
            if dict(index["key"]) == asked.led_by:
                plan = await collection.explain(asked.filter, sort=asked.sort, hint=name)
                return _reads_all(plan) and await _has_documents(store, asked.namespace)
    return await _has_documents(store, asked.namespace)


async def _has_documents(store: Store, namespace: Namespace) -> bool:
    return await store.collection(namespace).find_one({}, ["_id"]) is not None


def _reads_all(answer: Any) -> bool:
    """Whether a winning plan has the stage that reads every document."""
    if isinstance(answer, dict):
        if answer.get("stage") == "COLLSCAN":
            return True
        return any(_reads_all(value) for name, value in answer.items() if name != "rejectedPlans")
    return isinstance(answer, list) and any(_reads_all(entry) for entry in answer)


def _fields_of(filter: Any) -> list[str]:
    """The fields that a filter looks at."""
    if isinstance(filter, list):
        return [name for entry in filter for name in _fields_of(entry)]
    if not isinstance(filter, dict):
        return []
    return [
        field for name, value in filter.items() for field in (_fields_of(value) if name.startswith("$") else [name])
    ]


# --------------------------------------------------------------------------------------------------------- permissions


def role(settings: Settings[Job]) -> Document:
    """The least role that the enabled jobs need, as ``db.adminCommand`` takes it on the database ``admin``."""
    return {"createRole": ROLE, "privileges": privileges(settings), "roles": []}


def privileges(settings: Settings[Job]) -> list[Document]:
    """The least privileges that the enabled jobs need, the agent's own collections first."""
    return [{"resource": _resource(place), "actions": sorted(actions)} for place, actions in _needed(settings).items()]


def _resource(place: Place) -> Document:
    return {"db": place.database, "collection": place.collection} if place else {"cluster": True}


def _needed(settings: Settings[Job]) -> dict[Place, set[str]]:
    needed: dict[Place, set[str]] = defaultdict(set)
    database, prefix, jobs = settings.mongodb.database, settings.collections.prefix, working(settings)
    for name, actions in OWN.items():
        needed[Namespace(database, prefix + name)] |= actions
    for job in jobs:
        for source in (job.namespace, *job.sources, *(query.namespace for query in job.queries)):
            needed[source] |= {"find", "listIndexes"}
        needed[job.namespace] |= _changes(job)
    for want in indexes.wanted(database, prefix, jobs):
        needed[want.namespace].add("listIndexes")
        if settings.indexes == "manage":
            needed[want.namespace].add("createIndex")
    if settings.throttle.max_lag is not None:
        needed[None].add("replSetGetStatus")
    return needed


def _changes(job: Job) -> set[str]:
    """What a job, and the restoring of its runs, does to the documents that it changes."""
    now = dt.datetime.now(dt.UTC)
    changes = [job.change(action, now) for action in job.explain(now)] if job.acts else []
    return {action for change in changes for action in (DELETES if change.set is None else UPDATES)}


async def permissions(agent: Agent) -> AsyncIterator[Finding]:
    """Which of the privileges that are needed the connected user lacks."""
    authorized = (await agent.store.command("admin", {"connectionStatus": 1, "showPrivileges": True}))["authInfo"]
    users = [f"{user['user']}@{user['db']}" for user in authorized["authenticatedUsers"]]
    if not users:
        yield await _nobody(agent.store)
        return
    lacking = False
    for place, actions in _needed(agent.settings).items():
        missing = actions - granted(authorized["authenticatedUserPrivileges"], place)
        if missing:
            lacking = True
            where = place or "the cluster"
            message = f"{', '.join(users)} lacks {', '.join(sorted(missing))} on {where}; see check --role"
            yield Finding("problem", "permissions", message)
    if not lacking:
        yield Finding("ok", "permissions", f"{', '.join(users)} may do all that the jobs need")


async def _nobody(store: Store) -> Finding:
    """What it means that nobody is logged in."""
    try:
        await store.command("admin", {"listDatabases": 1, "nameOnly": True})
    except StoreDeniedError:
        return Finding("problem", "permissions", "the server asks for a user, and mongodb.uri names none")
    return Finding("warning", "permissions", "authorization is off: whoever reaches the server may do everything")


async def _users(store: Store) -> bool:
    status = await store.command("admin", {"connectionStatus": 1})
    return bool(status["authInfo"]["authenticatedUsers"])


def granted(held: Iterable[Document], place: Place) -> set[str]:
    """The actions that privileges allow on a collection, or on the cluster."""
    covering = [privilege for privilege in held if _covers(privilege["resource"], place)]
    return {action for privilege in covering for action in privilege["actions"]}


def _covers(resource: Document, place: Place) -> bool:
    if resource.get("anyResource"):
        return True
    if place is None:
        return bool(resource.get("cluster"))
    database, collection = resource.get("db"), resource.get("collection")
    return database in {"", place.database} and collection in {"", place.collection}
