"""Regions: drawn as GDAL draws them whatever the box, read from numbers and files in any CRS, combined with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio.features
import shapely
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer

from unetpp.errors import RegionError, StoreError
from unetpp.geometry import Box
from unetpp.io.resample import OutputGrid
from unetpp.region import Coverage, Region, load_region, parse_region
from unetpp.segment import SegmentJob, ShardWorker, pending, plan_job, prepare_job, progress
from unetpp.tissue import ValidityMask

OPTIONS: dict[str, Any] = {"core": 64, "shard": 128, "engine": "torch", "precision": "fp32"}
UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()


def grid(*, step: float = 1.0, crs: str | None = None, height: int = 300, width: int = 400) -> OutputGrid:
    transform = None if crs is None else (2.0, 0.0, 5e5, 0.0, -2.0, 5e6)
    return OutputGrid(height, width, step, step, 0, None, transform, crs)


def blobs(seed: int) -> list[shapely.Polygon]:
    """Overlapping polygons, concave and with holes, some past the image's edge."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(6):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 30))
        radius = rng.uniform(25, 90, 30)
        centre = rng.uniform((0, 0), (400, 300))
        outer = np.stack([np.cos(angle), np.sin(angle)], 1)
        found.append(shapely.Polygon(centre + outer * radius[:, None], [centre + outer * 12]))
    return found


def as_region(polygons: list[shapely.Polygon]) -> Region:
    rings = [[p.exterior, *p.interiors] for p in polygons]
    return Region(tuple(tuple(np.asarray(r.coords)[:-1] for r in parts) for parts in rings))


def test_pixels_are_those_of_gdal_and_do_not_depend_on_the_box() -> None:
    for seed in range(3):
        polygons = blobs(seed)
        region, whole = as_region(polygons), Box(0, 0, 300, 400)
        expected = rasterio.features.rasterize(polygons, (300, 400)).astype(bool)
        found = region.crop(whole)
        assert np.array_equal(found, expected) and 0.1 < found.mean() < 0.9
        for y in range(0, 300, 37):
            for x in range(0, 400, 53):
                box = Box(y, x, y + 37, x + 53).clip(300, 400)
                assert np.array_equal(region.crop(box), found[box.slices()])
                assert region.any(box) == found[box.slices()].any()
        assert Region.from_json(json.loads(json.dumps(region.to_json()))).digest == region.digest


def test_rectangles_end_at_pixels() -> None:
    found = load_region("10,20,30,50", grid()).crop(Box(0, 0, 300, 400))
    expected = np.zeros((300, 400), bool)
    expected[20:50, 10:30] = True
    assert np.array_equal(found, expected)
    halved = load_region("10,20,30,50", grid(step=2.0)).crop(Box(0, 0, 150, 200))
    assert np.array_equal(halved, expected[::2, ::2])


def test_coordinates_of_the_image_and_of_the_globe() -> None:
    scene = grid(crs=UTM)
    expected = load_region("50,100,200,250", grid()).crop(Box(0, 0, 300, 400))
    own = load_region(f"{5e5 + 100},{5e6 - 500},{5e5 + 400},{5e6 - 200}@crs", scene)
    assert np.array_equal(own.crop(Box(0, 0, 300, 400)), expected)
    named = load_region(f"{5e5 + 100},{5e6 - 500},{5e5 + 400},{5e6 - 200}@EPSG:32633", scene)
    assert np.array_equal(named.crop(Box(0, 0, 300, 400)), expected)
    assert np.array_equal(load_region("50,100,200,250", scene).crop(Box(0, 0, 300, 400)), expected)
    back = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    west, south = back.transform(5e5 + 100, 5e6 - 500)
    east, north = back.transform(5e5 + 400, 5e6 - 200)
    globe = load_region(f"{west!r},{south!r},{east!r},{north!r}@EPSG:4326", scene).crop(Box(0, 0, 300, 400))
    assert (globe != expected).sum() < 0.02 * expected.sum(), "meridians are not the grid's columns"


def across(code: str, x: float, y: float, step: float) -> OutputGrid:
    """A grid of 40 x 60 px, of which 20 columns lie west of longitude 180 and 40 east of it."""
    wkt = rasterio.crs.CRS.from_string(code).to_wkt()
    return OutputGrid(40, 60, 1.0, 1.0, 0, None, (step, 0.0, x - 20 * step, 0.0, -step, y), wkt)


