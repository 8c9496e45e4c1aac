"""Trace the pixel-edge outlines of one block of a label map; knows nothing of files, shards or the rest of the image.

Every outline is walked with its own pixels on the right hand (clockwise on screen), one vertex per turn:

        ahead = direction of the walk          a vertex is  convex    when the pixel ahead differs,
    outer +---+---+                                         straight  when it is equal and the outer one ahead differs,
        ->|own|ahead                                        concave   when both are equal.
          +---+---+

A walk that leaves the block stays open: it ends at a lattice point of the block's border, where exactly one walk of the
same class goes on in the neighbouring block. That is what makes joining exact: the pieces of a seam carry no edge along
the seam, so nothing has to be dissolved, and every number is an integer.

While it is walked, a block is one flat array with its margin: a step is a sum. `at` is the number of a pixel, `along`
and `side` lead from it to the pixels ahead and at the outer side. A corner is twice the number y * (w + 2) + x of its
lattice point, and one more where it is convex and the pixel across it is of the same class: nowhere else can a walk
come to a point twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetpp.finalize.compiled import ZERO, compiled
from unetpp.finalize.outlines import Bools, Ints, Outlines, Walks
from unetpp.finalize.rings import polygons
from unetpp.finalize.runs import Indices, Marks, joined

# What is noted of a pixel: that its northern side was walked (to the east), that it lies outside the block.
_WALKED, _MARGIN = 1, 2
_EAST = ZERO + 1


@dataclass(frozen=True, slots=True)
class Pieces:
    """Some of the 4-connected pieces of a block, in raster order of their first pixels."""

    labels: npt.NDArray[np.uint8]
    """(n,) class of each piece."""
    first: Ints
    """(n, 2) first pixel (y, x) of each piece in raster order."""
    pixels: Ints
    """(n,) pixel count of each piece."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Outlines of one block: of the pieces that end in it, whole, and of those that go on in a neighbour, in walks.

    Coordinates are block-local.
    """

    whole: Pieces
    outlines: Outlines
    """Of the whole pieces."""
    part: Pieces
    walks: Walks
    """Of the crossing pieces."""
    borders: tuple[Ints, ...]
    """North (w,), south (w,), west (h,), east (h,): the crossing piece of each border pixel, from 1; 0 where none."""


def trace_block(labels: npt.NDArray[np.uint8], keep: Bools) -> Traced:
    """Trace the pieces of a block.

    Args:
        labels: (h + 2, w + 2) class values, the block with a margin of one pixel (anything not kept past the image).
        keep: (256,) whether a class value is outlined; 255 must be False.
    """
    marked = _marked(labels, keep)
    assert marked.size < 2**30  # corners are counted in 32 bits
    found = joined(marked)
    corners, starts, piece, closed = _walked(marked, found.runs, found.tops, found.top_piece, *found.borders)
    order, crossing = np.argsort(piece, kind="stable"), found.crossing
    of_crossing = crossing[piece[order]]
    number = np.where(crossing, np.cumsum(crossing), np.cumsum(~crossing)) - 1

    def walks(chosen: Ints) -> tuple[Walks, Bools]:
        vertices, bounds, touching = _gathered(corners, starts, chosen, marked.shape[1])
        return Walks(vertices, bounds, number[piece[chosen]], closed[chosen]), touching

    def pieces(wanted: Bools) -> Pieces:
        y, x = np.divmod(found.first[wanted], marked.shape[1] - 2)
        return Pieces(labels[y + 1, x + 1], np.stack([y, x], axis=1), found.pixels[wanted])

    rings, touching = walks(order[~of_crossing])
    whole = pieces(~crossing)
    outlines, held = polygons(rings, len(whole.labels), touching)
    assert np.array_equal(held, whole.pixels)
    known = np.append(np.where(crossing, number + 1, 0), 0)  # piece -1 reads the last one
    borders = tuple(known[border] for border in found.borders)
    return Traced(whole, outlines, pieces(crossing), walks(order[of_crossing])[0], borders)


@compiled
def _gathered(corners: Indices, starts: Ints, order: Ints, stride: int) -> tuple[Ints, Ints, Bools]:
    """Return these walks, one behind the other: vertices (x, y), where each begins, where its class touches itself."""
    bounds = np.zeros(len(order) + 1, np.int64)
    for number, k in enumerate(order):
        bounds[number + 1] = bounds[number] + starts[k + 1] - starts[k]
    found, touching = np.empty((bounds[-1], 2), np.int64), np.empty(bounds[-1], np.bool_)
    width = np.uint32(stride)  # without a sign and in 32 bits, a division takes half as long
    for number, k in enumerate(order):
        used = bounds[number]
        for at in range(starts[k], starts[k + 1]):
            point = np.uint32(corners[at]) >> np.uint32(1)
            y = point // width
            found[used, 0], found[used, 1], touching[used] = point - y * width, y, corners[at] & 1
            used += 1
    return found, bounds, touching


def _marked(labels: npt.NDArray[np.uint8], keep: Bools) -> Marks:
    """Return 0 for what is not outlined, and another number for each class that is, class 0 as well."""
    kept = np.flatnonzero(keep)
    if len(kept) == 1:  # a comparison takes a fifth of the time that the table does
        return np.equal(labels, np.uint8(kept[0]), order="C").view(np.uint8)
    return _looked_up(labels, np.where(keep, (np.arange(256) + 1) % 256, 0).astype(np.uint8))


@compiled
def _looked_up(labels: npt.NDArray[np.uint8], lookup: npt.NDArray[np.uint8]) -> Marks:
    """Return `lookup[labels]`, five times as fast."""
    found = np.empty(labels.shape, np.uint8)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            found[y, x] = lookup[labels[y, x]]
    return found


@compiled
def _entered(marks: Marks, seen: Marks, at: int, along: int, side: int) -> bool:
    """Say whether a pixel's side lies on an outline, and the walk comes to it from outside the block."""
    value = marks[at]
    if marks[at + side] == value or marks[at - along] != value:
        return False
    if seen[at - along] == _MARGIN:
        return True
    return bool(marks[at - along + side] == value and seen[at + side] == _MARGIN)


