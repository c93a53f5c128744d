"""Indexes: those that the agent's own collections and the queries of its jobs need.

With ``indexes: manage`` missing ones are created; a missing permission is a warning, since a slow run is better than
none. A collection of the application that does not exist is not made: its name may be a mistake, and its indexes wait
until there is one. With ``check`` they are only reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog

from agent import archive, controls, journal, marks
from agent.errors import StoreError, StoreUnavailableError
from agent.job import Job
from agent.store import Document, Index, Namespace, Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Wanted:
    """An index that should exist, and what for."""

    namespace: Namespace
    index: Index
    purpose: str
    own: bool = False
    """Whether the collection is the agent's."""


def wanted(database: str, prefix: str, jobs: Iterable[Job]) -> Iterator[Wanted]:
    """All indexes that the agent wants: its own first."""
    own = {"runs": journal.INDEXES, "items": archive.INDEXES, "marks": marks.INDEXES, "controls": controls.INDEXES}
    for name, indexes in own.items():
        for index in indexes:
            yield Wanted(Namespace(database, prefix + name), index, "the agent's own records", own=True)
    for job in jobs:
        for query in job.queries if job.enabled else ():
            if query.index is not None:
                yield Wanted(query.namespace, query.index, f"{job.name}: {query.purpose}")


async def is_there(store: Store, want: Wanted) -> bool:
    """Whether the index, or one that serves as well, exists. Raises ``StoreError``."""
    return _served(await store.collection(want.namespace).indexes(), want.index)


async def missing(store: Store, wants: Iterable[Wanted]) -> list[Wanted]:
    """Those that do not exist; of those that may not be looked at nobody can say. Raises ``StoreUnavailableError``."""
    lacking: list[Wanted] = []
    for want in wants:
        try:
            if not await is_there(store, want):
                lacking.append(want)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            log.warning("index_not_looked_at", index=describe(want), error=str(error))
    return lacking


async def manage(store: Store, wants: Iterable[Wanted]) -> list[Wanted]:
    """Creates what is missing; returns what waits for its collection. Raises ``StoreUnavailableError``."""
    waiting: list[Wanted] = []
    for want in await missing(store, wants):
        collection = store.collection(want.namespace)
        if not want.own and not await collection.indexes():  # every collection has one
            log.info("index_waits_for_its_collection", index=describe(want))
            waiting.append(want)
            continue
        try:
            await collection.create_index(want.index)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            log.warning("index_not_created", index=describe(want), error=str(error))
        else:
            log.info("index_created", index=describe(want))
    return waiting


def describe(want: Wanted) -> str:
    """The index in a line, for people."""
    keys = ", ".join(f"{name}: {direction}" for name, direction in want.index.keys)
    partial = f" where {want.index.partial}" if want.index.partial else ""
    return f"{want.namespace} ({keys}){partial} for {want.purpose}"


def _served(existing: dict[str, Document], index: Index) -> bool:
    """Whether an index with these keys in front exists, of the same sort (unique, expiring, partial)."""
    for info in existing.values():
        keys = tuple(tuple(pair) for pair in info["key"])
        if keys[: len(index.keys)] != index.keys or {"sparse", "collation", "hidden"} & set(info):
            continue
        if info.get("partialFilterExpression", {}) != index.partial or bool(info.get("unique")) < index.unique:
            continue
        if index.expire_after is None or "expireAfterSeconds" in info:
            return True
    return False
