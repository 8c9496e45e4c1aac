"""Reads whole slides through OpenSlide; never touches label or macro photos or patient metadata."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from unetpp.errors import CorruptImageError, ImageFormatError
from unetpp.geometry import Box, Spacing
from unetpp.io.base import Mask, Pixels
from unetpp.io.reader import RGB, ReaderBase, first_line, make_levels
from unetpp.io.tiff import FINEST_PRINT_SPACING_UM, TiffPages

CACHE_BYTES = 2**25
BLOCK = 512
GENERIC = "generic-tiff"
IN_TILES = ("aperio", GENERIC)
"""Vendors, as OpenSlide names them, whose levels are the TIFF's own tiles side by side."""


class SlideRaster(ReaderBase):
    """A slide: 8-bit RGB; transparent pixels take the slide's background colour and are invalid.

    Level pixels are exact. TIFF slides are decoded from their own tiles, several at once, which is faster than
    OpenSlide; a level's first tile is compared with OpenSlide's, which reads the level where they differ, and
    wherever a tile was never written (it then looks at other levels). OpenSlide takes level-0 corners only, so where
    a level's downsample is not an integer it interpolates by a fraction of a pixel that depends on the corner:
    nothing to compare with, and for slides that are no TIFF every read then starts at a corner of one fixed grid, so
    a pixel never depends on the box.
    """

    kind = "slide"
    bands = RGB
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self._path = path
        self._lock = threading.Lock()
        self._slide = self._open()
        properties = self._slide.properties
        vendor = str(properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"))
        self.format = f"openslide/{vendor}"
        self.levels = make_levels([(h, w) for w, h in self._slide.level_dimensions])
        self._downsamples = tuple(float(d) for d in self._slide.level_downsamples)
        self.spacing = _spacing(properties, vendor)
        self._background = _background(properties)
        self._pages: TiffPages | None = None
        self._agrees: dict[int, bool] = {}
        self._in_tiles = vendor in IN_TILES
        self._closed = False
        if vendor == GENERIC:
            self._tiff()  # OpenSlide passes over further images of the file; this refuses them

    def _open(self) -> Any:
        try:
            slide = openslide.OpenSlide(self._path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise ImageFormatError(f"{self._path}: OpenSlide does not know this slide format") from None
        except openslide.OpenSlideError as error:
            raise CorruptImageError(f"{self._path}: slide does not open ({first_line(error)})") from None
        slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        return slide

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        pages = self._tiff()
        if not self._downsamples[level].is_integer():
            return self._read_on_grid(box, level) if pages is None else pages.read(box, level)
        if pages is None or not pages.is_whole(box, level) or not self._tiles_agree(pages, box, level):
            return self._read_region(box, level)
        return pages.read(box, level)

    def _tiles_agree(self, pages: TiffPages, box: Box, level: int) -> bool:
        """Say whether this level's own tiles have OpenSlide's pixels, from a small part of the first box read."""
        if level not in self._agrees:
            part = Box(box.y0, box.x0, min(box.y0 + BLOCK, box.y1), min(box.x0 + BLOCK, box.x1))
            ours, truth = pages.read(part, level)[0], self._read_region(part, level)[0]
            self._agrees[level] = bool(np.array_equal(ours, truth))
        return self._agrees[level]

    def _read_region(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        downsample = self._downsamples[level]
        corner = (round(box.x0 * downsample), round(box.y0 * downsample))
        slide = self._slide
        try:
            image = slide.read_region(corner, level, (box.width, box.height))
        except openslide.OpenSlideError as error:
            self._reopen(slide)
            raise CorruptImageError(
                f"{self.uri}: level {level} {box} does not decode ({first_line(error)}); copy the file again"
            ) from None
        return _composite(np.asarray(image), self._background)

    def _reopen(self, failed: Any) -> None:
        """Replace a handle that failed: OpenSlide refuses every later call on it. Threads still in it keep it alive."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()

    def _read_on_grid(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        pixels = np.empty((*box.shape, 3), np.uint8)
        valid = np.ones(box.shape, bool)
        for y in range(box.y0 // BLOCK * BLOCK, box.y1, BLOCK):
            for x in range(box.x0 // BLOCK * BLOCK, box.x1, BLOCK):
                block = Box(y, x, min(y + BLOCK, box.y1), min(x + BLOCK, box.x1))
                part, part_valid = self._read_region(block, level)
                wanted = block.intersect(box)
                pixels[wanted.slices(box)] = part[wanted.slices(block)]
                if part_valid is not None:
                    valid[wanted.slices(box)] = part_valid[wanted.slices(block)]
        return pixels, None if valid.all() else valid

    def _tiff(self) -> TiffPages | None:
        """Return the slide's TIFF pages where they are the levels OpenSlide lists, else None."""
        with self._lock:
            if self._pages is None and self._in_tiles:
                pages = TiffPages(self._path)
                sizes = tuple((level.height, level.width) for level in self.levels)
                if pages.sizes == sizes and pages.samples == 3 and pages.dtype == np.uint8:
                    self._pages = pages
                else:
                    pages.close()
                    self._in_tiles = False
            return self._pages

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._slide.close()
        if self._pages is not None:
            self._pages.close()


def _composite(rgba: Pixels, background: tuple[int, int, int]) -> tuple[Pixels, Mask | None]:
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3]), None
    weight = alpha[..., None].astype(np.uint16)
    mixed = rgba[..., :3] * weight + np.asarray(background, np.uint16) * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8), alpha > 0


def _spacing(properties: Any, vendor: str) -> Spacing | None:
    """Return micrometres per pixel as the slide's metadata states them, or None.

    For plain TIFF pyramids OpenSlide derives mpp from the resolution tags, which most software fills with a print
    resolution; such values are unknown to us.
    """
    try:
        y = float(properties[openslide.PROPERTY_NAME_MPP_Y])
        x = float(properties[openslide.PROPERTY_NAME_MPP_X])
    except (KeyError, ValueError):
        return None
    if not (0 < y < 1e6 and 0 < x < 1e6):
        return None
    if vendor == GENERIC and max(y, x) >= FINEST_PRINT_SPACING_UM:
        return None
    return Spacing(y, x, "um")


def _background(properties: Any) -> tuple[int, int, int]:
    text = str(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return 255, 255, 255
    return red, green, blue
