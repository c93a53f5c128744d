"""The OpenAPI 3.1 document, made from the endpoints and from the models that validate.

docs/openapi.json is a copy (`python -m agent.web docs/openapi.json` writes it); a test holds it to the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agent.web import models
from agent.web.endpoints import BODY_LIMIT, JSON, Endpoint, Reply
from agent.web.problems import CONTENT_TYPE, TITLES

API_VERSION: Final = "1.0.0"  # of the interface, not of the agent: it grows when clients have to know
DESCRIPTION: Final = web.AppKey("description", bytes)
"""Where an application keeps the document as it is served."""

FILES: Final = "/static/"

Schema = dict[str, Any]

_PARAMETER = re.compile(r"\{(\w+):((?:[^{}]|\{[^{}]*\})*)\}")
_ABOUT: Final = """\
The Maintenance Agent keeps MongoDB records, directories on a volume and Kubernetes workloads in step.

Every error is a problem document (RFC 9457) whose `type` names it for programs and whose `request_id` leads to the log.
Nothing is ever changed by GET. Changes fall under a rate limit of each token.
"""
_SCHEME: Final = """\
A line of the tokens file is `name:token`; the name stands in the records of what the token's holder asked for.
Without a tokens file the API answers 403.
"""
_HEADERS: Final[Mapping[int, tuple[str, str, str]]] = {
    202: ("Location", "Where the run is found.", "string"),
    401: ("WWW-Authenticate", "The scheme to use.", "string"),
    429: ("Retry-After", "Seconds after which the next change is accepted.", "integer"),
}


def document(endpoints: Iterable[Endpoint], base_path: str = "") -> Schema:
    """The OpenAPI document of the endpoints, published under ``base_path``."""
    paths: dict[str, Schema] = {}
    # The files of the page are no part of the interface: they come and go with it.
    endpoints = [endpoint for endpoint in endpoints if not endpoint.path.startswith(FILES)]
    for endpoint in endpoints:
        item = paths.setdefault(template(endpoint.path), {})
        item[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Maintenance Agent",
            "version": API_VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(endpoints),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": _SCHEME}},
        },
    }


def template(path: str) -> str:
    """The path of an endpoint without the patterns of its parts: `/jobs/{job}`."""
    return _PARAMETER.sub(r"{\1}", path)


def _operation(endpoint: Endpoint) -> Schema:
    operation: Schema = {
        "operationId": endpoint.id or endpoint.handler.__name__,
        "summary": endpoint.summary,
        "tags": [_tag(endpoint)],
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint), *endpoint.parameters],
        "responses": {str(status): _response(endpoint, status) for status in endpoint.statuses},
        "security": [] if endpoint.open else [{"token": []}],
    }
    operation["responses"]["default"] = _problem("Any other error.")
    if endpoint.changes:
        operation["requestBody"] = _request_body(endpoint.body or models.Nothing)
    return operation


def _tag(endpoint: Endpoint) -> str:
    if endpoint.open:
        return "open"
    return "changes" if endpoint.changes else "reading"


def _path_parameters(endpoint: Endpoint) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{pattern}$"}}
        for name, pattern in _PARAMETER.findall(endpoint.path)
    ]


def _query_parameters(endpoint: Endpoint) -> list[Schema]:
    if endpoint.query is None:
        return []
    schema = endpoint.query.model_json_schema()
    return [
        _query_parameter(name, entry, required=name in schema.get("required", []))
        for name, entry in schema["properties"].items()
    ]


def _query_parameter(name: str, entry: Schema, *, required: bool) -> Schema:
    """A parameter; in a query nothing stands for null, so that choice goes."""
    choices = [choice for choice in entry.get("anyOf", [entry]) if choice.get("type") != "null"]
    schema = {key: value for key, value in choices[0].items() if key not in {"description", "title"}}
    if entry.get("default") is not None:
        schema["default"] = entry["default"]
    described = {"description": entry["description"]} if "description" in entry else {}
    return {"name": name, "in": "query", "required": required, "schema": schema, **described}


def _request_body(model: type[BaseModel]) -> Schema:
    needed = any(field.is_required() for field in model.model_fields.values())
    return {
        "required": needed,
        "description": f"At most {BODY_LIMIT // 1024} KiB.",
        "content": {JSON: {"schema": _reference(model)}},
    }


def _response(endpoint: Endpoint, status: int) -> Schema:
    if status not in endpoint.replies:
        return _problem(_described(status), status)
    reply = endpoint.replies[status]
    response: Schema = {"description": reply.description, "content": {reply.content_type: _content(reply)}}
    if status in _HEADERS and reply.model is models.Run:
        response["headers"] = _header(status)
    return response


def _content(reply: Reply) -> Schema:
    if reply.model is not None:
        return {"schema": _reference(reply.model)}
    return {"schema": {"type": "object" if reply.content_type == JSON else "string"}}


def _described(status: int) -> str:
    """The titles of the problems that have a status."""
    return "; ".join(title for code, title in TITLES.values() if code == status) + "."


def _problem(description: str, status: int = 0) -> Schema:
    response: Schema = {"description": description, "content": {CONTENT_TYPE: {"schema": _reference(models.Problem)}}}
    if status in _HEADERS:
        response["headers"] = _header(status)
    return response


def _header(status: int) -> Schema:
    name, description, kind = _HEADERS[status]
    return {name: {"description": description, "schema": {"type": kind}}}


def _reference(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas(endpoints: Iterable[Endpoint]) -> Schema:
    """The schemas of every model that an endpoint takes or answers."""
    used: dict[str, type[BaseModel]] = {models.Problem.__name__: models.Problem}
    for endpoint in endpoints:
        if endpoint.changes:
            body = endpoint.body or models.Nothing
            used[body.__name__] = body
        for reply in endpoint.replies.values():
            if reply.model is not None:
                used[reply.model.__name__] = reply.model
    _, schemas = models_json_schema(
        [(model, "validation") for model in used.values()], ref_template="#/components/schemas/{model}"
    )
    return dict(sorted(schemas["$defs"].items()))
