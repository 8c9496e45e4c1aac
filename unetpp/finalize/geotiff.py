"""Write a label map as a GeoTIFF; knows rasterio and class colours, not where labels come from.

The file is a Cloud Optimized GeoTIFF: tiles of 512, DEFLATE, nearest-neighbour overviews inside, nodata 255, a colour
table, and class names as tags CLASS_<value> of the band. It lies where the image's transform says, also without a CRS;
without one it has its resolution where the size of a pixel is known. A CRS that GeoTIFF cannot state, as of a rotated
pole, is the tag CRS_WKT. Equal labels give equal bytes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetpp.durable import output_errors, sync
from unetpp.errors import OutputError
from unetpp.geometry import Box
from unetpp.levels import NO_DATA

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo

log = logging.getLogger(__name__)

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
    Raises:
        OutputError: the file cannot be written.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError  # what `copy` raises; rasterio has no public name for it
    from rasterio.errors import RasterioError

    path, windows = folder / GEOTIFF, list(boxes)
    try:
        options = {"GDAL_CACHEMAX": _CACHE_BYTES, "GDAL_NUM_THREADS": 1, "GDAL_PAM_ENABLED": False}
        with output_errors(path), _placeless(), rasterio.Env(**options):
            draft = folder / f"draft-{GEOTIFF}"
            draft.unlink(missing_ok=True)
            _write_tiles(read, windows, grid, classes, draft, progress)
            if grid.crs is not None and grid.transform is not None:
                _keep_crs(draft, grid.crs, path)
            path.unlink(missing_ok=True)
            _optimize(draft, path)
            draft.unlink()
            _check(path, read, windows, progress)
            sync(path)
    except (RasterioError, CPLE_BaseError) as error:
        raise OutputError(
            f"cannot write {path}: {_root(error)}; check the disk and run the same command again"
        ) from error
    return GEOTIFF


def _keep_crs(draft: Path, crs: str, path: Path) -> None:
    """Write the CRS into a tag where GDAL, without a file beside it, has left it out."""
    import rasterio

    with rasterio.open(draft, "r+") as file:
        if file.crs is None:
            file.update_tags(CRS_WKT=crs)
            log.warning(
                "%s: GeoTIFF cannot state the image's CRS; it is in the tag CRS_WKT, and in other outputs", path
            )


def _optimize(draft: Path, path: Path) -> None:
    """Copy with overviews: they precede the pixels, so that such a file can only be made from a finished one."""
    from rasterio.shutil import copy

    copy(
        draft,
        path,
        driver="COG",
        COMPRESS="DEFLATE",
        BLOCKSIZE=_TILE,
        OVERVIEW_RESAMPLING="NEAREST",
        BIGTIFF="IF_SAFER",
    )


@contextmanager
def _placeless() -> Iterator[None]:
    """Keep rasterio from warning of an image without a CRS, for this block."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _root(error: BaseException) -> str:
    """Return the first line of the error that began it: rasterio's own only say to look at the previous one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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

    place: dict[str, Any] = {}
    if grid.transform is not None:
        place["transform"] = rasterio.Affine(*grid.transform)
        if grid.crs is not None:
            place["crs"] = rasterio.crs.CRS.from_wkt(grid.crs)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=grid.height,
        width=grid.width,
        count=1,
        dtype="uint8",
        nodata=NO_DATA,
        **place,
        tiled=True,
        blockxsize=_TILE,
        blockysize=_TILE,
        compress="deflate",
        zlevel=1,
        bigtiff="if_safer",
    ) as file:
        file.write_colormap(1, {**{info.value: info.color for info in classes}, NO_DATA: (0, 0, 0)})
        file.update_tags(1, **{f"CLASS_{info.value}": info.name for info in classes})
        if grid.crs is None and grid.spacing is not None and grid.spacing.unit != "deg":
            y, x = grid.spacing.metres()
            file.update_tags(TIFFTAG_XRESOLUTION=0.01 / x, TIFFTAG_YRESOLUTION=0.01 / y, TIFFTAG_RESOLUTIONUNIT=3)
        for count, box in enumerate(boxes):
            file.write(read(box), 1, window=Window(box.x0, box.y0, box.width, box.height))
            progress((count + 1) / len(boxes) / 2)


def _check(
    path: Path,
    read: Callable[[Box], npt.NDArray[np.uint8]],
    boxes: Sequence[Box],
    progress: Callable[[float], None],
) -> None:
    """Read the file back: GDAL reports no error when the disk is full as it closes a file."""
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(path) as file:
        for count, box in enumerate(boxes):
            if not np.array_equal(file.read(1, window=Window(box.x0, box.y0, box.width, box.height)), read(box)):
                raise OutputError(f"cannot write {path}: {box} is not what was written; check the disk and run again")
            progress((1 + (count + 1) / len(boxes)) / 2)
        levels = len(file.overviews(1))
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as file:
            for _, window in file.block_windows(1):
                file.read(1, window=window)
