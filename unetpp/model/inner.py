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

from unetpp.model.grid import UNetPlusPlus
from unetpp.model.margins import NO_MARGINS, Margins, at_level, context, halved
from unetpp.model.order import Name
from unetpp.model.unet import UNet


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
            have = at_level(config, self.margins, i, decoder=j > 0)
            if not step.sources:
                sources = [image]
            elif step.pooled:
                sources = [F.max_pool2d(maps.whole(name), 2) for name in step.sources]
            else:
                sources = [maps.part(name, have) for name in step.sources]
            low = None if step.low is None else maps.part(step.low, halved(have))
            maps.add(step.node, self.network.nodes[step.key](sources, low), have)
        found = [self._strip(maps, heads, number) for number in range(self.strips)]
        return tuple(torch.cat(strips, 2) if len(strips) > 1 else strips[0] for strips in zip(*found, strict=True))

    def _strip(self, maps: _Maps, heads: Sequence[int], number: int) -> list[Tensor]:
        """Return the logits of one strip."""
        config, strip = self.network.config, (number, self.strips)
        most, (top, left, bottom, right) = context(config, 0), at_level(config, self.margins, 0, decoder=True)
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
            low = None if step.low is None else maps.rows(step.low, strip, halved(around), level=1)
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
