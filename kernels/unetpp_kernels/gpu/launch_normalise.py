"""Launches moments and batch norm on tensors: blocks from the table, grids from shapes; joins partial results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unetpp_kernels import table
from unetpp_kernels.gpu import arguments
from unetpp_kernels.gpu.arguments import DTYPES, Norm, Parts, cdiv, feature_map, floor, norm_arguments
from unetpp_kernels.gpu.launch import run

_PROGRAMS = 1024
"""Programs that share the sums over pixels, whatever the device: the order of a sum must not depend on it."""


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) fp32 of a map (N, C, H, W)."""
    x = feature_map(x)
    pixels, channels = _sizes(x)
    chosen = table.moments(DTYPES[x.dtype], even=channels % 32 == 0)
    programs = cdiv(pixels, chosen["BLOCK_M"] * chosen["R"])
    parts = torch.empty((programs, 3, channels), dtype=torch.float32, device=x.device)
    run(chosen, (programs, cdiv(channels, chosen["BLOCK_K"])), x, parts, pixels, channels)
    return _joined(parts, pixels)


def joined(parts: Parts, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) fp32 of y: from its partial moments, or from y where there are none."""
    return moments(y) if parts.tensor is None else _joined(parts.tensor, _sizes(y)[0])


def _joined(found: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance from partial moments (P, 3, C), joined in a fixed order."""
    chosen = table.join()
    while found.shape[0] > 1:
        count, _, channels = found.shape
        # About as many rows as each program of the next round reads at once: two rounds for any map.
        each = max(chosen["BLOCK_P"], cdiv(count, chosen["BLOCK_P"]))
        fresh = torch.empty((cdiv(count, each), 3, channels), dtype=torch.float32, device=found.device)
        run(chosen, (fresh.shape[0], cdiv(channels, chosen["BLOCK_K"])), found, fresh, count, channels, each)
        found = fresh
    return found[0, 1].clone(), found[0, 2] / pixels


def normalise(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """Run the forward kernel."""
    x = feature_map(x)
    pixels, channels = _sizes(x)
    chosen = table.normalise("normalise", DTYPES[x.dtype], even=channels % 32 == 0)
    y = arguments.empty_map(x, *x.shape)
    grid = (cdiv(pixels, chosen["BLOCK_M"]), cdiv(channels, chosen["BLOCK_K"]))
    run(chosen, grid, x, mean, scale, bias, y, pixels, channels, floor(relu))
    return y


def behind(norm: Norm, sources: Sequence[Tensor]) -> list[Tensor]:
    """Return sources behind their norms and ReLU."""
    widths = [x.shape[1] for x in sources]
    own = zip(*(torch.split(v, widths) for v in (norm.mean, norm.scale, norm.shift)), strict=True)
    return [normalise(x, *vectors, relu=True) for x, vectors in zip(sources, own, strict=True)]


def sums(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """Return (2, C) fp32; see `definition.normalise_sums`."""
    x, g = feature_map(x), feature_map(gradient)
    pixels, channels = _sizes(x)
    chosen = table.normalise("normalise_sums", DTYPES[x.dtype], even=channels % 32 == 0)
    blocks = cdiv(channels, chosen["BLOCK_K"])
    programs = max(1, min(cdiv(pixels, chosen["BLOCK_M"]), _PROGRAMS // blocks))
    parts = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    run(chosen, (programs, blocks), g, x, mean, scale, bias, parts, pixels, channels, floor(relu))
    return parts.sum(0)


def backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, shares: Tensor, *, relu: bool
) -> Tensor:
    """Return the gradient of x; see `definition.normalise_backward`."""
    x, g = feature_map(x), feature_map(gradient)
    pixels, channels = _sizes(x)
    chosen = table.normalise("normalise_backward", DTYPES[x.dtype], even=channels % 32 == 0)
    dx = arguments.empty_map(x, *x.shape)
    grid = (cdiv(pixels, chosen["BLOCK_M"]), cdiv(channels, chosen["BLOCK_K"]))
    run(chosen, grid, g, x, mean, scale, bias, shares, dx, pixels, channels, floor(relu))
    return dx


def pool(x: Tensor, norm: Norm) -> Tensor:
    """Return the 2x2 max pooling of x behind its norm and ReLU."""
    x = feature_map(x)
    n, channels, height, width = x.shape
    chosen = table.normalise("pool", DTYPES[x.dtype], even=channels % 32 == 0)
    y = arguments.like_map(x, channels, height // 2, width // 2)
    grid = (cdiv(y.numel() // channels, chosen["BLOCK_M"]), cdiv(channels, chosen["BLOCK_K"]))
    run(chosen, grid, x, *norm_arguments(norm, x), y, n, height, width, channels)
    return y


def pool_backward(gradient: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Return the gradient behind the norm, whose pixels that were not the largest have none."""
    x, g = feature_map(x), feature_map(gradient)
    n, channels, height, width = x.shape
    chosen = table.normalise("pool_backward", DTYPES[x.dtype], even=channels % 32 == 0)
    found = arguments.empty_map(x, *x.shape)
    windows = n * cdiv(height, 2) * cdiv(width, 2)
    grid = (cdiv(windows, chosen["BLOCK_M"]), cdiv(channels, chosen["BLOCK_K"]))
    run(chosen, grid, g, x, *norm_arguments(norm, x), found, n, height, width, channels)
    return found


def _sizes(x: Tensor) -> tuple[int, int]:
    n, channels, height, width = x.shape
    return n * height * width, channels
