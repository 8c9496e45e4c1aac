"""Join the outlines of a label map's blocks into whole objects, exactly; knows no file format, CRS or physical unit.

The objects equal those of tracing the whole image at once: 4-connected, outlines on pixel edges, integer coordinates.
They come by owner block (the block of the object's first pixel: shard by shard, rows of blocks within a shard), then by
first pixel in raster order. Memory holds one block, the piece numbers along the seams, and the outline of the object
being built: it grows with the largest object's outline, not with the image or the number of objects.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetpp.errors import StoreError
from unetpp.finalize.outlines import BATCH_VERTICES, Batch
from unetpp.finalize.pieces import Group, Pieces
from unetpp.finalize.rings import arranged, simple_rings
from unetpp.finalize.trace import Ints
from unetpp.geometry import Box


def iter_batches(
    shards: Sequence[Box], folder: Path, progress: Callable[[float], None] = lambda share: None
) -> Iterator[Batch]:
    """Yield all objects of the pieces that `write_pieces` stored for these shards.

    Raises:
        StoreError: the pieces are damaged; they are deleted, so that the next run makes them again.
    """
    pieces = Pieces(shards, folder)
    try:
        joined = _Joined(pieces)
        for block in range(len(pieces.boxes)):
            yield from _owned(pieces, joined, block)
            progress((block + 1) / len(pieces.boxes))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, IndexError, ValueError, FileNotFoundError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"{folder} is damaged ({error}); run the same command again") from error


class _Joined:
    """Which crossing pieces make one object, and which block owns it; piece numbers run over the whole image.

    `members[starts[k]:starts[k + 1]]` are the pieces of object k, ascending. Objects are sorted by owner, then by first
    pixel; block b owns the objects owned[b] to owned[b + 1].
    """

    def __init__(self, pieces: Pieces) -> None:
        width = max(box.x1 for box in pieces.boxes)
        labels, codes, sizes = [], [], []
        for index, box in enumerate(pieces.boxes):
            names = ("part_labels", "part_first", "part_chains", "part_lengths")
            label, first, chains, lengths = pieces.load(index, *names)
            labels.append(label)
            sizes.append(np.bincount(np.repeat(np.arange(len(label)), chains), weights=lengths, minlength=len(label)))
            codes.append((first[:, 0].astype(np.int64) + box.y0) * width + first[:, 1] + box.x0)
        self.offsets = np.concatenate(([0], np.cumsum([len(label) for label in labels])))
        code = np.concatenate(codes)
        group = _connected(_seams(pieces, self.offsets, np.concatenate(labels)), len(code))
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
        self.owned = np.searchsorted(owner[order], np.arange(len(pieces.boxes) + 1))
        self.width = width


def _seams(pieces: Pieces, offsets: Ints, labels: npt.NDArray[np.uint8]) -> Ints:
    """Return (n, 2) numbers of pieces of one class that face each other across a seam."""
    by_corner = {(box.y0, box.x0): index for index, box in enumerate(pieces.boxes)}
    pairs = [np.zeros((0, 2), np.int64)]
    for index, box in enumerate(pieces.boxes):
        for side, facing, corner in (("east", "west", (box.y0, box.x1)), ("south", "north", (box.y1, box.x0))):
            other = by_corner.get(corner)
            if other is None:
                continue
            ours, theirs = pieces.load(index, side)[0], pieces.load(other, facing)[0]
            both = (ours > 0) & (theirs > 0)
            pair = np.stack([offsets[index] + ours[both] - 1, offsets[other] + theirs[both] - 1], axis=1)
            pair = pair[labels[pair[:, 0]] == labels[pair[:, 1]]]
            pairs.append(np.unique(pair, axis=0))
    return np.concatenate(pairs)


def _connected(pairs: Ints, count: int) -> Ints:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _owned(pieces: Pieces, joined: _Joined, block: int) -> Iterator[Batch]:
    """Yield the objects of one block in batches that end with the object that fills them."""
    whole = pieces.whole(block)
    begin, end = joined.owned[block], joined.owned[block + 1]
    codes = np.concatenate([whole.first[:, 0] * joined.width + whole.first[:, 1], joined.first[begin:end]])
    order = np.argsort(codes, kind="stable")
    sizes = np.concatenate([whole.sizes, joined.sizes[begin:end]])[order]
    for part in np.split(order, np.flatnonzero(np.diff((np.cumsum(sizes) - sizes) // BATCH_VERTICES)) + 1):
        if len(part):
            yield _batch(pieces, joined, whole, int(begin), part, codes[part])


def _batch(pieces: Pieces, joined: _Joined, whole: Group, begin: int, part: Ints, codes: Ints) -> Batch:
    """Return the objects `part` of a block: whole ones by their number, behind them the joined ones from `begin`."""
    count, known = len(part), len(whole.labels)
    inside = part < known
    labels, pixels = np.zeros(count, np.uint8), np.zeros(count, np.int64)
    labels[inside], pixels[inside] = whole.labels[part[inside]], whole.pixels[part[inside]]
    owner_of = np.full(known, -1)
    owner_of[part[inside]] = np.flatnonzero(inside)
    of_chain = np.repeat(owner_of, np.diff(whole.chain_starts))
    ready = np.flatnonzero((of_chain >= 0) & whole.clean)
    rings: list[Ints] = []
    owner: list[int] = []
    for chain in np.flatnonzero((of_chain >= 0) & ~whole.clean).tolist():
        found = simple_rings(whole.vertices[whole.vertex_starts[chain] : whole.vertex_starts[chain + 1]])
        rings += found
        owner += [int(of_chain[chain])] * len(found)
    for at in np.flatnonzero(~inside).tolist():
        labels[at], pixels[at], walks = _join(pieces, joined, begin + int(part[at]) - known)
        found = [ring for walk, clean in walks for ring in ([walk] if clean else simple_rings(walk))]
        rings += found
        owner += [at] * len(found)
    lengths = np.array([len(ring) for ring in rings], np.int64)
    outlines, held = arranged(
        np.concatenate([whole.vertices, *rings]),
        np.concatenate([whole.vertex_starts[ready], len(whole.vertices) + np.cumsum(lengths) - lengths]),
        np.concatenate([np.diff(whole.vertex_starts)[ready], lengths]),
        np.concatenate([of_chain[ready], np.array(owner, np.int64)]),
        count,
    )
    first = np.stack(np.divmod(codes, joined.width), axis=1)
    if (wrong := np.flatnonzero(held != pixels)).size:
        y, x = first[wrong[0]].tolist()
        raise ValueError(
            f"the outline of the object at row {y}, column {x} does not hold its {pixels[wrong[0]]} pixels"
        )
    return Batch(labels, first, pixels, outlines)


def _join(pieces: Pieces, joined: _Joined, number: int) -> tuple[int, int, list[tuple[Ints, bool]]]:
    """Return class, pixel count and rings (as `clean_rings` takes them) of a crossing object, chains linked up."""
    members = joined.members[joined.starts[number] : joined.starts[number + 1]]
    blocks = np.searchsorted(joined.offsets, members, side="right") - 1
    pixels, label = 0, 0
    rings: list[tuple[Ints, bool]] = []
    opened: dict[tuple[int, int], Ints] = {}
    for member, block in zip(members.tolist(), blocks.tolist(), strict=True):
        part = pieces.part(block)
        piece = member - int(joined.offsets[block])
        label = int(part.labels[piece])
        pixels += int(part.pixels[piece])
        for vertices, closed, clean in part.chains(piece):
            # Copies, because a slice would keep its whole block in memory.
            if closed:
                rings.append((vertices.copy(), clean))
            else:
                opened[int(vertices[0, 0]), int(vertices[0, 1])] = vertices.copy()
    while opened:
        start, chain = opened.popitem()
        walk = [chain[:-1]]
        while (end := (int(chain[-1, 0]), int(chain[-1, 1]))) != start:
            chain = opened.pop(end)
            walk.append(chain[:-1])
        rings.append((np.concatenate(walk), False))
    return label, pixels, rings