@compiled
def _corner(at: int, along: int, side: int, stride: int) -> int:
    """Return the corner at which the edge of a pixel ends: the pixel's middle, half a step ahead and half one aside."""
    return 2 * at + along + side - stride - 1


@compiled
def _follow(marks: Marks, seen: Marks, stride: int, at: int, along: int, side: int, corners: Indices, used: int) -> int:
    """Walk from an edge until the walk is back or leaves; return how many corners are used then."""
    # Numbers without a sign are not looked at for being below zero, which would count from an array's end.
    value, first, first_along = marks[at], at, along
    while True:
        seen[np.uintp(at)] |= np.uint8(along == _EAST)
        corner = _corner(at, along, side, stride)
        beyond = marks[np.uintp(at + along + side)] == value
        if marks[np.uintp(at + along)] != value:  # convex
            corners[np.uintp(used)] = corner + beyond
            used += 1
            along, side = -side, along
        else:
            corners[np.uintp(used)] = corner  # of a straight one the place is used again
            used += beyond
            at += along
            if beyond:  # concave
                at += side
                along, side = side, -along
            if seen[np.uintp(at)] == _MARGIN:  # an open walk ends at a corner even if it goes straight on
                return used + (not beyond)
        if at == first and along == first_along:
            return used


@compiled
def _walked(
    marked: Marks,
    runs: int,
    tops: Indices,
    top_piece: Indices,
    north: Indices,
    south: Indices,
    west: Indices,
    east: Indices,
) -> tuple[Indices, Ints, Ints, Bools]:
    """Walk every outline; return corners, where each walk begins, its piece, if closed.

    Args:
        marked: the block.
        runs: how many it has.
        tops: where pixels begin whose northern sides are edges, and `top_piece`, their pieces.
        north: the pieces of the pixels on the borders; so do `south`, `west` and `east`.
    """
    height, width, stride = len(west), len(north), marked.shape[1]
    marks, seen = marked.reshape(-1), _unseen(height, width)
    # One of a corner's two edges is upright, and a run has two of those. Walks from outside begin and end besides.
    corners = np.empty(4 * runs + 8 * (height + width), np.int32)
    most = len(tops) + 4 * (height + width)
    starts, piece, closed = np.zeros(most + 1, np.int64), np.empty(most, np.int64), np.empty(most, np.bool_)
    count = used = 0
    for y in range(height):
        for x in range(0, width, 1 if y in (0, height - 1) else max(1, width - 1)):
            at = (y + 1) * stride + x + 1
            if marks[at] == 0:
                continue
            along, side = _EAST, -stride
            for _ in range(4):
                if _entered(marks, seen, at, along, side):
                    corners[used] = _corner(at, side, -along, stride)
                    used = _follow(marks, seen, stride, at, along, side, corners, used + 1)
                    upright = west[y] if x == 0 else east[y]
                    piece[count] = north[x] if y == 0 else south[x] if y == height - 1 else upright
                    closed[count] = False
                    count += 1
                    starts[count] = used
                along, side = -side, along
    # What is left are rings. Each has an edge to the east, and its first one in raster order begins at a turn.
    for top in range(len(tops)):
        at = ZERO + tops[top]
        if seen[at] != _WALKED:
            used = _follow(marks, seen, stride, at, _EAST, -stride, corners, used)
            piece[count], closed[count] = top_piece[top], True
            count += 1
            starts[count] = used
    return corners[:used], starts[: count + 1], piece[:count], closed[:count]


@compiled
def _unseen(height: int, width: int) -> Marks:
    """Return what is noted of the pixels of a block and its margin before the first walk."""
    seen = np.full((height + 2, width + 2), np.uint8(_MARGIN), np.uint8)
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            seen[y, x] = 0
    return seen.reshape(-1)
