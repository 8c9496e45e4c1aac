"""Brings raw samples to zero mean and unit deviation on the training device; knows two numbers per band."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalise:
    """(N, C, H, W) raw samples -> (x - mean) / std, channels last.

    Args:
        mean, std: per band, in raw units.
        device: where it is used.

    Attributes:
        values: mean and std.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        self.device = device
        self.values = (tuple(map(float, mean)), tuple(map(float, std)))
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None]
        self._std = torch.tensor(std, dtype=torch.float32, device=device)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        return ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
