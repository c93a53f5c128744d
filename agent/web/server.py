"""The server: an application on a port, with TLS where there is a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from aiohttp import web

from agent.errors import ConfigurationError

REQUEST_LINE: Final = 16_384  # bytes: the longest `id` of a query, percent-encoded
PATIENCE_SECONDS: Final = 3.0  # of a shutdown's budget of 25; aiohttp's own 60 are longer than Kubernetes' grace
BACKLOG: Final = 1024


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
        # Its own line a request is logged by the edge; the signals belong to the process.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            max_line_size=REQUEST_LINE,
            shutdown_timeout=patience,
        )
        self._host, self._port, self._tls = host, port, tls

    async def start(self) -> int:
        """Listens; returns the port. Raises ``OSError`` where the address cannot be had."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls, backlog=BACKLOG)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Takes no more connections, lets answers under way end within the patience, and closes the rest."""
        await self._runner.cleanup()
