"""Cut one block of a label map into runs, and join these to its 4-connected pieces; knows nothing of outlines' form.

A run is the longest stretch of pixels of one class within a row. There are some thirty times fewer runs than pixels, so
everything that is asked of each pixel but "does it equal its neighbour?" is asked of runs here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetpp.finalize.compiled import compiled
from unetpp.finalize.outlines import Bools, Ints

Marks = npt.NDArray[np.uint8]
"""(h + 2, w + 2) a block with a margin of one pixel: 0 is not outlined, every other value is a class."""
Indices = npt.NDArray[np.int32]


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
    """(t,) where pixels begin whose upper neighbours differ, each stretch of them in a run: (y + 1) * (w + 2) + x + 1."""
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
def _runs(marked: Marks) -> tuple[Indices, Indices, Indices]:
    """Return where each run begins and ends (x), and the number of each row's first run, then of all."""
    height, width = marked.shape[0] - 2, marked.shape[1] - 2
    begin, end = np.empty(height * width + 1, np.int32), np.empty(height * width + 1, np.int32)
    rows = np.zeros(height + 1, np.int32)
    changes = np.empty(width + 8, np.int32)
    # Whether a pixel differs from the one before it. Eight of them are one word: most words are 0.
    differs = np.zeros(width // 8 * 8 + 8, np.uint8)
    words = differs.view(np.uint64)
    used = 0
    for y in range(height):
        for x in range(1, width):
            differs[x] = marked[y + 1, x + 1] != marked[y + 1, x]
        count = np.uintp(0)
        for word in range(len(words)):
            if words[word]:
                # What is no change is overwritten: a branch would be taken at random, and cost more.
                for x in range(np.uintp(8 * word), np.uintp(8 * word + 8)):
                    changes[count] = x
                    count += np.uintp(differs[x])
        changes[count] = width
        begin[used] = 0
        value = marked[y + 1, 1]
        for change in range(count + np.uintp(1)):
            x = changes[change]
            end[used] = x
            used += value != 0
            begin[used] = x
            value = marked[y + 1, x + 1]
        rows[y + 1] = used
    return begin[:used], end[:used], rows


@compiled
def _root(parent: Indices, run: int) -> int:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@compiled
def _connected(marked: Marks, begin: Indices, end: Indices, rows: Indices) -> tuple[Indices, Indices, Indices]:
    """Return each run's parent (a run of its piece, before it or itself), where tops begin, and the run of each."""
    stride = marked.shape[1]
    parent = np.arange(len(begin)).astype(np.int32)
    tops, owner = np.empty(2 * len(begin), np.int32), np.empty(2 * len(begin), np.int32)
    count = 0
    for y in range(1, len(rows)):
        row, above = y * stride + 1, rows[max(y - 2, 0)]
        for run in range(rows[y - 1], rows[y]):
            x, value = begin[run], marked[y, begin[run] + 1]
            while above < rows[y - 1] and end[above] <= x:
                above += 1
            other = above
            while other < rows[y - 1] and begin[other] < end[run]:
                if marked[y - 1, begin[other] + 1] == value:
                    one, two = _root(parent, run), _root(parent, other)
                    parent[max(one, two)] = min(one, two)
                    if x < begin[other]:
                        tops[count], owner[count] = row + x, run
                        count += 1
                    x = end[other]
                other += 1
            # Of the first row, what begins elsewhere than its run does is on a walk from outside.
            if x < end[run] and (y > 1 or marked[0, x + 1] != value):
                tops[count], owner[count] = row + x, run
                count += 1
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
