"""Areas against PROJ's geodesic polygons and equal-area projections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pyproj import CRS, Geod, Transformer

from unetpp.finalize.areas import ClassArea, FlatMeasure, GeodesicMeasure, class_areas, measure
from unetpp.finalize.outlines import Outlines
from unetpp.finalize.pieces import write_pieces
from unetpp.finalize.polygons import iter_batches
from unetpp.geometry import Box, Spacing, Transform

NORTH_UP_4326 = (2e-4, 0.0, 32.5, 0.0, -1e-4, 0.3)
SOUTH_UP_4326 = (2e-4, 0.0, 179.9, 0.0, 1e-4, -80.0)
ROTATED_4326 = (1e-4, 4e-5, 12.0, 3e-5, -1.2e-4, 59.0)
NORTH_UP_3857 = (25.0, 0.0, 1.2e6, 0.0, -25.0, 8.5e6)
ROTATED_3857 = (20.0, 5.0, 1.2e6, -4.0, -22.0, 8.5e6)
NORTH_UP_3994 = (25.0, 0.0, 1.2e6, 0.0, -25.0, -4.5e6)
GEODESIC = {
    "4326": ("EPSG:4326", NORTH_UP_4326),
    "4326 south up": ("EPSG:4326", SOUTH_UP_4326),
    "4326 rotated": ("EPSG:4326", ROTATED_4326),
    "4326 metre cells": ("EPSG:4326", (1e-8, 0.0, 55.2, 0.0, -1e-8, 25.2)),
    "NAD27": ("EPSG:4267", NORTH_UP_4326),
    "NTF, grads": ("EPSG:4807", (2e-4, 0.0, 3.0, 0.0, -2e-4, 52.0)),
    "3857": ("EPSG:3857", NORTH_UP_3857),
    "3857 rotated": ("EPSG:3857", ROTATED_3857),
    "3857 with heights": ("EPSG:3857+5773", NORTH_UP_3857),
    "World Mercator": ("EPSG:3395", NORTH_UP_3857),
    "World Mercator rotated": ("EPSG:3395", ROTATED_3857),
    "true at 41 degrees": ("EPSG:3994", NORTH_UP_3994),
    "false northing": ("EPSG:3001", NORTH_UP_3857),
    "US feet": ("+proj=merc +lat_ts=56.5 +ellps=GRS80 +units=us-ft +y_0=1000", NORTH_UP_3857),
}


@dataclass(frozen=True)
class Grid:
    crs: str | None = None
    transform: Transform | None = None
    spacing: Spacing | None = None


def wkt(code: str) -> str:
    return str(CRS.from_user_input(code).to_wkt())


def equal_area(code: str, transform: Transform, polygon: np.ndarray) -> float:
    """Return the area of a polygon of pixel coordinates after projecting its densified outline to equal area."""
    a, b, c, d, e, f = transform
    steps = np.linspace(0, 1, 33)[:-1, None]
    nodes = np.concatenate([p + steps * (q - p) for p, q in zip(polygon, np.roll(polygon, -1, axis=0), strict=True)])
    source = CRS.from_user_input(code)
    geographic = source.geodetic_crs
    to_degrees = Transformer.from_crs(source, geographic, always_xy=True)
    x, y = to_degrees.transform(a * nodes[:, 0] + b * nodes[:, 1] + c, d * nodes[:, 0] + e * nodes[:, 1] + f)
    radians = geographic.axis_info[0].unit_conversion_factor
    ellipsoid = geographic.ellipsoid
    flat = Transformer.from_pipeline(
        f"+proj=cea +a={ellipsoid.semi_major_metre} +b={ellipsoid.semi_minor_metre} +lon_0={np.rad2deg(x[0] * radians)}"
    )
    x, y = flat.transform(np.asarray(x) * radians, np.asarray(y) * radians, radians=True)
    x, y = x - x[0], y - y[0]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def square(box: Box) -> np.ndarray:
    return np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)], np.int64)


@pytest.mark.parametrize("name", GEODESIC)
def test_cells_and_outlines_equal_an_equal_area_projection(name: str) -> None:
    code, transform = GEODESIC[name]
    how = measure(Grid(wkt(code), transform))
    assert isinstance(how, GeodesicMeasure) and (how.unit, how.method) == ("m2", "geodesic")
    for box in (Box(0, 0, 1, 1), Box(700, 300, 701, 301), Box(5, 9, 60, 32)):
        cells = np.broadcast_to(how.cells(box), box.shape)
        truth = equal_area(code, transform, square(box))
        tolerance = 1e-5 if "metre" in name else 1e-8
        assert cells.sum() == pytest.approx(truth, rel=tolerance)
        assert how.objects(Outlines.of([[square(box)]]), np.array([box.area])).item() == pytest.approx(
            truth, rel=tolerance
        )


def test_cells_equal_geodesic_polygons() -> None:
    how = measure(Grid(wkt("EPSG:4326"), NORTH_UP_4326))
    assert isinstance(how, GeodesicMeasure)
    a, _, c, _, e, f = NORTH_UP_4326
    for row in (0, 2500, 5999):
        corners = square(Box(row, 4, row + 1, 5))
        truth, _ = Geod(ellps="WGS84").polygon_area_perimeter(a * corners[:, 0] + c, e * corners[:, 1] + f)
        assert how.cells(Box(row, 0, row + 1, 1)).item() == pytest.approx(abs(truth), rel=1e-8)


def test_a_grid_of_the_whole_world_has_the_area_of_the_ellipsoid() -> None:
    # Pixel centres on the poles: the first and last row reach half a pixel beyond them.
    how = measure(Grid(wkt("EPSG:4326"), (0.5, 0.0, -180.25, 0.0, -0.5, 90.25)))
    total = how.cells(Box(0, 0, 361, 1)).sum() * 720
    corners = np.linspace(-180, 180, 721)[:-1]
    half, _ = Geod(ellps="WGS84").polygon_area_perimeter(corners, np.zeros(720))
    assert total == pytest.approx(2 * abs(half), rel=1e-12)


def test_web_mercator_is_not_measured_in_its_own_metres() -> None:
    how = measure(Grid(wkt("EPSG:3857"), NORTH_UP_3857))
    ratio = how.cells(Box(0, 0, 1, 1)).item() / 25.0**2
    latitude = Transformer.from_crs(3857, 4326, always_xy=True).transform(1.2e6, 8.5e6)[1]
    assert ratio == pytest.approx(math.cos(math.radians(latitude)) ** 2, rel=0.01) and ratio < 0.4


@pytest.mark.parametrize("code", ["EPSG:3857", "EPSG:3395", "EPSG:3395+5773", "EPSG:5641"])
@pytest.mark.parametrize("latitude", [0.0, 60.0, -84.0])
def test_mercator_cells_equal_geodesic_polygons(code: str, latitude: float) -> None:
    crs = CRS.from_user_input(code)
    x, y = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(-40, latitude)
    how = measure(Grid(wkt(code), (25.0, 0.0, x, 0.0, -25.0, y)))
    assert isinstance(how, GeodesicMeasure)
    corners = np.array([(0, 0), (25, 0), (25, -25), (0, -25)])
    back = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    truth, _ = Geod(ellps="WGS84").polygon_area_perimeter(*back.transform(x + corners[:, 0], y + corners[:, 1]))
    assert how.cells(Box(0, 0, 1, 1)).item() == pytest.approx(abs(truth), rel=1e-5)


@pytest.mark.parametrize(
    ("grid", "pixel", "unit", "method"),
    [
        (Grid(spacing=Spacing(0.25, 0.5, "um")), 0.125e-6, "mm2", "spacing"),
        (Grid(spacing=Spacing(0.3, 0.3, "m")), 0.09, "m2", "spacing"),
        (Grid(spacing=Spacing(1e-4, 1e-4, "deg")), 1.0, "px", "pixels"),
        (Grid(), 1.0, "px", "pixels"),
        (Grid(wkt("EPSG:32636"), (0.5, 0.0, 4e5, 0.0, -0.5, 3e4)), 0.25, "m2", "planar"),
        (Grid(wkt("EPSG:32636"), (0.3, 0.4, 4e5, 0.4, -0.3, 3e4)), 0.25, "m2", "planar"),
        (Grid(wkt("EPSG:2263"), (2.0, 0.0, 1e6, 0.0, -2.0, 2e5)), 4 * (1200 / 3937) ** 2, "m2", "planar"),
        (Grid(wkt("EPSG:7415"), (1.0, 0.0, 1e5, 0.0, -1.0, 5e5)), 1.0, "m2", "planar"),
        (Grid('LOCAL_CS["site",UNIT["metre",1]]', (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)), 1.0, "px", "pixels"),
    ],
    ids=["um", "m", "deg", "unknown", "UTM", "UTM rotated", "US feet", "compound", "local"],
)
def test_flat_pixels(grid: Grid, pixel: float, unit: str, method: str) -> None:
    how = measure(grid)
    assert isinstance(how, FlatMeasure)
    assert how.pixel == pytest.approx(pixel, rel=1e-12)
    assert (how.unit, how.method) == (unit, method)
    assert class_areas(how, {1: 40}, [], pytest.fail) == {1: ClassArea(40, pytest.approx(40 * pixel), unit)}


@pytest.mark.parametrize("name", ["4326", "3857 rotated"])
def test_class_areas_are_the_sum_of_cells_and_of_outlines(name: str, tmp_path: Path) -> None:
    code, transform = GEODESIC[name]
    how = measure(Grid(wkt(code), transform))
    assert isinstance(how, GeodesicMeasure)
    labels = np.random.default_rng(0).choice(np.array([0, 1, 4, 255], np.uint8), size=(60, 45))
    boxes = [Box(y, x, y + 20, x + 20).clip(60, 45) for y in (0, 20, 40) for x in (0, 20, 40)]
    counts = {value: int((labels == value).sum()) for value in (0, 1, 4, 7)}
    areas = class_areas(how, counts, boxes, lambda box: labels[box.slices()])
    cells = np.broadcast_to(how.cells(Box(0, 0, 60, 45)), (60, 45))
    for value, area in areas.items():
        assert area == ClassArea(counts[value], pytest.approx(cells[labels == value].sum(), rel=1e-12), "m2")
    write_pieces(lambda box: labels[box.slices()], boxes, np.isin(np.arange(256), (1, 4)), tmp_path / "pieces")
    sums = {1: 0.0, 4: 0.0}
    for batch in iter_batches(boxes, tmp_path / "pieces"):
        areas_of = how.objects(batch.outlines, np.zeros_like(batch.pixels))
        for label, area in zip(batch.labels.tolist(), areas_of, strict=True):
            sums[label] += area
    assert sums == {value: pytest.approx(areas[value].value, rel=1e-9) for value in sums}
