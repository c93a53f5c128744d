"""The service: the pass at its start, the clock, pauses, missed slots, reloads, gauges that follow the journal."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent import app, indexes, runner, store
from agent.app import Service
from agent.demo.mongod import Mongod, free_port
from agent.errors import ConfigurationError
from agent.job import Job
from agent.settings import Settings
from tests import servers
from tests.conftest import Database
from tests.harness import DAY, HOUR, MINUTE, Db, Document, opened, server_now, settings_of, until

Jobs = Mapping[str, Mapping[str, Any]]
JOBS: Jobs = {
    "old": {"kind": "retention", "limit": {"fraction": 1}},
    "stuck": {"kind": "stuck_tasks"},
    "manual": {"kind": "stuck_tasks", "run_on_startup": False},
    "never": {"kind": "stuck_tasks", "enabled": False},
}


class Told:
    """The configuration as a file would say it; a test changes what it says."""

    def __init__(self, database: Database, jobs: Jobs, **sections: Any) -> None:
        self.database = database
        self.jobs = jobs
        self.sections = {"http": {"host": "127.0.0.1", "port": free_port()}, **sections}
        self.problems: list[str] = []

    def load(self) -> Settings[Job]:
        """What `serve` loads, and what a reload loads again."""
        if self.problems:
            raise ConfigurationError(self.problems)
        return settings_of(self.database, self.jobs, self.sections)


@asynccontextmanager
async def made(told: Told) -> AsyncIterator[Service]:
    """A service that is not started: its parts are called one by one."""
    service = Service(told.load)
    try:
        yield service
    finally:
        await service._end_runs()
        await service._end_tasks()
        await service.agent.close()


@asynccontextmanager
async def served(told: Told) -> AsyncIterator[Service]:
    """A service that runs until the end of the block."""
    service = Service(told.load)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready=lambda _: ready.set()))
    first, _ = await asyncio.wait(
        {running, asyncio.create_task(ready.wait())}, timeout=60, return_when=asyncio.FIRST_COMPLETED
    )
    assert first
    assert not running.done() or running.result() is None
    try:
        yield service
    finally:
        service.stop()
        async with asyncio.timeout(60):
            await running


async def settled(service: Service) -> None:
    """Waits until the passes that were begun have ended."""
    while service._tasks:
        await asyncio.gather(*service._tasks)


def runs(db: Db, **filter: Any) -> list[Document]:
    return list(
        db["maintenance_runs"].find({"ended_at": {"$ne": None}, **filter}, sort=[("started_at", 1), ("_id", 1)])
    )


def sample(service: Service, name: str, **labels: str) -> float | None:
    return service.agent.metrics.registry.get_sample_value(f"maintenance_{name}", labels)


SLOT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


# --------------------------------------------------------------------------------------------------------------- start


async def test_a_collection_that_is_not_there_is_not_made_and_gets_its_indexes_once_it_is(
    database: Database, db: Db
) -> None:
    """Its name may be a mistake; and an application may start after its agent."""
    async with made(Told(database, {"old": {**JOBS["old"], "collection": "analysis_taks"}})) as service:
        await service.agent.prepare()
        await service._start_due({})
        assert "analysis_taks" not in db.list_collection_names()
        assert "maintenance_runs" in db.list_collection_names()
        db["analysis_taks"].insert_one({"_id": 1})
        await service._start_due({})
        assert await indexes.missing(service.agent.store, service.agent.wanted_indexes()) == []


async def test_a_service_prepares_the_database_and_begins_with_a_pass(database: Database, db: Db) -> None:
    """Of the jobs that are enabled and meant for it, in cascade order; then it is ready, and ends when it is told to."""
    told = Told(database, JOBS)
    db.create_collection("analysis_tasks")
    async with served(told) as service:
        await until(lambda: len(runs(db)) == 2)
        ran = runs(db)
        assert [(run["job"], run["trigger"], run["scheduled_for"]) for run in ran] == [
            ("stuck", "startup", None),
            ("old", "startup", None),
        ]
        assert len({run["pass"] for run in ran}) == 1
        assert await indexes.missing(service.agent.store, service.agent.wanted_indexes()) == []
        assert (await service.health.ask("readyz")).ok
        assert service.scheduler.running
        status = await service.agent.operations.job("old")
        assert status["next_run"] is not None
    assert not service.scheduler.running


async def test_a_start_leaves_out_what_a_replica_finished_of_late(database: Database, db: Db) -> None:
    """Only a real run that succeeded counts, within five minutes."""
    async with opened(database, db, {"old": {"kind": "retention"}}) as other:
        await other.run("old")
        await other.dry("old")
    told = Told(database, {name: JOBS[name] for name in ("old", "stuck")})
    async with made(told) as service:
        await service._start_first_pass()
        await settled(service)
        assert [run["job"] for run in runs(db, trigger="startup")] == ["stuck"]
        db["maintenance_runs"].update_many({}, {"$set": {"ended_at": server_now(db) - 6 * MINUTE}})
        await service._start_first_pass()
        await settled(service)
        assert [run["job"] for run in runs(db, trigger="startup")][1:] == ["stuck", "old"]


async def test_a_service_without_a_schedule_serves_and_starts_nothing(
    database: Database, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MAINTENANCE_ENABLED=false` stops the clock, not the agent."""
    told = Told(database, JOBS)
    load = told.load
    monkeypatch.setattr(told, "load", lambda: load().model_copy(update={"schedule_enabled": False}))
    async with served(told) as service:
        await until(lambda: not service._startup.reason)
        assert not service.scheduler.running
        assert (await service.health.ask("readyz")).ok
        active = await service.agent.operations.run_job("old", trigger="manual", requested_by="ann")
        assert await active.wait(60)
        assert [run["trigger"] for run in runs(db)] == ["manual"]
        assert sample(service, "job_enabled", job_name="old") == 0


