"""Worlds to break: records with and without their directories, tasks of every sort, and what has to become of each.

A world knows the fate of each of its documents, so that after any accident the database can be held against it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bson import Binary, Decimal128, Int64, ObjectId, decode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database as RawDatabase

Document = dict[str, Any]
Database = RawDatabase[Document]
Fate = Literal["stays", "deleted", "cancelled", "failed"]

RECORDS, TASKS = "generated_applications", "analysis_tasks"
RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
AHEAD = 12  # hours: what is young has to stay young, however long a test may last

# Out of a hundred documents.
MIX: Mapping[str, int] = {
    "record": 14,
    "record without directory": 6,
    "young record without directory": 1,
    "active task": 14,
    "task of a missing record": 10,
    "task of no record at all": 7,
    "stuck running task": 8,
    "stuck pending task": 6,
    "beating task": 4,
    "expired task": 20,
    "finished task": 10,
}


@dataclass
class World:
    """What was put into a database and under a root, and what has to become of it."""

    root: Path
    now: dt.datetime
    fates: dict[str, dict[Any, Fate]] = field(default_factory=lambda: {RECORDS: {}, TASKS: {}})
    first: dict[str, dict[Any, bytes]] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)

    def expected(self) -> Counter[str]:
        """How many documents of each fate there are, but for those that stay."""
        fates = (fate for some in self.fates.values() for fate in some.values())
        return Counter(fate for fate in fates if fate != "stays")


def make(db: Database, root: Path, size: int, rng: random.Random) -> World:
    """Makes a world of ``size`` documents."""
    world = World(root, server_now(db))
    making = _Making(world, rng)
    kinds = [kind for kind, share in MIX.items() for _ in range(max(1, size * share // 100))]
    records = [kind for kind in kinds if "record" in kind and "task" not in kind]
    tasks = [kind for kind in kinds if kind not in records]
    rng.shuffle(tasks)
    documents = {RECORDS: [making.record(kind) for kind in records], TASKS: [making.task(kind) for kind in tasks]}
    for name, some in documents.items():
        db[name].insert_many(some)
    world.first = snapshot(db)
    return world


def put(db: Database, world: World) -> None:
    """Puts the documents of a world into another database."""
    for name, documents in world.first.items():
        db.get_collection(name, codec_options=RAW).insert_many([RawBSONDocument(data) for data in documents.values()])


class _Making:
    """Makes the documents of one world."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._present: list[tuple[str, int]] = []
        self._missing: list[tuple[str, int]] = []
        self._number = 0

    def record(self, kind: str) -> Document:
        """A record, with its directory where it has one."""
        self._number += 1
        key = (f"model-{self._number % 40:02}", self._number)
        young = kind.startswith("young")
        if kind == "record":
            self._world.directories.append(path_of(*key))
            (self._world.root / path_of(*key)).mkdir(parents=True)
        (self._missing if kind == "record without directory" else self._present).append(key)
        document = {
            "model_slug": key[0],
            "app_number": key[1],
            "created_at": self._ago(hours=-AHEAD) if young else self._old(),
        }
        return self._doomed(RECORDS, document, "deleted" if kind == "record without directory" else "stays")

    def task(self, kind: str) -> Document:
        """A task."""
        active, young = self._rng.choice(["PENDING", "RUNNING"]), self._ago(hours=-AHEAD)
        running = {"status": "RUNNING", "started_at": self._old(), "completed_at": None}
        orphan: Document = {"status": active, "created_at": self._ago(minutes=30)}
        if self._rng.random() < 0.5:
            orphan["completed_at"] = None
        expired = self._rng.choice(["COMPLETED", "FAILED", "CANCELLED"])
        sorts: dict[str, tuple[Document, Fate]] = {
            "active task": ({"status": active, "created_at": young, "started_at": young}, "stays"),
            "task of a missing record": (orphan, "cancelled"),
            "task of no record at all": (orphan, "cancelled"),
            "stuck running task": ({**running, "heartbeat_at": self._old()}, "failed"),
            "stuck pending task": ({"status": "PENDING", "error_message": "an earlier one"}, "cancelled"),
            "beating task": ({**running, "heartbeat_at": young}, "stays"),
            "expired task": ({"status": expired, "completed_at": self._ago(days=40 + self._rng.random())}, "deleted"),
            "finished task": ({"status": "COMPLETED", "completed_at": self._ago(days=3)}, "stays"),
        }
        targets = {
            "task of a missing record": self._rng.choice(self._missing),
            "task of no record at all": ("model-00", 10_000_000 + self._rng.randrange(1000)),
        }
        return self._task(targets.get(kind) or self._rng.choice(self._present), *sorts[kind])

    def _task(self, target: tuple[str, int], values: Document, fate: Fate) -> Document:
        named = {"target_model": target[0], "target_app_number": self._number_of_any_type(target[1])}
        document = {"task_id": f"task-{self._rng.randrange(10**9)}", **named, "created_at": self._old(), **values}
        return self._doomed(TASKS, document, fate)

    def _doomed(self, name: str, document: Document, fate: Fate) -> Document:
        """The document with an id, in an order of fields of its own, with values that are easily lost."""
        fields = list({**document, **self._odd()}.items())
        self._rng.shuffle(fields)
        id = ObjectId() if self._rng.random() < 0.9 else f"id-{self._rng.randrange(10**12)}"
        self._world.fates[name][id] = fate
        return {"_id": id, **dict(fields)}

    def _odd(self) -> Document:
        values: list[Document] = [
            {},
            {"price": Decimal128("1.10"), "count": Int64(3)},
            {"meta": {"b": 1, "a": [1.0, 2, None, {"x": Binary(b"\0\1", 128)}]}},
            {"text": "ä" * self._rng.randrange(300)},
        ]
        return self._rng.choice(values)

    def _number_of_any_type(self, number: int) -> Any:
        return self._rng.choice([number, Int64(number), float(number)])

    def _old(self) -> dt.datetime:
        return self._ago(days=1 + self._rng.random())

    def _ago(self, **span: float) -> dt.datetime:
        return self._world.now - dt.timedelta(**span)


