"""The page at ``/``: for now, where to look."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent.web.endpoints import Call, Endpoint, Reply

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Maintenance Agent</title></head>
<body>
<h1>Maintenance Agent</h1>
<ul>
<li><a href="readyz?verbose">Is it ready?</a></li>
<li><a href="metrics">Metrics</a></li>
<li><a href="openapi.json">The HTTP interface</a></li>
</ul>
</body>
</html>
"""


async def get_page(call: Call) -> web.Response:
    """The page."""
    del call
    return web.Response(text=_PAGE, content_type="text/html")


ENDPOINTS: Final = (
    Endpoint("GET", "/", get_page, "The status page", {200: Reply("It.", content_type="text/html")}, open=True),
)
