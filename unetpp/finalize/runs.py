"""Cut one block of a label map into runs, and join these to its 4-connected pieces; knows nothing of outlines.

A run is the longest stretch of pixels of one class within a row. There are some thirty times fewer of them than pixels,
so that pixels are asked nothing here but whether they equal their neighbour: compilers make that one instruction for
dozens of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetpp.finalize.compiled import ZERO, compiled
from unetpp.finalize.outlines import Bools, Ints

Marks = npt.NDArray[np.uint8]
"""(h + 2, w + 2) a block with a margin of one pixel: 0 is not outlined, every other value is a class."""
Indices = npt.NDArray[np.int32]
_ONE = np.uint64(1)
# Times a word of eight bytes that are 0 or 1, the first one lowest: the highest byte has them as bits in that order.
_PACK = np.uint64(0x0102040810204080)
# Every window of six of its bits is another number: times a power of two, its highest six bits tell which.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT = np.empty(64, np.int64)
_BIT[[(0x03F79D71B4CB0A89 << bit) % 2**64 >> 58 for bit in range(64)]] = np.arange(64)


@dataclass(frozen=True, slots=True)
class Joined:
    """The 4-connected pieces of a block, numbered from 0 in raster order of their first pixels."""

    first: Ints
    """(n,) first pixel of each in raster order, y * w + x."""
    pixels: Ints
    crossing: Bools
    """(n,) whether a piece has an equal neighbour in the margin."""
    borders: tuple[Indices, ...]
    """North (w,), south (w,), west (h,), east (h,): the piece of each border pixel, -1 where none."""
    runs: int
    """How many there are."""
    tops: Indices
    """(t,) where pixels of a run begin whose upper neighbours differ, in raster order: (y + 1) * (w + 2) + x + 1.

    In the first row only those at which their run begins, too.
    """
    top_piece: Indices
    """(t,) the piece that such pixels are of."""


def joined(marked: Marks) -> Joined:
    """Find the pieces of a block."""
    begin, end, rows = _runs(marked)
    parent, tops, top_run = _connected(marked, begin, end, rows)
    first, pixels = _numbered(parent, begin, end, rows, marked.shape[1] - 2)
    borders = _borders(parent, begin, end, rows, marked.shape[1] - 2)
    crossing = np.zeros(len(first), np.bool_)
    for border, inner, outer in zip(borders, _sides(marked[1:-1, 1:-1]), _sides(marked), strict=True):
        crossing[border[(inner == outer[1:-1]) & (inner != 0)]] = True
    return Joined(first, pixels, crossing, borders, len(begin), tops, parent[top_run])


def _sides(marked: Marks) -> tuple[Marks, ...]:
    return marked[0], marked[-1], marked[:, 0], marked[:, -1]


@compiled
def _most_runs(marked: Marks) -> int:
    """Count runs with those of what is not outlined: memory for every pixel would be fetched anew each time."""
    count = ZERO + marked.shape[0] - 2
    for y in range(1, marked.shape[0] - 1):
        row = marked[y]
        for x in range(1, marked.shape[1] - 2):
            count += int(row[x + 1] != row[x])
    return int(count)


@compiled
def _runs(marked: Marks) -> tuple[Indices, Indices, Indices]:
    """Return where each run begins and ends (x), and the number of each row's first run, then of all."""
    height, width = marked.shape[0] - 2, marked.shape[1] - 2
    most = _most_runs(marked)
    begin, end = np.empty(most + 1, np.int32), np.empty(most + 1, np.int32)
    rows = np.zeros(height + 1, np.int32)
    # Whether a pixel differs from the one before it: bytes of 0 or 1 that are packed to one bit each, 64 a word.
    differs = np.zeros((width + 63) // 64 * 64, np.uint8)
    eights = differs.view(np.uint64)
    used = np.uintp(0)
    for y in range(height):
        row = marked[y + 1]
        for x in range(1, width):
            differs[x] = row[x + 1] != row[x]
        begin[used] = 0
        value = row[1]
        for word in range(len(eights) // 8):
            bits = np.uint64(0)
            for eight in range(8):
                bits |= (eights[8 * word + eight] * _PACK >> np.uint64(56)) << np.uint64(8 * eight)
            while bits:
                others = bits & (bits - _ONE)
                x = 64 * word + _BIT[(bits ^ others) * _DE_BRUIJN >> np.uint64(58)]
                bits = others
                # A run of what is not outlined is overwritten by the next: a branch would be taken at random.
                end[used] = x
                used += np.uintp(value != 0)
                begin[used] = x
                value = row[x + 1]
        end[used] = width
        used += np.uintp(value != 0)
        rows[y + 1] = used
    return begin[:used], end[:used], rows


@compiled
def _connected(marked: Marks, begin: Indices, end: Indices, rows: Indices) -> tuple[Indices, Indices, Indices]:
    """Return each run's parent (a run of its piece, before it or itself), where tops begin, and the run of each."""
    stride = marked.shape[1]
    parent = np.empty(len(begin), np.int32)
    tops, owner = np.empty(2 * len(begin) + 1, np.int32), np.empty(2 * len(begin) + 1, np.int32)
    count = np.uintp(0)
    for y in range(1, len(rows)):
        row, values, values_above = y * stride + 1, marked[y], marked[y - 1]
        above, last = np.uintp(rows[max(y - 2, 0)]), np.uintp(rows[y - 1])
        for run in range(np.uintp(rows[y - 1]), np.uintp(rows[y])):
            x, stop, root = begin[run], end[run], np.uintp(run)
            value = values[np.uintp(x + 1)]
            while above < last and end[above] <= x:
                above += _ONE
            other = above
            while other < last and begin[other] < stop:
                if values_above[np.uintp(begin[other] + 1)] == value:
                    there = other
                    while parent[there] != there:
                        parent[there] = parent[parent[there]]
                        there = np.uintp(parent[there])
                    if there < root:
                        root, there = there, root
                    parent[there] = root
                    # Written always, counted where it is so: a branch would be taken at random.
                    tops[count], owner[count] = row + x, run
                    count += np.uintp(x < begin[other])
                    x = end[other]
                other += _ONE
            parent[run] = root
            # Of the first row, what begins elsewhere than its run does is on a walk from outside.
            tops[count], owner[count] = row + x, run
            count += np.uintp(x < stop and (y > 1 or marked[0, x + 1] != value))
    return parent, tops[:count], owner[:count]


@compiled
def _numbered(parent: Indices, begin: Indices, end: Indices, rows: Indices, width: int) -> tuple[Ints, Ints]:
    """Put each run's piece in the place of its parent; return first pixels and pixel counts of the pieces."""
    pieces = 0
    for run in range(len(parent)):
        pieces += parent[run] == run
    first, pixels = np.empty(pieces, np.int64), np.zeros(pieces, np.int64)
    pieces = 0
    for y in range(len(rows) - 1):
        for run in range(rows[y], rows[y + 1]):
            if parent[run] == run:
                parent[run] = pieces
                first[pieces] = y * width + begin[run]
                pieces += 1
            else:  # the parent comes before: it has its piece already
                parent[run] = parent[parent[run]]
            pixels[parent[run]] += end[run] - begin[run]
    return first, pixels


@compiled
def _borders(
    piece: Indices, begin: Indices, end: Indices, rows: Indices, width: int
) -> tuple[Indices, Indices, Indices, Indices]:
    """Return the pieces along the north, south, west and east border, -1 where none."""
    height = len(rows) - 1
    north, south = np.full(width, -1, np.int32), np.full(width, -1, np.int32)
    west, east = np.full(height, -1, np.int32), np.full(height, -1, np.int32)
    for run in range(rows[1]):
        for x in range(begin[run], end[run]):
            north[x] = piece[run]
    for run in range(rows[height - 1], rows[height]):
        for x in range(begin[run], end[run]):
            south[x] = piece[run]
    for y in range(height):
        if rows[y] < rows[y + 1]:
            if begin[rows[y]] == 0:
                west[y] = piece[rows[y]]
            if end[rows[y + 1] - 1] == width:
                east[y] = piece[rows[y + 1] - 1]
    return north, south, west, east
