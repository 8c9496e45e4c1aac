"""Reads STAC items from files and remote objects: what their assets are and where they lie; opens no image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from unetpp.errors import DataError
from unetpp.io.remote import folder_of, is_remote, local_path, placed

SUFFIXES = (".json", ".geojson")
_IMAGE_TYPES = ("image/tiff", "image/jp2", "application/vnd+zarr", "application/vnd.zarr", "image/png", "image/jpeg")
_NO_DATA_ROLES = {"thumbnail", "overview", "visual", "metadata", "mask"}


@dataclass(frozen=True)
class Values:
    """What an item says of the values that a band's file stores; None is what it does not say."""

    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None

    @property
    def linear(self) -> tuple[float, float] | None:
        """Scale and offset to the physical value, 1 or 0 where only the other is stated; None where neither is."""
        if self.scale is None and self.offset is None:
            return None
        return 1.0 if self.scale is None else self.scale, 0.0 if self.offset is None else self.offset


@dataclass(frozen=True)
class Asset:
    """One file of an item.

    Attributes:
        uri: absolute, or from the current folder.
        described: of each band that the item describes, in the file's order.
        others: of the bands that it does not describe: what it says of the asset as a whole.
    """

    key: str
    uri: str
    type: str
    roles: frozenset[str]
    described: tuple[Values, ...] = ()
    others: Values = Values()

    def values(self, index: int) -> Values:
        """Return what is said of the file's band, counted from 0."""
        return self.described[index] if index < len(self.described) else self.others


@dataclass(frozen=True)
class Item:
    id: str
    assets: Mapping[str, Asset]

    def images(self) -> list[Asset]:
        """Return the assets with the role "data" whose type is an image's; those without a telling role if none has."""
        images = [asset for asset in self.assets.values() if asset.type.startswith(_IMAGE_TYPES)]
        data = [asset for asset in images if "data" in asset.roles]
        return data or [asset for asset in images if not asset.roles & _NO_DATA_ROLES]


def read_items(uri: str) -> tuple[Item, ...]:
    """Return the items of a STAC item or item collection (GeoJSON), local or remote, in its order.

    Raises:
        DataError: it is no such document, or one id stands there twice.
        Also what `unetpp.io.staging.stage` raises of remote ones.
    """
    if is_remote(uri):
        from unetpp.io.remote import open_object
        from unetpp.io.staging import stage

        copy = stage(open_object(uri))  # kept from deletion until it is read
        return _read(copy.path, 0, uri)
    path = local_path(uri)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{uri} cannot be read ({error.strerror}); give STAC items as JSON") from None
    return _read(path, changed, str(path))


# Every image of a collection asks for its own item.
@lru_cache(maxsize=4)
def _read(path: Path, changed: int, uri: str) -> tuple[Item, ...]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        features = document["features"] if document.get("type") == "FeatureCollection" else [document]
        known = all(feature.get("type") == "Feature" and "stac_version" in feature for feature in features)
        items = tuple(_item(feature, folder_of(uri)) for feature in features) if known else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{uri} is not a readable STAC document ({error!r}); give STAC items as JSON") from None
    if not known:
        raise DataError(f"{uri} is no STAC item or item collection; give one, or a CSV or Parquet table")
    ids = [item.id for item in items]
    twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise DataError(f"{uri} has the item {twice!r} twice; give each its own id")
    return items


def _item(values: Mapping[str, Any], folder: str) -> Item:
    assets = {
        key: Asset(
            key,
            placed(folder, asset["href"]),
            str(asset.get("type", "")),
            frozenset(asset.get("roles") or ()),
            tuple(_described(asset)),
            _values({}, {}, asset),
        )
        for key, asset in values["assets"].items()
    }
    return Item(str(values["id"]), assets)


def _described(asset: Mapping[str, Any]) -> Iterator[Values]:
    """Yield what is said of each band: in STAC 1.1's bands, else in the raster extension 1.x, else of the asset."""
    nothing: Mapping[str, Any] = {}
    new, old = asset.get("bands") or (), asset.get("raster:bands") or ()
    for band, raster in zip_longest(new, old, fillvalue=nothing):
        yield _values(band, raster, asset)


def _values(band: Mapping[str, Any], raster: Mapping[str, Any], asset: Mapping[str, Any]) -> Values:
    def stated(name: str, *more: Any) -> float | None:
        prefixed = f"raster:{name}"
        places = (band.get(prefixed), band.get(name), raster.get(name), asset.get(prefixed), *more)
        value = next((value for value in places if value is not None), None)
        return None if value is None else float(value)

    try:
        nodata = stated("nodata", asset.get("nodata"))  # may be "nan" or "-inf"
    except (ValueError, TypeError):
        nodata = None  # no number: no pixel has it
    found = Values(stated("scale"), stated("offset"), nodata)
    if not all(math.isfinite(value or 0.0) for value in (found.scale, found.offset)):
        raise ValueError(f"a scale of {found.scale} and an offset of {found.offset}")
    return found
