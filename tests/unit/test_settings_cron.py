"""Cron expressions: the language of crontab(5), and the instants that they name, clock changes included."""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.settings import Cron, zone

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = dt.timedelta(minutes=1)


def at(text: str) -> dt.datetime:
    """An instant; UTC where the text has no offset."""
    instant = dt.datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)


def firings(expression: str, start: str, count: int, tz: dt.tzinfo = dt.UTC) -> list[str]:
    """The first instants after ``start``, as a clock in the zone shows them."""
    cron, instant, shown = Cron.parse(expression), at(start), []
    for _ in range(count):
        instant = cron.next_after(instant, tz)
        shown.append(instant.astimezone(tz).strftime("%a %m-%d %H:%M%z"))
    return shown


@pytest.mark.parametrize(
    "expression, expected",
    [
        ("* * * * *", ["Wed 07-01 12:01", "Wed 07-01 12:02"]),
        ("*/15 * * * *", ["Wed 07-01 12:15", "Wed 07-01 12:30"]),
        ("5-59/20 * * * *", ["Wed 07-01 12:05", "Wed 07-01 12:25"]),
        ("0,30 13-14 * * *", ["Wed 07-01 13:00", "Wed 07-01 13:30"]),
        ("0 3 * * 0", ["Sun 07-05 03:00", "Sun 07-12 03:00"]),
        ("0 3 * * 7", ["Sun 07-05 03:00", "Sun 07-12 03:00"]),
        ("0 3 * * sun", ["Sun 07-05 03:00", "Sun 07-12 03:00"]),
        ("0 3 * * 1", ["Mon 07-06 03:00", "Mon 07-13 03:00"]),
        ("0 3 * * MON-fri", ["Thu 07-02 03:00", "Fri 07-03 03:00"]),
        ("0 3 * * fri-sun", ["Fri 07-03 03:00", "Sat 07-04 03:00"]),
        ("0 3 * * 5-7", ["Fri 07-03 03:00", "Sat 07-04 03:00"]),
        ("0 3 * * sun-sun", ["Sun 07-05 03:00", "Sun 07-12 03:00"]),
        ("0 0 1 jan *", ["Fri 01-01 00:00", "Sat 01-01 00:00"]),
        ("0 0 29 2 *", ["Tue 02-29 00:00", "Sun 02-29 00:00"]),
        # Both day fields restricted: either is enough.
        ("0 0 13 * fri", ["Fri 07-03 00:00", "Fri 07-10 00:00"]),
        ("0 0 4 * fri", ["Fri 07-03 00:00", "Sat 07-04 00:00"]),
        # One starts with a star: both are needed.
        ("0 0 */2 * fri", ["Fri 07-03 00:00", "Fri 07-17 00:00"]),
        ("0 0 1-7 * *", ["Thu 07-02 00:00", "Fri 07-03 00:00"]),
        ("@hourly", ["Wed 07-01 13:00", "Wed 07-01 14:00"]),
        ("@daily", ["Thu 07-02 00:00", "Fri 07-03 00:00"]),
        ("@midnight", ["Thu 07-02 00:00", "Fri 07-03 00:00"]),
        ("@weekly", ["Sun 07-05 00:00", "Sun 07-12 00:00"]),
        ("@Monthly", ["Sat 08-01 00:00", "Tue 09-01 00:00"]),
        ("@yearly", ["Fri 01-01 00:00", "Sat 01-01 00:00"]),
        ("  0   3 * * *  ", ["Thu 07-02 03:00", "Fri 07-03 03:00"]),
    ],
)
def test_an_expression_names_its_instants(expression: str, expected: list[str]) -> None:
    """From Wednesday, 1 July 2026, 12:00 on."""
    assert firings(expression, "2026-07-01T12:00", 2) == [f"{instant}+0000" for instant in expected]


