"""The composition root: the only place that constructs. What it opens in order, it closes in reverse.

``Agent`` is everything that the operations need, for one command or for the service; ``serve`` adds what a service has
beside it: the clock, the port, the health checks, the gauges that follow the journal.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import structlog

from agent import indexes
from agent.archive import Archive, Restorer
from agent.batches import Keep
from agent.clients import Clients
from agent.controls import Controls
from agent.errors import BusyError, ConfigurationError, StoreError
from agent.health import Check, Flag, Health, watch_loop_lag
from agent.job import Job
from agent.jobs.client_eviction import strictest
from agent.journal import Journal
from agent.lease import Leases
from agent.marks import Marks
from agent.metrics import Metrics
from agent.operations import Operations
from agent.runner import Runner
from agent.scheduler import Scheduler, Timetable
from agent.settings import Settings
from agent.store import Collection, Document, Namespace, Store, time_limit
from agent.web import Context, RateLimiter, Server, TokenFile, make_app, renew, ssl_context

log = structlog.get_logger()

REFRESH_SECONDS = 5.0  # how far the gauges of the journal may lag behind what other processes did
RETRY_SECONDS = 2.0  # between two tries to reach MongoDB at start
PROBE_SECONDS = 2.0
VOLUME_THREADS = 4  # as many looks at volumes may hang at a time before further ones fail by their time-out
STARTUP_SKIPS = dt.timedelta(minutes=5)
CLOSING_SECONDS = 5.0  # of the shutdown's budget, for closing what is open after the runs have ended

Load = Callable[[], Settings[Job]]


class Agent:
    """What the operations are made of, for one configuration."""

    def __init__(self, settings: Settings[Job]) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.metrics = Metrics(agent_version(), settings.jobs)
        self.store = Store(settings.mongodb.uri.get_secret_value(), observe=self.metrics.command)
        self.indexes_wait = False
        self.threads = ThreadPoolExecutor(VOLUME_THREADS, thread_name_prefix="volume")
        archive = Archive(self._collection("items"), keep=settings.archive.keep, enabled=settings.archive.enabled)
        self.keep = Keep(
            store=self.store,
            journal=Journal(self._collection("runs"), keep=settings.journal.keep),
            controls=Controls(self._collection("controls")),
            marks=Marks(self._collection("marks")),
            archive=archive,
            restorer=Restorer(self.store, archive),
            archive_bytes=settings.archive.max_size,
            threads=self.threads,
            clients=Clients(self.metrics.cache, strictest(settings.jobs.values())),
            throttle=settings.throttle,
            throttled=self.metrics.throttled,
        )
        leases = Leases(self._collection("leases"), holder=self.name, ttl=settings.lease.ttl)
        self.runner = Runner(self.keep, leases, self.metrics, agent=self.name)
        self.operations = Operations(
            self.keep,
            self.runner,
            self.metrics,
            settings.jobs,
            database=settings.mongodb.database,
            agent=self.name,
            version=agent_version(),
        )

    def _collection(self, name: str) -> Collection:
        settings = self.settings
        return self.store.collection(Namespace(settings.mongodb.database, settings.collections.prefix + name))

    def wanted_indexes(self) -> list[indexes.Wanted]:
        """The indexes that this configuration wants."""
        settings = self.settings
        return list(indexes.wanted(settings.mongodb.database, settings.collections.prefix, settings.jobs.values()))

    async def prepare(self) -> None:
        """Creates the indexes (or reports those that are missing). Raises ``StoreError`` where MongoDB is away."""
        if self.settings.indexes == "manage":
            self.indexes_wait = bool(await indexes.manage(self.store, self.wanted_indexes()))
            return
        for want in await indexes.missing(self.store, self.wanted_indexes()):
            log.warning("index_missing", index=indexes.describe(want))

    async def close(self) -> None:
        """Closes what the agent opened."""
        await self.keep.clients.close()
        await self.store.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.metrics.close()


@asynccontextmanager
async def open_agent(settings: Settings[Job]) -> AsyncIterator[Agent]:
    """An agent for one command: connected, with its indexes, closed at the end. Raises ``StoreError``."""
    agent = Agent(settings)
    try:
        await agent.prepare()
        yield agent
    finally:
        await agent.runner.shut_down(settings.shutdown.budget.total_seconds())
        await agent.close()


class Service:
    """The agent as a service: clock, port, health, gauges."""

    def __init__(self, load: Load) -> None:
        """Loads the configuration. Raises ``ConfigurationError``."""
        self._load = load
        self.settings = load()
        self.agent = Agent(self.settings)
        self.port = 0
        self._providers: set[str] = set()
        self._tokens = TokenFile(self.settings.http.tokens_file)
        self._limiter = RateLimiter(self.settings.http.rate_limit)
        self._tls: ssl.SSLContext | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._startup = Flag("MongoDB was not reached yet")
        self._running = Flag()
        self.health = self._health()
        now = dt.datetime.now(dt.UTC)
        timetable = Timetable(self.settings.jobs, jitter=self.settings.schedule.jitter, since=now)
        self.scheduler = Scheduler(timetable, self._start_due, self._count_missed, now=lambda: dt.datetime.now(dt.UTC))
        self.agent.operations.serve(next_run=self._next_run, reload=self.reload)
        self.agent.metrics.config_reloaded(ok=True, at=now)

    def _health(self) -> Health:
        health = Health()
        health.register(Check("mongodb", self._reach))
        health.register(Check("startup", self._startup))
        health.register(Check("scheduler", self._ticks))
        health.register(Check("running", self._running))
        return health

    async def _reach(self) -> str | None:
        """Whether MongoDB answers."""
        try:
            with time_limit(PROBE_SECONDS):
                await self.agent.store.hello()
        except StoreError as error:
            self.agent.metrics.dependency("mongodb", up=False)
            return str(error)
        self.agent.metrics.dependency("mongodb", up=True)
        return None

    async def _ticks(self) -> str | None:
        if self.settings.schedule_enabled and not self.scheduler.running:
            return "the clock does not run"
        return None

    # --- life

    async def run(self, *, ready: Callable[[int], None] | None = None) -> None:
        """Serves until ``stop``; ``ready`` is told the port. Raises ``ConfigurationError`` where that cannot be had."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.agent.close)
            stack.push_async_callback(self.health.close)
            server = self._server()
            try:
                self.port = await server.start()
            except OSError as error:
                where = f"{self.settings.http.host}:{self.settings.http.port}"
                raise ConfigurationError([f"http: cannot listen on {where}: {error.strerror}"]) from error
            stack.push_async_callback(server.stop)
            stack.push_async_callback(self._end_tasks)
            stack.push_async_callback(self._end_runs)
            self._begin(watch_loop_lag(self.agent.metrics))
            self._begin(self._start_up())
            self._begin(self._refresh_for_ever())
            if self.settings.schedule_enabled:
                self.scheduler.start()
            stack.callback(self.scheduler.stop)
            log.info("serving", host=self.settings.http.host, port=self.port, agent=self.agent.name)
            if ready is not None:
                ready(self.port)
            await self._stop.wait()
            self._running.fail("the agent is shutting down")

    def stop(self) -> None:
        """Asks the service to end."""
        self._stop.set()

    def _server(self) -> Server:
        http = self.settings.http
        self._read_tokens()
        context = Context(
            operations=self.agent.operations,
            metrics=self.agent.metrics,
            health=self.health,
            tokens=self._tokens,
            version=agent_version(),
            base_path=http.base_path,
            limiter=self._limiter,
        )
        self._tls = ssl_context(http.tls_cert, http.tls_key)
        return Server(make_app(context), http.host, http.port, tls=self._tls)

    def _read_tokens(self) -> None:
        """Reads the tokens once, so that a bad file is said at start. Raises ``ConfigurationError``."""
        tokens = self._tokens.load()
        if tokens.problems:
            raise ConfigurationError([f"http.tokens_file: {problem}" for problem in tokens.problems])
        for warning in tokens.warnings:
            log.warning("tokens_file", warning=warning)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end_runs(self) -> None:
        await self.agent.runner.shut_down(self.settings.shutdown.budget.total_seconds() - CLOSING_SECONDS)

    # --- passes

    async def _start_up(self) -> None:
        """Prepares the database as soon as it can be reached, then begins the start-up pass."""
        while True:
            try:
                await self.agent.prepare()
                break
            except StoreError as error:
                log.warning("mongodb_not_reached", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
        self._startup.clear()
        await self._refresh()
        if self.settings.schedule_enabled:
            await self._start_first_pass()

    async def _start_first_pass(self) -> None:
        jobs = [name for name, job in self.settings.jobs.items() if job.enabled and job.run_on_startup]
        try:
            jobs = await self._not_paused(jobs)
            since = await self.agent.store.now() - STARTUP_SKIPS
            done = await self.agent.keep.journal.finished_since(jobs, since)
            if jobs := [name for name in jobs if name not in done]:
                await self._pass(jobs, {}, "startup")
        except StoreError as error:
            log.warning("startup_pass_not_begun", error=str(error))

    async def _start_due(self, due: Mapping[str, dt.datetime]) -> None:
        if self.agent.indexes_wait:
            await self._prepare_again()
        try:
            jobs = await self._not_paused(list(due))
        except StoreError:
            jobs = list(due)  # each run says itself that its dependency is away
        if jobs:
            await self._pass(jobs, due, "schedule")

    async def _pass(
        self, jobs: Sequence[str], slots: Mapping[str, dt.datetime], trigger: Literal["schedule", "startup"]
    ) -> None:
        try:
            begun = await self.agent.operations.run_pass(trigger=trigger, requested_by=None, names=jobs, slots=slots)
        except BusyError as error:
            log.warning("pass_not_begun", reason=str(error))
            return
        self._begin(self._refresh_after(begun.wait))

    async def _refresh_after(self, wait: Callable[[], Awaitable[bool]]) -> None:
        await wait()
        await self._refresh()

    async def _not_paused(self, jobs: Sequence[str]) -> list[str]:
        pauses = await self.agent.keep.controls.pauses()
        return [job for job in jobs if None not in pauses and job not in pauses]

    async def _count_missed(self, job: str, slots: Sequence[dt.datetime]) -> None:
        """Counts slots that went by while this process stood still, unless a replica ran them."""
        missed = 0
        for slot in slots:
            try:
                missed += not await self.agent.keep.journal.slot_exists(job, slot)
            except StoreError:
                missed += 1
        if missed:
            log.warning("slots_missed", job=job, slots=missed)
            self.agent.metrics.missed(job, missed)

    def _next_run(self, job: str) -> dt.datetime | None:
        return self.scheduler.timetable.next_start(job) if self.scheduler.running else None

    # --- gauges

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._refresh()

    async def _refresh(self) -> None:
        """Lets the gauges say what the journal and the schedule say."""
        await self._reach()
        try:
            with time_limit(REFRESH_SECONDS):
                pauses = await self.agent.keep.controls.pauses()
                now = await self.agent.store.now()
                for job in self.settings.jobs.values():
                    self._show_schedule(job, paused=None in pauses or job.name in pauses)
                    await self._show_journal(job, now)
                self._show_allocations(await self.agent.keep.controls.pictures(list(self.settings.jobs)))
                await self._show_archive()
        except StoreError as error:
            log.debug("gauges_not_refreshed", error=str(error))

    def _show_schedule(self, job: Job, *, paused: bool) -> None:
        interval = self.scheduler.timetable.interval(job.name, dt.datetime.now(dt.UTC))
        self.agent.metrics.job_state(
            job.name,
            enabled=job.enabled and self.settings.schedule_enabled,
            paused=paused,
            interval_seconds=interval.total_seconds() if interval else None,
            next_run=self._next_run(job.name),
            run_timeout_seconds=job.run_timeout.total_seconds(),
        )

    async def _show_archive(self) -> None:
        keep = self.agent.keep
        limit = keep.archive_bytes if keep.archive.enabled else 0
        self.agent.metrics.archive_state(archived=await keep.archive.size(), limit=limit)

    def _show_allocations(self, pictures: Sequence[Document]) -> None:
        """Shows the providers that the last audits saw, and forgets those that they saw no more."""
        metrics, seen = self.agent.metrics, {str(picture["provider"]) for picture in pictures}
        for gone in self._providers - seen:
            metrics.forget_provider(gone)
        self._providers = seen
        for picture in pictures:
            provider = picture["provider"]
            for view in VIEWS:
                amounts = picture[view]
                metrics.allocation(provider, "cpu", view, amounts["cpu"] / 1000 if amounts else None)
                metrics.allocation(provider, "memory", view, amounts["memory"] if amounts else None)
                metrics.allocation(provider, "storage", view, amounts["storage"] if amounts else None)
            if picture["up"] is not None:
                metrics.audit_up(provider, up=picture["up"])

    async def _show_journal(self, job: Job, now: dt.datetime) -> None:
        journal = self.agent.keep.journal
        looked = await journal.last(job.name, LOOKED)
        last = await journal.last(job.name, {})
        real = {} if job.dry_run else {"dry_run": False}
        success = await journal.last(job.name, {"outcome": "succeeded", "trigger": {"$ne": "restore"}, **real})
        self.agent.metrics.journal_state(
            job.name,
            found=looked["found"] if looked else {},
            held=looked["held"] if looked else {},
            last_run=last["ended_at"] if last else None,
            last_success=success["ended_at"] if success else None,
            oldest_found_age=_oldest_age(looked, now),
        )

    # --- reload

    async def reload(self) -> Document:
        """Loads configuration and certificate again. Raises ``ConfigurationError``; then those in use stay."""
        now = dt.datetime.now(dt.UTC)
        http = self.settings.http
        try:
            settings = await asyncio.to_thread(self._load)
            renew(self._tls, http.tls_cert, http.tls_key)
        except ConfigurationError:
            self.agent.metrics.config_reloaded(ok=False, at=now)
            raise
        fixed = [name for name in FIXED if getattr(settings, name) != getattr(self.settings, name)]
        self.settings = settings.model_copy(update={name: getattr(self.settings, name) for name in FIXED})
        self.agent.settings = self.settings
        self.agent.metrics.set_jobs(settings.jobs)
        self.agent.operations.use(settings.jobs)
        self.agent.keep.clients.use(strictest(settings.jobs.values()))
        self.scheduler.use(settings.jobs, jitter=settings.schedule.jitter)
        self._begin(self._prepare_again())
        self.agent.metrics.config_reloaded(ok=True, at=now)
        await self._refresh()
        log.info("configuration_reloaded", jobs=list(settings.jobs), needs_restart=fixed)
        return {"reloaded": True, "jobs": list(settings.jobs), "needs_restart": fixed, "warnings": settings.warnings}

    async def _prepare_again(self) -> None:
        """The indexes that new jobs or new collections want; a slow run is better than none."""
        try:
            await self.agent.prepare()
        except StoreError as error:
            log.warning("indexes_not_prepared", error=str(error))

    async def reload_on_signal(self) -> None:
        """What SIGHUP asks for: a bad file is only a line in the log and a metric."""
        try:
            await self.reload()
        except ConfigurationError as error:
            log.error("configuration_not_reloaded", problems=error.problems)  # noqa: TRY400 - a person's mistake

    def handle_signals(self, on_second: Callable[[], None]) -> None:
        """SIGTERM and SIGINT end the service, the second one at once; SIGHUP loads the configuration again."""
        loop = asyncio.get_running_loop()

        def end() -> None:
            if self._stop.is_set():
                on_second()
            self.stop()

        loop.add_signal_handler(signal.SIGTERM, end)
        loop.add_signal_handler(signal.SIGINT, end)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self.reload_on_signal()))


VIEWS: tuple[Literal["capacity", "booked", "owed", "used"], ...] = ("capacity", "booked", "owed", "used")
# What is opened once; the other sections are looked up when they are needed.
FIXED = ("mongodb", "http", "journal", "archive", "lease", "collections", "throttle", "log", "shutdown")
# The runs whose findings stand: what a refused proof kept from counting is no finding.
LOOKED: Document = {
    "trigger": {"$nin": ["restore", "plan"]},
    "$or": [{"outcome": "succeeded"}, {"outcome": "refused", "found": {"$ne": {}}}],
}


def agent_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("maintenance-agent")
    except PackageNotFoundError:
        return "unknown"


def _oldest_age(record: Document | None, now: dt.datetime) -> float | None:
    """The age of the oldest item that the last look left as it was."""
    if record is None or record.get("oldest_found_at") is None:
        return None
    changed = sum(count for action, count in record["changed"].items() if action != "restored")
    reported = sum(record["found"].get(what, 0) for what in ("malformed", "unreadable", "outside"))
    if changed >= sum(record["found"].values()) - reported:
        return None
    return float((now - record["oldest_found_at"]).total_seconds())
