"""Spill the outlines of a label map to a folder, one file per block, and read them back; joins nothing.

A block is a shard or, so that memory does not depend on the shard's side, an equal part of it. Its file keeps the
outlines of objects that end inside the block ("whole") apart from the walks around pieces of objects that go on in a
neighbour ("part"): only the latter are ever looked up again, and only they pay for joining.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetpp.durable import output_errors
from unetpp.finalize.arrays_file import ArraysFile
from unetpp.finalize.joining import Stored
from unetpp.finalize.outlines import Bools, bounds_of
from unetpp.finalize.threads import in_order
from unetpp.finalize.trace import Traced, trace_block
from unetpp.geometry import Box
from unetpp.levels import NO_DATA

BLOCK_SIDE = 1024
"""Largest side of a traced block: bounds memory whatever the shard's side."""
SIDES = ("north", "south", "west", "east")
_GROUP = {
    "labels": ("u1", 1), "first": ("<i8", 2), "pixels": ("<i8", 1),
    "vertices": ("<i4", 2), "starts": ("<i8", 1), "owner": ("<i8", 1),
}  # fmt: skip
_FILE = ArraysFile(
    dict.fromkeys(SIDES, ("<i8", 1))
    | {f"{prefix}_{name}": kind for prefix in ("whole", "part") for name, kind in _GROUP.items()}
    | {"part_closed": ("?", 1)}
)
_CACHED_BLOCKS, _ROWS_READ = 16, 2


def block_boxes(shards: Iterable[Box]) -> list[Box]:
    """Cut each shard's box into equal blocks of at most `BLOCK_SIDE`; shard by shard, row by row."""
    boxes = []
    for box in shards:
        rows, cols = (max(1, math.ceil(side / BLOCK_SIDE)) for side in box.shape)
        height, width = math.ceil(box.height / rows), math.ceil(box.width / cols)
        boxes += [
            Box(y, x, y + height, x + width).intersect(box)
            for y in range(box.y0, box.y1, height)
            for x in range(box.x0, box.x1, width)
        ]
    return boxes


def write_pieces(
    read: Callable[[Box], npt.NDArray[np.uint8]],
    shards: Sequence[Box],
    keep: Bools,
    folder: Path,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Trace every block of a label map and store its pieces in `folder`; blocks that are there already stay.

    Args:
        read: returns the class values of a box inside the image; called from several threads.
        shards: boxes that tile the image, in the order of the shard grid.
        keep: (256,) which class values are outlined; 255 never.

    Raises:
        OutputError: the pieces cannot be written.
    """
    height, width = max(b.y1 for b in shards), max(b.x1 for b in shards)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

        def write(shard: Box) -> None:
            missing = [box for box in block_boxes([shard]) if not _FILE.whole(_path(folder, box))]
            # What is read besides for the margins is read again for the neighbours: the larger the better.
            for _, rows in groupby(missing, key=lambda box: (box.y0 - shard.y0) // (_ROWS_READ * box.height)):
                blocks = list(rows)
                left, right = min(box.x0 for box in blocks), max(box.x1 for box in blocks)
                around = Box(blocks[0].y0, left, blocks[-1].y1, right).expand(1)
                inside = around.clip(height, width)
                labels = np.full(around.shape, NO_DATA, np.uint8)
                labels[inside.slices(around)] = read(inside)
                for box in blocks:
                    _save(trace_block(labels[box.expand(1).slices(around)], keep), _path(folder, box))

        for count, _ in enumerate(in_order(write, shards), 1):
            progress(count / len(shards))


def _path(folder: Path, box: Box) -> Path:
    return folder / f"{box.y0}.{box.x0}.arrays"


def _save(traced: Traced, path: Path) -> None:
    content: dict[str, npt.NDArray[Any]] = dict(zip(SIDES, traced.borders, strict=True))
    outlines, walks = traced.outlines, traced.walks
    for prefix, pieces, lines in (("whole", traced.whole, outlines), ("part", traced.part, walks)):
        content[f"{prefix}_labels"] = pieces.labels
        content[f"{prefix}_first"] = pieces.first
        content[f"{prefix}_pixels"] = pieces.pixels
        content[f"{prefix}_vertices"] = lines.vertices
        content[f"{prefix}_starts"] = lines.starts
        content[f"{prefix}_owner"] = lines.owner
    _FILE.write(path, content | {"part_closed": walks.closed})


class StoredBlocks:
    """Reads stored blocks; the parts of the last few stay in memory."""

    def __init__(self, shards: Sequence[Box], folder: Path) -> None:
        self.folder = folder
        self.boxes = block_boxes(shards)
        self._parts: OrderedDict[int, Stored] = OrderedDict()

    def load(self, index: int, *names: str) -> list[npt.NDArray[Any]]:
        return _FILE.read(_path(self.folder, self.boxes[index]), *names)

    def whole(self, index: int) -> Stored:
        """Return the objects that end inside a block, and their rings."""
        return self._stored(index, *self.load(index, *(f"whole_{name}" for name in _GROUP)))

    def part(self, index: int) -> Stored:
        """Return the pieces that go on in other blocks, and the walks around them."""
        if index not in self._parts:
            names = (f"part_{name}" for name in (*_GROUP, "closed"))
            self._parts[index] = self._stored(index, *self.load(index, *names))
            if len(self._parts) > _CACHED_BLOCKS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(index)
        return self._parts[index]

    def _stored(self, index: int, labels: Any, first: Any, pixels: Any, *lines: Any) -> Stored:
        box = self.boxes[index]
        vertices, starts, owner, *closed = lines
        whole = closed[0] if closed else np.ones(len(owner), np.bool_)
        first += np.array([box.y0, box.x0])
        bounds = bounds_of(owner, len(labels))
        return Stored(labels, first, pixels, vertices, starts, bounds, whole, np.array([box.x0, box.y0]))
