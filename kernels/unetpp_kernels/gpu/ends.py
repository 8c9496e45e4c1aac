"""The two ends of a network, where bytes enter and bytes leave: stem and head; knows bands and classes as numbers."""

import triton
import triton.language as tl

from unetpp_kernels.gpu.sources import sixteens
from unetpp_kernels.gpu.strips import floored, strip_pointers, strip_sums, tile


@triton.jit(do_not_specialize=["N", "H", "W", "bands", "O", "P"])
def stem_kernel(
    pixels_ptr, mean_ptr, std_ptr, weight_ptr, bias_ptr, mix_ptr, y_ptr, N, H, W, bands, O, P, floor,
    BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, MIX: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Pixels (N, H, W, bands) of any type -> normalise -> 3x3 convolution, bias, activation [-> pointwise].

    y is (N, H, W, O), or (N, H, W, P) with MIX. mean, std (bands) fp32: (pixel - mean) / std, and 0 outside the
    image. weight (9 * bands, O): taps, then bands. mix (P, O). Grid: (pixels / BLOCK_M).
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.arange(0, BLOCK_N)
    there = pixel < N.to(tl.int64) * H * W
    y, x = (pixel // W % H).to(tl.int32), (pixel % W).to(tl.int32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for t0 in range(0, 9 * bands, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        tap, band = t // bands, t % bands
        iy, ix = y[:, None] + (tap // 3 - 1)[None, :], x[:, None] + (tap % 3 - 1)[None, :]
        ok = there[:, None] & (tap < 9)[None, :] & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        place = (pixel[:, None] + ((tap // 3 - 1) * W + tap % 3 - 1)[None, :]) * bands + band[None, :]
        v = tl.load(pixels_ptr + place, mask=ok, other=0).to(tl.float32)
        v = (v - tl.load(mean_ptr + band)[None, :]) / tl.load(std_ptr + band)[None, :]
        v = tl.where(ok, v, 0.0)
        w = tl.load(weight_ptr + t[:, None] * O + o[None, :], mask=(tap < 9)[:, None] & (o < O)[None, :], other=0.0)
        acc = tl.dot(v.to(w.dtype), w, acc, input_precision=DOT)
    acc = floored(acc + tl.load(bias_ptr + o, mask=o < O, other=0.0)[None, :], floor)
    if MIX:
        p = tl.arange(0, BLOCK_N)
        m = tl.load(mix_ptr + p[None, :] * O + o[:, None], mask=(p < P)[None, :] & (o < O)[:, None], other=0.0)
        out = tl.dot(acc.to(m.dtype), m, input_precision=DOT)
        tl.store(
            y_ptr + pixel[:, None] * P + p[None, :],
            out.to(y_ptr.dtype.element_ty),
            mask=there[:, None] & (p < P)[None, :],
        )
    else:
        tl.store(
            y_ptr + pixel[:, None] * O + o[None, :],
            acc.to(y_ptr.dtype.element_ty),
            mask=there[:, None] & (o < O)[None, :],
        )


@triton.jit
def decided(
    logits, y_ptr, values_ptr, pixel, ok, K, plane, BLOCK_N: tl.constexpr, PROBABILITIES: tl.constexpr
):  # fmt: skip
    """Store the class value of the largest logit (M, BLOCK_N), or every class's probability in 1/255."""
    o = tl.arange(0, BLOCK_N)
    logits = tl.where((o < K)[None, :], logits, float("-inf"))
    if PROBABILITIES:
        top = tl.max(logits, axis=1)
        e = tl.exp(logits - top[:, None])
        p = e / tl.sum(e, axis=1)[:, None]
        byte = (p * 255 + 0.5).to(tl.uint8)
        # Planes of an image follow each other: (N, K, H, W).
        n, within = pixel // plane, pixel % plane
        place = (n * K)[:, None] * plane + o[None, :] * plane + within[:, None]
        tl.store(y_ptr + place, byte, mask=ok[:, None] & (o < K)[None, :])
    else:
        best = tl.argmax(logits, axis=1, tie_break_left=True)
        tl.store(y_ptr + pixel, tl.load(values_ptr + best), mask=ok)


@triton.jit(do_not_specialize=["N", "H", "W", "C", "K"])
def head_kernel(
    x_ptr, mix_ptr, bias_ptr, values_ptr, y_ptr, N, H, W, C, K,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, PROBABILITIES: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, C) -> logits of K classes -> y (N, H, W) uint8 class values, or (N, K, H, W) uint8 probabilities.

    mix (K, C), bias (K) fp32, values (K) uint8. Grid: (pixels / BLOCK_M).
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k, o = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    there = pixel < N.to(tl.int64) * H * W
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, C, BLOCK_K):
        x = tl.load(
            x_ptr + pixel[:, None] * C + (k0 + k)[None, :], mask=there[:, None] & (k0 + k < C)[None, :], other=0.0
        )
        w = tl.load(
            mix_ptr + o[None, :] * C + (k0 + k)[:, None], mask=(o < K)[None, :] & (k0 + k < C)[:, None], other=0.0
        )
        acc = tl.dot(x, w, acc, input_precision=DOT)
    acc += tl.load(bias_ptr + o, mask=o < K, other=0.0)[None, :]
    decided(acc, y_ptr, values_ptr, pixel, there, K, H.to(tl.int64) * W, BLOCK_N, PROBABILITIES)


@triton.jit(do_not_specialize=["H", "W", "C", "K"])
def depthwise_head_kernel(
    x_ptr, taps_ptr, inner_ptr, mix_ptr, bias_ptr, values_ptr, y_ptr, H, W, C, K, inner_floor,
    G: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr, PROBABILITIES: tl.constexpr, EVEN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """As `head_kernel`, of activation(depthwise3x3(x) + inner), never written. Grid as `depthwise_kernel`'s."""
    if EVEN:
        C = sixteens(C)
    oh, ow, top, left = tile(W, G, BLOCK_W, R)
    n = tl.program_id(2).to(tl.int64)
    ACC: tl.constexpr = x_ptr.dtype.element_ty if PACKED else tl.float32
    accs = ()
    for _ in tl.static_range(R):
        accs = accs + (tl.zeros((G * BLOCK_W, BLOCK_N), tl.float32),)
    inside = (top > 0) & (top + G * R < H) & (left > 0) & (left + BLOCK_W < W)
    if EVEN and inside:
        accs = head_sums(
            accs, x_ptr, taps_ptr, inner_ptr, mix_ptr, H, W, C, K, inner_floor, n, oh, ow,
            R, BLOCK_K, BLOCK_N, EVEN, False, ACC, DOT,
        )  # fmt: skip
    else:
        accs = head_sums(
            accs, x_ptr, taps_ptr, inner_ptr, mix_ptr, H, W, C, K, inner_floor, n, oh, ow,
            R, BLOCK_K, BLOCK_N, EVEN, True, ACC, DOT,
        )  # fmt: skip
    o = tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + o, mask=o < K, other=0.0)
    for r in tl.static_range(R):
        pixel = (n * H + oh + r) * W + ow
        ok = (oh + r < H) & (ow < W)
        decided(accs[r] + bias[None, :], y_ptr, values_ptr, pixel, ok, K, H.to(tl.int64) * W, BLOCK_N, PROBABILITIES)


@triton.jit
def head_sums(
    accs, x_ptr, taps_ptr, inner_ptr, mix_ptr, H, W, C, K, inner_floor, n, oh, ow,
    R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Add the logits of the R rows of a strip to the accumulators (M, BLOCK_N)."""
    PAIRS: tl.constexpr = EVEN and ACC == tl.float32 and x_ptr.dtype.element_ty == tl.bfloat16
    pixel = (n * H + oh) * W + ow
    o = tl.arange(0, BLOCK_N)
    for k0 in range(0, C, BLOCK_K):
        channel = k0 + tl.arange(0, BLOCK_K)
        x = strip_pointers(x_ptr, pixel, k0, C, BLOCK_K, PAIRS)
        d = strip_sums(x, oh, ow, taps_ptr, inner_ptr, k0, H, W, C, C, R, BLOCK_K, True, EVEN, MASKED, PAIRS, ACC)
        w = tl.load(
            mix_ptr + o[None, :] * C + channel[:, None], mask=(o < K)[None, :] & (channel < C)[:, None], other=0.0
        )
        fresh = ()
        for r in tl.static_range(R):
            fresh = fresh + (tl.dot(floored(d[r], inner_floor).to(w.dtype), w, accs[r], input_precision=DOT),)
        accs = fresh
    return accs
