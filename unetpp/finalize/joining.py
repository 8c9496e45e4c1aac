"""Link the walks of pieces up to whole outlines, and put these between others; knows integer lattice points only.

Stored blocks have their vertices in 32 bits and in their own coordinates: here they become the image's, on their only
way through memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unetpp.finalize.compiled import ZERO, compiled
from unetpp.finalize.outlines import Bools, Ints, Outlines, Walks, bounds_of

Vertices = npt.NDArray[Any]
"""(m, 2) lattice points (x, y), of 32 or 64 bits."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Pieces of a block, in raster order of their first pixels, and the rings or walks around them.

    `vertices[starts[j]:starts[j + 1]]` is ring or walk j; piece k has those from `bounds[k]` to `bounds[k + 1]`.
    """

    labels: npt.NDArray[np.uint8]
    first: Ints
    """(n, 2) first pixel (y, x) of each piece, in the image."""
    pixels: Ints
    vertices: Vertices
    """In the block's own coordinates."""
    starts: Ints
    bounds: Ints
    closed: Bools
    """(walks,) whether the walk is a whole ring."""
    origin: Ints
    """First lattice point (x, y) of the block in the image."""


def walks_of(block: Stored, pieces: Ints, owners: Ints) -> Walks:
    """Return the walks around some pieces of a block, in the image's coordinates; those of a piece get its owner."""
    return Walks(*_walks_of(block.vertices, block.starts, block.closed, block.bounds, pieces, owners, block.origin))


def linked(walks: Walks) -> Walks:
    """Return closed walks: open ones of an object go on where one of them ends, with the one that begins there.

    Raises:
        ValueError: an end that is nowhere a beginning.
    """
    opened = np.flatnonzero(~walks.closed)
    owner = walks.owner[opened]
    begins, ends = _codes(walks.vertices[walks.starts[opened]]), _codes(walks.vertices[walks.starts[opened + 1] - 1])
    by_begin, by_end = np.lexsort((begins, owner)), np.lexsort((ends, owner))
    if not np.array_equal(begins[by_begin], ends[by_end]):
        raise ValueError("outlines that do not meet at the border of their blocks")
    behind = np.arange(len(walks.owner))
    behind[opened[by_end]] = opened[by_begin]
    vertices, starts, owner = _linked(walks.vertices, walks.starts, walks.owner, walks.closed, behind)
    return Walks(vertices, starts, owner, np.ones(len(owner), np.bool_))


def together(part: Ints, block: Stored, others: Outlines) -> Outlines:
    """Return objects of a block, and others, as one, in the image's coordinates.

    Args:
        part: (n,) numbers of objects in the block; those past its end stand for the others, in their order.
    """
    own = block.vertices, block.starts, block.bounds, block.origin
    of_others = bounds_of(others.owner, others.count)
    return Outlines(*_together(part, *own, others.vertices, others.starts, of_others), len(part))


def _codes(points: Ints) -> Ints:
    """Return lattice points as numbers."""
    return np.asarray((points[:, 1] << 32) + points[:, 0])


@compiled
def _walks_of(
    vertices: Vertices, starts: Ints, closed: Bools, bounds: Ints, pieces: Ints, owners: Ints, origin: Ints
) -> tuple[Ints, Ints, Ints, Bools]:
    count = used = 0
    for piece in pieces:
        count += bounds[piece + 1] - bounds[piece]
        used += starts[bounds[piece + 1]] - starts[bounds[piece]]
    found, begins = np.empty((used, 2), np.int64), np.zeros(count + 1, np.int64)
    owner, whole = np.empty(count, np.int64), np.empty(count, np.bool_)
    count = used = 0
    for n, piece in enumerate(pieces):
        for walk in range(bounds[piece], bounds[piece + 1]):
            used = _placed(found, used, vertices, starts[walk], starts[walk + 1], origin)
            owner[count], whole[count] = owners[n], closed[walk]
            count += 1
            begins[count] = used
    return found, begins, owner, whole


@compiled
def _linked(vertices: Ints, starts: Ints, owner: Ints, closed: Bools, behind: Ints) -> tuple[Ints, Ints, Ints]:
    """Return walks as one, `behind[k]` behind k, until one comes again: vertices, starts, owner."""
    found, begins, owners = np.empty_like(vertices), np.zeros(len(owner) + 1, np.int64), np.empty_like(owner)
    seen, origin = np.zeros(len(owner), np.bool_), np.zeros(2, np.int64)
    count = used = 0
    for first in range(len(owner)):
        walk = first
        while not seen[walk]:
            seen[walk] = True
            # An open one ends with the vertex that the one behind it begins with.
            end = starts[walk + 1] if closed[walk] else starts[walk + 1] - 1
            used = _placed(found, used, vertices, starts[walk], end, origin)
            walk = behind[walk]
        if used > begins[count]:
            owners[count] = owner[first]
            count += 1
            begins[count] = used
    return found[:used], begins[: count + 1], owners[:count]


@compiled
def _together(
    part: Ints,
    vertices: Vertices,
    starts: Ints,
    bounds: Ints,
    origin: Ints,
    others: Ints,
    begins: Ints,
    of_others: Ints,
) -> tuple[Ints, Ints, Ints]:
    """Return vertices, starts and owner of the rings; `begins` and `of_others` are the others' starts and bounds."""
    rings, used = of_others[-1], begins[-1]
    for k in part:
        if k < len(bounds) - 1:
            rings += bounds[k + 1] - bounds[k]
            used += starts[bounds[k + 1]] - starts[bounds[k]]
    found, ends, owner = np.empty((used, 2), np.int64), np.zeros(rings + 1, np.int64), np.empty(rings, np.int64)
    unmoved = np.zeros(2, np.int64)
    other = rings = used = ZERO
    for n, k in enumerate(part):
        is_own = k < len(bounds) - 1
        first, end = (bounds[k], bounds[k + 1]) if is_own else (of_others[other], of_others[other + 1])
        for ring in range(first, end):
            if is_own:
                used = _placed(found, used, vertices, starts[ring], starts[ring + 1], origin)
            else:
                used = _placed(found, used, others, begins[ring], begins[ring + 1], unmoved)
            owner[rings] = n
            rings += 1
            ends[rings] = used
        other += 0 if is_own else 1
    return found, ends, owner


@compiled
def _placed(found: Ints, used: int, vertices: Vertices, begin: int, end: int, origin: Ints) -> int:
    """Write vertices, moved by the origin, behind those that are used; returns how many are used then."""
    for at in range(begin, end):
        found[used, 0], found[used, 1] = vertices[at, 0] + origin[0], vertices[at, 1] + origin[1]
        used += 1
    return used
