"""Cron expressions as crontab(5) reads them, and the instants that they name.

Five fields: minute, hour, day of month, month, day of week. ``*``, values, ranges ``a-b``, steps ``*/n`` and ``a-b/n``,
lists; months and days of the week also by the first three letters of their names; 0 and 7 are Sunday. ``@hourly``,
``@daily``, ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly`` and ``@annually`` stand for what they say.

Where both day fields are restricted (do not start with ``*``), a day that meets either of them counts; else it has to
meet both. Local times that a clock change skips run at the first instant after it; those that it repeats run once, the
first time. What can never come (the 30th of February) is refused.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import Self

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SUNDAY = 7
# A 29th of February that also has to be on one day of the week comes back after 40 years at the latest (over 2100).
_HORIZON = dt.timedelta(days=41 * 366)
_MINUTE = dt.timedelta(minutes=1)
_GAP_DAYS = 10  # days with a slot: more than a week of them, so that a weekend is among the gaps between them
_PART = re.compile(
    r"(?P<first>\*|[0-9]{1,4}|[a-z]{3})(-(?P<last>[0-9]{1,4}|[a-z]{3}))?(/(?P<step>[0-9]{1,4}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the five fields: its name, its range, the names of its values (the first is ``low``)."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def parse(self, text: str) -> frozenset[int]:
        """The values that a field's text names. Raises ``ValueError``."""
        return frozenset(value for part in text.lower().split(",") for value in self._part(part))

    def _part(self, text: str) -> range:
        match = _PART.fullmatch(text)
        if not match:
            raise ValueError(f"{self.name}: {text!r} is not *, a value, a range a-b or a step */n")
        first, last, step = match["first"], match["last"], int(match["step"] or 1)
        if first == "*":
            if last:
                raise ValueError(f"{self.name}: {text!r} is not *, a value, a range a-b or a step */n")
            low, high = self.low, self.high
        else:
            low = self._value(first)
            high = self._value(last, ends=True) if last and last != first else low
            if match["step"] and not last:
                raise ValueError(f"{self.name}: a step needs a range: write {first}-{self.high}/{step}")
        if high < low:
            raise ValueError(f"{self.name}: the range {first}-{last} ends before it starts")
        if not 1 <= step <= self.high - self.low + 1:
            raise ValueError(f"{self.name}: a step is from 1 to {self.high - self.low + 1}, not {step}")
        return range(low, high + 1, step)

    def _value(self, text: str, *, ends: bool = False) -> int:
        if text.isdigit():
            value = int(text)
        elif text in self.names:
            value = self.low + self.names.index(text)
            # `fri-sun` is a range that ends with Sunday, not one that starts with it.
            value = _SUNDAY if ends and text == "sun" else value
        else:
            known = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
            raise ValueError(f"{self.name}: {text!r} is not from {self.low} to {self.high}{known}")
        if not self.low <= value <= self.high:
            raise ValueError(f"{self.name}: {value} is not from {self.low} to {self.high}")
        return value


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, _SUNDAY, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression; ``text`` is what was written."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either_day: bool
    """Whether a day that meets one of the two day fields is enough."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads an expression. Raises ``ValueError`` with the field that is wrong."""
        expression = _MACROS.get(text.strip().lower(), text)
        if expression.strip().startswith("@"):
            raise ValueError(f"{text.strip()!r} is none of {', '.join(_MACROS)}")
        texts = expression.split()
        if len(texts) != len(_FIELDS):
            raise ValueError(
                f"has {len(texts)} fields, not 5: minute, hour, day of month, month, day of week, such as 0 3 * * 0"
            )
        minutes, hours, days, months, weekdays = (field.parse(part) for field, part in zip(_FIELDS, texts, strict=True))
        either = not texts[2].startswith("*") and not texts[4].startswith("*")
        if not either and min(days) > max(_LONGEST[month] for month in months):
            raise ValueError(f"day of month: no month of {texts[3]!r} has a day {min(days)}")
        sundays = frozenset(day % _SUNDAY for day in weekdays)
        return cls(text, tuple(sorted(minutes)), tuple(sorted(hours)), days, months, sundays, either)

    def __str__(self) -> str:
        return self.text

    def next_after(self, instant: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
        """The first instant (UTC) after ``instant`` at which a clock in ``zone`` meets the expression."""
        local = instant.astimezone(zone).replace(tzinfo=None, second=0, microsecond=0)
        for moment in self._local_times(local + _MINUTE):
            met = _instant(moment, zone)
            if met > instant:
                return met
        raise ValueError(f"{self.text!r} does not come within {_HORIZON.days // 366} years")  # pragma: no cover

    def longest_gap(self, start: dt.date, zone: dt.tzinfo) -> dt.timedelta:
        """The longest time between two neighbouring slots of the ten days from ``start`` on that have any."""
        return _longest_gap(self, start, zone)

    def _local_times(self, start: dt.datetime) -> Iterator[dt.datetime]:
        """The local times from ``start`` on, in order, clock changes aside."""
        for day in self._days(start.date()):
            for moment in self._times(day):
                if moment >= start:
                    yield moment

    def _times(self, day: dt.date) -> Iterator[dt.datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                yield dt.datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001 - a local time

    def _days(self, start: dt.date) -> Iterator[dt.date]:
        """The days from ``start`` on that have a slot."""
        day, end = start, start + _HORIZON
        while day < end:
            if self._meets(day):
                yield day
            day += dt.timedelta(days=1)

    def _meets(self, day: dt.date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % _SUNDAY in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week


@lru_cache(maxsize=256)
def _longest_gap(cron: Cron, start: dt.date, zone: dt.tzinfo) -> dt.timedelta:
    """Kept, since it is asked for every few seconds, and the same all day."""
    days = list(islice(cron._days(start), _GAP_DAYS))  # noqa: SLF001 - the method that is kept
    within = [after - before for before, after in pairwise(cron._times(days[0]))]  # noqa: SLF001
    ends = [(_instant(min(times), zone), _instant(max(times), zone)) for times in ([*cron._times(day)] for day in days)]  # noqa: SLF001
    return max([*within, *(first - last for (_, last), (first, _) in pairwise(ends))])


def _instant(local: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """When clocks in ``zone`` first show ``local`` or, where they skip it, the first instant after the skip."""
    met = local.replace(tzinfo=zone).astimezone(dt.UTC)
    if met.astimezone(zone).replace(tzinfo=None) == local:
        return met
    # Read with the offset after the change a skipped time lies before the change, read with the one before, after it.
    early, late = local.replace(tzinfo=zone, fold=1).astimezone(dt.UTC), met
    before = early.astimezone(zone).utcoffset()
    while late - early > dt.timedelta(seconds=1):
        middle = early + (late - early) // 2
        early, late = (middle, late) if middle.astimezone(zone).utcoffset() == before else (early, middle)
    return late.replace(microsecond=0)
