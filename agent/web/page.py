"""The page at ``/``, and the files that it is made of: all from the package, nothing from another host.

The page is a shell that anybody may open: it holds no data. Its script asks the open health checks, and the API once
it was given a token. Every URL in it is relative, so that it works under any path that a proxy publishes it at, and
nothing in it is inline, so that the content security policy can forbid that.

The files lie under a name that changes with their content: a browser may keep them for good, and never mixes those of
two versions. While replicas of two versions answer, a file may be asked of the other one; it answers with its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import aiohttp_jinja2
import jinja2
from aiohttp import web

from agent.web.endpoints import Call, Endpoint, Reply
from agent.web.problems import ProblemError

TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
)
KEPT: Final = "public, max-age=31536000, immutable"
DIGEST_LENGTH: Final = 16

_HERE: Final = Path(__file__).parent
_FILES: Final = {path.name: path.read_bytes() for path in sorted(_HERE.joinpath("static").iterdir())}
DIGEST: Final = hashlib.sha256(b"".join(_FILES.values())).hexdigest()[:DIGEST_LENGTH]

_CLASSIC: Final = {"theme.js"}  # scripts that are no modules
_MODULES: Final = [name for name in _FILES if name.endswith(".js") and name not in _CLASSIC]


def setup(app: web.Application) -> None:
    """Gives the application the page's template. What it is told is escaped, and nothing may be left untold."""
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    aiohttp_jinja2.setup(app, loader=loader, undefined=jinja2.StrictUndefined)


async def get_page(call: Call) -> web.Response:
    """The shell."""
    tokens = await call.context.tokens.current()
    told = {
        "static": f"static/{DIGEST}",
        "modules": _MODULES,
        "version": call.context.version,
        "access": bool(tokens.digests),
    }
    return aiohttp_jinja2.render_template("page.html", call.request, told)


async def get_file(call: Call) -> web.Response:
    """One of the files; of another version than the page's it may not be kept."""
    name = call.part("file")
    if name not in _FILES:
        raise ProblemError("not-found", "The page has no such file.")
    kept = {"Cache-Control": KEPT} if call.part("version") == DIGEST else {}
    return web.Response(body=_FILES[name], content_type=TYPES[Path(name).suffix], charset="utf-8", headers=kept)


ENDPOINTS: Final = (
    Endpoint("GET", "/", get_page, "The status page", {200: Reply("It.", content_type="text/html")}, open=True),
    Endpoint(
        "GET",
        f"/static/{{version:[0-9a-f]{{{DIGEST_LENGTH}}}}}/{{file:[a-z]+[.](?:css|js|svg)}}",
        get_file,
        "A file of the status page",
        {200: Reply("It.", content_type="*/*")},
        (404,),
        open=True,
    ),
)
