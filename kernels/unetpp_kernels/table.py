"""Which blocks and warps each kernel is launched with; needs no GPU and no Triton.

A launch asks for a `Row` by the properties of its tensors; `unetpp_kernels.catalogue` enumerates every answer there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Dtype = Literal["fp32", "fp16", "bf16"]
Accumulate = Literal["single", "packed"]
Product = Literal["tf32", "tf32x3", "plain"]
"""How the matrix product treats fp32 operands; "plain" for 16-bit ones, which need no choice."""

Pixels = Literal["u8", "fp32"]
Added = Literal[0, 1, 2]
Normalise = Literal["normalise", "normalise_sums", "normalise_backward", "pool", "pool_backward"]

THIN = 16
"""Outputs of the narrowest tile of a matrix product."""
WIDTHS = (32, 64, 128)
WIDEST = WIDTHS[-1]
"""Fusing a depthwise with a pointwise convolution needs all outputs of a pixel in registers; wider ones take two steps.

At that width (levels 3 and 4 of the default network, 2.5% of its time) the product dominates and the depthwise result
is small beside it.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel: its name, the type of its tensors, its compile-time constants, warps and pipeline stages."""

    kernel: str
    dtype: str
    constants: tuple[tuple[str, int | bool | str], ...]
    warps: int
    stages: int = 1

    @property
    def name(self) -> str:
        """A short unique name: "depthwise_pointwise fp16 BLOCK_N=32 ... w4"."""
        constants = " ".join(
            f"{key}={value:d}" if isinstance(value, bool) else f"{key}={value}" for key, value in self.constants
        )
        return f"{self.kernel} {self.dtype} {constants} w{self.warps} s{self.stages}"

    def __getitem__(self, key: str) -> int:
        return int(dict(self.constants)[key])


def width_class(outputs: int) -> int | None:
    """Return the smallest tile width that holds this many output channels, None where there is none."""
    return next((width for width in WIDTHS if outputs <= width), None)


# (G, BLOCK_W, R, BLOCK_K, warps) by accumulation and tile width; see `gpu.strips` for G and R. Chosen for the fewest
# instructions per element on sm_90 among those without spills on sm_80, sm_90 and sm_100 (`make kernels`); not yet
# measured on a GPU. An entry for one type goes before that for its accumulation. BLOCK_K divides 32 where channels are
# even, so that "even" is the same for every row.
_Strips = dict[tuple[str, int], tuple[int, int, int, int, int]]
_STRIPS: _Strips = {
    ("packed", 32): (1, 64, 4, 32, 4),
    ("packed", 64): (2, 64, 4, 32, 8),
    ("packed", 128): (1, 64, 4, 32, 8),
    ("single", 32): (1, 64, 4, 32, 4),
    ("single", 64): (1, 64, 4, 32, 8),
    ("single", 128): (1, 64, 2, 32, 8),
    ("fp32", 32): (1, 64, 4, 16, 4),
    ("fp32", 64): (1, 64, 2, 16, 4),
    ("fp32", 128): (1, 32, 2, 16, 8),
}
_INNER_STRIPS: _Strips = {
    ("packed", 128): (2, 32, 4, 32, 8),
    ("bf16 packed", 128): (1, 64, 2, 32, 8),
    ("fp32", 32): (1, 64, 2, 16, 8),
    ("fp32", 64): (1, 32, 4, 16, 8),
}
_LOW_STRIPS: _Strips = {
    ("packed", 64): (1, 64, 4, 32, 8),
    ("single", 32): (2, 32, 4, 32, 8),
    ("fp16 single", 32): (1, 32, 4, 32, 8),
    ("single", 64): (1, 32, 4, 32, 8),
    ("single", 128): (1, 32, 4, 32, 8),
    ("fp32", 32): (1, 32, 2, 32, 8),
    ("fp32", 64): (1, 32, 2, 32, 8),
}
_UNEVEN_STRIPS: _Strips = {
    ("packed", 32): (1, 64, 2, 16, 4),
    ("packed", 64): (1, 64, 2, 16, 8),
    ("packed", 128): (1, 64, 2, 16, 8),
    ("single", 32): (1, 64, 2, 16, 4),
    ("single", 64): (1, 64, 2, 16, 8),
    ("single", 128): (1, 64, 2, 16, 8),
    ("fp32", 32): (1, 64, 2, 16, 8),
    ("fp32", 64): (1, 64, 2, 16, 8),
    ("fp32", 128): (1, 32, 2, 16, 8),
}
# (BLOCK_M, BLOCK_K, warps) by operand size and tile width, chosen likewise. Odd widths have one tile width, and small
# blocks, because narrow loads need many registers for addresses.
_PRODUCTS: dict[tuple[str, int], tuple[int, int, int]] = {
    ("16 bits", 32): (128, 32, 4),
    ("16 bits", 64): (128, 32, 4),
    ("16 bits", 128): (128, 32, 8),
    ("fp32", 32): (64, 32, 4),
    ("fp32", 64): (64, 16, 8),
    ("fp32", 128): (64, 16, 8),
}
_UNEVEN_PRODUCTS = {"16 bits": (64, (64, 32, 8)), "fp32": (32, (32, 16, 8))}
# Where moments in the epilogue would spill registers, by type, outputs and LOW.
_TOO_FULL = {
    ("fp16", 64, True),
    ("bf16", 128, False),
    ("fp32", 32, True),
    ("fp32", 64, False),
    ("fp32", 64, True),
}


# Behind a norm with its ReLU, where the blocks above would spill, by type, DOT, outputs and LOW. BLOCK_K is that of the
# row without, so that sums are made in the same order.
_NORM_STRIPS: dict[tuple[str, str, int, bool], tuple[int, int, int, int, int]] = {
    ("fp16", "tf32", 32, False): (1, 64, 4, 32, 8),
    ("bf16", "tf32", 32, False): (1, 64, 4, 32, 8),
    ("fp32", "tf32", 32, True): (1, 32, 4, 32, 8),
    ("fp32", "tf32x3", 64, False): (1, 32, 2, 16, 8),
}


def depthwise_pointwise(
    dtype: Dtype, accumulate: Accumulate, product: Product, outputs: int, *, low: bool, inner: bool, even: bool
) -> Row | None:
    """Row of `gpu.depthwise_pointwise`; None where the two convolutions are better apart.

    even: all widths are multiples of the row's BLOCK_K and outputs fill a tile width. Without it there is one row per
    width: it reads no `low` (upsample before) and has an inner step (whose bias may be 0 and whose floor -inf).
    """
    width = width_class(outputs)
    if width is None or (low and inner):
        return None
    low, inner = low and even, inner or not even
    groups, columns, rows, block, warps = _strips(dtype, accumulate, width, low=low, inner=inner, even=even)
    return Row(
        "depthwise_pointwise",
        dtype,
        (
            ("G", groups),
            ("BLOCK_W", columns),
            ("R", rows),
            ("BLOCK_K", block),
            ("BLOCK_N", width),
            ("PACKED", accumulate == "packed"),
            ("LOW", low),
            ("INNER", inner),
            ("EVEN", even),
            ("FULL", even),
            ("DOT", dot_precision(product)),
        ),
        warps,
    )


def pointwise(dtype: Dtype, product: Product, outputs: int, *, added: Added, pool: bool, even: bool) -> Row:
    """Row of `gpu.pointwise`. added: 0 nothing, 1 nearest, 2 bilinear. even: as above, for the returned blocks."""
    size = "fp32" if dtype == "fp32" else "16 bits"
    if even:
        width = width_class(outputs) or WIDEST
        pixels, block, warps = _PRODUCTS[size, width]
    else:
        width, (pixels, block, warps) = _UNEVEN_PRODUCTS[size]
    return Row(
        "pointwise",
        dtype,
        (
            ("BLOCK_M", pixels),
            ("BLOCK_N", width),
            ("BLOCK_K", block),
            ("LOW", added),
            ("POOL", pool),
            ("EVEN", even),
            ("FULL", even),
            ("DOT", dot_precision(product)),
        ),
        warps,
        # Pooling computes between load and product, so there is nothing to load ahead into shared memory.
        1 if pool else 3,
    )


def thin_pointwise(dtype: Dtype, product: Product) -> Row:
    """Row of `gpu.pointwise` for at most `THIN` outputs, the classes of a head, over channels that fill its blocks."""
    constants = (
        ("BLOCK_M", 64),
        ("BLOCK_N", THIN),
        ("BLOCK_K", 32),
        ("LOW", 0),
        ("POOL", False),
        ("EVEN", True),
        ("FULL", False),
        ("DOT", dot_precision(product)),
    )
    return Row("pointwise", dtype, constants, 4, 3)


def depthwise(dtype: Dtype, accumulate: Accumulate, *, even: bool) -> Row:
    """Row of `gpu.depthwise` for 3x3, stride 1, dilation 1. even: channels are a multiple of the row's BLOCK_K."""
    constants = (
        ("G", 1),
        ("BLOCK_W", 64),
        ("R", 4 if even else 2),
        ("BLOCK_K", 32),
        ("PACKED", accumulate == "packed"),
        ("EVEN", even),
    )
    return Row("depthwise", dtype, constants, 4)


