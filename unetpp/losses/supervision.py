"""The loss of one head and of all heads, alone or as one of several workers; knows terms, not what they compute.

**Several workers.** Dice is not a mean over pixels, so the mean of workers' losses is not the batch's loss. Every term
is therefore a function f of sums S = s_1 + ... + s_W over the workers' pixels, and S is what `reduce` returns. The
gradient wanted is f'(S) * sum_r ds_r/dw. Worker r computes f(S), the same number everywhere; `reduce` adds its incoming
gradients over workers, f'(S) from each, so W f'(S) arrives at s_r and the worker's gradient is W f'(S) ds_r/dw. Their
mean over workers, which DistributedDataParallel takes, is exactly the gradient wanted, however unequal the workers'
shares. This holds for all terms but Lovász, which sorts pixels: it is the mean of the workers' own values.

**Parts of a batch one after the other** (gradient accumulation) cannot see later parts' sums: the gradient is that of
the mean of the parts' losses. That is the whole batch's for ce and focal where all parts have the same sum of weights
(for plain ce: as many pixels that count), and another, equally legitimate loss for all other terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unetpp.errors import ConfigError
from unetpp.losses.config import LossConfig
from unetpp.losses.pixels import Scores, Truth
from unetpp.losses.terms import make_terms
from unetpp.losses.touching import touching_weights

_HYBRID = LossConfig()


def hybrid_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy + soft Dice, both over the whole batch: CE + mean_k(1 - (2 I_k + 1) / (P_k + T_k + 1)).

    I, P and T are sums over valid pixels of p*t, p and t for class k. Only classes that occur in the batch count in the
    mean: a class that is absent has no overlap to improve. One logit means binary cross-entropy and the Dice of the
    foreground. The combination is the one of the UNet++ papers (eq. 2 of the 2018 paper) with both terms positive.

    Args:
        logits: (N, K, H, W); K = 1 is foreground against background.
        target: (N, H, W) integers 0..K-1 (0 or 1 for K = 1), 255 where a pixel does not count.

    Returns:
        A scalar; 0 with zero gradient where no pixel counts.

    Raises:
        ShapeError: target and logits are not of the same pixels.
    """
    return supervised_loss([logits], target)


def supervised_loss(
    heads: Sequence[Tensor],
    target: Tensor,
    config: LossConfig = _HYBRID,
    *,
    objects: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the mean of the heads' losses: deep supervision with the papers' equal weights.

    Args:
        heads: logits (N, K, H, W) of every head; K = 1 is foreground against background.
        target: (N, H, W) integers 0..K-1 (0 or 1 for K = 1), 255 where a pixel does not count.
        config: the terms and their weights.
        objects: (N, H, W) integers, 0 where there is no object; needed where `config.touching` is not 0.
        reduce: returns the sum of a tensor over all workers, and in backward the sum of its gradients, as
            `torch.distributed.nn.functional.all_reduce` does; called once. None: there are no other workers.

    Returns:
        A float32 scalar (float64 for float64 logits), equal in all workers; 0 with zero gradient where no pixel counts.

    Raises:
        ShapeError: target and logits are not of the same pixels.
        ConfigError: touching weights without objects, or class weights or cldice classes that do not fit the logits.
    """
    more = None
    if config.touching:
        if objects is None:
            raise ConfigError(f"touching = {config.touching}, but the data has no object numbers: set it to 0")
        more = touching_weights(objects, config.touching, config.touching_radius)
    truth = Truth.of(target, heads[0], config.class_weights, more)
    terms = make_terms(config, truth)
    scores = [Scores.of(head, truth) for head in heads]
    sums = [term.sums(score) for score in scores for _, term in terms]
    if reduce is not None:
        # All of them at once: a message costs its latency, not its few numbers.
        total = reduce(torch.cat([part.flatten() for part in sums]))
        parts = torch.split(total, [part.numel() for part in sums])
        sums = [part.view_as(own) for part, own in zip(parts, sums, strict=True)]
    weighted = terms * len(heads)
    losses = [weight * term.value(part) for (weight, term), part in zip(weighted, sums, strict=True)]
    return torch.stack(losses).sum() / len(heads)
