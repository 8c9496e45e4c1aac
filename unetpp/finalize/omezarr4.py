"""Writes a label pyramid as OME-Zarr 0.4 for programs that do not read 0.5; knows Zarr v2, not where labels come from.

The layout is that of `labels.ome.zarr`, but in Zarr v2 and without shards: one file per chunk of 512 x 512 px, none
where all is no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetpp.durable import output_errors, sync_tree
from unetpp.finalize.ometiff import boxes
from unetpp.geometry import Box
from unetpp.levels import NO_DATA
from unetpp.store import CLASSES, image_label, multiscale

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ClassInfo
    from unetpp.tiling import TilePlan

OME_ZARR_4 = "labels-0.4.ome.zarr"
_VERSION = "0.4"
_CHUNK = 512


def write_ome_zarr_4(
    read: Callable[[Box, int], npt.NDArray[np.uint8]],
    shapes: Sequence[tuple[int, int]],
    *,
    plan: TilePlan,
    grid: OutputGrid,
    classes: Sequence[ClassInfo],
    folder: Path,
    progress: Callable[[float], None] = lambda share: None,
) -> str:
    """Write `labels-0.4.ome.zarr` into `folder`, where there is none; returns its name.

    Args:
        read: returns the class values (h, w) uint8 of a box of a level.
        shapes: (height, width) of every level, finest first.

    Raises:
        OutputError: it cannot be written.
    """
    import zarr
    from numcodecs import Zstd

    root = folder / OME_ZARR_4
    with output_errors(root):
        group = zarr.open_group(root, mode="w", zarr_format=2)
        group.attrs.put({"labels": [CLASSES]})
        image: dict[str, Any] = {
            "multiscales": [{"version": _VERSION, **multiscale(plan, grid)}],
            "image-label": {"version": _VERSION, **image_label(classes)},
        }
        group.create_group(CLASSES).attrs.put(image)
        total, done = sum(-(-height // _CHUNK) * -(-width // _CHUNK) for height, width in shapes), 0
        for level, shape in enumerate(shapes):
            array = zarr.create_array(
                root / CLASSES / str(level),
                shape=shape,
                chunks=(min(_CHUNK, shape[0]), min(_CHUNK, shape[1])),
                dtype="uint8",
                fill_value=NO_DATA,
                compressors=Zstd(level=3),
                zarr_format=2,
                chunk_key_encoding={"name": "v2", "separator": "/"},
            )
            for box in boxes(shape):
                array[box.slices()] = read(box, level)
                done += 1
                progress(done / total)
        sync_tree(root)
    return OME_ZARR_4
