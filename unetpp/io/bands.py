"""Reads bands of one or several files as one image; knows which bands and what their values mean, decodes nothing.

A band list is a small TOML file NAME.bands.toml:

    item = "S2A.json"            # only where bands are named by asset: a STAC item
    dtype = "uint8"              # of the image that is made; float32 without it where values are scaled
    bands = [
        { uri = "B04.tif", name = "red" },
        { uri = "stack.vrt", band = 3, name = "green" },
        { uri = "stack.vrt", band = "nir", scale = 0.0255, offset = -10 },
        { asset = "blue", name = "blue" },
    ]

A band is told by its name in the file or its number from 1; without either the file has only one. The image's value is
stored value * scale + offset, rounded half to even and clipped where dtype is of integers. The files share size, CRS
and transform; the image has the levels that all of them have. A pixel is valid where all its bands are.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.errors import BandsError, ImageFormatError
from unetpp.geometry import Box
from unetpp.io.base import Mask, Pixels, Raster
from unetpp.io.reader import ReaderBase, both

SUFFIX = ".bands.toml"
_DTYPES = ("uint8", "uint16", "int16", "float32")
_KEYS = {"uri", "asset", "band", "name", "scale", "offset"}


@dataclass(frozen=True)
class _Band:
    uri: str
    index: int
    name: str
    scale: float
    offset: float


class BandsRaster(ReaderBase):
    """See `Raster`; `part_uris` are those of the files.

    Raises:
        ImageFormatError: the file is no band list, or its files do not lie on one grid.
        BandsError: a file does not have the band.
        Also what `open_raster` raises for a file.
    """

    format = "bands"

    def __init__(self, path: Path) -> None:
        from unetpp.io import open_raster

        self.uri = str(path)
        values = _parse(path)
        entries = [_placed(path, values, number, entry) for number, entry in enumerate(values["bands"], 1)]
        self._rasters: dict[str, Raster] = {}
        try:
            for uri, _ in entries:
                if uri not in self._rasters:
                    self._rasters[uri] = open_raster(uri)
            self._bands = [_band(self._rasters[uri], uri, entry) for uri, entry in entries]
            self._describe(path, values.get("dtype"))
        except BaseException:
            self.close()
            raise

    def _describe(self, path: Path, dtype: str | None) -> None:
        self.part_uris = tuple(self._rasters)
        first, *others = self._rasters.values()
        for other in others:
            _check_grid(path, first, other)
        self.kind, self.spacing, self.crs, self.transform = first.kind, first.spacing, first.crs, first.transform
        counts = range(min(len(raster.levels) for raster in self._rasters.values()))
        alike = [len({raster.levels[i] for raster in self._rasters.values()}) == 1 for i in counts]
        self.levels = first.levels[: [*alike, False].index(False)]
        self.bands = tuple(band.name for band in self._bands)
        scaled = any((band.scale, band.offset) != (1, 0) for band in self._bands)
        stored = np.result_type(*(raster.dtype for raster in self._rasters.values()))
        self.dtype = np.dtype(dtype or ("float32" if scaled else stored))

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        windows = {uri: raster.read(box, level) for uri, raster in self._rasters.items()}
        pixels = np.empty((*box.shape, len(self._bands)), self.dtype)
        valid: Mask | None = None
        for i, band in enumerate(self._bands):
            window = windows[band.uri]
            pixels[..., i] = self._values(window.pixels[..., band.index], band)
            valid = both(valid, window.valid)
        return pixels, valid

    def _values(self, stored: Pixels, band: _Band) -> Pixels:
        if (band.scale, band.offset) == (1, 0) and np.can_cast(stored.dtype, self.dtype):
            return stored
        values = stored.astype(np.float64) * band.scale + band.offset
        if self.dtype.kind == "f":
            return values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max).astype(self.dtype)

    def close(self) -> None:
        for raster in self._rasters.values():
            raster.close()


def is_band_list(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIX)


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageFormatError(f"{path} does not read as TOML ({error}); see unetpp.io.bands") from None
    bands = values.get("bands")
    if set(values) - {"item", "dtype", "bands"} or not isinstance(bands, list) or not bands:
        raise ImageFormatError(f"{path} is no band list; write bands = [{{ uri = ..., band = ... }}]")
    if values.get("dtype", "uint8") not in _DTYPES:
        raise ImageFormatError(f"{path}: dtype {values['dtype']!r} is none of {', '.join(_DTYPES)}")
    return values


def _placed(path: Path, values: Mapping[str, Any], number: int, band: object) -> tuple[str, dict[str, Any]]:
    """Return a band's file, from the list's folder, and its entry."""
    entry = dict(band) if isinstance(band, Mapping) else {}
    if set(entry) - _KEYS or ("uri" in entry) == ("asset" in entry) or ("asset" in entry and "item" not in values):
        raise ImageFormatError(
            f"{path}: band {number} needs a uri, or an asset of the list's STAC item; known: {_KEYS}"
        )
    for key in ("scale", "offset"):
        if not isinstance(entry.get(key, 0), int | float) or not np.isfinite(entry.get(key, 0)):
            raise ImageFormatError(f"{path}: band {number} has {key} {entry[key]!r}; give a number")
    folder, uri = path.parent, entry.get("uri")
    if "asset" in entry:
        folder = path.parent / Path(values["item"]).parent
        uri = _href(path, path.parent / values["item"], entry["asset"])
    if not isinstance(uri, str) or not uri or is_band_list(Path(uri)):
        raise ImageFormatError(f"{path}: band {number} is of {uri!r}; give an image")
    return uri if "://" in uri or Path(uri).is_absolute() else str(folder / uri), entry


def _href(path: Path, item: Path, asset: str) -> str:
    try:
        assets = json.loads(item.read_text(encoding="utf-8"))["assets"]
        return str(assets[asset]["href"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageFormatError(f"{path}: {item} is no STAC item with the asset {asset!r} ({error!r})") from None


def _band(raster: Raster, uri: str, entry: Mapping[str, Any]) -> _Band:
    """Find a band by name, else by number from 1."""
    wanted = entry.get("band", 1 if len(raster.bands) == 1 else None)
    if isinstance(wanted, str) and raster.bands.count(wanted) == 1:
        index = raster.bands.index(wanted)
    elif isinstance(wanted, int) and 1 <= wanted <= len(raster.bands):
        index = wanted - 1
    else:
        raise BandsError(f"{uri}: has no band {wanted!r} of its own; it has 1 to {len(raster.bands)}: {raster.bands}")
    name = str(entry.get("name", raster.bands[index]))
    return _Band(uri, index, name, float(entry.get("scale", 1)), float(entry.get("offset", 0)))


def _check_grid(path: Path, first: Raster, other: Raster) -> None:
    one, two = first.levels[0], other.levels[0]
    if (one.height, one.width, first.crs) != (two.height, two.width, other.crs) or not _alike(first, other):
        raise ImageFormatError(
            f"{path}: {other.uri} has {two.width} x {two.height} pixels of {other.spacing}, {first.uri} has "
            f"{one.width} x {one.height} of {first.spacing}, or they lie elsewhere; bring them to one grid first"
        )


def _alike(first: Raster, other: Raster) -> bool:
    if first.transform is None or other.transform is None:
        return first.transform == other.transform
    scale = max(map(abs, first.transform[:2] + first.transform[3:5]))
    return all(abs(p - q) <= 1e-3 * scale for p, q in zip(first.transform, other.transform, strict=True))
