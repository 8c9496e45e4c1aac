"""Differentiable skeletons of probabilities; knows images between 0 and 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_skeleton(x: Tensor, steps: int) -> Tensor:
    """Return the soft skeleton of Shit et al. 2021 (clDice, CVPR, Algorithm 1).

    What an opening removes is skeleton; it is collected while the image is eroded `steps` times.

    Args:
        x: (N, C, H, W) float in 0..1.
        steps: k of the paper, at least the radius of the widest structure.

    Returns:
        The same shape, in 0..1.
    """
    skeleton = torch.zeros_like(x)
    for _ in range(steps + 1):
        eroded = _erode(x)
        opened = F.max_pool2d(eroded, 3, 1, 1)
        skeleton = skeleton + (1 - skeleton) * F.relu(x - opened)
        x = eroded
    return skeleton


def _erode(x: Tensor) -> Tensor:
    # Of the authors' code, not of the algorithm's text: a cross erodes more evenly than a square.
    down = -F.max_pool2d(-x, (3, 1), 1, (1, 0))
    across = -F.max_pool2d(-x, (1, 3), 1, (0, 1))
    return torch.minimum(down, across)
