"""The edge of the HTTP interface: what every request passes, whatever it asks for.

It gives each request an id, answers every error with a problem document, sets the security headers, measures, and logs
one line. It is the one place of the web that catches everything: nothing that goes wrong inside may reach a client as
a traceback.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from agent import log
from agent.errors import AgentError
from agent.metrics import Metrics
from agent.web.problems import IN_LOG, ProblemError, problem_of, problem_of_http, respond

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")
_READING: Final = ("GET", "HEAD")
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Server": "maintenance-agent",  # without the versions of what it is made of
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)

_log = log.get_logger(__name__)


def edge(metrics: Metrics, labels: Mapping[str, str]) -> Middleware:
    """The middleware that every request passes; ``labels`` are the metrics' names of the routes, by their paths."""

    @web.middleware
    async def pass_edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request_id = _request_id(request)
        with log.context(request_id=request_id):
            response = await _answer(request, handler, request_id)
            seconds = time.perf_counter() - started
            route = _route(request, labels)
            metrics.http(request.method, route, response.status, seconds)
            _tell(request, route, response.status, seconds)
        return _signed(response, request_id)

    return pass_edge


def answer_unreadable(why: str) -> web.StreamResponse:
    """The answer to what cannot be read as HTTP. What was sent is not repeated: ``why`` ends with it, after a colon."""
    request_id = uuid.uuid4().hex
    detail = f"The request cannot be read: {why.partition(':')[0].rstrip('.') or 'it is no HTTP'}."
    _log.debug("a request cannot be read", detail=detail, request_id=request_id)
    return _signed(respond(ProblemError("malformed", detail), instance="", request_id=request_id), request_id)


def _signed(response: web.StreamResponse, request_id: str) -> web.StreamResponse:
    response.headers["X-Request-Id"] = request_id
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


async def _answer(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - the edge: a client gets a problem document, never a traceback
        return respond(_problem(request, error), instance=request.rel_url.raw_path, request_id=request_id)


def _problem(request: web.Request, error: Exception) -> ProblemError:
    """The problem that an error is; one that nobody foresaw is logged with its traceback."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, web.HTTPException):
        return problem_of_http(error)
    if isinstance(error, (web.RequestPayloadError, HttpProcessingError, ConnectionError)):
        return ProblemError("malformed", "The body did not arrive as it was announced.")
    if isinstance(error, AgentError):
        problem = problem_of(error)
        if problem.kind != "internal":
            return problem
    _log.error("a request failed", method=request.method, path=request.rel_url.raw_path, exc_info=error)
    return ProblemError("internal", IN_LOG)


def _request_id(request: web.Request) -> str:
    """The id that a proxy gave the request, if it is fit for a log, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(request: web.Request, labels: Mapping[str, str]) -> str | None:
    """The template of the route that took the request, without the base path; nothing where none took it."""
    resource = request.match_info.route.resource
    return None if resource is None else labels.get(resource.canonical)


def _tell(request: web.Request, route: str | None, status: int, seconds: float) -> None:
    """One line a request: changes at INFO, the rest at DEBUG. The query stays out of the log."""
    write = _log.debug if request.method in _READING or request.method == "OPTIONS" else _log.info
    write(
        "request",
        method=request.method,
        path=request.rel_url.raw_path,
        route=route,
        status=status,
        seconds=round(seconds, 4),
        remote=request.remote,
    )
