"""The grid of nodes X^{i,j} of UNet++; knows one device and no files (Zhou et al. 2018 and 2020).

X^{i,0} = H(pool(X^{i-1,0})) and X^{i,j} = H(X^{i,0}, ..., X^{i,j-1}, up(X^{i+1,j-1})).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unetpp.errors import ArchitectureError, ShapeError
from unetpp.model import receptive_field
from unetpp.model.config import GridConfig
from unetpp.model.layers import Node, pad_to_multiple
from unetpp.model.order import Name, Step, grid_order
from unetpp_kernels import Map, Normalised, max_pool, pointwise_conv


class UNetPlusPlus(nn.Module):
    """UNet++ of any depth: logits for images of any size >= 1 px.

    >>> UNetPlusPlus(GridConfig(classes=2))(torch.zeros(1, 3, 97, 131)).shape
    torch.Size([1, 2, 97, 131])
    """

    def __init__(self, config: GridConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GridConfig()
        widths, last = config.filters, config.last
        self.nodes = nn.ModuleDict()
        for i in range(last + 1):
            before = config.bands if i == 0 else widths[i - 1]
            self.nodes[f"{i}_0"] = Node(config, before, 0, widths[i], stem=i == 0)
        for j in range(1, last + 1):
            for i in range(last + 1 - j):
                self.nodes[f"{i}_{j}"] = Node(config, widths[i] * j, widths[i + 1], widths[i])
        kept = range(1, last + 1) if config.deep_supervision else (last,)
        self.head_convs = nn.ModuleDict({str(j): nn.Conv2d(widths[0], config.classes, 1) for j in kept})

    @classmethod
    def paper(cls) -> UNetPlusPlus:
        """Build the network of the paper's Table 3: 1 band, 1 class, one head, 9,041,601 parameters."""
        return cls(
            GridConfig(bands=1, classes=1, conv="standard", norm="none", upsample="deconv", deep_supervision=False)
        )

    @property
    def multiple(self) -> int:
        return self.config.multiple

    @property
    def receptive_radius(self) -> int:
        """Pixels on each side that the output at one pixel can depend on."""
        return receptive_field.receptive_radius(self.config)

    @property
    def halo(self) -> int:
        """The receptive radius, rounded up to a multiple of 2^depth."""
        return receptive_field.halo(self.config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the deepest head's logits.

        Args:
            x: (N, bands, H, W) normalised floats, H and W >= 1.

        Returns:
            (N, classes, H, W).

        Raises:
            ShapeError: not four dimensions, or another number of bands.
        """
        return self._head(self._grid(x), self.config.last, x)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every head X^{0,1..L}, deepest last; shapes as `forward`."""
        nodes = self._grid(x)
        return tuple(self._head(nodes, int(j), x) for j in self.head_convs)

    def prune(self, level: int) -> UNetPlusPlus:
        """Return a smaller network whose output equals head `level` of this one, bit for bit.

        It keeps the nodes with i + j <= level and the parent's padding multiple, and has its own state dict.

        Raises:
            ArchitectureError: there is no such head.
        """
        if str(level) not in self.head_convs:
            raise ArchitectureError(f"no head at level {level}; this network has heads {', '.join(self.head_convs)}")
        pruned = UNetPlusPlus(dataclasses.replace(self.config, level=level))
        kept = pruned.state_dict().keys()
        pruned.load_state_dict({name: value for name, value in self.state_dict().items() if name in kept})
        reference = next(self.parameters())
        return pruned.to(device=reference.device, dtype=reference.dtype).train(self.training)

    @property
    def order(self) -> tuple[Step, ...]:
        """The nodes in the order of their computation, with what each reads."""
        return grid_order(self.config)

    def _grid(self, image: Tensor) -> dict[Name, Map]:
        """Compute every node; returns x with x[i, j] of shape (N, filters[i], H/2^i, W/2^i)."""
        check_input(image, self.config.bands)
        return evaluate(self.nodes, self.order, pad_to_multiple(image, self.multiple))

    def _head(self, x: dict[Name, Map], j: int, image: Tensor) -> Tensor:
        return head(self.head_convs[str(j)], x[0, j])[..., : image.shape[-2], : image.shape[-1]]


def head(conv: nn.Module, source: Map) -> Tensor:
    """Return the logits of a 1x1 convolution, over a map that is stored or not."""
    if isinstance(source, Normalised):
        assert isinstance(conv, nn.Conv2d)
        return pointwise_conv([source], conv.weight, conv.bias)
    logits: Tensor = conv(source)
    return logits


def evaluate(nodes: nn.ModuleDict, order: Sequence[Step], image: Tensor) -> dict[Name, Map]:
    """Compute nodes in order from a padded image (N, bands, H, W); returns all of them by name."""
    x: dict[Name, Map] = {}
    for step in order:
        sources: list[Map] = [x[name] for name in step.sources] or [image]
        if step.pooled:
            sources = [max_pool(source) for source in sources]
        x[step.node] = nodes[step.key](sources, None if step.low is None else x[step.low])
    return x


def check_input(x: Tensor, bands: int) -> None:
    """Raise `ShapeError` unless x is (N, bands, H >= 1, W >= 1)."""
    # Shapes are fixed while a graph is traced, and comparing them there would only warn.
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return
    if x.ndim != 4 or x.shape[1] != bands or min(x.shape[-2:]) < 1:
        raise ShapeError(f"input shape {tuple(x.shape)}: expected (N, {bands}, H, W) with H, W >= 1")
