"""Join the outlines of a label map's blocks into whole objects, exactly; knows no file format, CRS or physical unit.

The objects equal those of tracing the whole image at once: 4-connected, outlines on pixel edges, integer coordinates.
They come by owner block (the block of the object's first pixel: shard by shard, rows of blocks within a shard), then by
first pixel in raster order. Memory holds a few blocks' pieces, the piece numbers along the seams, and the outlines of
one batch: it grows with the largest object's outline, not with the image or the number of objects.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetpp.errors import StoreError
from unetpp.finalize.joining import Stored, linked, together, walks_of
from unetpp.finalize.outlines import BATCH_VERTICES, Batch, Ints, Outlines, Walks
from unetpp.finalize.pieces import SIDES, StoredBlocks
from unetpp.finalize.rings import polygons
from unetpp.geometry import Box


def iter_batches(
    shards: Sequence[Box], folder: Path, progress: Callable[[float], None] = lambda share: None
) -> Iterator[Batch]:
    """Yield all objects of the pieces that `write_pieces` stored for these shards.

    Raises:
        StoreError: the pieces are damaged; they are deleted, so that the next run makes them again.
    """
    blocks = StoredBlocks(shards, folder)
    try:
        joined = _Joined(blocks)
        for block in range(len(blocks.boxes)):
            yield from _owned(blocks, joined, block)
            progress((block + 1) / len(blocks.boxes))
    except (KeyError, IndexError, ValueError, FileNotFoundError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"{folder} is damaged ({error}); run the same command again") from error


class _Joined:
    """Which crossing pieces make one object, and which block owns it; piece numbers run over the whole image.

    `members[starts[k]:starts[k + 1]]` are the pieces of object k, ascending. Objects are sorted by owner, then by first
    pixel; block b owns the objects owned[b] to owned[b + 1].
    """

    def __init__(self, blocks: StoredBlocks) -> None:
        width = max(box.x1 for box in blocks.boxes)
        labels, codes, sizes = [], [], []
        seams = _Seams(blocks.boxes)
        self.offsets = np.zeros(len(blocks.boxes) + 1, np.int64)
        for index, box in enumerate(blocks.boxes):
            names = (f"part_{name}" for name in ("labels", "first", "starts", "owner"))
            label, first, starts, owner, *borders = blocks.load(index, *names, *SIDES)
            labels.append(label)
            sizes.append(np.bincount(owner, weights=np.diff(starts), minlength=len(label)))
            codes.append((first[:, 0] + box.y0) * width + first[:, 1] + box.x0)
            self.offsets[index + 1] = self.offsets[index] + len(label)
            seams.add(index, self.offsets[index], label, borders)
        code = np.concatenate(codes)
        group = _connected(seams.pairs(), len(code))
        # The first member in raster order leads its object.
        by_group = np.lexsort((code, group))
        leads = by_group[np.flatnonzero(np.diff(group[by_group], prepend=-1))]
        owner = np.searchsorted(self.offsets, leads, side="right") - 1
        order = np.lexsort((code[leads], owner))
        rank = np.empty(len(leads), np.int64)
        rank[group[leads[order]]] = np.arange(len(leads))
        self.members = np.argsort(rank[group], kind="stable")
        self.starts = np.concatenate(([0], np.cumsum(np.bincount(rank[group], minlength=len(leads)))))
        self.first = code[leads[order]]
        self.sizes = np.bincount(rank[group], weights=np.concatenate(sizes), minlength=len(leads)).astype(np.int64)
        """Vertices of each object."""
        self.owned = np.searchsorted(owner[order], np.arange(len(blocks.boxes) + 1))
        self.width = width


class _Seams:
    """Finds the pieces of one class that face each other across the seams of blocks, in any order of the blocks."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        self._boxes = boxes
        self._waiting: dict[tuple[str, int, int], tuple[Ints, npt.NDArray[np.uint8]]] = {}
        self._pairs = [np.zeros((0, 2), np.int64)]

    def add(self, index: int, offset: int, labels: npt.NDArray[np.uint8], borders: Sequence[Ints]) -> None:
        """Compare a block's sides with those of the neighbours that came before, and keep the others."""
        box = self._boxes[index]
        places = (
            ("row", box.y0, box.x0),
            ("row", box.y1, box.x0),
            ("column", box.y0, box.x0),
            ("column", box.y0, box.x1),
        )
        for place, border in zip(places, borders, strict=True):
            ours = np.where(border > 0, border + offset, 0), np.append(labels, np.uint8(0))[border - 1]
            theirs = self._waiting.pop(place, None)
            if theirs is None:
                self._waiting[place] = ours
                continue
            same = (ours[0] > 0) & (theirs[0] > 0) & (ours[1] == theirs[1])
            pairs = np.stack([ours[0][same], theirs[0][same]], axis=1) - 1
            # Two pieces face each other over a run of pixels; what comes again behind others does no harm.
            self._pairs.append(pairs[np.diff(pairs, axis=0, prepend=-1).any(axis=1)])

    def pairs(self) -> Ints:
        """Return (n, 2) numbers of pieces, over the whole image from 0."""
        return np.concatenate(self._pairs)


