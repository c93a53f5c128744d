"""Credentials of a provider's cluster: what a kubeconfig may say, and what is refused by name.

A kubeconfig comes from a document of the application, from a file in a mounted directory, or from the pod's own
service account. Whoever can write that document must not thereby be able to run a program here (``exec``,
``auth-provider``), to read a file of this machine (``client-key`` and its kind), or to lead the connection astray
(``proxy-url``, no verification). So these are refused, wherever in the document they stand. The rest is data.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from agent.cluster import names
from agent.errors import CredentialsError, shown

MAX_SIZE: Final = 256 * 1024  # bytes; a kubeconfig with a chain of certificates and a key has about 10 KiB
MAX_NODES: Final = 10_000  # keys and values of the document
MAX_DEPTH: Final = 32  # libyaml follows nesting on the C stack: 200,000 brackets end the process
# What a pod finds about its own account; see "Accessing the API from a Pod" in the Kubernetes documentation.
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_RUNS_OR_READS: Final = {
    "users": {
        "exec": "it runs a program",
        "auth-provider": "it runs a plug-in",
        "client-certificate": "it names a file; use client-certificate-data",
        "client-key": "it names a file; use client-key-data",
        "tokenFile": "it names a file; use token",
        "as": "impersonation is not supported",
        "as-uid": "impersonation is not supported",
        "as-groups": "impersonation is not supported",
        "as-user-extra": "impersonation is not supported",
    },
    "clusters": {
        "certificate-authority": "it names a file; use certificate-authority-data",
        "proxy-url": "a proxy is not supported",
    },
}
_SECTION: Final = {"users": "user", "clusters": "cluster", "contexts": "context"}

Json = Mapping[str, Any]
Document = str | bytes | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProviderCredentials:
    """Where a cluster is, whom to trust there, and who asks. Secrets never show in its ``repr``.

    ``authorization`` is the whole header; ``ca``, ``certificate`` and ``key`` are PEM texts. Without ``ca`` the
    authorities of the system are trusted.

    ``fingerprint`` is the SHA-256 of the content in hexadecimal: equal for equal credentials, however they are written.
    It stands for the secrets, so it is compared and never shown; a log takes `short_fingerprint`.
    """

    server: str
    ca: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    authorization: str | None = field(default=None, repr=False)
    tls_server_name: str | None = None
    verify: bool = True
    fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        content = [getattr(self, each.name) for each in fields(self) if each.init]
        canonical = json.dumps(content, separators=(",", ":"))
        object.__setattr__(self, "fingerprint", hashlib.sha256(canonical.encode()).hexdigest())

    @property
    def short_fingerprint(self) -> str:
        """The first 12 digits of the fingerprint: enough to tell two generations apart, too little to search for."""
        return self.fingerprint[:12]


# --------------------------------------------------------------------------------------------------- the three sources


def from_kubeconfig(document: Document, *, provider: str = "", allow_insecure: bool = False) -> ProviderCredentials:
    """The credentials of a kubeconfig's current context; the document is YAML, JSON, or already a mapping.

    ``allow_insecure`` accepts ``insecure-skip-tls-verify`` and plain http. Raises CredentialsError with everything that
    is wrong, without quoting a secret.
    """
    problems: list[str] = []
    tree = _tree(document, problems)
    if not problems:
        problems += _refusals(tree, allow_insecure=allow_insecure)
    if problems:
        raise CredentialsError(provider, problems)
    credentials = _credentials(tree, problems, allow_insecure=allow_insecure)
    if problems:
        raise CredentialsError(provider, problems)
    return credentials


async def from_directory(
    directory: Path, provider: str, *, suffix: str = "", allow_insecure: bool = False
) -> ProviderCredentials:
    """The credentials in a mounted directory: one kubeconfig a provider, in a file of its name and ``suffix``.

    Only files that lie in the directory are read, links within it included, as a mounted Secret has them. Raises
    UsageError for a name that can be no file's, CredentialsError where there is no such file or it is not usable.
    """
    name = names.file_name(f"{provider}{suffix}")
    try:
        text = await asyncio.to_thread(_read_inside, directory, name)
    except OSError as error:
        raise CredentialsError(provider, [f"the file {shown(name)} cannot be read: {error.strerror}"]) from error
    return from_kubeconfig(text, provider=provider, allow_insecure=allow_insecure)


async def in_cluster(
    directory: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ
) -> ProviderCredentials:
    """The credentials of the pod's own service account.

    The kubelet renews the token; read anew for every use of the client cache, a renewed one makes a new client. Raises
    CredentialsError outside a cluster.
    """
    host, port = (environment.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    if not host or not port:
        raise CredentialsError("in-cluster", ["KUBERNETES_SERVICE_HOST and _PORT are not set: this is no pod"])
    try:
        token = await asyncio.to_thread(_read_inside, directory, "token")
        ca = await asyncio.to_thread(_read_inside, directory, "ca.crt")
    except OSError as error:
        raise CredentialsError("in-cluster", [f"the service account cannot be read: {error.strerror}"]) from error
    address = f"[{host}]" if ":" in host else host
    cluster = {
        "server": f"https://{address}:{port}",
        "certificate-authority-data": base64.b64encode(ca).decode(),
    }
    user = {"token": token.decode(errors="replace").strip()}
    return from_kubeconfig(_kubeconfig(cluster, user), provider="in-cluster")


def _kubeconfig(cluster: Json, user: Json) -> Json:
    return {
        "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": user}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }


def _read_inside(directory: Path, name: str) -> bytes:
    """Read a file that really lies in the directory, up to one byte more than is accepted. Raises OSError."""
    folder = directory.resolve(strict=True)
    path = (folder / name).resolve(strict=True)
    if not path.is_relative_to(folder):
        raise PermissionError(None, "it lies outside the directory")
    # Not to be led away by a link put there meanwhile, nor to wait for the other end of a named pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PermissionError(None, "it is no regular file")
        return file.read(MAX_SIZE + 1)


# ------------------------------------------------------------------------------------------------ text to a small tree


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # one of two classes with one face
    """YAML where everything is text but null and the truth values.

    Numbers and dates mean nothing in a kubeconfig, and reading them costs: a number to the base of 60 with many digits
    takes minutes.
    """

    yaml_implicit_resolvers: Final = {
        first: [pair for pair in pairs if pair[0] in {"tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"}]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _tree(document: Document, problems: list[str]) -> Json:
    """The document as a mapping of bounded size; what is wrong is added to the problems."""
    try:
        tree = document if isinstance(document, Mapping) else _load(document)
        _bound(tree)
    except (ValueError, RecursionError) as error:
        problems.append(str(error))
        return {}
    if not isinstance(tree, Mapping):
        problems.append("it is no mapping")
        return {}
    return tree


def _load(document: object) -> object:
    if not isinstance(document, (str, bytes)):
        raise ValueError("it is neither text nor a mapping")  # noqa: TRY004 - a problem of the data, told like others
    if len(document) > MAX_SIZE:
        raise ValueError(f"it is larger than {MAX_SIZE // 1024} KiB")
    try:
        text = document.decode() if isinstance(document, bytes) else document
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    if text.lstrip().startswith("{"):
        # JSON is YAML but for tabs between its parts. What is wrong as JSON may still be right as YAML.
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
    try:
        _look_before_loading(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader with fewer types
    except yaml.YAMLError as error:
        raise ValueError(f"it is neither YAML nor JSON{_place(error)}") from None


def _look_before_loading(text: str) -> None:
    """Refuse, event by event, what would cost more than it says: deep nesting, references, types of one's own."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("YAML anchors and aliases are not accepted")
        if getattr(event, "tag", None) is not None:
            raise ValueError("YAML tags are not accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}, or has more than {MAX_NODES} parts")


