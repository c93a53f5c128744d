"""The Kubernetes manifests: they render, they are what two versions of Kubernetes take, and they keep their promises."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.cli.arguments import parse
from agent.jobs import KINDS
from agent.settings import load
from tests.kustomize import Manifest, kustomize
from tests.manifests import FOLDER, OVERLAYS, SIDECARS, STANDALONE, agent, containers, deployment, files, pod, render

VERSIONS: Final = ("1.29", "1.34")  # the oldest with native sidecars by default, and a recent one
REPOSITORY: Final = FOLDER.parents[1]
DASHBOARDS: Final = REPOSITORY / "dashboards"


# --- what Kubernetes takes


@pytest.mark.parametrize("folder", [*(FOLDER / "overlays").iterdir(), DASHBOARDS], ids=lambda folder: folder.name)
def test_the_tests_read_kustomizations_as_kubectl_does(folder: Path) -> None:
    """The other tests read them with a few lines of their own; where kubectl is installed, the two say the same."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", folder], check=True, capture_output=True, text=True, timeout=60)
    assert _sorted(yaml.safe_load_all(done.stdout)) == _sorted(kustomize(folder))


def _sorted(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Without an order: that of objects, of containers and of volumes means nothing."""
    found = sorted(manifests, key=lambda one: (one["kind"], one["metadata"]["name"]))
    for manifest in found:
        pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for name in {"containers", "initContainers", "volumes"} & set(pod):
            pod[name] = sorted(pod[name], key=lambda one: str(one["name"]))
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_of_every_overlay_is_valid(tmp_path: Path, version: str) -> None:
    if find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed")
    paths = []
    for overlay in OVERLAYS:
        for number, manifest in enumerate(render(overlay)):
            if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
                continue  # kinds of the Prometheus operator, which no version of Kubernetes knows
            path = tmp_path / f"{overlay}-{number}.yaml"
            path.write_text(yaml.safe_dump(manifest))
            paths.append(str(path))
    paths.append(str(FOLDER / "secret.example.yaml"))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "--no-warn", "-k", version, *paths]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_file_is_used(path: Path) -> None:
    """A file that no kustomization names would rot."""
    if path.name == "kustomization.yaml" or path == FOLDER / "secret.example.yaml":
        return
    kustomization = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
    named = [*kustomization.get("resources", []), *(patch.get("path") for patch in kustomization.get("patches", []))]
    assert path.name in named


def test_every_component_is_used() -> None:
    used: set[str] = set()
    for path in FOLDER.glob("overlays/*/kustomization.yaml"):
        used |= {Path(name).name for name in yaml.safe_load(path.read_text()).get("components", [])}
    assert used == {path.name for path in (FOLDER / "components").iterdir()}


# --- what the manifests promise


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pods_meet_the_restricted_standard(overlay: str) -> None:
    """Pod Security Standards, "restricted": the fields that it asks for, container by container."""
    spec = pod(overlay)
    around = spec.get("securityContext", {})
    assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert all({"configMap", "secret", "persistentVolumeClaim"} & set(volume) for volume in spec["volumes"])
    for container in containers(overlay):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"]["drop"] == ["ALL"]
        assert own.get("runAsNonRoot", around.get("runAsNonRoot")) is True
        assert own.get("runAsUser", around.get("runAsUser")) != 0
        assert own.get("seccompProfile", around.get("seccompProfile")) == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_agent_can_write_nowhere_and_is_user_10001(overlay: str) -> None:
    container, around = agent(overlay), pod(overlay).get("securityContext", {})
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {**around, **container["securityContext"]}["runAsUser"] == 10001
    assert all(mount["readOnly"] for mount in container["volumeMounts"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_mount_lies_in_another(overlay: str) -> None:
    """The runtime could not make the inner directory in a volume that is read-only."""
    paths = [mount["mountPath"] for mount in agent(overlay)["volumeMounts"]]
    assert not [(one, other) for one in paths for other in paths if other.startswith(f"{one}/")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_agent_asks_for_resources_and_has_a_limit_of_memory(overlay: str) -> None:
    resources = agent(overlay)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}  # a limit of CPU would only make runs slower


@pytest.mark.parametrize("overlay", SIDECARS)
def test_beside_an_application_only_the_event_loop_is_probed(overlay: str) -> None:
    container = agent(overlay)
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert not {"readinessProbe", "startupProbe"} & set(container)


@pytest.mark.parametrize("overlay", STANDALONE)
def test_alone_it_has_all_three_probes(overlay: str) -> None:
    container = agent(overlay)
    probes = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def test_the_native_sidecar_is_an_init_container_that_goes_on() -> None:
    (container,) = pod("native-sidecar")["initContainers"]
    assert container["name"] == "maintenance-agent"
    assert container["restartPolicy"] == "Always"


def test_the_two_sidecars_are_the_same_container() -> None:
    native = agent("native-sidecar")
    assert {key: value for key, value in native.items() if key != "restartPolicy"} == agent("classic-sidecar")


@pytest.mark.parametrize("overlay", SIDECARS)
def test_the_application_is_what_it_was(overlay: str) -> None:
    """The patch adds a container and volumes, and touches nothing else."""
    given = yaml.safe_load((FOLDER / "overlays" / overlay / "application.yaml").read_text())
    spec, before = pod(overlay), given["spec"]["template"]["spec"]
    assert [one for one in containers(overlay) if one["name"] != "maintenance-agent"] == before["containers"]
    assert [one for one in spec["volumes"] if not one["name"].startswith("maintenance-agent")] == before["volumes"]
    changed = {"containers", "initContainers", "volumes"}
    assert {key: spec[key] for key in spec if key not in changed} == {
        key: before[key] for key in before if key not in changed
    }


@pytest.mark.parametrize("overlay", STANDALONE)
def test_two_replicas_end_within_their_grace(overlay: str) -> None:
    settings = load(KINDS, path=None, environ={})
    assert deployment(overlay)["spec"]["replicas"] == 2
    assert pod(overlay)["terminationGracePeriodSeconds"] > settings.shutdown.budget.total_seconds()


def test_only_the_audit_gets_a_token_of_the_cluster() -> None:
    tokens = {overlay: pod(overlay).get("automountServiceAccountToken") for overlay in OVERLAYS}
    assert {overlay for overlay, token in tokens.items() if token is not False} == {"complete"}


@pytest.mark.parametrize("overlay", SIDECARS)
def test_no_network_policy_closes_the_application(overlay: str) -> None:
    assert "NetworkPolicy" not in {manifest["kind"] for manifest in render(overlay)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_that_stand_in_two_places_are_the_same(overlay: str) -> None:
    """Labels and ports that selectors, services and monitors look for are there."""
    labels = deployment(overlay)["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in agent(overlay)["ports"]}
    assert "maintenance-agent" in labels
    for manifest in render(overlay):
        spec: dict[str, Any] = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                assert spec["selector"].items() <= labels.items()
                assert {port["targetPort"] for port in spec["ports"]} <= ports
            case "PodDisruptionBudget":
                assert spec["selector"]["matchLabels"].items() <= labels.items()
            case "NetworkPolicy":
                assert spec["podSelector"]["matchLabels"].items() <= labels.items()
            case "PodMonitor":
                assert {one["key"] for one in spec["selector"]["matchExpressions"]} <= set(labels)
                assert {one["port"] for one in spec["podMetricsEndpoints"]} <= ports
            case _:
                pass


# --- the agent in it


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_agent_understands_its_arguments(overlay: str) -> None:
    given = parse(agent(overlay)["args"])
    assert given.command == "serve"
    mounts = {mount["mountPath"] for mount in agent(overlay)["volumeMounts"]}
    assert str(given.config.parent) in mounts
    assert given.config.name == "maintenance.yaml"


def test_its_configuration_is_good_and_only_looks(tmp_path: Path) -> None:
    secret = tmp_path / "uri"
    secret.write_text(yaml.safe_load((FOLDER / "secret.example.yaml").read_text())["stringData"]["uri"])
    path = FOLDER / "base" / "maintenance.yaml"
    environ = {"MAINTENANCE_MONGODB__URI_FILE": str(secret)}
    settings = load(KINDS, path=path, environ=environ)
    assert all(job.dry_run for job in settings.jobs.values())
    mounted = "/etc/maintenance-agent-secret"
    assert str(settings.http.tokens_file) == f"{mounted}/tokens"
    assert f"uri_file: {mounted}/uri\n" in path.read_text()
    for overlay in OVERLAYS:
        mounts = {mount["mountPath"] for mount in agent(overlay)["volumeMounts"]}
        assert {mounted, "/data"} <= mounts


def test_the_image_has_the_version_of_the_project() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    version = next(line.split('"')[1] for line in project.splitlines() if line.startswith("version = "))
    assert {agent(overlay)["image"] for overlay in OVERLAYS} == {f"maintenance-agent:{version}"}
    assert f"ARG VERSION={version}\n" in (REPOSITORY / "Dockerfile").read_text()
