"""Orphan records: deletes the records whose directory is missing under the root.

Each record's directory is named by a template over its fields. A record is an orphan when its directory is missing,
nothing else stands in its place, and the record is older than ``grace``; it is deleted when it was one ``quarantine``
ago as well. Nothing is ever deleted unless the root is proven: it exists, can be read, carries the expected marker
where one is configured, and holds directories of other records, no less than half as many as at the last good run.

Never touched: any file; a record whose path leaves the root or passes a symbolic link that does (*outside*), whose
fields do not make a path (*malformed*), or whose parent directory denies access (*unreadable*). They are reported.

Defaults: grace and quarantine of ten minutes each, since applications write the record before the directory and volumes
are remounted within minutes; at most 1,000 records and a quarter of them at a time, since more is rarely an accident of
the records and mostly one of the volume.
"""

from __future__ import annotations

import datetime as dt
import re
import string
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agent.conditions import Condition, made_at, made_before, read, together
from agent.job import Action, Change, Item, Limit, Ports, Proof, Quarantined, Query
from agent.settings import Duration
from agent.store import Document, Index, Namespace
from agent.volume import PATHS_A_CALL, Parts, Presence

_REPORTED: Mapping[Presence, str] = {
    "unreadable": "a parent of {path} denies access",
    "outside": "{path} leaves the root",
    "malformed": "{path} is not a directory",
}
_FIELD = re.compile(r"[\w-]+(\.[\w-]+)*")
_NO_NAMES = frozenset({"", ".", ".."})


