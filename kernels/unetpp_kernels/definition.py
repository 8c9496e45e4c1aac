"""What each operation computes, in plain torch; knows nothing about networks, devices or which kernel runs.

Shapes use N (batch), C (input channels over all sources, then `low`), O (output channels), H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resampling = Literal["bilinear", "nearest"]
_PIXELS = (0, 2, 3)


def upsample2x(x: Tensor, mode: Resampling = "bilinear") -> Tensor:
    """Double height and width.

    Bilinear uses half-pixel centres (`align_corners=False`): the weights repeat every two pixels, so the result
    does not depend on where a tile starts.

    Args:
        x: (N, C, H, W).
        mode: "bilinear" or "nearest".

    Returns:
        (N, C, 2H, 2W).
    """
    if mode == "bilinear":
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


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
) -> Tensor:
    """Filter every channel in space, then mix channels: act(pw(act(dw(cat(*sources, up(low))) + inner_bias)) + bias).

    A scale after either convolution belongs into its weights: folding it there is exact up to rounding and free.

    Args:
        sources: tensors (N, C_k, H, W), read in this order; at least one unless `low` is given.
        low: (N, C_l, H/2, W/2), read through `upsample2x`; its channels come last.
        depthwise: (C, 1, K, K), K odd; zero padding of `dilation * (K // 2)` keeps the size at stride 1.
        pointwise: (O, C, 1, 1).
        bias: (O,).
        inner_bias: (C,), added between the two convolutions.
        inner_relu, relu: apply max(0, .) between the convolutions, at the end.
        mode: how `low` is upsampled.
        stride, dilation: of the depthwise convolution.

    Returns:
        (N, O, ceil(H / stride), ceil(W / stride)) in the sources' dtype.
    """
    inputs = list(sources) if low is None else [*sources, upsample2x(low, mode)]
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
    x = depthwise_conv(x, depthwise, inner_bias, relu=inner_relu, stride=stride, dilation=dilation)
    x = F.conv2d(x, pointwise, bias)
    return F.relu(x) if relu else x


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Filter every channel in space: act(dw(x) + bias).

    Args:
        x: (N, C, H, W).
        weight: (C, 1, K, K), K odd; zero padding of `dilation * (K // 2)`.
        bias: (C,).
        relu: apply max(0, .) at the end.
        stride, dilation: of the convolution.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)) in x's dtype.
    """
    padding = dilation * (weight.shape[-1] // 2)
    x = F.conv2d(x, weight, bias, stride, padding, dilation, groups=weight.shape[0])
    return F.relu(x) if relu else x


def pointwise_conv(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    added: Tensor | None = None,
    pool: bool = False,
    relu: bool = False,
    mode: Resampling = "bilinear",
) -> Tensor:
    """Mix channels: act(pw(cat(*sources)) + up(added) + bias), the sources read through 2x2 max pooling if asked.

    Args:
        sources: tensors (N, C_k, H, W), or (N, C_k, 2H, 2W) with `pool`; at least one.
        weight: (O, C, 1, 1).
        bias: (O,).
        added: (N, O, H/2, W/2), read through `upsample2x`.
        pool: take the largest of each 2 x 2 pixels first.
        relu: apply max(0, .) at the end.
        mode: how `added` is upsampled.

    Returns:
        (N, O, H, W) in the sources' dtype.
    """
    x = sources[0] if len(sources) == 1 else torch.cat(list(sources), 1)
    x = F.conv2d(F.max_pool2d(x, 2) if pool else x, weight, bias)
    x = x if added is None else x + upsample2x(added, mode)
    return F.relu(x) if relu else x


def stem(
    pixels: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pointwise: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """Turn raw pixels into the first feature map: pw(act(conv3x3((pixels - mean) / std) + bias)).

    Args:
        pixels: (N, H, W, bands) of any real type, as they lie in files.
        mean, std: (bands,) float32; the network sees (pixels - mean) / std, and 0 outside the image.
        weight: (O, bands, 3, 3); its dtype is the network's.
        bias: (O,).
        pointwise: (P, O, 1, 1), mixed at once where given.
        relu: apply max(0, .) after the 3x3 convolution.

    Returns:
        (N, P or O, H, W) in the weights' dtype.
    """
    x = ((pixels.to(torch.float32) - mean) / std).permute(0, 3, 1, 2).to(weight.dtype)
    x = F.conv2d(x, weight, bias, padding=1)
    x = F.relu(x) if relu else x
    return x if pointwise is None else F.conv2d(x, pointwise)


def head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    values: Tensor,
    *,
    depthwise: Tensor | None = None,
    inner_bias: Tensor | None = None,
    inner_relu: bool = False,
    probabilities: bool = False,
) -> Tensor:
    """Turn the last feature map into bytes: class values, or the probability of each class.

    Args:
        x: (N, C, H, W).
        weight: (K, C, 1, 1), of the logits. With K = 1 the logit is that of the second of two classes.
        bias: (K,).
        values: (K or, with K = 1, 2) uint8: what stands for each class. The larger logit wins, the first of equals.
        depthwise: (C, 1, 3, 3), applied before, with `inner_bias` (C,) and `inner_relu`.
        probabilities: return softmax in steps of 1/255 instead.

    Returns:
        (N, H, W) uint8 class values, or (N, classes, H, W) uint8 probabilities.
    """
    if depthwise is not None:
        x = depthwise_conv(x, depthwise, inner_bias, relu=inner_relu)
    logits = F.conv2d(x, weight, bias).to(torch.float32)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    if probabilities:
        return torch.floor(torch.softmax(logits, 1) * 255 + 0.5).to(torch.uint8)
    return values[logits.argmax(1)]


def pointwise_depthwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    pointwise: Tensor,
    depthwise: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    mode: Resampling = "bilinear",
) -> Tensor:
    """Mix channels, then filter each in space: relu(dw(pw(cat(*sources, up(low)))) + bias).

    A 1x1 convolution commutes with bilinear and nearest upsampling (both are linear, act per channel, and their
    weights do not depend on the channel), so `low` is mixed before it is upsampled:
    pw(cat(sources, up(low))) = pw_s(cat(sources)) + up(pw_l(low)). No wide tensor is ever upsampled.

    Args:
        sources: tensors (N, C_k, H, W), read in this order; at least one.
        low: (N, C_l, H/2, W/2); its channels come last.
        pointwise: (O, C, 1, 1).
        depthwise: (O, 1, K, K), K odd; zero padding keeps the size.
        bias: (O,).
        relu: apply max(0, .) at the end.
        mode: how `low` is upsampled.

    Returns:
        (N, O, H, W) in the sources' dtype.
    """
    x = sources[0] if len(sources) == 1 else torch.cat(list(sources), 1)
    width = x.shape[1]
    mixed = F.conv2d(x, pointwise[:, :width])
    if low is not None:
        mixed = mixed + upsample2x(F.conv2d(low, pointwise[:, width:]), mode)
    out = F.conv2d(mixed, depthwise, bias, padding=depthwise.shape[-1] // 2, groups=depthwise.shape[0])
    return F.relu(out) if relu else out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of every channel over all pixels of all images.

    Args:
        x: (N, C, H, W), not empty.

    Returns:
        (C,) each, fp32, or fp64 for maps in it.
    """
    variance, mean = torch.var_mean(x.to(sum_type(x.dtype)), _PIXELS, correction=0)
    return mean, variance


def normalise(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Shift and scale every channel: act((x - mean) * scale + bias).

    The mean is taken away first: as x * scale + (bias - mean * scale), a channel far from 0 would lose digits.

    Args:
        x: (N, C, H, W).
        mean, scale, bias: (C,) fp32, or fp64 for maps in it; rounding happens once, at the end.
        relu: apply max(0, .) at the end.

    Returns:
        (N, C, H, W) in x's dtype.
    """
    y = _centred(x, mean) * _map(scale) + _map(bias)
    return (F.relu(y) if relu else y).to(x.dtype)


def max_pool(x: Tensor) -> Tensor:
    """Take the largest of each 2 x 2 pixels; its gradient goes to the first of equals, in the order of rows.

    Args:
        x: (N, C, H, W), H and W >= 2; an odd map's last row and column are left out.

    Returns:
        (N, C, H // 2, W // 2) in x's dtype.
    """
    return F.max_pool2d(x, 2)


def max_pool_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Return the gradient (N, C, H, W) of what `max_pool` read."""
    _, places = F.max_pool2d(x, 2, return_indices=True)
    found = torch.zeros_like(x)
    found.flatten(2).scatter_(2, places.flatten(2), gradient.to(x.dtype).flatten(2))
    return found


def normalise_sums(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, *, relu: bool = False
) -> Tensor:
    """Return what the gradient of a batch norm needs to know of all pixels: the sums of g and of g (x - mean).

    g is the gradient of `normalise`'s result, 0 where its ReLU was; other arguments as there.

    Returns:
        (2, C) fp32, or fp64 for maps in it.
    """
    g = _active(gradient, x, mean, scale, bias, relu)
    return torch.stack((g.sum(_PIXELS), (g * _centred(x, mean)).sum(_PIXELS)))


def normalise_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, shares: Tensor, *, relu: bool = False
) -> Tensor:
    """Return scale * (g - shares[0] - shares[1] (x - mean)): the gradient of a batch norm's input.

    Args:
        gradient, x, mean, scale, bias, relu: as for `normalise_sums`.
        shares: (2, C): with its sums (a, b) over n pixels, a / n and b / (n (variance + eps)); 0 where mean and scale
            did not come from x.

    Returns:
        (N, C, H, W) in x's dtype.
    """
    g = _active(gradient, x, mean, scale, bias, relu)
    return (_map(scale) * (g - _map(shares[0]) - _map(shares[1]) * _centred(x, mean))).to(x.dtype)


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums are made in: fp32, or fp64 for maps in it (checks of gradients use that)."""
    return torch.promote_types(dtype, torch.float32)


def _active(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    g = gradient.to(mean.dtype)
    return torch.where(_centred(x, mean) * _map(scale) + _map(bias) > 0, g, 0) if relu else g


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    return x.to(mean.dtype) - _map(mean)


def _map(values: Tensor) -> Tensor:
    return values[:, None, None]
