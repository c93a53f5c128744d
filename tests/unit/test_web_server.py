"""The server: ports, TLS, and an end within its patience."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from agent.errors import ConfigurationError
from agent.web import Server, endpoints, make_app, renew, ssl_context
from agent.web import server as server_module
from tests.unit.web_fake import ANN, parts


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    return made_in(tmp_path_factory.mktemp("tls"))


def made_in(directory: Path) -> tuple[Path, Path]:
    """A new certificate, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    certificate, key = directory / "tls.crt", directory / "tls.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(
        [openssl, *new, *subject, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    return certificate, key


async def test_a_server_takes_a_free_port_and_gives_it_back() -> None:
    """It answers until it is stopped."""
    server = Server(make_app(parts(None).context), "127.0.0.1", 0)
    port = await server.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/livez") as answer:
        assert answer.status == 200
    await server.stop()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_tls_is_spoken_with_a_certificate(certificate: tuple[Path, Path]) -> None:
    """1.2 at least; nothing is served without."""
    tls = ssl_context(*certificate)
    assert tls is not None
    assert tls.minimum_version >= ssl.TLSVersion.TLSv1_2
    server = Server(make_app(parts(None).context), "127.0.0.1", 0, tls=tls)
    port = await server.start()
    trust = ssl.create_default_context(cafile=certificate[0])
    async with aiohttp.ClientSession() as session:
        async with session.get(f"https://127.0.0.1:{port}/livez", ssl=trust) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{port}/livez")
    await server.stop()


async def test_a_certificate_that_was_changed_is_served_from_then_on(tmp_path: Path) -> None:
    """Without a restart; a file that is broken meanwhile changes nothing."""
    certificate, key = made_in(tmp_path)
    tls = ssl_context(certificate, key)
    server = Server(make_app(parts(None).context), "127.0.0.1", 0, tls=tls)
    port = await server.start()
    made_in(tmp_path)
    renew(tls, certificate, key)
    trust = ssl.create_default_context(cafile=certificate)
    for content in (None, "no certificate"):
        if content is not None:
            certificate.write_text(content, encoding="utf-8")
            with pytest.raises(ConfigurationError, match=r"http.tls_cert, http.tls_key"):
                renew(tls, certificate, key)
        url = f"https://127.0.0.1:{port}/livez"
        async with aiohttp.ClientSession() as session, session.get(url, ssl=trust) as answer:
            assert answer.status == 200
    await server.stop()


def test_a_certificate_that_cannot_be_used_is_a_problem_of_the_configuration(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """By the keys' names; without a certificate there is no TLS."""
    assert ssl_context(None, None) is None
    with pytest.raises(ConfigurationError, match=r"http.tls_cert, http.tls_key: No such file"):
        ssl_context(tmp_path / "none", tmp_path / "none")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no certificate", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"http.tls_cert, http.tls_key: "):
        ssl_context(nonsense, certificate[1])


async def test_stopping_waits_for_answers_under_way_but_not_for_ever(tmp_path: Path) -> None:
    """A request that waits for a run is cut off when the patience ends."""
    tokens_file = tmp_path / "tokens"
    await asyncio.to_thread(tokens_file.write_text, f"ann:{ANN}\n", "utf-8")
    made = parts(tokens_file)
    waiting = asyncio.Event()

    async def never() -> dict[str, object]:
        waiting.set()
        await asyncio.Event().wait()
        return {}

    made.operations.status = never  # type: ignore[method-assign] # an operation that does not end
    server = Server(make_app(made.context), "127.0.0.1", 0, patience=0.01)
    port = await server.start()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ANN}"}) as session:
        request = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/api/maintenance/status"))
        await waiting.wait()
        await server.stop()
        with pytest.raises(aiohttp.ClientError):
            await request


async def sent(port: int, *parts: bytes) -> bytes:
    """What the server says to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said


@pytest.mark.parametrize(
    "request_",
    [
        b"SECRET\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Id: SECRET\x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /livez?" + b"SECRET" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["no HTTP", "no host", "control character", "two lengths", "long", "TLS"],
)
async def test_what_cannot_be_read_is_answered_like_any_other_error(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A problem document with all headers; it repeats nothing, names no library, and is no error in the agent's log."""
    server = Server(make_app(parts(None).context), "127.0.0.1", 0)
    port = await server.start()
    head, _, body = (await sent(port, request_)).partition(b"\r\n\r\n")
    await server.stop()
    assert head.split()[1] == b"400"
    assert b"application/problem+json" in head
    assert b"Server: maintenance-agent\r\n" in head
    assert b"nosniff" in head
    problem = json.loads(body)
    assert (problem["status"], problem["type"]) == (400, "urn:maintenance-agent:problem:malformed")
    assert b"SECRET" not in body
    assert not caplog.records


async def test_a_connection_without_a_whole_request_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether nothing comes, half of a head, or half of a body; the others are served meanwhile."""
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(endpoints, "BODY_SECONDS", 0.05)
    tokens_file = tmp_path / "tokens"
    await asyncio.to_thread(tokens_file.write_text, f"ann:{ANN}\n", "utf-8")
    made = parts(tokens_file)
    server = Server(make_app(made.context), "127.0.0.1", 0)
    port = await server.start()
    assert await sent(port) == b""
    assert await sent(port, b"GET /livez HTT") == b""
    post = (
        f"POST /api/maintenance/pause HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ANN}\r\nContent-Length: 9\r\n\r\n{{"
    )
    said = await sent(port, post.encode())
    assert said.split()[1] == b"400"
    assert b"The body did not arrive within" in said
    assert made.operations.calls == []
    await server.stop()


@pytest.mark.parametrize("access", [f"Authorization: Bearer {ANN}\r\n", ""], ids=["with a token", "without"])
async def test_a_body_that_cannot_be_unpacked_is_no_error_of_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, access: str
) -> None:
    """Whoever sends it is told, and cannot fill the log with tracebacks."""
    tokens_file = tmp_path / "tokens"
    await asyncio.to_thread(tokens_file.write_text, f"ann:{ANN}\n", "utf-8")
    server = Server(make_app(parts(tokens_file).context), "127.0.0.1", 0)
    port = await server.start()
    head = f"POST /api/maintenance/pause HTTP/1.1\r\nHost: a\r\n{access}Connection: close\r\nContent-Encoding: gzip\r\n"
    said = await sent(port, f"{head}Content-Length: 7\r\n\r\nnotgzip".encode())
    await server.stop()
    assert said.split()[1] == (b"400" if access else b"401")
    assert not caplog.records
