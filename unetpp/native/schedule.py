"""When which rows of which node are computed, how many of them are kept, and in which blocks of columns; computes none.

The result comes in bands of rows. For each, every node is computed as far down as the band needs, which is further the
deeper a node lies. A map keeps only the rows that are still to be read, so that memory does not depend on the image's
height and what one node writes is in the cache when the next one reads it.
"""

from __future__ import annotations

from typing import Final

from unetpp.model.order import Name, Step, order_of
from unetpp.native import head
from unetpp.native.memory import rounded
from unetpp.native.need import REACH, Region, regions
from unetpp.native.node import Scratch, Shape, shape_of
from unetpp.native.rows import SLACK
from unetpp.native.target import Target
from unetpp.package import ModelSpec

_BAND: Final = 32
"""Rows of the result per band: twice as many were as fast, half as many slower."""


class Schedule:
    """How one network runs over images of one shape.

    Attributes:
        regions: what is computed of every node that is needed.
        steps: these nodes in their order.
        bottoms: where the bands of the result end.
        ends: per band, where the rows of every node end.
        rows: kept of every map.

    Args:
        shape: (height, width) of the image, multiples of the network's.
        result: the part of it that is wanted.
        heads: nodes X^{0,j} whose heads are wanted.
    """

    def __init__(
        self, spec: ModelSpec, target: Target, shape: tuple[int, int], result: Region, heads: tuple[Name, ...]
    ) -> None:
        # The machine code trusts these numbers: outside of an image is other memory.
        assert 0 <= result.y0 < result.y1 <= shape[0] and 0 <= result.x0 < result.x1 <= shape[1], (shape, result)
        assert not any(side % spec.architecture.multiple for side in shape), shape
        self._spec, self._target = spec, target
        self.shape, self.result, self.heads = shape, result, heads
        every = order_of(spec.network, spec.architecture)
        self.regions = regions(every, shape, result, heads)
        self.steps = [step for step in every if step.node in self.regions]
        self.bottoms = [*range(result.y0 + _BAND, result.y1, _BAND), result.y1]
        parts = [regions(every, shape, result._replace(y1=bottom), heads) for bottom in self.bottoms]
        self.ends = [{name: part.y1 for name, part in found.items()} for found in parts]
        self.rows = {name: self._rows_kept(name) for name in self.regions}

    @property
    def bytes(self) -> int:
        """Return what a run holds beside the image, its result and the weights."""
        maps = sum(rounded(self.map_bytes(name)) for name in self.regions)
        blocks = sum(
            len(self.columns(step.node)) * rounded(Scratch(self.shape_of(step.node), self._target.size).size)
            for step in self.steps
        )
        return maps + blocks + len(self.heads) * rounded(self.head_bytes())

    def shape_of(self, name: Name) -> Shape:
        return shape_of(self._spec, self._target, name)

    def pitch(self, name: Name) -> int:
        """Return the bytes of a row of a map."""
        region = self.regions[name]
        return (region.x1 - region.x0) * self.pixel(name)

    def pixel(self, name: Name) -> int:
        return self.shape_of(name).channels * self._target.size

    def map_bytes(self, name: Name) -> int:
        return self.rows[name] * self.pitch(name) + SLACK * self.pixel(name)

    def head_bytes(self) -> int:
        columns = self.result.x1 - self.result.x0
        return head.scratch_bytes(self._target, self._spec.architecture.classes, columns)

    def columns(self, name: Name) -> list[tuple[int, int]]:
        """Return the blocks of columns (left, right) that a node is computed in; they begin at even ones."""
        region, most = self.regions[name], self.shape_of(name).block
        width = region.x1 - region.x0
        each = -(-width // -(-width // most) // 2) * 2
        return [(left, min(left + each, region.x1)) for left in range(region.x0, region.x1, each)]

    def _rows_kept(self, name: Name) -> int:
        """Return the most rows of a map that are still to be read when a band of it was computed."""
        readers = [step for step in self.steps if name in (*step.sources, step.low)]
        most = 0
        for band, ends in enumerate(self.ends):
            unread = [self._next_read(step, name, band) for step in readers]
            if name in self.heads:
                unread.append(self.bottoms[band - 1] if band else self.result.y0)
            most = max(most, ends[name] - max(min(unread), self.regions[name].y0))
        return most

    def _next_read(self, step: Step, name: Name, band: int) -> int:
        """Return the first row of a map that a node has not read before a band."""
        # A node has read REACH rows below what it has computed, see `unetpp.native.node`.
        first = max(0, self.regions[step.node].y0 - REACH)
        row = first if band == 0 else self.ends[band - 1][step.node] + REACH
        if name == step.low:
            return (row >> 1) - (1 if band == 0 else 0)
        return 2 * row if step.pooled else row
