"""Trace the pixel-edge outlines of one block of a label map; knows nothing of files, shards or the rest of the image.

Every outline is walked with its own pixels on the right hand (clockwise on screen), one vertex per turn:

        ahead = direction of the walk          a vertex is  convex    when the pixel ahead differs,
    outer +---+---+                                         straight  when it is equal and the outer one ahead differs,
        ->|own|ahead                                        concave   when both are equal.
          +---+---+

A walk that leaves the block stays open: it ends at a lattice point of the block's border, where exactly one walk of the
same class goes on in the neighbouring block. That is what makes joining exact: the pieces of a seam carry no edge along
the seam, so nothing has to be dissolved, and every number is an integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Directions in clockwise order: east, south, west, north, as (dy, dx); `outer` of direction d is direction d - 1.
_STEP = ((0, 1), (1, 0), (0, -1), (-1, 0))
_END_VERTEX = ((0, 1), (1, 1), (1, 0), (0, 0))


@dataclass(frozen=True, slots=True)
class Traced:
    """Outlines of the 4-connected pieces of one block; piece ids are 1..n, coordinates are block-local.

    Chain k is `vertices[starts[k]:starts[k + 1]]`, rows of (x, y) lattice points; chains are sorted by piece.
    """

    labels: npt.NDArray[np.uint8]
    """(n,) class of each piece."""
    first: Ints
    """(n, 2) first pixel (y, x) of each piece in raster order."""
    pixels: Ints
    """(n,) pixel count of each piece."""
    crossing: Bools
    """(n,) whether the piece goes on in a neighbouring block."""
    vertices: npt.NDArray[np.int32]
    starts: Ints
    piece: npt.NDArray[np.integer[Any]]
    """(chains,) piece id of each chain."""
    closed: Bools
    """(chains,) whether the chain is a whole ring; an open one runs from its first to its last vertex."""
    pinched: Bools
    """(chains,) whether the chain passes a point where its class touches itself diagonally."""
    north: npt.NDArray[np.integer[Any]]
    """(w,) piece id of each pixel of the first row, 0 where none; `south`, `west`, `east` likewise."""
    south: npt.NDArray[np.integer[Any]]
    west: npt.NDArray[np.integer[Any]]
    east: npt.NDArray[np.integer[Any]]


def trace_block(labels: npt.NDArray[np.uint8], keep: Bools) -> Traced:
    """Trace the pieces of a block.

    Args:
        labels: (h + 2, w + 2) class values, the block with a margin of one pixel (anything not kept past the image).
        keep: (256,) whether a class value is outlined; 255 must be False.
    """
    # 0 = not outlined; a kept class c is c + 1, so that class 0 can be outlined too.
    lookup = np.where(keep, (np.arange(256) + 1) % 256, 0).astype(np.uint8)
    marked = lookup[labels]
    core = marked[1:-1, 1:-1]
    if not core.any():
        return _nothing(core.shape[0], core.shape[1])
    components = _components(core)
    nodes = _Nodes(marked)
    walked, starts, closed = _follow(nodes)
    piece = components.ravel()[nodes.pixel[walked[starts[:-1]]]]
    order = np.argsort(piece, kind="stable")
    lengths = np.diff(starts)[order]
    gather = np.repeat(starts[:-1][order] - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
    gather += np.arange(len(gather))
    count = int(components.max())
    first = _first_pixels(components, count)
    return Traced(
        labels=core[first[:, 0], first[:, 1]] - np.uint8(1),
        first=first,
        pixels=np.bincount(components[core > 0], minlength=count + 1)[1:],
        crossing=_crossing(marked, components, count),
        vertices=nodes.vertex[walked[gather]].astype(np.int32),
        starts=np.concatenate(([0], np.cumsum(lengths))),
        piece=piece[order],
        closed=closed[order],
        pinched=np.logical_or.reduceat(nodes.pinched[walked], starts[:-1])[order],
        north=components[0].copy(),
        south=components[-1].copy(),
        west=components[:, 0].copy(),
        east=components[:, -1].copy(),
    )


class _Nodes:
    """Turning points and open ends of a block's outlines, each with the run that enters and the run that leaves it."""

    def __init__(self, marked: npt.NDArray[np.uint8]) -> None:
        self.height, self.width = marked.shape[0] - 2, marked.shape[1] - 2
        self.marked = marked
        self.count = 0
        self._pixel: list[Ints] = []
        self._vertex: list[Ints] = []
        self._pinched: list[Bools] = []
        self._ends: list[list[Ints]] = [[], [], [], []]
        self._begins: list[list[Ints]] = [[], [], [], []]
        # Rings start at their first node: with north-to-east corners first, a shell starts at its first pixel.
        for direction in (3, 0, 1, 2):
            self._collect(direction)
        self.pixel = np.concatenate(self._pixel)
        self.vertex = np.concatenate(self._vertex)
        """(nodes, 2) lattice points (x, y)."""
        self.pinched = np.concatenate(self._pinched)
        self.next = self._link()

    def _collect(self, direction: int) -> None:
        (dy, dx), (oy, ox) = _STEP[direction], _STEP[direction - 1]
        height, width, marked = self.height, self.width, self.marked
        own, outer = (marked[1 + v : 1 + v + height, 1 + u : 1 + u + width] for v, u in ((0, 0), (oy, ox)))
        edge = np.flatnonzero((own > 0) & (own != outer))
        y, x = np.divmod(edge, width)
        flat, place = marked.ravel(), (y + 1) * (width + 2) + x + 1
        value = flat[place]

        def equal(v: int, u: int) -> Bools:
            """Return where the neighbour at this offset has the same value."""
            return np.asarray(value == flat[place + v * (width + 2) + u])

        def outside(v: int, u: int) -> Bools:
            """Return where the neighbour at this offset, one step along an axis, lies outside the block."""
            return np.asarray(y == (0 if v < 0 else height - 1) if v else x == (0 if u < 0 else width - 1))

        ahead, diagonal = equal(dy, dx), equal(dy + oy, dx + ox)
        concave = ahead & diagonal
        self._add(edge[~ahead], direction, ends=direction, begins=(direction + 1) % 4)
        self._pinched[-1] = diagonal[~ahead]
        open_end = ahead & (outside(dy, dx) | (concave & outside(oy, ox)))
        self._add(edge[concave & ~open_end], direction, ends=direction, begins=(direction - 1) % 4)
        self._add(edge[open_end], direction, ends=direction, begins=None)
        behind = equal(-dy, -dx)
        turned = behind & equal(oy - dy, ox - dx)
        entered = behind & (outside(-dy, -dx) | (turned & outside(oy, ox)))
        self._add(edge[entered], direction - 1, ends=None, begins=direction)

    def _add(self, pixels: Ints, corner: int, *, ends: int | None, begins: int | None) -> None:
        ids = np.arange(self.count, self.count + len(pixels))
        self.count += len(pixels)
        y, x = np.divmod(pixels, self.width)
        vy, vx = _END_VERTEX[corner % 4]
        self._pixel.append(pixels)
        self._vertex.append(np.stack([x + vx, y + vy], axis=1))
        self._pinched.append(np.zeros(len(pixels), bool))
        if ends is not None:
            self._ends[ends].append(ids)
        if begins is not None:
            self._begins[begins].append(ids)

    def _link(self) -> Ints:
        """Return the node each node's leaving run arrives at, -1 where none leaves.

        The runs of one direction on one lattice line are disjoint, so that the k-th begin meets the k-th end.
        """
        following = np.full(self.count, -1, np.int64)
        for direction in range(4):
            line, along = (1, 0) if direction % 2 == 0 else (0, 1)
            key = self.vertex[:, line] * (max(self.height, self.width) + 2) + self.vertex[:, along]
            begins, ends = (np.concatenate(group[direction]) for group in (self._begins, self._ends))
            following[begins[np.argsort(key[begins])]] = ends[np.argsort(key[ends])]
        return following


