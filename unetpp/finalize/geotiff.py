"""Write a label map as a georeferenced GeoTIFF; knows rasterio and class colours, not where labels come from.

The file is a Cloud Optimized GeoTIFF: tiles of 512, DEFLATE, nearest-neighbour overviews inside, nodata 255, a colour
table, and class names as tags CLASS_<value> of the band. Equal labels give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetpp.durable import output_errors, sync
from unetpp.errors import OutputError
from unetpp.geometry import Box
from unetpp.store import NO_DATA

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo

GEOTIFF = "classes.tif"
_TILE = 512
_CACHE_BYTES = 2**25


def write_geotiff(
    read: Callable[[Box], npt.NDArray[np.uint8]],
    boxes: Iterable[Box],
    *,
    grid: OutputGrid,
    classes: Sequence[ClassInfo],
    folder: Path,
    progress: Callable[[float], None] = lambda share: None,
) -> str:
    """Write `classes.tif` into `folder`, replacing what is there; returns its name.

    Args:
        read: returns the class values (h, w) uint8 of a box.
        boxes: tile the image; read one at a time.
        grid: with a CRS and a transform.

    Raises:
        OutputError: the file cannot be written.
    """
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.shutil import copy

    path, draft = folder / GEOTIFF, folder / f"draft-{GEOTIFF}"
    try:
        with output_errors(path), rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_NUM_THREADS=1, GDAL_PAM_ENABLED=False):
            _write_tiles(read, list(boxes), grid, classes, draft, progress)
            # Overviews must precede the pixels in a COG, so that it can only be made from a finished file.
            path.unlink(missing_ok=True)
            copy(
                draft,
                path,
                driver="COG",
                COMPRESS="DEFLATE",
                BLOCKSIZE=_TILE,
                OVERVIEW_RESAMPLING="NEAREST",
                BIGTIFF="IF_SAFER",
            )
            draft.unlink()
            sync(path)
    except RasterioError as error:
        first = str(error).strip().splitlines()[0]
        raise OutputError(f"cannot write {path}: {first}; check the disk and run the same command again") from error
    return GEOTIFF


def _write_tiles(
    read: Callable[[Box], npt.NDArray[np.uint8]],
    boxes: Sequence[Box],
    grid: OutputGrid,
    classes: Sequence[ClassInfo],
    path: Path,
    progress: Callable[[float], None],
) -> None:
    import rasterio
    from rasterio.windows import Window

    assert grid.transform is not None
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=grid.height,
        width=grid.width,
        count=1,
        dtype="uint8",
        nodata=NO_DATA,
        crs=rasterio.crs.CRS.from_wkt(grid.crs),
        transform=rasterio.Affine(*grid.transform),
        tiled=True,
        blockxsize=_TILE,
        blockysize=_TILE,
        compress="deflate",
        zlevel=1,
        bigtiff="if_safer",
    ) as file:
        file.write_colormap(1, {**{info.value: info.color for info in classes}, NO_DATA: (0, 0, 0)})
        file.update_tags(1, **{f"CLASS_{info.value}": info.name for info in classes})
        for count, box in enumerate(boxes):
            file.write(read(box), 1, window=Window(box.x0, box.y0, box.width, box.height))
            progress((count + 1) / len(boxes))
