"""Launches the gradient kernels on tensors: blocks from the table, grids from shapes; adds partial sums up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from unetpp_kernels import table
from unetpp_kernels.definition import Resampling
from unetpp_kernels.gpu import arguments
from unetpp_kernels.gpu.arguments import (
    Norm,
    cdiv,
    feature_map,
    feature_maps,
    floor,
    kinds,
    norm_arguments,
    six,
    vector,
)
from unetpp_kernels.gpu.launch import run
from unetpp_kernels.table import Row

_PROGRAMS = 528
"""Programs that share the sums over pixels, whatever the device: the order of a sum must not depend on it."""


def pointwise(
    gradient: Tensor, sources: Sequence[Tensor], mix: Tensor, norm: Norm | None = None
) -> tuple[list[Tensor], Tensor] | None:
    """Return the gradients of sources, after their norm if they have one, and mix (O, C) fp32; or None: no row."""
    maps, g = feature_maps(sources), feature_map(gradient)
    outputs, channels = mix.shape
    dtype, _, dot = kinds(g, packed=False)
    chosen = table.pointwise_backward(dtype, dot, outputs)
    if not _fits(chosen, maps):
        return None
    if norm is not None:
        chosen = table.with_norm(chosen)
        assert chosen is not None
    n, _, height, width = maps[0].shape
    pixels = n * height * width
    blocks = sum(cdiv(x.shape[1], chosen["BLOCK_K"]) for x in maps)
    programs = _programs(cdiv(pixels, chosen["BLOCK_M"]), blocks)
    found = [arguments.empty_map(x, n, x.shape[1], height, width) for x in maps]
    dmix = _partial(g, programs, outputs, channels)
    run(
        chosen,
        (programs, blocks),
        g,
        *six(maps),
        *norm_arguments(norm, g),
        mix,
        *six(found),
        dmix,
        pixels,
        channels,
        len(maps),
        *six([x.shape[1] for x in maps]),
    )
    return _split(found, sources), dmix.sum(0)


def depthwise_pointwise(
    gradient: Tensor,
    sources: Sequence[Tensor],
    taps: Tensor,
    inner_bias: Tensor | None,
    mix: Tensor,
    *,
    inner_relu: bool,
) -> tuple[Tensor, Tensor] | None:
    """Return the gradients of the depthwise sums (N, C, H, W) and of mix (O, C) fp32; or None."""
    maps, g = feature_maps(sources), feature_map(gradient)
    outputs, channels = mix.shape
    dtype, _, dot = kinds(g, packed=False)
    inner = inner_bias is not None or inner_relu
    chosen = table.depthwise_pointwise_backward(dtype, dot, outputs, inner=inner)
    if not _fits(chosen, maps):
        return None
    n, _, height, width = maps[0].shape
    tiles = n * cdiv(height, chosen["R"]) * cdiv(width, chosen["BLOCK_W"])
    blocks = sum(cdiv(x.shape[1], chosen["BLOCK_K"]) for x in maps)
    programs = _programs(tiles, blocks)
    sums = arguments.empty_map(g, n, channels, height, width)
    dmix = _partial(g, programs, outputs, channels)
    run(
        chosen,
        (programs, blocks),
        g,
        *six(maps),
        taps,
        vector(inner_bias, channels, g),
        mix,
        sums,
        dmix,
        n,
        height,
        width,
        channels,
        len(maps),
        *six([x.shape[1] for x in maps]),
        floor(inner_relu),
    )
    return sums, dmix.sum(0)


def depthwise(gradient: Tensor, x: Tensor, taps: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (N, C, H, W), and its taps (9, C) fp32, for 3x3, stride 1.

    gradient (N, G, H, W) and taps (9, G) fp32 may be those of a concatenation in which x begins at channel `first`.
    """
    x, g = feature_map(x), feature_map(gradient)
    n, channels, height, width = x.shape
    even = all(size % 16 == 0 for size in (channels, g.shape[1], first))
    chosen = table.depthwise_backward(kinds(x, packed=False)[0], even=even)
    tiles = n * cdiv(height, chosen["R"]) * cdiv(width, chosen["BLOCK_W"])
    blocks = cdiv(channels, chosen["BLOCK_K"])
    programs = _programs(tiles, blocks)
    dx = arguments.empty_map(x, n, channels, height, width)
    dtaps = _partial(x, programs, 9, channels)
    run(
        chosen,
        (programs, blocks),
        g,
        x,
        taps,
        dx,
        dtaps,
        n,
        height,
        width,
        channels,
        g.shape[1],
        first,
    )
    return dx, dtaps.sum(0)


def upsample(gradient: Tensor, mode: Resampling) -> Tensor:
    """Return the gradient (N, C, H, W) of what was upsampled to (N, C, 2H, 2W)."""
    g = feature_map(gradient)
    n, channels, height, width = g.shape
    chosen = table.upsample_backward(kinds(g, packed=False)[0], bilinear=mode == "bilinear", even=channels % 32 == 0)
    dx = arguments.empty_map(g, n, channels, height // 2, width // 2)
    grid = (cdiv(n * (height // 2) * (width // 2), chosen["BLOCK_M"]), cdiv(channels, chosen["BLOCK_K"]))
    run(chosen, grid, g, dx, n, height // 2, width // 2, channels)
    return dx


def _fits(chosen: Row | None, maps: Sequence[Tensor]) -> TypeGuard[Row]:
    return chosen is not None and not any(x.shape[1] % chosen["BLOCK_K"] for x in maps)


def _programs(tiles: int, blocks: int) -> int:
    return max(1, min(tiles, _PROGRAMS // blocks))


def _partial(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _split(found: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
    """Undo the concatenation of surplus sources in `_maps`."""
    if len(found) == len(sources):
        return list(found)
    head, last = list(found[:-1]), found[-1]
    return [*head, *torch.split(last, [x.shape[1] for x in sources[len(head) :]], 1)]
