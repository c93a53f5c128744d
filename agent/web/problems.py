"""Problem documents (RFC 9457): what every error of the HTTP interface answers.

``type`` names the kind of problem for programs, ``title`` says it in words, ``detail`` what happened this time.
``request_id`` leads to the log; ``errors`` lists what is wrong with a request, each with its path.
"""

from __future__ import annotations

import http
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from pydantic import ValidationError

from agent import log
from agent.errors import (
    AgentError,
    BusyError,
    ConfigurationError,
    ConflictError,
    DependencyError,
    InterruptedRunError,
    LeaseLostError,
    NotFoundError,
    RefusedError,
    SlotTakenError,
    StoreDeniedError,
    UsageError,
)

CONTENT_TYPE: Final = "application/problem+json"
IN_LOG: Final = "It is in the log under the request's id."
TOO_LARGE: Final = "At most 64 KiB are read."
RETRY_SECONDS: Final = 5  # a dependency that is away: about what an election takes
RETRY_SOON_SECONDS: Final = 1  # somebody was quicker: the next try will do

TITLES: Final[Mapping[str, tuple[int, str]]] = {
    "malformed": (400, "The request is malformed"),
    "unauthorized": (401, "A token is needed"),
    "forbidden": (403, "Nobody has access"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "The method is not allowed"),
    "busy": (409, "It is running already"),
    "impossible": (409, "It cannot be done as things stand"),
    "refused": (409, "A guard refused"),
    "conflict": (409, "Somebody else was quicker"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is not JSON"),
    "invalid": (422, "The request is not valid"),
    "configuration": (422, "The configuration cannot be used"),
    "too-many-requests": (429, "Too many changes were asked for"),
    "internal": (500, "The agent made a mistake"),
    "unavailable": (503, "Something that the agent needs is away"),
    "denied": (503, "The agent lacks a permission"),
    "stopping": (503, "The agent is stopping"),
}


@dataclass
class ProblemError(Exception):
    """An answer that is a problem; raise it anywhere below the edge."""

    kind: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[Mapping[str, str]] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    status: int = 0
    """0: the kind's own."""


def problem_of(error: AgentError) -> ProblemError:  # noqa: PLR0911 - one line a kind of error
    """The problem that one of the agent's errors is.

    What a request says was checked before; a ``UsageError`` from further in means that it cannot be done as things
    stand (the plan was applied already, an id means several documents): 409.
    """
    detail = log.redact(str(error))
    soon, later = {"Retry-After": str(RETRY_SOON_SECONDS)}, {"Retry-After": str(RETRY_SECONDS)}
    match error:
        case NotFoundError():
            return ProblemError("not-found", detail)
        case UsageError():
            return ProblemError("impossible", detail)
        case ConfigurationError():
            errors = [_configuration_error(log.redact(line)) for line in error.problems]
            return ProblemError("configuration", "The running configuration stays.", errors=errors)
        case BusyError():
            return ProblemError("busy", detail, soon)
        case RefusedError():
            return ProblemError("refused", detail, more={"guard": error.guard})
        case SlotTakenError() | LeaseLostError() | ConflictError():
            return ProblemError("conflict", detail, soon)
        case StoreDeniedError():
            return ProblemError("denied", detail, later, more={"dependency": error.dependency})
        case DependencyError():
            return ProblemError("unavailable", detail, later, more={"dependency": error.dependency})
        case InterruptedRunError():
            return ProblemError("stopping", detail, later)
        case _:
            return ProblemError("internal", IN_LOG)


def _configuration_error(line: str) -> dict[str, str]:
    """A problem of the configuration with the key's path, where its line begins with one."""
    path, colon, message = line.partition(": ")
    if colon and path and not any(character.isspace() for character in path):
        return {"path": path, "message": message}
    return {"path": "", "message": line}


def problem_of_http(error: web.HTTPException) -> ProblemError:
    """The problem that one of aiohttp's own answers is (no such path, wrong method, body too large)."""
    kinds = {status: kind for kind, (status, _) in reversed(list(TITLES.items()))}
    kind = kinds.get(error.status, "internal" if error.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR else "malformed")
    details = {
        "not-found": "No resource has this path.",
        "method-not-allowed": "The resource has other methods; `Allow` lists them.",
        "too-large": TOO_LARGE,
    }
    kept = {name: error.headers[name] for name in ("Allow", "Retry-After") if name in error.headers}
    return ProblemError(kind, details.get(kind, error.reason), kept, status=error.status)


def problem_of_validation(error: ValidationError, kind: str) -> ProblemError:
    """The problem of a body or a query that its model does not take; values are not repeated."""
    errors = [
        {"path": ".".join(str(part) for part in entry["loc"]), "message": entry["msg"]}
        for entry in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    count = "One thing is" if len(errors) == 1 else f"{len(errors)} things are"
    return ProblemError(kind, f"{count} wrong with the request; `errors` says what.", errors=errors)


def respond(problem: ProblemError, *, instance: str, request_id: str) -> web.Response:
    """The answer that a problem is."""
    status, title = TITLES[problem.kind]
    document: dict[str, Any] = {
        "type": f"urn:maintenance-agent:problem:{problem.kind}",
        "title": title,
        "status": problem.status or status,
        "detail": problem.detail,
        "instance": instance,
        "request_id": request_id,
        **problem.more,
    }
    if problem.errors:
        document["errors"] = list(problem.errors)
    return web.Response(
        status=problem.status or status,
        body=json.dumps(document).encode(),
        content_type=CONTENT_TYPE,
        headers=dict(problem.headers),
    )
