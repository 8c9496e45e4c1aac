"""Depthwise convolution with bias and activation: by strips for 3x3, tap by tap for other sizes, strides, dilations."""

import triton
import triton.language as tl

from unetpp_kernels.gpu.moments import store_moments
from unetpp_kernels.gpu.sources import sixteens
from unetpp_kernels.gpu.strips import channels, floored, strip_pointers, strip_sums, tile, tile_number


@triton.jit(do_not_specialize=["H", "W", "C"])
def depthwise_kernel(
    x_ptr, taps_ptr, bias_ptr, y_ptr, parts_ptr, H, W, C, floor,
    G: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, PACKED: tl.constexpr,
    EVEN: tl.constexpr, MOMENTS: tl.constexpr = False,
):  # fmt: skip
    """x (N, H, W, C), taps (9, C), bias (C) fp32 -> y (N, H, W, C): 3x3, stride 1.

    MOMENTS: and of y as it is stored, a partial result per tile in parts (N * tiles, 3, C) fp32; see `moments`.

    Grid: (W / BLOCK_W, H / (G R), N * C / BLOCK_K). EVEN and PACKED as in `depthwise_pointwise_kernel`.
    """
    if EVEN:
        C = sixteens(C)
    oh, ow, top, left = tile(W, G, BLOCK_W, R)
    across = (C + BLOCK_K - 1) // BLOCK_K
    n = (tl.program_id(2) // across).to(tl.int64)
    k0 = tl.program_id(2) % across * BLOCK_K
    ACC: tl.constexpr = x_ptr.dtype.element_ty if PACKED else tl.float32
    PAIRS: tl.constexpr = EVEN and ACC == tl.float32 and x_ptr.dtype.element_ty == tl.bfloat16
    pixel = (n * H + oh) * W + ow
    x = strip_pointers(x_ptr, pixel, k0, C, BLOCK_K, PAIRS)
    inside = (top > 0) & (top + G * R < H) & (left > 0) & (left + BLOCK_W < W)
    if EVEN and inside:
        d = strip_sums(x, oh, ow, taps_ptr, bias_ptr, k0, H, W, C, C, R, BLOCK_K, True, EVEN, False, PAIRS, ACC)
    else:
        d = strip_sums(x, oh, ow, taps_ptr, bias_ptr, k0, H, W, C, C, R, BLOCK_K, True, EVEN, True, PAIRS, ACC)
    channel = k0 + tl.arange(0, BLOCK_K)
    y = y_ptr + pixel[:, None] * C + channel[None, :]
    values, rows = (), ()
    for r in tl.static_range(R):
        ok = ((oh + r < H) & (ow < W))[:, None]
        value = floored(d[r], floor).to(y_ptr.dtype.element_ty)
        values, rows = values + (value,), rows + (ok,)
        if not EVEN:
            ok = ok & (channel < C)[None, :]
        tl.store(y + r * W * C, value, mask=ok)
    if MOMENTS:
        store_moments(parts_ptr, tile_number(n), C, channel, channel < C, values, rows, R)


@triton.jit(do_not_specialize=["N", "H", "W", "C", "out_h", "out_w", "side", "stride", "dilation"])
def depthwise_any_kernel(
    x_ptr, taps_ptr, bias_ptr, y_ptr, N, H, W, C, out_h, out_w, side, stride, dilation, floor,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, C), taps (side^2, C), bias (C) fp32 -> y (N, out_h, out_w, C), padded by dilation * (side // 2).

    Sums in fp32. Grid: (output pixels / BLOCK_M, C / BLOCK_K).
    """
    if EVEN:
        C = sixteens(C)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    there = pixel < N.to(tl.int64) * out_h * out_w
    oy = (pixel // out_w % out_h).to(tl.int32) * stride - dilation * (side // 2)
    ox = (pixel % out_w).to(tl.int32) * stride - dilation * (side // 2)
    n = pixel // (out_h.to(tl.int64) * out_w)
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32) + channels(bias_ptr, channel, C, EVEN)[None, :]
    for tap in range(side * side):
        iy, ix = oy + tap // side * dilation, ox + tap % side * dilation
        ok = (there & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W))[:, None]
        if not EVEN:
            ok = ok & (channel < C)[None, :]
        x = x_ptr + ((n * H + iy) * W + ix)[:, None] * C + channel[None, :]
        w = channels(taps_ptr + tap * C, channel, C, EVEN).to(tl.float32)
        acc += tl.load(x, mask=ok, other=0.0).to(tl.float32) * w[None, :]
    ok = there[:, None] & (channel < C)[None, :]
    tl.store(y_ptr + pixel[:, None] * C + channel[None, :], floored(acc, floor).to(y_ptr.dtype.element_ty), mask=ok)
