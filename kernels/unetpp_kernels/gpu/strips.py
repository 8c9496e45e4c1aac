"""Depthwise 3x3 sums of a strip of rows, the inner part of several kernels; knows one source and one tile.

A program owns G groups of R rows, BLOCK_W columns wide. One lane works on R vertical neighbours, so that a loaded pixel
serves up to three of its outputs: (R + 2) / R * 3 loads per output instead of 9.

         columns ow - 1 .. ow + 1        row oh - 1   . . .   only read
                                         row oh       . x .   output 0
         R = 2 drawn here                row oh + 1   . x .   output 1
                                         row oh + 2   . . .   only read

The loop over the three columns stays a loop on purpose: unrolled, the compiler moves the layout conversion for the
matrix product up to every single load, which costs four times the shared-memory traffic and 30 barriers a step.
"""

import triton
import triton.language as tl


@triton.jit
def channels(pointer, index, count, EVEN: tl.constexpr):
    """Load a vector of channel weights; beyond `count` channels they are 0 (EVEN: none lies beyond)."""
    if EVEN:
        return tl.load(pointer + index)
    else:
        return tl.load(pointer + index, mask=index < count, other=0.0)


@triton.jit
def pixels(pointer, ok, MASKED: tl.constexpr, PAIRS: tl.constexpr, ACC: tl.constexpr):
    """Load (M, K) channels of pixels, 0 where not `ok`.

    PAIRS: two bf16 channels are one uint32, because shifting or masking that is one instruction per value and
    converting a bf16 in the upper half of a register is two.
    """
    if MASKED:
        v = tl.load(pointer, mask=ok, other=0)
    else:
        v = tl.load(pointer)
    if PAIRS:
        low, high = (v << 16).to(tl.float32, bitcast=True), (v & 0xFFFF0000).to(tl.float32, bitcast=True)
        return tl.join(low, high).reshape(v.shape[0], 2 * v.shape[1])
    else:
        return v.to(ACC)


