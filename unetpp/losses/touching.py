"""Weights of the pixels between touching objects; knows object numbers only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def touching_weights(objects: Tensor, extra: float, radius: int) -> Tensor:
    """Return 1 + extra where the square of side 2 radius + 1 around a pixel holds two different objects, 1 elsewhere.

    The purpose is that of U-Net's border weights (Ronneberger et al. 2015, eq. 2), without distance transforms: the
    largest and the smallest object number of the square are found by max pooling on the tensor's own device.

    Args:
        objects: (N, H, W) integers, 0 where there is no object.
        extra: what the pixels between objects weigh more.
        radius: in pixels.

    Returns:
        (N, H, W) float32.
    """
    # Pooling takes no integers, and float32 would join large numbers, such as those of buildings in a map.
    number = objects[:, None].double()
    present = number > 0
    largest = _largest_around(number, radius)
    smallest = -_largest_around(torch.where(present, -number, -torch.inf), radius)
    # Without any object the largest is 0 and the smallest infinite.
    return torch.where(smallest < largest, 1.0 + extra, 1.0)[:, 0]


def _largest_around(x: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(x, 2 * radius + 1, stride=1, padding=radius)
