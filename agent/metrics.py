"""Metrics: what the agent tells Prometheus. The only importer of prometheus_client.

Names, labels and their closed sets are a contract (docs/metrics.md is generated from here). Every series of a
configured job exists from the start, so that a rate or an absence can be told from a series that is not there yet.
Counters belong to the process: sum them over replicas. State that comes from the journal is the same on every replica:
take the maximum. A method that is told of a job that is not configured (any more) does nothing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import itertools
import sys
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from agent.job import Action, Guard, Hold, Outcome, What

if TYPE_CHECKING:
    from agent.cluster import Observer as ClientCacheObserver
else:
    ClientCacheObserver = object

Skipped = Literal["skipped"]
Throttle = Literal["lag", "pace"]
Dependency = Literal["mongodb", "volume", "kubernetes"]
Resource = Literal["cpu", "memory", "storage"]
View = Literal["capacity", "booked", "owed", "used"]
CacheResult = Literal["hit", "miss", "error"]
# As agent.cluster has them, which is imported only where clusters are read: it takes memory.
Eviction = Literal["idle", "max_age", "deleted", "credentials", "refused", "full", "invalidated", "shutdown"]

NAMESPACE: Final = "maintenance"
OTHER: Final = "other"
METHODS: Final = ("GET", "HEAD", "POST", "OPTIONS", OTHER)
# The commands that the agent sends; those of the driver's housekeeping and of `check` count as `other`.
COMMANDS: Final = (
    "find",
    "getMore",
    "aggregate",
    "insert",
    "update",
    "delete",
    "findAndModify",
    "commitTransaction",
    "abortTransaction",
    "hello",
    "ping",
    "listIndexes",
    "createIndexes",
    OTHER,
)
RUN_SECONDS: Final = (0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)  # the default run_timeout is 600
COMMAND_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10)  # a batch write times out after 10
REQUEST_SECONDS: Final = (0.005, 0.025, 0.1, 0.5, 2.5, 10, 60)  # the longest `wait` is 60
CONNECT_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

LAG_WINDOW_SECONDS: Final = 60.0  # no shorter than a usual scrape interval, so that no scraper misses the worst
RENDER_KEPT_SECONDS: Final = 1.0  # scrapes closer together than this get the same text
GZIP_LEVEL: Final = 5

Family = Counter | Gauge | Histogram
FamilyType = TypeVar("FamilyType", Counter, Gauge, Histogram)
Values = tuple[str, ...] | str
"""The closed set of a label's values, or for a set that the installation decides, the words that describe it."""

JOBS: Final = "the configured jobs"
PROVIDERS: Final = "the providers that the audit reads"
ROUTES: Final = "the route templates of the HTTP interface, or `other`"
CODES: Final = "the HTTP status"


@dataclass(frozen=True, slots=True)
class Spec:
    """What the reference says of a metric family."""

    section: str
    name: str
    type: str
    help: str
    labels: Mapping[str, Values]


@dataclass(slots=True)
class _Render:
    """A rendered text, or one being rendered, and when it was asked for."""

    asked_at: float
    body: asyncio.Future[bytes]


@dataclass(slots=True)
class _Lag:
    """The worst lag of the event loop within the window: written by the loop, read by a scrape's thread."""

    measured: deque[tuple[float, float]] = field(default_factory=deque)
    lock: Lock = field(default_factory=Lock)

    def add(self, seconds: float, at: float) -> None:
        """Notes a lag; those before it that were smaller can never be the worst again."""
        with self.lock:
            while self.measured and self.measured[-1][1] <= seconds:
                self.measured.pop()
            self.measured.append((at, seconds))

    def worst(self, now: float) -> float:
        """The worst lag that is not older than the window."""
        with self.lock:
            while self.measured and self.measured[0][0] < now - LAG_WINDOW_SECONDS:
                self.measured.popleft()
            return self.measured[0][1] if self.measured else 0.0


