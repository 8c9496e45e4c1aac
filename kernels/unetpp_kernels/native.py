"""Batch norm of a CPU's maps by torch's own kernels, for moments that are those of several ranks; knows no gradients.

The same functions as in `definition`, of which each is several passes over a map in fp32: eight times as slow on a CPU.
torch's kernels take statistics from outside, as in evaluation, where nothing flows through them; here the caller adds
what does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_VALUES = 4096
"""Of fewer values per channel what flows through the moments is as large as the rest of a gradient, and rounding both
one by one would cost a bit; and nothing is gained."""


def suits(x: Tensor, *, relu: bool = False) -> bool:
    """Say whether these functions take a map: a large one on a CPU, without ReLU."""
    return x.device.type == "cpu" and x.dtype in _TYPES and not relu and x.numel() >= _VALUES * x.shape[1] > 0


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `definition.moments`."""
    unused = x.new_zeros(x.shape[1], dtype=torch.float32)  # its type is that of the results
    mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    return mean, variance


def normalise(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """See `definition.normalise`; a channel far from 0 loses digits as it does in `nn.BatchNorm2d`."""
    return F.batch_norm(x, mean, torch.ones_like(mean), scale, bias, training=False, eps=0.0)


def normalise_sums(gradient: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """See `definition.normalise_sums`."""
    _, of_scale, of_bias = _backward(gradient, x, mean, None, (False, True, True))
    return torch.stack((of_bias, of_scale))


def normalise_backward(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shares: Tensor) -> Tensor:
    """See `definition.normalise_backward`; rounds the two parts of the result one by one."""
    direct, _, _ = _backward(gradient, x, mean, scale, (True, False, False))
    return direct.add_(normalise(x, mean, -scale * shares[1], -scale * shares[0]))


def _backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor | None, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    scale, ones = torch.ones_like(mean) if scale is None else scale, torch.ones_like(mean)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        gradient, x, scale, mean, ones, None, None, False, 0.0, wanted
    )
    return found
