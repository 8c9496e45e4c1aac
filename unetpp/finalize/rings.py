"""Put walks around pixel objects into the one form that valid polygons have; knows integer lattice points only.

No vertex lies on a straight line, no ring meets itself (where an object touches itself at a corner, a hole touches
another ring instead). Every ring starts at its first vertex in raster order. The shell comes first, clockwise on
screen, then the holes, counter-clockwise, in the order of their first vertices.
"""

from __future__ import annotations

import numpy as np

from unetpp.finalize.compiled import ZERO, compiled
from unetpp.finalize.outlines import Bools, Ints, Outlines, Walks


def polygons(walks: Walks, count: int, met: Bools | None = None) -> tuple[Outlines, Ints]:
    """Return the outlines of `count` objects from the closed walks around them, and (count,) the pixels they hold.

    Args:
        walks: closed, in any order of owners; vertices at which a walk goes straight on are dropped.
        met: (vertices,) where a walk may come twice, of walks that go straight on nowhere; None where nothing is known
            of them. With it the rings of a walk are put in order in the walks' own array of vertices.
    """
    vertices, starts = walks.vertices, walks.starts
    if met is None:
        vertices, starts = _turns(vertices, starts)
        met = np.ones(len(vertices), np.bool_)
    starts, walk = _cut(vertices, starts, met)
    owner = walks.owner[walk]
    turn, lowest, areas = _measured(vertices, starts)
    order = np.lexsort((lowest, areas < 0, owner))
    outlines = Outlines(*_closed(vertices, starts, turn, order), owner[order], count)
    return outlines, np.bincount(owner, weights=areas, minlength=count).astype(np.int64)


@compiled
def _turns(vertices: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """Drop vertices where a walk goes straight on, as it does where a seam cut a straight edge."""
    found, bounds = np.empty_like(vertices), np.zeros_like(starts)
    used = 0
    for k in range(len(starts) - 1):
        begin, last = starts[k], starts[k + 1] - 1
        for at in range(begin, last + 1):
            before, after = vertices[at - 1 if at > begin else last, 0], vertices[at + 1 if at < last else begin, 0]
            if (before == vertices[at, 0]) != (after == vertices[at, 0]):
                used = _copied(found, used, vertices, at, at + 1)
        bounds[k + 1] = used
    return found[:used], bounds


@compiled
def _cut(vertices: Ints, starts: Ints, met: Bools) -> tuple[Ints, Ints]:
    """Cut walks in place into rings that come to no vertex twice; return where rings begin, and the walk of each.

    The rings of a walk have its vertices and take their place. What is not closed yet waits in `path`, so that nothing
    is overwritten before it is read. A walk comes to a point twice at most and never crosses itself: a point that it
    comes back to is still in `path`.
    """
    most, longest = len(starts) - 1, ZERO
    for index in range(len(met)):
        most += met[index]
    for k in range(len(starts) - 1):
        longest = max(longest, starts[k + 1] - starts[k])
    bounds, walk = np.zeros(most + 1, np.int64), np.empty(most, np.int64)
    path, points = np.empty((longest, 2), np.int64), np.empty((longest, 2), np.int64)
    count = ZERO
    for k in range(len(starts) - 1):
        begin, end = starts[k], starts[k + 1]
        doubtful = ZERO
        for index in range(begin, end):
            if met[index]:
                doubtful = _copied(points, doubtful, vertices, index, index + 1)
        if doubtful:
            place, position = _places(points[:doubtful]), np.full(doubtful, -1)
            used, length, doubtful = begin, ZERO, ZERO
            for index in range(begin, end):
                if met[index]:
                    here = place[doubtful]
                    doubtful += 1
                    known = position[here]
                    if known >= 0:  # the walk is back: a ring is closed
                        used = _copied(vertices, used, path, known, length)
                        walk[count] = k
                        count += 1
                        bounds[count] = used
                        length = known
                    position[here] = length
                length = _copied(path, length, vertices, index, index + 1)
            _copied(vertices, used, path, ZERO, length)
        walk[count] = k
        count += 1
        bounds[count] = end
    return bounds[: count + 1], walk[:count]


@compiled
def _places(ring: Ints) -> Ints:
    """Number the lattice points that a ring visits: each has the index of its first visit.

    The table holds the first visits, each at its point's hash or behind it. Sorting would take as long to compile as
    all the rest of this module.
    """
    most = 2
    while most < 2 * len(ring):
        most *= 2
    table = np.zeros(most, np.int64)  # indices from 1
    found = np.empty(len(ring), np.int64)
    for k in range(len(ring)):
        mixed = ring[k, 0] * 0x2545F491 + ring[k, 1] * 0x9E3779B1
        at = (mixed ^ mixed >> 16) & (most - 1)
        while table[at] and (ring[table[at] - 1, 0] != ring[k, 0] or ring[table[at] - 1, 1] != ring[k, 1]):
            at = (at + 1) & (most - 1)
        if table[at] == 0:
            table[at] = k + 1
        found[k] = table[at] - 1
    return found


@compiled
def _measured(vertices: Ints, starts: Ints) -> tuple[Ints, Ints, Ints]:
    """Return each ring's first vertex in raster order, by number and as a number to sort by, and its signed area.

    The area is in pixels, positive where the ring runs clockwise on screen; every edge is axis-parallel.
    """
    count = len(starts) - 1
    turn, lowest, areas = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    for k in range(count):
        begin, end = starts[k], starts[k + 1]
        first, least, area = begin, (vertices[begin, 1] << 32) + vertices[begin, 0], ZERO
        before = vertices[end - 1, 1]
        for at in range(begin, end):
            x, y = vertices[at, 0], vertices[at, 1]
            # From vertex to vertex one of x and y changes: where y does, x is that of both.
            area += x * (y - before)
            before = y
            if (y << 32) + x < least:
                first, least = at, (y << 32) + x
        turn[k], lowest[k], areas[k] = first - begin, least, area
    return turn, lowest, areas


@compiled
def _closed(vertices: Ints, starts: Ints, turn: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Return the rings in this order, each from its turn on and with its first vertex again at its end."""
    found = np.empty((len(vertices) + len(order), 2), np.int64)
    bounds = np.zeros(len(order) + 1, np.int64)
    used = 0
    for number, k in enumerate(order):
        first = starts[k] + turn[k]
        used = _copied(found, used, vertices, first, starts[k + 1])
        used = _copied(found, used, vertices, starts[k], first + 1)
        bounds[number + 1] = used
    return found, bounds


@compiled
def _copied(found: Ints, used: int, vertices: Ints, begin: int, end: int) -> int:
    """Write vertices behind those that are used; returns how many are used then. Slices take seconds to compile."""
    for at in range(begin, end):
        found[used, 0], found[used, 1] = vertices[at, 0], vertices[at, 1]
        used += 1
    return used
