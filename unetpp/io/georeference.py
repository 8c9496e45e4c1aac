"""Where on Earth an image lies, as GDAL makes it of the image and of files beside it; reads no pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.errors import ImageFormatError
from unetpp.geometry import Spacing, Transform
from unetpp.io.base import Kind, existing
from unetpp.io.reader import first_line
from unetpp.io.tiff import AUXILIARY, PLACES

_MISFIT_PX = 0.5
"""An affine transform may miss a ground control point by so much."""


@dataclass(frozen=True)
class Georeference:
    """None is what is not stated; the spacing is that of `grid_spacing`."""

    crs: str | None
    transform: Transform | None
    spacing: Spacing | None

    @property
    def kind(self) -> Kind:
        return "scene" if self.crs and self.transform else "image"


def georeference(top: Any, uri: str) -> Georeference:
    """Return what rasterio's dataset says: a rotated or south-up grid is a transform like any other.

    Raises:
        ImageFormatError: pixels have no area, control points fit no affine transform, or the CRS is not understood.
    """
    # GDAL gives the identity where the file states none.
    a, b, c, d, e, f = tuple(top.transform)[:6]
    transform, crs = None if top.transform.is_identity else (a, b, c, d, e, f), top.crs
    points, crs_of_points = top.gcps
    if transform is None and points:
        transform, crs = _fitted(points, uri), crs_of_points or crs
    if transform is not None and not 0 < abs(a * e - b * d) < math.inf:  # GDAL takes any numbers
        raise ImageFormatError(f"{uri}: its transform {transform} gives a pixel no area; correct it")
    return Georeference(_wkt(crs, uri), transform, grid_spacing(transform, crs))


def is_placed_beside(path: Path) -> bool:
    """Say whether a world file or GDAL's auxiliary file beside an image says where it lies."""
    return bool(world_files_beside(path)) or any(map(says_place, existing([path.with_name(path.name + AUXILIARY)])))


def says_place(auxiliary: Path) -> bool:
    """Say whether an auxiliary file of GDAL's, which may hold statistics alone, says where its image lies."""
    text = auxiliary.read_bytes()
    return any(place in text for place in PLACES)


def world_files_beside(path: Path) -> list[Path]:
    """Return the world files of an image that are there; more than one where names differ in nothing but capitals."""
    return existing(
        path.with_suffix(case(ending)) for ending in world_files(path.suffix) for case in (str.lower, str.upper)
    )


def world_files(suffix: str) -> list[str]:
    """Return the suffixes of world files that belong to an image's: .tfw, .tifw and .wld to .tif."""
    name = suffix.removeprefix(".")
    return [f".{name[0]}{name[-1]}w", f".{name}w", ".wld"] if name else [".wld"]


def _fitted(points: Sequence[Any], uri: str) -> Transform:
    """Return the affine transform of least squares through ground control points; refuses points that do not fit one.

    A scene of a radar, or of a camera that looks aside, has no such transform: it would lie elsewhere without a word.
    """
    pixels = np.array([(point.col, point.row, 1.0) for point in points])
    places = np.array([(point.x, point.y) for point in points])
    centre = places.mean(axis=0)  # far from the origin squares would lose digits
    solution, _, rank, _ = np.linalg.lstsq(pixels, places - centre, rcond=None)
    (a, d), (b, e), (c, f) = solution.tolist()
    if rank < 3 or not (off := _off(solution, pixels, places - centre)) <= _MISFIT_PX:
        flat = rank < 3 or not math.isfinite(off)
        why = "too few or on one line" if flat else f"up to {off:.1f} px off any affine transform"
        raise ImageFormatError(
            f"{uri}: placed by {len(points)} ground control points ({why}); warp it to a grid first (gdalwarp)"
        )
    return a, b, c + float(centre[0]), d, e, f + float(centre[1])


def _off(solution: Any, pixels: Any, places: Any) -> float:
    """Return by how many pixels a fit misses a point at most; infinite where all lie on one line on the ground."""
    if np.linalg.matrix_rank(solution[:2]) < 2:
        return math.inf
    missed = np.linalg.solve(solution[:2].T, (places - pixels @ solution).T)
    return float(np.hypot(*missed).max())


def _wkt(crs: Any, uri: str) -> str | None:
    from rasterio.errors import CRSError  # rasterio takes a moment to import, and most photos have no place

    if not crs:
        return None
    try:
        return str(crs.to_wkt())
    except CRSError as error:
        raise ImageFormatError(f"{uri}: its CRS cannot be understood ({first_line(error)})") from None


def grid_spacing(transform: Transform | None, crs: Any) -> Spacing | None:
    """Return the length of one pixel step in the CRS's own units, as metres or degrees.

    Rotated grids: the length of the step's vector. Nominal: in a projection that stretches (web Mercator) the ground
    is smaller; `resample.ground_spacing` says by how much.
    """
    if transform is None or not crs:
        return None
    a, b, _, d, e, _ = transform
    y, x = math.hypot(b, e), math.hypot(a, d)
    if not (y > 0 and x > 0):
        return None
    if crs.is_geographic:
        to_degrees = math.degrees(crs.units_factor[1])
        return Spacing(y * to_degrees, x * to_degrees, "deg")
    if crs.is_projected:
        factor = float(crs.linear_units_factor[1])
        return Spacing(y * factor, x * factor, "m")
    return None
