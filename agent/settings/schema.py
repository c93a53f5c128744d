"""The JSON schema of the configuration, for editors (``maintenance-agent schema``)."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from agent.settings.model import Settings
from agent.settings.shapes import fields_of, kind_of
from agent.settings.values import DURATION_SCHEMA, DURATION_WORDS, JOB_NAME_PATTERN, format_duration

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFS = "#/$defs/{model}"


class _Generate(GenerateJsonSchema):
    """Writes defaults as people write them, where pydantic would write ISO 8601, or stars for a secret."""

    def encode_default(self, dft: Any) -> Any:
        """The default as it stands in the schema."""
        if isinstance(dft, dt.timedelta):
            return format_duration(dft)
        return dft.get_secret_value() if isinstance(dft, SecretStr) else super().encode_default(dft)


def schema(kinds: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The configuration as JSON Schema (draft 2020-12); which keys a job has depends on its ``kind``."""
    classes: list[type[BaseModel]] = [Settings, *kinds]
    models: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in classes]
    refs, shared = models_json_schema(models, ref_template=_REFS, schema_generator=_Generate)
    definitions: dict[str, dict[str, Any]] = shared["$defs"]
    names = {kind: str(refs[kind, "validation"]["$ref"]).rpartition("/")[2] for kind in kinds}
    for kind, name in names.items():
        definitions[name] = _job(definitions[name], kind)
    known = fields_of(Settings)
    whole = definitions.pop(str(refs[Settings, "validation"]["$ref"]).rpartition("/")[2])
    properties = {key: {**whole["properties"][key], "description": field.description} for key, field in known.items()}
    for name, section in properties.items():
        if "$ref" in section:
            section.pop("default")  # each key in it has its own
            _write_defaults(definitions[section["$ref"].rpartition("/")[2]], known[name].get_default())
    properties["jobs"] = _jobs(names, properties["jobs"]["description"])
    duration = {"description": DURATION_WORDS, **DURATION_SCHEMA}
    return {
        "$schema": DIALECT,
        "title": "Configuration of the Maintenance Agent",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _plain(value) for key, value in properties.items()},
        "$defs": {"Duration": duration, **{key: _plain(value) for key, value in sorted(definitions.items())}},
    }


def schema_text(kinds: Sequence[type[BaseModel]]) -> str:
    """The schema as it is written to a file."""
    return json.dumps(schema(kinds), indent=2, ensure_ascii=False) + "\n"


def example(kind: type[BaseModel]) -> BaseModel:
    """A job of the kind that says nothing itself."""
    return kind.model_validate({"name": kind_of(kind), "kind": kind_of(kind), "database": "app"})


def _write_defaults(definition: dict[str, Any], section: BaseModel) -> None:
    """The defaults of a section's keys as they are written in a file, with units."""
    values = section.model_dump(mode="json")
    for key, entry in definition["properties"].items():
        if not isinstance(getattr(section, key), SecretStr):
            entry["default"] = values[key]


def _job(definition: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The keys of a kind: only ``kind`` has to be given, whatever the class needs to be complete."""
    known, defaults = fields_of(kind), example(kind).model_dump(mode="json", by_alias=True)
    # The class needs some that are filled in: the database is a section's, the limit the kind's own.
    properties = {
        key: {**value, "default": defaults[key]} if key != "database" else value
        for key, value in definition["properties"].items()
        if key in known
    }
    properties["kind"] = {"const": kind_of(kind), "description": "What the job does."}
    return {**definition, "properties": properties, "required": ["kind"]}


def _jobs(names: Mapping[type[BaseModel], str], description: str) -> dict[str, Any]:
    kinds = [kind_of(kind) for kind in names]
    cases = [
        {
            "if": {"required": ["kind"], "properties": {"kind": {"const": kind_of(kind)}}},
            "then": {"$ref": _REFS.format(model=name)},
        }
        for kind, name in names.items()
    ]
    job = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": kinds, "description": "What the job does."}},
        "allOf": cases,
    }
    return {
        "description": description,
        "type": "object",
        "propertyNames": {"pattern": JOB_NAME_PATTERN},
        "additionalProperties": job,
    }


def _plain(value: Any) -> Any:
    """Durations by reference, and no titles made of names: they say nothing that the names do not."""
    if isinstance(value, dict):
        if value.get("anyOf") == DURATION_SCHEMA["anyOf"]:
            value = {
                "$ref": _REFS.format(model="Duration"),
                **{k: v for k, v in value.items() if k not in DURATION_SCHEMA},
            }
        return {key: _plain(entry) for key, entry in value.items() if not (key == "title" and isinstance(entry, str))}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
