"""Reads georeferenced TIFFs through GDAL; never sees slides: their label photo is an overview to GDAL."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as GdalWindow

from unetpp.errors import CorruptImageError, ImageFormatError, ImageTooLargeError
from unetpp.geometry import Box
from unetpp.io.base import JP2, SIDECARS, VRT, Mask, Pixels, existing
from unetpp.io.gdal import Dataset, bound_cache
from unetpp.io.georeference import georeference
from unetpp.io.reader import MAX_DECODED_PIXELS, ReaderBase, both, first_line, make_levels, valid_samples
from unetpp.io.remote import RemoteObject
from unetpp.io.tiff import MASK, count_images, mask_sizes

_DRIVERS, _FORMATS = {VRT: "VRT", JP2: "JP2OpenJPEG"}, {VRT: "vrt", JP2: "jp2"}
"""By suffix; all else is a GeoTIFF."""
_NO_CODEC = "missing codec"
_SOURCES = {"sourcefilename", "sourcedataset"}
_SCRIPTS = {"pixelfunctionlanguage", "pixelfunctioncode"}
_MASK_FILES = (MASK, MASK + ".ovr")


class SceneRaster(ReaderBase):
    """A GeoTIFF, COG, JPEG 2000 or VRT with its overviews as levels; bands in file order without alpha.

    Ground control points count where an affine transform fits them all within half a pixel; others are refused.
    A pixel is valid where alpha and the masks of file and bands say so, and where `reader.valid_samples` finds samples,
    not nodata. Overviews without the masks of level 0, as those made before the mask, are no levels.

    Args:
        source: a file, or remote objects by name: the image first, then its sidecars.
    """

    def __init__(self, source: Path | Mapping[str, RemoteObject]) -> None:
        suffix = source.suffix.lower() if isinstance(source, Path) else ""
        self._driver, self.format = _DRIVERS.get(suffix, "GTiff"), _FORMATS.get(suffix, "geotiff")
        self.uri = str(source) if isinstance(source, Path) else next(iter(source.values())).uri
        self._source = source
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open_datasets: list[Dataset] = []
        bound_cache()
        if isinstance(source, Path) and self._driver == "VRT":
            _vrt_files(source)
        if self._driver == "GTiff" and self._dataset(0).run(lambda top: top.subdatasets):
            self._refuse_pages()
        overviews = self._dataset(0).run(self._describe)
        sizes = [self._dataset(index).run(lambda dataset: (dataset.height, dataset.width)) for index in overviews]
        self.levels = make_levels(sizes[: self._count_masked(sizes)])

    def _refuse_pages(self) -> None:
        """Refuse a TIFF of several images, of which GDAL shows the first; a small one beside it may be a thumbnail."""
        source = self._source if isinstance(self._source, Path) else next(iter(self._source.values()))
        if (count := count_images(source)) > 1:
            self.close()
            raise ImageFormatError(f"{self.uri}: holds {count} images, one per page; save each as a file of its own")

    def _describe(self, top: Any) -> range:
        """Take everything but the levels from the open file; returns the numbers of its levels."""
        self._describe_bands(top)
        place = georeference(top, self.uri)
        self.crs, self.transform, self.spacing, self.kind = place.crs, place.transform, place.spacing, place.kind
        # Overviews that a VRT only lists are made anew for each window, and a pixel of theirs depends on the window.
        computed = isinstance(self._source, Path) and self._driver == "VRT" and _lists_overviews(self._source)
        return range(1 if computed else 1 + len(top.overviews(1)))

    def _describe_bands(self, top: Any) -> None:
        self._indexes = [i for i, c in zip(top.indexes, top.colorinterp, strict=True) if c != ColorInterp.alpha]
        self._alpha = [i for i, c in zip(top.indexes, top.colorinterp, strict=True) if c == ColorInterp.alpha]
        if not self._indexes:
            raise ImageFormatError(f"{self.uri}: has an alpha band only; nothing to segment")
        kinds = {top.dtypes[i - 1] for i in self._indexes}
        if len(kinds) > 1 or np.dtype(next(iter(kinds))).kind not in "uif":
            raise ImageFormatError(f"{self.uri}: sample types {sorted(kinds)}; convert every band to one real type")
        self.dtype = np.dtype(next(iter(kinds)))
        self.nodata = [top.nodatavals[i - 1] for i in self._indexes]
        flags = {i: top.mask_flag_enums[i - 1] for i in self._indexes}
        # A band without a flag has a mask of its own, as bands of a VRT may.
        own = [i for i in self._indexes if not flags[i]]
        shared = [i for i in self._indexes if MaskFlags.per_dataset in flags[i] and MaskFlags.alpha not in flags[i]]
        self._masked = own + shared[:1]
        self.bands = tuple(_band_name(top, i, len(self._indexes)) for i in self._indexes)
        height, width = top.block_shapes[0]
        if height * width > MAX_DECODED_PIXELS:
            raise ImageTooLargeError(
                f"{self.uri}: one block holds {height * width} pixels, more than {MAX_DECODED_PIXELS}; "
                "rewrite it as a tiled TIFF (gdal_translate -of COG)"
            )

    def _count_masked(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Return how many levels from the finest on have the masks of level 0: GDAL has all else valid."""
        if not self._masked or len(sizes) == 1:
            return len(sizes)
        # An overview inside a TIFF has its image's flags, mask or not; without one GDAL makes up that all is valid.
        stored = self._stored_masks() if self._driver == "GTiff" else set(sizes)
        flags = [self._dataset(level).run(self._mask_flags) for level in range(len(sizes))]
        missing = (i for i, size in enumerate(sizes) if i and (flags[i] != flags[0] or size not in stored))
        return next(missing, len(sizes))

    def _mask_flags(self, dataset: Any) -> list[Any]:
        return [dataset.mask_flag_enums[i - 1] for i in self._masked]

    def _stored_masks(self) -> set[tuple[int, int]]:
        """Return (height, width) of all masks in a TIFF and beside it: GDAL finds an overview's by its size."""
        files: dict[str, Path | RemoteObject] = {}
        if isinstance(self._source, Path):
            beside = (self._source.with_name(self._source.name + ending) for ending in SIDECARS)
            files.update({file.name: file for file in (self._source, *existing(beside))})
        else:
            files.update(self._source)
        return {size for name, file in files.items() for size in mask_sizes(file, all_pages=name.endswith(_MASK_FILES))}

    def _dataset(self, level: int) -> Dataset:
        """Return this thread's own handle on one level."""
        handles: dict[int, Dataset] = self._local.__dict__.setdefault("handles", {})
        if level not in handles:
            options: dict[str, Any] = {} if level == 0 else {"overview_level": level - 1}
            try:
                dataset = Dataset(self._source, driver=self._driver, **options)
            except RasterioError as error:
                why = first_line(error)
                if _NO_CODEC in why:
                    raise ImageFormatError(
                        f"{self.uri}: its compression cannot be read here ({why}); rewrite it with another"
                    ) from None
                raise CorruptImageError(f"{self.uri}: does not open ({why}); copy it again") from None
            with self._lock:
                self._open_datasets.append(dataset)
            handles[level] = dataset
        return handles[level]

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        window = GdalWindow(box.x0, box.y0, box.width, box.height)

        def samples(dataset: Any) -> tuple[Pixels, Mask | None]:
            planes = dataset.read(self._indexes, window=window)
            valid: Mask | None = None
            for index in self._alpha:
                valid = both(valid, np.asarray(dataset.read(index, window=window) > 0))
            for index in self._masked:
                valid = both(valid, np.asarray(dataset.read_masks(index, window=window) > 0))
            return planes, valid

        try:
            planes, valid = self._dataset(level).run(samples)
        except RasterioError as error:
            why = first_line(error.__cause__ or error)
            raise CorruptImageError(f"{self.uri}: level {level} {box} does not decode ({why}); copy it again") from None
        pixels = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
        return pixels, both(valid, valid_samples(pixels, self.nodata))

    def close(self) -> None:
        with self._lock:
            for dataset in self._open_datasets:
                dataset.close()
            self._open_datasets.clear()
        self._local = threading.local()


