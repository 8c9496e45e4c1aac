"""Gradients of the operators for autograd: what is saved, what is computed again; knows no kernel and no network.

operation             saved                          computed again, or never there
pointwise             sources, mix                   the concatenation, the upsampled term
depthwise             x, taps                        -
depthwise_pointwise   sources, low, taps, mix        depthwise sums, the concatenation, the upsampled source
batch norm            its input, four vectors        its result (whose ReLU is decided anew)
norm, then product    the norms' inputs, vectors     the norms' results, in both passes
norm, then pair       the norms' inputs, vectors     the norms' results: in backward as maps, one at a time
norm, then pooling    the norm's input, vectors      the norm's result and which of its pixels was the largest

Weights come in fp32 and get fp32 gradients, whatever the maps' type: under autocast nothing is rounded on the way.
Gradients of gradients do not exist; autograd says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unetpp_kernels import definition, gradient_operators, native, norm_operators, packing
from unetpp_kernels.definition import Resampling
from unetpp_kernels.gradient_operators import bias_gradient

_OPERATORS = torch.ops.unetpp
assert gradient_operators and norm_operators  # importing them registers their operators


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
        *found, dmix = _OPERATORS.pointwise_backward(g, sources, mix)
        dbias = bias_gradient(g) if ctx.needs_input_grad[1] else None
        dadded = _OPERATORS.upsample_backward(g, ctx.mode) if ctx.has_added and ctx.needs_input_grad[2] else None
        return dmix, dbias, dadded, None, None, *found


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
        g = _through_relu(gradient, y)
        dx, dtaps = _OPERATORS.depthwise_backward(g, x, taps)
        return dtaps, bias_gradient(g) if ctx.needs_input_grad[1] else None, None, dx


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
        mix, phases = weight.to(sources[0].dtype), _phases(taps, low, mode)
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
        g = _through_relu(gradient, y)
        *found, dtaps, dmix, dinner = _OPERATORS.depthwise_pointwise_backward(
            g, inputs, taps, inner_bias, mix, ctx.inner_relu
        )
        dlow = None if low is None else _OPERATORS.upsample_backward(found.pop(), ctx.mode)
        needs = ctx.needs_input_grad
        dbias, dinner = bias_gradient(g) if needs[2] else None, dinner if needs[3] else None
        return dtaps, dmix, dbias, dinner, dlow, None, None, None, *found


class DepthwiseMoments(torch.autograd.Function):
    """apply(taps (9, C), x) -> y, mean, variance: `Depthwise` and its moments, which are constants to autograd."""

    @staticmethod
    def forward(ctx: Any, taps: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, variance = _OPERATORS.depthwise_moments(x, taps)
        ctx.save_for_backward(taps, x)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        taps, x = ctx.saved_tensors
        dx, dtaps = _OPERATORS.depthwise_backward(gradient, x, taps)
        return dtaps, dx


class DepthwisePointwiseMoments(torch.autograd.Function):
    """apply(taps (9, C), weight (O, C), mode, has_low, n, *maps) -> y, mean, variance; as `DepthwiseMoments`.

    Of n maps, the last of which is `low` where there is one. Behind norms they are stand-ins, and *xs, mean, scale and
    shift follow: see `NormalisedPointwise`. The maps themselves are then not kept for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, taps: Tensor, weight: Tensor, mode: Resampling, has_low: bool, n: int, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = rest[n:] or rest
        sources, vectors = list(kept[:n]), list(kept[n:])
        mix = weight.to(sources[0].dtype)
        ctx.mode, ctx.has_low, ctx.n = mode, has_low, n
        ctx.save_for_backward(taps, mix, *kept)
        low = sources.pop() if has_low else None
        y, mean, variance = _OPERATORS.depthwise_pointwise_moments(
            sources, low, taps, _phases(taps, low, mode), mix, mode, vectors
        )
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        taps, mix, *kept = ctx.saved_tensors
        sources, vectors = kept[: ctx.n], kept[ctx.n :]
        found, of_taps, of_mix, first = [], [], [], 0
        # One map at a time: what was not kept of it, and the gradient of its depthwise sums, need no more room.
        for k, source in enumerate(sources):
            here, is_low = slice(first, first + source.shape[1]), ctx.has_low and k == ctx.n - 1
            first += source.shape[1]
            x = _OPERATORS.normalise(source, *(v[here] for v in vectors), True) if vectors else source
            x = definition.upsample2x(x, ctx.mode) if is_low else x
            own = taps[:, here].contiguous(), None, mix[:, here].contiguous()
            dx, dtaps, dmix, _ = _OPERATORS.depthwise_pointwise_backward(gradient, [x], *own, False)
            found.append(_OPERATORS.upsample_backward(dx, ctx.mode) if is_low else dx)
            of_taps.append(dtaps)
            of_mix.append(dmix)
        constants = [None] * len(kept) if vectors else []
        return torch.cat(of_taps, 1), torch.cat(of_mix, 1), None, None, None, *found, *constants


