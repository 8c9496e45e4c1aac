"""Put the rings of pixel objects into the one form that valid polygons have; knows integer lattice points only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unetpp.finalize.outlines import Outlines
from unetpp.finalize.trace import Ints


def clean_rings(rings: Iterable[tuple[Ints, bool]]) -> tuple[Ints, ...]:
    """Return the shell, then the holes, of a 4-connected object.

    No vertex lies on a straight line, no ring meets itself (where an object touches itself at a corner, a hole touches
    another ring instead), every ring starts at its first vertex in raster order, as do the holes among each other.

    Args:
        rings: closed walks (n, 2) of (x, y) with the object on the right hand (clockwise on screen), vertex 0 not
            repeated; and whether the walk is known to have neither straight vertices nor vertices met twice.
    """
    parts = [_rotated(part) for ring, clean in rings for part in ([ring] if clean else simple_rings(ring))]
    if len(parts) > 1:
        parts.sort(key=lambda part: (signed_area(part) < 0, int(part[0, 1]), int(part[0, 0])))
    return tuple(parts)


def simple_rings(ring: Ints) -> list[Ints]:
    """Cut a closed walk into rings without straight vertices and vertices met twice."""
    return _split(_turns(ring))


def arranged(vertices: Ints, starts: Ints, lengths: Ints, owner: Ints, count: int) -> tuple[Outlines, Ints]:
    """Give the simple rings of many objects at once the form of `clean_rings`.

    Args:
        vertices: (m, 2) lattice points (x, y); ring k is `vertices[starts[k]:starts[k] + lengths[k]]`.
        owner: (rings,) object of each ring, 0 to count - 1, in any order.

    Returns:
        The outlines and (count,) the pixels that they hold.
    """
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    points = vertices[np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths)]
    x, y = points[:, 0], points[:, 1]
    code = y * (int(x.max()) + 1) + x
    lowest = np.minimum.reduceat(code, bounds[:-1])
    turn = np.flatnonzero(code == np.repeat(lowest, lengths)) - bounds[:-1]
    below = np.append(y[1:], 0)
    below[bounds[1:] - 1] = y[bounds[:-1]]
    area = np.add.reduceat(x * (below - y), bounds[:-1])
    order = np.lexsort((lowest, area < 0, owner))
    lengths = lengths[order]
    closed = np.concatenate(([0], np.cumsum(lengths + 1)))
    index = np.arange(closed[-1]) + np.repeat(turn[order] - closed[:-1], lengths + 1)
    index -= np.where(index >= (length := np.repeat(lengths, lengths + 1)), length, 0)
    index += np.repeat(bounds[:-1][order], lengths + 1)
    pixels = np.bincount(owner, weights=area, minlength=count).astype(np.int64)
    return Outlines(points[index], closed, owner[order], count), pixels


def signed_area(ring: Ints) -> int:
    """Return the area in pixels, positive where the ring runs clockwise on screen. Every edge is axis-parallel."""
    x, y = ring[:, 0], ring[:, 1]
    inner = np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])
    return int(inner + x[-1] * y[0] - x[0] * y[-1]) // 2


def _turns(ring: Ints) -> Ints:
    """Drop vertices where the walk goes straight on, as it does where a seam cut a straight edge."""
    step = np.sign(np.diff(ring, axis=0, append=ring[:1]))
    direction = step[:, 0] + 2 * step[:, 1]
    turning = direction != np.append(direction[-1:], direction[:-1])
    return ring if turning.all() else ring[turning]


def _split(ring: Ints) -> list[Ints]:
    """Cut a ring at every vertex that it visits twice."""
    code = ring[:, 1] * (int(ring[:, 0].max()) + 1) + ring[:, 0]
    if len(np.unique(code)) == len(code):
        return [ring]
    path: list[int] = []
    position: dict[int, int] = {}
    parts = []
    for index, vertex in enumerate(code.tolist()):
        if vertex in position:
            start = position[vertex]
            parts.append(ring[path[start:]])
            for dropped in path[start:]:
                del position[int(code[dropped])]
            del path[start:]
        position[vertex] = len(path)
        path.append(index)
    parts.append(ring[path])
    return parts


def _rotated(ring: Ints) -> Ints:
    start = int((ring[:, 1] * (int(ring[:, 0].max()) + 1) + ring[:, 0]).argmin())
    return ring if start == 0 else np.concatenate([ring[start:], ring[:start]])
