"""A Ray cluster of two nodes on this machine: a training outlives one that is killed, and says what ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unetpp.errors import EngineError
from unetpp_workflows.recipe import load_recipe
from unetpp_workflows.training_data import prepared_store
from unetpp_workflows.training_job import RECIPE, TrainingJob, work

SETS = [
    "drawn.slides=2", "data.validation=['drawn_1']", "network.filters=[4, 8]", "train.patch=32", "train.batch=4",
    "train.steps=40", "train.validate_every=8", "train.precision='fp32'",
]  # fmt: skip


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that works, and one more node; each with one CPU."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    store = 100 * 2**20
    head = {"num_cpus": 1, "object_store_memory": store, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.second = nodes.add_node(num_cpus=1, object_store_memory=store)
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def begun(out: Path, *sets: str) -> TrainingJob:
    recipe = load_recipe("smoke", [*SETS, *sets])
    store = prepared_store(recipe, None, out)
    (out / RECIPE).write_text(recipe.model_dump_json())
    return TrainingJob(out, store, "cpu")


@pytest.mark.slow
def test_what_ended_a_training_is_said(cluster: Any, tmp_path: Path) -> None:
    from unetpp_workflows.training_ray import train_on_ray

    job = begun(tmp_path / "out", "train.rate=1e30", "train.warmup=0")
    with pytest.raises(EngineError, match=r"training on Ray failed: step \d+: the loss is .*; give a"):
        train_on_ray(job, workers=2, failures=0)


@pytest.mark.slow
def test_an_error_that_comes_again_ends_a_training_after_three_tries(cluster: Any, tmp_path: Path) -> None:
    from unetpp_workflows.training_ray import train_on_ray

    job = begun(tmp_path / "out", "train.rate=1e30", "train.warmup=0")
    with pytest.raises(EngineError, match=r"training on Ray failed: step \d+: the loss is .*; give a"):
        train_on_ray(job, workers=2, failures=20)
    noted = [json.loads(file.read_text()) for file in job.output.glob("failure.*.json")]
    assert max(found["times"] for found in noted) == 3 and all("the loss is" in found["error"] for found in noted)


@pytest.mark.slow
def test_a_killed_node_costs_no_training(cluster: Any, tmp_path: Path) -> None:
    from unetpp_workflows.training_ray import train_on_ray

    job = begun(tmp_path / "out")
    seen: list[int] = []

    def on_entry(entry: dict[str, Any]) -> None:
        if "step" not in entry:
            return
        seen.append(entry["step"])
        if entry["step"] == 20 and cluster.second is not None:
            cluster.remove_node(cluster.second, allow_graceful=False)
            cluster.second = None

    train_on_ray(job, workers=2, least=1, on_entry=on_entry)
    assert cluster.second is None and max(seen) == 40
    result = work(replace(job, seconds=0.0))
    assert result.finished and [epoch.step for epoch in result.history] == [8, 16, 24, 32, 40]
    assert result.history[-1].loss < result.history[0].loss
