"""Reads bands of one or several files as one image; knows which bands and what their values mean, decodes nothing.

A band list is a small TOML file NAME.bands.toml:

    item = "S2A.json"            # only where bands are named by asset: a STAC item
    physical = true              # values as the item's scale and offset make them, which it must state; false: stored
    dtype = "uint8"              # of the image that is made; float32 without it where values are scaled
    bands = [
        { uri = "B04.tif", name = "red" },
        { uri = "stack.vrt", band = 3, name = "green" },
        { uri = "stack.vrt", band = "nir", scale = 0.0255, offset = -10 },
        { asset = "blue" },
    ]

A band is told by its name in the file or its number from 1; without either the file has only one, which is named as in
the file, or like its asset. The image's value is stored value * scale + offset, rounded half to even and clipped where
dtype is of integers; with `physical`, the item's scale and offset come before. The files share CRS and upper left
corner. The image has the pixels of the finest; a pixel that is twice, three times ... as large stands for all below it.
It has the levels that every file has or is coarser than. A pixel is valid where all its bands are, which of assets is
told by the nodata of item and file.

With `items = "search.json"` in the place of `item`, a STAC item collection, the list is one image per item:
NAME.bands.toml#ID.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.errors import BandsError, DataError, ImageFormatError
from unetpp.geometry import Box
from unetpp.io.base import Level, Mask, Pixels, Raster
from unetpp.io.reader import ReaderBase, both, valid_samples
from unetpp.io.remote import placed
from unetpp.io.stac import Asset, Item, read_items

SUFFIX = ".bands.toml"
_DTYPES = ("uint8", "uint16", "int16", "float32")
_LIST_KEYS = {"item", "items", "physical", "dtype", "bands"}
_KEYS = {"uri", "asset", "band", "name", "scale", "offset"}


@dataclass(frozen=True)
class _Entry:
    """A line of the list; `asset` of the item `item` where it names one, `physical` where its scale is to count."""

    uri: str
    values: Mapping[str, Any]
    asset: Asset | None = None
    item: str = ""
    physical: bool = False


@dataclass(frozen=True)
class _Band:
    uri: str
    index: int
    name: str
    scale: float
    offset: float


class BandsRaster(ReaderBase):
    """See `Raster`; `part_uris` are those of the files, `item_values` what a STAC item says of their values.

    Args:
        path: the list.
        item: id of the item whose image this is; None where the list has no items.

    Raises:
        ImageFormatError: the file is no band list, its files do not lie on one grid, or the item is not there.
        BandsError: a file does not have the band.
        Also what `open_raster` raises for a file.
    """

    format = "bands"

    def __init__(self, path: Path, item: str | None = None) -> None:
        from unetpp.io import open_raster

        self.uri, self.file = str(path) if item is None else f"{path}#{item}", path
        values = _parse(path)
        entries = _entries(path, values, item)
        self._rasters: dict[str, Raster] = {}
        try:
            for entry in entries:
                if entry.uri not in self._rasters:
                    self._rasters[entry.uri] = open_raster(entry.uri)
            self._bands = [_band(path, self._rasters[entry.uri], entry) for entry in entries]
            self._take_values(entries)
            self._describe(path, values.get("dtype"))
        except BaseException:
            self.close()
            raise

    def _take_values(self, entries: list[_Entry]) -> None:
        """Keep what the item says of nodata that files do not say, and for the fingerprint what it says of values."""
        self._nodata: dict[str, list[float | None]] = {}
        self.item_values: list[Any] = []
        for entry, band in zip(entries, self._bands, strict=True):
            if (asset := entry.asset) is None:
                continue
            if entry.physical:
                described = tuple(values.linear or (1.0, 0.0) for values in asset.described or (asset.others,))
                beyond = (asset.others.linear,) if asset.described and band.index >= len(asset.described) else ()
                self.item_values.append(described + beyond)
            raster = self._rasters[entry.uri]
            stated = [asset.values(index).nodata for index in range(len(raster.bands))]
            same = stated == list(getattr(raster, "nodata", ()))  # the file's reader minds it
            if not same and any(value is not None for value in stated):
                self._nodata[entry.uri] = stated
        self.item_values += self._nodata.values()

    def _describe(self, path: Path, dtype: str | None) -> None:
        self.part_uris = tuple(self._rasters)
        first = max(self._rasters.values(), key=lambda raster: raster.levels[0].box.area)
        self.kind, self.spacing, self.crs, self.transform = first.kind, first.spacing, first.crs, first.transform
        factors = {uri: _factor(path, first, raster) for uri, raster in self._rasters.items()}
        self._places: list[dict[str, tuple[int, int]]] = []
        """Of each level, by file: which of its own, and how many pixels high and wide one of its pixels is here."""
        for level in first.levels:
            found = {uri: _place(level, raster, factors[uri]) for uri, raster in self._rasters.items()}
            if None in found.values():
                break
            self._places.append({uri: place for uri, place in found.items() if place is not None})
        self.levels = first.levels[: len(self._places)]
        self.bands = tuple(band.name for band in self._bands)
        scaled = any((band.scale, band.offset) != (1, 0) for band in self._bands)
        stored = np.result_type(*(raster.dtype for raster in self._rasters.values()))
        self.dtype = np.dtype(dtype or ("float32" if scaled else stored))

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        read = {uri: self._read_file(uri, box, level) for uri in self._rasters}
        pixels = np.empty((*box.shape, len(self._bands)), self.dtype)
        valid: Mask | None = None
        for i, band in enumerate(self._bands):
            samples, here = read[band.uri]
            pixels[..., i] = self._values(samples[..., band.index], band)
            valid = both(valid, here)
        return pixels, valid

    def _read_file(self, uri: str, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        samples, valid = _repeated(self._rasters[uri], box, *self._places[level][uri])
        nodata = self._nodata.get(uri)
        return samples, valid if nodata is None else both(valid, valid_samples(samples, nodata))

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


def split_item(uri: str) -> tuple[Path, str] | None:
    """Return list and item id of NAME.bands.toml#ID, else None."""
    path, mark, item = uri.partition(f"{SUFFIX}#")
    return (Path(path + SUFFIX), item) if mark and item and not Path(uri).exists() else None


