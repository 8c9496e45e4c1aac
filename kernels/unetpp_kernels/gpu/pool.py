"""2x2 max pooling of a map behind a batch norm and ReLU that was never stored; knows windows and channels, no network.

The largest is that of the values behind the norm, rounded as they would have been stored: a negative scale turns the
smallest pixel into the largest, and rounding makes neighbours equal. Backward makes the same values again and finds the
same pixel, so that no index of it is written or read.
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.normalise import places
from unetpp_kernels.gpu.sources import sixteens
from unetpp_kernels.gpu.strips import channels, normalised


@triton.jit(do_not_specialize=["N", "H", "W", "C"])
def pool_kernel(
    x_ptr, mean_ptr, scale_ptr, shift_ptr, y_ptr, N, H, W, C,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, C); mean, scale, shift (C) fp32 -> y (N, H // 2, W // 2, C).

    Grid: (windows / BLOCK_M, C / BLOCK_K).
    """
    if EVEN:
        C = sixteens(C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    number = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, columns = H // 2, W // 2
    at, ok = places(number, k, N.to(tl.int64) * rows * columns, C, EVEN)
    n, i, j = number // (rows.to(tl.int64) * columns), number // columns % rows, number % columns
    x = x_ptr + ((n * H + 2 * i) * W + 2 * j)[:, None] * C + k[None, :]
    best, _ = largest(x, mean_ptr, scale_ptr, shift_ptr, k, W, C, ok, EVEN)
    tl.store(y_ptr + at, best.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["N", "H", "W", "C"])
def pool_backward_kernel(
    g_ptr, x_ptr, mean_ptr, scale_ptr, shift_ptr, dy_ptr, N, H, W, C,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """g (N, H // 2, W // 2, C), x (N, H, W, C) -> dy (N, H, W, C), the gradient behind the norm.

    That is g at the largest pixel of every window, and 0 elsewhere, also in what is no whole window at an odd map's
    last row and column. Grid: (windows, those included, / BLOCK_M, C / BLOCK_K).
    """
    if EVEN:
        C = sixteens(C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    number = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, columns = (H + 1) // 2, (W + 1) // 2
    _, ok = places(number, k, N.to(tl.int64) * rows * columns, C, EVEN)
    n, i, j = number // (rows.to(tl.int64) * columns), number // columns % rows, number % columns
    right, down = ok & (2 * j + 1 < W)[:, None], ok & (2 * i + 1 < H)[:, None]
    place = ((n * H + 2 * i) * W + 2 * j)[:, None] * C + k[None, :]
    _, which = largest(x_ptr + place, mean_ptr, scale_ptr, shift_ptr, k, W, C, right & down, EVEN)
    at = ((n * (H // 2) + i) * (W // 2) + j)[:, None] * C + k[None, :]
    g = tl.load(g_ptr + at, mask=right & down, other=0.0)
    none = tl.zeros(g.shape, g.dtype)
    tl.store(dy_ptr + place, tl.where(which == 0, g, none), mask=ok)
    tl.store(dy_ptr + place + C, tl.where(which == 1, g, none), mask=right)
    tl.store(dy_ptr + place + W * C, tl.where(which == 2, g, none), mask=down)
    tl.store(dy_ptr + place + (W * C + C), tl.where(which == 3, g, none), mask=right & down)


@triton.jit
def largest(x, mean_ptr, scale_ptr, shift_ptr, k, W, C, ok, EVEN: tl.constexpr):
    """Return the largest (M, K) fp32 of four pixels behind their norm, and which it is: 0 and 1 above, 2 and 3 below.

    As torch pools: the first of equals, and of what is no number the last. x points at the first pixel.
    """
    mean, scale = channels(mean_ptr, k, C, EVEN), channels(scale_ptr, k, C, EVEN)
    shift = channels(shift_ptr, k, C, EVEN)
    kind: tl.constexpr = x.dtype.element_ty
    a, b = tl.load(x, mask=ok, other=0.0), tl.load(x + C, mask=ok, other=0.0)
    c, d = tl.load(x + W * C, mask=ok, other=0.0), tl.load(x + (W * C + C), mask=ok, other=0.0)
    best = normalised(a, mean, scale, shift, kind).to(tl.float32)
    which = tl.zeros(best.shape, tl.int32)
    best, which = later(best, which, normalised(b, mean, scale, shift, kind).to(tl.float32), 1)
    best, which = later(best, which, normalised(c, mean, scale, shift, kind).to(tl.float32), 2)
    return later(best, which, normalised(d, mean, scale, shift, kind).to(tl.float32), 3)


@triton.jit
def later(best, which, value, index: tl.constexpr):
    """Return the larger of two and which it is; the later one has to be larger than the one before."""
    wins = (value > best) | (value != value)
    return tl.where(wins, value, best), tl.where(wins, index, which)
