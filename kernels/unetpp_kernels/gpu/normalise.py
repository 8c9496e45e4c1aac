"""Batch norm with its ReLU, forward and backward; knows pixels and channels, not where moments come from.

The forward result is not read again: the ReLU's mask is made anew from the input, by the same instructions.
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.sources import sixteens
from unetpp_kernels.gpu.strips import channels, floored


@triton.jit(do_not_specialize=["pixels", "C"])
def normalise_kernel(
    x_ptr, mean_ptr, scale_ptr, bias_ptr, y_ptr, pixels, C, floor,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x (pixels, C); mean, scale, bias (C) fp32 -> y (pixels, C). Grid: (pixels / BLOCK_M, C / BLOCK_K)."""
    if EVEN:
        C = sixteens(C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mean, scale = channels(mean_ptr, k, C, EVEN), channels(scale_ptr, k, C, EVEN)
    bias = channels(bias_ptr, k, C, EVEN)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    at, ok = places(pixel, k, pixels, C, EVEN)
    x = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * scale[None, :] + bias[None, :]
    tl.store(y_ptr + at, floored(y, floor).to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["pixels", "C"])
def normalise_sums_kernel(
    g_ptr, x_ptr, mean_ptr, scale_ptr, bias_ptr, sums_ptr, pixels, C, floor,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """g, x (pixels, C) -> sums (P, 2, C) fp32: of g and of g (x - mean), every P-th block of pixels.

    Grid: (P, C / BLOCK_K).
    """
    if EVEN:
        C = sixteens(C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mean, scale = channels(mean_ptr, k, C, EVEN), channels(scale_ptr, k, C, EVEN)
    bias = channels(bias_ptr, k, C, EVEN)
    total, product = tl.zeros((BLOCK_M, BLOCK_K), tl.float32), tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for block in range(tl.program_id(0), (pixels + BLOCK_M - 1) // BLOCK_M, tl.num_programs(0)):
        pixel = (block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        at, ok = places(pixel, k, pixels, C, EVEN)
        g, apart = active(g_ptr + at, x_ptr + at, ok, mean, scale, bias, floor)
        total += g
        product += g * apart
    sums = sums_ptr + tl.program_id(0) * (2 * C) + k
    tl.store(sums, tl.sum(total, axis=0), mask=k < C)
    tl.store(sums + C, tl.sum(product, axis=0), mask=k < C)


@triton.jit(do_not_specialize=["pixels", "C"])
def normalise_backward_kernel(
    g_ptr, x_ptr, mean_ptr, scale_ptr, bias_ptr, shares_ptr, dx_ptr, pixels, C, floor,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """g, x (pixels, C), shares (2, C) fp32 -> dx (pixels, C). Grid: (pixels / BLOCK_M, C / BLOCK_K)."""
    if EVEN:
        C = sixteens(C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mean, scale = channels(mean_ptr, k, C, EVEN), channels(scale_ptr, k, C, EVEN)
    bias = channels(bias_ptr, k, C, EVEN)
    constant, slope = channels(shares_ptr, k, C, EVEN), channels(shares_ptr + C, k, C, EVEN)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    at, ok = places(pixel, k, pixels, C, EVEN)
    g, apart = active(g_ptr + at, x_ptr + at, ok, mean, scale, bias, floor)
    dx = (g - constant[None, :] - slope[None, :] * apart) * scale[None, :]
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=ok)


@triton.jit
def places(pixel, k, pixels, C, EVEN: tl.constexpr):
    """Return offsets (M, K) of these channels of these pixels, and which of them there are."""
    there = (pixel < pixels)[:, None]
    ok = there if EVEN else there & (k < C)[None, :]
    return pixel[:, None] * C + k[None, :], ok


@triton.jit
def active(g, x, ok, mean, scale, bias, floor):
    """Return the gradient before the ReLU, and x - mean, both (M, K) fp32; 0 where not `ok`."""
    v = tl.load(x, mask=ok, other=0.0).to(tl.float32)
    # Outside, x reads as 0 and mean is not: the gradient there is 0, and so are all products with it.
    apart = v - mean[None, :]
    gradient = tl.load(g, mask=ok, other=0.0).to(tl.float32)
    return tl.where(apart * scale[None, :] + bias[None, :] > floor, gradient, 0.0), apart
