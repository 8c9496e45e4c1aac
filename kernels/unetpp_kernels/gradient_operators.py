"""Registers the gradients of the operators as operators of their own; knows no autograd, see `gradients` for that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unetpp_kernels import definition
from unetpp_kernels.definition import Resampling
from unetpp_kernels.operators import as_type, depthwise_weight, empty, register


def pointwise_backward(gradient: Tensor, sources: Sequence[Tensor], mix: Tensor) -> list[Tensor]:
    """Return the gradients of the sources and of mix, the last fp32."""
    from unetpp_kernels.gpu import launch_backward

    found = launch_backward.pointwise(gradient, sources, mix)
    if found is None:
        return plain_pointwise_backward(gradient, sources, mix)
    return [*found[0], found[1]]


def depthwise_backward(gradient: Tensor, x: Tensor, taps: Tensor) -> list[Tensor]:
    """Return the gradients of x and of taps, the last fp32; 3x3, stride 1."""
    from unetpp_kernels.gpu import launch_backward

    return list(launch_backward.depthwise(gradient, x, taps))


def depthwise_pointwise_backward(
    gradient: Tensor,
    sources: Sequence[Tensor],
    taps: Tensor,
    inner_bias: Tensor | None,
    mix: Tensor,
    inner_relu: bool,
) -> list[Tensor]:
    """Return the gradients of the sources, and fp32 of taps, mix and inner bias, which is of no meaning without one."""
    from unetpp_kernels.gpu import launch, launch_backward

    found = launch_backward.depthwise_pointwise(gradient, sources, taps, inner_bias, mix, inner_relu=inner_relu)
    if found is None:
        # Wide layers: the depthwise result is made once more, and the library multiplies.
        x = sources[0] if len(sources) == 1 else torch.cat(list(sources), 1)
        d = launch.depthwise(x, taps, inner_bias, relu=inner_relu, stride=1, dilation=1, packed=False)
        sums, dmix = plain_pointwise_backward(gradient, [d], mix)
        sums = torch.ops.aten.threshold_backward(sums, d, 0) if inner_relu else sums
        found = sums, dmix
    sums, dmix = found
    maps, parts, first = [], [], 0
    for x in sources:
        dx, dtaps = launch_backward.depthwise(sums, x, taps, first)
        maps.append(dx)
        parts.append(dtaps)
        first += x.shape[1]
    return [*maps, torch.cat(parts, 1), dmix, _inner_gradient(sums, inner_bias)]


def upsample_backward(gradient: Tensor, mode: Resampling) -> Tensor:
    """Return the gradient of what was upsampled."""
    from unetpp_kernels.gpu import launch_backward

    return launch_backward.upsample(gradient, mode)


def plain_pointwise_backward(gradient: Tensor, sources: Sequence[Tensor], mix: Tensor) -> list[Tensor]:
    """Return what `pointwise_backward` does, by torch's own kernels."""
    x = sources[0] if len(sources) == 1 else torch.cat(list(sources), 1)
    dx, dmix = _convolution_backward(gradient, x, mix[:, :, None, None], 1)
    parts = torch.split(dx, [s.shape[1] for s in sources], 1)
    return [*(_new(part) for part in parts), dmix[:, :, 0, 0].to(_sums(x)).contiguous()]


def _plain_depthwise_backward(gradient: Tensor, x: Tensor, taps: Tensor) -> list[Tensor]:
    dx, dweight = _convolution_backward(gradient, x, depthwise_weight(taps, x), x.shape[1])
    return [_new(dx), dweight[:, 0].permute(1, 2, 0).reshape(9, -1).to(_sums(x)).contiguous()]