def vrt_sources(path: Path) -> list[Path]:
    """Return the files that a VRT and the VRTs in it read, and GDAL's sidecars of them; errors as `_vrt_files`'s."""
    files = _vrt_files(path)
    beside = (file.with_name(file.name + ending) for file in (path, *files) for ending in SIDECARS)
    return sorted({*files, *existing(beside)})


def _vrt_files(path: Path) -> list[Path]:
    """Return the files that a VRT names, and that the VRTs among them name; each once.

    Raises:
        ImageFormatError: one is read by GDAL's own network code or made by a script, which could not be trusted; or a
            VRT does not read as XML.
        CorruptImageError: one does not exist, of which GDAL would make zeros.
    """
    found, waiting = {path.resolve(): path}, [path]
    while waiting:
        vrt = waiting.pop()
        for name, relative in _named_sources(vrt):
            file = _source_file(vrt, name, vrt.parent if relative else Path())
            if file.resolve() not in found:
                found[file.resolve()] = file
                if _is_description(file):
                    waiting.append(file)
    return list(found.values())[1:]


def _named_sources(vrt: Path) -> list[tuple[str, bool]]:
    """Return the sources that one VRT names, and of each whether its name is relative to the VRT's folder.

    GDAL takes names in any case, and a value as an element or as an attribute.
    """
    text = vrt.read_bytes()
    if b"<!DOCTYPE" in text:
        raise ImageFormatError(f"{vrt}: has a document type, which may define anything; write it without")
    try:
        # GDAL takes every VRT for UTF-8, whatever it says. Without a document type there are no entities to expand.
        root = ElementTree.fromstring(text, ElementTree.XMLParser(encoding="utf-8"))  # noqa: S314
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageFormatError(f"{vrt}: is no VRT that reads as XML ({first_line(error)}); use a GeoTIFF") from None
    if root.tag.lower() != "vrtdataset":
        raise ImageFormatError(f"{vrt}: is no VRT but {root.tag}, which may name any host; write it to a GeoTIFF first")
    found = []
    for element in root.iter():
        values = {name.lower(): value for name, value in element.attrib.items()}
        fields = {element.tag.lower(): "".join(element.itertext()), **values}
        if _SCRIPTS & fields.keys():
            raise ImageFormatError(f"{vrt}: runs code of its own; write its result to a GeoTIFF first")
        relative = values.get("relativetovrt") == "1"
        found += [(fields[key].lstrip(), relative) for key in _SOURCES & fields.keys()]
    return found