def _place(error: yaml.YAMLError) -> str:
    """Where the text is wrong; never what stands there, which may be a secret."""
    mark = getattr(error, "problem_mark", None)
    return f": line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _bound(tree: object) -> None:
    """Refuse a tree that is too large, one that contains itself included. Raises ValueError."""
    parts, size, waiting = 0, 0, [tree]
    while waiting:
        part = waiting.pop()
        parts += 1
        size += len(part) if isinstance(part, (str, bytes)) else 0
        if parts > MAX_NODES or size > MAX_SIZE:
            raise ValueError(f"it has more than {MAX_NODES} parts, or is larger than {MAX_SIZE // 1024} KiB")
        waiting += _children(part)


def _children(part: object) -> list[object]:
    if isinstance(part, Mapping):
        return [*part.keys(), *part.values()]
    return part if isinstance(part, list) else []


# ----------------------------------------------------------------------------------------------------- what is refused


def _refusals(tree: Json, *, allow_insecure: bool) -> list[str]:
    """Everything that no part of the document may carry, whether the current context uses it or not."""
    refused = [
        f"{_SECTION[section]} {shown(name)} carries {key}: {why}"
        for section, keys in _RUNS_OR_READS.items()
        for name, entry in _entries(tree, section)
        for key, why in keys.items()
        if entry.get(key) not in (None, "")
    ]
    if not allow_insecure:
        refused += [
            f"cluster {shown(name)} carries insecure-skip-tls-verify: it is not allowed here"
            for name, entry in _entries(tree, "clusters")
            if entry.get("insecure-skip-tls-verify") not in (None, "", False)
        ]
    return refused


