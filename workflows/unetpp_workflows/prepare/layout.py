"""The arrays of a training store and which patch lies where; knows Zarr and numbers, not images.

One patch is one chunk, a fixed number of patches is one shard, and a shard has one writer: two writers of one shard
lose pixels silently. Patches are numbered image by image, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import output_errors, sync

if TYPE_CHECKING:
    import zarr

    from unetpp_workflows.prepare.survey import Survey

SHARD_BYTES = 2**24
_MOST_PATCHES = 64
_FILL = {"pixels": 0, "labels": 255, "valid": False, "objects": 0}


@dataclass(frozen=True)
class Layout:
    """Which patches a store has.

    Attributes:
        side: of a patch. per_shard: patches in a shard.
        image: (N,) int32; box: (N, 4) int32 y0, x0, y1, x1 inside the image's grid.
    """

    side: int
    per_shard: int
    image: NDArray[np.int32]
    box: NDArray[np.int32]

    @property
    def patches(self) -> int:
        return len(self.image)

    @property
    def shards(self) -> int:
        return -(-self.patches // self.per_shard)

    def of_shard(self, shard: int) -> range:
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.patches))


def stored_boxes(found: Survey, *, side: int, context: int) -> NDArray[np.int32]:
    """Return the boxes (n, 4) of an image's labelled blocks and of those up to `context` blocks around them."""
    if found.failed:
        return np.zeros((0, 4), np.int32)
    grid = found.output_grid()
    rows, cols = -(-grid.height // side), -(-grid.width // side)
    kept = np.zeros((rows, cols), bool)
    for row, col, *_ in found.blocks:
        kept[max(0, row - context) : row + context + 1, max(0, col - context) : col + context + 1] = True
    corner = np.argwhere(kept) * side
    return np.concatenate([corner, np.minimum(corner + side, (grid.height, grid.width))], axis=1).astype(np.int32)


def plan_layout(boxes: Sequence[NDArray[np.int32]], *, side: int, bytes_per_pixel: int) -> Layout:
    """Number the patches of all images, from the boxes of each."""
    image = np.repeat(np.arange(len(boxes), dtype=np.int32), [len(part) for part in boxes])
    per_shard = max(1, min(_MOST_PATCHES, SHARD_BYTES // (side * side * bytes_per_pixel)))
    return Layout(side, per_shard, image, np.concatenate([np.zeros((0, 4), np.int32), *boxes]))


def create_arrays(group: zarr.Group, layout: Layout, *, bands: int, dtype: str, objects: bool) -> None:
    """Make the sharded arrays of a store, empty."""
    from zarr.codecs import ZstdCodec

    side = layout.side
    shapes = {"pixels": (side, side, bands), "labels": (side, side), "valid": (side, side), "objects": (side, side)}
    types = {"pixels": dtype, "labels": "uint8", "valid": "bool", "objects": "int32"}
    for name in patch_arrays(objects):
        group.create_array(
            name,
            shape=(layout.patches, *shapes[name]),
            dtype=types[name],
            chunks=(1, *shapes[name]),
            shards=(layout.per_shard, *shapes[name]),
            fill_value=_FILL[name],
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=("patch", "y", "x", "band")[: len(shapes[name]) + 1],
        )


def patch_arrays(objects: bool) -> tuple[str, ...]:
    return ("pixels", "labels", "valid", "objects") if objects else ("pixels", "labels", "valid")


def write_table(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    """Write a small array of one row per patch, shard or image in one chunk; replaces what is there."""
    from zarr.codecs import ZstdCodec

    if name in group:
        del group[name]
    chunks = tuple(max(1, n) for n in values.shape)
    codec = ZstdCodec(level=3, checksum=True)
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, compressors=codec)
    array.with_config({"write_empty_chunks": True})[...] = values


def shard_file(store: Path, name: str, shard: int, dimensions: int) -> Path:
    """Return the object of one shard of a patch array."""
    return store / name / "c" / "/".join([str(shard), *["0"] * (dimensions - 1)])


def write_shard(store: Path, shard: int, patches: range, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Write a whole shard of every array, on the disk when this returns; returns the objects' sizes.

    Args:
        arrays: name -> (n, side, side[, bands]).

    Raises:
        OutputError: the disk is full or cannot be written.
    """
    import zarr

    sizes = {}
    for name, values in arrays.items():
        path = shard_file(store, name, shard, values.ndim)
        with output_errors(path):
            # Zarr reads a partly written shard before it overwrites it, so a torn one must go first.
            path.unlink(missing_ok=True)
            for litter in path.parent.glob(f"{path.name}.*.partial"):
                litter.unlink(missing_ok=True)
            array = zarr.open_array(store / name, mode="r+").with_config({"write_empty_chunks": True})
            array[patches.start : patches.stop] = values
            sync(path)
            for folder in list(path.parents)[: values.ndim + 1]:
                sync(folder)
            sizes[name] = path.stat().st_size
    return sizes
