"""Against a real kube-apiserver: what is summed is what is there, with the rights that are documented and no more."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_asyncio import watch
from kubernetes_asyncio.client import ApiException, CoreV1Api, V1ConfigMap, V1ObjectMeta

from agent import quantity
from agent.cluster import (
    ClientCache,
    CustomResource,
    ProviderClient,
    ProviderCredentials,
    UsageQuery,
    connect,
    connected,
    from_kubeconfig,
    in_cluster,
    usage,
)
from agent.cluster.names import LabelValue
from agent.errors import ClusterDeniedError, ClusterForbiddenError, ClusterMissingError
from agent.quantity import Amounts
from tests.kube import Kube, KubeError

Json = dict[str, Any]
Rule = Mapping[str, Sequence[str]]

NOT_FOUND = 404
GI = 2**30
MI = 2**20
GROUP = "kubedb.com"
POSTGRES = CustomResource(
    GROUP,
    "v1",
    "postgreses",
    cpu="spec.podTemplate.spec.containers.*.resources.requests.cpu",
    memory="spec.podTemplate.spec.containers.*.resources.requests.memory",
    storage="spec.storage.resources.requests.storage",
    replicas=("spec.replicas",),
)
# What the documentation names: list, on what is read, and nothing else.
PODS: Rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
CLAIMS: Rule = {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["list"]}
CUSTOM: Rule = {"apiGroups": [GROUP], "resources": ["postgreses"], "verbs": ["list"]}


@pytest.fixture(scope="module")
def databases(kube: Kube) -> Kube:
    """The server with a resource of KubeDB's kind installed."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    spec = {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "postgreses", "singular": "postgres", "kind": "Postgres", "listKind": "PostgresList"},
        "versions": [version],
    }
    name = {"name": f"postgreses.{GROUP}"}
    kube.ensure("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {"metadata": name, "spec": spec})
    deadline = time.monotonic() + 60
    while not _serves(kube, f"/apis/{GROUP}/v1/postgreses"):
        assert time.monotonic() < deadline, "the custom resource is not served"
        time.sleep(0.1)
    return kube


def _serves(kube: Kube, path: str) -> bool:
    try:
        kube.request("GET", path)
    except KubeError as error:
        if error.code != NOT_FOUND:
            raise
        return False
    return True


@dataclass(frozen=True)
class Place:
    """Two namespaces and a label that belong to one test."""

    kube: Kube
    label: str
    namespaces: tuple[str, str]

    @property
    def labels(self) -> dict[str, str]:
        """The label that selects what the test made."""
        return {"example.com/test": self.label}

    def make(self, namespace: str, kind: str, name: str, spec: Json, labels: Mapping[str, str] | None = None) -> str:
        """Create an object, with the test's label unless others are given; return its path."""
        collection = {"postgreses": f"/apis/{GROUP}/v1"}.get(kind, "/api/v1") + f"/namespaces/{namespace}/{kind}"
        chosen = dict(self.labels if labels is None else labels)
        body: Json = {"metadata": {"name": name, "labels": chosen}, "spec": spec}
        if kind == "postgreses":
            body |= {"apiVersion": f"{GROUP}/v1", "kind": "Postgres"}
        self.kube.request("POST", collection, body)
        return f"{collection}/{name}"

    def pod(self, namespace: str, name: str, *cpus: str, init: Sequence[str] = (), phase: str = "Running") -> None:
        """Create a pod whose containers request so much CPU and 1 Mi of memory each, and set its phase."""
        spec = {"containers": _containers(cpus, "c"), "initContainers": _containers(init, "i")}
        path = self.make(namespace, "pods", name, spec)
        self.kube.request("PATCH", f"{path}/status", {"status": {"phase": phase}})

    def claim(self, namespace: str, name: str, storage: str) -> None:
        """Create a claim for so much storage."""
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}}
        self.make(namespace, "persistentvolumeclaims", name, spec)

    def database(self, namespace: str, name: str, replicas: int | None, storage: str, *cpus: str) -> None:
        """Create a custom resource with so many replicas."""
        spec: Json = {
            "storage": {"resources": {"requests": {"storage": storage}}},
            "podTemplate": {"spec": {"containers": _containers(cpus, "c")}},
        }
        self.make(namespace, "postgreses", name, spec | ({} if replicas is None else {"replicas": replicas}))


