"""What training minimises, for one head and for all heads; knows logits and labels, not networks or data.

Pixels labelled 255 (no data) count nowhere. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def hybrid_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Cross-entropy + soft Dice, both over the whole batch: CE + mean_k(1 - (2 I_k + s) / (P_k + T_k + s)).

    I, P and T are sums over valid pixels of p*t, p and t for class k. Only classes that occur in the batch count in the
    mean: a class that is absent has no overlap to improve. One logit means binary cross-entropy and the Dice of the
    foreground. The combination is the one of the UNet++ papers (eq. 2 of the 2018 paper) with both terms positive.

    Args:
        logits: (N, K, H, W); K = 1 is foreground against background.
        target: (N, H, W) integers 0..K-1 (0 or 1 for K = 1), 255 where a pixel does not count.
        smooth: s, keeps small objects' gradients finite.

    Returns:
        A scalar; 0 with zero gradient where no pixel counts.
    """
    valid = target != IGNORE
    labels = torch.where(valid, target, torch.zeros_like(target)).long()
    weight = valid.float()
    pixels = weight.sum().clamp(min=1)
    logits = logits.float()
    if logits.shape[1] == 1:
        score = logits[:, 0]
        truth = labels.float()
        entropy = (F.binary_cross_entropy_with_logits(score, truth, reduction="none") * weight).sum() / pixels
        probability = score.sigmoid() * weight
        sums = (probability * truth).sum(), probability.sum(), (truth * weight).sum()
        return entropy + (1 - _dice(*sums, smooth)) * (sums[2] > 0)
    log_probability = logits.log_softmax(1)
    at_label = log_probability.gather(1, labels[:, None])[:, 0] * weight
    hit = at_label.exp() * weight
    predicted = (log_probability.exp() * weight[:, None]).sum((0, 2, 3))
    truths = [(labels == k) & valid for k in range(logits.shape[1])]
    # Sums per class by masks: deterministic on every device, and no one-hot tensor is made.
    overlap = torch.stack([(hit * truth).sum() for truth in truths])
    counts = torch.stack([truth.sum() for truth in truths]).float()
    present = (counts > 0).float()
    dice = _dice(overlap, predicted, counts, smooth)
    return -at_label.sum() / pixels + ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def supervised_loss(heads: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the mean of `hybrid_loss` over all heads: deep supervision with the papers' equal weights.

    Args:
        heads: logits (N, K, H, W) of every head.
        target: (N, H, W) as in `hybrid_loss`.
    """
    return torch.stack([hybrid_loss(head, target) for head in heads]).mean()


def _dice(overlap: Tensor, predicted: Tensor, truth: Tensor, smooth: float) -> Tensor:
    return (2 * overlap + smooth) / (predicted + truth + smooth)
