"""Finds where an image is worth segmenting: tissue on a slide's thumbnail, or a user's mask; knows no file layout.

The algorithm "od-hysteresis-1" measures optical density against the glass. The glass is fitted, not assumed: a
quadratic surface per channel through bright, nearly neutral pixels, so uneven light has no density. Stain is coloured
and uneven light is grey, so a small difference of density between channels is tissue while grey density must be strong.
Strong pixels choose components of weak ones (hysteresis, Canny 1986). Thresholds rise with the noise of the glass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import MaskError, UnetppError
from unetpp.geometry import Box, to_pixels

if TYPE_CHECKING:
    from unetpp.io.base import Raster
    from unetpp.io.resample import OutputGrid

ALGORITHM = "od-hysteresis-1"

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

_SMOOTHING_PX = 1.5
_GLASS_MIN, _GLASS_MAX_CHROMA, _NEUTRAL_CHROMA, _SATURATED = 150.0, 20.0, 8.0, 253.5  # 8-bit values
_MIN_GLASS_SHARE = 0.005
_WHITE = np.float32(math.log(250.0))
_FIT_PIXELS = 40_000
_COLOR_WEAK, _COLOR_STRONG = 0.02, 0.04  # natural optical density, between the densest and the clearest channel
_GREY_WEAK, _GREY_STRONG = 0.15, 0.30
_NOISE_WEAK, _NOISE_STRONG = 5.0, 9.0  # standard deviations of the glass
_MIN_COMPONENT_PX = 12
_MAX_HOLE_SHARE = 1e-3
_MARGIN_PX = 2
_ASPECT_TOLERANCE = 0.01
_HALF_TURNS = (2, 3, 4)
"""Orientations that keep the proportions: mirrored, upside down, both."""


def tissue_mask(rgb: NDArray[np.uint8]) -> Mask:
    """Return where an 8-bit RGB thumbnail (h, w, 3) shows tissue, as (h, w) bool; deterministic.

    Written for bright-field slides at 512 to 4096 px a side. An image without glass (tissue everywhere, or a dark
    field) is tissue where it is coloured or dark, so nothing is lost. Finds no tissue on blank glass. The result is
    widened by 2 px and small holes are closed: it says where to compute, not what is stained.
    """
    from scipy import ndimage  # it takes a moment to import, and many images are segmented whole

    smooth = [ndimage.gaussian_filter(rgb[..., c].astype(np.float32), _SMOOTHING_PX) for c in range(3)]
    glass = _glass(smooth, rgb)
    log = [np.log(np.maximum(plane, 1.0)) for plane in smooth]
    density = [np.maximum(clear - plane, 0.0) for clear, plane in zip(_glass_surface(log, glass), log, strict=True)]
    color, grey = _high(density) - _low(density), sum(density[1:], density[0]) / np.float32(3)
    weak = (color > _threshold(color, glass, _COLOR_WEAK, _NOISE_WEAK)) | (
        grey > _threshold(grey, glass, _GREY_WEAK, _NOISE_WEAK)
    )
    strong = (color > _threshold(color, glass, _COLOR_STRONG, _NOISE_STRONG)) | (
        grey > _threshold(grey, glass, _GREY_STRONG, _NOISE_STRONG)
    )
    return _widen(_components(weak, strong & weak))


def _low(planes: Sequence[Floats]) -> Floats:
    return np.minimum(np.minimum(planes[0], planes[1]), planes[2])


def _high(planes: Sequence[Floats]) -> Floats:
    return np.maximum(np.maximum(planes[0], planes[1]), planes[2])


def _glass(smooth: Sequence[Floats], rgb: NDArray[np.uint8]) -> Mask:
    """Return pixels that may be bare glass: bright and nearly neutral. All False where there are too few.

    Scanners fill what they did not scan with pure white, so saturated pixels are left out where the others are as
    neutral as glass. Else the light itself saturates and the others are pale tissue.
    """
    low = _low(smooth)
    chroma = _high(smooth) - low
    glass = np.asarray((low >= _GLASS_MIN) & (chroma <= _GLASS_MAX_CHROMA))
    if glass.sum() < _MIN_GLASS_SHARE * glass.size:
        return np.zeros(glass.shape, bool)
    pure = (rgb[..., 0] == 255) & (rgb[..., 1] == 255) & (rgb[..., 2] == 255)
    unsaturated = np.asarray(glass & (low < _SATURATED) & ~pure)
    if unsaturated.sum() >= _MIN_GLASS_SHARE * glass.size and np.median(chroma[unsaturated]) <= _NEUTRAL_CHROMA:
        return unsaturated
    return glass


def _glass_surface(log: Sequence[Floats], glass: Mask) -> list[Floats]:
    """Return the logarithm of the light through clear glass at every pixel, one (h, w) plane per channel.

    Starts from the most neutral glass pixels, then drops what lies off the surface. The surface is held within what was
    seen on glass, because a quadratic runs away where there is none.
    """
    height, width = glass.shape
    rows, columns = np.nonzero(glass)
    if not len(rows):
        return [np.full((1, 1), _WHITE, np.float32)] * 3
    every = -(-len(rows) // _FIT_PIXELS)
    rows, columns = rows[::every], columns[::every]
    values = np.stack([plane[rows, columns] for plane in log], -1).astype(np.float64)
    terms = np.stack(_terms(rows / height, columns / width), -1)
    chroma = values.max(1) - values.min(1)
    kept = chroma <= np.percentile(chroma, 30) + 0.008
    for _ in range(5):
        fit = _least_squares(terms[kept], values[kept])
        off = np.abs(values - _evaluate(terms, fit)).max(1)
        kept = off <= max(3 * float(np.median(off[kept])), 0.01)
    seen = _evaluate(terms[kept], fit)
    grid = _terms(
        np.arange(height, dtype=np.float32)[:, None] / np.float32(height),
        np.arange(width, dtype=np.float32)[None, :] / np.float32(width),
    )
    surfaces = []
    for c in range(3):
        surface = np.zeros((height, width), np.float32)
        for term, weight in zip(grid, fit[:, c], strict=True):
            surface += term * np.float32(weight)
        surfaces.append(np.clip(surface, np.float32(seen[:, c].min()), np.float32(seen[:, c].max())))
    return surfaces


def _terms(y: Any, x: Any) -> list[Any]:
    return [np.ones_like(y), y, x, y * y, x * y, x * x]


def _least_squares(terms: Any, values: Any) -> NDArray[np.float64]:
    """Return (6, 3) coefficients; summed by numpy alone, because threaded BLAS may round differently every time.

    The small ridge holds slope and curvature at 0 where the glass is too narrow to tell them.
    """
    square = np.stack([(terms * terms[:, k : k + 1]).sum(0) for k in range(terms.shape[1])])
    right = np.stack([(terms * values[:, c : c + 1]).sum(0) for c in range(values.shape[1])], -1)
    ridge = np.diag([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]) * 1e-6 * len(terms)
    return np.asarray(np.linalg.solve(square + ridge, right))


def _evaluate(terms: Any, fit: Any) -> NDArray[np.float64]:
    return np.stack([(terms * fit[:, c]).sum(1) for c in range(fit.shape[1])], -1)


def _threshold(density: Floats, glass: Mask, least: float, deviations: float) -> float:
    """Return `least`, or more where the glass is noisy (median absolute deviation; tissue is a minority of glass)."""
    if not glass.any():
        return least
    values = density[glass]
    centre = float(np.median(values))
    return max(least, centre + deviations * 1.4826 * float(np.median(np.abs(values - centre))))


def _components(weak: Mask, strong: Mask) -> Mask:
    from scipy import ndimage

    labels, count = ndimage.label(weak, structure=np.ones((3, 3)))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    chosen = np.zeros(count + 1, bool)
    chosen[np.unique(labels[strong])] = True
    chosen &= area >= _MIN_COMPONENT_PX
    chosen[0] = False
    return np.asarray(chosen[labels])


def _widen(mask: Mask) -> Mask:
    if not mask.any():
        return mask
    from scipy import ndimage

    wide = ndimage.binary_dilation(mask, structure=np.ones((3, 3)), iterations=_MARGIN_PX)
    holes, count = ndimage.label(~wide)
    area = np.bincount(holes.ravel(), minlength=count + 1)
    small = area <= _MAX_HOLE_SHARE * mask.size
    small[0] = False
    return np.asarray(wide | small[holes])


@dataclass(frozen=True)
class ValidityMask:
    """Where to segment, for an output grid of height x width: a small (h, w) bool mask stretched over it.

    Grid pixel (i, j) takes the mask pixel that its centre falls in. Only boxes are ever stretched.
    """

    mask: Mask
    height: int
    width: int

    def crop(self, box: Box) -> Mask:
        """Return (H, W) bool of a box of the grid; False past the grid's edge."""
        out = np.zeros(box.shape, bool)
        inside = box.clip(self.height, self.width)
        if inside.area:
            rows, columns = self._cells(inside)
            out[inside.slices(box)] = self.mask[rows[:, None], columns]
        return out

    def any(self, box: Box) -> bool:
        """Tell whether `crop(box)` has a True pixel, without making it."""
        inside = box.clip(self.height, self.width)
        if not inside.area:
            return False
        rows, columns = self._cells(inside)
        return bool(self.mask[np.unique(rows)[:, None], np.unique(columns)].any())

    def _cells(self, box: Box) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = (2 * np.arange(box.y0, box.y1) + 1) * self.mask.shape[0] // (2 * self.height)
        columns = (2 * np.arange(box.x0, box.x1) + 1) * self.mask.shape[1] // (2 * self.width)
        return rows, columns

    def save(self, path: str | Path) -> None:
        """Write the small mask as a 1-bit PNG that `load_mask` reads back bit for bit."""
        from PIL import Image

        Image.fromarray(self.mask).save(path, format="PNG")


