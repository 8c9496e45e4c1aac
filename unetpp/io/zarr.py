"""Reads OME-Zarr images (0.4 and 0.5), xarray's and plain Zarr arrays from a folder or a store; knows no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unetpp.errors import CorruptImageError, ImageFormatError, ImageTooLargeError, UnetppError
from unetpp.geometry import Box, Spacing
from unetpp.io import cf
from unetpp.io.base import Kind, Mask, Pixels
from unetpp.io.reader import MAX_DECODED_PIXELS, RGB, ReaderBase, first_line, make_levels, valid_samples
from unetpp.io.remote import zarr_store
from unetpp.io.tiff import DECODE_ERRORS

AXIS_NAMES = {"channel": "c", "band": "c", "s": "c", **cf.AXES}
# OME-NGFF unit names, and the short forms that writers use, in micrometres.
_MICROMETRES = {
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "cm": 1e4,
}
_METRES = {"meter": 1.0, "metre": 1.0, "m": 1.0, "kilometer": 1e3, "km": 1e3}


class ZarrRaster(ReaderBase):
    """An OME-Zarr multiscale image or one Zarr array as (y, x, channels); samples that are NaN are invalid.

    Axes over time or depth must have length 1. An array without axis names is (y, x) or (c, y, x). Booleans are read as
    0 and 1.
    A chunk that was never written has the array's fill value and counts as data: OME-Zarr has no nodata. An array that
    xarray wrote has its CRS, transform and nodata from `unetpp.io.cf`; CF's scale_factor is not applied (`.bands.toml`
    can); a group of several such arrays is refused, and each is opened by its own path.

    Args:
        uri: of the image.
        store: what Zarr reads it from, where that is not the folder of this path.
    """

    kind: Kind = "image"

    def __init__(self, uri: str | Path, store: Any = None) -> None:
        self.uri = str(uri)
        node = self._open(uri if store is None else store)
        group = None
        if isinstance(node, zarr.Array):
            group = self._parent(node, store)
        elif not _ome(node.attrs).get("multiscales"):
            group, node = self._variable(node)
        if isinstance(node, zarr.Array):
            self.format = f"zarr v{node.metadata.zarr_format}"
            self._arrays = [node]
            self._axes = self._array_axes(node)
        else:
            node = self._image_group(node)
            self._arrays, self._axes = self._multiscale(node)
            self.format = f"ome-zarr v{node.metadata.zarr_format}"
        self._check()
        y, x = self._axes.index("y"), self._axes.index("x")
        self.levels = make_levels([(array.shape[y], array.shape[x]) for array in self._arrays])
        count = self._arrays[0].shape[self._axes.index("c")] if "c" in self._axes else 1
        self.bands = _band_names(node.attrs, count, self._arrays[0].dtype)
        self.nodata: list[float | None] = []
        if group is not None and cf.dimensions(node):
            self._place(cf.place(self.uri, group, node, self.levels[0].height, self.levels[0].width))

    def _place(self, place: cf.Place) -> None:
        self.crs, self.transform, self.spacing = place.crs, place.transform, place.spacing
        self.kind = "scene" if self.crs and self.transform else "image"
        self.nodata = [place.nodata] * len(self.bands)
        if place.bands is not None and len(place.bands) == len(self.bands):
            self.bands = place.bands

    def _variable(self, group: Any) -> tuple[Any, Any]:
        """Return the group and its only array over y and x, as xarray writes it; (None, group) where it has none."""
        names = cf.data_variables(group)
        if len(names) > 1:
            raise ImageFormatError(f"{self.uri}: holds {', '.join(names)}; give the path of one, as in .../{names[0]}")
        return (group, group[names[0]]) if names else (None, group)

    def _parent(self, array: Any, store: Any) -> Any:
        """Return the group that an array with named dimensions lies in, for its CRS and coordinates, or None."""
        if "grid_mapping" not in array.attrs:
            return None
        above = self.uri.rstrip("/").rpartition("/")[0]
        found = self._open(above if store is None else zarr_store(above))
        return found if isinstance(found, zarr.Group) else None

    def _open(self, store: Any) -> Any:
        try:
            return zarr.open(store, mode="r")
        except UnetppError:
            raise
        except (KeyError, *DECODE_ERRORS) as error:
            raise CorruptImageError(f"{self.uri}: Zarr metadata is damaged ({first_line(error)})") from None

    def _image_group(self, group: Any) -> Any:
        """Return the group that holds `multiscales`: this one, or the only series of a bioformats2raw folder."""
        if _ome(group.attrs).get("multiscales"):
            return group
        series = [name for name in sorted(group.keys()) if _ome(group[name].attrs).get("multiscales")]
        if len(series) == 1:
            return group[series[0]]
        found = f"holds {len(series)} images ({', '.join(series[:5])})" if series else "has no OME-Zarr multiscales"
        raise ImageFormatError(f"{self.uri}: this Zarr group {found}; give the path of one image or array inside it")

    def _multiscale(self, group: Any) -> tuple[list[Any], list[str]]:
        multiscale = _ome(group.attrs)["multiscales"][0]
        try:
            axes = [_axis(axis) for axis in multiscale.get("axes", "tczyx")]
            arrays = [group[dataset["path"]] for dataset in multiscale["datasets"]]
            self.spacing = _spacing(multiscale, axes)
        except UnetppError:
            raise
        except (KeyError, TypeError, IndexError, *DECODE_ERRORS) as error:
            raise CorruptImageError(f"{self.uri}: its OME-Zarr levels are incomplete ({first_line(error)})") from None
        return arrays, axes

    def _array_axes(self, array: Any) -> list[str]:
        names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
        if names and all(names):
            return [_axis(name) for name in names]
        return list("cyx"[-array.ndim :]) if array.ndim in (2, 3) else ["?"] * array.ndim

    def _check(self) -> None:
        top = self._arrays[0]
        self.dtype = np.dtype(np.uint8) if top.dtype == bool else np.dtype(top.dtype).newbyteorder("=")
        axes = "".join(self._axes)
        named = sorted(axis for axis in self._axes if axis in "cyx")
        if len(self._axes) != top.ndim or named not in (["x", "y"], ["c", "x", "y"]):
            raise ImageFormatError(
                f"{self.uri}: array of shape {top.shape} with axes '{axes}' is not a (c, y, x) image"
            )
        for axis, size in zip(self._axes, top.shape, strict=True):
            if axis not in "cyx" and size != 1:
                raise ImageFormatError(
                    f"{self.uri}: axis {axis} has length {size}; give an image with one {axis} plane"
                )
        for array in self._arrays:
            if 0 in array.shape:
                raise ImageFormatError(f"{self.uri}: array of shape {array.shape} holds no pixels; write it again")
        if self.dtype.kind not in "uif":
            raise ImageFormatError(f"{self.uri}: sample type {self.dtype} is not a real number type; convert the image")
        for array in self._arrays:
            largest = int(np.prod(array.chunks, dtype=np.int64))
            if largest > 4 * MAX_DECODED_PIXELS:
                raise ImageTooLargeError(
                    f"{self.uri}: one chunk holds {largest} samples, more than {4 * MAX_DECODED_PIXELS}; rechunk it"
                )

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        ranges: dict[str, Any] = {"y": slice(box.y0, box.y1), "x": slice(box.x0, box.x1), "c": slice(None)}
        array = self._arrays[level]
        try:
            values = array[tuple(ranges.get(axis, 0) for axis in self._axes)]
        except UnetppError:
            raise
        except (KeyError, *DECODE_ERRORS) as error:
            raise CorruptImageError(
                f"{self.uri}: level {level} {box} does not decode ({first_line(error)}); copy it again"
            ) from None
        kept = [axis for axis in self._axes if axis in ranges]
        pixels = np.asarray(values).transpose([kept.index(axis) for axis in "yxc" if axis in kept])
        pixels = np.ascontiguousarray(pixels.reshape(*box.shape, -1), dtype=self.dtype)
        return pixels, valid_samples(pixels, self.nodata)


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the OME metadata: under `ome` since 0.5, at the top before."""
    nested = attributes.get("ome")
    return nested if isinstance(nested, dict) else attributes


