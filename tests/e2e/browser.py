"""A real browser and a real agent for the tests of the status page.

The agent runs in a thread with an event loop of its own, since the browser's driver keeps the test's. Everything that a
page asks for, and everything that it complains about, is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import http.client
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from agent.app import Service
from agent.job import Job
from agent.settings import Settings

CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
PATIENCE: Final = 15.0  # seconds: a busy machine runs the agent, its database and the browser on two cores
POLL: Final = 0.05  # seconds between two looks at an agent that starts
WIDE: Final = (1600, 1000)
NARROW: Final = (360, 760)


# ---------------------------------------------------------------------------------------------------------- the browser


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, or a skipped test where there is none."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no chromium on the PATH (Debian: apt-get install chromium)")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page asked for, and what it complained about."""

    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def calls(self, path: str) -> int:
        """How many requests had a path that ends so."""
        return sum(urlsplit(request.url).path.endswith(path) for request in self.requests)

    def hosts(self) -> set[str]:
        """Where the requests went."""
        return {urlsplit(request.url).netloc for request in self.requests}

    def ask(self, request: Request) -> None:
        """Remembers a request."""
        self.requests.append(request)

    def note(self, message: ConsoleMessage) -> None:
        """Remembers what stands in the console as an error or a warning."""
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url')})")


@contextlib.contextmanager
def tab(browser: Browser, *, size: tuple[int, int] = WIDE, dark: bool = False) -> Iterator[tuple[Page, Watch]]:
    """A fresh tab without a past, watched."""
    context: BrowserContext = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        locale="en-GB",
        timezone_id="Europe/Berlin",
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE * 1000)
    watch = Watch()
    context.on("request", watch.ask)
    context.on("console", watch.note)
    context.on("weberror", lambda error: watch.complaints.append(f"exception: {error.error}"))
    try:
        yield context.new_page(), watch
    finally:
        context.close()


def axe_core() -> str:
    """The source of axe-core: the file of its own release, which this package carries."""
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, axe: str) -> list[str]:
    """What axe-core finds serious or critical on the page as it is now, a line each."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['impact']} {one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]


# ------------------------------------------------------------------------------------------------------------ the agent


class Agent:
    """The service, in a thread of its own, until it is stopped."""

    def __init__(self, load: Callable[[], Settings[Job]]) -> None:
        self._load = load
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="agent")
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self.port = 0

    async def _serve(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            self._service = Service(self._load)
            await self._service.run(ready=self._note)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._ready.set()

    def _note(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        self._thread.start()
        if not self._ready.wait(PATIENCE) or self._failure is not None:
            raise RuntimeError("the agent did not start") from self._failure
        deadline = time.monotonic() + PATIENCE
        while self._status("/readyz") != http.HTTPStatus.OK:
            if time.monotonic() > deadline:
                raise RuntimeError("the agent did not become ready")
            time.sleep(POLL)

    def _status(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def stop(self) -> None:
        """Stops it, and waits until it is gone."""
        if self._loop is not None and self._service is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._service.stop)
        self._thread.join(2 * PATIENCE)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(load: Callable[[], Settings[Job]]) -> Iterator[Agent]:
    """An agent that listens."""
    agent = Agent(load)
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


# ------------------------------------------------------------------------------------------------------------ the proxy


@contextlib.contextmanager
def proxy(port: int, prefix: str) -> Iterator[int]:
    """A proxy that publishes what listens on ``port`` under ``prefix``, which it takes off; its own port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                upstream.request(self.command, self.path.removeprefix(prefix), body or None, headers)
                answer = upstream.getresponse()
                content = answer.read()
            finally:
                upstream.close()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _pass  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, name="proxy")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
