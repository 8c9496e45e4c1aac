"""Writes a label pyramid as a pyramidal OME-TIFF; knows tifffile and class names, not where labels come from.

OME-TIFF as Bio-Formats, QuPath and OMERO read it: one BigTIFF, 512 tiles, DEFLATE, the coarser levels as SubIFDs, the
size of a pixel in the OME-XML, class names as a map annotation (the value's digits -> its class; 255 is no data).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
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

OME_TIFF = "classes.ome.tif"
_TILE = 512
_UNITS = {"um": "µm", "m": "m"}


def write_ome_tiff(
    read: Callable[[Box, int], npt.NDArray[np.uint8]],
    shapes: Sequence[tuple[int, int]],
    *,
    grid: OutputGrid,
    classes: Sequence[ClassInfo],
    key: str,
    folder: Path,
    progress: Callable[[float], None] = lambda share: None,
) -> str:
    """Write `classes.ome.tif` into `folder`, replacing what is there; returns its name.

    Args:
        read: returns the class values (h, w) uint8 of a box of a level.
        shapes: (height, width) of every level, finest first.
        key: of the job; the file's UUID derives from it.

    Raises:
        OutputError: the file cannot be written.
    """
    import tifffile

    path = folder / OME_TIFF
    total = sum(-(-height // _TILE) * -(-width // _TILE) for height, width in shapes)
    done = 0

    def tiles(level: int) -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal done
        for box in boxes(shapes[level]):
            tile = np.full((_TILE, _TILE), NO_DATA, np.uint8)
            tile[: box.height, : box.width] = read(box, level)
            done += 1
            progress(done / (2 * total))
            yield tile

    options: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (_TILE, _TILE),
        "compression": "zlib",
        "photometric": "minisblack",
        "software": "unetpp",
        "maxworkers": 1,
    }
    with output_errors(path):
        with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
            file.write(
                tiles(0), shape=shapes[0], subifds=len(shapes) - 1, metadata=_metadata(grid, classes, key), **options
            )
            for level in range(1, len(shapes)):
                file.write(tiles(level), shape=shapes[level], subfiletype=1, metadata=None, **options)
        _check(path, read, shapes, lambda share: progress((1 + share) / 2))
        sync(path)
    return OME_TIFF


def _metadata(grid: OutputGrid, classes: Sequence[ClassInfo], key: str) -> dict[str, Any]:
    names = {str(info.value): info.name for info in classes} | {str(NO_DATA): "no data"}
    found: dict[str, Any] = {
        "axes": "YX",
        "Name": "classes",
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'{key}/{OME_TIFF}')}",
        "Creator": "unetpp",
        "MapAnnotation": {"Namespace": "unetpp/classes", **names},
    }
    if grid.spacing is not None and grid.spacing.unit in _UNITS:
        unit = _UNITS[grid.spacing.unit]
        found |= {"PhysicalSizeX": grid.spacing.x, "PhysicalSizeXUnit": unit}
        found |= {"PhysicalSizeY": grid.spacing.y, "PhysicalSizeYUnit": unit}
    return found


def boxes(shape: tuple[int, int]) -> Iterator[Box]:
    height, width = shape
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            yield Box(y, x, y + _TILE, x + _TILE).clip(height, width)


def _check(
    path: Path,
    read: Callable[[Box, int], npt.NDArray[np.uint8]],
    shapes: Sequence[tuple[int, int]],
    progress: Callable[[float], None],
) -> None:
    """Read the file back, tile by tile: a disk that fills up as a file is closed is otherwise found by its reader."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        for level, shape in enumerate(shapes):
            page = levels[level].keyframe
            for index, box in enumerate(boxes(shape)):
                data, _, _ = page.decode(_segment(file, page, index), index)
                if data is None or not np.array_equal(data.squeeze()[: box.height, : box.width], read(box, level)):
                    raise OutputError(f"cannot write {path}: {box} is not what was written; check the disk, run again")
            progress((level + 1) / len(shapes))


def _segment(file: Any, page: Any, index: int) -> bytes:
    file.filehandle.seek(page.dataoffsets[index])
    content: bytes = file.filehandle.read(page.databytecounts[index])
    return content
