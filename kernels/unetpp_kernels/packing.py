"""Weights as the kernels read them: channels innermost, upsampling folded in; knows no pixels and no device."""

from __future__ import annotations

import torch
from torch import Tensor

from unetpp_kernels.definition import Resampling

# How much of the low-resolution rows i - 1, i, i + 1 is in the three upsampled rows that a 3x3 filter sees around row
# 2i (even) and 2i + 1 (odd). Along an image's edge the row outside is the filter's zero padding, not upsampled at all.
_EVEN = {"bilinear": ((0.75, 0.25, 0), (0.25, 0.75, 0), (0, 0.75, 0.25)), "nearest": ((1, 0, 0), (0, 1, 0), (0, 1, 0))}
_ODD = {"bilinear": ((0.25, 0.75, 0), (0, 0.75, 0.25), (0, 0.25, 0.75)), "nearest": ((0, 1, 0), (0, 1, 0), (0, 0, 1))}


def taps(depthwise: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (K * K, C) from depthwise weights (C, 1, K, K); a view where they already lie so, in that type."""
    count, _, rows, columns = depthwise.shape
    return depthwise[:, 0].permute(1, 2, 0).reshape(rows * columns, count).to(dtype).contiguous()


def phases(depthwise: Tensor, mode: Resampling, dtype: torch.dtype) -> Tensor:
    """Return (4, 4, 3, 3, C): x2 upsampling followed by the depthwise 3x3 weights (C, 1, 3, 3), as one convolution.

    The result at output pixel (y, x) is the sum over r, s of [phase(y), phase(x), r, s] times the low-resolution pixel
    (y // 2 + r - 1, x // 2 + s - 1), indices clamped to the image. phase(y) is 0 for even rows, 1 for odd ones, 2 for
    the first row and 3 for the last: both operations are linear, so that their composition is a convolution with
    weights that depend on nothing else.
    """
    along = torch.tensor(
        [_EVEN[mode], _ODD[mode], _EVEN[mode], _ODD[mode]], dtype=torch.float64, device=depthwise.device
    )
    along[2, 0] = 0
    along[3, 2] = 0
    weight = depthwise[:, 0].to(torch.float64)
    return torch.einsum("ckl,akr,bls->abrsc", weight, along, along).to(dtype).contiguous()


def mix(pointwise: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (O, C) contiguous from pointwise weights (O, C, 1, 1)."""
    return pointwise[:, :, 0, 0].to(dtype).contiguous()
