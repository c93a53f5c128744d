"""Small servers that stand for a provider's API server, well or ill: slow, hanging, refusing, half-closing.

Each listens on a free port of the loopback address and ends with its block. `certificates` makes what TLS needs, with
the program openssl.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.cluster import ProviderCredentials, from_kubeconfig

Json = dict[str, Any]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

VERSION: Json = {"major": "1", "minor": "20", "gitVersion": "v1.20.2"}


@dataclass
class Server:
    """A running server, and what it was asked."""

    url: str
    requests: list[web.BaseRequest] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The paths of the requests so far, in order."""
        return [request.path for request in self.requests]

    def credentials(self, token: str = "secret-token") -> ProviderCredentials:  # noqa: S107 - a secret of the tests
        """Return credentials for this server, without TLS."""
        return from_kubeconfig(kubeconfig(self.url, {"token": token}), allow_insecure=True)


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: an authority, a server's certificate with its key, a client's, and the client's key encrypted."""

    folder: Path

    def path(self, name: str) -> Path:
        """The path of one of the files: ca.crt, server.crt, server.key, client.crt, client.key, locked.key."""
        return self.folder / name

    def data(self, name: str) -> str:
        """One of the files as a kubeconfig holds it."""
        return base64.b64encode(self.path(name).read_bytes()).decode()

    def for_server(self, *, ask: bool = False) -> ssl.SSLContext:
        """The server's side of TLS; with ``ask`` it wants a certificate of the client."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.path("ca.crt"))
        context.load_cert_chain(self.path("server.crt"), self.path("server.key"))
        context.verify_mode = ssl.CERT_REQUIRED if ask else ssl.CERT_NONE
        return context


def kubeconfig(url: object, user: Mapping[str, Any] | None = None, cluster: Mapping[str, Any] | None = None) -> Json:
    """Make a kubeconfig with one cluster and one user."""
    return {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, **(cluster or {})}}],
        "users": [{"name": "test", "user": dict(user or {})}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }


# ------------------------------------------------------------------------------------------------------------- servers


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, tls: ssl.SSLContext | None = None, *, remember: bool = True
) -> AsyncIterator[Server]:
    """Run a server that hands every request to the handler, and remembers it unless told not to."""
    server = Server("")

    async def recorded(request: web.BaseRequest) -> web.StreamResponse:
        if remember:
            server.requests.append(request)
        with contextlib.suppress(ConnectionError):  # a client that has gone is no error of the server
            return await handler(request)
        return web.Response()

    # Handlers end with their connection; for the rest a moment is enough (zero would be for ever).
    runner = web.ServerRunner(web.Server(recorded, handler_cancellation=True), shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, reuse_address=True)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[Server]:
    """Run a server below HTTP: what is said on a connection is up to the function, which then loses it."""
    # The server would wait for its connections from Python 3.12 on; they end here, with the block.
    talks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.transport.abort()
        talks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield Server(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        if talks:
            await asyncio.wait(talks)


@contextlib.contextmanager
def refusing() -> Iterator[Server]:
    """Hold a port that nobody listens on: connections are refused, and no other program can take it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield Server(f"http://127.0.0.1:{held.getsockname()[1]}")


# ------------------------------------------------------------------------------------------------------------ handlers


def healthy(then: Handler | None = None) -> Handler:
    """Answer the version, which a new client asks for, and leave the rest to another handler."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/version" or then is None:
            return web.json_response(VERSION)
        return await then(request)

    return handler


def answering(status: int, message: str = "", headers: dict[str, str] | None = None) -> Handler:
    """Answer every request with Kubernetes' Status object."""

    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
        return web.json_response(body, status=status, headers=headers)

    return handler


def saying(body: bytes, content_type: str = "application/json", status: int = 200) -> Handler:
    """Answer every request with these bytes."""

    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type}, status=status)

    return handler


def in_turn(*handlers: Handler) -> Handler:
    """Answer the first request by the first handler and so on; the last one answers the rest."""
    remaining = list(handlers)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        chosen = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return await chosen(request)

    return handler


async def hanging(_: web.BaseRequest) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def dripping(request: web.BaseRequest) -> web.StreamResponse:
    """Begin to answer, and go on a byte at a time, without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    """Answer as fast as it is read, without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def half_closing(request: web.BaseRequest) -> web.StreamResponse:
    """Promise more than is sent, then close the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"items": [')
    assert request.transport is not None
    request.transport.close()
    return response


def items(*listed: Json, following: str = "") -> Handler:
    """Answer with one page of a list, and where the next one begins."""
    body = json.dumps({"kind": "List", "metadata": {"continue": following}, "items": list(listed)}).encode()
    return saying(body)


# -------------------------------------------------------------------------------------------------------- certificates


def certificates(folder: Path) -> Certificates:
    """Make an authority and what it signs.

    The certificates lack the identifiers that Python 3.13 asks for and kubectl does not, as many clusters' do.
    """
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    plain = ("-addext", "subjectKeyIdentifier=none", "-addext", "authorityKeyIdentifier=none")
    authority = ("-addext", "basicConstraints=critical,CA:TRUE")
    files = ("-keyout", "ca.key", "-out", "ca.crt")
    _openssl(folder, "req", "-x509", *key, *files, "-days", "30", "-subj", "/CN=authority", *authority, *plain)
    for name, extra in (("server", "subjectAltName=IP:127.0.0.1,DNS:api.example"), ("client", "")):
        (folder / f"{name}.ext").write_text(f"basicConstraints=CA:FALSE\n{extra}\n")
        _openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext")
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signer)
    _openssl(folder, "ec", "-in", "client.key", "-aes128", "-out", "locked.key", "-passout", "pass:secret")
    return Certificates(folder)


def _openssl(folder: Path, *words: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise FileNotFoundError("the tests with TLS need the program openssl")
    subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)
