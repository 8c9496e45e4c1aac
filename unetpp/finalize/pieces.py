"""Spill the outlines of a label map to a folder, one file per block, and read them back; joins nothing.

A block is a shard or, so that memory does not depend on the shard's side, an equal part of it. Its file is an
uncompressed .npz with the objects that end inside the block ("whole") apart from the pieces of objects that go on in a
neighbour ("part"): only the latter are ever looked up again, and only they pay for joining.
"""

from __future__ import annotations

import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unetpp.durable import output_errors
from unetpp.finalize.threads import in_order
from unetpp.finalize.trace import Bools, Ints, Traced, trace_block
from unetpp.geometry import Box
from unetpp.store import NO_DATA

BLOCK_SIDE = 1024
"""Largest side of a traced block: bounds memory whatever the shard's side."""
_CACHED_BLOCKS = 8


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
            missing = [box for box in block_boxes([shard]) if not zipfile.is_zipfile(_path(folder, box))]
            for _, row in groupby(missing, key=lambda box: box.y0):
                blocks = list(row)
                around = Box(blocks[0].y0, blocks[0].x0, blocks[-1].y1, blocks[-1].x1).expand(1)
                inside = around.clip(height, width)
                labels = np.full(around.shape, NO_DATA, np.uint8)
                labels[inside.slices(around)] = read(inside)
                for box in blocks:
                    _save(trace_block(labels[box.expand(1).slices(around)], keep), _path(folder, box))

        for count, _ in enumerate(in_order(write, shards), 1):
            progress(count / len(shards))


def _path(folder: Path, box: Box) -> Path:
    return folder / f"{box.y0}.{box.x0}.npz"


def _save(traced: Traced, path: Path) -> None:
    """Store whole objects and pieces of crossing ones apart; the latter are numbered from 1 in the order of pieces."""
    number = np.zeros(len(traced.labels) + 1, np.int64)
    number[1:][traced.crossing] = np.arange(1, traced.crossing.sum() + 1)
    content: dict[str, npt.NDArray[Any]] = {
        side: number[getattr(traced, side)].astype(np.int32) for side in ("north", "south", "west", "east")
    }
    lengths = np.diff(traced.starts)
    for prefix, wanted in (("whole", ~traced.crossing), ("part", traced.crossing)):
        chains = wanted[traced.piece - 1]
        content[f"{prefix}_labels"] = traced.labels[wanted]
        content[f"{prefix}_first"] = traced.first[wanted].astype(np.int32)
        content[f"{prefix}_pixels"] = traced.pixels[wanted].astype(np.int32)
        content[f"{prefix}_chains"] = np.bincount(traced.piece[chains] - 1, minlength=len(wanted))[wanted]
        content[f"{prefix}_lengths"] = lengths[chains].astype(np.int32)
        content[f"{prefix}_closed"] = traced.closed[chains]
        content[f"{prefix}_clean"] = ~traced.pinched[chains]
        content[f"{prefix}_vertices"] = traced.vertices[np.repeat(chains, lengths)]
    # Not synced: pieces are cheap to make again, and a file that a power cut emptied is no archive any more.
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **content)
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces of one block, whole or crossing; coordinates in the image."""

    labels: npt.NDArray[np.uint8]
    first: Ints
    pixels: Ints
    chain_starts: Ints
    """(n + 1,) chains of piece k are those from chain_starts[k] to chain_starts[k + 1]."""
    vertex_starts: Ints
    """(chains + 1,) likewise the vertices of each chain."""
    closed: Bools
    clean: Bools
    vertices: Ints

    @property
    def sizes(self) -> Ints:
        """(n,) vertices of each piece."""
        return np.diff(self.vertex_starts[self.chain_starts])

    def chains(self, piece: int) -> list[tuple[Ints, bool, bool]]:
        """Return (vertices, closed, clean) of each chain of a piece; `clean` as `clean_rings` takes it."""
        return [
            (
                self.vertices[self.vertex_starts[k] : self.vertex_starts[k + 1]],
                bool(self.closed[k]),
                bool(self.clean[k]),
            )
            for k in range(self.chain_starts[piece], self.chain_starts[piece + 1])
        ]


class Pieces:
    """Reads the stored blocks of these shards; the last few groups of parts stay in memory."""

    def __init__(self, shards: Sequence[Box], folder: Path) -> None:
        self.folder = folder
        self.boxes = block_boxes(shards)
        self._parts: OrderedDict[int, Group] = OrderedDict()

    def load(self, index: int, *names: str) -> list[npt.NDArray[Any]]:
        with np.load(_path(self.folder, self.boxes[index])) as content:
            return [content[name] for name in names]

    def whole(self, index: int) -> Group:
        return self._group(index, "whole")

    def part(self, index: int) -> Group:
        if index not in self._parts:
            self._parts[index] = self._group(index, "part")
            if len(self._parts) > _CACHED_BLOCKS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(index)
        return self._parts[index]

    def _group(self, index: int, prefix: Literal["whole", "part"]) -> Group:
        names = ("labels", "first", "pixels", "chains", "lengths", "closed", "clean", "vertices")
        content = self.load(index, *(f"{prefix}_{name}" for name in names))
        labels, first, pixels, chains, lengths, closed, clean, vertices = content
        box = self.boxes[index]
        return Group(
            labels,
            first.astype(np.int64) + np.array([box.y0, box.x0]),
            pixels.astype(np.int64),
            np.concatenate(([0], np.cumsum(chains, dtype=np.int64))),
            np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            closed,
            clean,
            vertices.astype(np.int64) + np.array([box.x0, box.y0]),
        )