def depthwise_any(dtype: Dtype, *, even: bool) -> Row:
    """Row of `gpu.depthwise` for every other size, stride and dilation."""
    return Row("depthwise_any", dtype, (("BLOCK_M", 64), ("BLOCK_K", 32), ("EVEN", even)), 4)


def stem(dtype: Dtype, outputs: int, mixed: int | None, pixels: Pixels) -> Row | None:
    """Row of `gpu.ends.stem_kernel`; None for more channels than a tile holds."""
    width = width_class(max(outputs, mixed or 1))
    if width not in (32, 64):
        return None
    constants = (
        ("BLOCK_M", 32 if dtype == "fp32" and width == 64 else 64),
        ("BLOCK_T", 32),
        ("BLOCK_N", width),
        ("MIX", mixed is not None),
        ("DOT", dot_precision(_exact(dtype))),
    )
    return Row("stem", f"{dtype} {pixels}", constants, 8 if dtype == "fp32" and width == 64 else 4)


def head(dtype: Dtype, classes: int, *, probabilities: bool) -> Row | None:
    """Row of `gpu.ends.head_kernel`; None for more classes than a tile holds."""
    width = next((width for width in (16, 64) if classes <= width), None)
    if width is None:
        return None
    constants = (
        ("BLOCK_M", 128 if width == 16 else 64),
        ("BLOCK_K", 32),
        ("BLOCK_N", width),
        ("PROBABILITIES", probabilities),
        ("DOT", dot_precision(_exact(dtype))),
    )
    return Row("head", dtype, constants, 4)