class ClientCacheMetrics(ClientCacheObserver):
    """What the provider client cache tells: the observer that ``agent.cluster`` asks for."""

    def __init__(self, metrics: Metrics) -> None:
        section = "Provider clients"
        self._entries = metrics.gauge(section, "client_cache_entries", "Provider clients in the cache.", {})
        self._requests = metrics.counter(
            section,
            "client_cache_requests_total",
            "Look-ups in the client cache, by what came of them.",
            {"result": get_args(CacheResult)},
        )
        self._evictions = metrics.counter(
            section,
            "client_cache_evictions_total",
            "Clients taken out of the cache, by reason.",
            {"reason": get_args(Eviction)},
        )
        self._close_failures = metrics.counter(
            section, "client_cache_close_failures_total", "Evicted clients whose closing failed.", {}
        )
        self._connect = metrics.histogram(
            section,
            "client_cache_connect_seconds",
            "Time to make a provider client and reach its cluster.",
            {},
            CONNECT_SECONDS,
        )

    def entries(self, count: int) -> None:
        """So many clients are in the cache now."""
        self._entries.set(count)

    def requested(self, result: CacheResult) -> None:
        """A client was asked for."""
        self._requests.labels(result).inc()

    def evicted(self, reason: str) -> None:
        """A client was taken out, for one of the reasons of ``Eviction``."""
        self._evictions.labels(str(reason)).inc()

    def close_failed(self) -> None:
        """Closing an evicted client failed."""
        self._close_failures.inc()

    def connected(self, seconds: float) -> None:
        """A client was made and reached its cluster."""
        self._connect.observe(seconds)