class BatchNorm(torch.autograd.Function):
    """apply(x, mean, variance, count, weight, bias, eps, relu, total, fused): mean and variance are those of x.

    relu((x - mean) weight / sqrt(variance + eps) + bias), the gradient going through mean and variance as well. count:
    over how many values they were taken. total: adds up a tensor over all that share them, in place; None alone. fused:
    by the operators, otherwise by torch's own kernels where they do, or the definitions.

    With z = (x - mean) / s, s = sqrt(variance + eps), and g the gradient before the ReLU, that of x is
    weight / s (g - sum(g) / n - z sum(g z) / n) (Ioffe and Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor | int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        relu: bool,
        total: Callable[[Tensor], object] | None,
        fused: bool,
    ) -> Tensor:
        vectors = _norm_vectors(x, mean, variance, weight, bias, eps)
        ctx.count, ctx.relu, ctx.total, ctx.fused, ctx.weight_type = count, relu, total, fused, weight.dtype
        ctx.save_for_backward(x, *vectors)
        if fused:
            return _OPERATORS.normalise(x, *vectors[:3], relu)  # type: ignore[no-any-return]
        if native.suits(x, relu=relu):
            return native.normalise(x, *vectors[:3])
        return definition.normalise(x, *vectors[:3], relu=relu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = _norm_gradients(ctx, gradient, *ctx.saved_tensors)
        return dx, None, None, None, dweight, dbias, None, None, None, None


class StandIn(torch.autograd.Function):
    """apply(x, mean, variance, count, weight, bias, eps, total) -> stand-in, mean, scale, shift: `BatchNorm` with ReLU.

    The stand-in has the result's shape and type and none of its values; see `normalised.Normalised`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor | int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        total: Callable[[Tensor], object] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, scale, shift, inverse = _norm_vectors(x, mean, variance, weight, bias, eps)
        ctx.count, ctx.relu, ctx.total, ctx.fused, ctx.weight_type = count, True, total, True, weight.dtype
        mean, shift = mean.clone(), shift.clone()  # outputs, which inputs must not be
        ctx.save_for_backward(x, mean, scale, shift, inverse)
        ctx.mark_non_differentiable(mean, scale, shift)
        return x.new_empty(()).expand(x.shape), mean, scale, shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = _norm_gradients(ctx, gradient, *ctx.saved_tensors)
        return dx, None, None, None, dweight, dbias, None, None


class Stored(torch.autograd.Function):
    """apply(stand-in, x, mean, scale, shift): the map itself; its gradient is the stand-in's."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return _OPERATORS.normalise(x, mean, scale, shift, True)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None, None


class NormalisedPointwise(torch.autograd.Function):
    """apply(weight (O, C), bias, added, mode, n, *stand_ins, *xs, mean, scale, shift): `Pointwise` of n such maps.

    The maps are neither stored nor kept for the gradient: both passes of the product make them from the xs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        mode: Resampling,
        n: int,
        *rest: Tensor,
    ) -> Tensor:
        sources, vectors = rest[n : 2 * n], rest[2 * n :]
        mix = weight.to(sources[0].dtype)
        ctx.n, ctx.mode, ctx.has_added = n, mode, added is not None
        ctx.save_for_backward(mix, *rest[n:])
        return _OPERATORS.normalised_pointwise(list(sources), *vectors, mix, bias, added, mode)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mix, *rest = ctx.saved_tensors
        sources, vectors = rest[: ctx.n], rest[ctx.n :]
        *found, dmix = _OPERATORS.normalised_pointwise_backward(gradient, sources, *vectors, mix)
        dbias = bias_gradient(gradient) if ctx.needs_input_grad[1] else None
        dadded = _OPERATORS.upsample_backward(gradient, ctx.mode) if ctx.has_added else None
        return dmix, dbias, dadded, None, None, *found, *[None] * (ctx.n + 3)


class NormalisedMaxPool(torch.autograd.Function):
    """apply(stand-in, x, mean, scale, shift): 2x2 max pooling of such a map; backward finds the largest anew."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, scale, shift)
        return _OPERATORS.normalised_max_pool(x, mean, scale, shift)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _OPERATORS.normalised_max_pool_backward(gradient, *ctx.saved_tensors), None, None, None, None


def _norm_vectors(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> list[Tensor]:
    """Return mean, weight / s, bias and 1 / s (C,) in the type of sums."""
    kind = definition.sum_type(x.dtype)
    inverse = torch.rsqrt(variance + eps).to(kind)
    return [mean.to(kind), weight.to(kind) * inverse, bias.to(kind), inverse]


def _norm_gradients(
    ctx: Any, gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of a norm from that of its result."""
    vectors = (x, mean, scale, shift)
    if ctx.fused:
        sums = _OPERATORS.normalise_sums(gradient, *vectors, ctx.relu)
    elif native.suits(x, relu=ctx.relu):
        sums = native.normalise_sums(gradient, x, mean)
    else:
        sums = definition.normalise_sums(gradient, *vectors, relu=ctx.relu)
    dbias, dweight = sums[0].to(ctx.weight_type, copy=True), (sums[1] * inverse).to(ctx.weight_type)
    if ctx.total is not None:
        # Also where nobody here needs the gradient of x: another rank may wait for these sums.
        ctx.total(sums)
    shares = sums / ctx.count
    shares[1] *= inverse.square()
    if ctx.fused:
        dx = _OPERATORS.normalise_backward(gradient, *vectors, shares, ctx.relu)
    elif native.suits(x, relu=ctx.relu):
        dx = native.normalise_backward(gradient, x, mean, scale, shares)
    else:
        dx = definition.normalise_backward(gradient, *vectors, shares, relu=ctx.relu)
    return dx, dweight, dbias


def _phases(taps: Tensor, low: Tensor | None, mode: Resampling) -> Tensor | None:
    if low is None:
        return None
    under = taps[:, taps.shape[1] - low.shape[1] :]
    return packing.phases(under.t().reshape(-1, 1, 3, 3), mode, torch.float32)


def _through_relu(gradient: Tensor, y: Tensor | None) -> Tensor:
    if y is None:
        return gradient
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, y, 0)
    return masked
