"""Providers that are ill: each gets its outcome in its time, and costs neither memory nor connections.

The servers are real ones on the loopback address. The time-outs are short, the waits between tries are not waited for,
and no test waits for time to pass that a server did not make it wait.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import os
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, web
from kubernetes_asyncio.client import ApiException, CoreV1Api, V1Namespace, V1ObjectMeta

from agent.cluster import (
    CacheSettings,
    ClientCache,
    ClientSettings,
    CustomResource,
    ProviderClient,
    ProviderCredentials,
    Time,
    UsageQuery,
    connect,
    connected,
    from_kubeconfig,
    usage,
)
from agent.errors import (
    ClusterAnswerError,
    ClusterDeniedError,
    ClusterError,
    ClusterForbiddenError,
    ClusterMissingError,
    ClusterTimeoutError,
    ClusterUnavailableError,
    ClusterUntrustedError,
    CredentialsError,
)
from agent.quantity import Amounts
from tests import faulty
from tests.faulty import Certificates, Handler, Server

SCALE = float(os.environ.get("FAULTS_SCALE", "0.1"))  # 1 is what the figures in the documentation were taken with

PATIENT = ClientSettings(attempt=timedelta(seconds=60), budget=timedelta(seconds=90), answer=100_000)
# For servers that never answer: the time that a test really waits. Where an answer comes, a busy machine may be slower.
QUICK = ClientSettings(attempt=timedelta(milliseconds=300), connect=timedelta(milliseconds=300), answer=100_000)


class Waits:
    """Time for a client: waits take no time and are written down, chance gives the longest wait."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Write down the wait."""
        self.slept.append(seconds)
        await asyncio.sleep(0)

    @property
    def source(self) -> Time:
        """Return what a client takes."""
        return Time(sleep=self.sleep, chance=lambda: 1.0)


@pytest.fixture
def waits() -> Waits:
    """The waits of the test's client."""
    return Waits()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, a server's and a client's certificate."""
    return faulty.certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when the block takes longer; the bound is generous, for machines that are busy."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def lent(
    server: Server, waits: Waits, settings: ClientSettings = PATIENT
) -> AbstractAsyncContextManager[ProviderClient]:
    """Connect to a server."""
    return connected("p1", server.credentials(), settings, waits.source)


async def read(client: ProviderClient) -> object:
    """Make a call as the agent does."""
    return await client.get("/api/v1/pods", asking=("list", "pods"))


# ------------------------------------------------------------------------------------ one illness each, when connecting


async def test_a_refusing_provider_is_unavailable_after_four_tries(waits: Waits) -> None:
    """Nobody listens: tried again, with waits that double, and then told."""
    with faulty.refusing() as server, within(20), pytest.raises(ClusterUnavailableError, match="could not be reached"):
        await connect("p1", server.credentials(), PATIENT, waits.source)
    assert waits.slept == [0.4, 0.8, 1.6]


async def test_a_hanging_provider_is_a_time_out_at_once(waits: Waits) -> None:
    """It takes the request and never answers: one time-out, no further try."""
    async with faulty.serving(faulty.hanging) as server:
        with within(20), pytest.raises(ClusterTimeoutError, match="'p1' did not answer in time"):
            await connect("p1", server.credentials(), QUICK, waits.source)
        assert (len(server.requests), waits.slept) == (1, [])


async def test_a_provider_that_accepts_and_says_nothing_is_a_time_out(waits: Waits) -> None:
    """The same below HTTP, where not even the request is read."""

    async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with faulty.raw(silent) as server:
        with within(20), pytest.raises(ClusterTimeoutError):
            await connect("p1", server.credentials(), QUICK, waits.source)


async def test_a_hanging_handshake_is_a_time_out(waits: Waits) -> None:
    """A server that never begins with TLS."""

    async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with faulty.raw(silent) as server:
        credentials = from_kubeconfig(faulty.kubeconfig(server.url.replace("http:", "https:")))
        with within(20), pytest.raises(ClusterTimeoutError):
            await connect("p1", credentials, QUICK, waits.source)


async def test_a_slow_provider_is_a_time_out_though_it_sends_something(waits: Waits) -> None:
    """A byte now and then does not keep a call alive for ever."""
    async with faulty.serving(faulty.dripping) as server:
        with within(20), pytest.raises(ClusterTimeoutError):
            await connect("p1", server.credentials(), QUICK, waits.source)


async def test_a_provider_that_refuses_the_credentials_is_denied_at_once(waits: Waits) -> None:
    """Tried again, wrong credentials would only be locked out."""
    async with faulty.serving(faulty.answering(401, "Unauthorized")) as server:
        with within(20), pytest.raises(ClusterDeniedError, match="refused the credentials: 401 'Unauthorized'"):
            await connect("p1", server.credentials(), PATIENT, waits.source)
        assert (len(server.requests), waits.slept) == (1, [])


async def test_a_half_closing_provider_is_unavailable(waits: Waits) -> None:
    """It promises a body and closes in the middle: tried again, then told."""
    async with faulty.serving(faulty.half_closing) as server:
        with within(20), pytest.raises(ClusterUnavailableError, match="could not be reached"):
            await connect("p1", server.credentials(), PATIENT, waits.source)
        assert (len(server.requests), len(waits.slept)) == (4, 3)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"SSH-2.0-OpenSSH_9.2\r\n"], ids=repr)
async def test_a_provider_that_speaks_no_http_is_unavailable(said: bytes, waits: Waits) -> None:
    """Closed before, amid or instead of an answer."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with faulty.raw(talk) as server:
        with within(20), pytest.raises(ClusterUnavailableError):
            await connect("p1", server.credentials(), PATIENT, waits.source)