def _plain_depthwise_pointwise_backward(
    gradient: Tensor,
    sources: Sequence[Tensor],
    taps: Tensor,
    inner_bias: Tensor | None,
    mix: Tensor,
    inner_relu: bool,
) -> list[Tensor]:
    x = sources[0] if len(sources) == 1 else torch.cat(list(sources), 1)
    d = definition.depthwise_conv(x, depthwise_weight(taps, x), as_type(inner_bias, x), relu=inner_relu)
    sums, dmix = plain_pointwise_backward(gradient, [d], mix)
    sums = torch.ops.aten.threshold_backward(sums, d, 0) if inner_relu else sums
    dx, dtaps = _plain_depthwise_backward(sums, x, taps)
    parts = torch.split(dx, [s.shape[1] for s in sources], 1)
    return [*(_new(part) for part in parts), dtaps, dmix, _inner_gradient(sums, inner_bias)]


def _plain_upsample_backward(gradient: Tensor, mode: Resampling) -> Tensor:
    n, channels, height, width = gradient.shape
    shape = [n, channels, height // 2, width // 2]
    if mode == "bilinear":
        found = torch.ops.aten.upsample_bilinear2d_backward(gradient, [height, width], shape, False, 2.0, 2.0)
    else:
        found = torch.ops.aten.upsample_nearest2d_backward(gradient, [height, width], shape, 2.0, 2.0)
    return _new(found)


def _fake_pointwise_backward(gradient: Tensor, sources: Sequence[Tensor], mix: Tensor) -> list[Tensor]:
    outputs, channels = mix.shape
    return [*(empty(s, *s.shape) for s in sources), _wide(mix, outputs, channels)]


def _fake_depthwise_backward(gradient: Tensor, x: Tensor, taps: Tensor) -> list[Tensor]:
    return [empty(x, *x.shape), _wide(x, 9, x.shape[1])]


def _fake_depthwise_pointwise_backward(
    gradient: Tensor,
    sources: Sequence[Tensor],
    taps: Tensor,
    inner_bias: Tensor | None,
    mix: Tensor,
    inner_relu: bool,
) -> list[Tensor]:
    outputs, channels = mix.shape
    weights = (_wide(mix, 9, channels), _wide(mix, outputs, channels), _wide(mix, channels))
    return [*(empty(s, *s.shape) for s in sources), *weights]


def _fake_upsample_backward(gradient: Tensor, mode: str) -> Tensor:
    n, channels, height, width = gradient.shape
    return empty(gradient, n, channels, height // 2, width // 2)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    pad = [weight.shape[-1] // 2] * 2
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], groups, [True, True, False]
    )
    return dx, dweight


def bias_gradient(gradient: Tensor) -> Tensor:
    """Return the gradient (C,) of a bias, fp32: reading the gradient once more beats a sum in every tile's program."""
    return gradient.sum((0, 2, 3), dtype=_sums(gradient))


def _inner_gradient(sums: Tensor, inner_bias: Tensor | None) -> Tensor:
    return torch.zeros_like(sums[0, :, 0, 0], dtype=_sums(sums)) if inner_bias is None else bias_gradient(sums)


def _sums(like: Tensor) -> torch.dtype:
    return definition.sum_type(like.dtype)


def _new(x: Tensor) -> Tensor:
    """Return a channels_last copy: an operator's results may not share memory."""
    return x.clone(memory_format=torch.channels_last)


def _wide(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=_sums(like), device=like.device)


register(
    "pointwise_backward(Tensor gradient, Tensor[] sources, Tensor mix) -> Tensor[]",
    pointwise_backward,
    plain_pointwise_backward,
    _fake_pointwise_backward,
)
register(
    "depthwise_backward(Tensor gradient, Tensor x, Tensor taps) -> Tensor[]",
    depthwise_backward,
    _plain_depthwise_backward,
    _fake_depthwise_backward,
)
register(
    "depthwise_pointwise_backward(Tensor gradient, Tensor[] sources, Tensor taps, Tensor? inner_bias, Tensor mix, "
    "bool inner_relu) -> Tensor[]",
    depthwise_pointwise_backward,
    _plain_depthwise_pointwise_backward,
    _fake_depthwise_pointwise_backward,
)
register(
    "upsample_backward(Tensor gradient, str mode) -> Tensor",
    upsample_backward,
    _plain_upsample_backward,
    _fake_upsample_backward,
)