def _follow(nodes: _Nodes) -> tuple[Ints, Ints, Bools]:
    """Walk every chain; return its nodes one chain after the other, the chains' starts, and which are rings.

    Open chains come first; a ring starts at its first node. All are hung one behind the other and walked in one go.
    """
    from scipy.sparse.csgraph import connected_components, depth_first_order

    if not nodes.count:  # the block lies inside one object
        return np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, bool)
    following, every = nodes.next, np.arange(nodes.count)
    left = following >= 0
    chain = connected_components(_graph(following), connection="weak")[1]
    lengths = np.bincount(chain)
    before = np.full(nodes.count, -1)
    before[following[left]] = every[left]
    opens = np.flatnonzero(before < 0)
    is_ring = np.ones(len(lengths), bool)
    is_ring[chain[opens]] = False
    first = np.empty(len(lengths), np.int64)
    first[chain[::-1]] = every[::-1]
    rings = np.sort(first[is_ring])
    last = np.empty(len(lengths), np.int64)
    last[chain[~left]] = every[~left]
    last[chain[rings]] = before[rings]
    begins = np.concatenate([opens, rings])
    path = following.copy()
    path[last[chain[begins]]] = np.append(begins[1:], -1)
    order = depth_first_order(_graph(path), int(begins[0]), return_predecessors=False)
    return (
        np.asarray(order, np.int64),
        np.concatenate(([0], np.cumsum(lengths[chain[begins]]))),
        is_ring[chain[begins]],
    )


