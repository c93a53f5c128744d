"""A real kube-apiserver with its etcd, for the tests: no kubelet and no controllers, so a test sets a status itself.

The folder with the two binaries is named by ``KUBEBUILDER_ASSETS``. ``tests/tools/kube-apiserver`` builds them on
Debian 12; elsewhere Kubernetes' own envtest tools bring them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from agent.demo.mongod import free_port, listens, spawn

VARIABLE: Final = "KUBEBUILDER_ASSETS"
START_TIMEOUT: Final = 90.0  # seconds; 5 to 7 on an idle machine
STOP_TIMEOUT: Final = 10.0
PORT_TRIES: Final = 3  # another program may take a free port before the server does
POLL: Final = 0.1

Json = dict[str, Any]


class KubeError(Exception):
    """The API server answered a request of a test with an error; ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class KubeStartError(Exception):
    """A server did not start; the message ends with what it said last."""

    def __init__(self, what: str, log: Path) -> None:
        lines = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
        super().__init__("\n  ".join([what, *lines]))


class Kube:
    """A running API server. ``admin_token`` may do everything, ``user`` makes accounts that may do less."""

    def __init__(self, url: str, ca_file: Path, admin_token: str) -> None:
        self.url = url
        self.ca_file = ca_file
        self.admin_token = admin_token
        self._tls = ssl.create_default_context(cafile=ca_file)

    @property
    def ca(self) -> str:
        """The certificate authority in PEM."""
        return self.ca_file.read_text()

    def request(self, method: str, path: str, body: Json | None = None, token: str | None = None) -> Json:
        """Send one request, as the administrator unless a token is given, and return the decoded answer."""
        decoded: Json = json.loads(self._send(method, path, body, token))
        return decoded

    def ready(self) -> bool:
        """Whether the server can be used, which includes the roles that it makes itself."""
        try:
            self._send("GET", "/readyz")
        except (KubeError, OSError):
            return False
        return True

    def _send(self, method: str, path: str, body: Json | None = None, token: str | None = None) -> bytes:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(  # noqa: S310 - always the https URL of this server
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self.admin_token}", "Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=30) as answer:  # noqa: S310 - as above
                text: bytes = answer.read()
                return text
        except urllib.error.HTTPError as error:
            with error:
                raise KubeError(error.code, error.read().decode(errors="replace")) from None

    def ensure(self, path: str, body: Json) -> None:
        """Create an object in the collection at this path, unless it exists."""
        try:
            self.request("POST", path, body)
        except KubeError as error:
            if error.code != 409:
                raise

    def user(self, name: str, rules: Sequence[Mapping[str, Sequence[str]]] = (), namespace: str = "default") -> str:
        """Make a service account that may do what the RBAC rules say in the whole cluster; return its token.

        The account is ``system:serviceaccount:<namespace>:<name>``. The token is a real one, valid for an hour.
        """
        self.ensure("/api/v1/namespaces", {"metadata": {"name": namespace}})
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.ensure(accounts, {"metadata": {"name": name}})
        if rules:
            role = f"{namespace}-{name}"
            group = "rbac.authorization.k8s.io"
            roles = f"/apis/{group}/v1/clusterroles"
            self.ensure(roles, {"metadata": {"name": role}, "rules": [dict(rule) for rule in rules]})
            binding = {
                "metadata": {"name": role},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            }
            self.ensure(f"/apis/{group}/v1/clusterrolebindings", binding)
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        token: str = self.request("POST", f"{accounts}/{name}/token", wanted)["status"]["token"]
        return token

    def kubeconfig(self, token: str | None = None) -> Json:
        """Return a kubeconfig for this server, with everything in it and no path to a file."""
        ca = base64.b64encode(self.ca_file.read_bytes()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "test", "user": {"token": token or self.admin_token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }


def assets() -> Path | None:
    """Return the folder with the binaries, or ``None`` where the variable is not set; a wrong one is an error."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named)
    for name in ("etcd", "kube-apiserver"):
        if not os.access(folder / name, os.X_OK):
            raise FileNotFoundError(f"{VARIABLE} names {named}, which holds no {name} that can be run")
    return folder


@contextlib.contextmanager
def kube_apiserver(binaries: Path) -> Iterator[Kube]:
    """Run etcd and the API server on free ports of the loopback address, with their data in a temporary directory."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maintenance-agent-kube-")))
        _make_certificates(home)
        admin_token = secrets.token_hex(16)
        (home / "tokens.csv").write_text(f'{admin_token},admin,admin,"system:masters"\n')
        etcd = _start_etcd(binaries, home, stack)
        yield _start_apiserver(binaries, home, stack, etcd, admin_token)


def _make_certificates(home: Path) -> None:
    """Make an authority, a certificate of the server, and with its key the one that signs account tokens.

    The server's self-made certificates would do for TLS, but newer versions of Python refuse them.
    """
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
    constraints = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl(home, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-ca", *constraints)
    _openssl(home, "req", *key[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=kube-apiserver")
    (home / "server.ext").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE\nkeyUsage=digitalSignature\n"
        "extendedKeyUsage=serverAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "server.ext")
    _openssl(home, "x509", "-req", "-in", "server.csr", "-out", "server.crt", *signer)


def _openssl(home: Path, *words: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise FileNotFoundError("the tests with Kubernetes need the program openssl")
    subprocess.run([program, *words], cwd=home, check=True, capture_output=True)


def _start_etcd(binaries: Path, home: Path, stack: contextlib.ExitStack) -> str:
    log = home / "etcd.log"
    for _ in range(PORT_TRIES):
        client, peer = free_port(), free_port()
        peer_url = f"http://127.0.0.1:{peer}"
        client_url = f"http://127.0.0.1:{client}"
        command: list[str | Path] = [
            *(binaries / "etcd", "--data-dir", home / f"etcd-{client}", "--unsafe-no-fsync"),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}"),
        ]
        if _started(command, log, partial(listens, client), stack):
            return client_url
    raise KubeStartError("etcd did not start", log)


def _start_apiserver(binaries: Path, home: Path, stack: contextlib.ExitStack, etcd: str, admin_token: str) -> Kube:
    log = home / "kube-apiserver.log"
    for _ in range(PORT_TRIES):
        port = free_port()
        command: list[str | Path] = [
            *(binaries / "kube-apiserver", "--etcd-servers", etcd, "--cert-dir", home / "generated"),
            *("--bind-address", "127.0.0.1", "--secure-port", str(port)),
            *("--tls-cert-file", home / "server.crt", "--tls-private-key-file", home / "server.key"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-signing-key-file", home / "server.key"),
            *("--service-account-key-file", home / "server.crt"),
            *("--token-auth-file", home / "tokens.csv", "--authorization-mode", "RBAC"),
            *("--advertise-address", "127.0.0.1", "--service-cluster-ip-range", "10.0.0.0/24"),
            *("--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none"),
        ]
        kube = Kube(f"https://127.0.0.1:{port}", home / "ca.crt", admin_token)
        if _started(command, log, kube.ready, stack):
            return kube
    raise KubeStartError("kube-apiserver did not start", log)


def _started(command: Sequence[str | Path], log: Path, ready: Callable[[], bool], stack: contextlib.ExitStack) -> bool:
    """Start a server and wait until it is ready; false where it ended before, as it does when its port is taken."""
    process = spawn(command, log)
    stack.callback(_end, process)
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None:
        if ready():
            return True
        if time.monotonic() > deadline:
            raise KubeStartError(f"{log.stem} was not ready within {START_TIMEOUT:.0f} s", log)
        time.sleep(POLL)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
