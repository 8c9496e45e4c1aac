"""Writes LLVM functions as one writes loops in C: numbers, pointers, loops and branches; knows no convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from unetpp.native.target import Target

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, POINTER, VOID = ir.FloatType(), ir.PointerType(), ir.VoidType()


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()


class Code:
    """The functions for one target, each made once however often it is asked for."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.module = ir.Module("unetpp")
        self._made: dict[str, Any] = {}

    def function(self, name: str, kinds: Sequence[Any], write: Callable[..., None]) -> Any:
        """Return the function of this name; `write(body, *arguments)` gives it its content if it is new.

        Args:
            kinds: types of its arguments. A pointer is handed to `write` as a `Pointer`, an i64 as a `Number`.
        """
        if name not in self._made:
            function = ir.Function(self.module, ir.FunctionType(VOID, list(kinds)), name)
            function.attributes.add("noinline")  # each is one loop nest; copies of it would only take time to compile
            function.attributes.add("nounwind")
            body = Body(self, function)
            write(body, *(body.wrap(argument) for argument in function.args))
            body.builder.ret_void()
            self._made[name] = function
        return self._made[name]

    def intrinsic(self, name: str, result: Any, kinds: Sequence[Any]) -> Any:
        if name not in self._made:
            self._made[name] = ir.Function(self.module, ir.FunctionType(result, list(kinds)), name)
        return self._made[name]

    def constant(self, name: str, data: bytes) -> Any:
        """Return a pointer to bytes, aligned for every instruction."""
        if name not in self._made:
            kind = ir.ArrayType(I8, len(data))
            made = ir.GlobalVariable(self.module, kind, name)
            made.initializer, made.align, made.global_constant = ir.Constant(kind, bytearray(data)), 64, True
            self._made[name] = made
        return self._made[name]


class Number:
    """A 64-bit integer of the program being written."""

    def __init__(self, body: Body, value: Any) -> None:
        self.body, self.value = body, value

    def _make(self, operation: str, left: Any, right: Any) -> Number:
        values = (self.body.i64(left), self.body.i64(right))
        return Number(self.body, getattr(self.body.builder, operation)(*values))

    def __add__(self, other: Number | int) -> Number:
        return self._make("add", self, other)

    def __sub__(self, other: Number | int) -> Number:
        return self._make("sub", self, other)

    def __mul__(self, other: Number | int) -> Number:
        return self._make("mul", self, other)

    def __floordiv__(self, other: int) -> Number:
        """For numbers >= 0."""
        return self._make("udiv", self, other)

    def __mod__(self, other: Number | int) -> Number:
        """For numbers >= 0."""
        return self._make("urem", self, other)

    def __rshift__(self, bits: int) -> Number:
        return self._make("ashr", self, bits)

    def __and__(self, other: int) -> Number:
        return self._make("and_", self, other)

    def compare(self, sign: str, other: Number | int) -> Any:
        """Return a condition; `sign` is <, <=, ==, !=, >= or >."""
        return self.body.builder.icmp_signed(sign, self.value, self.body.i64(other))

    def least(self, other: Number | int) -> Number:
        return Number(self.body, self.body.builder.select(self.compare("<", other), self.value, self.body.i64(other)))

    def most(self, other: Number | int) -> Number:
        return Number(self.body, self.body.builder.select(self.compare(">", other), self.value, self.body.i64(other)))


class Pointer:
    """An address; offsets are bytes."""

    def __init__(self, body: Body, value: Any) -> None:
        self.body, self.value = body, value

    def __add__(self, offset: Number | int) -> Pointer:
        return Pointer(self.body, self.body.builder.gep(self.value, [self.body.i64(offset)], source_etype=I8))

    def load(self, kind: Any, align: int = 4) -> Any:
        found = self.body.builder.load(self.value, typ=kind)
        found.align = align
        return found

    def store(self, value: Any, align: int = 4) -> None:
        self.body.builder.store(value, self.value).align = align

    def pointer(self) -> Pointer:
        return Pointer(self.body, self.load(POINTER, 8))

    def number(self) -> Number:
        return Number(self.body, self.load(I64, 8))

    def put(self, what: Pointer | Number) -> None:
        self.store(what.value, 8)


