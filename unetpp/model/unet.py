"""The U-Net baseline with UNet++'s switches, so that comparisons differ in the grid alone."""

from __future__ import annotations

from torch import Tensor, nn

from unetpp.errors import ArchitectureError
from unetpp.model import receptive_field
from unetpp.model.config import GridConfig
from unetpp.model.grid import check_input, evaluate, head
from unetpp.model.layers import Node, pad_to_multiple
from unetpp.model.order import Step, unet_order


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with same padding; `deep_supervision` does not apply.

    Its decoder node at level i is named X^{i,depth-i}: the same place in the grid, with the skips between left out.

    Raises:
        ArchitectureError: a `level` that is not the depth.
    """

    def __init__(self, config: GridConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GridConfig()
        widths, depth = config.filters, config.depth
        if config.last != depth:
            # Its halo would be a pruned grid's, and tiles would not be exact.
            raise ArchitectureError(f"level={config.level}: a U-Net has one head, at level {depth}; leave level out")
        self.nodes = nn.ModuleDict()
        for i in range(depth + 1):
            before = config.bands if i == 0 else widths[i - 1]
            self.nodes[f"{i}_0"] = Node(config, before, 0, widths[i], stem=i == 0)
        for i in reversed(range(depth)):
            self.nodes[f"{i}_{depth - i}"] = Node(config, widths[i], widths[i + 1], widths[i])
        self.head_convs = nn.ModuleDict({str(depth): nn.Conv2d(widths[0], config.classes, 1)})

    @classmethod
    def paper(cls) -> UNet:
        """Build the U-Net of the UNet++ paper's Table 3: 7,759,521 parameters."""
        return cls(
            GridConfig(bands=1, classes=1, conv="standard", norm="none", upsample="deconv", deep_supervision=False)
        )

    @property
    def multiple(self) -> int:
        return self.config.multiple

    @property
    def receptive_radius(self) -> int:
        return receptive_field.receptive_radius(self.config)

    @property
    def halo(self) -> int:
        return receptive_field.halo(self.config)

    @property
    def order(self) -> tuple[Step, ...]:
        """The nodes in the order of their computation, with what each reads."""
        return unet_order(self.config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for x (N, bands, H, W); `ShapeError` for other shapes."""
        check_input(x, self.config.bands)
        nodes = evaluate(self.nodes, self.order, pad_to_multiple(x, self.multiple))
        return head(self.head_convs[str(self.config.depth)], nodes[0, self.config.depth])[
            ..., : x.shape[-2], : x.shape[-1]
        ]

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the one head there is, so that a training loop treats both networks alike."""
        return (self.forward(x),)
