"""Gradients of the convolutions: one pass per layer over gradient and input; knows one operation each, no autograd.

Sums over pixels are kept per program in registers and written as partial results, which the launcher adds up: no
atomics, so two runs give the same bits. Gradients of biases are no part of this: a layer with a norm has no bias, and
a sum over the lanes of every tile costs more instructions than reading the gradient once more where there is one.
"""

import triton
import triton.language as tl

from unetpp_kernels.gpu.sources import pick, sixteens
from unetpp_kernels.gpu.strips import channels, normalised, pixels, strip_pointers, strip_sums


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


@triton.jit(do_not_specialize=["total", "C", "count", "c0", "c1", "c2", "c3", "c4", "c5"])
def pointwise_backward_kernel(
    g_ptr, s0, s1, s2, s3, s4, s5, mean_ptr, scale_ptr, shift_ptr, mix_ptr, d0, d1, d2, d3, d4, d5, dmix_ptr,
    total, C, count, c0, c1, c2, c3, c4, c5,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
    NORM: tl.constexpr = False,
):  # fmt: skip
    """g (total, O), sources (total, c_k), mix (O, C) -> gradients of the sources, dmix (P, O, C) fp32.

    A program owns one block of channels of one source and every P-th tile of pixels. All widths are multiples of
    BLOCK_K, and O == BLOCK_N. NORM: what was multiplied are the sources after their batch norm and ReLU, made anew, and
    the gradients are those of it. Grid: (P, blocks of channels over all sources).
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
    if NORM:
        c = first + k
        mean, scale, shift = tl.load(mean_ptr + c), tl.load(scale_ptr + c), tl.load(shift_ptr + c)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for tile in range(tl.program_id(0), (total + BLOCK_M - 1) // BLOCK_M, tl.num_programs(0)):
        pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        there = pixel < total
        g = tl.load(g_ptr + pixel[:, None] * O + o[None, :], mask=there[:, None], other=0.0)
        at = pixel[:, None] * width + k[None, :]
        x = tl.load(x_ptr + at, mask=there[:, None], other=0.0)
        if NORM:
            x = normalised(x, mean, scale, shift, x.dtype)
        dx = tl.dot(g, w, input_precision=DOT)
        tl.store(dx_ptr + at, dx.to(x.dtype), mask=there[:, None])
        acc = tl.dot(g.trans(1, 0), x, acc, input_precision=DOT)
    tl.store(dmix_ptr + tl.program_id(0) * O * C + place, acc)


@triton.jit
def insides(count):
    """Return how many of so many rows or columns of tiles are neither the first nor the last."""
    return tl.maximum(count - 2, 0)


@triton.jit
def split(number, rows, columns):
    """Return image, row and column of the tile with this number among rows * columns tiles of every image."""
    row = number // tl.maximum(columns, 1)
    return row // tl.maximum(rows, 1), row % tl.maximum(rows, 1), number % tl.maximum(columns, 1)


@triton.jit
def carried(digit, base):
    """Return a digit of less than 2 * base without what it carries, and that: to count on takes no division."""
    over = digit >= base
    return tl.where(over, digit - base, digit), over.to(tl.int32)


@triton.jit
def edges(across, down):
    """Return how many of an image's tiles touch its edge."""
    return across * down - insides(across) * insides(down)