class Metrics:
    """All metrics of one agent, in a registry of their own. Methods may be called from any thread."""

    def __init__(self, version: str, jobs: Iterable[str], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Makes every family and the series of ``jobs``."""
        disable_created_metrics()  # type: ignore[no-untyped-call] # nobody asks for them, and they double the counters
        self.registry = CollectorRegistry(auto_describe=True)
        self.specs: list[Spec] = []
        self._per_job: list[tuple[Family, list[tuple[str, ...]]]] = []
        self._jobs: set[str] = set()
        self._in_progress: Counts[str] = Counts()  # of vanished jobs too: a reload may bring them back
        self._routes: set[str] = set()
        self._monotonic = monotonic
        self._lag = _Lag()
        self._renders: dict[tuple[str, bool], _Render] = {}
        self._executor = ThreadPoolExecutor(1, "metrics")  # its own: a hanging volume may fill the default one
        self._make_service(version)
        self._make_runs()
        self._make_schedule()
        self._make_backlog()
        self._make_archive()
        self._make_allocations()
        self.cache = ClientCacheMetrics(self)
        self._make_dependencies()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.set_jobs(jobs)

    # ------------------------------------------------------------------------------------------------- the families

    def counter(self, section: str, name: str, text: str, labels: Mapping[str, Values]) -> Counter:
        """Makes a counter family."""
        made = Counter(name, text, list(labels), namespace=NAMESPACE, registry=self.registry)
        return self._made(made, Spec(section, name, "counter", text, labels))

    def gauge(self, section: str, name: str, text: str, labels: Mapping[str, Values]) -> Gauge:
        """Makes a gauge family."""
        made = Gauge(name, text, list(labels), namespace=NAMESPACE, registry=self.registry)
        return self._made(made, Spec(section, name, "gauge", text, labels))

    def histogram(
        self, section: str, name: str, text: str, labels: Mapping[str, Values], buckets: tuple[float, ...]
    ) -> Histogram:
        """Makes a histogram family."""
        made = Histogram(name, text, list(labels), namespace=NAMESPACE, registry=self.registry, buckets=buckets)
        return self._made(made, Spec(section, name, "histogram", text, labels))

    def _made(self, family: FamilyType, spec: Spec) -> FamilyType:
        """Notes a family, and makes its series where all of its labels are closed."""
        self.specs.append(spec)
        closed = [values for values in spec.labels.values() if isinstance(values, tuple)]
        if spec.labels.get("job_name") == JOBS:
            self._per_job.append((family, list(itertools.product(*closed))))
        elif spec.labels and len(closed) == len(spec.labels):
            for values in itertools.product(*closed):
                family.labels(*values)
        return family

    def _make_service(self, version: str) -> None:
        section = "The agent"
        build = self.gauge(section, "build_info", "Always 1; the label tells the version.", {"version": "the version"})
        build.labels(version).set(1)
        lag = self.gauge(
            section,
            "event_loop_lag_seconds",
            f"Longest time within the last {LAG_WINDOW_SECONDS:.0f} s by which a timer of the event loop was late.",
            {},
        )
        lag.set_function(lambda: self._lag.worst(self._monotonic()))
        self._reload = self.gauge(
            section, "config_last_reload_successful", "Whether the configuration was good when it was last loaded.", {}
        )
        self._reloaded_at = self.gauge(
            section,
            "config_last_reload_success_timestamp_seconds",
            "When a good configuration was last loaded.",
            {},
        )
        self._requests = self.counter(
            section,
            "http_requests_total",
            "HTTP requests that were answered.",
            {"method": METHODS, "route": ROUTES, "code": CODES},
        )
        self._request_seconds = self.histogram(
            section,
            "http_request_duration_seconds",
            "Time to answer an HTTP request; a request that waits for a run takes as long as it waits.",
            {"route": ROUTES},
            REQUEST_SECONDS,
        )

    def _make_runs(self) -> None:
        section, job = "Runs", {"job_name": JOBS}
        outcomes = (*get_args(Outcome), *get_args(Skipped))
        self._runs = self.counter(
            section,
            "runs_total",
            "Runs that ended, by outcome; skipped: it was running already, or a replica had done it.",
            {**job, "outcome": outcomes},
        )
        self._seconds = self.histogram(section, "run_duration_seconds", "Time that a run took.", job, RUN_SECONDS)
        self._running = self.gauge(section, "run_in_progress", "Runs of the job in progress in this process.", job)
        self._started = self.gauge(
            section,
            "run_started_timestamp_seconds",
            "When the run in progress in this process began (0: there is none).",
            job,
        )
        self._changed = self.counter(
            section, "changed_total", "Items that were changed, by action.", {**job, "action": get_args(Action)}
        )
        self._item_failures = self.counter(
            section, "item_failures_total", "Items that could not be changed although the run went on.", job
        )
        self._refusals = self.counter(
            section, "refusals_total", "Runs that a guard refused, by guard.", {**job, "guard": get_args(Guard)}
        )
        self._lease = self.gauge(section, "lease_held", "Whether this process holds the job's lease.", job)
        self._throttled = self.counter(
            section,
            "throttled_seconds_total",
            "Time that runs paused to spare the database: lag, its replicas are behind; pace, after a read or a batch.",
            {**job, "reason": get_args(Throttle)},
        )

    def _make_schedule(self) -> None:
        section, job = "Schedule", {"job_name": JOBS}
        self._enabled = self.gauge(section, "job_enabled", "Whether the schedule includes the job.", job)
        self._paused = self.gauge(section, "job_paused", "Whether the job, or everything, is paused.", job)
        self._interval = self.gauge(
            section, "schedule_interval_seconds", "Time between two scheduled runs (0: no schedule).", job
        )
        self._timeout = self.gauge(
            section, "run_timeout_seconds", "Time after which a run of the job is ended; a restore has its own.", job
        )
        self._next = self.gauge(
            section, "next_run_timestamp_seconds", "When the job is due next (0: not scheduled).", job
        )
        self._missed = self.counter(section, "missed_runs_total", "Scheduled runs that did not take place.", job)
        self._last_run = self.gauge(
            section, "last_run_timestamp_seconds", "When a run of the job last ended, on any replica (0: never).", job
        )
        self._last_success = self.gauge(
            section,
            "last_success_timestamp_seconds",
            "When a run of the job last succeeded, on any replica (0: never).",
            job,
        )

    def _make_backlog(self) -> None:
        section, job = "Backlog", {"job_name": JOBS}
        self._found = self.gauge(
            section,
            "found",
            "Items that the last run found, by what they are; those that are held included.",
            {**job, "what": get_args(What)},
        )
        self._held = self.gauge(
            section,
            "held",
            "Items that the last run found and left alone, by reason.",
            {**job, "reason": get_args(Hold)},
        )
        self._oldest = self.gauge(
            section, "oldest_found_age_seconds", "Age of the oldest item that the last run found (0: none).", job
        )

    def _make_allocations(self) -> None:
        section = "Allocations"
        labels: dict[str, Values] = {"provider": PROVIDERS, "view": get_args(View)}
        told = "of a provider: what it has, what its ledger says, what its databases add up to, what is requested."
        self._allocations: dict[Resource, Gauge] = {
            "cpu": self.gauge(section, "allocation_cpu_cores", f"CPU {told}", labels),
            "memory": self.gauge(section, "allocation_memory_bytes", f"Memory {told}", labels),
            "storage": self.gauge(section, "allocation_storage_bytes", f"Storage {told}", labels),
        }
        self._audit_up = self.gauge(
            section, "audit_up", "Whether the audit could read the provider.", {"provider": PROVIDERS}
        )

    def _make_archive(self) -> None:
        section = "Archive"
        self._archived = self.gauge(
            section, "archive_bytes", "Size of the copies that make changes undoable, and of the plans.", {}
        )
        self._archive_limit = self.gauge(
            section,
            "archive_limit_bytes",
            "Size at which runs are refused (archive.max_size; 0: no copies are kept).",
            {},
        )

    def _make_dependencies(self) -> None:
        section, commands = "Dependencies", {"command": COMMANDS}
        self._dependency_up = self.gauge(
            section,
            "dependency_up",
            "Whether a dependency could be used when it was last tried; one that is not used has no series.",
            {"dependency": "`mongodb`, `volume`, `kubernetes`"},
        )
        self._dependency_up.labels("mongodb")  # every agent uses it; 0 until it was reached
        self._command_seconds = self.histogram(
            section, "mongodb_command_duration_seconds", "Time that MongoDB commands took.", commands, COMMAND_SECONDS
        )
        self._command_failures = self.counter(
            section, "mongodb_command_failures_total", "MongoDB commands that failed.", commands
        )

    # ----------------------------------------------------------------------------------------------------- the jobs

    def set_jobs(self, names: Iterable[str]) -> None:
        """Makes the series of new jobs and removes those of jobs that are not configured any more."""
        wanted = set(names)
        for job in sorted(self._jobs - wanted):
            for family, closed in self._per_job:
                for values in closed:
                    with suppress(KeyError):
                        family.remove(job, *values)
        for job in sorted(wanted - self._jobs):
            for family, closed in self._per_job:
                for values in closed:
                    family.labels(job, *values)
            self._running.labels(job).set(self._in_progress[job])
        self._jobs = wanted

    def run_started(self, job: str) -> None:
        """A run began."""
        self._in_progress[job] += 1
        if job not in self._jobs:
            return
        self._running.labels(job).set(self._in_progress[job])
        if self._in_progress[job] == 1:  # of several, as a dry run beside a real one, the first counts
            self._started.labels(job).set(time.time())

    def run_ended(
        self, job: str, outcome: Outcome, seconds: float, changed: Mapping[str, int], failed: int, guard: Guard | None
    ) -> None:
        """A run ended; ``guard`` is the one that refused it."""
        self._in_progress[job] -= 1
        if job not in self._jobs:
            return
        self._running.labels(job).set(self._in_progress[job])
        if not self._in_progress[job]:
            self._started.labels(job).set(0)
        self._runs.labels(job, outcome).inc()
        self._seconds.labels(job).observe(seconds)
        self._item_failures.labels(job).inc(failed)
        for action in get_args(Action):
            self._changed.labels(job, action).inc(changed.get(action, 0))
        if guard is not None:
            self._refusals.labels(job, guard).inc()

    def skipped(self, job: str) -> None:
        """A run did not take place: it was running already, or a replica had done this slot."""
        if job in self._jobs:
            self._runs.labels(job, "skipped").inc()

    def missed(self, job: str, count: int = 1) -> None:
        """Scheduled runs did not take place and will not be caught up."""
        if job in self._jobs:
            self._missed.labels(job).inc(count)

    def throttled(self, job: str, reason: Throttle, seconds: float) -> None:
        """A run paused to spare the database."""
        if job in self._jobs:
            self._throttled.labels(job, reason).inc(seconds)

    def lease(self, job: str, held: bool) -> None:  # noqa: FBT001 - the one thing that it says
        """This process took or gave up the job's lease."""
        if job in self._jobs:
            self._lease.labels(job).set(held)

    def job_state(
        self,
        job: str,
        *,
        enabled: bool,
        paused: bool,
        interval_seconds: float | None,
        next_run: dt.datetime | None,
        run_timeout_seconds: float = 0,
    ) -> None:
        """What the schedule says of a job now."""
        if job not in self._jobs:
            return
        self._enabled.labels(job).set(enabled)
        self._paused.labels(job).set(paused)
        self._interval.labels(job).set(interval_seconds or 0)
        self._next.labels(job).set(_timestamp(next_run))
        self._timeout.labels(job).set(run_timeout_seconds)

    def journal_state(
        self,
        job: str,
        *,
        found: Mapping[str, int],
        held: Mapping[str, int],
        last_run: dt.datetime | None,
        last_success: dt.datetime | None,
        oldest_found_age: float | None,
    ) -> None:
        """What the journal says of a job's last run on any replica; what a mapping leaves out is zero."""
        if job not in self._jobs:
            return
        for what in get_args(What):
            self._found.labels(job, what).set(found.get(what, 0))
        for reason in get_args(Hold):
            self._held.labels(job, reason).set(held.get(reason, 0))
        self._oldest.labels(job).set(oldest_found_age or 0)
        self._last_run.labels(job).set(_timestamp(last_run))
        self._last_success.labels(job).set(_timestamp(last_success))

    def archive_state(self, *, archived: int, limit: int) -> None:
        """Bytes that the archive takes, and at which runs are refused."""
        self._archived.set(archived)
        self._archive_limit.set(limit)

    # ----------------------------------------------------------------------------------------------- the allocations

    def allocation(self, provider: str, resource: Resource, view: View, value: float | None) -> None:
        """A provider's amount in cores or bytes; ``None``: it could not be told, and its series goes."""
        gauge = self._allocations[resource]
        if value is not None:
            gauge.labels(provider, view).set(value)
            return
        with suppress(KeyError):
            gauge.remove(provider, view)

    def audit_up(self, provider: str, up: bool) -> None:  # noqa: FBT001 - the one thing that it says
        """Whether the audit could read the provider."""
        self._audit_up.labels(provider).set(up)

    def forget_provider(self, provider: str) -> None:
        """Removes the series of a provider that does not exist any more."""
        for resource, view in itertools.product(self._allocations, get_args(View)):
            self.allocation(provider, resource, view, None)
        with suppress(KeyError):
            self._audit_up.remove(provider)

    # --------------------------------------------------------------------------------------- the agent and its needs

    def dependency(self, name: Dependency, up: bool) -> None:  # noqa: FBT001 - the one thing that it says
        """Whether a dependency could be used just now."""
        self._dependency_up.labels(name).set(up)

    def command(self, name: str, seconds: float, ok: bool) -> None:  # noqa: FBT001 - the store's observer
        """A MongoDB command was answered."""
        known = name if name in COMMANDS else OTHER
        self._command_seconds.labels(known).observe(seconds)
        if not ok:
            self._command_failures.labels(known).inc()

    def set_routes(self, routes: Iterable[tuple[str, str, Iterable[int]]]) -> None:
        """Makes the series of the HTTP interface: method, route template, and the statuses that it answers."""
        for method, route, codes in routes:
            self._routes.add(route)
            self._request_seconds.labels(route)
            for code in codes:
                self._requests.labels(method, route, str(code))

    def http(self, method: str, route: str | None, code: int, seconds: float) -> None:
        """An HTTP request was answered; ``route`` is its template, ``None`` where no route took it."""
        known = route if route in self._routes else OTHER
        self._requests.labels(method if method in METHODS else OTHER, known, str(code)).inc()
        self._request_seconds.labels(known).observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        """A timer of the event loop was late by so much."""
        self._lag.add(max(seconds, 0.0), self._monotonic())

    def config_reloaded(self, ok: bool, at: dt.datetime) -> None:  # noqa: FBT001 - the one thing that it says
        """The configuration was loaded at start or again; a bad one leaves the running one in place."""
        self._reload.set(ok)
        if ok:
            self._reloaded_at.set(_timestamp(at))

    # --------------------------------------------------------------------------------------------------- the scrapes

    async def render(self, accept: str, accept_encoding: str) -> tuple[bytes, dict[str, str]]:
        """The exposition in the form that a scrape accepts, with its headers.

        Rendered in a thread, once for all scrapes that come at the same time or within a second.
        """
        openmetrics = "application/openmetrics-text" in accept.lower()
        zipped = _accepts_gzip(accept_encoding)
        encode, content_type = choose_encoder("application/openmetrics-text; version=1.0.0" if openmetrics else "")
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if zipped:
            headers["Content-Encoding"] = "gzip"
        key, now = (content_type, zipped), self._monotonic()
        render = self._renders.get(key)
        if render is None or (render.body.done() and now - render.asked_at > RENDER_KEPT_SECONDS):
            loop = asyncio.get_running_loop()
            render = _Render(now, loop.run_in_executor(self._executor, self._encode, encode, zipped))
            self._renders[key] = render
        return await asyncio.shield(render.body), headers

    def _encode(self, encode: Callable[[Any], bytes], zipped: bool) -> bytes:  # noqa: FBT001 - called by the executor
        text = encode(self.registry)
        return gzip.compress(text, GZIP_LEVEL) if zipped else text

    def close(self) -> None:
        """Ends the thread that renders."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _timestamp(instant: dt.datetime | None) -> float:
    """Seconds since the Unix epoch, 0 for never."""
    return 0.0 if instant is None else instant.timestamp()


def _accepts_gzip(accept_encoding: str) -> bool:
    """Whether the header names gzip and does not give it the weight of nothing."""
    for entry in accept_encoding.lower().split(","):
        name, _, weight = entry.replace(" ", "").partition(";q=")
        if name in ("gzip", "*"):
            return not weight or weight.strip("0.") != ""
    return False


# ------------------------------------------------------------------------------------------------------- the reference

_INTRODUCTION = """\
# Metrics

Generated from the code (`python -m agent.metrics docs/metrics.md`); a test holds the two together.

Served at `/metrics` in the Prometheus text format, or as OpenMetrics where the scrape asks for it, compressed where it
accepts that. The text is rendered off the event loop and kept for a second.

- Counters belong to the process and start at 0 with it: sum them over replicas.
- State (found, held, last run, last success, allocations) is read from the journal and the same on every replica: take
  the maximum, not the sum.
- Every series of a configured job exists from the start. A reload that removes a job removes its series.
- Labels take their values from closed sets, given below. None is named job, instance, namespace, pod, container or
  endpoint: Prometheus sets those.
- Beside these there are the usual `process_*`, `python_info` and `python_gc_*` of the Prometheus client.
"""


def reference() -> str:
    """The text of docs/metrics.md."""
    metrics = Metrics("", ())
    metrics.close()
    sections: dict[str, list[str]] = {}
    for spec in metrics.specs:
        sections.setdefault(spec.section, []).append(_described(spec))
    parts = [f"## {section}\n\n" + "\n".join(entries) for section, entries in sections.items()]
    return "\n".join([_INTRODUCTION, *parts])


def _described(spec: Spec) -> str:
    lines = [f"### `{NAMESPACE}_{spec.name}`", "", f"{spec.type.capitalize()}. {spec.help}", ""]
    for label, values in spec.labels.items():
        told = values if isinstance(values, str) else ", ".join(f"`{value}`" for value in values)
        lines.append(f"- `{label}`: {told}")
    return "\n".join([*lines, ""] if spec.labels else lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
