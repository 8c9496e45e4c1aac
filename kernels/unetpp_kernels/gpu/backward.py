"""Gradients of the convolutions: one pass per layer over gradient and input; knows one operation each, no autograd.

Sums over pixels (weights and biases) are kept per program in registers and written as partial results, which the
launcher adds up: no atomics, so two runs give the same bits.
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.sources import pick, sixteens
from unetpp_kernels.gpu.strips import channels, strip_pointers, strip_sums


@triton.jit
def find_block(block, c0, c1, c2, c3, c4, c5, count, BLOCK_K: tl.constexpr):
    """Return source, first channel of the source among all, and first channel of the block in its source."""
    source, first, before = 0, 0, 0
    for s in range(count):
        width = pick(s, c0, c1, c2, c3, c4, c5)
        here = (width + BLOCK_K - 1) // BLOCK_K
        passed = block >= before + here
        source += passed.to(tl.int32)
        first += tl.where(passed, width, 0)
        before += tl.where(passed, here, 0)
    return source, first, (block - before) * BLOCK_K


@triton.jit(do_not_specialize=["pixels", "C", "count", "c0", "c1", "c2", "c3", "c4", "c5"])
def pointwise_backward_kernel(
    g_ptr, s0, s1, s2, s3, s4, s5, mix_ptr, d0, d1, d2, d3, d4, d5, dmix_ptr, dbias_ptr,
    pixels, C, count, c0, c1, c2, c3, c4, c5,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """g (pixels, O), sources (pixels, c_k), mix (O, C) -> gradients of the sources, dmix (P, O, C), dbias (P, O) fp32.

    A program owns one block of channels of one source and every P-th tile of pixels. All widths are multiples of
    BLOCK_K, and O == BLOCK_N. Grid: (P, blocks of channels over all sources).
    """
    C = sixteens(C)
    O: tl.constexpr = BLOCK_N
    source, first, k0 = find_block(tl.program_id(1), c0, c1, c2, c3, c4, c5, count, BLOCK_K)
    width = pick(source, c0, c1, c2, c3, c4, c5)
    x_ptr, dx_ptr = pick(source, s0, s1, s2, s3, s4, s5), pick(source, d0, d1, d2, d3, d4, d5)
    width, first = sixteens(width), sixteens(first)
    k, o = k0 + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    place = o[:, None] * C + (first + k)[None, :]
    w = tl.load(mix_ptr + place)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(tl.program_id(0), (pixels + BLOCK_M - 1) // BLOCK_M, tl.num_programs(0)):
        pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        there = pixel < pixels
        g = tl.load(g_ptr + pixel[:, None] * O + o[None, :], mask=there[:, None], other=0.0)
        at = pixel[:, None] * width + k[None, :]
        x = tl.load(x_ptr + at, mask=there[:, None], other=0.0)
        dx = tl.dot(g, w, input_precision=DOT)
        tl.store(dx_ptr + at, dx.to(x.dtype), mask=there[:, None])
        acc = tl.dot(g.trans(1, 0), x, acc, input_precision=DOT)
        total += tl.sum(g.to(tl.float32), axis=0)
    mine = tl.program_id(0)
    tl.store(dmix_ptr + mine * O * C + place, acc)
    if tl.program_id(1) == 0:
        tl.store(dbias_ptr + mine * O + o, total)


@triton.jit(do_not_specialize=["tiles", "H", "W", "C", "count", "c0", "c1", "c2", "c3", "c4", "c5"])
def depthwise_pointwise_backward_kernel(
    g_ptr, s0, s1, s2, s3, s4, s5, taps_ptr, inner_ptr, mix_ptr, dd_ptr, dmix_ptr, dbias_ptr, dinner_ptr,
    tiles, H, W, C, count, c0, c1, c2, c3, c4, c5, inner_floor,
    BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """g (N, H, W, O), sources (N, H, W, c_k) -> dd (N, H, W, C), dmix (P, O, C), dbias (P, O), dinner (P, C) fp32.

    dd is the gradient of the depthwise sums. Those are computed again from the sources, in registers: they were never
    saved. `tiles` counts strips of R rows and BLOCK_W columns over all images. Widths and grid as above.
    """
    C = sixteens(C)
    O: tl.constexpr = BLOCK_N
    source, first, k0 = find_block(tl.program_id(1), c0, c1, c2, c3, c4, c5, count, BLOCK_K)
    width = pick(source, c0, c1, c2, c3, c4, c5)
    x_ptr = pick(source, s0, s1, s2, s3, s4, s5)
    width, first = sixteens(width), sixteens(first)
    PAIRS: tl.constexpr = x_ptr.dtype.element_ty == tl.bfloat16
    k, o = k0 + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    place = o[:, None] * C + (first + k)[None, :]
    w = tl.load(mix_ptr + place)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    inner_total = tl.zeros((BLOCK_K,), tl.float32)
    across, down = (W + BLOCK_W - 1) // BLOCK_W, (H + R - 1) // R
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        ow = tile % across * BLOCK_W + tl.arange(0, BLOCK_W)
        oh = tl.zeros((BLOCK_W,), tl.int32) + tile // across % down * R
        pixel = (tile // (across * down) * H + oh).to(tl.int64) * W + ow
        x = strip_pointers(x_ptr, pixel, k0, width, BLOCK_K, PAIRS)
        d = strip_sums(
            x, oh, ow, taps_ptr + first, inner_ptr + first, k0, H, W, width, C,
            R, BLOCK_K, True, True, True, PAIRS, tl.float32,
        )  # fmt: skip
        for r in tl.static_range(R):
            ok = ((oh + r < H) & (ow < W))[:, None]
            row = pixel + r * W
            g = tl.load(g_ptr + row[:, None] * O + o[None, :], mask=ok, other=0.0)
            active = d[r] > inner_floor
            dd = tl.where(active, tl.dot(g, w, input_precision=DOT), 0.0)
            tl.store(dd_ptr + row[:, None] * C + (first + k)[None, :], dd.to(g.dtype), mask=ok)
            value = tl.where(active, d[r], 0.0).to(g.dtype)
            acc = tl.dot(g.trans(1, 0), value, acc, input_precision=DOT)
            total += tl.sum(g.to(tl.float32), axis=0)
            inner_total += tl.sum(tl.where(ok, dd, 0.0), axis=0)
    mine = tl.program_id(0)
    tl.store(dmix_ptr + mine * O * C + place, acc)
    tl.store(dinner_ptr + mine * C + first + k, inner_total)
    if tl.program_id(1) == 0:
        tl.store(dbias_ptr + mine * O + o, total)


@triton.jit(do_not_specialize=["tiles", "H", "W", "C", "g_width", "g_first"])
def depthwise_backward_kernel(
    g_ptr, x_ptr, taps_ptr, dx_ptr, dtaps_ptr, dbias_ptr, tiles, H, W, C, g_width, g_first,
    BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """g (N, H, W, g_width) from channel g_first on, x (N, H, W, C) -> dx, dtaps (P, 9, C) fp32, dbias (P, C) fp32.

    taps (9, g_width) from column g_first on. The output at q took x[p] with tap t where q = p - offset(t), so one look
    at the nine g around p serves both dx[p] and, times x[p], the nine tap gradients. Grid: (P, C / BLOCK_K).
    """
    if EVEN:
        C, g_width, g_first = sixteens(C), sixteens(g_width), sixteens(g_first)
    k0 = tl.program_id(1) * BLOCK_K
    k = k0 + tl.arange(0, BLOCK_K)
    inside = k < C
    sums = ()
    for _ in tl.static_range(9):
        sums = sums + (tl.zeros((BLOCK_W, BLOCK_K), tl.float32),)
    total = tl.zeros((BLOCK_W, BLOCK_K), tl.float32)
    across, down = (W + BLOCK_W - 1) // BLOCK_W, (H + R - 1) // R
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        ow = tile % across * BLOCK_W + tl.arange(0, BLOCK_W)
        oh = tl.zeros((BLOCK_W,), tl.int32) + tile // across % down * R
        pixel = (tile // (across * down) * H + oh).to(tl.int64) * W + ow
        xs, dxs = (), ()
        for r in tl.static_range(R):
            ok = ((oh + r < H) & (ow < W))[:, None] & inside[None, :]
            x = tl.load(x_ptr + (pixel + r * W)[:, None] * C + k[None, :], mask=ok, other=0.0)
            xs = xs + (x.to(tl.float32),)
            dxs = dxs + (tl.zeros((BLOCK_W, BLOCK_K), tl.float32),)
        for kx in tl.static_range(3):
            for j in tl.static_range(R + 2):
                # Row oh + j - 1 of g, column ow + 1 - kx: tap (ky, kx) brought x of row r there, ky = r - (j - 1) + 1.
                iy, ix = oh + (j - 1), ow + (1 - kx)
                ok = ((iy >= 0) & (iy < H) & (ix >= 0) & (ix < W))[:, None] & inside[None, :]
                at = (pixel + (j - 1) * W + (1 - kx))[:, None] * g_width + (g_first + k)[None, :]
                g = tl.load(g_ptr + at, mask=ok, other=0.0).to(tl.float32)
                if kx == 1 and (j >= 1 and j <= R):
                    total += g
                fresh_d, fresh_s = (), sums
                for r in tl.static_range(R):
                    if r - j + 2 >= 0 and r - j + 2 <= 2:
                        weight = channels(taps_ptr + ((r - j + 2) * 3 + kx) * g_width + g_first, k, C, EVEN)
                        fresh_d = fresh_d + (dxs[r] + g * weight[None, :],)
                        fresh_s = replaced(fresh_s, (r - j + 2) * 3 + kx, g * xs[r])
                    else:
                        fresh_d = fresh_d + (dxs[r],)
                dxs, sums = fresh_d, fresh_s
        for r in tl.static_range(R):
            ok = ((oh + r < H) & (ow < W))[:, None] & inside[None, :]
            tl.store(dx_ptr + (pixel + r * W)[:, None] * C + k[None, :], dxs[r].to(dx_ptr.dtype.element_ty), mask=ok)
    mine = tl.program_id(0)
    for t in tl.static_range(9):
        tl.store(dtaps_ptr + (mine * 9 + t) * C + k, tl.sum(sums[t], axis=0), mask=inside)
    tl.store(dbias_ptr + mine * C + k, tl.sum(total, axis=0), mask=inside)


@triton.jit
def replaced(values, index: tl.constexpr, more):
    """Return nine tensors with `more` added to one."""
    fresh = ()
    for t in tl.static_range(9):
        if t == index:
            fresh = fresh + (values[t] + more,)
        else:
            fresh = fresh + (values[t],)
    return fresh


@triton.jit(do_not_specialize=["N", "H", "W", "C"])
def upsample_backward_kernel(
    g_ptr, dx_ptr, N, H, W, C, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BILINEAR: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """g (N, 2H, 2W, C) -> dx (N, H, W, C): every low-resolution pixel gathers what it gave. Grid: (pixels, C) blocks.

    Bilinear: low row i is in the rows 2i - 1 .. 2i + 2 with 1/4, 3/4, 3/4, 1/4; beyond the image's edge its share falls
    to the edge row itself, because upsampling clamps there.
    """
    if EVEN:
        C = sixteens(C)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    there = pixel < N.to(tl.int64) * H * W
    y, x = (pixel // W % H).to(tl.int32), (pixel % W).to(tl.int32)
    n = pixel // (H.to(tl.int64) * W)
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    reach: tl.constexpr = 4 if BILINEAR else 2
    for a in range(reach):
        iy = 2 * y + a - (1 if BILINEAR else 0)
        wy = share(iy, y, H, BILINEAR)
        for b in range(reach):
            ix = 2 * x + b - (1 if BILINEAR else 0)
            ok = there & (iy >= 0) & (iy < 2 * H) & (ix >= 0) & (ix < 2 * W)
            at = ((n * 2 * H + iy) * 2 * W + ix)[:, None] * C + k[None, :]
            g = tl.load(g_ptr + at, mask=ok[:, None] & (k < C)[None, :], other=0.0).to(tl.float32)
            acc += g * (wy * share(ix, x, W, BILINEAR))[:, None]
    ok = there[:, None] & (k < C)[None, :]
    tl.store(dx_ptr + pixel[:, None] * C + k[None, :], acc.to(dx_ptr.dtype.element_ty), mask=ok)


@triton.jit
def share(fine, coarse, size, BILINEAR: tl.constexpr):
    """Return how much of low-resolution row `coarse` (of `size`) is in upsampled row `fine`."""
    if BILINEAR:
        weight = tl.where((fine == 2 * coarse) | (fine == 2 * coarse + 1), 0.75, 0.25)
        edge = ((fine == 0) & (coarse == 0)) | ((fine == 2 * size - 1) & (coarse == size - 1))
        return tl.where(edge, 1.0, weight)
    else:
        return tl.full(fine.shape, 1.0, tl.float32)
