"""A real scene at two resolutions: tiles and shards give what one pass over the whole gives, polygons included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import NATIVE
from unetpp.engine import choose_engine
from unetpp.finalize import finalize
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster
from unetpp.io.resample import GridReader
from unetpp.maps import MapName
from unetpp.package import load_package, save_package
from unetpp.segment import SegmentJob, ShardWorker, pending, prepare_job


@pytest.fixture(scope="module")
def package_at(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network, said to be trained at the ground spacing of zoom 19."""
    package = load_package(tiny_package)
    spec = replace(package.spec, name="tiny-m", spacing=Spacing(0.2986, 0.2986, "m"))
    return save_package(tmp_path_factory.mktemp("scene"), package.load_model(), spec, "Random.").folder


def segmented(
    image: Path, out: Path, package: Path, engine: str, core: int, shard: int
) -> tuple[SegmentJob, list[Any]]:
    maps: list[MapName] = ["probabilities", "uncertainty"]
    job = prepare_job(image, out, package, engine=engine, precision="fp32", core=core, shard=shard, maps=maps)
    worker = ShardWorker(job)
    for one in pending(job):
        worker.run(one)
    worker.close()
    figures = finalize(job, formats=["geojson"])
    features = json.loads((out / "polygons.geojson").read_text())["features"]
    assert sum(figures.objects.values()) == len(features) > 100
    shapes = [(feature["properties"], feature["geometry"]) for feature in features]
    return job, sorted(shapes, key=json.dumps)


@pytest.mark.slow
@pytest.mark.parametrize("zoom", [19, 20])
@pytest.mark.parametrize("name", ["openvino", *NATIVE])
def test_tiled_equals_whole(data_dir: Path, tmp_path: Path, package_at: Path, zoom: int, name: str) -> None:
    image = data_dir / f"kampala/kampala_A_z{zoom}.tif"
    job, polygons = segmented(image, tmp_path / "tiled", package_at, name, 64, 128)
    size = Box(0, 0, job.plan.height, job.plan.width)
    assert abs(size.height - 512) <= 1 and abs(size.width - 768) <= 1 and len(job.plan.shards()) == 24
    with open_raster(image) as raster:
        pixels = GridReader(raster, job.grid).read(size)
    assert pixels.valid.all()
    engine = choose_engine(load_package(package_at), name=name, precision="fp32")
    expected = engine.layers(pixels.pixels, job.maps)
    labels = job.store.read(size)
    assert np.array_equal(labels, expected[0]) and min(np.bincount(labels.ravel(), minlength=8)[[0, 1, 7]]) > 1000
    maps = np.concatenate([store.read(size) for store in job.map_stores])
    assert np.array_equal(maps, expected[1:])
    whole, whole_polygons = segmented(image, tmp_path / "whole", package_at, name, 1024, 1024)
    assert len(whole.plan.shards()) == 1 and np.array_equal(whole.store.read(size), expected[0])
    assert polygons == whole_polygons