def _axis(axis: Any) -> str:
    name = str(axis["name"] if isinstance(axis, dict) else axis).lower()
    return AXIS_NAMES.get(name, name)


def _band_names(attributes: Mapping[str, Any], count: int, dtype: np.dtype[Any]) -> tuple[str, ...]:
    channels = _ome(attributes).get("omero", {}).get("channels", [])
    labels = tuple(str(channel.get("label", "")) for channel in channels)
    if len(labels) == count and all(labels):
        return labels
    if count == 3 and dtype == np.uint8:
        return RGB
    return ("gray",) if count == 1 else tuple(f"band{i + 1}" for i in range(count))


def _spacing(multiscale: Mapping[str, Any], axes: Sequence[str]) -> Spacing | None:
    """Return level 0's spacing: its scale times that of the whole multiscale; None where that is no length."""
    scales = [1.0] * len(axes)
    found = False
    for owner in (multiscale["datasets"][0], multiscale):
        for transform in owner.get("coordinateTransformations") or ():
            if transform.get("type") == "scale":
                scales = [a * float(b) for a, b in zip(scales, transform["scale"], strict=True)]
                found = True
    units = [str(axis.get("unit", "")) if isinstance(axis, dict) else "" for axis in multiscale.get("axes", ())]
    if not found or not units:
        return None
    y, x = axes.index("y"), axes.index("x")
    if not all(0 < scales[axis] < math.inf for axis in (y, x)):
        return None
    if units[y] in _MICROMETRES and units[x] in _MICROMETRES:
        return Spacing(scales[y] * _MICROMETRES[units[y]], scales[x] * _MICROMETRES[units[x]], "um")
    if units[y] in _METRES and units[x] in _METRES:
        return Spacing(scales[y] * _METRES[units[y]], scales[x] * _METRES[units[x]], "m")
    return None
