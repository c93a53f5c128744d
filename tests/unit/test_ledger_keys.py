"""Every id has one name as the field of a booking, every name leads back to its id, and no name can do harm."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from agent.ledger import BookingKeyError, decode_key, encode_key

OID = ObjectId("64b7f0c2a1d2e3f405162738")
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
DATE = dt.datetime(2026, 11, 22, 1, 2, 3, 4000, tzinfo=dt.UTC)

NAMES: dict[str, Any] = {
    "64b7f0c2a1d2e3f405162738": OID,
    "orders-eu": "orders-eu",
    "naïve 日本": "naïve 日本",
    "7": "7",
    "%n:7": 7,
    "%n:-7": Int64(-7),
    "%2E": ".",
    "a%2Eb%2E%24set": "a.b.$set",
    "%24where": "$where",
    "nul%00": "nul\0",
    "100%25": "100%",
    "%25n:7": "%n:7",
    "%25": "%",
    "%": "",
    "%b:00:ff00": b"\xff\x00",
    "%b:04:12345678123456781234567812345678": Binary.from_uuid(UUID),
    "%d:1795309323004": DATE,
    "%d:-99999999999999999": DatetimeMS(-99999999999999999),
}


@pytest.mark.parametrize("name, key", NAMES.items(), ids=repr)
def test_a_key_is_encoded_as_written_here_and_comes_back(name: str, key: Any) -> None:
    """Plain ids stay readable; what cannot stand in the name of a field is escaped; types are kept apart."""
    assert encode_key(key) == name
    assert decode_key(name) == key


@pytest.mark.parametrize(
    "key, same",
    [
        ("64b7f0c2a1d2e3f405162738", OID),
        (7.0, 7),
        (Decimal128("7.00"), 7),
        (UUID, Binary.from_uuid(UUID)),
        (DATE.replace(tzinfo=None), DATE),
        (DATE.astimezone(dt.timezone(dt.timedelta(hours=5))), DATE),
    ],
    ids=repr,
)
def test_what_is_one_id_to_the_server_or_to_people_has_one_name(key: Any, same: Any) -> None:
    """An ObjectId may be given as its text; equal numbers and equal instants are one."""
    assert encode_key(key) == encode_key(same)


@pytest.mark.parametrize(
    "key, reason",
    [
        (None, "None cannot be the key of a booking: expected the _id of a database"),
        (True, "True cannot be the key"),
        (1.5, "1.5 cannot be the key of a booking: expected a whole number of 64 bits"),
        (float("nan"), "NaN cannot be the key"),
        (float("inf"), "Infinity cannot be the key"),
        (Decimal128("sNaN"), "sNaN cannot be the key"),
        (2**63, "9223372036854775808 cannot be the key"),
        ({"$gt": ""}, "a value of type dict cannot be the key"),
        (["a"], "a value of type list cannot be the key"),
        (Regex(".*"), "a value of type Regex cannot be the key"),
        (Decimal(1), "a value of type Decimal cannot be the key"),
        ("x" * 513, "longer than 512 bytes"),
        ("." * 171, "longer than 512 bytes"),
        (b"x" * 256, "longer than 512 bytes"),
        ("\ud800", "not valid Unicode text"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_value_that_cannot_be_a_key_is_refused_by_name(key: Any, reason: str) -> None:
    """Nothing is guessed: an absent id, a truth value, a fraction, a query operator and endless text are no keys."""
    with pytest.raises(BookingKeyError, match=reason):
        encode_key(key)


@pytest.mark.parametrize("key", ["x" * 512, "." * 170, 2**63 - 1, -(2**63), b"x" * 253])
def test_the_largest_keys_are_keys(key: Any) -> None:
    """One byte or one unit less than what is refused is fine."""
    assert decode_key(encode_key(key)) == key


@pytest.mark.parametrize(
    "name", ["%n:07", "%n:", "%n:x", "%d:1.5", "%b:4:ff", "%b:04:f", "a.b", "$set", "a%", "%2e", ""]
)
def test_a_name_that_the_ledger_did_not_make_is_refused(name: str) -> None:
    """Who wrote such a field did not use the ledger."""
    with pytest.raises(BookingKeyError, match="is not the name of a booking"):
        decode_key(name)


KEYS = st.one_of(
    st.text(max_size=40),
    st.text("%.$\0n:b24dE", max_size=12),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=40),
    st.builds(ObjectId, st.binary(min_size=12, max_size=12)),
    st.builds(Binary, st.binary(max_size=20), st.integers(128, 255)),
    st.builds(
        lambda date: date.replace(microsecond=date.microsecond // 1000 * 1000),
        st.datetimes(timezones=st.just(dt.UTC)),
    ),
)


@given(KEYS, KEYS)
def test_different_keys_have_different_names_that_are_one_step_of_a_path(one: Any, other: Any) -> None:
    """The only two keys of one name are an ObjectId and its text."""
    name = encode_key(one)
    assert name
    assert not set(name) & {".", "$", "\0"}
    assert encode_key(decode_key(name)) == name
    if name == encode_key(other):
        assert str(one) == str(other) or one == other
    if not (isinstance(one, str) and len(name) == 24):
        assert decode_key(name) == one
