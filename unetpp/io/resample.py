"""Plans an image's output grid from spacings and reads it, resampled where needed; knows no model and no file format.

The filter is the triangle (tent) widened by the reduction, as in Pillow's and most libraries' antialiased bilinear
resize: output pixel i with centre c = (i + 1/2) * r in source pixels takes source pixel j with weight
max(0, 1 - |j + 1/2 - c| / max(1, r)), normalised over the pixels inside the image (Turkowski, "Filters for Common
Resampling Tasks", 1990). Weights come from i alone and are summed tap by tap, so a pixel never depends on the box.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import PlanError, SpacingError
from unetpp.geometry import Box, Spacing, Transform, window_transform
from unetpp.io.base import Mask, Pixels, Raster, Window
from unetpp.io.reader import level_scale

SPACING_TOLERANCE = 0.01
"""A level this close to the wanted spacing is read as it is: resampling by 1% would only blur it, unevenly."""
MAX_ENLARGEMENT = 8.0
MAX_SOURCE_PIXELS = 2**22
_SEMI_MAJOR_M, _ECCENTRICITY_2 = 6378137.0, 0.0066943799901413165  # WGS 84


@dataclass(frozen=True, slots=True)
class OutputGrid:
    """The pixels a segmentation has: a regular grid over the image's level 0.

    Output pixel (i, j) covers level-0 rows i*step_y .. (i+1)*step_y and columns likewise. `spacing` and `transform` are
    those of one output pixel, in the image's own units (nominal where its projection stretches). Read from `level`.
    """

    height: int
    width: int
    step_y: float
    step_x: float
    level: int
    spacing: Spacing | None
    transform: Transform | None
    crs: str | None

    def ground(self) -> Spacing | None:
        """Return the spacing of one output pixel on the ground at the grid's centre, as `ground_spacing` does."""
        return _on_ground(self.spacing, self.crs, self.transform, (self.height, self.width), "the grid")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        values = dict(fields)
        if values["spacing"] is not None:
            values["spacing"] = Spacing(**values["spacing"])
        if values["transform"] is not None:
            values["transform"] = tuple(values["transform"])
        return cls(**values)


def plan_grid(raster: Raster, *, model_spacing: Spacing | None, override: Spacing | None = None) -> OutputGrid:
    """Return the grid on which a model of this spacing sees the image: the option's spacing, else the metadata's.

    A model without spacing runs on level 0. Else the coarsest level that is fine enough is read, and resampled where
    its spacing is more than 1% off. Spacings compare on the ground at the image's centre (`ground_spacing`). Raises
    `SpacingError` where the image's spacing is unknown, or more than 8 times coarser than the model's.
    """
    spacing = override or raster.spacing
    if model_spacing is None:
        return _grid(raster, spacing, 0, (1.0, 1.0))
    wanted = _wanted_steps(raster, model_spacing, override)
    enlargement = 1 / min(wanted)
    if enlargement > MAX_ENLARGEMENT:
        raise SpacingError(
            f"{raster.uri}: {spacing} is {enlargement:.3g} times coarser than the model's {model_spacing}; "
            "use a finer image or a model for this spacing (or correct it with --spacing)"
        )
    top = raster.levels[0]
    if max(wanted[0] / top.height, wanted[1] / top.width) > 1:
        raise SpacingError(
            f"{raster.uri}: at {spacing} the whole image is smaller than one pixel of the model's {model_spacing}; "
            "correct it with --spacing"
        )
    level = _level(raster, wanted)
    scale = level_scale(raster.levels, level)
    close = all(abs(want / have - 1) <= SPACING_TOLERANCE for want, have in zip(wanted, scale, strict=True))
    return _grid(raster, spacing, level, scale if close else wanted)


