"""The HTTP API of the real agent on a real MongoDB: all that its description allows and forbids, and very many at once.

``API_EXAMPLES=200 API_SEED=1 pytest -o faulthandler_timeout=0 tests/e2e/test_api.py`` asks far more, and something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from agent.web import ENDPOINTS
from agent.web.openapi import FILES, template
from tests.conftest import Database
from tests.e2e.served import PATIENCE, TOKEN, Served, load_incident, serving
from tests.harness import Db

Json = dict[str, Any]

EXAMPLES: Final = int(os.environ.get("API_EXAMPLES", "1"))
SEED: Final = int(os.environ.get("API_SEED", "28"))
IN_FULL: Final = 10  # from so many examples on everything is asked
UNEXPECTED: Final = '[phases.coverage]\nunexpected-methods = ["PUT", "DELETE"]\n'  # of ten, to save a third of the time
BASE: Final = "/api/maintenance"
# Whether a run is going on, or a plan is left, just then; each is done elsewhere in this file.
CHANCE: Final = {("POST", f"{BASE}/runs/{{id}}/{verb}") for verb in ("apply", "cancel")}
ACCESS: Final = {"Authorization": f"Bearer {TOKEN}"}
REQUESTS: Final = re.compile(
    r'^maintenance_http_requests_total\{code="(\d+)",method="(\w+)",route="([^"]+)"\} ([1-9].*)$'
)


class Client:
    """Asks an agent, with a token."""

    def __init__(self, served: Served, session: aiohttp.ClientSession) -> None:
        self._served = served
        self._session = session

    async def get(self, path: str) -> Json:
        """What a path answers."""
        async with self._session.get(f"{self._served.url}{path}", headers=ACCESS) as answer:
            assert answer.status == 200, await answer.text()
            found: Json = await answer.json()
            return found

    async def post(self, path: str, body: object) -> Json:
        """What a change answers, once it is done."""
        async with self._session.post(f"{self._served.url}{BASE}{path}", json=body, headers=ACCESS) as answer:
            assert answer.status == 200, await answer.text()
            found: Json = await answer.json()
            return found

    async def counted(self) -> Counter[tuple[str, str, int]]:
        """How many requests were answered so, by method, route and status."""
        async with self._session.get(f"{self._served.url}/metrics") as answer:
            lines = (REQUESTS.match(line) for line in (await answer.text()).splitlines())
            return Counter({(line[2], line[3], int(line[1])): int(float(line[4])) for line in lines if line})


# ------------------------------------------------------------------------------------------------------- schemathesis


async def past(client: Client) -> Json:
    """Lets runs, plans, archived items and holds come about; returns ids that lead to them."""
    looked = await client.post("/run", {"dry_run": True, "wait": "60s"})
    done = await client.post(f"/runs/{looked['pass']}/apply", {"wait": "60s"})
    deleted = next(run for run in done["runs"] if run["job"] == "orphan_apps")
    assert deleted["changed"] == {"deleted": 28}
    await client.post(f"/runs/{deleted['_id']}/restore", {"wait": "60s"})
    planned = await client.post("/jobs/orphan_apps/run", {"dry_run": True, "wait": "60s"})
    items = await client.get(f"{BASE}/runs/{deleted['_id']}/items?limit=2")
    return {
        "runs": [run["_id"] for run in (deleted, looked["runs"][0], planned)] + [looked["pass"]],
        "after": [items["items"][0]["_id"]],
        "documents": [json.dumps(entry["id"]) for entry in deleted["sample"][:2]],
    }


def made_real(described: Json, known: Mapping[str, Sequence[str]]) -> Json:
    """The description, of whose strings some are ids and names that exist: chance alone would never hit one."""
    lists = {
        "job": ["orphan_apps", "orphan_tasks"],
        "check": ["mongodb", "event-loop"],
        "after": known["after"],
        **dict.fromkeys(("id", "before", "pass"), known["runs"]),
    }
    for path, item in described["paths"].items():
        for parameter in (one for operation in item.values() for one in operation["parameters"]):
            values = known["documents"] if path.endswith("/explain") and parameter["name"] == "id" else None
            if values := values or lists.get(parameter["name"]):
                parameter["schema"] = _or_one_of(values, parameter["schema"])
    document = {"collection": "generated_applications", "id": known["documents"][0]}
    for name in ("hold", "release"):
        body = described["paths"][f"{BASE}/{name}"]["post"]["requestBody"]["content"]["application/json"]
        body["examples"] = {"real": {"value": document}}
    return described


def _or_one_of(values: Sequence[str], schema: Json) -> Json:
    return {"anyOf": [{"enum": list(values)}, schema]}


@pytest.mark.parametrize("changes", [True, False], ids=["changes", "reading"])
async def test_every_answer_is_as_the_description_says(
    database: Database, db: Db, root: Path, tmp_path: Path, changes: bool
) -> None:
    """No 5xx, every schema kept, nothing without the token: schemathesis, all of its checks and phases.

    Each operation also did what it is for: one that only ever answered 404 would have been tested for nothing.
    """
    load_incident(db, root)
    with serving(tmp_path, database, root) as served:
        async with aiohttp.ClientSession() as session:
            client = Client(served, session)
            known = await past(client)
            described = tmp_path / "openapi.json"
            described.write_text(json.dumps(made_real(await client.get("/openapi.json"), known)), encoding="utf-8")
            before = await client.counted()
            await asked(described, served, tmp_path, "--include-tag" if changes else "--exclude-tag", "changes")
            counted = await client.counted() - before
        assert {answer for answer in counted if answer[2] >= 500} == set()
        well = {(method, route) for method, route, status in counted if status < 300}
        meant = [one for one in ENDPOINTS if one.changes == changes and not one.path.startswith(FILES)]
        asked_for = {(one.method, template(one.path)) for one in meant}
        assert asked_for - well <= CHANCE
        assert "a request failed" not in served.log.read_text()


async def asked(described: Path, served: Served, folder: Path, *which: str) -> None:
    """Has schemathesis ask the agent; what it says is shown where the test fails."""
    folder.joinpath("schemathesis.toml").write_text(UNEXPECTED if EXAMPLES < IN_FULL else "", encoding="utf-8")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(described), "--url", served.url]
    options = ["--checks", "all", "--continue-on-failure", "--max-examples", str(EXAMPLES), "--seed", str(SEED)]
    header = ["--header", f"Authorization: Bearer {TOKEN}", "--no-color"]
    process = await asyncio.create_subprocess_exec(
        *command, *options, *header, *which, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    print(said.decode())  # noqa: T201 - the seed, and what failed
    assert process.returncode == 0


# ------------------------------------------------------------------------------------------------------------- access


WRONG: Final[Sequence[dict[str, str]]] = (
    {},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer wrong-token-of-sufficient-length"},
    {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": TOKEN},
    {"X-Authorization": f"Bearer {TOKEN}"},
    {"Cookie": f"Authorization=Bearer {TOKEN}"},
)
BODIES: Final = (b"", b"{", b"x" * 100_000)


@pytest.mark.parametrize("access, status", [(True, 401), (False, 403)], ids=["a wrong token", "nobody has one"])
async def test_nothing_is_changed_without_a_token(
    database: Database, db: Db, root: Path, tmp_path: Path, access: bool, status: int
) -> None:
    """Every change, with every body: it is refused before anything of it is looked at, and nothing is written."""
    load_incident(db, root)
    with serving(tmp_path, database, root, access=access) as served:
        before = contents(db)
        async with aiohttp.ClientSession() as session:
            tries = [(headers, b"{}") for headers in WRONG] + [(WRONG[2], body) for body in BODIES]
            for path, (headers, body) in itertools.product(changes(), tries):
                async with session.post(f"{served.url}{path}", data=body, headers=headers) as answer:
                    assert answer.status == status, (path, headers, body)
                    assert answer.content_type == "application/problem+json"
        assert contents(db) == before


def changes() -> Iterable[str]:
    """The path of every change, for things that there are."""
    for endpoint in ENDPOINTS:
        if endpoint.changes:
            yield template(endpoint.path).format(job="orphan_apps", id="20260101T000000-0123456789")


def contents(db: Db) -> dict[str, str]:
    """What tells whether anything was written, but for what the agent makes for itself at its start."""
    hashes: dict[str, str] = db.command("dbHash")["collections"]
    return hashes


# ------------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("rate_limit, expected", [(60, {202, 409, 429}), (100_000, {202, 409})])
async def test_a_thousand_at_once_begin_one_run(
    database: Database, db: Db, root: Path, tmp_path: Path, rate_limit: int, expected: set[int]
) -> None:
    """The others are told that it runs, or to come later; whoever watches the agent is answered meanwhile.

    ``pytest -s -k thousand tests/e2e/test_api.py`` shows how long the watchers waited.
    """
    load_incident(db, root)
    slow: dict[str, Any] = {"throttle": {"pace": 100}, "defaults": {"batch": 20}}  # so that the run outlasts them all
    with serving(tmp_path, database, root, rate_limit=rate_limit, **slow) as served:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            async with flood(f"{served.url}{BASE}/jobs/old_tasks/run") as flooding:
                waited = dict(
                    zip(
                        WATCHED,
                        await asyncio.gather(*(watched(session, f"{served.url}{path}", flooding) for path in WATCHED)),
                        strict=True,
                    )
                )
                statuses = await flooding
            told = {path: said(seconds) for path, seconds in waited.items()}
            print(f"\na thousand POSTs at once, rate limit {rate_limit}: {dict(statuses)}, {told}")  # noqa: T201
            assert (statuses.total(), statuses[202]) == (1000, 1)
            assert set(statuses) == expected
            (run,) = db.maintenance_runs.find()
            assert run["outcome"] is None
            async with session.post(f"{served.url}{BASE}/runs/{run['_id']}/cancel", headers=ACCESS) as answer:
                assert answer.status in expected
            assert max(max(seconds) for seconds in waited.values()) < PATIENCE


WATCHED: Final = ("/livez", "/metrics")


@contextlib.asynccontextmanager
async def flood(url: str) -> AsyncIterator[asyncio.Task[Counter[int]]]:
    """Has another process ask a thousand times at once; once it begins, yields what will be the answers' statuses."""
    command = [sys.executable, str(Path(__file__).with_name("flood.py")), url, TOKEN, "1000"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begins\n"
        yield asyncio.create_task(_statuses(process.stdout))
    finally:
        await process.wait()


async def _statuses(out: asyncio.StreamReader) -> Counter[int]:
    return Counter({int(status): count for status, count in json.loads(await out.read()).items()})


async def watched(session: aiohttp.ClientSession, url: str, until: asyncio.Task[Any]) -> list[float]:
    """Asks again and again until then, over a new connection each time; the seconds that each answer took."""
    waited = []
    while not until.done():
        began = time.perf_counter()
        async with session.get(url) as answer:
            assert answer.status == 200
            await answer.read()
        waited.append(time.perf_counter() - began)
    return waited


def said(seconds: Sequence[float]) -> str:
    """How long the answers took, in words."""
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    return f"{len(ordered)} answers, p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms"