def _graph(following: Ints) -> Any:
    """Return the graph in which each node has an edge to the one that follows it; -1 where none does."""
    from scipy.sparse import csr_array

    left = following >= 0
    edges = np.concatenate(([0], np.cumsum(left)))
    return csr_array((np.ones(edges[-1]), following[left], edges), shape=(len(left), len(left)))


def _components(core: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Return 4-connected components of equal nonzero values, numbered from 1."""
    from scipy import ndimage
    from skimage.measure import label

    if np.count_nonzero(core) > np.count_nonzero(core == core.max()):
        return np.asarray(label(core, background=0, connectivity=1), np.int32)
    found: npt.NDArray[np.int32] = ndimage.label(core)[0]  # three times as fast, but knows one class only
    return found


def _first_pixels(components: npt.NDArray[np.int32], count: int) -> Ints:
    """Return each component's first pixel; it is one whose upper and left neighbours in the block differ."""
    starts = components > 0
    starts[1:] &= components[1:] != components[:-1]
    starts[:, 1:] &= components[:, 1:] != components[:, :-1]
    candidates = np.flatnonzero(starts)
    first = np.full(count + 1, components.size, np.int64)
    np.minimum.at(first, components.ravel()[candidates], candidates)
    return np.stack(np.divmod(first[1:], components.shape[1]), axis=1)


def _crossing(marked: npt.NDArray[np.uint8], components: npt.NDArray[np.int32], count: int) -> Bools:
    """Return which components have an equal neighbour in the margin."""
    core = marked[1:-1, 1:-1]
    crossing = np.zeros(count + 1, bool)
    sides = (
        (components[0], core[0], marked[0, 1:-1]),
        (components[-1], core[-1], marked[-1, 1:-1]),
        (components[:, 0], core[:, 0], marked[1:-1, 0]),
        (components[:, -1], core[:, -1], marked[1:-1, -1]),
    )
    for piece, inside, margin in sides:
        crossing[piece[(inside > 0) & (inside == margin)]] = True
    return crossing[1:]


def _nothing(height: int, width: int) -> Traced:
    empty = np.zeros(0, np.int64)
    return Traced(
        labels=np.zeros(0, np.uint8),
        first=np.zeros((0, 2), np.int64),
        pixels=empty,
        crossing=np.zeros(0, bool),
        vertices=np.zeros((0, 2), np.int32),
        starts=np.zeros(1, np.int64),
        piece=empty,
        closed=np.zeros(0, bool),
        pinched=np.zeros(0, bool),
        north=np.zeros(width, np.int64),
        south=np.zeros(width, np.int64),
        west=np.zeros(height, np.int64),
        east=np.zeros(height, np.int64),
    )