async def test_a_provider_that_speaks_no_tls_is_unavailable(waits: Waits) -> None:
    """A plain server behind an https URL."""
    async with faulty.serving(faulty.healthy()) as server:
        credentials = from_kubeconfig(faulty.kubeconfig(server.url.replace("http:", "https:")))
        with within(20), pytest.raises(ClusterUnavailableError):
            await connect("p1", credentials, PATIENT, waits.source)


@pytest.mark.parametrize(
    "body,content_type",
    [
        (b"<html>Login</html>", "text/html"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"{}", "application/json; charset=nonsense"),
        (b"[" * 90_000, "application/json"),
        (b'{"a": ' * 15_000, "application/json"),
        (b"9" * 90_000, "application/json"),
        (b"NaN", "application/json"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_an_answer_that_is_none_is_an_error_of_its_own(body: bytes, content_type: str, waits: Waits) -> None:
    """What is no JSON object is no answer, whatever it is; nothing is tried again."""
    async with faulty.serving(faulty.saying(body, content_type)) as server:
        with within(20), pytest.raises(ClusterAnswerError):
            await connect("p1", server.credentials(), PATIENT, waits.source)
        assert len(server.requests) == 1


async def test_an_endless_answer_is_cut_off(waits: Waits) -> None:
    """No more is read than the settings allow, however fast it comes."""
    async with faulty.serving(faulty.endless) as server:
        with within(20), pytest.raises(ClusterAnswerError, match="larger than 100000 bytes"):
            await connect("p1", server.credentials(), PATIENT, waits.source)


async def test_a_small_answer_stays_small(waits: Waits) -> None:
    """Half a kilobyte that unfolds to half a megabyte is not unfolded: nobody was asked to compress."""
    bomb = gzip.compress(b" " * 500_000)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=bomb, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})

    async with faulty.serving(handler) as server:
        with pytest.raises(ClusterAnswerError, match="did not answer as Kubernetes does"):
            await connect("p1", server.credentials(), PATIENT, waits.source)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int, waits: Waits) -> None:
    """No API server sends one, and the token goes nowhere else."""
    async with faulty.serving(faulty.healthy()) as thief:
        handler = faulty.answering(status, "over there", {"Location": thief.url + "/version"})
        async with faulty.serving(handler) as server:
            with pytest.raises(ClusterAnswerError, match=f"{status} 'over there'"):
                await connect("p1", server.credentials(), PATIENT, waits.source)
        assert thief.requests == []


