"""Estimates scale a measured row by multiply-adds; nothing here judges estimates."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unetpp.engine.bench import BenchRow
from unetpp.model import GridConfig
from unetpp.model.margins import multiply_adds
from unetpp.package import load_package
from unetpp.segment import prepare_job
from unetpp_workflows import estimates

ROW = BenchRow(
    tile=200,
    core=144,
    useful_share=0.5,
    computed_mpx_s=2.0,
    written_mpx_s=1.0,
    cpu_mpx_s=1.0,
    tiles=9,
    peak_mb=50.0,
    engine="torch",
    precision="fp32",
    device="cpu",
    workers=2,
    threads=1,
    whole=True,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def job(tmp_path: Path, tiny_package: Path) -> Any:
    from PIL import Image

    Image.new("RGB", (300, 200)).save(tmp_path / "image.png")
    options: dict[str, Any] = {"engine": "torch", "precision": "fp32", "core": 64, "tissue": "none"}
    return prepare_job(tmp_path / "image.png", tmp_path / "out", tiny_package, **options)


def test_time_follows_the_multiply_adds(home: Path, job: Any, tiny_package: Path) -> None:
    spec = load_package(tiny_package).spec
    architecture = spec.architecture
    estimates.save(architecture, [ROW, replace(ROW, engine="openvino", written_mpx_s=50.0)])
    measured = estimates.load()
    assert measured is not None
    # 5 x 4 tiles of 120 x 120 px, of which the row computes 2 million a second.
    found = estimates.estimate(measured, job, spec, 1.0)
    assert found == pytest.approx(20 * 120 * 120 / 2e6)
    assert estimates.estimate(measured, job, spec, 0.5) == found / 2
    other = GridConfig(bands=3, classes=3, filters=(8, 16, 16))
    larger = estimates.estimate(measured, job, replace(spec, architecture=other), 1.0)
    ratio = multiply_adds(other) / multiply_adds(architecture)
    assert ratio > 2 and larger == pytest.approx(found * ratio)


def test_a_u_net_takes_less_than_the_grid_that_it_is_a_part_of(home: Path, job: Any, tiny_package: Path) -> None:
    spec = load_package(tiny_package).spec
    estimates.save(spec.architecture, [ROW])
    measured = estimates.load()
    assert measured is not None
    grid, unet = (estimates.estimate(measured, job, found, 1.0) for found in (spec, replace(spec, network="unet")))
    assert grid is not None and unet is not None and unet < grid


def test_every_orientation_takes_its_time(home: Path, job: Any, tiny_package: Path) -> None:
    spec = load_package(tiny_package).spec
    eight = replace(job, engine=replace(job.engine, tta="d4"))
    assert estimates.computed_pixels(eight, spec) == 8 * estimates.computed_pixels(job, spec)
    fused, whole = (replace(found, engine=replace(found.engine, name="openvino")) for found in (job, eight))
    least = 8 * estimates.computed_pixels(fused, spec)
    assert least <= estimates.computed_pixels(whole, spec) <= estimates.computed_pixels(eight, spec)


def test_what_was_not_measured_is_unknown(home: Path, job: Any, tiny_package: Path) -> None:
    assert estimates.load() is None
    spec = load_package(tiny_package).spec
    path = estimates.save(spec.architecture, [replace(ROW, precision="bf16")])
    measured = estimates.load()
    assert measured is not None and estimates.estimate(measured, job, spec, 1.0) is None
    path.write_text(path.read_text().replace('"cores": ', '"cores": 1'))
    assert estimates.load() is None, "another machine"
    path.write_text("{")
    assert estimates.load() is None


def test_plan_says_time_and_memory_or_how_to_know(home: Path, tiny_package: Path, tmp_path: Path, job: Any) -> None:
    from unetpp_workflows.config import RunConfig
    from unetpp_workflows.plan import print_plan

    def shown(**engine: str) -> str:
        values = {"name": "torch", "precision": "fp32", **engine}
        config = RunConfig.model_validate({"model": str(tiny_package), "engine": values, "tiling": {"core": 64}})
        file = io.StringIO()
        assert print_plan([job.uri], config, tmp_path / "none", Console(file=file, width=200)) == 0
        return file.getvalue()

    assert "unetpp doctor --bench" in shown()
    estimates.save(load_package(tiny_package).spec.architecture, [replace(ROW, written_mpx_s=0.001)])
    text = shown()
    assert "2 min of computing with 2 workers" in text
    turned = shown(tta="d4")
    assert "19 min of computing" in turned and "engine torch fp32 with tta d4" in turned and "with tta" not in text
    share = r"120x120 +(\d+%)"
    assert re.findall(share, turned) == re.findall(share, text) != [], "tiles are no worse for being turned"
