"""Evaluates a grid where only the middle of its output is wanted: no node is computed further out than that needs.

A tile's halo is what the deepest level needs: 128 px for four levels. Level 0's own decoder nodes need 10 of them, yet
they are most of the work. So encoder nodes see the whole tile, and each level's decoder nodes a part of it, cut once
out of the encoder node and out of what comes from below. Cutting makes the outermost pixels wrong, as convolutions and
the upsampling then meet zeros and repeated pixels there; `context` is wide enough that the wanted part meets none of
them. The result is that of the whole tile, up to the rounding of a library that sums differently for another shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from unetpp.model.config import GridConfig
from unetpp.model.grid import UNetPlusPlus
from unetpp.model.order import Name, grid_order
from unetpp.model.unet import UNet

Margins = tuple[int, int, int, int]
"""Pixels at top, left, bottom and right that are only context: 0 or multiples of 2^depth."""
NO_MARGINS: Margins = (0, 0, 0, 0)
_REACH = 2
"""A node holds two 3x3 convolutions."""


class Inner(nn.Module):
    """A network without its margins: (N, bands, H, W) -> logits (N, classes, H - top - bottom, W - left - right).

    Args:
        network: shared, not copied.
        margins: of every input, whose sides are multiples of 2^depth. A side is 0 where the image ends.
    """

    def __init__(self, network: UNetPlusPlus | UNet, margins: Margins) -> None:
        super().__init__()
        self.network = network
        self.margins = margins

    def forward(self, image: Tensor) -> Tensor:
        return self._logits(image, [self.network.config.last])[0]

    def heads(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every head, deepest last; shapes as `forward`."""
        return self._logits(image, [int(j) for j in self.network.head_convs])

    def _logits(self, image: Tensor, heads: Sequence[int]) -> tuple[Tensor, ...]:
        config = self.network.config
        x: dict[tuple[Name, Margins], Tensor] = {}  # nodes by name and the context they have, in their own pixels
        whole: dict[Name, Margins] = {}

        def part(name: Name, wanted: Margins) -> Tensor:
            if (name, wanted) not in x:
                have = whole[name]
                x[name, wanted] = _cut(x[name, have], have, wanted)
            return x[name, wanted]

        for step in self.network.order:
            i, j = step.node
            have = _at_level(config, self.margins, i, decoder=j > 0)
            if not step.sources:
                sources = [image]
            elif step.pooled:
                sources = [F.max_pool2d(part(name, whole[name]), 2) for name in step.sources]
            else:
                sources = [part(name, have) for name in step.sources]
            low = None if step.low is None else part(step.low, _halved(have))
            x[step.node, have] = self.network.nodes[step.key](sources, low)
            whole[step.node] = have
        # A shallower head has seen fewer nodes of its level: less of its edge is wrong.
        return tuple(self.network.head_convs[str(j)](part((0, j), NO_MARGINS)) for j in heads)


def context(config: GridConfig, level: int) -> int:
    """Return the pixels of `level` around the wanted part over which its decoder nodes are computed; even.

    Let r(i) be the wrong pixels at the edge of level i's last node. Upsampling a sound edge spoils one pixel, each node
    two more, and a level has last - i nodes in a row: r(i) = 2 (last - i) + 1. Level 0 needs r(0), and level i half of
    what the level above computes plus r(i), so that only sound pixels go up.
    """
    needed = 0
    for i in range(level + 1):
        needed = needed // 2 + _REACH * (config.last - i) + 1
        needed += needed % 2
    return needed


def useful_share(config: GridConfig, height: int, width: int, margins: Margins) -> float:
    """Return the part of all multiply-adds that serve the wanted pixels of a tile: work without any halo / work.

    Args:
        height, width: of the tile, margins included.
    """
    top, left, bottom, right = margins
    done = wanted = 0.0
    for step in grid_order(config):
        i, j = step.node
        rows, columns = ((n - a - b) >> i for n, a, b in ((height, top, bottom), (width, left, right)))
        have = _at_level(config, margins, i, decoder=j > 0)
        each = _multiply_adds(config, i, j)
        wanted += each * rows * columns
        done += each * (rows + have[0] + have[2]) * (columns + have[1] + have[3])
    return wanted / done


def multiply_adds(config: GridConfig) -> float:
    """Return the multiply-adds of the whole grid for one input pixel."""
    return sum(_multiply_adds(config, i, j) / float(4**i) for i, j in (step.node for step in grid_order(config)))


def _multiply_adds(config: GridConfig, i: int, j: int) -> float:
    """Return the multiply-adds of node X^{i,j} for one of its pixels; the half-resolution input counts a quarter."""
    out = config.filters[i]
    skips = out * j if j else config.bands if i == 0 else config.filters[i - 1]
    low = config.filters[i + 1] if j else 0
    if config.conv == "standard" or (i, j) == (0, 0):
        first = 9.0 * (skips + low) * out
    elif config.conv == "pw_dw":
        first = (skips + low / 4) * out + 9 * out
    else:
        first = 9.0 * (skips + low) + (skips + low) * out
    second = 9.0 * out * out if config.conv == "standard" else 9.0 * out + out * out
    return first + second


def _at_level(config: GridConfig, margins: Margins, level: int, *, decoder: bool) -> Margins:
    """Return the context of a level's nodes in its pixels: all there is, or what decoder nodes need of it."""
    top, left, bottom, right = (side >> level for side in margins)
    if not decoder:
        return top, left, bottom, right
    most = context(config, level)
    return min(top, most), min(left, most), min(bottom, most), min(right, most)


def _halved(margins: Margins) -> Margins:
    top, left, bottom, right = margins
    return top // 2, left // 2, bottom // 2, right // 2


def _cut(x: Tensor, have: Margins, wanted: Margins) -> Tensor:
    """Cut (N, C, h, w) with the context `have` down to the context `wanted`."""
    top, left, bottom, right = (a - b for a, b in zip(have, wanted, strict=True))
    # Ends counted from the end stay constants where the size is open.
    return x[..., top : -bottom or None, left : -right or None]