@pytest.mark.parametrize("status", [403, 404])
async def test_a_provider_that_hides_its_version_can_be_used(status: int, waits: Waits) -> None:
    """The credentials were accepted; that is what was asked."""
    async with faulty.serving(faulty.answering(status)) as server, lent(server, waits) as client:
        assert client.refusals == 0


# -------------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_momentary_failure_is_tried_again(status: int, waits: Waits) -> None:
    """Too busy, or a proxy without a server behind it: the second try succeeds."""
    ill = faulty.in_turn(faulty.answering(status), faulty.items())
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        await read(client)
        assert (server.paths.count("/api/v1/pods"), waits.slept) == (2, [0.4])


async def test_what_a_proxy_says_in_another_charset_is_an_answer(waits: Waits) -> None:
    """A 503 whose body is no UTF-8 is still a 503, and tried again."""
    ill = faulty.in_turn(faulty.saying(b"\xfcberlastet", "text/html", 503), faulty.items())
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        await read(client)
        assert len(waits.slept) == 1


@pytest.mark.parametrize("status,error", [(429, "is too busy"), (503, "failed to list pods"), (500, "failed to list")])
async def test_a_lasting_failure_is_told(status: int, error: str, waits: Waits) -> None:
    """After four tries, or after one where another would not help."""
    ill = faulty.answering(status, "etcd is gone")
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        with pytest.raises(ClusterUnavailableError, match=f"{error}.*: {status} 'etcd is gone'"):
            await read(client)
        assert server.paths.count("/api/v1/pods") == (1 if status == 500 else 4)


async def test_the_server_says_when_to_come_back(waits: Waits) -> None:
    """Retry-After is the least wait; the jitter comes on top, so that all do not come back at once."""
    busy = faulty.answering(429, headers={"Retry-After": "3"})
    ill = faulty.in_turn(busy, busy, faulty.items())
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        await read(client)
    assert waits.slept == [3.4, 3.8]


