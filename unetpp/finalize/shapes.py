"""Measures perimeter and centroid of outlined objects and writes them as a table; knows grids, no labels.

The perimeter is the length of the polygon as it is written, holes included, so that every program finds the same one:
along pixel edges, which for a smooth shape is up to 4/pi longer than its outline. On an ellipsoid each edge has its
geodesic length (Karney, Algorithms for geodesics, J. Geodesy 87, 2013, through pyproj). The centroid is the mean of the
object's pixels, by Green's theorem: the integral of x over a region is that of x^2/2 dy round it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetpp.finalize.areas import GeodesicMeasure, Measure, measure
from unetpp.finalize.geoparquet import ParquetTable, attributes
from unetpp.finalize.outlines import Batch, Outlines
from unetpp.finalize.rows import Rows, Sink, coordinates

if TYPE_CHECKING:
    from unetpp.finalize.probability import ObjectProbability
    from unetpp.io.resample import OutputGrid

Floats = npt.NDArray[np.float64]
_SQUARE_UM = {"um": 1e6, "m": 1.0}
"""What an area of `Measure` (mm2 where lengths are in um, else m2) is multiplied by in the table."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Measures objects of one output grid.

    Columns: perimeter_px, centroid_x_px, centroid_y_px in level-0 pixels of the image (centres of pixels at .5);
    perimeter_um or perimeter_m where the size of a pixel is known; centroid_x, centroid_y in the CRS, if any;
    probability_mean of the object's class over its pixels, where there is a map of probabilities.
    """

    grid: OutputGrid
    name: str
    probability: ObjectProbability | None = None

    @property
    def unit(self) -> str | None:
        """Unit of lengths: um, m, or None where the size of a pixel is unknown."""
        how = measure(self.grid)
        return {"mm2": "um", "m2": "m", "px": None}[how.unit]

    @property
    def columns(self) -> tuple[str, ...]:
        physical = () if self.unit is None else (f"perimeter_{self.unit}",)
        place = () if self.grid.crs is None or self.grid.transform is None else ("centroid_x", "centroid_y")
        mean = () if self.probability is None else ("probability_mean",)
        return ("perimeter_px", *physical, "centroid_x_px", "centroid_y_px", *place, *mean)

    def measure(self, batch: Batch) -> dict[str, list[float]]:
        """Return the columns of a batch, to 12 digits."""
        outlines = batch.outlines
        step = np.abs(outlines.steps())
        centre = centroids(outlines)
        x, y = centre.T
        found: list[Floats] = [outlines.total(step @ np.array([self.grid.step_x, self.grid.step_y]))]
        if self.unit is not None:
            found.append(outlines.total(self._lengths(outlines)))
        found += [x * self.grid.step_x, y * self.grid.step_y]
        if "centroid_x" in self.columns:
            a, b, c, d, e, f = coordinates(self.grid)
            found += [a * x + b * y + c, d * x + e * y + f]
        if self.probability is not None:
            found.append(np.array([self.probability.mean(one) for one in batch.objects()]))
        return {n: [float(f"{v:.12g}") for v in row.tolist()] for n, row in zip(self.columns, found, strict=True)}

    def table(self, folder: Path, how: Measure) -> Sink:
        """Return the sink of the table `name` in `folder`."""
        return _Table(folder / self.name, self, how)

    def _lengths(self, outlines: Outlines) -> Floats:
        """Return the (m - 1,) lengths of the steps between vertices in `unit`."""
        how, steps = measure(self.grid), outlines.steps()
        if isinstance(how, GeodesicMeasure):
            from pyproj import Geod

            longitude, latitude = how.lonlat(outlines.vertices)
            geod = Geod(a=how.semi_major, es=how.eccentricity**2)
            lengths: Floats = np.asarray(geod.inv(longitude[:-1], latitude[:-1], longitude[1:], latitude[1:])[2])
            return np.where(steps.any(axis=1), lengths, 0.0)
        if how.method == "planar":
            a, b, _, d, e, _ = coordinates(self.grid)
            metre = np.sqrt(how.pixel / abs(a * e - b * d))
            return np.asarray(metre * np.hypot(steps @ np.array([a, b]), steps @ np.array([d, e])))
        spacing = self.grid.spacing
        assert spacing is not None
        height, width = (1e6 * side if self.unit == "um" else side for side in spacing.metres())
        return np.asarray(np.abs(steps) @ np.array([width, height]))


def centroids(outlines: Outlines) -> Floats:
    """Return (n, 2) the means of the objects' pixels as (x, y) in output-grid pixels, centres of pixels at .5."""
    # From each object's own corner: far from the origin the squares would drown a small object.
    begins = outlines.starts[:-1][outlines.shells]
    corner = outlines.vertices[begins]
    point = (outlines.vertices - np.repeat(corner, np.diff([*begins, len(outlines.vertices)]), axis=0))[:-1]
    step = outlines.steps()
    area = outlines.total((point[:, 0] * step[:, 1]).astype(np.float64))
    x = outlines.total(point[:, 0] ** 2 * step[:, 1] / 2) / area
    y = outlines.total(-(point[:, 1] ** 2) * step[:, 0] / 2) / area
    return np.stack([x, y], axis=1) + corner


class _Table(ParquetTable):
    def __init__(self, path: Path, shapes: Shapes, how: Measure) -> None:
        import pyarrow as pa

        self._step = shapes.grid.step_x * shapes.grid.step_y
        self._area = None if shapes.unit is None else f"area_{shapes.unit}2"
        self._factor = 1.0 if shapes.unit is None else _SQUARE_UM[shapes.unit]
        numbers = [(n, pa.float64()) for n in ("area_px", *filter(None, [self._area]), *shapes.columns)]
        super().__init__(path, pa.schema([("id", pa.string()), ("class", pa.int32()), ("name", pa.string()), *numbers]))

    def add(self, rows: Rows, outlines: Outlines) -> None:
        areas = {"area_px": [float(f"{pixels * self._step:.12g}") for pixels in rows.pixels]}
        if self._area is not None:
            areas[self._area] = [float(f"{area * self._factor:.12g}") for area in rows.areas]
        self.put({**attributes(rows), **areas, **rows.shapes})
