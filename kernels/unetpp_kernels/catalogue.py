"""Every row that a launch can ask for: the whole of what can be compiled; needs no GPU and no Triton.

A check without a GPU compiles all of them, so that no user's first tile meets a kernel that was never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import get_args

from unetpp_kernels import table
from unetpp_kernels.table import WIDTHS, Accumulate, Added, Dtype, Normalise, Pixels, Product, Row

_STATISTICS = ("moments", "join", *get_args(Normalise))
_READS: tuple[tuple[Added, bool], ...] = ((0, False), (1, False), (2, False), (0, True))


def rows() -> Iterator[Row]:
    """Yield every row that can be launched, each once."""
    seen: set[Row | None] = {None}
    for row in _all():
        for form in () if row is None else _forms(row):
            if form is not None and form not in seen:
                seen.add(form)
                yield form


def usual(dtype: Dtype) -> list[Row]:
    """Return what inference launches where channels are multiples of 32, with the default accumulation and product."""
    dot: Product = "tf32x3" if dtype == "fp32" else "plain"
    wanted = {"EVEN": True, "PACKED": dtype == "fp16", "DOT": table.dot_precision(dot)}
    found = [
        row
        for row in rows()
        if row.dtype.partition(" ")[0] == dtype
        and not in_training(row)
        and all(value == wanted.get(name, value) for name, value in row.constants)
    ]
    # More logits, one channel per class, than a thin tile holds fill no other.
    return [*found, table.pointwise(dtype, dot, 2, added=0, pool=False, even=False)]


def training(dtype: Dtype) -> list[Row]:
    """Return what training launches beside `usual`: sums in fp32, moments, gradients; channels in multiples of 32."""
    dot: Product = "tf32x3" if dtype == "fp32" else "plain"
    wanted = {"EVEN": True, "PACKED": False, "DOT": table.dot_precision(dot)}
    plain = [
        table.depthwise_pointwise(dtype, "single", dot, width, low=low, inner=False, even=True)
        for width, low in product(WIDTHS, (False, True))
    ]
    found = [
        row
        for row in rows()
        if (row.dtype == dtype or row.kernel == "join")
        and in_training(row)
        and all(value == wanted.get(name, value) for name, value in row.constants)
    ]
    return [*found, table.depthwise(dtype, "single", even=True), *(row for row in plain if row is not None)]


def in_training(row: Row) -> bool:
    """Whether only training launches the row: gradients, and statistics of a batch."""
    return (
        row.kernel.endswith("_backward")
        or row.kernel in _STATISTICS
        or bool({"MOMENTS", "NORM"} & {*dict(row.constants)})
    )


def _forms(row: Row) -> Iterator[Row | None]:
    """Yield a row, and those that also give moments or read through a norm.

    A product that reads through one gives no moments; the pair of convolutions does, where there is room for them.
    """
    moments = table.with_moments(row)
    yield row
    yield moments
    yield table.with_norm(moments if moments is not None and row.kernel == "depthwise_pointwise" else row)


def _all() -> Iterator[Row | None]:
    switch = (False, True)
    kinds: list[tuple[Dtype, Accumulate, Product]] = [
        ("fp16", "packed", "plain"),
        ("fp16", "single", "plain"),
        ("bf16", "packed", "plain"),
        ("bf16", "single", "plain"),
        ("fp32", "single", "tf32"),
        ("fp32", "single", "tf32x3"),
    ]
    for (dtype, accumulate, dot), even in product(kinds, switch):
        yield table.depthwise(dtype, accumulate, even=even)
        yield table.depthwise_any(dtype, even=even)
        for width, low, inner in product(WIDTHS, switch, switch):
            yield table.depthwise_pointwise(dtype, accumulate, dot, width, low=low, inner=inner, even=even)
        for width, (added, pool) in product(WIDTHS, _READS):
            yield table.pointwise(dtype, dot, width, added=added, pool=pool, even=even)
        yield table.thin_pointwise(dtype, dot)
        for probabilities in switch:
            yield table.depthwise_head(dtype, accumulate, 2, probabilities=probabilities, even=even)
            for classes in (2, 64):
                yield table.head(dtype, classes, probabilities=probabilities)
        for width, mix, pixels in product((32, 64), switch, get_args(Pixels)):
            yield table.stem(dtype, width, width if mix else None, pixels)
        yield table.depthwise_backward(dtype, even=even)
        yield table.moments(dtype, even=even)
        for kernel in get_args(Normalise):
            yield table.normalise(kernel, dtype, even=even)
        for bilinear in switch:
            yield table.upsample_backward(dtype, bilinear=bilinear, even=even)
    yield table.join()
    for (dtype, _, dot), width in product(kinds, WIDTHS):
        yield table.pointwise_backward(dtype, dot, width)
        for inner in switch:
            yield table.depthwise_pointwise_backward(dtype, dot, width, inner=inner)
