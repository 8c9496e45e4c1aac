"""Mean and spread of channels, as partial results per program and joined; knows values and masks, no convolution.

A partial result is (count, mean, sum of squared deviations from that mean). Sums of squares would lose all digits where
a channel's mean is large beside its deviation, and that is what a convolution without bias gives: so deviations are
taken from a mean that is known first, within a program and again when programs are joined (Chan, Golub and LeVeque
1983). Nothing is ever subtracted from something of its own size but a value from its mean.
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.sources import sixteens


@triton.jit
def store_moments(parts_ptr, program, C, channel, wanted, values, rows, R: tl.constexpr):
    """Store the moments of R tensors (M, K), where their masks (M, 1) hold, in parts (P, 3, C) fp32.

    wanted: which of the channels (K,) there are. At least one pixel must be there.
    """
    total = tl.zeros(values[0].shape, tl.float32)
    count = tl.zeros((values[0].shape[0],), tl.float32)
    for r in tl.static_range(R):
        total += tl.where(rows[r], values[r].to(tl.float32), 0.0)
        count += tl.sum(rows[r].to(tl.float32), axis=1)
    number = tl.sum(count, axis=0)
    mean = tl.sum(total, axis=0) / number
    squares = tl.zeros(values[0].shape, tl.float32)
    for r in tl.static_range(R):
        apart = tl.where(rows[r], values[r].to(tl.float32) - mean[None, :], 0.0)
        squares += apart * apart
    part = parts_ptr + program * 3 * C + channel
    tl.store(part, tl.zeros(mean.shape, tl.float32) + number, mask=wanted)
    tl.store(part + C, mean, mask=wanted)
    tl.store(part + 2 * C, tl.sum(squares, axis=0), mask=wanted)


@triton.jit(do_not_specialize=["pixels", "C"])
def moments_kernel(
    x_ptr, parts_ptr, pixels, C, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, R: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """x (pixels, C) -> parts (P, 3, C) fp32, of R * BLOCK_M pixels each. Grid: (P, C / BLOCK_K)."""
    if EVEN:
        C = sixteens(C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = tl.program_id(0).to(tl.int64) * (R * BLOCK_M)
    values, rows = (), ()
    for r in tl.static_range(R):
        pixel = first + r * BLOCK_M + tl.arange(0, BLOCK_M)
        there = (pixel < pixels)[:, None]
        ok = there if EVEN else there & (k < C)[None, :]
        values = values + (tl.load(x_ptr + pixel[:, None] * C + k[None, :], mask=ok, other=0.0),)
        rows = rows + (there,)
    store_moments(parts_ptr, tl.program_id(0).to(tl.int64), C, k, k < C, values, rows, R)


@triton.jit(do_not_specialize=["count", "C", "each"])
def join_kernel(parts_ptr, y_ptr, count, C, each, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr):
    """Partial moments parts (count, 3, C) -> y (P, 3, C), of `each` parts in a row. Grid: (P, C / BLOCK_K)."""
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = tl.program_id(0) * each
    end = tl.minimum(first + each, count)
    number, total = tl.zeros((BLOCK_P, BLOCK_K), tl.float32), tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for start in range(first, end, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        ok = (part < end)[:, None] & (k < C)[None, :]
        place = parts_ptr + part.to(tl.int64)[:, None] * (3 * C) + k[None, :]
        n = tl.load(place, mask=ok, other=0.0)
        number += n
        total += n * tl.load(place + C, mask=ok, other=0.0)
    pixels = tl.sum(number, axis=0)
    mean = tl.sum(total, axis=0) / tl.maximum(pixels, 1.0)
    squares = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for start in range(first, end, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        ok = (part < end)[:, None] & (k < C)[None, :]
        place = parts_ptr + part.to(tl.int64)[:, None] * (3 * C) + k[None, :]
        apart = tl.load(place + C, mask=ok, other=0.0) - mean[None, :]
        squares += tl.load(place + 2 * C, mask=ok, other=0.0) + tl.load(place, mask=ok, other=0.0) * apart * apart
    y = y_ptr + tl.program_id(0) * (3 * C) + k
    tl.store(y, pixels, mask=k < C)
    tl.store(y + C, mean, mask=k < C)
    tl.store(y + 2 * C, tl.sum(squares, axis=0), mask=k < C)
