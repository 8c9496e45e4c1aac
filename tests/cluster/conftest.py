"""Fixtures of the cluster tests: the files of `cluster/`, and the schemas that they must obey."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def kuberay_schemas() -> dict[str, dict[str, Any]]:
    """OpenAPI schema of every version of KubeRay's resources, by "kind/version", with unknown keys forbidden."""
    folder = Path(os.environ.get("UNETPP_SCHEMAS", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("UNETPP_SCHEMAS is not set to the folder of KubeRay's resource definitions")
    schemas = {}
    for file in sorted(folder.glob("ray.io_*.yaml.gz")):
        definition = yaml.load(gzip.decompress(file.read_bytes()), Loader=yaml.CSafeLoader)
        for version in definition["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            _close(schema)
            schemas[f"{definition['spec']['names']['kind']}/{version['name']}"] = schema
    return schemas


def _close(schema: dict[str, Any]) -> None:
    """Forbid unknown keys, as `kubectl` does with --validate=strict, and name integers-or-strings as JSON Schema does.

    Metadata is left open: the API server has its own schema for it.
    """
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for child in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        if isinstance(child, dict):
            _close(child)
