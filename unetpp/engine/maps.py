"""Turns logits into labels, class probabilities and uncertainty, all as bytes; knows tensors, no engine and no file.

The uncertainty of a pixel is how far the heads X^{0,1..L} of deep supervision disagree there: the square root of the
Jensen-Shannon divergence of their L class distributions p_1..p_L with equal weights (Lin, Divergence measures based on
the Shannon entropy, IEEE Trans. Inf. Theory 37, 1991, eq. 5.1),

    JSD = H(mean of p_j) - mean of H(p_j)

divided by its largest value, log min(L, K) for K classes, so that 0 is full agreement and 1 none. The root is a metric
between distributions (Endres and Schindelin, IEEE Trans. Inf. Theory 49, 2003) and keeps small disagreement above a
step of the bytes. It tells where the network's own depths differ; it is no calibrated probability of an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unetpp.maps import STEPS, MapName

_ROWS = 128
"""Rows of a tile that are turned at once on a CPU: intermediate results stay in its cache."""


def decide(logits: Tensor, values: Sequence[int]) -> Tensor:
    """Return (H, W) uint8 class values of the largest of logits (K, H, W); of equal ones the first class wins.

    A chain of comparisons, which engines fuse into one pass. A single logit is the second class's, the first has 0.
    """
    if logits.shape[0] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits])
    best, labels = logits[0], torch.full_like(logits[0], values[0])
    for k in range(1, len(values)):
        larger = logits[k] > best
        labels = torch.where(larger, float(values[k]), labels)
        best = torch.maximum(best, logits[k])
    return labels.to(torch.uint8)


def layers(heads: Tensor, values: Sequence[int], maps: Sequence[MapName]) -> Tensor:
    """Return labels and maps of one tile, one plane after the other.

    Args:
        heads: (L, K, H, W) float32 logits, deepest last; one head where no uncertainty is asked for.
        values: of the classes.
        maps: which, in the order of `MAPS`.

    Returns:
        (planes, H, W) uint8: class values, then quantized maps (see `unetpp.maps`).
    """
    if heads.is_cuda:
        return _layers(heads, values, maps)
    return torch.cat([_layers(part, values, maps) for part in torch.split(heads, _ROWS, dim=2)], dim=1)


def _layers(heads: Tensor, values: Sequence[int], maps: Sequence[MapName]) -> Tensor:
    planes = [decide(heads[-1], values)[None]]
    if maps:
        logs = _log_probabilities(heads if "uncertainty" in maps else heads[-1:])
        if "probabilities" in maps:
            planes.append(_quantized(logs[-1].exp()))
        if "uncertainty" in maps:
            planes.append(_quantized(_distance(logs))[None])
    return torch.cat(planes)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return (L, max(K, 2), H, W) logarithms of the class probabilities."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return torch.log_softmax(logits, dim=1)


def _distance(logs: Tensor) -> Tensor:
    """Return (H, W) the normalised Jensen-Shannon distance over the first axis of log-probabilities (L, K, H, W)."""
    count, classes = logs.shape[:2]
    each = logs.exp()
    mean = each.mean(dim=0)
    # Of each head its divergence from the mean: a difference of two entropies would lose digits where heads agree.
    divergence = (each * (logs - torch.log(mean.clamp_min(_TINY)))).sum(dim=1).mean(dim=0)
    return (divergence / math.log(min(count, classes))).clamp(0, 1).sqrt()


_TINY = 1e-30


def _quantized(shares: Tensor) -> Tensor:
    return (shares * STEPS + 0.5).floor().to(torch.uint8)
