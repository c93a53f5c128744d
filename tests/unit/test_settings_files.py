"""The files that show the configuration: the commented YAML, its JSON schema, the reference; held to the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agent.jobs import KINDS
from agent.settings import DEFAULT_JOBS, load, reference, schema, schema_text
from agent.settings.document import parse
from agent.settings.model import SECTIONS, Settings
from agent.settings.shapes import annotation_of, fields_of, kind_of, model_in

CONFIG = Path(__file__).parents[2] / "config"
SAMPLE = CONFIG / "maintenance.yaml"


def test_the_sample_says_what_the_code_says() -> None:
    """Every default, written out: loading the file or nothing gives the same."""
    from_file, built_in = load(KINDS, path=SAMPLE, environ={}), load(KINDS, path=None, environ={})
    assert from_file.shown() == built_in.shown()
    assert from_file == built_in
    assert list(from_file.jobs) == list(built_in.jobs)


def test_the_sample_shows_every_key_of_the_sections() -> None:
    """With its value, not only in a comment."""
    sample = parse(SAMPLE.read_text(encoding="utf-8"), str(SAMPLE)).value
    for name in SECTIONS:
        model = model_in(annotation_of(Settings.model_fields[name]))
        if model is not None:
            assert set(sample[name]) == set(fields_of(model)), name
    assert set(sample) == {*SECTIONS, "jobs"}


def test_the_sample_shows_every_key_of_the_kinds() -> None:
    """Those of one kind in the first job of that kind, those of every job in the comment above them."""
    text = SAMPLE.read_text(encoding="utf-8")
    jobs = parse(text, str(SAMPLE)).value["jobs"]
    common = set(re.findall(r"^#   ([a-z_]+):", text, re.MULTILINE))
    for kind in KINDS:
        job = next(job for job in jobs.values() if job["kind"] == kind_of(kind))
        assert set(job) | common >= set(fields_of(kind)), kind_of(kind)
        for key, field in fields_of(kind).items():
            model = model_in(annotation_of(field))
            if model is not None:
                # One that is null has its keys in the comment above it.
                shown = job[key] if job[key] is not None else re.findall(r"^    #   ([a-z_]+):", text, re.MULTILINE)
                assert set(shown) == set(fields_of(model)), f"{kind_of(kind)}.{key}"


def test_the_sample_comments_every_section_and_job() -> None:
    """A comment stands above each of them."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    heads = [number for number, line in enumerate(lines) if re.match(r"(  )?[a-z_]+:( manage)?$", line)]
    jobs = [name for name, job in DEFAULT_JOBS.items() if job["kind"] in {kind_of(kind) for kind in KINDS}]
    assert len(heads) >= len(SECTIONS) + len(jobs)
    assert [lines[number] for number in heads if not lines[number - 1].lstrip().startswith("#")] == []


def test_the_schema_file_is_what_the_code_writes() -> None:
    """After a change of settings: `maintenance-agent schema > config/maintenance.schema.json`."""
    assert (CONFIG / "maintenance.schema.json").read_text(encoding="utf-8") == schema_text(KINDS)


def test_the_schema_has_every_key_with_its_description() -> None:
    """So that an editor can complete and explain it."""
    whole = schema(KINDS)
    assert set(whole["properties"]) == {*SECTIONS, "jobs"}
    cases = whole["properties"]["jobs"]["additionalProperties"]["allOf"]
    assert [case["if"]["properties"]["kind"]["const"] for case in cases] == [kind_of(kind) for kind in KINDS]
    for case, kind in zip(cases, KINDS, strict=True):
        definition = whole["$defs"][case["then"]["$ref"].rpartition("/")[2]]
        assert set(definition["properties"]) == set(fields_of(kind))
        assert definition["required"] == ["kind"]
        assert not definition["additionalProperties"]
        assert [key for key, value in definition["properties"].items() if not value.get("description")] == []


def test_the_schema_shows_values_as_people_write_them() -> None:
    """Durations and sizes with units, and no secret where a default is none."""
    definitions = schema(KINDS)["$defs"]
    assert definitions["Schedule"]["properties"]["every"]["default"] == "1h"
    assert definitions["Archive"]["properties"]["max_size"]["default"] == "2GiB"
    assert definitions["Mongodb"]["properties"]["uri"]["default"] == "mongodb://localhost:27017"
    assert "PT" not in re.findall(r'"default": "([A-Z]+)', schema_text(KINDS))


GOOD: list[Any] = [
    {},
    {"http": {"port": 1}, "schedule": {"every": "1h30m", "jitter": 0}, "archive": {"max_size": 5}},
    {"jobs": {"orphan-apps": {"kind": "orphan_records", "root": "/vol", "where": {"a": 1}}}},
    {"jobs": {"old": {"kind": "retention", "keep": {"completed": "30d"}, "limit": {"items": 5}, "cron": "@daily"}}},
]
BAD: list[Any] = [
    {"htttp": {}},
    {"http": {"port": 70_000}},
    {"schedule": {"every": 90}},
    {"schedule": {"every": "90"}},
    {"mongodb": {"uri": "http://h"}},
    {"indexes": "none"},
    {"jobs": None},
    {"jobs": {"A": {"kind": "retention"}}},
    {"jobs": {"a": {}}},
    {"jobs": {"a": {"kind": "nope"}}},
    {"jobs": {"a": {"kind": "retention", "root": "/vol"}}},
    {"jobs": {"a": {"kind": "orphan_records", "limit": {"item": 5}}}},
]


@pytest.fixture(scope="module")
def validator() -> Any:
    """The schema, ready to be asked."""
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema(KINDS))
    return jsonschema.Draft202012Validator(schema(KINDS))


@pytest.mark.parametrize("document", GOOD, ids=str)
def test_the_schema_takes_what_is_right(validator: Any, document: Any) -> None:
    """As the code does."""
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize("document", BAD, ids=str)
def test_the_schema_refuses_what_is_wrong(validator: Any, document: Any) -> None:
    """As the code does."""
    assert not validator.is_valid(document)


def test_the_schema_takes_the_sample(validator: Any) -> None:
    """Which is what people start from."""
    sample = parse(SAMPLE.read_text(encoding="utf-8"), str(SAMPLE)).value
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(sample)] == []


def test_the_reference_has_a_row_for_every_key() -> None:
    """In the table of the sections, of every job, or of its kind."""
    text = reference(KINDS)
    head, *tables = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for name in SECTIONS:
        model = model_in(annotation_of(Settings.model_fields[name]))
        keys = [f"{name}.{key}" for key in fields_of(model)] if model else [name]
        assert [key for key in keys if f"| `{key}` |" not in head] == []
    shared, *own = tables
    for kind, table in zip(KINDS, own, strict=True):
        assert table.startswith(f"Kind `{kind_of(kind)}`")
        missing = [key for key in fields_of(kind) if f"| `{key}` |" not in table + shared and key != "kind"]
        assert missing == []


def test_the_reference_is_a_table() -> None:
    """Four cells a row, whatever stands in them; a default is written as in the file."""
    rows = [line for line in reference(KINDS).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert "| `schedule.every` | a duration, at least 1s | `1h` |" in reference(KINDS)
