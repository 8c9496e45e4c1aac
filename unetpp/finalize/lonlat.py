"""Pixel outlines as RFC 7946 coordinates: WGS 84, longitude first, shells counter-clockwise; knows no labels or files.

RFC 7946 (2016): polygons follow the right-hand rule (section 3.1.6), what crosses the antimeridian is cut there
(3.1.9), positions are longitude and latitude in degrees of WGS 84 (4). Straight edges of the grid are bent by most
projections, so long ones get vertices at fixed grid lines, the same ones for both neighbours of an edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetpp.finalize.outlines import Ints, Outlines
from unetpp.geometry import Transform

if TYPE_CHECKING:
    from pyproj import CRS

Coordinates = npt.NDArray[np.float64]
DECIMALS = 9
"""Of a degree: 0.1 mm on the ground, so that even pixels of a centimetre keep their outline."""
_GAP = 10.0**-DECIMALS
_BEND = 128
"""Longest edge in pixels; at 60 degrees of latitude its arc leaves the chord by 0.02 of a pixel for pixels of 30 m."""


class LonLat:
    """Turns outlines of one output grid into GeoJSON geometries.

    Args:
        crs: WKT of the grid's CRS.
        transform: output-grid pixels -> CRS.
        width: of the grid in pixels.

    Raises:
        ValueError: the CRS has no known relation to longitude and latitude.
    """

    def __init__(self, crs: str, transform: Transform, width: int) -> None:
        from pyproj import CRS, Transformer
        from pyproj.exceptions import ProjError

        from unetpp.io.resample import horizontal

        source = CRS.from_wkt(crs)
        try:
            self._project = Transformer.from_crs(source, CRS.from_epsg(4326), always_xy=True)
        except ProjError as error:
            raise ValueError(f"no transformation from {source.name} to WGS 84: {error}") from error
        self._transform = transform
        # Parallels and meridians stay straight, but not those of a rotated pole.
        straight = source.is_geographic and not horizontal(crs).is_derived
        self._bend = None if straight else min(_BEND, max(1, width // 8))
        self._longitude = _longitude(horizontal(crs)) if straight else None
        # Of geographic grids whose pixel centres lie on the poles the outer rows reach half a pixel beyond them.
        self._pole = math.pi / 2 / source.axis_info[0].unit_conversion_factor if source.is_geographic else math.inf

    def geometries(self, outlines: Outlines) -> list[dict[str, Any] | None]:
        """Return a Polygon, a MultiPolygon where the antimeridian cuts it, None where it does not lie on the globe."""
        degrees = self._degrees(outlines.vertices)
        backwards = _runs_clockwise(degrees, outlines) == outlines.shells
        points = np.round(degrees, DECIMALS).tolist()
        found: list[dict[str, Any] | None] = [{"type": "Polygon", "coordinates": []} for _ in range(outlines.count)]
        bounds = outlines.starts.tolist()
        for k, owner in enumerate(outlines.owner.tolist()):
            ring = points[bounds[k] : bounds[k + 1]]
            found[owner]["coordinates"].append(ring[::-1] if backwards[k] else ring)
        for one in self._special(outlines, degrees).tolist():
            rings = np.flatnonzero(outlines.owner == one).tolist()
            found[one] = self._geometry([outlines.vertices[bounds[k] : bounds[k + 1] - 1] for k in rings])
        return found

    def _special(self, outlines: Outlines, degrees: Coordinates) -> Ints:
        """Return the objects that need more than a projection: bent edges, antimeridian, a pole, no place at all."""
        steps = np.abs(outlines.steps()).max(axis=1)
        with np.errstate(invalid="ignore"):  # points off the globe are infinite
            jumps = np.abs(np.diff(degrees[:, 0]))
        jumps[steps == 0] = 0
        special = ~np.isfinite(degrees).all(axis=1) | ~(np.abs(degrees[:, 0]) <= 180)
        if self._bend is not None:
            special[:-1] |= (steps > self._bend) | ~(jumps <= 180)
        ring = np.searchsorted(outlines.starts, np.flatnonzero(special), side="right") - 1
        return np.unique(outlines.owner[ring])

    def _degrees(self, points: Ints) -> Coordinates:
        a, b, c, d, e, f = self._transform
        x, y = points[:, 0], points[:, 1]
        north = np.clip(d * x + e * y + f, -self._pole, self._pole)
        east = a * x + b * y + c
        longitude, latitude = self._project.transform(east, north)
        if self._longitude is not None:
            # PROJ brings the longitudes of some points to -180..180 and leaves others alone: each gets the turn that
            # the grid gives it, so that outlines run on across the antimeridian, and once round the globe is no jump.
            scale, meridian = self._longitude
            given = scale * east + meridian
            with np.errstate(invalid="ignore"):  # points off the globe are infinite
                turns = np.round((given - longitude) / 360)
                longitude = np.where(turns == 0, longitude, longitude + 360 * turns)
                # A pole lies beside that of WGS 84, all of its row at one longitude, which would make triangles.
                pole = (np.abs(north) > (1 - _GAP) * self._pole) & (np.abs(longitude - given) > 1)
                longitude = np.where(pole, given, longitude)
        return np.stack((longitude, latitude), axis=1)

    def _geometry(self, rings: Sequence[Ints]) -> dict[str, Any] | None:
        projected = [self._ring(ring) for ring in rings]
        if not all(np.isfinite(ring).all() for ring in projected):
            return None
        shell, *holes = projected
        centre = (shell[:, 0].min() + shell[:, 0].max()) / 2
        for hole in holes:
            hole[:, 0] += 360 * np.round((centre - hole[:, 0].mean()) / 360)
        within = shell[:, 0].min() >= -180 and shell[:, 0].max() <= 180
        parts = [[shell, *holes]] if within else _cut(shell, holes)
        polygons = [[_closed(ring, k == 0) for k, ring in enumerate(part)] for part in parts]
        if not polygons:
            return None
        if len(polygons) == 1:
            return {"type": "Polygon", "coordinates": polygons[0]}
        return {"type": "MultiPolygon", "coordinates": polygons}

    def _ring(self, ring: Ints) -> Coordinates:
        """Return (n, 2) degrees, longitudes running on across the antimeridian; a ring round a pole is led over it."""
        points = ring if self._bend is None else bent(ring, self._bend)
        degrees = self._degrees(points)
        if self._bend is None or not np.isfinite(degrees).all():
            return degrees
        around = np.unwrap(np.append(degrees[:, 0], degrees[0, 0]), period=360)
        degrees[:, 0] = around[:-1]
        if abs(around[-1] - around[0]) > 180:
            pole = np.copysign(90.0, degrees[:, 1].mean())
            degrees = np.concatenate([degrees, [[around[-1], degrees[0, 1]], [around[-1], pole], [around[0], pole]]])
        return degrees


def _longitude(crs: CRS) -> tuple[float, float]:
    """Return the degrees in a unit of a geographic CRS, and its prime meridian in degrees from Greenwich."""
    meridian = crs.prime_meridian
    offset = 0.0 if meridian is None else math.degrees(meridian.longitude * meridian.unit_conversion_factor)
    return math.degrees(crs.axis_info[0].unit_conversion_factor), offset


def _runs_clockwise(degrees: Coordinates, outlines: Outlines) -> npt.NDArray[np.bool_]:
    """Return (rings,) the sense of each ring."""
    # From each ring's own corner, or else the products of large coordinates would drown the area of a small pixel.
    corner = np.repeat(degrees[outlines.starts[:-1]], np.diff(outlines.starts), axis=0)
    with np.errstate(invalid="ignore"):  # points off the globe are infinite
        x, y = (degrees - corner).T
        products = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0.0)
    # A ring starts and ends at its corner, so that the product that reaches into the next ring is 0.
    return np.asarray(np.add.reduceat(products, outlines.starts[:-1]) < 0)


def bent(ring: Ints, step: int) -> Ints:
    """Add vertices to axis-parallel edges wherever they cross a multiple of `step`."""
    following = np.roll(ring, -1, axis=0)
    if np.abs(following - ring).max() < step:
        return ring
    points = []
    for (x0, y0), (x1, y1) in zip(ring.tolist(), following.tolist(), strict=True):
        points.append((x0, y0))
        begin, end = (x0, x1) if y0 == y1 else (y0, y1)
        low, high = sorted((begin, end))
        between = range((low // step + 1) * step, high, step)
        between = between if end > begin else between[::-1]
        points += [(k, y0) if y0 == y1 else (x0, k) for k in between]
    return np.asarray(points, np.int64)


def _cut(shell: Coordinates, holes: Sequence[Coordinates]) -> list[list[Coordinates]]:
    """Cut a polygon along the antimeridian and bring every part to longitudes from -180 to 180."""
    import shapely
    from shapely.affinity import translate

    # Of polygons alone: an intersection on a grid takes no lines beside them.
    polygon = shapely.make_valid(shapely.Polygon(shell, holes), method="structure", keep_collapsed=False)
    turns = range(int(np.floor((shell[:, 0].min() + 180) / 360)), int(np.ceil((shell[:, 0].max() + 180) / 360)))
    pieces: list[Any] = []
    for turn in turns:
        # On the grid of the decimals, or else edges along the antimeridian leave slivers that rounding makes invalid.
        zone = shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        inside = shapely.intersection(polygon, zone, grid_size=_GAP)
        pieces += shapely.get_parts(translate(inside, -360 * turn)).tolist()
    if np.ptp(shell[:, 0]) > 360 - _GAP:
        # Right round the globe: its two ends meet.
        pieces = shapely.get_parts(shapely.union_all(pieces, grid_size=_GAP)).tolist()
    # Beyond a pole, or smaller than the decimals, nothing is left.
    kept = [piece for piece in pieces if piece.geom_type == "Polygon" and not piece.is_empty]
    return [[shapely.get_coordinates(ring)[:-1] for ring in (piece.exterior, *piece.interiors)] for piece in kept]


def _closed(ring: Coordinates, shell: bool) -> list[list[float]]:
    x, y = ring[:, 0] - ring[0, 0], ring[:, 1]
    counter_clockwise = np.dot(x, np.roll(y, -1)) > np.dot(np.roll(x, -1), y)
    rounded = np.round(ring if counter_clockwise == shell else ring[::-1], DECIMALS)
    return [*rounded.tolist(), rounded[0].tolist()]
