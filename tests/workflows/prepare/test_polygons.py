"""Polygons as class indices, beside shapely, geopandas and a mask that others drew."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.transform import from_origin
from scipy import ndimage

from unetpp.errors import DataError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster
from unetpp.io.resample import plan_grid
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.legend import Legend
from unetpp_workflows.prepare.polygons import PolygonReader, holds_polygons

from .conftest import CLASSES


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def draw(image: Path, shapes: Path, dataset: Dataset, spacing: Spacing | None = None, side: int = 32):  # type: ignore[no-untyped-def]
    """Return indices and objects, drawn in blocks of `side`, and the texts of faults."""
    with open_raster(image) as raster:
        grid = plan_grid(raster, model_spacing=spacing, override=Spacing(1, 1, "um") if spacing else None)
        reader = PolygonReader(str(shapes), Legend.of(dataset), dataset.data, raster, grid)
        labels = np.zeros((grid.height, grid.width), np.uint8)
        objects = np.zeros(labels.shape, np.int32)
        for y in range(0, grid.height, side):
            for x in range(0, grid.width, side):
                box = Box(y, x, y + side, x + side).clip(grid.height, grid.width)
                labels[box.slices()], numbers = reader.read(box)
                if numbers is not None:
                    objects[box.slices()] = numbers
    return labels, objects, [str(fault) for fault in reader.faults()]


def qupath(path: Path, features: list[tuple[Any, str | None]]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "geometry": shapely.geometry.mapping(shape),
         "properties": {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})}
        for shape, name in features]}))  # fmt: skip
    return path


def inside(shape: Any, height: int, width: int, step: float = 1.0) -> Any:
    """Return which pixel centres lie in a shape, asked of shapely one by one."""
    rows, cols = np.mgrid[:height, :width]
    return shapely.contains_xy(shape, (cols + 0.5) * step, (rows + 0.5) * step)


LAKE = shapely.Polygon(
    [(10.3, 8.2), (71.7, 12.1), (60.2, 66.6), (13.1, 59.9)], [[(30.2, 30.1), (45.3, 31.2), (40.1, 47.7)]]
)
ISLES = shapely.MultiPolygon([shapely.box(75.2, 5.4, 95.6, 25.3), shapely.Point(84.2, 60.3).buffer(11.7)])
HUT = shapely.box(20.4, 15.4, 26.6, 22.2)


def test_holes_parts_and_nested_polygons(slide: Path, described: Callable[..., Dataset]) -> None:
    file = qupath(slide.with_name("a.geojson"), [(HUT, "roof"), (LAKE, "tree"), (ISLES, "roof")])
    labels, _, faults = draw(slide, file, described(table="t"))
    expected = np.zeros((80, 100), np.uint8)
    expected[inside(LAKE, 80, 100)] = 1
    expected[inside(HUT, 80, 100) | inside(ISLES, 80, 100)] = 2
    assert (labels == expected).all() and not faults


def test_polygons_of_a_collection_are_drawn(slide: Path, described: Callable[..., Dataset]) -> None:
    """... as `make_valid` leaves them, with the line that a spike became."""
    repaired = shapely.GeometryCollection([LAKE, shapely.LineString([(0, 0), (9, 9)]), ISLES])
    line = shapely.GeometryCollection([shapely.LineString([(0, 0), (9, 9)])])
    file = qupath(slide.with_name("a.geojson"), [(repaired, "tree"), (line, "roof")])
    labels, _, faults = draw(slide, file, described(table="t"))
    assert (labels == (inside(LAKE, 80, 100) | inside(ISLES, 80, 100))).all()
    assert faults == ["features that are no polygons are left out: 1"]


def test_a_derived_class_of_qupath_has_the_name_that_qupath_shows(
    slide: Path, described: Callable[..., Dataset]
) -> None:
    dead = {"objectType": "annotation", "classification": {"names": ["Tumor", "Necrosis"], "color": [1, 2, 3]}}
    feature = {"type": "Feature", "geometry": shapely.geometry.mapping(LAKE), "properties": dead}
    file = slide.with_name("a.geojson")
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    classes = [CLASSES[0], CLASSES[1], {**CLASSES[2], "labels": ["Tumor: Necrosis"]}]
    labels, _, faults = draw(slide, file, described(classes, table="t"))
    assert (labels == 2 * inside(LAKE, 80, 100)).all() and not faults


def test_of_several_layers_none_is_chosen(slide: Path, described: Callable[..., Dataset]) -> None:
    file = slide.with_name("a.gpkg")
    geopandas.GeoDataFrame({"kind": ["tree"]}, geometry=[LAKE]).to_file(file, layer="trees")
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), file, layer="layer_styles")
    labels, _, _ = draw(slide, file, described(table="t", property="kind"))
    assert (labels == inside(LAKE, 80, 100)).all()
    geopandas.GeoDataFrame({"kind": ["roof"]}, geometry=[HUT]).to_file(file, layer="roofs")
    with pytest.raises(DataError, match="layers trees, roofs"):
        draw(slide, file, described(table="t", property="kind"))


@pytest.mark.parametrize("content", [[1, 2], "x", {"features": [{"geometry": {"type": "Foo", "coordinates": []}}]}])
def test_json_that_is_no_geojson(content: Any, slide: Path, described: Callable[..., Dataset]) -> None:
    file = slide.with_name("a.geojson")
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a\.geojson does not read as polygons"):
        draw(slide, file, described(table="t"))


def test_damaged_shapes_in_parquet(slide: Path, described: Callable[..., Dataset]) -> None:
    about = {"version": "1.1.0", "primary_column": "shape", "columns": {"shape": {"encoding": "WKB", "crs": None}}}
    rows = pyarrow.table({"shape": [LAKE.wkb[:50]]}).replace_schema_metadata({"geo": json.dumps(about)})
    pyarrow.parquet.write_table(rows, slide.with_name("a.parquet"))
    with pytest.raises(DataError, match=r"a\.parquet does not read as polygons"):
        draw(slide, slide.with_name("a.parquet"), described(table="t"))


def test_a_coarser_grid_scales_level_0_pixels(slide: Path, described: Callable[..., Dataset]) -> None:
    file = qupath(slide.with_name("a.geojson"), [(LAKE, "tree")])
    labels, _, _ = draw(slide, file, described(table="t"), Spacing(2, 2, "um"))
    assert (labels == inside(LAKE, 40, 50, 2.0)).all()


def test_each_polygon_is_an_object(slide: Path, described: Callable[..., Dataset]) -> None:
    file = qupath(slide.with_name("a.geojson"), [(HUT, "roof"), (LAKE, "tree"), (ISLES, "roof")])
    labels, objects, _ = draw(slide, file, described(table="t", instances=True))
    assert (objects[inside(HUT, 80, 100)] == 1).all() and (objects[inside(ISLES, 80, 100)] == 3).all()
    assert ((objects > 0) == (labels > 0)).all()


def test_what_does_not_count(slide: Path, described: Callable[..., Dataset]) -> None:
    file = qupath(slide.with_name("a.geojson"), [(LAKE, "tree"), (HUT, "Artifact"), (ISLES, "Weed")])
    labels, _, faults = draw(slide, file, described(table="t", no_data=["Artifact"], outside="ignore"))
    tree = inside(LAKE, 80, 100) & ~inside(HUT, 80, 100)
    assert (labels == np.where(tree, 1, 255)).all()
    assert len(faults) == 1 and "'Weed' (1)" in faults[0]


def test_no_polygon_on_the_image_is_an_error_and_a_cut_one_a_fault(
    slide: Path, described: Callable[..., Dataset]
) -> None:
    away = qupath(slide.with_name("a.geojson"), [(shapely.box(200, 200, 210, 210), "tree")])
    with pytest.raises(DataError, match="no polygon"):
        draw(slide, away, described(table="t"))
    cut = qupath(
        slide.with_name("b.geojson"), [(shapely.box(90, 70, 120, 90), "tree"), (shapely.box(200, 0, 210, 9), "tree")]
    )
    _, _, faults = draw(slide, cut, described(table="t"))
    assert any("outside the image: 1" in fault for fault in faults) and any("cut there: 1" in fault for fault in faults)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".parquet"])
@pytest.mark.parametrize("placed", [False, True])
def test_a_file_without_a_feature_is_all_background(
    suffix: str, placed: bool, slide: Path, described: Callable[..., Dataset]
) -> None:
    image, file = slide, slide.with_name(f"none{suffix}")
    if placed:
        image = slide.with_name("i.tif")
        at = {"crs": "EPSG:32636", "transform": from_origin(323000, 39200, 1, 1), "height": 80, "width": 100}
        with rasterio.open(image, "w", driver="GTiff", count=1, dtype="uint8", **at) as written:
            written.write(np.zeros((80, 100), np.uint8), 1)
    frame = geopandas.GeoDataFrame({"kind": []}, geometry=[], crs="EPSG:32636")
    frame.to_parquet(file) if suffix == ".parquet" else frame.to_file(file)
    labels, objects, faults = draw(image, file, described(table="t", instances=True))
    assert not labels.any() and not objects.any()
    assert len(faults) == 1 and "all of the image is background" in faults[0]
    for other in ({"outside": "ignore"}, {"classes": [{**c, "background": False} for c in CLASSES]}):
        with pytest.raises(DataError, match="holds no polygons"):
            draw(image, file, described(table="t", **other))


def test_a_file_of_other_features_is_no_empty_one(slide: Path, described: Callable[..., Dataset]) -> None:
    for name, content in (("a", {"type": "Feature", "geometry": None, "properties": {}}), ("b", {"slides": 3})):
        file = slide.with_name(f"{name}.json")
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match="holds no polygons"):
            draw(slide, file, described(table="t"))
    with pytest.raises(DataError, match="holds no polygons"):
        draw(slide, qupath(slide.with_name("c.geojson"), [(shapely.Point(3, 3), "tree")]), described(table="t"))


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".parquet"])
def test_any_crs_falls_where_geopandas_and_gdal_put_it(
    suffix: str, tmp_path: Path, described: Callable[..., Dataset]
) -> None:
    place = from_origin(323000, 39200, 0.5, 0.5)
    with rasterio.open(
        tmp_path / "i.tif",
        "w",
        driver="GTiff",
        height=120,
        width=160,
        count=1,
        dtype="uint8",
        crs="EPSG:32636",
        transform=place,
    ) as image:
        image.write(np.zeros((120, 160), np.uint8), 1)
    ground = [shapely.box(323005, 39150, 323030, 39190), shapely.Point(323055, 39170).buffer(15)]
    frame = geopandas.GeoDataFrame({"kind": ["tree", "roof"]}, geometry=ground, crs="EPSG:32636").to_crs("EPSG:4326")
    file = tmp_path / f"s{suffix}"
    frame.to_parquet(file) if suffix == ".parquet" else frame.to_file(file)
    labels, _, faults = draw(tmp_path / "i.tif", file, described(table="t", property="kind"))
    expected = rasterio.features.rasterize(zip(ground, (1, 2), strict=True), out_shape=(120, 160), transform=place)
    assert (labels == expected).all()
    assert any("the image in EPSG:32636: reprojected" in fault for fault in faults)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_column_of_numbers_with_gaps_names_classes_by_whole_numbers(
    suffix: str, slide: Path, described: Callable[..., Dataset]
) -> None:
    frame = geopandas.GeoDataFrame(
        {"kind": pd.array([1, 2, None], dtype="Int64")}, geometry=[LAKE, ISLES, shapely.box(0, 70, 9, 79)]
    )
    frame.to_file(slide.with_name(f"s{suffix}"))
    classes = [CLASSES[0], {**CLASSES[1], "labels": ["1"]}, {**CLASSES[2], "labels": ["2"]}]
    labels, _, faults = draw(slide, slide.with_name(f"s{suffix}"), described(classes, table="t", property="kind"))
    expected = np.where(inside(LAKE, 80, 100), 1, np.where(inside(ISLES, 80, 100), 2, 0))
    expected[70:79, :9] = 255
    assert (labels == expected).all()
    assert len(faults) == 1 and "'without a class' (1)" in faults[0]


def test_gzipped_geojson_is_geojson(slide: Path, described: Callable[..., Dataset]) -> None:
    plain = qupath(slide.with_name("a.geojson"), [(HUT, "roof"), (LAKE, "tree")])
    packed = slide.with_name("a.geojson.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert (draw(slide, packed, described(table="t"))[0] == draw(slide, plain, described(table="t"))[0]).all()
    assert holds_polygons(str(packed)) and not holds_polygons("mask.png.gz")
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="does not read as polygons"):
        draw(slide, packed, described(table="t"))


def test_geoparquet_of_an_unknown_crs_is_no_pixels_of_a_scene(
    tmp_path: Path, described: Callable[..., Dataset]
) -> None:
    with rasterio.open(tmp_path / "i.tif", "w", driver="GTiff", height=20, width=20, count=1, dtype="uint8",
                       crs="EPSG:32636", transform=from_origin(0, 20, 1, 1)) as file:  # fmt: skip
        file.write(np.zeros((20, 20), np.uint8), 1)
    frame = geopandas.GeoDataFrame({"kind": ["tree"]}, geometry=[shapely.box(2, 2, 9, 9)])
    frame.to_parquet(tmp_path / "s.parquet")
    with pytest.raises(DataError, match="states no CRS"):
        draw(tmp_path / "i.tif", tmp_path / "s.parquet", described(table="t", property="kind"))


def test_several_classes_need_a_property(tmp_path: Path, slide: Path, described: Callable[..., Dataset]) -> None:
    frame = geopandas.GeoDataFrame({"kind": ["tree"]}, geometry=[HUT])
    frame.to_file(tmp_path / "s.gpkg")
    with pytest.raises(DataError, match="set property to one of kind"):
        draw(slide, tmp_path / "s.gpkg", described(table="t"))


def test_kampala_footprints_fall_on_the_mask_that_others_drew(
    data_dir: Path, described: Callable[..., Dataset]
) -> None:
    folder = data_dir / "kampala"
    classes = [{"name": "land", "color": [0, 0, 0], "background": True}, {"name": "building", "color": [1, 1, 1]}]
    labels, _, _ = draw(
        folder / "kampala_A_z19.tif", folder / "kampala_A_buildings.geojson", described(classes, table="t"), side=256
    )
    with rasterio.open(folder / "kampala_A_z19_buildings.tif") as file:
        mask = file.read(1) > 0
    edge = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask, border_value=1)
    assert 0.2 < labels.mean() < 0.3
    assert not ((labels > 0) != mask)[~edge].any()
    assert ((labels > 0) != mask).mean() < 0.01


ENDS = [
    ("EPSG:4326", 180.0, 0.01),
    ("EPSG:4326", -180.0, 0.01),
    ("EPSG:3857", 20037508.342789244, 1000.0),
    ("EPSG:3395", -20037508.342789244, 1000.0),
]


@pytest.mark.parametrize(("code", "x", "step"), ENDS)
def test_polygons_on_either_side_of_longitude_180(
    code: str, x: float, step: float, tmp_path: Path, described: Callable[..., Dataset]
) -> None:
    y = -16.0 if step < 1 else -1.8e6
    place = from_origin(x - 20 * step, y, step, step)
    scene, classes = tmp_path / "fiji.tif", [CLASSES[0], CLASSES[2]]
    facts: dict[str, Any] = {"height": 40, "width": 60, "count": 1, "dtype": "uint8", "crs": code, "transform": place}
    with rasterio.open(scene, "w", driver="GTiff", **facts) as file:
        file.write(np.ones((1, 40, 60), np.uint8))
    columns, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5)
    where = [values.ravel() for values in (place.a * columns + place.c, place.e * rows + place.f)]

    # One feature of two parts, as RFC 7946 wants it, and one that a projection keeps whole, with a hole at 180 degrees.
    islands = shapely.MultiPolygon([shapely.box(179.9, -16.3, 180, -16.1), shapely.box(-180, -16.3, -179.7, -16.1)])
    frame = {"type": "Feature", "properties": {"kind": "roof"}, "geometry": shapely.geometry.mapping(islands)}
    cut = tmp_path / "cut.geojson"
    cut.write_text(json.dumps({"type": "FeatureCollection", "features": [frame]}))
    labels, objects, faults = draw(scene, cut, described(classes, table="t", property="kind", instances=True))
    longitude, latitude = rasterio.warp.transform(code, "EPSG:4326", *where)
    longitude, latitude = np.reshape(longitude, (40, 60)) % 360, np.reshape(latitude, (40, 60))
    expected = shapely.contains_xy(shapely.box(179.9, -16.3, 180.3, -16.1), longitude, latitude)
    assert expected.any() and np.array_equal(labels == 1, expected) and np.array_equal(objects, expected.astype(int))
    assert not any("outside" in fault or "edge" in fault for fault in faults)

    ring = shapely.box(1.7e5, 8.21e6, 2.0e5, 8.23e6).difference(shapely.box(1.76e5, 8.217e6, 1.83e5, 8.223e6))
    geopandas.GeoDataFrame({"kind": ["roof"]}, geometry=[ring], crs="EPSG:32701").to_file(tmp_path / "whole.gpkg")
    labels, _, _ = draw(scene, tmp_path / "whole.gpkg", described(classes, table="t", property="kind"))
    easting, northing = rasterio.warp.transform(code, "EPSG:32701", *where)
    expected = shapely.contains_xy(ring, easting, northing).reshape(40, 60)
    assert expected.sum() > 300 and ((labels == 1) != expected).mean() < 0.01
