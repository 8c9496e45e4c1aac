"""Pointwise convolution of a virtual concatenation, plus an upsampled term: a matrix product that copies no input.

Rows of the product are pixels, columns are output channels, and the sum runs over the channels of every source in
turn. A source may be read through 2x2 max pooling. The upsampled term is added to the finished sums: it is the same
convolution of the low-resolution source, computed before at a quarter of the pixels (see `definition`).
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.moments import store_moments
from unetpp_kernels.gpu.sources import pick, sixteens
from unetpp_kernels.gpu.strips import floored, normalised

INTEGERS = ["N", "H", "W", "C", "O", "source_h", "source_w", "count", "c0", "c1", "c2", "c3", "c4", "c5"]


@triton.jit
def pooled(pointer, right, down, mask):
    """Return the largest of the four pixels at pointer, one to the right, one down, and both."""
    a, b = tl.load(pointer, mask=mask, other=0.0), tl.load(pointer + right, mask=mask, other=0.0)
    c, d = tl.load(pointer + down, mask=mask, other=0.0), tl.load(pointer + down + right, mask=mask, other=0.0)
    return kept_max(kept_max(a, b), kept_max(c, d))


@triton.jit
def kept_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def upsampled(low_ptr, n, y, x, o, H, W, O, ok, BILINEAR: tl.constexpr):
    """Return (M, K) fp32: pixel (y, x) of the x2 upsampling of low (N, H/2, W/2, O); see `definition.upsample2x`."""
    rows, columns = H // 2, W // 2
    base = low_ptr + n[:, None] * rows * columns * O + o[None, :]
    if BILINEAR:
        # Output pixel y lies at (y - 1/2) / 2 of the low rows: 3/4 of the nearest one, 1/4 of the next.
        near_y, near_x = (y // 2).to(tl.int64), x // 2
        far_y = tl.minimum(tl.maximum(near_y + 2 * (y % 2) - 1, 0), rows - 1)
        far_x = tl.minimum(tl.maximum(near_x + 2 * (x % 2) - 1, 0), columns - 1)
        a = tl.load(base + (near_y * columns + near_x)[:, None] * O, mask=ok, other=0.0).to(tl.float32)
        b = tl.load(base + (near_y * columns + far_x)[:, None] * O, mask=ok, other=0.0).to(tl.float32)
        c = tl.load(base + (far_y * columns + near_x)[:, None] * O, mask=ok, other=0.0).to(tl.float32)
        d = tl.load(base + (far_y * columns + far_x)[:, None] * O, mask=ok, other=0.0).to(tl.float32)
        return (a * 0.75 + b * 0.25) * 0.75 + (c * 0.75 + d * 0.25) * 0.25
    else:
        pixel = (y // 2).to(tl.int64) * columns + x // 2
        return tl.load(base + pixel[:, None] * O, mask=ok, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=INTEGERS)
def pointwise_kernel(
    s0, s1, s2, s3, s4, s5, low_ptr, mean_ptr, scale_ptr, shift_ptr, mix_ptr, bias_ptr, y_ptr, parts_ptr,
    N, H, W, C, O, source_h, source_w, count, c0, c1, c2, c3, c4, c5, floor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LOW: tl.constexpr, POOL: tl.constexpr,
    EVEN: tl.constexpr, FULL: tl.constexpr, DOT: tl.constexpr, MOMENTS: tl.constexpr = False,
    NORM: tl.constexpr = False,
):  # fmt: skip
    """Sources (N, source_h, source_w, c_k), low (N, H/2, W/2, O), mix (O, C), bias (O) fp32 -> y (N, H, W, O).

    LOW: 0 none, 1 nearest, 2 bilinear. POOL: sources are read through 2x2 max pooling, else source_h = H and
    source_w = W. EVEN: every width is a multiple of BLOCK_K. FULL: O is a multiple of BLOCK_N.
    MOMENTS: and of y as it is stored, a partial result per BLOCK_M pixels in parts (P, 3, O) fp32; see `moments`.
    NORM: sources are read through a batch norm with its ReLU; mean, scale and shift (C) fp32; only where EVEN.
    Grid: (pixels / BLOCK_M * O / BLOCK_N); programs of the same pixels are neighbours, so that cache serves them.
    """
    if EVEN:
        C = sixteens(C)
    if FULL:
        O = sixteens(O)
    across = (O + BLOCK_N - 1) // BLOCK_N
    pixel = (tl.program_id(0) // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    there = pixel < N.to(tl.int64) * H * W
    x = (pixel % W).to(tl.int32)
    y = (pixel // W % H).to(tl.int32)
    n = pixel // (H.to(tl.int64) * W)
    origin = (n * source_h + 2 * y) * source_w + 2 * x if POOL else pixel
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first = 0
    for s in range(count):
        source, width = pick(s, s0, s1, s2, s3, s4, s5), pick(s, c0, c1, c2, c3, c4, c5)
        if EVEN:
            width = sixteens(width)
        rows = source + origin[:, None] * width + k[None, :]
        for k0 in range(0, width, BLOCK_K):
            ok, wanted = there[:, None], (o < O)[None, :]
            if not EVEN:
                ok, wanted = ok & (k0 + k < width)[None, :], wanted & (k0 + k < width)[:, None]
            if POOL:
                a = pooled(rows + k0, width, source_w * width, ok).to(s0.dtype.element_ty)
            else:
                a = tl.load(rows + k0, mask=ok, other=0.0)
            if NORM:
                c = first + k0 + k
                mean, scale, shift = tl.load(mean_ptr + c), tl.load(scale_ptr + c), tl.load(shift_ptr + c)
                a = normalised(a, mean, scale, shift, a.dtype)
            weights = mix_ptr + o[None, :] * C + (first + k0 + k)[:, None]
            if EVEN and FULL:
                w = tl.load(weights)
            else:
                w = tl.load(weights, mask=wanted, other=0.0)
            acc = tl.dot(a, w, acc, input_precision=DOT)
        first += width
    ok = there[:, None] & (o < O)[None, :]
    if LOW > 0:
        acc += upsampled(low_ptr, n, y, x, o, H, W, O, ok, LOW == 2)
    bias = tl.load(bias_ptr + o, mask=o < O, other=0.0)
    out = floored(acc + bias[None, :], floor).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + pixel[:, None] * O + o[None, :], out, mask=ok)
    if MOMENTS:
        part = (tl.program_id(0) // across).to(tl.int64)
        store_moments(parts_ptr, part, O, o, o < O, (out,), (there[:, None],), 1)