ACROSS = [
    across("EPSG:4326", 180.0, -16.0, 0.01),
    across("EPSG:4326", -180.0, -16.0, 0.01),
    across("EPSG:3857", 20037508.342789244, -1.8e6, 1000.0),
    across("EPSG:3395", -20037508.342789244, -1.8e6, 1000.0),
    across("EPSG:3832", 3339584.723798207, -1.8e6, 1000.0),
    across("EPSG:32701", 181000.0, 8.2e6, 1000.0),
]


@pytest.mark.parametrize("scene", ACROSS, ids=lambda g: rasterio.crs.CRS.from_wkt(g.crs).to_string())
def test_a_region_is_found_on_either_side_of_longitude_180(scene: OutputGrid, tmp_path: Path) -> None:
    # As RFC 7946 wants it: cut at 180, no longitude beyond.
    sides = [shapely.box(170, -25, 180, -5), shapely.box(-180, -25, -170, -5)]
    image = Box(0, 0, 40, 60)
    assert load_region(str(write_file(tmp_path, "both.geojson", sides, None)), scene).crop(image).all()
    west, east = (
        load_region(str(write_file(tmp_path, f"{number}.geojson", [side], None)), scene).crop(image)
        for number, side in enumerate(sides)
    )
    assert west[:, 0].all() and east[:, -1].all() and np.array_equal(west, ~east)
    for text in ("170,-25,190,-5@EPSG:4326", "-190,-25,-170,-5@EPSG:4326"):
        assert load_region(text, scene).crop(image).all()
    # What a projection keeps in one piece, longitudes would tear; its hole stays where it is.
    ring = shapely.box(0, 8.0e6, 4e5, 8.4e6).difference(shapely.box(1.5e5, 8.15e6, 1.85e5, 8.25e6))
    fiji = load_region(str(write_file(tmp_path, "utm.gpkg", [ring], "EPSG:32701")), scene).crop(image)
    x, y = centres(scene)
    x, y = Transformer.from_crs(scene.crs, "EPSG:32701", always_xy=True).transform(x, y)
    assert (fiji != shapely.contains_xy(ring, x, y)).mean() < 0.01


def centres(scene: OutputGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    assert scene.transform is not None
    a, b, c, d, e, f = scene.transform
    row, col = np.mgrid[: scene.height, : scene.width] + 0.5
    return a * col + b * row + c, d * col + e * row + f


@pytest.mark.parametrize("scene", ACROSS[:5], ids=lambda g: rasterio.crs.CRS.from_wkt(g.crs).to_string())
def test_a_region_round_the_globe_is_on_either_side(scene: OutputGrid) -> None:
    assert load_region("-180,-25,180,-5@EPSG:4326", scene).crop(Box(0, 0, 40, 60)).all()


def test_an_image_round_the_globe_has_a_region_at_both_of_its_ends() -> None:
    wkt = rasterio.crs.CRS.from_epsg(4326).to_wkt()
    globe = OutputGrid(180, 360, 1.0, 1.0, 0, None, (1.0, 0.0, 0.0, 0.0, -1.0, 90.0), wkt)
    found = load_region("-10,-90,10,90@EPSG:4326", globe)
    assert np.array_equal(np.flatnonzero(found.crop(Box(0, 0, 180, 360)).all(axis=0)), [*range(10), *range(350, 360)])
    assert len(load_region("0,-90,10,90@EPSG:4326", globe).polygons) == 1, "its edge is not at the other end as well"


def write_file(folder: Path, name: str, polygons: list[shapely.Polygon], crs: str | None) -> Path:
    import geopandas

    path = folder / name
    if name.endswith(".geojson"):
        features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(p)} for p in polygons]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    elif name.endswith("parquet"):
        geopandas.GeoDataFrame(geometry=polygons, crs=crs).to_parquet(path)
    else:
        geopandas.GeoSeries(polygons, crs=crs).to_file(path)
    return path