@pytest.mark.parametrize("text", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1e9", "9" * 40, "soon", "²"])
async def test_another_retry_after_is_not_believed(text: str, waits: Waits) -> None:
    """A date, a negative number, a century: the ordinary wait."""
    headers = {"Retry-After": text}
    ill = faulty.in_turn(faulty.answering(429, headers=headers), faulty.items())
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        await read(client)
    assert waits.slept == [0.4]


async def test_a_wait_beyond_the_budget_is_not_waited(waits: Waits) -> None:
    """Who is told to come back in an hour says so now."""
    ill = faulty.answering(503, "maintenance", {"Retry-After": "3600"})
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        with pytest.raises(ClusterUnavailableError, match="503 'maintenance'"):
            await read(client)
        assert (server.paths.count("/api/v1/pods"), waits.slept) == (1, [])


async def test_the_budget_bounds_all_tries_together() -> None:
    """The clock runs on with every wait: when it is used up, no further try is made."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    source = Time(clock=lambda: now, sleep=sleep, chance=lambda: 1.0)
    settings = ClientSettings(tries=1000, budget=timedelta(seconds=20))
    async with (
        faulty.serving(faulty.healthy(faulty.answering(503))) as server,
        connected("p1", server.credentials(), settings, source) as client,
    ):
        with pytest.raises(ClusterUnavailableError):
            await read(client)
        # 0.4 + 0.8 + 1.6 + 3.2, then 5 each: 6 waits are 16 seconds, the seventh would end beyond the budget.
        assert server.paths.count("/api/v1/pods") == 7
        assert now == pytest.approx(16.0)
        with pytest.raises(ClusterTimeoutError):
            await client.get("/api/v1/pods", deadline=now)


async def test_a_connection_that_breaks_in_the_body_is_tried_again(waits: Waits) -> None:
    """The answer is read within the try."""
    ill = faulty.in_turn(faulty.half_closing, faulty.items())
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        await read(client)
        assert server.paths.count("/api/v1/pods") == 2


async def test_an_application_s_own_write_is_not_sent_twice(waits: Waits) -> None:
    """A write that may have been done is not repeated; one that the server put off is."""
    body = V1Namespace(metadata=V1ObjectMeta(name="x"))
    for ill, requests in [
        (faulty.half_closing, 1),
        (faulty.answering(503), 1),
        (faulty.answering(429), 4),
        (faulty.answering(503, headers={"Retry-After": "1"}), 4),
    ]:
        async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
            with pytest.raises((ApiException, ClientPayloadError)):
                await CoreV1Api(client.api).create_namespace(body)
            assert server.paths.count("/api/v1/namespaces") == requests


async def test_an_application_s_own_read_has_a_time_out(waits: Waits) -> None:
    """Through the classes of kubernetes_asyncio as through the agent's; a time-out of its own has precedence."""
    short = ClientSettings(attempt=timedelta(seconds=1))
    async with faulty.serving(faulty.healthy(faulty.hanging)) as server, lent(server, waits, short) as client:
        with within(20), pytest.raises(TimeoutError):
            await CoreV1Api(client.api).list_namespace()
    async with faulty.serving(faulty.healthy(faulty.hanging)) as server, lent(server, waits) as client:
        for timeout in (0.1, (0.1, 0.1)):
            with within(20), pytest.raises(TimeoutError):
                await CoreV1Api(client.api).list_namespace(_request_timeout=timeout)


# ------------------------------------------------------------------------------------------------ meanings of an answer


async def test_what_is_forbidden_is_named(waits: Waits) -> None:
    """The error carries the verb and the resource that a role lacks, and what the cluster said, on one line."""
    ill = faulty.answering(403, "pods is forbidden:\nUser cannot list")
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        with pytest.raises(ClusterForbiddenError) as refused:
            await usage(client, UsageQuery())
    assert (refused.value.verb, refused.value.resource) == ("list", "pods")
    assert str(refused.value) == (
        "the cluster of 'p1' does not allow to list pods: 403 'pods is forbidden:\\nUser cannot list'"
    )
    assert isinstance(refused.value.__cause__, ApiException)


async def test_refusals_in_a_row_are_counted(waits: Waits) -> None:
    """Two 401 are two; any answer of the API in between begins anew, a proxy's 503 does not."""
    turn = [401, 401, 503, 401, 403, 401]
    ill = faulty.in_turn(*(faulty.answering(status) for status in turn))
    settings = ClientSettings(tries=1)
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits, settings) as client:
        counted = []
        for _ in turn:
            with pytest.raises(ClusterError):
                await read(client)
            counted.append(client.refusals)
    assert counted == [1, 2, 2, 3, 0, 1]


async def test_failed_probes_are_counted_like_refusals(waits: Waits) -> None:
    """No answer, or one without an API behind it; a good one begins anew."""
    turn = faulty.in_turn(
        faulty.healthy(), faulty.answering(401), faulty.answering(503), faulty.half_closing, faulty.healthy()
    )
    settings = ClientSettings(tries=1)
    async with faulty.serving(turn) as server, lent(server, waits, settings) as client:
        counted = []
        for _ in range(3):
            with pytest.raises(ClusterError):
                await client.probe()
            counted.append(client.refusals)
        await client.probe()
    assert (*counted, client.refusals) == (1, 2, 3, 0)


async def test_a_client_with_refused_credentials_leaves_the_cache(waits: Waits) -> None:
    """From the server's 401 to a new client, with real parts."""
    ill = faulty.answering(401)
    async with faulty.serving(faulty.healthy(ill)) as server:
        made = 0

        async def making(provider: str, credentials: ProviderCredentials) -> ProviderClient:
            nonlocal made
            made += 1
            return await connect(provider, credentials, PATIENT, waits.source)

        async def load() -> ProviderCredentials:
            return server.credentials()

        async with ClientCache(making) as cache:
            for _ in range(7):
                async with cache.client("p1", load) as client:
                    with pytest.raises(ClusterDeniedError):
                        await read(client)
    assert made == 3  # refused three times, three times, once


