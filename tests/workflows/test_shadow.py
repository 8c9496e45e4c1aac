"""A shadow takes a stable share, changes nothing, agrees as counted by hand, and can stop a promotion."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.workflows.test_gates import CARD, FACTS
from unetpp_workflows import pipeline
from unetpp_workflows.cli import app
from unetpp_workflows.config import RunConfig
from unetpp_workflows.mlflow_store import init_store, store_uri
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import register_package
from unetpp_workflows.shadow import chosen, run_shadow


@pytest.fixture
def versions(ink_variant: Callable[..., Path], tmp_path: Path, ready_home: Path) -> None:
    """`ink` 1 is champion and misses smudges, 2 is challenger and finds them."""
    for threshold, alias in ((60, "champion"), (112, "challenger")):
        folder = ink_variant(tmp_path / f"p{threshold}", threshold, CARD, training=FACTS, metrics={"iou": 1})
        register_package(folder, "ink", alias=alias)


def draw(folder: Path, **smudges: int) -> Path:
    folder.mkdir()
    for name, count in smudges.items():
        pixels = np.full((50, 100, 3), 220, np.uint8)
        pixels[:2] = 20
        pixels.reshape(-1, 3)[1000 : 1000 + count] = 100
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def run(*command: object) -> Result:
    return CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})


def segment(inputs: Path, output: Path, *options: object) -> Result:
    shadow = ("--shadow", "models:/ink@challenger", "--shadow-share", 1, *options)
    return run("segment", inputs, "-m", "models:/ink@champion", "-o", output, *shadow)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in (folder / "labels.ome.zarr").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_share_is_stable_and_grows() -> None:
    names = [f"fingerprint {k}" for k in range(4000)]
    small, large = ({name for name in names if chosen(name, share)} for share in (0.1, 0.4))
    assert small < large and abs(len(small) - 400) < 60 and abs(len(large) - 1600) < 100
    assert all(chosen(name, 1) for name in names)


def test_agreement_is_recorded_and_can_stop_a_promotion(
    versions: None, ink_store: Callable[..., Path], tmp_path: Path, known_speed: dict[str, Any]
) -> None:
    inputs = draw(tmp_path / "in", clean=0, half=1000)
    run("segment", inputs, "-m", "models:/ink@champion", "-o", tmp_path / "alone")
    out = tmp_path / "out"
    first = segment(inputs, out)
    assert first.exit_code == 0, first.output
    assert (
        "shadow ink version 2: 2 image(s) compared, agreement 0.9000 of the pixels, least 0.8000 (half)" in first.output
    )
    assert contents(out / "half") == contents(tmp_path / "alone/half")  # the shadow changed nothing
    record = ImageRecord.read(out / "half")
    assert record is not None and record.shadow is not None
    assert record.shadow["agreement"] == 0.8 and record.shadow["px"] == 5000
    assert record.shadow["iou"] == {"paper": 3800 / 4800, "ink": 200 / 1200}
    metrics = init_store(store_uri()).get_run(record.tracking_run).data.metrics
    assert metrics["shadow.agreement"] == 0.8
    with (out / "summary.csv").open() as file:
        assert [row["shadow_agreement"] for row in csv.DictReader(file)] == ["1.0", "0.8"]
    assert "half" in run("status", out).output and run("status", out).exit_code == 0
    before = (out / "half/record.json").stat().st_mtime_ns
    again = segment(inputs, out)
    assert "agreement 0.9000" in again.output and (out / "half/record.json").stat().st_mtime_ns == before
    # The same image in a second run.
    assert "agreement 0.8000" in segment(inputs / "half.png", tmp_path / "other", "--set", "tiling.core=32").output
    gates = tmp_path / "gates.toml"
    store = ink_store(0, 20, 50, 100, 100, 300)
    command = ("promote", "ink", "--data", store, "--gates", gates, "--dry-run")
    gates.write_text("calibration = { ece = 1 }\nshadow = { agreement = 0.95, images = 3 }")
    refused = run(*command)
    assert refused.exit_code == 1 and "failed by 0.05" in refused.output and "failed by 1" in refused.output
    gates.write_text("calibration = { ece = 1 }\nshadow = { agreement = 0.85, images = 2 }")
    assert run(*command).exit_code == 0


def test_the_metrics_are_those_of_the_first_run(versions: None, tmp_path: Path) -> None:
    inputs = draw(tmp_path / "in", one=0)
    (inputs / "bad.png").write_bytes(b"no image")
    file = tmp_path / "unetpp.prom"
    assert segment(inputs, tmp_path / "out", "--metrics-file", file).exit_code == 1
    label = f'output="{tmp_path}/out"'
    assert f"unetpp_run_exit_code{{{label}}} 1.0" in file.read_text()
    assert f'unetpp_images_total{{{label},status="failed"}} 1.0' in file.read_text()


def test_a_shadow_that_cannot_run_here_is_told_and_the_call_goes_on(versions: None, tmp_path: Path) -> None:
    inputs, console = [draw(tmp_path / "in", one=0, two=0)], Console(file=io.StringIO())
    summary = pipeline.segment(inputs, "models:/ink@champion", tmp_path / "out", console=console)
    assert summary.exit_code == 0
    shadow = {"model": "models:/ink@challenger", "share": 1.0}
    config = RunConfig.model_validate({"shadow": shadow, "engine": {"name": "openvino", "precision": "fp16"}})
    found = run_shadow(summary, inputs, output=tmp_path / "out", config=config, console=console)
    assert found.pooled is None
    assert found.trouble == {"every image": "the openvino engine has no fp16; use --precision bf16 or fp32"}


def test_a_wrong_shadow_is_told_before_anything_is_segmented(versions: None, tmp_path: Path) -> None:
    inputs = draw(tmp_path / "in", one=0)
    missing = run("segment", inputs, "-m", "models:/ink@champion", "-o", tmp_path / "out", "--shadow", "models:/ink/9")
    assert missing.exit_code == 2 and "no version 9" in missing.output
    same = run("segment", inputs, "-m", "models:/ink/1", "-o", tmp_path / "out", "--shadow", "models:/ink/1")
    assert same.exit_code == 2 and "name another one" in same.output
    other = run("segment", inputs, "-m", "models:/ink/1", "-o", tmp_path / "out", "--shadow", "landcover")
    assert other.exit_code == 2 and "has the classes building, land, road, vegetation, water, --model" in other.output
    part = segment(inputs, tmp_path / "out", "--part", "1/2")
    assert part.exit_code == 2 and "--part goes without --shadow" in part.output
    assert not (tmp_path / "out").exists()