def path_of(slug: str, number: int) -> str:
    """The directory of a record, below the root."""
    return f"generated/apps/{slug}/app{number}"


AN_HOUR: Document = {"stuck": {"timeout": "60m", "pending_timeout": "60m"}}


def settings(uri: str, database: str, root: Path, **changes: Any) -> Document:
    """A configuration with the four jobs and short times; ``changes`` are laid over its top level, and over its jobs."""
    free = {"items": 1_000_000, "fraction": 1.0}
    beating = {"heartbeat_at": "heartbeat_at"}
    jobs: Document = {
        "records": {"kind": "orphan_records", "root": str(root), "quarantine": "0s", "limit": free},
        "orphans": {"kind": "orphan_tasks", "limit": free},
        # So long that in a test of an hour no task grows stuck that is only an orphan.
        "stuck": {"kind": "stuck_tasks", "fields": beating, "limit": free, "timeout": "20h", "pending_timeout": "20h"},
        "old": {"kind": "retention", "limit": free},
    }
    for name, job in changes.pop("jobs", {}).items():
        jobs[name] = {**jobs.get(name, {}), **job}
    return {
        "mongodb": {"uri": uri, "database": database},
        "http": {"host": "127.0.0.1"},
        "lease": {"ttl": "2s"},
        "defaults": {"batch": 100, "run_timeout": "90s"},
        **changes,
        "jobs": jobs,
    }


# ------------------------------------------------------------------------------------------------------------- looking


def server_now(db: Database) -> dt.datetime:
    """The server's time."""
    now: dt.datetime = db.client.admin.command("hello", codec_options=db.codec_options)["localTime"]
    return now


def raw_of(document: Any) -> bytes:
    """The bytes of a document that was read raw."""
    return bytes(document.raw)


def snapshot(db: Database) -> dict[str, dict[Any, bytes]]:
    """The application's documents byte for byte."""
    return {
        name: {
            document["_id"]: bytes(raw_of(document)) for document in db.get_collection(name, codec_options=RAW).find()
        }
        for name in (RECORDS, TASKS)
    }


def forget_the_agent(db: Database) -> None:
    """Drops all that agents keep."""
    for name in db.list_collection_names(filter={"name": {"$regex": "^maintenance_"}}):
        db[name].delete_many({})


def difference(first: Mapping[str, Mapping[Any, bytes]], now: Mapping[str, Mapping[Any, bytes]]) -> list[str]:
    """In words: the documents that differ."""
    found: list[str] = []
    for name, documents in first.items():
        for id, data in documents.items():
            if now[name].get(id) != data:
                then = decode(now[name][id]) if id in now[name] else "is gone"
                found.append(f"{name} {id}: {decode(data)} {then}")
        found += [f"{name} {id} is new" for id in now[name].keys() - documents.keys()]
    return found