def depthwise_head(
    dtype: Dtype, accumulate: Accumulate, classes: int, *, probabilities: bool, even: bool
) -> Row | None:
    """Row of `gpu.ends.depthwise_head_kernel`; None for more than 16 classes. even: as for `depthwise`."""
    if classes > 16:
        return None
    groups, columns, rows, block, warps = _strips(dtype, accumulate, 32, low=False, inner=True, even=even)
    constants = (
        ("G", groups),
        ("BLOCK_W", columns),
        ("R", rows),
        ("BLOCK_K", block),
        ("BLOCK_N", 16),
        ("PACKED", accumulate == "packed"),
        ("PROBABILITIES", probabilities),
        ("EVEN", even),
        ("DOT", dot_precision(_exact(dtype))),
    )
    return Row("depthwise_head", dtype, constants, warps)


def pointwise_backward(dtype: Dtype, product: Product, outputs: int) -> Row | None:
    """Row of `gpu.backward.pointwise_backward_kernel`; None where the products are better left to the library.

    All widths must be multiples of the row's BLOCK_K. fp32 needs three products and has registers for 32 outputs only.
    """
    if outputs not in WIDTHS or (dtype == "fp32" and outputs > WIDTHS[0]):
        return None
    constants = (
        ("BLOCK_M", 64),
        ("BLOCK_K", 32 if dtype != "fp32" else 16),
        ("BLOCK_N", outputs),
        ("DOT", dot_precision(product)),
    )
    return Row("pointwise_backward", dtype, constants, 8 if outputs == WIDEST else 4)


def depthwise_pointwise_backward(dtype: Dtype, product: Product, outputs: int, *, inner: bool) -> Row | None:
    """Row of `gpu.backward.depthwise_pointwise_backward_kernel`; None and widths as above.

    inner: there is a bias or an activation between the convolutions.
    """
    if outputs not in WIDTHS or (dtype == "fp32" and outputs > WIDTHS[0]):
        return None
    rows = 2 if dtype == "fp32" or outputs == WIDEST else 3
    if inner:
        rows = 2 if dtype != "fp32" and outputs != 64 else 1
    constants = (
        ("BLOCK_W", 64),
        ("R", rows),
        ("BLOCK_K", 32 if dtype != "fp32" else 16),
        ("BLOCK_N", outputs),
        ("INNER", inner),
        ("DOT", dot_precision(product)),
    )
    return Row("depthwise_pointwise_backward", dtype, constants, 8 if outputs == WIDEST else 4)


