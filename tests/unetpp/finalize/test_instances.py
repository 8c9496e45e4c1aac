"""Instances equal those of whole objects split one by one in the whole image; shapes equal shapely's and skimage's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pytest
import scipy.ndimage as ndi
import shapely
from pyproj import CRS, Geod
from rasterio.features import rasterize
from skimage.measure import label as components

from unetpp.durable import file_sha256
from unetpp.finalize import figures, finalize, instances, verify_products
from unetpp.geometry import Spacing
from unetpp.job import SegmentJob
from unetpp.objects import split_objects

UTM = {"crs": CRS.from_epsg(32636).to_wkt(), "transform": (0.5, 0.0, 449000.0, 0.0, -0.5, 36500.0)}
LONLAT = {"crs": CRS.from_epsg(4326).to_wkt(), "transform": (1e-4, 0.0, 20.0, 0.0, -1e-4, 61.0)}
SLIDE = {"spacing": Spacing(0.5, 0.25, "um"), "step": 2.0}
MakeJob = Callable[..., SegmentJob]


def discs(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """Return overlapping discs of two classes, some cut by the image's edge, some smaller than an instance may be."""
    chance = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    y, x = np.ogrid[:height, :width]
    for _ in range(count):
        cy, cx, radius = chance.uniform(0, height), chance.uniform(0, width), chance.uniform(1.2, 11)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = chance.choice([1, 1, 1, 4])
    labels[:, -7:] = 255
    return labels


def whole_image_instances(labels: np.ndarray) -> set[tuple[int, bytes]]:
    """Split every 4-connected object alone in an array of the image's size; return class and pixels of each."""
    found = set()
    for value in (1, 4):
        objects, count = ndi.label(labels == value)
        for number in range(1, count + 1):
            split = split_objects(objects == number, min_area=instances.MIN_AREA)
            parts = components(split, background=0, connectivity=1)
            for part in range(1, int(parts.max()) + 1):
                if (parts == part).sum() >= instances.MIN_AREA:
                    found.add((value, np.packbits(parts == part).tobytes()))
    return found


def written_instances(job: SegmentJob, shape: tuple[int, int]) -> set[tuple[int, bytes]]:
    """Rasterize the polygons of the GeoPackage with GDAL."""
    a, b, c, d, e, f = job.grid.transform or (job.grid.step_x, 0, 0, 0, job.grid.step_y, 0)
    from rasterio.transform import Affine

    table = geopandas.read_file(job.out / "polygons.gpkg")
    assert table.geometry.is_valid.all()
    return {
        (int(row["class"]), np.packbits(rasterize([row.geometry], shape, transform=Affine(a, b, c, d, e, f))).tobytes())
        for _, row in table.iterrows()
    }


@pytest.mark.parametrize("seed", range(2))
def test_instances_are_those_of_the_whole_image_whatever_the_shards(seed: int, make_job: MakeJob) -> None:
    labels = discs(160, 210, 90, seed)
    expected = whole_image_instances(labels)
    objects = sum(ndi.label(labels == value)[1] for value in (1, 4))
    assert len(expected) > 30 and objects > 15
    tables = []
    for shard in (64, 256):
        job = make_job(labels, **UTM, shard=shard, name=f"out{shard}")
        found = finalize(job, formats=["gpkg"], instances=True)
        assert found.instances is not None
        assert sum(found.instances.values()) == len(expected) and sum(found.objects.values()) == objects
        assert written_instances(job, labels.shape) == expected
        tables.append(pandas.read_parquet(job.out / "instances.parquet").sort_values("id", ignore_index=True))
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0]["id"].is_unique


