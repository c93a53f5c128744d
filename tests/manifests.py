"""The Kubernetes manifests as `kubectl kustomize` renders them, for the tests."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

FOLDER: Final = Path(__file__).parents[1] / "config" / "kubernetes"
OVERLAYS: Final = tuple(sorted(path.name for path in (FOLDER / "overlays").iterdir()))
SIDECARS: Final = ("classic-sidecar", "native-sidecar")
STANDALONE: Final = ("complete", "standalone")

Manifest = dict[str, Any]


def render(overlay: str) -> list[Manifest]:
    """The objects of an overlay. Skips the test where there is no kubectl to render them."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: it renders the overlays")
    return list(yaml.safe_load_all(_rendered(kubectl, overlay)))


@functools.cache
def _rendered(kubectl: str, overlay: str) -> str:
    command = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