def list_items(path: Path) -> list[str] | None:
    """Return the ids of the items of a list, each an image; None where the list is one image.

    Raises `ImageFormatError`, or `DataError` where the items cannot be read.
    """
    items = _parse(path).get("items")
    return None if items is None else [item.id for item in read_items(placed(str(path.parent), items))]


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageFormatError(f"{path} does not read as TOML ({error}); see unetpp.io.bands") from None
    bands = values.get("bands")
    if set(values) - _LIST_KEYS or {"item", "items"} <= set(values) or not isinstance(bands, list) or not bands:
        raise ImageFormatError(f"{path} is no band list; write bands = [{{ uri = ..., band = ... }}]")
    if values.get("dtype", "uint8") not in _DTYPES:
        raise ImageFormatError(f"{path}: dtype {values['dtype']!r} is none of {', '.join(_DTYPES)}")
    for key, kind in (("item", str), ("items", str), ("physical", bool)):
        if not isinstance(values.get(key, kind()), kind):
            raise ImageFormatError(f"{path}: {key} = {values[key]!r}; give a {kind.__name__}")
    return values


def _entries(path: Path, values: Mapping[str, Any], wanted: str | None) -> list[_Entry]:
    item = _item(path, values, wanted)
    return [
        _entry(path, item, number, band, bool(values.get("physical"))) for number, band in enumerate(values["bands"], 1)
    ]


def _item(path: Path, values: Mapping[str, Any], wanted: str | None) -> Item | None:
    """Return the STAC item whose assets a list names."""
    if ("items" in values) != (wanted is not None):
        what = "is one image per item; name one as" if wanted is None else "is one image, without"
        raise ImageFormatError(f"{path} {what} {path.name}#ID")
    document = values.get("items", values.get("item"))
    if document is None:
        if values.get("physical"):
            raise ImageFormatError(f"{path}: physical = true needs an item; give each band its scale and offset")
        return None
    try:
        items = {item.id: item for item in read_items(placed(str(path.parent), document))}
    except DataError as error:
        raise ImageFormatError(f"{path}: {error}") from None
    if wanted is None and len(items) > 1:
        raise ImageFormatError(f"{path}: {document} holds {len(items)} items; name it as items, not as item")
    item = items.get(wanted) if wanted is not None else next(iter(items.values()), None)
    if item is None:
        raise ImageFormatError(f"{path}: {document} has no item {wanted!r}; it has {len(items)} others")
    return item


