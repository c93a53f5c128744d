"""The words that rules are written in: what they read in a document, and the filters that they make."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from bson import ObjectId

from agent.conditions import Condition, absent, before, made_at, made_before, one_of, read, together

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "document, path, value",
    [
        ({"a": 1}, "a", 1),
        ({"a": {"b": {"c": 2}}}, "a.b.c", 2),
        ({"a": {"b": 1}}, "a.c", None),
        ({"a": None}, "a.b", None),
        ({"a": [{"b": 1}]}, "a.b", None),
        ({"a.b": 1}, "a.b", None),
        ({}, "a", None),
    ],
)
def test_a_value_is_read_at_its_dotted_path_and_never_out_of_an_array(document: Any, path: str, value: Any) -> None:
    """What is not there, or lies in an array, reads as nothing."""
    assert read(document, path) == value


def test_together_says_all_conditions_and_leaves_out_empty_ones() -> None:
    """A condition without a filter adds nothing; without any the filter is that of all documents."""
    first, second = Condition("a", {"a": 1}, ("a",)), Condition("b", {"b": 2}, ("b",))
    assert together(first, Condition("always", {}, ()), second) == {"$and": [{"a": 1}, {"b": 2}]}
    assert together(Condition("always", {}, ())) == {}


def test_ranges_and_lists_never_look_into_arrays() -> None:
    """Arrays are refused, of which MongoDB would otherwise compare each entry, anywhere on the path."""
    no_array = {"$not": {"$type": "array"}}
    for filter in (before("at", NOON), one_of("at", [1]), absent("at")):
        assert list(filter) == ["at"]
        assert filter["at"].items() >= no_array.items()
    for filter in (before("a.b.at", NOON), one_of("a.b.at", [1]), absent("a.b.at")):
        assert filter["a"] == filter["a.b"] == no_array
        assert filter["a.b.at"].items() >= no_array.items()


def test_a_document_was_made_when_its_field_says_a_date_and_else_never() -> None:
    """The ObjectId counts only where there is no field."""
    id = ObjectId.from_datetime(NOON)
    assert made_at({"_id": id, "at": NOON}, "at") == NOON
    assert made_at({"_id": id, "at": id}, "at") is None
    assert made_at({"_id": id, "at": "2026-03-01"}, "at") is None
    assert made_at({"_id": id}, "at") is None
    assert made_at({"_id": id}, None) == NOON
    assert made_at({"_id": "text"}, None) is None


@pytest.mark.parametrize("fraction", [0, 1, 500_000, 999_999])
@pytest.mark.parametrize("seconds", [-1, 0, 1])
def test_python_and_the_server_agree_which_object_ids_are_old(seconds: int, fraction: int) -> None:
    """An ObjectId counts in seconds; whatever part of a second the horizon has, both sides draw the same line."""
    horizon = NOON + dt.timedelta(microseconds=fraction)
    id = ObjectId(f"{int(NOON.timestamp()) + seconds:08x}{'f' * 16}")
    made = made_at({"_id": id}, None)
    assert made is not None
    bound = made_before(None, horizon)["$or"][0]["_id"]["$lt"]
    assert (id < bound) == (made < horizon)
