"""The small language that functions are written in, run on this CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llvmlite import ir

from tests.unetpp.native.machine import TARGETS, functions
from unetpp.native.emit import F32, I8, I32, I64, POINTER, Body, Code, Number, Pointer
from unetpp.native.target import Target
from unetpp.native.weights import to_bf16

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")


@pytest.mark.parametrize(("a", "b"), [(7, 3), (3, 7), (-5, 3), (1 << 40, (1 << 33) + 5), (0, 9)])
def test_numbers(a: int, b: int) -> None:
    def write(body: Body, to: Pointer, a: Number, b: Number) -> None:
        bit = [Number(body, body.builder.zext(a.compare(sign, b), I64)) for sign in ("<", "<=", "==", "!=", ">=", ">")]
        found = [a + b, a - b, a * 3, a >> 1, a & 5, a.least(b), a.most(b), a.least(-2), a.most(-2), *bit]
        for place, number in enumerate(found):
            (to + 8 * place).put(number)

    call = functions(Target(8), lambda code: code.function("f", (POINTER, I64, I64), write))
    found = np.zeros(15, np.int64)
    call("f", found, a, b)
    signs = [a < b, a <= b, a == b, a != b, a >= b, a > b]
    assert found.tolist() == [a + b, a - b, 3 * a, a >> 1, a & 5, min(a, b), max(a, b), min(a, -2), max(a, -2), *signs]


@pytest.mark.parametrize(("a", "b"), [(7, 3), (1 << 40, (1 << 33) + 5), (0, 9), (1 << 50, 1 << 62)])
def test_division(a: int, b: int) -> None:
    def write(body: Body, to: Pointer, a: Number, b: Number) -> None:
        for place, number in enumerate((a // 6, a % 6, a % b)):
            (to + 8 * place).put(number)

    call = functions(Target(8), lambda code: code.function("f", (POINTER, I64, I64), write))
    found = np.zeros(3, np.int64)
    call("f", found, a, b)
    assert found.tolist() == [a // 6, a % 6, a % b]


@pytest.mark.parametrize(("first", "end"), [(0, 10), (3, 10), (4, 4), (6, 5), (-4, 3)])
def test_loops_and_branches(first: int, end: int) -> None:
    def write(body: Body, to: Pointer, first: Number, end: Number) -> None:
        with body.loop(first, end, 3) as n, body.loop(0, 2) as k:
            place = to + (n + 4) * 16 + k * 8
            number = n * 10 + k
            body.either(k.compare("==", 0), lambda: place.put(number), lambda: place.put(number * 2))
            with body.when(n.compare(">", 5)):
                place.put(number * 3)

    call = functions(Target(8), lambda code: code.function("f", (POINTER, I64, I64), write))
    found = np.full((20, 2), -1, np.int64)
    call("f", found, first, end)
    expected = np.full((20, 2), -1, np.int64)
    for n in range(first, end, 3):
        expected[n + 4] = (30 * n, 30 * n + 3) if n > 5 else (10 * n, 20 * n + 2)
    np.testing.assert_array_equal(found, expected)


def test_zero_and_copy() -> None:
    def write(body: Body, to: Pointer, source: Pointer, size: Number) -> None:
        body.zero(to, size)
        body.copy(to + 100, source, 7)

    call = functions(Target(8), lambda code: code.function("f", (POINTER, POINTER, I64), write))
    found, source = np.full(120, 9, np.uint8), np.arange(1, 20, dtype=np.uint8)
    call("f", found, source, 33)
    assert not found[:33].any() and (found[33:100] == 9).all()
    assert found[100:].tolist() == [*range(1, 8), *[9] * 13]


def test_a_function_is_made_once() -> None:
    made = []
    code = Code(Target(8))
    first, again = (code.function("f", (POINTER,), lambda body, given: made.append(given)) for _ in range(2))
    assert first is again and len(made) == 1
    assert code.constant("bytes", b"12") is code.constant("bytes", b"12")


@pytest.mark.parametrize("name", TARGETS)
def test_vectors(name: str) -> None:
    """splat, fma with one rounding, relu with NaN and both zeros, and how a map is stored."""
    target, lanes = TARGETS[name], TARGETS[name].lanes

    def write(body: Body, to: Pointer, source: Pointer) -> None:
        values = source.load(body.vector)
        body.keep([values] * target.kept, to)
        (to + 64).store(body.relu(values))
        (to + 128).store(body.splat((source + 4).load(F32)))
        (to + 192).store(body.fma(values, values, body.constants(-1.0)))
        (to + 256).store(body.splat((source + 4).load(I32)))

    call = functions(target, lambda code: code.function("f", (POINTER, POINTER), write))
    special = [1 + 2**-12, -2.5, np.nan, -np.inf, np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.3895314e38]
    values = np.array(special * (lanes // 8), np.float32)
    found = np.zeros(80, np.float32)
    call("f", found, values)
    positive = np.where(values < 0, 0, values)
    if target.stored == "bf16":
        kept = found[:16].view(np.uint16)[:lanes]
        number = ~np.isnan(values)
        np.testing.assert_array_equal(kept[number], to_bf16(positive)[number])
        assert (kept[~number] & 0x7FFF > 0x7F80).all(), "no NaN is left"
    elif target.stored == "fp32":
        np.testing.assert_array_equal(found[:lanes], positive)
    np.testing.assert_array_equal(found[16:][:lanes], positive)
    np.testing.assert_array_equal(found[32:][:lanes], np.full(lanes, values[1]))
    squares = values.astype(np.float64) ** 2 - 1
    assert squares[0] != np.float32(np.float32(values[0] * values[0]) - 1), "one rounding and two are alike"
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found[48:][:lanes], squares.astype(np.float32))
    np.testing.assert_array_equal(found[64:][:lanes], np.full(lanes, values[1]))


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.most is not None])
def test_whole_numbers_are_the_nearest(name: str) -> None:
    """Of two the even one, 0 for all below, and the largest for all that is more or not a number; in their order."""
    target, lanes = TARGETS[name], TARGETS[name].lanes

    def write(body: Body, to: Pointer, source: Pointer) -> None:
        body.keep([(source + 4 * lanes * v).load(body.vector) for v in range(target.kept)], to)

    call = functions(target, lambda code: code.function("f", (POINTER, POINTER), write))
    most = target.most
    assert most is not None
    between = np.float32(most - 0.5)
    about = [np.nextafter(between, -np.inf), between, np.nextafter(between, np.inf)]
    values = [0, 0.49999997, 0.5, 0.50000006, 1.5, 2.5, 100.7, *about, most, most + 0.5, most + 1, 1e9, np.inf, np.nan]
    expected = [0, 0, 0, 1, 2, 2, 101, most - 1, most - 1, most, *[most] * 6]
    values += [-0.0, -0.4, -0.6, -1, -300, -40_000, -1e9, -(2.0**31), -3e9, -np.inf, 2.0**31, 3e9, 1e38, 7, 300, 3]
    expected += [*[0] * 10, *[most] * 3, 7, min(300, most), 3]
    at_once = lanes * target.kept
    for first in range(0, 32, at_once):
        found = np.full(at_once + 4, 77, f"u{target.size}")
        call("f", found, np.array(values[first : first + at_once], np.float32))
        assert found.tolist() == [*expected[first : first + at_once], *[77] * 4]


def test_constants_are_aligned() -> None:
    addresses = []

    def write(code: Code) -> None:
        first, second = code.constant("a", b"x"), code.constant("b", bytes(range(64)))

        def content(body: Body, to: Pointer) -> None:
            for place, constant in enumerate((first, second)):
                pointer = Pointer(body, constant)
                (to + 16 * place).put(pointer)
                (to + (16 * place + 8)).store((pointer + 63 * place).load(I8, 1), 1)

        code.function("f", (POINTER,), content)

    found = np.zeros(4, np.int64)
    functions(Target(8), write)("f", found)
    addresses = [int(found[0]), int(found[2])]
    assert not any(address % 64 for address in addresses) and len(set(addresses)) == 2
    assert (found[1] & 255, found[3] & 255) == (ord("x"), 63)


def test_bfloat_is_one_type() -> None:
    from unetpp.native.emit import BF16, _BFloat

    other: Any = _BFloat()
    assert other == BF16 and hash(other) == hash(BF16) and other != F32
    assert str(ir.VectorType(BF16, 16)) == "<16 x bfloat>"
