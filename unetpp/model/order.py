"""In which order nodes are computed and what each one reads; knows names X^{i,j}, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unetpp.model.config import GridConfig

Name = tuple[int, int]
"""(i, j) of node X^{i,j}."""
Kind = Literal["unetplusplus", "unet"]


@dataclass(frozen=True, slots=True)
class Step:
    """One node and its inputs.

    Attributes:
        node: the node's name.
        sources: full-resolution inputs; none for X^{0,0}, which reads the image.
        low: the half-resolution input, upsampled; None for encoder nodes.
        pooled: the one source has twice the resolution and is read through 2x2 max pooling.
    """

    node: Name
    sources: tuple[Name, ...] = ()
    low: Name | None = None
    pooled: bool = False

    @property
    def key(self) -> str:
        """Name of the node's module."""
        return f"{self.node[0]}_{self.node[1]}"


def order_of(kind: Kind, config: GridConfig) -> tuple[Step, ...]:
    """Return the nodes of a network of this kind; see `grid_order` and `unet_order`."""
    return unet_order(config) if kind == "unet" else grid_order(config)


def grid_order(config: GridConfig) -> tuple[Step, ...]:
    """Return UNet++'s nodes, diagonal by diagonal: X^{i,j} reads X^{i,0..j-1} and X^{i+1,j-1}."""
    steps = []
    for d in range(config.last + 1):
        steps.append(_encoder(d))
        for j in range(1, d + 1):
            i = d - j
            steps.append(Step((i, j), tuple((i, k) for k in range(j)), (i + 1, j - 1)))
    return tuple(steps)


def unet_order(config: GridConfig) -> tuple[Step, ...]:
    """Return the U-Net's nodes: down the encoder, then up; the decoder node at level i is X^{i,depth-i}."""
    depth = config.depth
    up = [Step((i, depth - i), ((i, 0),), (i + 1, depth - i - 1)) for i in reversed(range(depth))]
    return (*(_encoder(i) for i in range(depth + 1)), *up)


def _encoder(i: int) -> Step:
    return Step((0, 0)) if i == 0 else Step((i, 0), ((i - 1, 0),), pooled=True)
