"""A client for one provider's cluster: how a call is made, for how long, how often, and what its failures mean.

The client of kubernetes_asyncio has no time-outs and no retries, builds an SSL context on the event loop (about 40
milliseconds), writes credentials to files, follows redirects and logs bodies. This one does none of that, for the
agent's own reads and for the calls that an application makes through ``ProviderClient.api`` alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final, Protocol

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.client.rest import RESTClientObject, RESTResponse

from agent.cluster.credentials import ProviderCredentials
from agent.errors import (
    ClusterAnswerError,
    ClusterDeniedError,
    ClusterError,
    ClusterExpiredError,
    ClusterForbiddenError,
    ClusterMissingError,
    ClusterTimeoutError,
    ClusterUnavailableError,
    ClusterUntrustedError,
    CredentialsError,
    shown,
)

JsonObject = dict[str, Any]
Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]

# What kubernetes_asyncio and aiohttp raise for an answer, or for the lack of one. ValueError and LookupError are a body
# that is no JSON, no text, or of a charset that does not exist.
VENDOR_ERRORS: Final = (ApiException, aiohttp.ClientError, OSError, ValueError, LookupError, RecursionError)

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_MOMENTARY: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_MESSAGE: Final = 300  # characters of a cluster's own message that an error shows
_READ_BUFFER: Final = 2**21  # bytes; one event of a watch is a line, and an object may have 1.5 MiB


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How patient a client is.

    ``attempt`` bounds one try and ``connect`` its connection; ``budget`` bounds a call, its tries and waits together.
    A wait before the n-th retry is drawn from 0 to ``backoff`` x 2^n, at most ``backoff_cap``: "full jitter" of
    "Exponential Backoff And Jitter" (AWS Architecture Blog). ``answer`` is the most that is read of one answer, in
    bytes; ``connections`` how many one provider gets at once.
    """

    attempt: timedelta = timedelta(seconds=10)
    connect: timedelta = timedelta(seconds=5)
    budget: timedelta = timedelta(seconds=30)
    tries: int = 4
    backoff: timedelta = timedelta(milliseconds=200)
    backoff_cap: timedelta = timedelta(seconds=5)
    answer: int = 64 * 2**20
    connections: int = 10


@dataclass(frozen=True, slots=True)
class Time:
    """Where time and chance come from; a test brings its own."""

    clock: Clock = time.monotonic
    sleep: Sleep = asyncio.sleep
    chance: Callable[[], float] = random.random


class _Attempt(Protocol):
    """One try of a call; ``seconds`` is the time that it has."""

    def __call__(self, seconds: float) -> Awaitable[Any]: ...


# ------------------------------------------------------------------------------------------------------------- retries


class Retries:
    """Calls again where that can help, within the time of the call."""

    def __init__(self, settings: ClientSettings, source: Time) -> None:
        self._settings = settings
        self._time = source

    def deadline(self, budget: timedelta | None = None) -> float:
        """The instant (of the client's clock, seconds) at which a call that starts now has used up its budget."""
        return self._time.clock() + (budget or self._settings.budget).total_seconds()

    async def call(self, attempt: _Attempt, *, reads: bool, deadline: float | None = None) -> Any:
        """Return what the attempt returns; raise its last error where no further try may help or is left."""
        deadline = self.deadline() if deadline is None else deadline
        tries = 1
        while True:
            try:
                return await attempt(self._seconds(deadline))
            except VENDOR_ERRORS as error:
                wait = self._wait(error, tries, reads=reads)
                if wait is None or self._time.clock() + wait >= deadline:
                    raise
            await self._time.sleep(wait)
            tries += 1

    def _seconds(self, deadline: float) -> float:
        left = deadline - self._time.clock()
        if left <= 0:
            raise TimeoutError
        return min(left, self._settings.attempt.total_seconds())

    def _wait(self, error: BaseException, tries: int, *, reads: bool) -> float | None:
        """Seconds until the next try, or None where there is none."""
        if tries >= self._settings.tries or not _may_help(error, reads=reads):
            return None
        ceiling = min(self._settings.backoff * (1 << tries), self._settings.backoff_cap).total_seconds()
        return (_retry_after(error) or 0.0) + self._time.chance() * ceiling


