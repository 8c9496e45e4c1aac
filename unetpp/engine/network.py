"""The function that every engine computes, in plain torch: raw pixels in, logits or class values out."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from unetpp.engine.base import Output
from unetpp.engine.maps import decide
from unetpp.model import UNet, UNetPlusPlus
from unetpp.model.fold import fold
from unetpp.model.inner import Inner
from unetpp.model.margins import Margins
from unetpp.package import ModelSpec


class TileNetwork(nn.Module):
    """Normalise, run the folded network, and decide: (H, W, C) raw -> (K, H, W) float32, or (H, W) uint8 labels.

    With the output "heads" all heads' logits (L, K, H, W), deepest last.

    The layers run in the network's dtype; normalisation and the decision in float32.
    """

    def __init__(self, network: UNetPlusPlus | UNet, spec: ModelSpec, output: Output) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.output = output
        self.values = tuple(c.value for c in spec.classes)
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32))

    def without(self, margins: Margins, strips: int = 1) -> TileNetwork:
        """Return the same function without margins of its result, over the same weights; see `Inner`."""
        inner = cast("UNetPlusPlus", Inner(self.network, margins, strips))  # as far as `forward` goes
        return TileNetwork(inner, self.spec, self.output).eval()

    def forward(self, tile: Tensor) -> Tensor:
        x = (tile.to(torch.float32) - self.get_buffer("mean")) / self.get_buffer("std")
        x = x.permute(2, 0, 1)[None].to(next(self.network.parameters()).dtype)  # a view: channels_last in memory
        if self.output == "heads":
            return torch.cat(self.network.heads(x)).to(torch.float32)
        logits = self.network(x)[0].to(torch.float32)
        return logits if self.output == "logits" else decide(logits, self.values)


def tile_networks(model: UNetPlusPlus | UNet, spec: ModelSpec) -> dict[Output, TileNetwork]:
    """Return all functions over one folded copy of the model, without gradients."""
    network = fold(model).requires_grad_(False)  # type: ignore[type-var]  # either network, never a mixture
    outputs: tuple[Output, ...] = ("logits", "labels", "heads")
    return {output: TileNetwork(network, spec, output).eval() for output in outputs}
