"""Makes small image files of every kind that the readers open, and boxes to read from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.transform import from_origin

from unetpp.geometry import Box
from unetpp.io import Raster


def noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Samples from 1 up (0 is kept for the outside and for nodata)."""
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


class Factory:
    """Writes images into one test's folder; `pixels` is always (H, W, C)."""

    noise = staticmethod(noise)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def geotiff(
        self,
        pixels: np.ndarray,
        name: str = "scene.tif",
        crs: str | None = "EPSG:32636",
        transform: Any = None,
        overviews: tuple[int, ...] = (),
        mask: np.ndarray | None = None,
        **profile: Any,
    ) -> Path:
        height, width, count = pixels.shape
        placed = from_origin(450_000, 40_000, 0.5, 0.5) if transform is None else transform
        options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"} | profile
        path = self.folder / name
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(
                path, "w", "GTiff", width, height, count, crs, placed, str(pixels.dtype), **options
            ) as file:
                file.write(np.moveaxis(pixels, -1, 0))
                if mask is not None:
                    file.write_mask(mask)
            if overviews:
                with rasterio.open(path, "r+") as file:
                    file.build_overviews(list(overviews))
        return path

    def pyramid(self, levels: list[np.ndarray], name: str = "pyramid.tif", dpcm: float | None = None) -> Path:
        """A tiled TIFF without georeference, each level a reduced page, with resolution tags where `dpcm` is given."""
        path = self.folder / name
        resolution = {} if dpcm is None else {"resolution": (dpcm, dpcm), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(path) as file:
            for index, level in enumerate(levels):
                extra: dict[str, Any] = {"subfiletype": 1} if index else resolution
                kind = "rgb" if level.ndim == 3 and level.shape[2] == 3 else "minisblack"
                file.write(level, tile=(64, 64), photometric=kind, compression="zlib", metadata=None, **extra)
        return path


@pytest.fixture
def make(tmp_path: Path) -> Factory:
    return Factory(tmp_path)


@pytest.fixture
def boxes() -> Callable[..., list[Box]]:
    """Random boxes inside a level, among them its corners and single pixels."""

    def draw(raster: Raster, level: int = 0, count: int = 6, side: int = 300) -> list[Box]:
        random = np.random.default_rng(level)
        height, width = raster.levels[level].box.shape
        found = [Box(0, 0, 1, 1), Box(height - 1, width - 1, height, width)]
        for _ in range(count):
            h, w = int(random.integers(1, min(side, height) + 1)), int(random.integers(1, min(side, width) + 1))
            y, x = int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1))
            found.append(Box(y, x, y + h, x + w))
        return found

    return draw
