"""Values as the store compares, names and shows them."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import re
import uuid
from typing import Any

import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS

from agent.errors import StoreError, StoreUnavailableError
from agent.store import (
    Store,
    comparable,
    decode,
    encode,
    from_extended_json,
    from_extended_mapping,
    id_to_json,
    to_extended_json,
    type_name,
)

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
ID = ObjectId("65e1c0000000000000000000")

ALIKE: list[list[Any]] = [
    [1, Int64(1), 1.0, Decimal128("1"), Decimal128("1.0")],
    [0, 0.0, -0.0, Decimal128("0")],
    [math.inf, Decimal128("Infinity")],
    [math.nan, Decimal128("NaN"), Decimal128("-NaN")],
    [2**53 + 1, Int64(2**53 + 1), Decimal128("9007199254740993")],
    [True],
    [False],
    ["1"],
    [b"1", Binary(b"1", 0)],
    [Binary(b"1", 128)],
    [None],
    [ID],
    [str(ID)],
    [NOON],
    [DatetimeMS(2**60)],
    [[1]],
    [{"a": 1}],
    [{}],
    [Timestamp(1, 1)],
    [Regex("a")],
    [MinKey()],
    [MaxKey()],
    [Code("1")],
    [Code("a")],
    ["a"],
    [DBRef("a", 1)],
]


def test_what_the_server_takes_for_equal_has_one_stand_in_and_all_else_different_ones() -> None:
    """Numbers of all types compare by value; no two other types are ever equal."""
    for group in ALIKE:
        assert len({comparable(value) for value in group}) == 1, group
    for one, other in itertools.combinations(ALIKE, 2):
        assert comparable(one[0]) != comparable(other[0]), (one, other)


def test_keys_of_several_fields_have_stand_ins_too() -> None:
    """A tuple stands for the values of several fields."""
    assert comparable(("a", 1)) == comparable(("a", 1.0))
    assert comparable(("a", 1)) != comparable(("a", True))


@pytest.mark.parametrize(
    "values, name",
    [
        ([1, Int64(1), 1.5, Decimal128("1")], "number"),
        ([True], "bool"),
        (["a"], "string"),
        ([None], "null"),
        ([ID], "objectId"),
        ([NOON, DatetimeMS(2**60)], "date"),
        ([b"a"], "binData"),
        ([[1]], "array"),
        ([{"a": 1}], "object"),
    ],
)
def test_the_name_of_a_type_is_that_of_bson_with_all_numbers_as_one(values: list[Any], name: str) -> None:
    """As the server's comparison has it."""
    assert {type_name(value) for value in values} == {name}


def test_types_that_are_no_text_are_not_named_so() -> None:
    """JavaScript code compares with no text, though its class is one of text."""
    assert type_name(Code("a")) != "string"


ODD: dict[str, Any] = {
    "regex": Regex("^a", "im"),
    "decimal": Decimal128("1.10"),
    "binary": Binary(b"\x00\xff", 128),
    "uuid": Binary.from_uuid(uuid.UUID(int=7)),
    "timestamp": Timestamp(1, 2),
    "nan": math.nan,
    "min": MinKey(),
    "max": MaxKey(),
    "long": Int64(1),
    "far": DatetimeMS(2**60),
    "nested": {"a": {"b": [1, {"c": None}]}},
    "$dollar": {"$x": 1},
    "dotted.name": 1,
    "code": Code("x", {"y": 1}),
}


def test_decoding_and_encoding_give_the_same_bytes() -> None:
    """Values of every type survive, in their order."""
    data = encode(ODD)
    assert encode(decode(data)) == data


def test_every_value_can_be_shown_as_json() -> None:
    """Dates are text for people; other types say what they are."""
    shown = to_extended_json({**ODD, "at": NOON, "id": ID})
    assert shown["at"] == "2026-03-01T12:00:00.000Z"
    assert shown["id"] == {"$oid": str(ID)}
    assert shown["decimal"] == {"$numberDecimal": "1.10"}
    assert shown["long"] == 1
    assert to_extended_json((1, "a")) == [1, "a"]


def test_an_id_that_is_shown_can_be_read_again() -> None:
    """As the server compares, which takes 1 and 1.0 for the same."""
    uuids = [Binary.from_uuid(uuid.UUID(int=7)), Binary(b"7" * 16, 3)]
    for id in (*itertools.chain.from_iterable(ALIKE), *uuids):
        assert comparable(from_extended_json(json.dumps(id_to_json(id)))) == comparable(id)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1", 1),
        ('"a"', "a"),
        ('{"$oid": "65e1c0000000000000000000"}', ID),
        ('{"a": 1}', {"a": 1}),
        ("true", True),
        ('{"$date": "2026-03-01T12:00:00Z"}', NOON),
    ],
)
def test_extended_json_is_read(text: str, value: Any) -> None:
    """Plain JSON and the types of BSON."""
    assert from_extended_json(text) == value


@pytest.mark.parametrize("text", ["a", "", "{", '{"$oid": "x"}', '{"$numberDecimal": []}', '{"$date": {}}'])
def test_what_is_no_extended_json_is_a_value_error(text: str) -> None:
    """Nothing of the driver leaks."""
    with pytest.raises(ValueError, match=re.compile(".")):
        from_extended_json(text)


def test_a_filter_from_the_configuration_may_name_bson_types() -> None:
    """Operators stay operators, types become values."""
    said = {
        "$or": [{"_id": {"$in": [{"$oid": str(ID)}, 7]}}, {"at": {"$lt": {"$date": "2026-03-01T12:00:00Z"}}}],
        "tenant": "a",
    }
    assert from_extended_mapping(said) == {
        "$or": [{"_id": {"$in": [ID, 7]}}, {"at": {"$lt": NOON}}],
        "tenant": "a",
    }


@pytest.mark.parametrize("uri", ["mongodb://h:99999", "mongodb://h:port", "mongodb+srv://", "mongodb://"])
async def test_what_can_be_no_connection_string_is_said_at_once(uri: str) -> None:
    """As an error of ours, and not as a server that is away."""
    with pytest.raises(StoreError) as raised:
        Store(uri)
    assert not isinstance(raised.value, StoreUnavailableError)