def _entries(tree: Json, section: str) -> Iterator[tuple[object, Json]]:
    """The named entries of ``users``, ``clusters`` or ``contexts``; what is malformed is no entry."""
    listed = tree.get(section)
    for item in listed if isinstance(listed, list) else []:
        entry = item.get(_SECTION[section]) if isinstance(item, Mapping) else None
        if isinstance(entry, Mapping):
            yield item.get("name"), entry


# ------------------------------------------------------------------------------------------------------- what is taken


def _credentials(tree: Json, problems: list[str], *, allow_insecure: bool) -> ProviderCredentials:
    context = _named(tree, "contexts", tree.get("current-context"), problems)
    cluster = _named(tree, "clusters", context.get("cluster"), problems) if context else {}
    # A context without a user asks anonymously; the cluster decides what that may do.
    user = _named(tree, "users", context.get("user"), problems) if context.get("user") else {}
    if problems:
        return ProviderCredentials(server="")
    certificate, key = _pem(user, "client-certificate-data", problems), _pem(user, "client-key-data", problems)
    if (certificate is None) is not (key is None):
        problems.append("client-certificate-data and client-key-data go together")
    return ProviderCredentials(
        server=_server(cluster, problems, allow_insecure=allow_insecure),
        ca=_pem(cluster, "certificate-authority-data", problems),
        certificate=certificate,
        key=key,
        authorization=_authorization(user, problems),
        tls_server_name=_text(cluster, "tls-server-name", problems),
        verify=cluster.get("insecure-skip-tls-verify") in (None, "", False),
    )


def _named(tree: Json, section: str, name: object, problems: list[str]) -> Json:
    for entry_name, entry in _entries(tree, section):
        if entry_name == name and name:
            return entry
    missing = "current-context" if section == "contexts" else _SECTION[section]
    problems.append(f"its {missing} {shown(name)} is not among its {section}")
    return {}


def _text(entry: Json, key: str, problems: list[str]) -> str | None:
    value = entry.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        problems.append(f"{key} is no text")
        return None
    return value


def _pem(entry: Json, key: str, problems: list[str]) -> str | None:
    """The PEM text that stands in base64 under a key."""
    encoded = _text(entry, key, problems)
    if encoded is None:
        return None
    try:
        text = base64.b64decode("".join(encoded.split()), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        problems.append(f"{key} is not base64 of PEM text")
        return None
    if "-----BEGIN " not in text:
        problems.append(f"{key} holds no PEM text")
    return text


def _authorization(user: Json, problems: list[str]) -> str | None:
    token, name, password = (_text(user, key, problems) for key in ("token", "username", "password"))
    if token is not None:
        # RFC 6750 takes fewer characters still; these are the ones that cannot break out of a header.
        if not (token.isascii() and token.isprintable() and " " not in token):
            problems.append("token holds characters that no token has (blanks, line ends, other than ASCII)")
        return f"Bearer {token}"
    if name is None and password is None:
        return None
    if name is None or ":" in name:
        problems.append("username is missing or holds a colon, which RFC 7617 keeps for what follows it")
    return "Basic " + base64.b64encode(f"{name}:{password or ''}".encode()).decode()


def _server(cluster: Json, problems: list[str], *, allow_insecure: bool) -> str:
    text = _text(cluster, "server", problems)
    wrong = "it has none" if text is None else _wrong_with(text, allow_insecure=allow_insecure)
    if text is None or wrong:
        problems.append(f"server: {wrong}")
        return ""
    return text.rstrip("/")


def _wrong_with(url: str, *, allow_insecure: bool) -> str | None:
    """What makes a URL no server; the URL itself is not quoted, since a password may stand in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no URL"
    if not (url.isascii() and url.isprintable() and " " not in url):
        return "it holds characters that a URL has not"
    if parts.scheme != "https" and not (allow_insecure and parts.scheme == "http"):
        return "it does not begin with https://"
    if not host or parts.username is not None or parts.password is not None:
        return "it names no host, or a user"
    return "it has a query or a fragment" if parts.query or parts.fragment else None