class RecordFields(BaseModel):
    """Where a record keeps what the rule looks at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created_at: str | None = Field(
        default="created_at", description="When the record was made; null: the time in its ObjectId, else no grace."
    )


class OrphanRecords(Quarantined):
    """Records without their directory."""

    limits: ClassVar[Limit] = Limit(items=1000, fraction=0.25, floor=50)
    cascade: ClassVar[int] = 1

    kind: Literal["orphan_records"] = "orphan_records"
    collection: str = Field(
        default="generated_applications", min_length=1, description="The collection of the records."
    )
    root: Path = Field(default=Path("/data"), description="Where the volume is mounted.")
    path: str = Field(
        default="generated/apps/{model_slug}/app{app_number}",
        description="The directory of a record under `root`: a template over its fields.",
    )
    marker: str | None = Field(default=None, description="A file under `root` whose content names the volume.")
    grace: Duration = Field(default=dt.timedelta(minutes=10), description="Younger records are no orphans.")
    quarantine: Duration = Field(default=dt.timedelta(minutes=10), description="From first sighting to deletion.")
    fields: RecordFields = Field(default=RecordFields(), description="Where a record keeps its state.")

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: Path) -> Path:
        if not root.is_absolute():
            raise ValueError("must be an absolute path, such as /data")
        return root

    @field_validator("path")
    @classmethod
    def _path_is_a_template(cls, path: str) -> str:
        _parse(path)
        return path

    @field_validator("marker")
    @classmethod
    def _marker_stays_inside(cls, marker: str | None) -> str | None:
        if marker is not None and (marker.startswith("/") or ".." in marker.split("/") or not marker.strip("/")):
            raise ValueError("must be a relative path under `root`, without ..")
        return marker

    @property
    def namespace(self) -> Namespace:
        """The collection of the records."""
        return Namespace(self.database, self.collection)

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields that the path is made of, in order."""
        return tuple(dict.fromkeys(name for _, name in _parse(self.path) if name))

    async def population(self, ports: Ports) -> int:
        """The records."""
        return await ports.store.count(self.namespace, self.filter)

    async def proofs(self, ports: Ports) -> Sequence[Proof]:
        """The root proof; after the selection with the number of directories found."""
        root = await ports.volume.inspect(self.root, self.marker)
        if root.problem:
            return [Proof("root", refusal=f"{root.problem}; mount the volume", consent=False)]
        if self.marker and root.marker is None:
            return [Proof("root", refusal=f"the marker {self.marker} is missing or cannot be read under {self.root}")]
        looked, found = ports.seen["looked"], ports.seen["directories"]
        if not looked:
            return [Proof("root", identity=root.marker)]
        refusal = None if found else f"none of the directories of {looked} records is there under {self.root}"
        return [Proof("root", measure=found, identity=root.marker, refusal=refusal, unit="directories")]

    async def select(self, ports: Ports, now: dt.datetime) -> AsyncIterator[Item]:
        """The records without a directory, and those that cannot be judged."""
        records: list[Document] = []
        created = [self.fields.created_at] if self.fields.created_at else []
        # In the order of their parents, so that each directory is read once however many there are.
        sort = [(name, 1) for name in self.path_fields]
        async for record in ports.store.find(self.namespace, self.filter, [*self.path_fields, *created], sort=sort):
            records.append(record)
            if len(records) >= PATHS_A_CALL:
                for item in await self._judge(ports, records, now):
                    yield item
                records.clear()
        for item in await self._judge(ports, records, now):
            yield item

    async def _judge(self, ports: Ports, records: Sequence[Document], now: dt.datetime) -> list[Item]:
        placed = [(record, self.parts(record)) for record in records]
        paths = [place for _, place in placed if isinstance(place, tuple)]
        presences = iter(await ports.volume.look(self.root, paths) if paths else [])
        items: list[Item] = []
        directories = 0
        for record, place in placed:
            if isinstance(place, Item):
                items.append(place)
                continue
            presence = next(presences)
            if presence == "present":
                directories += 1
            elif item := self._item(record, "/".join(place), presence, now):
                items.append(item)
        ports.seen["looked"] += len(paths)
        ports.seen["directories"] += directories
        return items

    def _item(self, record: Document, path: str, presence: Presence, now: dt.datetime) -> Item | None:
        path = path[:200]
        if presence != "absent":
            what = presence if presence != "present" else "malformed"
            return Item(record["_id"], what, None, _REPORTED[what].format(path=path))
        created = made_at(record, self.fields.created_at)
        if created is None and self.fields.created_at is not None:
            return Item(record["_id"], "malformed", None, f"{self.fields.created_at} is not a date")
        if created is not None and created >= now - self.grace:
            return None
        match = {name: {"$eq": read(record, name)} for name in self.path_fields}
        return Item(record["_id"], "orphan", "deleted", f"directory {path} is missing", match, created)

    def parts(self, record: Document) -> Parts | Item:
        """The parts of the record's path under the root, or why it has none."""
        text = ""
        for literal, name in _parse(self.path):
            text += literal
            if name:
                value = _as_text(read(record, name))
                if value is None:
                    return Item(record["_id"], "malformed", None, f"{name} makes no directory name")
                text += value
        parts = tuple(text.split("/"))
        if _NO_NAMES.isdisjoint(parts):
            return parts
        if ".." in parts or text.startswith("/"):
            return Item(record["_id"], "outside", None, f"path {text[:200]!r} leaves the root")
        return Item(record["_id"], "malformed", None, f"path {text[:200]!r} has an empty part")

    async def still(self, ports: Ports, items: Sequence[Item], now: dt.datetime) -> Sequence[Item]:
        """Those whose directory is missing now, under a root that is what it was."""
        del now
        paths = [self._parts_of(item) for item in items]
        absent = await ports.volume.look_again(self.root, self.marker, paths)
        return [item for item, gone in zip(items, absent, strict=True) if gone]

    def _parts_of(self, item: Item) -> Parts:
        record: Document = {"_id": item.id}
        for name, value in item.match.items():
            _set(record, name, value["$eq"])
        parts = self.parts(record)
        assert isinstance(parts, tuple)  # noqa: S101 - it had a path when it was selected
        return parts

    def change(self, action: Action, now: dt.datetime) -> Change:
        """The record is deleted, while it is as old and as named as it was."""
        del action
        return Change(together(*self._conditions(now)), None)

    def explain(self, now: dt.datetime) -> Mapping[Action, Sequence[Condition]]:
        """The conditions on the record itself; its directory is looked at beside them."""
        return {"deleted": self._conditions(now)}

    def _conditions(self, now: dt.datetime) -> list[Condition]:
        field = self.fields.created_at
        horizon = now - self.grace
        old = Condition(
            f"made before {horizon:%Y-%m-%dT%H:%M:%SZ} (grace)", made_before(field, horizon), (field or "_id",)
        )
        return [*self.narrowing, old]

    @property
    def evidence(self) -> str:
        """Its directory is missing."""
        return f"its directory ({self.path}) is missing under {self.root}"

    @property
    def queries(self) -> Sequence[Query]:
        """The walk over the records in the order of their directories."""
        keys = tuple((name, 1) for name in self.path_fields)
        return [Query(self.namespace, self.filter, Index(keys), "records in the order of their directories", keys)]


@cache  # as many as are configured, and asked for once a record
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """The literal texts of a path template, each with the field that follows it. Raises ``ValueError``."""
    try:
        pieces = [
            (literal, name, spec, conversion) for literal, name, spec, conversion in string.Formatter().parse(template)
        ]
    except ValueError as error:
        raise ValueError(f"is not a template: {error}") from None
    if any(spec or conversion or name == "" for _, name, spec, conversion in pieces):
        raise ValueError("takes field names in braces only, such as {model_slug}")
    if any(name and not _FIELD.fullmatch(name) for _, name, _, _ in pieces):
        raise ValueError("takes field names in braces only, such as {model_slug} or {meta.slug}")
    literals = "x".join(literal for literal, *_ in pieces)
    if template.startswith("/") or ".." in literals.split("/") or not template:
        raise ValueError("must be a relative path under `root`, without ..")
    if not any(name for _, name, _, _ in pieces):
        raise ValueError("must name at least one field of the record, such as {model_slug}")
    return tuple((literal, name) for literal, name, _, _ in pieces)


def _as_text(value: Any) -> str | None:
    """The value as it stands in a directory's name: text and whole numbers only."""
    if type(value) is str:  # not a subclass, such as JavaScript code; and no text that was not UTF-8
        return value if value and "\0" not in value and "\ufffd" not in value else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        # Shells store every number as a double: 3.0 is 3.
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else None
    return str(int(value)) if isinstance(value, int) else None


def _set(document: Document, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value
