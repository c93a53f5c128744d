"""Who may ask: tokens, their file, and the rate limit."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import timeit
from pathlib import Path

import pytest
from pytest_aiohttp.plugin import AiohttpClient

from agent.web import RateLimiter, TokenFile, make_app, tokens
from agent.web.limits import Turns
from tests.unit.web_fake import ANN, BOB, parts

STATUS, RUN = "/api/maintenance/status", "/api/maintenance/jobs/orphan_apps/run"


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(token: str) -> dict[str, str]:
    """The header that a token goes in."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    """A file of two tokens."""
    path = tmp_path / "tokens"
    path.write_text(f"# who may ask\n\nann:{ANN}\n bob : {BOB} \n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------- the file


def test_a_file_of_tokens_is_read() -> None:
    """Comments, blank lines, white space around the parts, and colons in a token are fine."""
    read = tokens.parse(f"# a comment\n\nann:{ANN}\r\n  b.o-b@x : a:token:with:colons \n")
    assert read.problems == ()
    assert read.name_of(ANN) == "ann"
    assert read.name_of("a:token:with:colons") == "b.o-b@x"
    assert read.name_of("another-token-altogether") is None
    assert read.name_of("") is None


@pytest.mark.parametrize(
    "line, problem",
    [
        ("hunter2", "expected name:token"),
        (":hunter2", "the name before the colon takes 1 to 64 letters, digits, `.`, `_`, `@` and `-`"),
        ("a name:hunter2", "the name before the colon takes 1 to 64 letters, digits, `.`, `_`, `@` and `-`"),
        ("bob:", "the token after the colon is empty or holds white space"),
        ("bob:hunter 2", "the token after the colon is empty or holds white space"),
        ("ann:hunter2", "the name stands on an earlier line too"),
        (f"bob:{ANN}", "the token stands on an earlier line too"),
    ],
)
def test_a_bad_line_is_named_by_number_and_gives_nobody_access(line: str, problem: str) -> None:
    """What it says is not repeated: it may be a token in the wrong place."""
    read = tokens.parse(f"ann:{ANN}\n{line}\n")
    assert read.problems == (f"line 2: {problem}",)
    assert set(read.digests) == {"ann"}
    assert "hunter" not in repr(read)


def test_a_short_token_is_a_warning() -> None:
    """It works, and is named."""
    read = tokens.parse("ann:0123456789abcde\nbob:0123456789abcdef")
    assert read.warnings == ("line 1: the token has fewer than 16 characters",)
    assert read.name_of("0123456789abcde") == "ann"


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early exit, whoever it is; both sides are digests of the same length."""
    lengths: list[tuple[int, int]] = []

    def compare(given: bytes, known: bytes) -> bool:
        lengths.append((len(given), len(known)))
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", compare)
    read = tokens.parse("\n".join(f"user{number}:{number:032}" for number in range(20)))
    for token in (f"{0:032}", f"{19:032}", "x", "ein Schlüssel", "\udcff"):
        lengths.clear()
        read.name_of(token)
        assert lengths == [(32, 32)] * 20


def test_the_file_is_read_at_start(tokens_file: Path, tmp_path: Path) -> None:
    """So that what is wrong with it can be told before anybody asks."""
    assert set(TokenFile(tokens_file).load().digests) == {"ann", "bob"}
    assert TokenFile(None).load().digests == {}
    assert TokenFile(tmp_path / "none").load().problems == ("the file cannot be read (No such file or directory)",)
    large = tmp_path / "large"
    large.write_bytes(b"a:" + b"x" * tokens.MAX_BYTES)
    assert TokenFile(large).load().problems == ("the file is larger than 1 MiB",)


def write(path: Path, name: str) -> None:
    """Writes a file of one token."""
    path.write_text(f"{name}:{BOB}\n", encoding="utf-8")


