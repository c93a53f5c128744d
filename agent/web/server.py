"""The server: an application on a port, with TLS where there is a certificate."""

from __future__ import annotations

import asyncio
import ssl
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from agent.errors import ConfigurationError
from agent.web.edge import answer_unreadable

REQUEST_LINE: Final = 16_384  # bytes: the longest `id` of a query, percent-encoded
PATIENCE_SECONDS: Final = 3.0  # of a shutdown's budget of 25; aiohttp's own 60 are longer than Kubernetes' grace
BACKLOG: Final = 1024
# Without a whole request for so long a connection is closed: somebody who opens many and says nothing must not use up
# what there is. aiohttp's own hour would let them.
IDLE_SECONDS: Final = 75.0
LINGER_SECONDS: Final = 2.0  # for the rest of a body that nobody wants; aiohttp's own 10 keep a connection for nothing


def ssl_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS from PEM files; nothing without a certificate. Raises ``ConfigurationError``."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 at least
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        why = error.reason or "they are no PEM certificate and key"
        raise ConfigurationError([f"http.tls_cert, http.tls_key: {why}"]) from error
    except OSError as error:
        raise ConfigurationError([f"http.tls_cert, http.tls_key: {error.strerror}"]) from error
    return context


def renew(context: ssl.SSLContext | None, certificate: Path | None, key: Path | None) -> None:
    """Has new connections get the certificate that the files hold by now. Raises ``ConfigurationError``."""
    if context is not None and certificate is not None:
        ssl_context(certificate, key)  # a bad pair must not reach the context in use
        context.load_cert_chain(certificate, key)


class _Connection(web.RequestHandler):
    """A connection. What cannot be read as HTTP never reaches the edge; it is answered as if it did."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Neither a traceback in the log, since the agent made no mistake, nor the names of what it is made of."""
        if status != HTTPStatus.BAD_REQUEST or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        response = answer_unreadable(message or "")
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Says nothing of a body that cannot be read to its end after the answer: who sent it was told."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


class Server:
    """An application that is served until ``stop``."""

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Does not listen yet. Port 0 takes a free one; ``patience`` is what ``stop`` gives answers under way."""
        # The signals belong to the process.
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=patience)
        self._host, self._port, self._tls = host, port, tls
        self._listening: asyncio.Server | None = None

    async def start(self) -> int:
        """Listens; returns the port. Raises ``OSError`` where the address cannot be had."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            self._connection, self._host, self._port, ssl=self._tls, backlog=BACKLOG
        )
        return int(self._listening.sockets[0].getsockname()[1])

    def _connection(self) -> _Connection:
        server = self._runner.server
        assert server is not None  # noqa: S101 - it is there from the set-up to the clean-up, in which we listen
        return _Connection(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # none: the edge logs its own line a request
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=REQUEST_LINE,
        )

    async def stop(self) -> None:
        """Takes no more connections, lets answers under way end within the patience, and closes the rest."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
