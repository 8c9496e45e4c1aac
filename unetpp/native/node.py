"""Writes the function that computes a node X^{i,j} over a part of an image, going on where it stopped; knows no grid.

A node holds two convolution units. Per row: the first unit's pointwise convolution of all sources goes to a ring of
three rows, its depthwise convolution of those to one row, the second unit's pointwise convolution of that to another
ring, and its depthwise convolution to the map. Nothing between the sources and the map is written to memory; the rings
stay in the cache and keep what the next call goes on from.

    sources --pointwise--> ring --depthwise--> row --pointwise--> ring --depthwise--> map

The half-resolution source is convolved before it is upsampled, which is the same (both are linear) and four times less
work. Outside of the image a depthwise convolution reads zeros, and the upsampling the nearest pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from llvmlite import ir

from unetpp.model.order import Name
from unetpp.native import rows
from unetpp.native.emit import F32, POINTER, Body, Code, Number, Pointer
from unetpp.native.program import PART
from unetpp.native.rows import RAW, SLACK, Sources
from unetpp.native.support import MOST_SOURCES
from unetpp.native.target import Target
from unetpp.package import ModelSpec

Kind = Literal["stem", "encoder", "decoder"]
SLOTS: Final = {
    name: number for number, name in enumerate((
        *PART,
        "map", "pitch", "rows",  # where the node goes: address of pixel (0, 0), bytes per row, rows that are kept
        "height", "width",  # of the image, in the node's pixels
        "left", "right",  # columns to compute
        "scratch",
        "pointwise1", "depthwise1", "bias1", "pointwise2", "depthwise2", "bias2", "pointwise_low",
        "low", "low_pitch", "low_rows",
        "mean", "std",
        "count", "source",  # then address, bytes per row, and rows kept of each source
    ))
}  # fmt: skip
"""Places of the arguments in the array of int64 that a node's function gets. Rows are kept in a ring: row y of a map is
at y % rows."""
ARGUMENTS: Final = SLOTS["source"] + 3 * MOST_SOURCES
PAD: Final = 8
"""Columns of a ring that a block of columns may have more than its own: two on each side, rounded up."""
_ROW: Final = 48 * 1024
"""Bytes of a row of sums in a block of columns: two rings of three stay in a second cache of 512 kB."""
_LEAST_BLOCK: Final = 32
"""Columns; of narrower blocks too many would be computed twice."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a node's function depends on; channels are padded (see `Target.padded`).

    Attributes:
        inputs: channels of a source: of the image for the stem, of the level above for an encoder node.
        low: channels of the half-resolution source.
        block: most columns of one call.
    """

    name: str
    kind: Kind
    channels: int
    inputs: int
    low: int
    block: int
    raw: str
    nearest: bool


def shape_of(spec: ModelSpec, target: Target, name: Name) -> Shape:
    """Return what the function of a network's node depends on."""
    (i, j), config = name, spec.architecture
    channels = target.padded(config.filters[i])
    above = target.padded(config.filters[i - 1]) if i else config.bands
    return Shape(
        name=f"node_{i}_{j}",
        kind="decoder" if j else "encoder" if i else "stem",
        channels=channels,
        inputs=channels if j else above,
        low=target.padded(config.filters[i + 1]) if j else 0,
        block=max(_LEAST_BLOCK, _ROW // (4 * channels) // 2 * 2),
        raw=spec.dtype,
        nearest=config.upsample == "nearest",
    )


class Scratch:
    """Where a node keeps what stays between its rows and calls; offsets in bytes."""

    def __init__(self, shape: Shape, size: int) -> None:
        self.size = 0
        columns = shape.block + PAD + SLACK
        self.row = columns * shape.channels * 4
        self.image_row = -(-columns * shape.inputs * 4 // 64) * 64
        self.low_row = (columns // 2 + PAD + SLACK) * shape.channels * 4
        decoder, stem = shape.kind == "decoder", shape.kind == "stem"
        self.pointers = self._take(8 * (MOST_SOURCES + 2))
        self.next_low = self._take(8)
        self.ring1 = self._take(0 if stem else 3 * self.row)
        self.ring2 = self._take(3 * self.row)
        self.between = self._take(columns * shape.channels * size)
        self.sums = self._take(self.row if stem or decoder else 0)
        self.image = self._take(3 * self.image_row if stem else 0)
        self.low = self._take(2 * self.low_row if decoder else 0)
        self.pooled = self._take(columns * shape.inputs * size if shape.kind == "encoder" else 0)

    def _take(self, size: int) -> int:
        place = self.size
        self.size += -(-size // 256) * 256
        return place


def node(code: Code, shape: Shape) -> None:
    """Add a node's function, f(arguments), under its name."""
    code.function(shape.name, (POINTER,), lambda body, given: _Writer(body, shape, given).write())


class _Writer:
    """Writes one node's function."""

    def __init__(self, body: Body, shape: Shape, given: Pointer) -> None:
        self.body, self.shape, self.given = body, shape, given
        code, channels, size = body.code, shape.channels, body.target.size
        self.size, self.pixel, self.channels = size, channels * 4, channels
        if shape.kind == "stem":
            self.source = Sources(3 * shape.inputs, shape.inputs * 4, stored=False)  # three pixels of a row at once
        else:
            self.source = Sources(shape.inputs, shape.inputs * size)
        self.pointwise1 = rows.pointwise(code, self.source, channels)
        self.pointwise2 = rows.pointwise(code, Sources(channels, channels * size), channels)
        self.depthwise = rows.depthwise(code, channels)
        self.layout = Scratch(shape, size)
        self.scratch = self.pointer("scratch")
        self.height, self.width = self.number("height"), self.number("width")
        self.first, self.end = self.number("first"), self.number("end")
        self.left, self.right = self.number("left"), self.number("right")
        # Rings begin two columns left of the part, whether the image has them or not.
        self.base = self.left - 2
        self.outer = (self.base.most(0), (self.right + 2).least(self.width))
        self.inner = ((self.left - 1).most(0), (self.right + 1).least(self.width))

    def number(self, name: str) -> Number:
        return (self.given + 8 * SLOTS[name]).number()

    def pointer(self, name: str) -> Pointer:
        return (self.given + 8 * SLOTS[name]).pointer()

    def source_row(self, source: Number | int, y: Number) -> Pointer:
        """Return where column 0 of a source's row is."""
        facts = self.given + 8 * SLOTS["source"]
        facts = facts + source * 24 if isinstance(source, Number) else facts + 24 * source
        return facts.pointer() + y % (facts + 16).number() * (facts + 8).number()

    def write(self) -> None:
        body = self.body
        tiles = body.target.tiles
        if tiles:
            rows.begin_tiles(body)
        fresh = self.number("fresh")
        with body.when(fresh.compare("!=", 0)):
            self.begin()
        # Rows up to end + 1 have been seen by the call before.
        with body.loop(self.first + 2 - fresh * 4, self.end + 2) as y:
            self.first_sums(y)
            with body.when(y.compare(">=", self.first)):
                self.second_sums(y - 1)
                with body.when((y - 2).compare(">=", self.first)):
                    self.result(y - 2)
        if tiles:
            rows.end_tiles(body)

    def begin(self) -> None:
        """Columns left of the image are zeros from now on: nothing is ever written there."""
        layout, body = self.layout, self.body
        for number in range(3):
            body.zero(self.scratch + (layout.ring2 + number * layout.row), 2 * self.pixel)
            if self.shape.kind != "stem":
                body.zero(self.scratch + (layout.ring1 + number * layout.row), 2 * self.pixel)
        if self.shape.kind == "stem":
            body.zero(self.scratch + layout.image, 3 * layout.image_row)
        first = (self.first - 2).most(0)
        next_low = first >> 1 if self.shape.nearest else (((first + 1) >> 1) - 1).most(0)
        (self.scratch + layout.next_low).put(next_low)

    def ring(self, offset: int, y: Number) -> Pointer:
        """Return where column `base` of a ring's row is; y >= -2."""
        return self.scratch + ((y + 3) % 3 * self.layout.row + offset)

    def outside(self, y: Number) -> Any:
        return self.body.builder.icmp_unsigned(">=", y.value, self.height.value)

    def first_sums(self, y: Number) -> None:
        """Row y of the first ring; of the stem, row y of the image."""
        if self.shape.kind == "stem":
            row = self.image_row(y)
            self.body.either(
                self.outside(y),
                lambda: self.body.zero(row, self.layout.image_row),
                lambda: self.read_image(row, y),
            )
            return
        row = self.ring(self.layout.ring1, y)
        self.body.either(
            self.outside(y),
            lambda: self.body.zero(row, self.layout.row),
            lambda: self.convolve_sources(row, y),
        )

    def image_row(self, y: Number) -> Pointer:
        return self.scratch + ((y + 3) % 3 * self.layout.image_row + self.layout.image)

    def read_image(self, row: Pointer, y: Number) -> None:
        """Normalise a row of the image, zeros right of it."""
        bands, size = self.shape.inputs, RAW[self.shape.raw][1]
        start, end = self.outer
        source, to = self.source_row(0, y) + start * (bands * size), row + (start - self.base) * (4 * bands)
        normalise = rows.normalise(self.body.code, self.shape.raw)
        self.body.call(normalise, source, to, self.pointer("mean"), self.pointer("std"), (end - start) * bands)
        with self.body.when((self.right + 2).compare(">", end)):
            self.body.zero(row + (end - self.base) * (4 * bands), (self.right + 2 - end) * (4 * bands))

    def convolve_sources(self, row: Pointer, y: Number) -> None:
        """The first unit's pointwise convolution of row y of all sources."""
        body, pointers = self.body, self.scratch + self.layout.pointers
        start, end = self.outer
        count = self.number("count")
        if self.shape.kind == "encoder":
            self.pool_source(pointers, y)
            sums = body.null
        else:
            with body.loop(0, count) as source:
                (pointers + source * 8).put(self.source_row(source, y) + start * self.source.step)
            sums = self.upsample(y)
        to = row + (start - self.base) * self.pixel
        body.call(self.pointwise1, to, sums, count, pointers, self.pointer("pointwise1"), end - start)
        with body.when((self.right + 2).compare(">", end)):
            body.zero(row + (end - self.base) * self.pixel, (self.right + 2 - end) * self.pixel)

    def pool_source(self, pointers: Pointer, y: Number) -> None:
        start, end = self.outer
        pooled = self.scratch + self.layout.pooled
        above, below = (self.source_row(0, (y + y) + n) + start * (2 * self.source.step) for n in (0, 1))
        self.body.call(rows.pool(self.body.code, self.shape.inputs), above, below, pooled, end - start)
        pointers.put(pooled)

    def upsample(self, y: Number) -> Pointer:
        """Return row y of the upsampled half-resolution source, convolved, from the first column on."""
        body, layout = self.body, self.layout
        start, end = self.outer
        half, odd = y >> 1, y & 1
        below = half if self.shape.nearest else (half + odd).least((self.height >> 1) - 1)
        with body.loop((self.scratch + layout.next_low).number(), below + 1) as needed:
            self.convolve_low(needed)
        (self.scratch + layout.next_low).put(below + 1)
        above = half if self.shape.nearest else (half + odd - 1).most(0)
        near, far = (ir.Constant(F32, value) for value in (0.75, 0.25))
        share = body.builder.select(odd.compare("!=", 0), near, far)
        sums, function = self.scratch + layout.sums, rows.upsample(body.code, self.channels, self.shape.nearest)
        body.call(function, self.low_row(above), self.low_row(below), share, sums, (end - start + 1) >> 1)
        return sums

    def low_row(self, y: Number) -> Pointer:
        """Return where a convolved row of the half-resolution source begins, one pixel left of the first needed."""
        return self.scratch + ((y & 1) * self.layout.low_row + self.layout.low)

    def convolve_low(self, y: Number) -> None:
        body, low = self.body, self.shape.low
        pointer = self.scratch + (self.layout.pointers + 8 * MOST_SOURCES)
        start, end = self.outer
        base, width = (start >> 1) - 1, self.width >> 1
        first, last = base.most(0), (((end + 1) >> 1) + 1).least(width)
        source = self.pointer("low") + y % self.number("low_rows") * self.number("low_pitch")
        pointer.put(source + first * (low * self.size))
        row = self.low_row(y)
        function = rows.pointwise(body.code, Sources(low, low * self.size), self.channels)
        to = row + (first - base) * self.pixel
        body.call(function, to, body.null, 1, pointer, self.pointer("pointwise_low"), last - first)
        with body.when(base.compare("<", 0)):
            body.copy(row, row + self.pixel, self.pixel)
        with body.when(last.compare("==", width)):
            edge = row + (width - base) * self.pixel
            body.copy(edge, edge + -self.pixel, self.pixel)

    def second_sums(self, y: Number) -> None:
        """Row y of the second ring."""
        row = self.ring(self.layout.ring2, y)
        self.body.either(
            self.outside(y), lambda: self.body.zero(row, self.layout.row), lambda: self.convolve_first(row, y)
        )

    def convolve_first(self, row: Pointer, y: Number) -> None:
        """The first unit's last step, and the second unit's pointwise convolution of it."""
        body, layout = self.body, self.layout
        start, end = self.inner
        pixels, column = end - start, start - self.base
        found, pointers = self.scratch + layout.between, self.scratch + layout.pointers
        if self.shape.kind == "stem":
            sums = self.scratch + layout.sums
            for number in range(3):
                source = self.image_row(y + (number - 1)) + (column - 1) * (4 * self.shape.inputs)
                (pointers + 8 * number).put(source)
            body.call(self.pointwise1, sums, body.null, 3, pointers, self.pointer("pointwise1"), pixels)
            body.call(rows.bias_relu(body.code, self.channels), sums, self.pointer("bias1"), found, pixels)
        else:
            around = [self.ring(layout.ring1, y + n) + (column - 1) * self.pixel for n in (-1, 0, 1)]
            body.call(self.depthwise, *around, self.pointer("depthwise1"), self.pointer("bias1"), found, pixels)
        pointer = self.scratch + (layout.pointers + 8 * (MOST_SOURCES + 1))
        pointer.put(found)
        to = row + column * self.pixel
        body.call(self.pointwise2, to, body.null, 1, pointer, self.pointer("pointwise2"), pixels)
        with body.when((self.right + 1).compare(">", end)):
            body.zero(row + (end - self.base) * self.pixel, self.pixel)

    def result(self, y: Number) -> None:
        """Row y of the map."""
        around = [self.ring(self.layout.ring2, y + n) + self.pixel for n in (-1, 0, 1)]
        to = (
            self.pointer("map")
            + y % self.number("rows") * self.number("pitch")
            + self.left * (self.channels * self.size)
        )
        pixels = self.right - self.left
        self.body.call(self.depthwise, *around, self.pointer("depthwise2"), self.pointer("bias2"), to, pixels)
