"""Durations, sizes, filters, names: what they take, what they refuse, and that they come back as they were written."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from agent.settings import (
    DatabaseName,
    Duration,
    Filter,
    JobName,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    zone,
)
from agent.settings.values import MAX_DURATION, MAX_SIZE, parse_filter


def exactly(message: str) -> str:
    """A pattern for one message."""
    return f"^{re.escape(message)}$"


MILLISECOND = dt.timedelta(milliseconds=1)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("90s", 90),
        ("15m", 900),
        ("1h30m", 5400),
        ("30d", 30 * 86_400),
        ("1w", 7 * 86_400),
        ("500ms", 0.5),
        ("1w2d3h4m5s6ms", 788_645.006),
        ("90m", 5400),
        ("0s", 0),
        ("0", 0),
        (0, 0),
        (0.0, 0),
        (" 5s ", 5),
        ("007s", 7),
    ],
    ids=repr,
)
def test_a_duration_is_read(text: object, seconds: float) -> None:
    """Numbers with units, from the largest to the smallest."""
    assert parse_duration(text) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text, message",
    [
        (90, "a number alone has no unit: write 90s"),
        ("90", "a number alone has no unit: write 90s"),
        (1.5, "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("1.5h", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("30m1h", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("1h1h", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("1H", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("1 h", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("h", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("1y", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("٣s", "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("12:30", "give a duration such as 90s, 15m, 1h30m or 30d"),
        (True, "give a duration such as 90s, 15m, 1h30m or 30d"),
        (None, "give a duration such as 90s, 15m, 1h30m or 30d"),
        (["1h"], "give a duration such as 90s, 15m, 1h30m or 30d"),
        ("-5m", "a duration is never negative"),
        (-5, "a duration is never negative"),
        (dt.timedelta(seconds=-1), "a duration is never negative"),
        ("36501d", "give no more than 36500d"),
        ("999999999999999w", "give no more than 36500d"),
        (f"{'9' * 16}s", "give a duration such as 90s, 15m, 1h30m or 30d"),
        (float("nan"), "give a duration such as 90s, 15m, 1h30m or 30d"),
        (float("inf"), "give a duration such as 90s, 15m, 1h30m or 30d"),
    ],
    ids=repr,
)
def test_what_is_no_duration_is_refused(text: object, message: str) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=exactly(message)):
        parse_duration(text)


@pytest.mark.parametrize(
    "duration, text",
    [
        (dt.timedelta(0), "0s"),
        (dt.timedelta(seconds=90), "1m30s"),
        (dt.timedelta(minutes=60), "1h"),
        (dt.timedelta(days=30), "30d"),
        (dt.timedelta(weeks=1), "7d"),
        (dt.timedelta(milliseconds=1500), "1s500ms"),
        (dt.timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5), "1d2h3m4s5ms"),
        (dt.timedelta(seconds=-90), "-1m30s"),
    ],
)
def test_a_duration_is_written(duration: dt.timedelta, text: str) -> None:
    """In one way only, whatever it was read from."""
    assert format_duration(duration) == text


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=MAX_DURATION // MILLISECOND))
def test_a_duration_comes_back_as_it_was(milliseconds: int) -> None:
    """Reading what was written gives the same duration, and writing it again the same text."""
    duration = milliseconds * MILLISECOND
    assert parse_duration(format_duration(duration)) == duration


@settings(deadline=None)
@given(st.text(max_size=12) | st.text(alphabet="0123456789wdhms", max_size=12))
def test_any_text_is_a_duration_or_a_problem(text: str) -> None:
    """Never another exception, and what is taken comes back."""
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert dt.timedelta(0) <= duration <= MAX_DURATION
    assert parse_duration(format_duration(duration)) == duration


def test_a_setting_of_a_duration_is_written_as_people_write_it() -> None:
    """In Python and in JSON, alone, optional and inside a mapping."""

    class Model(BaseModel):
        one: Duration = dt.timedelta(minutes=90)
        none: Duration | None = None
        many: dict[str, Duration] = {"a": dt.timedelta(days=7)}

    expected = {"one": "1h30m", "none": None, "many": {"a": "7d"}}
    assert Model().model_dump() == expected
    assert json.loads(Model().model_dump_json()) == expected
    assert Model.model_validate(expected) == Model()


@pytest.mark.parametrize(
    "text, size",
    [
        ("2GiB", 2 * 2**30),
        ("500MB", 500 * 10**6),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1TB", 10**12),
        ("1TiB", 2**40),
        ("17B", 17),
        ("17", 17),
        (17, 17),
    ],
    ids=repr,
)
def test_a_size_is_read(text: object, size: int) -> None:
    """With a binary or a decimal unit, or as bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "1.5GiB", "2 GiB", "2gib", "2G", "-1", -1, True, None, 1.5, "0", 0, "9" * 20], ids=repr
)
def test_what_is_no_size_is_refused(text: object) -> None:
    """Zero too: an archive that may hold nothing refuses every change, which has its own switch."""
    with pytest.raises(ValueError, match=r"^give a size such as 500MB or 2GiB"):
        parse_size(text)


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=MAX_SIZE))
def test_a_size_comes_back_as_it_was(size: int) -> None:
    """Reading what was written gives the same size."""
    assert parse_size(format_size(size)) == size