def ground_spacing(raster: Raster) -> Spacing | None:
    """Return level 0's spacing on the ground at the image's centre: micrometres or metres, never degrees.

    Geographic CRS: the grid's steps, rotated or not, in degrees along the meridian and the parallel of the WGS 84
    ellipsoid (M and N cos(lat), Snyder, "Map Projections", 1987, eq. 4-18 and 4-20). Mercator: nominal metres by its
    scale there, in Web Mercator 1 / cos(lat).
    """
    top = raster.levels[0]
    return _on_ground(raster.spacing, raster.crs, raster.transform, (top.height, top.width), raster.uri)


def _on_ground(
    spacing: Spacing | None, crs: str | None, transform: Transform | None, shape: tuple[int, int], name: str
) -> Spacing | None:
    """Return what a nominal spacing is on the ground at the centre of so many pixels; `name` is for errors."""
    if spacing is None or crs is None or transform is None:
        return spacing
    if spacing.unit == "deg":
        latitude = _centre_latitude(crs, transform, shape, name)
        shrink = 1 - _ECCENTRICITY_2 * math.sin(latitude) ** 2
        meridian = _SEMI_MAJOR_M * (1 - _ECCENTRICITY_2) / shrink**1.5
        parallel = _SEMI_MAJOR_M / math.sqrt(shrink) * math.cos(latitude)
        # The spacing may be an option's: the transform only says how a step divides into east and north.
        a, b, _, d, e, _ = transform
        down, across = math.hypot(b, e), math.hypot(a, d)
        radius_y = math.hypot(b / down * parallel, e / down * meridian)
        radius_x = math.hypot(a / across * parallel, d / across * meridian)
        return Spacing(math.radians(spacing.y) * radius_y, math.radians(spacing.x) * radius_x, "m")
    mercator = find_mercator(horizontal(crs))
    if mercator is not None:
        factor = 1 / mercator.scale_at(_centre_latitude(crs, transform, shape, name))
        return spacing.scaled(factor, factor)
    return spacing


@dataclass(frozen=True, slots=True)
class Mercator:
    """How a Mercator projection stretches (Snyder, eq. 7-6 to 7-8).

    Attributes:
        scale: nominal per real length along the equator.
        equator: the equator's northing, in units of the CRS.
        eccentricity: of the ellipsoid whose latitudes it takes; 0 for Web Mercator, which takes them for a sphere's.
    """

    scale: float
    equator: float
    eccentricity: float

    def scale_at(self, latitude: float) -> float:
        """Return nominal per real length along the parallel of a latitude in radians."""
        return self.scale * math.sqrt(1 - (self.eccentricity * math.sin(latitude)) ** 2) / math.cos(latitude)


def horizontal(wkt: str) -> Any:
    """Return a CRS as pyproj's object, of a compound or bound one the horizontal part."""
    import pyproj

    crs = pyproj.CRS.from_wkt(wkt)
    while crs.is_compound or crs.is_bound:
        crs = crs.sub_crs_list[0] if crs.is_compound else crs.source_crs
    return crs


def find_mercator(crs: Any) -> Mercator | None:
    """Return what a horizontal CRS of pyproj does if it is a Mercator projection with the equator as its axis."""
    import pyproj

    method = crs.coordinate_operation.method_name if crs.coordinate_operation is not None else ""
    spherical = method == "Popular Visualisation Pseudo Mercator"
    if not spherical and not method.startswith("Mercator ("):
        return None
    projection, ellipsoid = pyproj.Proj(crs), crs.ellipsoid
    squared = 1 - (ellipsoid.semi_minor_metre / ellipsoid.semi_major_metre) ** 2
    return Mercator(
        scale=projection.get_factors(0, 0).parallel_scale,
        equator=projection(0, 0)[1],
        eccentricity=0.0 if spherical else math.sqrt(max(0.0, squared)),
    )


