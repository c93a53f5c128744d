"""The API: what each endpoint asks of the operations, and how it answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from agent.web import make_app
from tests.unit import web_fake
from tests.unit.web_fake import ANN, Parts, parts

BASE = "/api/maintenance"
JOB, RUN = f"{BASE}/jobs/orphan_apps", f"{BASE}/runs/0190-run"
ENTRY = "507f1f77bcf86cd799439012"
Start = Callable[[], Awaitable[tuple[TestClient[Any, Any], Parts]]]


@pytest.fixture
def start(aiohttp_client: AiohttpClient, tmp_path: Path) -> Start:
    """Starts an application; its client carries ann's token."""

    async def started() -> tuple[TestClient[Any, Any], Parts]:
        tokens_file = tmp_path / "tokens"
        tokens_file.write_text(f"ann:{ANN}\n", encoding="utf-8")
        made = parts(tokens_file)
        client = await aiohttp_client(make_app(made.context), headers={"Authorization": f"Bearer {ANN}"})
        return client, made

    return started


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "path, call, answer",
    [
        (f"{BASE}/status", ("status",), web_fake.STATUS),
        (f"{BASE}/jobs", ("jobs",), {"jobs": [web_fake.JOB]}),
        (JOB, ("job", "orphan_apps"), web_fake.JOB),
        (f"{JOB}/explain?id=%7B%22a%22%3A1%7D", ("explain", "orphan_apps", '{"a":1}'), web_fake.EXPLANATION),
        (RUN, ("run", "0190-run"), web_fake.RUN),
        (f"{RUN}/items", ("items", "0190-run", None, 100), {"items": [web_fake.ITEM], "next": None}),
        (
            f"{RUN}/items?after={ENTRY}&limit=1",
            ("items", "0190-run", ENTRY, 1),
            {"items": [web_fake.ITEM], "next": None},
        ),
    ],
)
async def test_reading(start: Start, path: str, call: tuple[Any, ...], answer: Any) -> None:
    """The operation's answer, as it is."""
    client, made = await start()
    got = await client.get(path)
    assert (got.status, got.headers["Content-Type"]) == (200, "application/json")
    assert await got.json() == answer
    assert made.operations.calls == [call]


async def test_the_history_takes_filters_and_pages(start: Start) -> None:
    """All filters, and where the page ends."""
    client, made = await start()
    answer = await client.get(f"{BASE}/runs")
    assert await answer.json() == {"runs": [web_fake.RUN], "next": "0190-run"}
    await client.get(f"{BASE}/runs?job=a-b&pass=p1&outcome=timed_out&trigger=cli&before=r1&limit=1000")
    nothing = {"job": None, "pass_id": None, "outcome": None, "trigger": None, "before": None, "limit": 50}
    everything = {
        "job": "a-b",
        "pass_id": "p1",
        "outcome": "timed_out",
        "trigger": "cli",
        "before": "r1",
        "limit": 1000,
    }
    assert made.operations.calls == [("runs", nothing), ("runs", everything)]


@pytest.mark.parametrize(
    "path, paths",
    [
        (f"{BASE}/runs?limit=0", ["limit"]),
        (f"{BASE}/runs?limit=1001", ["limit"]),
        (f"{BASE}/runs?limit=1_0", ["limit"]),
        (f"{BASE}/runs?limit=%2B1", ["limit"]),
        (f"{BASE}/runs?limit=", ["limit"]),
        (f"{BASE}/runs?job=UPPER", ["job"]),
        (f"{BASE}/runs?outcome=skipped&trigger=nobody", ["outcome", "trigger"]),
        (f"{BASE}/runs?jobs=a", ["jobs"]),
        (f"{BASE}/runs?pass_id=a", ["pass_id"]),
        (f"{BASE}/runs?job=a&job=b", ["job"]),
        (f"{BASE}/runs?before=%00", ["before"]),
        (f"{RUN}/items?limit=x&after=x", ["after", "limit"]),
        (f"{JOB}/explain", ["id"]),
        (f"{JOB}/explain?id=", ["id"]),
        (f"{JOB}/explain?id={'x' * 1025}", ["id"]),
    ],
)
async def test_a_query_that_is_not_understood_is_400(start: Start, path: str, paths: list[str]) -> None:
    """Unknown, repeated and bad parameters, each by its name; nothing is asked of the agent."""
    client, made = await start()
    answer = await client.get(path)
    assert answer.status == 400
    document = json.loads(await answer.text())
    assert [entry["path"] for entry in document["errors"]] == paths
    assert made.operations.calls == []


