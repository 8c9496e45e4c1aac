"""Cuts one result into square tiles: source, labels and maps on one grid; knows arrays, not browsers or folders.

Tile (z, row, col) of side 512 covers level-0 pixels of the source, 2^z of them per tile pixel, from its corner
(row * 512 * 2^z, col * 512 * 2^z). Labels and maps are sampled at the centres of tile pixels from the coarsest level
of their pyramid that is not coarser than the tile. So all layers and all models of an image share one grid, whatever
spacing they were computed at; at the source's own spacing a tile of z = 0 holds exactly the stored values.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import StoreError
from unetpp.geometry import Box
from unetpp.io import Raster, open_raster
from unetpp.io.base import thumbnail
from unetpp.io.reader import level_scale
from unetpp.job import SegmentJob
from unetpp.levels import NO_DATA, Levels
from unetpp.maps import MapName
from unetpp.package import ClassInfo

SIDE = 512
MAX_REDUCTION = 8
"""Tiles read at most this many times their side of source pixels; coarser ones come from an overview kept in memory."""
OVERVIEW_SIDE = 4096
PAPER = 244
"""Grey of source pixels without data."""
_RAMP = ((0, (38, 30, 74)), (80, (122, 36, 108)), (150, (221, 81, 70)), (210, (250, 163, 58)), (254, (252, 238, 150)))


def zoom_count(height: int, width: int) -> int:
    """Return the number of zooms z: the last one shows the whole image in one tile."""
    return 1 + max(0, math.ceil(math.log2(max(height, width) / SIDE)))


class NoTileError(LookupError):
    """The image has no such tile."""


class TileReader:
    """Tiles of one image as arrays, safe from several threads.

    Raises:
        ImageNotFoundError, CorruptImageError: the source is gone or does not decode; labels can still be read.
        StoreError: a label array or map is damaged.
        NoTileError: there is no such tile.
    """

    def __init__(self, job: SegmentJob) -> None:
        self.job = job
        self.height, self.width = int(job.image["height"]), int(job.image["width"])
        self.zooms = zoom_count(self.height, self.width)
        self._arrays: dict[tuple[str, int], Any] = {}
        self._raster: Raster | None = None
        self._whole: NDArray[np.uint8] | None = None
        # What takes long is made once, however many threads ask.
        self._making = threading.RLock()

    def shape(self, z: int, row: int, col: int) -> tuple[int, int]:
        """Return (height, width) of a tile: less than 512 at the right and bottom edge."""
        if not 0 <= z < self.zooms or row < 0 or col < 0:
            raise NoTileError(f"no tile {z}/{row}/{col}; z is 0 to {self.zooms - 1}")
        rows = min(SIDE, -(-self.height // 2**z) - row * SIDE)
        cols = min(SIDE, -(-self.width // 2**z) - col * SIDE)
        if rows <= 0 or cols <= 0:
            raise NoTileError(f"no tile {z}/{row}/{col}; the image has {self.height} x {self.width} px")
        return rows, cols

    @property
    def raster(self) -> Raster:
        """The source, opened when it is first read."""
        with self._making:
            if self._raster is None:
                self._raster = open_raster(self.job.uri)
            return self._raster

    def source(self, z: int, row: int, col: int) -> NDArray[np.uint8]:
        """Return (h, w, 3) uint8 of the source; means of boxes of pixels where the tile is coarser than the level."""
        shape = self.shape(z, row, col)
        factor = 2**z
        number = self._source_level(factor)
        scale = level_scale(self.raster.levels, number)
        if factor / min(scale) > MAX_REDUCTION:
            return self._from_overview(shape, z, row, col)
        level = self.raster.levels[number]
        y0, x0 = (round(k * SIDE * factor / s) for k, s in zip((row, col), scale, strict=True))
        y1 = min(level.height, round((row * SIDE + shape[0]) * factor / scale[0]))
        x1 = min(level.width, round((col * SIDE + shape[1]) * factor / scale[1]))
        window = self.raster.read(Box(y0, x0, max(y1, y0 + 1), max(x1, x0 + 1)), number)
        return _resize(self._shown(window.pixels, window.valid), shape)

    def labels(self, z: int, row: int, col: int) -> NDArray[np.uint8]:
        """Return (h, w) uint8 class values, 255 where there is no data."""
        return self._sampled(self.job.store, None, z, row, col)

    def map(self, kind: MapName, plane: int, z: int, row: int, col: int) -> NDArray[np.uint8]:
        """Return (h, w) uint8 of one plane of a map: steps of 1/254, 255 where there is no data."""
        for store in self.job.map_stores:
            if store.kind == kind and 0 <= plane < (store.planes or 1):
                return self._sampled(store, plane, z, row, col)
        raise NoTileError(f"no plane {plane} of {kind}")

    def _source_level(self, factor: int) -> int:
        fine = [i for i in range(len(self.raster.levels)) if max(level_scale(self.raster.levels, i)) <= factor * 1.01]
        return max(fine, key=lambda i: self.raster.levels[i].downsample, default=0)

    def _from_overview(self, shape: tuple[int, int], z: int, row: int, col: int) -> NDArray[np.uint8]:
        with self._making:
            if self._whole is None:
                window = thumbnail(self.raster, OVERVIEW_SIDE)
                self._whole = self._shown(window.pixels, window.valid)
        whole = self._whole
        factor = 2**z
        fy, fx = whole.shape[0] / self.height, whole.shape[1] / self.width
        y0, x0 = math.floor(row * SIDE * factor * fy), math.floor(col * SIDE * factor * fx)
        y1 = max(y0 + 1, round((row * SIDE + shape[0]) * factor * fy))
        x1 = max(x0 + 1, round((col * SIDE + shape[1]) * factor * fx))
        return _resize(whole[y0:y1, x0:x1], shape)

    @cached_property
    def _limits(self) -> tuple[float, float]:
        """What is shown black and white of images that are not 8 bit: percentiles of the whole image's shown bands."""
        window = thumbnail(self.raster, 256)
        seen = _shown_bands(window.pixels)[window.valid]
        low, high = np.percentile(seen, (1, 99)) if seen.size else (0.0, 1.0)
        return float(low), float(max(high, low + 1e-6))

    def _shown(self, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        rgb = _shown_bands(pixels)
        if rgb.dtype != np.uint8:
            low, high = self._limits
            numbers = np.where(valid[..., None], rgb, low).astype(np.float32)  # what is invalid may be no number
            rgb = ((numbers - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
        return rgb if valid.all() else np.where(valid[..., None], rgb, np.uint8(PAPER))

    def _sampled(self, store: Levels, plane: int | None, z: int, row: int, col: int) -> NDArray[np.uint8]:
        shape, factor = self.shape(z, row, col), 2**z
        steps = self.job.grid.step_y, self.job.grid.step_x
        wanted = max(0, math.floor(math.log2(max(1.0, factor / max(steps) * 1.001))))
        number = self._existing(store, min(wanted, store.level_count - 1))
        if factor / max(steps) / 2**number > 2 * MAX_REDUCTION:
            # The pyramid is not written yet: reading so much of level 0 would take minutes and gigabytes.
            return np.full(shape, NO_DATA, np.uint8)
        sides = store.shape(number)[-2:]
        rows, cols = (
            np.minimum((((k * SIDE + np.arange(n)) + 0.5) * factor / (step * 2**number)).astype(np.int64), side - 1)
            for k, n, step, side in zip((row, col), shape, steps, sides, strict=True)
        )
        part = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        try:
            values = self._array(store, number)[part if plane is None else (plane, *part)]
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(f"{store.folder / store.name} is damaged ({error}); run verify") from error
        found: NDArray[np.uint8] = np.asarray(values, np.uint8)[rows - rows[0]][:, cols - cols[0]]
        return found

    def _existing(self, store: Levels, number: int) -> int:
        while number and not (store.folder / store.name / str(number) / "zarr.json").is_file():
            number -= 1
        return number

    def _array(self, store: Levels, number: int) -> Any:
        import zarr

        key = (store.name, number)
        if key not in self._arrays:
            self._arrays[key] = zarr.open_array(store.folder / store.name / str(number), mode="r")
        return self._arrays[key]


def _shown_bands(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return (h, w, 3): the first three bands, or the first as grey."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, -1)


def encode_source(pixels: NDArray[np.uint8]) -> bytes:
    """Return a JPEG of (h, w, 3) uint8."""
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=88, colorspace="RGB"))


def encode_labels(labels: NDArray[np.uint8], classes: Sequence[ClassInfo], shown: Collection[int]) -> bytes:
    """Return a PNG whose palette holds the class colours; classes not in `shown`, and no data, are transparent."""
    palette = np.zeros((256, 4), np.uint8)
    for info in classes:
        palette[info.value] = (*info.color, 255 if info.value in shown else 0)
    return _palette_png(labels, palette)


def encode_probability(values: NDArray[np.uint8], color: Sequence[int]) -> bytes:
    """Return a PNG of the class colour, the more opaque the more probable."""
    palette = np.zeros((256, 4), np.uint8)
    palette[:, :3] = color
    palette[:NO_DATA, 3] = np.arange(NO_DATA)
    return _palette_png(values, palette)


def encode_uncertainty(values: NDArray[np.uint8]) -> bytes:
    """Return a PNG from dark and clear to bright and opaque; fully opaque at half of the range."""
    at = [stop for stop, _ in _RAMP]
    palette = np.zeros((256, 4), np.uint8)
    for band in range(3):
        palette[:, band] = np.interp(np.minimum(np.arange(256) * 2, 254), at, [color[band] for _, color in _RAMP])
    palette[:NO_DATA, 3] = np.minimum(np.arange(NO_DATA) * 3, 255)
    return _palette_png(values, palette)


def _palette_png(values: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    image = Image.fromarray(values, "P")
    image.putpalette(palette[:, :3].tobytes(), "RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, transparency=palette[:, 3].tobytes())
    return file.getvalue()


def _resize(pixels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    if pixels.shape[:2] == shape:
        return pixels
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BOX))
