"""Renders the few features of kustomize that `cluster/kuberay` uses: resources, namespace and JSON patches.

Anything else in a kustomization is refused, so that a test never passes on what it did not look at.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "patches"}


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the resources of a kustomization after its patches."""
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    unknown = settings.keys() - _KNOWN
    assert not unknown, f"{folder}: teach the test {unknown}"
    resources: list[dict[str, Any]] = []
    for name in settings["resources"]:
        path = folder / name
        resources += render(path) if path.is_dir() else load(path)
    for resource in resources:
        assert "namespace" not in settings or resource["metadata"].get("namespace") in (None, settings["namespace"])
    for patch in settings.get("patches", []):
        matched = [resource for resource in resources if _matches(resource, patch["target"])]
        assert matched, f"{folder}: no resource for {patch['target']}"
        for resource in matched:
            operations = yaml.safe_load(patch["patch"])
            resource.update(jsonpatch.apply_patch(resource, operations))
    return resources


def load(file: Path) -> list[dict[str, Any]]:
    """Return the documents of a file, without shared parts, so that a patch changes one place."""
    return [copy.deepcopy(_unshared(document)) for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _matches(resource: dict[str, Any], target: dict[str, str]) -> bool:
    return resource["kind"] == target["kind"] and resource["metadata"]["name"] == target["name"]