async def test_an_id_that_is_no_utf8_does_no_harm(start: Start) -> None:
    """Bytes that are no text."""
    client, _ = await start()
    assert (await client.get(f"{JOB}/explain?id=%FF%ED%A0%80")).status in {200, 400}


# ------------------------------------------------------------------------------------------------------------- running


async def test_a_job_is_started(start: Start) -> None:
    """202, where to look, and the run as it is; a body is not needed."""
    client, made = await start()
    answer = await client.post(f"{JOB}/run")
    assert answer.status == 202
    assert answer.headers["Location"] == RUN
    assert await answer.json() == web_fake.RUNNING
    assert made.operations.calls == [("run_job", "orphan_apps", "manual", "ann", False, frozenset())]
    assert made.operations.handles[0].waited == []


async def test_a_job_is_started_as_it_is_asked_for(start: Start) -> None:
    """Dry, with consent, and waited for."""
    client, made = await start()
    body = {"dry_run": True, "accept": ["root", "cap", "cap"], "wait": "20s"}
    answer = await client.post(f"{JOB}/run", json=body)
    assert answer.status == 202
    assert made.operations.calls[0][4:] == (True, frozenset({"root", "cap"}))
    assert made.operations.handles[0].waited == [20]


async def test_a_wait_that_sees_the_end_is_200(start: Start) -> None:
    """Whatever the outcome; the run is the finished one."""
    client, made = await start()
    made.operations.ends.set()
    answer = await client.post(f"{JOB}/run", json={"wait": "500ms"})
    assert (answer.status, answer.headers["Location"]) == (200, RUN)
    assert await answer.json() == web_fake.RUN


@pytest.mark.parametrize(
    "wait, seconds",
    [("500ms", 0.5), ("1s", 1), ("1m", 60), ("1s500ms", 1.5), ("61s", 60), ("9999m", 60), ("0s", None), (None, None)],
)
async def test_a_wait_is_a_duration_of_at_most_a_minute(start: Start, wait: str | None, seconds: float | None) -> None:
    """A longer one is cut; none and nothing are the same."""
    client, made = await start()
    assert (await client.post(f"{BASE}/run", json={"wait": wait})).status == 202
    assert made.operations.handles[0].waited == ([] if seconds is None else [seconds])


async def test_a_pass_is_started(start: Start) -> None:
    """Its id and its runs."""
    client, made = await start()
    answer = await client.post(f"{BASE}/run", json={"dry_run": True, "accept": ["targets"]})
    assert answer.status == 202
    assert await answer.json() == {"pass": "0190-pass", "runs": [web_fake.RUNNING]}
    assert made.operations.calls == [("run_pass", "manual", "ann", True, frozenset({"targets"}))]
    made.operations.ends.set()
    answer = await client.post(f"{BASE}/run", json={"wait": "1s"})
    assert (answer.status, await answer.json()) == (200, {"pass": "0190-pass", "runs": [web_fake.RUN]})


async def test_plans_are_applied_and_runs_undone_and_cancelled(start: Start) -> None:
    """Each by the id of its run, or of a pass."""
    client, made = await start()
    assert (await client.post(f"{BASE}/runs/0190-pass/apply", json={"wait": "1s"})).status == 202
    assert (await client.post(f"{RUN}/restore")).status == 202
    answer = await client.post(f"{RUN}/restore", json={"item": "507f", "wait": "1s"})
    assert (answer.status, answer.headers["Location"]) == (202, RUN)
    answer = await client.post(f"{RUN}/cancel")
    assert (answer.status, await answer.json()) == (202, web_fake.RUNNING)
    assert made.operations.calls == [
        ("apply", "0190-pass", "ann"),
        ("restore", "0190-run", None, "ann"),
        ("restore", "0190-run", "507f", "ann"),
        ("cancel", "0190-run", "ann"),
    ]


