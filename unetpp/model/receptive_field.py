"""How far a network sees, computed from its switches; runs no network.

The interval of input pixels that one output pixel depends on is pushed backwards through the grid, node by node.
Position matters (pooling and upsampling sit on a 2^depth lattice), so every phase of the lattice is tried.
"""

from __future__ import annotations

from unetpp.model.config import GridConfig

Interval = tuple[int, int]
"""First and last pixel (inclusive) along one axis, in pixels of one level."""

CONV_REACH = 2
"""A node holds two 3x3 convolutions: one pixel each on either side."""


def receptive_radius(config: GridConfig) -> int:
    """Return the largest distance in level-0 pixels between an output pixel and an input pixel it depends on."""
    radius = 0
    for phase in range(config.multiple):
        first, last = _input_interval(config, phase)
        radius = max(radius, phase - first, last - phase)
    return radius


def halo(config: GridConfig) -> int:
    """Return the receptive radius rounded up to a multiple of 2^depth, so that tiles stay on the lattice."""
    multiple = config.multiple
    return -(-receptive_radius(config) // multiple) * multiple


def _input_interval(config: GridConfig, pixel: int) -> Interval:
    """Return the input interval of output pixel `pixel`, walking the nodes from the head back to X^{0,0}."""
    last = config.last
    need: dict[tuple[int, int], Interval] = {(0, last): (pixel, pixel)}
    for j in range(last, 0, -1):
        for i in range(last - j + 1):
            if (i, j) not in need:
                continue
            first, end = need[i, j][0] - CONV_REACH, need[i, j][1] + CONV_REACH
            for k in range(j):
                _include(need, (i, k), (first, end))
            _include(need, (i + 1, j - 1), _below(config, first, end))
    for i in range(last, 0, -1):
        first, end = need[i, 0][0] - CONV_REACH, need[i, 0][1] + CONV_REACH
        _include(need, (i - 1, 0), (2 * first, 2 * end + 1))
    first, end = need[0, 0]
    return first - CONV_REACH, end + CONV_REACH


def _below(config: GridConfig, first: int, end: int) -> Interval:
    """Return the low-resolution interval that x2 upsampling reads for [first, end].

    Bilinear with half-pixel centres reads pixel q at q/2 - 1/4: floor((q-1)/2) and floor((q+1)/2).
    """
    if config.upsample == "bilinear":
        return (first - 1) // 2, (end + 1) // 2
    return first // 2, end // 2


def _include(need: dict[tuple[int, int], Interval], node: tuple[int, int], interval: Interval) -> None:
    old = need.get(node, interval)
    need[node] = (min(old[0], interval[0]), max(old[1], interval[1]))
