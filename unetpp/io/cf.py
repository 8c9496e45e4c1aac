"""Places arrays that xarray wrote: CRS, transform, nodata and band names by the CF and rioxarray conventions."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unetpp.errors import ImageFormatError
from unetpp.geometry import Spacing, Transform

AXES = {"lat": "y", "latitude": "y", "lon": "x", "longitude": "x"}
"""What coordinates of a map are called beside y and x."""
_UNEVEN = 1e-3
_METRES = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), 1.0),
    **dict.fromkeys(("km", "kilometre", "kilometer", "kilometres", "kilometers"), 1000.0),
    **dict.fromkeys(("rad", "radian", "radians"), math.nan),
}
"""Units of coordinates as CF's files spell them; that of a geostationary scan is no length."""


@dataclass(frozen=True)
class Place:
    """Where an array lies and what its values mean; None is what the store does not say."""

    crs: str | None
    transform: Transform | None
    spacing: Spacing | None
    nodata: float | None
    bands: tuple[str, ...] | None


def data_variables(group: Any) -> list[str]:
    """Return the names of a group's arrays over y and x: neither coordinates nor the grid mapping."""
    found = []
    for name, array in sorted(group.arrays()):
        axes = {AXES.get(dimension, dimension) for dimension in dimensions(array)}
        if {"y", "x"} <= axes:
            found.append(name)
    return found


def dimensions(array: Any) -> list[str]:
    """Return the names of an array's dimensions in lower case, none where it has no names."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return [str(name).lower() for name in names]


def place(uri: str, group: Any, array: Any, height: int, width: int) -> Place:
    """Return the place of an array of a group. Coordinates win over GeoTransform, which xarray keeps when it crops.

    Raises:
        ImageFormatError: coordinates are not evenly spaced, or the CRS cannot be understood.
    """
    mapping = _mapping(group, array)
    names = dict(zip((AXES.get(name, name) for name in dimensions(array)), _written(array), strict=True))
    y, x = _coordinate(uri, group, names["y"], height), _coordinate(uri, group, names["x"], width)
    transform: Transform | None = None
    if y is not None and x is not None and y[1] and x[1]:
        transform = _upright(y, x)
    elif "GeoTransform" in mapping:
        c, a, b, f, d, e = (float(value) for value in str(mapping["GeoTransform"]).split())
        transform = (a, b, c, d, e, f)
        if y is not None and x is not None and b == d == 0:
            transform = _upright((y[0], y[1] or e), (x[0], x[1] or a))
    crs, spacing = _crs(uri, mapping, transform)
    if crs is not None and transform is not None and y is not None and x is not None:
        for axis in ("y", "x"):
            _check_unit(uri, names[axis], str(group[names[axis]].attrs.get("units", "")), crs)
    bands = tuple(map(str, names_)) if isinstance(names_ := array.attrs.get("long_name"), list | tuple) else None
    return Place(crs, transform, spacing, _nodata(array), bands)


def _written(array: Any) -> Sequence[str]:
    names: Sequence[str] = getattr(array.metadata, "dimension_names", None) or array.attrs["_ARRAY_DIMENSIONS"]
    return names


def _mapping(group: Any, array: Any) -> dict[str, Any]:
    name = str(array.attrs.get("grid_mapping", "spatial_ref"))
    return dict(group[name].attrs) if name in group else {}


def _upright(y: tuple[float, float], x: tuple[float, float]) -> Transform:
    """Return the transform of pixels whose centres have these first values and steps."""
    return x[1], 0.0, x[0] - x[1] / 2, 0.0, y[1], y[0] - y[1] / 2


def _coordinate(uri: str, group: Any, name: str, size: int) -> tuple[float, float] | None:
    """Return the first value and the step (0 of a single value) of an even coordinate, None where there is none.

    CF packs coordinates too, as integers with scale_factor and add_offset.
    """
    if name not in group or group[name].shape != (size,):
        return None
    attributes = group[name].attrs
    scale, offset = np.float64(attributes.get("scale_factor", 1)), np.float64(attributes.get("add_offset", 0))
    values = np.asarray(group[name][:], np.float64) * scale + offset
    if size == 1:
        return float(values[0]), 0.0
    step = float(values[-1] - values[0]) / (size - 1)
    if step == 0 or np.abs(np.diff(values) - step).max() > _UNEVEN * abs(step):
        raise ImageFormatError(f"{uri}: its coordinate {name} is not evenly spaced; resample the image to a grid first")
    return float(values[0]), step


def _check_unit(uri: str, name: str, unit: str, wkt: str) -> None:
    """Refuse a coordinate of a projected CRS in another unit than the CRS's: the scene would lie elsewhere."""
    from rasterio.crs import CRS

    crs, factor = CRS.from_wkt(wkt), _METRES.get(unit.lower())
    if crs.is_projected and factor is not None and not math.isclose(factor, crs.linear_units_factor[1]):
        raise ImageFormatError(
            f"{uri}: its coordinate {name} is in {unit}, its CRS in {crs.linear_units}; write both in one unit"
        )


def _crs(uri: str, mapping: dict[str, Any], transform: Transform | None) -> tuple[str | None, Spacing | None]:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    from unetpp.io.georeference import grid_spacing

    text = mapping.get("crs_wkt") or mapping.get("spatial_ref")
    if not text:
        return None, None
    try:
        crs = CRS.from_wkt(str(text))
    except CRSError as error:
        raise ImageFormatError(f"{uri}: its CRS cannot be understood ({error})") from None
    return str(crs.to_wkt()), grid_spacing(transform, crs)


def _nodata(array: Any) -> float | None:
    """Return CF's _FillValue: an attribute, for floats in Zarr v3 as base64; Zarr v2 keeps it as the fill value."""
    value = array.attrs.get("_FillValue")
    if value is None and array.metadata.zarr_format == 2:
        value = array.metadata.fill_value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = struct.unpack("<d", base64.standard_b64decode(value))[0]
    return None if value is None or np.isnan(value) else float(value)
