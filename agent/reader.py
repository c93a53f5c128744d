"""What a job reads of MongoDB, and in a dry pass, what it would read if the earlier plans had been carried out.

A dry pass changes nothing, yet a later job must find what it would find after the earlier ones: a task whose record is
about to be deleted is an orphan. ``Overlay`` remembers the planned changes; the reader leaves planned deletions out and
has the server evaluate the same filters on planned updates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any, TypeVar

from agent.conditions import read
from agent.errors import StoreDeniedError
from agent.store import CHUNK, Document, Key, Namespace, Rest, Store, comparable, encode

T = TypeVar("T")

KEYS_A_QUERY = 100  # alternatives of one query


class Overlay:
    """The planned changes of a dry pass, by collection."""

    def __init__(self) -> None:
        self._deleted: dict[Namespace, dict[Hashable, Any]] = defaultdict(dict)
        self._updated: dict[Namespace, dict[Hashable, tuple[Any, Document]]] = defaultdict(dict)

    def delete(self, namespace: Namespace, id: Any) -> None:
        """Plans a deletion."""
        self._updated[namespace].pop(comparable(id), None)
        self._deleted[namespace][comparable(id)] = id

    def update(self, namespace: Namespace, id: Any, values: Document) -> None:
        """Plans an update."""
        _, earlier = self._updated[namespace].get(comparable(id), (id, {}))
        self._updated[namespace][comparable(id)] = (id, {**earlier, **values})

    def touches(self, namespace: Namespace, id: Any) -> bool:
        """Whether a change of the document is planned."""
        key = comparable(id)
        return key in self._deleted[namespace] or key in self._updated[namespace]

    def deleted(self, namespace: Namespace) -> list[Any]:
        """The ids of the documents whose deletion is planned."""
        return list(self._deleted[namespace].values())

    def touched(self, namespace: Namespace) -> list[Any]:
        """The ids of all documents of which a change is planned."""
        return self.deleted(namespace) + [id for id, _ in self._updated[namespace].values()]

    def updated(self, namespace: Namespace) -> list[tuple[list[Any], Document]]:
        """The planned updates: ids, and the values that all of them get."""
        groups: dict[bytes, tuple[list[Any], Document]] = {}
        for id, values in self._updated[namespace].values():
            groups.setdefault(encode(values), ([], values))[0].append(id)
        return list(groups.values())


class StoreReader:
    """Reads for one run: the collections as they are, with the overlay (if any) on top."""

    def __init__(self, store: Store, overlay: Overlay | None = None, rest: Rest | None = None) -> None:
        """``rest`` is what a walk over many documents waits for between two round trips."""
        self.chunk = CHUNK
        """Documents of one round trip of such a walk."""
        self._rest = rest
        self._store = store
        self._overlay = overlay
        self._indexes: dict[Namespace, dict[str, Document]] = {}

    async def count(self, namespace: Namespace, filter: Document) -> int:
        """How many documents match."""
        collection = self._store.collection(namespace)
        total = await collection.count(filter, hint=None if filter else "_id_")
        for ids in _chunks(self._overlay.touched(namespace) if self._overlay else []):
            total -= await collection.count({"$and": [{"_id": {"$in": ids}}, filter]}, hint="_id_")
        async for _ in self._planned(namespace, filter, ["_id"]):
            total += 1
        return total

    async def find(
        self,
        namespace: Namespace,
        filter: Document,
        fields: Sequence[str],
        *,
        sort: Sequence[tuple[str, int]] = (),
        hint: str | Sequence[tuple[str, int]] | None = None,
    ) -> AsyncIterator[Document]:
        """The matching documents, with ``_id`` and ``fields`` only."""
        found = self._store.collection(namespace).find(
            filter, ["_id", *fields], sort=sort, hint=hint, chunk=self.chunk, rest=self._rest
        )
        async for document in found:
            if self._overlay is None or not self._overlay.touches(namespace, document["_id"]):
                yield document
        async for document in self._planned(namespace, filter, ["_id", *fields]):
            yield document

    async def keys(
        self, namespace: Namespace, filter: Document, fields: Sequence[str], *, distinct: bool
    ) -> AsyncIterator[Key]:
        """The values of ``fields`` of the matching documents, from an index alone where one holds them all."""
        leaving = await self._leaving_keys(namespace, fields)
        hint = await self._covering(namespace, filter, fields)
        if distinct:
            collection = self._store.collection(namespace)
            group = {"_id": {str(number): f"${name}" for number, name in enumerate(fields)}}
            stages = [{"$match": filter}, {"$group": group}]
            async for document in collection.aggregate(stages, hint=hint, chunk=self.chunk, rest=self._rest):
                yield tuple(document["_id"].get(str(number)) for number in range(len(fields)))
            return
        walk = self._store.collection(namespace).find(filter, fields, hint=hint, chunk=self.chunk, rest=self._rest)
        async for document in walk:
            key = tuple(read(document, name) for name in fields)
            if not leaving or comparable(key) not in leaving:
                yield key

    async def groups(
        self, namespace: Namespace, filter: Document, fields: Sequence[str]
    ) -> AsyncIterator[tuple[Key, list[Any]]]:
        """The different values of ``fields`` of the matching documents, each with the ids of the documents."""
        touched = self._overlay.touched(namespace) if self._overlay else []
        untouched = {"$and": [filter, {"_id": {"$nin": touched}}]} if touched else filter
        group: Document = {
            "_id": {str(number): f"${name}" for number, name in enumerate(fields)},
            "ids": {"$push": "$_id"},
        }
        found = self._store.collection(namespace).aggregate(
            [{"$match": untouched}, {"$group": group}], chunk=self.chunk, rest=self._rest
        )
        async for document in found:
            yield tuple(document["_id"].get(str(number)) for number in range(len(fields))), document["ids"]
        async for document in self._planned(namespace, filter, ["_id", *fields]):
            yield tuple(read(document, name) for name in fields), [document["_id"]]

    async def existing(self, namespace: Namespace, fields: Sequence[str], keys: Sequence[Key]) -> set[int]:
        """The positions in ``keys`` for which a document exists, as the server compares."""
        if not keys:
            return set()
        alternatives = [{name: {"$eq": value} for name, value in zip(fields, key, strict=True)} for key in keys]
        found = await self._any(namespace, {"$or": alternatives}, fields)
        if not found:
            return set()
        if len(keys) == 1:
            return {0}
        met = {comparable(tuple(read(document, name) for name in fields)) for document in found}
        existing = {position for position, key in enumerate(keys) if comparable(key) in met}
        # Equal to the server but not to us (a collation, a nested number): ask for these one by one.
        for position in set(range(len(keys))) - existing:
            if await self._any(namespace, alternatives[position], fields):
                existing.add(position)
        return existing

    async def _any(self, namespace: Namespace, filter: Document, fields: Sequence[str]) -> list[Document]:
        gone = self._overlay.deleted(namespace) if self._overlay else []
        if gone:
            filter = {"$and": [filter, {"_id": {"$nin": gone}}]}
        return await self._store.collection(namespace).find_all(filter, fields)

    async def _planned(self, namespace: Namespace, filter: Document, fields: Sequence[str]) -> AsyncIterator[Document]:
        """The documents that would match after the planned updates, as the server evaluates the filter."""
        collection = self._store.collection(namespace)
        for ids, values in self._overlay.updated(namespace) if self._overlay else []:
            literals = {path: {"$literal": value} for path, value in values.items()}
            for some in _chunks(ids):
                stages = [{"$match": {"_id": {"$in": some}}}, {"$set": literals}, {"$match": filter}]
                async for document in collection.aggregate([*stages, {"$project": dict.fromkeys(fields, 1)}]):
                    yield document

    async def _leaving_keys(self, namespace: Namespace, fields: Sequence[str]) -> set[Hashable]:
        """The keys of the documents whose deletion is planned, but for those that another document holds too."""
        leaving: dict[Hashable, Key] = {}
        for ids in _chunks(self._overlay.deleted(namespace) if self._overlay else []):
            async for document in self._store.collection(namespace).find({"_id": {"$in": ids}}, fields):
                key = tuple(read(document, name) for name in fields)
                leaving[comparable(key)] = key
        for keys in _chunks(list(leaving.values()), KEYS_A_QUERY):
            for position in await self.existing(namespace, fields, keys):
                del leaving[comparable(keys[position])]
        return set(leaving)

    async def _covering(self, namespace: Namespace, filter: Document, fields: Sequence[str]) -> str | None:
        """The name of an index that holds all ``fields`` of all matches; the planner does not look for it."""
        if namespace not in self._indexes:
            try:
                self._indexes[namespace] = await self._store.collection(namespace).indexes()
            except StoreDeniedError:
                self._indexes[namespace] = {}  # a hint saves time; who may not list indexes can do without
        asked = {name for clause in filter.get("$and", [filter]) for name in clause}
        fitting: list[tuple[bool, str]] = []
        for name, index in self._indexes[namespace].items():
            keys = dict(index["key"])
            whole = all(direction in {1, -1} for direction in keys.values()) and not {
                "sparse",
                "collation",
                "hidden",
            } & set(index)
            partial = index.get("partialFilterExpression")
            fits = set(fields) <= set(keys) and whole
            if fits and (_implies(filter, partial) if partial else not filter):
                fitting.append((not asked <= set(keys), name))  # best one that also holds what the filter asks for
        return min(fitting)[1] if fitting else None


def _implies(filter: Document, partial: Document) -> bool:
    """Whether a filter of the agent's own making asks for the partial index's condition or for less."""
    clauses = filter.get("$and", [filter])
    for field, condition in partial.items():
        allowed = condition.get("$in") if isinstance(condition, dict) else None
        asked = [
            clause[field]["$in"] for clause in clauses if isinstance(clause.get(field), dict) and "$in" in clause[field]
        ]
        if allowed is None or not any(_set(values) <= _set(allowed) for values in asked):
            return False
    return bool(partial)


def _set(values: Sequence[Any]) -> set[Hashable]:
    return {comparable(value) for value in values}


def _chunks(values: Sequence[T], size: int = CHUNK) -> list[list[T]]:
    return [list(values[start : start + size]) for start in range(0, len(values), size)]
