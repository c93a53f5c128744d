"""The edge: problem documents for every error, request ids, security headers, metrics, log lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from agent import log
from agent.errors import (
    AgentError,
    BusyError,
    ClusterError,
    ConfigurationError,
    ConflictError,
    InterruptedRunError,
    LeaseLostError,
    NotFoundError,
    RefusedError,
    SlotTakenError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    UsageError,
    VolumeError,
)
from agent.web import make_app
from tests.unit.web_fake import ANN, Parts, parts

STATUS, RUN = "/api/maintenance/status", "/api/maintenance/jobs/orphan_apps/run"
Client = TestClient[Any, Any]
Start = Callable[..., Awaitable[tuple[Client, Parts]]]


@pytest.fixture
def start(aiohttp_client: AiohttpClient, tmp_path: Path) -> Start:
    """Starts an application; its client carries a token."""

    async def started(base_path: str = "") -> tuple[Client, Parts]:
        tokens_file = tmp_path / "tokens"
        tokens_file.write_text(f"ann:{ANN}\n", encoding="utf-8")
        made = parts(tokens_file, base_path=base_path)
        client = await aiohttp_client(make_app(made.context), headers={"Authorization": f"Bearer {ANN}"})
        return client, made

    return started


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged, as it is read from JSON lines."""
    stream, root, level = io.StringIO(), logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)
    log.configure("debug", "json", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


async def problem(answer: Any, status: int, kind: str) -> dict[str, Any]:
    """The problem document of an answer, after a look at what all of them have."""
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(await answer.text())
    assert document["type"] == f"urn:maintenance-agent:problem:{kind}"
    assert document["status"] == status
    assert document["request_id"] == answer.headers["X-Request-Id"]
    assert document["title"]
    assert document["detail"]
    return document


# ------------------------------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    "error, status, kind",
    [
        (NotFoundError("there is no run x"), 404, "not-found"),
        (UsageError("the plan has been applied"), 409, "impossible"),
        (BusyError("orphan_apps is running"), 409, "busy"),
        (RefusedError("archive", "the archive is full"), 409, "refused"),
        (SlotTakenError("taken"), 409, "conflict"),
        (LeaseLostError("lost"), 409, "conflict"),
        (ConflictError("write conflict"), 409, "conflict"),
        (StoreUnavailableError("no primary"), 503, "unavailable"),
        (StoreDeniedError("not authorized"), 503, "denied"),
        (StoreError("an answer"), 503, "unavailable"),
        (VolumeError("EIO"), 503, "unavailable"),
        (ClusterError("no route"), 503, "unavailable"),
        (InterruptedRunError("shutting down"), 503, "stopping"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, AgentError) else str(value),
)
async def test_each_of_our_errors_is_its_problem(start: Start, error: AgentError, status: int, kind: str) -> None:
    """Its message is the detail; what may pass says when to try again."""
    client, made = await start()
    made.fail(error)
    answer = await client.post(RUN)
    document = await problem(answer, status, kind)
    assert document["detail"] == str(error)
    assert document["instance"] == RUN
    assert ("Retry-After" in answer.headers) == (status == 503 or kind in {"busy", "conflict"})


async def test_a_refusal_names_its_guard_and_an_outage_its_dependency(start: Start) -> None:
    """For programs, beside the words."""
    client, made = await start()
    made.fail(RefusedError("root", "the root is empty"))
    assert (await problem(await client.post(RUN), 409, "refused"))["guard"] == "root"
    made.fail(StoreUnavailableError("away"))
    assert (await problem(await client.get(STATUS), 503, "unavailable"))["dependency"] == "mongodb"


async def test_a_bad_configuration_lists_its_problems(start: Start) -> None:
    """Each with the key's path where it has one."""
    client, made = await start()
    made.fail(ConfigurationError(["jobs.orphan_apps.every: 90 is no duration", "the file is empty"]))
    document = await problem(await client.post("/-/reload"), 422, "configuration")
    assert document["errors"] == [
        {"path": "jobs.orphan_apps.every", "message": "90 is no duration"},
        {"path": "", "message": "the file is empty"},
    ]


async def test_a_mistake_is_a_500_without_a_traceback(start: Start, lines: Callable[[], list[dict[str, Any]]]) -> None:
    """The client gets an id; the log has the traceback under it, and no secret."""
    client, made = await start()
    for error in (ZeroDivisionError("mongodb://ann:hunter2@db"), AgentError("something of ours")):
        made.fail(error)
        document = await problem(await client.get(STATUS, params={}), 500, "internal")
        assert "hunter2" not in json.dumps(document)
        (line,) = [line for line in lines() if line.get("request_id") == document["request_id"] and "exception" in line]
        assert type(error).__name__ in line["exception"]
        assert "hunter2" not in json.dumps(line)


async def test_details_carry_no_secret(start: Start) -> None:
    """Even where a message does."""
    client, made = await start()
    made.fail(StoreUnavailableError("no answer from mongodb://ann:hunter2@db"))
    assert "hunter2" not in await (await client.get(STATUS)).text()


async def test_unknown_paths_are_404(start: Start) -> None:
    """The server library's own answer is a problem too; names that no job or run can have are unknown paths."""
    client, made = await start()
    for path in ("/none", "/api/maintenance/jobs/UPPER", "/api/maintenance/runs/%00", "/livez/", "/%F0%9F%92%A9"):
        await problem(await client.get(path), 404, "not-found")
    assert made.operations.calls == []


async def test_other_methods_are_405_and_say_which_there_are(start: Start) -> None:
    """Nothing changes by GET."""
    client, made = await start()
    for method, path, allow in (
        ("GET", RUN, {"OPTIONS", "POST"}),
        ("HEAD", RUN, {"OPTIONS", "POST"}),
        ("DELETE", STATUS, {"GET", "HEAD", "OPTIONS"}),
        ("PATCH", "/livez", {"GET", "HEAD", "OPTIONS"}),
    ):
        answer = await client.request(method, path)
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(",")) == allow
        if method != "HEAD":
            await problem(answer, 405, "method-not-allowed")
    assert made.operations.calls == []