def _centre_latitude(crs: str, transform: Transform, shape: tuple[int, int], name: str) -> float:
    """Return the latitude of the centre of (height, width) pixels in radians."""
    import pyproj

    _, _, x, _, _, y = window_transform(transform, Box(0, 0, 1, 1).shift(*shape), 0.5, 0.5)
    to_degrees = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(crs), "EPSG:4326", always_xy=True)
    latitude = float(to_degrees.transform(x, y)[1])
    if not abs(latitude) < 90:
        raise SpacingError(f"{name}: its centre lies at latitude {latitude}; correct its georeference")
    return math.radians(latitude)


def _wanted_steps(raster: Raster, model: Spacing, override: Spacing | None) -> tuple[float, float]:
    """Return level-0 pixels per model pixel along y and x."""
    if model.unit == "deg":
        own = override or raster.spacing
        if own is None or own.unit != "deg":
            raise SpacingError(
                f"{raster.uri}: has {own or 'no spacing'} but the model needs {model}; reproject the image"
            )
        return model.y / own.y, model.x / own.x
    ground = override or ground_spacing(raster)
    if ground is None:
        raise SpacingError(
            f"{raster.uri}: no pixel spacing in its metadata and the model needs {model}; "
            "pass the image's own, as in --spacing 0.25um"
        )
    (want_y, want_x), (have_y, have_x) = model.metres(), ground.metres()
    return want_y / have_y, want_x / have_x


def _level(raster: Raster, wanted: tuple[float, float]) -> int:
    fine = [
        number
        for number in range(len(raster.levels))
        if all(
            have <= want * (1 + SPACING_TOLERANCE)
            for have, want in zip(level_scale(raster.levels, number), wanted, strict=True)
        )
    ]
    return max(fine, key=lambda number: raster.levels[number].downsample, default=0)


