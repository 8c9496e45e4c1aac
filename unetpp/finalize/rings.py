"""Put walks around pixel objects into the one form that valid polygons have; knows integer lattice points only.

No vertex lies on a straight line, no ring meets itself (where an object touches itself at a corner, a hole touches
another ring instead). Every ring starts at its first vertex in raster order. The shell comes first, clockwise on
screen, then the holes, counter-clockwise, in the order of their first vertices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetpp.finalize.compiled import compiled
from unetpp.finalize.outlines import Bools, Ints, Outlines, Walks


def polygons(walks: Walks, count: int, clean: Bools | None = None) -> tuple[Outlines, Ints]:
    """Return the outlines of `count` objects from the closed walks around them, and (count,) the pixels they hold.

    Args:
        walks: closed, in any order of owners; vertices at which a walk goes straight on are dropped.
        clean: (walks,) which walks are known to have neither straight vertices nor vertices met twice; None for none.
    """
    known = np.zeros(len(walks.owner), np.bool_) if clean is None else clean
    vertices, starts, walk = _simple(walks.vertices, walks.starts, known)
    owner = walks.owner[walk]
    turn, lowest, areas = _measured(vertices, starts)
    order = np.lexsort((lowest, areas < 0, owner))
    outlines = Outlines(*_closed(vertices, starts, turn, order), owner[order], count)
    return outlines, np.bincount(owner, weights=areas, minlength=count).astype(np.int64)


def merged(groups: Sequence[tuple[Outlines, Ints]], count: int) -> Outlines:
    """Return the objects of several outlines as `count` objects, each given the place that its group has for it."""
    owner = np.concatenate([places[outlines.owner] for outlines, places in groups])
    vertices = np.concatenate([outlines.vertices for outlines, _ in groups])
    lengths = np.concatenate([np.diff(outlines.starts) for outlines, _ in groups])
    order = np.argsort(owner, kind="stable")
    return Outlines(*gathered(vertices, np.concatenate(([0], np.cumsum(lengths))), order), owner[order], count)


@compiled
def _simple(vertices: Ints, starts: Ints, clean: Bools) -> tuple[Ints, Ints, Ints]:
    """Cut walks into rings without straight vertices and vertices met twice; with the walk of each ring."""
    found = np.empty_like(vertices)
    bounds, walk = np.zeros(len(vertices) + 1, np.int64), np.empty(len(vertices), np.int64)
    count = used = 0
    for k in range(len(starts) - 1):
        begin, end = starts[k], starts[k + 1]
        if clean[k]:
            used = _copied(found, used, vertices, begin, end)
            walk[count] = k
            count += 1
            bounds[count] = used
            continue
        ring = _turns(vertices[begin:end])
        place = _places(ring)
        path, position = np.empty(len(ring), np.int64), np.full(len(ring), -1)
        length = 0
        for index in range(len(ring) + 1):
            known = 0 if index == len(ring) else position[place[index]]
            if known >= 0:  # the walk has come back to this point, or to its beginning: a ring is closed
                for at in path[known:length]:
                    used = _copied(found, used, ring, at, at + 1)
                    position[place[at]] = -1
                walk[count] = k
                count += 1
                bounds[count] = used
                length = known
            if index < len(ring):
                position[place[index]] = length
                path[length] = index
                length += 1
    return found[:used], bounds[: count + 1], walk[:count]


@compiled
def _turns(ring: Ints) -> Ints:
    """Drop vertices where the walk goes straight on, as it does where a seam cut a straight edge."""
    found = np.empty_like(ring)
    used, last = 0, len(ring) - 1
    for index in range(len(ring)):
        before, after = ring[index - 1 if index else last, 0], ring[index + 1 if index < last else 0, 0]
        if (before == ring[index, 0]) != (after == ring[index, 0]):
            used = _copied(found, used, ring, index, index + 1)
    return found[:used]


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
    turn, lowest, areas = np.empty(count, np.int64), np.empty(count, np.int64), np.zeros(count, np.int64)
    for k in range(count):
        begin, end = starts[k], starts[k + 1]
        turn[k], lowest[k] = 0, (vertices[begin, 1] << 32) + vertices[begin, 0]
        for at in range(begin, end):
            y, x = vertices[at, 1], vertices[at, 0]
            areas[k] += x * (vertices[at + 1 if at + 1 < end else begin, 1] - y)
            if (y << 32) + x < lowest[k]:
                turn[k], lowest[k] = at - begin, (y << 32) + x
    return turn, lowest, areas


@compiled
def _closed(vertices: Ints, starts: Ints, turn: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Return the rings in this order, each from its turn on and with its first vertex again at its end."""
    found = np.empty((len(vertices) + len(order), 2), np.int64)
    bounds = np.zeros(len(order) + 1, np.int64)
    used = 0
    for number, k in enumerate(order):
        begin, length = starts[k], starts[k + 1] - starts[k]
        for at in range(turn[k], turn[k] + length + 1):
            used = _copied(found, used, vertices, begin + at % length, begin + at % length + 1)
        bounds[number + 1] = used
    return found, bounds


@compiled
def gathered(vertices: Ints, starts: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Return these rings or walks, one behind the other: vertices, and where each begins."""
    bounds = np.zeros(len(order) + 1, np.int64)
    for number, k in enumerate(order):
        bounds[number + 1] = bounds[number] + starts[k + 1] - starts[k]
    found = np.empty((bounds[-1], 2), np.int64)
    for number, k in enumerate(order):
        _copied(found, bounds[number], vertices, starts[k], starts[k + 1])
    return found, bounds


@compiled
def _copied(found: Ints, used: int, vertices: Ints, begin: int, end: int) -> int:
    """Write vertices behind those that are used; returns how many are used then. Slices take seconds to compile."""
    for at in range(begin, end):
        found[used, 0], found[used, 1] = vertices[at, 0], vertices[at, 1]
        used += 1
    return used
