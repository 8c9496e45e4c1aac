"""Writes the functions that turn rows of X^{0,j} into logits or class values; knows classes, not which head it is."""

from __future__ import annotations

from typing import Any, Final

from unetpp.native import rows
from unetpp.native.emit import F32, I8, POINTER, Body, Code, Number, Pointer
from unetpp.native.program import PART
from unetpp.native.rows import SLACK, Sources
from unetpp.native.target import Target

LABELS, LOGITS = "labels", "logits"
SLOTS: Final = {
    name: number for number, name in enumerate((
        *PART,
        "map", "pitch", "rows",  # as of `unetpp.native.node`
        "left", "right",  # columns to compute
        "weights", "scale", "bias", "values",  # logits are scale x sums + bias; values: of the classes, at least two
        "to", "to_pitch", "plane",  # where pixel (0, 0) goes, bytes per row, bytes from class to class of logits
        "scratch",
    ))
}  # fmt: skip
_SUMS: Final = 64
"""Where sums begin in the scratch, behind a pointer."""


def outputs(target: Target, classes: int) -> int:
    """Return the numbers that the head's convolution makes per pixel; those behind the classes are zeros."""
    return target.padded(max(classes, 32 if target.tiles else 1))


def scratch_bytes(target: Target, classes: int, pixels: int) -> int:
    return _SUMS + (pixels + SLACK) * outputs(target, classes) * 4


def head(code: Code, channels: int, classes: int) -> None:
    """Add labels(arguments), one byte per pixel, and logits(arguments), float32, a plane per class."""
    size, made = code.target.size, outputs(code.target, classes)
    fma = code.intrinsic("llvm.fma.f32", F32, [F32] * 3)
    convolve = rows.pointwise(code, Sources(channels, channels * size), made)

    def each_row(body: Body, given: Pointer, pixel: int, decide: Any) -> None:
        number = {name: (given + 8 * place).number() for name, place in SLOTS.items()}
        at = {name: (given + 8 * place).pointer() for name, place in SLOTS.items()}
        if body.target.tiles:
            rows.begin_tiles(body)
        scratch, left, pixels = at["scratch"], number["left"], number["right"] - number["left"]
        with body.loop(number["first"], number["end"]) as y:
            row = at["map"] + y % number["rows"] * number["pitch"] + left * (channels * size)
            scratch.put(row)
            body.call(convolve, scratch + _SUMS, body.null, 1, scratch, at["weights"], pixels)
            to = at["to"] + y * number["to_pitch"] + left * pixel
            with body.loop(0, pixels) as x:
                sums = scratch + _SUMS + x * (4 * made)

                def logit(k: int, sums: Pointer = sums) -> Any:
                    scale, bias = ((at[name] + 4 * k).load(F32) for name in ("scale", "bias"))
                    return body.call(fma, (sums + 4 * k).load(F32), scale, bias)

                decide(body, logit, to + x * pixel, at["values"], number["plane"])
        if body.target.tiles:
            rows.end_tiles(body)

    def label(body: Body, logit: Any, to: Pointer, values: Pointer, _plane: Number) -> None:
        """Of equal logits the first class wins; a single logit is the second class's, the first has 0."""
        builder, single = body.builder, classes == 1
        best, value = F32(0.0) if single else logit(0), values.load(I8, 1)
        for k in range(1, 2 if single else classes):
            other = logit(0 if single else k)
            larger = builder.fcmp_ordered(">", other, best)
            best = builder.select(larger, other, best)
            value = builder.select(larger, (values + k).load(I8, 1), value)
        to.store(value, 1)

    def each_logit(body: Body, logit: Any, to: Pointer, _values: Pointer, plane: Number) -> None:
        for k in range(classes):
            (to + plane * k).store(logit(k))

    code.function(LABELS, (POINTER,), lambda body, given: each_row(body, given, 1, label))
    code.function(LOGITS, (POINTER,), lambda body, given: each_row(body, given, 4, each_logit))
