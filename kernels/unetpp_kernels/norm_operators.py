"""Registers batch norm as operators: convolutions that give moments or read through a norm, the norm, its gradient.

Moments are those of the result as it is stored, so that they fit what the next operator reads. See `operators` for what
CUDA and the CPU run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unetpp_kernels import definition
from unetpp_kernels.definition import Resampling
from unetpp_kernels.gradient_operators import plain_pointwise_backward
from unetpp_kernels.operators import depthwise_weight, empty, register


def depthwise_moments(x: Tensor, taps: Tensor) -> list[Tensor]:
    """Return the depthwise convolution of x with taps (9, C), its mean and its variance."""
    from unetpp_kernels.gpu import arguments, launch, launch_normalise

    parts = arguments.Parts()
    y = launch.depthwise(x, taps, None, relu=False, stride=1, dilation=1, packed=False, parts=parts)
    return [y, *launch_normalise.joined(parts, y)]


def depthwise_pointwise_moments(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    mode: Resampling,
    vectors: Sequence[Tensor],
) -> list[Tensor]:
    """Return the pair of convolutions, its mean and its variance; arguments as of `depthwise_pointwise`.

    vectors: mean, scale and shift of the norms, with their ReLU, that sources and then `low` are read through, one
    behind the other; none where they are read as they are. Maps behind norms are written only where no row fits.
    """
    from unetpp_kernels.gpu import arguments, launch, launch_normalise

    parts, norm = arguments.Parts(), arguments.Norm(*vectors) if vectors else None
    y = launch.depthwise_pointwise(
        sources, low, taps, phases, mix, None, None,
        inner_relu=False, relu=False, mode=mode, packed=False, parts=parts, norm=norm,
    )  # fmt: skip
    if y is None:
        inputs = [*sources] if low is None else [*sources, low]
        inputs = inputs if norm is None else launch_normalise.behind(norm, inputs)
        inputs = inputs if low is None else [*inputs[:-1], definition.upsample2x(inputs[-1], mode)]
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        x = launch.depthwise(x, taps, None, relu=False, stride=1, dilation=1, packed=False)
        y = launch.pointwise([x], mix, None, None, pool=False, relu=False, mode=mode, parts=parts)
    return [y, *launch_normalise.joined(parts, y)]


def moments(x: Tensor) -> list[Tensor]:
    """Return mean and variance of a map; see `definition.moments`."""
    from unetpp_kernels.gpu import launch_normalise

    return list(launch_normalise.moments(x))


def normalise(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    from unetpp_kernels.gpu import launch_normalise

    return launch_normalise.normalise(x, mean, scale, bias, relu=relu)


def normalise_sums(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    from unetpp_kernels.gpu import launch_normalise

    return launch_normalise.sums(gradient, x, mean, scale, bias, relu=relu)


def normalise_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, shares: Tensor, relu: bool
) -> Tensor:
    from unetpp_kernels.gpu import launch_normalise

    return launch_normalise.backward(gradient, x, mean, scale, bias, shares, relu=relu)


def normalised_pointwise(
    sources: Sequence[Tensor],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    mode: Resampling,
) -> Tensor:
    """Return the pointwise convolution of sources behind their norms, `normalise(source, ..., relu=True)`.

    mean, scale and shift are of all their channels, one behind the other. The maps are written only where no row fits.
    """
    from unetpp_kernels.gpu import arguments, launch

    norm = arguments.Norm(mean, scale, shift)
    return launch.pointwise(sources, mix, bias, added, pool=False, relu=False, mode=mode, norm=norm)


def normalised_pointwise_backward(
    gradient: Tensor, sources: Sequence[Tensor], mean: Tensor, scale: Tensor, shift: Tensor, mix: Tensor
) -> list[Tensor]:
    """Return the gradients of the maps behind the norms, made anew where they are needed, and of mix (O, C) fp32."""
    from unetpp_kernels.gpu import arguments, launch_backward, launch_normalise

    norm = arguments.Norm(mean, scale, shift)
    found = launch_backward.pointwise(gradient, sources, mix, norm)
    if found is None:
        return plain_pointwise_backward(gradient, launch_normalise.behind(norm, sources), mix)
    return [*found[0], found[1]]


def normalised_max_pool(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return `definition.max_pool` of `normalise(x, ..., relu=True)`, which is not written."""
    from unetpp_kernels.gpu import arguments, launch_normalise

    return launch_normalise.pool(x, arguments.Norm(mean, scale, shift))


