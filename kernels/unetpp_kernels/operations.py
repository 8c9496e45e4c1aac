"""The public operations: each computes its definition, by a fused kernel where there is one; knows no network.

Triton kernels run on CUDA devices from compute capability 8.0, the plain definition everywhere else. `implementation`
says which and why; `forced` and UNETPP_KERNELS=torch or =triton override it. Gradients come from the definition unless
UNETPP_KERNELS=triton asks for the kernels' own. Where gradients are asked for nothing is packed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, cast

import torch
from torch import Tensor

from unetpp_kernels import definition, gradients, native, operators, packing
from unetpp_kernels import normalised as behind_norm
from unetpp_kernels.definition import Resampling
from unetpp_kernels.normalised import Map, Normalised, read, stored

Implementation = Literal["triton", "torch"]
VARIABLE = "UNETPP_KERNELS"
CAPABILITY = (8, 0)
"""Oldest compute capability whose tensor cores take bf16 and tf32."""

_forced: Implementation | None = None


def depthwise_pointwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None = None,
    *,
    inner_bias: Tensor | None = None,
    inner_relu: bool = False,
    relu: bool = False,
    mode: Resampling = "bilinear",
    stride: int = 1,
    dilation: int = 1,
    packed: bool | None = None,
) -> Tensor:
    """See `definition.depthwise_pointwise`.

    Args:
        packed: sum depthwise taps in the sources' 16-bit type, two to an instruction. By default fp16 does (its error
            stays several times below that of bf16), bf16 and fp32 do not.
    """
    if implementation([*sources, low, depthwise, pointwise, bias, inner_bias]) == "torch":
        return definition.depthwise_pointwise(
            sources,
            low,
            depthwise,
            pointwise,
            bias,
            inner_bias=inner_bias,
            inner_relu=inner_relu,
            relu=relu,
            mode=mode,
            stride=stride,
            dilation=dilation,
        )
    if not sources and low is not None:
        # Kernels take the size of the result from a source.
        sources, low = [definition.upsample2x(low, mode)], None
    sources, low = _autocast(sources, low)
    x = sources[0]
    if (depthwise.shape[-1], stride, dilation) != (3, 1, 1):
        inputs = [*sources] if low is None else [*sources, definition.upsample2x(low, mode)]
        joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        filtered = depthwise_conv(
            joined, depthwise, inner_bias, relu=inner_relu, stride=stride, dilation=dilation, packed=packed
        )
        return pointwise_conv([filtered], pointwise, bias, relu=relu)
    if _needs_gradient(*sources, low, depthwise, pointwise, bias, inner_bias):
        taps, mix = packing.taps(depthwise, definition.sum_type(x.dtype)), packing.mix(pointwise, pointwise.dtype)
        return cast(
            Tensor,
            gradients.DepthwisePointwise.apply(  # type: ignore[no-untyped-call]
                taps, mix, bias, inner_bias, low, inner_relu, relu, mode, *sources
            ),
        )
    packed = is_packed(x.dtype, packed)
    weights = x.dtype if packed else definition.sum_type(x.dtype)
    first = sum(s.shape[1] for s in sources)
    return cast(
        Tensor,
        torch.ops.unetpp.depthwise_pointwise(
            list(sources),
            low,
            packing.taps(depthwise, weights),
            None if low is None else packing.phases(depthwise[first:], mode, weights),
            packing.mix(pointwise, x.dtype),
            bias,
            inner_bias,
            inner_relu,
            relu,
            mode,
            packed,
        ),
    )


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    dilation: int = 1,
    packed: bool | None = None,
) -> Tensor:
    """See `definition.depthwise_conv`; `packed` as for `depthwise_pointwise`."""
    if implementation([x, weight, bias]) == "torch":
        return definition.depthwise_conv(x, weight, bias, relu=relu, stride=stride, dilation=dilation)
    (x,), _ = _autocast([x], None)
    if _needs_gradient(x, weight, bias):
        if (weight.shape[-1], stride, dilation) != (3, 1, 1):
            return definition.depthwise_conv(x, weight.to(x.dtype), bias, relu=relu, stride=stride, dilation=dilation)
        taps = packing.taps(weight, definition.sum_type(x.dtype))
        return cast(Tensor, gradients.Depthwise.apply(taps, bias, relu, x))  # type: ignore[no-untyped-call]
    packed = is_packed(x.dtype, packed)
    taps = packing.taps(weight, x.dtype if packed else definition.sum_type(x.dtype))
    return cast(Tensor, torch.ops.unetpp.depthwise(x, taps, bias, relu, stride, dilation, packed))


def pointwise_conv(
    sources: Sequence[Map],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    added: Tensor | None = None,
    pool: bool = False,
    relu: bool = False,
    mode: Resampling = "bilinear",
) -> Tensor:
    """See `definition.pointwise_conv`; maps behind a norm are made as they are read, where all sources are such."""
    behind = [source for source in sources if isinstance(source, Normalised)]
    if len(behind) == len(sources) and not (pool or relu) and implementation([*sources, weight]) == "triton":
        return behind_norm.pointwise(behind, packing.mix(weight, weight.dtype), bias, added, mode)
    maps = [stored(source) for source in sources]
    # No network pools and adds in one convolution, so there is no kernel for both.
    if implementation([*maps, weight, bias, added]) == "torch" or (pool and added is not None):
        return definition.pointwise_conv(maps, weight, bias, added=added, pool=pool, relu=relu, mode=mode)
    maps, added = _autocast(maps, added)
    if _needs_gradient(*maps, added, weight, bias):
        maps = [torch.nn.functional.max_pool2d(s, 2) for s in maps] if pool else maps
        mix = packing.mix(weight, weight.dtype)
        found = gradients.Pointwise.apply(mix, bias, added, relu, mode, *maps)  # type: ignore[no-untyped-call]
        return cast(Tensor, found)
    mix = packing.mix(weight, maps[0].dtype)
    return cast(Tensor, torch.ops.unetpp.pointwise(maps, mix, bias, added, pool, relu, mode))


def pointwise_depthwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    pointwise: Tensor,
    depthwise: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    mode: Resampling = "bilinear",
    packed: bool | None = None,
) -> Tensor:
    """See `definition.pointwise_depthwise`; `packed` as for `depthwise_pointwise`."""
    if implementation([*sources, low, pointwise, depthwise, bias]) == "torch":
        return definition.pointwise_depthwise(sources, low, pointwise, depthwise, bias, relu=relu, mode=mode)
    mixed = _pointwise_upsampled(sources, low, pointwise, mode)
    return depthwise_conv(mixed, depthwise, bias, relu=relu, packed=packed)


def depthwise_pointwise_moments(
    sources: Sequence[Map],
    low: Map | None,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    mode: Resampling = "bilinear",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `definition.depthwise_pointwise` (3x3, no bias, no activation) and its `definition.moments`.

    The moments are constants to autograd: `batch_norm` accounts for what they depend on. Maps behind a norm are made as
    they are read, where sources and `low` all are such.
    """
    if implementation([*sources, low, depthwise, pointwise]) == "torch" or depthwise.shape[-1] != 3:
        inputs, below = [stored(source) for source in sources], None if low is None else stored(low)
        return _with_moments(depthwise_pointwise(inputs, below, depthwise, pointwise, mode=mode))
    maps = [*sources] if low is None else [*sources, low]
    taps = packing.taps(depthwise, definition.sum_type(read(maps[0]).dtype))
    settings = taps, packing.mix(pointwise, pointwise.dtype), mode, low is not None, len(maps)
    behind = [source for source in maps if isinstance(source, Normalised)]
    if len(behind) == len(maps):
        return behind_norm.depthwise_pointwise_moments(behind, *settings)
    tensors, _ = _autocast([stored(source) for source in maps], None)
    found = gradients.DepthwisePointwiseMoments.apply(*settings, *tensors)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor], found)


