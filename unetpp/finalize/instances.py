"""Split joined objects into instances, touching ones apart; knows outlines and `unetpp.objects`, no file format.

An instance is defined by the whole object that it is a part of, so that shards cannot change it: every 4-connected
object of a class is split as a whole by the watershed of `unetpp.objects`, alone, with all that is not part of it as
its background and the image's edge as none. Of what the watershed returns, 4-connected parts of at least `MIN_AREA`
pixels are instances (a pixel that hangs on by a corner is no polygon with it), in the order of their first pixels.

An object whose bounding box has more than SIDE x SIDE pixels is cut along the lattice lines of the output grid that are
multiples of SIDE, and each cell's part is split alone with the cut as no background: what lies on a cut comes in two.
Memory holds one canvas of small objects or one cell, and the outline of the object: never the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetpp.finalize.outlines import Batch, Bools, Ints, PixelObject
from unetpp.finalize.trace import trace_block
from unetpp.geometry import Box
from unetpp.objects import split_objects

MIN_AREA = 16
SIDE = 2048
"""Side in pixels of the largest square that is split as a whole."""
_MARGIN = 6
"""Background kept round an object: more than the radius of the Gaussian of `split_objects` (4 px for its default)."""
_CANVAS = 1024
"""Side of the canvas on which small objects are split together: one call for thousands of them."""


def iter_instances(objects: Iterable[PixelObject], height: int, width: int) -> Iterator[PixelObject]:
    """Yield the instances of objects of an image of this size, object by object in their order."""
    canvas = _Canvas(height, width)
    for found in objects:
        box = _bounds(found)
        if not canvas.takes(box):
            yield from canvas.emptied()
        if canvas.takes(box):
            canvas.put(found, box)
        elif box.height * box.width <= SIDE * SIDE:
            yield from _split(found, box, box.expand(_MARGIN).clip(height, width))
        else:
            for cell in _cells(box):
                yield from _split(found, cell, cell)
    yield from canvas.emptied()


def filled(rings: Iterable[Ints], box: Box) -> Bools:
    """Return (h, w) which pixels of `box` lie inside an object's rings, by the winding number of its vertical edges."""
    edges = np.zeros((box.height + 1, box.width + 1), np.int8)
    for ring in rings:
        following = np.roll(ring, -1, axis=0)
        upright = ring[:, 0] == following[:, 0]
        x = ring[upright, 0] - box.x0
        # Downward edges end a region (it lies on their right hand, to the west), upward ones begin one.
        sign = np.where(following[upright, 1] < ring[upright, 1], 1, -1).astype(np.int8)
        low = np.minimum(ring[upright, 1], following[upright, 1]) - box.y0
        high = np.maximum(ring[upright, 1], following[upright, 1]) - box.y0
        met = (x < box.width) & (high > 0) & (low < box.height)
        column = np.maximum(x[met], 0)
        np.add.at(edges, (np.maximum(low[met], 0), column), sign[met])
        np.add.at(edges, (np.minimum(high[met], box.height), column), -sign[met])
    # Sums may pass the range of int8 on the way, but come round to 0 or 1 in the end.
    winding = np.cumsum(np.cumsum(edges, axis=0, dtype=np.int8), axis=1, dtype=np.int8)
    return np.asarray(winding[:-1, :-1] != 0)


@dataclass(frozen=True, slots=True)
class _Placed:
    found: PixelObject
    box: Box
    y: int
    x: int