def test_a_size_is_written_with_its_unit() -> None:
    """In the unit that it was probably given in."""
    adapter = TypeAdapter[int](Size)
    written = [adapter.dump_python(size) for size in (2 * 2**30, 500 * 10**6, 1024, 1000, 1)]
    assert written == ["2GiB", "500MB", "1KiB", "1kB", "1B"]


@pytest.mark.parametrize(
    "given_filter, expected",
    [
        ({}, {}),
        ({"a": 1, "b": {"$in": [1, None]}}, {"a": 1, "b": {"$in": [1, None]}}),
        ('{"a": {"$oid": "65a000000000000000000000"}}', {"a": {"$oid": "65a000000000000000000000"}}),
        ({"at": {"$lt": dt.date(2026, 1, 31)}}, {"at": {"$lt": {"$date": "2026-01-31T00:00:00.000Z"}}}),
        (
            {"at": [dt.datetime(2026, 1, 31, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))]},
            {"at": [{"$date": "2026-01-31T10:00:00.000Z"}]},
        ),
        ({"a": "$where"}, {"a": "$where"}),
    ],
)
def test_a_filter_is_kept_in_extended_json(given_filter: object, expected: dict[str, Any]) -> None:
    """A mapping or text; dates that YAML read become Extended JSON too, so that it can be shown and read again."""
    assert parse_filter(given_filter) == expected
    assert json.loads(json.dumps(parse_filter(given_filter))) == expected


@pytest.mark.parametrize("operator", ["$where", "$function", "$accumulator", "$text", "$near", "$nearSphere", "$code"])
@pytest.mark.parametrize("path", ["top", "deep", "list"])
def test_an_operator_that_runs_code_or_needs_its_own_index_is_refused(operator: str, path: str) -> None:
    """At any depth."""
    bad = {"top": {operator: 1}, "deep": {"a": {"b": {operator: 1}}}, "list": {"$or": [{"a": 1}, {operator: 1}]}}[path]
    with pytest.raises(ValueError, match=exactly(f"{operator} cannot stand in a filter here")):
        parse_filter(bad)


def _deep(levels: int) -> dict[str, Any]:
    return {"a": _deep(levels - 1)} if levels > 1 else {"a": 1}


@pytest.mark.parametrize(
    "bad, message",
    [
        ([], "give a MongoDB filter: a mapping, or Extended JSON text"),
        (None, "give a MongoDB filter: a mapping, or Extended JSON text"),
        ("[1]", "give a MongoDB filter: a mapping, or Extended JSON text"),
        ({1: 2}, "the key 1 is not a string"),
        ({"a": {1: 2}}, "the key 1 is not a string"),
        (_deep(21), "give a filter of at most 20 levels"),
        ({"a": {"$in": list(range(1001))}}, "give a filter of at most 1000 entries"),
        ("{", "give a MongoDB filter: a mapping, or Extended JSON text (Expecting property name"),
    ],
)
def test_what_is_no_filter_is_refused(bad: object, message: str) -> None:
    """With the reason."""
    with pytest.raises(ValidationError, match=re.escape(message)):
        TypeAdapter[Any](Filter).validate_python(bad)


def test_a_filter_at_its_limits_is_taken() -> None:
    """The other side of both lines."""
    assert parse_filter(_deep(19))
    assert parse_filter({"a": {"$in": list(range(998))}})


@pytest.mark.parametrize("name", ["a", "orphan-apps", "a_b-0", "0", "-", "_"])
def test_a_name_of_a_job_is_taken(name: str) -> None:
    """Small letters, digits, `_` and `-`."""
    assert TypeAdapter[str](JobName).validate_python(name) == name


@pytest.mark.parametrize("name", ["", "A", "a b", "a.b", "ä", "a\n", "a/b"])
def test_another_name_of_a_job_is_refused(name: str) -> None:
    """It stands in URLs, labels and variables."""
    with pytest.raises(ValidationError):
        TypeAdapter[str](JobName).validate_python(name)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a$b", "a/b", "a\\b", 'a"b', "x" * 64, "ä" * 32])
def test_a_name_that_no_database_can_have_is_refused(name: str) -> None:
    """As the server would, but before it is asked."""
    with pytest.raises(ValidationError):
        TypeAdapter[str](DatabaseName).validate_python(name)


def test_utc_needs_no_database_of_time_zones() -> None:
    """The default works in the smallest image."""
    assert zone("UTC") is dt.UTC


@pytest.mark.parametrize(
    "name, hint",
    [
        ("europe/berlin", "; did you mean `Europe/Berlin`?"),
        ("Europe/Berlni", "; did you mean `Europe/Berlin`?"),
        ("New York", "; did you mean `America/New_York`?"),
        ("utc", "; did you mean `UTC`?"),
        ("../../etc/passwd", ""),
        ("Mars", ""),
        ("", ""),
        ("America", ""),
    ],
)
def test_an_unknown_time_zone_is_refused_with_the_nearest(name: str, hint: str) -> None:
    """By spelling, or by its city."""
    with pytest.raises(ValueError, match=exactly(f"give the name of a time zone such as UTC or Europe/Berlin{hint}")):
        zone(name)
