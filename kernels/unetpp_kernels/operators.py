"""Registers the operations with torch: compile, export and CUDA graphs see one opaque node each. Chooses nothing.

Contracts are in packed weights (see `packing`). On CUDA an operator launches its kernel, on the CPU it computes the
plain definition, or, in a process started with TRITON_INTERPRET=1, runs the kernel in Triton's interpreter. They know
nothing of autograd: `gradients` puts an operator and those of its gradients together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unetpp_kernels import definition
from unetpp_kernels.definition import Resampling

NAMESPACE = "unetpp"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def depthwise_pointwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    bias: Tensor | None,
    inner_bias: Tensor | None,
    inner_relu: bool,
    relu: bool,
    mode: Resampling,
    packed: bool,
) -> Tensor:
    from unetpp_kernels.gpu import launch

    found = launch.depthwise_pointwise(
        sources, low, taps, phases, mix, bias, inner_bias, inner_relu=inner_relu, relu=relu, mode=mode, packed=packed
    )
    if found is not None:
        return found
    # Wide layers: the depthwise result is written once, and the product reads it.
    inputs = [*sources] if low is None else [*sources, definition.upsample2x(low, mode)]
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
    x = launch.depthwise(x, taps, inner_bias, relu=inner_relu, stride=1, dilation=1, packed=packed)
    return launch.pointwise([x], mix, bias, None, pool=False, relu=relu, mode=mode)


def pointwise(
    sources: Sequence[Tensor],
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    pool: bool,
    relu: bool,
    mode: Resampling,
) -> Tensor:
    from unetpp_kernels.gpu import launch

    return launch.pointwise(sources, mix, bias, added, pool=pool, relu=relu, mode=mode)


def depthwise(
    x: Tensor, taps: Tensor, bias: Tensor | None, relu: bool, stride: int, dilation: int, packed: bool
) -> Tensor:
    from unetpp_kernels.gpu import launch

    return launch.depthwise(x, taps, bias, relu=relu, stride=stride, dilation=dilation, packed=packed)


def stem(
    pixels: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor | None, mix: Tensor | None, relu: bool
) -> Tensor:
    from unetpp_kernels.gpu import launch

    found = launch.stem(pixels, mean, std, weight, bias, mix, relu=relu)
    return found if found is not None else _plain_stem(pixels, mean, std, weight, bias, mix, relu)


def head(
    x: Tensor,
    mix: Tensor,
    bias: Tensor,
    values: Tensor,
    taps: Tensor | None,
    inner_bias: Tensor | None,
    inner_relu: bool,
    probabilities: bool,
    packed: bool,
) -> Tensor:
    from unetpp_kernels.gpu import launch

    found = launch.head(
        x, mix, bias, values, taps, inner_bias, inner_relu=inner_relu, probabilities=probabilities, packed=packed
    )
    return (
        found
        if found is not None
        else _plain_head(x, mix, bias, values, taps, inner_bias, inner_relu, probabilities, packed)
    )


def _plain_depthwise_pointwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    bias: Tensor | None,
    inner_bias: Tensor | None,
    inner_relu: bool,
    relu: bool,
    mode: Resampling,
    packed: bool,
) -> Tensor:
    x = sources[0]
    found = definition.depthwise_pointwise(
        sources,
        low,
        depthwise_weight(taps, x),
        mix[:, :, None, None].to(x.dtype),
        as_type(bias, x),
        inner_bias=as_type(inner_bias, x),
        inner_relu=inner_relu,
        relu=relu,
        mode=mode,
    )
    return found.contiguous(memory_format=torch.channels_last)


def _plain_pointwise(
    sources: Sequence[Tensor],
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    pool: bool,
    relu: bool,
    mode: Resampling,
) -> Tensor:
    x = sources[0]
    found = definition.pointwise_conv(
        sources, mix[:, :, None, None].to(x.dtype), as_type(bias, x), added=added, pool=pool, relu=relu, mode=mode
    )
    return found.contiguous(memory_format=torch.channels_last)


def _plain_depthwise(
    x: Tensor, taps: Tensor, bias: Tensor | None, relu: bool, stride: int, dilation: int, packed: bool
) -> Tensor:
    found = definition.depthwise_conv(
        x, depthwise_weight(taps, x), as_type(bias, x), relu=relu, stride=stride, dilation=dilation
    )
    return found.contiguous(memory_format=torch.channels_last)


def _plain_stem(
    pixels: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor | None, mix: Tensor | None, relu: bool
) -> Tensor:
    bands = pixels.shape[3]
    square = weight.reshape(3, 3, bands, -1).permute(3, 2, 0, 1)
    pointwise = None if mix is None else mix[:, :, None, None]
    found = definition.stem(pixels, mean, std, square, as_type(bias, weight), pointwise, relu=relu)
    return found.contiguous(memory_format=torch.channels_last)


def _plain_head(
    x: Tensor,
    mix: Tensor,
    bias: Tensor,
    values: Tensor,
    taps: Tensor | None,
    inner_bias: Tensor | None,
    inner_relu: bool,
    probabilities: bool,
    packed: bool,
) -> Tensor:
    return definition.head(
        x,
        mix[:, :, None, None].to(x.dtype),
        bias.to(x.dtype),
        values,
        depthwise=None if taps is None else depthwise_weight(taps, x),
        inner_bias=as_type(inner_bias, x),
        inner_relu=inner_relu,
        probabilities=probabilities,
    ).contiguous()


def _fake_depthwise_pointwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    bias: Tensor | None,
    inner_bias: Tensor | None,
    inner_relu: bool,
    relu: bool,
    mode: str,
    packed: bool,
) -> Tensor:
    total = sum(x.shape[1] for x in sources) + (0 if low is None else low.shape[1])
    _require(mix.shape[1] == total, f"{total} channels in, weights for {mix.shape[1]}")
    _require(taps.shape[1] == total, f"{total} channels in, depthwise weights for {taps.shape[1]}")
    n, _, height, width = sources[0].shape
    return empty(sources[0], n, mix.shape[0], height, width)


def _fake_pointwise(
    sources: Sequence[Tensor],
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    pool: bool,
    relu: bool,
    mode: str,
) -> Tensor:
    total = sum(x.shape[1] for x in sources)
    _require(mix.shape[1] == total, f"{total} channels in, weights for {mix.shape[1]}")
    n, _, height, width = sources[0].shape
    return empty(sources[0], n, mix.shape[0], *((height // 2, width // 2) if pool else (height, width)))


def _fake_depthwise(
    x: Tensor, taps: Tensor, bias: Tensor | None, relu: bool, stride: int, dilation: int, packed: bool
) -> Tensor:
    n, channels, height, width = x.shape
    _require(taps.shape[1] == channels, f"{channels} channels in, weights for {taps.shape[1]}")
    side = math.isqrt(taps.shape[0])
    _require(side * side == taps.shape[0] and side % 2 == 1, f"{taps.shape[0]} taps: K must be odd")
    return empty(x, n, channels, (height + stride - 1) // stride, (width + stride - 1) // stride)


def _fake_stem(
    pixels: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor | None, mix: Tensor | None, relu: bool
) -> Tensor:
    n, height, width, bands = pixels.shape
    _require(weight.shape[0] == 9 * bands, f"{bands} bands, weights for {weight.shape[0]} taps")
    return empty(weight, n, weight.shape[1] if mix is None else mix.shape[0], height, width)


def _fake_head(
    x: Tensor,
    mix: Tensor,
    bias: Tensor,
    values: Tensor,
    taps: Tensor | None,
    inner_bias: Tensor | None,
    inner_relu: bool,
    probabilities: bool,
    packed: bool,
) -> Tensor:
    n, channels, height, width = x.shape
    _require(mix.shape[1] == channels, f"{channels} channels in, weights for {mix.shape[1]}")
    shape = (n, mix.shape[0], height, width) if probabilities else (n, height, width)
    return torch.empty(shape, dtype=torch.uint8, device=x.device)


def _require(condition: bool, message: str) -> None:
    torch._check(condition, lambda: message)  # type: ignore[no-untyped-call]


def depthwise_weight(taps: Tensor, like: Tensor) -> Tensor:
    side = math.isqrt(taps.shape[0])
    return taps.t().reshape(-1, 1, side, side).to(like.dtype)


def as_type(values: Tensor | None, like: Tensor) -> Tensor | None:
    return None if values is None else values.to(like.dtype)


def empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def register(schema: str, launched: Callable[..., Any], plain: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Make an operator of a schema: what CUDA runs, what the CPU runs, and what shapes come out."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, launched, "CUDA")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, launched if INTERPRETED else plain, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)


register(
    "depthwise_pointwise(Tensor[] sources, Tensor? low, Tensor taps, Tensor? phases, Tensor mix, Tensor? "
    "bias, Tensor? inner_bias, bool inner_relu, bool relu, str mode, bool packed) -> Tensor",
    depthwise_pointwise,
    _plain_depthwise_pointwise,
    _fake_depthwise_pointwise,
)
register(
    "pointwise(Tensor[] sources, Tensor mix, Tensor? bias, Tensor? added, bool pool, bool relu, str mode) -> Tensor",
    pointwise,
    _plain_pointwise,
    _fake_pointwise,
)
register(
    "depthwise(Tensor x, Tensor taps, Tensor? bias, bool relu, int stride, int dilation, bool packed) -> Tensor",
    depthwise,
    _plain_depthwise,
    _fake_depthwise,
)
register(
    "stem(Tensor pixels, Tensor mean, Tensor std, Tensor weight, Tensor? bias, Tensor? mix, bool relu) -> Tensor",
    stem,
    _plain_stem,
    _fake_stem,
)
register(
    "head(Tensor x, Tensor mix, Tensor bias, Tensor values, Tensor? taps, Tensor? inner_bias, bool "
    "inner_relu, bool probabilities, bool packed) -> Tensor",
    head,
    _plain_head,
    _fake_head,
)
