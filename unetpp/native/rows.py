"""Writes the functions that compute one row of pixels; knows channels and weights, not which node they belong to.

A row is (pixels, channels), channels next to each other, and always a multiple of a vector of them. Sums are float32;
what is called stored is of the target's kind (see `Target`). Pointwise functions compute up to `SLACK` pixels more than
they are asked for: rows and what they read have room for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from llvmlite import ir

from unetpp.native.emit import BF16, F32, I8, I16, I32, I64, POINTER, VOID, Body, Code, Number, Pointer

SLACK: Final = 32
"""Pixels that a row must have room for behind its last."""
_PIXELS: Final = 6
"""Of which sums are in registers at once. With two vectors of outputs those are twelve, as many as products need to
follow each other without a pause. With 12 pixels, for which AVX-512 has registers, bytes took 10% more time, bf16 and
fp32 5% (AMD EPYC with avx512_bf16): so many results at once wait to be stored."""
RAW: Final[dict[str, tuple[Any, int]]] = {"uint8": (I8, 1), "uint16": (I16, 2), "float32": (F32, 4)}
"""Sample types of images, and their bytes."""


class Sources(NamedTuple):
    """What a pointwise convolution reads: rows of one kind, one after the other.

    Attributes:
        channels: of each of them.
        step: bytes from pixel to pixel.
        stored: as maps are stored, else float32.
    """

    channels: int
    step: int
    stored: bool = True


def pointwise(code: Code, sources: Sources, outputs: int) -> Any:
    """Return f(to, start, count, rows, weights, pixels): to = start + sum of weights x row, float32.

    `start` is a row of float32 sums or null; `rows` points to `count` pointers. Weights: see `pack_pointwise`.
    """
    name = f"pointwise_{sources.channels}_{sources.step}_{'stored' if sources.stored else 'plain'}_{outputs}"
    kinds = (POINTER, POINTER, I64, POINTER, POINTER, I64)
    if on_tiles(code.target, sources, outputs):
        return code.function(name, kinds, lambda body, *given: _on_tiles(body, sources, outputs, *given))
    return code.function(name, kinds, lambda body, *given: _on_vectors(body, sources, outputs, *given))


def on_tiles(target: Any, sources: Sources, outputs: int) -> bool:
    """Say whether AMX computes a pointwise convolution: it takes weights in an order of its own."""
    return bool(target.tiles and sources.stored and sources.channels % 32 == 0 and outputs % 32 == 0)


def vectors_at_once(target: Any, outputs: int) -> int:
    """Return of how many vectors of outputs one pass over the inputs computes the sums."""
    return 2 if outputs % (2 * target.lanes) == 0 else 1


def _on_vectors(
    body: Body, sources: Sources, outputs: int,
    to: Pointer, start: Pointer, count: Number, rows: Pointer, weights: Pointer, pixels: Number,
) -> None:  # fmt: skip
    """Sums of a few pixels and one or two vectors of outputs stay in registers while all inputs pass by.

    Those of whole numbers are integers, exact in any order; only then the start is added.
    """
    target, builder = body.target, body.builder
    lanes, together = target.lanes, target.together if sources.stored else 1
    exact = target.most is not None and sources.stored
    vectors = vectors_at_once(target, outputs)
    steps = sources.channels // together
    width = vectors * lanes * 4  # bytes of weights of one step
    kind = body.integers if exact else body.vector
    sums = [[body.slot(kind) for _ in range(vectors)] for _ in range(_PIXELS)]
    places = [(p, v, (p * outputs + v * lanes) * 4) for p in range(_PIXELS) for v in range(vectors)]

    def begin(value_of: Any) -> None:
        for p, v, place in places:
            builder.store(value_of(place), sums[p][v])

    def step(row: Pointer, weight: Pointer) -> None:
        factors = [(weight + v * lanes * 4).load(_factors(body, sources.stored)) for v in range(vectors)]
        for p in range(_PIXELS):
            value = body.splat((row + p * sources.step).load(F32 if together == 1 else I32, 4 // together))
            for v in range(vectors):
                before = builder.load(sums[p][v], typ=kind)
                builder.store(_added(body, before, value, factors[v], sources.stored), sums[p][v])

    def finish(to: Pointer, start: Pointer | None = None) -> None:
        for p, v, offset in places:
            value = builder.load(sums[p][v], typ=kind)
            value = builder.sitofp(value, body.vector) if exact else value
            if start is not None:
                value = builder.fadd(value, (start + offset).load(body.vector))
            (to + offset).store(value)

    given = builder.icmp_unsigned("!=", start.value, body.null.value)
    with body.loop(0, pixels, _PIXELS) as x, body.loop(0, outputs, vectors * lanes) as first:
        place = x * (outputs * 4) + first * 4
        nothing = partial(begin, lambda _offset: ir.Constant(kind, [kind.element(0)] * lanes))
        if exact:
            nothing()
        else:
            body.either(given, partial(begin, lambda offset: (start + place + offset).load(kind)), nothing)
        block = weights + first // (vectors * lanes) * (count * (steps * width))
        with body.loop(0, count) as source:
            row, part = (rows + source * 8).pointer() + x * sources.step, block + source * (steps * width)
            with body.loop(0, steps) as k:
                step(row + k * 4, part + k * width)
        if exact:
            body.either(given, partial(finish, to + place, start + place), partial(finish, to + place))
        else:
            finish(to + place)


def _factors(body: Body, stored: bool) -> Any:
    """Return the type of a vector of weights."""
    lanes = body.target.lanes
    kinds = {"bf16": ir.VectorType(BF16, 2 * lanes), "int16": ir.VectorType(I16, 2 * lanes), "int8": body.integers}
    return kinds.get(body.target.stored, body.vector) if stored else body.vector


def _added(body: Body, before: Any, value: Any, weight: Any, stored: bool) -> Any:
    """Return before + value x weight; of two or four numbers in a lane, the sum of all their products."""
    kind, how = weight.type, body.target.stored if stored else "fp32"
    if how == "fp32":
        return body.fma(value, weight, before)
    value, bits = body.builder.bitcast(value, kind), 32 * body.target.lanes
    if how == "int16":
        pairs = body.code.intrinsic("llvm.x86.avx2.pmadd.wd", before.type, [kind, kind])
        return body.builder.add(before, body.builder.call(pairs, [value, weight]))
    name = f"llvm.x86.avx512bf16.dpbf16ps.{bits}" if how == "bf16" else f"llvm.x86.avx512.vpdpbusd.{bits}"
    dot = body.code.intrinsic(name, before.type, [before.type, kind, kind])
    return body.builder.call(dot, [before, value, weight])


def _on_tiles(
    body: Body, sources: Sources, outputs: int,
    to: Pointer, start: Pointer, count: Number, rows: Pointer, weights: Pointer, pixels: Number,
) -> None:  # fmt: skip
    """Sums of 32 pixels x 32 outputs stay in tiles 0 to 3, inputs pass through 4 and 5, weights through 6 and 7."""
    code, steps = body.code, sources.channels // 32
    load = code.intrinsic("llvm.x86.tileloadd64", VOID, [I8, POINTER, I64])
    save = code.intrinsic("llvm.x86.tilestored64", VOID, [I8, POINTER, I64])
    zero = code.intrinsic("llvm.x86.tilezero", VOID, [I8])
    multiply = code.intrinsic("llvm.x86.tdpbf16ps", VOID, [I8, I8, I8])
    tile = [ir.Constant(I8, number) for number in range(8)]
    quarters = [(tile[2 * p + v], (16 * p * outputs + 16 * v) * 4) for p in (0, 1) for v in (0, 1)]

    def begin(fill: Callable[[Any, int], None]) -> None:
        for number, offset in quarters:
            fill(number, offset)

    with body.loop(0, pixels, 32) as x, body.loop(0, outputs, 32) as first:
        place = x * (outputs * 4) + first * 4
        body.either(
            body.builder.icmp_unsigned("!=", start.value, body.null.value),
            lambda: begin(lambda number, offset: body.call(load, number, start + place + offset, outputs * 4)),
            lambda: begin(lambda number, _offset: body.call(zero, number)),
        )
        block = weights + first // 32 * (count * (steps * 2048))
        with body.loop(0, count) as source:
            row, part = (rows + source * 8).pointer() + x * sources.step, block + source * (steps * 2048)
            with body.loop(0, steps) as k:
                inputs, weight = row + k * 64, part + k * 2048
                body.call(load, tile[4], inputs, sources.step)
                body.call(load, tile[6], weight, 128)
                body.call(multiply, tile[0], tile[4], tile[6])
                body.call(load, tile[7], weight + 64, 128)
                body.call(multiply, tile[1], tile[4], tile[7])
                body.call(load, tile[5], inputs + 16 * sources.step, sources.step)
                body.call(multiply, tile[2], tile[5], tile[6])
                body.call(multiply, tile[3], tile[5], tile[7])
        for number, offset in quarters:
            body.call(save, number, to + place + offset, outputs * 4)


def begin_tiles(body: Body) -> None:
    """Give every tile of AMX 16 rows of 64 bytes; `end_tiles` must follow."""
    shape = bytearray(64)
    shape[0] = 1
    for number in range(8):
        shape[16 + 2 * number], shape[48 + number] = 64, 16
    configure = body.code.intrinsic("llvm.x86.ldtilecfg", VOID, [POINTER])
    body.call(configure, Pointer(body, body.code.constant("tiles", bytes(shape))))


def end_tiles(body: Body) -> None:
    body.call(body.code.intrinsic("llvm.x86.tilerelease", VOID, []))


def depthwise(code: Code, channels: int) -> Any:
    """Return f(above, row, below, weights, bias, to, pixels): stored relu(bias + 3x3 convolution).

    The three rows are float32 and begin one pixel left of the first that is computed; weights are (9, channels).
    """

    def write(body: Body, *given: Any) -> None:
        *rows, weights, bias, to, pixels = given
        pixel = channels * 4
        # Sums and what they share fill most registers. Of bytes, 8 pixels took 8% more time.
        at_once = 4 if body.target.lanes == 8 else 6 if body.target.stored == "int8" else 8

        def sums(x: Number, channel: Number, number: int) -> list[Any]:
            """A vector of channels of some pixels."""
            here, place = channel * 4, x * pixel + channel * 4
            found = [(bias + here).load(body.vector)] * number
            for row in range(3):
                columns = [(rows[row] + place + n * pixel).load(body.vector) for n in range(number + 2)]
                for column in range(3):
                    factor = (weights + here + (3 * row + column) * pixel).load(body.vector)
                    found = [body.fma(columns[n + column], factor, found[n]) for n in range(number)]
            return found

        def compute(x: Number, number: int) -> None:
            """All channels of some pixels, few at a time: memory is read in its own order."""
            lanes, kept = body.target.lanes, body.target.kept
            with body.loop(0, channels, kept * lanes) as first:
                found = [sums(x, first + v * lanes, number) for v in range(kept)]
                for n, vectors in enumerate(zip(*found, strict=True)):
                    body.keep(vectors, to + ((x + n) * channels + first) * body.target.size)

        even = pixels - pixels % at_once
        with body.loop(0, even, at_once) as x:
            compute(x, at_once)
        with body.loop(even, pixels) as x:
            compute(x, 1)

    return code.function(f"depthwise_{channels}", (POINTER,) * 6 + (I64,), write)


def bias_relu(code: Code, channels: int) -> Any:
    """Return f(sums, bias, to, pixels): stored relu(sums + bias)."""

    def write(body: Body, sums: Pointer, bias: Pointer, to: Pointer, pixels: Number) -> None:
        with body.loop(0, pixels) as x:
            for first in range(0, channels, body.target.kept * body.target.lanes):
                places = [4 * (first + v * body.target.lanes) for v in range(body.target.kept)]
                values = [(sums + x * (channels * 4) + place).load(body.vector) for place in places]
                biases = [(bias + place).load(body.vector) for place in places]
                totals = [body.builder.fadd(*pair) for pair in zip(values, biases, strict=True)]
                body.keep(totals, to + (x * channels + first) * body.target.size)

    return code.function(f"bias_relu_{channels}", (POINTER,) * 3 + (I64,), write)


def upsample(code: Code, channels: int, nearest: bool) -> Any:
    """Return f(above, below, share, to, pixels): 2 x pixels between two rows, float32.

    A row is share x above + (1 - share) x below (nearest: above), and begins with the pixel left of the first. The
    factors are those of bilinear upsampling by two with half-pixel centres: 1/4 and 3/4.
    """

    def write(body: Body, above: Pointer, below: Pointer, share: Any, to: Pointer, pixels: Number) -> None:
        builder, pixel, at_once = body.builder, channels * 4, 4
        near, far = body.splat(share), body.splat(builder.fsub(ir.Constant(F32, 1.0), share))
        inner, outer = body.constants(0.75), body.constants(0.25)

        def between(place: Number) -> Any:
            other = builder.fmul((below + place).load(body.vector), far)
            return body.fma((above + place).load(body.vector), near, other)

        def compute(x: Number, number: int) -> None:
            with body.loop(0, channels, body.target.lanes) as first:
                source, place = x * pixel + first * 4, to + x * (2 * pixel) + first * 4
                if nearest:
                    for n in range(number):
                        value = (above + source + (n + 1) * pixel).load(body.vector)
                        (place + 2 * n * pixel).store(value)
                        (place + (2 * n + 1) * pixel).store(value)
                    return
                values = [between(source + n * pixel) for n in range(number + 2)]
                for n in range(number):
                    middle = builder.fmul(values[n + 1], inner)
                    (place + 2 * n * pixel).store(body.fma(values[n], outer, middle))
                    (place + (2 * n + 1) * pixel).store(body.fma(values[n + 2], outer, middle))

        even = pixels - pixels % at_once
        with body.loop(0, even, at_once) as x:
            compute(x, at_once)
        with body.loop(even, pixels) as x:
            compute(x, 1)

    kinds = (POINTER, POINTER, F32, POINTER, I64)
    return code.function(f"upsample_{channels}_{'nearest' if nearest else 'bilinear'}", kinds, write)


def pool(code: Code, channels: int) -> Any:
    """Return f(row, below, to, pixels): the largest of each 2x2 of two stored rows, in half as many pixels.

    What was stored passed a ReLU. Of such floating-point numbers the larger one has the larger bits, and what is not a
    number has the largest, once the sign is gone that x86 gives what it makes of inf - inf. Words have no bit there.
    """

    def write(body: Body, row: Pointer, below: Pointer, to: Pointer, pixels: Number) -> None:
        size, bits = body.target.size, 8 * body.target.size
        at_once = next(n for n in (64, 32, 16, 8) if n * size <= body.target.lanes * 4 and channels % n == 0)
        kind = ir.VectorType(ir.IntType(bits), at_once)
        most = body.code.intrinsic(f"llvm.umax.v{at_once}i{bits}", kind, [kind, kind])
        unsigned = ir.Constant(kind, [(1 << bits) - 1 if size == 1 else (1 << (bits - 1)) - 1] * at_once)
        with body.loop(0, pixels) as x:
            for first in range(0, channels, at_once):
                place = x * (2 * channels * size) + first * size
                places = [r + place + n for r in (row, below) for n in (0, channels * size)]
                four = [body.builder.and_(p.load(kind, size), unsigned) for p in places]
                found = body.call(most, body.call(most, *four[:2]), body.call(most, *four[2:]))
                (to + x * (channels * size) + first * size).store(found, size)

    return code.function(f"pool_{channels}", (POINTER,) * 3 + (I64,), write)


def normalise(code: Code, raw: str) -> Any:
    """Return f(raw, to, mean, std, numbers): float32 (raw - mean) / std, mean and std repeated for every pixel."""
    kind, size = RAW[raw]

    def write(body: Body, source: Pointer, to: Pointer, mean: Pointer, std: Pointer, numbers: Number) -> None:
        builder, lanes = body.builder, body.target.lanes

        def compute(n: Number, many: bool) -> None:
            wide, narrow = (body.vector, ir.VectorType(kind, lanes)) if many else (F32, kind)
            value = (source + n * size).load(narrow, 1)
            value = value if raw == "float32" else builder.uitofp(value, wide)
            centred = builder.fsub(value, (mean + n * 4).load(wide))
            (to + n * 4).store(builder.fdiv(centred, (std + n * 4).load(wide)))

        even = numbers - numbers % lanes
        with body.loop(0, even, lanes) as n:
            compute(n, many=True)
        with body.loop(even, numbers) as n:
            compute(n, many=False)

    return code.function(f"normalise_{raw}", (POINTER,) * 4 + (I64,), write)
