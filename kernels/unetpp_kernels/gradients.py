"""Gradients of the operators for autograd: what is saved, what is computed again; knows no kernel and no network.

operation             saved                          computed again, or never there
pointwise             sources, mix                   the concatenation, the upsampled term
depthwise             x, taps                        -
depthwise_pointwise   sources, low, taps, mix        depthwise sums, the concatenation, the upsampled source

Weights come in fp32 and get fp32 gradients, whatever the maps' type: under autocast nothing is rounded on the way.
Gradients of gradients do not exist; autograd says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unetpp_kernels import definition, gradient_operators, packing
from unetpp_kernels.definition import Resampling

_OPERATORS = torch.ops.unetpp
assert gradient_operators  # importing it registers them


class Pointwise(torch.autograd.Function):
    """apply(weight (O, C), bias, added, relu, mode, *sources); see `definition.pointwise_conv`."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        relu: bool,
        mode: Resampling,
        *sources: Tensor,
    ) -> Tensor:
        mix = weight.to(sources[0].dtype)
        y: Tensor = _OPERATORS.pointwise(list(sources), mix, bias, added, False, relu, mode)
        ctx.relu, ctx.mode, ctx.has_added = relu, mode, added is not None
        ctx.save_for_backward(mix, y if relu else None, *sources)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mix, y, *sources = ctx.saved_tensors
        g = _through_relu(gradient, y)
        *found, dmix, dbias = _OPERATORS.pointwise_backward(g, sources, mix)
        dadded = _OPERATORS.upsample_backward(g, ctx.mode) if ctx.has_added and ctx.needs_input_grad[2] else None
        return dmix, dbias if ctx.needs_input_grad[1] else None, dadded, None, None, *found


class Depthwise(torch.autograd.Function):
    """apply(taps (9, C), bias, relu, x): 3x3, stride 1; see `definition.depthwise_conv`."""

    @staticmethod
    def forward(ctx: Any, taps: Tensor, bias: Tensor | None, relu: bool, x: Tensor) -> Tensor:
        y: Tensor = _OPERATORS.depthwise(x, taps, bias, relu, 1, 1, False)
        ctx.save_for_backward(taps, y if relu else None, x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        taps, y, x = ctx.saved_tensors
        dx, dtaps, dbias = _OPERATORS.depthwise_backward(_through_relu(gradient, y), x, taps)
        return dtaps, dbias if ctx.needs_input_grad[1] else None, None, dx


class DepthwisePointwise(torch.autograd.Function):
    """apply(taps (9, C), weight (O, C), bias, inner_bias, low, inner_relu, relu, mode, *sources)."""

    @staticmethod
    def forward(
        ctx: Any,
        taps: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        inner_bias: Tensor | None,
        low: Tensor | None,
        inner_relu: bool,
        relu: bool,
        mode: Resampling,
        *sources: Tensor,
    ) -> Tensor:
        mix = weight.to(sources[0].dtype)
        phases = None
        if low is not None:
            under = taps[:, taps.shape[1] - low.shape[1] :]
            phases = packing.phases(under.t().reshape(-1, 1, 3, 3), mode, torch.float32)
        y: Tensor = _OPERATORS.depthwise_pointwise(
            list(sources), low, taps, phases, mix, bias, inner_bias, inner_relu, relu, mode, False
        )
        ctx.inner_relu, ctx.mode = inner_relu, mode
        ctx.save_for_backward(taps, mix, inner_bias, low, y if relu else None, *sources)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        taps, mix, inner_bias, low, y, *sources = ctx.saved_tensors
        # The upsampled source lives for this call only: two passes read it at full resolution.
        inputs = sources if low is None else [*sources, definition.upsample2x(low, ctx.mode)]
        *found, dtaps, dmix, dbias, dinner = _OPERATORS.depthwise_pointwise_backward(
            _through_relu(gradient, y), inputs, taps, inner_bias, mix, ctx.inner_relu
        )
        dlow = None if low is None else _OPERATORS.upsample_backward(found.pop(), ctx.mode)
        needs = ctx.needs_input_grad
        return dtaps, dmix, dbias if needs[2] else None, dinner if needs[3] else None, dlow, None, None, None, *found


def _through_relu(gradient: Tensor, y: Tensor | None) -> Tensor:
    if y is None:
        return gradient
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, y, 0)
    return masked
