"""The OpenAPI document: held to the code, and the code to it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pytest_aiohttp.plugin import AiohttpClient

from agent.web import ENDPOINTS, make_app, models
from agent.web.openapi import document
from tests.unit import web_fake

ROOT = Path(__file__).parents[2]
DESIGN = {
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/livez"),
    ("GET", "/livez/{check}"),
    ("GET", "/readyz"),
    ("GET", "/readyz/{check}"),
    ("GET", "/healthz"),
    ("GET", "/healthz/{check}"),
    ("GET", "/openapi.json"),
    ("GET", "/api/maintenance/status"),
    ("GET", "/api/maintenance/jobs"),
    ("GET", "/api/maintenance/jobs/{job}"),
    ("GET", "/api/maintenance/jobs/{job}/explain"),
    ("GET", "/api/maintenance/runs"),
    ("GET", "/api/maintenance/runs/{id}"),
    ("GET", "/api/maintenance/runs/{id}/items"),
    ("POST", "/api/maintenance/run"),
    ("POST", "/api/maintenance/jobs/{job}/run"),
    ("POST", "/api/maintenance/pause"),
    ("POST", "/api/maintenance/resume"),
    ("POST", "/api/maintenance/jobs/{job}/pause"),
    ("POST", "/api/maintenance/jobs/{job}/resume"),
    ("POST", "/api/maintenance/hold"),
    ("POST", "/api/maintenance/release"),
    ("POST", "/api/maintenance/runs/{id}/apply"),
    ("POST", "/api/maintenance/runs/{id}/restore"),
    ("POST", "/api/maintenance/runs/{id}/cancel"),
    ("POST", "/-/reload"),
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The document, as JSON has it."""
    made: dict[str, Any] = json.loads(json.dumps(document(ENDPOINTS)))
    return made


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every operation with its method and path."""
    return [
        (method.upper(), path, operation)
        for path, item in described["paths"].items()
        for method, operation in item.items()
    ]


def test_the_committed_copy_is_the_code_s(described: dict[str, Any]) -> None:
    """`python -m agent.web docs/openapi.json` writes it anew."""
    assert json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")) == described


def test_it_describes_what_the_contract_lists(described: dict[str, Any]) -> None:
    """Nothing is missing, nothing is more."""
    assert {(method, path) for method, path, _ in operations(described)} == DESIGN


async def test_it_describes_what_is_served(aiohttp_client: AiohttpClient, described: dict[str, Any]) -> None:
    """Every route that is not for HEAD, OPTIONS or a file of the page."""
    client = await aiohttp_client(make_app(web_fake.parts(None).context))
    routes = {
        (route.method, route.resource.canonical)
        for route in client.app.router.routes()
        if route.resource and route.method not in {"HEAD", "OPTIONS"}
    }
    assert {(method, path) for method, path in routes if not path.startswith("/static/")} == DESIGN
    assert json.loads(await (await client.get("/openapi.json")).text()) == described


def test_every_operation_says_who_may_and_what_can_go_wrong(described: dict[str, Any]) -> None:
    """Unique ids; problems as problem documents; what needs a token says so."""
    ids = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(ids)) == len(ids)
    for method, path, operation in operations(described):
        guarded = path.startswith(("/api/", "/-/"))
        assert operation["security"] == ([{"token": []}] if guarded else [])
        expected = {"default"} | ({"401", "403"} if guarded else set())
        expected |= {"400", "413", "415", "422", "429"} if method == "POST" else set()
        assert expected <= set(operation["responses"]), (method, path)
        for status, response in operation["responses"].items():
            if status == "default" or (int(status) >= 400 and not path.startswith(("/livez", "/readyz", "/healthz"))):
                assert list(response["content"]) == ["application/problem+json"]


def test_every_reference_leads_somewhere_and_every_part_of_a_path_is_described(described: dict[str, Any]) -> None:
    """The document is whole."""
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references <= set(described["components"]["schemas"])
    for _, path, operation in operations(described):
        named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path))


def test_queries_are_described_as_they_are_checked(described: dict[str, Any]) -> None:
    """Bounds, patterns and sets, without the null that no query can say."""
    parameters = {
        parameter["name"]: parameter for parameter in described["paths"]["/api/maintenance/runs"]["get"]["parameters"]
    }
    assert set(parameters) == {"job", "pass", "outcome", "trigger", "before", "limit"}
    assert parameters["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}
    assert parameters["outcome"]["schema"]["enum"] == ["succeeded", "failed", "timed_out", "refused", "interrupted"]
    assert "null" not in json.dumps(parameters)
    explain = described["paths"]["/api/maintenance/jobs/{job}/explain"]["get"]["parameters"]
    assert [parameter["required"] for parameter in explain if parameter["name"] == "id"] == [True]


def test_requests_are_strict_and_answers_are_open(described: dict[str, Any]) -> None:
    """An unknown key of a request is an error; an answer may carry more."""
    schemas = described["components"]["schemas"]
    for name in ("RunRequest", "WaitRequest", "RestoreRequest", "HoldRequest", "Nothing"):
        assert schemas[name]["additionalProperties"] is False
    for name in ("Run", "Job", "Status", "Problem", "Item", "Explanation"):
        assert schemas[name]["additionalProperties"] is True


@pytest.mark.parametrize(
    "model, answer",
    [
        (models.Run, web_fake.RUN),
        (models.Run, web_fake.RUNNING),
        (models.Job, web_fake.JOB),
        (models.Item, web_fake.ITEM),
        (models.Status, web_fake.STATUS),
        (models.Explanation, web_fake.EXPLANATION),
        (models.Held, web_fake.HELD),
        (models.Paused, web_fake.PAUSED),
        (models.Reloaded, web_fake.RELOADED),
    ],
)
def test_answers_are_as_they_are_described(model: type[BaseModel], answer: dict[str, Any]) -> None:
    """The records of the agent fit the models."""
    model.model_validate(answer)
