"""Areas on the ground of pixels and of pixel outlines; knows grids, spacings and ellipsoids, no files and no labels.

    spacing    known spacing, no CRS                  px * spacing, mm2 (or m2 where the spacing is in metres)
    planar     projected CRS                          px * pixel area in m2
    geodesic   geographic CRS, Mercator               exact cells of the ellipsoid, m2
    pixels     anything else: the size of a pixel is unknown and is not guessed

Geodesic cells follow Snyder, Map Projections: A Working Manual (USGS Professional Paper 1395, 1987), eq. 3-12: from the
equator to latitude phi an ellipsoid with semi-minor axis b and eccentricity e has, per radian of longitude, the area
b^2/2 (sin phi/(1 - e^2 sin^2 phi) + artanh(e sin phi)/e). A pixel of a north-up grid is a cell between two parallels
and two meridians, so that differences of it are exact. In Mercator, of the web or of the world (eq. 7-6 to 7-10), a
metre is really about cos(latitude) metres long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from unetpp.finalize.outlines import Ints, Outlines
from unetpp.geometry import Box, Transform

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid

AreaUnit = Literal["mm2", "m2", "px"]
Method = Literal["spacing", "planar", "geodesic", "pixels"]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class ClassArea:
    """Area of one class: pixels, and the same in `unit` (equal to `px` where the unit is "px")."""

    px: int
    value: float
    unit: AreaUnit


@dataclass(frozen=True, slots=True)
class FlatMeasure:
    """Every pixel has the same area, `pixel` in `unit`."""

    pixel: float
    unit: AreaUnit
    method: Method

    def objects(self, outlines: Outlines, pixels: Ints) -> Floats:
        """Return the areas (n,) in `unit` of objects with these pixel counts (n,)."""
        return pixels * self.pixel


@dataclass(frozen=True, slots=True)
class GeodesicMeasure:
    """Pixels are cells of an ellipsoid.

    Attributes:
        transform: output-grid pixels -> CRS.
        to_radians: CRS units -> radians of longitude (and of latitude, where `mercator_radius` is None).
        mercator_radius: length of a radian of longitude on a Mercator grid, in CRS units.
        semi_major, eccentricity: of the ellipsoid, in metres and as e.
        mercator_equator, mercator_eccentricity: see `unetpp.io.resample.Mercator`.
    """

    transform: Transform
    to_radians: float
    mercator_radius: float | None
    semi_major: float
    eccentricity: float
    mercator_equator: float = 0.0
    mercator_eccentricity: float = 0.0
    unit: AreaUnit = "m2"
    method: Method = "geodesic"

    @property
    def north_up(self) -> bool:
        return self.transform[1] == self.transform[3] == 0

    def cells(self, box: Box) -> Floats:
        """Return the areas in m2 of the pixels of `box`: (h, 1) for north-up grids, else (h, w)."""
        a, b, _, d, e, f = self.transform
        if self.north_up:
            bands = self._zone(e * np.arange(box.y0, box.y1 + 1) + f)
            return np.asarray(np.abs(np.diff(bands))[:, None] * abs(a) * self.to_radians)
        # In rotated grids a pixel is a small parallelogram: three-point Gauss quadrature over it, both ways.
        y, x = np.arange(box.y0, box.y1)[:, None], np.arange(box.x0, box.x1)[None]
        total = np.zeros(box.shape)
        for v, weight_v in _GAUSS:
            for u, weight_u in _GAUSS:
                total += weight_v * weight_u * self._density(d * (x + u) + e * (y + v) + f)
        return total * abs(a * e - b * d) * self.to_radians

    def objects(self, outlines: Outlines, pixels: Ints) -> Floats:
        """Return the areas (n,) in m2 of objects with these outlines, by Green's theorem."""
        a, b, _, d, e, f = self.transform
        start, step = outlines.vertices[:-1], outlines.steps()
        longitude = (a * step[:, 0] + b * step[:, 1]) * self.to_radians
        total = np.zeros(outlines.count)
        for t, weight in _GAUSS:
            x, y = start[:, 0] + t * step[:, 0], start[:, 1] + t * step[:, 1]
            total += weight * outlines.total(longitude * self._zone(d * x + e * y + f))
        return np.abs(total)

    def lonlat(self, points: Ints) -> tuple[Floats, Floats]:
        """Return longitudes (from any meridian) and latitudes in degrees of lattice points (n, 2)."""
        a, b, c, d, e, f = self.transform
        x, y = points[:, 0], points[:, 1]
        return np.degrees((a * x + b * y + c) * self.to_radians), np.degrees(self._latitude(d * x + e * y + f))

    def _latitude(self, northing: Floats) -> Floats:
        if self.mercator_radius is None:
            # Grids whose pixel centres lie on the poles reach half a pixel beyond them.
            return np.asarray(np.clip(northing * self.to_radians, -math.pi / 2, math.pi / 2))
        isometric = (northing - self.mercator_equator) / self.mercator_radius
        e, latitude = self.mercator_eccentricity, np.arctan(np.sinh(isometric))
        # Every step leaves e^2, 1/149 on Earth, of the error or less.
        for _ in range(_LATITUDE_STEPS if e else 0):
            latitude = np.arctan(np.sinh(isometric + e * np.arctanh(e * np.sin(latitude))))
        return np.asarray(latitude)

    def _zone(self, northing: Floats) -> Floats:
        """Return the area in m2 from the equator to a northing, per radian of longitude."""
        e, sine = self.eccentricity, np.sin(self._latitude(northing))
        outer = sine if e == 0 else np.arctanh(e * sine) / e
        return np.asarray(self.semi_major**2 * (1 - e**2) / 2 * (sine / (1 - (e * sine) ** 2) + outer))

    def _density(self, northing: Floats) -> Floats:
        """Return the derivative of `_zone` by the northing."""
        e, latitude = self.eccentricity, self._latitude(northing)
        meridian = self.semi_major**2 * (1 - e**2) * np.cos(latitude) / (1 - (e * np.sin(latitude)) ** 2) ** 2
        if self.mercator_radius is None:
            return np.asarray(meridian * self.to_radians)
        flat = self.mercator_eccentricity**2
        return np.asarray(
            meridian * np.cos(latitude) * (1 - flat * np.sin(latitude) ** 2) / (1 - flat) / self.mercator_radius
        )