def test_the_canvas_gives_what_single_objects_give(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = discs(300, 300, 200, seed=5)
    together, alone = make_job(labels, **UTM, name="together"), make_job(labels, **UTM, name="alone")
    finalize(together, formats=["gpkg"], instances=True)
    monkeypatch.setattr(instances, "_CANVAS", 1)
    monkeypatch.setattr(instances, "_COLOURS", 2)
    finalize(alone, formats=["gpkg"], instances=True)
    for name in ("polygons.gpkg", "instances.parquet"):
        assert file_sha256(together.out / name) == file_sha256(alone.out / name)


def test_a_huge_object_is_cut_along_fixed_lines(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "SIDE", 48)
    monkeypatch.setattr(instances, "_CANVAS", 60)
    labels = np.zeros((130, 200), np.uint8)
    labels[10:120, 10:190] = 1
    labels[40:70, 60:100] = 0
    expected = set()
    for y in range(0, 130, 48):
        for x in range(0, 200, 48):
            cell = labels[y : min(y + 48, 120), x : x + 48][:, : max(0, 190 - x)]
            cell = cell[max(0, 10 - y) :, max(0, 10 - x) :]
            if cell.size == 0:
                continue
            parts = components(split_objects(cell == 1, min_area=16), background=0, connectivity=1)
            for part in range(1, int(parts.max()) + 1):
                mask = np.zeros(labels.shape, bool)
                top, left = max(y, 10), max(x, 10)
                mask[top : top + cell.shape[0], left : left + cell.shape[1]] = parts == part
                expected.add((1, np.packbits(mask).tobytes()))
    for shard in (64, 256):
        job = make_job(labels, **UTM, shard=shard, name=f"out{shard}")
        finalize(job, formats=["gpkg"], instances=True)
        assert written_instances(job, labels.shape) == expected


@pytest.mark.parametrize("place", [UTM, SLIDE, LONLAT, {}], ids=["scene", "slide", "4326", "image"])
def test_shapes_are_those_of_the_polygons(place: dict[str, Any], make_job: MakeJob) -> None:
    labels = discs(150, 200, 60, seed=1)
    job = make_job(labels, **place)
    found = finalize(job, formats=["gpkg", "geojson"], instances=True)
    polygons = geopandas.read_file(job.out / "polygons.gpkg").set_index("id").sort_index()
    table = pandas.read_parquet(job.out / "instances.parquet").set_index("id").sort_index()
    assert table.index.equals(polygons.index) and len(table) > 20
    assert table.groupby("name").size().to_dict() == found.instances
    a, _, c, _, e, f = job.grid.transform or (job.grid.step_x, 0, 0, 0, job.grid.step_y, 0)
    step_x, step_y = job.grid.step_x, job.grid.step_y
    level0 = shapely.transform(polygons.geometry.array, lambda xy: (xy - [c, f]) / [a, e] * [step_x, step_y])
    assert table["area_px"].to_numpy() == pytest.approx(shapely.area(level0))
    assert table["perimeter_px"].to_numpy() == pytest.approx(shapely.length(level0))
    centre = shapely.get_coordinates(shapely.centroid(level0))
    assert table[["centroid_x_px", "centroid_y_px"]].to_numpy() == pytest.approx(centre)
    if place is UTM:
        assert table["perimeter_m"].to_numpy() == pytest.approx(polygons.length)
        assert table["area_m2"].to_numpy() == pytest.approx(polygons.area)
        assert table[["centroid_x", "centroid_y"]].to_numpy() == pytest.approx(
            shapely.get_coordinates(polygons.centroid.array)
        )
    elif place is LONLAT:
        # Between two vertices a pixel's edge runs along the parallel, pyproj's along the geodesic.
        measured = [Geod(ellps="WGS84").geometry_area_perimeter(one) for one in polygons.geometry]
        assert table["area_m2"].to_numpy() == pytest.approx([abs(area) for area, _ in measured], rel=1e-5)
        # pyproj's perimeter leaves out holes
        whole = [not one.interiors for one in polygons.geometry]
        lengths = np.array([length for _, length in measured])
        assert table["perimeter_m"].to_numpy()[whole] == pytest.approx(lengths[whole], rel=1e-9)
    elif place is SLIDE:
        um = shapely.transform(level0, lambda xy: xy / 2 * [0.25, 0.5])
        assert table["perimeter_um"].to_numpy() == pytest.approx(shapely.length(um))
        assert table["area_um2"].to_numpy() == pytest.approx(shapely.area(um))
        feature = json.loads((job.out / "polygons.geojson").read_text())["features"][0]
        row = table.loc[feature["id"]]
        assert feature["properties"]["measurements"] == {
            "Area px^2": row["area_px"],
            "Area µm^2": row["area_um2"],
            "Perimeter px": row["perimeter_px"],
            "Perimeter µm": row["perimeter_um"],
            "Centroid X px": row["centroid_x_px"],
            "Centroid Y px": row["centroid_y_px"],
        }
    else:
        assert list(table.columns) == ["class", "name", "area_px", "perimeter_px", "centroid_x_px", "centroid_y_px"]
    for column in set(table.columns) & set(polygons.columns):
        assert (table[column] == polygons[column]).all()


def test_asked_for_later_or_no_more_only_the_polygons_change(make_job: MakeJob) -> None:
    labels = discs(150, 200, 60, seed=2)
    job, once = make_job(labels, **UTM), make_job(labels, **UTM, name="once")
    plain = finalize(job)
    objects = file_sha256(job.out / "polygons.gpkg")
    kept = {name: (job.out / name).stat().st_mtime_ns for name in ("classes.tif", "finalize/objects.json")}
    split = finalize(job, instances=True)
    assert {name: (job.out / name).stat().st_mtime_ns for name in kept} == kept
    assert split == finalize(once, instances=True) == figures(job, instances=True)
    for name in ("polygons.gpkg", "polygons.geojson", "instances.parquet"):
        assert file_sha256(job.out / name) == file_sha256(once.out / name)
    assert plain.instances is None and "instances" not in plain.outputs
    assert split.instances is not None and split.outputs["instances"] == "instances.parquet"
    path: Path = job.out / "instances.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert list(verify_products(job)) == ["instances.parquet"]
    assert finalize(job) == plain
    assert file_sha256(job.out / "polygons.gpkg") == objects


@pytest.mark.parametrize("formats", [("cog", "gpkg"), ("cog",)])
def test_asked_for_no_more_no_file_holds_instances(formats: tuple[str, ...], make_job: MakeJob) -> None:
    """A part may have the id that its object has: a table of parts beside objects would be taken for theirs."""
    job, once = make_job(discs(150, 200, 60, seed=2), **UTM), make_job(discs(150, 200, 60, seed=2), **UTM, name="once")
    finalize(job, formats=("cog", "gpkg"), instances=True)
    assert finalize(job, formats=formats) == finalize(once, formats=formats)
    assert {path.name for path in job.out.iterdir()} == {path.name for path in once.out.iterdir()}
    assert figures(job, formats=formats) is not None and not verify_products(job)


def test_memory_does_not_grow_with_the_number_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    from unetpp.finalize.outlines import PixelObject

    monkeypatch.setattr(instances, "_CANVAS", 256)
    ring = np.array([[0, 0], [20, 0], [20, 20], [0, 20]], np.int64)

    def objects(count: int) -> Iterator[PixelObject]:
        for number in range(count):
            y, x = 5 + 30 * (number // 100), 5 + 30 * (number % 100)
            yield PixelObject(1, (y, x), 400, (np.add(ring, [x, y]),))

    def peak(count: int) -> int:
        tracemalloc.start()
        assert sum(1 for _ in instances.iter_instances(objects(count), 10**6, 10**6)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(200)
    assert peak(2000) < 1.1 * peak(400)


def test_an_image_without_objects_has_an_empty_table(make_job: MakeJob) -> None:
    job = make_job(np.zeros((60, 60), np.uint8), **SLIDE)
    assert finalize(job, instances=True).instances == {"nucleus": 0, "Gebäude": 0}
    assert len(pandas.read_parquet(job.out / "instances.parquet")) == 0
