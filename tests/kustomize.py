"""What `kubectl kustomize` makes of a folder, as far as this project's kustomizations go, so that no test needs kubectl.

Resources, components, generated ConfigMaps, a namespace, and patches (strategic merge and JSON patch). A key that is
not among these is an error rather than passed over; where kubectl is installed, a test holds the two together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

Manifest = dict[str, Any]

KEYS: Final = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "generatorOptions",
    "namespace",
    "patches",
}
CLUSTER_WIDE: Final = {"ClusterRole", "ClusterRoleBinding"}
# What tells the entries of a list apart where a patch is laid over it.
MERGED_BY: Final[Mapping[str, str]] = {"containers": "name", "initContainers": "name", "volumes": "name"}


def kustomize(folder: Path) -> list[Manifest]:
    """The objects that a kustomization says."""
    return _build(folder, [])


def _build(folder: Path, given: Sequence[Manifest]) -> list[Manifest]:
    """The objects of a kustomization, or ``given`` with those of a component."""
    told = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(told) <= KEYS, f"{folder}: the tests do not know {set(told) - KEYS}"
    made = [*given, *(one for name in told.get("resources", []) for one in _resource(folder / name))]
    options = told.get("generatorOptions", {})
    made += [_config_map(folder, one, options) for one in told.get("configMapGenerator", [])]
    for name in told.get("components", []):
        made = _build(folder / name, made)
    for patch in told.get("patches", []):
        _patch(folder, patch, made)
    if "namespace" in told:
        for manifest in made:
            _move(manifest, told["namespace"])
    return made


def _resource(path: Path) -> Iterator[Manifest]:
    if path.is_dir():
        yield from kustomize(path)
    else:
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def _config_map(folder: Path, told: Manifest, options: Manifest) -> Manifest:
    assert options["disableNameSuffixHash"]
    metadata = {key: copy.deepcopy(options[key]) for key in ("labels", "annotations") if key in options}
    data = {name: (folder / name).read_text(encoding="utf-8") for name in told["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": told["name"], **metadata}, "data": data}


def _move(manifest: Manifest, namespace: str) -> None:
    if manifest["kind"] not in CLUSTER_WIDE:
        manifest["metadata"]["namespace"] = namespace


# ------------------------------------------------------------------------------------------------------------- patches


def _patch(folder: Path, told: Manifest, made: Sequence[Manifest]) -> None:
    target = told["target"]
    chosen = [one for one in made if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])]
    assert chosen, f"{folder}: nothing is {target}"
    text = told["patch"] if "patch" in told else (folder / told["path"]).read_text(encoding="utf-8")
    patch = yaml.safe_load(text)
    for manifest in chosen:
        if isinstance(patch, list):
            for operation in patch:
                _operate(manifest, operation)
        else:
            _merge(manifest, {"spec": patch["spec"]})


def _operate(manifest: Any, operation: Manifest) -> None:
    """An operation of a JSON patch (RFC 6902)."""
    *parents, last = operation["path"].strip("/").split("/")
    for name in parents:
        manifest = manifest[int(name)] if isinstance(manifest, list) else manifest[name]
    if operation["op"] == "add" and last == "-":
        manifest.append(operation["value"])
    else:
        assert operation["op"] == "replace", operation
        assert last in manifest, operation
        manifest[last] = operation["value"]


def _merge(into: Manifest, patch: Mapping[str, Any]) -> None:
    """Lays a strategic merge patch over an object."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, list) and key in into:
            _merge_lists(into[key], value, MERGED_BY[key])
        else:
            into[key] = value


def _merge_lists(into: list[Any], patch: Sequence[Manifest], by: str) -> None:
    there = {one[by]: one for one in into}
    for entry in patch:
        if entry[by] in there:
            _merge(there[entry[by]], entry)
        else:
            into.append(entry)