Measure = FlatMeasure | GeodesicMeasure
_GAUSS = ((0.5 - math.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(0.15), 5 / 18))
"""Three-point Gauss-Legendre quadrature on [0, 1]: (node, weight)."""
_LATITUDE_STEPS = 7


def measure(grid: OutputGrid) -> Measure:
    """Return how to measure areas on an output grid."""
    if grid.crs is not None and grid.transform is not None:
        return _crs_measure(grid.crs, grid.transform)
    if grid.spacing is None or grid.spacing.unit == "deg":
        return FlatMeasure(1.0, "px", "pixels")
    y, x = grid.spacing.metres()
    return (
        FlatMeasure(y * x * 1e6, "mm2", "spacing") if grid.spacing.unit == "um" else FlatMeasure(y * x, "m2", "spacing")
    )


def class_areas(
    how: Measure, counts: Mapping[int, int], boxes: Sequence[Box], read: Callable[[Box], npt.NDArray[np.uint8]]
) -> dict[int, ClassArea]:
    """Return the area of every class.

    Args:
        counts: pixels per class value.
        boxes: tile the image; read one at a time, and only where areas differ between pixels.
        read: returns the class values of a box.
    """
    if isinstance(how, FlatMeasure):
        return {value: ClassArea(px, px * how.pixel, how.unit) for value, px in counts.items()}
    sums: dict[int, list[float]] = {value: [] for value in counts}
    for box in boxes:
        labels, cells = read(box), how.cells(box)
        for value, found in sums.items():
            rows = (labels == value) if cells.shape[1] > 1 else (labels == value).sum(axis=1, keepdims=True)
            found.append(math.fsum((rows * cells).sum(axis=1)))
    return {value: ClassArea(px, math.fsum(sums[value]), how.unit) for value, px in counts.items()}


def _crs_measure(wkt: str, transform: Transform) -> Measure:
    from unetpp.io.resample import find_mercator, horizontal

    crs = horizontal(wkt)
    a, b, _, d, e, _ = transform
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 0.0
    if crs.is_geographic:
        return GeodesicMeasure(transform, unit, None, *_ellipsoid(crs))
    if not crs.is_projected or unit <= 0:
        return FlatMeasure(1.0, "px", "pixels")
    mercator = find_mercator(crs)
    if mercator is None:
        return FlatMeasure(abs(a * e - b * d) * unit**2, "m2", "planar")
    # EPSG guidance note 7-2, method 1024: a sphere with the ellipsoid's semi-major axis carries geodetic latitudes.
    semi_major, eccentricity = _ellipsoid(crs)
    radius = semi_major * mercator.scale / unit
    return GeodesicMeasure(
        transform, 1 / radius, radius, semi_major, eccentricity, mercator.equator, mercator.eccentricity
    )


def _ellipsoid(crs: Any) -> tuple[float, float]:
    a, b = crs.ellipsoid.semi_major_metre, crs.ellipsoid.semi_minor_metre
    return a, math.sqrt(max(0.0, 1 - (b / a) ** 2))