async def test_the_file_is_read_again_when_it_changes(tokens_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one look a second; a change in place, a replacement and a deletion count."""
    clock, looks = Clock(), 0
    file = TokenFile(tokens_file, monotonic=clock)
    real = Path.stat

    def counting(path: Path, *, follow_symlinks: bool = True) -> object:
        nonlocal looks
        looks += path == tokens_file
        return real(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", counting)
    assert (await file.current()).name_of(ANN) == "ann"
    looks = 0
    write(tokens_file, "carol")
    assert (await file.current()).name_of(BOB) == "bob"
    assert looks == 0
    clock.now += 1
    assert (await file.current()).name_of(BOB) == "carol"
    assert (await file.current()).name_of(ANN) is None
    other = tokens_file.with_name("other")
    write(other, "david")
    other.replace(tokens_file)
    clock.now += 1
    assert (await file.current()).name_of(BOB) == "david"
    os.unlink(tokens_file)  # noqa: PTH108 - a short call in an asynchronous test
    clock.now += 1
    assert (await file.current()).digests == {}
    assert (await file.current()).problems == ("the file cannot be read (No such file or directory)",)


# -------------------------------------------------------------------------------------------------------------- access


async def test_a_token_gives_access_and_its_name_stands_in_the_record(
    aiohttp_client: AiohttpClient, tokens_file: Path
) -> None:
    """The scheme may be written in any case."""
    all_parts = parts(tokens_file)
    client = await aiohttp_client(make_app(all_parts.context))
    assert (await client.get(STATUS, headers=bearer(ANN))).status == 200
    answer = await client.post(RUN, headers={"Authorization": f"bEARER  {BOB}"})
    assert answer.status == 202
    assert all_parts.operations.calls[-1][3] == "bob"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ANN}"},
        {"Authorization": ANN},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {ANN}x"},
        {"Authorization": f"Bearer {ANN.upper()}"},
        {"Authorization": "Bearer ä€\N{PILE OF POO}"},
    ],
    ids=["none", "empty", "other scheme", "no scheme", "wrong", "longer", "other case", "no ascii"],
)
async def test_without_a_right_token_it_is_401(
    aiohttp_client: AiohttpClient, tokens_file: Path, headers: dict[str, str]
) -> None:
    """The answer says which scheme to use; nothing was asked of the agent."""
    all_parts = parts(tokens_file)
    client = await aiohttp_client(make_app(all_parts.context))
    for answer in (await client.get(STATUS, headers=headers), await client.post(RUN, headers=headers)):
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="maintenance-agent"')
        assert (await answer.json(content_type=None))["type"].endswith(":unauthorized")
    assert all_parts.operations.calls == []


async def test_two_tokens_at_once_are_none(aiohttp_client: AiohttpClient, tokens_file: Path) -> None:
    """Which of them counts would be for a proxy and the agent to disagree on."""
    client = await aiohttp_client(make_app(parts(tokens_file).context))
    answer = await client.get(STATUS, headers=[("Authorization", f"Bearer {ANN}"), ("Authorization", "Bearer x")])
    assert answer.status == 401


async def test_without_a_tokens_file_it_is_403_and_says_why(aiohttp_client: AiohttpClient, tmp_path: Path) -> None:
    """And how to have one; the open endpoints stay open."""
    client = await aiohttp_client(make_app(parts(None).context))
    answer = await client.get(STATUS, headers=bearer(ANN))
    assert answer.status == 403
    assert "MAINTENANCE_HTTP__TOKENS_FILE" in (await answer.json(content_type=None))["detail"]
    for path in ("/", "/metrics", "/livez", "/readyz", "/healthz", "/openapi.json"):
        assert (await client.get(path)).status == 200
    client = await aiohttp_client(make_app(parts(tmp_path / "none").context))
    answer = await client.get(STATUS, headers=bearer(ANN))
    assert answer.status == 403
    assert "cannot be read" in (await answer.json(content_type=None))["detail"]


async def test_every_endpoint_below_api_needs_a_token(aiohttp_client: AiohttpClient, tokens_file: Path) -> None:
    """Reading too, the reload too; a body is not looked at before the token."""
    client = await aiohttp_client(make_app(parts(tokens_file).context))
    paths = [(route.method, route.resource.canonical) for route in client.app.router.routes() if route.resource]
    guarded = [(method, path) for method, path in paths if path.startswith(("/api/", "/-/")) and method != "OPTIONS"]
    assert len(guarded) == 19 + 7  # the endpoints, and HEAD of those that read
    for method, path in guarded:
        where = path.replace("{job}", "orphan_apps").replace("{id}", "0190-run")
        assert (await client.request(method, where, data=None if method == "HEAD" else b"{")).status == 401


# ------------------------------------------------------------------------------------------------------- the rate limit


def test_a_bucket_is_full_at_first_and_refills_evenly() -> None:
    """A minute's worth at once, then as time passes; it says when to come again."""
    clock = Clock()
    limiter = RateLimiter(6, monotonic=clock)
    assert [limiter.take("ann") for _ in range(7)] == [0, 0, 0, 0, 0, 0, 10]
    assert limiter.take("bob") == 0
    clock.now += 4
    assert limiter.take("ann") == 6
    clock.now += 6
    assert limiter.take("ann") == 0
    assert limiter.take("ann") == 10
    clock.now += 3600
    assert [limiter.take("ann") for _ in range(7)] == [0, 0, 0, 0, 0, 0, 10]


async def test_too_many_changes_are_429_with_retry_after(aiohttp_client: AiohttpClient, tokens_file: Path) -> None:
    """Each token has its own share, reading has no limit, and who has no token takes nothing from anybody."""
    clock = Clock()
    all_parts = parts(tokens_file, limiter=RateLimiter(2, monotonic=clock))
    client = await aiohttp_client(make_app(all_parts.context))
    for _ in range(5):
        assert (await client.post("/api/maintenance/pause", headers=bearer("wrong"))).status == 401
    statuses = [(await client.post("/api/maintenance/pause", headers=bearer(ANN))).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = await client.post("/-/reload", headers=bearer(ANN))
    assert answer.status == 429
    assert answer.headers["Retry-After"] == "30"
    assert (await client.get(STATUS, headers=bearer(ANN))).status == 200
    assert (await client.post("/api/maintenance/pause", headers=bearer(BOB))).status == 200
    clock.now += 30
    assert (await client.post("/api/maintenance/pause", headers=bearer(ANN))).status == 200


async def test_a_few_requests_begin_in_a_turn_of_the_loop_and_the_others_in_later_ones() -> None:
    """In their order, and what else is due goes on between them; one that lasts keeps no place."""
    turns, began, going_on = Turns(2), list[int](), asyncio.Event()

    async def request(number: int) -> None:
        await turns.take()
        began.append(number)
        await going_on.wait()

    requests = [asyncio.create_task(request(number)) for number in range(7)]
    seen = []
    while len(began) < len(requests):
        await asyncio.sleep(0)
        seen.append(len(began))
    assert began == list(range(7))
    assert all(after - before <= 2 for before, after in itertools.pairwise(seen))
    going_on.set()
    await asyncio.gather(*requests)


def test_looking_a_token_up_takes_as_long_for_a_right_one_as_for_a_wrong_one() -> None:
    """A rough look at the clock: the shortest of many times lie within a factor of two."""
    read = tokens.parse("\n".join(f"user{number}:{number:032}" for number in range(200)))

    def shortest(token: str) -> float:
        return min(timeit.repeat(lambda: read.name_of(token), number=1, repeat=300))

    first, last, none = shortest(f"{0:032}"), shortest(f"{199:032}"), shortest("x" * 32)
    assert max(first, last, none) < 2 * min(first, last, none)