# ------------------------------------------------------------------------------------------------------------ the lists


async def test_a_list_that_expired_is_read_again_from_its_start(waits: Waits) -> None:
    """What the first pages gave is forgotten, so that nothing counts twice."""
    claim = {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    ill = faulty.in_turn(
        faulty.items(claim, claim, following="2"),
        faulty.answering(410, "The provided continue parameter is too old"),
        faulty.items(claim, following="2"),
        faulty.items(claim, claim),
    )
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        found = await usage(client, UsageQuery(pods=False))
        assert (found.claims, found.total) == (3, Amounts(storage=3 * 2**30))
        tokens = [request.query.get("continue") for request in server.requests[1:]]
    assert tokens == [None, "2", None, "2"]


async def test_a_list_that_always_expires_is_given_up(waits: Waits) -> None:
    """Three times, then it is told."""
    async with faulty.serving(faulty.healthy(faulty.answering(410))) as server, lent(server, waits) as client:
        with pytest.raises(ClusterUnavailableError, match="forgot the list of pods 3 times"):
            await usage(client, UsageQuery())
        assert server.paths.count("/api/v1/pods") == 3


async def test_a_list_without_end_is_given_up(waits: Waits) -> None:
    """A server that gives the same page for ever does not hold the audit."""
    ill = faulty.items(following="again")
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        with pytest.raises(ClusterAnswerError, match="repeats a page of pods"):
            await usage(client, UsageQuery())


async def test_all_the_reads_of_a_provider_share_a_budget(waits: Waits) -> None:
    """A server that answers each page just in time does not hold the audit either."""
    page = 0

    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal page
        page += 1
        await asyncio.sleep(0.01)
        return web.json_response({"items": [], "metadata": {"continue": str(page)}})

    async with faulty.serving(faulty.healthy(handler)) as server, lent(server, waits) as client:
        with within(20), pytest.raises(ClusterTimeoutError):
            await usage(client, UsageQuery(budget=timedelta(milliseconds=300)))


@pytest.mark.parametrize(
    "answer",
    [b"{}", b'{"items": null}', b'{"items": {}}', b'{"items": ["x"]}', b'{"items": [null]}'],
    ids=repr,
)
async def test_a_list_that_is_none_is_no_empty_list(answer: bytes, waits: Waits) -> None:
    """What is not understood is not taken for nothing."""
    async with faulty.serving(faulty.healthy(faulty.saying(answer))) as server, lent(server, waits) as client:
        with pytest.raises(ClusterAnswerError, match="no list of pods"):
            await usage(client, UsageQuery())


async def test_an_object_that_cannot_be_counted_is_named(waits: Waits) -> None:
    """The error says which object, where, and what is wrong with it."""
    bad = {"metadata": {"name": "db-0", "namespace": "n"}, "spec": {"resources": {"requests": {"storage": "much"}}}}
    async with faulty.serving(faulty.healthy(faulty.items(bad))) as server, lent(server, waits) as client:
        with pytest.raises(
            ClusterAnswerError, match=r"'db-0' in the namespace 'n' among its persistentvol.*: 'much' is"
        ):
            await usage(client, UsageQuery(pods=False))


async def test_a_resource_that_is_not_installed_is_named(waits: Waits) -> None:
    """A missing CRD is told apart from an empty list."""
    custom = CustomResource("kubedb.com", "v1", "postgreses")
    ill = faulty.in_turn(faulty.items(), faulty.items(), faulty.answering(404, "not found"))
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        with pytest.raises(ClusterMissingError, match=r"'p1' has no postgreses\.kubedb\.com"):
            await usage(client, UsageQuery(resources=(custom,)))
        assert server.paths[-1] == "/apis/kubedb.com/v1/postgreses"


# ------------------------------------------------------------------------------------------------ data, and not strings


@pytest.mark.parametrize(
    "hostile", ["../../secrets", "a/b", "a?b=c", "a#b", "a%2fb", "$x", "'\"", "ä", "a b", "a\r\nb"]
)
async def test_a_hostile_parameter_stays_one_part_of_the_path(hostile: str, waits: Waits) -> None:
    """Even where a name was not checked before, it is encoded: it can neither leave its place nor add a query."""
    async with faulty.serving(faulty.healthy(faulty.items())) as server, lent(server, waits) as client:
        await client.get("/api/v1/namespaces/{name}/pods", {"name": hostile}, [("labelSelector", hostile)])
        request = server.requests[-1]
    assert request.rel_url.raw_parts[:4] == ("/", "api", "v1", "namespaces")
    assert (request.rel_url.raw_parts[5:], request.rel_url.parts[4]) == (("pods",), hostile)
    assert dict(request.query) == {"labelSelector": hostile}


async def test_a_hostile_password_arrives_as_it_is(waits: Waits) -> None:
    """With quotes, line ends and another header in it, it is still one header's value."""
    name, password = "o'ps", 'p"a$$/..\r\nX-Evil: 1\n{{7*7}}:ä'
    document = {"username": name, "password": password}
    async with faulty.serving(faulty.healthy()) as server:
        credentials = from_kubeconfig(faulty.kubeconfig(server.url, document), allow_insecure=True)
        async with connected("p1", credentials, PATIENT, waits.source):
            pass
        (request,) = server.requests
    assert "X-Evil" not in request.headers
    assert request.headers["Authorization"] == credentials.authorization


async def test_neither_secrets_nor_bodies_are_logged(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    """Not even with every logger at its most talkative, and not in an error's text."""
    caplog.set_level(logging.DEBUG)
    for name in ("kubernetes_asyncio.client.rest", "aiohttp.client", "client"):
        caplog.set_level(logging.DEBUG, name)
    body = faulty.saying(b'{"items": [{"data": {"password": "c2VjcmV0LWJvZHk="}}]}')
    ill = faulty.in_turn(body, faulty.answering(401))
    async with faulty.serving(faulty.healthy(ill)) as server, lent(server, waits) as client:
        await read(client)
        with pytest.raises(ClusterDeniedError) as refused:
            await read(client)
    assert server.requests[-1].headers["Authorization"] == "Bearer secret-token"
    for secret in ("secret-token", "c2VjcmV0LWJvZHk="):
        assert secret not in caplog.text + repr(refused.value) + str(refused.value)


async def test_the_environment_leads_nowhere(waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a proxy nor a .netrc of this machine has a say in a provider's connection."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login thief password thief\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with faulty.serving(faulty.healthy()) as server:
        credentials = from_kubeconfig(faulty.kubeconfig(server.url), allow_insecure=True)
        async with connected("p1", credentials, PATIENT, waits.source):
            pass
        assert "Authorization" not in server.requests[0].headers


# ------------------------------------------------------------------------------------------------------------------ TLS


def secured(server: Server, certificates: Certificates, **user: str) -> ProviderCredentials:
    """Credentials for a server with TLS, whose authority is trusted."""
    cluster = {"certificate-authority-data": certificates.data("ca.crt")}
    keys = {"client_certificate": "client-certificate-data", "client_key": "client-key-data"}
    found = {keys[key]: certificates.data(name) for key, name in user.items()}
    return from_kubeconfig(faulty.kubeconfig(server.url, found, cluster), allow_insecure=True)


async def test_a_server_proves_who_it_is(certificates: Certificates, waits: Waits) -> None:
    """An authority like kubectl accepts, without the identifiers that newer Pythons ask for, will do."""
    async with faulty.serving(faulty.healthy(), certificates.for_server()) as server:
        async with connected("p1", secured(server, certificates), PATIENT, waits.source):
            pass
        assert len(server.requests) == 1


async def test_a_server_that_cannot_is_sent_nothing(certificates: Certificates, waits: Waits) -> None:
    """An unknown authority or another name: told at once, and not tried again."""
    async with faulty.serving(faulty.healthy(), certificates.for_server()) as server:
        unknown = from_kubeconfig(faulty.kubeconfig(server.url, {"token": "t"}))
        misnamed = from_kubeconfig(
            faulty.kubeconfig(
                server.url,
                {"token": "t"},
                {"certificate-authority-data": certificates.data("ca.crt"), "tls-server-name": "other.example"},
            )
        )
        for credentials in (unknown, misnamed):
            with pytest.raises(ClusterUntrustedError, match="could not prove who it is"):
                await connect("p1", credentials, PATIENT, waits.source)
        assert (server.requests, waits.slept) == ([], [])


async def test_a_server_may_be_known_by_another_name(certificates: Certificates, waits: Waits) -> None:
    """``tls-server-name`` says which name the certificate has to carry."""
    cluster = {"certificate-authority-data": certificates.data("ca.crt"), "tls-server-name": "api.example"}
    async with faulty.serving(faulty.healthy(), certificates.for_server()) as server:
        credentials = from_kubeconfig(faulty.kubeconfig(server.url, {}, cluster))
        async with connected("p1", credentials, PATIENT, waits.source):
            pass


async def test_verification_can_be_skipped_by_consent(certificates: Certificates, waits: Waits) -> None:
    """Where the setting allows what the kubeconfig asks for."""
    async with faulty.serving(faulty.healthy(), certificates.for_server()) as server:
        document = faulty.kubeconfig(server.url, {}, {"insecure-skip-tls-verify": True})
        async with connected("p1", from_kubeconfig(document, allow_insecure=True), PATIENT, waits.source):
            pass


async def test_a_client_certificate_is_shown(certificates: Certificates, waits: Waits) -> None:
    """From the kubeconfig to the server's eyes, with no file left behind."""
    async with faulty.serving(faulty.healthy(), certificates.for_server(ask=True)) as server:
        user = {"client_certificate": "client.crt", "client_key": "client.key"}
        before = open_files()
        async with connected("p1", secured(server, certificates, **user), PATIENT, waits.source):
            pass
        assert not [name for name in open_files() - before if "client-certificate" in name]
        with pytest.raises(ClusterUnavailableError):
            await connect("p1", secured(server, certificates), PATIENT, waits.source)


@pytest.mark.parametrize(
    "certificate,key", [("client.crt", "locked.key"), ("client.crt", "server.key"), ("ca.crt",) * 2]
)
async def test_a_key_that_does_not_fit_or_is_locked_is_refused(
    certificate: str, key: str, certificates: Certificates, waits: Waits
) -> None:
    """Nobody is asked for a password at a terminal; the error is one of the credentials."""
    credentials = secured(Server("https://127.0.0.1:1"), certificates, client_certificate=certificate, client_key=key)
    with within(20), pytest.raises(CredentialsError, match="its certificates or its key cannot be used"):
        await connect("p1", credentials, PATIENT, waits.source)


async def test_an_authority_that_is_none_is_refused(waits: Waits) -> None:
    """PEM in form only."""
    garbage = ProviderCredentials("https://127.0.0.1:1", ca="-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----")
    with pytest.raises(CredentialsError):
        await connect("p1", garbage, PATIENT, waits.source)


async def test_the_event_loop_is_not_held_up_by_the_authorities_of_the_system(
    monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    """The SSL context is made in another thread: while it is made, the loop goes on."""
    threads = []
    real = ssl.create_default_context

    def noted(*arguments: Any, **named: Any) -> ssl.SSLContext:
        threads.append(threading.get_ident())
        return real(*arguments, **named)

    monkeypatch.setattr(ssl, "create_default_context", noted)
    async with faulty.serving(faulty.healthy()) as server, lent(server, waits):
        pass
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


# ----------------------------------------------------------------------------------------------------------- in the end


def open_files() -> set[str]:
    """Return what this process has open, by descriptor and name."""
    folder = Path("/proc/self/fd")
    found = set()
    for entry in folder.iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def resident() -> int:
    """Return the memory of this process in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


ILL: dict[str, tuple[Handler, str]] = {
    "healthy": (faulty.healthy(), "good"),
    "denying": (faulty.answering(401), "ClusterDeniedError"),
    "failing": (faulty.answering(503), "ClusterUnavailableError"),
    "half-closing": (faulty.half_closing, "ClusterUnavailableError"),
    "endless": (faulty.endless, "ClusterAnswerError"),
    "foreign": (faulty.saying(b"<html>"), "ClusterAnswerError"),
    "hanging": (faulty.hanging, "ClusterTimeoutError"),
}
OUTCOMES = {
    **{name: outcome for name, (_, outcome) in ILL.items()},
    "refusing": "ClusterUnavailableError",
    "secure": "good",
    "mutual": "good",
}


@pytest.fixture
async def providers(certificates: Certificates) -> AsyncIterator[dict[str, ProviderCredentials]]:
    """One provider of each kind: healthy, with TLS, with a client's certificate, and every illness."""
    user = {"client_certificate": "client.crt", "client_key": "client.key"}
    async with AsyncExitStack() as stack:

        async def run(handler: Handler, tls: ssl.SSLContext | None = None) -> Server:
            return await stack.enter_async_context(faulty.serving(handler, tls, remember=False))

        servers = {name: await run(handler) for name, (handler, _) in ILL.items()}
        servers["refusing"] = stack.enter_context(faulty.refusing())
        servers["secure"] = await run(faulty.healthy(), certificates.for_server())
        mutual = await run(faulty.healthy(), certificates.for_server(ask=True))
        found = {name: secured(server, certificates) for name, server in servers.items()}
        yield found | {"mutual": secured(mutual, certificates, **user)}


async def test_memory_and_connections_stay_flat(providers: dict[str, ProviderCredentials], waits: Waits) -> None:
    """2,000 connects (times FAULTS_SCALE), through the cache; each kind of provider has its outcome every time."""
    hasty = ClientSettings(attempt=timedelta(milliseconds=100))
    names = list(providers)
    outcomes: set[tuple[str, str]] = set()

    async def making(provider: str, credentials: ProviderCredentials) -> ProviderClient:
        settings = hasty if provider.startswith("hanging") else PATIENT
        return await connect(provider, credentials, settings, waits.source)

    async def use(cache: ClientCache[ProviderClient], number: int) -> None:
        name = names[number % len(names)]

        async def load() -> ProviderCredentials:
            return providers[name]

        outcome = "good"
        try:
            async with cache.client(f"{name}-{number}", load) as client:
                await client.probe()
        except ClusterError as error:
            outcome = type(error).__name__
        outcomes.add((name, outcome))

    async def after(connects: int) -> tuple[int, int]:
        async with ClientCache(making, CacheSettings(size=10, connect=timedelta(minutes=2))) as cache:
            for start in range(0, connects, 20):
                await asyncio.gather(*(use(cache, number) for number in range(start, start + 20)))
                assert len(cache) <= 10
        for _ in range(20):  # servers notice a closed connection with the next turns of the loop
            await asyncio.sleep(0)
        gc.collect()
        return len(open_files()), resident()

    count = int(2000 * SCALE)
    files, memory = await after(max(count // 2, 100))  # what libraries and allocators keep, they keep from here on
    files_after, memory_after = await after(count)
    print(f"{count} connects: {files} -> {files_after} open files, {memory} -> {memory_after} KiB")  # noqa: T201 - the figure
    assert outcomes == set(OUTCOMES.items())
    assert files_after <= files + 5
    # A client that is not let go costs 60 KiB and more; allocators keep a few MiB, now and then.
    assert memory_after <= memory + 10 * count + 8 * 1024