def _lists_overviews(vrt: Path) -> bool:
    return b"<overviewlist" in vrt.read_bytes().lower()


def _source_file(vrt: Path, name: str, folder: Path) -> Path:
    """Return the file of a source's name, which may be one of GDAL's subdatasets: NETCDF:"file.nc":variable."""
    pieces = (name, *name.replace('"', "").split(":"))
    if "://" in name or any(piece.startswith("/vsi") for piece in pieces):
        raise ImageFormatError(f"{vrt}: names files that are not on this machine; list the bands in a .bands.toml")
    for piece in pieces:
        if piece and (folder / piece).exists():
            return folder / piece
    raise CorruptImageError(f"{vrt}: names {name[:200]!r}, which does not exist here; copy that too")


def _is_description(file: Path) -> bool:
    """Say whether a file is XML or JSON that may name others: GDAL knows both by their first bytes."""
    if file.is_dir():
        return False
    with file.open("rb") as opened:
        head = opened.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith((b"<", b"{"))


def _band_name(dataset: Any, index: int, count: int) -> str:
    described = dataset.descriptions[index - 1]
    if described:
        return str(described)
    color = dataset.colorinterp[index - 1]
    if color in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) or (color == ColorInterp.gray and count == 1):
        return str(color.name)
    return f"band{index}"
