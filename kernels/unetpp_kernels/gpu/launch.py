"""Launches the kernels on tensors: blocks from the table, grids from shapes; knows sizes, not what is computed.

All feature maps are (N, C, H, W) in channels_last memory, results too. Weights come packed (see `packing`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unetpp_kernels import table
from unetpp_kernels.definition import Resampling, upsample2x
from unetpp_kernels.gpu import arguments
from unetpp_kernels.gpu.arguments import (
    DTYPES,
    Norm,
    Parts,
    aligned,
    cdiv,
    feature_map,
    feature_maps,
    floor,
    kinds,
    norm_arguments,
    six,
    vector,
)
from unetpp_kernels.gpu.backward import (
    depthwise_backward_kernel,
    depthwise_pointwise_backward_kernel,
    pointwise_backward_kernel,
    upsample_backward_kernel,
)
from unetpp_kernels.gpu.depthwise import depthwise_any_kernel, depthwise_kernel
from unetpp_kernels.gpu.depthwise_pointwise import depthwise_pointwise_kernel
from unetpp_kernels.gpu.ends import depthwise_head_kernel, head_kernel, stem_kernel
from unetpp_kernels.gpu.moments import join_kernel, moments_kernel
from unetpp_kernels.gpu.normalise import normalise_backward_kernel, normalise_kernel, normalise_sums_kernel
from unetpp_kernels.gpu.pointwise import pointwise_kernel
from unetpp_kernels.gpu.pool import pool_backward_kernel, pool_kernel
from unetpp_kernels.table import Added, Row

KERNELS: dict[str, Any] = {
    "depthwise_pointwise": depthwise_pointwise_kernel,
    "pointwise": pointwise_kernel,
    "depthwise": depthwise_kernel,
    "depthwise_any": depthwise_any_kernel,
    "stem": stem_kernel,
    "head": head_kernel,
    "depthwise_head": depthwise_head_kernel,
    "pointwise_backward": pointwise_backward_kernel,
    "depthwise_pointwise_backward": depthwise_pointwise_backward_kernel,
    "depthwise_backward": depthwise_backward_kernel,
    "upsample_backward": upsample_backward_kernel,
    "moments": moments_kernel,
    "join": join_kernel,
    "normalise": normalise_kernel,
    "normalise_sums": normalise_sums_kernel,
    "normalise_backward": normalise_backward_kernel,
    "pool": pool_kernel,
    "pool_backward": pool_backward_kernel,
}
_BACKEND = "hip" if torch.version.hip else "cuda"
_ADDED: dict[Resampling, Added] = {"nearest": 1, "bilinear": 2}


def depthwise_pointwise(
    sources: Sequence[Tensor],
    low: Tensor | None,
    taps: Tensor,
    phases: Tensor | None,
    mix: Tensor,
    bias: Tensor | None,
    inner_bias: Tensor | None,
    *,
    inner_relu: bool,
    relu: bool,
    mode: Resampling,
    packed: bool,
    parts: Parts | None = None,
    norm: Norm | None = None,
) -> Tensor | None:
    """Run the fused kernel; None where the table has no row: too wide, or an inner step on an upsampled source.

    parts: takes the partial moments of the result where there is a row for that.
    norm: sources and then `low` are read through it, or go through it before where the table has no row for that.
    """
    maps = feature_maps(sources)
    below = [] if low is None else [feature_map(low)]
    n, _, height, width = maps[0].shape
    outputs, channels = mix.shape
    inner = inner_bias is not None or inner_relu
    dtype, accumulate, dot = kinds(maps[0], packed)

    def row(even: bool) -> Row | None:
        return table.depthwise_pointwise(dtype, accumulate, dot, outputs, low=low is not None, inner=inner, even=even)

    chosen = row(True)
    if chosen is None:
        return None
    even = outputs == chosen["BLOCK_N"] and not any(x.shape[1] % chosen["BLOCK_K"] for x in (*maps, *below))
    if not even:
        chosen = row(False)
        assert chosen is not None
    chosen, read = _through(norm, _with_parts(chosen, parts), [*maps, *below])
    maps, below = read[: len(maps)], read[len(maps) :]
    if below and not even:
        maps, below = feature_maps([*maps, upsample2x(below[0], mode)]), []
    y = arguments.like_map(maps[0], outputs, height, width)
    grid = (cdiv(width, chosen["BLOCK_W"]), cdiv(height, chosen["G"] * chosen["R"]), n)
    run(
        chosen,
        grid,
        *six(maps),
        below[0] if below else maps[0],
        *norm_arguments(norm, y),
        taps,
        taps if phases is None else phases,
        vector(inner_bias, channels, y),
        mix,
        vector(bias, outputs, y),
        y,
        _room(chosen, parts, math.prod(grid), outputs, y),
        height,
        width,
        channels,
        outputs,
        len(maps),
        *six([x.shape[1] for x in maps]),
        below[0].shape[1] if below else 0,
        floor(inner_relu),
        floor(relu),
    )
    return y


def pointwise(
    sources: Sequence[Tensor],
    mix: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    *,
    pool: bool,
    relu: bool,
    mode: Resampling,
    parts: Parts | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """Run the matrix-product kernel; `mix` (O, C), `parts` as for `depthwise_pointwise`.

    norm: sources are read through it, or go through it before where the table has no row for that.
    """
    maps = feature_maps(sources)
    n, _, source_h, source_w = maps[0].shape
    height, width = (source_h // 2, source_w // 2) if pool else (source_h, source_w)
    outputs, channels = mix.shape
    dtype, _, dot = kinds(maps[0], packed=False)
    if pool and added is not None:
        raise ValueError("pooled sources and an upsampled term together: no network needs both in one convolution")

    def row(even: bool) -> Row:
        return table.pointwise(dtype, dot, outputs, added=0 if added is None else _ADDED[mode], pool=pool, even=even)

    chosen = row(True)
    even = not any(x.shape[1] % chosen["BLOCK_K"] for x in maps)
    if even and outputs <= table.THIN and added is None and not pool:
        chosen = table.thin_pointwise(dtype, dot)
    elif not even or outputs % chosen["BLOCK_N"]:
        chosen = row(False)
    chosen, maps = _through(norm, _with_parts(chosen, parts), maps)
    y = arguments.like_map(maps[0], outputs, height, width)
    programs = cdiv(n * height * width, chosen["BLOCK_M"])
    grid = (programs * cdiv(outputs, chosen["BLOCK_N"]),)
    run(
        chosen,
        grid,
        *six(maps),
        maps[0] if added is None else feature_map(added),
        *norm_arguments(norm, y),
        mix,
        vector(bias, outputs, y),
        y,
        _room(chosen, parts, programs, outputs, y),
        n,
        height,
        width,
        channels,
        outputs,
        source_h,
        source_w,
        len(maps),
        *six([x.shape[1] for x in maps]),
        floor(relu),
    )
    return y


def depthwise(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    *,
    relu: bool,
    stride: int,
    dilation: int,
    packed: bool,
    parts: Parts | None = None,
) -> Tensor:
    """Run a depthwise kernel; taps (K * K, C), `parts` as for `depthwise_pointwise`."""
    x = feature_map(x)
    n, channels, height, width = x.shape
    side = math.isqrt(taps.shape[0])
    dtype, accumulate, _ = kinds(x, packed)
    out_h, out_w = -(-height // stride), -(-width // stride)
    y = arguments.like_map(x, channels, out_h, out_w)
    if (side, stride, dilation) == (3, 1, 1):
        chosen = _with_parts(table.depthwise(dtype, accumulate, even=channels % 32 == 0), parts)
        across, down = cdiv(width, chosen["BLOCK_W"]), cdiv(height, chosen["G"] * chosen["R"])
        room = _room(chosen, parts, n * down * across, channels, y)
        grid = (across, down, n * cdiv(channels, chosen["BLOCK_K"]))
        run(chosen, grid, x, taps, vector(bias, channels, y), y, room, height, width, channels, floor(relu))
    else:
        chosen = table.depthwise_any(dtype, even=channels % 32 == 0)
        pixels = (cdiv(n * out_h * out_w, chosen["BLOCK_M"]), cdiv(channels, chosen["BLOCK_K"]))
        sizes = (n, height, width, channels, out_h, out_w, side, stride, dilation)
        taps = taps.to(torch.float32)  # one kernel for packed weights and others: it sums in fp32
        run(chosen, pixels, x, taps, vector(bias, channels, y), y, *sizes, floor(relu))
    return y


def stem(
    pixels: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor | None, mix: Tensor | None, *, relu: bool
) -> Tensor | None:
    """Run the stem kernel on pixels (N, H, W, bands), weight (9 * bands, O); None where the table has no row."""
    n, height, width, bands = pixels.shape
    outputs = weight.shape[1]
    if pixels.dtype not in (torch.uint8, torch.float32):
        pixels = pixels.to(torch.float32)
    kind: table.Pixels = "u8" if pixels.dtype == torch.uint8 else "fp32"
    chosen = table.stem(DTYPES[weight.dtype], outputs, None if mix is None else mix.shape[0], kind)
    if chosen is None:
        return None
    final = outputs if mix is None else mix.shape[0]
    y = arguments.empty_map(weight, n, final, height, width)
    run(
        chosen,
        (cdiv(n * height * width, chosen["BLOCK_M"]),),
        pixels.contiguous(),
        mean,
        std,
        weight,
        vector(bias, outputs, y),
        weight if mix is None else mix,
        y,
        n,
        height,
        width,
        bands,
        outputs,
        final,
        floor(relu),
    )
    return y


def head(
    x: Tensor,
    mix: Tensor,
    bias: Tensor,
    values: Tensor,
    taps: Tensor | None,
    inner_bias: Tensor | None,
    *,
    inner_relu: bool,
    probabilities: bool,
    packed: bool,
) -> Tensor | None:
    """Run a head kernel, with taps the one that filters first; mix (K, C), K >= 2; None where the table has no row."""
    x = feature_map(x)
    n, channels, height, width = x.shape
    classes = mix.shape[0]
    dtype, accumulate, _ = kinds(x, packed)
    shape = (n, classes, height, width) if probabilities else (n, height, width)
    if taps is None:
        chosen = table.head(dtype, classes, probabilities=probabilities)
        if chosen is None:
            return None
        y = torch.empty(shape, dtype=torch.uint8, device=x.device)
        grid: tuple[int, ...] = (cdiv(n * height * width, chosen["BLOCK_M"]),)
        run(chosen, grid, x, mix, bias, values, y, n, height, width, channels, classes)
        return y
    chosen = table.depthwise_head(dtype, accumulate, classes, probabilities=probabilities, even=channels % 32 == 0)
    if chosen is None:
        return None
    y = torch.empty(shape, dtype=torch.uint8, device=x.device)
    grid = (cdiv(width, chosen["BLOCK_W"]), cdiv(height, chosen["G"] * chosen["R"]), n)
    inner = vector(inner_bias, channels, x)
    run(
        chosen, grid, x, taps, inner, mix, bias, values, y, height, width, channels, classes, floor(inner_relu)
    )  # fmt: skip
    return y


def _with_parts(row: Row, parts: Parts | None) -> Row:
    """Return the row that also gives moments, if those are wanted and there is one."""
    return row if parts is None else table.with_moments(row) or row


def _through(norm: Norm | None, row: Row, maps: list[Tensor]) -> tuple[Row, list[Tensor]]:
    """Return the row that reads maps through a norm, or the row and the maps behind it where there is none."""
    if norm is None:
        return row, maps
    reading = table.with_norm(row)
    if reading is not None:
        return reading, maps
    from unetpp_kernels.gpu import launch_normalise

    return row, launch_normalise.behind(norm, maps)


def _room(row: Row, parts: Parts | None, programs: int, channels: int, y: Tensor) -> Tensor:
    """Return where the launch puts its partial moments; without them the kernel is given y and leaves it alone."""
    return parts.make(programs, channels, y) if parts is not None and "MOMENTS" in dict(row.constants) else y


def options(row: Row, backend: str) -> dict[str, Any]:
    """Return the compile-time arguments of a launch on a backend, "cuda" or "hip"."""
    found: dict[str, Any] = {**dict(row.constants), "num_warps": row.warps, "num_stages": row.stages}
    if backend == "hip" and found.get("DOT") == "tf32x3":
        found["DOT"] = "ieee"  # AMD's matrix units multiply fp32 as it is, and Triton has no tf32x3 for them
    # Without fusion of multiply and add the depthwise sums take twice the instructions; Triton's default has changed.
    found["enable_fp_fusion"] = True
    return found


def run(row: Row, grid: tuple[int, ...], *arguments: object) -> None:
    KERNELS[row.kernel][grid](*map(aligned, arguments), **options(row, _BACKEND))