class Body:
    """The inside of a function; what is called on it is appended to the function."""

    def __init__(self, code: Code, function: Any) -> None:
        self.code = code
        self.target = code.target
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.vector = ir.VectorType(F32, self.target.lanes)
        self.integers = ir.VectorType(I32, self.target.lanes)

    def wrap(self, value: Any) -> Any:
        return Pointer(self, value) if value.type == POINTER else Number(self, value) if value.type == I64 else value

    @staticmethod
    def i64(value: Number | Any) -> Any:
        return value.value if isinstance(value, Number) else ir.Constant(I64, value)

    @property
    def null(self) -> Pointer:
        return Pointer(self, ir.Constant(POINTER, None))

    def slot(self, kind: Any) -> Any:
        """Return a variable (register, once it is optimised) of a type."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    @contextmanager
    def loop(self, first: Number | int, end: Number | int, step: int = 1) -> Iterator[Number]:
        builder = self.builder
        counter = self.slot(I64)
        builder.store(self.i64(first), counter)
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        number = Number(self, builder.load(counter, typ=I64))
        builder.cbranch(number.compare("<", end), inside, after)
        builder.position_at_end(inside)
        yield number
        builder.store((number + step).value, counter)
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        with self.builder.if_then(condition):
            yield

    def either(self, condition: Any, yes: Callable[[], None], no: Callable[[], None]) -> None:
        with self.builder.if_else(condition) as (then, otherwise):
            with then:
                yes()
            with otherwise:
                no()

    def call(self, function: Any, *arguments: Any) -> Any:
        values = [
            argument.value if isinstance(argument, Pointer | Number)
            else ir.Constant(I64, argument) if isinstance(argument, int)
            else argument
            for argument in arguments
        ]  # fmt: skip
        return self.builder.call(function, values)

    def call_address(self, function: Number, argument: Pointer) -> None:
        """Call the function at an address, which takes a pointer."""
        kind = ir.FunctionType(VOID, [POINTER])
        self.builder.call(self.builder.inttoptr(function.value, kind.as_pointer()), [argument.value])

    def zero(self, start: Pointer, size: Number | int) -> None:
        fill = self.code.intrinsic("llvm.memset.p0.i64", VOID, [POINTER, I8, I64, I1])
        self.call(fill, start, ir.Constant(I8, 0), size, ir.Constant(I1, 0))

    def copy(self, to: Pointer, source: Pointer, size: int) -> None:
        copy = self.code.intrinsic("llvm.memcpy.p0.p0.i64", VOID, [POINTER, POINTER, I64, I1])
        self.call(copy, to, source, size, ir.Constant(I1, 0))

    def splat(self, value: Any) -> Any:
        """Return a vector of one number of 32 bits."""
        lanes = self.target.lanes
        empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def constants(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.target.lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, rounded once."""
        name = f"llvm.fma.v{self.target.lanes}f32"
        return self.builder.call(self.code.intrinsic(name, self.vector, [self.vector] * 3), [a, b, c])

    def relu(self, value: Any) -> Any:
        """Return the positive part; what is not a number stays that, as torch's does."""
        zero = self.constants(0.0)
        return self.builder.select(self.builder.fcmp_ordered("<", value, zero), zero, value)

    def keep(self, values: Sequence[Any], where: Pointer) -> None:
        """Store the positive parts of `Target.kept` vectors, one behind the other, as maps are stored."""
        stored, lanes = self.target.stored, self.target.lanes
        value = self._words(*values) if stored == "int16" else self.relu(*values)
        if stored == "bf16":
            narrow = self.code.intrinsic(
                f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * lanes}", ir.VectorType(BF16, lanes), [self.vector]
            )
            value = self.builder.call(narrow, [value])
        elif stored == "int8":
            # The last bits of numbers from 2^23 on are whole numbers.
            shifted = self.builder.fadd(self._least(value), self.constants(2.0**23))
            value = self.builder.trunc(self.builder.bitcast(shifted, self.integers), ir.VectorType(I8, lanes))
        where.store(value, self.target.size)

    def _words(self, first: Any, second: Any) -> Any:
        """Return the positive parts of 2 x 8 numbers as 16 words. Packed, half as many need what is done to them."""
        words = ir.VectorType(I16, 16)
        whole = self.code.intrinsic("llvm.x86.avx.cvt.ps2dq.256", self.integers, [self.vector])
        pack = self.code.intrinsic("llvm.x86.avx2.packssdw", words, [self.integers, self.integers])
        most = self.code.intrinsic("llvm.smax.v16i16", words, [words, words])
        packed = self.builder.call(pack, [self.builder.call(whole, [self._least(part)]) for part in (first, second)])
        quarters = self.builder.bitcast(
            self.builder.call(most, [packed, ir.Constant(words, [0] * 16)]), ir.VectorType(I64, 4)
        )
        # Halves of the two alternate.
        order = ir.Constant(ir.VectorType(I32, 4), [0, 2, 1, 3])
        return self.builder.bitcast(self.builder.shuffle_vector(quarters, quarters, order), words)

    def _least(self, value: Any) -> Any:
        """Return what can be stored: the largest number for what is more or not a number."""
        assert self.target.most is not None  # of maps of whole numbers
        most = self.constants(float(self.target.most))
        return self.builder.select(self.builder.fcmp_ordered("<", value, most), value, most)
