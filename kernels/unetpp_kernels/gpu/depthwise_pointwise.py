"""Depthwise 3x3 -> inner bias, activation -> pointwise -> bias, activation, of several sources in one pass over memory.

One program reads its strips once (plus a halo that comes from cache), keeps the depthwise result in registers, feeds it
to the tensor cores block by block of channels and writes the mixed channels. A pixel moves its input and output
channels and nothing else: no concatenated tensor, no upsampled one, no depthwise result.
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.moments import store_moments
from unetpp_kernels.gpu.sources import pick, sixteens
from unetpp_kernels.gpu.strips import floored, low_sums, strip_pointers, strip_sums, tile, tile_number

INTEGERS = ["H", "W", "C", "O", "count", "c0", "c1", "c2", "c3", "c4", "c5", "low_width"]


@triton.jit
def mixed(
    accs, d, inner_floor, mix_ptr, k0, width, C, O,
    R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, INNER: tl.constexpr, EVEN: tl.constexpr,
    FULL: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Add the pointwise mixture of R depthwise results (M, K) to the accumulators (M, BLOCK_N)."""
    channel, o = k0 + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    weights = mix_ptr + o[None, :] * C + channel[:, None]
    if EVEN and FULL:
        w = tl.load(weights)
    else:
        w = tl.load(weights, mask=(o < O)[None, :] & (channel < width)[:, None], other=0.0)
    fresh = ()
    for r in tl.static_range(R):
        v = floored(d[r], inner_floor) if INNER else d[r]
        fresh = fresh + (tl.dot(v.to(w.dtype), w, accs[r], input_precision=DOT),)
    return fresh


@triton.jit
def advanced(norm, channels):
    """Return pointers into a norm's vectors, if there is one, so many channels on."""
    if norm is None:
        return None
    else:
        return norm[0] + channels, norm[1] + channels, norm[2] + channels


