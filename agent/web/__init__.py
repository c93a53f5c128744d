"""The HTTP interface: API, metrics, health checks, page. The only importer of aiohttp.

It parses, calls and serialises; what is done is done by the operations that it is handed (``contract``). ``endpoints``
says what an endpoint is, ``api``, ``probes`` and ``page`` list them, ``edge`` is what every request passes.
"""

from agent.web.application import ENDPOINTS, make_app
from agent.web.contract import Context, Handle, Operations, PassHandle
from agent.web.limits import RateLimiter
from agent.web.server import Server, renew, ssl_context
from agent.web.tokens import TokenFile, Tokens

__all__ = [
    "ENDPOINTS",
    "Context",
    "Handle",
    "Operations",
    "PassHandle",
    "RateLimiter",
    "Server",
    "TokenFile",
    "Tokens",
    "make_app",
    "renew",
    "ssl_context",
]