def _may_help(error: BaseException, *, reads: bool) -> bool:
    """Whether the same call may succeed if made again, and may be made again.

    Like client-go's ``with_retry.go``: a server that says when to come back has not done the work, whatever the verb.
    Without that, only a read is repeated, or what was never sent. A time-out is not: the next try would cost the same
    time and the server the same work.
    """
    if isinstance(error, ApiException):
        told = _retry_after(error) is not None and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return error.status == HTTPStatus.TOO_MANY_REQUESTS or told or (reads and error.status in _MOMENTARY)
    if isinstance(error, (TimeoutError, aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL)):
        return False
    unsent = isinstance(error, aiohttp.ClientConnectorError)
    return unsent or (reads and isinstance(error, (aiohttp.ClientError, OSError)))


def _retry_after(error: BaseException) -> float | None:
    """The seconds of a Retry-After header. Kubernetes never sends the other form, a date."""
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    text: str = headers.get("Retry-After", "")
    sane = text.isascii() and text.isdigit() and len(text) <= len("86400")
    return float(text) if sane else None


# ------------------------------------------------------------------------------------------------------ the connection


class _Session:
    """aiohttp's session as kubernetes_asyncio uses it, without redirects.

    No API server sends one; whoever does would learn what the header and the body hold.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, **arguments: Any) -> aiohttp.ClientResponse:
        return await self._session.request(**arguments, allow_redirects=False)

    async def close(self) -> None:
        await self._session.close()


class _Rest(RESTClientObject):
    """The transport of kubernetes_asyncio with an SSL context made elsewhere, and with a bound on what is read."""

    def __init__(self, credentials: ProviderCredentials, tls: ssl.SSLContext, settings: ClientSettings) -> None:
        self._most = settings.answer
        self._connect = settings.connect.total_seconds()
        connector = aiohttp.TCPConnector(limit=settings.connections, ssl=tls)
        session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,  # or what a .netrc of this machine says about a host would be sent there
            auto_decompress=False,  # or a small answer could be a large one; nobody is asked to compress
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER,
        )
        # These are the attributes of the base, whose constructor is not called: it would make an SSL context here.
        vars(self).update(
            pool_manager=_Session(session),
            server_hostname=credentials.tls_server_name,
            proxy=None,
            proxy_headers=None,
        )

    async def request(self, method: str, url: str, **arguments: Any) -> Any:  # type: ignore[override]
        """Send a request and return the answer, read to its end unless ``_preload_content`` is false."""
        preload = arguments.pop("_preload_content", True)
        timeout = self._timeout(arguments.pop("_request_timeout", None))
        # The base would read without a bound, and log what it read.
        response = await super().request(method, url, _preload_content=False, _request_timeout=timeout, **arguments)
        if not preload:
            return response
        body = await self._read(response)
        if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            return RESTResponse(response, body)
        # The caller decodes this as UTF-8 without asking; what a proxy says in another charset is an answer as well.
        refusal: Any = RESTResponse(response, body.decode(errors="replace").encode())
        raise ApiException(http_resp=refusal)

    def _timeout(self, wanted: Any) -> aiohttp.ClientTimeout:
        if isinstance(wanted, aiohttp.ClientTimeout):
            return wanted
        if isinstance(wanted, tuple):
            return aiohttp.ClientTimeout(total=None, sock_connect=wanted[0], sock_read=wanted[1])
        return aiohttp.ClientTimeout(total=wanted, sock_connect=self._connect)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async with response:
            async for part in response.content.iter_any():
                size += len(part)
                if size > self._most:
                    response.close()
                    raise ValueError(f"the answer is larger than {self._most} bytes")
                parts.append(part)
        return b"".join(parts)


class _Api(ApiClient):
    """The generic client of kubernetes_asyncio, each call with a time-out and with retries."""

    def __init__(self, credentials: ProviderCredentials, rest: _Rest, retries: Retries) -> None:
        keys = {"BearerToken": credentials.authorization} if credentials.authorization else {}
        # The attributes of the base, as in _Rest.
        vars(self).update(
            configuration=Configuration(host=credentials.server, api_key=keys),
            client_side_validation=True,
            cookie=None,
            default_headers={"User-Agent": "maintenance-agent", "Accept-Encoding": "identity"},
            pool_threads=1,
            rest_client=rest,
        )
        self.refusals = 0
        self._retries = retries

    async def call_api(self, resource_path: str, method: str, *rest: Any, **arguments: Any) -> Any:
        """As the base has it. A stream (a watch, a log) gets no time-out but for its connection, if none is given."""
        deadline = arguments.pop("deadline", None)
        given = arguments.pop("_request_timeout", None)
        stream = arguments.get("_preload_content") is False

        async def attempt(seconds: float) -> Any:
            arguments["_request_timeout"] = given or (None if stream else seconds)
            try:
                answer = await ApiClient.call_api(self, resource_path, method, *rest, **arguments)
            except ApiException as error:
                self._note(error.status)
                raise
            self._note(answer.status if stream else HTTPStatus.OK)
            return answer

        return await self._retries.call(attempt, reads=method in _READS, deadline=deadline)

    def _note(self, status: int) -> None:
        """Count the refusals of the credentials in a row; an answer of the API shows that they are accepted."""
        if status == HTTPStatus.UNAUTHORIZED:
            self.refusals += 1
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
            self.refusals = 0


class ProviderClient:
    """A client for one cluster. ``connect`` makes it, the cache lends it, `close` ends it.

    ``api`` is for the API classes of kubernetes_asyncio (``CoreV1Api(client.api)``): time-outs, retries and the rest
    hold for them too, but what they raise is kubernetes_asyncio's. Whoever borrowed the client does not close it.
    """

    def __init__(self, provider: str, credentials: ProviderCredentials, api: _Api, retries: Retries) -> None:
        self.provider = provider
        self.fingerprint = credentials.fingerprint
        self.api = api
        self._retries = retries

    @property
    def refusals(self) -> int:
        """How many times in a row the credentials were refused (401) or a probe failed."""
        return self.api.refusals

    def deadline(self, budget: timedelta | None = None) -> float:
        """The instant, on the client's clock, until which a call or a chain of calls may last."""
        return self._retries.deadline(budget)

    async def get(
        self,
        path: str,
        parameters: dict[str, str] | None = None,
        query: list[tuple[str, str]] | None = None,
        *,
        deadline: float | None = None,
        asking: tuple[str, str] = ("get", "it"),
    ) -> JsonObject:
        """Read one JSON object; ``parameters`` fill the braces of the path, encoded, and ``query`` is encoded too.

        ``asking`` is the RBAC verb and resource that errors name. Raises ClusterError.
        """
        try:
            answer = await self.api.call_api(
                path,
                "GET",
                parameters,
                query,
                {"Accept": "application/json"},
                response_types_map={HTTPStatus.OK: "object"},
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                deadline=deadline,
            )
        except VENDOR_ERRORS as error:
            raise translated(error, self.provider, *asking) from error
        if not isinstance(answer, dict):
            raise ClusterAnswerError(f"{_cluster(self.provider)} answered with something that is no JSON object")
        return answer

    async def probe(self, deadline: float | None = None) -> None:
        """Ask for the version, which needs a working connection and credentials that are accepted, and no right.

        Raises ClusterError, and counts it among the refusals, unless the cluster answered.
        """
        refused = self.api.refusals
        try:
            await self.get("/version", deadline=deadline, asking=("get", "/version"))
        except (ClusterForbiddenError, ClusterMissingError):
            self.api.refusals = 0
        except ClusterError:
            self.api.refusals = refused + 1
            raise

    async def close(self) -> None:
        """Close the connections. Calling it again does no harm."""
        await self.api.close()


