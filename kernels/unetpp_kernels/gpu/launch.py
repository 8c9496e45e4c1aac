"""Launches the kernels on tensors: blocks from the table, grids from shapes; knows layouts, not what is computed.

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
from unetpp_kernels.gpu import sources as walk
from unetpp_kernels.gpu.depthwise import depthwise_any_kernel, depthwise_kernel
from unetpp_kernels.gpu.depthwise_pointwise import depthwise_pointwise_kernel
from unetpp_kernels.gpu.ends import depthwise_head_kernel, head_kernel, stem_kernel
from unetpp_kernels.gpu.pointwise import pointwise_kernel
from unetpp_kernels.table import Accumulate, Added, Dtype, Product, Row

KERNELS: dict[str, Any] = {
    "depthwise_pointwise": depthwise_pointwise_kernel,
    "pointwise": pointwise_kernel,
    "depthwise": depthwise_kernel,
    "depthwise_any": depthwise_any_kernel,
    "stem": stem_kernel,
    "head": head_kernel,
    "depthwise_head": depthwise_head_kernel,
}
_DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
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
) -> Tensor | None:
    """Run the fused kernel; None where the table has no row: too wide, or an inner step on an upsampled source."""
    maps = _maps(sources)
    low_map = None if low is None else _map(low)
    n, _, height, width = maps[0].shape
    outputs, channels = mix.shape
    inner = inner_bias is not None or inner_relu
    dtype, accumulate, dot = _kinds(maps[0], packed)
    every = [x.shape[1] for x in maps] + ([] if low_map is None else [low_map.shape[1]])

    def row(even: bool) -> Row | None:
        return table.depthwise_pointwise(dtype, accumulate, dot, outputs, low=low is not None, inner=inner, even=even)

    chosen = row(True)
    if chosen is None:
        return None
    if outputs != chosen["BLOCK_N"] or any(w % chosen["BLOCK_K"] for w in every):
        chosen = row(False)
        assert chosen is not None
        if low_map is not None:
            maps, low_map = _maps([*maps, upsample2x(low_map, mode)]), None
    y = _like(maps[0], outputs, height, width)
    grid = (_cdiv(width, chosen["BLOCK_W"]), _cdiv(height, chosen["G"] * chosen["R"]), n)
    _run(
        chosen,
        grid,
        *_six(maps),
        maps[0] if low_map is None else low_map,
        taps,
        taps if phases is None else phases,
        _vector(inner_bias, channels, y),
        mix,
        _vector(bias, outputs, y),
        y,
        height,
        width,
        channels,
        outputs,
        len(maps),
        *_six([x.shape[1] for x in maps]),
        0 if low_map is None else low_map.shape[1],
        _floor(inner_relu),
        _floor(relu),
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
) -> Tensor:
    """Run the matrix-product kernel; `mix` (O, C)."""
    maps = _maps(sources)
    n, _, source_h, source_w = maps[0].shape
    height, width = (source_h // 2, source_w // 2) if pool else (source_h, source_w)
    outputs, channels = mix.shape
    dtype, _, dot = _kinds(maps[0], packed=False)
    if pool and added is not None:
        raise ValueError("pooled sources and an upsampled term together: no network needs both in one convolution")

    def row(even: bool) -> Row:
        return table.pointwise(dtype, dot, outputs, added=0 if added is None else _ADDED[mode], pool=pool, even=even)

    chosen = row(True)
    if outputs % chosen["BLOCK_N"] or any(x.shape[1] % chosen["BLOCK_K"] for x in maps):
        chosen = row(False)
    y = _like(maps[0], outputs, height, width)
    grid = (_cdiv(n * height * width, chosen["BLOCK_M"]) * _cdiv(outputs, chosen["BLOCK_N"]),)
    _run(
        chosen,
        grid,
        *_six(maps),
        maps[0] if added is None else _map(added),
        mix,
        _vector(bias, outputs, y),
        y,
        n,
        height,
        width,
        channels,
        outputs,
        source_h,
        source_w,
        len(maps),
        *_six([x.shape[1] for x in maps]),
        _floor(relu),
    )
    return y


def depthwise(
    x: Tensor, taps: Tensor, bias: Tensor | None, *, relu: bool, stride: int, dilation: int, packed: bool
) -> Tensor:
    """Run a depthwise kernel; taps (K * K, C)."""
    x = _map(x)
    n, channels, height, width = x.shape
    side = math.isqrt(taps.shape[0])
    dtype, accumulate, _ = _kinds(x, packed)
    out_h, out_w = -(-height // stride), -(-width // stride)
    y = _like(x, channels, out_h, out_w)
    if (side, stride, dilation) == (3, 1, 1):
        chosen = table.depthwise(dtype, accumulate, even=channels % 32 == 0)
        across = _cdiv(channels, chosen["BLOCK_K"])
        grid: tuple[int, ...] = (
            _cdiv(width, chosen["BLOCK_W"]),
            _cdiv(height, chosen["G"] * chosen["R"]),
            n * across,
        )
        sizes: tuple[int, ...] = (height, width, channels)
    else:
        chosen = table.depthwise_any(dtype, even=channels % 32 == 0)
        grid = (_cdiv(n * out_h * out_w, chosen["BLOCK_M"]), _cdiv(channels, chosen["BLOCK_K"]))
        sizes = (n, height, width, channels, out_h, out_w, side, stride, dilation)
        taps = taps.to(torch.float32)  # one kernel for packed weights and others: it sums in fp32
    _run(chosen, grid, x, taps, _vector(bias, channels, y), y, *sizes, _floor(relu))
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
    chosen = table.stem(_DTYPES[weight.dtype], outputs, None if mix is None else mix.shape[0], kind)
    if chosen is None:
        return None
    final = outputs if mix is None else mix.shape[0]
    y = _empty(weight, n, final, height, width)
    _run(
        chosen,
        (_cdiv(n * height * width, chosen["BLOCK_M"]),),
        pixels.contiguous(),
        mean,
        std,
        weight,
        _vector(bias, outputs, y),
        weight if mix is None else mix,
        y,
        n,
        height,
        width,
        bands,
        outputs,
        final,
        _floor(relu),
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
    x = _map(x)
    n, channels, height, width = x.shape
    classes = mix.shape[0]
    dtype, accumulate, _ = _kinds(x, packed)
    shape = (n, classes, height, width) if probabilities else (n, height, width)
    if taps is None:
        chosen = table.head(dtype, classes, probabilities=probabilities)
        if chosen is None:
            return None
        y = torch.empty(shape, dtype=torch.uint8, device=x.device)
        grid: tuple[int, ...] = (_cdiv(n * height * width, chosen["BLOCK_M"]),)
        _run(chosen, grid, x, mix, bias, values, y, n, height, width, channels, classes)
        return y
    chosen = table.depthwise_head(dtype, accumulate, classes, probabilities=probabilities, even=channels % 32 == 0)
    if chosen is None:
        return None
    y = torch.empty(shape, dtype=torch.uint8, device=x.device)
    grid = (_cdiv(width, chosen["BLOCK_W"]), _cdiv(height, chosen["G"] * chosen["R"]), n)
    inner = _vector(inner_bias, channels, x)
    _run(
        chosen, grid, x, taps, inner, mix, bias, values, y, height, width, channels, classes, _floor(inner_relu)
    )  # fmt: skip
    return y


def options(row: Row, backend: str) -> dict[str, Any]:
    """Return the compile-time arguments of a launch on a backend, "cuda" or "hip"."""
    found: dict[str, Any] = {**dict(row.constants), "num_warps": row.warps, "num_stages": row.stages}
    if backend == "hip" and found.get("DOT") == "tf32x3":
        found["DOT"] = "ieee"  # AMD's matrix units multiply fp32 as it is, and Triton has no tf32x3 for them
    # Without fusion of multiply and add the depthwise sums take twice the instructions; Triton's default has changed.
    found["enable_fp_fusion"] = True
    return found


def _run(row: Row, grid: tuple[int, ...], *arguments: object) -> None:
    KERNELS[row.kernel][grid](*map(_aligned, arguments), **options(row, _BACKEND))


def _kinds(x: Tensor, packed: bool) -> tuple[Dtype, Accumulate, Product]:
    dtype = _DTYPES[x.dtype]
    if dtype != "fp32":
        return dtype, "packed" if packed else "single", "plain"
    # The user's own switch says how much a matrix product may round; "highest" has no tensor-core form but three tf32.
    return dtype, "single", "tf32" if torch.get_float32_matmul_precision() == "medium" else "tf32x3"


def _maps(sources: Sequence[Tensor]) -> list[Tensor]:
    """Return at most `walk.MOST` feature maps; what is beyond is concatenated."""
    maps = [_map(x) for x in sources]
    if len(maps) > walk.MOST:
        last = torch.cat(maps[walk.MOST - 1 :], 1)
        maps = [*maps[: walk.MOST - 1], _map(last)]
    return maps


def _map(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _aligned(argument: object) -> object:
    """Return a tensor that starts at a multiple of 16 bytes, as 128-bit loads need it; other arguments as they are.

    Triton compiles a kernel of its own for tensors that do not, one that no check has seen.
    """
    if isinstance(argument, Tensor) and argument.storage_offset() * argument.element_size() % 16:
        return argument.clone()
    return argument


def _like(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return _empty(x, x.shape[0], channels, height, width)


def _empty(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _vector(values: Tensor | None, length: int, like: Tensor) -> Tensor:
    """Return fp32 values, zeros where there are none."""
    if values is None:
        return torch.zeros(length, dtype=torch.float32, device=like.device)
    return values.to(torch.float32)


def _six(values: Sequence[Any]) -> list[Any]:
    """Return exactly six: the kernel's parameters are fixed, and it looks at `count` of them."""
    return [*values, *[values[0]] * (walk.MOST - len(values))]


def _floor(relu: bool) -> float:
    return 0.0 if relu else -math.inf


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
