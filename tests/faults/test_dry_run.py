"""On random worlds: a dry pass finds and plans what a real pass then does, item by item, and a plan is applied as it is."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Agent, Line, Nursery
from tests.faults.conftest import DEFAULT_SCALE
from tests.faults.world import Document

SCALE = float(os.environ.get("FAULTS_SCALE", DEFAULT_SCALE))
EXAMPLES = max(12, round(400 * SCALE))
# To make a failing world small takes minutes.
PHASES = [phase for phase in Phase if phase not in {Phase.shrink, Phase.explain} or SCALE >= 1]
JOBS = ("records", "orphans", "stuck", "old")
AGES = {"old": dt.timedelta(days=1), "young": dt.timedelta(hours=-12), "very old": dt.timedelta(days=50)}

slugs = st.sampled_from(["a", "a", "a", "b"])
held = st.sampled_from([False] * 5 + [True])
sighted = st.sampled_from([None, "long ago", "just now"])


@dataclass(frozen=True)
class Record:
    """A record as it is drawn."""

    slug: str
    number: Any
    place: str
    made: str | None
    held: bool
    sighted: str | None


@dataclass(frozen=True)
class Task:
    """A task as it is drawn."""

    status: str
    slug: str
    number: Any
    made: str | None
    started: str | None
    beat: str | None
    ended: str | None
    held: bool
    sighted: str | None


ages = st.sampled_from(["old"] * 5 + ["young", "very old", "very old", None, "not a date"])
records = st.builds(
    Record,
    slug=slugs,
    number=st.sampled_from([1, 2, 3, 4] * 3 + [1.0, "2", "..", None, 1.5]),
    place=st.sampled_from(["directory"] * 3 + ["nothing"] * 4 + ["file", "link"]),
    made=ages,
    held=held,
    sighted=sighted,
)
tasks = st.builds(
    Task,
    status=st.sampled_from(["PENDING", "RUNNING"] * 3 + ["COMPLETED", "FAILED", "CANCELLED", "ODD"]),
    slug=slugs,
    number=st.sampled_from([1, 2, 3, 4] * 3 + [1.0, "2", None]),
    made=ages,
    started=ages,
    beat=ages,
    ended=ages,
    held=held,
    sighted=sighted,
)
limits = st.sampled_from([{}] * 3 + [{"items": 2}, {"fraction": 0.3, "floor": 1}])
quarantines = st.sampled_from(["0s", "0s", "10m"])
jobs = st.fixed_dictionaries(
    {
        "records": st.fixed_dictionaries({"limit": limits, "quarantine": quarantines}),
        "orphans": st.fixed_dictionaries({"limit": limits, "quarantine": quarantines}),
        "stuck": st.fixed_dictionaries({"limit": limits}),
        "old": st.fixed_dictionaries(
            {"limit": limits, "keep": st.sampled_from(["30d", {"completed": "30d", "failed": "40d"}])},
            optional={"where": st.sampled_from([{"target_model": "a"}])},
        ),
    }
)
baselines = st.fixed_dictionaries(
    {}, optional={"records/root": st.integers(1, 8), "orphans/targets": st.integers(1, 16)}
)
worlds = st.tuples(
    st.lists(records, min_size=2, max_size=10, unique_by=lambda record: (record.slug, str(record.number))),
    st.lists(tasks, min_size=2, max_size=16),
    jobs,
    baselines,
)
Drawn = tuple[list[Record], list[Task], Document, dict[str, int]]


class Stage:
    """Where drawn worlds are put up: a database, a root, and agents."""

    def __init__(self, database: Database, db: world.Database, root: Path, nursery: Nursery) -> None:
        self._database = database
        self._db = db
        self._root = root
        self._nursery = nursery
        self._now = world.server_now(db)

    @contextlib.contextmanager
    def put_up(self, drawn: Drawn) -> Iterator[Agent]:
        """The world, and an agent that has not looked at it yet."""
        some_records, some_tasks, some_jobs, some_baselines = drawn
        settings = world.settings(
            self._database.uri, self._database.name, self._root, jobs=some_jobs, defaults={"batch": 3}
        )
        for name in self._db.list_collection_names():
            self._db[name].delete_many({})
        shutil.rmtree(self._root / "generated", ignore_errors=True)
        self._insert(world.RECORDS, "records", [(self._record(one), one) for one in some_records])
        self._insert(world.TASKS, "orphans", [(self._task(one), one) for one in some_tasks])
        for name, measure in some_baselines.items():
            self._db["maintenance_controls"].insert_one(
                {"_id": f"baseline/{name}", "measure": measure, "identity": None}
            )
        with self._nursery.agent(settings).open() as agent:
            yield agent

    def _insert(self, name: str, job: str, documents: list[tuple[Document, Record | Task]]) -> None:
        for number, (document, one) in enumerate(documents):
            id = f"{name}-{number}"
            self._db[name].insert_one({"_id": id, **document})
            place = {"database": self._database.name, "collection": name, "id": id}
            if one.held:
                self._db["maintenance_marks"].insert_one({"_id": {"type": "hold", **place}, "reason": "a test"})
            if one.sighted:
                first = self._now - (AGES["old"] if one.sighted == "long ago" else dt.timedelta())
                mark = {"first_seen": first, "volume": None, "run": "earlier"}
                self._db["maintenance_marks"].insert_one({"_id": {"type": "sighting", "job": job, **place}, **mark})

    def _record(self, one: Record) -> Document:
        path = self._root / "generated" / "apps" / one.slug / f"app{one.number}"
        if isinstance(one.number, int):
            path.parent.mkdir(parents=True, exist_ok=True)
            match one.place:
                case "directory":
                    path.mkdir()
                case "file":
                    path.touch()
                case "link":
                    path.symlink_to("/")
                case _:
                    pass
        return {"model_slug": one.slug, "app_number": one.number, **self._times(created_at=one.made)}

    def _task(self, one: Task) -> Document:
        times = self._times(created_at=one.made, started_at=one.started, heartbeat_at=one.beat, completed_at=one.ended)
        return {"status": one.status, "target_model": one.slug, "target_app_number": one.number, **times}

    def _times(self, **ages_of: str | None) -> Document:
        """Fields with times of some age; ``None``: no such field."""
        return {name: self._now - AGES[age] if age in AGES else age for name, age in ages_of.items() if age is not None}

    def items(self, run: Line) -> dict[str, tuple[str, str, str]]:
        """What a run planned or changed, but for what is held."""
        entries = self._db["maintenance_items"].find({"run": run["_id"]})
        return {
            entry["id"]: (entry["action"], entry["what"], entry["reason"]) for entry in entries if not entry.get("held")
        }

    def planned(self, run: Line) -> set[str]:
        """What applying a plan has to change: all that is not on hold."""
        entries = self._db["maintenance_items"].find({"run": run["_id"], "held": {"$ne": "hold"}})
        return {entry["id"] for entry in entries}

    def has_holds(self, plan: str) -> bool:
        """Whether a plan lists something that is on hold, which apply leaves alone and says so."""
        return self._db["maintenance_items"].find_one({"run": plan, "held": "hold"}) is not None

    def documents(self) -> dict[str, dict[Any, bytes]]:
        """The application's documents."""
        return world.snapshot(self._db)