@pytest.mark.parametrize(
    "expression, message",
    [
        ("", "has 0 fields, not 5: minute, hour, day of month, month, day of week, such as 0 3 * * 0"),
        ("* * * *", "has 4 fields, not 5: minute, hour, day of month, month, day of week, such as 0 3 * * 0"),
        ("0 0 3 * * 0", "has 6 fields, not 5: minute, hour, day of month, month, day of week, such as 0 3 * * 0"),
        ("60 * * * *", "minute: 60 is not from 0 to 59"),
        ("* 24 * * *", "hour: 24 is not from 0 to 23"),
        ("* * 0 * *", "day of month: 0 is not from 1 to 31"),
        ("* * 32 * *", "day of month: 32 is not from 1 to 31"),
        ("* * * 0 *", "month: 0 is not from 1 to 12"),
        ("* * * 13 *", "month: 13 is not from 1 to 12"),
        ("* * * * 8", "day of week: 8 is not from 0 to 7"),
        ("* * * foo *", "month: 'foo' is not from 1 to 12 or jan to dec"),
        ("* * * * foo", "day of week: 'foo' is not from 0 to 7 or sun to sat"),
        ("jan * * * *", "minute: 'jan' is not from 0 to 59"),
        ("* * * january *", "month: 'january' is not *, a value, a range a-b or a step */n"),
        ("-1 * * * *", "minute: '-1' is not *, a value, a range a-b or a step */n"),
        ("1, * * * *", "minute: '' is not *, a value, a range a-b or a step */n"),
        ("*-5 * * * *", "minute: '*-5' is not *, a value, a range a-b or a step */n"),
        ("? * * * *", "minute: '?' is not *, a value, a range a-b or a step */n"),
        ("1.5 * * * *", "minute: '1.5' is not *, a value, a range a-b or a step */n"),
        ("٣ * * * *", "minute: '٣' is not *, a value, a range a-b or a step */n"),
        ("* * L * *", "day of month: 'l' is not *, a value, a range a-b or a step */n"),
        ("* * * * 5#2", "day of week: '5#2' is not *, a value, a range a-b or a step */n"),
        ("30-10 * * * *", "minute: the range 30-10 ends before it starts"),
        ("* * * dec-jan *", "month: the range dec-jan ends before it starts"),
        ("*/0 * * * *", "minute: a step is from 1 to 60, not 0"),
        ("*/90 * * * *", "minute: a step is from 1 to 60, not 90"),
        ("5/10 * * * *", "minute: a step needs a range: write 5-59/10"),
        ("0 0 30 2 *", "day of month: no month of '2' has a day 30"),
        ("0 0 31 feb,apr */2", "day of month: no month of 'feb,apr' has a day 31"),
        ("@reboot", "'@reboot' is none of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"),
    ],
)
def test_what_is_no_expression_is_refused(expression: str, message: str) -> None:
    """With the field that is wrong."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Cron.parse(expression)


def test_an_expression_is_shown_as_it_was_written() -> None:
    """Names and spaces too."""
    assert str(Cron.parse("0  3 * * SUN")) == "0  3 * * SUN"


def test_the_instant_itself_is_not_after_itself() -> None:
    """And a second earlier it is still to come."""
    cron = Cron.parse("0 3 * * *")
    assert cron.next_after(at("2026-07-01T03:00"), dt.UTC) == at("2026-07-02T03:00")
    assert cron.next_after(at("2026-07-01T02:59:59.999999"), dt.UTC) == at("2026-07-01T03:00")


def test_a_day_that_comes_every_forty_years_is_found() -> None:
    """29 February on a Sunday, over the year 2100, which has none."""
    assert Cron.parse("0 0 29 2 */7").next_after(at("2096-03-01T00:00"), dt.UTC) == at("2128-02-29T00:00")


def test_a_local_time_that_is_skipped_runs_at_the_first_instant_after_it() -> None:
    """On 29 March 2026 Berlin has no 02:30; the run is neither lost nor made twice."""
    expected = ["Sat 03-28 02:30+0100", "Sun 03-29 03:00+0200", "Mon 03-30 02:30+0200"]
    assert firings("30 2 * * *", "2026-03-27T12:00", 3, BERLIN) == expected


def test_skipped_times_and_one_at_the_end_of_the_gap_are_one_run() -> None:
    """02:00, 02:30 and 03:00 are the same instant that night."""
    expected = ["Sun 03-29 01:30+0100", "Sun 03-29 03:00+0200", "Sun 03-29 03:30+0200"]
    assert firings("*/30 * * * *", "2026-03-29T00:00+00:00", 3, BERLIN) == expected


def test_a_local_time_that_is_repeated_runs_once() -> None:
    """On 25 October 2026 Berlin has 02:30 twice; the first counts."""
    expected = ["Sat 10-24 02:30+0200", "Sun 10-25 02:30+0200", "Mon 10-26 02:30+0100"]
    assert firings("30 2 * * *", "2026-10-23T12:00", 3, BERLIN) == expected


def test_between_the_two_passes_of_a_repeated_hour_the_next_run_is_after_it() -> None:
    """Asked in the second pass, the repeated times are over."""
    assert firings("*/30 * * * *", "2026-10-25T01:10", 2, BERLIN) == ["Sun 10-25 03:00+0100", "Sun 10-25 03:30+0100"]


def test_a_whole_day_that_is_skipped_runs_at_its_end() -> None:
    """Samoa had no 30 December 2011."""
    expected = ["Thu 12-29 03:00-1000", "Sat 12-31 00:00+1400", "Sat 12-31 03:00+1400"]
    assert firings("0 3 * * *", "2011-12-29T12:00", 3, ZoneInfo("Pacific/Apia")) == expected


# ---------------------------------------------------------------------------------------------------------------------

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]
CHANGES = ["2026-03-29T01:00", "2026-10-25T01:00", "2026-03-08T07:00", "2026-11-01T06:00", "2026-04-04T15:00",
           "2026-10-03T15:30", "2026-03-08T05:30", "2026-11-01T04:30", "2026-12-31T23:00"]  # fmt: skip


@st.composite
def fields(draw: st.DrawFn, low: int, high: int) -> str:
    """A field that is met often enough to meet within days."""
    one = st.integers(low, high)
    ranges = st.tuples(one, one).map(lambda ends: f"{min(ends)}-{max(ends)}")
    steps = st.integers(1, high - low + 1).map(lambda step: f"*/{step}")
    return draw(st.just("*") | steps | st.lists(one.map(str) | ranges, min_size=1, max_size=3).map(",".join))


def walk(cron: Cron, start: dt.datetime, tz: dt.tzinfo, end: dt.datetime) -> Iterator[dt.datetime]:
    """The firings, minute by minute: when a clock first gets to, or jumps over, a time that meets the expression."""
    instant = start - dt.timedelta(days=1)
    latest = instant.astimezone(tz).replace(tzinfo=None)
    while instant < end:
        instant += MINUTE
        local = instant.astimezone(tz).replace(tzinfo=None)
        passed = [latest + number * MINUTE for number in range(1, (local - latest) // MINUTE + 1)]
        if any(meets(cron, moment) for moment in passed) and instant > start:
            yield instant
        latest = max(latest, local)


def meets(cron: Cron, local: dt.datetime) -> bool:
    """Whether a local time meets an expression, as crontab(5) says it."""
    minute, hour, day, month, weekday = cron.text.split()
    is_day, is_weekday = within(day, local.day, 1, 31), within(weekday, local.isoweekday() % 7, 0, 7)
    is_weekday |= local.isoweekday() == 7 and within(weekday, 7, 0, 7)
    either = not day.startswith("*") and not weekday.startswith("*")
    return (
        within(minute, local.minute, 0, 59)
        and within(hour, local.hour, 0, 23)
        and within(month, local.month, 1, 12)
        and ((is_day or is_weekday) if either else (is_day and is_weekday))
    )


@functools.cache
def within(text: str, value: int, low: int, high: int) -> bool:
    """Whether a field's text names a value."""
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        if int(first) <= value <= int(last or first) and (value - int(first)) % int(step or 1) == 0:
            return True
    return False


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(
        fields(0, 59),
        fields(0, 23),
        st.sampled_from(["*", "*", "28-31,1-9", "*/2"]),
        st.sampled_from(["*", "*", "1-6", "10,11"]),
        st.sampled_from(["*", "*", "0", "5-7", "*/3"]),
    ).map(" ".join),
    st.sampled_from(ZONES),
    st.sampled_from(CHANGES),
    st.integers(-3 * 3600, 3 * 3600),
)
def test_the_next_instant_is_the_one_that_a_walk_by_minutes_meets(
    expression: str, name: str, change: str, seconds: int
) -> None:
    """Around clock changes, in zones that change by an hour, by half an hour, and not at all."""
    cron, tz = Cron.parse(expression), zone(name)
    start = at(change) + dt.timedelta(seconds=seconds)
    # The walk steps on whole minutes, from the one that `start` is in.
    floor = start.replace(second=0)
    end = floor + dt.timedelta(days=1, hours=6)
    expected = next((instant for instant in walk(cron, floor - MINUTE, tz, end) if instant > start), None)
    found = cron.next_after(start, tz)
    assert found == expected if expected is not None else found > end


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/,-@ jansun\t", max_size=25) | st.text(max_size=15))
def test_any_text_is_an_expression_or_a_problem(text: str) -> None:
    """Never another exception; and what is taken has a next time."""
    try:
        cron = Cron.parse(text)
    except ValueError:
        return
    start = at("2026-07-01T12:00")
    assert cron.next_after(start, dt.UTC) > start
