"""Integer boxes, pixel spacings and affine transforms; knows nothing about images, files or models."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from unetpp.errors import SpacingError

Unit = Literal["um", "m", "deg"]
Transform = tuple[float, float, float, float, float, float]
"""Affine transform in rasterio's order (a, b, c, d, e, f): X = a*col + b*row + c, Y = d*col + e*row + f."""

_METRES = {"um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Half-open integer rectangle [y0, y1) x [x0, x1) in pixels of one level."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def area(self) -> int:
        return max(self.height, 0) * max(self.width, 0)

    def intersect(self, other: Box) -> Box:
        """Return the common part; empty (area 0) where there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Box(y0, x0, max(y0, min(self.y1, other.y1)), max(x0, min(self.x1, other.x1)))

    def clip(self, height: int, width: int) -> Box:
        """Return the part inside an image of this size."""
        return self.intersect(Box(0, 0, height, width))

    def expand(self, margin: int) -> Box:
        return Box(self.y0 - margin, self.x0 - margin, self.y1 + margin, self.x1 + margin)

    def shift(self, dy: int, dx: int) -> Box:
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def slices(self, origin: Box | None = None) -> tuple[slice, slice]:
        """Return numpy slices (rows, columns), relative to `origin`'s corner when given."""
        dy, dx = (origin.y0, origin.x0) if origin is not None else (0, 0)
        return slice(self.y0 - dy, self.y1 - dy), slice(self.x0 - dx, self.x1 - dx)


@dataclass(frozen=True, slots=True)
class Spacing:
    """Physical size of one pixel along y and x, in `unit` ("um" for slides, "m" or "deg" for scenes)."""

    y: float
    x: float
    unit: Unit

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) and v > 0 for v in (self.y, self.x)):
            raise SpacingError(f"spacing {self.y} x {self.x} {self.unit} is not positive; give the size of one pixel")

    @classmethod
    def parse(cls, text: str) -> Spacing:
        """Read "0.25um", "0.3m", "30cm" or "0.00027deg"; mm and cm become metres."""
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(um|µm|μm|mm|cm|m|deg)\s*", text)
        if not match:
            raise SpacingError(f"spacing {text!r} has no value with unit; write it like 0.25um, 0.3m or 0.0001deg")
        try:
            value = float(match[1])
        except ValueError:
            raise SpacingError(f"spacing {text!r} is not a number with unit; write it like 0.25um") from None
        unit = match[2].replace("µ", "u").replace("μ", "u")  # the sign for micro, and the Greek letter
        if unit in ("um", "deg"):
            return cls(value, value, "um" if unit == "um" else "deg")
        metres = value * _METRES[unit]
        return cls(metres, metres, "m")

    def metres(self) -> tuple[float, float]:
        """Return (y, x) in metres; degrees have no fixed length and raise `SpacingError`."""
        if self.unit == "deg":
            raise SpacingError(f"spacing {self.y} deg has no length in metres without a latitude; reproject the image")
        factor = _METRES[self.unit]
        return self.y * factor, self.x * factor

    def scaled(self, factor_y: float, factor_x: float) -> Spacing:
        return Spacing(self.y * factor_y, self.x * factor_x, self.unit)

    def __str__(self) -> str:
        size = f"{self.y:g}" if self.y == self.x else f"{self.y:g} x {self.x:g}"
        return f"{size} {self.unit}/px"


def window_transform(transform: Transform, box: Box, downsample_y: float = 1.0, downsample_x: float = 1.0) -> Transform:
    """Return the transform of a window whose `box` is in pixels of a level `downsample` times coarser."""
    a, b, c, d, e, f = transform
    col, row = box.x0 * downsample_x, box.y0 * downsample_y
    return (
        a * downsample_x,
        b * downsample_y,
        a * col + b * row + c,
        d * downsample_x,
        e * downsample_y,
        d * col + e * row + f,
    )


def to_pixels(transform: Transform, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (column, row) of places in a transform's CRS: its inverse."""
    a, b, c, d, e, f = transform
    determinant = a * e - b * d
    return (e * (x - c) - b * (y - f)) / determinant, (a * (y - f) - d * (x - c)) / determinant
