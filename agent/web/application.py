"""The application: all endpoints behind the edge."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from agent.web import api, openapi, page, probes
from agent.web.contract import Context
from agent.web.edge import edge
from agent.web.endpoints import BODY_LIMIT, Endpoint, bind
from agent.web.openapi import template

ENDPOINTS: Final[tuple[Endpoint, ...]] = (*page.ENDPOINTS, *probes.ENDPOINTS, *api.ENDPOINTS)


def make_app(context: Context) -> web.Application:
    """The application of ``context``.

    Behind a base path everything is served twice, under it and without it: some proxies take the path off, and probes
    and scrapes do not come through the proxy.
    """
    prefixes = sorted({"", context.base_path})
    labels = {f"{prefix}{template(one.path)}": template(one.path) for prefix in prefixes for one in ENDPOINTS}
    app = web.Application(middlewares=[edge(context.metrics, labels)], client_max_size=BODY_LIMIT)
    page.setup(app)
    app[openapi.DESCRIPTION] = json.dumps(openapi.document(ENDPOINTS, context.base_path)).encode()
    context.metrics.set_routes(_series(ENDPOINTS))
    for prefix in prefixes:
        _add(app, prefix, context)
    if context.base_path:
        app.router.add_get(context.base_path, _to_the_page)
    return app


def _series(endpoints: Iterable[Endpoint]) -> Iterable[tuple[str, str, Iterable[int]]]:
    """Method, route and statuses of each endpoint, for the metrics."""
    for endpoint in endpoints:
        yield endpoint.method, template(endpoint.path), [*endpoint.statuses, 500]


def _add(app: web.Application, prefix: str, context: Context) -> None:
    allowed: dict[str, set[str]] = {}
    for endpoint in ENDPOINTS:
        path = prefix + endpoint.path
        route = bind(endpoint, context)
        app.router.add_route(endpoint.method, path, route, expect_handler=_expect)
        allowed.setdefault(path, {hdrs.METH_OPTIONS}).add(endpoint.method)
        if endpoint.method == hdrs.METH_GET:
            app.router.add_route(hdrs.METH_HEAD, path, route, expect_handler=_expect)
            allowed[path].add(hdrs.METH_HEAD)
    for path, methods in allowed.items():
        app.router.add_route(hdrs.METH_OPTIONS, path, _options(methods), expect_handler=_expect)


def _options(methods: set[str]) -> Handler:
    allow = ", ".join(sorted(methods))

    async def options(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=204, headers={"Allow": allow})

    return options


async def _to_the_page(request: web.Request) -> web.StreamResponse:
    """The page's own links are relative: its path ends with a slash."""
    return web.Response(status=308, headers={"Location": f"{request.rel_url.raw_path}/"})


async def _expect(request: web.Request) -> None:
    """Answers ``Expect: 100-continue``; other expectations may be passed over (RFC 9110, section 10.1.1)."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
