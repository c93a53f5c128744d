"""An application that changes everything as fast as it can, while the agent makes its passes."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from bson import decode
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from tests import servers
from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Agent, Nursery
from tests.faults.conftest import Scaled
from tests.faults.world import Document

PASSES = 100
RECORDS, TASKS = 60, 300
TIMEOUT = dt.timedelta(hours=1)
LONG_AGO = dt.timedelta(days=1)
ACTIVE = ["PENDING", "RUNNING"]


class Writer:
    """The application: it finishes tasks, beats, re-targets, makes anew; it makes and removes directories."""

    def __init__(self, db: world.Database, root: Path, rng: random.Random) -> None:
        self._db = db
        self._root = root
        self._rng = rng
        self._now = world.server_now(db)
        self._finished: dict[str, int] = {}
        self._stop = threading.Event()
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []
        for number in range(RECORDS):
            db[world.RECORDS].insert_one(self._record(number))
            self._toggle(number)
        for number in range(TASKS):
            db[world.TASKS].insert_one({"_id": f"task-{number}", **self._task()})

    # --- what it keeps

    def _record(self, number: int) -> Document:
        named = {"model_slug": f"model-{number % 7}", "app_number": number}
        return {"_id": f"record-{number}", **named, "created_at": self._now - LONG_AGO, "made": self._rng.random()}

    def path(self, id: str) -> Path:
        """The directory of a record."""
        number = int(id.rpartition("-")[2])
        return self._root / world.path_of(f"model-{number % 7}", number)

    def _task(self) -> Document:
        number = self._rng.randrange(RECORDS)
        return {
            "status": self._rng.choice(ACTIVE),
            "target_model": f"model-{number % 7}",
            "target_app_number": number,
            "created_at": self._now - LONG_AGO,
            "started_at": self._now - LONG_AGO,
            "heartbeat_at": self._now - LONG_AGO,
        }

    # --- what it does

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Writes until the block ends."""
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _write(self) -> None:
        acts: dict[str, Callable[[], None]] = {
            "finish": self._finish, "beat": self._beat, "retarget": self._retarget, "make anew": self._make_anew,
            "record": self._make_record, "directory": lambda: self._toggle(self._rng.randrange(RECORDS)),
        }  # fmt: skip
        while not self._stop.is_set():
            name = self._rng.choice(list(acts))
            acts[name]()
            self.did[name] += 1

    def _any_task(self, **condition: object) -> Document:
        return {"_id": f"task-{self._rng.randrange(TASKS)}", **condition}

    def _finish(self) -> None:
        nonce = self._rng.randrange(10**9)
        ended: Document = {"status": "COMPLETED", "completed_at": world.server_now(self._db), "result": nonce}
        found = self._db[world.TASKS].find_one_and_update(self._any_task(status={"$in": ACTIVE}), {"$set": ended})
        if found is not None:
            self._finished[found["_id"]] = nonce

    def _beat(self) -> None:
        beat = {"$set": {"heartbeat_at": world.server_now(self._db)}}
        self._db[world.TASKS].update_one(self._any_task(status="RUNNING"), beat)

    def _retarget(self) -> None:
        number = self._rng.randrange(RECORDS + 5)
        named = {"target_model": f"model-{number % 7}", "target_app_number": number}
        self._db[world.TASKS].update_one(self._any_task(status={"$in": ACTIVE}), {"$set": named})

    def _make_anew(self) -> None:
        """A task begins again; what the agent made of it is judged first."""
        wanted = self._any_task(status={"$nin": ACTIVE})
        before = self._db[world.TASKS].find_one_and_replace(wanted, self._task(), return_document=ReturnDocument.BEFORE)
        if before is not None:
            self._judge(before)
            self._finished.pop(before["_id"], None)

    def _judge(self, task: Document) -> None:
        """No task that finished is overwritten, and none that gave a sign of life within its limit is failed."""
        nonce = self._finished.get(task["_id"])
        if nonce is not None and (task["status"] != "COMPLETED" or task["result"] != nonce):
            self.wrong.append(f"finished, and then overwritten: {task}")
        if task["status"] == "FAILED" and task["heartbeat_at"] >= task["completed_at"] - TIMEOUT:
            self.wrong.append(f"beat, and was failed all the same: {task}")

    def judge_all(self) -> None:
        """Judges all that is there."""
        for task in self._db[world.TASKS].find({"status": {"$nin": ACTIVE}}):
            self._judge(task)

    def _make_record(self) -> None:
        with contextlib.suppress(DuplicateKeyError):
            self._db[world.RECORDS].insert_one(self._record(self._rng.randrange(RECORDS)))

    def _toggle(self, number: int) -> None:
        path = self.path(f"record-{number}")
        if self._rng.random() < 0.6:
            path.mkdir(parents=True, exist_ok=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()


@servers.both_topologies
def test_nothing_that_came_back_to_life_is_lost_to_a_pass(
    database: Database, db: world.Database, root: Path, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """No task that finished or beat is overwritten; no record is missing whose directory was there when it was looked for."""
    settings = world.settings(database.uri, database.name, root, defaults={"batch": 20}, jobs=world.AN_HOUR)
    writer = Writer(db, root, rng)
    outcomes: Counter[str] = Counter()
    with nursery.agent(settings).open() as agent:
        with writer.writing():
            for _ in range(scaled(PASSES, 8)):
                runs = agent.runs(accept=["root", "targets"])
                outcomes.update(f"{run['job']} {run['outcome']}" for run in runs)
                check_looks(db, runs[0]["_id"], agent, writer)
                check_targets(db, runs[1]["_id"])
        writer.judge_all()
        assert not writer.wrong
        check_counts_of_copies(db)
        restored = restore_what_came_later(db, agent, writer)
    changed: Counter[str] = sum((Counter(run["changed"]) for run in db["maintenance_runs"].find()), Counter())
    print(f"{dict(writer.did)}; {dict(outcomes)}; {dict(changed)}; came later: {restored}")  # noqa: T201
    assert restored


def check_looks(db: world.Database, run: str, agent: Agent, writer: Writer) -> None:
    """A record is gone only where its directory was missing at each look; what was there at any look is there."""
    looks: dict[str, list[bool]] = defaultdict(list)
    for look in agent.ask("looks")["looks"]:
        looks[look["path"]].append(look["absent"])
    there = {record["_id"] for record in db[world.RECORDS].find({}, {"_id": 1})}
    for entry in db["maintenance_items"].find({"run": run}):
        path = str(writer.path(entry["id"]).relative_to(writer.path(entry["id"]).parents[3]))
        assert len(looks[path]) >= 2
        if all(looks[path]):
            assert entry["state"] == "done"
        else:
            assert entry["state"] in {"restored", "conflict"}
            assert entry["id"] in there


def check_targets(db: world.Database, run: str) -> None:
    """A task that was cancelled as an orphan has the target that was found missing, and no other."""
    for entry in db["maintenance_items"].find({"run": run, "state": "done"}):
        ended = dict(decode(entry["after"])["set"])["completed_at"]
        task = db[world.TASKS].find_one({"_id": entry["id"], "status": "CANCELLED", "completed_at": ended})
        if task is not None:
            target = f"target_model={task['target_model']}, target_app_number={task['target_app_number']}"
            assert entry["reason"].endswith(target)


def check_counts_of_copies(db: world.Database) -> None:
    """The counts of each run are those of its copies."""
    changed: Counter[tuple[str, str]] = Counter()
    for entry in db["maintenance_items"].find():
        changed[entry["run"], entry["action"]] += 1
        changed[entry["run"], "restored"] += entry["state"] == "restored"
    world.check_counts(db, {key: count for key, count in changed.items() if count})


def restore_what_came_later(db: world.Database, agent: Agent, writer: Writer) -> int:
    """Restores the records whose directory came after the last look; each is what it was."""
    restored = 0
    for entry in db["maintenance_items"].find({"collection": world.RECORDS, "state": "done"}, sort=[("_id", -1)]):
        missing = db[world.RECORDS].find_one({"_id": entry["id"]}) is None
        if missing and restored < 5:
            writer.path(entry["id"]).mkdir(parents=True, exist_ok=True)
            run = agent.runs("restore", run=entry["run"], item=entry["id"])[0]
            assert run["changed"] == {"restored": 1}
            assert world.snapshot(db)[world.RECORDS][entry["id"]] == entry["before"]
            restored += 1
    return restored