async def test_options_says_what_there_is(start: Start) -> None:
    """Without a token, without a change."""
    client, made = await start()
    for path, allow in ((RUN, "OPTIONS, POST"), ("/metrics", "GET, HEAD, OPTIONS")):
        answer = await client.options(path)
        assert (answer.status, answer.headers["Allow"]) == (204, allow)
    assert made.operations.calls == []


# ------------------------------------------------------------------------------------------------------------- the body


@pytest.mark.parametrize("size", [64 * 1024 - 100, 64 * 1024, 64 * 1024 + 1, 900 * 1024])
async def test_a_body_of_more_than_64_kib_is_413(start: Start, size: int) -> None:
    """Announced or in pieces."""
    client, _ = await start()
    body = b'{"dry_run": true' + b" " * (size - 17) + b"}"

    async def pieces() -> Any:
        for offset in range(0, len(body), 4096):
            yield body[offset : offset + 4096]

    for data in (body, pieces()):
        answer = await client.post(RUN, data=data, headers={"Content-Type": "application/json"})
        if size > 64 * 1024:
            await problem(answer, 413, "too-large")
        else:
            assert answer.status in {202, 409}


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"]
)
async def test_a_body_that_is_not_announced_as_json_is_415(start: Start, content_type: str) -> None:
    """A form of another site cannot ask for anything."""
    client, made = await start()
    answer = await client.post(RUN, data=b"{}", headers={"Content-Type": content_type})
    await problem(answer, 415, "unsupported-media-type")
    assert made.operations.calls == []


@pytest.mark.parametrize("body", [b"{", b"nonsense", b"\xff", b'{"dry_run": tru}', b"[" * 60_000, b'"\\ud800"'])
async def test_a_body_that_is_no_json_is_400(start: Start, body: bytes) -> None:
    """Whatever is wrong with it."""
    client, _ = await start()
    answer = await client.post(RUN, data=body, headers={"Content-Type": "application/json"})
    await problem(answer, 400, "malformed")


async def test_a_body_that_lies_about_its_compression_is_400(start: Start) -> None:
    """Not the agent's mistake."""
    client, _ = await start()
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    await problem(await client.post(RUN, data=b"no deflate at all", headers=headers), 400, "malformed")


async def test_a_small_body_that_swells_is_413(start: Start) -> None:
    """A compressed body counts as what it becomes."""
    client, _ = await start()
    answer = await client.post(
        RUN, data=b" " * 900_000, headers={"Content-Type": "application/json"}, compress="deflate"
    )
    await problem(answer, 413, "too-large")


@pytest.mark.parametrize("expectation", ["100-continue", "a miracle"])
async def test_expectations_are_met_or_passed_over(start: Start, expectation: str) -> None:
    """The body is sent after the go-ahead; other expectations are nobody's error."""
    client, _ = await start()
    headers = {"Expect": expectation, "Content-Type": "application/json"}
    assert (await client.post("/api/maintenance/pause", data=b"{}", headers=headers)).status == 200


