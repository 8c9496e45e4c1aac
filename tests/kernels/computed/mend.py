"""Makes Triton's interpreter compute bf16 as a GPU does; knows the interpreter's builder, no kernel of ours.

It keeps bf16 as the raw 16 bits in uint16 arrays and then calculates with those integers: products and sums are
nonsense, and conversion from fp32 cuts off instead of rounding. Here bf16 operands become fp32 before any arithmetic,
and results are rounded to nearest even.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the fp32 values of raw bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return raw bf16 bits of fp32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend the interpreter for the time of one test."""
    builder = InterpreterBuilder
    cast, binary, unary, dot = builder.cast_impl, builder.binary_op, builder.unary_op, builder.create_dot

    def single(handle: Any) -> Any:
        return TensorHandle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == target.scalar:
            return source
        source = single(source)
        if target.scalar == tl.bfloat16:
            return TensorHandle(narrow(source.data.astype(np.float32)), target.scalar)
        return source if source.dtype.scalar == target.scalar else cast(self, source, target)

    def binary_op(self: Any, a: Any, b: Any, operation: Callable[..., Any]) -> Any:
        if not _is_bf16(a):
            return binary(self, a, b, operation)
        found = operation(single(a).data, single(b).data)
        return TensorHandle(found, tl.int1) if found.dtype == np.bool_ else TensorHandle(narrow(found), tl.bfloat16)

    def unary_op(self: Any, a: Any, operation: Callable[..., Any]) -> Any:
        if not _is_bf16(a):
            return unary(self, a, operation)
        return TensorHandle(narrow(operation(single(a).data)), tl.bfloat16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, single(a), single(b), *rest)

    for name, mended in (
        ("cast_impl", cast_impl),
        ("binary_op", binary_op),
        ("unary_op", unary_op),
        ("create_dot", create_dot),
    ):
        monkeypatch.setattr(builder, name, mended)


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)