def check(db: Database, world: World, *, settled: bool) -> None:
    """Holds the database against the world, after any accident.

    ``settled`` is false where a standalone server waits for the next run, which finds out what became of the last batch.
    """
    now = snapshot(db)
    entries = list(db["maintenance_items"].find({"state": {"$in": ["done", "pending"]}}))
    copies = {(entry["collection"], entry["id"]): entry for entry in entries}
    changed: Counter[tuple[str, str]] = Counter()
    for entry in db["maintenance_items"].find(
        {"state": "restored"}
    ):  # what came back while it was changed counts twice
        changed[entry["run"], entry["action"]] += 1
        changed[entry["run"], "restored"] += 1
    for name, documents in world.first.items():
        for id, data in documents.items():
            found = now[name].get(id)
            if found == data:
                continue
            fate = world.fates[name][id]
            assert fate != "stays", f"a healthy document differs: {name} {decode(data)}"
            assert (name, id) in copies, f"changed without a copy: {name} {decode(data)}"
            entry = copies[name, id]
            assert entry["action"] == fate
            assert entry["state"] == "done" or not settled
            assert (found is None) == (fate == "deleted")
            if found is None:
                assert entry["before"] == data, "the copy differs from the document"
            changed[entry["run"], fate] += 1
        assert not now[name].keys() - documents.keys(), "there are new documents"
    if settled:
        check_counts(db, changed)


def check_counts(db: Database, changed: Mapping[tuple[str, str], int]) -> None:
    """Each run's record says what it changed, and the totals add up what the runs that ended say."""
    runs = list(db["maintenance_runs"].find({"dry_run": False}))
    for run in runs:
        counted = {action: count for action, count in run["changed"].items() if count}
        really = {action: count for (of, action), count in changed.items() if of == run["_id"]}
        assert counted == really, f"{run['job']} {run['_id']} {run['outcome']} says {counted} and changed {really}"
    check_totals(db)


def check_totals(db: Database) -> None:
    """The totals are the sum of the runs that ended; what is counted as deleted is what is gone."""
    ended = list(db["maintenance_runs"].find({"dry_run": False, "ended_at": {"$ne": None}}))
    totals: Document = db["maintenance_controls"].find_one({"_id": "totals"}) or {}
    assert totals.get("runs", 0) == len(ended)
    summed: Counter[tuple[str, str]] = Counter()
    for run in ended:
        for action, count in run["changed"].items():
            summed[run["kind"], action] += count
    told = {
        (kind, action): count
        for kind, counts in totals.items()
        if isinstance(counts, dict) and kind != "counted"
        for action, count in counts.items()
    }
    assert told == {key: count for key, count in summed.items() if count}


def check_restored(db: Database) -> None:
    """The records of the restores say how many copies they put back."""
    told: Counter[str] = Counter()
    for run in db["maintenance_runs"].find({"trigger": "restore"}):
        told[run["source"]] += run["changed"].get("restored", 0)
    stages: list[Document] = [{"$match": {"state": "restored"}}, {"$sortByCount": "$run"}]
    really = {found["_id"]: found["count"] for found in db["maintenance_items"].aggregate(stages)}
    assert {run: count for run, count in told.items() if count} == really
    assert not db["maintenance_items"].count_documents({"state": "conflict"})


def check_ended(db: Database, world: World, *names: str) -> None:
    """All that had to be changed is changed (in some collections only)."""
    now = snapshot(db)
    status = {"cancelled": "CANCELLED", "failed": "FAILED"}
    for name in names or (RECORDS, TASKS):
        for id, fate in world.fates[name].items():
            if fate == "deleted":
                assert id not in now[name], f"not deleted: {name} {decode(world.first[name][id])}"
            elif fate in status:
                assert decode(now[name][id])["status"] == status[fate]
    assert not list(db["maintenance_runs"].find({"ended_at": None})), "a run is still open"


def newest_first(db: Database) -> list[str]:
    """The real runs that changed something, in the order in which they are to be undone."""
    runs = db["maintenance_runs"].find(
        {"dry_run": False, "trigger": {"$ne": "restore"}}, sort=[("started_at", -1), ("term", -1)]
    )
    return [run["_id"] for run in runs if any(run["changed"].values())]
