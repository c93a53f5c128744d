"""The manifests on a real kube-apiserver: what Kubernetes 1.20 knows of them is accepted, and the rights are exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.kube import Kube, KubeError
from tests.manifests import OVERLAYS, render

NAMESPACE: Final = "application"  # what the overlays say
# Where objects of a kind are made. Kubernetes 1.20 knows no policy/v1; the operator's kinds are no part of Kubernetes.
COLLECTIONS: Final = {
    "ConfigMap": f"/api/v1/namespaces/{NAMESPACE}/configmaps",
    "Service": f"/api/v1/namespaces/{NAMESPACE}/services",
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "Deployment": f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
UNKNOWN: Final = {"PodDisruptionBudget", "PodMonitor", "PrometheusRule"}
ACCOUNT: Final = f"system:serviceaccount:{NAMESPACE}:maintenance-agent"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def application(kube: Kube) -> Kube:
    """The API server with the namespace that the overlays name."""
    kube.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    return kube


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_takes_every_object_of_a_kind_that_it_knows(application: Kube, overlay: str) -> None:
    taken = 0
    unknown = UNKNOWN | ({"Deployment"} if overlay == "native-sidecar" else set())  # no native sidecars before 1.28
    for manifest in render(overlay):
        if manifest["kind"] in unknown:
            continue
        made = application.request("POST", f"{COLLECTIONS[manifest['kind']]}?dryRun=All", manifest)
        assert made["metadata"]["name"] == manifest["metadata"]["name"]
        taken += 1
    assert taken


@pytest.mark.parametrize("overlay", ["classic-sidecar", "standalone", "complete"])
def test_the_server_keeps_the_whole_deployment(application: Kube, overlay: str) -> None:
    """A field that the server did not know would be dropped without a word (1.20 knows no native sidecar)."""
    (manifest,) = [one for one in render(overlay) if one["kind"] == "Deployment"]
    made = application.request("POST", f"{COLLECTIONS['Deployment']}?dryRun=All", manifest)
    assert not _lost(manifest["spec"], made["spec"])


def _lost(said: Any, kept: Any, path: str = "spec") -> list[str]:
    """The paths of what was said and is not there any more."""
    if isinstance(said, dict):
        inside = kept if isinstance(kept, dict) else {}
        return [lost for key, value in said.items() for lost in _lost(value, inside.get(key), f"{path}.{key}")]
    if isinstance(said, list):
        if not isinstance(kept, list) or len(kept) != len(said):
            return [path]
        pairs = enumerate(zip(said, kept, strict=True))
        return [lost for number, (one, other) in pairs for lost in _lost(one, other, f"{path}[{number}]")]
    return [] if said == kept else [path]


@pytest.fixture(scope="module")
def audited(application: Kube) -> Iterator[Kube]:
    """The API server with the account and the rights of the audit really made."""
    made = []
    for manifest in render("complete"):
        if manifest["kind"] in {"ServiceAccount", "ClusterRole", "ClusterRoleBinding"}:
            collection = COLLECTIONS[manifest["kind"]]
            application.ensure(collection, manifest)
            made.append(f"{collection}/{manifest['metadata']['name']}")
    yield application
    for path in made:
        application.request("DELETE", path)


def allowed(kube: Kube, verb: str, resource: str, group: str = "", namespace: str = "") -> bool:
    """What `kubectl auth can-i VERB RESOURCE --as ACCOUNT` says."""
    attributes = {"verb": verb, "resource": resource, "group": group, "namespace": namespace}
    review: Json = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": ACCOUNT, "groups": ["system:serviceaccounts"], "resourceAttributes": attributes},
    }
    answer = kube.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


@pytest.mark.parametrize("resource", ["pods", "persistentvolumeclaims"])
@pytest.mark.parametrize("namespace", ["", "application", "kube-system"])
def test_the_audit_may_list_what_it_reads(audited: Kube, resource: str, namespace: str) -> None:
    assert allowed(audited, "list", resource, namespace=namespace)


@pytest.mark.parametrize("verb", ["get", "watch", "create", "update", "patch", "delete", "deletecollection"])
@pytest.mark.parametrize("resource", ["pods", "persistentvolumeclaims"])
def test_the_audit_may_do_nothing_else_with_it(audited: Kube, verb: str, resource: str) -> None:
    assert not allowed(audited, verb, resource, namespace=NAMESPACE)


@pytest.mark.parametrize(
    "resource, group",
    [
        ("secrets", ""),
        ("configmaps", ""),
        ("nodes", ""),
        ("pods/exec", ""),
        ("deployments", "apps"),
        ("leases", "coordination.k8s.io"),
    ],
)
def test_the_audit_may_list_nothing_else(audited: Kube, resource: str, group: str) -> None:
    assert not allowed(audited, "list", resource, group)


def test_a_token_of_the_account_reads_the_pods_and_no_secret(audited: Kube) -> None:
    token = audited.user("maintenance-agent", namespace=NAMESPACE)
    assert audited.request("GET", "/api/v1/pods?limit=1", token=token)["kind"] == "PodList"
    with pytest.raises(KubeError) as refused:
        audited.request("GET", "/api/v1/secrets?limit=1", token=token)
    assert refused.value.code == 403, json.dumps(str(refused.value))
