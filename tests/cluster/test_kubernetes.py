"""Every Kubernetes file obeys the real schemas, and what the manifests promise in words is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.cluster.files import CLUSTER
from tests.cluster.kustomize import load, render

KUBERAY = CLUSTER / "kuberay"
FILES = sorted(file for part in ("jobs", "queue", "nightly") for file in (KUBERAY / part).glob("*.yaml"))
OVERLAYS = ["base", *(f"overlays/{name}" for name in ("small", "gpu", "spot"))]
KUBERNETES = "1.31"


def check(resource: dict[str, Any], schemas: dict[str, dict[str, Any]]) -> None:
    group, _, version = resource["apiVersion"].rpartition("/")
    if group == "ray.io":
        jsonschema.Draft202012Validator(schemas[f"{resource['kind']}/{version}"]).validate(resource)
        for pod in pods(resource):
            kubernetes_validate.validate(
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}, KUBERNETES, strict=True
            )
    elif not group.startswith("kueue."):  # their schemas lie nowhere that a test can read: see test_queue
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def pods(value: Any) -> list[dict[str, Any]]:
    """Return every pod specification inside a resource."""
    if isinstance(value, list):
        return [pod for item in value for pod in pods(item)]
    if not isinstance(value, dict):
        return []
    if "containers" in value:
        return [value]
    return [pod for item in value.values() for pod in pods(item)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rendered_overlay_obeys_the_schemas(overlay: str, kuberay_schemas: dict[str, dict[str, Any]]) -> None:
    resources = render(KUBERAY / overlay)
    for resource in resources:
        check(resource, kuberay_schemas)
    assert {resource["kind"] for resource in resources} >= {"RayCluster", "NetworkPolicy", "Role", "Namespace"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_job_obeys_the_schemas(file: Path, kuberay_schemas: dict[str, dict[str, Any]]) -> None:
    for resource in load(file):
        check(resource, kuberay_schemas)


def test_the_check_finds_faults(kuberay_schemas: dict[str, dict[str, Any]]) -> None:
    cluster = next(item for item in render(KUBERAY / "base") if item["kind"] == "RayCluster")
    cluster["spec"]["headGroupSpec"]["tempalte"] = {}
    with pytest.raises(jsonschema.ValidationError, match="tempalte"):
        check(cluster, kuberay_schemas)
    del cluster["spec"]["headGroupSpec"]["tempalte"]
    cluster["spec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="none"):
        check(cluster, kuberay_schemas)
    policy = next(item for item in render(KUBERAY / "base") if item["kind"] == "NetworkPolicy")
    policy["spec"]["podSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="podSelectors"):
        check(policy, kuberay_schemas)


def every_pod() -> list[tuple[str, dict[str, Any]]]:
    found = [(overlay, pod) for overlay in OVERLAYS for pod in pods(render(KUBERAY / overlay))]
    return found + [(file.stem, pod) for file in FILES for resource in load(file) for pod in pods(resource)]


def test_no_container_runs_as_root_or_gains_rights() -> None:
    for where, pod in every_pod():
        assert pod["securityContext"]["runAsUser"] > 0, where
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True, where
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"], where


def test_every_ray_cluster_asks_for_the_token() -> None:
    clusters = [item["spec"] for overlay in OVERLAYS for item in render(KUBERAY / overlay) if "rayVersion" in str(item)]
    jobs = [item["spec"] for file in FILES for item in load(file) if item["kind"] == "RayJob"]
    clusters += [job["rayClusterSpec"] for job in jobs if "rayClusterSpec" in job]
    clusters = [cluster for cluster in clusters if "headGroupSpec" in cluster]
    assert len(clusters) == len(OVERLAYS) + 1
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}


def test_jobs_find_the_standing_cluster() -> None:
    names = {item["metadata"]["name"] for item in render(KUBERAY / "base") if item["kind"] == "RayCluster"}
    jobs = [item["spec"] for file in FILES for item in load(file) if item["kind"] == "RayJob"]
    jobs += [item["spec"]["jobTemplate"] for file in FILES for item in load(file) if item["kind"] == "RayCronJob"]
    assert len(jobs) == 6
    for job in jobs:
        assert "rayClusterSpec" in job or job["clusterSelector"] == {"ray.io/cluster": "unetpp"}
    assert names == {"unetpp"}


def test_overlays_differ_in_what_they_say() -> None:
    def groups(overlay: str) -> dict[str, dict[str, Any]]:
        cluster = next(item for item in render(KUBERAY / overlay) if item["kind"] == "RayCluster")
        return {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}

    assert groups("overlays/small")["cpu"]["maxReplicas"] < groups("base")["cpu"]["maxReplicas"]
    assert set(groups("base")) == {"cpu"}
    gpu = groups("overlays/gpu")["gpu"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    spot = groups("overlays/spot")["gpu"]["template"]["spec"]
    assert "nodeSelector" in spot and "nodeSelector" not in gpu
    assert spot["terminationGracePeriodSeconds"] <= 30


def test_queue() -> None:
    """Kueue's names fit together: label -> local queue -> cluster queue -> flavour (no schema is at hand)."""
    objects = {item["kind"]: item for item in load(KUBERAY / "queue" / "queue.yaml")}
    (job,) = load(KUBERAY / "queue" / "segment.yaml")
    local = objects["LocalQueue"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert job["metadata"]["namespace"] == local["metadata"]["namespace"]
    assert local["spec"]["clusterQueue"] == objects["ClusterQueue"]["metadata"]["name"]
    (group,) = objects["ClusterQueue"]["spec"]["resourceGroups"]
    assert group["flavors"][0]["name"] == objects["ResourceFlavor"]["metadata"]["name"]
    assert [quota["name"] for quota in group["flavors"][0]["resources"]] == group["coveredResources"]
    assert job["spec"]["suspend"] is True
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
