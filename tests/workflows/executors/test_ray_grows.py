"""A cluster that has no GPU until one is asked for: the engine is chosen on a machine that has one.

The GPUs are Ray's count alone, on a real autoscaler that starts real nodes of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import json, sys
import ray
from unetpp.errors import EngineError
from unetpp.package import bundled_package
from unetpp_workflows import preparing
from unetpp_workflows.config import RunConfig
from unetpp_workflows.executors.session import gpus_there, grows, ray_session
from unetpp_workflows.pipeline import segment

def config(engine):
    return RunConfig.model_validate({
        "tracking": {"enabled": False}, "engine": {"name": engine},
        "executor": {"kind": "ray", "address": sys.argv[1], "workers": 2},
    })

found = {}
with ray_session(sys.argv[1], cpus=1):
    found["before"] = [gpus_there(), grows()]
done = segment([sys.argv[2]], bundled_package("nuclei"), sys.argv[3], config=config("native"))
found["native"] = [done.exit_code, done.images[0].status]
with ray_session(sys.argv[1], cpus=1):
    found["still"] = gpus_there()
try:
    segment([sys.argv[2]], bundled_package("nuclei"), sys.argv[4], config=config("triton"))
except EngineError as error:
    found["triton"] = str(error)
with ray_session(sys.argv[1], cpus=1):
    found["after"] = gpus_there()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_gpu_is_asked_for(tmp_path: Path, blots) -> None:  # type: ignore[no-untyped-def]
    nodes = {
        "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    cluster = {
        "cluster_name": "growing", "max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "disable_node_updaters": True}, "available_node_types": nodes,
        "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    (tmp_path / "cluster.json").write_text(json.dumps(cluster))
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = os.environ | quiet | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=6399", "--num-cpus=2",
           f"--autoscaling-config={tmp_path / 'cluster.json'}", "--include-dashboard=false",
           f"--object-store-memory={100 * 2**20}"]  # fmt: skip
    head = subprocess.Popen(ray, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        folders = [str(tmp_path / name) for name in ("native", "triton")]
        command = [sys.executable, "-c", DRIVER, "127.0.0.1:6399", str(blots("a.png")), *folders]
        driver = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    finally:
        head.terminate()
        head.wait(60)
    assert driver.returncode == 0, driver.stderr[-3000:]
    found = json.loads(driver.stdout.strip().splitlines()[-1])
    assert found["before"] == [0.0, True] and found["native"] == [0, "done"] and found["still"] == 0
    assert found["after"] >= 1 and "triton" in found["triton"]
    assert "has no GPU for the engine triton: waiting for one" in driver.stderr