@triton.jit
def edge(tile, across, down):
    """Return image, row and column of the tile with this number among those that touch an edge.

    The first and the last row come first, then of each row between its first and last column.
    """
    rows, columns = tl.minimum(down, 2), tl.minimum(across, 2)
    each = edges(across, down)
    t = tile % each
    other = tl.maximum(t - rows * across, 0)
    whole = t < rows * across
    row = tl.where(whole, t // across * (down - 1), 1 + other // columns)
    column = tl.where(whole, t % across, other % columns * (across - 1))
    return tile // each, row, column


@triton.jit(do_not_specialize=["N", "H", "W", "C", "count", "c0", "c1", "c2", "c3", "c4", "c5"])
def depthwise_pointwise_backward_kernel(
    g_ptr, s0, s1, s2, s3, s4, s5, taps_ptr, inner_ptr, mix_ptr, dd_ptr, dmix_ptr,
    N, H, W, C, count, c0, c1, c2, c3, c4, c5, inner_floor,
    BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, INNER: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """g (N, H, W, O), sources (N, H, W, c_k) -> dd (N, H, W, C), dmix (P, O, C) fp32.

    dd is the gradient of the depthwise sums. Those are computed again from the sources, in registers: they were never
    saved. INNER: with a bias and an activation between the convolutions. Widths and grid as above.
    """
    C = sixteens(C)
    O: tl.constexpr = BLOCK_N
    source, first, k0 = find_block(tl.program_id(1), c0, c1, c2, c3, c4, c5, count, BLOCK_K)
    width = pick(source, c0, c1, c2, c3, c4, c5)
    x_ptr = pick(source, s0, s1, s2, s3, s4, s5)
    width, first = sixteens(width), sixteens(first)
    k, o = k0 + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    place = o[:, None] * C + (first + k)[None, :]
    w = tl.load(mix_ptr + place)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    taps, inner = taps_ptr + first, inner_ptr + first
    across, down = (W + BLOCK_W - 1) // BLOCK_W, (H + R - 1) // R
    rows, columns = insides(down), insides(across)
    image, row, column = split(tl.program_id(0), rows, columns)
    images_on, rows_on, columns_on = split(tl.num_programs(0), rows, columns)
    for _ in range(tl.program_id(0), N * rows * columns, tl.num_programs(0)):
        acc = mixed_backward(
            acc, g_ptr, x_ptr, taps, inner, dd_ptr + first, w, image, (1 + row) * R, (1 + column) * BLOCK_W, k0,
            H, W, width, C, inner_floor, BLOCK_W, R, BLOCK_K, BLOCK_N, INNER, False, DOT,
        )  # fmt: skip
        column, carry = carried(column + columns_on, columns)
        row, carry = carried(row + rows_on + carry, rows)
        image += images_on + carry
    for tile in range(tl.program_id(0), N * edges(across, down), tl.num_programs(0)):
        image, row, column = edge(tile, across, down)
        acc = mixed_backward(
            acc, g_ptr, x_ptr, taps, inner, dd_ptr + first, w, image, row * R, column * BLOCK_W, k0, H, W, width, C,
            inner_floor, BLOCK_W, R, BLOCK_K, BLOCK_N, INNER, True, DOT,
        )  # fmt: skip
    tl.store(dmix_ptr + tl.program_id(0) * O * C + place, acc)


@triton.jit
def mixed_backward(
    acc, g_ptr, x_ptr, taps_ptr, inner_ptr, dd_ptr, w, image, top, left, k0, H, W, width, C, inner_floor,
    BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, INNER: tl.constexpr,
    MASKED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Store dd of one tile and K channels, and add g^T d to acc (BLOCK_N, K); MASKED: it touches the image's edge."""
    PAIRS: tl.constexpr = x_ptr.dtype.element_ty == tl.bfloat16
    k, o = k0 + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_W)
    oh, ow = tl.zeros((BLOCK_W,), tl.int32) + top, left + lane
    # Where the tile starts is one number for all lanes, 64 bits wide; from there 32 bits do.
    origin = (image * H.to(tl.int64) + top) * W + left
    x = strip_pointers(x_ptr + origin * width, lane, k0, width, BLOCK_K, PAIRS)
    d = strip_sums(
        x, oh, ow, taps_ptr, inner_ptr, k0, H, W, width, C, R, BLOCK_K, INNER, True, MASKED, PAIRS, tl.float32
    )
    for r in tl.static_range(R):
        g_at = g_ptr + (origin + r * W) * BLOCK_N + (lane[:, None] * BLOCK_N + o[None, :])
        dd_at = dd_ptr + (origin + r * W) * C + (lane[:, None] * C + k[None, :])
        if MASKED:
            ok = ((oh + r < H) & (ow < W))[:, None]
            g = tl.load(g_at, mask=ok, other=0.0)
        else:
            ok = None
            g = tl.load(g_at)
        dd = tl.dot(g, w, input_precision=DOT).to(g.dtype)
        value = d[r]
        if INNER:
            active = value > inner_floor
            dd, value = tl.where(active, dd, tl.zeros(dd.shape, dd.dtype)), tl.where(active, value, 0.0)
        tl.store(dd_at, dd, mask=ok)
        acc = tl.dot(g.trans(1, 0), value.to(g.dtype), acc, input_precision=DOT)
    return acc


@triton.jit(do_not_specialize=["N", "H", "W", "C", "g_width", "g_first"])
def depthwise_backward_kernel(
    g_ptr, x_ptr, taps_ptr, dx_ptr, dtaps_ptr, N, H, W, C, g_width, g_first,
    BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """g (N, H, W, g_width) from channel g_first on, x (N, H, W, C) -> dx, dtaps (P, 9, C) fp32.

    taps (9, g_width) from column g_first on. The output at q took x[p] with tap t where q = p - offset(t), so one look
    at the nine g around p serves both dx[p] and, times x[p], the nine tap gradients. Grid: (P, C / BLOCK_K).
    """
    if EVEN:
        C, g_width, g_first = sixteens(C), sixteens(g_width), sixteens(g_first)
    k0 = tl.program_id(1) * BLOCK_K
    k = k0 + tl.arange(0, BLOCK_K)
    sums = ()
    for _ in tl.static_range(9):
        sums = sums + (tl.zeros((BLOCK_W, BLOCK_K), tl.float32),)
    taps = ()
    for t in tl.static_range(9):
        taps = taps + (channels(taps_ptr + t * g_width + g_first, k, C, EVEN)[None, :],)
    across, down = (W + BLOCK_W - 1) // BLOCK_W, (H + R - 1) // R
    if EVEN:
        rows, columns = insides(down), insides(across)
        image, row, column = split(tl.program_id(0), rows, columns)
        images_on, rows_on, columns_on = split(tl.num_programs(0), rows, columns)
        for _ in range(tl.program_id(0), N * rows * columns, tl.num_programs(0)):
            sums = filtered_backward(
                sums, taps, g_ptr, x_ptr, dx_ptr, image, (1 + row) * R, (1 + column) * BLOCK_W, k0, H, W, C,
                g_width, g_first, BLOCK_W, R, BLOCK_K, EVEN, False,
            )  # fmt: skip
            column, carry = carried(column + columns_on, columns)
            row, carry = carried(row + rows_on + carry, rows)
            image += images_on + carry
    masked = edges(across, down) if EVEN else across * down
    for tile in range(tl.program_id(0), N * masked, tl.num_programs(0)):
        if EVEN:
            image, row, column = edge(tile, across, down)
        else:
            image, row, column = tile // (across * down), tile // across % down, tile % across
        sums = filtered_backward(
            sums, taps, g_ptr, x_ptr, dx_ptr, image, row * R, column * BLOCK_W, k0, H, W, C, g_width, g_first,
            BLOCK_W, R, BLOCK_K, EVEN, True,
        )  # fmt: skip
    for t in tl.static_range(9):
        tl.store(dtaps_ptr + (tl.program_id(0) * 9 + t) * C + k, tl.sum(sums[t], axis=0), mask=k < C)


@triton.jit
def filtered_backward(
    sums, taps, g_ptr, x_ptr, dx_ptr, image, top, left, k0, H, W, C, g_width, g_first,
    BLOCK_W: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Store dx of one tile and K channels, and add its part to the nine sums; MASKED: it touches the image's edge."""
    PAIRS: tl.constexpr = EVEN and x_ptr.dtype.element_ty == tl.bfloat16
    k = k0 + tl.arange(0, BLOCK_K)
    lane = tl.arange(0, BLOCK_W)
    oh, ow = tl.zeros((BLOCK_W,), tl.int32) + top, left + lane
    origin = (image * H.to(tl.int64) + top) * W + left
    x_at = strip_pointers(x_ptr + origin * C, lane, k0, C, BLOCK_K, PAIRS)
    g_at = strip_pointers(g_ptr + origin * g_width, lane, g_first + k0, g_width, BLOCK_K, PAIRS)
    x_step, g_step = C // 2 if PAIRS else C, g_width // 2 if PAIRS else g_width
    dx_at = dx_ptr + origin * C + (lane[:, None] * C + k[None, :])
    none = tl.zeros((BLOCK_W, BLOCK_K), tl.float32)
    # Row j - 1 of g meets the rows j - 2, j - 1 and j of x, and no others: three of each are all that is ever held.
    xs, dxs = (none, none, none), (none, none, none)
    for j in tl.static_range(R + 2):
        fresh = none
        if j < R:
            fresh = pixels(
                x_at + j * (W * x_step), there(oh + j, ow, H, W, k, C, EVEN, MASKED), MASKED, PAIRS, tl.float32
            )
        xs, dxs = (xs[1], xs[2], fresh), (dxs[1], dxs[2], none)
        for kx in tl.static_range(3):
            # Row oh + j - 1 of g, column ow + 1 - kx: tap (ky, kx) brought x of row j - 2 + ky there.
            ok = there(oh + (j - 1), ow + (1 - kx), H, W, k, C, EVEN, MASKED)
            g = pixels(g_at + ((j - 1) * W + (1 - kx)) * g_step, ok, MASKED, PAIRS, tl.float32)
            fresh_d = ()
            for ky in tl.static_range(3):
                if j - 2 + ky >= 0 and j - 2 + ky < R:
                    fresh_d = fresh_d + (dxs[ky] + g * taps[ky * 3 + kx],)
                    sums = replaced(sums, ky * 3 + kx, g * xs[ky])
                else:
                    fresh_d = fresh_d + (dxs[ky],)
            dxs = fresh_d
        if j >= 2:
            ok = there(oh + (j - 2), ow, H, W, k, C, EVEN, MASKED)
            tl.store(dx_at + (j - 2) * (W * C), dxs[0].to(dx_ptr.dtype.element_ty), mask=ok)
    return sums


@triton.jit
def there(y, x, H, W, k, C, EVEN: tl.constexpr, MASKED: tl.constexpr):
    """Return which pixels (M,) and channels (K,) there are, None where all are known to be."""
    if not MASKED:
        return None
    else:
        ok = ((y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None]
        if not EVEN:
            ok = ok & (k < C)[None, :]
        return ok


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
