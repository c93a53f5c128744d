"""What anybody may read: the metrics, the health checks, and the description of the interface."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent.health import Endpoint as HealthEndpoint
from agent.health import Verdict
from agent.web.endpoints import JSON, Call, Endpoint, Reply
from agent.web.openapi import DESCRIPTION
from agent.web.problems import ProblemError

CHECK: Final = "{check:[a-z0-9_-]{1,100}}"
_STATIC_SECONDS: Final = 300  # the description changes with the version only


async def get_metrics(call: Call) -> web.Response:
    """The exposition."""
    headers = call.request.headers
    body, answer = await call.context.metrics.render(headers.get("Accept", ""), headers.get("Accept-Encoding", ""))
    return web.Response(body=body, headers=answer)


async def get_openapi(call: Call) -> web.Response:
    """The description of the interface."""
    body = call.request.app[DESCRIPTION]
    return web.Response(body=body, content_type=JSON, headers={"Cache-Control": f"max-age={_STATIC_SECONDS}"})


async def _ask(call: Call, name: HealthEndpoint) -> web.Response:
    """All checks of an endpoint."""
    query = call.request.query
    excluded = [part for entry in query.getall("exclude", []) for part in entry.split(",") if part]
    return _told(await call.context.health.ask(name, excluded), verbose="verbose" in query)


async def _ask_one(call: Call, name: HealthEndpoint) -> web.Response:
    """One check of an endpoint."""
    verdict = await call.context.health.ask_one(name, call.part("check"))
    if verdict is None:
        names = ", ".join(call.context.health.names(name))
        raise ProblemError("not-found", f"There is no such check; there are {names}.")
    return _told(verdict, verbose="verbose" in call.request.query)


def _told(verdict: Verdict, *, verbose: bool) -> web.Response:
    """`ok`, or the lines of the checks where they were asked for or one failed."""
    text = verdict.text if verbose or not verdict.ok else "ok"
    return web.Response(text=text, status=200 if verdict.ok else 503)


def _health(name: HealthEndpoint, summary: str) -> tuple[Endpoint, Endpoint]:
    """The two endpoints of one kind of health."""
    replies = {
        200: Reply("All is well.", content_type="text/plain"),
        503: Reply("A check failed; the lines say which and why.", content_type="text/plain"),
    }
    verbose = {
        "name": "verbose",
        "in": "query",
        "schema": {"type": "string"},
        "description": "List the checks although all is well; the value does not matter.",
    }
    exclude = {
        "name": "exclude",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Leave out a check, or several with commas between; may be given more than once.",
    }
    return (
        Endpoint(
            "GET",
            f"/{name}",
            lambda call: _ask(call, name),
            summary,
            replies,
            open=True,
            parameters=(verbose, exclude),
            id=f"get_{name}",
        ),
        Endpoint(
            "GET",
            f"/{name}/{CHECK}",
            lambda call: _ask_one(call, name),
            f"{summary}: one check",
            replies,
            (404,),
            open=True,
            parameters=(verbose,),
            id=f"get_{name}_check",
        ),
    )


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/metrics",
        get_metrics,
        "The metrics, for Prometheus",
        {200: Reply("The text format, or OpenMetrics where it is asked for.", content_type="text/plain")},
        open=True,
    ),
    *_health("livez", "Whether the process works; MongoDB is not asked"),
    *_health("readyz", "Whether the agent can do its work"),
    *_health("healthz", "Every check"),
    Endpoint(
        "GET",
        "/openapi.json",
        get_openapi,
        "This description",
        {200: Reply("An OpenAPI 3.1 document.")},
        open=True,
    ),
)
