"""The part that every image reader shares: the image's edge, level sizes, nodata; knows no file format."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from unetpp.errors import CorruptImageError, PlanError, UnetppError
from unetpp.geometry import Box, Spacing, Transform, window_transform
from unetpp.io.base import Kind, Level, Mask, Pixels, Window

MAX_DECODED_PIXELS = 2**28
"""Largest image, or block of an image, that is decoded in one piece (0.8 GB as 8-bit RGB)."""

RGB = ("red", "green", "blue")


class ReaderBase:
    """The part of `Raster` that every reader shares: attributes, the image's edge, and closing."""

    uri: str
    kind: Kind
    format: str
    levels: tuple[Level, ...]
    bands: tuple[str, ...]
    dtype: np.dtype[Any]
    spacing: Spacing | None = None
    crs: str | None = None
    transform: Transform | None = None
    zero: Any = None
    """What a stored 0 reads as where that is not 0: a palette's first colour, or white where white is zero."""
    nodata: Sequence[float | None] = ()
    """Of each band the value that is no data; its pixels are invalid in every window. None: there is none."""
    orientation: int = 1
    """How the stored pixels are to be turned for display, as EXIF and TIFF number it (1: not at all); never applied."""
    staged: object = None
    """The local copy of a remote file: kept from deletion as long as this reader lives."""

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        """Return pixels (H, W, C) and validity of a box inside the level; None means all valid."""
        raise NotImplementedError

    def close(self) -> None:
        """Free files and memory; reading afterwards is an error."""

    def read(self, box: Box, level: int = 0) -> Window:
        if not 0 <= level < len(self.levels):
            raise PlanError(f"{self.uri}: level {level} does not exist; it has levels 0 to {len(self.levels) - 1}")
        if box.height <= 0 or box.width <= 0:
            raise PlanError(f"{self.uri}: box {box} is empty; give one with y1 > y0 and x1 > x0")
        inside = box.intersect(self.levels[level].box)
        if inside == box:
            pixels, valid = self._read_guarded(box, level)
            if valid is None:
                valid = np.ones(box.shape, bool)
        else:
            pixels = np.zeros((*box.shape, len(self.bands)), self.dtype)
            valid = np.zeros(box.shape, bool)
            if inside.area:
                part, part_valid = self._read_guarded(inside, level)
                pixels[inside.slices(box)] = part
                valid[inside.slices(box)] = True if part_valid is None else part_valid
        return self._window(pixels, valid, box, level)

    def _read_guarded(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        try:
            return self._read_inside(box, level)
        except (UnetppError, MemoryError):
            raise
        except Exception as error:
            # Damaged bytes make the format libraries fail in any way at all.
            raise CorruptImageError(
                f"{self.uri}: level {level} {box} does not decode ({first_line(error)}); copy the file again"
            ) from error

    def _window(self, pixels: Pixels, valid: Mask, box: Box, level: int) -> Window:
        fy, fx = level_scale(self.levels, level)
        spacing = self.spacing.scaled(fy, fx) if self.spacing else None
        transform = window_transform(self.transform, box, fy, fx) if self.transform else None
        return Window(pixels, valid, box, level, spacing, self.crs, transform)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def valid_samples(pixels: Pixels, nodata: Sequence[float | None]) -> Mask | None:
    """Return (H, W) validity of (H, W, C) samples from each band's nodata value (None: it has none); None = all valid.

    8-bit images: invalid where every band is nodata, because 0 and 255 are also real values of single bands there (the
    rule of GDAL's dataset mask). Wider types: invalid where any band is. NaN and infinity are invalid in any band.
    """
    missing = [_equals(pixels[..., i], value) for i, value in enumerate(nodata) if value is not None]
    valid: Mask | None = None
    if missing and pixels.dtype.itemsize == 1:
        if len(missing) == pixels.shape[2]:
            valid = ~np.logical_and.reduce(missing)
    elif missing:
        valid = ~np.logical_or.reduce(missing)
    if pixels.dtype.kind == "f":
        valid = both(valid, np.asarray(np.isfinite(pixels).all(-1)))
    return valid


def both(first: Mask | None, second: Mask | None) -> Mask | None:
    """Return where both masks are valid; None means all valid."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _equals(plane: Pixels, value: float) -> Mask:
    if plane.dtype.kind == "f":
        # Files state nodata as decimal text; a float32 image stores its nearest float32.
        return np.asarray(plane == plane.dtype.type(value))
    if not float(value).is_integer():
        return np.zeros(plane.shape, bool)
    return np.asarray(plane == int(value))


def level_scale(levels: tuple[Level, ...], level: int) -> tuple[float, float]:
    """Return level-0 pixels per pixel of `level` along y and x.

    Pyramids drop or add a last row where the size does not divide, so the quotient of the sizes is off by a fraction
    that would shift far pixels. Where an integer factor explains both sizes it is the factor.
    """
    top, low = levels[0], levels[level]
    factor = round((top.height / low.height + top.width / low.width) / 2)
    if factor >= 1 and _explains(factor, top.height, low.height) and _explains(factor, top.width, low.width):
        return float(factor), float(factor)
    return top.height / low.height, top.width / low.width


def _explains(factor: int, size: int, small: int) -> bool:
    return small in (size // factor, -(-size // factor))


def make_levels(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Return levels for (height, width) sizes, finest first, with the downsample that `level_scale` finds."""
    levels = tuple(Level(height, width, 1.0) for height, width in sizes)
    scales = [level_scale(levels, index) for index in range(len(levels))]
    return tuple(Level(x.height, x.width, (fy + fx) / 2) for x, (fy, fx) in zip(levels, scales, strict=True))


def first_line(error: BaseException) -> str:
    """Return an error's text cut to one line, or its class name where it has none."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
