"""The words that rules are written in: conditions, and the MongoDB filters that say them exactly.

MongoDB compares an array element by element and a range only within one type. A rule about "a date before the horizon"
must not be met by an array of dates, and must not overlook a date that is a string: these helpers say both.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.store import Document, ObjectId

_NOT_AN_ARRAY: Document = {"$not": {"$type": "array"}}
# Named one by one, since the planner makes index bounds of a list of types but not of "not a date"; nor does it of a
# list that names arrays, which may hold anything.
_NO_DATE_TYPES = [
    "minKey", "double", "string", "object", "array", "binData", "undefined", "objectId", "bool", "null", "regex",
    "dbPointer", "javascript", "symbol", "javascriptWithScope", "int", "timestamp", "long", "decimal", "maxKey",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule: a sentence, the MongoDB filter that says it, and the fields that it looks at.

    The selection, the guarded write and ``explain`` are all made of these, so that there is one source of the rule.
    """

    name: str
    filter: Document
    fields: tuple[str, ...]


def together(*conditions: Condition) -> Document:
    """The filter that says all the conditions at once."""
    filters = [condition.filter for condition in conditions if condition.filter]
    return {"$and": filters} if filters else {}


def _parents(field: str) -> list[str]:
    """What a dotted path leads through: MongoDB would look into each entry of an array there."""
    parts = field.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _itself(field: str, test: Document) -> Document:
    """The field itself meets the test: no entry of an array that it holds, nor one of an array that holds it."""
    return {field: {**test, **_NOT_AN_ARRAY}, **dict.fromkeys(_parents(field), _NOT_AN_ARRAY)}


def one_of(field: str, values: Sequence[Any]) -> Document:
    """The field holds one of the values; an array that contains one does not count."""
    return _itself(field, {"$in": list(values)})


def among(field: str, values: Sequence[Any]) -> Document:
    """The field holds one of the values, or an array that contains one: as much as an index tells by itself."""
    return {field: {"$in": list(values)}}


def before(field: str, horizon: dt.datetime) -> Document:
    """The field holds a date earlier than ``horizon``."""
    return _itself(field, {"$lt": horizon})


def absent(field: str) -> Document:
    """The field is null or missing."""
    return _itself(field, {"$eq": None})


def no_date(field: str, horizon: dt.datetime | None = None) -> Document:
    """The field holds no date, whatever else it holds or does not.

    With a ``horizon`` an array that holds nothing but later dates (or arrays) is overlooked: an index does not tell it
    from a date, and to look for it takes a walk over all documents that have one.
    """
    if horizon is None:
        return {"$or": [{field: {"$type": _NO_DATE_TYPES}}, {field: {"$exists": False}}, *_in_arrays(field)]}
    types = [name for name in _NO_DATE_TYPES if name != "array"]
    arrays = [{field: {"$eq": []}}, {field: {"$type": "array", "$lt": horizon}}]
    return {"$or": [{field: {"$type": types}}, {field: {"$exists": False}}, *arrays, *_in_arrays(field)]}


def odd_date(field: str) -> Document:
    """The field holds something that is neither a date nor null."""
    odd = {field: {"$type": [name for name in _NO_DATE_TYPES if name not in {"null", "undefined"}]}}
    return {"$or": [odd, *_in_arrays(field)]} if _parents(field) else odd


def _in_arrays(field: str) -> list[Document]:
    return [{parent: {"$type": "array"}} for parent in _parents(field)]


def made_before(field: str | None, horizon: dt.datetime) -> Document:
    """The document was made before ``horizon``: by its field, else by the time in its ObjectId, else it has no age."""
    if field is not None:
        return before(field, horizon)
    # An ObjectId counts in seconds: those of the horizon's own second are older unless it begins with it.
    latest = ObjectId.from_datetime(horizon + dt.timedelta(microseconds=-horizon.microsecond % 1_000_000))
    return {"$or": [{"_id": {"$lt": latest}}, {"_id": {"$not": {"$type": "objectId"}}}]}


def made_at(document: Document, field: str | None) -> dt.datetime | None:
    """The instant that ``made_before`` compares, where the document has one."""
    value = read(document, field) if field is not None else document.get("_id")
    if isinstance(value, ObjectId):
        return value.generation_time if field is None else None
    return value if isinstance(value, dt.datetime) else None


def read(document: Document, path: str) -> Any:
    """The value at a dotted path; ``None`` where there is none."""
    if "." not in path:
        return document.get(path)
    value: Any = document
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value
