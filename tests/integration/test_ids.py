"""Ids as text: what is shown of a document is what finds it again, whatever the type of its ``_id``."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Timestamp

from agent.cli.output import shown
from agent.errors import UsageError
from tests.conftest import Database
from tests.harness import DAY, Db, opened, server_now

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=dt.UTC)
IDS: list[Any] = [
    7,
    -1,
    7.5,
    Int64(2**60),
    Decimal128("1.5"),
    True,
    "text",
    "a text with \"quotes\", 'others' and\nlines",
    '{"$oid": "no ObjectId"}',
    ObjectId(),
    Binary.from_uuid(uuid.uuid4()),
    Binary(uuid.uuid4().bytes, 3),
    b"bytes",
    Binary(b"bytes", 128),
    NOON,
    "2026-03-01T12:00:00.250Z",
    Timestamp(5, 6),
    {"b": 1, "a": {"at": NOON, "c": [1, 2.5]}},
]
TASKS = {"old": {"kind": "retention", "limit": {"fraction": 1}}}


async def test_what_is_shown_of_a_document_finds_it_again(database: Database, db: Db) -> None:
    """In runs, items, holds and explanations, for the page (JSON) and for the command line (its cells): restore, hold, release, explain."""
    ended = server_now(db) - 40 * DAY
    tasks = [{"_id": id, "status": "COMPLETED", "created_at": ended, "completed_at": ended} for id in IDS]
    db.analysis_tasks.insert_many(tasks)
    async with opened(database, db, TASKS) as bench:
        operations = bench.agent.operations
        ran = await operations.run((await bench.run("old"))["_id"])
        items, _ = await operations.items(ran["_id"])
        assert ran["changed"] == {"deleted": len(IDS)}
        texts = {json.dumps(item["id"]) for item in items}
        assert {json.dumps(item["id"]) for item in ran["sample"]} == texts
        listed, _ = await operations.runs()
        assert listed[0]["sample"] == ran["sample"]
        assert (await operations.job("old"))["last_run"]["sample"] == ran["sample"]
        for item in items:
            text = json.dumps(item["id"])
            assert (await bench.restore(ran["_id"], text))["changed"] == {"restored": 1}
            for said in (text, shown(item["id"])):
                held = await operations.hold(None, "analysis_tasks", said, requested_by="ann")
                assert (held["id"], held["held"]) == (item["id"], True)
                explained = await operations.explain("old", said)
                assert (explained["id"], explained["held_by"]) == (item["id"], ["hold"])
                released = await operations.release(None, "analysis_tasks", said, requested_by="ann")
                assert (released["id"], released["held"]) == (item["id"], False)
    assert db.analysis_tasks.count_documents({}) == len(IDS)


async def test_a_text_that_means_two_documents_lists_them_so_that_each_can_be_named(database: Database, db: Db) -> None:
    """As canonical Extended JSON, in which a number is no text."""
    db.analysis_tasks.insert_many([{"_id": 42}, {"_id": "42"}])
    async with opened(database, db, TASKS) as bench:
        operations = bench.agent.operations
        with pytest.raises(UsageError, match="means several documents") as caught:
            await operations.hold(None, "analysis_tasks", "42", requested_by="ann")
        listed = str(caught.value).partition("analysis_tasks: ")[2].partition(";")[0]
        assert listed == '{"$numberInt": "42"}, "42"'
        for text, id in zip(listed.split(", "), (42, "42"), strict=True):
            assert (await operations.hold(None, "analysis_tasks", text, requested_by="ann"))["id"] == id
