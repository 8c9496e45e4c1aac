"""Evaluates a grid where only the middle of its output is wanted: no node is computed further out than that needs.

A tile's halo is what the deepest level needs: 128 px for four levels. Level 0's own decoder nodes need 10 of them, yet
they are most of the work. So encoder nodes see the whole tile, and each level's decoder nodes a part of it, cut once
out of the encoder node and out of what comes from below. Cutting makes the outermost pixels wrong, as convolutions and
the upsampling then meet zeros and repeated pixels there; `context` is wide enough that the wanted part meets none of
them. The result is that of the whole tile, up to the rounding of a library that sums differently for another shape.
Strips of rows are cut for the same reason with the same context.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
_STRIP = 256
"""Least rows of a strip: half of it was no faster, and has twice the rows that two strips both compute."""


class Inner(nn.Module):
    """A network without its margins: (N, bands, H, W) -> logits (N, classes, H - top - bottom, W - left - right).

    Args:
        network: shared, not copied.
        margins: of every input, whose sides are multiples of 2^depth. A side is 0 where the image ends.
        strips: level 0's decoder nodes, which no other level reads, are computed in so many strips of rows, one after
            the other: what they pass to each other is then still in the cache. Every strip must have more rows than
            `context` of level 0.
    """

    def __init__(self, network: UNetPlusPlus | UNet, margins: Margins, strips: int = 1) -> None:
        super().__init__()
        self.network = network
        self.margins = margins
        self.strips = strips

    def forward(self, image: Tensor) -> Tensor:
        return self._logits(image, [self.network.config.last])[0]

    def heads(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every head, deepest last; shapes as `forward`."""
        return self._logits(image, [int(j) for j in self.network.head_convs])

    def _logits(self, image: Tensor, heads: Sequence[int]) -> tuple[Tensor, ...]:
        config = self.network.config
        maps = _Maps()
        for step in self.network.order:
            i, j = step.node
            if i == 0 and j > 0:
                continue
            have = _at_level(config, self.margins, i, decoder=j > 0)
            if not step.sources:
                sources = [image]
            elif step.pooled:
                sources = [F.max_pool2d(maps.whole(name), 2) for name in step.sources]
            else:
                sources = [maps.part(name, have) for name in step.sources]
            low = None if step.low is None else maps.part(step.low, _halved(have))
            maps.add(step.node, self.network.nodes[step.key](sources, low), have)
        found = [self._strip(maps, heads, number) for number in range(self.strips)]
        return tuple(torch.cat(strips, 2) if len(strips) > 1 else strips[0] for strips in zip(*found, strict=True))

    def _strip(self, maps: _Maps, heads: Sequence[int], number: int) -> list[Tensor]:
        """Return the logits of one strip."""
        config, strip = self.network.config, (number, self.strips)
        most, (top, left, bottom, right) = context(config, 0), _at_level(config, self.margins, 0, decoder=True)
        around = (top if number == 0 else most, left, bottom if number == self.strips - 1 else most, right)
        finest = _Maps()
        for step in self.network.order:
            i, j = step.node
            if i or not j:
                continue
            for name in step.sources:
                if name not in finest:
                    finest.add(name, maps.rows(name, strip, around, level=0), around)
            sources = [finest.whole(name) for name in step.sources]
            low = None if step.low is None else maps.rows(step.low, strip, _halved(around), level=1)
            finest.add(step.node, self.network.nodes[step.key](sources, low), around)
        # A shallower head has seen fewer nodes of its level: less of its edge is wrong.
        return [self.network.head_convs[str(j)](finest.part((0, j), NO_MARGINS)) for j in heads]


class _Maps:
    """Nodes (N, C, h, w) with the context that they have, in their own pixels, and what was cut out of them, once."""

    def __init__(self) -> None:
        self._whole: dict[Name, tuple[Tensor, Margins]] = {}
        self._parts: dict[tuple[Name, Margins], Tensor] = {}

    def __contains__(self, name: Name) -> bool:
        return name in self._whole

    def add(self, name: Name, x: Tensor, have: Margins) -> None:
        self._whole[name] = x, have

    def whole(self, name: Name) -> Tensor:
        return self._whole[name][0]

    def part(self, name: Name, wanted: Margins) -> Tensor:
        """Return a node with less context."""
        if (name, wanted) not in self._parts:
            x, have = self._whole[name]
            top, left, bottom, right = (a - b for a, b in zip(have, wanted, strict=True))
            # Ends counted from the end stay constants where the size is open.
            self._parts[name, wanted] = x[..., top : -bottom or None, left : -right or None]
        return self._parts[name, wanted]

    def rows(self, name: Name, strip: tuple[int, int], wanted: Margins, *, level: int) -> Tensor:
        """Return one of several strips of a node of level 0 or 1, with some context."""
        number, count = strip
        if count == 1:
            return self.part(name, wanted)
        x, have = self._whole[name]
        # A strip ends between two pairs of rows of level 0, which are one row of level 1.
        per_pair = 2 >> level
        pairs = (x.shape[-2] - have[0] - have[2]) // per_pair
        first, end = (have[0] + pairs * n // count * per_pair for n in (number, number + 1))
        left, right = have[1] - wanted[1], have[3] - wanted[3]
        return x[..., first - wanted[0] : end + wanted[2], left : -right or None]


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


def strip_count(rows: int) -> int:
    """Return in how many strips the wanted rows of a tile are best computed: a power of two, so that few differ."""
    return 1 << max(0, (rows // _STRIP).bit_length() - 1)


def useful_share(config: GridConfig, height: int, width: int, margins: Margins) -> float:
    """Return the part of all multiply-adds that serve the wanted pixels of a tile: work without any halo / work.

    Args:
        height, width: of the tile, margins included. It is computed in `strip_count` strips.
    """
    top, left, bottom, right = margins
    twice = 2 * context(config, 0) * (strip_count(height - top - bottom) - 1)
    done = wanted = 0.0
    for step in grid_order(config):
        i, j = step.node
        rows, columns = ((n - a - b) >> i for n, a, b in ((height, top, bottom), (width, left, right)))
        have = _at_level(config, margins, i, decoder=j > 0)
        each = _multiply_adds(config, i, j)
        wanted += each * rows * columns
        again = twice if i == 0 and j > 0 else 0
        done += each * (rows + have[0] + have[2] + again) * (columns + have[1] + have[3])
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