# ------------------------------------------------------------------------------------------------------ ids and headers


@pytest.mark.parametrize(
    "given, kept", [("abc-123.4_x:y", True), ("a b", False), ("x" * 65, False), ("\N{SNOWMAN}", False)]
)
async def test_a_request_has_an_id(start: Start, given: str, kept: bool) -> None:
    """A proxy's, where it is fit for a log, else a new one."""
    client, _ = await start()
    answer = await client.get("/livez", headers={"X-Request-Id": given})
    found = answer.headers["X-Request-Id"]
    assert (found == given) == kept
    assert kept or re.fullmatch(r"[0-9a-f]{32}", found)


@pytest.mark.parametrize(
    "path, status", [("/", 200), ("/livez", 200), (STATUS, 200), ("/none", 404), ("/openapi.json", 200)]
)
async def test_every_answer_has_the_security_headers(start: Start, path: str, status: int) -> None:
    """Errors too; the API's are never kept by a cache."""
    client, _ = await start()
    answer = await client.get(path)
    assert answer.status == status
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Server"] == "maintenance-agent"
    assert answer.headers["Cache-Control"] == ("max-age=300" if path == "/openapi.json" else "no-store")


async def test_requests_are_measured_by_route(start: Start) -> None:
    """Templates, not paths; what no route took is other."""
    client, made = await start()
    await client.get("/api/maintenance/runs/0190-a")
    await client.get("/api/maintenance/runs/0190-b")
    await client.get("/none")
    await client.delete("/livez")

    def count(method: str, route: str, code: int) -> float | None:
        labels = {"method": method, "route": route, "code": str(code)}
        return made.metrics.registry.get_sample_value("maintenance_http_requests_total", labels)

    assert count("GET", "/api/maintenance/runs/{id}", 200) == 2
    assert count("GET", "other", 404) == 1
    assert count("other", "other", 405) == 1
    assert count("POST", "/api/maintenance/jobs/{job}/run", 409) == 0


async def test_requests_are_logged_with_their_id_and_without_their_query(
    start: Start, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Changes at INFO, reading at DEBUG."""
    client, _ = await start()
    await client.post("/api/maintenance/pause", headers={"X-Request-Id": "r1"})
    await client.get("/livez", params={"token": "hunter2"}, headers={"X-Request-Id": "r2"})
    change, reading = (line for line in lines() if line["event"] == "request")
    assert (change["request_id"], change["level"], change["status"]) == ("r1", "info", 200)
    assert (reading["request_id"], reading["level"], reading["route"]) == ("r2", "debug", "/livez")
    assert "hunter2" not in json.dumps(reading)


# ------------------------------------------------------------------------------------------------------------ base path


async def test_everything_is_served_under_the_base_path_and_without(start: Start) -> None:
    """For proxies that take the path off and for those that do not; the measure is the same."""
    client, made = await start("/maintenance")
    for path in (STATUS, f"/maintenance{STATUS}", "/maintenance/livez", "/maintenance/", "/"):
        assert (await client.get(path)).status == 200
    answer = await client.post(RUN)
    assert answer.headers["Location"] == "/maintenance/api/maintenance/runs/0190-run"
    document = json.loads(await (await client.get("/openapi.json")).text())
    assert document["servers"] == [{"url": "/maintenance"}]
    labels = {"method": "GET", "route": STATUS, "code": "200"}
    assert made.metrics.registry.get_sample_value("maintenance_http_requests_total", labels) == 2


async def test_the_base_path_itself_leads_to_the_page(start: Start) -> None:
    """Whose links are relative."""
    client, _ = await start("/maintenance")
    answer = await client.get("/maintenance", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (308, "/maintenance/")


# --------------------------------------------------------------------------------------------------------- many at once


async def test_a_thousand_at_once_start_one_run(start: Start) -> None:
    """The rest are told that it is running; the health checks answer meanwhile."""
    client, made = await start()

    async def post() -> int:
        async with client.post(RUN) as answer:
            return answer.status

    statuses, alive = await asyncio.gather(
        asyncio.gather(*(post() for _ in range(1000))),
        asyncio.gather(*(client.get("/livez") for _ in range(50))),
    )
    assert sorted(set(statuses)) == [202, 409]
    assert statuses.count(202) == 1
    assert all(answer.status == 200 for answer in alive)
    assert len(made.operations.handles) == 1