def depthwise_backward(dtype: Dtype, *, even: bool) -> Row:
    """Row of `gpu.backward.depthwise_backward_kernel`. even: channels are a multiple of the row's BLOCK_K."""
    rows = 2 if not even else 4 if dtype == "fp32" else 8
    return Row("depthwise_backward", dtype, (("BLOCK_W", 32), ("R", rows), ("BLOCK_K", 16), ("EVEN", even)), 4)


def upsample_backward(dtype: Dtype, *, bilinear: bool, even: bool) -> Row:
    """Row of `gpu.backward.upsample_backward_kernel`; even as above."""
    constants = (("BLOCK_M", 64 if even else 16), ("BLOCK_K", 32), ("BILINEAR", bilinear), ("EVEN", even))
    return Row("upsample_backward", dtype, constants, 4)


def with_moments(row: Row) -> Row | None:
    """Row of a convolution that also gives its result's moments; None where it is better to read the result again.

    That is where a sum is rounded to 16 bits, where channels fill no block, and where registers do not suffice.
    """
    constants = dict(row.constants)
    if row.kernel not in ("depthwise_pointwise", "pointwise", "depthwise") or not constants["EVEN"]:
        return None
    if any(constants.get(name) for name in ("PACKED", "INNER", "POOL")) or constants.get("FULL") is False:
        return None
    low = bool(constants.get("LOW"))
    if row.kernel == "pointwise" and low:
        return None
    if row.kernel == "depthwise_pointwise" and (row.dtype, constants["BLOCK_N"], low) in _TOO_FULL:
        return None
    return replace(row, constants=(*row.constants, ("MOMENTS", True)))


def with_norm(row: Row) -> Row | None:
    """Row of a convolution that reads its sources through a batch norm and ReLU; None where it cannot.

    That is where channels fill no block, where sums are packed, where registers do not suffice, and of pooled sources:
    where the scale is negative, the norm goes before the maximum.
    """
    constants = dict(row.constants)
    if row.kernel not in ("depthwise_pointwise", "pointwise", "pointwise_backward") or not constants.get("EVEN", True):
        return None
    if any(constants.get(name) for name in ("PACKED", "INNER", "POOL")):
        return None
    if (row.kernel, row.dtype, constants["BLOCK_N"], constants["DOT"]) == ("pointwise", "fp32", WIDEST, "tf32"):
        return None
    found = replace(row, constants=(*row.constants, ("NORM", True)))
    key = row.dtype, str(constants["DOT"]), row["BLOCK_N"], bool(constants.get("LOW"))
    if row.kernel != "depthwise_pointwise" or key not in _NORM_STRIPS:
        return found
    *blocks, warps = _NORM_STRIPS[key]
    changed = dict(zip(("G", "BLOCK_W", "R", "BLOCK_K"), blocks, strict=True))
    return replace(found, constants=tuple({**dict(found.constants), **changed}.items()), warps=warps)


def moments(dtype: Dtype, *, even: bool) -> Row:
    """Row of `gpu.moments.moments_kernel`; even as above."""
    return Row("moments", dtype, (("BLOCK_M", 64), ("BLOCK_K", 32), ("R", 4), ("EVEN", even)), 4)


def join() -> Row:
    """Row of `gpu.moments.join_kernel`."""
    return Row("join", "fp32", (("BLOCK_P", 64), ("BLOCK_K", 32)), 4)


def normalise(kernel: Normalise, dtype: Dtype, *, even: bool) -> Row:
    """Row of a kernel of `gpu.normalise` or `gpu.pool`; even as above."""
    block = 32 if kernel.startswith("pool") else 64  # windows of four pixels each
    return Row(kernel, dtype, (("BLOCK_M", block), ("BLOCK_K", 32), ("EVEN", even)), 4)


def _strips(
    dtype: Dtype, accumulate: Accumulate, width: int, *, low: bool, inner: bool, even: bool
) -> tuple[int, int, int, int, int]:
    key = ("fp32" if dtype == "fp32" else accumulate, width)
    if not even:
        return _UNEVEN_STRIPS[key]
    special = _LOW_STRIPS if low else _INNER_STRIPS if inner else {}
    return special.get((f"{dtype} {accumulate}", width), special.get(key, _STRIPS[key]))


def _exact(dtype: Dtype) -> Product:
    """The ends are a small part of the time, so that fp32 never rounds there."""
    return "tf32x3" if dtype == "fp32" else "plain"


def dot_precision(product: Product) -> str:
    """Return what a kernel's DOT is for a product."""
    return "tf32" if product == "plain" else product  # 16-bit operands ignore it
