"""The status page's shell and its files, as they are served."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from agent.web import make_app, page
from tests.unit.web_fake import ANN, Parts, parts

Client = TestClient[Any, Any]
Start = Callable[..., Awaitable[tuple[Client, Parts]]]

STATIC: Final = Path(page.__file__).parent / "static"
FILES: Final = sorted(path.name for path in STATIC.iterdir())
OTHER_VERSION: Final = "0" * page.DIGEST_LENGTH


class Shell(HTMLParser):
    """The elements of a page with their attributes, and what stands in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        del tag
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside in {"script", "style"} and data.strip():
            self.inline.append(data)

    @property
    def urls(self) -> list[str]:
        """Everything that the page points at."""
        return [value for _, attrs in self.elements for name in ("src", "href", "action") if (value := attrs.get(name))]


@pytest.fixture
def start(aiohttp_client: AiohttpClient, tmp_path: Path) -> Start:
    """Starts an application with a token, or without."""

    async def started(*, tokens: str = f"ann:{ANN}\n", base_path: str = "") -> tuple[Client, Parts]:
        file = tmp_path / "tokens"
        file.write_text(tokens, encoding="utf-8")
        made = parts(file, base_path=base_path)
        return await aiohttp_client(make_app(made.context)), made

    return started


async def test_the_shell_is_open_and_holds_nothing(start: Start) -> None:
    """No operation is asked for it; it is HTML, and not kept by a browser."""
    client, made = await start()
    answer = await client.get("/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["Cache-Control"] == "no-store"
    assert made.operations.calls == []
    head = await client.head("/")
    assert (head.status, await head.read()) == (200, b"")


async def test_nothing_in_it_is_inline(start: Start) -> None:
    """So that the policy, which forbids that, costs nothing: no script, no style, no handler in an attribute."""
    client, _ = await start()
    answer = await client.get("/")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    shell = Shell(await answer.text())
    assert shell.inline == []
    names = {name for _, attrs in shell.elements for name in attrs}
    assert not [name for name in names if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("base_path, prefix", [("", ""), ("/ops/maintenance", "/ops/maintenance")])
async def test_every_address_is_relative_and_there(start: Start, base_path: str, prefix: str) -> None:
    """Under any path that a proxy publishes it at; nothing comes from another host."""
    client, _ = await start(base_path=base_path)
    shell = Shell(await (await client.get(f"{prefix}/")).text())
    addresses = [url for url in shell.urls if not url.startswith("#")]
    assert len(addresses) > len(FILES)
    for address in addresses:
        assert not re.match(r"(?:[a-z]+:|/)", address), address
        assert (await client.get(f"{prefix}/{address}")).status == 200, address


async def test_the_version_is_shown_as_text(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put into the shell is escaped."""
    client, made = await start()
    assert "1.2.3" in await (await client.get("/")).text()
    monkeypatch.setattr(type(made.context), "version", "<script>1</script>")
    text = await (await client.get("/")).text()
    assert "&lt;script&gt;1&lt;/script&gt;" in text
    assert "<script>1" not in text


async def test_without_a_token_to_give_none_is_asked_for(start: Start) -> None:
    """An empty tokens file gives nobody access; the page says so instead of asking."""
    client, _ = await start()
    assert 'id="token-form"' in await (await client.get("/")).text()
    client, _ = await start(tokens="# nobody\n")
    text = await (await client.get("/")).text()
    assert "Nobody has access yet" in text
    assert "token-form" not in text


@pytest.mark.parametrize("name", FILES)
async def test_a_file_is_served_as_what_it_is_and_may_be_kept(start: Start, name: str) -> None:
    """Its address changes with the content of the files, so a browser may keep it for good."""
    client, _ = await start()
    answer = await client.get(f"/static/{page.DIGEST}/{name}")
    assert answer.status == 200
    assert await answer.read() == (STATIC / name).read_bytes()
    assert answer.headers["Content-Type"] == f"{page.TYPES[Path(name).suffix]}; charset=utf-8"
    assert answer.headers["Cache-Control"] == page.KEPT
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_file_of_another_version_is_answered_but_not_kept(start: Start) -> None:
    """While replicas of two versions answer, the page of one may ask the other."""
    client, _ = await start()
    answer = await client.get(f"/static/{OTHER_VERSION}/app.js")
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")


@pytest.mark.parametrize(
    "path",
    [
        "app.py",
        "none.js",
        "..%2Fpage.py",
        "%2e%2e/page.py",
        "app.js/",
        "App.js",
        "",
        "templates/page.html",
        "app.js%00",
    ],
)
async def test_there_are_no_other_files(start: Start, path: str) -> None:
    """Only those of the package, by their names."""
    client, _ = await start()
    answer = await client.get(f"/static/{page.DIGEST}/{path}")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_no_script_makes_html_of_text(name: str) -> None:
    """Ids and reasons come from documents that anybody may have written: they are set as text, never parsed."""
    script = (STATIC / name).read_text(encoding="utf-8")
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
    ):
        assert forbidden not in script


def test_no_file_points_elsewhere() -> None:
    """A sidecar has no internet; the one address is the name of a namespace."""
    for name in FILES:
        text = (STATIC / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.", text), name
