"""Random worlds of records, directories, tasks and ages: the jobs do what a few lines of plain Python say.

``HYPOTHESIS_EXAMPLES`` says how many worlds each property is tried on.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import Database
from tests.harness import MINUTE, Bench, Db, Document, opened, server_now

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "15"))
WORLDS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HYPOTHESIS_EXAMPLES" not in os.environ,  # the same worlds every time, unless asked for more
    phases=(Phase.explicit, Phase.generate, Phase.target, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
ITEMS, FLOOR = 5, 3  # the limits of the jobs: small, so that small worlds exceed them
ACTIVE, FINISHED = ("PENDING", "RUNNING"), ("COMPLETED", "FAILED", "CANCELLED")
# Minutes: either side of every limit of the jobs, and far enough from it for a slow machine.
AGES = (-60, 0, 6, 30, 90, 3 * 1440, 29 * 1440, 31 * 1440)


@dataclass(frozen=True)
class Record:
    """A record: which directory it names, whether that is there, and its age in minutes."""

    number: int
    there: bool
    age: int | None


@dataclass(frozen=True)
class Task:
    """A task: what it targets, its status, and the ages of its dates (``None``: it has no such date)."""

    target: int | str
    status: str
    created: int | None
    started: int | None
    ended: int | None


AGE = st.sampled_from(AGES)
MAYBE = st.one_of(st.none(), AGE)
RECORDS = st.lists(
    st.builds(Record, st.integers(0, 9), st.booleans(), st.one_of(AGE, AGE, AGE, st.none())), max_size=12
)
TARGETS = st.one_of(st.integers(0, 11), st.integers(0, 11), st.integers(0, 11).map(str))
STATUSES = st.sampled_from([*ACTIVE, *ACTIVE, *FINISHED, "PAUSED"])
TASKS = st.lists(st.builds(Task, TARGETS, STATUSES, MAYBE, MAYBE, MAYBE), max_size=16)


# ---------------------------------------------------------------------------------------------------------- the model

Model = dict[str, dict[int, str]]


def too_many(found: int, population: int) -> bool:
    """Whether a job refuses to change so many."""
    return found > ITEMS or (found > FLOOR and found > population / 2)


def model(records: Sequence[Record], tasks: Sequence[Task]) -> Model:
    """What each of the four jobs changes, by the number of the document."""
    there = {record.number for record in records if record.there}
    gone = {n: "deleted" for n, r in enumerate(records) if r.number not in there and r.age is not None and r.age > 10}
    gone = {} if not there or too_many(len(gone), len(records)) else gone

    left = {record.number for n, record in enumerate(records) if n not in gone}
    active = {n: t for n, t in enumerate(tasks) if t.status in ACTIVE}
    known = left and any(isinstance(t.target, int) for t in active.values())
    lost = {n: "cancelled" for n, t in active.items()
            if known and isinstance(t.target, int) and t.target not in left and t.created is not None and t.created > 1}  # fmt: skip
    lost = {} if too_many(len(lost), len(active)) else lost

    def silent(task: Task) -> bool:
        signs = [task.started, task.created] if task.status == "RUNNING" else [task.created]
        return next((sign for sign in signs if sign is not None), 0) > 60

    still = {n: t for n, t in active.items() if n not in lost}
    stuck = {n: "failed" if t.status == "RUNNING" else "cancelled" for n, t in still.items() if silent(t)}
    stuck = {} if too_many(len(stuck), len(still)) else stuck

    old = sorted(
        (-t.ended, n)
        for n, t in enumerate(tasks)
        if t.status in FINISHED and t.ended is not None and t.ended > 30 * 1440
    )
    kept = len(old) <= FLOOR or len(old) <= len(tasks) / 2
    return {
        "apps": gone,
        "orphans": lost,
        "stuck": stuck,
        "old": {n: "deleted" for _, n in old[:ITEMS]} if kept else {},
    }


# ---------------------------------------------------------------------------------------------------------- the worlds


def at(now: dt.datetime, age: int | None) -> dt.datetime | None:
    return None if age is None else now - age * MINUTE


def arrange(db: Db, root: Path, records: Sequence[Record], tasks: Sequence[Task]) -> None:
    """Makes a world in the place of the last one."""
    now = server_now(db)
    for name in (
        "generated_applications",
        "analysis_tasks",
        *(f"maintenance_{own}" for own in ("items", "marks", "controls", "runs")),
    ):
        db[name].delete_many({})
    for entry in root.iterdir():
        shutil.rmtree(entry)
    (root / "apps").mkdir()
    for record in records:
        if record.there:
            (root / f"apps/{record.number}").mkdir(exist_ok=True)
    if records:
        db["generated_applications"].insert_many(
            [{"_id": n, "number": record.number, "created_at": at(now, record.age)} for n, record in enumerate(records)]
        )
    if tasks:
        db["analysis_tasks"].insert_many([document(n, task, now) for n, task in enumerate(tasks)])


def document(id: int, task: Task, now: dt.datetime) -> Document:
    return {
        "_id": id,
        "target": task.target,
        "status": task.status,
        "created_at": at(now, task.created),
        # Of equal age the lower number is older: the order of those that are deleted first is not a matter of luck.
        "started_at": at(now, task.started),
        "completed_at": None if task.ended is None else now - task.ended * MINUTE + id * dt.timedelta(milliseconds=1),
    }


def jobs(root: Path, quarantine: str) -> dict[str, dict[str, Any]]:
    limit = {"items": ITEMS, "floor": FLOOR, "fraction": 0.5}
    return {
        "apps": {"kind": "orphan_records", "root": str(root), "path": "apps/{number}", "quarantine": quarantine, "limit": limit},
        "orphans": {
            "kind": "orphan_tasks",
            "match": {"target": "number"},
            "quarantine": quarantine,
            "limit": limit,
        },
        "stuck": {"kind": "stuck_tasks", "limit": limit},
        "old": {"kind": "retention", "limit": limit},
    }  # fmt: skip


@pytest.fixture
async def bench(database: Database, db: Db, root: Path) -> AsyncIterator[Bench]:
    """One agent for all worlds of a test."""
    async with opened(database, db, jobs(root, "0s")) as bench:
        yield bench


@pytest.fixture
async def patient(database: Database, db: Db, root: Path) -> AsyncIterator[Bench]:
    """The same with a quarantine."""
    async with opened(database, db, jobs(root, "10m")) as bench:
        yield bench


def changes(bench: Bench, runs: Sequence[Document]) -> Model:
    """What the runs of a pass changed, as the archive tells."""
    return {run["job"]: {entry["id"]: entry["action"] for entry in bench.entries(run["_id"])} for run in runs}


def counted(runs: Sequence[Document]) -> dict[str, Counter[str]]:
    return {run["job"]: Counter(run["changed"]) for run in runs}


# ------------------------------------------------------------------------------------------------------ the properties


@WORLDS
@given(records=RECORDS, tasks=TASKS)
async def test_a_pass_changes_what_the_model_says(
    bench: Bench, db: Db, root: Path, records: list[Record], tasks: list[Task]
) -> None:
    """No document more, none less, and every count true; a second pass finds nothing to do."""
    arrange(db, root, records, tasks)
    before = {
        name: {one["_id"]: one for one in db[name].find()} for name in ("generated_applications", "analysis_tasks")
    }
    expected = model(records, tasks)
    runs = await bench.pass_()
    assert changes(bench, runs) == expected
    assert counted(runs) == {job: Counter(actions.values()) for job, actions in expected.items()}
    after = {name: {one["_id"]: one for one in db[name].find()} for name in before}
    for name, documents in before.items():
        for id, original in documents.items():
            done = {
                expected[job].get(id)
                for job in (("apps",) if name == "generated_applications" else ("orphans", "stuck", "old"))
            } - {None}
            if not done:
                assert after[name][id] == original
            elif "deleted" in done:
                assert id not in after[name]
            else:
                assert after[name][id]["status"] == done.pop().upper()  # type: ignore[union-attr]
    assert all(set(after[name]) <= set(before[name]) for name in before)


@WORLDS
@given(records=RECORDS, tasks=TASKS)
async def test_a_dry_pass_says_what_the_real_pass_then_does(
    bench: Bench, db: Db, root: Path, records: list[Record], tasks: list[Task]
) -> None:
    """Item by item, and in every figure; it changes nothing itself."""
    arrange(db, root, records, tasks)
    before = bench.picture()
    dry = await bench.pass_(dry_run=True)
    assert bench.picture() == before
    real = await bench.pass_()
    same = ("job", "population", "found", "held", "complete")
    for looked, did in zip(dry, real, strict=True):
        if looked["would_refuse"]:
            assert (did["outcome"], did["changed"]) == ("refused", {})
            assert [looked[name] for name in same[:4]] == [did[name] for name in same[:4]]
        else:
            assert looked["outcome"] == did["outcome"]
            assert [looked[name] for name in same] == [did[name] for name in same]
    plans = {
        run["job"]: {entry["id"]: entry["action"] for entry in bench.entries(run["_id"])}
        for run in dry
        if not run["would_refuse"]
    }
    assert {job: done for job, done in changes(bench, real).items() if job in plans} == plans


@WORLDS
@given(
    records=RECORDS,
    tasks=TASKS,
    held=st.sets(
        st.tuples(st.sampled_from(["generated_applications", "analysis_tasks"]), st.integers(0, 15)), max_size=5
    ),
    patience=st.sampled_from([0, 5, 11]),
    came_back=st.sets(st.integers(0, 9), max_size=2),
)
async def test_holds_and_quarantine_hold_in_dry_and_real_passes_alike(
    *,
    patient: Bench,
    db: Db,
    root: Path,
    records: list[Record],
    tasks: list[Task],
    held: set[tuple[str, int]],
    patience: int,
    came_back: set[int],
) -> None:
    """What a first pass only sighted, a second one changes when its time is over, unless it is held or came back."""
    arrange(db, root, records, tasks)
    first = await patient.pass_()
    assert {run["job"]: run["changed"] for run in first if run["job"] in {"apps", "orphans"}} == {
        "apps": {},
        "orphans": {},
    }
    patient.age_sightings(patience * MINUTE)
    for number in came_back:
        (root / f"apps/{number}").mkdir(exist_ok=True)
    for collection, id in held:
        if db[collection].count_documents({"_id": id}):
            await patient.agent.operations.hold(None, collection, str(id), requested_by="ann")
    before = patient.picture()
    dry = await patient.pass_(dry_run=True)
    assert patient.picture() == before
    real = await patient.pass_()
    for looked, did in zip(dry, real, strict=True):
        assert [looked[name] for name in ("job", "population", "found", "held")] == [
            did[name] for name in ("job", "population", "found", "held")
        ]
        plan = {entry["id"]: entry["held"] for entry in patient.entries(looked["_id"])}
        done = {entry["id"] for entry in patient.entries(did["_id"])}
        if looked["would_refuse"]:
            assert did["outcome"] == "refused"
            assert done == set()
        else:
            assert {id for id, reason in plan.items() if reason is None} == done
        assert Counter(reason for reason in plan.values() if reason) == did["held"]
        if patience < 10 and looked["job"] in {"apps", "orphans"}:
            assert done == set()

    after = patient.picture()
    for collection, id in held:
        original = [one for one in before.get(collection, []) if _id_of(one) == id]
        assert [one for one in after.get(collection, []) if _id_of(one) == id] == original


def _id_of(raw: bytes) -> int:
    """The `_id` of a raw document that begins with it, as a 32-bit integer."""
    return int.from_bytes(raw[9:13], "little")


@WORLDS
@given(records=RECORDS, tasks=TASKS)
async def test_a_plan_that_is_applied_and_restored_leaves_the_world_as_it_was(
    bench: Bench, db: Db, root: Path, records: list[Record], tasks: list[Task]
) -> None:
    """Apply equals its plan, over the cap too; restore gives back the first byte."""
    arrange(db, root, records, tasks)
    before = bench.picture()
    dry = await bench.pass_(dry_run=True)
    planned = [run for run in dry if run["outcome"] == "succeeded"]
    if not planned:
        return
    applied = await bench.apply(dry[0]["pass"])
    by_source = {run["source"]: run for run in applied}
    gone: set[tuple[str, Any]] = set()
    for run in planned:
        done = by_source[run["_id"]]
        if done["outcome"] == "refused":
            continue  # its targets went with the records before it
        plan = {entry["id"]: entry["action"] for entry in bench.entries(run["_id"]) if entry["held"] is None}
        changed = {entry["id"]: entry["action"] for entry in bench.entries(done["_id"])}
        collection = "generated_applications" if run["job"] == "apps" else "analysis_tasks"
        assert set(changed.items()) <= set(plan.items())
        assert {(collection, id) for id in set(plan) - set(changed)} <= gone | {
            (collection, id) for id in plan if run["would_refuse"] or any(one["would_refuse"] for one in dry)
        }
        gone |= {(collection, id) for id in changed}
    for run in reversed(applied):
        if run["changed"]:
            assert (await bench.restore(run["_id"]))["failed"] == 0
    assert bench.picture() == before


@pytest.mark.parametrize(
    "records, tasks, expected",
    [
        ([], [], {"apps": {}, "orphans": {}, "stuck": {}, "old": {}}),
        (
            [Record(1, True, 90), Record(2, False, 90), Record(3, False, 6)],
            [Task(2, "PENDING", 6, None, None), Task(1, "RUNNING", 90, 90, None), Task(1, "FAILED", 90, 90, 31 * 1440)],
            {"apps": {1: "deleted"}, "orphans": {0: "cancelled"}, "stuck": {1: "failed"}, "old": {2: "deleted"}},
        ),
    ],
    ids=["nothing", "one of each"],
)
def test_the_model_itself_says_what_a_person_would(records: list[Record], tasks: list[Task], expected: Model) -> None:
    """Two worlds that can be checked by hand."""
    assert model(records, tasks) == expected
