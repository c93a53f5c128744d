"""An endpoint: what one method of one path takes and answers, declared once.

From the declaration come the route, the order of its checks (token, rate limit, query, body), the series of the HTTP
metrics and its part of the OpenAPI document. A handler gets what was asked for, validated, and returns a document.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ValidationError

from agent.web.contract import Context
from agent.web.models import Nothing, Request
from agent.web.problems import TOO_LARGE, ProblemError, problem_of_validation
from agent.web.tokens import Tokens

BODY_LIMIT: Final = 64 * 1024
BODY_SECONDS: Final = 10.0  # for a body that is small; who sends it drop by drop must not keep a connection for ever
JSON: Final = "application/json"
REALM: Final = 'Bearer realm="maintenance-agent"'


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed its checks. ``name`` is the token's; ``body`` and ``query`` are the endpoint's models."""

    request: web.Request
    context: Context
    name: str
    query: Any
    body: Any

    def part(self, name: str) -> str:
        """A part of the path."""
        return self.request.match_info[name]


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint may answer when all is well."""

    description: str
    model: type[BaseModel] | None = None
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path. ``problems`` are the statuses that it may answer beside those of the checks."""

    method: str
    path: str
    handler: Callable[[Call], Awaitable[web.StreamResponse]]
    summary: str
    replies: Mapping[int, Reply]
    problems: tuple[int, ...] = ()
    query: type[Request] | None = None
    body: type[Request] | None = None
    open: bool = False
    """Whether anybody may ask, without a token."""
    parameters: tuple[Mapping[str, Any], ...] = ()
    """Query parameters of an open endpoint, which takes others too, as OpenAPI writes them."""
    id: str = ""
    """Its name for clients; the handler's where there is none."""

    @property
    def changes(self) -> bool:
        """Whether it may change something, and so falls under the rate limit."""
        return self.method == "POST"

    @property
    def statuses(self) -> list[int]:
        """Every status that it may answer."""
        found = {*self.replies, *self.problems}
        found |= set() if self.open else {401, 403}
        found |= {400} if self.query is not None else set()
        found |= {400, 413, 415, 422, 429} if self.changes else set()
        return sorted(found)


def respond(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=json.dumps(document).encode(), content_type=JSON, headers=headers)


def bind(endpoint: Endpoint, context: Context) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of an endpoint with its checks before it."""

    async def checked(request: web.Request) -> web.StreamResponse:
        if not endpoint.open:
            await context.turns.take()
        name = "" if endpoint.open else _name_of(request, await context.tokens.current(), context)
        if endpoint.changes:
            _limit(name, context)
        query = None if endpoint.query is None else _query(request, endpoint.query)
        body = await _body(request, endpoint.body or Nothing) if endpoint.changes else None
        return await endpoint.handler(Call(request, context, name, query, body))

    return checked


def _name_of(request: web.Request, tokens: Tokens, context: Context) -> str:
    """The name of the token that came with the request."""
    if not tokens.digests:
        raise ProblemError("forbidden", _why_nobody(tokens, context))
    given = request.headers.getall("Authorization", [])
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise ProblemError("unauthorized", "Send `Authorization: Bearer TOKEN`.", {"WWW-Authenticate": REALM})
    name = tokens.name_of(token.strip())
    if name is None:
        challenge = f'{REALM}, error="invalid_token"'
        raise ProblemError("unauthorized", "The token is not known here.", {"WWW-Authenticate": challenge})
    return name


def _why_nobody(tokens: Tokens, context: Context) -> str:
    """Why no token can give access, and how one could."""
    if context.tokens.path is None:
        return (
            "No tokens file is configured, so nobody has access. Set `http.tokens_file` "
            "(MAINTENANCE_HTTP__TOKENS_FILE) to a file of `name:token` lines."
        )
    problems = "; ".join(tokens.problems) or "it has no `name:token` line"
    return f"The configured tokens file gives nobody access: {problems}."


def _limit(name: str, context: Context) -> None:
    seconds = context.limiter.take(name)
    if seconds:
        raise ProblemError(
            "too-many-requests",
            f"{name} may ask for {context.limiter.per_minute} changes a minute; the next in {seconds} s.",
            {"Retry-After": str(seconds)},
        )


def _query(request: web.Request, model: type[Request]) -> Request:
    given = request.query
    repeated = sorted({key for key in given if len(given.getall(key)) > 1})
    if repeated:
        errors = [{"path": key, "message": "given more than once"} for key in repeated]
        raise ProblemError("malformed", "A parameter may be given once.", errors=errors)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise problem_of_validation(error, "malformed") from None


async def _body(request: web.Request, model: type[Request]) -> Request:
    """The body, or the model's defaults where there is none."""
    if (request.content_length or 0) > BODY_LIMIT:
        raise ProblemError("too-large", TOO_LARGE)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await request.read()
    except TimeoutError:
        raise ProblemError("malformed", f"The body did not arrive within {BODY_SECONDS:g} s.") from None
    if content and request.content_type != JSON:
        raise ProblemError("unsupported-media-type", f"Send the body as `Content-Type: {JSON}`.")
    try:
        return model.model_validate_json(content or b"{}")
    except ValidationError as error:
        unreadable = any(entry["type"] == "json_invalid" for entry in error.errors(include_input=False))
        raise problem_of_validation(error, "malformed" if unreadable else "invalid") from None
