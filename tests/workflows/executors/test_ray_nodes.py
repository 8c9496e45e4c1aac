"""Two Ray nodes on one machine, one of which dies in the middle: nothing is lost and nothing written twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

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