async def test_a_service_waits_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alive and not ready; it recovers by itself and begins its pass then."""
    monkeypatch.setattr(app, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(store, "SERVER_SELECTION_SECONDS", 0.2)
    with Mongod() as server:
        database = Database(server.uri, "app", "standalone")
        server.kill()
        async with served(Told(database, {"old": JOBS["old"]})) as service:
            await asyncio.sleep(0)
            assert (await service.health.ask("livez")).ok
            assert not (await service.health.ask("readyz")).ok
            await asyncio.to_thread(server.restart)
            with servers.connect(server.uri) as client:
                await until(lambda: runs(client["app"]))
            await until(lambda: not service._startup.reason)


async def test_a_port_that_is_taken_is_said_so(database: Database) -> None:
    """And everything that was opened before is closed again."""
    told = Told(database, JOBS)
    async with served(told):
        second = Service(told.load)
        with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1"):
            await second.run()


# --------------------------------------------------------------------------------------------------------------- clock


async def test_what_is_due_runs_as_one_pass_for_its_slot(database: Database, db: Db) -> None:
    """Each run has the slot in its record; the same slot does not run again."""
    async with made(Told(database, JOBS)) as service:
        for _ in range(2):
            await service._start_due({"old": SLOT, "stuck": SLOT, "manual": SLOT + HOUR})
            await settled(service)
        ran = runs(db)
        assert [(run["job"], run["scheduled_for"]) for run in ran] == [
            ("stuck", SLOT),
            ("manual", SLOT + HOUR),
            ("old", SLOT),
        ]
        assert sample(service, "runs_total", job_name="old", outcome="skipped") == 1
        assert sample(service, "missed_runs_total", job_name="old") == 0


async def test_a_pause_stops_the_clock_of_every_replica_and_survives_restarts(database: Database, db: Db) -> None:
    """Of one job or of everything; whoever asks by hand is served all the same."""
    told = Told(database, JOBS)
    async with made(told) as service:
        said = await service.agent.operations.pause("old", requested_by="ann")
        assert said == {"job": "old", "paused": True}
    async with made(told) as replica:
        await replica._start_due({"old": SLOT, "stuck": SLOT})
        await replica._start_first_pass()
        await settled(replica)
        assert {run["job"] for run in runs(db)} == {"stuck"}
        active = await replica.agent.operations.run_job("old", trigger="manual", requested_by="ann")
        assert await active.wait(60)
        await replica._refresh()
        assert sample(replica, "job_paused", job_name="old") == 1
        assert sample(replica, "job_paused", job_name="stuck") == 0
        await replica.agent.operations.pause(None, requested_by="ann")
        status = await replica.agent.operations.status()
        assert status["paused"] is True
        before = len(runs(db))
        await replica._start_due({"stuck": SLOT + HOUR})
        await replica._start_first_pass()
        await settled(replica)
        assert len(runs(db)) == before
        await replica.agent.operations.resume(None, requested_by="ann")
        await replica.agent.operations.resume("old", requested_by="ann")
        await replica._start_due({"old": SLOT, "stuck": SLOT + HOUR})
        await settled(replica)
        assert len(runs(db)) == before + 2


async def test_slots_that_went_by_are_missed_unless_a_replica_ran_them(database: Database, db: Db) -> None:
    """After a stall of this process."""
    async with made(Told(database, JOBS)) as service:
        await service._start_due({"old": SLOT})
        await settled(service)
        await service._count_missed("old", [SLOT - HOUR, SLOT, SLOT + HOUR])
        assert sample(service, "missed_runs_total", job_name="old") == 2


async def test_what_is_due_without_a_database_fails_and_the_clock_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is counted as failed; nothing is raised."""
    monkeypatch.setattr(store, "SERVER_SELECTION_SECONDS", 0.05)
    monkeypatch.setattr(runner, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(app, "REFRESH_SECONDS", 0.2)
    nobody = Database(f"mongodb://127.0.0.1:{free_port()}", database.name, database.topology)
    async with made(Told(nobody, JOBS)) as service:
        await service._start_due({"old": SLOT, "stuck": SLOT})
        await settled(service)
        await service._count_missed("old", [SLOT])
        for job in ("old", "stuck"):
            assert sample(service, "runs_total", job_name=job, outcome="failed") == 1
            assert sample(service, "run_in_progress", job_name=job) == 0
        assert sample(service, "missed_runs_total", job_name="old") == 1


# -------------------------------------------------------------------------------------------------------------- reload


async def test_a_reload_takes_the_new_jobs_and_keeps_what_was_opened(database: Database, db: Db) -> None:
    """It says what needs a restart, and a job's next slots follow its new schedule."""
    told = Told(database, {"old": {**JOBS["old"], "every": "1h"}}, schedule={"jitter": "0s"})
    db.create_collection("analysis_tasks")
    async with served(told) as service:
        await until(lambda: len(runs(db)) == 1)
        told.jobs = {"old": {**JOBS["old"], "every": "10m", "keep": "60d"}, "new": {"kind": "stuck_tasks"}}
        told.sections = {**told.sections, "journal": {"keep": "5d"}}
        said = await service.agent.operations.reload(requested_by="ann")
        assert said["jobs"] == ["old", "new"]
        assert said["needs_restart"] == ["journal"]
        job = await service.agent.operations.job("old")
        assert (job["settings"]["keep"], job["schedule"]["every"]) == ("60d", "10m")
        next_run = service.scheduler.timetable.next_start("old")
        assert next_run is not None
        assert next_run.minute % 10 == 0
        assert sample(service, "job_enabled", job_name="new") == 1
        assert sample(service, "schedule_interval_seconds", job_name="old") == 600
        assert sample(service, "config_last_reload_successful") == 1
        active = await service.agent.operations.run_job("new", trigger="manual", requested_by="ann")
        assert await active.wait(60)
        assert await indexes.missing(service.agent.store, service.agent.wanted_indexes()) == []


async def test_a_bad_file_keeps_the_running_configuration(database: Database) -> None:
    """And says so in a metric, whoever asked."""
    told = Told(database, JOBS)
    async with made(told) as service:
        told.problems = ["jobs.old.keep: nonsense"]
        with pytest.raises(ConfigurationError):
            await service.agent.operations.reload(requested_by="ann")
        await service.reload_on_signal()
        assert sample(service, "config_last_reload_successful") == 0
        assert set(service.settings.jobs) == set(JOBS)
        told.problems = []
        await service.reload_on_signal()
        assert sample(service, "config_last_reload_successful") == 1


# -------------------------------------------------------------------------------------------------------------- gauges


async def test_every_replica_shows_what_the_journal_says(database: Database, db: Db) -> None:
    """What another process found, changed and held; a refusal by a proof shows nothing new."""
    now = server_now(db)
    db["analysis_tasks"].insert_many(
        [{"_id": n, "status": "COMPLETED", "completed_at": now - 40 * DAY} for n in range(6)]
        + [{"_id": "odd", "status": "COMPLETED"}]
    )
    async with made(Told(database, {"old": JOBS["old"]})) as watcher:
        await watcher.agent.prepare()
        await watcher._refresh()
        assert sample(watcher, "last_run_timestamp_seconds", job_name="old") == 0
        async with opened(
            database, db, {"old": {**JOBS["old"], "limit": {"items": 3, "fraction": 0.1, "floor": 0}}}
        ) as other:
            refused = await other.run("old")
            await watcher._refresh()
            assert refused["outcome"] == "refused"
            assert sample(watcher, "found", job_name="old", what="expired") == 6
            assert sample(watcher, "found", job_name="old", what="malformed") == 1
            oldest = sample(watcher, "oldest_found_age_seconds", job_name="old")
            assert oldest == pytest.approx((40 * DAY).total_seconds(), abs=120)
            assert sample(watcher, "last_success_timestamp_seconds", job_name="old") == 0
            await other.agent.operations.hold(None, "analysis_tasks", "1", requested_by="ann")
            ran = await other.run("old", accept=frozenset({"cap"}))
            await watcher._refresh()
            assert sample(watcher, "held", job_name="old", reason="hold") == 1
            success = sample(watcher, "last_success_timestamp_seconds", job_name="old")
            assert success == pytest.approx(ran["ended_at"].timestamp(), abs=0.01)
            restored = await other.restore(ran["_id"])
            await watcher._refresh()
            assert sample(watcher, "last_success_timestamp_seconds", job_name="old") == success
            last = sample(watcher, "last_run_timestamp_seconds", job_name="old")
            assert last == pytest.approx(restored["ended_at"].timestamp(), abs=0.01)
