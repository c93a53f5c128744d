"""The configuration reference in Markdown, made from the same descriptions as the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agent.settings.model import SECTIONS, SHARED, Settings
from agent.settings.schema import example
from agent.settings.shapes import accepted, annotation_of, fields_of, kind_of, model_in
from agent.settings.values import DURATION_WORDS

_HEADER = ("", "| key | takes | default | meaning |", "|---|---|---|---|")
_INHERITED = {
    "database": "mongodb.database",
    "every": "schedule.every",
    "timezone": "schedule.timezone",
    "run_on_startup": "schedule.run_on_startup",
    **{key: f"defaults.{key}" for key in ("enabled", "run_timeout", "dry_run", "batch")},
}


def reference(kinds: Sequence[type[BaseModel]]) -> str:
    """A table of the sections' keys, one of the keys that every job has alike, and one of each kind's own."""
    shared = _shared(kinds)
    lines = ["## Sections", *_HEADER, *_sections()]
    if shared:
        lines += ["", "## Every job", *_HEADER, *_rows("", example(kinds[0]), shared)]
    for kind in kinds:
        own = [key for key in fields_of(kind) if key not in {*shared, "kind"}]
        summary = (kind.__doc__ or "").strip().partition("\n")[0]
        lines += ["", f"## Kind `{kind_of(kind)}`", "", summary, *_HEADER, *_rows("", example(kind), own)]
    return "\n".join(lines) + "\n"


def _shared(kinds: Sequence[type[BaseModel]]) -> list[str]:
    """The keys that all kinds have, with the same meaning and the same default."""
    first, *others = [fields_of(kind) for kind in kinds] or [{}]
    return [
        key
        for key, field in first.items()
        if key not in {"kind", "limit"} and all(_alike(field, other.get(key)) for other in others)
    ]


def _alike(one: FieldInfo, other: FieldInfo | None) -> bool:
    return other is not None and (one.description, one.default) == (other.description, other.default)


def _sections() -> Iterator[str]:
    for name in SECTIONS:
        field = Settings.model_fields[name]
        value = field.get_default()
        if isinstance(value, BaseModel):
            yield from _rows(f"{name}.", value, list(fields_of(type(value))))
        else:
            yield _row(name, accepted(annotation_of(field)), _text(value), field.description)


def _rows(prefix: str, model: BaseModel, keys: Sequence[str]) -> Iterator[str]:
    values = model.model_dump(mode="json", by_alias=True)
    known = fields_of(type(model))
    if prefix == "mongodb.":
        values["uri"] = known["uri"].default.get_secret_value()
    for key in keys:
        annotation = annotation_of(known[key])
        inner = model_in(annotation)
        default = _text(values[key])
        if not prefix:
            own_rhythm = key == "every" and values[key] is not None
            annotation, default = SHARED.get(key, annotation), default if own_rhythm else _INHERITED.get(key, default)
        takes = f"a mapping of {', '.join(fields_of(inner))}" if inner is not None else accepted(annotation)
        yield _row(f"{prefix}{key}", takes, default, known[key].description)


def _row(key: str, takes: str, default: str, meaning: str | None) -> str:
    takes = takes.replace(DURATION_WORDS, "a duration")
    cells = (f"`{key}`", takes, f"`{default}`", meaning or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
