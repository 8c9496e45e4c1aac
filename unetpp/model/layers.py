"""Convolution units that read several sources at once; knows one node, not the grid it stands in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetpp.model.batch_norm import BatchNorm2d
from unetpp.model.config import Conv, GridConfig
from unetpp_kernels import (
    Map,
    Resampling,
    depthwise_pointwise,
    depthwise_pointwise_moments,
    implementation,
    pointwise_depthwise,
    pointwise_depthwise_moments,
    stored,
    upsample2x,
)


class ConvUnit(nn.Module):
    """One convolution over `cat(*sources, up(low))`, then norm and ReLU: (N, *, H, W) -> (N, outputs, H, W).

    Weights are stored as the convolution needs them: `standard` (O, C, 3, 3); separable orders a `pointwise`
    (O, C, 1, 1) and a `depthwise` (C or O, 1, 3, 3). Without norm there is a bias (O,).
    """

    def __init__(self, config: GridConfig, conv: Conv, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv
        self.upsample = config.upsample
        self.standard: nn.Parameter | None = None
        self.pointwise: nn.Parameter | None = None
        self.depthwise: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if conv == "standard":
            self.standard = _kaiming(outputs, inputs, 3, gain_fan=inputs * 9)
        else:
            # The gain that keeps the variance through both convolutions and the ReLU sits in the pointwise weights.
            self.pointwise = _kaiming(outputs, inputs, 1, gain_fan=inputs)
            self.depthwise = _kaiming(outputs if conv == "pw_dw" else inputs, 1, 3, gain_fan=18)
        if config.norm == "batch":
            self.norm: BatchNorm2d | None = BatchNorm2d(outputs)
        else:
            self.norm = None
            self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, sources: Sequence[Map], low: Map | None = None) -> Map:
        """Args: sources (N, C_k, H, W); low (N, C_l, H/2, W/2), upsampled without learned weights.

        Where kernels train, the result is not stored: units that read it make it anew.
        """
        if self.training and self.norm is not None and implementation([*sources, low, *self.parameters()]) == "triton":
            return self.norm.behind(*self._with_moments(sources, low))
        inputs, below = [stored(source) for source in sources], None if low is None else stored(low)
        x = self._convolved(inputs, below)
        return x if self.norm is None else F.relu(self.norm(x))

    def _convolved(self, sources: Sequence[Tensor], low: Tensor | None) -> Tensor:
        """Return the convolution, and the ReLU where no norm stands before it."""
        relu = self.norm is None
        if self.conv == "standard":
            x = self._full(sources, low)
            return F.relu(x) if relu else x
        assert self.pointwise is not None and self.depthwise is not None
        if self.conv == "dw_pw":
            weights = (self.depthwise, self.pointwise)
            return depthwise_pointwise(sources, low, *weights, self.bias, relu=relu, mode=self._mode)
        weights = (self.pointwise, self.depthwise)
        return pointwise_depthwise(sources, low, *weights, self.bias, relu=relu, mode=self._mode)

    def _with_moments(self, sources: Sequence[Map], low: Map | None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the convolution, and mean and variance of it where it gives them."""
        if self.conv == "standard":
            return self._full([stored(source) for source in sources], None if low is None else stored(low)), None
        assert self.pointwise is not None and self.depthwise is not None
        if self.conv == "pw_dw":
            found = pointwise_depthwise_moments(sources, low, self.pointwise, self.depthwise, mode=self._mode)
        else:
            found = depthwise_pointwise_moments(sources, low, self.depthwise, self.pointwise, mode=self._mode)
        return found[0], found[1:]

    def _full(self, sources: Sequence[Tensor], low: Tensor | None) -> Tensor:
        assert self.standard is not None
        inputs = list(sources) if low is None else [*sources, upsample2x(low, self._mode)]
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        return F.conv2d(x, self.standard, self.bias, padding=1)

    @property
    def _mode(self) -> Resampling:
        return "nearest" if self.upsample == "nearest" else "bilinear"


class Node(nn.Module):
    """H of the paper: two convolution units; the first reads every source of X^{i,j}.

    Args:
        config: the network's switches.
        sources: channels of all full-resolution sources together.
        low: channels of X^{i+1,j-1}, or 0 for an encoder node.
        outputs: channels of level i.
        stem: True for X^{0,0}, whose first convolution is always standard: with a handful of bands a separable one
            saves nothing and cannot mix them before filtering.
    """

    def __init__(self, config: GridConfig, sources: int, low: int, outputs: int, *, stem: bool = False) -> None:
        super().__init__()
        self.deconv: nn.ConvTranspose2d | None = None
        if low and config.upsample == "deconv":
            self.deconv = nn.ConvTranspose2d(low, outputs, 2, stride=2)
            low = outputs
        self.first = ConvUnit(config, "standard" if stem else config.conv, sources + low, outputs)
        self.second = ConvUnit(config, config.conv, outputs, outputs)

    def forward(self, sources: Sequence[Map], low: Map | None = None) -> Map:
        """Arguments and result as of `ConvUnit`."""
        if low is not None and self.deconv is not None:
            sources, low = [*sources, self.deconv(stored(low))], None
        found: Map = self.second([self.first(sources, low)])
        return found


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples: the network's one padding rule.

    Padding right and bottom only keeps pixel (0, 0) in place, so a tile that contains the image's last row or
    column pads to the same values as the whole image does.
    """
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def _kaiming(outputs: int, inputs: int, side: int, *, gain_fan: int) -> nn.Parameter:
    """Normal weights (outputs, inputs, side, side) of variance 2 / gain_fan (He et al. 2015, eq. 10)."""
    return nn.Parameter(torch.randn(outputs, inputs, side, side) * (2.0 / gain_fan) ** 0.5)