def pointwise_depthwise_moments(
    sources: Sequence[Map],
    low: Map | None,
    pointwise: Tensor,
    depthwise: Tensor,
    *,
    mode: Resampling = "bilinear",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `definition.pointwise_depthwise` (3x3, no bias, no activation) and its `definition.moments`; as above.

    Maps behind a norm are made as they are read; see `pointwise_conv`.
    """
    if implementation([*sources, low, pointwise, depthwise]) == "torch" or depthwise.shape[-1] != 3:
        inputs, below = [stored(source) for source in sources], None if low is None else stored(low)
        return _with_moments(pointwise_depthwise(inputs, below, pointwise, depthwise, mode=mode))
    return _depthwise_moments(_pointwise_upsampled(sources, low, pointwise, mode), depthwise)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `definition.moments`; constants to autograd."""
    x = x.detach()
    if implementation([x]) == "torch":
        return native.moments(x) if native.suits(x) else definition.moments(x)
    mean, variance = torch.ops.unetpp.moments(x)
    return mean, variance


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor | int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    relu: bool = False,
    total: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Normalise a batch by its own moments: act((x - mean) / sqrt(variance + eps) * weight + bias).

    Args:
        x: (N, C, H, W).
        mean, variance: (C,), biased, of x, or of x and the batches of other ranks: see `total`. Gradients go through
            what they depend on, though autograd does not see it.
        count: over how many values of a channel they were taken.
        weight, bias: (C,), 1 and 0 where there are none.
        eps: added to the variance.
        relu: apply max(0, .) at the end.
        total: adds a tensor up, in place, over all ranks whose batches the moments are of; called once in backward.

    Returns:
        (N, C, H, W) in x's dtype.
    """
    ones, zeros = (torch.full_like(mean, value) for value in (1.0, 0.0))
    fused = implementation([x, weight, bias]) == "triton"
    found = gradients.BatchNorm.apply(  # type: ignore[no-untyped-call]
        x,
        mean,
        variance,
        count,
        ones if weight is None else weight,
        zeros if bias is None else bias,
        eps,
        relu,
        total,
        fused,
    )
    return cast(Tensor, found)


def normalised(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor | int,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    total: Callable[[Tensor], object] | None = None,
) -> Map:
    """Return `batch_norm(x, ..., relu=True)`, not stored where kernels read it; arguments as there."""
    if implementation([x, weight, bias]) == "torch":
        return batch_norm(x, mean, variance, count, weight, bias, eps=eps, relu=True, total=total)
    found = gradients.StandIn.apply(x, mean, variance, count, weight, bias, eps, total)  # type: ignore[no-untyped-call]
    return Normalised(x, *found)


def max_pool(source: Map) -> Tensor:
    """See `definition.max_pool`; a map behind a norm is made as it is read."""
    if isinstance(source, Normalised):
        return behind_norm.max_pool(source)
    return definition.max_pool(source)


def implementation(maps: Sequence[Map | None]) -> Implementation:
    """Return what computes an operation on these tensors: "triton" or "torch"."""
    present = [read(t) for t in maps if t is not None]
    if _forced is not None:
        return _forced
    asked = os.environ.get(VARIABLE)
    # No GPU has run the gradient kernels yet (they pass in the interpreter), so training uses them only when asked to.
    if asked == "torch" or (asked != "triton" and _needs_gradient(*present)):
        return "torch"
    if all(t.dtype in (torch.float16, torch.bfloat16, torch.float32) for t in present):
        return device_implementation(present[0].device)[0]
    return "torch"


def device_implementation(device: torch.device) -> tuple[Implementation, str]:
    """Return what computes on a device where nothing is forced, and why, in one line."""
    if device.type == "cpu":
        return ("triton", "interpreted (TRITON_INTERPRET)") if operators.INTERPRETED else ("torch", "no CUDA device")
    if device.type != "cuda":
        return "torch", f"no kernels for {device.type}"
    return _cuda_implementation(device.index or 0)


@contextmanager
def forced(name: Implementation) -> Iterator[None]:
    """Compute by this implementation inside the block, whatever the device; not for use from several threads at once.

    "triton" on a CPU calls the same operators, which compute the definition there: for tests of compile and export.
    """
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def is_packed(dtype: torch.dtype, packed: bool | None) -> bool:
    """Resolve the default: 16-bit sums for fp16 alone. fp32 has nothing to pack."""
    return dtype != torch.float32 and (dtype == torch.float16 if packed is None else packed)


@functools.cache
def _cuda_implementation(index: int) -> tuple[Implementation, str]:
    if find_spec("triton") is None:
        return "torch", "triton is not installed"
    if torch.version.hip is not None:
        return "triton", torch.cuda.get_device_name(index)
    capability = torch.cuda.get_device_capability(index)
    if capability < CAPABILITY:
        return "torch", f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return "triton", f"{torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}"


def _autocast(sources: Sequence[Tensor], low: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """Return the feature maps in autocast's type where it is on, as torch's own convolutions take them."""
    kind = sources[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(sources), low
    dtype = torch.get_autocast_dtype(kind)
    return [s.to(dtype) for s in sources], None if low is None else low.to(dtype)


def _pointwise_upsampled(sources: Sequence[Map], low: Map | None, pointwise: Tensor, mode: Resampling) -> Tensor:
    """Return pw(cat(*sources, up(low))), `low` mixed before it is upsampled."""
    width = sum(read(source).shape[1] for source in sources)
    added = None if low is None else pointwise_conv([low], pointwise[:, width:])
    return pointwise_conv(sources, pointwise[:, :width], added=added, mode=mode)


def _depthwise_moments(x: Tensor, depthwise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    taps = packing.taps(depthwise, definition.sum_type(x.dtype))
    found = gradients.DepthwiseMoments.apply(taps, x)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor], found)


def _with_moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (y, *moments(y))


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