def _connected(pairs: Ints, count: int) -> Ints:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _owned(blocks: StoredBlocks, joined: _Joined, block: int) -> Iterator[Batch]:
    """Yield the objects of one block in batches that end with the object that fills them."""
    whole = blocks.whole(block)
    begin, end = joined.owned[block], joined.owned[block + 1]
    codes = np.concatenate([whole.first[:, 0] * joined.width + whole.first[:, 1], joined.first[begin:end]])
    order = np.argsort(codes, kind="stable")
    # Each ring repeats its first vertex, which does not count.
    lengths = np.diff(whole.starts[whole.bounds]) - np.diff(whole.bounds)
    sizes = np.concatenate([lengths, joined.sizes[begin:end]])[order]
    for part in np.split(order, np.flatnonzero(np.diff((np.cumsum(sizes) - sizes) // BATCH_VERTICES)) + 1):
        if len(part):
            first = np.stack(np.divmod(codes[part], joined.width), axis=1)
            yield _batch(blocks, joined, whole, int(begin), part, first)


def _batch(blocks: StoredBlocks, joined: _Joined, whole: Stored, begin: int, part: Ints, first: Ints) -> Batch:
    """Return the objects `part` of a block: whole ones by their number, behind them the joined ones from `begin`."""
    crossing = part >= len(whole.labels)
    own = part[~crossing]
    labels, pixels = np.zeros(len(part), np.uint8), np.zeros(len(part), np.int64)
    labels[~crossing], pixels[~crossing] = whole.labels[own], whole.pixels[own]
    others = _NONE
    if len(own) < len(part):
        labels[crossing], pixels[crossing], walks = _join(blocks, joined, begin + part[crossing] - len(whole.labels))
        others, held = polygons(walks, len(part) - len(own))
        if (wrong := np.flatnonzero(held != pixels[crossing])).size:
            y, x = first[crossing][wrong[0]].tolist()
            raise ValueError(f"the outline of the object at row {y}, column {x} does not hold its pixels")
    return Batch(labels, first, pixels, together(part, whole, others))


def _join(blocks: StoredBlocks, joined: _Joined, numbers: Ints) -> tuple[npt.NDArray[np.uint8], Ints, Walks]:
    """Return class, pixel count and closed walks of crossing objects, those of their pieces linked up."""
    counts = joined.starts[numbers + 1] - joined.starts[numbers]
    owner = np.repeat(np.arange(len(numbers)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    members = joined.members[joined.starts[numbers][owner] + within]
    # Block by block: each is read once for all objects.
    order = np.argsort(members)
    members, owner = members[order], owner[order]
    ends = np.searchsorted(members, joined.offsets)
    labels, pixels = np.zeros(len(numbers), np.uint8), np.zeros(len(numbers), np.int64)
    walks = []
    for block in np.flatnonzero(np.diff(ends)).tolist():
        own = slice(ends[block], ends[block + 1])
        part, piece = blocks.part(block), members[own] - joined.offsets[block]
        labels[owner[own]] = part.labels[piece]
        np.add.at(pixels, owner[own], part.pixels[piece])
        walks.append(walks_of(part, piece, owner[own]))
    return labels, pixels, linked(_one_behind_the_other(walks))


def _one_behind_the_other(groups: Sequence[Walks]) -> Walks:
    """Gather the walks of several blocks."""
    lengths = np.concatenate([np.diff(walks.starts) for walks in groups])
    return Walks(
        np.concatenate([walks.vertices for walks in groups]),
        np.concatenate(([0], np.cumsum(lengths))),
        np.concatenate([walks.owner for walks in groups]),
        np.concatenate([walks.closed for walks in groups]),
    )


_NONE = Outlines(np.zeros((0, 2), np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64), 0)