def _entry(path: Path, item: Item | None, number: int, band: object, physical: bool) -> _Entry:
    """Return one band of a list with its file, from the list's folder or of the item."""
    entry = dict(band) if isinstance(band, Mapping) else {}
    if set(entry) - _KEYS or ("uri" in entry) == ("asset" in entry) or ("asset" in entry and item is None):
        raise ImageFormatError(
            f"{path}: band {number} needs a uri, or an asset of the list's STAC item; known: {_KEYS}"
        )
    for key in ("scale", "offset"):
        if not isinstance(entry.get(key, 0), int | float) or not np.isfinite(entry.get(key, 0)):
            raise ImageFormatError(f"{path}: band {number} has {key} {entry[key]!r}; give a number")
    if item is not None and "asset" in entry:
        asset = item.assets.get(entry["asset"])
        if asset is None:
            raise ImageFormatError(
                f"{path}: item {item.id!r} has no asset {entry['asset']!r}; it has {', '.join(sorted(item.assets))}"
            )
        return _Entry(asset.uri, entry, asset, item.id, physical)
    uri = entry["uri"]
    if not isinstance(uri, str) or not uri or is_band_list(Path(uri)):
        raise ImageFormatError(f"{path}: band {number} is of {uri!r}; give an image")
    return _Entry(placed(str(path.parent), uri), entry)


def _band(path: Path, raster: Raster, entry: _Entry) -> _Band:
    """Find a band by name, else by number from 1, and what turns its stored values into the image's."""
    values = entry.values
    wanted = values.get("band", 1 if len(raster.bands) == 1 else None)
    if isinstance(wanted, str) and raster.bands.count(wanted) == 1:
        index = raster.bands.index(wanted)
    elif isinstance(wanted, int) and 1 <= wanted <= len(raster.bands):
        index = wanted - 1
    else:
        raise BandsError(
            f"{entry.uri}: has no band {wanted!r} of its own; it has 1 to {len(raster.bands)}: {raster.bands}"
        )
    named = values.get("asset", raster.bands[index]) if len(raster.bands) == 1 else raster.bands[index]
    name = str(values.get("name", named))
    own, shift = _physical(path, entry, index)
    scale = float(values.get("scale", 1))
    return _Band(entry.uri, index, name, own * scale, shift * scale + float(values.get("offset", 0)))


def _physical(path: Path, entry: _Entry, index: int) -> tuple[float, float]:
    """Return scale and offset from the stored to the physical value of a file's band, (1, 0) where not asked for."""
    if entry.asset is None or not entry.physical:
        return 1.0, 0.0
    stated = entry.asset.values(index).linear
    if stated is None:
        raise ImageFormatError(
            f"{path}: item {entry.item!r} states neither scale nor offset of band {index + 1} of its asset "
            f"{entry.asset.key!r}, and stored values are no physical ones; leave physical out and give scale and offset"
        )
    return stated


def _factor(path: Path, first: Raster, other: Raster) -> int:
    """Return how many pixels of the finest file a pixel of another spans, both ways."""
    one, two = first.levels[0], other.levels[0]
    factor = max(1, round(one.width / two.width))
    sizes = (-(-one.height // factor), -(-one.width // factor)) == (two.height, two.width)
    if not sizes or first.crs != other.crs or not _same_corner(first, other, factor):
        raise ImageFormatError(
            f"{path}: {other.uri} has {two.width} x {two.height} pixels of {other.spacing}, {first.uri} has "
            f"{one.width} x {one.height} of {first.spacing}, or they lie elsewhere; bring them to one grid first"
        )
    return factor


def _same_corner(first: Raster, other: Raster, factor: int) -> bool:
    if first.transform is None or other.transform is None:
        return first.transform == other.transform and factor == 1
    a, b, c, d, e, f = first.transform
    scale = max(map(abs, (a, b, d, e)))
    expected = (a * factor, b * factor, c, d * factor, e * factor, f)
    return all(abs(p - q) <= 1e-3 * scale for p, q in zip(expected, other.transform, strict=True))


def _place(level: Level, raster: Raster, factor: int) -> tuple[int, int] | None:
    """Return the file's level with the pixels of a level of the image, or its finest one where those are smaller."""
    for number, own in enumerate(raster.levels):
        if (own.height, own.width) == (level.height, level.width):
            return number, 1
    times = factor / level.downsample
    top = raster.levels[0]
    whole = times.is_integer() and times > 1
    fits = whole and (-(-level.height // int(times)), -(-level.width // int(times))) == (top.height, top.width)
    return (0, int(times)) if fits else None


def _repeated(raster: Raster, box: Box, level: int, times: int) -> tuple[Pixels, Mask]:
    """Read a box of an image whose pixels are `times` smaller than the file's on both axes."""
    own = Box(box.y0 // times, box.x0 // times, -(-box.y1 // times), -(-box.x1 // times))
    window = raster.read(own, level)
    if times == 1:
        return window.pixels, window.valid
    inside = box.slices(Box(own.y0 * times, own.x0 * times, own.y1 * times, own.x1 * times))
    pixels, valid = (array.repeat(times, 0).repeat(times, 1)[inside] for array in (window.pixels, window.valid))
    return pixels, valid
