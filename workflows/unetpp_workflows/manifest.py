"""Reads lists of images: CSV and Parquet manifests and STAC items; knows their keys, opens no image.

A table has a column uri (or image, path, href), and where wanted name, spacing, mask and region. Paths that are not
absolute start from the manifest's folder. Other columns are the user's own.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetpp.errors import DataError, RegionError, SpacingError
from unetpp.geometry import Spacing
from unetpp.io.remote import is_remote
from unetpp.region import parse_region
from unetpp_workflows.tables import read_table

SUFFIXES = (".csv", ".parquet", ".json", ".geojson")
_URI_COLUMNS = ("uri", "image", "path", "href")
_IMAGE_TYPES = ("image/tiff", "image/jp2", "application/vnd+zarr", "application/vnd.zarr", "image/png", "image/jpeg")


@dataclass(frozen=True)
class Entry:
    """One image of a call.

    Attributes:
        name: of its output folder, "" for the file's own.
        spacing: pixel size where the file states none or a wrong one, such as "0.25um"; None leaves the file's.
        mask: path of an image whose non-zero pixels are to be segmented, or None.
        region: the only part to be segmented, see `unetpp.region`, or None.
    """

    uri: str
    name: str = ""
    spacing: str | None = None
    mask: str | None = None
    region: str | None = None


def is_manifest(item: str) -> bool:
    """Say whether an input names a list of images and not an image."""
    return Path(item).suffix.lower() in SUFFIXES and (is_remote(item) or Path(item).expanduser().is_file())


def read_manifest(item: str) -> list[Entry]:
    """Return the images that a manifest, local or remote, lists, in its order.

    Raises:
        DataError: it cannot be read, has no column with URIs, an empty one, a bad spacing, or one name twice.
        Also what `unetpp.io.staging.stage` raises of remote ones.
    """
    if is_remote(item):
        from unetpp.io.remote import open_object
        from unetpp.io.staging import stage

        copy = stage(open_object(item))
        return _read(copy.path, _Folder(item.rpartition("/")[0], remote=True))
    path = Path(item).expanduser()
    return _read(path, _Folder(str(path.parent)))


@dataclass(frozen=True)
class _Folder:
    """Where a manifest lies, from which its relative paths start."""

    uri: str
    remote: bool = False

    def place(self, uri: str) -> str:
        if "://" in uri or Path(uri).expanduser().is_absolute():
            return uri
        if not self.remote:
            return str(Path(self.uri) / uri)
        scheme, _, path = self.uri.partition("://")
        bucket, _, key = path.partition("/")
        return f"{scheme}://{bucket}{posixpath.normpath(posixpath.join('/', key, uri))}"


def _read(path: Path, folder: _Folder) -> list[Entry]:
    entries = list((_stac if path.suffix.lower() in (".json", ".geojson") else _table)(path, folder))
    names = [entry.name for entry in entries if entry.name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has the name {twice!r} twice; give each image its own, or leave the column empty")
    return entries


def _table(path: Path, folder: _Folder) -> Iterator[Entry]:
    rows = read_table(path)
    column = next((name for name in _URI_COLUMNS if name in rows[0]), None)
    if column is None:
        raise DataError(f"{path} has no column {' or '.join(_URI_COLUMNS)}; it has {', '.join(rows[0])}")
    for number, row in enumerate(rows, 1):
        if not row[column]:
            raise DataError(f"{path}, row {number}: {column} is empty; name the image or remove the row")
        spacing = row.get("spacing") or None
        if spacing is not None:
            try:
                Spacing.parse(spacing)
            except SpacingError as error:
                raise DataError(f"{path}, row {number}: {error}") from None
        mask, region = row.get("mask") or None, row.get("region") or None
        yield Entry(
            folder.place(row[column]),
            row.get("name", ""),
            spacing,
            folder.place(mask) if mask is not None else None,
            _region(region, folder, f"{path}, row {number}") if region is not None else None,
        )


def _region(text: str, folder: _Folder, where: str) -> str:
    """Return a region whose file, if it is one, starts from the manifest's folder."""
    for candidate in (text, folder.place(text)):
        try:
            parse_region(candidate)
        except RegionError as error:
            problem = error
        else:
            return candidate
    raise DataError(f"{where}: {problem}")


def _stac(path: Path, folder: _Folder) -> Iterator[Entry]:
    """Yield one image per item: the asset with the role "data", else the first whose type is an image's."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        items = document["features"] if document.get("type") == "FeatureCollection" else [document]
        for item in items:
            if item.get("type") != "Feature" or "stac_version" not in item:
                raise DataError(f"{path} is no STAC item or item collection; give one, or a CSV or Parquet table")
            yield Entry(folder.place(_asset(item, path)["href"]), str(item["id"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a readable STAC document ({error!r}); give STAC items as JSON") from None


def _asset(item: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    assets: list[Mapping[str, Any]] = list(item["assets"].values())
    images = [asset for asset in assets if str(asset.get("type", "")).startswith(_IMAGE_TYPES)]
    data = [asset for asset in images if "data" in asset.get("roles", ())]
    if not images:
        raise DataError(f"{path}: item {item['id']!r} has no image among its assets; list the images in a table")
    return (data or images)[0]
