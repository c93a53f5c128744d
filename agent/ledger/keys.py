"""The names of bookings: the id of a database as the name of a field, safe and reversible."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import uuid
from decimal import Decimal
from typing import Any, Final

from agent.errors import BookingKeyError, shown
from agent.quantity import LARGEST
from agent.store import Binary, DatetimeMS, Decimal128, ObjectId

KEY_BYTES: Final = 512  # of an encoded key: ids are short, and a document of 16 MiB has to hold all bookings

_UNSAFE: Final = re.compile(r"[%.$\0]")
_OBJECT_ID: Final = re.compile(r"[0-9a-f]{24}")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)


def encode_key(key: object) -> str:
    """The name of the field that holds the booking of ``key``: one name a key, and always a safe one.

    An ObjectId is its 24 digits, so an application may say the id or its text. Text is itself, except for what cannot
    stand in the name of a field (``.``, ``$``, NUL, and ``%``, which announces such a character). Whole numbers,
    binary values (UUIDs) and dates are marked by their type: 1 and "1" are two. Raises BookingKeyError for the rest.
    """
    name = _name_of(key)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BookingKeyError(f"{shown(key)} cannot be the key of a booking: it is not valid Unicode text") from None
    if size > KEY_BYTES:
        raise BookingKeyError(f"{shown(key)} cannot be the key of a booking: longer than {KEY_BYTES} bytes")
    return name


def decode_key(name: str) -> Any:
    """The key that ``encode_key`` made ``name`` of. Raises BookingKeyError where it made none such."""
    with contextlib.suppress(ValueError):
        key = _key_of(name)
        if encode_key(key) == name:
            return key
    raise BookingKeyError(f"{shown(name)} is not the name of a booking")


def _name_of(key: object) -> str:
    if isinstance(key, ObjectId):
        return str(key)
    if isinstance(key, str):
        return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", key) or "%"
    if isinstance(key, int | float | Decimal128) and not isinstance(key, bool):
        return f"%n:{_whole(key)}"
    if isinstance(key, bytes | uuid.UUID):
        data = Binary.from_uuid(key) if isinstance(key, uuid.UUID) else key
        return f"%b:{getattr(data, 'subtype', 0):02x}:{data.hex()}"
    if isinstance(key, dt.datetime):
        aware = key if key.tzinfo else key.replace(tzinfo=dt.UTC)  # as the driver reads it
        return f"%d:{(aware - _EPOCH) // _MILLISECOND}"
    if isinstance(key, DatetimeMS):
        return f"%d:{int(key)}"
    raise BookingKeyError(
        f"{shown(key)} cannot be the key of a booking: expected the _id of a database (an ObjectId, text, a whole "
        "number, a UUID, binary data or a date)"
    )


def _whole(number: float | Decimal128) -> int:
    """The integer that a number is: the server takes 1, 1.0 and Decimal128("1") for one id, and so does this."""
    exact = number.to_decimal() if isinstance(number, Decimal128) else Decimal(number)
    if not exact.is_finite() or not -LARGEST - 1 <= exact <= LARGEST or exact != int(exact):
        raise BookingKeyError(f"{exact} cannot be the key of a booking: expected a whole number of 64 bits")
    return int(exact)


def _key_of(name: str) -> Any:
    if _OBJECT_ID.fullmatch(name):
        return ObjectId(name)
    mark, text = name[:3], name[3:]
    if mark == "%n:":
        return int(text)
    if mark == "%d:":
        return _date_of(int(text))
    if mark == "%b:":
        subtype, _, digits = text.partition(":")
        data = bytes.fromhex(digits)
        return Binary(data, int(subtype, 16)) if int(subtype, 16) else data  # as the driver decodes them
    return "" if name == "%" else re.sub(r"%(25|2E|24|00)", lambda match: chr(int(match[1], 16)), name)


def _date_of(milliseconds: int) -> dt.datetime | DatetimeMS:
    try:
        return _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        return DatetimeMS(milliseconds)