def _containers(cpus: Sequence[str], prefix: str) -> list[Json]:
    return [
        {"name": f"{prefix}{number}", "image": "x", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}
        for number, cpu in enumerate(cpus)
    ]


@pytest.fixture
def place(databases: Kube) -> Iterator[Place]:
    """Two fresh namespaces."""
    label = uuid.uuid4().hex
    names = (f"a-{label}", f"b-{label}")
    for name in names:
        databases.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield Place(databases, label, names)
    for name in names:
        databases.request("DELETE", f"/api/v1/namespaces/{name}")


def credentials(kube: Kube, token: str | None = None) -> ProviderCredentials:
    """Credentials for the server, of the administrator unless a token is given."""
    return from_kubeconfig(kube.kubeconfig(token))


@pytest.fixture
async def client(databases: Kube) -> AsyncIterator[ProviderClient]:
    """A client that may do everything."""
    async with connected("real", credentials(databases)) as made:
        yield made


# ---------------------------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_pods_claims_and_custom_resources_are_summed(place: Place, client: ProviderClient, page: int) -> None:
    """Over two namespaces and however many pages; what has ended and what is not selected is left out."""
    first, second = place.namespaces
    for number in range(3):
        place.pod(first, f"run-{number}", "250m", "0.1")
    place.pod(second, "big-start", "100m", init=["2", "1500m"])
    place.pod(second, "waits", "1", phase="Pending")
    place.pod(second, "done", "64", phase="Succeeded")
    place.pod(second, "broken", "64", phase="Failed")
    place.make(second, "pods", "other", {"containers": _containers(["64"], "c")}, labels={"example.com/test": "x"})
    place.claim(first, "data", "1.5Gi")
    place.claim(second, "data", "1G")
    place.database(first, "one", 3, "10Gi", "500m", "100m")
    place.database(second, "two", None, "1Gi", "2")
    found = await usage(client, UsageQuery(labels=place.labels, resources=(POSTGRES,), page=page))
    assert (found.pods, found.claims, found.resources) == (7, 2, 2)
    assert found.by_pods == Amounts(3 * 350 + 2000 + 1000, (3 * 2 + 1 + 1) * MI)
    assert found.by_claims == Amounts(storage=3 * GI // 2 + 10**9)
    assert found.by_resources == Amounts(3 * 600 + 2000, (3 * 2 + 1) * MI, 31 * GI)
    assert found.total == found.by_pods + found.by_claims + found.by_resources


async def test_only_the_named_namespaces_count(place: Place, client: ProviderClient) -> None:
    """Each once, however often it is named; one that does not exist has nothing."""
    first, second = place.namespaces
    place.pod(first, "a", "1")
    place.pod(second, "b", "2")
    found = await usage(client, UsageQuery(labels=place.labels, namespaces=(second, second, "no-such")))
    assert (found.pods, found.total.millicores) == (1, 2000)


async def test_labels_select_by_value_by_choice_and_by_presence(place: Place, client: ProviderClient) -> None:
    """The server understands the selectors as they are meant."""
    namespace = place.namespaces[0]
    for name, tier in [("a", "web"), ("b", "db"), ("c", "")]:
        labels = {**place.labels, "tier": tier}
        place.make(namespace, "pods", name, {"containers": _containers(["1"], "c")}, labels=labels)
    place.make(namespace, "pods", "d", {"containers": _containers(["1"], "c")})
    counts: list[tuple[LabelValue, int]] = [("web", 1), (("web", "db"), 2), ("", 1), (None, 3), ("none", 0)]
    for wanted, count in counts:
        found = await usage(client, UsageQuery(labels={**place.labels, "tier": wanted}))
        assert found.pods == count, wanted


async def test_a_custom_resource_can_stand_alone(place: Place, client: ProviderClient) -> None:
    """Where it says it all, pods and claims are not read, and it may be selected by labels of its own."""
    place.pod(place.namespaces[0], "a", "1")
    place.database(place.namespaces[0], "one", 2, "1Gi", "1")
    alone = CustomResource(GROUP, "v1", "postgreses", cpu=POSTGRES.cpu, labels=place.labels)
    query = UsageQuery(labels={"none": "such"}, pods=False, claims=False, resources=(alone,))
    assert (await usage(client, query)).total == Amounts(1000)


async def test_a_resource_that_is_not_installed_is_missing(client: ProviderClient) -> None:
    """It is told apart from one that has no objects."""
    unknown = CustomResource("example.com", "v1", "nothings")
    with pytest.raises(ClusterMissingError, match=r"'real' has no nothings\.example\.com"):
        await usage(client, UsageQuery(pods=False, claims=False, resources=(unknown,)))


# -------------------------------------------------------------------------------------------------------------- rights


async def read_as(kube: Kube, place: Place, *rules: Rule) -> Amounts:
    """Read everything with an account that has these rights in the whole cluster."""
    token = kube.user(f"auditor-{uuid.uuid4().hex[:8]}", rules, place.namespaces[0])
    async with connected("real", credentials(kube, token)) as reader:
        return (await usage(reader, UsageQuery(labels=place.labels, resources=(POSTGRES,)))).total


async def test_the_rights_that_are_documented_suffice(databases: Kube, place: Place) -> None:
    """List, on pods, on claims and on the custom resource: no more is needed."""
    place.pod(place.namespaces[0], "a", "1")
    place.claim(place.namespaces[1], "data", "1Gi")
    assert await read_as(databases, place, PODS, CLAIMS, CUSTOM) == Amounts(1000, MI, GI)


@pytest.mark.parametrize(
    "rules,resource",
    [
        ((CLAIMS, CUSTOM), "pods"),
        ((PODS, CUSTOM), "persistentvolumeclaims"),
        ((PODS, CLAIMS), "postgreses.kubedb.com"),
        (({**PODS, "verbs": ["get", "watch"]}, CLAIMS, CUSTOM), "pods"),
        ((), "pods"),
    ],
    ids=["no-pods", "no-claims", "no-custom", "other-verbs", "none"],
)
async def test_one_right_less_does_not_suffice(
    databases: Kube, place: Place, rules: tuple[Rule, ...], resource: str
) -> None:
    """The error names the verb and the resource that the role lacks."""
    with pytest.raises(ClusterForbiddenError) as refused:
        await read_as(databases, place, *rules)
    assert (refused.value.verb, refused.value.resource) == ("list", resource)
    assert f"does not allow to list {resource}: 403" in str(refused.value)


# --------------------------------------------------------------------------------------------------------- credentials


async def test_wrong_credentials_are_denied(databases: Kube) -> None:
    """A token that the server does not know: told when connecting, before anything is read."""
    with pytest.raises(ClusterDeniedError, match="refused the credentials: 401 'Unauthorized'"):
        await connect("real", credentials(databases, "no-such-token"))


async def test_a_rotated_token_makes_a_new_client(databases: Kube, place: Place) -> None:
    """Two tokens, both good: the cache goes over to the second with the next use."""
    tokens = [databases.user("rotated", (PODS,), place.namespaces[0]) for _ in range(2)]
    document = databases.kubeconfig(tokens[0])

    async def load() -> ProviderCredentials:
        return from_kubeconfig(document)

    async with ClientCache(connect) as cache:
        async with cache.client("real", load) as first, cache.client("real", load) as again:
            assert first is again
            document["users"][0]["user"]["token"] = tokens[1]
            async with cache.client("real", load) as second:
                assert second is not first
                for each in (first, second):
                    await usage(each, UsageQuery(labels=place.labels, claims=False))
        assert len(cache) == 1


async def test_a_pod_s_own_account_is_enough(databases: Kube, place: Place, tmp_path: Path) -> None:
    """What the kubelet mounts and sets, for a real account."""
    place.pod(place.namespaces[0], "a", "1")
    (tmp_path / "token").write_text(databases.user("itself", (PODS, CLAIMS), place.namespaces[0]))
    (tmp_path / "ca.crt").write_text(databases.ca)
    address = urlsplit(databases.url)
    environment = {"KUBERNETES_SERVICE_HOST": address.hostname or "", "KUBERNETES_SERVICE_PORT": str(address.port)}
    async with connected("itself", await in_cluster(tmp_path, environment)) as itself:
        assert (await usage(itself, UsageQuery(labels=place.labels))).total == Amounts(1000, MI)


# --------------------------------------------------------------------------------------------- an application's own use


async def test_an_application_uses_the_same_client(place: Place, client: ProviderClient) -> None:
    """The API classes of kubernetes_asyncio work with it: write, read, watch; data comes back as it was sent."""
    core = CoreV1Api(client.api)
    hostile = {"key": "q\"uo'te $HOME ${x} {{y}} ../.. \n\r\x00 ä 字"}
    namespace = place.namespaces[0]
    await core.create_namespaced_config_map(namespace, V1ConfigMap(metadata=V1ObjectMeta(name="data"), data=hostile))
    assert (await core.read_namespaced_config_map("data", namespace)).data == hostile
    seen = [
        event["object"].metadata.name
        async for event in watch.Watch().stream(core.list_namespaced_config_map, namespace, timeout_seconds=1)
    ]
    assert "data" in seen


@pytest.mark.parametrize("name", ["../../pods/x", "a/b", "a?dryRun=All", "a%2f..", "..", "$x", "'", "ä"])
async def test_a_hostile_name_does_not_leave_its_place(place: Place, client: ProviderClient, name: str) -> None:
    """The server sees it as a name, and refuses it as one; nothing else is read or made."""
    core = CoreV1Api(client.api)
    with pytest.raises(ApiException) as refused:
        await core.create_namespaced_config_map(
            place.namespaces[0], V1ConfigMap(metadata=V1ObjectMeta(name=name), data={})
        )
    assert refused.value.status == 422


# ---------------------------------------------------------------------------------------------------------- quantities


numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.decimals(0, 10**6, places=3).map(str),
    st.integers(0, 999).map(lambda digits: f".{digits:03}"),
    st.integers(0, 999).map(lambda whole: f"{whole}."),
)
suffixes = st.sampled_from(["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "Ti", "e0", "e3", "E+2", "e-3", "e1"])


@given(st.lists(st.builds(str.__add__, numbers, suffixes), min_size=20, max_size=40))
@settings(deadline=None, max_examples=10)
def test_quantities_are_read_and_written_as_the_server_does(kube: Kube, texts: list[str]) -> None:
    """The server's own canonical form of what it is sent (it rounds requests up to thousandths), without storing it."""
    containers = [
        {"name": f"c{number}", "image": "x", "resources": {"requests": {"memory": text}}}
        for number, text in enumerate(texts)
    ]
    body = {"metadata": {"name": "dry"}, "spec": {"containers": containers}}
    answer = kube.request("POST", "/api/v1/namespaces/default/pods?dryRun=All", body)
    theirs = [container["resources"]["requests"]["memory"] for container in answer["spec"]["containers"]]
    thousandths = [quantity.parse(text).quantize(Decimal("0.001"), ROUND_UP) for text in texts]
    assert [quantity.parse(text) for text in theirs] == thousandths
    ours = [quantity.write(value, quantity.style_of(text)) for value, text in zip(thousandths, texts, strict=True)]
    wrong = [case for case in zip(texts, theirs, ours, strict=True) if case[1] != case[2]]
    # What looks canonical the server leaves as it came, though it is not always: 1.0k, 0.001.
    assert all(their == text and quantity.canonical(their) == our for text, their, our in wrong)
