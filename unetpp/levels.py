"""Writes and reads arrays of bytes at all resolutions of an image, one object per shard; knows not what they mean.

One shard object has one writer. It is whole from the moment it has its name, but lost power may leave a torn one: it is
deleted before it is written again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import output_errors, sync, sync_tree, write_file
from unetpp.errors import StoreError
from unetpp.geometry import Box
from unetpp.shard_object import LEVEL, Chunks, Place, encode, join, read_chunk, read_index
from unetpp.tiling import Shard, TilePlan

if TYPE_CHECKING:
    import zarr

NO_DATA = 255
SPATIAL_REF = "spatial_ref"
"""Array beside the levels that says where a scene lies."""
_TOP_SIDE = 512
_CHUNK_SIDE = 512


class Levels:
    """One array of an image at all its resolutions, laid out by a tile plan; opening it reads nothing yet.

    Args:
        folder: the image's.
        name: path of the levels below it.
        planes: of an array (planes, height, width) whose shards hold all of them; None for (height, width).
    """

    def __init__(self, folder: Path, plan: TilePlan, name: str, planes: int | None = None) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self.name = name
        self.planes = planes
        self._known: set[int] = set()
        """Levels whose metadata were read."""

    @property
    def level_count(self) -> int:
        return len(level_shapes(self.plan))

    def _refuse_other(self, level: int) -> None:
        """Raise `StoreError` where a level's metadata is missing, damaged or of other shards than the plan's."""
        import zarr

        if level in self._known:
            return
        path = self.folder / self.name / str(level)
        try:
            found = zarr.open_array(path, mode="r")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is not a readable array ({_first_line(error)}); run segment again") from error
        if found.shape != self.shape(level):
            raise StoreError(f"{path} has shape {found.shape}, the job's is {self.shape(level)}")
        self._known.add(level)

    def shape(self, index: int) -> tuple[int, ...]:
        sides = level_shapes(self.plan)[index]
        return sides if self.planes is None else (self.planes, *sides)

    def create_level(self, index: int) -> None:
        """Make one pyramid level ready for writing, replacing what is there; raises `OutputError`."""
        path = self.folder / self.name / str(index)
        with output_errors(path):
            shutil.rmtree(path, ignore_errors=True)
            create_array(path, self.plan, index, self.planes)
            sync_tree(path)

    def object_name(self, level: int, row: int, col: int) -> str:
        """Return the path, below the image's folder, of the object that holds a level's shard."""
        corner = f"{row}/{col}" if self.planes is None else f"0/{row}/{col}"
        return f"{self.name}/{level}/c/{corner}"

    def documents(self) -> list[str]:
        """Return the paths, below the image's folder, of the metadata without which nobody reads the levels."""
        groups = [path.as_posix() for path in (Path(self.name), *Path(self.name).parents)][:-1]
        arrays = [f"{self.name}/{below}" for below in (*range(self.level_count), SPATIAL_REF)]
        names = (f"{folder}/zarr.json" for folder in (*groups, *arrays))
        return [name for name in names if (self.folder / name).is_file()]

    def shard_object(self, shard: Shard) -> Path:
        """Return the file that holds (or will hold) a shard of level 0."""
        return self.folder / self.object_name(0, shard.row, shard.col)

    def delete_shard(self, shard: Shard) -> None:
        """Delete a shard's object and what an interrupted write of it left behind; raises `OutputError`."""
        delete_object(self.shard_object(shard))

    def write_shard(self, shard: Shard, values: NDArray[np.uint8]) -> Path:
        """Write a whole shard of level 0 from its values ([planes,] h, w) uint8; as `write_chunks`."""
        assert values.shape[-2:] == shard.box.shape and values.dtype == np.uint8
        return self.write_chunks(0, shard.row, shard.col, dict(self.encode(values)))

    def encode(self, values: NDArray[np.uint8]) -> Iterator[tuple[Place, bytes]]:
        """Yield the chunks, and their places, of values ([planes,] h, w) whose first pixel is that of a chunk."""
        return encode(values, chunk_side(self.plan), NO_DATA)

    def write_chunks(self, level: int, row: int, col: int, chunks: Chunks) -> Path:
        """Write a whole shard, on the disk when this returns; returns its object.

        Args:
            chunks: of `encode`, by their places in the shard; those that are missing inside the level hold no data.

        Raises:
            OutputError: the disk is full or cannot be written. The shard's object is then absent.
        """
        path = self.folder / self.object_name(level, row, col)
        delete_object(path)
        with output_errors(path):
            first_of_row = not path.parent.is_dir()
            path.parent.mkdir(parents=True, exist_ok=True)
            content = join(self._with_empty(level, row, col, chunks), self._counts(level))
            write_file(path, content, path.with_name(f"{path.name}.new.partial"))
            if first_of_row:
                for parent in path.parents[1 : len(Path(self.object_name(0, 0, 0)).parts) - len(Path(self.name).parts)]:
                    sync(parent)
        return path

    def _counts(self, level: int) -> Place:
        """Return how many chunks a shard has along each axis."""
        across = level_shard(self.plan, level) // chunk_side(self.plan)
        return (across, across) if self.planes is None else (self.planes, across, across)

    def _with_empty(self, level: int, row: int, col: int, chunks: Chunks) -> Chunks:
        """Add the chunks inside the level that are missing, as Zarr has them."""
        side, shard = chunk_side(self.plan), level_shard(self.plan, level)
        height, width = level_shapes(self.plan)[level]
        rows, cols = -(-min(shard, height - row * shard) // side), -(-min(shard, width - col * shard) // side)
        places = list(np.ndindex(rows, cols) if self.planes is None else np.ndindex(self.planes, rows, cols))
        if len(places) == len(chunks):
            return chunks
        ((_, empty),) = self.encode(np.full((side, side), NO_DATA, np.uint8))
        return dict.fromkeys(places, empty) | dict(chunks)

    def read(self, box: Box, level: int = 0, plane: int | None = None) -> NDArray[np.uint8]:
        """Return the values ([planes,] h, w) uint8 of a box inside the level, or one plane's (h, w).

        Raises:
            StoreError: the stored bytes are damaged.
        """
        self._refuse_other(level)  # an array without metadata is not one without data
        planes = None if self.planes is None else range(self.planes) if plane is None else [plane]
        values = np.full((1 if planes is None else len(planes), *box.shape), NO_DATA, np.uint8)
        side = level_shard(self.plan, level)
        try:
            for row in range(box.y0 // side, -(-box.y1 // side)):
                for col in range(box.x0 // side, -(-box.x1 // side)):
                    self._read_shard(level, row, col, box, planes, values)
        except (ValueError, OSError) as error:
            where = self.folder / self.name
            raise StoreError(f"{where} is damaged near {box}: {_first_line(error)}; run verify") from error
        return values if planes is not None and plane is None else values[0]

    def _read_shard(
        self, level: int, row: int, col: int, box: Box, planes: Sequence[int] | None, values: NDArray[np.uint8]
    ) -> None:
        """Read what lies in one shard into `values` (planes, h, w) of a box."""
        side, shard = chunk_side(self.plan), level_shard(self.plan, level)
        try:
            file = (self.folder / self.object_name(level, row, col)).open("rb")
        except FileNotFoundError:
            return
        with file:
            index = read_index(file, self._counts(level))
            inside = Box(row * shard, col * shard, (row + 1) * shard, (col + 1) * shard).intersect(box)
            for y in range(inside.y0 // side * side, inside.y1, side):
                for x in range(inside.x0 // side * side, inside.x1, side):
                    chunk = Box(y, x, y + side, x + side)
                    part = chunk.intersect(inside)
                    place = ((y - row * shard) // side, (x - col * shard) // side)
                    for at, plane in enumerate([()] if planes is None else [(plane,) for plane in planes]):
                        found = read_chunk(file, index, (*plane, *place), side)
                        if found is not None:
                            values[(at, *part.slices(box))] = found[part.slices(chunk)]


def delete_object(path: Path) -> None:
    """Delete a shard's object and what an interrupted write of it left behind; raises `OutputError`."""
    with output_errors(path):
        path.unlink(missing_ok=True)
        for litter in path.parent.glob(f"{path.name}.*.partial"):
            litter.unlink(missing_ok=True)


def level_shapes(plan: TilePlan) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of every pyramid level: halved, rounding up, until both sides are at most 512."""
    shapes = [(plan.height, plan.width)]
    while max(shapes[-1]) > _TOP_SIDE:
        height, width = shapes[-1]
        shapes.append((-(-height // 2), -(-width // 2)))
    return tuple(shapes)


def level_shard(plan: TilePlan, index: int) -> int:
    """Return the side of a level's shards: the plan's, or less where the whole level is smaller."""
    if index == 0:
        return plan.shard
    chunk = chunk_side(plan)
    return min(plan.shard, -(-max(level_shapes(plan)[index]) // chunk) * chunk)


def chunk_side(plan: TilePlan) -> int:
    """Return the side of the inner chunks: the divisor of the tile core that is nearest to 512 in ratio."""
    divisors = (d for d in range(1, plan.core + 1) if plan.core % d == 0)
    return min(divisors, key=lambda d: max(d / _CHUNK_SIDE, _CHUNK_SIDE / d))


def create_array(path: Path, plan: TilePlan, index: int, planes: int | None = None) -> zarr.Array[Any]:
    """Make an empty level at `path`; see `Levels`."""
    import zarr
    from zarr.codecs import ZstdCodec

    chunk, shard = chunk_side(plan), level_shard(plan, index)
    front = () if planes is None else (planes,)
    return zarr.create_array(
        path,
        shape=(*front, *level_shapes(plan)[index]),
        dtype="uint8",
        chunks=(*(1 for _ in front), chunk, chunk),
        shards=(*front, shard, shard),
        fill_value=NO_DATA,
        compressors=ZstdCodec(level=LEVEL, checksum=True),
        dimension_names=(*("c" for _ in front), "y", "x"),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
