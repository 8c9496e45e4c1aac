"""Batch normalisation whose training statistics can be those of all ranks together; knows no network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from unetpp_kernels import Map, batch_norm, moments, normalised


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, and where `synchronised` the same over the batches of all ranks of the default process group.

    Input and output (N, C, H, W) of one floating type; ranks may differ in N, H and W, also be empty, but all must
    call it. Every rank ends with the same running statistics, the variance being that of an unbiased estimate over all
    ranks' values. Gradients of weight and bias are this rank's share: their sum over ranks is the gradient of the sum
    of all ranks' losses. Outside training, with one rank and without `synchronised` this is `nn.BatchNorm2d` itself.
    """

    synchronised: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.total is not None:
            return self.normalised(input, None, relu=False)
        return super().forward(input)

    def normalised(self, x: Tensor, own: tuple[Tensor, Tensor] | None, *, relu: bool) -> Tensor:
        """Normalise a training batch in one operation, and count it.

        Args:
            x: (N, C, H, W).
            own: mean and biased variance (C,) of x, where they are known already.
            relu: apply max(0, .) at the end.
        """
        statistics = self.counted(x, own)
        if statistics is None:
            return _activated(super().forward(x), relu)  # torch refuses such a batch in its own words
        return batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps, relu=relu, total=self.total)

    def behind(self, x: Tensor, own: tuple[Tensor, Tensor] | None) -> Map:
        """Return `normalised(x, own, relu=True)`, not stored where those who read it can make it anew."""
        statistics = self.counted(x, own)
        if statistics is None:
            return _activated(super().forward(x), True)
        return normalised(x, *statistics, self.weight, self.bias, eps=self.eps, total=self.total)

    def counted(self, x: Tensor, own: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor | int] | None:
        """Count a training batch; return the mean, variance and number of values that it is normalised by.

        Arguments as of `normalised`. None where a batch of one value per channel has no variance.
        """
        self._check_input_dim(x)
        values = x.numel() // x.shape[1]
        if self.total is None and values < 2:
            return None
        mean, variance = (own or moments(x)) if values else (x.new_zeros(x.shape[1]),) * 2
        count: Tensor | int = values
        if self.total is not None:
            mean, variance, count = _over_ranks(mean, variance, values)
        if self.track_running_stats:
            self._count(mean, variance, count)
        return mean, variance, count

    @property
    def total(self) -> Callable[[Tensor], object] | None:
        """Return what adds a tensor up over the ranks that share statistics, None for a rank alone."""
        return dist.all_reduce if self.synchronised and _ranks() > 1 else None

    @torch.no_grad()
    def _count(self, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        # Of a single value on all ranks the variance is 0 whatever it is multiplied with.
        others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else count - 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * (count / others)).to(self.running_var.dtype), factor)


def synchronise(network: nn.Module, on: bool = True) -> None:
    """Turn the synchronisation of every `BatchNorm2d` in `network` on or off."""
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.synchronised = on


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_ranks(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and count () over all ranks, in float64.

    They are joined around the common mean (Chan, Golub and LeVeque 1983), in the order of the ranks: no sum of squares
    is ever subtracted from another, and all ranks get the same bits.
    """
    own = torch.cat((mean.double(), variance.double(), mean.new_tensor([count], dtype=torch.float64)))
    parts = [torch.empty_like(own) for _ in range(_ranks())]
    dist.all_gather(parts, own)
    table, channels = torch.stack(parts), mean.shape[0]
    means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
    number = counts.sum()
    mean = (means * counts).sum(0) / number
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / number, number


def _activated(x: Tensor, relu: bool) -> Tensor:
    return F.relu(x) if relu else x
