"""The scheduler: which jobs are due when, and APScheduler as the clock that asks. The only importer of apscheduler.

An interval is aligned to the Unix epoch, so that replicas agree on its slots; a crontab line names its own. Jobs that
are due together become one pass. A slot fires once, late rather than not at all: after a stall of the event loop the
latest slot of each job runs, and the earlier ones that no replica ran are counted as missed. APScheduler only wakes us
(its own misfires, jitter and weekdays are avoided on purpose).
"""

from __future__ import annotations

import datetime as dt
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from agent.job import Job
from agent.settings import Cron

log = structlog.get_logger()

Now = Callable[[], dt.datetime]
StartPass = Callable[[Mapping[str, dt.datetime]], Awaitable[None]]
Missed = Callable[[str, Sequence[dt.datetime]], Awaitable[None]]

EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)
MISSED_AT_ONCE = 1000  # slots that one stall can count as missed
NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)
FARTHEST = dt.timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Slots:
    """The instants at which a job is due, without jitter."""

    every: dt.timedelta | None
    cron: Cron | None
    zone: dt.tzinfo

    @classmethod
    def of(cls, job: Job) -> Slots:
        """The slots that a job's settings say."""
        zone = ZoneInfo(job.timezone or "UTC")
        return cls(job.every, Cron.parse(job.cron) if job.cron else None, zone)

    def after(self, instant: dt.datetime) -> dt.datetime:
        """The first slot later than ``instant`` (UTC); ``NEVER`` where there is none."""
        if self.cron is not None:
            return self.cron.next_after(instant, self.zone)
        if not self.every:
            return NEVER
        return EPOCH + ((instant - EPOCH) // self.every + 1) * self.every

    def between(self, after: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
        """The slots later than ``after`` and not later than ``until``; of very many the last."""
        slots: list[dt.datetime] = []
        if self.every:
            after = max(after, until - MISSED_AT_ONCE * self.every)
        slot = self.after(after)
        while slot <= until:
            slots.append(slot)
            slot = self.after(slot)
        return slots[-MISSED_AT_ONCE:]

    def interval(self, instant: dt.datetime) -> dt.timedelta:
        """The longest time between two slots, from now on: over a weekend a job of the workdays is not overdue."""
        if self.cron is not None:
            return self.cron.longest_gap(instant.astimezone(self.zone).date(), self.zone)
        return self.every or FARTHEST


class Timetable:
    """When each job is due next, and what is due now. Pure: time is an argument."""

    def __init__(
        self, jobs: Mapping[str, Job], *, jitter: dt.timedelta, since: dt.datetime, seed: str | None = None
    ) -> None:
        """``since`` is the instant from which slots count; ``seed`` makes the jitter repeatable."""
        self.jitter = jitter
        self._seed = seed if seed is not None else secrets.token_hex(8)
        self._slots: dict[str, Slots] = {}
        self._last: dict[str, dt.datetime] = {}
        self.use(jobs, since)

    def use(self, jobs: Mapping[str, Job], now: dt.datetime) -> None:
        """Takes the jobs of a configuration that was loaded again; what was due before stays done.

        A job that is new, or has another schedule than before, has no slots that went by: it begins ``now``.
        """
        slots = {name: Slots.of(job) for name, job in jobs.items() if job.enabled}
        self._last |= {name: now for name in slots if slots[name] != self._slots.get(name)}
        self._slots = slots

    def starts(self, slot: dt.datetime) -> dt.datetime:
        """The slot with its jitter, which is drawn once a slot for all jobs together."""
        if slot >= NEVER:
            return NEVER
        drawn = random.Random(f"{self._seed}{slot.timestamp()}").uniform(0, self.jitter.total_seconds())  # noqa: S311 - spreads load
        return slot + dt.timedelta(seconds=drawn)

    def next_start(self, job: str) -> dt.datetime | None:
        """When the job's next slot starts; ``None`` where it has none."""
        if job not in self._slots:
            return None
        start = self.starts(self._slots[job].after(self._last[job]))
        return start if start < NEVER else None

    def next_wake(self, after: dt.datetime) -> dt.datetime | None:
        """The first instant later than ``after`` at which something starts."""
        starts = [self._first_start(slots, after) for slots in self._slots.values()]
        first = min(starts, default=NEVER)
        return first if first < NEVER else None

    def _first_start(self, slots: Slots, after: dt.datetime) -> dt.datetime:
        """The first start of a job that is later than ``after``; the jitter may have put an earlier slot there."""
        slot = slots.after(after - self.jitter)
        while slot < NEVER and self.starts(slot) <= after:
            slot = slots.after(slot)
        return self.starts(slot)

    def interval(self, job: str, now: dt.datetime) -> dt.timedelta | None:
        """The longest time between two slots of the job."""
        return self._slots[job].interval(now) if job in self._slots else None

    def due(self, now: dt.datetime) -> tuple[dict[str, dt.datetime], dict[str, list[dt.datetime]]]:
        """Takes what is due: the latest slot of each job, and the earlier slots that went by.

        Where the jitter is longer than the interval, one of these may not even have started: it will not any more.
        """
        due: dict[str, dt.datetime] = {}
        earlier: dict[str, list[dt.datetime]] = {}
        for job, slots in self._slots.items():
            past = slots.between(self._last[job], now)
            latest = next((slot for slot in reversed(past) if self.starts(slot) <= now), None)
            if latest is not None:
                due[job] = self._last[job] = latest
                earlier[job] = [slot for slot in past if slot < latest]
        return due, {job: slots for job, slots in earlier.items() if slots}


class _WhenDue(BaseTrigger):  # type: ignore[misc]
    """Wakes APScheduler when the timetable says so."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable

    def get_next_fire_time(self, previous: dt.datetime | None, now: dt.datetime) -> dt.datetime | None:
        """The next wake-up, always later than the previous one: APScheduler walks through those that it slept over."""
        return self._timetable.next_wake(previous or now)


class Scheduler:
    """Starts a pass of what is due, whenever something is."""

    def __init__(self, timetable: Timetable, start_pass: StartPass, missed: Missed, *, now: Now) -> None:
        self.timetable = timetable
        self._start_pass = start_pass
        self._missed = missed
        self._now = now
        self._clock = AsyncIOScheduler(timezone=dt.UTC)
        self.running = False

    def start(self) -> None:
        """Starts the clock; needs a running event loop."""
        self._clock.start()
        self._arm()
        self.running = True

    def use(self, jobs: Mapping[str, Job], *, jitter: dt.timedelta) -> None:
        """Takes the jobs of a configuration that was loaded again."""
        self.timetable.jitter = jitter
        self.timetable.use(jobs, self._now())
        if self.running:
            self._arm()

    def _arm(self) -> None:
        options: dict[str, Any] = {"id": "pass", "replace_existing": True, "coalesce": True, "max_instances": 1}
        self._clock.add_job(self.tick, _WhenDue(self.timetable), misfire_grace_time=None, **options)

    async def tick(self) -> None:
        """Starts what is due now, and what becomes due meanwhile: APScheduler drops a wake-up during another."""
        while True:
            due, earlier = self.timetable.due(self._now())
            if not due:
                return
            await self._start_pass(due)
            for job, slots in earlier.items():
                await self._missed(job, slots)

    def stop(self) -> None:
        """Stops the clock; passes that were started go on."""
        if self.running:
            self._clock.shutdown(wait=False)
            self.running = False
