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
    relu: bool = False,
    mode: Resampling = "bilinear",
) -> Tensor:
    """Filter every channel in space, then mix channels: relu(pw(dw(cat(*sources, up(low)))) + bias).

    Args:
        sources: tensors (N, C_k, H, W), read in this order; at least one unless `low` is given.
        low: (N, C_l, H/2, W/2), read through `upsample2x`; its channels come last.
        depthwise: (C, 1, K, K), K odd; zero padding keeps the size.
        pointwise: (O, C, 1, 1).
        bias: (O,).
        relu: apply max(0, .) at the end.
        mode: how `low` is upsampled.

    Returns:
        (N, O, H, W) in the sources' dtype.
    """
    inputs = list(sources) if low is None else [*sources, upsample2x(low, mode)]
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
    x = F.conv2d(x, depthwise, padding=depthwise.shape[-1] // 2, groups=depthwise.shape[0])
    x = F.conv2d(x, pointwise, bias)
    return F.relu(x) if relu else x


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
