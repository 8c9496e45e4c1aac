"""Writes the function that calls others one after the other; knows no node.

A tile takes a thousand calls of some tens of microseconds. From Python each would wait for Python's lock, up to five
milliseconds where another thread reads or outlines.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from unetpp.native.emit import I64, POINTER, Body, Code, Number, Pointer

RUN: Final = "run"
PART: Final = ("first", "end", "fresh")
"""The first arguments of every function that is called: rows from first to end, and 1 where it begins, else 0."""
_CALL: Final = 2 + len(PART)
"""Numbers of a call: addresses of function and arguments, and the part."""


def run(code: Code) -> None:
    """Add run(program, calls)."""

    def write(body: Body, program: Pointer, calls: Number) -> None:
        with body.loop(0, calls) as number:
            call = program + number * (8 * _CALL)
            arguments = (call + 8).pointer()
            for place in range(len(PART)):
                (arguments + 8 * place).put((call + 8 * (2 + place)).number())
            body.call_address(call.number(), arguments)

    code.function(RUN, (POINTER, I64), write)


def program(calls: list[tuple[int, int, int, int, bool]]) -> NDArray[np.int64]:
    """Return calls (address of the function, of its arguments, first, end, fresh) as `run` reads them."""
    return np.array(calls, np.int64).reshape(-1, _CALL)
