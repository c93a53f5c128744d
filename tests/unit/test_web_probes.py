"""What anybody may read: health, metrics, the page."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from agent.web import make_app
from tests.unit.web_fake import Parts, parts

Start = Callable[[], Awaitable[tuple[TestClient[Any, Any], Parts]]]


@pytest.fixture
def start(aiohttp_client: AiohttpClient) -> Start:
    """Starts an application without tokens."""

    async def started() -> tuple[TestClient[Any, Any], Parts]:
        made = parts(None)
        return await aiohttp_client(make_app(made.context)), made

    return started


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/healthz", "/livez/event-loop", "/readyz/mongodb", "/healthz/mongodb"]
)
async def test_well_is_ok(start: Start, path: str) -> None:
    """One word, as Kubernetes' own endpoints say it; HEAD says it without."""
    client, _ = await start()
    answer = await client.get(path)
    assert (answer.status, await answer.text()) == (200, "ok")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    head = await client.head(path)
    assert (head.status, await head.text()) == (200, "")


async def test_the_checks_are_listed_where_that_is_asked_for(start: Start) -> None:
    """``?verbose``, whatever its value."""
    client, _ = await start()
    for query in ("verbose", "verbose=1"):
        answer = await client.get(f"/readyz?{query}")
        assert await answer.text() == "[+]event-loop ok\n[+]mongodb ok\nreadyz check passed\n"
    answer = await client.get("/livez?verbose")
    assert await answer.text() == "[+]event-loop ok\nlivez check passed\n"


async def test_mongodb_away_is_not_ready_and_not_dead(start: Start) -> None:
    """The lines say why without being asked."""
    client, made = await start()
    made.mongodb.fail("no primary")
    for path, text in (
        ("/readyz", "[+]event-loop ok\n[-]mongodb failed: no primary\nreadyz check failed\n"),
        ("/healthz", "[+]event-loop ok\n[-]mongodb failed: no primary\nhealthz check failed\n"),
        ("/readyz/mongodb", "[-]mongodb failed: no primary\nreadyz check failed\n"),
    ):
        answer = await client.get(path)
        assert (answer.status, await answer.text()) == (503, text)
        assert (await client.head(path)).status == 503
    assert (await client.get("/livez")).status == 200


async def test_checks_can_be_left_out(start: Start) -> None:
    """Several times, or with commas; an unknown name is a warning."""
    client, made = await start()
    made.mongodb.fail("no primary")
    for query in ("exclude=mongodb", "exclude=event-loop&exclude=mongodb", "exclude=event-loop,mongodb"):
        assert (await client.get(f"/readyz?{query}")).status == 200
    answer = await client.get("/readyz?exclude=mongodb&exclude=etcd&verbose")
    assert await answer.text() == (
        "[+]event-loop ok\n"
        "[+]mongodb excluded: ok\n"
        'warn: some health checks cannot be excluded: no matches for "etcd"\n'
        "readyz check passed\n"
    )


async def test_an_unknown_check_is_404(start: Start) -> None:
    """The answer says which there are. That of another endpoint is unknown."""
    client, _ = await start()
    for path in ("/readyz/etcd", "/livez/mongodb"):
        answer = await client.get(path)
        assert answer.status == 404
        assert "event-loop" in json.loads(await answer.text())["detail"]


async def test_metrics_are_served(start: Start) -> None:
    """In both formats, compressed where that is accepted; without a body for HEAD."""
    client, _ = await start()
    answer = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'maintenance_build_info{version="1.2.3"} 1.0' in await answer.text()
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert (await answer.text()).endswith("# EOF\n")
    head = await client.head("/metrics")
    assert (head.status, await head.read()) == (200, b"")


async def test_there_is_a_page(start: Start) -> None:
    """It is open."""
    client, _ = await start()
    answer = await client.get("/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
