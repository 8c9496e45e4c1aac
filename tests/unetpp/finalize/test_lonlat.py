"""Outlines in geographic coordinate systems across the antimeridian and round the poles."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from pyproj import CRS
from pyproj.crs import CompoundCRS, DerivedGeographicCRS
from pyproj.crs.coordinate_operation import RotatedLatitudeLongitudeConversion

from unetpp.finalize.lonlat import LonLat
from unetpp.finalize.outlines import Outlines
from unetpp.geometry import Transform

ROTATED_POLE = DerivedGeographicCRS(CRS.from_epsg(4326), RotatedLatitudeLongitudeConversion(39.25, 0, 18))
"""The North Pole is at its longitude 0 and latitude 39.25."""
HEIGHTS = CRS.from_epsg(5703)


def outline(crs: CRS, transform: Transform, width: int, height: int) -> shapely.Geometry:
    """Return the outline of a whole grid, checked against RFC 7946."""
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.int64)
    (geometry,) = LonLat(crs.to_wkt(), transform, width).geometries(Outlines.of([[corners]]))
    assert geometry is not None
    found = shapely.geometry.shape(geometry)
    assert found.is_valid and all(part.exterior.is_ccw for part in shapely.get_parts(found))
    assert found.bounds[0] >= -180 and found.bounds[2] <= 180
    return found


@pytest.mark.parametrize("west", [179.8, -180.2], ids=["past 180", "past -180"])
@pytest.mark.parametrize("north", [52.0, -16.0])
@pytest.mark.parametrize("code", [4326, 4267, 4269, 4720, 4721, 4284, 4200, 4272])
def test_a_square_across_the_antimeridian_has_a_part_on_either_side(code: int, north: float, west: float) -> None:
    """Of some systems PROJ brings the longitudes to -180..180, in places only."""
    found = outline(CRS.from_epsg(code), (0.004, 0, west, 0, -0.004, north), 100, 100)
    assert found.geom_type == "MultiPolygon"
    first, second = sorted(part.bounds for part in found.geoms)
    assert (first[0], second[2]) == (-180, 180)
    assert (first[2], second[0]) == pytest.approx((-179.8, 179.8), abs=0.01)
    for _, south, _, top in (first, second):
        assert (south, top) == pytest.approx((north - 0.4, north), abs=0.01)
    # PROJ shifts some corners by another operation than others: NAD27 is as much as 0.002 degrees off a rectangle.
    assert found.area == pytest.approx(0.16, abs=0.002)


def test_beyond_a_pole_and_the_antimeridian_there_is_nothing() -> None:
    """The row of the pole is the last one on the globe: what a grid has further on is no place."""
    square = np.array([(99, 150), (101, 150), (101, 152), (99, 152)], np.int64)
    grid = LonLat(CRS.from_epsg(4326).to_wkt(), (1e-4, 0, 179.99, 0, -1e-4, -89.99), 512)
    assert grid.geometries(Outlines.of([[square]])) == [None]


@pytest.mark.parametrize("code", [4269, 4720, 4284])
def test_a_square_beyond_the_antimeridian_lies_on_the_other_side(code: int) -> None:
    found = outline(CRS.from_epsg(code), (0.004, 0, 181.0, 0, -0.004, 52), 100, 100)
    assert found.geom_type == "Polygon"
    assert found.bounds == pytest.approx((-179, 51.6, -178.6, 52), abs=0.01)


def test_holes_across_the_antimeridian_are_cut_with_their_shell() -> None:
    boxes = [(0, 0, 100, 100), (40, 20, 60, 40), (70, 20, 80, 40)]
    shell, *holes = (np.array([(x, y), (z, y), (z, w), (x, w)], np.int64) for x, y, z, w in boxes)
    lonlat = LonLat(CRS.from_epsg(4284).to_wkt(), (0.004, 0, 179.8, 0, -0.004, 52), 100)
    (geometry,) = lonlat.geometries(Outlines.of([[shell, *(hole[::-1] for hole in holes)]]))
    found = shapely.geometry.shape(geometry)
    assert found.is_valid and len(found.geoms) == 2
    assert found.area == pytest.approx((100 * 100 - 20 * 20 - 10 * 20) * 0.004**2, rel=1e-4)


def test_grads_from_paris_across_the_antimeridian() -> None:
    """The antimeridian of Greenwich is 197.4 grads east of Paris."""
    found = outline(CRS.from_epsg(4807), (0.004, 0, 197.2, 0, -0.004, 55), 100, 100)
    assert found.geom_type == "MultiPolygon" and found.area == pytest.approx(0.4**2 * 0.9**2, rel=0.001)


def test_longitudes_from_the_antimeridian() -> None:
    crs = CRS.from_user_input("+proj=longlat +ellps=WGS84 +pm=180 +type=crs")
    found = outline(crs, (0.004, 0, -0.2, 0, -0.004, 55), 100, 100)
    assert found.geom_type == "MultiPolygon" and found.area == pytest.approx(0.16, rel=0.001)


@pytest.mark.parametrize("code", [4326, 4269])
def test_the_outline_of_the_whole_globe_is_its_four_corners(code: int) -> None:
    crs = CRS.from_epsg(code)
    corners = np.array([(0, 0), (1440, 0), (1440, 720), (0, 720)], np.int64)
    lonlat = LonLat(crs.to_wkt(), (0.25, 0, -180, 0, -0.25, 90), 1440)
    assert lonlat.geometries(Outlines.of([[corners]])) == [
        {"type": "Polygon", "coordinates": [[[-180, 90], [-180, -90], [180, -90], [180, 90], [-180, 90]]]}
    ]


@pytest.mark.parametrize(("west", "width"), [(-180.0, 360), (-170.0, 300), (0.0, 360), (10.0, 340)])
@pytest.mark.parametrize("code", [4326, 4269, 4284])
def test_wider_than_half_the_globe_is_no_jump(code: int, west: float, width: int) -> None:
    found = outline(CRS.from_epsg(code), (1.0, 0, west, 0, -1.0, 60), width, 50)
    assert found.area == pytest.approx(width * 50, rel=0.001)
    assert found.contains(shapely.Point(west + 150 - 360 * (west + 150 > 180), 30))


@pytest.mark.parametrize("west", [-180, -90, 90, 150, 175, 260])
@pytest.mark.parametrize("code", [4326, 4269, 4284])
def test_cells_at_the_poles_keep_their_corners(code: int, west: int) -> None:
    """The poles of Pulkovo 1942 lie 140 m beside those of WGS 84."""
    for north in (90, -80):
        found = outline(CRS.from_epsg(code), (1.0, 0, west, 0, -1.0, north), 10, 10)
        assert found.area == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("crs", [ROTATED_POLE, CompoundCRS("with heights", [ROTATED_POLE, HEIGHTS])])
def test_a_cell_of_a_rotated_pole_round_the_pole_covers_the_pole(crs: CRS) -> None:
    found = outline(crs, (0.5, 0, -0.25, 0, -0.5, 39.5), 1, 1)
    assert (found.bounds[0], found.bounds[2], found.bounds[3]) == (-180, 180, 90)
    assert found.contains(shapely.Point(10, 89.9)) and not found.contains(shapely.Point(10, 89))


def test_a_grid_of_a_rotated_pole_across_the_antimeridian_is_cut_and_bent() -> None:
    found = outline(ROTATED_POLE, (0.1, 0, 6.0, 0, -0.1, 62), 100, 100)
    assert found.geom_type == "MultiPolygon"
    assert found.bounds[0] == -180 and found.bounds[2] == 180
    assert found.contains(shapely.Point(179.9, 70)) and found.contains(shapely.Point(-179.9, 70))
    assert not found.contains(shapely.Point(0, 70)) and shapely.get_num_coordinates(found) > 4 * 8
