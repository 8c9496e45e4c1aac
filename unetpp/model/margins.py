"""How much context each level needs where only the middle of a tile is wanted, and what that costs; runs no network."""

from __future__ import annotations

from unetpp.model.config import GridConfig
from unetpp.model.order import Kind, Step, order_of

Margins = tuple[int, int, int, int]
"""Pixels at top, left, bottom and right that are only context: 0 or multiples of 2^depth."""
NO_MARGINS: Margins = (0, 0, 0, 0)
_REACH = 2
"""A node holds two 3x3 convolutions."""
_STRIP = 256
"""Least rows of a strip: half of it was no faster, and has twice the rows that two strips both compute."""


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


def useful_share(config: GridConfig, height: int, width: int, margins: Margins, kind: Kind = "unetplusplus") -> float:
    """Return the part of all multiply-adds that serve the wanted pixels of a tile: work without any halo / work.

    Args:
        height, width: of the tile, margins included. It is computed in `strip_count` strips.
    """
    top, left, bottom, right = margins
    twice = 2 * context(config, 0) * (strip_count(height - top - bottom) - 1)
    done = wanted = 0.0
    for step in order_of(kind, config):
        i, j = step.node
        rows, columns = ((n - a - b) >> i for n, a, b in ((height, top, bottom), (width, left, right)))
        have = at_level(config, margins, i, decoder=j > 0)
        each = node_multiply_adds(config, step)
        wanted += each * rows * columns
        again = twice if i == 0 and j > 0 else 0
        done += each * (rows + have[0] + have[2] + again) * (columns + have[1] + have[3])
    return wanted / done


def multiply_adds(config: GridConfig, kind: Kind = "unetplusplus") -> float:
    """Return the multiply-adds of the whole network for one input pixel."""
    return sum(node_multiply_adds(config, step) / float(4 ** step.node[0]) for step in order_of(kind, config))


def node_multiply_adds(config: GridConfig, step: Step) -> float:
    """Return the multiply-adds of a node for one of its pixels; the half-resolution input counts a quarter."""
    i, j = step.node
    out = config.filters[i]
    skips = out * len(step.sources) if j else config.bands if i == 0 else config.filters[i - 1]
    low = config.filters[i + 1] if j else 0
    if config.conv == "standard" or (i, j) == (0, 0):
        first = 9.0 * (skips + low) * out
    elif config.conv == "pw_dw":
        first = (skips + low / 4) * out + 9 * out
    else:
        first = 9.0 * (skips + low) + (skips + low) * out
    second = 9.0 * out * out if config.conv == "standard" else 9.0 * out + out * out
    return first + second


def at_level(config: GridConfig, margins: Margins, level: int, *, decoder: bool) -> Margins:
    """Return the context of a level's nodes in its pixels: all there is, or what decoder nodes need of it."""
    top, left, bottom, right = (side >> level for side in margins)
    if not decoder:
        return top, left, bottom, right
    most = context(config, level)
    return min(top, most), min(left, most), min(bottom, most), min(right, most)


def halved(margins: Margins) -> Margins:
    """Return the same context in pixels of the level below."""
    top, left, bottom, right = margins
    return top // 2, left // 2, bottom // 2, right // 2
