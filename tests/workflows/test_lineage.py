"""From a mask to the data that trained its model, and from a model to its masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.workflows.test_gates import CARD, FACTS
from unetpp.package import load_package
from unetpp_workflows.cli import app
from unetpp_workflows.promotion import rollback
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import register_package
from unetpp_workflows.training_tracking import TrainingRun


def run(*command: object) -> Result:
    return CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})


def told(*command: object) -> dict[str, Any]:
    found = run("lineage", *command, "--json")
    assert found.exit_code == 0, found.output
    values: dict[str, Any] = json.loads(found.stdout)
    return values


@pytest.fixture
def trained(ink_variant: Callable[..., Path], tmp_path: Path, ready_home: Path) -> str:
    """Register a model with the run that trained it, and another version; return that run."""
    folder = ink_variant(tmp_path / "model", 112, CARD, training=FACTS, metrics={"iou": 1})
    data = [("ink", "ab" * 32, "training"), ("ink", "cd" * 32, "validation")]
    training = TrainingRun(tmp_path, "ink", params={}, data=data, system_metrics=False)
    training.close("FINISHED")
    register_package(folder, "ink", run_id=training.id, alias="champion")
    register_package(ink_variant(tmp_path / "other", 60), "ink")
    return training.id


def test_from_a_mask_to_the_training_data_and_back(
    trained: str,
    blots: Callable[..., Path],
    ink_store: Callable[..., Path],
    tmp_path: Path,
    known_speed: dict[str, Any],
) -> None:
    image, out = blots("a.png"), tmp_path / "out"
    assert run("segment", image, blots("b.png"), "-m", "models:/ink@champion", "-o", out).exit_code == 0
    assert run("evaluate", "models:/ink/1", "--data", ink_store(0, 20)).exit_code == 0
    rollback("ink", to="2")
    rollback("ink", to="1")
    found = told(out / "a/labels.ome.zarr")
    mask, model = found["mask"], found["model"]
    assert (mask["image"], mask["version"], mask["alias"]) == (str(image), "1", "champion")
    assert mask["digest"] == model["digest"] == load_package(tmp_path / "model").digest
    assert model["run"] == trained
    assert [(d["role"], d["digest"]) for d in model["datasets"]] == [
        ("training", "ab" * 18), ("validation", "cd" * 18)
    ]  # fmt: skip
    assert [e["split"] for e in model["evaluations"]] == ["test"] and model["evaluations"][0]["mean_iou"] == "1.0000"
    assert [d["outcome"] for d in model["decisions"]] == ["rolled back"]
    back = told("models:/ink@champion")["model"]["masks"]
    assert {m["output"] for m in back} == {str(out / "a"), str(out / "b")}
    assert mask["run"] in {m["run"] for m in back}
    assert told("models:/ink/2")["model"]["masks"] == []
    shown = run("lineage", out / "a/polygons.geojson").output
    assert f"run {trained}" in shown and "made by   ink version 1 (then @champion)" in shown
    assert "masks     2" in run("lineage", "models:/ink/1").output
    # Another model's result lies there now; the first one's run stays, and says so.
    assert run("segment", image, "-m", "models:/ink/2", "-o", out).exit_code == 0
    by_status = {m["status"]: m["output"] for m in told("models:/ink/1")["model"]["masks"]}
    assert by_status == {"replaced": str(out / "a"), "done": str(out / "b")}
    assert [m["status"] for m in told("models:/ink/2")["model"]["masks"]] == ["done"]
    wrong = run("lineage", tmp_path)
    assert wrong.exit_code == 2 and "no record.json there" in wrong.output


def test_a_file_that_is_not_there_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ImageRecord(name="a", status="done").write(tmp_path)
    for name in (tmp_path / "classes.tif", "classes.tif", "out/a"):
        found = run("lineage", name)
        assert found.exit_code == 2 and f"{name}: no such file or folder; give an image's folder" in found.output
    found = run("lineage", "nuclei-ful")
    assert found.exit_code == 2 and "bundled models are" in found.output


def test_a_record_says_enough_when_the_store_is_away(
    trained: str, blots: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("segment", blots("a.png"), "-m", "models:/ink@champion", "-o", tmp_path / "out")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    alone = run("lineage", tmp_path / "out/a", "--tracking-uri", "http://127.0.0.1:9")
    assert alone.exit_code == 0 and "made by   ink version 1" in alone.output and "no more is known" in alone.output
    assert run("lineage", "models:/ink/1", "--tracking-uri", "http://127.0.0.1:9").exit_code == 1