@settings(max_examples=EXAMPLES, deadline=None, database=None, phases=PHASES, suppress_health_check=list(HealthCheck))
@given(drawn=worlds)
def test_a_dry_pass_is_the_real_pass_and_a_plan_is_applied_as_it_is(
    database: Database, db: world.Database, root: Path, nursery: Nursery, drawn: Drawn
) -> None:
    """Outcome, findings, holds and items of each job are the same; apply changes what its plan lists, holds aside."""
    stage = Stage(database, db, root, nursery)
    with stage.put_up(drawn) as agent:
        before = stage.documents()
        dry = agent.runs(dry_run=True)
        assert not world.difference(before, stage.documents()), "a dry run changed something"
        real = agent.runs()
        for planned, done in zip(dry, real, strict=True):
            assert alike(planned) == alike(done)
            if done["outcome"] == "succeeded":
                assert stage.items(planned) == stage.items(done)
            else:
                assert not stage.items(done)
    with stage.put_up(drawn) as agent:
        dry = agent.runs(dry_run=True)
        plans = {run["_id"]: stage.planned(run) for run in dry if run["outcome"] == "succeeded"}
        # What a quarantine or the cap would keep an earlier job from is planned by a later one as well; whose plan is
        # applied first takes it, since apply overrides both.
        taken: set[str] = set()
        for applied in agent.runs("apply", plan=dry[0]["pass"]) if plans else []:
            plan = plans[applied["source"]]
            assert applied["outcome"] == "succeeded", applied["reason"]
            assert set(stage.items(applied)) == plan - taken
            assert bool(applied["reason"]) == (stage.has_holds(applied["source"]) or bool(plan & taken))
            taken |= plan


def alike(run: Line) -> Document:
    """What a dry run and a real one have in common; what would be refused is refused."""
    compared = {name: run[name] for name in ("job", "population", "found", "held", "oldest_found_at", "complete")}
    if run["would_refuse"] is not None:
        return {**compared, "complete": False, "outcome": "refused", "reason": run["reason"].removeprefix("cap: ")}
    reason = run["reason"] and run["reason"].removeprefix("cap: ")
    return {**compared, "outcome": run["outcome"], "reason": reason}
