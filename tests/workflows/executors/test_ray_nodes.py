"""Two Ray nodes on one machine: one dies in the middle and nothing is lost or written twice; each has a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetpp import commit
from unetpp.segment import pending
from unetpp_workflows.executors.local import run_local

DRIVER = """
import json, sys, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from unetpp.segment import SegmentJob
from unetpp_workflows.executors.ray import run_ray

job = SegmentJob.load(Path(sys.argv[1]))
size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
second = cluster.add_node(**size)
cluster.wait_for_nodes()
[raylet] = second.all_processes["raylet"]
commits, killed = [], []

def made_there():
    workers = {str(child.pid) for child in psutil.Process(raylet.process.pid).children(recursive=True)}
    return workers & {path.stem.rsplit("-", 1)[1] for path in (job.out / "commits/journal").glob("*.jsonl")}

def on_commit(_, record):
    commits.append(record.shard)
    if not killed and len(commits) >= 8 and made_there():
        cluster.remove_node(second, allow_graceful=False)
        killed.append(len(commits))

ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
(outcome,) = run_ray([job], workers=2, on_commit=on_commit)
waited = time.monotonic()
while (alive := sum(node["Alive"] for node in ray.nodes())) > 1 and time.monotonic() < waited + 120:
    time.sleep(1)  # Ray takes a node for dead after a while
ray.shutdown()
cluster.shutdown()
print(json.dumps([outcome.done, outcome.failed, len(commits), killed, alive]))
"""
GPUS = """
import json, os, sys, threading, time
from dataclasses import replace
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from unetpp.segment import SegmentJob
from unetpp_workflows.executors import ray as executor

class Witness(executor.ShardActor):  # what Ray gave it, and how many calls it had at once
    def __init__(self, *values):
        super().__init__(*values)
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def run(self, jobs, attempt):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        results = super().run(jobs, attempt)
        with self.lock:
            self.now -= 1
        gpus = ray.get_gpu_ids()
        found = {"most": self.most, "gpus": gpus, "cuda": os.environ["CUDA_VISIBLE_DEVICES"]}
        found["node"] = ray.get_runtime_context().get_node_id()
        (Path(jobs[0][0]).parent / f"{os.getpid()}.json").write_text(json.dumps(found))
        return results

executor.ShardActor = Witness
job = SegmentJob.load(Path(sys.argv[1]))
job = replace(job, engine=replace(job.engine, device="cuda"))  # what the driver asks GPUs for; workers load the job
cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=8, num_gpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
cluster.wait_for_nodes()
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
(outcome,) = executor.run_ray([job], workers=2)
ray.shutdown()
cluster.shutdown()
print(json.dumps([outcome.done, outcome.failed]))
"""
GROWING = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from unetpp.errors import EngineError
from unetpp.package import bundled_package
from unetpp_workflows.config import RunConfig
from unetpp_workflows.executors.session import gpus_there, ray_session
from unetpp_workflows.pipeline import segment

image, out = sys.argv[1:]
small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **small})

def run(engine, output):
    config = RunConfig.model_validate({
        "tracking": {"enabled": False}, "engine": {"name": engine},
        "executor": {"kind": "ray", "address": cluster.address, "workers": 2},
    })
    try:
        done = segment([image], bundled_package("nuclei"), output, config=config)
        return [done.exit_code, *(found.record.engine["name"] for found in done.images)]
    except EngineError as error:
        return str(error)

found = {"auto": run("auto", out + "/auto")}
answers = []
waits = threading.Thread(target=lambda: answers.append(run("triton", out + "/triton")))
waits.start()
waits.join(20)
found["waited"] = waits.is_alive()
cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 * 2**20)
waits.join(300)
found["triton"] = answers
with ray_session(cluster.address, cpus=1):
    found["gpus"] = gpus_there()
found["native"] = run("native", out + "/native")
cluster.shutdown()
print(json.dumps(found))
"""
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_node_that_vanishes_loses_and_doubles_nothing(prepare, hashes) -> None:  # type: ignore[no-untyped-def]
    options = {"engine": "torch", "core": 32, "shard": 32}
    expected, job = prepare("expected", **options), prepare("nodes", **options)
    run_local([expected])
    for _ in range(3):  # Ray gives its processes 30 s to start, which a busy machine may not
        command = [sys.executable, "-c", DRIVER, str(job.out)]
        driver = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | QUIET)
        if "timed out during startup" not in driver.stderr:
            break
    assert driver.returncode == 0, driver.stderr[-3000:]
    done, failed, commits, killed, alive = json.loads(driver.stdout.strip().splitlines()[-1])
    shards = len(job.plan.shards())
    assert (done, failed, commits, alive) == (shards, {}, shards, 1) and len(killed) == 1 and killed[0] < shards
    assert pending(job) == [] and commit.verify(job.store, job.key) == {}
    found = commit.audit(job.store, job.key)
    assert found.once + len(found.unwitnessed) == shards and (found.twice, found.lost) == ({}, {})
    assert len(list((job.out / "commits/journal").glob("*.jsonl"))) >= 2
    assert hashes(job) == hashes(expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_node_has_one_worker_with_its_gpu_and_cores_to_read_beside(prepare, hashes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The GPUs are Ray's count alone: what a worker computes with here is the CPU."""
    options = {"engine": "torch", "core": 32, "shard": 32}
    expected, job = prepare("expected", **options), prepare("gpus", **options)
    run_local([expected])
    script = tmp_path / "driver.py"
    script.write_text(GPUS)
    for _ in range(3):
        command = [sys.executable, script, str(job.out)]
        driver = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | QUIET)
        if "timed out during startup" not in driver.stderr:
            break
    assert driver.returncode == 0, driver.stderr[-3000:]
    done, failed = json.loads(driver.stdout.strip().splitlines()[-1])
    assert (done, failed) == (len(job.plan.shards()), {}) and hashes(job) == hashes(expected)
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(seen) == len({worker["node"] for worker in seen}) == 2
    assert all(worker["gpus"] == [0] and worker["cuda"] == "0" and worker["most"] == 4 for worker in seen)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_engine_of_gpus_is_chosen_where_they_are(tmp_path: Path) -> None:
    """A head has none. The GPU is Ray's count alone: that machine says that the engine is not for it."""
    image = tmp_path / "image.png"
    Image.fromarray(np.full((200, 300, 3), 200, np.uint8)).save(image)
    (tmp_path / "driver.py").write_text(GROWING)
    for _ in range(3):
        command = [sys.executable, tmp_path / "driver.py", image, tmp_path / "out"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | QUIET)
        if "timed out during startup" not in driver.stderr:
            break
    assert driver.returncode == 0, driver.stderr[-3000:]
    found = json.loads(driver.stdout.strip().splitlines()[-1])
    assert found["auto"][0] == found["native"][0] == 0 and found["native"][1] == "native"
    assert found["waited"], "it waits for a machine with a GPU, and asks no other"
    assert "fused kernels do not run here" in found["triton"][0] and found["gpus"] == 1
    assert "the Ray cluster has no GPU for the engine triton: waiting for one" in driver.stderr
