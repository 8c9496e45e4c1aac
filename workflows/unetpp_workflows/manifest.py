"""Reads lists of images: CSV and Parquet manifests and STAC items; knows their keys, opens no image.

A table has a column uri (or image, path, href), and where wanted name, spacing, mask and region. Paths that are not
absolute start from the manifest's folder. Capitals in their names do not count; other columns are the user's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unetpp.errors import DataError, RegionError, SpacingError
from unetpp.geometry import Spacing
from unetpp.io import stac
from unetpp.io.remote import folder_of, is_remote, local_path, placed
from unetpp.region import parse_region
from unetpp_workflows.tables import read_table

SUFFIXES = (".csv", ".parquet", *stac.SUFFIXES)
_URI_COLUMNS = ("uri", "image", "path", "href")
_COLUMNS = ("name", "spacing", "mask", "region")


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
    return Path(item).suffix.lower() in SUFFIXES and (is_remote(item) or local_path(item).is_file())


def read_manifest(item: str) -> list[Entry]:
    """Return the images that a manifest, local or remote, lists, in its order; equal rows are one.

    Raises:
        DataError: it cannot be read, has no column with URIs, an empty one, a bad spacing, or one name twice; an item
            has not exactly one image.
        Also what `unetpp.io.staging.stage` raises of remote ones.
    """
    place = item if is_remote(item) else str(local_path(item))
    entries = list(dict.fromkeys(_read(place)))
    counts = Counter(entry.name for entry in entries if entry.name)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{place} has the name {twice!r} twice; give each image its own, or leave the column empty")
    return entries


def _read(place: str) -> Iterator[Entry]:
    path = Path(place)
    if path.suffix.lower() in stac.SUFFIXES:
        yield from (Entry(_image(item, place).uri, item.id) for item in stac.read_items(place))
    elif is_remote(place):
        from unetpp.io.remote import open_object
        from unetpp.io.staging import stage

        copy = stage(open_object(place))  # kept from deletion until it is read
        yield from _table(copy.path, folder_of(place))
    else:
        yield from _table(path, folder_of(place))


def _table(path: Path, folder: str) -> Iterator[Entry]:
    rows = _rows(path)
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
            placed(folder, row[column]),
            row.get("name", ""),
            spacing,
            placed(folder, mask) if mask is not None else None,
            _region(region, folder, f"{path}, row {number}") if region is not None else None,
        )


def _rows(path: Path) -> list[dict[str, str]]:
    """Return a table's rows with our columns in small letters: one called Mask would otherwise be nobody's."""
    rows = read_table(path)
    ours = {name: name.casefold() for name in rows[0] if name.casefold() in (*_URI_COLUMNS, *_COLUMNS)}
    if len(set(ours.values())) < len(ours):
        raise DataError(f"{path} has one column twice: {', '.join(ours)}; leave each but one out")
    return [{ours.get(name, name): value for name, value in row.items()} for row in rows]


def _region(text: str, folder: str, where: str) -> str:
    """Return a region whose file, if it is one, starts from the manifest's folder."""
    problem, own = None, placed(folder, text)
    try:
        if parse_region(text).numbers is not None:
            return text
        # A file of that name in the current folder is another one.
    except RegionError as error:
        problem = error
    try:
        parse_region(own)
    except RegionError as error:
        raise DataError(f"{where}: {problem or error}") from None
    return own


def _image(item: stac.Item, place: str) -> stac.Asset:
    """Return the only image of an item."""
    images = item.images()
    if len(images) == 1:
        return images[0]
    if not images:
        raise DataError(f"{place}: item {item.id!r} has no image among its assets; list the images in a table")
    raise DataError(
        f"{place}: item {item.id!r} has several images ({', '.join(image.key for image in images)}); "
        f"say which bands make one in a .bands.toml with items = {Path(place).name!r}"
    )