async def connect(
    provider: str,
    credentials: ProviderCredentials,
    settings: ClientSettings | None = None,
    source: Time | None = None,
) -> ProviderClient:
    """Make a client and see that it works: the cluster is there, trusted, and accepts the credentials.

    Raises CredentialsError for certificates and keys that cannot be used, and ClusterError.
    """
    settings, source = settings or ClientSettings(), source or Time()
    try:
        tls = await asyncio.to_thread(tls_context, credentials)
    except (ssl.SSLError, ValueError) as error:
        problem = f"its certificates or its key cannot be used: {getattr(error, 'reason', None) or 'no PEM text'}"
        raise CredentialsError(provider, [problem]) from error
    retries = Retries(settings, source)
    client = ProviderClient(
        provider, credentials, _Api(credentials, _Rest(credentials, tls, settings), retries), retries
    )
    try:
        await client.probe()
    except BaseException:
        await client.close()
        raise
    return client


@contextlib.asynccontextmanager
async def connected(
    provider: str,
    credentials: ProviderCredentials,
    settings: ClientSettings | None = None,
    source: Time | None = None,
) -> AsyncIterator[ProviderClient]:
    """A client for once, without a cache. Raises what `connect` raises."""
    client = await connect(provider, credentials, settings, source)
    try:
        yield client
    finally:
        await client.close()


