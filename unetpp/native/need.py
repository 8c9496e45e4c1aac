"""Which part of every node a part of the result needs; knows the grid's order, no tensors.

Tiled inference computes a halo. Here no node is computed further out than the result needs of it, and what a node
reads is there: no edge but the image's own is ever met.
"""

from __future__ import annotations

from typing import NamedTuple

from unetpp.model.config import GridConfig
from unetpp.model.margins import Margins, node_multiply_adds
from unetpp.model.order import Kind, Name, Step, order_of

REACH = 2
"""Pixels that a node reads around what it computes: it holds two 3x3 convolutions."""


class Region(NamedTuple):
    """Rows y0 to y1 and columns x0 to x1 of a map, in its own pixels."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def area(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def regions(
    steps: tuple[Step, ...], shape: tuple[int, int], result: Region, heads: tuple[Name, ...]
) -> dict[Name, Region]:
    """Return what must be computed of every node so that `result` of the heads' nodes can be.

    Columns begin at even ones, and end there or at the image's edge: pairs of them are one column of the level below.

    Args:
        shape: (height, width) of the image, multiples of 2^depth.
        heads: nodes X^{0,j}.
    """
    found = {name: _whole_pairs(result, shape) for name in heads}
    for step in reversed(steps):
        if step.node not in found:
            continue
        y0, x0, y1, x1 = found[step.node]
        read = Region(y0 - REACH, x0 - REACH, y1 + REACH, x1 + REACH)
        for name in step.sources:
            wanted = Region(*(2 * edge for edge in read)) if step.pooled else read
            _join(found, name, wanted, shape)
        if step.low is not None:
            # One more pixel on every side, of those that are upsampled to what is read.
            y0, x0, y1, x1 = read
            low = Region((y0 - 1) >> 1, (x0 - 1) >> 1, (y1 >> 1) + 1, (x1 >> 1) + 1)
            _join(found, step.low, low, shape)
    return found


def _join(found: dict[Name, Region], name: Name, wanted: Region, shape: tuple[int, int]) -> None:
    height, width = (side >> name[0] for side in shape)
    y0, x0, y1, x1 = wanted
    part = _whole_pairs(Region(max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)), (height, width))
    if name in found:
        have = found[name]
        part = Region(min(have.y0, part.y0), min(have.x0, part.x0), max(have.y1, part.y1), max(have.x1, part.x1))
    found[name] = part


def _whole_pairs(part: Region, shape: tuple[int, int]) -> Region:
    y0, x0, y1, x1 = part
    return Region(y0, x0 & ~1, y1, min(x1 + (x1 & 1), shape[1]))


def useful_share(config: GridConfig, height: int, width: int, margins: Margins, kind: Kind = "unetplusplus") -> float:
    """Return the part of all multiply-adds that serve the wanted pixels of a tile: work without any halo / work.

    What is computed twice where blocks of columns meet is not counted.
    """
    top, left, bottom, right = margins
    steps = order_of(kind, config)
    result = Region(top, left, height - bottom, width - right)
    found = regions(steps, (height, width), result, ((0, config.last),))
    done = sum(node_multiply_adds(config, step) * found[step.node].area for step in steps)
    return sum(node_multiply_adds(config, step) * result.area / 4.0 ** step.node[0] for step in steps) / done