@pytest.mark.parametrize("name", ["parts.geojson", "parts.gpkg", "parts.fgb", "parts.parquet", "parts.geoparquet"])
def test_files_of_polygons(tmp_path: Path, name: str) -> None:
    polygons = blobs(7)
    expected = as_region(polygons).crop(Box(0, 0, 300, 400))
    pixels = write_file(tmp_path, name, polygons, None)
    assert np.array_equal(load_region(str(pixels), grid()).crop(Box(0, 0, 300, 400)), expected)
    assert np.array_equal(load_region(f"{pixels}@px", grid(crs=UTM)).crop(Box(0, 0, 300, 400)), expected)
    moved = [shapely.transform(p, lambda c: c * (2, -2) + (5e5, 5e6)) for p in polygons]
    back = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    globe = [shapely.transform(p, lambda c: np.stack(back.transform(c[:, 0], c[:, 1]), 1)) for p in moved]
    written = write_file(tmp_path, f"globe-{name}", globe, "EPSG:4326")
    found = load_region(str(written), grid(crs=UTM)).crop(Box(0, 0, 300, 400))
    assert (found != expected).mean() < 1e-3
    with pytest.raises(RegionError, match="meets no part" if name == "parts.geojson" else "the image has none"):
        load_region(str(written), grid(height=3, width=4))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,2,3", "neither x0,y0,x1,y1 nor a file"),
        ("5,2,3,4", "is empty"),
        ("nan,2,3,4", "is empty"),
        ("missing.gpkg", "nor a file that exists"),
        ("500,0,600,10", "meets no part"),
        ("1,2,3,4@crs", "the image has none"),
        ("1,2,3,4@EPSG:4326", "the image has none"),
    ],
)
def test_what_is_no_region_is_one_line(text: str, why: str) -> None:
    with pytest.raises(RegionError, match=why) as error:
        load_region(text, grid())
    assert "\n" not in str(error.value) and str(error.value).count("region") == 1
    with pytest.raises(RegionError, match="is no CRS"):
        load_region("1,2,3,4@EPSG:1", grid(crs=UTM))


def test_a_crs_without_a_way_to_the_images_is_one_line() -> None:
    site = 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    with pytest.raises(RegionError, match=r"'WGS 84' has no known place in the image's CRS; give level-0 pixels"):
        load_region("0,0,1,1@EPSG:4326", grid(crs=site))
    assert load_region("0,0,9,9", grid(crs=site)).crop(Box(0, 0, 9, 9)).all()


def test_one_layer_of_polygons_is_taken_and_several_are_named(tmp_path: Path) -> None:
    import geopandas
    import pyogrio

    polygons = blobs(3)
    path = tmp_path / "qgis.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="layer_styles")
    geopandas.GeoDataFrame(geometry=polygons).to_file(path, layer="tumour")
    expected = as_region(polygons).crop(Box(0, 0, 300, 400))
    assert np.array_equal(load_region(str(path), grid()).crop(Box(0, 0, 300, 400)), expected)
    geopandas.GeoDataFrame(geometry=blobs(4)).to_file(path, layer="stroma")
    with pytest.raises(RegionError, match=r"qgis\.gpkg holds the layers tumour, stroma; save one of them as a file"):
        load_region(str(path), grid())


def test_geojson_as_other_programs_write_it(tmp_path: Path) -> None:
    expected = as_region(blobs(7)).crop(Box(0, 0, 300, 400))
    plain = write_file(tmp_path, "plain.geojson", blobs(7), None)
    document = json.loads(plain.read_text())
    document["features"][0]["properties"]["name"] = "Gewebe für Prüfung"
    text = json.dumps(document, ensure_ascii=False)
    (tmp_path / "marked.geojson").write_text(text, encoding="utf-8-sig")
    (tmp_path / "latin.geojson").write_text(text, encoding="latin-1")
    (tmp_path / "lines.geojson").write_text("\n".join(map(json.dumps, document["features"])))
    (tmp_path / "list.geojson").write_text(json.dumps(document["features"]), encoding="utf-8-sig")  # QuPath can
    for name in ("marked.geojson", "latin.geojson", "lines.geojson", "list.geojson"):
        found = load_region(str(tmp_path / name), grid()).crop(Box(0, 0, 300, 400))
        assert np.array_equal(found, expected), name


