"""Reads remote slides in ranges of bytes where their own tiles are what OpenSlide shows; knows no vendor's habits.

OpenSlide reads files only. It is shown one with the remote TIFF's directories and one tile of each level, and holes for
all the rest: vendor, levels and spacing are what it says, and its pixels of those tiles must be ours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

import numpy as np
import openslide
import tifffile

from unetpp.durable import output_errors
from unetpp.errors import CorruptImageError, ImageFormatError, OutputError
from unetpp.geometry import Box
from unetpp.io.base import Mask, Pixels
from unetpp.io.openslide import IN_TILES, SlideRaster
from unetpp.io.reader import RGB, ReaderBase
from unetpp.io.remote import RemoteFile, RemoteObject
from unetpp.io.tiff import TiffPages


class SlideInRanges(ReaderBase):
    """A remote slide as `SlideRaster` would open its copy, read tile by tile."""

    kind = "slide"
    bands = RGB
    dtype = np.dtype(np.uint8)

    def __init__(self, slide: SlideRaster, pages: TiffPages) -> None:
        self.uri = pages.path
        self.format, self.levels, self.spacing = slide.format, slide.levels, slide.spacing
        self._pages = pages

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        return self._pages.read(box, level)

    def close(self) -> None:
        self._pages.close()


def open_in_ranges(image: RemoteObject) -> SlideInRanges | None:
    """Open a remote TIFF as a slide, or return None where only a whole copy will do.

    That is so where OpenSlide knows it as a format whose tiles overlap or lie in several files, where a tile was never
    written (OpenSlide then looks at other levels), or where its pixels differ from the tile's own.

    Raises:
        RemoteError, CorruptImageError: as `RemoteObject.read`.
        OutputError: there is no room for a temporary file.
    """
    try:
        pages = TiffPages(image)
    except (ImageFormatError, CorruptImageError):
        return None  # whatever is wrong is told of the copy
    try:
        found = _opened(image, pages)
    except BaseException:
        pages.close()
        raise
    if found is None:
        pages.close()
    return found


def _opened(image: RemoteObject, pages: TiffPages) -> SlideInRanges | None:
    if not all(pages.is_whole(Box(0, 0, *size), level) for level, size in enumerate(pages.sizes)):
        return None
    with tempfile.TemporaryDirectory(prefix="unetpp-slide-") as folder:
        outline = Path(folder, f"slide{PurePosixPath(urlsplit(image.uri).path).suffix}")
        try:
            with output_errors(outline):
                _write_outline(image, pages, outline)
            if openslide.OpenSlide.detect_format(outline) not in IN_TILES:
                return None
            slide = SlideRaster(outline)
        except OutputError:
            raise
        except (tifffile.TiffFileError, CorruptImageError, ImageFormatError):
            return None
        with slide:
            same = tuple((level.height, level.width) for level in slide.levels) == pages.sizes
            return SlideInRanges(slide, pages) if same and _agree(slide, pages) else None


def _agree(slide: SlideRaster, pages: TiffPages) -> bool:
    """Say whether the middle tile of each level is what `SlideRaster`, which asks OpenSlide, makes of it."""
    boxes = [pages.middle(level)[0] for level in range(len(slide.levels))]
    return all(np.array_equal(pages.read(box, i)[0], slide.read(box, i).pixels) for i, box in enumerate(boxes))


def _write_outline(image: RemoteObject, pages: TiffPages, path: Path) -> None:
    """Write a file of the remote one's size that has its directories and the middle tile of each level."""
    with path.open("wb") as file:
        file.truncate(image.size)
        with tifffile.TiffFile(_Recorder(image, file)) as tiff:
            for page in tiff.pages:
                for tag in page.tags:
                    _ = tag.value  # what does not lie in the directory itself is read when it is asked for
        for level in range(len(pages.levels)):
            _, offset, size = pages.middle(level)
            file.seek(offset)
            file.write(image.read(offset, offset + size))


class _Recorder(RemoteFile):
    """A remote file that writes all that is read of it to the same places of a local one."""

    def __init__(self, source: RemoteObject, copy: IO[bytes]) -> None:
        super().__init__(source)
        self._copy = copy

    def read(self, size: int = -1, /) -> bytes:
        at = self.tell()
        data = super().read(size)
        self._copy.seek(at)
        self._copy.write(data)
        return data
