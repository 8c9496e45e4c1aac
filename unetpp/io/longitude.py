"""Refuses scenes that cross longitude 180; knows projections and no file format."""

from __future__ import annotations

import math

import numpy as np

from unetpp.errors import SpacingError
from unetpp.io.base import Raster

_EDGE_POINTS = 65
_LONGITUDE_SLACK = 1e-6
_MERCATOR_EDGE_M = 20037508.342789244


def check_longitudes(raster: Raster) -> None:
    """Refuse a scene that crosses longitude 180: its polygons, areas and bounds would wrap around the Earth.

    A scene in degrees from 0 to 360 crosses it, too. In a projection, columns are followed along the top and the bottom
    edge: where neighbours lie more than 180 degrees apart, the line was crossed. A scene around a pole, where that
    happens as well, is refused alike. Raises `SpacingError`.
    """
    if raster.crs is None or raster.transform is None:
        return
    import pyproj

    crs, top = pyproj.CRS.from_wkt(raster.crs), raster.levels[0]
    a, b, c, d, e, f = raster.transform
    steps = np.linspace(0, 1, _EDGE_POINTS)
    columns = np.concatenate([steps * top.width, np.full_like(steps, top.width), steps[::-1] * top.width, 0 * steps])
    rows = np.concatenate([0 * steps, steps * top.height, np.full_like(steps, top.height), steps[::-1] * top.height])
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    if crs.is_geographic:
        degrees = x * math.degrees(crs.axis_info[0].unit_conversion_factor)
        crosses = degrees.min() < -180 - _LONGITUDE_SLACK or degrees.max() > 180 + _LONGITUDE_SLACK
    elif crs.is_projected:
        transformer = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        degrees, _ = transformer.transform(x, y)
        # What lies outside a projection has no longitude, and what lies on the line may have either sign.
        degrees = degrees[np.isfinite(degrees) & (np.abs(np.abs(degrees) - 180) > _LONGITUDE_SLACK)]
        crosses = bool((np.abs(np.diff(degrees)) > 180).any()) and not is_mercator(raster.crs)
        crosses |= is_mercator(raster.crs) and np.abs(x).max() > _MERCATOR_EDGE_M * (1 + 1e-6)
    else:
        return
    if crosses:
        raise SpacingError(
            f"{raster.uri}: crosses longitude 180 or a pole; cut it there into scenes of their own "
            "(gdal_translate -projwin) and give both"
        )


def is_mercator(crs: str) -> bool:
    """Say whether a CRS (WKT) is Mercator's, whose pixels are smaller on the ground than they say."""
    import pyproj

    operation = pyproj.CRS.from_wkt(crs).coordinate_operation
    method = operation.method_name if operation is not None else ""
    return method in ("Popular Visualisation Pseudo Mercator", "Mercator (variant A)")
