"""The Kubernetes manifests as kustomize renders them, for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.kustomize import Manifest, kustomize

FOLDER: Final = Path(__file__).parents[1] / "config" / "kubernetes"
OVERLAYS: Final = tuple(sorted(path.name for path in (FOLDER / "overlays").iterdir()))
SIDECARS: Final = ("classic-sidecar", "native-sidecar")
STANDALONE: Final = ("complete", "standalone")


def render(overlay: str) -> list[Manifest]:
    """The objects of an overlay."""
    return kustomize(FOLDER / "overlays" / overlay)


def deployment(overlay: str) -> Manifest:
    """The one Deployment of an overlay."""
    (found,) = [manifest for manifest in render(overlay) if manifest["kind"] == "Deployment"]
    return found


def pod(overlay: str) -> Manifest:
    """The specification of its Pods."""
    spec: Manifest = deployment(overlay)["spec"]["template"]["spec"]
    return spec


def containers(overlay: str) -> Iterator[Manifest]:
    """All containers of its Pods."""
    spec = pod(overlay)
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


def agent(overlay: str) -> Manifest:
    """The agent's container."""
    (found,) = [container for container in containers(overlay) if container["name"] == "maintenance-agent"]
    return found


def files() -> Iterator[Path]:
    """Every file of manifests, kustomizations and patches."""
    yield from sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "maintenance.yaml")
