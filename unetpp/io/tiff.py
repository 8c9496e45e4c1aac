"""Reads windows of a TIFF's pages, segment by segment; knows no georeference and no slide vendor's habits."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unetpp.errors import CorruptImageError, ImageFormatError, ImageTooLargeError, UnetppError
from unetpp.geometry import Box
from unetpp.io import jpeg
from unetpp.io.base import Mask, Pixels
from unetpp.io.reader import MAX_DECODED_PIXELS, first_line
from unetpp.io.remote import RemoteFile, RemoteObject

SEGMENT_CACHE_BYTES = 2**22
"""Of decoded segments, per open file, of which each worker has one; more where those below a window take more."""
# Codecs raise what their C libraries report; these are the classes seen from tifffile, imagecodecs, zlib and lzma.
DECODE_ERRORS = (OSError, ValueError, RuntimeError, EOFError, TypeError, IndexError, NotImplementedError, MemoryError)

GEO_TAGS = {33550, 33922, 34264, 34735}
"""ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory."""
GDAL_NODATA = 42113
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AUXILIARY, MASK = ".aux.xml", ".msk"
"""What GDAL appends to a TIFF's name for what its tags do not say, and for its mask."""
PLACES = (b"<GeoTransform>", b"<GCPList")
"""What says in such an auxiliary file where the image lies."""
_FREE_KINDS = ("ome", "shaped", "generic")
"""Kinds of TIFF, as tifffile names them, that may hold any number of images."""
_BITS_PER_SAMPLE, _COMPRESSION, _IMAGE_DESCRIPTION, _SAMPLES_PER_PIXEL = 258, 259, 270, 277
_OPENSLIDE_COMPRESSIONS = {1, 5, jpeg.JPEG, 8, 32946, 32773, 33003, 33005, 50000}
"""None, LZW, JPEG, Deflate (two numbers), PackBits, Aperio's JPEG 2000 (two numbers) and Zstandard."""

FINEST_PRINT_SPACING_UM = 20.0
"""TIFF software writes 72, 96, 300 or 600 dpi (353 to 42 um) where nobody measured; a microscope is finer than this."""


@dataclass(frozen=True)
class _Segment:
    """One tile or strip: where its bytes are (level, number of the page, index in the page) and its pixels go."""

    page: Any
    key: tuple[int, int, int]
    box: Box
    samples: slice

    @property
    def size(self) -> int:
        """Return how many numbers it holds."""
        planes: int = self.samples.stop - self.samples.start
        return self.box.area * planes


