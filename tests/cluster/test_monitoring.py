"""Dashboard and alerts name only metrics that are exported: ours by a real run, Ray's by Ray."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.files import CLUSTER
from unetpp_workflows.config import RunConfig, load_config
from unetpp_workflows.metrics import exported
from unetpp_workflows.pipeline import segment

FOLDER = CLUSTER / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in ALERTS["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.fixture(scope="module")
def samples(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """What a real run of two images, one of them bad, leaves in its metrics file: name -> labels -> value."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("metrics")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    options = {"metrics.file": folder / "unetpp.prom", "tiling.core": 64, "tiling.shard": 64, "engine.name": "torch"}
    config = load_config(options={**options, "tracking.enabled": False, "metrics.every": 36})
    inputs = [folder / "good.png", folder / "bad.png"]
    assert segment(inputs, tiny_package, folder / "out", config=config).exit_code == 1
    return read((folder / "unetpp.prom").read_text())


def read(text: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "output"]
            found.setdefault(sample.name, {})[",".join(labels)] = sample.value
    return found


def test_a_run_counts_what_it_did(samples: dict[str, dict[str, float]]) -> None:
    assert samples["unetpp_shards_done_total"][""] == 6  # 96 x 160 in shards of 64 x 64
    assert samples["unetpp_pixels_total"][""] == 96 * 160
    assert samples["unetpp_shard_retries_total"][""] == samples["unetpp_shards_failed_total"][""] == 0
    assert samples["unetpp_shards_waiting"][""] == samples["unetpp_queue_oldest_timestamp_seconds"][""] == 0
    assert samples["unetpp_images_total"] == {"done": 1, "failed": 1}
    assert samples["unetpp_run_exit_code"][""] == 1
    assert all(samples["unetpp_stage_seconds_total"][stage] > 0 for stage in ("read", "compute", "write"))
    assert samples["unetpp_run_every_seconds"][""] == 36 * 3600
    began, ended = (samples[f"unetpp_run_{what}_timestamp_seconds"][""] for what in ("start", "finish"))
    assert began <= samples["unetpp_last_commit_timestamp_seconds"][""] <= ended <= time.time()
    assert 0 < samples["unetpp_device_busy_ratio"]["cpu"] <= 2


def test_every_name_of_ours_is_exported_and_shown(samples: dict[str, dict[str, float]]) -> None:
    named = {name for text in expressions() for name in re.findall(r"\bunetpp_\w+", text)}
    assert named <= set(samples), named - set(samples)
    shown = {name for name in samples if not name.endswith("_created")}
    assert shown <= named, shown - named


def test_every_name_of_ray_is_one_that_ray_has() -> None:
    import ray.dashboard

    sources = [*Path(ray.dashboard.__file__).parent.rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    named = {name for part in expressions() for name in re.findall(r"\bray_(\w+)", part)}
    assert len(named) == 4
    assert all(re.search(rf'"{name}"|ray_{name}\{{', text) for name in named), named


def test_runs_into_different_folders_are_told_apart() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert ("unetpp_" in target["expr"]) == ("{{output}}" in target["legendFormat"]), panel["title"]
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        assert "$labels.output" in rule["annotations"]["summary"], rule["alert"]


def test_metrics_are_served_on_this_machine_while_a_run_lasts(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = load_config(options={"metrics.port": port}).metrics
    with exported(config, tmp_path) as metrics:
        metrics.queued(5, "cuda", 2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            found = read(answer.read().decode())
        assert found["unetpp_shards_waiting"][""] == 5 and found["unetpp_run_exit_code"][""] == -1
        with pytest.raises(Exception, match="another port"), exported(config, tmp_path):
            pass
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_metrics_change_no_result() -> None:
    assert load_config(options={"metrics.port": 1234}).result_hash() == RunConfig().result_hash()


def test_pods_are_scraped_at_ports_that_they_have() -> None:
    (job,) = yaml.safe_load((FOLDER / "scrape-kubernetes.yml").read_text())["scrape_configs"]
    ports = next(rule["regex"] for rule in job["relabel_configs"] if rule["source_labels"][0].endswith("port_name"))
    cluster = (CLUSTER / "kuberay" / "base" / "raycluster.yaml").read_text()
    assert all(f"name: {name}, containerPort" in cluster for name in ports.split("|"))


def test_promtool_takes_the_rules_and_they_fire_when_they_should() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    for command in (
        ["check", "rules", "alerts.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        ran = subprocess.run(
            ["promtool", *command], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    tested = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())
    names = {case["alertname"] for test in tested["tests"] for case in test["alert_rule_test"]}
    assert {"UnetppStuck", "UnetppRunFailed", "UnetppManyRetries"} <= names