# ----------------------------------------------------------------------------------------------------------------- TLS


def tls_context(credentials: ProviderCredentials) -> ssl.SSLContext:
    """The SSL context for a cluster. It takes milliseconds, with the system's authorities 40: not on the event loop.

    Raises ssl.SSLError or ValueError for what is no certificate, no key, or a key under a password.
    """
    context = ssl.create_default_context(cadata=credentials.ca)
    # Python 3.13 asks for certificate extensions that kubectl does not ask for and that many clusters' authorities
    # lack. The chain and the host name are verified as ever.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not credentials.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if credentials.certificate and credentials.key:
        with _as_file(f"{credentials.certificate}\n{credentials.key}".encode()) as path:
            # Without a password OpenSSL would ask for one at the terminal, and wait.
            context.load_cert_chain(path, password="")
    return context


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give a name to bytes for OpenSSL, which takes a client's key from a file only.

    On Linux the file is in memory and has no other name; elsewhere it is temporary, for this user only.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # made with mode 0600
            file.write(content)
            file.flush()
            yield file.name


# -------------------------------------------------------------------------------------------------------------- errors


def translated(error: BaseException, provider: str, verb: str, resource: str) -> ClusterError:
    """What a vendor's error means, in our words; the vendor's is to be chained as its cause."""
    cluster = _cluster(provider)
    if isinstance(error, ApiException):
        return _of_answer(error, cluster, verb, resource)
    if isinstance(error, TimeoutError):
        return ClusterTimeoutError(f"{cluster} did not answer in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ClusterUntrustedError(f"{cluster} could not prove who it is: {shown(str(error), _MESSAGE)}")
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return ClusterUnavailableError(f"{cluster} could not be reached: {shown(str(error) or type(error).__name__)}")
    return ClusterAnswerError(f"{cluster} did not answer as Kubernetes does: {shown(str(error), _MESSAGE)}")


def _of_answer(error: ApiException, cluster: str, verb: str, resource: str) -> ClusterError:
    said = f"{error.status} {shown(_message(error), _MESSAGE)}"
    if error.status == HTTPStatus.FORBIDDEN:
        message = f"{cluster} does not allow to {verb} {resource}: {said}"
        return ClusterForbiddenError(message, verb=verb, resource=resource)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ClusterUnavailableError(f"{cluster} failed to {verb} {resource}: {said}")
    kind, sentence = _MEANINGS.get(error.status, (ClusterAnswerError, f"did not {verb} {resource}"))
    return kind(f"{cluster} {sentence.format(resource=resource)}: {said}")


_MEANINGS: Final[dict[int, tuple[type[ClusterError], str]]] = {
    HTTPStatus.UNAUTHORIZED: (ClusterDeniedError, "refused the credentials"),
    HTTPStatus.NOT_FOUND: (ClusterMissingError, "has no {resource}"),
    HTTPStatus.GONE: (ClusterExpiredError, "has forgotten the list of {resource}"),
    HTTPStatus.TOO_MANY_REQUESTS: (ClusterUnavailableError, "is too busy for {resource}"),
}


def _message(error: ApiException) -> str:
    """The sentence of Kubernetes' Status object, or the reason of the status line."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        status = json.loads(error.body or "")
        if isinstance(status, dict) and isinstance(status.get("message"), str):
            return str(status["message"])
    return str(error.reason)


def _cluster(provider: str) -> str:
    return f"the cluster of {shown(provider)}"