class _Canvas:
    """Small objects side by side, apart enough not to see each other; none touches the image's edge."""

    def __init__(self, height: int, width: int) -> None:
        self._inside = Box(1, 1, height - 1, width - 1)
        self._placed: list[_Placed] = []
        self._mask = np.zeros((_CANVAS, _CANVAS), bool)
        self._y = self._x = self._shelf = _MARGIN

    def takes(self, box: Box) -> bool:
        """Say whether there is room for the box; the edge of the image is another thing than background."""
        inside = self._inside
        if box.y0 < inside.y0 or box.x0 < inside.x0 or box.y1 > inside.y1 or box.x1 > inside.x1:
            return False
        return self._place(box) is not None

    def put(self, found: PixelObject, box: Box) -> None:
        place = self._place(box)
        assert place is not None
        y, x = place
        self._mask[y : y + box.height, x : x + box.width] = filled(found.rings, box)
        self._shelf = max(self._shelf if y == self._y else y, y + box.height + _MARGIN)
        self._y, self._x = y, x + box.width + _MARGIN
        self._placed.append(_Placed(found, box, y, x))

    def emptied(self) -> Iterator[PixelObject]:
        """Yield the instances of all objects on the canvas and clear it."""
        if not self._placed:
            return
        yield from _traced(split_objects(self._mask[: self._shelf], min_area=MIN_AREA), self._placed)
        self._placed.clear()
        self._mask[:] = False
        self._y = self._x = self._shelf = _MARGIN

    def _place(self, box: Box) -> tuple[int, int] | None:
        if self._x + box.width + _MARGIN <= _CANVAS and self._y + box.height + _MARGIN <= _CANVAS:
            return self._y, self._x
        if box.width + 2 * _MARGIN <= _CANVAS and self._shelf + box.height + _MARGIN <= _CANVAS:
            return self._shelf, _MARGIN
        return None


def _split(found: PixelObject, box: Box, around: Box) -> Iterator[PixelObject]:
    """Yield the instances of the part of an object in `box`, which `around` holds with its background."""
    mask = np.zeros(around.shape, bool)
    mask[box.slices(around)] = filled(found.rings, box)
    if mask.any():
        yield from _traced(split_objects(mask, min_area=MIN_AREA), [_Placed(found, around, 0, 0)])


def _traced(numbers: npt.NDArray[np.int32], placed: Sequence[_Placed]) -> Iterator[PixelObject]:
    """Yield the 4-connected parts of equal numbers, large enough ones: object by object, each in raster order."""
    owner = np.full(numbers.shape, -1, np.int32)
    for index, one in enumerate(placed):
        owner[one.y : one.y + one.box.height, one.x : one.x + one.box.width] = index
    colours = _colours(numbers, owner)
    found: list[list[PixelObject]] = [[] for _ in placed]
    for begin in range(0, int(colours.max()), _COLOURS):
        shown = np.where((colours > begin) & (colours <= begin + _COLOURS), colours - begin, 0).astype(np.uint8)
        traced = trace_block(np.pad(shown, 1), _SHOWN)
        outlined = Batch(traced.whole.labels, traced.whole.first, traced.whole.pixels, traced.outlines)
        for part in outlined.objects():
            if part.pixels < MIN_AREA:
                continue
            y, x = part.first
            one = placed[owner[y, x]]
            dy, dx = one.box.y0 - one.y, one.box.x0 - one.x
            rings = tuple(ring + np.array([dx, dy]) for ring in part.rings)
            found[owner[y, x]].append(PixelObject(one.found.label, (y + dy, x + dx), part.pixels, rings))
    for parts in found:
        yield from sorted(parts, key=lambda part: part.first)


def _colours(numbers: npt.NDArray[np.int32], owner: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Number the instances of each object from 1, so that few colours tell neighbours apart."""
    of_number = np.zeros(int(numbers.max()) + 1, np.int64)
    of_number[numbers] = owner
    of_number[0] = -1
    order = np.argsort(of_number, kind="stable")
    begins = np.searchsorted(of_number[order], of_number[order])
    colour = np.zeros(len(of_number), np.int32)
    colour[order] = np.arange(len(order)) - begins + 1
    colour[0] = 0
    return colour[numbers]


_COLOURS = 254
"""Classes that one tracing tells apart: 0 is none, 255 no data."""
_SHOWN = (np.arange(256) > 0) & (np.arange(256) < 255)


def _bounds(found: PixelObject) -> Box:
    (x0, y0), (x1, y1) = found.rings[0].min(axis=0).tolist(), found.rings[0].max(axis=0).tolist()
    return Box(y0, x0, y1, x1)


def _cells(box: Box) -> Iterator[Box]:
    for y in range(box.y0 // SIDE * SIDE, box.y1, SIDE):
        for x in range(box.x0 // SIDE * SIDE, box.x1, SIDE):
            yield Box(y, x, y + SIDE, x + SIDE).intersect(box)
