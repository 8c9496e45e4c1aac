"""The Lovász extension of the Jaccard loss for one class; knows errors and a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_jaccard(errors: Tensor, truth: Tensor) -> Tensor:
    """Return the Lovász extension of 1 - IoU at the errors (Berman et al. 2018, Algorithm 1).

    In the order of falling errors, each error weighs what its pixel adds to 1 - IoU when it becomes wrong as well. A
    true pixel leaves the intersection and adds 1 / U. Another one makes the union U, with the intersection staying I,
    and adds I / (U - 1) - I / U = I / (U (U - 1)): no differences of nearly equal numbers, as in running sums.

    Pixels that do not count have error 0 and are not true: they come last and weigh nothing.

    Args:
        errors: (P,) float, 0..1: |truth - probability|.
        truth: (P,) bool.

    Returns:
        A scalar; 0 where no pixel is true.
    """
    ordered, order = errors.sort(descending=True, stable=True)
    true = truth[order]
    # Counts as integers: exact for any number of pixels, and cumulative sums of them are deterministic on a GPU.
    lost = true.long().cumsum(0)
    count = lost[-1]
    union = (count + torch.arange(1, len(true) + 1, device=true.device) - lost).to(errors.dtype)
    intersection = (count - lost).to(errors.dtype)
    step = torch.where(true, 1 / union.clamp(min=1), intersection / (union * (union - 1)).clamp(min=1))
    return (ordered * step).sum()