def normalised_max_pool_backward(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the gradient of the map behind the norm; see `definition.max_pool_backward`."""
    from unetpp_kernels.gpu import arguments, launch_normalise

    return launch_normalise.pool_backward(gradient, x, arguments.Norm(mean, scale, shift))


def _plain_depthwise_moments(x: Tensor, taps: Tensor) -> list[Tensor]:
    return _with_moments(definition.depthwise_conv(x, depthwise_weight(taps, x)))


def _plain_depthwise_pointwise_moments(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    mode: Resampling,
    vectors: Sequence[Tensor],
) -> list[Tensor]:
    maps = [*sources] if low is None else [*sources, low]
    maps = _plain_behind(maps, *vectors) if vectors else maps
    depthwise, pointwise = depthwise_weight(taps, maps[0]), mix[:, :, None, None].to(maps[0].dtype)
    below = None if low is None else maps.pop()
    return _with_moments(definition.depthwise_pointwise(maps, below, depthwise, pointwise, mode=mode))


def _plain_moments(x: Tensor) -> list[Tensor]:
    return list(definition.moments(x))


def _plain_normalise(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return _map(definition.normalise(x, mean, scale, bias, relu=relu))


def _plain_normalise_sums(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return definition.normalise_sums(gradient, x, mean, scale, bias, relu=relu)


def _plain_normalise_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, shares: Tensor, relu: bool
) -> Tensor:
    return _map(definition.normalise_backward(gradient, x, mean, scale, bias, shares, relu=relu))


def _plain_normalised_pointwise(
    sources: Sequence[Tensor],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    mode: Resampling,
) -> Tensor:
    maps = _plain_behind(sources, mean, scale, shift)
    weight = mix[:, :, None, None].to(maps[0].dtype)
    return _map(definition.pointwise_conv(maps, weight, bias, added=added, mode=mode))


def _plain_normalised_pointwise_backward(
    gradient: Tensor, sources: Sequence[Tensor], mean: Tensor, scale: Tensor, shift: Tensor, mix: Tensor
) -> list[Tensor]:
    return plain_pointwise_backward(gradient, _plain_behind(sources, mean, scale, shift), mix)


def _plain_normalised_max_pool(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _map(definition.max_pool(definition.normalise(x, mean, scale, shift, relu=True)))


def _plain_normalised_max_pool_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    return _map(definition.max_pool_backward(gradient, definition.normalise(x, mean, scale, shift, relu=True)))


def _plain_behind(sources: Sequence[Tensor], *vectors: Tensor) -> list[Tensor]:
    widths = [x.shape[1] for x in sources]
    own = zip(*(torch.split(values, widths) for values in vectors), strict=True)
    return [definition.normalise(x, *three, relu=True) for x, three in zip(sources, own, strict=True)]


def _fake_depthwise_moments(x: Tensor, taps: Tensor) -> list[Tensor]:
    return [empty(x, *x.shape), *_fake_moments(x)]


def _fake_depthwise_pointwise_moments(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    mode: str,
    vectors: Sequence[Tensor],
) -> list[Tensor]:
    n, _, height, width = sources[0].shape
    y = empty(sources[0], n, mix.shape[0], height, width)
    return [y, *_fake_moments(y)]


def _fake_moments(x: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape[1], dtype=definition.sum_type(x.dtype)) for _ in range(2)]


def _fake_normalise(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return empty(x, *x.shape)


def _fake_normalise_sums(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return mean.new_empty(2, x.shape[1])


def _fake_normalise_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, shares: Tensor, relu: bool
) -> Tensor:
    return empty(x, *x.shape)


def _fake_normalised_pointwise(
    sources: Sequence[Tensor],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    mode: str,
) -> Tensor:
    n, _, height, width = sources[0].shape
    return empty(sources[0], n, mix.shape[0], height, width)


def _fake_normalised_pointwise_backward(
    gradient: Tensor, sources: Sequence[Tensor], mean: Tensor, scale: Tensor, shift: Tensor, mix: Tensor
) -> list[Tensor]:
    found = [empty(x, *x.shape) for x in sources]
    return [*found, mix.new_empty(mix.shape, dtype=definition.sum_type(mix.dtype))]


def _fake_normalised_max_pool(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    return empty(x, n, channels, height // 2, width // 2)


def _fake_normalised_max_pool_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    return empty(x, *x.shape)


def _with_moments(y: Tensor) -> list[Tensor]:
    return [_map(y), *definition.moments(y)]


def _map(y: Tensor) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last)


register(
    "depthwise_moments(Tensor x, Tensor taps) -> Tensor[]",
    depthwise_moments,
    _plain_depthwise_moments,
    _fake_depthwise_moments,
)
register(
    "depthwise_pointwise_moments(Tensor[] sources, Tensor? low, Tensor taps, Tensor? phases, Tensor mix, str mode, "
    "Tensor[] vectors) -> Tensor[]",
    depthwise_pointwise_moments,
    _plain_depthwise_pointwise_moments,
    _fake_depthwise_pointwise_moments,
)
register("moments(Tensor x) -> Tensor[]", moments, _plain_moments, _fake_moments)
register(
    "normalise(Tensor x, Tensor mean, Tensor scale, Tensor bias, bool relu) -> Tensor",
    normalise,
    _plain_normalise,
    _fake_normalise,
)
register(
    "normalise_sums(Tensor gradient, Tensor x, Tensor mean, Tensor scale, Tensor bias, bool relu) -> Tensor",
    normalise_sums,
    _plain_normalise_sums,
    _fake_normalise_sums,
)
register(
    "normalise_backward(Tensor gradient, Tensor x, Tensor mean, Tensor scale, Tensor bias, Tensor shares, bool relu) "
    "-> Tensor",
    normalise_backward,
    _plain_normalise_backward,
    _fake_normalise_backward,
)
register(
    "normalised_pointwise(Tensor[] sources, Tensor mean, Tensor scale, Tensor shift, Tensor mix, Tensor? bias, "
    "Tensor? added, str mode) -> Tensor",
    normalised_pointwise,
    _plain_normalised_pointwise,
    _fake_normalised_pointwise,
)
register(
    "normalised_pointwise_backward(Tensor gradient, Tensor[] sources, Tensor mean, Tensor scale, Tensor shift, "
    "Tensor mix) -> Tensor[]",
    normalised_pointwise_backward,
    _plain_normalised_pointwise_backward,
    _fake_normalised_pointwise_backward,
)
register(
    "normalised_max_pool(Tensor x, Tensor mean, Tensor scale, Tensor shift) -> Tensor",
    normalised_max_pool,
    _plain_normalised_max_pool,
    _fake_normalised_max_pool,
)
register(
    "normalised_max_pool_backward(Tensor gradient, Tensor x, Tensor mean, Tensor scale, Tensor shift) -> Tensor",
    normalised_max_pool_backward,
    _plain_normalised_max_pool_backward,
    _fake_normalised_max_pool_backward,
)