def _grid(raster: Raster, spacing: Spacing | None, level: int, step: tuple[float, float]) -> OutputGrid:
    source = raster.levels[level]
    if step == level_scale(raster.levels, level):
        height, width = source.height, source.width
    else:
        # A pixel exists where its centre lies inside the image.
        top = raster.levels[0]
        height, width = (max(1, math.ceil(n / s - 0.5)) for n, s in zip((top.height, top.width), step, strict=True))
    transform = window_transform(raster.transform, Box(0, 0, height, width), *step) if raster.transform else None
    return OutputGrid(height, width, *step, level, spacing.scaled(*step) if spacing else None, transform, raster.crs)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of the resampling: level pixels per output pixel and the level's size."""

    ratio: float
    size: int

    def taps(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return first tap (n,) and weights (n, taps) of output pixels start..stop; taps outside have weight 0."""
        reach = max(1.0, self.ratio)
        # A level made by floor division lacks the image's last rows: a filter there, past all pixels, gives the last.
        # From this limit on it meets only the last pixel, so what it gave before it gives still.
        limit = self.size + reach - 1.0
        centre = np.minimum((np.arange(start, stop, dtype=np.float64) + 0.5) * self.ratio, limit)
        first = np.floor(centre - reach - 0.5).astype(np.int64) + 1
        source = first[:, None] + np.arange(math.ceil(2 * reach))
        weights = np.maximum(0.0, 1.0 - np.abs(source + 0.5 - centre[:, None]) / reach)
        weights[(source < 0) | (source >= self.size)] = 0.0
        return first, weights / weights.sum(1, keepdims=True)


class GridReader:
    """Reads boxes of an output grid. A pixel is valid where every source pixel with weight is; not finite becomes 0.

    Integer types round half to even. Reads in pieces, so memory follows the box and not the reduction.
    """

    def __init__(self, raster: Raster, grid: OutputGrid) -> None:
        scale = level_scale(raster.levels, grid.level)
        level = raster.levels[grid.level]
        self.raster, self.grid = raster, grid
        self._direct = (grid.step_y, grid.step_x) == scale
        self._y = _Axis(grid.step_y / scale[0], level.height)
        self._x = _Axis(grid.step_x / scale[1], level.width)

    def read(self, box: Box) -> Window:
        """Return the window of `box` in output pixels; what lies past the grid's edge is 0 and invalid."""
        grid = self.grid
        if box.height <= 0 or box.width <= 0:
            raise PlanError(f"{self.raster.uri}: box {box} is empty; give one with y1 > y0 and x1 > x0")
        if self._direct:
            window = self.raster.read(box, grid.level)
            pixels, valid = _finite(window.pixels), window.valid
        else:
            pixels = np.zeros((*box.shape, len(self.raster.bands)), self.raster.dtype)
            valid = np.zeros(box.shape, bool)
            inside = box.clip(grid.height, grid.width)
            if inside.area:
                self._fill(inside, box, pixels, valid)
        transform = window_transform(grid.transform, box) if grid.transform else None
        return Window(pixels, valid, box, grid.level, grid.spacing, grid.crs, transform)

    def _fill(self, part: Box, box: Box, pixels: Pixels, valid: Mask) -> None:
        if part.area > 1 and part.area * self._y.ratio * self._x.ratio > MAX_SOURCE_PIXELS:
            middle_y, middle_x = (part.y0 + part.y1) // 2, (part.x0 + part.x1) // 2
            if part.height >= part.width:
                halves = Box(part.y0, part.x0, middle_y, part.x1), Box(middle_y, part.x0, part.y1, part.x1)
            else:
                halves = Box(part.y0, part.x0, part.y1, middle_x), Box(part.y0, middle_x, part.y1, part.x1)
            for half in halves:
                self._fill(half, box, pixels, valid)
            return
        pixels[part.slices(box)], valid[part.slices(box)] = self._resample(part)

    def _resample(self, part: Box) -> tuple[Pixels, Mask]:
        first_y, weights_y = self._y.taps(part.y0, part.y1)
        first_x, weights_x = self._x.taps(part.x0, part.x1)
        source = Box(
            max(0, int(first_y[0])),
            max(0, int(first_x[0])),
            min(self._y.size, int(first_y[-1]) + weights_y.shape[1]),
            min(self._x.size, int(first_x[-1]) + weights_x.shape[1]),
        )
        window = self.raster.read(source, self.grid.level)
        index_y = _indexes(first_y - source.y0, weights_y, source.height)
        index_x = _indexes(first_x - source.x0, weights_x, source.width)
        work = np.float32 if self.raster.dtype.itemsize <= 2 else np.float64
        values = _weighted(_finite(window.pixels).astype(work), index_y, weights_y.astype(work))
        values = _weighted(values.swapaxes(0, 1), index_x, weights_x.astype(work)).swapaxes(0, 1)
        invalid = ~window.valid
        if invalid.any():
            invalid = _touched(_touched(invalid, index_y, weights_y).T, index_x, weights_x).T
        else:
            invalid = np.zeros(part.shape, bool)
        return _as_type(values, self.raster.dtype), ~invalid


def _indexes(first: NDArray[np.int64], weights: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    index: NDArray[np.int64] = np.clip(first[:, None] + np.arange(weights.shape[1]), 0, size - 1)
    return index


def _weighted(values: Pixels, index: NDArray[np.int64], weights: Pixels) -> Pixels:
    """Sum (taps) of weights (n, taps) times values (rows, W, C) along rows, in one fixed order."""
    total = np.zeros((len(index), *values.shape[1:]), values.dtype)
    for tap in range(weights.shape[1]):
        total += values[index[:, tap]] * weights[:, tap, None, None]
    return total


def _touched(marked: Mask, index: NDArray[np.int64], weights: NDArray[np.float64]) -> Mask:
    found = np.zeros((len(index), marked.shape[1]), bool)
    for tap in range(weights.shape[1]):
        found |= marked[index[:, tap]] & (weights[:, tap] > 0)[:, None]
    return found


def _finite(pixels: Pixels) -> Pixels:
    return np.nan_to_num(pixels, posinf=0.0, neginf=0.0) if pixels.dtype.kind == "f" else pixels


def _as_type(values: Pixels, dtype: np.dtype[Any]) -> Pixels:
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