# ------------------------------------------------------------------------------------------------------------ steering


async def test_the_clock_is_stopped_and_goes_on(start: Start) -> None:
    """Of everything, or of one job."""
    client, made = await start()
    for path in (f"{BASE}/pause", f"{BASE}/resume", f"{JOB}/pause", f"{JOB}/resume", "/-/reload"):
        assert (await client.post(path, json={})).status == 200
    assert made.operations.calls == [
        ("pause", None, "ann"),
        ("resume", None, "ann"),
        ("pause", "orphan_apps", "ann"),
        ("resume", "orphan_apps", "ann"),
        ("reload", "ann"),
    ]


async def test_documents_are_held_and_released(start: Start) -> None:
    """By collection and id; the database and the reason may be left out."""
    client, made = await start()
    document = {"collection": "generated_applications", "id": '{"$oid": "507f1f77bcf86cd799439011"}'}
    assert (await client.post(f"{BASE}/hold", json=document)).status == 200
    answer = await client.post(f"{BASE}/release", json={**document, "database": "app", "reason": "looked at"})
    assert await answer.json() == {**document, "database": "app", "held": False}
    assert made.operations.calls == [
        ("hold", None, document["collection"], document["id"], "ann", None),
        ("release", "app", document["collection"], document["id"], "ann", "looked at"),
    ]


async def test_names_that_mongodb_cannot_have_hold_nothing(start: Start) -> None:
    """A name that is too long in bytes is of no collection."""
    client, made = await start()
    for names in ({"collection": "ä" * 128}, {"collection": "a", "database": "ä" * 32}):
        answer = await client.post(f"{BASE}/hold", json={**names, "id": "x"})
        assert answer.status == 404
    assert made.operations.calls == []


@pytest.mark.parametrize(
    "path, body, paths",
    [
        (f"{JOB}/run", [], [""]),
        (f"{JOB}/run", None, [""]),
        (f"{JOB}/run", {"dryrun": True}, ["dryrun"]),
        (f"{JOB}/run", {"dry_run": "true"}, ["dry_run"]),
        (f"{JOB}/run", {"dry_run": 1, "accept": "cap"}, ["dry_run", "accept"]),
        (f"{JOB}/run", {"accept": ["cap", "archive"]}, ["accept.1"]),
        (f"{JOB}/run", {"wait": 20}, ["wait"]),
        (f"{JOB}/run", {"wait": "20"}, ["wait"]),
        (f"{JOB}/run", {"wait": ""}, ["wait"]),
        (f"{JOB}/run", {"wait": "-1s"}, ["wait"]),
        (f"{JOB}/run", {"wait": "1s\n"}, ["wait"]),
        (f"{BASE}/run", {"jobs": []}, ["jobs"]),
        (f"{BASE}/pause", {"for": "1h"}, ["for"]),
        (f"{RUN}/restore", {"item": ""}, ["item"]),
        (f"{BASE}/hold", {}, ["collection", "id"]),
        (f"{BASE}/hold", {"collection": "a.$b", "id": "x"}, ["collection"]),
        (f"{BASE}/hold", {"collection": ".a", "id": "x"}, ["collection"]),
        (f"{BASE}/hold", {"collection": "a", "id": "x", "database": "a.b"}, ["database"]),
        (f"{BASE}/hold", {"collection": "a\0", "id": {"$oid": "x"}}, ["collection", "id"]),
        (f"{BASE}/release", {"collection": "a", "id": "x", "reason": "x" * 1001}, ["reason"]),
    ],
)
async def test_a_body_that_is_not_valid_is_422(start: Start, path: str, body: Any, paths: list[str]) -> None:
    """Each fault with its path, all at once; values are not repeated; nothing is asked of the agent."""
    client, made = await start()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = await client.post(path, data=json.dumps(body), headers=headers)
    assert answer.status == 422
    document = json.loads(await answer.text())
    assert [entry["path"] for entry in document["errors"]] == paths
    assert all(set(entry) == {"path", "message"} for entry in document["errors"])
    assert made.operations.calls == []