@triton.jit
def strip_pointers(x_ptr, pixel, k0, width, BLOCK_K: tl.constexpr, PAIRS: tl.constexpr):
    """Return pointers (M, K) to channels k0 .. k0 + BLOCK_K of the pixels with these numbers (M,), in pairs or not."""
    if PAIRS:
        pair = tl.arange(0, BLOCK_K // 2)
        base = x_ptr.to(tl.pointer_type(tl.uint32), bitcast=True) + k0 // 2
        return base + pixel[:, None] * (width // 2) + pair[None, :]
    else:
        return x_ptr + k0 + pixel[:, None] * width + tl.arange(0, BLOCK_K)[None, :]


@triton.jit
def strip_sums(
    x, oh, ow, taps_ptr, inner_ptr, k0, H, W, width, C,
    R: tl.constexpr, BLOCK_K: tl.constexpr, INNER: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
    PAIRS: tl.constexpr, ACC: tl.constexpr, norm=None,
):  # fmt: skip
    """Return R tensors (M, K): the depthwise sums of rows oh .. oh + R - 1 at columns ow, for K channels.

    x: from `strip_pointers`, at (oh, ow) and the channels k0 ... of a source `width` channels wide. taps_ptr: (9, C)
    and inner_ptr (C), where INNER, both advanced to the source's first channel.
    MASKED: the tile touches the image's edge, and pixels outside it read as 0, also where there is a norm: pointers to
    mean, scale and shift (C) of a batch norm that x is read through, advanced likewise; only where EVEN.
    """
    channel = k0 + tl.arange(0, BLOCK_K)
    d = ()
    for _ in tl.static_range(R):
        start = tl.zeros((x.shape[0], BLOCK_K), ACC)
        if INNER:
            start += channels(inner_ptr, channel, width, EVEN).to(ACC)[None, :]
        d = d + (start,)
    step = width // 2 if PAIRS else width
    for kx in range(3):
        taps = taps_ptr + kx * C
        top = channels(taps, channel, width, EVEN).to(ACC)[None, :]
        middle = channels(taps + 3 * C, channel, width, EVEN).to(ACC)[None, :]
        bottom = channels(taps + 6 * C, channel, width, EVEN).to(ACC)[None, :]
        column = x + (kx - 1) * step
        for j in tl.static_range(R + 2):
            ok = None
            if MASKED:
                ix, iy = ow + (kx - 1), oh + (j - 1)
                ok = ((ix >= 0) & (ix < W) & (iy >= 0) & (iy < H))[:, None]
                if not EVEN:
                    ok = ok & (channel < width)[None, :]
            v = pixels(column + (j - 1) * (W * step), ok, MASKED, PAIRS, ACC)
            if norm is not None:
                v = behind(v, x, norm, channel, PAIRS)
                if MASKED:
                    v = tl.where(ok, v, 0.0)
            fresh = ()
            for r in tl.static_range(R):
                if j - r == 0:
                    fresh = fresh + (d[r] + v * top,)
                elif j - r == 1:
                    fresh = fresh + (d[r] + v * middle,)
                elif j - r == 2:
                    fresh = fresh + (d[r] + v * bottom,)
                else:
                    fresh = fresh + (d[r],)
            d = fresh
    return d


@triton.jit
def low_sums(
    x, i0, j, oh, ow, phases_ptr, k0, H, W, width,
    R: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr, PAIRS: tl.constexpr,
    ACC: tl.constexpr, norm=None,
):  # fmt: skip
    """As `strip_sums`, of the x2 upsampling of a tensor (N, H/2, W/2, width) that is never written anywhere.

    Upsampling and a 3x3 depthwise convolution are linear, so together they are a 3x3 convolution of the low-resolution
    pixels around (oh/2, ow/2), with other weights for even and odd rows and columns, and for the image's first and last
    (whose neighbours outside are 0): 4 x 4 phases. phases_ptr: (4, 4, 3, 3, width), see `compose`. i0 = oh // 2 and
    j = ow // 2; x points at the low-resolution pixel (i0, j), R is even and oh is even.
    """
    channel = k0 + tl.arange(0, BLOCK_K)
    rows, columns = H // 2, W // 2
    d = ()
    for _ in tl.static_range(R):
        d = d + (tl.zeros((x.shape[0], BLOCK_K), ACC),)
    odd = ow % 2
    if MASKED:
        odd = tl.where(ow == 0, 2, tl.where(ow == W - 1, 3, odd))
    step = width // 2 if PAIRS else width
    phase = phases_ptr + (odd * (9 * width))[:, None] + channel[None, :]
    for s in range(3):
        if MASKED:
            js = tl.minimum(tl.maximum(j + (s - 1), 0), columns - 1) - j
        else:
            js = s - 1
        for q in tl.static_range(R // 2 + 2):
            ok = None
            if MASKED:
                iq = tl.minimum(tl.maximum(i0 + (q - 1), 0), rows - 1) - i0
                offset = (iq * columns + js)[:, None] * step
                ok = ((ow < W) & (oh < H))[:, None]
                if not EVEN:
                    ok = ok & (channel < width)[None, :]
            else:
                offset = ((q - 1) * columns + js) * step
            v = pixels(x + offset, ok, MASKED, PAIRS, ACC)
            if norm is not None:
                v = behind(v, x, norm, channel, PAIRS)
            fresh = ()
            for r in tl.static_range(R):
                if r // 2 <= q and q <= r // 2 + 2:
                    row = tl.full(oh.shape, r % 2, tl.int32)
                    if MASKED:
                        if r % 2 == 0:
                            row = tl.where(oh + r == 0, 2, row)
                        else:
                            row = tl.where(oh + r == H - 1, 3, row)
                    weights = phase + (row * (36 * width))[:, None] + ((q - r // 2) * 3 + s) * width
                    if EVEN:
                        w = tl.load(weights).to(ACC)
                    else:
                        w = tl.load(weights, mask=(channel < width)[None, :], other=0.0).to(ACC)
                    fresh = fresh + (d[r] + v * w,)
                else:
                    fresh = fresh + (d[r],)
            d = fresh
    return d


@triton.jit
def behind(v, x, norm, channel, PAIRS: tl.constexpr):
    """Return values v (M, K) fp32, which `pixels` loaded from x, behind the norm, rounded as they would be stored."""
    kind: tl.constexpr = tl.bfloat16 if PAIRS else x.dtype.element_ty
    mean, scale, shift = tl.load(norm[0] + channel), tl.load(norm[1] + channel), tl.load(norm[2] + channel)
    return normalised(v, mean, scale, shift, kind).to(tl.float32)


@triton.jit
def tile(W, G: tl.constexpr, BLOCK_W: tl.constexpr, R: tl.constexpr):
    """Return the rows oh and columns ow (M,) of this program's lanes, and its first row and column."""
    m = tl.arange(0, G * BLOCK_W)
    top = tl.program_id(1) * (G * R)
    left = tl.program_id(0) * BLOCK_W
    return top + (m // BLOCK_W) * R, left + m % BLOCK_W, top, left


@triton.jit
def tile_number(n):
    """Return this program's tile's number among those of all images, n being its image (64-bit)."""
    return (n * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)


@triton.jit
def floored(x, floor):
    """Return max(x, floor) with NaN kept: floor is 0 for ReLU and -inf for no activation."""
    # In x's own type: beside an fp32 floor, 16-bit sums would be widened and narrowed again.
    return tl.maximum(x, tl.full(x.shape, floor, x.dtype), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normalised(x, mean, scale, shift, KIND: tl.constexpr):
    """Return x (M, K) in the type KIND as `normalise_kernel` stores it with a ReLU; mean, scale and shift (K) fp32.

    Pixels that there are not become what 0 becomes: whoever sums over pixels has to drop them.
    """
    return floored((x.to(tl.float32) - mean[None, :]) * scale[None, :] + shift[None, :], 0.0).to(KIND)