def test_files_that_hold_no_polygon(tmp_path: Path) -> None:
    line = {"type": "FeatureCollection", "features": []}
    (tmp_path / "empty.geojson").write_text(json.dumps(line))
    (tmp_path / "text.gpkg").write_text("hello")
    for name in ("empty.geojson", "text.gpkg"):
        with pytest.raises(RegionError, match=name):
            load_region(str(tmp_path / name), grid())
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(RegionError, match=r"^region .*table\.parquet is Parquet without the metadata of GeoParquet"):
        load_region(str(tmp_path / "table.parquet"), grid())
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(RegionError, match=r"text\.parquet does not read as a vector file"):
        load_region(str(tmp_path / "text.parquet"), grid())


def test_regions_and_masks_both_count() -> None:
    rng = np.random.default_rng(0)
    mask = ValidityMask(rng.random((30, 40)) > 0.5, 300, 400)
    region, box = as_region(blobs(1)), Box(50, 60, 170, 230)
    both = Coverage(mask, region)
    assert np.array_equal(both.crop(box), mask.crop(box) & region.crop(box))
    assert both.any(box) and not Coverage(mask, load_region("0,0,20,20", grid())).any(box)
    assert Coverage().crop(box).all()


def pixels() -> NDArray[np.uint8]:
    from skimage.data import immunohistochemistry

    return np.ascontiguousarray(immunohistochemistry()[:301, :413])


def run(job: SegmentJob) -> NDArray[np.uint8]:
    worker = ShardWorker(job)
    for shard in pending(job):
        worker.run(shard)
    worker.close()
    return job.store.read(Box(0, 0, job.plan.height, job.plan.width))


def test_only_the_region_is_computed_and_equals_the_whole(
    tmp_path: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp.engine.torch import TorchEngine

    image = tmp_path / "image.png"
    Image.fromarray(pixels()).save(image)
    whole = run(prepare_job(image, tmp_path / "whole", tiny_package, **OPTIONS))
    calls: list[int] = []
    labels = TorchEngine.labels
    monkeypatch.setattr(TorchEngine, "labels", lambda self, *tile: calls.append(1) or labels(self, *tile))
    job = prepare_job(image, tmp_path / "part", tiny_package, region="100,40,210,130", **OPTIONS)
    found = run(job)
    expected = np.full_like(whole, 255)
    expected[40:130, 100:210] = whole[40:130, 100:210]
    assert np.array_equal(found, expected) and len(calls) == 3 * 3
    state = progress(job)
    assert (state.status, state.shards, state.committed, state.empty) == ("done", 12, 12, 8)
    mask = np.zeros((301, 413), np.uint8)
    mask[:100] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    both = prepare_job(
        image, tmp_path / "part", tiny_package, region="100,40,210,130", mask=tmp_path / "mask.png", **OPTIONS
    )
    expected[100:] = 255
    assert np.array_equal(run(both), expected)


def test_the_key_follows_the_region_and_a_region_that_changed_is_not_used(tmp_path: Path, tiny_package: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(pixels()).save(image)
    keys = [
        plan_job(image, tmp_path / "o", tiny_package, region=r, **OPTIONS)[0].key for r in (None, "0,0,9,9", "0,0,9,8")
    ]
    assert len(set(keys)) == 3
    first, again = (write_file(tmp_path, f"{n}.geojson", blobs(2), None) for n in "ab")
    same = {plan_job(image, tmp_path / "o", tiny_package, region=str(r), **OPTIONS)[0].key for r in (first, again)}
    assert len(same) == 1, "the polygons count, not the name of their file"
    job = prepare_job(image, tmp_path / "out", tiny_package, region="0,0,90,90", **OPTIONS)
    (tmp_path / "out/region.json").write_text(json.dumps(as_region(blobs(1)).to_json()))
    with pytest.raises(StoreError, match="not the region"):
        ShardWorker(job)


def test_text_is_taken_apart(tmp_path: Path) -> None:
    assert parse_region("1,2,3.5,4@EPSG:4326").crs == "EPSG:4326"
    odd = tmp_path / "a@b.geojson"
    odd.write_text("{}")
    assert parse_region(str(odd)).file == odd and parse_region(f"{odd}@px").crs == "px"
