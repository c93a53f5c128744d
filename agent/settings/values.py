"""The values that settings are made of: durations, sizes, filters, names.

Each is an annotated type: pydantic parses and bounds it, ``Accepts`` says in words what it takes (messages and the
reference quote it), and it serialises back to the text that it was written as.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, StringConstraints, WithJsonSchema

MAX_DURATION = dt.timedelta(days=36_500)  # a century: `now` minus this is still a date
MAX_SIZE = 2**60
MAX_FILTER_DEPTH = 20
MAX_FILTER_ENTRIES = 1000

# Run code on the server, need an index or a sort of their own, or cannot stand beside the conditions of a rule.
REFUSED_OPERATORS = frozenset({"$accumulator", "$code", "$function", "$near", "$nearSphere", "$text", "$where"})

DURATION_PATTERN = (
    r"^(?=[0-9])([0-9]{1,15}w)?([0-9]{1,15}d)?([0-9]{1,15}h)?([0-9]{1,15}m)?([0-9]{1,15}s)?([0-9]{1,15}ms)?$"
)
SIZE_PATTERN = r"^[0-9]{1,20}(B|[kK]B|[MGT]B|[KMGT]iB)?$"
JOB_NAME_PATTERN = r"^[a-z0-9_-]+$"

_UNITS_MS = (7 * 86_400_000, 86_400_000, 3_600_000, 60_000, 1000, 1)  # w d h m s ms, as in the pattern
_SHOWN_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_SIZE_UNITS = {
    "TiB": 2**40,
    "TB": 10**12,
    "GiB": 2**30,
    "GB": 10**9,
    "MiB": 2**20,
    "MB": 10**6,
    "KiB": 2**10,
    "kB": 10**3,
    "B": 1,
}
_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(SIZE_PATTERN)
JOB_NAME = re.compile(JOB_NAME_PATTERN)
_BARE_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Accepts:
    """What a type takes, in words that follow "give"."""

    words: str


DURATION_WORDS = "a duration such as 90s, 15m, 1h30m or 30d"
SIZE_WORDS = "a size such as 500MB or 2GiB"
FILTER_WORDS = "a MongoDB filter: a mapping, or Extended JSON text"


def parse_duration(value: object) -> dt.timedelta:
    """The duration that ``90s``, ``15m``, ``1h30m``, ``30d``, ``500ms``, ``1w`` or 0 say.

    Units stand from the largest to the smallest, each once. Raises ``ValueError``.
    """
    if isinstance(value, dt.timedelta):
        return _bounded(round(value / dt.timedelta(milliseconds=1)))
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"give {DURATION_WORDS}")  # noqa: TRY004 - pydantic turns ValueError into a problem
    text = value.strip()
    if text in {"0", "0.0"}:
        return dt.timedelta(0)
    if _BARE_NUMBER.fullmatch(text):
        raise ValueError(f"a number alone has no unit: write {text}s")
    if text.startswith("-"):
        raise ValueError("a duration is never negative")
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"give {DURATION_WORDS}")
    return _bounded(sum(int(part.rstrip("wdhms")) * ms for part, ms in zip(match.groups("0"), _UNITS_MS, strict=True)))


def _bounded(milliseconds: int) -> dt.timedelta:
    if milliseconds < 0:
        raise ValueError("a duration is never negative")
    if milliseconds > MAX_DURATION / dt.timedelta(milliseconds=1):
        raise ValueError(f"give no more than {format_duration(MAX_DURATION)}")
    return dt.timedelta(milliseconds=milliseconds)


@functools.lru_cache(maxsize=256)  # a rule says the same few limits once a document
def format_duration(duration: dt.timedelta) -> str:
    """The text that ``parse_duration`` reads as this duration, to the millisecond: ``1h30m``, ``30d``, ``0s``."""
    left = round(duration / dt.timedelta(milliseconds=1))
    sign, left = ("-", -left) if left < 0 else ("", left)
    text = ""
    for unit, milliseconds in _SHOWN_UNITS_MS.items():
        count, left = divmod(left, milliseconds)
        text += f"{count}{unit}" if count else ""
    return sign + (text or "0s")


DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"const": 0}],
    "examples": ["90s", "15m", "1h30m", "30d"],
}
Duration = Annotated[
    dt.timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(DURATION_SCHEMA),
    Accepts(DURATION_WORDS),
]


def parse_size(value: object) -> int:
    """The bytes that ``2GiB``, ``500MB`` or a whole number say. Raises ``ValueError``."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = value.strip() if isinstance(value, str) else ""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"give {SIZE_WORDS}")
    unit = (match[1] or "B").replace("KB", "kB")
    size = int(text.rstrip("kKMGTiB")) * _SIZE_UNITS[unit]
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"give {SIZE_WORDS}, from 1B to {format_size(MAX_SIZE)}")
    return size


