"""Render the kustomizations of deploy/ as `kubectl kustomize` does.

Supported are resources, a namespace, images by name and tag, generated ConfigMaps and JSON patches
(RFC 6902). Generated names lack their hash. Any other key of a kustomization is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]
KEYS = {
    "apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images", "patches",
}  # fmt: skip
CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Manifest]:
    """Render all manifests of a base or an overlay."""
    made = _read(folder / "kustomization.yaml")[0]
    if unknown := made.keys() - KEYS:
        raise ValueError(f"{folder.name}: {', '.join(sorted(unknown))} is not understood here")
    found = [one for name in made["resources"] for one in _resource(folder / name)]
    found += [_config_map(folder, one) for one in made.get("configMapGenerator", ())]
    for one in found:
        if "namespace" in made and one["kind"] not in CLUSTER_WIDE:
            one["metadata"]["namespace"] = made["namespace"]
        for image in made.get("images", ()):
            _tag(one, **image)
    for patch in made.get("patches", ()):
        found = [_patched(folder, one, **patch) for one in found]
    return found


def _read(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def _resource(path: Path) -> list[Manifest]:
    return render(path) if path.is_dir() else _read(path)


def _config_map(folder: Path, made: Manifest) -> Manifest:
    data = dict(_pairs(folder, **{key: made[key] for key in made.keys() - {"name"}}))
    meta = {"name": made["name"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def _pairs(folder: Path, envs: tuple[str, ...] = (), files: tuple[str, ...] = ()) -> Iterator[Any]:
    for name in envs:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        yield from (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name in files:
        yield name, (folder / name).read_text(encoding="utf-8")


def pods(manifest: Manifest) -> list[Manifest]:
    """Return the pod specification of a manifest in a list, which is empty if it has none."""
    match manifest["kind"]:
        case "Deployment":
            return [manifest["spec"]["template"]["spec"]]
        case "CronJob":
            return [manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
    return []


def _tag(manifest: Manifest, name: str, newTag: str) -> None:
    for pod in pods(manifest):
        for container in pod["containers"]:
            if container["image"] == name:
                container["image"] = f"{name}:{newTag}"


def _patched(folder: Path, manifest: Manifest, path: str, target: dict[str, str]) -> Manifest:
    if (manifest["kind"], manifest["metadata"]["name"]) != (target["kind"], target["name"]):
        return manifest
    patched: Manifest = jsonpatch.apply_patch(manifest, _read(folder / path)[0])
    return patched
