"""When jobs are due: slots that replicas agree on, jitter, stalls, clock changes, reloads. Time is an argument."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.job import Job
from agent.scheduler import MISSED_AT_ONCE, Scheduler, Slots, Timetable, _WhenDue
from tests.harness import job_of

UTC = dt.UTC
START = dt.datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (dt.timedelta(seconds=number) for number in (1, 60, 3600, 86_400))


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


def jobs(**schedules: str) -> dict[str, Job]:
    """Jobs by name: an interval, or a crontab line (with its zone after a semicolon)."""
    made = {}
    for name, schedule in schedules.items():
        line, _, zone = schedule.partition(";")
        when: dict[str, Any] = {"cron": line, "timezone": zone or "UTC"} if " " in line else {"every": line}
        made[name] = job_of(kind="stuck_tasks", name=name, **when)
    return made


def timetable(
    since: dt.datetime = START, jitter: dt.timedelta = dt.timedelta(0), seed: str = "a", **schedules: str
) -> Timetable:
    return Timetable(jobs(**schedules), jitter=jitter, since=since, seed=seed)


# --- slots


def test_an_interval_is_aligned_to_the_epoch_so_that_replicas_agree() -> None:
    """Whenever they were started, and however odd the interval is."""
    slots = Slots.of(jobs(a="7m")["a"])
    found = {slots.after(START + number * SECOND) for number in range(600)}
    assert len(found) == 2
    assert all((slot - dt.datetime.fromtimestamp(0, UTC)) % (7 * MINUTE) == dt.timedelta(0) for slot in found)


def test_a_slot_is_always_later_than_the_instant() -> None:
    """The slot of this very instant has begun already."""
    slots = Slots.of(jobs(a="1h")["a"])
    assert slots.after(at("2026-03-01 12:00")) == at("2026-03-01 13:00")
    assert slots.after(at("2026-03-01 12:59:59.999999")) == at("2026-03-01 13:00")


@pytest.mark.parametrize("line", ["0 3 * * 0", "0 3 * * 7", "0 3 * * sun"])
def test_zero_and_seven_are_sunday(line: str) -> None:
    """As crontab(5) says; the 1st of March 2026 is one."""
    slots = Slots.of(jobs(a=line)["a"])
    assert slots.after(at("2026-02-28 12:00")) == at("2026-03-01 03:00")
    assert slots.after(at("2026-03-01 03:00")) == at("2026-03-08 03:00")


def test_a_crontab_line_follows_its_zone_through_clock_changes() -> None:
    """A time that is skipped runs at the first instant after it, one that comes twice runs once."""
    slots = Slots.of(jobs(a="30 2 * * *;Europe/Berlin")["a"])
    days = slots.between(at("2026-03-27 12:00"), at("2026-03-31 12:00"))
    assert days == [at("2026-03-28 01:30"), at("2026-03-29 01:00"), at("2026-03-30 00:30"), at("2026-03-31 00:30")]
    days = slots.between(at("2026-10-23 12:00"), at("2026-10-27 12:00"))
    assert days == [at("2026-10-24 00:30"), at("2026-10-25 00:30"), at("2026-10-26 01:30"), at("2026-10-27 01:30")]


def test_of_very_many_slots_the_last_are_told() -> None:
    """A clock that jumped by years costs neither memory nor time."""
    past = Slots.of(jobs(a="1s")["a"]).between(at("1990-01-01 00:00"), START)
    assert len(past) == MISSED_AT_ONCE
    assert past[-1] == START


@pytest.mark.parametrize(
    "schedule, interval",
    [
        ("15m", 15 * MINUTE),
        ("0 * * * *", HOUR),
        ("0 3 * * 0", 7 * DAY),
        ("0 3 * * 1-5", 3 * DAY),  # START is a Sunday
        ("*/5 9-17 * * 1-5", 2 * DAY + 15 * HOUR + 5 * MINUTE),
        ("0 3 * * *;Europe/Berlin", DAY),
        ("0 3 1 * *", 31 * DAY),
        ("0 0 29 2 *", 4 * 366 * DAY - 3 * DAY),
    ],
)
def test_the_interval_is_the_longest_time_between_two_slots(schedule: str, interval: dt.timedelta) -> None:
    """For alerts on runs that stay away."""
    assert timetable(a=schedule).interval("a", START) == interval


def test_a_job_that_is_disabled_or_has_no_schedule_never_comes() -> None:
    """Neither has a next start."""
    without = job_of(kind="stuck_tasks", name="a")
    disabled = job_of(kind="stuck_tasks", name="b", every="1m", enabled=False)
    table = Timetable({"a": without, "b": disabled}, jitter=MINUTE, since=START)
    assert table.next_start("a") is None
    assert table.next_start("b") is None
    assert table.interval("b", START) is None
    assert table.next_wake(START) is None
    assert table.due(START + 1000 * HOUR) == ({}, {})


# --- jitter


def test_jitter_is_drawn_once_a_slot_for_all_jobs_together() -> None:
    """Jobs that are due together stay one pass, and asking again changes nothing."""
    table = timetable(jitter=30 * SECOND, a="1h", b="1h", c="30m")
    starts = {table.next_start("a"), table.next_start("b"), table.starts(at("2026-03-01 13:00"))}
    assert len(starts) == 1
    start = starts.pop()
    assert start is not None
    assert at("2026-03-01 13:00") <= start <= at("2026-03-01 13:00:30")
    assert table.due(start - SECOND / 1000)[0] == {"c": at("2026-03-01 12:30")}
    assert table.due(start)[0] == dict.fromkeys("abc", at("2026-03-01 13:00"))


def test_jitter_differs_between_slots_and_between_agents() -> None:
    """Else it would spread nothing."""
    slots = [at("2026-03-01 13:00") + number * HOUR for number in range(50)]
    one, other = (timetable(jitter=30 * SECOND, seed=seed, a="1h") for seed in "ab")
    assert len({one.starts(slot) - slot for slot in slots}) > 40
    assert sum(one.starts(slot) != other.starts(slot) for slot in slots) > 40


# --- due


def test_a_slot_fires_once() -> None:
    """Neither early nor again."""
    table = timetable(a="1h")
    assert table.due(at("2026-03-01 12:59:59")) == ({}, {})
    assert table.due(at("2026-03-01 13:00:00")) == ({"a": at("2026-03-01 13:00")}, {})
    assert table.due(at("2026-03-01 13:00:00")) == ({}, {})
    assert table.due(at("2026-03-01 13:59:59")) == ({}, {})
    assert table.next_start("a") == at("2026-03-01 14:00")


def test_after_a_stall_the_latest_slot_runs_and_the_earlier_ones_are_told() -> None:
    """Late rather than not at all, and once rather than for each."""
    table = timetable(a="1h", b="0 * * * *", c="1d")
    due, earlier = table.due(at("2026-03-01 16:20"))
    assert due == dict.fromkeys("ab", at("2026-03-01 16:00"))
    assert earlier == {name: [at("2026-03-01 13:00"), at("2026-03-01 14:00"), at("2026-03-01 15:00")] for name in "ab"}
    assert table.due(at("2026-03-01 16:20")) == ({}, {})


@settings(max_examples=60, deadline=None)
@given(
    every=st.integers(1, 90),
    jitter=st.integers(0, 200),
    steps=st.lists(st.integers(0, 400), min_size=1, max_size=30),
    seed=st.text("abc", max_size=3),
)
def test_every_slot_either_runs_or_is_told_as_missed_and_never_both(
    every: int, jitter: int, steps: list[int], seed: str
) -> None:
    """However long the clock stands still, and even where the jitter is longer than the interval."""
    table = timetable(jitter=jitter * SECOND, seed=seed, a=f"{every}s")
    now, told = START, list[dt.datetime]()
    for step in steps:
        now += step * SECOND
        due, earlier = table.due(now)
        told += [*earlier.get("a", []), *due.values()]
        assert all(slot <= now for slot in told)
    slots, expected = Slots.of(jobs(a=f"{every}s")["a"]), list[dt.datetime]()
    while told and (slot := slots.after(max(expected, default=START))) <= told[-1]:
        expected.append(slot)
    assert told == expected


# --- the clock


@settings(max_examples=60, deadline=None)
@given(
    every=st.integers(1, 7200),
    jitter=st.integers(0, 300),
    offset=st.integers(0, 10**6),
    seed=st.text("abc", max_size=3),
)
def test_the_next_wake_up_is_always_later_and_something_is_due_then(
    every: int, jitter: int, offset: int, seed: str
) -> None:
    """APScheduler asks from the previous one: it must never be given the same again."""
    since = START + offset * SECOND
    table = timetable(since, jitter * SECOND, seed, a=f"{every}s", b="*/7 * * * *")
    trigger = _WhenDue(table)
    # A slot from before the start whose jitter is not over yet wakes for nothing.
    previous = trigger.get_next_fire_time(None, since + jitter * SECOND)
    assert previous is not None
    table.due(previous)
    for _ in range(20):
        following = trigger.get_next_fire_time(previous, since)
        assert following is not None
        assert following > previous
        assert table.due(following)[0] or jitter >= min(every, 60)
        previous = following


class Recorder:
    """What a scheduler does, under a clock that only the test moves."""

    def __init__(self, **schedules: str) -> None:
        self.now = START
        self.passes: list[dict[str, dt.datetime]] = []
        self.missed: list[tuple[str, list[dt.datetime]]] = []
        self.during: list[dt.timedelta] = []
        self.scheduler = Scheduler(
            timetable(**cast("Any", schedules)), self.start_pass, self.count_missed, now=lambda: self.now
        )

    async def start_pass(self, due: Mapping[str, dt.datetime]) -> None:
        self.passes.append(dict(due))
        if self.during:
            self.now += self.during.pop()

    async def count_missed(self, job: str, slots: Sequence[dt.datetime]) -> None:
        self.missed.append((job, list(slots)))


async def test_a_tick_starts_one_pass_of_all_that_is_due() -> None:
    """And nothing where nothing is."""
    recorder = Recorder(a="1h", b="1h", c="45m")
    await recorder.scheduler.tick()
    assert recorder.passes == []
    recorder.now = at("2026-03-01 15:00:01")
    await recorder.scheduler.tick()
    assert recorder.passes == [dict.fromkeys("abc", at("2026-03-01 15:00"))]
    assert dict(recorder.missed)["a"] == [at("2026-03-01 13:00"), at("2026-03-01 14:00")]


async def test_what_becomes_due_while_a_pass_is_started_starts_as_well() -> None:
    """APScheduler drops a wake-up that comes during another; the slot must not wait for the one after it."""
    recorder = Recorder(a="1h", b="1 13 * * *")
    recorder.now = at("2026-03-01 13:00")
    recorder.during = [MINUTE]
    await recorder.scheduler.tick()
    assert [list(due) for due in recorder.passes] == [["a"], ["b"]]


async def test_the_clock_is_armed_for_the_next_start_and_again_after_a_reload() -> None:
    """Also where there was nothing to wait for before."""
    recorder = Recorder()
    recorder.now = dt.datetime.now(UTC)
    recorder.scheduler.start()
    try:
        clock = recorder.scheduler._clock
        assert recorder.scheduler.running
        assert clock.get_job("pass") is None or clock.get_job("pass").next_run_time is None
        recorder.scheduler.use(jobs(a="1h"), jitter=dt.timedelta(0))
        assert clock.get_job("pass").next_run_time == recorder.scheduler.timetable.next_start("a")
        recorder.scheduler.use(jobs(a="1h", b="7m"), jitter=dt.timedelta(0))
        assert clock.get_job("pass").next_run_time == min(
            start for name in "ab" if (start := recorder.scheduler.timetable.next_start(name))
        )
        recorder.scheduler.use({}, jitter=dt.timedelta(0))
        assert clock.get_job("pass") is None or clock.get_job("pass").next_run_time is None
    finally:
        recorder.scheduler.stop()
    assert [recorder.scheduler.running] == [False]
    recorder.scheduler.stop()


async def test_the_real_clock_ticks_at_once_for_what_is_due() -> None:
    """APScheduler calls the tick on the event loop; a slot of the past is late, not lost."""
    recorder = Recorder(a="1s")
    ticked = asyncio.Event()
    started = recorder.start_pass

    async def start_pass(due: Mapping[str, dt.datetime]) -> None:
        await started(due)
        ticked.set()

    recorder.scheduler._start_pass = start_pass
    recorder.now = START + HOUR
    recorder.scheduler.start()
    try:
        await asyncio.wait_for(ticked.wait(), 20)
    finally:
        recorder.scheduler.stop()
    assert recorder.passes[0] == {"a": START + HOUR}


# --- reload


def test_a_reload_keeps_what_was_done() -> None:
    """A slot that ran does not run again because the file was loaded again, and none is lost either."""
    table = timetable(a="1h")
    table.due(at("2026-03-01 13:00"))
    table.use(jobs(a="1h"), at("2026-03-01 13:30"))
    assert table.due(at("2026-03-01 13:30")) == ({}, {})
    table.use(jobs(a="1h"), at("2026-03-01 14:00:01"))
    assert table.due(at("2026-03-01 14:00:01")) == ({"a": at("2026-03-01 14:00")}, {})


def test_a_new_job_begins_at_its_next_slot() -> None:
    """It missed nothing while it did not exist."""
    table = timetable(a="1h")
    table.use(jobs(a="1h", b="1h"), at("2026-03-04 12:30"))
    due, earlier = table.due(at("2026-03-04 12:30"))
    assert "b" not in due
    assert "b" not in earlier
    assert table.next_start("b") == at("2026-03-04 13:00")


def test_another_schedule_begins_at_its_next_slot() -> None:
    """The slots of the new rhythm that lie before the reload were nobody's."""
    table = timetable(a="1h")
    table.due(at("2026-03-01 13:00"))
    table.use(jobs(a="5m"), at("2026-03-01 13:58"))
    assert table.due(at("2026-03-01 13:58")) == ({}, {})
    assert table.due(at("2026-03-01 14:00")) == ({"a": at("2026-03-01 14:00")}, {})


def test_a_job_that_comes_back_begins_at_its_next_slot() -> None:
    """Whether it was gone or disabled meanwhile."""
    table = timetable(a="1h")
    table.use({}, at("2026-03-01 13:30"))
    assert table.next_start("a") is None
    assert table.due(at("2026-03-01 20:00")) == ({}, {})
    table.use(jobs(a="1h"), at("2026-03-01 20:30"))
    assert table.due(at("2026-03-01 20:30")) == ({}, {})
    assert table.next_start("a") == at("2026-03-01 21:00")