def format_size(size: int) -> str:
    """The size in the unit that needs the smallest whole number."""
    count, unit = min((size // factor, unit) for unit, factor in _SIZE_UNITS.items() if size % factor == 0)
    return f"{count}{unit}"


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 1}]}),
    Accepts(SIZE_WORDS),
]


def parse_filter(value: object) -> Mapping[str, Any]:
    """A MongoDB filter in Extended JSON, given as a mapping or as text. Raises ``ValueError``.

    A date that YAML read becomes ``{"$date": ...}``; nothing else is converted here.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"give {FILTER_WORDS} ({error})") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"give {FILTER_WORDS}")  # noqa: TRY004 - pydantic turns ValueError into a problem
    checked, entries = _checked(value, 1)
    if entries > MAX_FILTER_ENTRIES:
        raise ValueError(f"give a filter of at most {MAX_FILTER_ENTRIES} entries")
    return dict(checked)


def _checked(value: Any, depth: int) -> tuple[Any, int]:
    """The value with its dates in Extended JSON, and the number of its entries. Raises ``ValueError``."""
    if depth > MAX_FILTER_DEPTH:
        raise ValueError(f"give a filter of at most {MAX_FILTER_DEPTH} levels")
    if isinstance(value, Mapping):
        _check_keys(value)
        parts = {key: _checked(entry, depth + 1) for key, entry in value.items()}
        return {key: part for key, (part, _) in parts.items()}, len(parts) + sum(count for _, count in parts.values())
    if isinstance(value, list | tuple):
        items = [_checked(entry, depth + 1) for entry in value]
        return [item for item, _ in items], len(items) + sum(count for _, count in items)
    if isinstance(value, dt.date):
        return {"$date": _iso(value)}, 0
    return value, 0


def _check_keys(mapping: Mapping[Any, Any]) -> None:
    for key in mapping:
        if not isinstance(key, str):
            raise ValueError(f"the key {key!r} is not a string")  # noqa: TRY004 - pydantic turns ValueError into a problem
        if key in REFUSED_OPERATORS:
            raise ValueError(f"{key} cannot stand in a filter here")


def _iso(value: dt.date) -> str:
    """The instant in ISO 8601; a date is its midnight, and without a zone it is UTC."""
    moment = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Filter = Annotated[
    Mapping[str, Any],
    BeforeValidator(parse_filter),
    WithJsonSchema({"type": ["object", "string"]}),
    Accepts(FILTER_WORDS),
]

JobName = Annotated[
    str,
    StringConstraints(pattern=JOB_NAME_PATTERN),
    Accepts("a name of small letters, digits, `_` and `-`"),
]

_BAD_IN_DATABASE = re.compile(r"[/\\. \"$*<>:|?\x00]")
_MAX_DATABASE = 63  # bytes, the server's own limit


def _database(value: str) -> str:
    if not value or len(value.encode()) > _MAX_DATABASE or _BAD_IN_DATABASE.search(value):
        raise ValueError('give the name of a database: 1 to 63 characters, none of / \\ . " $ * < > : | ? or a space')
    return value


DatabaseName = Annotated[str, AfterValidator(_database), Accepts("the name of a database")]
