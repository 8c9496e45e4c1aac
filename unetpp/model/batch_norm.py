"""Batch normalisation whose training statistics can be those of all ranks together; knows no network."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PIXELS = (0, 2, 3)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, and where `synchronised` the same over the batches of all ranks of the default process group.

    Input and output (N, C, H, W) of one floating type; ranks may differ in N, H and W, also be empty, but all must
    call it. Every rank ends with the same running statistics, the variance being that of an unbiased estimate over all
    ranks' values. Gradients of weight and bias are this rank's share: their sum over ranks is the gradient of the sum
    of all ranks' losses. Outside training, with one rank and without `synchronised` this is `nn.BatchNorm2d` itself.
    """

    synchronised: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.synchronised and _ranks() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        result, mean, variance, count = _Synchronised.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            factor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        return result  # type: ignore[no-any-return]


def synchronise(network: nn.Module, on: bool = True) -> None:
    """Turn the synchronisation of every `BatchNorm2d` in `network` on or off."""
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.synchronised = on


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Synchronised(torch.autograd.Function):
    """x -> (y, mean, variance, count): y = weight (x - mean) / sqrt(variance + eps) + bias, all moments over all ranks.

    With n values per channel on all ranks, z = (x - mean) / sqrt(variance + eps) and g the gradient of y, the gradient
    of x is weight / sqrt(variance + eps) (g - sum(g) / n - z sum(g z) / n) (Ioffe and Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(_wide(x))
        mean, variance, count = _moments_of_ranks(wide)
        centre, inverse = mean.to(wide.dtype), torch.rsqrt(variance + eps).to(wide.dtype)
        scale = inverse if weight is None else inverse * weight
        y = (wide - _map(centre)) * _map(scale)
        y = y if bias is None else y + _map(bias)
        ctx.save_for_backward(x, weight, centre, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, centre, inverse, count = ctx.saved_tensors
        g = gradient.to(centre.dtype)
        z = (x.to(centre.dtype) - _map(centre)) * _map(inverse)
        sums = torch.stack((g.sum(_PIXELS), (g * z).sum(_PIXELS)))
        of_bias, of_weight = sums.clone()
        # Also where this rank needs no gradient of x: another rank may wait for its sums.
        dist.all_reduce(sums)
        means = (sums / count).to(centre.dtype)
        scale = inverse if weight is None else inverse * weight
        of_x = _map(scale) * (g - _map(means[0]) - z * _map(means[1]))
        needed = ctx.needs_input_grad
        return (
            of_x.to(x.dtype) if needed[0] else None,
            of_weight.to(weight.dtype) if needed[1] else None,
            of_bias.to(weight.dtype) if needed[2] else None,
            None,
        )


def _moments_of_ranks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and count () of (N, C, H, W) maps on all ranks, in float64.

    Ranks' moments are joined around the common mean (Chan, Golub and LeVeque 1983), in the order of the ranks: no sum
    of squares is ever subtracted from another, and all ranks get the same bits.
    """
    values = x.numel() // x.shape[1]
    if values:
        variance, mean = torch.var_mean(x, _PIXELS, correction=0)
    else:
        variance = mean = x.new_zeros(x.shape[1])
    own = torch.cat((mean.double(), variance.double(), mean.new_tensor([values], dtype=torch.float64)))
    parts = [torch.empty_like(own) for _ in range(_ranks())]
    dist.all_gather(parts, own)
    table, channels = torch.stack(parts), x.shape[1]
    means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _map(values: Tensor) -> Tensor:
    return values[:, None, None]
