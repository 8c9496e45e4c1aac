"""Means of the class probabilities over objects; knows outlines and the stored map, no file format.

The mean is over the object's pixels and of its own class, from the stored values (steps of 1/254), so that it does not
depend on shards.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from unetpp.finalize.instances import filled
from unetpp.finalize.outlines import PixelObject
from unetpp.geometry import Box
from unetpp.levels import chunk_side
from unetpp.maps import STEPS, MapStore

_BLOCKS = 256
"""Decoded chunks that are kept: neighbours in the order of objects share them."""


class ObjectProbability:
    """Reads one image's probabilities object by object."""

    def __init__(self, store: MapStore) -> None:
        self._store = store
        self._side = chunk_side(store.plan)
        self._planes = {info.value: plane for plane, info in enumerate(store.classes)}
        self._blocks: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()

    def mean(self, found: PixelObject) -> float:
        """Return the mean in 0..1. Raises `StoreError` where the map is damaged."""
        total = pixels = 0
        for box in self._chunks(_bounds(found)):
            part = box.intersect(_bounds(found))
            inside = filled(found.rings, part)
            values = self._read(self._planes[found.label], box)[part.slices(box)]
            total += int(values[inside].sum(dtype=np.int64))
            pixels += int(inside.sum())
        return total / pixels / STEPS

    def _chunks(self, box: Box) -> list[Box]:
        side, plan = self._side, self._store.plan
        return [
            Box(y, x, y + side, x + side).clip(plan.height, plan.width)
            for y in range(box.y0 // side * side, box.y1, side)
            for x in range(box.x0 // side * side, box.x1, side)
        ]

    def _read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        place = (plane, box.y0, box.x0)
        if place not in self._blocks:
            self._blocks[place] = self._store.read(box, plane=plane)
            while len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(place)
        return self._blocks[place]


def _bounds(found: PixelObject) -> Box:
    (x0, y0), (x1, y1) = found.rings[0].min(axis=0).tolist(), found.rings[0].max(axis=0).tolist()
    return Box(y0, x0, y1, x1)
