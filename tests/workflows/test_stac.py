"""The STAC item of a scene: the keys that STAC and the extensions require, and a footprint that others agree with."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds, transform_geom
from rich.console import Console

from unetpp_workflows import pipeline
from unetpp_workflows.config import load_config
from unetpp_workflows.stac import EXTENSIONS

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=32", "executor.workers=2")


@pytest.fixture
def item_of(ink_package: Path, tmp_path: Path) -> Callable[..., Any]:
    """Segment an image of 96 x 128 px there and return its item, None where there is none."""

    def make(code: int | None, transform: Any, sets: tuple[str, ...] = ()) -> Any:
        pixels = np.full((3, 96, 128), 220, np.uint8)
        pixels[:, 40:60, 60:90] = 20
        path = tmp_path / "scene.tif"
        place = {} if code is None else {"crs": f"EPSG:{code}", "transform": transform}
        with rasterio.open(path, "w", driver="GTiff", height=96, width=128, count=3, dtype="uint8", **place) as file:
            file.write(pixels)
        config = load_config(sets=[*FAST, *sets])
        summary = pipeline.segment(
            [path], ink_package, tmp_path / "out", config=config, console=Console(file=io.StringIO())
        )
        record = summary.images[0].record
        assert summary.exit_code == 0 and record is not None
        if "stac" not in record.outputs:
            return None
        return json.loads((tmp_path / "out/scene" / record.outputs["stac"]).read_text())

    return make


def test_links_to_image_and_model_hold_wherever_the_run_began(
    item_of: Callable[..., Any], ink_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item_of(32636, from_origin(449000, 36500, 0.5, 0.5))
    monkeypatch.chdir(tmp_path)
    package = Path(os.path.relpath(ink_package))
    config = load_config(sets=[*FAST])
    pipeline.segment(["scene.tif"], package, "other", config=config, console=Console(file=io.StringIO()))
    item = json.loads((tmp_path / "other/scene/item.json").read_text())
    folder = tmp_path / "other/scene"
    assert (folder / item["links"][0]["href"]).samefile(tmp_path / "scene.tif")
    assert (folder / item["assets"]["model"]["href"]).samefile(ink_package / "weights.safetensors")


def test_the_item_has_what_stac_and_the_extensions_require(item_of: Any, tmp_path: Path) -> None:
    item = item_of(32636, from_origin(449000, 36500, 0.5, 0.5), sets=("output.instances=true",))
    # STAC 1.1 item
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", "scene")
    assert item["stac_extensions"] == list(EXTENSIONS.values())
    assert {"geometry", "bbox", "properties", "links", "assets"} <= item.keys()
    properties, assets = item["properties"], item["assets"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", properties["datetime"])
    for name, asset in assets.items():
        assert asset["href"] and asset["type"] and asset["roles"]
        assert name == "model" or (tmp_path / "out/scene" / asset["href"]).exists()
    assert {"labels", "geotiff", "polygons", "geopackage", "instances", "report", "model"} == assets.keys()
    assert Path(assets["model"]["href"]).is_file()
    assert item["links"] == [{"rel": "derived_from", "href": str(tmp_path / "scene.tif"), "title": "the image"}]
    # projection
    assert properties["proj:code"] == "EPSG:32636" and properties["proj:shape"] == [96, 128]
    assert CRS.from_json_dict(properties["proj:projjson"]) == CRS.from_epsg(32636)
    assert properties["proj:transform"] == [0.5, 0, 449000, 0, -0.5, 36500]
    # classification: value and name are required; names are [0-9A-Za-z-_]+, colours RRGGBB
    classes = assets["geotiff"]["classification:classes"]
    assert {one["value"]: one["name"] for one in classes} == {0: "paper", 1: "ink", 255: "no_data"}
    assert all(re.fullmatch(r"[0-9A-Za-z_-]+", one["name"]) for one in classes)
    assert classes[1]["color_hint"] == "C81E3C" and classes[1]["count"] == 600 and classes[2]["nodata"] is True
    assert "classification:classes" not in assets["polygons"]
    # processing
    assert properties["processing:software"]["unetpp"] and properties["processing:datetime"] == properties["datetime"]
    assert all(isinstance(version, str) for version in properties["processing:software"].values())
    # MLM: required of the item, of its inputs and outputs, and of the asset of the model
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:architecture"] == "UNet++" and properties["mlm:tasks"] == ["semantic-segmentation"]
    [given], [result] = properties["mlm:input"], properties["mlm:output"]
    assert {"name", "bands", "input"} <= given.keys() and {"name", "tasks", "result"} <= result.keys()
    for structure in (given["input"], result["result"]):
        assert len(structure["shape"]) == len(structure["dim_order"]) and structure["data_type"] == "uint8"
    assert [band["name"] for band in assets["model"]["bands"]] == given["bands"] == ["red", "green", "blue"]
    assert all({"type", "mean", "stddev"} == scaling.keys() for scaling in given["value_scaling"])
    assert [one["name"] for one in result["classification:classes"]] == ["paper", "ink"]
    assert "mlm:model" in assets["model"]["roles"] and assets["model"]["mlm:artifact_type"]


def test_the_footprint_is_that_of_rasterio(item_of: Any) -> None:
    item = item_of(32636, from_origin(449000, 36500, 0.5, 0.5))
    left, bottom, right, top = 449000, 36500 - 48, 449000 + 64, 36500
    assert item["bbox"] == pytest.approx(
        transform_bounds("EPSG:32636", "EPSG:4326", left, bottom, right, top), abs=1e-8
    )
    ours = shapely.geometry.shape(item["geometry"])
    box = shapely.geometry.mapping(shapely.box(left, bottom, right, top))
    theirs = shapely.geometry.shape(transform_geom("EPSG:32636", "EPSG:4326", box))
    # Ours has 9 decimals of a degree: 0.1 mm of 64 m.
    assert ours.exterior.is_ccw and ours.symmetric_difference(theirs).area < 1e-5 * theirs.area


def test_a_scene_across_the_antimeridian_has_a_box_that_runs_eastwards_over_it(item_of: Any) -> None:
    # UTM zone 60 ends at 180 degrees: 833 978.56 m on the equator.
    item = item_of(32660, from_origin(833978 - 640, 100000, 10, 10))
    west, south, east, north = item["bbox"]
    assert item["geometry"]["type"] == "MultiPolygon"
    assert 179.9 < west < 180 and -180 < east < -179.9 and 0 < south < north < 1


def test_a_scene_right_round_the_globe_has_the_globe_s_box(item_of: Any) -> None:
    item = item_of(4326, from_origin(0, 60, 360 / 64, 1))
    assert item["bbox"][0::2] == [-180, 180] and shapely.geometry.shape(item["geometry"]).is_valid


def test_an_image_without_a_place_has_no_item(item_of: Any, tmp_path: Path) -> None:
    assert item_of(32636, from_origin(449000, 36500, 0.5, 0.5)) is not None
    assert item_of(None, None) is None  # the same name, another content
    assert not (tmp_path / "out/scene/item.json").exists()