@triton.jit
def walk(
    accs, s0, s1, s2, s3, s4, s5, c0, c1, c2, c3, c4, c5, count, low_ptr, low_width,
    norm, taps_ptr, phases_ptr, inner_ptr, mix_ptr, H, W, C, O, inner_floor, n, oh, ow,
    R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, LOW: tl.constexpr,
    INNER: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr, MASKED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Add all channel blocks of all sources, then of `low`, to the accumulators; norm: None, or as in `strip_sums`."""
    PAIRS: tl.constexpr = EVEN and ACC == tl.float32 and s0.dtype.element_ty == tl.bfloat16
    pixel = (n * H + oh) * W + ow  # 64-bit: a tensor may hold more than 2^31 elements
    first = 0
    for s in range(count):
        source, width = pick(s, s0, s1, s2, s3, s4, s5), pick(s, c0, c1, c2, c3, c4, c5)
        if EVEN:
            width = sixteens(width)
        for k0 in range(0, width, BLOCK_K):
            x = strip_pointers(source, pixel, k0, width, BLOCK_K, PAIRS)
            d = strip_sums(
                x, oh, ow, taps_ptr + first, inner_ptr + first, k0, H, W, width, C,
                R, BLOCK_K, INNER, EVEN, MASKED, PAIRS, ACC, advanced(norm, first),
            )  # fmt: skip
            accs = mixed(
                accs, d, inner_floor, mix_ptr + first, k0, width, C, O, R, BLOCK_K, BLOCK_N, INNER, EVEN, FULL, DOT
            )
        first += width
    if LOW:
        if EVEN:
            low_width = sixteens(low_width)
        i0, j = oh // 2, ow // 2
        pixel = (n * (H // 2) + i0) * (W // 2) + j
        for k0 in range(0, low_width, BLOCK_K):
            x = strip_pointers(low_ptr, pixel, k0, low_width, BLOCK_K, PAIRS)
            d = low_sums(
                x, i0, j, oh, ow, phases_ptr, k0, H, W, low_width,
                R, BLOCK_K, EVEN, MASKED, PAIRS, ACC, advanced(norm, first),
            )  # fmt: skip
            accs = mixed(
                accs, d, inner_floor, mix_ptr + first, k0, low_width, C, O, R, BLOCK_K, BLOCK_N, False, EVEN, FULL, DOT
            )
    return accs


@triton.jit(do_not_specialize=INTEGERS)
def depthwise_pointwise_kernel(
    s0, s1, s2, s3, s4, s5, low_ptr, mean_ptr, scale_ptr, shift_ptr, taps_ptr, phases_ptr, inner_ptr,
    mix_ptr, bias_ptr, y_ptr, parts_ptr,
    H, W, C, O, count, c0, c1, c2, c3, c4, c5, low_width, inner_floor, floor,
    G: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr, LOW: tl.constexpr, INNER: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
    DOT: tl.constexpr, MOMENTS: tl.constexpr = False, NORM: tl.constexpr = False,
):  # fmt: skip
    """Sources (N, H, W, c_k), low (N, H/2, W/2, low_width) -> y (N, H, W, O).

    taps (9, C), phases (4, 4, 3, 3, low_width), inner (C) fp32, mix (O, C), bias (O) fp32. C counts all channels, those
    of `low` last. EVEN: every width is a multiple of BLOCK_K. FULL: O == BLOCK_N. PACKED: depthwise sums are kept in
    the sources' type, two to a register. MOMENTS: as in `depthwise_kernel`. NORM: sources and `low` are read through a
    batch norm with its ReLU; mean, scale and shift (C) fp32; only where EVEN. Grid: (W / BLOCK_W, H / (G R), N).
    """
    oh, ow, top, left = tile(W, G, BLOCK_W, R)
    n = tl.program_id(2).to(tl.int64)
    ACC: tl.constexpr = s0.dtype.element_ty if PACKED else tl.float32
    if EVEN:
        C = sixteens(C)
    if FULL:
        O = sixteens(O)
    norm = (mean_ptr, scale_ptr, shift_ptr) if NORM else None
    accs = ()
    for _ in tl.static_range(R):
        accs = accs + (tl.zeros((G * BLOCK_W, BLOCK_N), tl.float32),)
    inside = (top > 0) & (top + G * R < H) & (left > 0) & (left + BLOCK_W < W)
    if EVEN and inside:
        accs = walk(
            accs, s0, s1, s2, s3, s4, s5, c0, c1, c2, c3, c4, c5, count, low_ptr, low_width,
            norm, taps_ptr, phases_ptr, inner_ptr, mix_ptr, H, W, C, O, inner_floor, n, oh, ow,
            R, BLOCK_K, BLOCK_N, ACC, LOW, INNER, EVEN, FULL, False, DOT,
        )  # fmt: skip
    else:
        accs = walk(
            accs, s0, s1, s2, s3, s4, s5, c0, c1, c2, c3, c4, c5, count, low_ptr, low_width,
            norm, taps_ptr, phases_ptr, inner_ptr, mix_ptr, H, W, C, O, inner_floor, n, oh, ow,
            R, BLOCK_K, BLOCK_N, ACC, LOW, INNER, EVEN, FULL, True, DOT,
        )  # fmt: skip
    o = tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + o, mask=o < O, other=0.0)
    y = y_ptr + ((n * H + oh) * W + ow)[:, None] * O + o[None, :]
    values, rows = (), ()
    for r in tl.static_range(R):
        out = floored(accs[r] + bias[None, :], floor).to(y_ptr.dtype.element_ty)
        ok = ((oh + r < H) & (ow < W))[:, None]
        values, rows = values + (out,), rows + (ok,)
        if not FULL:
            ok = ok & (o < O)[None, :]
        tl.store(y + r * W * O, out, mask=ok)
    if MOMENTS:
        store_moments(parts_ptr, tile_number(n), O, o, o < O, values, rows, R)