def load_mask(path: str | Path, grid: OutputGrid, orientation: int = 1) -> ValidityMask:
    """Return the mask in an image file for an output grid: every pixel whose stored value is not 0 is to be done.

    The mask may be of any size with the grid's proportions: within 1%, or one and a half mask pixels; where both have a
    CRS, it covers the grid's ground as closely. JPEG masks count from half brightness.

    Args:
        orientation: of the image, see `unetpp.io.reader.ReaderBase`. A mask of another one lies on the stored pixels,
            if its proportions tell them from the turned ones.

    Raises:
        MaskError: the file does not read as an image, covers something else, or may be drawn on the turned photo.
    """
    from unetpp.io import open_raster
    from unetpp.io.reader import MAX_DECODED_PIXELS

    try:
        with open_raster(path) as raster:
            box = raster.levels[0].box
            if box.area > MAX_DECODED_PIXELS:
                raise MaskError(f"mask {path}: {box.width}x{box.height} pixels are too many; save it smaller")
            off_place = _off_place(raster, grid)
            window = raster.read(box)
            zero = getattr(raster, "zero", None)
            turned = orientation if getattr(raster, "orientation", 1) != orientation else 1
            blurred = raster.format == "jpeg"
    except MaskError:
        raise
    except UnetppError as error:
        raise MaskError(f"mask {error}") from None
    height, width = grid.height, grid.width
    stored = f" as stored (EXIF shows it turned, orientation {turned})" if turned != 1 else ""
    if not _alike(box, height, width):
        raise MaskError(
            f"mask {path}: {box.width}x{box.height} has other proportions than the image's {width}x{height}{stored}; "
            "draw it on the whole image"
        )
    if turned in _HALF_TURNS or (turned != 1 and _alike(box, width, height)):
        raise MaskError(
            f"mask {path} may lie on the image{stored} or on the turned one; turn the photo for good, as with "
            "`magick mogrify -auto-orient`, or take its orientation away"
        )
    # Not "<=": a place that cannot be projected is NaN.
    if not off_place <= max(_ASPECT_TOLERANCE * max(height, width), 1.5 * max(height / box.height, width / box.width)):
        raise MaskError(
            f"mask {path} covers other ground than the image: a corner is {off_place:.0f} px away; warp it to the image"
        )
    marked = window.pixels > 127 if blurred else window.pixels != (0 if zero is None else zero)
    return ValidityMask(np.asarray(marked.any(-1) & window.valid), height, width)


def _alike(box: Box, height: int, width: int) -> bool:
    """Say whether a mask of this size has the proportions of an image."""
    off = abs(box.height * width - box.width * height)
    return off <= max(_ASPECT_TOLERANCE * box.width * height, 1.5 * max(height, width))


def _off_place(raster: Raster, grid: OutputGrid) -> float:
    """Return by how many grid pixels a corner of the raster misses the grid's; 0 where one of them has no place."""
    if not (raster.crs and raster.transform and grid.crs and grid.transform):
        return 0.0
    import pyproj

    move = pyproj.Transformer.from_crs(raster.crs, grid.crs, always_xy=True)
    rows, cols = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    a, b, c, d, e, f = raster.transform
    col, row = cols * raster.levels[0].width, rows * raster.levels[0].height
    x, y = to_pixels(grid.transform, *move.transform(a * col + b * row + c, d * col + e * row + f))
    return float(np.abs(np.concatenate([x - cols * grid.width, y - rows * grid.height])).max())