class TiffPages:
    """One image series of a TIFF file as pyramid levels of (H, W, samples) windows.

    A level is one page with interleaved or planar samples, or one page per channel (axes CYX). Stacks over time, depth
    or unnamed axes are refused, files of several images, for one image has one (y, x) plane, and images of several
    files. Safe for several threads.
    """

    def __init__(self, source: Path | RemoteObject) -> None:
        self.path = str(source) if isinstance(source, Path) else source.uri
        self._remote = None if isinstance(source, Path) else source
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self._cached = 0
        self._room = SEGMENT_CACHE_BYTES
        try:
            self._file = _tiff_file(source)
        except UnetppError:
            raise
        except (tifffile.TiffFileError, *DECODE_ERRORS) as error:
            raise CorruptImageError(f"{self.path}: not a readable TIFF ({first_line(error)}); copy it again") from None
        try:
            self._open_series()
        except BaseException:
            self._file.close()
            raise

    def _open_series(self) -> None:
        try:
            series = self._file.series[0]
            peers = _peers(self._file.series)
            self.levels = tuple(tuple(level.pages) for level in series.levels)
        except UnetppError:
            raise
        except (tifffile.TiffFileError, *DECODE_ERRORS) as error:
            raise CorruptImageError(f"{self.path}: TIFF directory is damaged ({first_line(error)})") from None
        if any(page is None or page.parent is not self._file for pages in self.levels for page in pages):
            raise ImageFormatError(
                f"{self.path}: planes of it lie in other files or nowhere; save all of them in one OME-TIFF"
            )
        self.page = series.keyframe
        self.dtype = np.dtype(series.dtype)
        self.samples = self.page.samplesperpixel * len(self.levels[0])
        self.sizes = tuple((pages[0].keyframe.imagelength, pages[0].keyframe.imagewidth) for pages in self.levels)
        if series.axes.replace("S", "") not in ("YX", "CYX") or len(series.shape) > 3:
            shape = "x".join(map(str, series.shape))
            raise ImageFormatError(
                f"{self.path}: holds a {shape} stack with axes {series.axes}; save each (y, x) plane as its own image"
            )
        if series.axes.startswith("C") and len(self.levels[0]) != series.shape[0]:
            raise ImageFormatError(f"{self.path}: its channels are not stored as TIFF pages; save it again as OME-TIFF")
        if len(peers) > 1:
            raise ImageFormatError(
                f"{self.path}: holds {len(peers)} images ({', '.join(peers[:5])}); save each as a file of its own"
            )
        largest = max(int(np.prod(pages[0].keyframe.chunks[:2])) for pages in self.levels)
        if largest > MAX_DECODED_PIXELS:
            raise ImageTooLargeError(
                f"{self.path}: one strip or tile holds {largest} pixels, more than {MAX_DECODED_PIXELS}; "
                "save it as a tiled TIFF"
            )

    @property
    def ome_xml(self) -> str | None:
        text: str | None = self._file.ome_metadata
        return text

    @property
    def imagej(self) -> dict[str, Any]:
        return self._file.imagej_metadata or {}

    def read(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        """Return (H, W, samples) of a box inside the level, and validity (False where a segment was never written)."""
        pixels = np.empty((*box.shape, self.samples), self.dtype)  # segments cover all of it
        valid: Mask | None = None
        segments = self._segments(box, level)
        for segment, block in zip(segments, self._decoded(segments, box), strict=True):
            part = segment.box.intersect(box)
            here = pixels[..., segment.samples][part.slices(box)]
            if block is not None:
                here[...] = block[part.slices(segment.box)]
                continue
            here[...] = 0
            valid = np.ones(box.shape, bool) if valid is None else valid
            valid[part.slices(box)] = False
        return pixels, valid

    def is_whole(self, box: Box, level: int) -> bool:
        """Say whether every segment that the box touches was written."""
        return all(segment.page.databytecounts[segment.key[2]] > 0 for segment in self._segments(box, level))

    def middle(self, level: int) -> tuple[Box, int, int]:
        """Return the box of the tile or strip in the middle of a level, and its offset and size in the file."""
        height, width = self.sizes[level]
        segment = self._segments(Box(height // 2, width // 2, height // 2 + 1, width // 2 + 1), level)[0]
        index = segment.key[2]
        return segment.box, segment.page.dataoffsets[index], segment.page.databytecounts[index]

    def _segments(self, box: Box, level: int) -> list[_Segment]:
        """Return the segments that a box inside the level touches."""
        found = []
        height, width = self.sizes[level]
        for number, page in enumerate(self.levels[level]):
            rows, columns, per_plane = self._grid(page, level)
            layout = page.keyframe
            planes = 1 if layout.planarconfig == 1 else layout.samplesperpixel
            length, across = layout.chunks[0], layout.chunks[1]
            for plane in range(planes):
                first = number * layout.samplesperpixel + plane
                samples = slice(first, first + (layout.samplesperpixel if planes == 1 else 1))
                for row in range(box.y0 // length, min(-(-box.y1 // length), rows)):
                    for column in range(box.x0 // across, min(-(-box.x1 // across), columns)):
                        index = plane * per_plane + row * columns + column
                        y, x = row * length, column * across
                        here = Box(y, x, y + length, x + across).clip(height, width)
                        found.append(_Segment(page, (level, number, index), here, samples))
        return found

    def _decoded(self, segments: list[_Segment], box: Box) -> list[Pixels | None]:
        # The next window begins with the segments in which this one ends.
        below = sum(segment.size for segment in segments if segment.box.y1 > box.y1)
        self._room = max(SEGMENT_CACHE_BYTES, below * self.dtype.itemsize)
        if len(segments) < 2:
            return [self._segment(segment, box) for segment in segments]
        # Codecs let go of the interpreter, so that threads decode at once.
        return list(_decoders().map(lambda segment: self._segment(segment, box), segments))

    def _grid(self, page: Any, level: int) -> tuple[int, int, int]:
        height, width = self.sizes[level]
        length, across = page.keyframe.chunks[:2]
        rows, columns = -(-height // length), -(-width // across)
        return rows, columns, rows * columns

    def _segment(self, segment: _Segment, box: Box) -> Pixels | None:
        """Return a segment's pixels, None where it was never written."""
        key = segment.key
        done = segment.box.y1 <= box.y1 and segment.box.x1 <= box.x1
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key, last=not done)
                return self._cache[key]
        try:
            block = self._decode(segment)
        except UnetppError:
            raise
        except (tifffile.TiffFileError, *DECODE_ERRORS) as error:
            raise CorruptImageError(
                f"{self.path}: tile {key[2]} of level {key[0]} in {box} does not decode ({first_line(error)}); "
                "copy the file again"
            ) from None
        if block is not None:
            self._keep(key, block, done)
        return block

    def _decode(self, segment: _Segment) -> Pixels | None:
        page, index = segment.page, segment.key[2]
        size = page.databytecounts[index]
        if size == 0:
            return None
        data = self._bytes(page.dataoffsets[index], size)
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} bytes in the file")
        layout = page.keyframe
        if layout.jpegheader is None and jpeg.understands(
            layout.compression, layout.photometric, layout.samplesperpixel, layout.planarconfig, self.dtype
        ):
            return jpeg.decode(data, page.jpegtables, layout.photometric, segment.box.shape, layout.chunks[:2])
        block, _, shape = layout.decode(data, index, jpegtables=page.jpegtables, jpegheader=layout.jpegheader)
        if block is None:
            raise ValueError("no data")
        return np.asarray(block)[0, : shape[1], : shape[2]]

    def _bytes(self, offset: int, size: int) -> bytes:
        if self._remote is not None:
            return self._remote.read(offset, offset + size)
        with self._lock:
            self._file.filehandle.seek(offset)
            data: bytes = self._file.filehandle.read(size)
            return data

    def _keep(self, key: tuple[int, int, int], block: Pixels, done: bool) -> None:
        """Remember the last segments: an image saved as one strip would otherwise decode whole for every window.

        Windows follow each other downwards and then to the right. A segment that is done, its last row and column being
        in this one, goes before those that are not: between two windows side by side lies a whole column of windows.
        """
        with self._lock:
            if key not in self._cache:
                self._cache[key] = block
                self._cached += block.nbytes
            self._cache.move_to_end(key, last=not done)
            while self._cached > self._room and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes

    def close(self) -> None:
        self._file.close()
        self._cache.clear()


def _peers(series: Sequence[Any]) -> list[str]:
    """Return name and size of the images of a TIFF that are as good as its first one, which is among them.

    Slides' labels, macros and thumbnails and the levels of pyramids are smaller by more than half or say that they are
    reduced; masks have other samples. The vendors of slides have rules of their own.
    """
    if series[0].kind not in _FREE_KINDS:
        return []
    found = []
    first = series[0].keyframe
    for one in series:
        page = one.keyframe
        if _is_peer(page, first):
            name = repr(one.name[:40]) if one.name else f"page {page.index + 1}"
            found.append(f"{name}: {page.imagewidth} x {page.imagelength}")
    return found


def _is_peer(page: Any, first: Any) -> bool:
    like = (page.dtype, page.samplesperpixel) == (first.dtype, first.samplesperpixel)
    large = 2 * page.imagelength * page.imagewidth > first.imagelength * first.imagewidth
    return bool(like and large and not page.is_reduced and not page.is_mask)


def count_images(source: Path | RemoteObject) -> int:
    """Return how many pages of a TIFF are as good as its first one, which is among them."""
    with _tiff_file(source) as file:
        first: Any = file.pages.first
        return sum(_is_peer(page, first) for page in file.pages)


def mask_sizes(source: Path | RemoteObject, *, all_pages: bool) -> list[tuple[int, int]]:
    """Return (height, width) of a TIFF's masks, or of all its pages; none where the file is no readable TIFF."""
    try:
        with _tiff_file(source) as file:
            pages: list[Any] = list(file.pages)
            return [(page.imagelength, page.imagewidth) for page in pages if all_pages or page.is_mask]
    except UnetppError:
        raise
    except (tifffile.TiffFileError, *DECODE_ERRORS):
        return []


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """Return the threads that decode for all readers of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(cores, thread_name_prefix="decode")


def _is_of_use(record: logging.LogRecord) -> bool:
    return "GDAL_NODATA" not in record.getMessage()


# tifffile warns of values that it cannot hold, as of float32's lowest or -9999 of bytes; nodata is read by us or GDAL.
logging.getLogger("tifffile").addFilter(_is_of_use)


def _tiff_file(source: Path | RemoteObject) -> tifffile.TiffFile:
    return tifffile.TiffFile(source if isinstance(source, Path) else RemoteFile(source))


@dataclass(frozen=True)
class Header:
    """What decides who reads a TIFF.

    Attributes:
        tags: of its first page, by number.
        placed: whether they say where on Earth it lies.
        masked: whether it holds a transparency mask; not looked for where `placed`, for that takes all of its pages.
    """

    tags: Mapping[int, Any]
    placed: bool = False
    masked: bool = False

    @property
    def for_openslide(self) -> bool:
        """Whether OpenSlide may read this TIFF where it has no place and no mask.

        It would turn other sample types into 8-bit RGB silently, and knows neither nodata nor every compression.
        """
        description = str(self.tags.get(_IMAGE_DESCRIPTION, ""))
        if "<OME" in description or description.startswith("ImageJ="):
            return False
        if GDAL_NODATA in self.tags or self.tags.get(_COMPRESSION, 1) not in _OPENSLIDE_COMPRESSIONS:
            return False
        bits = self.tags.get(_BITS_PER_SAMPLE, 1)
        return self.tags.get(_SAMPLES_PER_PIXEL) == 3 and set(bits if isinstance(bits, tuple) else (bits,)) == {8}


def read_header(source: Path | RemoteObject) -> Header:
    """Return a TIFF's header; it is empty where the file is not a readable TIFF."""
    try:
        with _tiff_file(source) as file:
            page: Any = file.pages.first
            tags = {tag.code: tag.value for tag in page.tags}
            if GEO_TAGS & tags.keys():
                return Header(tags, placed=True)
            # OME-TIFF has no masks, and may have a page for each of thousands of planes.
            return Header(tags, masked=not file.is_ome and any(page.is_mask for page in file.pages))
    except UnetppError:
        raise
    except (tifffile.TiffFileError, *DECODE_ERRORS):
        return Header({})
